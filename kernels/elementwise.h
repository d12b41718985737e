/* kernels/elementwise.h: norms, activations, additions, gathers: everything between the matrix
 * products. */
#ifndef AVL_KERNELS_ELEMENTWISE_H
#define AVL_KERNELS_ELEMENTWISE_H

#include "base/activation.h"
#include "kernels/device.h"

/* output[t] = rms:   input[t] / sqrt(mean(input[t]^2) + epsilon) * weight
 *             layer: (input[t] - mean) / sqrt(variance + epsilon) * weight + bias      (biased
 * variance)
 *
 *   input   read   f32 [T, width] (the residual stream), rows input_stride apart; weight f32
 * [width]; bias f32 [width] selects the layer norm, NULL the RMS norm output  write  output_dtype
 * [T, width], contiguous; may be `input` itself when output_dtype is f32 and strides agree */
typedef struct avl_norm_args {
    const float *input;
    int64_t input_stride;
    const float *weight;
    const float *bias;
    void *output;
    int64_t rows;
    int64_t width;
    float epsilon;
    avl_dtype_t output_dtype;
} avl_norm_args_t;

/* data[i] = act(data[i]) in place, dtype [count]. */
typedef struct avl_activation_args {
    void *data;
    int64_t count;
    avl_dtype_t dtype;
    avl_activation_t activation;
} avl_activation_args_t;

/* output[t, j] = act(gate_up[t, j]) * gate_up[t, width + j]; gate_up dtype [T, 2 width], output
 * dtype [T, width]. */
typedef struct avl_gated_args {
    const void *gate_up;
    void *output;
    int64_t rows;
    int64_t width;
    avl_dtype_t dtype;
    avl_activation_t activation;
} avl_gated_args_t;

/* target[t, j] += addend[t, j], f32, contiguous, `count` elements; addend == NULL does nothing.
 * With bias (f32 [width]) that is added to every row as well: count must then be a multiple of
 * width. */
typedef struct avl_add_args {
    float *target;
    const float *addend;
    const float *bias;
    int64_t width;
    int64_t count;
} avl_add_args_t;

/* output[t] = table[token_ids[t] - first_row] as f32 when first_row <= id < first_row + table_rows,
 * else zeros (another rank holds that row, or it is a picture's row: id -1). token_ids i32 [T];
 * table dtype [table_rows, width]; output f32 [T, width] */
typedef struct avl_embed_args {
    const int32_t *token_ids;
    const void *table;
    int64_t table_stride;
    int64_t first_row;
    int64_t table_rows;
    float *output;
    int64_t rows;
    int64_t width;
    avl_dtype_t dtype;
} avl_embed_args_t;

/* Gathers the patches of 8-bit tiles as rows for the patch embedding's product, normalising on the
 * way. pixels  u8 [tiles, 3, side, side];  output dtype [tiles * (side/patch)^2, 3 * patch *
 * patch], column order (channel, y, x), rows in row-major order of patches: the order of a
 * convolution's flattened weight. value = byte * scale[c] + shift[c] Patches that do not fit the
 * side are dropped, as a convolution with stride = patch drops them. scale, shift: host. */
typedef struct avl_patches_args {
    const uint8_t *pixels;
    void *output;
    int tiles;
    int side;
    int patch;
    float scale[3];
    float shift[3];
    avl_dtype_t dtype;
} avl_patches_args_t;

/* output[target_rows ? target_rows[i] : i] = input[source_rows ? source_rows[i] : i] for i < rows:
 * f32 rows of `width`. Index arrays i32. A source or target of -1 skips the row. No row is written
 * twice; input and output do not overlap. */
typedef struct avl_copy_rows_args {
    const float *input;
    int64_t input_stride;
    const int32_t *source_rows;
    float *output;
    int64_t output_stride;
    const int32_t *target_rows;
    int64_t rows;
    int64_t width;
} avl_copy_rows_args_t;

/* Rotary embedding in place, NeoX halves: for j < D/2, (x[j], x[j + D/2]) turns by the row's angle
 * j. data      dtype: heads of row t at data + t * row_stride + h * D cosines, sines  f32 [T, D/2]
 */
typedef struct avl_rope_args {
    void *data;
    int64_t row_stride;
    int64_t rows;
    int heads;
    int head_width;
    const float *cosines;
    const float *sines;
    avl_dtype_t dtype;
} avl_rope_args_t;

/* output[i] = input[i] rounded to the 16-bit format `dtype`, f32 [count]; no overlap. */
typedef struct avl_round_args {
    const float *input;
    void *output;
    int64_t count;
    avl_dtype_t dtype;
} avl_round_args_t;

#define AVL_DEVICE_CALL(name)                                                                      \
    static inline AVL_MUST_CHECK avl_status_t avl_##name(avl_device_t *device,                     \
                                                         const avl_##name##_args_t *args) {        \
        return device->ops->name(device, args);                                                    \
    }
AVL_DEVICE_CALL(norm)
AVL_DEVICE_CALL(activation)
AVL_DEVICE_CALL(gated)
AVL_DEVICE_CALL(add)
AVL_DEVICE_CALL(embed)
AVL_DEVICE_CALL(patches)
AVL_DEVICE_CALL(copy_rows)
AVL_DEVICE_CALL(rope)
AVL_DEVICE_CALL(round)
#undef AVL_DEVICE_CALL

#endif
