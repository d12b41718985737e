#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

/* One block a row: the row is read again from the cache for every pass, and a thread writes only
 * what it alone reads, so that the output may be the input. */
template <typename T> __global__ void norm_kernel(avl_norm_args_t args) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    float *scratch = (float *)avl_shared_take(&cursor, AVL_WARP * sizeof(float));
    for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
        const float *input = args.input + row * args.input_stride;
        T *output = (T *)args.output + row * args.width;
        float mean = 0.0f;
        if (args.bias != nullptr) {
            float sum = 0.0f;
            for (int64_t j = threadIdx.x; j < args.width; j += blockDim.x)
                sum += input[j];
            mean = avl_block_sum(sum, scratch) / (float)args.width;
        }
        float squares = 0.0f;
        for (int64_t j = threadIdx.x; j < args.width; j += blockDim.x)
            squares += (input[j] - mean) * (input[j] - mean);
        float variance = avl_block_sum(squares, scratch) / (float)args.width;
        float inverse = 1.0f / sqrtf(variance + args.epsilon);
        for (int64_t j = threadIdx.x; j < args.width; j += blockDim.x) {
            float value = (input[j] - mean) * inverse * args.weight[j];
            if (args.bias != nullptr)
                value += args.bias[j];
            avl_store(output, j, value);
        }
    }
}

avl_status_t avl_cuda_norm(avl_device_t *device, const avl_norm_args_t *args) {
    AVL_TRY(avl_check_matrix("norm", "input", args->input, args->rows, args->input_stride,
                             args->width));
    AVL_TRY(avl_check_matrix("norm", "output", args->output, args->rows, args->width, args->width));
    AVL_TRY(avl_cuda_check_dtype("norm", "output", args->output_dtype));
    if (args->rows == 0 || args->width == 0)
        return AVL_OK;
    AVL_TRY(avl_check_array("norm", "weight", args->weight, args->width));
    AVL_CHECK_SHAPE((const void *)args->output != (const void *)args->input ||
                        (args->output_dtype == AVL_DTYPE_F32 && args->input_stride == args->width),
                    "norm: in place only for f32 rows without gaps");
    auto *kernel = AVL_CUDA_BY_DTYPE(norm_kernel, args->output_dtype);
    unsigned blocks = (unsigned)avl_cuda_min(args->rows, INT32_MAX);
    AVL_LAUNCH(kernel, blocks, AVL_CUDA_THREADS, avl_shared_part(AVL_WARP * sizeof(float)),
               avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("norm");
}
