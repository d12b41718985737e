#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

typedef struct norm_run {
    const avl_cpu_kernels_t *kernels;
    const avl_norm_args_t *args;
} norm_run_t;

static void norm_row(void *context, int64_t row, int thread) {
    const norm_run_t *run = context;
    (void)thread;
    run->kernels->norm(run->args, row);
}

avl_status_t avl_cpu_norm(avl_device_t *device, const avl_norm_args_t *args) {
    AVL_TRY(avl_check_matrix("norm", "input", args->input, args->rows, args->input_stride,
                             args->width));
    AVL_TRY(avl_check_matrix("norm", "output", args->output, args->rows, args->width, args->width));
    AVL_TRY(avl_check_dtype("norm", "output", args->output_dtype));
    if (args->rows == 0 || args->width == 0)
        return AVL_OK;
    AVL_TRY(avl_check_array("norm", "weight", args->weight, args->width));
    AVL_CHECK_SHAPE((const void *)args->output != (const void *)args->input ||
                        (args->output_dtype == AVL_DTYPE_F32 && args->input_stride == args->width),
                    "norm: in place only for f32 rows without gaps");
    norm_run_t run = {avl_cpu_device(device)->kernels, args};
    avl_cpu_parallel(avl_cpu_device(device), args->rows, args->rows * args->width, norm_row, &run);
    return AVL_OK;
}
