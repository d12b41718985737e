/* kernels/cuda/decode_choice.h: decode attention's sequences as the GPU sees them, and each KV
 * head's choice of its visual rows among their logits. */
#ifndef AVL_KERNELS_CUDA_DECODE_CHOICE_H
#define AVL_KERNELS_CUDA_DECODE_CHOICE_H

#include "kernels/cuda/merit.h"

namespace {

constexpr int INLINE_ENTRIES = 24; /* travel in the launch's parameters, of 4 KB at most */

/* One sequence, as the GPU sees it. */
typedef struct entry {
    int64_t query_row;
    const int32_t *rows[AVL_SPAN_COUNT];
    int32_t counts[AVL_SPAN_COUNT]; /* attended to */
    int32_t chunks;
    int32_t text_first;      /* text rows that stand before it are not seen */
    int32_t visual_rows;     /* of the span */
    int32_t weights_by_head; /* weights are [Hk][visual_rows] */
    float *partials; /* [chunks][Hq][D + 2]: weighted values, largest logit, sum of weights */
    float *totals;   /* [Hq][2]: largest logit, sum of weights */
    float *logits;   /* with weights or places: [Hq][visual_rows] */
    float *weights;  /* NULL, or where they go */
    int32_t *places; /* NULL, or [Hk][counts[VISUAL]]: the chosen ones of the span */
    int32_t *slots;  /* with places: theirs, so that attention reads one list */
    float *chosen;   /* with places: their logits, [Hq][counts[VISUAL]] */
    uint32_t *keys;  /* [Hk][visual_rows], where they are too many for shared memory */
} entry_t;

typedef struct params {
    const void *query;
    int64_t query_stride;
    avl_kv_view_t kv;
    avl_head_map_t heads;
    void *output;
    int64_t output_stride;
    float scale;
    const int32_t *text_positions;
    int passes;             /* blocks that share a KV head */
    int *counters;          /* [sequence][gridDim.x] */
    const entry_t *entries; /* NULL: in `inlined` */
    entry_t inlined[INLINE_ENTRIES];
} params_t;

__device__ __forceinline__ const entry_t *entry_of(const params_t &params, unsigned sequence) {
    return params.entries != nullptr ? params.entries + sequence : params.inlined + sequence;
}

/* First query head of this rank that reads KV head `kv_head` or a later one. */
__device__ __forceinline__ int first_query_head(const avl_head_map_t &heads, int kv_head) {
    int64_t head = (int64_t)kv_head * heads.group - heads.query_head_offset;
    head = head < 0 ? 0 : head;
    return (int)(head > heads.query_heads ? heads.query_heads : head);
}

/* weights[i], as bits, += the softmax of one head's logits; a thread always has the same rows. */
__device__ __forceinline__ void add_softmax(const float *logits, int count, float *scratch,
                                            uint32_t *weights) {
    float largest = -INFINITY, sum = 0.0f;
    for (int i = (int)threadIdx.x; i < count; i += AVL_MERIT_THREADS)
        largest = fmaxf(largest, logits[i]);
    largest = avl_block_max(largest, scratch);
    for (int i = (int)threadIdx.x; i < count; i += AVL_MERIT_THREADS)
        sum += expf(logits[i] - largest);
    float inverse = 1.0f / avl_block_sum(sum, scratch);
    for (int i = (int)threadIdx.x; i < count; i += AVL_MERIT_THREADS)
        weights[i] =
            __float_as_uint(__uint_as_float(weights[i]) + expf(logits[i] - largest) * inverse);
}

static size_t choice_shared_bytes(int32_t rows_max) {
    int64_t keys = avl_cuda_min(rows_max, AVL_MERIT_SHARED_KEYS);
    return avl_shared_part((size_t)keys * sizeof(uint32_t)) +
           avl_shared_part(AVL_WARP * sizeof(float)) + merit_shared_bytes();
}

/* A block a sequence and KV head. One query head alone orders rows by its logits as by their
 * weights. */
__global__ void __launch_bounds__(AVL_MERIT_THREADS)
    choice_kernel(const __grid_constant__ params_t params, int32_t shared_keys) {
    const entry_t *entry = entry_of(params, blockIdx.y);
    if (entry->places == nullptr)
        return;
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    uint32_t *keys = (uint32_t *)avl_shared_take(&cursor, (size_t)shared_keys * sizeof(uint32_t));
    float *scratch = (float *)avl_shared_take(&cursor, AVL_WARP * sizeof(float));
    merit_t merit = take_merit(&cursor);
    int64_t kv_head = blockIdx.x, count = entry->visual_rows, keep = entry->counts[AVL_SPAN_VISUAL];
    if (entry->keys != nullptr)
        keys = entry->keys + kv_head * count;
    int begin = first_query_head(params.heads, (int)kv_head);
    int end = first_query_head(params.heads, (int)kv_head + 1);
    const float *logits = entry->logits + begin * count;
    for (int i = (int)threadIdx.x; i < count; i += AVL_MERIT_THREADS)
        keys[i] = end - begin == 1 ? key_at(logits, i) : 0;
    for (int head = begin; end - begin > 1 && head < end; head++)
        add_softmax(entry->logits + head * count, (int)count, scratch, keys);
    for (int i = (int)threadIdx.x; end - begin > 1 && i < count; i += AVL_MERIT_THREADS)
        keys[i] = key_of(__uint_as_float(keys[i]));
    int32_t *places = entry->places + kv_head * keep;
    avl_choose_item_t item = {};
    item.count = (int32_t)count;
    item.keep = (int32_t)keep;
    item.indices = places;
    item.rows = entry->rows[AVL_SPAN_VISUAL];
    item.list = entry->slots + kv_head * keep;
    choose_best(keys, merit, item);
    for (int64_t i = threadIdx.x; i < (end - begin) * keep; i += AVL_MERIT_THREADS)
        entry->chosen[begin * keep + i] = logits[i / keep * count + places[i % keep]];
}

/* Of a choice of `keep` of `rows` rows, as floats, whose size they all have: logits, places and
 * slots of the chosen rows, and keys. */
static int64_t choice_floats(int64_t heads, int64_t kv_heads, int64_t rows, int64_t keep) {
    return heads * keep + kv_heads * (2 * keep + (rows > AVL_MERIT_SHARED_KEYS ? rows : 0));
}

} // namespace

#endif
