/* kernels/cpu/device.h: the CPU device from inside: threads, scratch memory, and the table of one
 * instruction set.
 *
 * An operation is a file here: it checks its arguments, divides the work into items whose borders
 * depend on the shapes alone, and runs the items on the threads. The arithmetic of an item comes
 * from the device's instruction-set table, whose functions are written once (the *.inc.h files) and
 * compiled once per set. A device serves one calling thread at a time. */
#ifndef AVL_KERNELS_CPU_DEVICE_H
#define AVL_KERNELS_CPU_DEVICE_H

#include "kernels/attention.h"
#include "kernels/device.h"
#include "kernels/diversity.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/lists.h"
#include "kernels/select.h"
#include "kernels/text.h"

/* Rows and columns of one item of a matrix product: fixed, so that nothing depends on the number of
 * threads. The column block is a multiple of every instruction set's tile. */
#define AVL_LINEAR_ROW_BLOCK 48
#define AVL_LINEAR_COLUMN_BLOCK 48

/* Queries of one item of prompt attention (a multiple of every tile height), and keys of one tile.
 */
#define AVL_ATTENTION_QUERY_BLOCK 96
#define AVL_ATTENTION_KEY_TILE 64

/* Rows and KV heads of one item of decode attention. Many heads, because what lies side by side is
 * read as one stream: with 8 heads of 128 an item reads at half the speed. */
#define AVL_DECODE_ROW_CHUNK 64
#define AVL_DECODE_HEAD_BLOCK 32

/* Widest vector of any instruction set, in f32 lanes: scratch rows are padded to it. */
#define AVL_LANES_MAX 16

typedef struct avl_decode_item {
    const avl_decode_attention_args_t *args;
    const avl_decode_sequence_t *sequence;
    int first_row, row_count;         /* indices into the three spans read as one */
    int first_kv_head, kv_head_count; /* the item's KV heads */
    int chunk, chunk_count;
    float *partials; /* [Hq][chunk_count][D + 2]: weighted values, largest logit, sum of weights */
    float *visual_logits; /* NULL, or [Hq][spans[VISUAL].row_count] */
    int32_t *places;      /* with visual_keep, [Hk][visual_keep]: indices in the visual span */
} avl_decode_item_t;

/* One instruction set. Every function computes one item and may be called from any thread. */
typedef struct avl_cpu_kernels {
    const char *name;  /* what avl_device_open_cpu takes */
    const char *label; /* for people */
    avl_dtype_t fast_dtype;
    /* Whether large products go to oneDNN: it has no fast bf16 before AVX-512 with bf16. */
    int matmul_library_f32, matmul_library_bf16;

    void (*linear)(const avl_linear_args_t *args, int64_t row, int64_t rows, int64_t column,
                   int64_t columns);
    /* output[i][j] = act(sums[i][j] + bias[j]), for products whose sums come from elsewhere. */
    void (*linear_finish)(const avl_linear_args_t *args, int64_t row, int64_t rows, int64_t column,
                          int64_t columns, const float *sums, int64_t sums_stride);
    void (*norm)(const avl_norm_args_t *args, int64_t row);
    void (*rope)(const avl_rope_args_t *args, int64_t row);
    void (*activation)(const avl_activation_args_t *args, int64_t first, int64_t count);
    void (*gated)(const avl_gated_args_t *args, int64_t row);
    void (*add)(const avl_add_args_t *args, int64_t first, int64_t count);
    void (*embed)(const avl_embed_args_t *args, int64_t row);
    void (*argmax)(const avl_argmax_args_t *args, int64_t row);
    /* scratch: avl_attention_scratch_bytes(D) */
    void (*attention)(const avl_attention_args_t *args, const avl_attention_sequence_t *sequence,
                      int head, int first, int count, void *scratch);
    /* scratch: avl_decode_scratch_bytes(...) */
    /* Where heads choose: first visual_logits for all rows of the span (first_row counts in it),
     * then one KV head's places, and its logits moved to the front of visual_logits in their order.
     * Scratch there: f32 [2, spans[VISUAL].row_count]. */
    void (*decode_score)(const avl_decode_item_t *item, void *scratch);
    void (*decode_choose)(const avl_decode_item_t *item, int kv_head, float *scratch);
    void (*decode_chunk)(const avl_decode_item_t *item, void *scratch);
    /* Merges the chunks of one head in their order; leaves the head's largest logit and sum of
     * weights in chunk 0. */
    void (*decode_merge)(const avl_decode_item_t *item, int head);
    /* visual_weights[first .. first + count) from the logits and what decode_merge left. */
    void (*decode_weights)(const avl_decode_item_t *item, int first, int count);
    /* What avl_choose does for one list. */
    void (*choose)(const avl_choose_item_t *item);
    /* Weights of one item's rows for the query heads of one KV head of this rank. */
    void (*text_weights)(const avl_text_weights_args_t *args, const avl_text_row_t *row,
                         int kv_head);
} avl_cpu_kernels_t;

extern const avl_cpu_kernels_t avl_cpu_portable;
extern const avl_cpu_kernels_t avl_cpu_avx2;
extern const avl_cpu_kernels_t avl_cpu_avx512;
extern const avl_cpu_kernels_t avl_cpu_avx512bf16;

typedef struct avl_scratch {
    void *memory;
    size_t bytes;
} avl_scratch_t;

typedef struct avl_matmul avl_matmul_t;

typedef struct avl_cpu_device {
    avl_device_t device;
    const avl_cpu_kernels_t *kernels;
    avl_scratch_t *thread_scratch; /* [threads] */
    avl_scratch_t shared_scratch;
    avl_scratch_t place_scratch; /* decode attention's sequences */
    avl_matmul_t *matmul;        /* oneDNN's engine and its primitives */
} avl_cpu_device_t;

/* Whether this machine and its system run a table's instructions. */
int avl_cpu_supports(const avl_cpu_kernels_t *kernels);

static inline avl_cpu_device_t *avl_cpu_device(avl_device_t *device) {
    return (avl_cpu_device_t *)device;
}

/* Makes every thread's scratch hold at least `bytes`. Contents are not kept. */
AVL_MUST_CHECK avl_status_t avl_scratch_reserve_threads(avl_cpu_device_t *cpu, size_t bytes);
AVL_MUST_CHECK avl_status_t avl_scratch_reserve(avl_scratch_t *scratch, size_t bytes,
                                                const char *what);

/* Brings device.workspace_bytes up to date. */
void avl_scratch_account(avl_cpu_device_t *cpu);

/* Runs task(context, item, thread) for every item; returns when all have run. Which thread runs an
 * item is not defined, so an item's result must not depend on it; `thread` is below info.threads
 * and names the scratch to use. `work` is a rough count of multiply-adds or elements: below a
 * threshold no other thread is woken. */
typedef void avl_cpu_task_t(void *context, int64_t item, int thread);
void avl_cpu_parallel(const avl_cpu_device_t *cpu, int64_t items, int64_t work,
                      avl_cpu_task_t *task, void *context);

static inline int64_t avl_ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}
static inline int64_t avl_min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t avl_max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t avl_round_up(int64_t value, int64_t unit) {
    return avl_ceil_div(value, unit) * unit;
}

static inline size_t avl_attention_scratch_bytes(int head_width) {
    size_t padded = (size_t)avl_round_up(head_width, AVL_LANES_MAX);
    size_t queries = AVL_ATTENTION_QUERY_BLOCK, keys = AVL_ATTENTION_KEY_TILE;
    /* queries and sums [queries, D]; scores [queries, keys]; keys and values [keys, D]; largest and
     * sum [queries] */
    return sizeof(float) *
           (2 * queries * padded + queries * keys + 2 * keys * padded + 2 * queries);
}

/* Logits of one chunk for the query heads of one block of KV heads; the chunk's slots, which may be
 * each head's own. */
static inline size_t avl_decode_scratch_bytes(int query_heads) {
    return sizeof(float) * AVL_DECODE_ROW_CHUNK * (size_t)query_heads +
           sizeof(int64_t) * AVL_DECODE_ROW_CHUNK * AVL_DECODE_HEAD_BLOCK;
}

avl_status_t avl_cpu_linear(avl_device_t *device, const avl_linear_args_t *args);
avl_status_t avl_cpu_prepare_linear(avl_device_t *device, const avl_linear_args_t *args);
avl_status_t avl_cpu_prepare_attention(avl_device_t *device, const avl_attention_demand_t *demand);
avl_status_t avl_cpu_norm(avl_device_t *device, const avl_norm_args_t *args);
avl_status_t avl_cpu_rope(avl_device_t *device, const avl_rope_args_t *args);
avl_status_t avl_cpu_activation(avl_device_t *device, const avl_activation_args_t *args);
avl_status_t avl_cpu_gated(avl_device_t *device, const avl_gated_args_t *args);
avl_status_t avl_cpu_add(avl_device_t *device, const avl_add_args_t *args);
avl_status_t avl_cpu_embed(avl_device_t *device, const avl_embed_args_t *args);
avl_status_t avl_cpu_patches(avl_device_t *device, const avl_patches_args_t *args);
avl_status_t avl_cpu_copy_rows(avl_device_t *device, const avl_copy_rows_args_t *args);
avl_status_t avl_cpu_attention(avl_device_t *device, const avl_attention_args_t *args);
avl_status_t avl_cpu_decode_attention(avl_device_t *device,
                                      const avl_decode_attention_args_t *args);
avl_status_t avl_cpu_kv_write(avl_device_t *device, const avl_kv_write_args_t *args);
avl_status_t avl_cpu_kv_move(avl_device_t *device, const avl_kv_move_args_t *args);
avl_status_t avl_cpu_topk(avl_device_t *device, const avl_topk_args_t *args);
avl_status_t avl_cpu_argmax(avl_device_t *device, const avl_argmax_args_t *args);
avl_status_t avl_cpu_choose(avl_device_t *device, const avl_choose_args_t *args);
avl_status_t avl_cpu_publish(avl_device_t *device, const avl_publish_args_t *args);
avl_status_t avl_cpu_round(avl_device_t *device, const avl_round_args_t *args);
avl_status_t avl_cpu_text_weights(avl_device_t *device, const avl_text_weights_args_t *args);
avl_status_t avl_cpu_text_update(avl_device_t *device, const avl_text_update_args_t *args);
avl_status_t avl_cpu_text_keep(avl_device_t *device, const avl_text_keep_args_t *args);
avl_status_t avl_cpu_diversity(avl_device_t *device, const avl_diversity_args_t *args);
avl_status_t avl_cpu_weigh(avl_device_t *device, const avl_weigh_args_t *args);

#endif
