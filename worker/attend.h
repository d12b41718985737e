/* worker/attend.h: the attention of one layer for all rows of a step, over the paged cache.
 *
 * This is the hook that the model calls for every layer (model/model.h). For the step's runs it
 *   1. gives every row a slot and writes its key and value there,
 *   2. attends for the prompt chunks, then for the decode rows,
 *   3. where a prompt ends in this step, computes how much its last row (or all rows of its
 *      question, also where they are read in several steps) looks at each visual row,
 *   4. ranks text rows by their weights, and evicts (worker/text_rank.h),
 *   5. chooses stores and cores over all ranks, evicts, and returns pages (worker/visual_store.h);
 *      with `coverage` in the last layer for all.
 *
 * Sliding window: rows outside a query's window are not read; a visual row that the last prompt row
 * (or an updating step's row) cannot see scores 0, so that the store prefers rows that are still
 * visible. */
#ifndef AVL_WORKER_ATTEND_H
#define AVL_WORKER_ATTEND_H

#include "comm/group.h"
#include "model/model.h"
#include "worker/selection.h"
#include "worker/sequence.h"

typedef struct avl_attend avl_attend_t;

/* Rows of one sequence in a step: a chunk of its prompt, or one decode row. */
typedef struct avl_run {
    avl_sequence_t *sequence;
    bool decode;
    int32_t first_row;      /* of the step */
    int32_t row_count;      /* 1 for a decode row */
    int32_t first_position; /* the sequence's rows_done */
    int32_t end_position;   /* behind its last row; set by avl_attend_begin */
    bool moved;             /* avl_attend_survivors' own */
} avl_run_t;

typedef struct avl_attend_options {
    avl_device_t *device;
    avl_group_t *group;
    avl_pages_t *pages;
    avl_head_map_t head_map; /* of this rank */
    int kv_head_first;       /* of this rank, among those of the model */
    int kv_heads_all;        /* of the model */
    bool kv_heads_shared;    /* some are on two ranks */
    int head_width;
    int layer_count;
    int window;       /* 0: none */
    int32_t rows_max; /* of a step */
    int32_t runs_max;
    int32_t indices_max;         /* of sequences */
    int32_t context_rows;        /* of a sequence */
    int64_t scores_max;          /* visual rows of all sequences chosen for in one step */
    int64_t sequence_scores_max; /* of one of them */
    /* Device memory: how much each row of the engine's features differs from the others of its
     * picture (kernels/diversity.h), there before a prompt ends that looks at it. */
    const float *distances;
} avl_attend_options_t;

/* Bytes that create will allocate. */
int64_t avl_attend_bytes(const avl_attend_options_t *options);
/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_attend_create(const avl_attend_options_t *options,
                                              avl_attend_t **attend_p);
void avl_attend_destroy(avl_attend_t *attend);

/* Whether the run's last row is its prompt's. */
static inline bool avl_run_ends_prompt(const avl_run_t *run) {
    return !run->decode && run->end_position == run->sequence->shape.prompt_rows;
}

/* Starts a step. */
void avl_attend_begin(avl_attend_t *attend, const avl_run_t *runs, int run_count, int32_t rows);
/* One layer. Collective where a selection is due. Errors: those of kernels and group;
 * AVL_ERR_INTERNAL for a dry page pool (the same on every rank). `context` is the avl_attend_t. */
AVL_MUST_CHECK avl_status_t avl_attend_layer(void *context, const avl_attention_call_t *call);
/* The rows that go on behind the prefill filter (avl_attention_hook_t). */
AVL_MUST_CHECK avl_status_t avl_attend_survivors(void *context, int layer, int32_t *rows,
                                                 int *count_p);
/* The layer's collectives alone, on a rank that failed before (avl_attention_hook_t). */
AVL_MUST_CHECK avl_status_t avl_attend_join(void *context, int layer);

#endif
