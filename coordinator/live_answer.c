#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/attention.h"
#include "coordinator/live_request.h"
#include "coordinator/request_messages.h"

static int32_t number_of(const avl_live_request_t *live, const avl_choice_t *choice) {
    return (int32_t)(choice - live->prepared.choices);
}

/* `token` may be NULL. */
static void send_delta_locked(avl_live_request_t *live, const avl_choice_t *choice,
                              const char *text, const Avl__Worker__V1__Event *token) {
    avl_delta_message_t message;
    avl_delta_message_fill((uint32_t)number_of(live, choice), text, token, &message);
    avl_live_send_locked(live, &message.response);
}

static void on_token_locked(avl_live_request_t *live, avl_choice_t *choice,
                            const Avl__Worker__V1__Event *event) {
    int32_t id = event->token_id;
    if (choice->stopped) /* on its way when the group was told to end it */
        return;
    if (id < 0 || id >= avl_tokenizer_id_limit(live->requests->config.tokenizer)) {
        char text[96];
        snprintf(text, sizeof text, "the worker group sent token %d, which is none", id);
        avl_live_fail_locked(live, AVL_ERR_INTERNAL, text);
        return;
    }
    if (choice->sent_count >= (size_t)live->max_tokens) {
        avl_live_fail_locked(live, AVL_ERR_INTERNAL,
                             "the worker group sent more tokens than were asked for");
        return;
    }
    const char *text = "";
    avl_status_t status = avl_choice_add(choice, id, &text);
    if (status != AVL_OK) {
        avl_live_fail_locked(live, status, avl_status_detail());
        return;
    }
    live->sent_count++;
    if (live->strikes > 0)
        avl_admission_clear(live->requests->config.admission, &live->ticket);
    live->strikes = 0;
    int64_t now_ns = avl_clock_now_ns();
    avl_admission_token(live->requests->config.admission, &live->ticket);
    avl_request_record_phase(&live->record, AVL_REQUEST_RUNNING);
    avl_request_record_token(&live->record, choice->last_token_ns, now_ns);
    choice->last_token_ns = now_ns;
    send_delta_locked(live, choice, text, event);
    if (choice->stopped && live->state == STATE_RUNNING)
        avl_groups_cancel(live->requests->groups, live->generation, live->id,
                          number_of(live, choice));
}

static double seconds(int64_t ns) {
    return (double)(ns > 0 ? ns : 0) / 1e9;
}

static bool ends_by_stop(const avl_choice_t *choice, const Avl__Worker__V1__Result *result) {
    return choice->stopped ||
           result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_STOP;
}

static void send_finished_locked(avl_live_request_t *live, const avl_choice_t *choice,
                                 const Avl__Worker__V1__Result *result) {
    const avl_prepared_t *prepared = &live->prepared;
    Avl__V1__Usage usage;
    avl__v1__usage__init(&usage);
    usage.completion_tokens = (uint32_t)choice->sent_count;
    if (live->choices_left == prepared->choice_count) {
        usage.prompt_tokens = (uint32_t)prepared->row_count;
        usage.visual_tokens = (uint32_t)prepared->visual_rows;
        usage.cached_tokens = (uint32_t)result->prompt_rows_reused;
        usage.encoder_cache_hits = (uint32_t)result->encoder_cache_hits;
    }
    Avl__V1__AttentionReport attention;
    avl__v1__attention_report__init(&attention);
    attention.visual_store_ratio = prepared->attention.visual_store_ratio;
    attention.visual_compute_ratio = prepared->attention.visual_compute_ratio;
    if (prepared->attention.visual_core != AVL_CORE_STEP)
        attention.visual_update_interval = (uint32_t)prepared->attention.visual_update_interval;
    attention.visual_rows_seen = (uint32_t)result->visual_rows_seen;
    attention.visual_rows_stored = (uint32_t)result->visual_rows_stored;
    if (result->decode_steps > 0)
        attention.visual_rows_computed_per_step =
            (double)result->visual_rows_computed / result->decode_steps;
    attention.kv_bytes_returned = (uint64_t)result->kv_bytes_returned;
    attention.captured_mass = result->captured_mass;
    attention.stored_mass = result->stored_mass;
    attention.visual_mass = result->visual_mass;
    attention.kv_bytes_held = (uint64_t)result->kv_bytes_held;
    attention.text_rows_seen = (uint32_t)result->text_rows_seen;
    attention.text_rows_stored = (uint32_t)result->text_rows_stored;
    Avl__V1__AttentionParameters parameters;
    avl_attention_write(&prepared->attention, &parameters);
    attention.parameters = &parameters;
    Avl__V1__Timings timings;
    avl__v1__timings__init(&timings);
    const int64_t *stage_ns = live->record.stage_ns;
    timings.queue_seconds = seconds(stage_ns[AVL_STAGE_QUEUE]);
    timings.preprocess_seconds = seconds(prepared->preprocess_ns);
    timings.encode_seconds = seconds(stage_ns[AVL_STAGE_ENCODE]);
    timings.prefill_seconds = seconds(stage_ns[AVL_STAGE_PREFILL]);
    if (choice->sent_count > 1)
        timings.decode_seconds_per_token =
            seconds(result->decode_ns) / (double)(choice->sent_count - 1);
    timings.total_seconds = seconds(avl_clock_now_ns() - live->arrival_ns);
    Avl__V1__Finished finished;
    avl__v1__finished__init(&finished);
    finished.finish_reason = ends_by_stop(choice, result)
                                 ? AVL__V1__FINISH_REASON__FINISH_REASON_STOP
                                 : AVL__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    finished.choice = (uint32_t)number_of(live, choice);
    finished.usage = &usage;
    finished.attention = &attention;
    finished.timings = &timings;
    finished.seed = choice->seed;
    Avl__V1__GenerateResponse response;
    avl__v1__generate_response__init(&response);
    response.event_case = AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED;
    response.finished = &finished;
    avl_live_send_locked(live, &response);
}

/* The last of the text. */
static void send_rest_locked(avl_live_request_t *live, avl_choice_t *choice) {
    const char *text = "";
    if (choice->stopped)
        return;
    avl_status_t status = avl_detokenizer_finish(choice->detokenizer, &text);
    if (status == AVL_OK && choice->stop != NULL)
        status = avl_stop_text_add(choice->stop, text, &text, &choice->stopped);
    if (status != AVL_OK) {
        avl_live_fail_locked(live, status, avl_status_detail());
        return;
    }
    if (text[0] != '\0')
        send_delta_locked(live, choice, text, NULL);
    text = choice->stopped || choice->stop == NULL ? "" : avl_stop_text_finish(choice->stop);
    if (text[0] != '\0' && live->state != STATE_DONE)
        send_delta_locked(live, choice, text, NULL);
}

static void add_sums_locked(avl_live_request_t *live, const avl_choice_t *choice,
                            const Avl__Worker__V1__Result *result) {
    avl_request_sums_t *sums = &live->sums;
    sums->visual_rows_seen = result->visual_rows_seen;
    sums->visual_rows_stored = result->visual_rows_stored;
    sums->visual_rows_computed += result->visual_rows_computed;
    sums->kv_bytes_returned += result->kv_bytes_returned;
    sums->decode_steps += result->decode_steps;
    sums->cut = sums->cut || !ends_by_stop(choice, result);
}

/* The answer is whole; with the last one the request is. */
static void answer_locked(avl_live_request_t *live, avl_choice_t *choice,
                          const Avl__Worker__V1__Result *result) {
    send_rest_locked(live, choice);
    if (live->state != STATE_DONE)
        send_finished_locked(live, choice, result);
    if (live->state == STATE_DONE)
        return;
    choice->over = true;
    add_sums_locked(live, choice, result);
    if (--live->choices_left > 0) {
        avl_admission_choice_over(live->requests->config.admission, &live->ticket,
                                  (int64_t)choice->sent_count);
        return;
    }
    avl_request_record_answered(&live->record, live->prepared.name, &live->sums,
                                live->prepared.row_count, live->prepared.visual_rows);
    avl_live_done_locked(live);
    avl_call_finish(live->call, AVL_RPC_OK, "");
}

static void on_finished_locked(avl_live_request_t *live, avl_choice_t *choice,
                               const Avl__Worker__V1__Result *result) {
    bool last = live->choices_left == 1;
    if (last)
        live->state = STATE_WAITING; /* the group has let go of it: nothing to cancel there */
    avl_request_record_result(&live->record, result, live->prepared.image_count > 0,
                              live->submitted_ns - live->waiting_ns);
    if (choice->stopped ||
        result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_STOP ||
        result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_LENGTH) {
        if (last)
            avl_admission_answer(live->requests->config.admission, &live->ticket,
                                 result->prompt_rows_reused, (int32_t)choice->sent_count);
        answer_locked(live, choice, result);
        return;
    }
    avl_status_t status = (avl_status_t)result->status;
    if (result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_CANCELLED)
        status = live->deadline_ns <= avl_clock_now_ns() ? AVL_ERR_DEADLINE : AVL_ERR_CANCELLED;
    else if (status == AVL_OK)
        status = AVL_ERR_INTERNAL;
    avl_live_fail_locked(live, status,
                         result->detail[0] != '\0' ? result->detail : avl_status_name(status));
}

static void on_progress_locked(avl_live_request_t *live, const Avl__Worker__V1__Event *event) {
    Avl__V1__Stage stage = AVL__V1__STAGE__STAGE_QUEUED;
    if (event->stage == AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_ENCODE)
        stage = AVL__V1__STAGE__STAGE_ENCODE;
    else if (event->stage == AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_PREFILL)
        stage = AVL__V1__STAGE__STAGE_PREFILL;
    else if (event->stage == AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_DECODE)
        stage = AVL__V1__STAGE__STAGE_DECODE;
    if (stage == AVL__V1__STAGE__STAGE_PREFILL)
        avl_admission_read(live->requests->config.admission, &live->ticket,
                           (int64_t)event->total - event->done);
    if (stage != AVL__V1__STAGE__STAGE_QUEUED)
        avl_request_record_phase(&live->record, AVL_REQUEST_RUNNING);
    avl_live_progress_locked(live, stage, (uint32_t)event->done, (uint32_t)event->total);
}

void avl_live_answer_without_report_locked(avl_live_request_t *live) {
    Avl__Worker__V1__Result result;
    avl__worker__v1__result__init(&result);
    for (int32_t i = 0; i < live->prepared.choice_count && live->state != STATE_DONE; i++) {
        avl_choice_t *choice = &live->prepared.choices[i];
        if (choice->stopped && !choice->over)
            answer_locked(live, choice, &result);
    }
}

void avl_live_event_locked(avl_live_request_t *live, const Avl__Worker__V1__Event *event) {
    if (event->kind == AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_PROGRESS) {
        on_progress_locked(live, event);
        return;
    }
    if (event->choice < 0 || event->choice >= live->prepared.choice_count) {
        avl_live_fail_locked(live, AVL_ERR_INTERNAL,
                             "the worker group sent an answer that was not asked for");
        return;
    }
    avl_choice_t *choice = &live->prepared.choices[event->choice];
    if (choice->over)
        return;
    if (event->kind == AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_TOKEN)
        on_token_locked(live, choice, event);
    else if (event->kind == AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_FINISHED &&
             event->result != NULL)
        on_finished_locked(live, choice, event->result);
}
