#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

enum { THREADS = 512 };

__global__ void __launch_bounds__(THREADS) argmax_kernel(avl_argmax_args_t args) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    float *values = (float *)avl_shared_take(&cursor, AVL_WARP * sizeof(float));
    int *indices = (int *)avl_shared_take(&cursor, AVL_WARP * sizeof(int));
    const float *row = args.logits + blockIdx.x * args.stride;
    float value = 0.0f;
    int index = -1;
    for (int64_t j = threadIdx.x; j < args.width; j += THREADS) {
        float candidate = row[j];
        /* Where a NaN counts, it counts like +infinity: the first of both is best. */
        if (candidate != candidate && !args.strict)
            continue;
        candidate = candidate == candidate ? candidate : __uint_as_float(0x7f800000u);
        avl_take_better(candidate, (int)j, &value, &index);
    }
    index = avl_block_best(value, index, values, indices);
    if (threadIdx.x != 0)
        return;
    index = index < 0 ? 0 : index;
    args.indices[blockIdx.x] = index;
    args.values[blockIdx.x] = row[index];
}

avl_status_t avl_cuda_argmax(avl_device_t *device, const avl_argmax_args_t *args) {
    AVL_TRY(
        avl_check_matrix("argmax", "logits", args->logits, args->rows, args->stride, args->width));
    if (args->rows == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(args->width > 0 && args->width <= INT32_MAX,
                    "argmax: rows of width %" PRId64 " have no 32-bit index of their largest value",
                    args->width);
    AVL_CHECK_SHAPE(args->rows <= INT32_MAX, "argmax: %" PRId64 " rows", args->rows);
    AVL_TRY(avl_check_array("argmax", "indices", args->indices, args->rows));
    AVL_TRY(avl_check_array("argmax", "values", args->values, args->rows));
    AVL_LAUNCH(argmax_kernel, (unsigned)args->rows, THREADS,
               avl_shared_part(AVL_WARP * sizeof(float)) + avl_shared_part(AVL_WARP * sizeof(int)),
               avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("argmax");
}
