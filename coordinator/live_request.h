/* coordinator/live_request.h: what a live request is made of; for requests.c, which leads it, and
 * live_answer.c, which turns what groups report into the client's stream. */
#ifndef AVL_COORDINATOR_LIVE_REQUEST_H
#define AVL_COORDINATOR_LIVE_REQUEST_H

#include <pthread.h>
#include <stdatomic.h>

#include "coordinator/request_record.h"
#include "coordinator/requests.h"

#define AVL_REQUESTS_BUCKETS 256

typedef enum state {
    STATE_PREPARING,
    STATE_WAITING,
    STATE_RUNNING,
    STATE_DONE,
} state_t;

struct avl_live_request {
    avl_requests_t *requests;
    uint64_t id;
    atomic_int references;
    avl_call_t *call; /* a reference is held */
    int64_t arrival_ns, deadline_ns;
    avl_live_request_t *next; /* in its bucket; the table's lock */
    char tenant[AVL_TENANT_BYTES_MAX + 1];
    avl_ticket_t ticket; /* the admission's */

    pthread_mutex_t lock; /* all below */
    state_t state;
    bool progress;
    avl_prepared_t prepared;
    avl_request_record_t record;
    int32_t max_tokens; /* resolved at submission */
    uint64_t generation;
    int32_t choices_left;             /* answers that are not over */
    size_t sent_count;                /* tokens of all answers */
    int32_t loading_permille;         /* last told */
    int strikes;                      /* group deaths since the last token */
    avl_request_sums_t sums;          /* of the answers that are over */
    int64_t waiting_ns, submitted_ns; /* first times */
};

struct avl_requests {
    avl_requests_config_t config;
    avl_groups_t *groups;
    pthread_t ticker;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t changed;
    avl_live_request_t *buckets[AVL_REQUESTS_BUCKETS];
    size_t count;
    uint64_t next_id;
    bool draining, stopping;
};

/* All of these: the request's lock is held. */

/* The one way out of the table. */
void avl_live_done_locked(avl_live_request_t *live);
void avl_live_fail_locked(avl_live_request_t *live, avl_status_t status, const char *detail);
/* A client that does not read is let go of; it must not gather memory here. */
void avl_live_send_locked(avl_live_request_t *live, const Avl__V1__GenerateResponse *response);
void avl_live_progress_locked(avl_live_request_t *live, Avl__V1__Stage stage, uint32_t done,
                              uint32_t total);
/* What its group reports. */
void avl_live_event_locked(avl_live_request_t *live, const Avl__Worker__V1__Event *event);
/* The group was lost before it could report answers that are whole: they end. */
void avl_live_answer_without_report_locked(avl_live_request_t *live);

#endif
