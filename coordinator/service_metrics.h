/* coordinator/service_metrics.h: what this service counts: requests, their stages, tokens, calls.
 *
 * Names and units follow vLLM's and OpenTelemetry's where those have the thing; docs/OPERATIONS.md
 * lists them. Threads: any, without locks. */
#ifndef AVL_COORDINATOR_SERVICE_METRICS_H
#define AVL_COORDINATOR_SERVICE_METRICS_H

#include "coordinator/grpc_server.h"
#include "coordinator/metrics.h"

#define AVL_RPC_CODES 17 /* 0..16 */
#define AVL_RPC_METHODS_MAX 24

typedef enum avl_stage {
    AVL_STAGE_QUEUE,      /* prepared, not yet in a step */
    AVL_STAGE_PREPROCESS, /* pictures */
    AVL_STAGE_ENCODE,
    AVL_STAGE_PREFILL,
    AVL_STAGE_DECODE, /* after the first token */
    AVL_STAGES,
} avl_stage_t;

typedef enum avl_finish {
    AVL_FINISH_BY_STOP,
    AVL_FINISH_BY_LENGTH,
    AVL_FINISHES,
} avl_finish_t;

typedef struct avl_service_metrics {
    avl_gauge_t requests_running; /* a group works on them */
    avl_gauge_t requests_waiting; /* all other live ones */
    avl_counter_t requests_succeeded[AVL_FINISHES];
    avl_counter_t requests_failed[AVL_RPC_CODES];
    avl_counter_t requests_resumed;
    avl_counter_t prompt_tokens, generation_tokens;
    avl_counter_t visual_rows_seen, visual_rows_stored, visual_rows_computed, decode_steps;
    avl_counter_t kv_bytes_returned;
    avl_histogram_t first_token, between_tokens, whole_request;
    avl_histogram_t stages[AVL_STAGES];
    avl_histogram_t prompt_length, generation_length;
    /* calls by method and code; the last place is for methods that do not exist */
    const avl_method_t *methods;
    size_t method_count;
    avl_counter_t calls_started[AVL_RPC_METHODS_MAX + 1];
    avl_counter_t calls_ended[AVL_RPC_METHODS_MAX + 1][AVL_RPC_CODES];
} avl_service_metrics_t;

void avl_service_metrics_init(avl_service_metrics_t *metrics);
/* The methods that calls are counted by; kept. Before the server exists. */
void avl_service_metrics_set_methods(avl_service_metrics_t *metrics, const avl_method_t *methods,
                                     size_t method_count);
/* An observer for the server that has those methods. */
avl_server_observer_t avl_service_metrics_server_observer(avl_service_metrics_t *metrics);
void avl_service_metrics_failed(avl_service_metrics_t *metrics, avl_rpc_code_t code);
uint64_t avl_service_metrics_succeeded(const avl_service_metrics_t *metrics);

void avl_service_metrics_write(const avl_service_metrics_t *metrics, avl_exposition_t *exposition);

#endif
