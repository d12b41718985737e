/* worker/scheduler_state.c: how a scheduler begins and ends, and its counts. */
#include "worker/scheduler_state.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/memory.h"

avl_status_t avl_scheduler_create(avl_engine_t *engine, int32_t queue_max,
                                  const avl_event_sink_t *sink, avl_scheduler_t **scheduler_p) {
    const avl_engine_options_t *options = avl_engine_options(engine);
    size_t sequences = (size_t)options->limits.sequences_max;
    avl_scheduler_t *scheduler;
    AVL_TRY(avl_alloc(1, sizeof *scheduler, "scheduler", &scheduler));
    scheduler->engine = engine;
    scheduler->sink = *sink;
    scheduler->queue_max = queue_max;
    scheduler->queue.deadline_ns = AVL_DEADLINE_NONE;
    scheduler->growth_share = AVL_GROWTH_SHARE;
    scheduler->adjustments_max = avl_scheduler_adjustments_max(engine);
    const avl_plan_limits_t *limits = avl_engine_plan_limits(engine);
    size_t indices = (size_t)limits->indices_max;
    const struct {
        size_t count, item_bytes;
        void *memory_p;
    } arrays[] = {
        {sequences, sizeof *scheduler->active, &scheduler->active},
        {indices, sizeof *scheduler->by_sequence, &scheduler->by_sequence},
        {indices, sizeof *scheduler->releases, &scheduler->releases},
        {sequences, sizeof *scheduler->retirements, &scheduler->retirements},
        {sequences, sizeof *scheduler->draws, &scheduler->draws},
        {(size_t)scheduler->adjustments_max, sizeof *scheduler->adjustments,
         &scheduler->adjustments},
    };
    avl_status_t status;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        AVL_TRY_GOTO(
            status,
            avl_alloc(arrays[i].count, arrays[i].item_bytes, "scheduler", arrays[i].memory_p),
            err_destroy);
    AVL_TRY_GOTO(status, avl_plan_create(avl_engine_plan_limits(engine), &scheduler->plan),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 avl_sampler_create(options->config->model.text.vocab_rows, &scheduler->sampler),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 avl_encoder_cache_create(avl_engine_feature_rows(engine),
                                          avl_engine_feature_row_bytes(engine),
                                          &scheduler->encoder_cache),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 avl_prompt_cache_create(options->config, limits->indices_max,
                                         options->limits.kept_max, &scheduler->prompt_cache),
                 err_destroy);
    *scheduler_p = scheduler;
    return AVL_OK;
err_destroy:
    avl_scheduler_destroy(scheduler);
    return status;
}

void avl_scheduler_set_growth_share(avl_scheduler_t *scheduler, double share) {
    scheduler->growth_share = share;
}

void avl_scheduler_destroy(avl_scheduler_t *scheduler) {
    if (scheduler == NULL)
        return;
    for (int32_t i = 0; i < scheduler->active_count; i++)
        avl_job_destroy(scheduler->active[i]);
    while (scheduler->queue.first != NULL) {
        avl_job_t *job = scheduler->queue.first;
        avl_job_queue_leave(&scheduler->queue, job);
        avl_job_destroy(job);
    }
    avl_sampler_destroy(scheduler->sampler);
    avl_plan_destroy(&scheduler->plan);
    free(scheduler->active);
    free(scheduler->by_sequence);
    avl_encoder_cache_destroy(scheduler->encoder_cache);
    avl_prompt_cache_destroy(scheduler->prompt_cache);
    free(scheduler->retirements);
    free(scheduler->draws);
    free(scheduler->adjustments);
    free(scheduler->releases);
    free(scheduler);
}

avl_scheduler_counts_t avl_scheduler_counts(const avl_scheduler_t *scheduler) {
    int64_t page_bytes = avl_engine_page_bytes(scheduler->engine);
    avl_cache_counts_t prompt = avl_prompt_cache_counts(scheduler->prompt_cache);
    prompt.bytes = avl_prompt_cache_pages(scheduler->prompt_cache) * page_bytes;
    prompt.bytes_max = avl_engine_pages(scheduler->engine).total * page_bytes;
    return (avl_scheduler_counts_t){
        .queued = scheduler->queue.count,
        .active = scheduler->active_count,
        .pages_reserved = scheduler->pages_reserved,
        .pages_kept = avl_prompt_cache_pages(scheduler->prompt_cache),
        .steps = (int64_t)scheduler->step,
        .encoder_cache = avl_encoder_cache_counts(scheduler->encoder_cache),
        .prompt_cache = prompt,
        .totals = scheduler->totals,
        .preemptions = scheduler->preemptions,
        .rows_recomputed = scheduler->rows_recomputed,
    };
}
