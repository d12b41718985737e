/* tests/cuda/shim/ptx_shim.h: the instructions of kernels/cuda/ptx.h, for the execution shim.
 * Fragment layouts are those of the PTX ISA manual, "Matrix multiply-accumulate instructions". */
#ifndef AVL_TESTS_CUDA_SHIM_PTX_SHIM_H
#define AVL_TESTS_CUDA_SHIM_PTX_SHIM_H

#include <stdint.h>

/* Bytes between the parts of shared memory: poisoned under AddressSanitizer. */
enum { AVL_SHARED_GAP_BYTES = 32 };
void avl_shim_poison_gap(unsigned char *gap);

uint16_t avl_bf16_round(float value);
uint32_t avl_bf16_pack(float low, float high);
uint16_t avl_f16_round(float value);
float avl_f16_value(uint16_t bits);
uint32_t avl_f16_pack(float low, float high);
void avl_mma_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void avl_mma_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void avl_load_matrices(uint32_t (&parts)[4], const void *row);
void avl_load_matrices_transposed(uint32_t (&parts)[4], const void *row);
void avl_copy_async(void *shared, const void *global, int valid_bytes);
void avl_copy_async_commit(void);
void avl_shim_copy_async_wait(int groups);
template <int GROUPS> static inline void avl_copy_async_wait(void) {
    avl_shim_copy_async_wait(GROUPS);
}

#endif
