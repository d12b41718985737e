/* kernels/linear.h: matrix products with the weights as checkpoints store them. */
#ifndef AVL_KERNELS_LINEAR_H
#define AVL_KERNELS_LINEAR_H

#include "base/activation.h"
#include "kernels/device.h"

/* output[t, n] = act(sum over k of input[t, k] * weight[n, k] + bias[n])
 *
 *   input   read   dtype [T, K], rows input_stride elements apart
 *   weight  read   dtype [N, K], rows weight_stride elements apart: a slice of a mapped checkpoint
 * may be used in place, so it is aligned to its element only bias    read   f32 [N], or NULL output
 * write  output_dtype (f32, or dtype) [T, N], rows output_stride elements apart; overlaps nothing
 *   dtype   f32 or bf16
 *
 * Numbers: f32 accumulation in a fixed order for given K; |got - ref| <= 1e-5 sqrt(K) scale for
 * f32; one bf16 rounding of the output more when output_dtype is bf16. */
typedef struct avl_linear_args {
    const void *input;
    int64_t input_stride;
    const void *weight;
    int64_t weight_stride;
    const float *bias;
    void *output;
    int64_t output_stride;
    int64_t rows;      /* T */
    int64_t in_width;  /* K; 0 gives act(bias): a rank without heads still takes part */
    int64_t out_width; /* N */
    avl_dtype_t dtype;
    avl_dtype_t output_dtype;
    avl_activation_t activation;
} avl_linear_args_t;

static inline AVL_MUST_CHECK avl_status_t avl_linear(avl_device_t *device,
                                                     const avl_linear_args_t *args) {
    return device->ops->linear(device, args);
}

#endif
