#include "worker/job.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "worker/answers.h"
#include "worker/scheduler.h"
#include "worker/text_store.h"

int64_t avl_scheduler_due_ns(const avl_request_t *request) {
    int64_t due_ns = request->arrival_ns + AVL_PATIENCE_NS;
    if (request->deadline_ns < due_ns)
        due_ns = request->deadline_ns;
    return due_ns - request->priority * AVL_PATIENCE_NS;
}

static avl_status_t fill(avl_job_t *job, const avl_request_choice_t *choice,
                         const avl_config_t *config, const avl_engine_limits_t *limits) {
    const avl_request_t *request = job->request;
    const int32_t *replay_ids = choice != NULL ? choice->replay_ids : request->replay_ids;
    int32_t replay_count = choice != NULL ? choice->replay_count : request->replay_count;
    job->choice = choice != NULL ? choice->index : 0;
    job->sampling = request->sampling;
    if (choice != NULL)
        job->sampling.seed = choice->seed;
    int32_t room = limits->context_rows - request->row_count;
    job->sequence = -1;
    job->due_ns = avl_scheduler_due_ns(request);
    job->layer_count = config->model.text.layer_count;
    job->tokens_max = request->max_tokens < room ? request->max_tokens : room;
    if (request->forced_count > 0)
        job->tokens_max = request->forced_count;
    /* The last token drawn is never an input, so it needs no row. */
    job->shape = avl_sequence_shape(request->token_ids, request->row_count,
                                    request->row_count + job->tokens_max - 1, &request->attention);
    job->whole = request->row_count <= limits->batch_rows;
    job->price = avl_sequence_price(&job->shape, job->layer_count, job->whole);
    AVL_TRY(avl_alloc((size_t)job->tokens_max, sizeof *job->token_ids, "tokens of a request",
                      &job->token_ids));
    AVL_TRY(avl_alloc((size_t)request->image_count, sizeof *job->places, "pictures of a request",
                      &job->places));
    if (request->forced_count > 0)
        memcpy(job->token_ids, request->forced_ids,
               (size_t)request->forced_count * sizeof *job->token_ids);
    job->tokens_known = replay_count < job->tokens_max ? replay_count : job->tokens_max;
    if (job->tokens_known > 0)
        memcpy(job->token_ids, replay_ids, (size_t)job->tokens_known * sizeof *job->token_ids);
    return AVL_OK;
}

avl_status_t avl_job_create(avl_request_t *request, const avl_request_choice_t *choice,
                            const avl_config_t *config, const avl_engine_limits_t *limits,
                            avl_job_t **job_p) {
    avl_job_t *job;
    AVL_TRY(avl_alloc(1, sizeof *job, "request", &job));
    job->request = request;
    avl_status_t status = fill(job, choice, config, limits);
    if (status != AVL_OK) {
        free(job->token_ids);
        free(job->places);
        free(job);
        return status;
    }
    *job_p = job;
    return AVL_OK;
}

void avl_job_destroy(avl_job_t *job) {
    if (job->answers != NULL)
        avl_answers_remove(job->answers, job);
    else
        avl_request_destroy(job->request);
    free(job->token_ids);
    free(job->places);
    free(job);
}

bool avl_job_goes_before(const avl_job_t *a, const avl_job_t *b) {
    if (a->due_ns != b->due_ns)
        return a->due_ns < b->due_ns;
    if (a->request->arrival_ns != b->request->arrival_ns)
        return a->request->arrival_ns < b->request->arrival_ns;
    return a->request->id != b->request->id ? a->request->id < b->request->id
                                            : a->choice < b->choice;
}

void avl_job_queue_enter(avl_job_queue_t *queue, avl_job_t *job) {
    avl_job_t *previous = queue->last; /* most come in order */
    while (previous != NULL && avl_job_goes_before(job, previous))
        previous = previous->previous;
    job->previous = previous;
    job->next = previous != NULL ? previous->next : queue->first;
    *(previous != NULL ? &previous->next : &queue->first) = job;
    *(job->next != NULL ? &job->next->previous : &queue->last) = job;
    queue->count++;
    if (job->request->deadline_ns < queue->deadline_ns)
        queue->deadline_ns = job->request->deadline_ns;
}

void avl_job_queue_leave(avl_job_queue_t *queue, avl_job_t *job) {
    *(job->previous != NULL ? &job->previous->next : &queue->first) = job->next;
    *(job->next != NULL ? &job->next->previous : &queue->last) = job->previous;
    job->next = job->previous = NULL;
    queue->count--;
}

static int64_t pages_with(const avl_job_t *job, int32_t tokens) {
    return avl_sequence_pages(&job->shape, job->layer_count, job->shape.text_rows + tokens) -
           job->pages_shared;
}

int64_t avl_job_prompt_pages(const avl_job_t *job) {
    /* The page that the answer begins in is everyone's own. */
    int64_t begun = job->shape.text_rows % AVL_PAGE_ROWS != 0 ? job->layer_count : 0;
    return avl_sequence_pages(&job->shape, job->layer_count, job->shape.text_rows) - begun;
}

int64_t avl_job_pages_to_begin(const avl_job_t *job) {
    avl_sequence_shape_t prompt = job->shape;
    prompt.rows_max = prompt.prompt_rows;
    int64_t read = avl_sequence_price(&prompt, job->layer_count, job->whole).prefill_pages;
    int64_t known = pages_with(job, job->tokens_known);
    if (job->pages_shared > 0)
        return known;
    return read > known ? read : known;
}

int64_t avl_job_pages_to_decode(const avl_job_t *job) {
    return pages_with(job,
                      job->tokens_done > job->tokens_known ? job->tokens_done : job->tokens_known);
}

int64_t avl_job_growth(const avl_job_t *job, int64_t pages) {
    int64_t most = job->price.decode_pages - job->pages_shared;
    return most > pages ? most - pages : 0;
}

avl_attention_report_t avl_job_attention(const avl_job_t *job, const avl_engine_t *engine) {
    avl_attention_report_t report = {.visual_rows_seen = job->shape.visual_rows,
                                     .visual_rows_stored = job->shape.store_rows};
    if (job->shape.filter_layers > 0 && !job->shape.selects) {
        /* The filter alone: the mean over layers. */
        int64_t rows = 0;
        for (int i = 0; i < job->layer_count; i++)
            rows += avl_sequence_held_rows(&job->shape, i);
        report.visual_rows_stored = (int32_t)((rows + job->layer_count / 2) / job->layer_count);
    }
    const avl_sequence_t *sequence =
        job->sequence >= 0 ? avl_engine_sequence(engine, job->sequence) : NULL;
    if (sequence == NULL)
        return report;
    int64_t layers = sequence->layer_count;
    report.decode_steps = sequence->decode_steps;
    report.visual_rows_computed = (sequence->computed_halves + layers) / (2 * layers);
    report.kv_bytes_returned = sequence->returned_pages * avl_engine_page_bytes(engine);
    const avl_visual_mass_t *mass = &sequence->mass;
    if (mass->all > 0) {
        int heads = avl_engine_options(engine)->config->model.text.query_heads;
        report.captured_mass = mass->computed / mass->all;
        report.stored_mass = mass->stored / mass->all;
        report.visual_mass =
            mass->all / ((double)report.decode_steps * (double)layers * (double)heads);
    }
    int64_t pages = job->pages_reserved + (job->shares ? job->pages_shared : 0);
    report.kv_bytes_held = pages * avl_engine_page_bytes(engine);
    if (job->shape.evicts_text && sequence->rows_done >= job->shape.prompt_rows) {
        report.text_rows_seen =
            sequence->rows_done - job->shape.visual_rows - job->shape.exempt_rows;
        report.text_rows_stored = avl_text_store_held(&job->shape, report.text_rows_seen);
    }
    return report;
}

avl_request_timings_t avl_job_timings(const avl_job_t *job) {
    avl_request_timings_t timings = {.encode_ns = job->encode_ns};
    if (job->first_step_ns == 0)
        return timings;
    timings.queue_ns = job->first_step_ns - job->request->arrival_ns;
    if (job->first_token_ns == 0)
        return timings;
    timings.prefill_ns = job->first_token_ns - job->first_step_ns - job->encode_ns;
    timings.decode_ns = job->last_token_ns - job->first_token_ns;
    return timings;
}

static bool contains(const int32_t *ids, int32_t count, int32_t token_id) {
    for (int32_t i = 0; i < count; i++) {
        if (ids[i] == token_id)
            return true;
    }
    return false;
}

bool avl_job_ends(const avl_job_t *job, const avl_generation_config_t *generation,
                  int32_t token_id) {
    if (job->tokens_done < job->request->forced_count)
        return false;
    return contains(job->request->stop_ids, job->request->stop_count, token_id) ||
           (!job->request->ignore_eos &&
            contains(generation->eos_ids, generation->eos_count, token_id));
}

int32_t avl_job_banned(const avl_job_t *job, const avl_generation_config_t *generation,
                       int32_t *banned) {
    int32_t count = 0;
    if (job->tokens_done >= job->sampling.min_tokens)
        return 0;
    for (int32_t i = 0; i < generation->eos_count; i++)
        banned[count++] = generation->eos_ids[i];
    for (int32_t i = 0; i < job->request->stop_count; i++)
        banned[count++] = job->request->stop_ids[i];
    return count;
}
