/* kernels/cuda/numbers.h: elements of either format as f32, sums over a warp and a block, and the
 * activation functions. */
#ifndef AVL_KERNELS_CUDA_NUMBERS_H
#define AVL_KERNELS_CUDA_NUMBERS_H

#include "base/activation.h"
#include "kernels/cuda/ptx.h"

#define AVL_WARP 32
#define AVL_ALL_LANES 0xffffffffu

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

/* The eight bf16 numbers of 16 bytes. */
__device__ __forceinline__ void avl_unpack(const uint4 &packed, float (&values)[8]) {
    values[0] = avl_bf16_low(packed.x);
    values[1] = avl_bf16_high(packed.x);
    values[2] = avl_bf16_low(packed.y);
    values[3] = avl_bf16_high(packed.y);
    values[4] = avl_bf16_low(packed.z);
    values[5] = avl_bf16_high(packed.z);
    values[6] = avl_bf16_low(packed.w);
    values[7] = avl_bf16_high(packed.w);
}

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
