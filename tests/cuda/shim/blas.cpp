/* tests/cuda/shim/blas.cpp: a plain product in cuBLASLt's place. It takes the layouts that the
 * library takes for certain, rows aligned to 16 bytes, so that both ways of kernels/cuda/linear.cu
 * are run. */
#include "kernels/cuda/blas.h"

#include <stdlib.h>

#include "base/dtype.h"

struct avl_cuda_blas {
    cudaStream_t stream;
};

struct product_task : avl_shim_task {
    avl_cuda_product_t product;
};

avl_status_t avl_cuda_blas_create(cudaStream_t stream, avl_cuda_blas_t **blas_p) {
    *blas_p = (avl_cuda_blas_t *)calloc(1, sizeof **blas_p);
    if (*blas_p == nullptr)
        return avl_fail(AVL_ERR_MEMORY, "no memory for the matrix product library");
    (*blas_p)->stream = stream;
    return AVL_OK;
}

void avl_cuda_blas_destroy(avl_cuda_blas_t *blas) {
    free(blas);
}

/* Eight sums side by side: the order is fixed, and the compiler can use vectors. */
enum { LANES = 16 };

static float dot_f32(const float *a, const float *b, int64_t width) {
    float sums[LANES] = {};
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES)
        for (int i = 0; i < LANES; i++)
            sums[i] += a[k + i] * b[k + i];
    for (int i = 0; k < width; k++, i++)
        sums[i] += a[k] * b[k];
    float sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += sums[i];
    return sum;
}

template <float VALUE(uint16_t)>
static float dot_sixteen(const uint16_t *a, const uint16_t *b, int64_t width) {
    float sums[LANES] = {};
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES)
        for (int i = 0; i < LANES; i++)
            sums[i] += VALUE(a[k + i]) * VALUE(b[k + i]);
    for (int i = 0; k < width; k++, i++)
        sums[i] += VALUE(a[k]) * VALUE(b[k]);
    float sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += sums[i];
    return sum;
}

static float dot(const avl_cuda_product_t *p, int64_t t, int64_t n) {
    int64_t row = t * p->input_stride, column = n * p->weight_stride;
    if (p->dtype == AVL_DTYPE_F32)
        return dot_f32((const float *)p->input + row, (const float *)p->weight + column,
                       p->in_width);
    const uint16_t *input = (const uint16_t *)p->input + row;
    const uint16_t *weight = (const uint16_t *)p->weight + column;
    return p->dtype == AVL_DTYPE_F16 ? dot_sixteen<avl_f16_to_f32>(input, weight, p->in_width)
                                     : dot_sixteen<avl_bf16_to_f32>(input, weight, p->in_width);
}

static void multiply(const avl_cuda_product_t *p) {
    for (int64_t t = 0; t < p->rows; t++) {
        for (int64_t n = 0; n < p->out_width; n++) {
            float sum = dot(p, t, n);
            if (p->bias != nullptr)
                sum += p->bias[n];
            if (p->activation == AVL_ACTIVATION_RELU && sum < 0)
                sum = 0;
            int64_t place = t * p->output_stride + n;
            if (p->output_dtype == AVL_DTYPE_F32)
                ((float *)p->output)[place] = sum;
            else
                ((uint16_t *)p->output)[place] =
                    p->output_dtype == AVL_DTYPE_F16 ? avl_f32_to_f16(sum) : avl_f32_to_bf16(sum);
        }
    }
}

avl_status_t avl_cuda_blas_product(avl_cuda_blas_t *blas, const avl_cuda_product_t *product,
                                   int *done_p) {
    size_t in = avl_dtype_bytes(product->dtype), out = avl_dtype_bytes(product->output_dtype);
    uint64_t bits = (uintptr_t)product->input | (uintptr_t)product->weight |
                    (uintptr_t)product->output | (uintptr_t)product->bias |
                    ((uint64_t)product->input_stride | (uint64_t)product->weight_stride) * in |
                    (uint64_t)product->output_stride * out;
    *done_p = 0;
    if (!avl_cuda_divides(bits, 16))
        return AVL_OK;
    product_task *task = (product_task *)calloc(1, sizeof *task);
    if (task == nullptr)
        return avl_fail(AVL_ERR_MEMORY, "no memory for a product");
    task->product = *product;
    task->run = [](avl_shim_task *self) { multiply(&((product_task *)self)->product); };
    task->destroy = [](avl_shim_task *self) { free(self); };
    avl_shim_enqueue(blas->stream, task);
    *done_p = 1;
    return AVL_OK;
}
