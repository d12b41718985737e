/* model/network.h: what a loaded model consists of. Included by model/ alone.
 *
 * Weights point into the checkpoint's mapping or into `owned`. The activations of the vision tower
 * and of the decoder share one arena, because a rank runs one of the two at a time; each part lays
 * it out for itself (avl_arena_t). */
#ifndef AVL_MODEL_NETWORK_H
#define AVL_MODEL_NETWORK_H

#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "model/loader.h"
#include "model/model.h"

/* A product's weight slice; bias f32 or NULL. The bias of a row-parallel product (o, down, fc2,
 * ...) belongs to the whole sum and is added once, after the reduction. */
typedef struct avl_product {
    avl_matrix_t weight;
    float *bias;
} avl_product_t;

typedef struct avl_layer_norm {
    float *weight, *bias;
} avl_layer_norm_t;

typedef struct avl_vision_layer {
    avl_layer_norm_t norm1, norm2;
    avl_product_t query, key, value, output;
    avl_product_t fc1, fc2;
} avl_vision_layer_t;

typedef struct avl_vision {
    avl_matrix_t patch;
    float *positions; /* [patches + 1, width]; row 0 holds the class embedding as well */
    avl_layer_norm_t pre_norm;
    avl_vision_layer_t *layers; /* [layer_count] */
    int layer_count;            /* as many as the deepest feature needs */
    /* Activations, for tiles_max tiles. R = tiles * (patches + 1) */
    void *patches;  /* dtype [tiles * patches, 3 patch²] */
    float *stream;  /* [R, width] */
    void *normed;   /* dtype [R, width] */
    void *qkv;      /* dtype [R, 3 * heads * head_width] */
    void *attended; /* dtype [R, heads * head_width] */
    void *mlp;      /* dtype [R, mlp columns] */
    float *partial; /* [R, width] */
    float *chosen;  /* [tiles * feature rows, width * feature layers] */
} avl_vision_t;

typedef struct avl_projector {
    avl_shard_t columns; /* of the inner width, dealt over the ranks */
    avl_product_t linear_1, linear_2;
    float *newline; /* [hidden], llava_next */
    /* Activations, for tiles_max tiles; F = tiles * feature rows */
    void *input;           /* dtype [F, width * feature layers] */
    void *inner;           /* dtype [F, columns] */
    float *projected;      /* [F, hidden] */
    int32_t *targets;      /* [F] */
    int32_t *targets_host; /* the same, in host memory */
} avl_projector_t;

typedef struct avl_decoder_layer {
    float *attention_norm, *mlp_norm;
    avl_product_t query, key, value, output;
    avl_product_t gate, up, down;
} avl_decoder_layer_t;

typedef struct avl_decoder {
    avl_matrix_t embedding, head;
    float *final_norm;
    avl_decoder_layer_t *layers;
    /* Activations, for rows_max rows (T) and logit_rows_max rows (L) */
    int32_t *token_ids;  /* [T] */
    int32_t *logit_rows; /* [L] */
    float *cosines;      /* [T, D/2] */
    float *sines;        /* [T, D/2] */
    float *stream;       /* [T, hidden] */
    float *last;         /* [L, hidden]: the stream's rows that give logits */
    void *normed;        /* dtype [T, hidden] */
    void *qkv;           /* dtype [T, (Hq + 2 Hk) D] */
    void *attended;      /* dtype [T, Hq D] */
    void *gate_up;       /* dtype [T, 2 columns] */
    void *mlp;           /* dtype [T, columns] */
    float *partial;      /* [T, hidden] */
    float *logits;       /* [L, vocabulary rows of this rank] */
    void *best;          /* [2, L] i32 tokens and f32 logits, of as many rows as are asked for */
    avl_sample_result_t *drawn; /* [L] */
    int64_t many_rows;          /* of the rows at hand, how many go the way of many rows */
    /* Host memory */
    float *frequencies;              /* [D/2] */
    float *rope_host;                /* [2, T, D/2] */
    int32_t *survivors;              /* [T] rows that go on, of those at hand */
    int32_t *positions;              /* [T] of the rows at hand */
    int32_t *lengths;                /* [T] sequence_rows of the rows at hand */
    int32_t *logit_rows_host;        /* [L] */
    void *best_host;                 /* [2, L] */
    avl_best_token_t *best_found;    /* [L + 1] of this rank's part, and its vote */
    avl_best_token_t *best_gathered; /* rank 0: [ranks, up to L + 1] */
    float *gathered;                 /* rank 0 of several: [L, vocabulary] in blocks of ranks */
    size_t *gather_bytes;            /* [ranks] */
} avl_decoder_t;

struct avl_model {
    avl_config_t config;
    avl_device_t *device;
    avl_group_t *group;
    avl_model_options_t options;
    avl_shards_t shards;
    avl_model_memory_t memory;
    avl_vision_t vision;
    avl_projector_t projector;
    avl_decoder_t decoder;
    void **owned;
    size_t owned_count;
    void *arena;
    float *exchange; /* a device that is not the host: host memory for what ranks exchange */
};

/* Gives out pieces of one piece of device memory. With memory NULL it only counts. */
typedef struct avl_arena {
    char *memory;
    size_t used_bytes;
} avl_arena_t;
void *avl_arena_take(avl_arena_t *arena, int64_t count, int64_t item_bytes);

/* Rows of one tile after the feature selection. */
int64_t avl_vision_feature_rows(const avl_model_t *model);
int64_t avl_vision_feature_width(const avl_model_t *model);

AVL_MUST_CHECK avl_status_t avl_vision_load(avl_model_t *model, avl_loader_t *loader);
void avl_vision_layout(avl_model_t *model, avl_arena_t *arena);
AVL_MUST_CHECK avl_status_t avl_projector_load(avl_model_t *model, avl_loader_t *loader);
void avl_projector_layout(avl_model_t *model, avl_arena_t *arena);
AVL_MUST_CHECK avl_status_t avl_decoder_load(avl_model_t *model, avl_loader_t *loader);
void avl_decoder_layout(avl_model_t *model, avl_arena_t *arena);
/* Host memory of the decoder; released by avl_decoder_release, also after a failure. */
AVL_MUST_CHECK avl_status_t avl_decoder_prepare(avl_model_t *model);
void avl_decoder_release(avl_model_t *model);

/* The collective steps below go on through all their collectives after a local failure, with
 * meaningless numbers, so that no rank is left waiting: the failure comes out at the end. A failed
 * collective ends them at once. */

/* tiles <= tiles_max; fills vision.chosen. Returns only the collectives' own failure; a local one
 * is kept in *status_p. */
AVL_MUST_CHECK avl_status_t avl_vision_run(avl_model_t *model, const uint8_t *pixels, int tiles,
                                           avl_status_t *status_p);

/* The best tokens of the batch's last best_count rows, on rank 0. Joins the collective whatever
 * *status_p says; a local failure is kept in *status_p. Returns only the collective's own failure.
 */
AVL_MUST_CHECK avl_status_t avl_model_collect_best(avl_model_t *model,
                                                   const avl_forward_batch_t *batch,
                                                   avl_status_t *status_p);
/* The tokens drawn from the batch's last draw_count rows, likewise; at one rank. */
AVL_MUST_CHECK avl_status_t avl_model_collect_drawn(avl_model_t *model,
                                                    const avl_forward_batch_t *batch);

/* One product of a step: rows of `input` (input_stride apart) to `output`. */
AVL_MUST_CHECK avl_status_t avl_model_product(const avl_model_t *model,
                                              const avl_product_t *product, int with_bias,
                                              avl_linear_args_t args);
/* data[count] becomes its sum over the ranks. Joins the collective whatever *status_p says; a local
 * failure is kept in *status_p. Returns only the collective's own failure. */
AVL_MUST_CHECK avl_status_t avl_model_all_reduce(avl_model_t *model, float *data, int64_t count,
                                                 avl_status_t *status_p);
/* stream += the sum over ranks of partial, + bias. Joins the collective whatever *status_p says; a
 * local failure is kept in *status_p. Returns only the collective's own failure. */
AVL_MUST_CHECK avl_status_t avl_model_reduce_add(avl_model_t *model, float *stream, float *partial,
                                                 const float *bias, int64_t rows, int64_t width,
                                                 avl_status_t *status_p);

#endif
