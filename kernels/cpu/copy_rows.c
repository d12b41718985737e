#include <string.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

static void copy_row(void *context, int64_t row, int thread) {
    const avl_copy_rows_args_t *args = context;
    (void)thread;
    int64_t source = args->source_rows != NULL ? args->source_rows[row] : row;
    int64_t target = args->target_rows != NULL ? args->target_rows[row] : row;
    if (source < 0 || target < 0)
        return;
    memcpy(args->output + target * args->output_stride, args->input + source * args->input_stride,
           (size_t)args->width * sizeof(float));
}

avl_status_t avl_cpu_copy_rows(avl_device_t *device, const avl_copy_rows_args_t *args) {
    AVL_TRY(avl_check_matrix("copy_rows", "input", args->input, args->rows, args->input_stride,
                             args->width));
    AVL_TRY(avl_check_matrix("copy_rows", "output", args->output, args->rows, args->output_stride,
                             args->width));
    if (args->rows == 0 || args->width == 0)
        return AVL_OK;
    if (args->source_rows != NULL)
        AVL_TRY(avl_check_indices("copy_rows", "source_rows", args->source_rows, args->rows, -1));
    if (args->target_rows != NULL)
        AVL_TRY(avl_check_indices("copy_rows", "target_rows", args->target_rows, args->rows, -1));
    avl_copy_rows_args_t copy = *args;
    avl_cpu_parallel(avl_cpu_device(device), args->rows, args->rows * args->width, copy_row, &copy);
    return AVL_OK;
}
