#include "client/eval_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "client/attention_options.h"
#include "client/eval_request.h"
#include "client/terminal.h"
#include "proto/inference.pb-c.h"

#define LOOK_NS (50 * AVL_NS_PER_MS)
/* A service without room is asked again after pauses that double: 12 s in all. */
#define ATTEMPTS_MAX 8
#define PAUSE_NS (50 * AVL_NS_PER_MS)
/* So many failures before any answer: nothing will come of it. */
#define HOPELESS 8

typedef struct work work_t;

/* One of the places for requests under way. */
typedef struct slot {
    work_t *work;
    bool busy;
    size_t method, item;
    bool trial;  /* only whether it is answered counts */
    bool forced; /* the second request of its question */
    int attempt;
    int64_t pause_ns; /* not before; 0: a call is under way */
    avl_rpc_call_t *call;
    int64_t start_ns;
    Avl__V1__Finished *finished;
    avl_eval_step_t *steps; /* of the second request */
    size_t step_count, step_capacity;
} slot_t;

struct work {
    avl_eval_run_t *run;
    avl_rpc_t *rpc;
    slot_t *slots;
    size_t next; /* of all requests */
    size_t busy;
    uint64_t done, answered;
    bool ended; /* no new requests */
    avl_status_t failure;
    char failure_detail[AVL_STATUS_DETAIL_BYTES];
    avl_progress_t progress;
};

avl_eval_record_t *avl_eval_record(const avl_eval_run_t *run, size_t method, size_t item) {
    return &run->records[method * run->tasks->item_count + item];
}

bool avl_eval_run_has_answers(const avl_eval_run_t *run) {
    for (size_t i = 0; run->records != NULL && i < run->method_count * run->tasks->item_count; i++)
        if (run->records[i].answered)
            return true;
    return false;
}

static void clear_record(avl_eval_record_t *record) {
    free(record->text);
    free(record->ids);
    free(record->steps);
    memset(record, 0, sizeof *record);
}

void avl_eval_run_free(avl_eval_run_t *run) {
    if (run->records == NULL)
        return;
    for (size_t i = 0; i < run->method_count * run->tasks->item_count; i++)
        clear_record(&run->records[i]);
    free(run->records);
    run->records = NULL;
    for (size_t i = 0; run->in_force != NULL && i < run->method_count; i++)
        json_decref(run->in_force[i]);
    free(run->in_force);
    run->in_force = NULL;
}

/* ---- what comes ---- */

static avl_status_t keep_text(avl_eval_record_t *record, const char *text) {
    size_t bytes = strlen(text);
    AVL_TRY(avl_grow(record->text_bytes + bytes + 1, 1, "an answer", &record->text,
                     &record->text_capacity));
    memcpy(record->text + record->text_bytes, text, bytes + 1);
    record->text_bytes += bytes;
    if (record->first_bytes == 0 && strspn(record->text, " \t\r\n") < record->text_bytes)
        record->first_bytes = record->text_bytes;
    return AVL_OK;
}

static avl_status_t keep_answer(slot_t *slot, const Avl__V1__Delta *delta) {
    avl_eval_record_t *record = avl_eval_record(slot->work->run, slot->method, slot->item);
    if (record->id_count == 0 && delta->n_token_ids > 0)
        record->first_token_s = (double)(avl_clock_now_ns() - slot->start_ns) / 1e9;
    AVL_TRY(keep_text(record, delta->text));
    AVL_TRY(avl_grow(record->id_count + delta->n_token_ids, sizeof *record->ids, "an answer",
                     &record->ids, &record->id_capacity));
    for (size_t i = 0; i < delta->n_token_ids; i++)
        record->ids[record->id_count++] = delta->token_ids[i];
    return AVL_OK;
}

/* The order is kept: the token's own entry first. */
static avl_status_t keep_steps(slot_t *slot, const Avl__V1__Delta *delta) {
    if (delta->n_logprobs != delta->n_token_ids)
        return avl_fail(AVL_ERR_INTERNAL, "the server sent %zu tokens with %zu log probabilities",
                        delta->n_token_ids, delta->n_logprobs);
    AVL_TRY(avl_grow(slot->step_count + delta->n_logprobs, sizeof *slot->steps, "an answer's steps",
                     &slot->steps, &slot->step_capacity));
    for (size_t i = 0; i < delta->n_logprobs; i++) {
        const Avl__V1__TokenLogprobs *from = delta->logprobs[i];
        if (from->token == NULL || from->n_best == 0 || from->n_best > AVL_EVAL_LOGPROBS)
            return avl_fail(AVL_ERR_INTERNAL, "the server sent a token with %zu log probabilities",
                            from->n_best);
        avl_eval_step_t *step = &slot->steps[slot->step_count++];
        step->count = 1 + (int32_t)from->n_best;
        step->ids[0] = from->token->token_id;
        step->logprobs[0] = from->token->logprob;
        for (size_t j = 0; j < from->n_best; j++) {
            step->ids[1 + j] = from->best[j]->token_id;
            step->logprobs[1 + j] = from->best[j]->logprob;
        }
    }
    return AVL_OK;
}

static avl_status_t take_message(void *context, const uint8_t *bytes, size_t byte_count) {
    slot_t *slot = context;
    Avl__V1__GenerateResponse *response =
        avl__v1__generate_response__unpack(NULL, byte_count, bytes);
    if (response == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server sent a message that is no GenerateResponse");
    avl_status_t status = AVL_OK;
    if (slot->finished != NULL) {
        status = avl_fail(AVL_ERR_INTERNAL, "the server went on after the end of the answer");
    } else if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_DELTA) {
        status =
            slot->forced ? keep_steps(slot, response->delta) : keep_answer(slot, response->delta);
    } else if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED) {
        slot->finished = response->finished;
        response->event_case = AVL__V1__GENERATE_RESPONSE__EVENT__NOT_SET; /* ours now */
    }
    avl__v1__generate_response__free_unpacked(response, NULL);
    return status;
}

/* ---- what is made of it ---- */

static void keep_report(avl_eval_record_t *record, const Avl__V1__Finished *finished,
                        int64_t duration_ns) {
    const Avl__V1__AttentionReport *attention = finished->attention;
    if (finished->usage != NULL) {
        record->prompt_tokens = finished->usage->prompt_tokens;
        record->cached_tokens = finished->usage->cached_tokens;
    }
    if (attention != NULL) {
        record->rows_seen = attention->visual_rows_seen;
        record->rows_stored = attention->visual_rows_stored;
        record->rows_computed = attention->visual_rows_computed_per_step;
        record->kv_bytes = attention->kv_bytes_held;
    }
    if (finished->timings != NULL)
        record->token_s = finished->timings->decode_seconds_per_token;
    record->total_s = (double)duration_ns / 1e9;
    record->answered = true;
}

/* The first answer tells; chance has another seed for every question. */
static void keep_parameters(slot_t *slot) {
    const Avl__V1__AttentionReport *attention = slot->finished->attention;
    json_t **in_force_p = &slot->work->run->in_force[slot->method];
    if (*in_force_p != NULL || attention == NULL || attention->parameters == NULL)
        return;
    *in_force_p = avl_attention_json(attention->parameters);
    json_object_del(*in_force_p, "selection_seed");
}

static avl_status_t compare(slot_t *slot) {
    avl_eval_run_t *run = slot->work->run;
    const avl_eval_record_t *dense = avl_eval_record(run, 0, slot->item);
    avl_eval_record_t *record = avl_eval_record(run, slot->method, slot->item);
    if (slot->step_count != dense->id_count)
        return avl_fail(AVL_ERR_INTERNAL, "%zu tokens were forced, and %zu came back",
                        dense->id_count, slot->step_count);
    if (slot->method == 0) {
        record->steps = slot->steps;
        slot->steps = NULL;
        slot->step_capacity = 0;
    }
    const avl_eval_step_t *steps = slot->method == 0 ? record->steps : slot->steps;
    for (size_t i = 0; i < slot->step_count; i++) {
        if (steps[i].ids[0] != dense->ids[i])
            return avl_fail(AVL_ERR_INTERNAL, "token %d was forced, and %d came back",
                            dense->ids[i], steps[i].ids[0]);
        bool agreed = steps[i].ids[1] == dense->ids[i];
        double divergence = avl_eval_divergence(&dense->steps[i], &steps[i]);
        record->agreed += agreed;
        record->agreed_after += agreed && i > 0;
        record->divergence += divergence;
        record->divergence_after += i > 0 ? divergence : 0;
    }
    const Avl__V1__AttentionReport *attention = slot->finished->attention;
    record->mass_told = attention != NULL && attention->visual_mass > 0;
    if (record->mass_told) {
        record->mass = attention->captured_mass;
        record->stored_mass = attention->stored_mass;
    }
    record->positions = (uint32_t)slot->step_count;
    record->compared = true;
    return AVL_OK;
}

static void fail_work(work_t *work, avl_status_t status, const char *detail) {
    if (work->failure != AVL_OK)
        return;
    work->failure = status;
    snprintf(work->failure_detail, sizeof work->failure_detail, "%s", detail);
}

static void release(slot_t *slot) {
    if (slot->finished != NULL)
        avl__v1__finished__free_unpacked(slot->finished, NULL);
    slot->finished = NULL;
    slot->step_count = 0;
}

static void leave(slot_t *slot) {
    slot->busy = false;
    slot->work->busy--;
}

static bool is_mistake(avl_status_t status) {
    return status == AVL_ERR_INVALID || status == AVL_ERR_UNSUPPORTED || status == AVL_ERR_MEMORY;
}

/* A request that cannot be had: the question is out, for this method, or not compared. */
static void count_failure(slot_t *slot, avl_status_t status, const char *detail) {
    work_t *work = slot->work;
    avl_eval_run_t *run = work->run;
    const avl_eval_item_t *item = &run->tasks->items[slot->item];
    char text[AVL_STATUS_DETAIL_BYTES];
    snprintf(text, sizeof text, "item \"%.100s\" (line %zu), method %s: %s", item->id, item->line,
             run->methods[slot->method].name, detail);
    if (run->failed++ == 0) {
        run->first_failure = status;
        snprintf(run->first_detail, sizeof run->first_detail, "%s", text);
    }
    /* The same again and again: a mistake in the file or the command, not bad luck. */
    if (is_mistake(status) || (work->answered == 0 && run->failed >= HOPELESS))
        fail_work(work, status, text);
    work->done++;
    if (!slot->forced)
        clear_record(avl_eval_record(run, slot->method, slot->item));
    leave(slot);
}

/* Nothing of a trial stays but the parameters in force. What a repetition may mend is not held
 * against it: the question comes again. */
static void end_trial(slot_t *slot, avl_status_t status, const char *detail) {
    work_t *work = slot->work;
    clear_record(avl_eval_record(work->run, slot->method, slot->item));
    if (is_mistake(status)) {
        count_failure(slot, status, detail);
    } else {
        work->done++;
        leave(slot);
    }
}

static void on_end(void *context, avl_status_t status, const char *detail) {
    slot_t *slot = context;
    work_t *work = slot->work;
    char copy[AVL_STATUS_DETAIL_BYTES];
    snprintf(copy, sizeof copy, "%s", detail);
    slot->call = NULL;
    if (status == AVL_OK && slot->finished == NULL) {
        status = AVL_ERR_INTERNAL;
        snprintf(copy, sizeof copy, "the server ended the answer without finishing it");
    }
    avl_eval_record_t *record = avl_eval_record(work->run, slot->method, slot->item);
    if (status == AVL_OK && !slot->forced) {
        keep_report(record, slot->finished, avl_clock_now_ns() - slot->start_ns);
        keep_parameters(slot);
    } else if (status == AVL_OK && (status = compare(slot)) != AVL_OK) {
        snprintf(copy, sizeof copy, "%s", avl_status_detail());
    }
    release(slot);
    bool again = status == AVL_ERR_EXHAUSTED || status == AVL_ERR_UNAVAILABLE;
    if (work->ended) {
        if (slot->trial || (status != AVL_OK && !slot->forced))
            clear_record(record);
        leave(slot);
    } else if (again && ++slot->attempt < ATTEMPTS_MAX) {
        if (!slot->forced)
            clear_record(record);
        slot->pause_ns = avl_clock_now_ns() + (PAUSE_NS << slot->attempt);
    } else if (slot->trial) {
        end_trial(slot, status, copy);
    } else if (status != AVL_OK) {
        count_failure(slot, status, copy);
    } else {
        work->done++;
        work->answered++;
        leave(slot);
    }
}

/* ---- what goes ---- */

/* Behind a prefill filter the service has no mass to tell: layers differ in what they see. */
static bool measures_mass(const avl_eval_run_t *run, size_t method) {
    json_t *in_force = run->in_force[method];
    bool filters = in_force != NULL ? json_object_get(in_force, "prefill_keep_ratio") != NULL
                                    : run->methods[method].attention._prefill_keep_ratio_case != 0;
    return !run->without_mass && !run->methods[method].dense && !filters;
}

/* Starts the slot's request. */
static avl_status_t begin(slot_t *slot) {
    work_t *work = slot->work;
    avl_eval_run_t *run = work->run;
    const avl_eval_record_t *dense = avl_eval_record(run, 0, slot->item);
    avl_eval_asking_t asking = {
        .method = &run->methods[slot->method],
        .max_tokens = run->max_tokens,
        .trial = slot->trial,
        .forced_ids = slot->forced ? dense->ids : NULL,
        .forced_count = slot->forced ? dense->id_count : 0,
        .mass = slot->forced && measures_mass(run, slot->method),
    };
    avl_rpc_request_t *request = NULL;
    AVL_TRY(avl_eval_request_pack(&run->tasks->items[slot->item], &asking, &request));
    avl_rpc_handler_t handler = {.on_message = take_message, .on_end = on_end, .context = slot};
    slot->start_ns = avl_clock_now_ns();
    slot->pause_ns = 0;
    avl_status_t status = avl_rpc_start(work->rpc, "/avl.v1.Inference/Generate", request,
                                        (int64_t)(run->timeout_s * 1e9), &handler, &slot->call);
    avl_rpc_request_destroy(request);
    return status;
}

/* All requests in their order. First the trials: one question with every method, so that a mistake
 * in the last one shows at once, not after all others have been measured. Then stage by stage, each
 * with all questions. Methods take turns, and the answers of one come before its comparisons. */
static size_t request_count(const avl_eval_run_t *run) {
    return run->method_count * (1 + run->tasks->item_count * (run->scores_only ? 1 : 2));
}

/* What request `number` is. */
static void assign(const avl_eval_run_t *run, size_t number, slot_t *slot) {
    slot->attempt = 0;
    slot->trial = number < run->method_count;
    if (slot->trial) {
        slot->method = number;
        slot->item = 0;
        slot->forced = false;
        return;
    }
    size_t place = number - run->method_count, stage = place / run->tasks->item_count;
    slot->method = run->scores_only ? stage : stage / 2;
    slot->forced = !run->scores_only && stage % 2 == 1;
    slot->item = place % run->tasks->item_count;
}

/* Whether there are two answers, and dense attention's log probabilities. */
static bool can_compare(const avl_eval_run_t *run, const slot_t *slot) {
    const avl_eval_record_t *dense = avl_eval_record(run, 0, slot->item);
    return dense->id_count > 0 && (slot->method == 0 || dense->steps != NULL) &&
           avl_eval_record(run, slot->method, slot->item)->answered;
}

/* Gives the slot the next request, if one may begin. */
static void take_next(work_t *work, slot_t *slot) {
    const avl_eval_run_t *run = work->run;
    while (!work->ended && work->next < request_count(run)) {
        /* A stage begins when the one before is over: comparisons take more work than answers, and
         * would be in their times. */
        assign(run, work->next, slot);
        if (!slot->trial && slot->item == 0 && work->busy > 0)
            return;
        work->next++;
        if (slot->forced && !can_compare(run, slot)) {
            work->done++;
            continue;
        }
        slot->busy = true;
        work->busy++;
        avl_status_t status = begin(slot);
        if (status == AVL_OK)
            return;
        count_failure(slot, status, avl_status_detail());
        if (work->failure != AVL_OK)
            return;
    }
}

static void end_work(work_t *work, const char *detail) {
    if (work->ended)
        return;
    work->ended = true;
    for (size_t i = 0; i < work->run->concurrency; i++) {
        slot_t *slot = &work->slots[i];
        if (slot->busy && slot->call != NULL)
            avl_rpc_cancel(slot->call, AVL_ERR_CANCELLED, detail);
        else if (slot->busy)
            leave(slot);
    }
}

/* Starts what is due; returns when to look again. */
static int64_t look(work_t *work) {
    int64_t now_ns = avl_clock_now_ns(), until_ns = now_ns + LOOK_NS;
    for (size_t i = 0; i < work->run->concurrency; i++) {
        slot_t *slot = &work->slots[i];
        if (!slot->busy) {
            take_next(work, slot);
        } else if (slot->pause_ns != 0 && slot->pause_ns <= now_ns) {
            avl_status_t status = begin(slot);
            if (status != AVL_OK)
                count_failure(slot, status, avl_status_detail());
        } else if (slot->pause_ns != 0 && slot->pause_ns < until_ns) {
            until_ns = slot->pause_ns;
        }
    }
    return until_ns;
}

static void show_progress(work_t *work, uint64_t total) {
    const avl_eval_run_t *run = work->run;
    char unit[AVL_EVAL_NAME_BYTES + 64];
    slot_t last = {0};
    assign(run, work->next > 0 ? work->next - 1 : 0, &last);
    int used = snprintf(unit, sizeof unit, "requests, %s%s",
                        last.trial    ? "trying "
                        : last.forced ? "comparing "
                                      : "",
                        run->methods[last.method].name);
    if (run->failed > 0 && used > 0 && (size_t)used < sizeof unit)
        snprintf(unit + used, sizeof unit - (size_t)used, ", %llu failed",
                 (unsigned long long)run->failed);
    avl_progress_show(&work->progress, "evaluating", work->done, total, unit);
}

avl_status_t avl_eval_run(avl_eval_run_t *run, avl_rpc_t *rpc,
                          const volatile sig_atomic_t *stop_p) {
    size_t questions = run->method_count * run->tasks->item_count;
    size_t total = request_count(run);
    work_t work = {.run = run, .rpc = rpc};
    AVL_TRY(avl_alloc(questions, sizeof *run->records, "answers", &run->records));
    AVL_TRY(avl_alloc(run->method_count, sizeof *run->in_force, "methods", &run->in_force));
    AVL_TRY(avl_alloc(run->concurrency, sizeof *work.slots, "places", &work.slots));
    for (size_t i = 0; i < run->concurrency; i++)
        work.slots[i].work = &work;
    avl_progress_begin(&work.progress);
    while (!(work.busy == 0 && (work.ended || work.next == total))) {
        if (*stop_p)
            end_work(&work, "interrupted");
        if (work.failure != AVL_OK)
            end_work(&work, "another request failed");
        int64_t until_ns = look(&work);
        show_progress(&work, total);
        if (work.busy > 0)
            avl_rpc_poll(rpc, until_ns);
    }
    avl_progress_clear(&work.progress);
    for (size_t i = 0; i < run->concurrency; i++)
        free(work.slots[i].steps);
    free(work.slots);
    if (work.failure != AVL_OK)
        return avl_fail(work.failure, "%s", work.failure_detail);
    if (*stop_p)
        return avl_fail(AVL_ERR_CANCELLED, "interrupted");
    return AVL_OK;
}
