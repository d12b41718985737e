/* kernels/attention.h: attention over rows named by index, for prompts, pictures and single steps.
 *
 * The cache is two tensors, keys and values, of [slots, Hk, D]; a page is AVL_PAGE_ROWS consecutive
 * slots. Which slots a query reads is always a list of slot numbers ("row list"), so that evicted
 * and non-core rows are skipped and nothing is ever sliced, copied or masked away. Keys are stored
 * rotated. Every query head h of this rank reads KV head (h + query_head_offset) / group: ranks may
 * hold a part of a group. */
#ifndef AVL_KERNELS_ATTENTION_H
#define AVL_KERNELS_ATTENTION_H

#include "kernels/device.h"

#define AVL_PAGE_ROWS 16

typedef struct avl_kv_view {
    const void *keys;   /* dtype; slot s, head h at keys + s * row_stride + h * D */
    const void *values; /* the same */
    int64_t row_stride; /* elements */
    int kv_heads;       /* Hk */
    int head_width;     /* D */
    avl_dtype_t dtype;  /* f32 or bf16 */
} avl_kv_view_t;

/* Numbers beside the cache, one for every slot and KV head, lie page by page and head by head. */
static inline int64_t avl_row_place(int64_t slot, int head, int kv_heads) {
    return (slot / AVL_PAGE_ROWS * kv_heads + head) * AVL_PAGE_ROWS + slot % AVL_PAGE_ROWS;
}

typedef struct avl_head_map {
    int query_heads;       /* Hq of this rank */
    int group;             /* query heads per KV head in the whole model */
    int query_head_offset; /* place of this rank's first query head inside its group */
} avl_head_map_t;

/* KV heads that this rank's query heads read. */
static inline int avl_head_map_kv_heads(const avl_head_map_t *map) {
    return (map->query_head_offset + map->query_heads - 1) / map->group + 1;
}

/* One sequence's chunk of queries. The list `rows` names, in the order of positions, every cached
 * row up to and including the chunk's own (already written). Query i of the chunk stands at index
 * row_count - query_count + i of that list and sees the indices max(0, that - window + 1) .. that
 * (causal), or all (not causal). */
typedef struct avl_attention_sequence {
    int64_t first_query; /* row of `query` and `output` */
    int32_t query_count;
    int32_t row_count;
    const int32_t *rows; /* slots i32 [row_count]; NULL: slot = first_row + index */
    int64_t first_row;
} avl_attention_sequence_t;

/*   query     read   dtype: head h of row t at query + t * query_stride + h * D; rotated, not
 * scaled sequences read   HOST array [sequence_count]; the row lists in it are device memory output
 * write  dtype: the same layout with output_stride scale     softmax of scale * q.k; window 0:
 * unlimited Numbers: f32 accumulation, |got - ref| <= 2e-5 (f32), 1e-3 + 2^-7 |ref| (bf16). Results
 * do not depend on the number of threads or on what else is in the call. */
typedef struct avl_attention_args {
    const void *query;
    int64_t query_stride;
    avl_kv_view_t kv;
    avl_head_map_t heads;
    const avl_attention_sequence_t *sequences;
    int sequence_count;
    void *output;
    int64_t output_stride;
    float scale;
    int window;
    int causal;
} avl_attention_args_t;

/* A decode step's rows: three lists, read as one. Order inside and among them does not matter for
 * the result's meaning. Span AVL_SPAN_VISUAL is the one whose weights can be exported. */
enum { AVL_SPAN_SYSTEM = 0, AVL_SPAN_VISUAL = 1, AVL_SPAN_TEXT = 2, AVL_SPAN_COUNT = 3 };

typedef struct avl_row_span {
    const int32_t *rows; /* slots i32 [row_count], device memory */
    int32_t row_count;
} avl_row_span_t;

typedef struct avl_decode_sequence {
    int64_t query_row;                    /* row of `query` and `output` */
    avl_row_span_t spans[AVL_SPAN_COUNT]; /* at least one row in all */
    /* NULL, or f32 [spans[VISUAL].row_count]: the sum over this rank's query heads of the softmax
     * weight of each visual row. (A-VL's score times the number of heads, before the sum over
     * ranks.) With weights_by_head f32 [Hk, spans[VISUAL].row_count]: sums over the query heads of
     * each KV head. */
    float *visual_weights;
    int weights_by_head;
    /* 0, or: every KV head reads visual rows of its own, the `visual_keep` of the span (at least as
     * long) with the largest sums, over the head's query heads on this rank, of their softmax over
     * the span; equal sums by lower index, NaN last; sums that only rounding tells apart in any
     * order. Of the others it reads keys alone. No visual_weights then. */
    int32_t visual_keep;
    int32_t *visual_places; /* NULL, or with visual_keep i32 [Hk, visual_keep]: their ascending
                             * indices in the span */
    /* NULL, or f32 [Hq, 2]: each query head's largest logit, and the sum of weights relative to it:
     * a row's softmax weight is exp(logit - largest) / sum. */
    float *totals;
    /* A KV head does not see rows of the text span that stand before this position
     * (text_positions); 0: it sees all. At least one row is seen. */
    int32_t text_first;
} avl_decode_sequence_t;

/* Rows that each KV head attends to, of the visual span and of all. */
static inline int32_t avl_decode_visual_rows(const avl_decode_sequence_t *sequence) {
    return sequence->visual_keep > 0 ? sequence->visual_keep
                                     : sequence->spans[AVL_SPAN_VISUAL].row_count;
}
static inline int64_t avl_decode_rows(const avl_decode_sequence_t *sequence) {
    return (int64_t)sequence->spans[AVL_SPAN_SYSTEM].row_count + avl_decode_visual_rows(sequence) +
           sequence->spans[AVL_SPAN_TEXT].row_count;
}

/* One query row per sequence. `output` may be NULL when only weights or places are wanted (A-VL's
 * pass after prefill). query, output: as above;  sequences: HOST array [sequence_count] Numbers: as
 * avl_attention; weights f32, |got - ref| <= 1e-5 per head. Results are the same for the same spans
 * whatever else is in the call and however many threads there are. */
typedef struct avl_decode_attention_args {
    const void *query;
    int64_t query_stride;
    avl_kv_view_t kv;
    avl_head_map_t heads;
    const avl_decode_sequence_t *sequences;
    int sequence_count;
    void *output;
    int64_t output_stride;
    float scale;
    const int32_t *text_positions; /* i32 [slots, Hk] at avl_row_place; NULL without a text_first */
} avl_decode_attention_args_t;

/* keys[slots[t]] = key row t; values[slots[t]] = value row t. Rows [T, Hk * D] of the cache's
 * dtype, source_stride apart. A slot s below 0 stands for one of each head: head h of the row goes
 * to slot redirects[-1 - s + h]. */
typedef struct avl_kv_write_args {
    const void *key;
    const void *value;
    int64_t source_stride;
    const int32_t *slots;
    int64_t rows;
    void *keys;
    void *values;
    int64_t row_width; /* Hk * D */
    avl_dtype_t dtype;
    int kv_heads;             /* Hk; needed with redirects or positions */
    const int32_t *redirects; /* i32, device memory; NULL when no slot is below 0 */
    /* NULL, or i32 [T]: where the rows stand, noted in row_positions i32 [slots, Hk]. */
    const int32_t *positions;
    int32_t *row_positions;
} avl_kv_write_args_t;

/* Moves rows inside the cache: slot targets[i] = slot sources[i], for i ascending. Safe in place
 * when the list is a compaction (each target was a source of an index <= i, or is free). With
 * `heads` above 0 the lists are [rows, heads], and each head's part of a row moves by itself. */
typedef struct avl_kv_move_args {
    void *keys;
    void *values;
    const int32_t *sources;
    const int32_t *targets;
    int64_t rows;
    int64_t row_width;
    avl_dtype_t dtype;
    int heads;
} avl_kv_move_args_t;

/* The largest calls of attention and decode attention to come. */
typedef struct avl_attention_demand {
    int head_width;
    int query_heads, group;       /* as avl_head_map_t */
    int64_t decode_rows_max;      /* rows of one sequence of a decode step; 0: no such calls */
    int32_t decode_sequences_max; /* sequences of one decode step */
} avl_attention_demand_t;

static inline AVL_MUST_CHECK avl_status_t
avl_attention_prepare(avl_device_t *device, const avl_attention_demand_t *demand) {
    return device->ops->prepare_attention == NULL ? AVL_OK
                                                  : device->ops->prepare_attention(device, demand);
}
static inline AVL_MUST_CHECK avl_status_t avl_attention(avl_device_t *device,
                                                        const avl_attention_args_t *args) {
    return device->ops->attention(device, args);
}
static inline AVL_MUST_CHECK avl_status_t
avl_decode_attention(avl_device_t *device, const avl_decode_attention_args_t *args) {
    return device->ops->decode_attention(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_kv_write(avl_device_t *device,
                                                       const avl_kv_write_args_t *args) {
    return device->ops->kv_write(device, args);
}
static inline AVL_MUST_CHECK avl_status_t avl_kv_move(avl_device_t *device,
                                                      const avl_kv_move_args_t *args) {
    return device->ops->kv_move(device, args);
}

#endif
