#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

__global__ void add_kernel(avl_add_args_t args) {
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += step) {
        float value = args.target[i];
        if (args.addend != nullptr)
            value += args.addend[i];
        if (args.bias != nullptr)
            value += args.bias[i % args.width];
        args.target[i] = value;
    }
}

avl_status_t avl_cuda_add(avl_device_t *device, const avl_add_args_t *args) {
    AVL_TRY(avl_check_array("add", "target", args->target, args->count));
    if (args->bias != nullptr) {
        AVL_CHECK_SHAPE(args->width > 0 && args->count % args->width == 0,
                        "add: %" PRId64 " elements are not rows of the bias's width %" PRId64,
                        args->count, args->width);
    }
    if (args->count == 0 || (args->addend == nullptr && args->bias == nullptr))
        return AVL_OK;
    AVL_LAUNCH(add_kernel, avl_cuda_blocks(args->count), AVL_CUDA_THREADS, 0,
               avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("add");
}
