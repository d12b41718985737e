/* kernels/linear.h: matrix products with the weights as checkpoints store them. */
#ifndef AVL_KERNELS_LINEAR_H
#define AVL_KERNELS_LINEAR_H

#include "base/activation.h"
#include "kernels/device.h"

/* From so many rows on, the way for many rows is the faster one. */
#define AVL_LINEAR_MANY_ROWS 128

/* Which way a product takes. The bits of a row's result depend on the way and on the row, never on
 * the rows beside it; between the two ways they may differ. Rows that must come out the same in any
 * company take one and the same way in all of them. */
typedef enum avl_linear_way {
    AVL_LINEAR_BY_ROWS, /* whichever suits the number of rows */
    AVL_LINEAR_FEW,
    /* With fewer than AVL_LINEAR_MANY_ROWS rows, so many rows of the input can nevertheless be
     * read; what they hold does not matter. */
    AVL_LINEAR_MANY,
} avl_linear_way_t;

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
    avl_linear_way_t way; /* a device may have one way for all */
} avl_linear_args_t;

/* Sets aside what products of these widths, strides and formats need, whatever their rows; the
 * pointers and `rows` are not looked at (kernels/device.h). */
static inline AVL_MUST_CHECK avl_status_t avl_linear_prepare(avl_device_t *device,
                                                             const avl_linear_args_t *args) {
    return device->ops->prepare_linear == NULL ? AVL_OK : device->ops->prepare_linear(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_linear(avl_device_t *device,
                                                     const avl_linear_args_t *args) {
    return device->ops->linear(device, args);
}

#endif
