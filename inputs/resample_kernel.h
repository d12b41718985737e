/* inputs/resample_kernel.h: the inner loops of the two passes; private to inputs/resample*.c. */
#ifndef AVL_INPUTS_RESAMPLE_KERNEL_H
#define AVL_INPUTS_RESAMPLE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* Weights are integers with this many fractional bits. */
#define AVL_RESAMPLE_BITS 22
/* The vector loops multiply 16-bit halves: weight = high * 2^11 + low, 0 <= low < 2^11. A weight's
 * magnitude is below 2, so that high has 13 bits; sums wrap like the plain 32-bit ones and are the
 * same numbers. */
#define AVL_RESAMPLE_LOW_BITS 11
/* Bytes that a vector loop may read past the last pixel of a row, or write past it. */
#define AVL_RESAMPLE_SLACK_BYTES 64

/* One axis: output i is the sum over t < taps[i] of weights[i * stride + t] * input[starts[i] + t].
 */
typedef struct avl_resample_axis {
    int count;        /* outputs */
    int stride;       /* weights per output; a multiple of 4, unused ones are 0 */
    int *starts;      /* [count] */
    int *taps;        /* [count] */
    int32_t *weights; /* [count, stride] */
    int16_t *split; /* [count, stride / 4, 2 (high, low), 16]: ready for the vector loop, or NULL */
} avl_resample_axis_t;

/* Horizontal: rows[r] gives outputs[r] of axis->count pixels, for r < row_count <= 2. */
typedef void (*avl_resample_rows_fn)(const avl_resample_axis_t *axis, const uint8_t *const *rows,
                                     uint8_t *const *outputs, int row_count);
/* Vertical: `output` (row_bytes) from rows of `stride_bytes`, the first of which is `rows`.
 * stride_bytes and the room of `output` are multiples of 32. */
typedef void (*avl_resample_column_fn)(const int32_t *weights, int taps, const uint8_t *rows,
                                       size_t stride_bytes, size_t row_bytes, uint8_t *output);

#if defined(__x86_64__)
void avl_resample_rows_avx2(const avl_resample_axis_t *axis, const uint8_t *const *rows,
                            uint8_t *const *outputs, int row_count);
void avl_resample_column_avx2(const int32_t *weights, int taps, const uint8_t *rows,
                              size_t stride_bytes, size_t row_bytes, uint8_t *output);
/* Fills axis->split. */
void avl_resample_split_avx2(const avl_resample_axis_t *axis);
#endif

#endif
