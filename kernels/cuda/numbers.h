/* kernels/cuda/numbers.h: elements of either format as f32, sums over a warp and a block, and the
 * activation functions. */
#ifndef AVL_KERNELS_CUDA_NUMBERS_H
#define AVL_KERNELS_CUDA_NUMBERS_H

#include "base/activation.h"
#include "kernels/cuda/ptx.h"

#define AVL_WARP 32
#define AVL_ALL_LANES 0xffffffffu

/* 16-bit elements: uint16_t is bf16, and this is f16. */
typedef struct avl_f16 {
    uint16_t bits;
} avl_f16_t;

__device__ __forceinline__ float avl_load(const float *memory, int64_t index) {
    return memory[index];
}
__device__ __forceinline__ float avl_load(const uint16_t *memory, int64_t index) {
    return __uint_as_float((uint32_t)memory[index] << 16);
}
__device__ __forceinline__ void avl_store(float *memory, int64_t index, float value) {
    memory[index] = value;
}
__device__ __forceinline__ void avl_store(uint16_t *memory, int64_t index, float value) {
    memory[index] = avl_bf16_round(value);
}
__device__ __forceinline__ float avl_load(const avl_f16_t *memory, int64_t index) {
    return avl_f16_value(memory[index].bits);
}
__device__ __forceinline__ void avl_store(avl_f16_t *memory, int64_t index, float value) {
    memory[index].bits = avl_f16_round(value);
}

/* avl_row_place of kernels/attention.h. */
__device__ __forceinline__ int64_t avl_cuda_row_place(int64_t slot, int head, int kv_heads) {
    constexpr int rows = 16; /* AVL_PAGE_ROWS */
    return (slot / rows * kv_heads + head) * rows + slot % rows;
}

/* The two bf16 numbers of one word. */
__device__ __forceinline__ float avl_bf16_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float avl_bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

/* The two numbers of a word, the eight of 16 bytes, and the way back and the product, of T: bf16
 * (uint16_t) or f16. */
template <typename T> struct avl_sixteen;
template <> struct avl_sixteen<uint16_t> {
    static constexpr uint32_t exponent = 0x7f80u, one = 0x3f80u;
    static __device__ __forceinline__ float low(uint32_t pair) {
        return avl_bf16_low(pair);
    }
    static __device__ __forceinline__ float high(uint32_t pair) {
        return avl_bf16_high(pair);
    }
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        return avl_bf16_pack(low, high);
    }
    static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
        avl_mma_bf16(sums, a, b);
    }
};
template <> struct avl_sixteen<avl_f16_t> {
    static constexpr uint32_t exponent = 0x7c00u, one = 0x3c00u;
    static __device__ __forceinline__ float low(uint32_t pair) {
        return avl_f16_value((uint16_t)pair);
    }
    static __device__ __forceinline__ float high(uint32_t pair) {
        return avl_f16_value((uint16_t)(pair >> 16));
    }
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        return avl_f16_pack(low, high);
    }
    static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
        avl_mma_f16(sums, a, b);
    }
};

template <typename T>
__device__ __forceinline__ void avl_unpack(const uint4 &packed, float (&values)[8]) {
    values[0] = avl_sixteen<T>::low(packed.x);
    values[1] = avl_sixteen<T>::high(packed.x);
    values[2] = avl_sixteen<T>::low(packed.y);
    values[3] = avl_sixteen<T>::high(packed.y);
    values[4] = avl_sixteen<T>::low(packed.z);
    values[5] = avl_sixteen<T>::high(packed.z);
    values[6] = avl_sixteen<T>::low(packed.w);
    values[7] = avl_sixteen<T>::high(packed.w);
}

/* The instance of a kernel for a format. */
/* clang-format off */
#define AVL_CUDA_BY_DTYPE(kernel, dtype)                                                           \
    ((dtype) == AVL_DTYPE_F32 ? kernel<float>                                                      \
                              : (dtype) == AVL_DTYPE_F16 ? kernel<avl_f16_t> : kernel<uint16_t>)
/* clang-format on */

/* Exchanges halves, so that every lane has the same bits. */
__device__ __forceinline__ float avl_warp_sum(float value) {
    for (int bit = AVL_WARP / 2; bit > 0; bit /= 2)
        value += __shfl_xor_sync(AVL_ALL_LANES, value, bit);
    return value;
}
/* A NaN is passed over. */
__device__ __forceinline__ float avl_warp_max(float value) {
    for (int bit = AVL_WARP / 2; bit > 0; bit /= 2)
        value = fmaxf(value, __shfl_xor_sync(AVL_ALL_LANES, value, bit));
    return value;
}

/* Over the whole block, of whole warps, in the order of the warps; `scratch` is shared memory of
 * one float a warp. */
__device__ __forceinline__ float avl_block_sum(float value, float *scratch) {
    value = avl_warp_sum(value);
    int warps = (int)blockDim.x / AVL_WARP;
    __syncthreads(); /* an earlier call may still be read */
    if (threadIdx.x % AVL_WARP == 0)
        scratch[threadIdx.x / AVL_WARP] = value;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < warps; warp++)
        total += scratch[warp];
    return total;
}

__device__ __forceinline__ float avl_block_max(float value, float *scratch) {
    value = avl_warp_max(value);
    int warps = (int)blockDim.x / AVL_WARP;
    __syncthreads();
    if (threadIdx.x % AVL_WARP == 0)
        scratch[threadIdx.x / AVL_WARP] = value;
    __syncthreads();
    float largest = scratch[0];
    for (int warp = 1; warp < warps; warp++)
        largest = fmaxf(largest, scratch[warp]);
    return largest;
}

/* The larger value, the lower index when equal; index -1 is none. */
__device__ __forceinline__ void avl_take_better(float value, int index, float *best_value,
                                                int *best_index) {
    if (index < 0)
        return;
    if (*best_index < 0 || value > *best_value || (value == *best_value && index < *best_index)) {
        *best_value = value;
        *best_index = index;
    }
}

/* The index of the block's best; the same for every thread. values, indices: shared, [AVL_WARP]. */
__device__ __forceinline__ int avl_block_best(float value, int index, float *values, int *indices) {
    for (int bit = AVL_WARP / 2; bit > 0; bit /= 2) {
        float other_value = __shfl_xor_sync(AVL_ALL_LANES, value, bit);
        int other_index = __shfl_xor_sync(AVL_ALL_LANES, index, bit);
        avl_take_better(other_value, other_index, &value, &index);
    }
    __syncthreads(); /* an earlier call may still be read */
    if (threadIdx.x % AVL_WARP == 0) {
        values[threadIdx.x / AVL_WARP] = value;
        indices[threadIdx.x / AVL_WARP] = index;
    }
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / AVL_WARP; warp++)
        avl_take_better(values[warp], indices[warp], &value, &index);
    return index;
}

/* tanh(u) = 1 - 2 / (1 + exp(2 u)) makes the tanh approximation x sigmoid(2 u): no cancellation for
 * large negative x. */
__device__ __forceinline__ float avl_activate(float x, avl_activation_t activation) {
    switch (activation) {
    case AVL_ACTIVATION_GELU:
        return 0.5f * x * erfcf(x * -0.70710678118654752f);
    case AVL_ACTIVATION_GELU_TANH: {
        float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
        return x / (1.0f + expf(-2.0f * u));
    }
    case AVL_ACTIVATION_QUICK_GELU:
        return x / (1.0f + expf(-1.702f * x));
    case AVL_ACTIVATION_SILU:
        return x / (1.0f + expf(-x));
    case AVL_ACTIVATION_RELU:
        return x > 0.0f ? x : x == x ? 0.0f : x;
    case AVL_ACTIVATION_NONE:
        break;
    }
    return x;
}

#endif
