/* coordinator/requests.h: the table of live requests, and each one's way to its end.
 *
 *   state      means                                              leaves by
 *   PREPARING  pictures and text become numbers (generate.c)      avl_live_request_begin, any end
 *   WAITING    prepared; in the queue (admission.h)               submit, any end
 *   RUNNING    submitted to group `generation`                    lost -> WAITING, any end
 *   DONE       the call has its status, or is gone; out of the table
 *
 * A request outlives its group: prompt, parameters, seed and the tokens already sent stay here;
 * when the group is lost the request waits for the next one, which gets the tokens as a replay. A
 * group may die by chance: all its requests go on together at first. Those that then see another
 * one die without having got a token in between are suspects, and given to groups one at a time
 * until they make progress, beside requests that are none; one that was there when groups died
 * three times in a row is ended.
 *
 * Locks: a request's lock comes before the table's, the group's and the call's. Nobody holds two
 * requests' locks. Threads: any; avl_requests_group_events and _lost come from one. */
#ifndef AVL_COORDINATOR_REQUESTS_H
#define AVL_COORDINATOR_REQUESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "checkpoint/image_layout.h"
#include "coordinator/admission.h"
#include "coordinator/choice.h"
#include "coordinator/grpc_server.h"
#include "coordinator/image_identity.h"
#include "coordinator/service_metrics.h"
#include "coordinator/validate.h"
#include "coordinator/worker_group.h"
#include "inputs/tokenizer.h"
#include "proto/inference.pb-c.h"

typedef struct avl_requests avl_requests_t;
typedef struct avl_live_request avl_live_request_t;

typedef struct avl_prepared_image {
    avl_image_layout_t layout;
    int32_t first_row;
    uint8_t *pixels;
    size_t pixel_bytes;
    uint8_t digest[AVL_IMAGE_DIGEST_BYTES]; /* its identity, for this tenant */
} avl_prepared_image_t;

/* A request as numbers. */
typedef struct avl_prepared {
    char name[AVL_REQUEST_ID_BYTES_MAX + 1]; /* the caller's, for logs */
    char tenant[AVL_TENANT_BYTES_MAX + 1];   /* nothing is shared between two; empty: the default */
    int32_t *token_ids;                      /* picture rows hold -1 */
    int32_t row_count;
    int32_t visual_rows;
    avl_prepared_image_t *images;
    size_t image_count;
    avl_attention_params_t attention;
    avl_sampling_choice_t sampling;
    avl_choice_t *choices; /* NULL: one, that ends before no text */
    int32_t choice_count;
    int32_t max_tokens;  /* 0: as many as the context holds */
    int32_t *forced_ids; /* the answer, when the client chose it */
    int32_t forced_count;
    int32_t priority;
    bool ignore_eos;
    int64_t preprocess_ns;
} avl_prepared_t;

void avl_prepared_free(avl_prepared_t *prepared);

typedef struct avl_requests_config {
    const avl_tokenizer_t *tokenizer;
    avl_admission_t *admission; /* borrowed */
    int64_t timeout_ns; /* of a request whose client sets no earlier deadline; AVL_DEADLINE_NONE */
    avl_service_metrics_t *metrics;
} avl_requests_config_t;

AVL_MUST_CHECK avl_status_t avl_requests_create(const avl_requests_config_t *config,
                                                avl_requests_t **requests_p);
/* The groups that requests go to; before the first admission. */
void avl_requests_set_groups(avl_requests_t *requests, avl_groups_t *groups);
/* Ends the table's own thread, which looks at the groups: before they go. One thread calls it. */
void avl_requests_stop(avl_requests_t *requests);
/* All calls must be over. */
void avl_requests_destroy(avl_requests_t *requests);

/* Takes a call in, which says `asked` of itself: it becomes a PREPARING request, and the call's
 * user pointer. Errors: AVL_ERR_EXHAUSTED (too many), AVL_ERR_DEADLINE, AVL_ERR_UNAVAILABLE
 * (draining, or the group is hopeless), AVL_ERR_MEMORY. The caller holds a reference. */
AVL_MUST_CHECK avl_status_t avl_requests_admit(avl_requests_t *requests, avl_call_t *call,
                                               const char *tenant, const avl_asked_t *asked,
                                               avl_live_request_t **request_p);
/* After how long a client that was refused for lack of room should try again. */
int64_t avl_requests_retry_ns(avl_requests_t *requests);
const char *avl_live_request_tenant(const avl_live_request_t *request);
void avl_live_request_unref(avl_live_request_t *request);
/* False when the request has ended: preparing it on is a waste. */
bool avl_live_request_wanted(avl_live_request_t *request);
/* What the caller calls it, for the log; known before the rest is prepared. */
void avl_live_request_named(avl_live_request_t *request, const char *name);
/* The client wants progress from here on. */
void avl_live_request_want_progress(avl_live_request_t *request);
void avl_live_request_progress(avl_live_request_t *request, Avl__V1__Stage stage, uint32_t done,
                               uint32_t total);
/* Preparation is over: the request waits for its group, or goes there. Takes over what *prepared
 * owns. */
void avl_live_request_begin(avl_live_request_t *request, avl_prepared_t *prepared);
/* Ends it with a failure; `detail` names the cause. */
void avl_live_request_fail(avl_live_request_t *request, avl_status_t status, const char *detail);
/* The call is over (`close`): the worker is told at once. Releases the call's reference. */
void avl_live_request_closed(avl_live_request_t *request);

/* From the group's observer. */
void avl_requests_group_changed(avl_requests_t *requests);
void avl_requests_group_events(avl_requests_t *requests, uint64_t generation,
                               const Avl__Worker__V1__Events *events);
void avl_requests_group_lost(avl_requests_t *requests, uint64_t generation);

/* From here on nothing is admitted. */
void avl_requests_drain(avl_requests_t *requests);
/* Waits until no request lives, or until `deadline_ns`; returns how many live. */
size_t avl_requests_wait(avl_requests_t *requests, int64_t deadline_ns);
void avl_requests_fail_all(avl_requests_t *requests, avl_status_t status, const char *detail);
size_t avl_requests_count(avl_requests_t *requests);

#endif
