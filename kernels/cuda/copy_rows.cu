#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

__global__ void copy_rows_kernel(avl_copy_rows_args_t args) {
    for (int64_t i = blockIdx.x; i < args.rows; i += gridDim.x) {
        int64_t source = args.source_rows != nullptr ? args.source_rows[i] : i;
        int64_t target = args.target_rows != nullptr ? args.target_rows[i] : i;
        if (source < 0 || target < 0)
            continue;
        const float *input = args.input + source * args.input_stride;
        float *output = args.output + target * args.output_stride;
        for (int64_t j = threadIdx.x; j < args.width; j += blockDim.x)
            output[j] = input[j];
    }
}

avl_status_t avl_cuda_copy_rows(avl_device_t *device, const avl_copy_rows_args_t *args) {
    AVL_TRY(avl_check_matrix("copy_rows", "input", args->input, args->rows, args->input_stride,
                             args->width));
    AVL_TRY(avl_check_matrix("copy_rows", "output", args->output, args->rows, args->output_stride,
                             args->width));
    if (args->rows == 0 || args->width == 0)
        return AVL_OK;
    unsigned blocks = (unsigned)avl_cuda_min(args->rows, INT32_MAX);
    AVL_LAUNCH(copy_rows_kernel, blocks, AVL_CUDA_THREADS, 0, avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("copy_rows");
}
