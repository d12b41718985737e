/* worker/scheduler_state.h: what the scheduler (worker/scheduler.h) is made of. Included by
 * scheduler*.c alone. */
#ifndef AVL_WORKER_SCHEDULER_STATE_H
#define AVL_WORKER_SCHEDULER_STATE_H

#include "worker/job.h"
#include "worker/prompt_cache.h"
#include "worker/sampler.h"
#include "worker/scheduler.h"

struct avl_scheduler {
    avl_engine_t *engine;
    avl_event_sink_t sink;
    avl_sampler_t *sampler;
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
    avl_plan_t plan;
    size_t plan_bytes;
    /* For the next plan: */
    int32_t *releases;    /* [indices_max] */
    int32_t *retirements; /* [sequences_max] prompts that are kept */
    int32_t release_count, retirement_count;
};

#endif
