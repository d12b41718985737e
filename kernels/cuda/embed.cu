#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

template <typename T> __global__ void embed_kernel(avl_embed_args_t args) {
    for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
        int64_t entry = args.token_ids[row] - args.first_row;
        int is_here = entry >= 0 && entry < args.table_rows;
        const T *source = (const T *)args.table + (is_here ? entry * args.table_stride : 0);
        float *output = args.output + row * args.width;
        for (int64_t j = threadIdx.x; j < args.width; j += blockDim.x)
            output[j] = is_here ? avl_load(source, j) : 0.0f;
    }
}

avl_status_t avl_cuda_embed(avl_device_t *device, const avl_embed_args_t *args) {
    AVL_TRY(
        avl_check_matrix("embed", "output", args->output, args->rows, args->width, args->width));
    AVL_TRY(avl_check_matrix("embed", "table", args->table, args->table_rows, args->table_stride,
                             args->width));
    AVL_TRY(avl_cuda_check_dtype("embed", "table", args->dtype));
    AVL_CHECK_SHAPE(args->first_row >= 0, "embed: first_row is negative, %" PRId64,
                    args->first_row);
    AVL_TRY(avl_check_array("embed", "token_ids", args->token_ids, args->rows));
    if (args->rows == 0 || args->width == 0)
        return AVL_OK;
    auto *kernel = AVL_CUDA_BY_DTYPE(embed_kernel, args->dtype);
    unsigned blocks = (unsigned)avl_cuda_min(args->rows, INT32_MAX);
    AVL_LAUNCH(kernel, blocks, AVL_CUDA_THREADS, 0, avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("embed");
}
