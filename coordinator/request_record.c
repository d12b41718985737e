#include "coordinator/request_record.h"

#include "base/clock.h"
#include "base/log.h"

static const char *const stage_fields[AVL_STAGES] = {
    "queue_seconds", "preprocess_seconds", "encode_seconds", "prefill_seconds", "decode_seconds"};

void avl_request_record_begin(avl_request_record_t *record, avl_service_metrics_t *metrics,
                              uint64_t id, int64_t arrival_ns) {
    *record = (avl_request_record_t){
        .metrics = metrics, .id = id, .phase = AVL_REQUEST_WAITING, .arrival_ns = arrival_ns};
    for (size_t i = 0; i < AVL_STAGES; i++)
        record->stage_ns[i] = -1;
    avl_gauge_add(&metrics->requests_waiting, 1);
}

static avl_gauge_t *gauge_of(avl_request_record_t *record) {
    switch (record->phase) {
    case AVL_REQUEST_WAITING:
        return &record->metrics->requests_waiting;
    case AVL_REQUEST_RUNNING:
        return &record->metrics->requests_running;
    case AVL_REQUEST_OVER:
        break;
    }
    return NULL;
}

void avl_request_record_phase(avl_request_record_t *record, avl_request_phase_t phase) {
    if (record->phase == phase || record->phase == AVL_REQUEST_OVER)
        return;
    avl_gauge_t *from = gauge_of(record);
    record->phase = phase;
    avl_gauge_t *to = gauge_of(record);
    if (to != NULL)
        avl_gauge_add(to, 1);
    if (from != NULL)
        avl_gauge_add(from, -1);
}

void avl_request_record_resumed(avl_request_record_t *record, const char *name) {
    record->resumptions++;
    const avl_log_field_t fields[] = {
        AVL_LOG_INTEGER("request", record->id),
        AVL_LOG_TEXT("name", name[0] != '\0' ? name : NULL),
        AVL_LOG_INTEGER("tokens", record->token_count),
        AVL_LOG_INTEGER("resumed", record->resumptions),
    };
    avl_log_with(AVL_LOG_INFO, fields, 4, "request has lost its group and waits for another");
    avl_counter_add(&record->metrics->requests_resumed, 1);
    avl_request_record_phase(record, AVL_REQUEST_WAITING);
}

void avl_request_record_token(avl_request_record_t *record, int64_t last_ns, int64_t now_ns) {
    avl_service_metrics_t *metrics = record->metrics;
    if (record->first_token_ns == 0) {
        record->first_token_ns = now_ns;
        avl_histogram_observe(&metrics->first_token, now_ns - record->arrival_ns);
    }
    if (last_ns != 0)
        avl_histogram_observe(&metrics->between_tokens, now_ns - last_ns);
    record->token_count++;
    avl_counter_add(&metrics->generation_tokens, 1);
}

/* The fields of the last line that every end has; *count_p are filled. */
#define COMMON_FIELDS_MAX (8 + AVL_STAGES)
static void common_fields(const avl_request_record_t *record, const char *name, const char *code,
                          avl_log_field_t *fields, size_t *count_p) {
    size_t count = 0;
    int64_t now_ns = avl_clock_now_ns();
    fields[count++] = (avl_log_field_t)AVL_LOG_INTEGER("request", record->id);
    fields[count++] = (avl_log_field_t)AVL_LOG_TEXT("name", name[0] != '\0' ? name : NULL);
    fields[count++] = (avl_log_field_t)AVL_LOG_TEXT("code", code);
    fields[count++] = (avl_log_field_t)AVL_LOG_INTEGER("tokens", record->token_count);
    fields[count++] =
        (avl_log_field_t)AVL_LOG_SECONDS("total_seconds", now_ns - record->arrival_ns);
    if (record->first_token_ns != 0)
        fields[count++] = (avl_log_field_t)AVL_LOG_SECONDS(
            "first_token_seconds", record->first_token_ns - record->arrival_ns);
    for (size_t i = 0; i < AVL_STAGES; i++)
        if (record->stage_ns[i] >= 0)
            fields[count++] =
                (avl_log_field_t)AVL_LOG_SECONDS(stage_fields[i], record->stage_ns[i]);
    if (record->resumptions > 0)
        fields[count++] = (avl_log_field_t)AVL_LOG_INTEGER("resumed", record->resumptions);
    *count_p = count;
}

static uint64_t natural(int64_t value) {
    return value > 0 ? (uint64_t)value : 0;
}

void avl_request_record_result(avl_request_record_t *record, const Avl__Worker__V1__Result *result,
                               bool pictures, int64_t waited_ns) {
    record->stage_ns[AVL_STAGE_QUEUE] = waited_ns + result->queue_ns;
    record->stage_ns[AVL_STAGE_ENCODE] = pictures ? result->encode_ns : -1;
    record->stage_ns[AVL_STAGE_PREFILL] = record->token_count > 0 ? result->prefill_ns : -1;
    record->stage_ns[AVL_STAGE_DECODE] = record->token_count > 1 ? result->decode_ns : -1;
}

static void observe_answer(avl_request_record_t *record, const avl_request_sums_t *sums,
                           int32_t prompt_tokens) {
    avl_service_metrics_t *metrics = record->metrics;
    avl_finish_t finish = sums->cut ? AVL_FINISH_BY_LENGTH : AVL_FINISH_BY_STOP;
    avl_counter_add(&metrics->requests_succeeded[finish], 1);
    avl_counter_add(&metrics->prompt_tokens, natural(prompt_tokens));
    avl_counter_add(&metrics->visual_rows_seen, natural(sums->visual_rows_seen));
    avl_counter_add(&metrics->visual_rows_stored, natural(sums->visual_rows_stored));
    avl_counter_add(&metrics->visual_rows_computed, natural(sums->visual_rows_computed));
    avl_counter_add(&metrics->decode_steps, natural(sums->decode_steps));
    avl_counter_add(&metrics->kv_bytes_returned, natural(sums->kv_bytes_returned));
    avl_histogram_observe(&metrics->whole_request, avl_clock_now_ns() - record->arrival_ns);
    avl_histogram_observe(&metrics->prompt_length, prompt_tokens);
    avl_histogram_observe(&metrics->generation_length, record->token_count);
    for (size_t i = 0; i < AVL_STAGES; i++)
        if (record->stage_ns[i] >= 0)
            avl_histogram_observe(&metrics->stages[i], record->stage_ns[i]);
}

void avl_request_record_answered(avl_request_record_t *record, const char *name,
                                 const avl_request_sums_t *sums, int32_t prompt_tokens,
                                 int32_t visual_tokens) {
    if (record->phase == AVL_REQUEST_OVER)
        return;
    observe_answer(record, sums, prompt_tokens);
    avl_request_record_phase(record, AVL_REQUEST_OVER);
    avl_log_field_t fields[COMMON_FIELDS_MAX + 5];
    size_t count;
    common_fields(record, name, "OK", fields, &count);
    fields[count++] = (avl_log_field_t)AVL_LOG_TEXT("finish", sums->cut ? "length" : "stop");
    fields[count++] = (avl_log_field_t)AVL_LOG_INTEGER("prompt_tokens", prompt_tokens);
    fields[count++] = (avl_log_field_t)AVL_LOG_INTEGER("visual_tokens", visual_tokens);
    fields[count++] = (avl_log_field_t)AVL_LOG_INTEGER("visual_stored", sums->visual_rows_stored);
    fields[count++] =
        (avl_log_field_t)AVL_LOG_INTEGER("kv_bytes_returned", sums->kv_bytes_returned);
    avl_log_with(AVL_LOG_INFO, fields, count, "request answered");
}

void avl_request_record_failed(avl_request_record_t *record, const char *name, avl_rpc_code_t code,
                               const char *detail) {
    if (record->phase == AVL_REQUEST_OVER)
        return;
    avl_service_metrics_failed(record->metrics, code);
    avl_request_record_phase(record, AVL_REQUEST_OVER);
    avl_log_field_t fields[COMMON_FIELDS_MAX];
    size_t count;
    common_fields(record, name, avl_rpc_code_name(code), fields, &count);
    avl_log_with(AVL_LOG_INFO, fields, count, "request ended: %s", detail);
}
