#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

typedef struct embed_run {
    const avl_cpu_kernels_t *kernels;
    const avl_embed_args_t *args;
} embed_run_t;

static void embed_row(void *context, int64_t row, int thread) {
    const embed_run_t *run = context;
    (void)thread;
    run->kernels->embed(run->args, row);
}

avl_status_t avl_cpu_embed(avl_device_t *device, const avl_embed_args_t *args) {
    AVL_TRY(
        avl_check_matrix("embed", "output", args->output, args->rows, args->width, args->width));
    AVL_TRY(avl_check_matrix("embed", "table", args->table, args->table_rows, args->table_stride,
                             args->width));
    AVL_TRY(avl_check_dtype("embed", "table", args->dtype));
    AVL_CHECK_SHAPE(args->first_row >= 0, "embed: first_row is negative, %" PRId64,
                    args->first_row);
    AVL_TRY(avl_check_array("embed", "token_ids", args->token_ids, args->rows));
    if (args->rows == 0 || args->width == 0)
        return AVL_OK;
    embed_run_t run = {avl_cpu_device(device)->kernels, args};
    avl_cpu_parallel(avl_cpu_device(device), args->rows, args->rows * args->width, embed_row, &run);
    return AVL_OK;
}
