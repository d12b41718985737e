/* tools/gpu_check/no_blas.cu: stands in for cuBLASLt where a machine lacks it: every product then
 * goes to our own kernel, which is slow. */
#include "kernels/cuda/blas.h"

#include <stdlib.h>

avl_status_t avl_cuda_blas_create(cudaStream_t stream, avl_cuda_blas_t **blas_p) {
    (void)stream;
    *blas_p = nullptr;
    return AVL_OK;
}

void avl_cuda_blas_destroy(avl_cuda_blas_t *blas) {
    (void)blas;
}

avl_status_t avl_cuda_blas_product(avl_cuda_blas_t *blas, const avl_cuda_product_t *product,
                                   int *done_p) {
    (void)blas;
    (void)product;
    *done_p = 0;
    return AVL_OK;
}
