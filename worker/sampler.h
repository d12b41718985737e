/* worker/sampler.h: the next token from logits.
 *
 * A draw is a function of (logits, parameters, seed, index of the token): a replay after a lost
 * group draws the same. Order of the filters as in transformers: temperature, top-k, top-p. The
 * generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
 * 2011), keyed by the seed, counting tokens. */
#ifndef AVL_WORKER_SAMPLER_H
#define AVL_WORKER_SAMPLER_H

#include "worker/request.h"

typedef struct avl_sampler avl_sampler_t;

/* Scratch for `vocab_rows` logits. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_sampler_create(int32_t vocab_rows, avl_sampler_t **sampler_p);
void avl_sampler_destroy(avl_sampler_t *sampler);

/* Errors: AVL_ERR_INVALID naming parameter, value and allowed range. */
AVL_MUST_CHECK avl_status_t avl_sampling_params_check(const avl_sampling_params_t *params);

/* Errors: AVL_ERR_INTERNAL for logits that are NaN or +infinity (the lowest such token is named).
 */
AVL_MUST_CHECK avl_status_t avl_sampler_draw(avl_sampler_t *sampler, const float *logits,
                                             const avl_sampling_params_t *params,
                                             uint64_t token_index, int32_t *token_id_p);

/* The generator itself: four words for a counter and a key. */
void avl_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t words[4]);

#endif
