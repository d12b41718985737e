/* worker/engine.h: executes step plans on one rank: the same plan on every rank, in the same order.
 *
 * The engine owns what a rank serves with: the page pool, sequences, features of pictures, the
 * attention state. It decides nothing: the leader's scheduler (worker/scheduler.h) makes the plans.
 * Everything is allocated, and written to once, at creation: afterwards a step allocates only what
 * the libraries below need for a moment, small things (tests/worker/allocations.c). Ranks agree on
 * how an admission went, and one that failed anywhere is undone everywhere. Any other failure of
 * execute ends the group.
 *
 * Ranks: create and execute are collective. */
#ifndef AVL_WORKER_ENGINE_H
#define AVL_WORKER_ENGINE_H

#include "model/model.h"
#include "worker/ledger.h"
#include "worker/pages.h"
#include "worker/plan.h"
#include "worker/sequence.h"

typedef struct avl_engine avl_engine_t;

typedef struct avl_engine_limits {
    int32_t batch_rows;    /* prompt rows of one step at most */
    int32_t sequences_max; /* in flight at once at most */
    int32_t context_rows;  /* prompt and completion of one sequence at most */
    int32_t kept_max;      /* prompts kept after their answers at most */
} avl_engine_limits_t;

typedef struct avl_engine_options {
    const avl_config_t *config;
    avl_device_t *device;
    avl_group_t *group;
    avl_model_t *model; /* made with avl_engine_model_options */
    avl_dtype_t dtype;
    avl_engine_limits_t limits;
    int64_t memory_bytes;        /* this rank's budget */
    int64_t encoder_cache_bytes; /* 0: a share of what is left */
    int64_t page_count; /* 0: as many as the budget pays for, up to what the limits can use */
} avl_engine_options_t;

typedef struct avl_step_result {
    avl_status_t admission; /* why the plan's admissions were undone, and the rest of the plan but
                               its releases not done */
    char admission_detail[AVL_STATUS_DETAIL_BYTES];
    /* Leader, until the next step: of the runs that want logits, [those, vocab_rows], and of the
     * runs that want the best token or a draw alone; all in the order of the runs. */
    const float *logits;
    const avl_best_token_t *best;
    const avl_sample_result_t *drawn;
    const int64_t *encode_ns; /* [picture_count] */
} avl_step_result_t;

/* Rows that a request may have by the model's own positions: more than max_position_embeddings
 * where rope is scaled linearly or dynamically. */
int32_t avl_engine_context_most(const avl_model_config_t *config);
/* Tiles of the largest picture. */
int avl_engine_picture_tiles(const avl_config_t *config);
/* Prepared pictures of all requests that the leader has at hand, at most: it keeps them until the
 * answers have ended, and the coordinator gives it no more. One of the largest for every sequence.
 */
int64_t avl_engine_picture_bytes(const avl_config_t *config, const avl_engine_limits_t *limits);
avl_model_options_t avl_engine_model_options(const avl_config_t *config,
                                             const avl_engine_limits_t *limits, avl_dtype_t dtype);
/* Errors: AVL_ERR_INVALID naming the limit. */
AVL_MUST_CHECK avl_status_t avl_engine_limits_check(const avl_config_t *config,
                                                    const avl_engine_limits_t *limits);

/* `config`, device, group and model must outlive the engine. Collective.
 * Errors: AVL_ERR_EXHAUSTED (the budget does not hold one sequence), AVL_ERR_MEMORY, AVL_ERR_PEER.
 */
AVL_MUST_CHECK avl_status_t avl_engine_create(const avl_engine_options_t *options,
                                              avl_engine_t **engine_p);
void avl_engine_destroy(avl_engine_t *engine);

/* Runs a step. Errors: those of model, kernels and group; AVL_ERR_INTERNAL for a plan that does not
 * fit the state. */
AVL_MUST_CHECK avl_status_t avl_engine_execute(avl_engine_t *engine, const avl_plan_t *plan,
                                               avl_step_result_t *result_p);

const avl_engine_options_t *avl_engine_options(const avl_engine_t *engine);
const avl_plan_limits_t *avl_engine_plan_limits(const avl_engine_t *engine);
const avl_ledger_t *avl_engine_ledger(const avl_engine_t *engine);
/* Every rank's: [ranks]. */
const avl_ledger_t *avl_engine_ledgers(const avl_engine_t *engine);
/* Whether runs may ask for their best token alone: where the device has the logits to itself, it
 * spares their way to the host. */
bool avl_engine_finds_best(const avl_engine_t *engine);
/* Likewise a token that is drawn from them. */
bool avl_engine_draws(const avl_engine_t *engine);
/* Rows of the encoder cache, and bytes of one on one rank. */
int32_t avl_engine_feature_rows(const avl_engine_t *engine);
int64_t avl_engine_feature_row_bytes(const avl_engine_t *engine);
/* Bytes of one page, over all ranks. */
int64_t avl_engine_page_bytes(const avl_engine_t *engine);
avl_pages_counts_t avl_engine_pages(const avl_engine_t *engine);
/* A live sequence, or NULL: to report and to inspect. */
const avl_sequence_t *avl_engine_sequence(const avl_engine_t *engine, int32_t sequence);
/* The same with all that the host knows of it up to date: waits for the device. */
AVL_MUST_CHECK avl_status_t avl_engine_inspect(avl_engine_t *engine, int32_t sequence,
                                               const avl_sequence_t **sequence_p);

#endif
