/* worker/plan.h: what every rank does in one step, and its form on the wire.
 *
 * The leader fills a plan, encodes it into one flat buffer, and broadcasts that; the other ranks
 * decode it. Order of execution: releases, admissions, pictures to encode, then one pass of the
 * decoder over all runs. Tokens are drawn by the leader alone: a decode run carries its input
 * token.
 *
 * Wire form: native byte order (all ranks run one binary on one architecture), a magic number and a
 * version first, every part padded to 8 bytes. */
#ifndef AVL_WORKER_PLAN_H
#define AVL_WORKER_PLAN_H

#include "kernels/sample.h"
#include "worker/request.h"

typedef enum avl_plan_kind {
    AVL_PLAN_STEP = 1,
    AVL_PLAN_STOP = 2, /* the group ends in good order */
    AVL_PLAN_TELL = 3, /* no step: ranks tell their times (loop.h) */
} avl_plan_kind_t;

/* Where the features of one picture are: rows of the encoder cache (worker/encoder_cache.h). */
typedef struct avl_plan_place {
    int32_t feature_row;
    int32_t rows;
} avl_plan_place_t;

typedef struct avl_plan_admission {
    uint64_t request_id;
    int32_t sequence; /* a free index below sequences_max */
    int32_t prompt_rows;
    int32_t rows_max;
    int32_t place_count; /* pictures */
    int32_t source;      /* the sequence that its first rows are taken from; -1: none */
    int32_t source_rows;
    avl_attention_params_t attention;
    const int32_t *token_ids;       /* [prompt_rows]; -1: picture */
    const avl_plan_place_t *places; /* [place_count] in the order of the prompt */
} avl_plan_admission_t;

typedef struct avl_plan_picture {
    int32_t sequence;    /* that it is encoded for; others may use it as well */
    int32_t feature_row; /* of its first row of features */
    avl_image_layout_t layout;
    const uint8_t *pixels;
    size_t pixel_bytes;
} avl_plan_picture_t;

/* What the leader wants to know of a run's last row. */
typedef enum avl_plan_wish {
    AVL_PLAN_NOTHING = 0,
    AVL_PLAN_LOGITS = 1,
    AVL_PLAN_BEST = 2, /* the best token alone: avl_engine_finds_best */
    AVL_PLAN_DRAW = 3, /* a token drawn from them: avl_engine_draws. Not on the wire */
} avl_plan_wish_t;

typedef struct avl_plan_run {
    int32_t sequence;
    int32_t row_count; /* of the prompt; 0: one decode row */
    int32_t token_id;  /* a decode row's input; -1 for the prompt */
    int32_t logits;    /* avl_plan_wish_t */
} avl_plan_run_t;

/* Bounds of a plan, the same on every rank. */
typedef struct avl_plan_limits {
    int32_t sequences_max; /* of retirements, admissions and runs each */
    int32_t indices_max;   /* of sequences that are run and of those that are kept; of releases */
    int32_t pictures_max;
    int32_t context_rows;
    int32_t feature_rows;
    size_t bytes_max;
} avl_plan_limits_t;

typedef struct avl_plan {
    avl_plan_kind_t kind;
    uint64_t step;
    int32_t retirement_count, release_count, admission_count, picture_count, run_count;
    int32_t *retirements; /* [sequences_max] sequences that forget their answers */
    int32_t *releases;    /* [indices_max] */
    avl_plan_admission_t *admissions;
    avl_plan_picture_t *pictures; /* [pictures_max] */
    avl_plan_run_t *runs;
    /* Of the runs that want a draw, in their order; the leader's, where there is no other rank: not
     * on the wire. */
    const avl_sample_item_t *draws;
} avl_plan_t;

/* Allocates the arrays. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_plan_create(const avl_plan_limits_t *limits, avl_plan_t *plan_p);
/* Also releases a plan that is all zeros. */
void avl_plan_destroy(avl_plan_t *plan);
/* Empties it. */
void avl_plan_begin(avl_plan_t *plan, avl_plan_kind_t kind, uint64_t step);
bool avl_plan_is_empty(const avl_plan_t *plan);

/* Size on the wire, and what one more part adds. */
size_t avl_plan_bytes(const avl_plan_t *plan);
size_t avl_plan_admission_bytes(int32_t prompt_rows, int32_t place_count);
size_t avl_plan_picture_bytes(size_t pixel_bytes);
/* Bytes of a plan that is full but for prompts and pixels. */
size_t avl_plan_frame_bytes(int32_t sequences_max, int32_t indices_max, int32_t pictures_max);

/* Writes avl_plan_bytes(plan) bytes. */
void avl_plan_encode(const avl_plan_t *plan, void *buffer);
/* Reads a plan; its pointers go into `buffer` (aligned to 8). Nothing is trusted: counts, sizes and
 * ranges are checked against `limits`; that the sequences exist and are in the right state is the
 * engine's matter. Errors: AVL_ERR_DATA. */
AVL_MUST_CHECK avl_status_t avl_plan_decode(const void *buffer, size_t bytes,
                                            const avl_plan_limits_t *limits, avl_plan_t *plan);

#endif
