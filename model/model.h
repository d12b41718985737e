/* model/model.h: the network on one rank: sharded weights, vision tower, projector, decoder.
 *
 * The model knows weights and arithmetic. It knows nothing of caches: each layer hands its rotated
 * queries, keys and values to an attention hook (worker/ implements it over the paged cache; tests
 * over plain arrays). Query heads, MLP columns and vocabulary rows are dealt as evenly as they go;
 * a KV head lives on every rank whose query heads read it. The residual stream is f32 and the same
 * on all ranks.
 *
 * Sources of the formulas: modeling_clip.py, modeling_llava.py, modeling_llava_next.py,
 * modeling_llama.py, modeling_rope_utils.py of transformers; the details are named where they are
 * used. */
#ifndef AVL_MODEL_MODEL_H
#define AVL_MODEL_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "checkpoint/config.h"
#include "checkpoint/image_layout.h"
#include "checkpoint/weights.h"
#include "comm/group.h"
#include "kernels/attention.h"
#include "kernels/device.h"
#include "kernels/sample.h"

typedef struct avl_model avl_model_t;

/* What of a dimension this rank holds. */
typedef struct avl_shard {
    int first, count;
} avl_shard_t;

typedef struct avl_shards {
    avl_shard_t query_heads;
    avl_shard_t kv_heads;
    avl_head_map_t head_map;
    avl_shard_t mlp_columns;
    avl_shard_t vocab_rows;
    avl_shard_t vision_heads;
    avl_shard_t vision_mlp_columns;
} avl_shards_t;

/* Errors: AVL_ERR_UNSUPPORTED when there are more ranks than query heads (both numbers named). */
AVL_MUST_CHECK avl_status_t avl_shards_plan(const avl_model_config_t *config, int rank, int ranks,
                                            avl_shards_t *shards_p);

typedef struct avl_model_options {
    avl_dtype_t dtype; /* of weights and activations: f32, bf16, or f16 where the device has it */
    int rows_max;      /* rows of one forward call: sizes the activations */
    int tiles_max;     /* tiles of one vision call */
    int logit_rows_max;
    /* Progress of loading, 0..1, from this rank; may be NULL. */
    void (*progress)(void *context, double share);
    void *progress_context;
} avl_model_options_t;

/* Loads this rank's slices (in place where dtype and layout allow), checks every value to be
 * finite, allocates the activations. All that forward and encode need is allocated here, but for
 * the attention over the caller's cache (kernels/attention.h: avl_attention_prepare).
 * Collective: ends in an agreement, so that either all ranks have a model or none. Errors:
 * AVL_ERR_DATA (missing tensor, wrong shape, NaN or infinity: tensor and index named),
 * AVL_ERR_MEMORY, AVL_ERR_UNSUPPORTED, AVL_ERR_PEER. */
AVL_MUST_CHECK avl_status_t avl_model_create(const avl_config_t *config,
                                             const avl_weights_t *weights, avl_device_t *device,
                                             avl_group_t *group, const avl_model_options_t *options,
                                             avl_model_t **model_p);
void avl_model_destroy(avl_model_t *model);
const avl_shards_t *avl_model_shards(const avl_model_t *model);

/* Bytes this rank holds: for the ledger and the start-up report. */
typedef struct avl_model_memory {
    size_t weight_bytes; /* owned copies */
    size_t mapped_bytes; /* used in place in the checkpoint's mapping */
    size_t activation_bytes;
    size_t host_bytes;         /* beside the activations: tables, what ranks exchange */
    size_t kv_duplicate_bytes; /* weights of KV heads that another rank holds as well */
} avl_model_memory_t;
avl_model_memory_t avl_model_memory(const avl_model_t *model);

/* One picture to rows of the prompt: vision tower, projector, and for llava_next the assembly of
 * tiles, unpadding and newlines. pixels    u8 [layout->tile_count, 3, side, side], device memory,
 * the same on all ranks features  write f32 [layout->prompt_rows, hidden_width], device memory; the
 * same on all ranks Collective. Tiles beyond tiles_max are done in several passes. */
AVL_MUST_CHECK avl_status_t avl_model_encode(avl_model_t *model, const uint8_t *pixels,
                                             const avl_image_layout_t *layout, float *features);

/* One layer's attention, called by forward for every layer in order. */
typedef struct avl_attention_call {
    int layer;
    void *query;       /* dtype [T, Hq * D], rotated; rows query_stride elements apart */
    const void *key;   /* dtype [T, Hk * D], rotated; rows kv_stride apart */
    const void *value; /* the same, not rotated */
    int64_t query_stride;
    int64_t kv_stride;
    void *output; /* write dtype [T, Hq * D], contiguous */
} avl_attention_call_t;

/* A hook that has collectives of its own joins them in every layer, also after a failure of its
 * own; `join` (else NULL) is called instead of `attend` on a rank that failed before, takes part in
 * the layer's collectives with meaningless numbers, and returns their failure alone. */
typedef struct avl_attention_hook {
    void *context;
    avl_status_t (*attend)(void *context, const avl_attention_call_t *call);
    avl_status_t (*join)(void *context, int layer);
    /* NULL, or called after every layer's attention but the last layer's, on every rank, also one
     * that failed: the rows that go on to the MLP and to later layers, ascending, in rows[*count_p]
     * (room for all). *count_p is always set, and the same on every rank; a rank that failed may
     * name any rows. Rows whose logits are wanted go on. */
    avl_status_t (*survivors)(void *context, int layer, int32_t *rows, int *count_p);
} avl_attention_hook_t;

/* The largest logit, the lowest token on a tie; where a logit is NaN or +infinity, the first of
 * those. */
typedef struct avl_best_token {
    int32_t token_id;
    float logit;
} avl_best_token_t;

/* The rows of one step: prompt chunks and single decode rows of any number of sequences, one after
 * the other. HOST arrays.
 *
 * A row's numbers depend, to the bit, on its sequence and on whether it is among the first
 * `many_rows`, and on nothing else in the step (on the CPU): those are multiplied in large blocks
 * (kernels/linear.h: AVL_LINEAR_MANY), the others in small ones. Who wants a sequence to be
 * repeatable decides that by what never changes about it. */
typedef struct avl_forward_batch {
    int rows;                 /* T <= rows_max */
    int many_rows;            /* 0..rows */
    const int32_t *token_ids; /* [T]; -1 for a row that comes from a picture */
    const int32_t *positions; /* [T] */
    /* [T] or NULL: length of the row's sequence after this step, for dynamic rope scaling (HF: max
     * position + 1 of the call). */
    const int32_t *sequence_rows;
    /* Picture rows: row embed_rows[i] of the step takes feature row embed_sources[i] of `features`
     * (device, f32 [*, H]). */
    const float *const *embed_features; /* [embed_count] pointers to one device row each */
    const int32_t *embed_rows;
    int embed_count;
    const int32_t *logit_rows; /* rows whose logits are wanted, [logit_count] */
    int logit_count;           /* <= logit_rows_max */
    /* Of the last draw_count of those no more than a token drawn from them is wanted, of the
     * best_count before these no more than the best token: HOST [draw_count], [best_count], on rank
     * 0. Draws with one rank alone, where the device has the operation. */
    int best_count, draw_count;
    avl_best_token_t *best;
    const avl_sample_item_t *draws;
    avl_sample_result_t *drawn;
} avl_forward_batch_t;

/* Runs the decoder. logits: HOST f32 [logit_count - best_count - draw_count, vocab_rows] on rank 0
 * (gathered over ranks), ignored elsewhere. Collective. Errors: those of the hook, of kernels and
 * of the group; on rank 0 AVL_ERR_PEER when another rank failed and logits were wanted (a vote
 * travels with them). */
AVL_MUST_CHECK avl_status_t avl_model_forward(avl_model_t *model, const avl_forward_batch_t *batch,
                                              const avl_attention_hook_t *hook, float *logits);

#endif
