#include "coordinator/service_metrics.h"

#include <string.h>

#include "base/memory.h"

/* OpenTelemetry's for times to the first token, with room above for long prompts; the finer ones of
 * vLLM for what lies between tokens. */
static const double first_token_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08,
                                            0.1,   0.25,  0.5,  0.75, 1,    2.5,  5,
                                            7.5,   10,    20,   40,   80,   160};
static const double token_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                      0.2,   0.3,    0.4,   0.5,  0.75,  1,    2.5,   5,   10};
static const double request_bounds[] = {0.05, 0.1, 0.25, 0.5, 1,  1.5, 2,   2.5, 5,   10,
                                        15,   20,  30,   40,  50, 60,  120, 240, 480, 960};
static const double stage_bounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                      0.5,    1,     2.5,    5,     10,   30,    60,   120};
static const double length_bounds[] = {1,   2,    5,    10,   20,    50,    100,  200,
                                       500, 1000, 2000, 5000, 10000, 20000, 50000};

#define SET(histogram, unit, bounds)                                                               \
    avl_histogram_init(histogram, unit, bounds, sizeof(bounds) / sizeof(bounds)[0])

static const struct {
    const char *name, *help;
} stage_names[AVL_STAGES] = {
    {"avl_request_queue_time_seconds", "From prepared to taking part in a step."},
    {"avl_request_preprocess_time_seconds", "Decoding and preparing the pictures of a request."},
    {"avl_request_encode_time_seconds", "Vision tower and projector."},
    {"avl_request_prefill_time_seconds", "Reading the prompt, up to the first token."},
    {"avl_request_decode_time_seconds", "From the first token to the last."},
};

static const char *const finish_names[AVL_FINISHES] = {"stop", "length"};

void avl_service_metrics_init(avl_service_metrics_t *metrics) {
    memset(metrics, 0, sizeof *metrics);
    SET(&metrics->first_token, 1e-9, first_token_bounds);
    SET(&metrics->between_tokens, 1e-9, token_bounds);
    SET(&metrics->whole_request, 1e-9, request_bounds);
    for (size_t i = 0; i < AVL_STAGES; i++)
        SET(&metrics->stages[i], 1e-9, stage_bounds);
    SET(&metrics->prompt_length, 1, length_bounds);
    SET(&metrics->generation_length, 1, length_bounds);
}

void avl_service_metrics_set_methods(avl_service_metrics_t *metrics, const avl_method_t *methods,
                                     size_t method_count) {
    AVL_ASSERT(method_count <= AVL_RPC_METHODS_MAX);
    metrics->methods = methods;
    metrics->method_count = method_count;
}

static size_t method_place(const avl_service_metrics_t *metrics, const avl_method_t *method) {
    return method != NULL ? (size_t)(method - metrics->methods) : AVL_RPC_METHODS_MAX;
}

static void on_call(void *context, const avl_method_t *method) {
    avl_service_metrics_t *metrics = context;
    avl_counter_add(&metrics->calls_started[method_place(metrics, method)], 1);
}

static void on_call_ended(void *context, const avl_method_t *method, avl_rpc_code_t code) {
    avl_service_metrics_t *metrics = context;
    size_t place = (unsigned)code < AVL_RPC_CODES ? (size_t)code : 2; /* UNKNOWN */
    avl_counter_add(&metrics->calls_ended[method_place(metrics, method)][place], 1);
}

avl_server_observer_t avl_service_metrics_server_observer(avl_service_metrics_t *metrics) {
    return (avl_server_observer_t){metrics, on_call, on_call_ended};
}

void avl_service_metrics_failed(avl_service_metrics_t *metrics, avl_rpc_code_t code) {
    avl_counter_add(&metrics->requests_failed[(unsigned)code < AVL_RPC_CODES ? (size_t)code : 2],
                    1);
}

uint64_t avl_service_metrics_succeeded(const avl_service_metrics_t *metrics) {
    uint64_t sum = 0;
    for (size_t i = 0; i < AVL_FINISHES; i++)
        sum += avl_counter_value(&metrics->requests_succeeded[i]);
    return sum;
}

/* ---- writing ---- */

static void write_requests(const avl_service_metrics_t *metrics, avl_exposition_t *exposition) {
    avl_exposition_gauge(exposition, "avl_requests_running",
                         "Requests that a worker group is working on.",
                         (double)avl_gauge_value(&metrics->requests_running));
    avl_exposition_gauge(exposition, "avl_requests_waiting",
                         "Requests that are being prepared, or wait for room or for a group.",
                         (double)avl_gauge_value(&metrics->requests_waiting));
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_request_success_total",
                          "Requests answered to their end.");
    for (size_t i = 0; i < AVL_FINISHES; i++) {
        const avl_label_t label = {"finished_reason", finish_names[i]};
        avl_exposition_integer(exposition, &label, 1,
                               (int64_t)avl_counter_value(&metrics->requests_succeeded[i]));
    }
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_request_failure_total",
                          "Requests that ended otherwise, refused and cancelled ones included.");
    for (size_t code = 0; code < AVL_RPC_CODES; code++) {
        uint64_t value = avl_counter_value(&metrics->requests_failed[code]);
        const avl_label_t label = {"code", avl_rpc_code_name((avl_rpc_code_t)code)};
        if (value > 0)
            avl_exposition_integer(exposition, &label, 1, (int64_t)value);
    }
    avl_exposition_counter(exposition, "avl_requests_resumed_total",
                           "Requests given to another group after theirs was lost.",
                           avl_counter_value(&metrics->requests_resumed));
}

static void write_tokens(const avl_service_metrics_t *metrics, avl_exposition_t *exposition) {
    avl_exposition_counter(exposition, "avl_prompt_tokens_total",
                           "Prompt tokens of answered requests, visual ones included.",
                           avl_counter_value(&metrics->prompt_tokens));
    avl_exposition_counter(exposition, "avl_generation_tokens_total",
                           "Tokens generated and passed on.",
                           avl_counter_value(&metrics->generation_tokens));
    const struct {
        const char *state;
        const avl_counter_t *counter;
    } visual[] = {{"in", &metrics->visual_rows_seen},
                  {"stored", &metrics->visual_rows_stored},
                  {"computed", &metrics->visual_rows_computed}};
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_visual_tokens_total",
                          "Visual tokens of answered requests, of one layer: in their prompts, "
                          "stored after prefill, and computed, summed over decode steps.");
    for (size_t i = 0; i < 3; i++) {
        const avl_label_t label = {"state", visual[i].state};
        avl_exposition_integer(exposition, &label, 1,
                               (int64_t)avl_counter_value(visual[i].counter));
    }
    avl_exposition_counter(exposition, "avl_decode_steps_total",
                           "Decode steps of answered requests, each request by itself.",
                           avl_counter_value(&metrics->decode_steps));
    avl_exposition_counter(exposition, "avl_kv_bytes_returned_total",
                           "Cache given back by eviction, all layers and ranks.",
                           avl_counter_value(&metrics->kv_bytes_returned));
}

static void write_histogram(avl_exposition_t *exposition, const char *name, const char *help,
                            const avl_histogram_t *histogram) {
    avl_exposition_family(exposition, AVL_FAMILY_HISTOGRAM, name, help);
    avl_exposition_histogram(exposition, NULL, 0, histogram);
}

static void write_times(const avl_service_metrics_t *metrics, avl_exposition_t *exposition) {
    write_histogram(exposition, "avl_time_to_first_token_seconds",
                    "From the arrival of a request to its first token.", &metrics->first_token);
    write_histogram(exposition, "avl_inter_token_latency_seconds",
                    "Between two tokens of a request.", &metrics->between_tokens);
    write_histogram(exposition, "avl_e2e_request_latency_seconds",
                    "From arrival to the end of answered requests.", &metrics->whole_request);
    for (size_t i = 0; i < AVL_STAGES; i++)
        write_histogram(exposition, stage_names[i].name, stage_names[i].help, &metrics->stages[i]);
    write_histogram(exposition, "avl_request_prompt_tokens", "Prompt tokens of answered requests.",
                    &metrics->prompt_length);
    write_histogram(exposition, "avl_request_generation_tokens",
                    "Generated tokens of answered requests.", &metrics->generation_length);
}

/* "/package.Service/Method" as two labels. */
static void method_labels(const char *path, char *service, size_t service_bytes,
                          avl_label_t labels[2]) {
    const char *slash = strrchr(path, '/');
    snprintf(service, service_bytes, "%.*s", (int)(slash - path - 1), path + 1);
    labels[0] = (avl_label_t){"grpc_service", service};
    labels[1] = (avl_label_t){"grpc_method", slash + 1};
}

static void write_calls(const avl_service_metrics_t *metrics, avl_exposition_t *exposition) {
    char service[128];
    avl_label_t labels[3];
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "grpc_server_started_total",
                          "Calls that came in.");
    for (size_t m = 0; m <= metrics->method_count; m++) {
        bool known = m < metrics->method_count;
        size_t place = known ? m : AVL_RPC_METHODS_MAX;
        method_labels(known ? metrics->methods[m].path : "/unknown/unknown", service,
                      sizeof service, labels);
        avl_exposition_integer(exposition, labels, 2,
                               (int64_t)avl_counter_value(&metrics->calls_started[place]));
    }
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "grpc_server_handled_total",
                          "Calls that are over, by status.");
    for (size_t m = 0; m <= metrics->method_count; m++) {
        bool known = m < metrics->method_count;
        size_t place = known ? m : AVL_RPC_METHODS_MAX;
        method_labels(known ? metrics->methods[m].path : "/unknown/unknown", service,
                      sizeof service, labels);
        for (size_t code = 0; code < AVL_RPC_CODES; code++) {
            uint64_t value = avl_counter_value(&metrics->calls_ended[place][code]);
            labels[2] = (avl_label_t){"grpc_code", avl_rpc_code_name((avl_rpc_code_t)code)};
            if (value > 0)
                avl_exposition_integer(exposition, labels, 3, (int64_t)value);
        }
    }
}

void avl_service_metrics_write(const avl_service_metrics_t *metrics, avl_exposition_t *exposition) {
    write_requests(metrics, exposition);
    write_tokens(metrics, exposition);
    write_times(metrics, exposition);
    write_calls(metrics, exposition);
}
