#include "coordinator/estimate.h"

#include <math.h>

#define ANSWERS_REMEMBERED 32
#define DEVIATIONS 2.5 /* mean distances: two standard deviations of a normal distribution */

/* An exact mean at first, one with exponential decay later. */
static void observe(avl_mean_t *mean, double value) {
    mean->count++;
    double weight =
        1.0 / (double)(mean->count < ANSWERS_REMEMBERED ? mean->count : ANSWERS_REMEMBERED);
    double distance = fabs(value - mean->value);
    mean->value += weight * (value - mean->value);
    if (mean->count > 1)
        mean->deviation += weight * (distance - mean->deviation);
}

static double most(const avl_mean_t *mean) {
    return mean->value + DEVIATIONS * mean->deviation;
}

void avl_estimate_answer(avl_estimate_t *estimate, const avl_demand_t *demand, int64_t rows_reused,
                         int32_t tokens) {
    /* One that was cut would have been longer: it tells only that answers get as long as that. */
    avl_mean_t *mean = &estimate->answer_tokens;
    bool cut = tokens >= demand->tokens_max;
    if (!demand->all_tokens && (!cut || (mean->count > 0 && tokens > mean->value)))
        observe(mean, tokens);
    observe(&estimate->all_tokens, tokens);
    observe(&estimate->rows, demand->rows);
    observe(&estimate->tiles, demand->tiles);
    if (demand->rows > 0 && rows_reused >= 0 && rows_reused <= demand->rows)
        observe(&estimate->fresh_rows, 1 - (double)rows_reused / demand->rows);
}

bool avl_estimate_is_known(const avl_estimate_t *estimate) {
    return estimate->all_tokens.count >= AVL_ESTIMATE_ANSWERS;
}

static int32_t bounded(double tokens, int32_t tokens_max) {
    if (tokens >= tokens_max)
        return tokens_max;
    return tokens < 1 ? 1 : (int32_t)ceil(tokens);
}

int32_t avl_estimate_tokens(const avl_estimate_t *estimate, const avl_demand_t *demand) {
    if (demand->all_tokens)
        return demand->tokens_max;
    bool known = estimate->answer_tokens.count >= AVL_ESTIMATE_ANSWERS;
    return bounded(known ? estimate->answer_tokens.value : AVL_ESTIMATE_TOKENS, demand->tokens_max);
}

int32_t avl_estimate_tokens_most(const avl_estimate_t *estimate, const avl_demand_t *demand) {
    if (demand->all_tokens)
        return demand->tokens_max;
    /* A bound is no length: until answers have ended by themselves those that were cut must do. */
    const avl_mean_t *mean = estimate->answer_tokens.count >= AVL_ESTIMATE_ANSWERS
                                 ? &estimate->answer_tokens
                                 : &estimate->all_tokens;
    return bounded(mean->count > 0 ? most(mean) : AVL_ESTIMATE_TOKENS, demand->tokens_max);
}

int32_t avl_estimate_rows_most(const avl_estimate_t *estimate, const avl_demand_t *demand) {
    double share =
        estimate->fresh_rows.count >= AVL_ESTIMATE_ANSWERS ? most(&estimate->fresh_rows) : 1;
    return (int32_t)ceil((share < 1 ? share : 1) * demand->rows);
}

avl_demand_t avl_estimate_demand(const avl_estimate_t *estimate) {
    return (avl_demand_t){.tiles = (int32_t)estimate->tiles.value,
                          .rows = (int32_t)estimate->rows.value,
                          .tokens_max = INT32_MAX,
                          .answers = 1};
}
