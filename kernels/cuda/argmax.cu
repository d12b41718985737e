#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

enum { THREADS = 512 };

__device__ __forceinline__ int is_strange(float value) {
    return value != value || value == __uint_as_float(0x7f800000u);
}

/* The better of two candidates: the larger value, the lower index when equal; index -1 is none.
 * With `strict` what is strange is better than any number, and the first of it best. */
__device__ __forceinline__ void take_better(float value, int index, int strict, float *best_value,
                                            int *best_index) {
    if (index < 0)
        return;
    int is_better = value > *best_value || (value == *best_value && index < *best_index);
    if (strict && *best_index >= 0 && (is_strange(value) || is_strange(*best_value)))
        is_better = is_strange(value) && (!is_strange(*best_value) || index < *best_index);
    if (*best_index < 0 || is_better) {
        *best_value = value;
        *best_index = index;
    }
}

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
        if (candidate == candidate || args.strict)
            take_better(candidate, (int)j, args.strict, &value, &index);
    }
    for (int bit = AVL_WARP / 2; bit > 0; bit /= 2) {
        float other_value = __shfl_xor_sync(AVL_ALL_LANES, value, bit);
        int other_index = __shfl_xor_sync(AVL_ALL_LANES, index, bit);
        take_better(other_value, other_index, args.strict, &value, &index);
    }
    if (threadIdx.x % AVL_WARP == 0) {
        values[threadIdx.x / AVL_WARP] = value;
        indices[threadIdx.x / AVL_WARP] = index;
    }
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (int warp = 1; warp < THREADS / AVL_WARP; warp++)
        take_better(values[warp], indices[warp], args.strict, &value, &index);
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
