/* worker/scheduler_end.c: how jobs leave: for good, or to wait again; what goes with them. */
#include "worker/scheduler_state.h"

#include <stdio.h>
#include <string.h>

static void add_totals(avl_scheduler_t *scheduler, const avl_job_t *job,
                       const avl_attention_report_t *report) {
    avl_request_totals_t *totals = &scheduler->totals;
    if (job->first_step_ns == 0)
        return;
    if (!job->forked) { /* the prompt counts once */
        totals->prompt_rows += job->rows_done;
        totals->prompt_rows_reused += job->reuse.prompt_rows;
        totals->visual_rows_seen += report->visual_rows_seen;
        totals->visual_rows_stored += report->visual_rows_stored;
    }
    totals->visual_rows_computed += report->visual_rows_computed;
    totals->decode_rows += report->decode_steps;
    totals->pages_evicted += report->kv_bytes_returned / avl_engine_page_bytes(scheduler->engine);
}

void avl_scheduler_send_finished(avl_scheduler_t *scheduler, const avl_job_t *job,
                                 avl_finish_reason_t reason, avl_status_t status,
                                 const char *detail) {
    /* An end in the middle of a replay does not take back what the client has. */
    int32_t replayed = job->tokens_known > 0 ? job->tokens_known : job->request->replay_count;
    avl_event_t event = {
        .kind = AVL_EVENT_FINISHED,
        .request_id = job->request->id,
        .choice = job->choice,
        .stage = job->stage,
        .finish_reason = reason,
        .status = status,
        .completion_tokens = job->tokens_done > replayed ? job->tokens_done : replayed,
        .attention = avl_job_attention(job, scheduler->engine),
        .reuse = job->reuse,
        .timings = avl_job_timings(job),
    };
    snprintf(event.detail, sizeof event.detail, "%s", detail);
    add_totals(scheduler, job, &event.attention);
    scheduler->sink.take(scheduler->sink.context, &event);
}

void avl_scheduler_give_features(avl_scheduler_t *scheduler, avl_job_t *job) {
    if (job->uses_features)
        avl_encoder_cache_give(scheduler->encoder_cache, job->places + job->first_image,
                               job->request->image_count - job->first_image);
    job->uses_features = false;
}

static void recall_forks(avl_scheduler_t *scheduler, avl_answers_t *answers);

void avl_scheduler_leave_active(avl_scheduler_t *scheduler, avl_job_t *job) {
    int32_t place = 0;
    while (scheduler->active[place] != job)
        place++;
    scheduler->active_count--;
    memmove(&scheduler->active[place], &scheduler->active[place + 1],
            (size_t)(scheduler->active_count - place) * sizeof *scheduler->active);
    scheduler->by_sequence[job->sequence] = NULL;
    avl_scheduler_give_features(scheduler, job);
    scheduler->pages_reserved -= job->pages_reserved;
    bool recall = false;
    if (job->answers != NULL)
        scheduler->pages_reserved -= avl_answers_leave(job, &recall);
    if (recall)
        recall_forks(scheduler, job->answers);
}

void avl_scheduler_queue_again(avl_scheduler_t *scheduler, avl_job_t *job) {
    job->sequence = -1;
    job->stage = AVL_STAGE_QUEUED;
    job->forks = job->forked = false;
    job->pages_reserved = 0;
    job->rows_done = job->tokens_done = 0;
    avl_job_queue_enter(&scheduler->queue, job);
}

/* The prompt that they were to begin with will not be read, or is gone. */
static void recall_forks(avl_scheduler_t *scheduler, avl_answers_t *answers) {
    for (int32_t i = 0; i < answers->request->choice_count; i++) {
        avl_job_t *job = answers->jobs[i];
        if (job == NULL || !job->forks)
            continue;
        avl_scheduler_leave_active(scheduler, job);
        avl_scheduler_queue_again(scheduler, job);
    }
}

bool avl_scheduler_make_room(avl_scheduler_t *scheduler, int64_t pages, int32_t kept_most,
                             uint64_t step) {
    int64_t total = avl_engine_pages(scheduler->engine).total;
    while (avl_prompt_cache_kept(scheduler->prompt_cache) > kept_most ||
           scheduler->pages_reserved + avl_prompt_cache_pages(scheduler->prompt_cache) + pages >
               total) {
        int32_t sequence = avl_prompt_cache_evict(scheduler->prompt_cache, step);
        if (sequence < 0)
            return false;
        scheduler->releases[scheduler->release_count++] = sequence;
    }
    return true;
}

void avl_scheduler_let_go(avl_scheduler_t *scheduler, const avl_job_t *job, bool keep) {
    if (job->forks) /* the ranks do not know of it yet */
        return;
    int32_t kept_max = avl_engine_options(scheduler->engine)->limits.kept_max;
    int64_t pages = avl_sequence_pages(&job->shape, job->layer_count, job->shape.text_rows);
    if (keep && avl_prompt_cache_has(scheduler->prompt_cache, job->sequence) &&
        avl_scheduler_make_room(scheduler, pages, kept_max - 1, AVL_STEP_NONE)) {
        avl_prompt_cache_keep(scheduler->prompt_cache, job->sequence, pages);
        scheduler->retirements[scheduler->retirement_count++] = job->sequence;
        return;
    }
    avl_prompt_cache_drop(scheduler->prompt_cache, job->sequence);
    scheduler->releases[scheduler->release_count++] = job->sequence;
}

void avl_scheduler_finish(avl_scheduler_t *scheduler, avl_job_t *job, avl_finish_reason_t reason,
                          avl_status_t status, const char *detail) {
    avl_scheduler_send_finished(scheduler, job, reason, status, detail);
    avl_scheduler_leave_active(scheduler, job);
    avl_scheduler_let_go(scheduler, job, true);
    avl_job_destroy(job);
}

void avl_scheduler_finish_queued(avl_scheduler_t *scheduler, avl_job_t *job,
                                 avl_finish_reason_t reason, avl_status_t status,
                                 const char *detail) {
    avl_job_queue_leave(&scheduler->queue, job);
    avl_scheduler_send_finished(scheduler, job, reason, status, detail);
    avl_job_destroy(job);
}

void avl_scheduler_send_progress(avl_scheduler_t *scheduler, const avl_job_t *job,
                                 avl_stage_t stage, int32_t done, int32_t total) {
    avl_event_t event = {
        .kind = AVL_EVENT_PROGRESS,
        .request_id = job->request->id,
        .choice = job->choice,
        .stage = stage,
        .done = done,
        .total = total,
    };
    scheduler->sink.take(scheduler->sink.context, &event);
}

void avl_scheduler_reserve(avl_scheduler_t *scheduler, avl_job_t *job, int64_t pages) {
    scheduler->pages_reserved += pages - job->pages_reserved;
    job->pages_reserved = pages;
}
