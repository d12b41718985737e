/* kernels/cuda/blas.h: matrix products by cuBLASLt (blas.cu), for which tests/cuda/shim has a
 * stand-in. */
#ifndef AVL_KERNELS_CUDA_BLAS_H
#define AVL_KERNELS_CUDA_BLAS_H

#include "kernels/cuda/device.h"

/* output[t, n] = act(sum over k of input[t, k] * weight[n, k] + bias[n]); the fields mean what they
 * mean in kernels/linear.h. `activation` is NONE or RELU, and with RELU or a bias the output is
 * f32. */
typedef avl_linear_args_t avl_cuda_product_t;

AVL_MUST_CHECK avl_status_t avl_cuda_blas_create(cudaStream_t stream, avl_cuda_blas_t **blas_p);
void avl_cuda_blas_destroy(avl_cuda_blas_t *blas);
/* *done_p is 0, and nothing is enqueued, when the library has no way for this layout (rows that are
 * not aligned to 16 bytes, mostly). */
AVL_MUST_CHECK avl_status_t avl_cuda_blas_product(avl_cuda_blas_t *blas,
                                                  const avl_cuda_product_t *product, int *done_p);

#endif
