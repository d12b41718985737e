/* kernels/cuda/ptx.h: every instruction that CUDA C++ has no name for, the launch, and the division
 * of shared memory: all that differs between nvcc and the host compiler of the tests
 * (AVL_CUDA_SHIM, tests/cuda/shim). Needs sm_80. */
#ifndef AVL_KERNELS_CUDA_PTX_H
#define AVL_KERNELS_CUDA_PTX_H

#include <cuda_runtime.h>
#include <stdint.h>

#ifdef AVL_CUDA_SHIM

#include <ptx_shim.h>

#define AVL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    avl_shim_launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define AVL_SHARED_BYTES(name) unsigned char *name = avl_shim_here()->shared

#else

enum { AVL_SHARED_GAP_BYTES = 0 };

#define AVL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define AVL_SHARED_BYTES(name) extern __shared__ __align__(128) unsigned char name[]

/* Round to nearest, ties to even. */
__device__ __forceinline__ uint16_t avl_bf16_round(float value) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ uint32_t avl_bf16_pack(float low, float high) {
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ __forceinline__ uint16_t avl_f16_round(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float avl_f16_value(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ uint32_t avl_f16_pack(float low, float high) {
    uint32_t bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

/* sums[16, 8] += a[16, 16] b[16, 8] of bf16, or of f16, by one warp. */
__device__ __forceinline__ void avl_mma_bf16(float (&sums)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void avl_mma_f16(float (&sums)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8, 16 bytes. */
__device__ __forceinline__ void avl_load_matrices(uint32_t (&parts)[4], const void *row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void avl_load_matrices_transposed(uint32_t (&parts)[4],
                                                             const void *row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes from device to shared memory without registers; what lies behind valid_bytes becomes
 * zero. */
__device__ __forceinline__ void avl_copy_async(void *shared, const void *global, int valid_bytes) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(global), "r"(valid_bytes)
                 : "memory");
}

__device__ __forceinline__ void avl_copy_async_commit(void) {
    asm volatile("cp.async.commit_group;" : : : "memory");
}

/* Waits until at most GROUPS of this thread's committed groups are under way. */
template <int GROUPS> __device__ __forceinline__ void avl_copy_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory");
}

#endif

/* Shared memory is handed out part by part, in the same order by the kernel and by the host that
 * sizes it. Between the parts lies a gap that only the tests give a width. */
__host__ __device__ __forceinline__ size_t avl_shared_part(size_t bytes) {
    return (bytes + 15) / 16 * 16 + AVL_SHARED_GAP_BYTES;
}

__device__ __forceinline__ unsigned char *avl_shared_take(unsigned char **cursor, size_t bytes) {
    unsigned char *part = *cursor;
    *cursor += avl_shared_part(bytes);
#ifdef AVL_CUDA_SHIM
    avl_shim_poison_gap(*cursor - AVL_SHARED_GAP_BYTES);
#endif
    return part;
}

#endif
