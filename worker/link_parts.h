/* worker/link_parts.h: parts of worker/link.c that know gRPC or messages, but not the link's state.
 * Included by link*.c alone. */
#ifndef AVL_WORKER_LINK_PARTS_H
#define AVL_WORKER_LINK_PARTS_H

#include <grpc/grpc.h>

#include "proto/worker.pb-c.h"
#include "worker/stats.h"

/* Ledgers of so many ranks travel; more ranks hold the same lines. */
#define AVL_LINK_RANKS_MAX 64

typedef struct avl_link_memory_message {
    Avl__Worker__V1__RankMemory memory;
    Avl__Worker__V1__MemoryLine lines[AVL_LEDGER_LINES_MAX];
    Avl__Worker__V1__MemoryLine *list[AVL_LEDGER_LINES_MAX];
} avl_link_memory_message_t;

typedef struct avl_link_times_message {
    Avl__Worker__V1__RankCollectives collectives;
    Avl__Worker__V1__CollectiveTime operations[AVL_GROUP_OPERATIONS];
    Avl__Worker__V1__CollectiveTime *list[AVL_GROUP_OPERATIONS];
} avl_link_times_message_t;

typedef struct avl_link_stats_message {
    Avl__Worker__V1__Stats stats;
    Avl__Worker__V1__CacheStats encoder_cache, prompt_cache;
    avl_link_memory_message_t memories[AVL_LINK_RANKS_MAX];
    Avl__Worker__V1__RankMemory *list[AVL_LINK_RANKS_MAX];
    avl_link_times_message_t times[AVL_LINK_RANKS_MAX];
    Avl__Worker__V1__RankCollectives *times_list[AVL_LINK_RANKS_MAX];
} avl_link_stats_message_t;

typedef struct avl_link_logprobs {
    size_t count;
    int32_t ids[AVL_LOGPROBS_MAX];
    float values[AVL_LOGPROBS_MAX];
} avl_link_logprobs_t;

/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_link_logprobs_copy(const avl_event_t *event,
                                                   avl_link_logprobs_t **logprobs_p);
/* A request of what the message owns, which that loses. Errors: AVL_ERR_DATA, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_link_request_take(Avl__Worker__V1__Submit *submit,
                                                  avl_request_t **request_p);
/* Returns `to`. */
Avl__Worker__V1__Work *avl_link_work_fill(const avl_step_work_t *work, Avl__Worker__V1__Work *to);
grpc_channel *avl_link_channel_create(const char *address);
/* The message points into *to and into `stats`. */
void avl_link_stats_fill(const avl_stats_t *stats, avl_link_stats_message_t *to);

#endif
