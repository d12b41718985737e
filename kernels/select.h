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

/* For each row: the index of the largest value (the lowest on a tie, NaN never wins; all NaN: index
 * 0) and the value. logits f32 [rows, width], rows stride apart; indices i32 [rows]; values f32
 * [rows] */
typedef struct avl_argmax_args {
    const float *logits;
    int64_t stride;
    int64_t rows;
    int64_t width;
    int32_t *indices;
    float *values;
} avl_argmax_args_t;

static inline AVL_MUST_CHECK avl_status_t avl_topk(avl_device_t *device,
                                                   const avl_topk_args_t *args) {
    return device->ops->topk(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_argmax(avl_device_t *device,
                                                     const avl_argmax_args_t *args) {
    return device->ops->argmax(device, args);
}

#endif
