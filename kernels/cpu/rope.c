#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

typedef struct rope_run {
    const avl_cpu_kernels_t *kernels;
    const avl_rope_args_t *args;
} rope_run_t;

static void rope_row(void *context, int64_t row, int thread) {
    const rope_run_t *run = context;
    (void)thread;
    run->kernels->rope(run->args, row);
}

avl_status_t avl_cpu_rope(avl_device_t *device, const avl_rope_args_t *args) {
    AVL_CHECK_SHAPE(args->heads >= 0 && args->head_width >= 0 && args->head_width % 2 == 0,
                    "rope: %d heads of width %d: the width must be even and neither negative",
                    args->heads, args->head_width);
    int64_t width = (int64_t)args->heads * args->head_width;
    AVL_TRY(avl_check_matrix("rope", "data", args->data, args->rows, args->row_stride, width));
    AVL_TRY(avl_check_dtype("rope", "data", args->dtype));
    if (args->rows == 0 || width == 0)
        return AVL_OK;
    AVL_TRY(avl_check_array("rope", "cosines", args->cosines, args->rows * args->head_width / 2));
    AVL_TRY(avl_check_array("rope", "sines", args->sines, args->rows * args->head_width / 2));
    rope_run_t run = {avl_cpu_device(device)->kernels, args};
    avl_cpu_parallel(avl_cpu_device(device), args->rows, args->rows * width, rope_row, &run);
    return AVL_OK;
}
