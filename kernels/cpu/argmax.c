#include <inttypes.h>
#include <math.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

typedef struct argmax_run {
    const avl_cpu_kernels_t *kernels;
    const avl_argmax_args_t *args;
} argmax_run_t;

static void find_strange(const avl_argmax_args_t *args, int64_t row) {
    const float *logits = args->logits + row * args->stride;
    for (int64_t i = 0; i < args->width; i++) {
        if (!isnan(logits[i]) && logits[i] != INFINITY)
            continue;
        args->indices[row] = (int32_t)i;
        args->values[row] = logits[i];
        return;
    }
}

static void argmax_row(void *context, int64_t row, int thread) {
    const argmax_run_t *run = context;
    (void)thread;
    run->kernels->argmax(run->args, row);
    if (run->args->strict)
        find_strange(run->args, row);
}

avl_status_t avl_cpu_argmax(avl_device_t *device, const avl_argmax_args_t *args) {
    AVL_TRY(
        avl_check_matrix("argmax", "logits", args->logits, args->rows, args->stride, args->width));
    if (args->rows == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(args->width > 0 && args->width <= INT32_MAX,
                    "argmax: rows of width %" PRId64 " have no 32-bit index of their largest value",
                    args->width);
    AVL_TRY(avl_check_array("argmax", "indices", args->indices, args->rows));
    AVL_TRY(avl_check_array("argmax", "values", args->values, args->rows));
    argmax_run_t run = {avl_cpu_device(device)->kernels, args};
    avl_cpu_parallel(avl_cpu_device(device), args->rows, args->rows * args->width, argmax_row,
                     &run);
    return AVL_OK;
}
