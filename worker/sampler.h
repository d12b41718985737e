/* worker/sampler.h: the next token from logits: here, or where the logits are
 * (kernels/sample.h), with the same result.
 *
 * A draw is a function of (logits, parameters, tokens so far, seed): a replay after a lost group
 * draws the same. The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy
 * as 1, 2, 3", SC 2011), keyed by the seed, counting tokens.
 *
 * In this order:
 *   penalties   repetition (Keskar et al., CTRL: a positive logit is divided, a negative one
 *               multiplied), for tokens of the prompt and the answer; then presence + frequency *
 *               times is subtracted, for tokens of the answer
 *   bans        tokens that may not come yet (history)
 *   greedy      the largest logit, the lowest id on a tie; or
 *   temperature, top-k, top-p, min-p, and a draw: of what is left, in the order of the ids, the
 *               token whose share of the weights the uniform number falls into
 *
 * Weights are whole numbers (kernels/sample_weight.h), so that no order of adding matters. All of
 * it is linear in the vocabulary: top-k and top-p sort what they keep, never everything. */
#ifndef AVL_WORKER_SAMPLER_H
#define AVL_WORKER_SAMPLER_H

#include "kernels/sample.h"
#include "worker/request.h"

typedef struct avl_sampler avl_sampler_t;

/* What stands before the token. */
typedef struct avl_sampler_history {
    const int32_t *prompt_ids; /* [prompt_rows]; -1: a picture's row. Only penalties look at it */
    int32_t prompt_rows;
    const int32_t *token_ids; /* [token_count] the answer so far; likewise */
    int32_t token_count;      /* the index of this token */
    const int32_t *banned_ids;
    int32_t banned_count;
} avl_sampler_history_t;

typedef struct avl_sampler_token {
    int32_t token_id;
    int32_t logprob_count;
    const avl_token_logprob_t *logprobs; /* until the next draw */
} avl_sampler_token_t;

/* Scratch for `vocab_rows` logits. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_sampler_create(int32_t vocab_rows, avl_sampler_t **sampler_p);
void avl_sampler_destroy(avl_sampler_t *sampler);

/* Errors: AVL_ERR_INVALID naming parameter, value and allowed range. */
AVL_MUST_CHECK avl_status_t avl_sampling_params_check(const avl_sampling_params_t *params);

/* Errors: AVL_ERR_INTERNAL for logits that are NaN or +infinity (the lowest such token is named),
 * or when every token is banned or at -infinity. */
AVL_MUST_CHECK avl_status_t avl_sampler_draw(avl_sampler_t *sampler, const float *logits,
                                             const avl_sampling_params_t *params,
                                             const avl_sampler_history_t *history,
                                             avl_sampler_token_t *token_p);

/* Whether the token follows from the best of the model's logits alone. */
bool avl_sampler_wants_best(const avl_sampling_params_t *params, int32_t banned_count);
/* What a draw of such a token gives: `token_id` is the lowest of those with the largest logit, or
 * the first whose logit is NaN or +infinity. Errors: as avl_sampler_draw. */
AVL_MUST_CHECK avl_status_t avl_sampler_take_best(avl_sampler_t *sampler, int32_t token_id,
                                                  float logit, avl_sampler_token_t *token_p);

/* Tells of `token_id`, which is less than the vocabulary, what a draw of it would. Errors:
 * AVL_ERR_INTERNAL for logits that are NaN or +infinity. */
AVL_MUST_CHECK avl_status_t avl_sampler_force(avl_sampler_t *sampler, const float *logits,
                                              const avl_sampling_params_t *params, int32_t token_id,
                                              avl_sampler_token_t *token_p);

/* The same draw for the device; `forced_id` -1, or the token that avl_sampler_force would tell of.
 * `adjustments` has room for avl_sampler_adjustments_most and is kept until the operation has been
 * called. */
avl_sample_item_t avl_sampler_item(avl_sampler_t *sampler, const avl_sampling_params_t *params,
                                   const avl_sampler_history_t *history, int32_t forced_id,
                                   avl_sample_adjustment_t *adjustments);
int32_t avl_sampler_adjustments_most(const avl_sampler_t *sampler,
                                     const avl_sampling_params_t *params,
                                     const avl_sampler_history_t *history);
/* What came of it. Errors: as avl_sampler_draw. */
AVL_MUST_CHECK avl_status_t avl_sampler_take(avl_sampler_t *sampler,
                                             const avl_sampling_params_t *params,
                                             const avl_sample_result_t *result,
                                             avl_sampler_token_t *token_p);

/* The generator itself: four words for a counter and a key. */
void avl_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t words[4]);

#endif
