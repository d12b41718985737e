/* worker/scheduler_draw.c: the next tokens of decoding requests: what a step brings to draw them,
 * and the draw. On a device that draws, no logits travel but those of prompts, which are kept. */
#include "worker/scheduler_state.h"

/* Of penalties and bans: 3 MB, more than 64 sequences of 4,000 tokens need. Sequences beyond it
 * have their logits sent. */
#define ADJUSTMENTS_MAX (1 << 18)

int32_t avl_scheduler_adjustments_max(const avl_engine_t *engine) {
    const avl_engine_limits_t *limits = &avl_engine_options(engine)->limits;
    int64_t most = (int64_t)limits->sequences_max *
                   (limits->context_rows + AVL_EOS_IDS_MAX + AVL_STOP_IDS_MAX);
    if (!avl_engine_draws(engine))
        return 0;
    return most < ADJUSTMENTS_MAX ? (int32_t)most : ADJUSTMENTS_MAX;
}

/* What stands before the job's next token. `banned` has room for all. */
static avl_sampler_history_t history_of(const avl_scheduler_t *scheduler, const avl_job_t *job,
                                        int32_t *banned) {
    const avl_config_t *config = avl_engine_options(scheduler->engine)->config;
    return (avl_sampler_history_t){
        .prompt_ids = job->request->token_ids,
        .prompt_rows = job->request->row_count,
        .token_ids = job->token_ids,
        .token_count = job->tokens_done,
        .banned_ids = banned,
        .banned_count = avl_job_banned(job, &config->generation, banned),
    };
}

/* Whether the job's next token needs no more than the best of the logits. */
static bool wants_best(const avl_scheduler_t *scheduler, const avl_job_t *job) {
    const avl_config_t *config = avl_engine_options(scheduler->engine)->config;
    int32_t banned[AVL_EOS_IDS_MAX + AVL_STOP_IDS_MAX];
    return job->request->forced_count == 0 &&
           avl_sampler_wants_best(&job->sampling, avl_job_banned(job, &config->generation, banned));
}

void avl_scheduler_begin_draws(avl_scheduler_t *scheduler) {
    scheduler->draw_count = scheduler->adjustment_count = 0;
    scheduler->draws_all = false;
    if (!avl_engine_draws(scheduler->engine))
        return;
    /* One small thing to wait for instead of two. */
    for (int32_t i = 0; i < scheduler->active_count && !scheduler->draws_all; i++) {
        const avl_job_t *job = scheduler->active[i];
        scheduler->draws_all = job->stage == AVL_STAGE_DECODE &&
                               job->tokens_done >= job->tokens_known && !wants_best(scheduler, job);
    }
}

avl_plan_wish_t avl_scheduler_wish(avl_scheduler_t *scheduler, avl_job_t *job) {
    if (!scheduler->draws_all)
        return avl_engine_finds_best(scheduler->engine) && wants_best(scheduler, job)
                   ? AVL_PLAN_BEST
                   : AVL_PLAN_LOGITS;
    int32_t banned[AVL_EOS_IDS_MAX + AVL_STOP_IDS_MAX];
    avl_sampler_history_t history = history_of(scheduler, job, banned);
    int32_t forced_id = job->request->forced_count > 0 ? job->token_ids[job->tokens_done] : -1;
    int32_t most = avl_sampler_adjustments_most(scheduler->sampler, &job->sampling, &history);
    if (most > scheduler->adjustments_max - scheduler->adjustment_count)
        return AVL_PLAN_LOGITS;
    avl_sample_item_t item =
        avl_sampler_item(scheduler->sampler, &job->sampling, &history, forced_id,
                         scheduler->adjustments + scheduler->adjustment_count);
    scheduler->adjustment_count += item.adjustment_count;
    scheduler->draws[scheduler->draw_count++] = item;
    return AVL_PLAN_DRAW;
}

/* The token alone. */
static avl_status_t find_token(avl_scheduler_t *scheduler, const avl_job_t *job,
                               const avl_outcome_t *outcome, avl_sampler_token_t *token_p) {
    avl_sampler_t *sampler = scheduler->sampler;
    int32_t banned[AVL_EOS_IDS_MAX + AVL_STOP_IDS_MAX];
    avl_sampler_history_t history = history_of(scheduler, job, banned);
    if (outcome->best != NULL)
        return avl_sampler_take_best(sampler, outcome->best->token_id, outcome->best->logit,
                                     token_p);
    if (outcome->drawn != NULL)
        return avl_sampler_take(sampler, &job->sampling, outcome->drawn, token_p);
    if (job->request->forced_count > 0)
        return avl_sampler_force(sampler, outcome->logits, &job->sampling,
                                 job->token_ids[job->tokens_done], token_p);
    return avl_sampler_draw(sampler, outcome->logits, &job->sampling, &history, token_p);
}

avl_status_t avl_scheduler_draw(avl_scheduler_t *scheduler, avl_job_t *job,
                                const avl_outcome_t *outcome) {
    avl_sampler_token_t token;
    AVL_TRY(find_token(scheduler, job, outcome, &token));
    job->token_ids[job->tokens_done] = token.token_id;
    avl_event_t event = {
        .kind = AVL_EVENT_TOKEN,
        .request_id = job->request->id,
        .choice = job->choice,
        .stage = AVL_STAGE_DECODE,
        .token_id = token.token_id,
        .logprob_count = token.logprob_count,
        .logprobs = token.logprobs,
    };
    scheduler->sink.take(scheduler->sink.context, &event);
    return AVL_OK;
}
