/* kernels/cuda/library.c: the door of libavl_cuda.so. The library carries its own copies of the few
 * functions of base/ that it calls; a failure's text, which lives in the program, goes through the
 * function that the program hands over. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels/device.h"

typedef avl_status_t report_t(avl_status_t status, const char *format, ...) AVL_PRINTF(2, 3);

static report_t *report;

avl_status_t avl_fail(avl_status_t status, const char *format, ...) {
    char text[AVL_STATUS_DETAIL_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return report == NULL ? status : report(status, "%s", text);
}

avl_status_t avl_cuda_device_open(int place, avl_device_t **device_p);

/* One host thread feeds a GPU; `threads` is what the host's own work beside it may use, the
 * conversion of weights above all. */
__attribute__((visibility("default"))) avl_status_t
avl_device_open_cuda(int threads, int place, report_t *program_report, avl_device_t **device_p);

avl_status_t avl_device_open_cuda(int threads, int place, report_t *program_report,
                                  avl_device_t **device_p) {
    report = program_report;
    AVL_TRY(avl_cuda_device_open(place, device_p));
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    (*device_p)->info.threads = threads > 0 ? threads : online > 0 ? (int)online : 1;
    return AVL_OK;
}
