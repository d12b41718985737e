#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

enum { ELEMENTS_PER_ITEM = 1 << 13 };

typedef struct activation_run {
    const avl_cpu_kernels_t *kernels;
    const avl_activation_args_t *args;
} activation_run_t;

static void activation_item(void *context, int64_t item, int thread) {
    const activation_run_t *run = context;
    (void)thread;
    int64_t first = item * ELEMENTS_PER_ITEM;
    int64_t count = avl_min64(ELEMENTS_PER_ITEM, run->args->count - first);
    run->kernels->activation(run->args, first, count);
}

avl_status_t avl_cpu_activation(avl_device_t *device, const avl_activation_args_t *args) {
    AVL_TRY(avl_check_array("activation", "data", args->data, args->count));
    AVL_TRY(avl_check_dtype("activation", "data", args->dtype));
    AVL_TRY(avl_check_activation("activation", args->activation));
    if (args->count == 0 || args->activation == AVL_ACTIVATION_NONE)
        return AVL_OK;
    activation_run_t run = {avl_cpu_device(device)->kernels, args};
    avl_cpu_parallel(avl_cpu_device(device), avl_ceil_div(args->count, ELEMENTS_PER_ITEM),
                     args->count * 8, activation_item, &run);
    return AVL_OK;
}

typedef struct gated_run {
    const avl_cpu_kernels_t *kernels;
    const avl_gated_args_t *args;
} gated_run_t;

static void gated_row(void *context, int64_t row, int thread) {
    const gated_run_t *run = context;
    (void)thread;
    run->kernels->gated(run->args, row);
}

avl_status_t avl_cpu_gated(avl_device_t *device, const avl_gated_args_t *args) {
    AVL_CHECK_SHAPE(args->width >= 0 && args->width <= INT64_MAX / 2,
                    "gated: width %" PRId64 " is out of range", args->width);
    AVL_TRY(avl_check_matrix("gated", "gate_up", args->gate_up, args->rows, 2 * args->width,
                             2 * args->width));
    AVL_TRY(
        avl_check_matrix("gated", "output", args->output, args->rows, args->width, args->width));
    AVL_TRY(avl_check_dtype("gated", "gate_up", args->dtype));
    AVL_TRY(avl_check_activation("gated", args->activation));
    if (args->rows == 0 || args->width == 0)
        return AVL_OK;
    gated_run_t run = {avl_cpu_device(device)->kernels, args};
    avl_cpu_parallel(avl_cpu_device(device), args->rows, args->rows * args->width * 8, gated_row,
                     &run);
    return AVL_OK;
}
