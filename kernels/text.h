/* kernels/text.h: adaptive text attention (docs/A-VL.md): how much cached text rows have been
 * looked at, per KV head, and which row of a head goes when there is one too many.
 *
 * A slot holds one row of every KV head, and the heads' rows may stand at different positions: an
 * evicted row's part of its slot is a head's hole, and the next row's part is written there
 * (kernels/attention.h: avl_kv_write_args_t.redirects). So all heads of a sequence hold equally
 * many rows in the same slots, and attention needs no list per head.
 *
 * The memory of a slot beside its key and value: an f32 score and an i32 position for every KV
 * head, at avl_row_place (kernels/attention.h). */
#ifndef AVL_KERNELS_TEXT_H
#define AVL_KERNELS_TEXT_H

#include "kernels/attention.h"

/* One query row of one sequence and the text rows that are ranked; those of the sequence's own
 * earlier queries included, and its own, all written before. */
typedef struct avl_text_row {
    int64_t query_row;
    const int32_t *rows; /* slots i32 [row_count], device memory */
    int32_t row_count;   /* >= 1 */
    /* The own row's index in that list; -1: it filled the hole of each head, holes[h]. */
    int32_t own;
    int32_t first_position; /* rows before it are not seen and weigh 0; 0: all are */
    const float *totals;    /* f32 [Hq, 2]: avl_decode_sequence_t.totals of this query */
    /* f32 [heads of the buffer, row_count]: see the operations. */
    float *weights;
    /* i32 [2, Hk]: index and slot of the hole of each head; NULL where own >= 0 and nothing goes.
     */
    int32_t *holes;
    /* The same sequence's next query after the item before: updated behind it. */
    int follows;
    /* Which quantile of a query's weights is taken off them: 0 to 1; below 0: nothing is. */
    float quantile;
    int quantile_of_own; /* whether the own row's weight is among those */
    /* The head's row of least score, of those at positions before this one, goes: the later one of
     * equals, a NaN before everything. 0: none goes. */
    int32_t recent_position;
} avl_text_row_t;

/* weights[first_head + h][j] = the sum over this rank's query heads that read its KV head h of the
 * softmax weight of row j. Other heads of the buffer are left alone.
 *   query, query_stride, kv, heads, scale   as avl_decode_attention_args_t
 *   positions   read   i32 [slots, Hk]; NULL when no first_position is above 0
 *   rows        read   HOST array [count]
 * Numbers: |got - ref| <= 1e-5 per head (f32). */
typedef struct avl_text_weights_args {
    const void *query;
    int64_t query_stride;
    avl_kv_view_t kv;
    avl_head_map_t heads;
    const int32_t *positions;
    const avl_text_row_t *rows;
    int count;
    int first_head;
    float scale;
} avl_text_weights_args_t;

/* With w[j] = share * weights[first_head + h][j], for every item in order and every KV head h:
 *
 *   score of the own row = w[own];  of every other row += w[j] - q
 *
 * where q is the quantile of the w (linear between neighbours: sorted[floor(r)] and the next at
 * r = quantile * (n - 1), f32), and 0 when there is none. Then the row that goes, if one does, is
 * named in holes.
 *   scores     update   f32 [slots, Hk];   positions   read   i32 [slots, Hk]
 *   share      1 / query heads of a KV head
 * Numbers: f32, |got - ref| <= 1e-6 per item. Results do not depend on the number of threads or on
 * what else is in the call. */
typedef struct avl_text_update_args {
    float *scores;
    const int32_t *positions;
    int kv_heads; /* Hk */
    const avl_text_row_t *rows;
    int count;
    int first_head;
    float share;
} avl_text_update_args_t;

/* Of one sequence's `count` rows, each KV head keeps `keep`: the newest `recent`, which stand last,
 * and of the others those of the largest scores (the earlier of equals; a NaN is worst). In their
 * order they become the head's rows in the first `keep` slots:
 *
 *   score and position of slot rows[i], head h = those of rows[kept(h, i)], i < keep
 *   sources[i, h] = rows[kept(h, i)],   targets[i, h] = rows[i]
 *
 * which avl_kv_move then does to keys and values.
 *   rows               read    i32 [count] slots, all different
 *   scores, positions  update  [slots, Hk]; beyond the first `keep` rows as they were
 *   sources, targets   write   i32 [keep, Hk]
 *   scratch            write   8 * Hk * count bytes, aligned to 4 */
typedef struct avl_text_keep_args {
    const int32_t *rows;
    int32_t count;
    int32_t keep;   /* <= count */
    int32_t recent; /* <= keep */
    float *scores;
    int32_t *positions;
    int kv_heads; /* Hk */
    int32_t *sources;
    int32_t *targets;
    void *scratch;
} avl_text_keep_args_t;

static inline AVL_MUST_CHECK avl_status_t avl_text_weights(avl_device_t *device,
                                                           const avl_text_weights_args_t *args) {
    return device->ops->text_weights(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_text_update(avl_device_t *device,
                                                          const avl_text_update_args_t *args) {
    return device->ops->text_update(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_text_keep(avl_device_t *device,
                                                        const avl_text_keep_args_t *args) {
    return device->ops->text_keep(device, args);
}

#endif
