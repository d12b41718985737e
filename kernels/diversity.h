/* kernels/diversity.h: how much a picture's rows differ from one another. */
#ifndef AVL_KERNELS_DIVERSITY_H
#define AVL_KERNELS_DIVERSITY_H

#include <string.h>

#include "kernels/linear.h"

/* Farthest first: of `rows` rows, less their mean and scaled to length 1, the likeness of two is
 * their inner product and their distance 1 - likeness, at least 0. The first is the row of the
 * smallest sum of likeness, then always comes the row whose nearest one of those before it is
 * farthest away: distances[j] is how far that was when row j came, 2 for the first. The lower index
 * goes first where they are equal. A row that (to within rounding) equals the mean, or whose
 * square is not finite, is like no row: 1 away from all others.
 *
 *   features   read   f32 [rows, width], rows in one piece
 *   distances  write  f32 [rows]: 0 to 2, never NaN
 *   scratch    write  avl_diversity_scratch_bytes(rows, width), as aligned as `allocate` aligns
 *
 * Numbers: each distance to 1e-5 sqrt(width); so rows that are equally far to within that may come
 * in another order. The same bits whatever the number of threads. */
typedef struct avl_diversity_args {
    const float *features;
    int64_t rows;
    int64_t width;
    float *distances;
    void *scratch;
} avl_diversity_args_t;

/* target[i] = (adds ? target[i] : 0) + scores[i] * factors[i], f32 [count]; no overlap. */
typedef struct avl_weigh_args {
    float *target;
    const float *scores;
    const float *factors;
    int64_t count;
    int adds;
} avl_weigh_args_t;

/* The scratch memory: rows scaled to length 1, likenesses, and one line of each. Strides are whole
 * vectors. */
typedef struct avl_diversity_parts {
    int64_t row, line;
    float *units;    /* [rows, row] */
    float *likeness; /* [rows, line] */
    float *means;    /* [row] */
    float *nearest;  /* [line] */
} avl_diversity_parts_t;

static inline int64_t avl_diversity_stride(int64_t width) {
    return (width + 15) / 16 * 16;
}
static inline size_t avl_diversity_scratch_bytes(int64_t rows, int64_t width) {
    int64_t row = avl_diversity_stride(width), line = avl_diversity_stride(rows);
    return sizeof(float) * (size_t)(rows * (row + line) + row + line);
}
static inline avl_diversity_parts_t avl_diversity_lay_out(const avl_diversity_args_t *args) {
    avl_diversity_parts_t parts;
    parts.row = avl_diversity_stride(args->width);
    parts.line = avl_diversity_stride(args->rows);
    parts.units = (float *)args->scratch;
    parts.likeness = parts.units + args->rows * parts.row;
    parts.means = parts.likeness + args->rows * parts.line;
    parts.nearest = parts.means + parts.row;
    return parts;
}

/* Sets aside what rows of this width need (kernels/device.h). */
static inline AVL_MUST_CHECK avl_status_t avl_diversity_prepare(avl_device_t *device, int64_t rows,
                                                                int64_t width) {
    avl_linear_args_t product; /* field by field: C++ reads this as well */
    memset(&product, 0, sizeof product);
    product.input_stride = product.weight_stride = product.in_width = avl_diversity_stride(width);
    product.output_stride = avl_diversity_stride(rows);
    product.out_width = rows;
    product.dtype = product.output_dtype = AVL_DTYPE_F32;
    return avl_linear_prepare(device, &product);
}
static inline AVL_MUST_CHECK avl_status_t avl_diversity(avl_device_t *device,
                                                        const avl_diversity_args_t *args) {
    return device->ops->diversity(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_weigh(avl_device_t *device,
                                                    const avl_weigh_args_t *args) {
    return device->ops->weigh(device, args);
}

#endif
