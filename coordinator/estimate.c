#include "coordinator/estimate.h"

#define TOKENS_REMEMBERED 256 /* many per second: a few seconds of them */
#define ANSWERS_REMEMBERED 16

/* An exact mean at first, one with exponential decay later. */
static void observe(avl_mean_t *mean, double value, int64_t remembered) {
    mean->count++;
    mean->value +=
        (value - mean->value) / (double)(mean->count < remembered ? mean->count : remembered);
}

void avl_estimate_token(avl_estimate_t *estimate, int64_t interval_ns) {
    if (interval_ns >= 0)
        observe(&estimate->token_ns, (double)interval_ns, TOKENS_REMEMBERED);
}

void avl_estimate_answer(avl_estimate_t *estimate, const avl_demand_t *demand, int64_t encode_ns,
                         int64_t prefill_ns, int32_t tokens, int64_t work_ns) {
    if (demand->tiles > 0 && encode_ns >= 0)
        observe(&estimate->tile_ns, (double)encode_ns / demand->tiles, ANSWERS_REMEMBERED);
    if (demand->rows > 0 && prefill_ns >= 0)
        observe(&estimate->row_ns, (double)prefill_ns / demand->rows, ANSWERS_REMEMBERED);
    if (!demand->all_tokens && tokens < demand->tokens_max)
        observe(&estimate->answer_tokens, tokens, ANSWERS_REMEMBERED);
    if (work_ns >= 0)
        observe(&estimate->work_ns, (double)work_ns, ANSWERS_REMEMBERED);
}

int32_t avl_estimate_tokens(const avl_estimate_t *estimate, const avl_demand_t *demand) {
    double mean = estimate->answer_tokens.value;
    if (!demand->all_tokens && estimate->answer_tokens.count < AVL_ESTIMATE_ANSWERS)
        mean = AVL_ESTIMATE_TOKENS;
    if (demand->all_tokens || mean >= demand->tokens_max)
        return demand->tokens_max;
    return (int32_t)mean < 1 ? 1 : (int32_t)mean;
}

int64_t avl_estimate_work_ns(const avl_estimate_t *estimate, const avl_demand_t *demand) {
    if (estimate->work_ns.count < AVL_ESTIMATE_ANSWERS)
        return 0;
    double tokens = avl_estimate_tokens(estimate, demand);
    /* A bound is no length: how long answers get that end by themselves is not known yet. */
    if (!demand->all_tokens && estimate->answer_tokens.count < AVL_ESTIMATE_ANSWERS &&
        tokens * estimate->token_ns.value > estimate->work_ns.value)
        return avl_estimate_mean_work_ns(estimate);
    double work_ns = demand->tiles * estimate->tile_ns.value +
                     demand->rows * estimate->row_ns.value + tokens * estimate->token_ns.value;
    return work_ns < 9e18 ? (int64_t)work_ns + 1 : INT64_MAX;
}

int64_t avl_estimate_mean_work_ns(const avl_estimate_t *estimate) {
    if (estimate->work_ns.count < AVL_ESTIMATE_ANSWERS)
        return 0;
    return (int64_t)estimate->work_ns.value + 1;
}

int64_t avl_estimate_wait_ns(const avl_backlog_t *backlog) {
    if (backlog->parallel < 1)
        return 0; /* no group is ready: when one will be is not known */
    size_t parallel = (size_t)backlog->parallel;
    if (backlog->running + backlog->ahead < parallel)
        return 0;
    double work_ns = (double)backlog->running_left_ns + (double)backlog->ahead_ns;
    return (int64_t)(work_ns / (double)parallel);
}
