#include "worker/scheduler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "worker/scheduler_state.h"

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
    if (scheduler->queue.count + job->request->choice_count > scheduler->queue_max ||
        scheduler->queue.count == scheduler->queue_max)
        return avl_fail(AVL_ERR_EXHAUSTED, "the worker's queue of %d requests is full",
                        scheduler->queue_max);
    if (avl_clock_now_ns() >= job->request->deadline_ns)
        return avl_fail(AVL_ERR_DEADLINE, "the deadline had passed before the request was queued");
    return AVL_OK;
}

/* Before there is a job. */
static void refuse(avl_scheduler_t *scheduler, avl_request_t *request, avl_status_t status) {
    avl_job_t refused = {.request = request, .sequence = -1};
    char detail[AVL_STATUS_DETAIL_BYTES];
    snprintf(detail, sizeof detail, "%s", avl_status_detail());
    for (int32_t i = 0; i < request->choice_count; i++) {
        refused.choice = request->choices[i].index;
        refused.tokens_known = request->choices[i].replay_count;
        avl_scheduler_send_finished(scheduler, &refused, AVL_FINISH_ERROR, status, detail);
    }
    if (request->choice_count <= 0)
        avl_scheduler_send_finished(scheduler, &refused, AVL_FINISH_ERROR, status, detail);
    avl_request_destroy(request);
}

/* What of the parameters depends on a step's size. */
static avl_status_t check_filter(const avl_request_t *request, const avl_engine_limits_t *limits) {
    double keep = request->attention.prefill_keep_ratio;
    if (keep > 0 && keep < 1 && request->image_count > 0 && request->row_count > limits->batch_rows)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "the prompt has %d rows; with a prefill filter (prefill_keep_ratio %g) it "
                        "is read in one step, of %d rows at most",
                        request->row_count, keep, limits->batch_rows);
    return AVL_OK;
}

static void submit_job(avl_scheduler_t *scheduler, avl_job_t *job, avl_status_t status) {
    if (status != AVL_OK) {
        avl_scheduler_send_finished(scheduler, job, AVL_FINISH_ERROR, status, avl_status_detail());
        avl_job_destroy(job);
    } else if (job->tokens_known >= job->tokens_max) {
        /* Everything was already sent when the group was lost; only the end was not. */
        avl_scheduler_send_finished(scheduler, job, AVL_FINISH_LENGTH, AVL_OK, "");
        avl_job_destroy(job);
    } else {
        avl_job_queue_enter(&scheduler->queue, job);
    }
}

void avl_scheduler_submit(avl_scheduler_t *scheduler, avl_request_t *request) {
    const avl_engine_options_t *options = avl_engine_options(scheduler->engine);
    const avl_engine_limits_t *limits = &options->limits;
    avl_job_t *job = NULL;
    avl_answers_t *answers = NULL;
    avl_status_t status = avl_request_check(request, options->config, limits->context_rows);
    if (status == AVL_OK)
        status = check_filter(request, limits);
    if (status == AVL_OK && request->choice_count > 0)
        status = avl_answers_create(request, options->config, limits, &answers);
    else if (status == AVL_OK)
        status = avl_job_create(request, NULL, options->config, limits, &job);
    if (status != AVL_OK) {
        refuse(scheduler, request, status);
        return;
    }
    status = check_capacity(scheduler, answers != NULL ? answers->jobs[0] : job);
    if (job != NULL)
        submit_job(scheduler, job, status);
    int32_t count = answers != NULL ? request->choice_count : 0; /* it may go with the last job */
    for (int32_t i = 0; i < count; i++)
        submit_job(scheduler, answers->jobs[i], status);
}

static bool is_meant(const avl_job_t *job, uint64_t request_id, int32_t choice) {
    return job->request->id == request_id && (choice < 0 || choice == job->choice);
}

/* One that is meant; false when there is none. */
static bool cancel_one(avl_scheduler_t *scheduler, uint64_t request_id, int32_t choice) {
    for (int32_t i = 0; i < scheduler->active_count; i++) {
        if (is_meant(scheduler->active[i], request_id, choice)) {
            avl_scheduler_finish(scheduler, scheduler->active[i], AVL_FINISH_CANCELLED,
                                 AVL_ERR_CANCELLED, "cancelled");
            return true;
        }
    }
    for (avl_job_t *job = scheduler->queue.first; job != NULL; job = job->next) {
        if (is_meant(job, request_id, choice)) {
            avl_scheduler_finish_queued(scheduler, job, AVL_FINISH_CANCELLED, AVL_ERR_CANCELLED,
                                        "cancelled while queued");
            return true;
        }
    }
    return false;
}

void avl_scheduler_cancel(avl_scheduler_t *scheduler, uint64_t request_id, int32_t choice) {
    while (cancel_one(scheduler, request_id, choice)) {
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
    for (int32_t i = 0; i < scheduler->active_count;) {
        if (now_ns < scheduler->active[i]->request->deadline_ns) {
            i++;
            continue;
        }
        avl_scheduler_finish(scheduler, scheduler->active[i], AVL_FINISH_ERROR, AVL_ERR_DEADLINE,
                             "the deadline passed while the request was running");
        i = 0; /* others may have left with it */
    }
    if (now_ns < scheduler->queue.deadline_ns)
        return;
    scheduler->queue.deadline_ns = AVL_DEADLINE_NONE;
    for (avl_job_t *job = scheduler->queue.first; job != NULL;) {
        avl_job_t *next = job->next;
        if (now_ns >= job->request->deadline_ns)
            avl_scheduler_finish_queued(scheduler, job, AVL_FINISH_ERROR, AVL_ERR_DEADLINE,
                                        "the deadline passed while the request was queued");
        else if (job->request->deadline_ns < scheduler->queue.deadline_ns)
            scheduler->queue.deadline_ns = job->request->deadline_ns;
        job = next;
    }
}

/* ---- pages ---- */

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
    avl_scheduler_leave_active(scheduler, job);
    avl_scheduler_let_go(scheduler, job, false);
    if (job->tokens_done > job->tokens_known)
        job->tokens_known = job->tokens_done;
    avl_scheduler_queue_again(scheduler, job);
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
            avl_scheduler_reserve(scheduler, job, pages);
            bool room = avl_scheduler_make_room(scheduler, 0, INT32_MAX, AVL_STEP_NONE);
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
                  shape->held_rows == shape->visual_rows);
    *pages_p = avl_job_pages_to_begin(job);
    if (!spared)
        avl_prompt_cache_use(scheduler->prompt_cache, match->sequence, step);
    if (has_pages_for(scheduler, job, *pages_p) &&
        avl_scheduler_make_room(scheduler, *pages_p, INT32_MAX, step))
        return true;
    if (!spared)
        avl_prompt_cache_use(scheduler->prompt_cache, match->sequence, AVL_STEP_NONE);
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

static void make_active(avl_scheduler_t *scheduler, avl_job_t *job, int32_t sequence) {
    avl_job_queue_leave(&scheduler->queue, job);
    job->sequence = sequence;
    scheduler->active[scheduler->active_count++] = job;
    scheduler->by_sequence[sequence] = job;
}

static void begin_job(avl_scheduler_t *scheduler, avl_job_t *job, const avl_prompt_match_t *match) {
    job->stage = AVL_STAGE_ENCODE;
    job->rows_done = match->rows;
    job->first_logits = match->logits;
    scheduler->plan_bytes +=
        avl_plan_admission_bytes(job->shape.prompt_rows, job->request->image_count);
    scheduler->plan.admissions[scheduler->plan.admission_count++] = (avl_plan_admission_t){
        .request_id = job->request->id,
        .sequence = job->sequence,
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

static bool plan_holds(const avl_scheduler_t *scheduler, const avl_job_t *job) {
    size_t bytes = avl_plan_admission_bytes(job->shape.prompt_rows, job->request->image_count);
    return scheduler->plan_bytes + bytes <= avl_engine_plan_limits(scheduler->engine)->bytes_max;
}

/* ---- several answers to one prompt (worker/answers.h) ---- */

/* The job begins with the prompt that another one has read. */
static void begin_fork(avl_scheduler_t *scheduler, avl_job_t *job) {
    int32_t hits = 0;
    avl_prompt_match_t match = avl_answers_match(job);
    bool taken = take_features(scheduler, job, &match, &hits);
    AVL_ASSERT(taken); /* none are needed */
    avl_answers_share(job);
    job->forked = true;
    begin_job(scheduler, job, &match);
}

/* Gives a waiting job an index and the pages of its answer alone. */
static bool take_place(avl_scheduler_t *scheduler, avl_job_t *job) {
    int32_t sequence = free_sequence(scheduler);
    if (sequence < 0)
        return false;
    job->pages_shared = avl_job_prompt_pages(job);
    int64_t pages = avl_job_pages_to_begin(job);
    if (!has_pages_for(scheduler, job, pages) ||
        !avl_scheduler_make_room(scheduler, pages, INT32_MAX, scheduler->step + 1)) {
        job->pages_shared = 0;
        return false;
    }
    avl_scheduler_reserve(scheduler, job, pages);
    make_active(scheduler, job, sequence);
    job->forks = true;
    return true;
}

/* The job reads the prompt for all: the others take places, in order, as far as there are any. */
static void begin_reading(avl_scheduler_t *scheduler, avl_job_t *job) {
    avl_answers_t *answers = job->answers;
    answers->reader = job;
    for (int32_t i = 0; i < answers->request->choice_count; i++) {
        avl_job_t *other = answers->jobs[i];
        if (other != NULL && other->sequence < 0 && !take_place(scheduler, other))
            break;
    }
}

static void plan_forks(avl_scheduler_t *scheduler) {
    for (int32_t i = 0; i < scheduler->active_count; i++) {
        avl_job_t *job = scheduler->active[i];
        if (job->forks && job->answers->source >= 0 && plan_holds(scheduler, job))
            begin_fork(scheduler, job);
    }
}

static void prompt_is_read(avl_scheduler_t *scheduler, avl_job_t *job, const float *logits) {
    int32_t vocab_rows = avl_engine_options(scheduler->engine)->config->model.text.vocab_rows;
    if (job->answers != NULL)
        job->pages_reserved -= avl_answers_read(job->answers, job, logits, vocab_rows);
}

/* ---- admission ---- */

/* Admits the first in the queue, but for those that wait for another one's reading, when everything
 * it needs is free. */
static avl_job_t *admit_next(avl_scheduler_t *scheduler, int64_t now_ns) {
    avl_job_t *job = scheduler->queue.first;
    while (job != NULL && avl_answers_being_read(job))
        job = job->next;
    if (job == NULL || !plan_holds(scheduler, job))
        return NULL;
    if (job->answers != NULL && job->answers->source >= 0) {
        if (!take_place(scheduler, job))
            return NULL;
        begin_fork(scheduler, job);
        return job;
    }
    int32_t sequence = free_sequence(scheduler), hits = 0;
    /* Nothing that is shared makes it need less. */
    job->whole = reads_whole(scheduler, job);
    if (sequence < 0 || !has_pages_for(scheduler, job, avl_job_pages_to_begin(job)))
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
    avl_scheduler_reserve(scheduler, job, pages);
    make_active(scheduler, job, sequence);
    begin_job(scheduler, job, &match);
    if (avl_answers_can_share(job))
        begin_reading(scheduler, job);
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
    /* The token after this run is known already while there are tokens to replay; other answers to
     * the prompt may have none. */
    bool reads = job->answers != NULL && job->answers->reader == job && job->answers->living > 1;
    avl_plan_wish_t wish = AVL_PLAN_NOTHING;
    if (ends && (job->tokens_done >= job->tokens_known || reads))
        /* A prompt's logits are kept with it, for requests that go on otherwise. */
        wish = prompt_rows == 0 ? avl_scheduler_wish(scheduler, job) : AVL_PLAN_LOGITS;
    plan->runs[plan->run_count++] = (avl_plan_run_t){
        .sequence = job->sequence,
        .row_count = prompt_rows,
        .token_id = token_id,
        .logits = wish,
    };
}

static void plan_decodes(avl_scheduler_t *scheduler) {
    avl_scheduler_begin_draws(scheduler);
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
        avl_job_t *job = scheduler->active[i];
        if (job->stage != AVL_STAGE_DECODE && !job->forks && job->first_logits == NULL)
            room = plan_prompt(scheduler, job, &rows_left);
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
    plan->draws = scheduler->draws;
    /* What the counts alone may add is set aside, so that only prompts and pixels are measured
     * below. */
    scheduler->plan_bytes =
        avl_plan_frame_bytes(limits->sequences_max, limits->indices_max, limits->pictures_max);
    for (int32_t i = 0; i < scheduler->active_count; i++)
        scheduler->active[i]->planned = false;
    plan_decodes(scheduler);
    plan_forks(scheduler);
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
        avl_scheduler_send_finished(scheduler, job, AVL_FINISH_ERROR, AVL_ERR_EXHAUSTED,
                                    result->admission_detail);
        avl_scheduler_leave_active(scheduler, job);
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
            avl_scheduler_send_progress(scheduler, job, AVL_STAGE_ENCODE,
                                        count_ready(scheduler, job), job->request->image_count);
    }
}

/* Takes the job's next token, from the replay when there is no outcome. */
static void take_token(avl_scheduler_t *scheduler, avl_job_t *job, avl_outcome_t outcome,
                       int64_t now_ns) {
    if (outcome.logits != NULL || outcome.best != NULL || outcome.drawn != NULL) {
        avl_status_t status = avl_scheduler_draw(scheduler, job, &outcome);
        if (status != AVL_OK) {
            const avl_log_field_t field = AVL_LOG_INTEGER("request", job->request->id);
            avl_log_with(AVL_LOG_ERROR, &field, 1, "no token: %s", avl_status_detail());
            avl_scheduler_finish(scheduler, job, AVL_FINISH_ERROR, status, avl_status_detail());
            return;
        }
    }
    if (job->first_token_ns == 0)
        job->first_token_ns = now_ns;
    job->last_token_ns = now_ns;
    int32_t token_id = job->token_ids[job->tokens_done++];
    if (avl_job_ends(job, &avl_engine_options(scheduler->engine)->config->generation, token_id))
        avl_scheduler_finish(scheduler, job, AVL_FINISH_STOP, AVL_OK, "");
    else if (job->tokens_done >= job->tokens_max)
        avl_scheduler_finish(scheduler, job, AVL_FINISH_LENGTH, AVL_OK, "");
}

/* The prompt is in the cache: what only reading it needed is free again. */
static void begin_decoding(avl_scheduler_t *scheduler, avl_job_t *job) {
    job->stage = AVL_STAGE_DECODE;
    avl_scheduler_give_features(scheduler, job);
    avl_scheduler_reserve(scheduler, job, avl_job_pages_to_decode(job));
}

static void complete_run(avl_scheduler_t *scheduler, avl_job_t *job, avl_outcome_t outcome,
                         int64_t now_ns) {
    if (job->stage != AVL_STAGE_DECODE) {
        job->stage = AVL_STAGE_PREFILL;
        job->rows_done += job->plan_rows;
        avl_scheduler_send_progress(scheduler, job, AVL_STAGE_PREFILL, job->rows_done,
                                    job->shape.prompt_rows);
        if (job->rows_done < job->shape.prompt_rows)
            return;
        if (outcome.logits != NULL) {
            avl_prompt_cache_add(scheduler->prompt_cache, job, outcome.logits);
            prompt_is_read(scheduler, job, outcome.logits);
        }
        begin_decoding(scheduler, job);
    }
    if (job->tokens_done < job->tokens_known)
        outcome = (avl_outcome_t){.logits = NULL};
    take_token(scheduler, job, outcome, now_ns);
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
        if (!job->forked)
            avl_scheduler_send_progress(scheduler, job, AVL_STAGE_PREFILL, job->rows_done,
                                        job->shape.prompt_rows);
        prompt_is_read(scheduler, job, logits);
        begin_decoding(scheduler, job);
        take_token(scheduler, job, (avl_outcome_t){.logits = job->tokens_known > 0 ? NULL : logits},
                   now_ns);
    }
}

static avl_step_work_t work_of(const avl_plan_t *plan, const avl_step_result_t *result) {
    avl_step_work_t work = {.steps = 1};
    for (int32_t i = 0; i < plan->picture_count; i++) {
        work.tiles += plan->pictures[i].layout.tile_count;
        work.encode_ns += result->encode_ns[i];
    }
    for (int32_t i = 0; i < plan->run_count; i++) {
        work.decode_rows += plan->runs[i].row_count == 0;
        work.prompt_rows += plan->runs[i].row_count;
    }
    return work;
}

avl_step_work_t avl_scheduler_work(const avl_scheduler_t *scheduler) {
    return scheduler->work;
}

void avl_scheduler_complete(avl_scheduler_t *scheduler, const avl_step_result_t *result) {
    scheduler->work = (avl_step_work_t){.steps = 1};
    if (result->admission != AVL_OK) {
        undo_admissions(scheduler, result);
        return;
    }
    const avl_plan_t *plan = &scheduler->plan;
    int32_t vocab_rows = avl_engine_options(scheduler->engine)->config->model.text.vocab_rows;
    const float *logits = result->logits;
    const avl_best_token_t *best = result->best;
    const avl_sample_result_t *drawn = result->drawn;
    int64_t now_ns = avl_clock_now_ns();
    scheduler->work = work_of(plan, result);
    complete_shared(scheduler, now_ns);
    complete_pictures(scheduler, result);
    for (int32_t i = 0; i < plan->run_count; i++) {
        avl_outcome_t outcome = {.logits = NULL};
        if (plan->runs[i].logits == AVL_PLAN_LOGITS) {
            outcome.logits = logits;
            logits += vocab_rows;
        } else if (plan->runs[i].logits == AVL_PLAN_BEST) {
            outcome.best = best++;
        } else if (plan->runs[i].logits == AVL_PLAN_DRAW) {
            outcome.drawn = drawn++;
        }
        complete_run(scheduler, scheduler->by_sequence[plan->runs[i].sequence], outcome, now_ns);
    }
}
