/* kernels/select.h: choosing: the best rows by score, the best token by logit. */
#ifndef AVL_KERNELS_SELECT_H
#define AVL_KERNELS_SELECT_H

#include "kernels/device.h"

/* The `keep` best of scores[0..count), as ascending indices. Order of merit: larger score first;
 * equal scores by lower index; a NaN is worse than everything. keep <= count. scores  read   f32
 * [count];  indices  write  i32 [keep] */
typedef struct avl_topk_args {
    const float *scores;
    int32_t count;
    int32_t keep;
    int32_t *indices;
} avl_topk_args_t;

/* avl_topk for several lists at once, each with what is to be done with the result: indices[j] =
 * the j-th of the best (may be NULL), list[j] = rows[that] (both NULL, or both given), best[j] =
 * its score (may be NULL). `items` is a HOST array; the pointers in it are device memory, and what
 * is written overlaps nothing. An item's result does not depend on the others. */
typedef struct avl_choose_item {
    const float *scores; /* f32 [count] */
    int32_t count;
    int32_t keep;
    int32_t *indices;    /* i32 [keep], or NULL */
    const int32_t *rows; /* i32 [count], or NULL */
    int32_t *list;       /* i32 [keep], with rows */
    float *best;         /* f32 [keep], or NULL */
} avl_choose_item_t;

typedef struct avl_choose_args {
    const avl_choose_item_t *items;
    int item_count;
} avl_choose_args_t;

/* For each row: the index of the largest value (the lowest on a tie, NaN never wins; all NaN: index
 * 0) and the value. With `strict`, of a row in which a NaN or +infinity stands the first of those.
 * logits f32 [rows, width], rows stride apart; indices i32 [rows]; values f32 [rows] */
typedef struct avl_argmax_args {
    const float *logits;
    int64_t stride;
    int64_t rows;
    int64_t width;
    int32_t *indices;
    float *values;
    int strict;
} avl_argmax_args_t;

static inline AVL_MUST_CHECK avl_status_t avl_topk(avl_device_t *device,
                                                   const avl_topk_args_t *args) {
    return device->ops->topk(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_choose(avl_device_t *device,
                                                     const avl_choose_args_t *args) {
    return device->ops->choose(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_argmax(avl_device_t *device,
                                                     const avl_argmax_args_t *args) {
    return device->ops->argmax(device, args);
}

#endif
