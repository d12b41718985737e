#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

typedef struct linear_run {
    const avl_cpu_kernels_t *kernels;
    const avl_linear_args_t *args;
    int64_t row_blocks;
} linear_run_t;

/* Row blocks vary fastest: the weights of a column block are read from memory once and then from
 * the cache. */
static void linear_item(void *context, int64_t item, int thread) {
    const linear_run_t *run = context;
    const avl_linear_args_t *args = run->args;
    (void)thread;
    int64_t row = item % run->row_blocks * AVL_LINEAR_ROW_BLOCK;
    int64_t column = item / run->row_blocks * AVL_LINEAR_COLUMN_BLOCK;
    run->kernels->linear(args, row, avl_min64(AVL_LINEAR_ROW_BLOCK, args->rows - row), column,
                         avl_min64(AVL_LINEAR_COLUMN_BLOCK, args->out_width - column));
}

static avl_status_t check_linear(const avl_linear_args_t *args) {
    AVL_TRY(avl_check_dtype("linear", "input", args->dtype));
    AVL_CHECK_SHAPE(args->output_dtype == AVL_DTYPE_F32 || args->output_dtype == args->dtype,
                    "linear: the output is %s; it can be f32 or the input's %s",
                    avl_dtype_name(args->output_dtype), avl_dtype_name(args->dtype));
    AVL_TRY(avl_check_activation("linear", args->activation));
    AVL_TRY(avl_check_matrix("linear", "input", args->input, args->rows, args->input_stride,
                             args->in_width));
    AVL_TRY(avl_check_matrix("linear", "weight", args->weight, args->out_width, args->weight_stride,
                             args->in_width));
    return avl_check_matrix("linear", "output", args->output, args->rows, args->output_stride,
                            args->out_width);
}

avl_status_t avl_cpu_linear(avl_device_t *device, const avl_linear_args_t *args) {
    AVL_TRY(check_linear(args));
    if (args->rows == 0 || args->out_width == 0)
        return AVL_OK;
    const avl_cpu_device_t *cpu = avl_cpu_device(device);
    linear_run_t run = {cpu->kernels, args, avl_ceil_div(args->rows, AVL_LINEAR_ROW_BLOCK)};
    int64_t items = run.row_blocks * avl_ceil_div(args->out_width, AVL_LINEAR_COLUMN_BLOCK);
    avl_cpu_parallel(cpu, items, args->rows * args->out_width * (args->in_width / 16 + 1),
                     linear_item, &run);
    return AVL_OK;
}
