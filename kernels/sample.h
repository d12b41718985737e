/* kernels/sample.h: tokens drawn where the logits are, so that no row of logits travels.
 *
 * What a draw is, is said in worker/sampler.h, which does the same on the host. Both give the same
 * token for the same logits, to the last bit: weights are whole numbers (kernels/sample_weight.h),
 * so their sums do not depend on the order, and everything that is compared is one of those or a
 * logit. In this order:
 *
 *   adjustments  of single logits
 *   greedy       the largest, the lowest id on a tie (`scale` 0); or
 *   top-k        the `top_k` largest, the lower ids on a tie
 *   top-p        of those the fewest, in the same order, whose weights reach top_p of the sum of
 *                the weights of those: ceil(top_p * (double)sum)
 *   min-p        of those the ones whose weight is `least` or more
 *   the draw     of the rest, in the order of the ids, the first up to which the weights exceed
 *                floor(share * their sum / 2^64) */
#ifndef AVL_KERNELS_SAMPLE_H
#define AVL_KERNELS_SAMPLE_H

#include "kernels/device.h"

#define AVL_SAMPLE_TOPS_MAX 20

/* A logit above 0 is divided by `factor`, another multiplied; then `subtract` is taken off, of
 * which +infinity makes it -infinity whatever it was. In f32, rounded after each. */
typedef struct avl_sample_adjustment {
    int32_t token_id;
    float factor;   /* > 0 */
    float subtract; /* no NaN, more than -infinity */
} avl_sample_adjustment_t;

typedef struct avl_sample_item {
    float scale;       /* 1 / temperature; 0: greedy */
    float least;       /* 0 to 1 */
    double top_p;      /* more than 0; 1: off */
    int32_t top_k;     /* 0: off */
    int32_t forced_id; /* this token, whatever the logits; -1: a draw */
    uint64_t share;    /* of 2^64 */
    /* The logprobs of how many of the best tokens are wanted beside the token's own: 0 to
     * AVL_SAMPLE_TOPS_MAX; -1: none at all. */
    int32_t tops;
    int32_t adjustment_count;
    const avl_sample_adjustment_t *adjustments; /* HOST; no token twice; none with forced_id */
} avl_sample_item_t;

typedef enum avl_sample_outcome {
    AVL_SAMPLE_TOKEN = 1,
    AVL_SAMPLE_STRANGE = 2, /* a logit is NaN or +infinity: token_id, logit: the first, looked for
                               among the adjusted ones and then, with logprobs, among the others */
    AVL_SAMPLE_NOTHING = 3, /* all are -infinity; the token may be any */
} avl_sample_outcome_t;

typedef struct avl_sample_result {
    int32_t outcome; /* avl_sample_outcome_t */
    int32_t token_id;
    float logit; /* the token's, not adjusted */
    /* With logprobs: the largest of the logits that are not adjusted, and the sum of all their
     * weights of scale 1. The logprob of a logit is logit - best - log(sum / 2^40). */
    float best;
    uint64_t sum;
    /* [the lesser of tops and width] the largest, the lower id first on a tie */
    int32_t top_ids[AVL_SAMPLE_TOPS_MAX];
    float top_logits[AVL_SAMPLE_TOPS_MAX];
} avl_sample_result_t;

/* A token from each row. logits f32 [rows, width], rows stride apart: those that are adjusted are
 * overwritten; items HOST [rows]; results [rows], of which only what is named above is written.
 * width <= AVL_SAMPLE_WIDTH_MAX. No operation of the CPU device (NULL there): worker/sampler.h
 * draws on the host. */
typedef struct avl_sample_args {
    float *logits;
    int64_t stride;
    int64_t rows;
    int64_t width;
    const avl_sample_item_t *items;
    avl_sample_result_t *results;
} avl_sample_args_t;

#define AVL_SAMPLE_WIDTH_MAX (1 << 22) /* so that sums of weights stay below 2^63 */

static inline AVL_MUST_CHECK avl_status_t avl_sample(avl_device_t *device,
                                                     const avl_sample_args_t *args) {
    return device->ops->sample(device, args);
}

#endif
