/* client/eval_stats.h: means with intervals, and how far two distributions are apart. */
#ifndef AVL_CLIENT_EVAL_STATS_H
#define AVL_CLIENT_EVAL_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define AVL_EVAL_RESAMPLES 2000
#define AVL_EVAL_LOGPROBS 20 /* of the best tokens; as many as a service tells */

/* A mean and the interval that holds it with 95 % confidence. */
typedef struct avl_eval_mean {
    size_t count; /* 0: the rest means nothing */
    double mean, low, high;
} avl_eval_mean_t;

/* A growing list of pairs: the mean is that of sum(value) / sum(weight). */
typedef struct avl_eval_samples {
    double *values, *weights;
    size_t count, value_capacity, weight_capacity;
    bool all_binary; /* every value 0 or 1, every weight 1 */
} avl_eval_samples_t;

/* A pair without weight says nothing and is left out. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_eval_sample(avl_eval_samples_t *samples, double value,
                                            double weight);
void avl_eval_samples_free(avl_eval_samples_t *samples);

/* Wilson's interval (E. B. Wilson, "Probable inference, the law of succession, and statistical
 * inference", 1927) when all samples are 0 or 1; else the percentile bootstrap with
 * AVL_EVAL_RESAMPLES resamples of whole samples, drawn from a fixed seed. `differences` says that
 * the samples are differences, which Wilson's interval is not for. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_eval_mean(const avl_eval_samples_t *samples, bool differences,
                                          avl_eval_mean_t *mean_p);

/* What is told of one step: the token's own log probability first, then the best ones in order. */
typedef struct avl_eval_step {
    int32_t count; /* 0: nothing was told */
    int32_t ids[1 + AVL_EVAL_LOGPROBS];
    float logprobs[1 + AVL_EVAL_LOGPROBS];
} avl_eval_step_t;

/* Kullback-Leibler divergence of two next-token distributions in nats, D(from || to), with all
 * tokens that are not told on both sides as one. Joining tokens never makes it larger (the data
 * processing inequality), so this is a lower bound; it is near the whole as far as `from`'s mass
 * lies on its best tokens. */
double avl_eval_divergence(const avl_eval_step_t *from, const avl_eval_step_t *to);

#endif
