#include "worker/scheduler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "worker/scheduler_state.h"

#define NEVER UINT64_MAX /* a step that there is not */

/* ---- the end of a request ---- */

static void add_totals(avl_scheduler_t *scheduler, const avl_job_t *job,
                       const avl_attention_report_t *report) {
    avl_request_totals_t *totals = &scheduler->totals;
    if (job->first_step_ns == 0)
        return;
    totals->prompt_rows += job->rows_done;
    totals->prompt_rows_reused += job->reuse.prompt_rows;
    totals->visual_rows_seen += report->visual_rows_seen;
    totals->visual_rows_stored += report->visual_rows_stored;
    totals->visual_rows_computed += report->visual_rows_computed;
    totals->decode_rows += report->decode_steps;
    totals->pages_evicted += report->kv_bytes_returned / avl_engine_page_bytes(scheduler->engine);
}

static void send_finished(avl_scheduler_t *scheduler, const avl_job_t *job,
                          avl_finish_reason_t reason, avl_status_t status, const char *detail) {
    /* An end in the middle of a replay does not take back what the client has. */
    int32_t replayed = job->tokens_known > 0 ? job->tokens_known : job->request->replay_count;
    avl_event_t event = {
        .kind = AVL_EVENT_FINISHED,
        .request_id = job->request->id,
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

static void give_features(avl_scheduler_t *scheduler, avl_job_t *job) {
    if (job->uses_features)
        avl_encoder_cache_give(scheduler->encoder_cache, job->places + job->first_image,
                               job->request->image_count - job->first_image);
    job->uses_features = false;
}

static void leave_active(avl_scheduler_t *scheduler, avl_job_t *job) {
    int32_t place = 0;
    while (scheduler->active[place] != job)
        place++;
    scheduler->active_count--;
    memmove(&scheduler->active[place], &scheduler->active[place + 1],
            (size_t)(scheduler->active_count - place) * sizeof *scheduler->active);
    scheduler->by_sequence[job->sequence] = NULL;
    give_features(scheduler, job);
    scheduler->pages_reserved -= job->pages_reserved;
}

/* Forgets kept prompts until there are `kept_most` and `pages` more can be reserved, but for those
 * that step `step` uses. False when that is not enough. */
static bool make_room(avl_scheduler_t *scheduler, int64_t pages, int32_t kept_most, uint64_t step) {
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

/* The sequence of a request that has left: its prompt is kept when there is room for it. */
static void let_go(avl_scheduler_t *scheduler, const avl_job_t *job, bool keep) {
    int32_t kept_max = avl_engine_options(scheduler->engine)->limits.kept_max;
    int64_t pages = avl_sequence_pages(&job->shape, job->layer_count, job->shape.text_rows);
    if (keep && avl_prompt_cache_has(scheduler->prompt_cache, job->sequence) &&
        make_room(scheduler, pages, kept_max - 1, NEVER)) {
        avl_prompt_cache_keep(scheduler->prompt_cache, job->sequence, pages);
        scheduler->retirements[scheduler->retirement_count++] = job->sequence;
        return;
    }
    avl_prompt_cache_drop(scheduler->prompt_cache, job->sequence);
    scheduler->releases[scheduler->release_count++] = job->sequence;
}

/* Ends an active request: the final event goes out, the sequence goes with the next plan. */
static void finish(avl_scheduler_t *scheduler, avl_job_t *job, avl_finish_reason_t reason,
                   avl_status_t status, const char *detail) {
    send_finished(scheduler, job, reason, status, detail);
    leave_active(scheduler, job);
    let_go(scheduler, job, true);
    avl_job_destroy(job);
}

static void finish_queued(avl_scheduler_t *scheduler, avl_job_t *job, avl_finish_reason_t reason,
                          avl_status_t status, const char *detail) {
    avl_job_queue_leave(&scheduler->queue, job);
    send_finished(scheduler, job, reason, status, detail);
    avl_job_destroy(job);
}

static void send_progress(avl_scheduler_t *scheduler, const avl_job_t *job, avl_stage_t stage,
                          int32_t done, int32_t total) {
    avl_event_t event = {
        .kind = AVL_EVENT_PROGRESS,
        .request_id = job->request->id,
        .stage = stage,
        .done = done,
        .total = total,
    };
    scheduler->sink.take(scheduler->sink.context, &event);
}

/* ---- submit ---- */

static avl_status_t check_capacity(const avl_scheduler_t *scheduler, const avl_job_t *job) {
    int64_t pages = avl_engine_pages(scheduler->engine).total;
    int64_t needed = job->price.prefill_pages > job->price.decode_pages ? job->price.prefill_pages
                                                                        : job->price.decode_pages;
    if (needed > pages)
        return avl_fail(AVL_ERR_EXHAUSTED,
                        "the request needs up to %lld pages of %d rows (prompt of %d rows, %d of "
                        "them visual, %d new tokens); the pool has %lld",
                        (long long)needed, AVL_PAGE_ROWS, job->shape.prompt_rows,
                        job->shape.visual_rows, job->tokens_max, (long long)pages);
    if (scheduler->draining)
        return avl_fail(AVL_ERR_UNAVAILABLE, "the worker is draining");
    if (scheduler->queue.count >= scheduler->queue_max)
        return avl_fail(AVL_ERR_EXHAUSTED, "the worker's queue of %d requests is full",
                        scheduler->queue_max);
    if (avl_clock_now_ns() >= job->request->deadline_ns)
        return avl_fail(AVL_ERR_DEADLINE, "the deadline had passed before the request was queued");
    return AVL_OK;
}

void avl_scheduler_submit(avl_scheduler_t *scheduler, avl_request_t *request) {
    const avl_engine_options_t *options = avl_engine_options(scheduler->engine);
    avl_job_t *job = NULL;
    avl_status_t status = avl_job_create(request, options->config, &options->limits, &job);
    if (status == AVL_OK)
        status = check_capacity(scheduler, job);
    if (status != AVL_OK) {
        const avl_job_t refused = {.request = request, .sequence = -1};
        send_finished(scheduler, job != NULL ? job : &refused, AVL_FINISH_ERROR, status,
                      avl_status_detail());
        if (job != NULL)
            avl_job_destroy(job);
        else
            avl_request_destroy(request);
        return;
    }
    if (job->tokens_known >= job->tokens_max) {
        /* Everything was already sent when the group was lost; only the end was not. */
        send_finished(scheduler, job, AVL_FINISH_LENGTH, AVL_OK, "");
        avl_job_destroy(job);
        return;
    }
    avl_job_queue_enter(&scheduler->queue, job);
}

void avl_scheduler_cancel(avl_scheduler_t *scheduler, uint64_t request_id) {
    for (int32_t i = 0; i < scheduler->active_count; i++) {
        if (scheduler->active[i]->request->id == request_id) {
            finish(scheduler, scheduler->active[i], AVL_FINISH_CANCELLED, AVL_ERR_CANCELLED,
                   "cancelled");
            return;
        }
    }
    for (avl_job_t *job = scheduler->queue.first; job != NULL; job = job->next) {
        if (job->request->id == request_id) {
            finish_queued(scheduler, job, AVL_FINISH_CANCELLED, AVL_ERR_CANCELLED,
                          "cancelled while queued");
            return;
        }
    }
}

void avl_scheduler_drain(avl_scheduler_t *scheduler) {
    scheduler->draining = true;
}

bool avl_scheduler_is_idle(const avl_scheduler_t *scheduler) {
    return scheduler->queue.count == 0 && scheduler->active_count == 0 &&
           scheduler->release_count + scheduler->retirement_count == 0;
}

/* ---- deadlines ---- */

static void end_late_requests(avl_scheduler_t *scheduler, int64_t now_ns) {
    for (int32_t i = scheduler->active_count; i-- > 0;) {
        if (now_ns >= scheduler->active[i]->request->deadline_ns)
            finish(scheduler, scheduler->active[i], AVL_FINISH_ERROR, AVL_ERR_DEADLINE,
                   "the deadline passed while the request was running");
    }
    if (now_ns < scheduler->queue.deadline_ns)
        return;
    scheduler->queue.deadline_ns = AVL_DEADLINE_NONE;
    for (avl_job_t *job = scheduler->queue.first; job != NULL;) {
        avl_job_t *next = job->next;
        if (now_ns >= job->request->deadline_ns)
            finish_queued(scheduler, job, AVL_FINISH_ERROR, AVL_ERR_DEADLINE,
                          "the deadline passed while the request was queued");
        else if (job->request->deadline_ns < scheduler->queue.deadline_ns)
            scheduler->queue.deadline_ns = job->request->deadline_ns;
        job = next;
    }
}

/* ---- pages ---- */

static void reserve(avl_scheduler_t *scheduler, avl_job_t *job, int64_t pages) {
    scheduler->pages_reserved += pages - job->pages_reserved;
    job->pages_reserved = pages;
}

/* Whether the pages for another request are there. */
static bool has_pages_for(const avl_scheduler_t *scheduler, const avl_job_t *job, int64_t pages) {
    int64_t growth = avl_job_growth(job, pages);
    for (int32_t i = 0; i < scheduler->active_count; i++)
        growth += avl_job_growth(scheduler->active[i], scheduler->active[i]->pages_reserved);
    if (scheduler->active_count == 0)
        growth = 0; /* alone it has everything */
    int64_t left = avl_engine_pages(scheduler->engine).total - scheduler->pages_reserved - pages;
    return (double)left >= scheduler->growth_share * (double)growth;
}

/* Takes the job's pages away; it starts again when its turn comes. */
static void preempt(avl_scheduler_t *scheduler, avl_job_t *job) {
    const avl_log_field_t field = AVL_LOG_INTEGER("request", job->request->id);
    avl_log_with(AVL_LOG_DEBUG, &field, 1, "request gives way after %d of %d tokens",
                 job->tokens_done, job->tokens_max);
    scheduler->preemptions++;
    scheduler->rows_recomputed += job->rows_done + job->tokens_done;
    leave_active(scheduler, job);
    let_go(scheduler, job, false);
    if (job->tokens_done > job->tokens_known)
        job->tokens_known = job->tokens_done;
    job->sequence = -1;
    job->stage = AVL_STAGE_QUEUED;
    job->pages_reserved = 0;
    job->rows_done = job->tokens_done = 0;
    avl_job_queue_enter(&scheduler->queue, job);
}

static avl_job_t *due_last(const avl_scheduler_t *scheduler) {
    avl_job_t *last = scheduler->active[0];
    for (int32_t i = 1; i < scheduler->active_count; i++) {
        if (avl_job_goes_before(last, scheduler->active[i]))
            last = scheduler->active[i];
    }
    return last;
}

/* Gives every decoding sequence the pages of its next row; where there are none, others give way,
 * or itself. */
static void grow_decodes(avl_scheduler_t *scheduler) {
    int64_t total = avl_engine_pages(scheduler->engine).total;
    for (int32_t i = 0; i < scheduler->active_count;) {
        avl_job_t *job = scheduler->active[i];
        int64_t pages =
            job->stage == AVL_STAGE_DECODE ? avl_job_pages_to_decode(job) : job->pages_reserved;
        if (pages <= job->pages_reserved) {
            i++;
        } else if (scheduler->pages_reserved + pages - job->pages_reserved <= total) {
            reserve(scheduler, job, pages);
            bool room = make_room(scheduler, 0, INT32_MAX, NEVER);
            AVL_ASSERT(room);
            i++;
        } else {
            preempt(scheduler, due_last(scheduler));
            i = 0; /* the list has moved; who has got pages is passed over */
        }
    }
}

/* ---- plan ---- */

static int32_t free_sequence(const avl_scheduler_t *scheduler) {
    const avl_engine_t *engine = scheduler->engine;
    if (scheduler->active_count == avl_engine_options(engine)->limits.sequences_max)
        return -1;
    for (int32_t i = 0; i < avl_engine_plan_limits(engine)->indices_max; i++) {
        if (scheduler->by_sequence[i] == NULL &&
            !avl_prompt_cache_is_kept(scheduler->prompt_cache, i))
            return i;
    }
    return -1;
}

static bool reads_whole(const avl_scheduler_t *scheduler, const avl_job_t *job) {
    return job->shape.prompt_rows <= avl_engine_options(scheduler->engine)->limits.batch_rows;
}

/* Whether the job can begin with these rows, and then with how many pages. */
static bool fits(avl_scheduler_t *scheduler, avl_job_t *job, const avl_prompt_match_t *match,
                 int64_t *pages_p) {
    const avl_sequence_shape_t *shape = &job->shape;
    uint64_t step = scheduler->step + 1;
    bool spared = match->sequence < 0 ||
                  avl_prompt_cache_is_used(scheduler->prompt_cache, match->sequence, step);
    /* Pictures in rows that are taken over are full-size in all layers from the start. */
    job->whole = reads_whole(scheduler, job) &&
                 (match->rows <= shape->system_rows || match->logits != NULL ||
                  shape->store_rows == shape->visual_rows);
    *pages_p = avl_job_pages_to_begin(job);
    if (!spared)
        avl_prompt_cache_use(scheduler->prompt_cache, match->sequence, step);
    if (has_pages_for(scheduler, job, *pages_p) && make_room(scheduler, *pages_p, INT32_MAX, step))
        return true;
    if (!spared)
        avl_prompt_cache_use(scheduler->prompt_cache, match->sequence, NEVER);
    return false;
}

/* Places for the pictures of the rows that are not taken over. */
static bool take_features(avl_scheduler_t *scheduler, avl_job_t *job,
                          const avl_prompt_match_t *match, int32_t *hits_p) {
    const avl_request_t *request = job->request;
    int32_t first = 0;
    for (; first < request->image_count; first++) {
        const avl_request_image_t *image = &request->images[first];
        if (image->first_row + image->layout.prompt_rows > match->rows)
            break;
        job->places[first] = (avl_plan_place_t){.rows = image->layout.prompt_rows};
    }
    job->first_image = first;
    job->uses_features =
        avl_encoder_cache_take(scheduler->encoder_cache, request->images + first,
                               request->image_count - first, job->places + first, hits_p);
    *hits_p += first;
    return job->uses_features;
}

static void begin_job(avl_scheduler_t *scheduler, avl_job_t *job, int32_t sequence,
                      const avl_prompt_match_t *match) {
    avl_job_queue_leave(&scheduler->queue, job);
    job->sequence = sequence;
    job->stage = AVL_STAGE_ENCODE;
    job->rows_done = match->rows;
    job->first_logits = match->logits;
    scheduler->active[scheduler->active_count++] = job;
    scheduler->by_sequence[sequence] = job;
    scheduler->plan.admissions[scheduler->plan.admission_count++] = (avl_plan_admission_t){
        .request_id = job->request->id,
        .sequence = sequence,
        .prompt_rows = job->shape.prompt_rows,
        .rows_max = job->shape.rows_max,
        .place_count = job->request->image_count,
        .source = match->sequence,
        .source_rows = match->rows,
        .places = job->places,
        .attention = job->request->attention,
        .token_ids = job->request->token_ids,
    };
}

/* Admits the head of the queue when everything it needs is free. */
static avl_job_t *admit_next(avl_scheduler_t *scheduler, int64_t now_ns) {
    avl_job_t *job = scheduler->queue.first;
    if (job == NULL)
        return NULL;
    int32_t sequence = free_sequence(scheduler), hits = 0;
    size_t bytes = avl_plan_admission_bytes(job->shape.prompt_rows, job->request->image_count);
    if (sequence < 0 ||
        scheduler->plan_bytes + bytes > avl_engine_plan_limits(scheduler->engine)->bytes_max)
        return NULL;
    /* Nothing that is shared makes it need less. */
    job->whole = reads_whole(scheduler, job);
    if (!has_pages_for(scheduler, job, avl_job_pages_to_begin(job)))
        return NULL;
    const avl_prompt_match_t nothing = {.sequence = -1};
    avl_prompt_match_t match = avl_prompt_cache_find(scheduler->prompt_cache, job);
    int64_t pages;
    bool admitted = fits(scheduler, job, &match, &pages);
    if (!admitted && match.sequence >= 0) {
        match = nothing;
        admitted = fits(scheduler, job, &match, &pages);
    }
    if (!admitted || !take_features(scheduler, job, &match, &hits))
        return NULL;
    if (job->first_step_ns == 0) { /* not when it had to give way and comes again */
        job->first_step_ns = now_ns;
        job->reuse = (avl_reuse_report_t){.pictures = hits, .prompt_rows = match.rows};
        avl_prompt_cache_count(scheduler->prompt_cache, match.rows > 0);
    }
    reserve(scheduler, job, pages);
    scheduler->plan_bytes += bytes;
    begin_job(scheduler, job, sequence, &match);
    return job;
}

/* Adds those of the job's pictures that are not encoded yet, while they fit. Returns whether all
 * are encoded when this step's are. */
static bool plan_pictures(avl_scheduler_t *scheduler, avl_job_t *job) {
    avl_plan_t *plan = &scheduler->plan;
    const avl_plan_limits_t *limits = avl_engine_plan_limits(scheduler->engine);
    for (int32_t i = job->first_image; i < job->request->image_count; i++) {
        const avl_request_image_t *image = &job->request->images[i];
        int32_t feature_row = job->places[i].feature_row;
        if (avl_encoder_cache_is_ready(scheduler->encoder_cache, feature_row))
            continue;
        size_t bytes = avl_plan_picture_bytes(image->pixel_bytes);
        if (plan->picture_count == limits->pictures_max ||
            scheduler->plan_bytes + bytes > limits->bytes_max)
            return false;
        plan->pictures[plan->picture_count++] = (avl_plan_picture_t){
            .sequence = job->sequence,
            .feature_row = feature_row,
            .layout = image->layout,
            .pixels = image->pixels,
            .pixel_bytes = image->pixel_bytes,
        };
        avl_encoder_cache_set_ready(scheduler->encoder_cache, feature_row, true);
        scheduler->plan_bytes += bytes;
    }
    return true;
}

static void add_run(avl_scheduler_t *scheduler, avl_job_t *job, int32_t prompt_rows,
                    int32_t token_id) {
    avl_plan_t *plan = &scheduler->plan;
    bool ends = job->rows_done + prompt_rows == job->shape.prompt_rows;
    job->planned = true;
    job->plan_rows = prompt_rows;
    /* The token after this run is known already while there are tokens to replay. */
    job->plan_logits = ends && job->tokens_done >= job->tokens_known;
    plan->runs[plan->run_count++] = (avl_plan_run_t){
        .sequence = job->sequence,
        .row_count = prompt_rows,
        .token_id = token_id,
        .logits = job->plan_logits,
    };
}

static void plan_decodes(avl_scheduler_t *scheduler) {
    for (int32_t i = 0; i < scheduler->active_count; i++) {
        avl_job_t *job = scheduler->active[i];
        if (job->stage == AVL_STAGE_DECODE)
            add_run(scheduler, job, 0, job->token_ids[job->tokens_done - 1]);
    }
}

/* Plans the job's pictures and prompt rows. Returns false when the step has no room for younger
 * requests. */
static bool plan_prompt(avl_scheduler_t *scheduler, avl_job_t *job, int32_t *rows_left_p) {
    int32_t rows = job->shape.prompt_rows - job->rows_done;
    if (!plan_pictures(scheduler, job))
        return false;
    if (rows > *rows_left_p) {
        if (job->whole || *rows_left_p == 0)
            return false;
        rows = *rows_left_p;
    }
    add_run(scheduler, job, rows, -1);
    *rows_left_p -= rows;
    return *rows_left_p > 0;
}

static void plan_prefill(avl_scheduler_t *scheduler, int64_t now_ns) {
    int32_t rows_left = avl_engine_options(scheduler->engine)->limits.batch_rows;
    bool room = true;
    for (int32_t i = 0; i < scheduler->active_count && room; i++) {
        if (scheduler->active[i]->stage != AVL_STAGE_DECODE)
            room = plan_prompt(scheduler, scheduler->active[i], &rows_left);
    }
    while (room) {
        avl_job_t *job = admit_next(scheduler, now_ns);
        room =
            job != NULL && (job->first_logits != NULL || plan_prompt(scheduler, job, &rows_left));
    }
}

/* Sequences that end before this step's work: also those of kept prompts that had to make room. */
static void plan_ends(avl_scheduler_t *scheduler) {
    avl_plan_t *plan = &scheduler->plan;
    for (int32_t i = 0; i < scheduler->release_count; i++)
        plan->releases[plan->release_count++] = scheduler->releases[i];
    for (int32_t i = 0; i < scheduler->retirement_count; i++)
        plan->retirements[plan->retirement_count++] = scheduler->retirements[i];
    scheduler->release_count = scheduler->retirement_count = 0;
}

const avl_plan_t *avl_scheduler_plan(avl_scheduler_t *scheduler) {
    avl_plan_t *plan = &scheduler->plan;
    int64_t now_ns = avl_clock_now_ns();
    const avl_plan_limits_t *limits = avl_engine_plan_limits(scheduler->engine);
    end_late_requests(scheduler, now_ns);
    grow_decodes(scheduler);
    avl_plan_begin(plan, AVL_PLAN_STEP, scheduler->step + 1);
    /* What the counts alone may add is set aside, so that only prompts and pixels are measured
     * below. */
    scheduler->plan_bytes =
        avl_plan_frame_bytes(limits->sequences_max, limits->indices_max, limits->pictures_max);
    for (int32_t i = 0; i < scheduler->active_count; i++)
        scheduler->active[i]->planned = false;
    plan_decodes(scheduler);
    plan_prefill(scheduler, now_ns);
    plan_ends(scheduler);
    if (!avl_plan_is_empty(plan))
        scheduler->step++;
    AVL_ASSERT(avl_plan_bytes(plan) <= limits->bytes_max);
    return plan;
}

/* ---- complete ---- */

static void undo_admissions(avl_scheduler_t *scheduler, const avl_step_result_t *result) {
    for (int32_t i = 0; i < scheduler->plan.picture_count; i++)
        avl_encoder_cache_set_ready(scheduler->encoder_cache,
                                    scheduler->plan.pictures[i].feature_row, false);
    for (int32_t i = 0; i < scheduler->plan.admission_count; i++) {
        avl_job_t *job = scheduler->by_sequence[scheduler->plan.admissions[i].sequence];
        send_finished(scheduler, job, AVL_FINISH_ERROR, AVL_ERR_EXHAUSTED,
                      result->admission_detail);
        leave_active(scheduler, job);
        avl_job_destroy(job);
    }
}

static int32_t count_ready(const avl_scheduler_t *scheduler, const avl_job_t *job) {
    int32_t count = job->first_image;
    for (int32_t i = count; i < job->request->image_count; i++)
        count += avl_encoder_cache_is_ready(scheduler->encoder_cache, job->places[i].feature_row);
    return count;
}

static void complete_pictures(avl_scheduler_t *scheduler, const avl_step_result_t *result) {
    for (int32_t i = 0; i < scheduler->plan.picture_count; i++) {
        avl_job_t *job = scheduler->by_sequence[scheduler->plan.pictures[i].sequence];
        job->encode_ns += result->encode_ns[i];
        bool last = i + 1 == scheduler->plan.picture_count ||
                    scheduler->plan.pictures[i + 1].sequence != job->sequence;
        if (last)
            send_progress(scheduler, job, AVL_STAGE_ENCODE, count_ready(scheduler, job),
                          job->request->image_count);
    }
}

/* Draws the job's next token, or takes the forced one, and tells it. */
static avl_status_t draw_token(avl_scheduler_t *scheduler, avl_job_t *job, const float *logits) {
    const avl_request_t *request = job->request;
    const avl_engine_options_t *options = avl_engine_options(scheduler->engine);
    int32_t banned[AVL_EOS_IDS_MAX + AVL_STOP_IDS_MAX];
    avl_sampler_history_t history = {
        .prompt_ids = request->token_ids,
        .prompt_rows = request->row_count,
        .token_ids = job->token_ids,
        .token_count = job->tokens_done,
        .banned_ids = banned,
        .banned_count = avl_job_banned(job, &options->config->generation, banned),
    };
    avl_sampler_token_t token;
    if (request->forced_count > 0)
        AVL_TRY(avl_sampler_force(scheduler->sampler, logits, &request->sampling,
                                  job->token_ids[job->tokens_done], &token));
    else
        AVL_TRY(avl_sampler_draw(scheduler->sampler, logits, &request->sampling, &history, &token));
    job->token_ids[job->tokens_done] = token.token_id;
    avl_event_t event = {
        .kind = AVL_EVENT_TOKEN,
        .request_id = request->id,
        .stage = AVL_STAGE_DECODE,
        .token_id = token.token_id,
        .logprob_count = token.logprob_count,
        .logprobs = token.logprobs,
    };
    scheduler->sink.take(scheduler->sink.context, &event);
    return AVL_OK;
}

/* Takes the job's next token, from the replay or from the logits. */
static void take_token(avl_scheduler_t *scheduler, avl_job_t *job, const float *logits,
                       int64_t now_ns) {
    if (logits != NULL) {
        avl_status_t status = draw_token(scheduler, job, logits);
        if (status != AVL_OK) {
            const avl_log_field_t field = AVL_LOG_INTEGER("request", job->request->id);
            avl_log_with(AVL_LOG_ERROR, &field, 1, "no token: %s", avl_status_detail());
            finish(scheduler, job, AVL_FINISH_ERROR, status, avl_status_detail());
            return;
        }
    }
    if (job->first_token_ns == 0)
        job->first_token_ns = now_ns;
    job->last_token_ns = now_ns;
    int32_t token_id = job->token_ids[job->tokens_done++];
    if (avl_job_ends(job, &avl_engine_options(scheduler->engine)->config->generation, token_id))
        finish(scheduler, job, AVL_FINISH_STOP, AVL_OK, "");
    else if (job->tokens_done >= job->tokens_max)
        finish(scheduler, job, AVL_FINISH_LENGTH, AVL_OK, "");
}

/* The prompt is in the cache: what only reading it needed is free again. */
static void begin_decoding(avl_scheduler_t *scheduler, avl_job_t *job) {
    job->stage = AVL_STAGE_DECODE;
    give_features(scheduler, job);
    reserve(scheduler, job, avl_job_pages_to_decode(job));
}

static void complete_run(avl_scheduler_t *scheduler, avl_job_t *job, const float *logits,
                         int64_t now_ns) {
    if (job->stage != AVL_STAGE_DECODE) {
        job->stage = AVL_STAGE_PREFILL;
        job->rows_done += job->plan_rows;
        send_progress(scheduler, job, AVL_STAGE_PREFILL, job->rows_done, job->shape.prompt_rows);
        if (job->rows_done < job->shape.prompt_rows)
            return;
        if (logits != NULL)
            avl_prompt_cache_add(scheduler->prompt_cache, job, logits);
        begin_decoding(scheduler, job);
    }
    take_token(scheduler, job, logits, now_ns);
}

/* Prompts that were taken over whole: their first token needs no computing. */
static void complete_shared(avl_scheduler_t *scheduler, int64_t now_ns) {
    const avl_plan_t *plan = &scheduler->plan;
    for (int32_t i = 0; i < plan->admission_count; i++) {
        avl_job_t *job = scheduler->by_sequence[plan->admissions[i].sequence];
        const float *logits = job->first_logits;
        if (logits == NULL)
            continue;
        job->first_logits = NULL;
        send_progress(scheduler, job, AVL_STAGE_PREFILL, job->rows_done, job->shape.prompt_rows);
        begin_decoding(scheduler, job);
        take_token(scheduler, job, job->tokens_known > 0 ? NULL : logits, now_ns);
    }
}

void avl_scheduler_complete(avl_scheduler_t *scheduler, const avl_step_result_t *result) {
    if (result->admission != AVL_OK) {
        undo_admissions(scheduler, result);
        return;
    }
    const avl_plan_t *plan = &scheduler->plan;
    int32_t vocab_rows = avl_engine_options(scheduler->engine)->config->model.text.vocab_rows;
    const float *logits = result->logits;
    int64_t now_ns = avl_clock_now_ns();
    complete_shared(scheduler, now_ns);
    complete_pictures(scheduler, result);
    for (int32_t i = 0; i < plan->run_count; i++) {
        bool wanted = plan->runs[i].logits;
        complete_run(scheduler, scheduler->by_sequence[plan->runs[i].sequence],
                     wanted ? logits : NULL, now_ns);
        logits += wanted ? vocab_rows : 0;
    }
}
