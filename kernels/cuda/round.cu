#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

template <typename T> __global__ void round_kernel(avl_round_args_t args) {
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += step)
        avl_store((T *)args.output, i, args.input[i]);
}

avl_status_t avl_cuda_round(avl_device_t *device, const avl_round_args_t *args) {
    AVL_TRY(avl_check_array("round", "input", args->input, args->count));
    AVL_TRY(avl_check_array("round", "output", args->output, args->count));
    AVL_CHECK_SHAPE(args->dtype == AVL_DTYPE_BF16 || args->dtype == AVL_DTYPE_F16,
                    "round: number format %d; there are bf16 (%d) and f16 (%d)", (int)args->dtype,
                    (int)AVL_DTYPE_BF16, (int)AVL_DTYPE_F16);
    if (args->count == 0)
        return AVL_OK;
    auto *kernel = args->dtype == AVL_DTYPE_F16 ? round_kernel<avl_f16_t> : round_kernel<uint16_t>;
    AVL_LAUNCH(kernel, avl_cuda_blocks(args->count), AVL_CUDA_THREADS, 0,
               avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("round");
}
