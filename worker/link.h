/* worker/link.h: the leader's line to the coordinator: requests and cancels in, events out.
 *
 * The leader dials (proto/worker.proto, one bidirectional stream); gRPC lives in link.c and in its
 * own threads. The step loop meets them in two bounded queues and is never blocked by the network:
 * an event queue that is full means a coordinator that does not read, and that ends the link. A
 * lost link ends the worker group (the coordinator keeps the requests and replays them elsewhere).
 */
#ifndef AVL_WORKER_LINK_H
#define AVL_WORKER_LINK_H

#include "worker/request.h"
#include "worker/stats.h"

typedef struct avl_link avl_link_t;

/* What the coordinator wants next. */
typedef enum avl_command_kind {
    AVL_COMMAND_NONE,   /* nothing now */
    AVL_COMMAND_SUBMIT, /* `request`: the caller owns it; numbers are as they came: not yet checked
                           against model or capacity */
    AVL_COMMAND_CANCEL, /* `request_id`, `choice` */
    AVL_COMMAND_DRAIN,  /* finish what runs, accept nothing new, leave when idle */
    AVL_COMMAND_LOST,   /* the link is gone: `status`; repeated at every further poll */
} avl_command_kind_t;

typedef struct avl_command {
    avl_command_kind_t kind;
    avl_request_t *request;
    uint64_t request_id;
    int32_t choice; /* -1: all */
    avl_status_t status;
} avl_command_t;

/* What the group tells when it has loaded. */
typedef struct avl_capacity {
    int32_t ranks;
    char device[64];
    char dtype[8];
    int32_t context_rows_max; /* prompt and completion of one request at most */
    int32_t sequences_max;    /* decoded together at most */
    int64_t kv_rows;          /* dense rows that the page pool holds, over all layers */
    int64_t load_ns;
    int64_t picture_bytes_max; /* of all requests at hand, together */
    char fingerprint[32];      /* of the model */
} avl_capacity_t;

/* Dials `address` ("unix:PATH" or "HOST:PORT"), introduces the group by `group_token` (a secret
 * that the coordinator gave its child). Errors: AVL_ERR_UNAVAILABLE when nobody answers within
 * `timeout_ns`. */
AVL_MUST_CHECK avl_status_t avl_link_open(const char *address, const char *group_token,
                                          int64_t timeout_ns, avl_link_t **link_p);
void avl_link_close(avl_link_t *link);

/* What counts as progress between two polls: `count` is called from the link's thread until the
 * link is closed, and grows while the group works. The coordinator ends a group that neither polls
 * nor counts for too long. */
void avl_link_watch(avl_link_t *link, uint64_t (*count)(void *context), void *context);

/* Loading progress, 0..1, and its end. */
void avl_link_loading(avl_link_t *link, double share);
void avl_link_ready(avl_link_t *link, const avl_capacity_t *capacity);
/* What a step did: told together with its events. */
void avl_link_work(avl_link_t *link, const avl_step_work_t *work);
/* How the group stands. What was told before and waits to be sent is replaced; never blocks. */
void avl_link_stats(avl_link_t *link, const avl_stats_t *stats);
/* Tells why the group cannot serve; delivered before avl_link_close returns when the peer still
 * reads. */
void avl_link_failed(avl_link_t *link, avl_status_t status, const char *detail);

/* The next command. Waits for one up to `timeout_ns` (0: only looks). */
void avl_link_poll(avl_link_t *link, int64_t timeout_ns, avl_command_t *command_p);
/* Queues an event; never blocks. Events queued while an earlier message is on its way travel
 * together. */
void avl_link_send(avl_link_t *link, const avl_event_t *event);

#endif
