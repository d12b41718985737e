/* worker/scheduler_state.h: what the scheduler (worker/scheduler.h) is made of. Included by
 * scheduler*.c alone. */
#ifndef AVL_WORKER_SCHEDULER_STATE_H
#define AVL_WORKER_SCHEDULER_STATE_H

#include "worker/answers.h"
#include "worker/job.h"
#include "worker/prompt_cache.h"
#include "worker/sampler.h"
#include "worker/scheduler.h"

struct avl_scheduler {
    avl_engine_t *engine;
    avl_event_sink_t sink;
    avl_sampler_t *sampler;
    /* What the next plan asks the device to draw (worker/scheduler_draw.c): */
    avl_sample_item_t *draws;             /* [sequences_max] */
    avl_sample_adjustment_t *adjustments; /* [adjustments_max] of theirs */
    int32_t draw_count, adjustment_count, adjustments_max;
    bool draws_all; /* the best tokens too */
    avl_job_queue_t queue;
    int32_t queue_max;
    double growth_share;
    avl_job_t **active; /* [sequences_max] in order of admission */
    int32_t active_count;
    avl_job_t **by_sequence; /* [indices_max] */
    avl_encoder_cache_t *encoder_cache;
    avl_prompt_cache_t *prompt_cache;
    int64_t pages_reserved;
    int64_t preemptions, rows_recomputed;
    avl_request_totals_t totals;
    bool draining;
    uint64_t step;
    avl_step_work_t work; /* of the last step */
    avl_plan_t plan;
    size_t plan_bytes;
    /* For the next plan: */
    int32_t *releases;    /* [indices_max] */
    int32_t *retirements; /* [sequences_max] prompts that are kept */
    int32_t release_count, retirement_count;
};

#define AVL_STEP_NONE UINT64_MAX /* a step that there is not */

/* worker/scheduler_draw.c */

/* What a run's last row brought: one of them, or nothing. */
typedef struct avl_outcome {
    const float *logits;
    const avl_best_token_t *best;
    const avl_sample_result_t *drawn;
} avl_outcome_t;

/* Adjustments of logits that one step can carry. */
int32_t avl_scheduler_adjustments_max(const avl_engine_t *engine);
/* A plan begins: nothing is to be drawn yet. */
void avl_scheduler_begin_draws(avl_scheduler_t *scheduler);
/* What the job's next decode row asks for; a draw is listed. */
avl_plan_wish_t avl_scheduler_wish(avl_scheduler_t *scheduler, avl_job_t *job);
/* Draws the job's next token, or takes the one that was drawn or is forced, and tells it. Errors:
 * as avl_sampler_draw. */
AVL_MUST_CHECK avl_status_t avl_scheduler_draw(avl_scheduler_t *scheduler, avl_job_t *job,
                                               const avl_outcome_t *outcome);

/* worker/scheduler_end.c */

void avl_scheduler_send_progress(avl_scheduler_t *scheduler, const avl_job_t *job,
                                 avl_stage_t stage, int32_t done, int32_t total);
/* The last event of the job. */
void avl_scheduler_send_finished(avl_scheduler_t *scheduler, const avl_job_t *job,
                                 avl_finish_reason_t reason, avl_status_t status,
                                 const char *detail);
/* The job holds so many pages. */
void avl_scheduler_reserve(avl_scheduler_t *scheduler, avl_job_t *job, int64_t pages);
/* Forgets kept prompts until there are `kept_most` and `pages` more can be reserved, but for those
 * that step `step` uses. False when that is not enough. */
bool avl_scheduler_make_room(avl_scheduler_t *scheduler, int64_t pages, int32_t kept_most,
                             uint64_t step);
/* Ends the use of its pictures' features. */
void avl_scheduler_give_features(avl_scheduler_t *scheduler, avl_job_t *job);
/* Takes an active job out of the books; its sequence lives on. */
void avl_scheduler_leave_active(avl_scheduler_t *scheduler, avl_job_t *job);
/* The sequence of a job that has left: its prompt is kept when there is room for it. */
void avl_scheduler_let_go(avl_scheduler_t *scheduler, const avl_job_t *job, bool keep);
/* A job that has left waits again, as if it had never been active. */
void avl_scheduler_queue_again(avl_scheduler_t *scheduler, avl_job_t *job);
/* Ends an active job: the final event goes out, the sequence goes with the next plan. */
void avl_scheduler_finish(avl_scheduler_t *scheduler, avl_job_t *job, avl_finish_reason_t reason,
                          avl_status_t status, const char *detail);
void avl_scheduler_finish_queued(avl_scheduler_t *scheduler, avl_job_t *job,
                                 avl_finish_reason_t reason, avl_status_t status,
                                 const char *detail);

#endif
