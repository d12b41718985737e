/* coordinator/request_record.h: one request's account: what it adds to the service's metrics, and
 * the one line in the log that tells how it ended.
 *
 * It is a part of a live request (requests.h), whose lock guards it. */
#ifndef AVL_COORDINATOR_REQUEST_RECORD_H
#define AVL_COORDINATOR_REQUEST_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/service_metrics.h"
#include "proto/worker.pb-c.h"

typedef enum avl_request_phase {
    AVL_REQUEST_WAITING,
    AVL_REQUEST_RUNNING,
    AVL_REQUEST_OVER,
} avl_request_phase_t;

typedef struct avl_request_record {
    avl_service_metrics_t *metrics;
    uint64_t id;
    avl_request_phase_t phase;
    int64_t arrival_ns;
    int64_t first_token_ns;       /* 0: none yet */
    int64_t stage_ns[AVL_STAGES]; /* -1: the request has no such stage, or never came so far */
    int32_t token_count;
    int32_t resumptions;
} avl_request_record_t;

/* Of several answers to a request, what the group reported of each, together. */
typedef struct avl_request_sums {
    int32_t visual_rows_seen, visual_rows_stored; /* of one: the prompt is the same */
    int64_t visual_rows_computed, kv_bytes_returned;
    int64_t decode_steps;
    bool cut; /* one of them by its length */
} avl_request_sums_t;

/* Begins as WAITING. */
void avl_request_record_begin(avl_request_record_t *record, avl_service_metrics_t *metrics,
                              uint64_t id, int64_t arrival_ns);
void avl_request_record_phase(avl_request_record_t *record, avl_request_phase_t phase);
/* Its group is lost, and it goes to another. */
void avl_request_record_resumed(avl_request_record_t *record, const char *name);
/* A new token (not one that is replayed); `last_ns`: the one before it in its answer, 0: none. */
void avl_request_record_token(avl_request_record_t *record, int64_t last_ns, int64_t now_ns);

/* The group has let go of it: how long it was at work. `pictures`: there are any; `waited_ns`:
 * before it was given to a group. */
void avl_request_record_result(avl_request_record_t *record, const Avl__Worker__V1__Result *result,
                               bool pictures, int64_t waited_ns);

/* The ends; `name` is the caller's ("": none). The first one counts. */
void avl_request_record_answered(avl_request_record_t *record, const char *name,
                                 const avl_request_sums_t *sums, int32_t prompt_tokens,
                                 int32_t visual_tokens);
void avl_request_record_failed(avl_request_record_t *record, const char *name, avl_rpc_code_t code,
                               const char *detail);

#endif
