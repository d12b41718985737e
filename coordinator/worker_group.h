/* coordinator/worker_group.h: one worker group: started, watched, restarted. groups.h holds all.
 *
 *   state        means                                            leaves by
 *   WAITING      no process; the next start waits for its time     start_incarnation
 *   STARTING     a process runs, no leader has called yet          on_attached, end_incarnation
 *   LOADING      the leader is attached, its model loads           on_ready, end_incarnation
 *   READY        requests may be submitted                         end_incarnation
 *   ENDING       link and process are being ended                  finish_incarnation
 *   STOPPED      for good: avl_worker_group_stop, or fatal
 *
 * Each start is a generation, with a secret of its own. An incarnation ends when its link drops,
 * its process ends, it does not attach, load or make progress within its bound; then the whole
 * process group is killed, and after a pause that doubles up to a bound the next one starts. A
 * first load that the worker itself declares impossible is fatal.
 *
 * A group that others have started and that has called by itself (config.program is NULL) begins as
 * LOADING and, when it ends, is STOPPED for good; another one may call.
 *
 * No orphans: every process dies with the coordinator by the kernel's death signal, ranks under
 * mpirun also by the loss of their link; what a killed mpirun leaves behind is swept up. */
#ifndef AVL_COORDINATOR_WORKER_GROUP_H
#define AVL_COORDINATOR_WORKER_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "coordinator/link_server.h"
#include "proto/worker.pb-c.h"

typedef struct avl_worker_group avl_worker_group_t;

typedef enum avl_worker_group_state {
    AVL_WORKER_GROUP_WAITING,
    AVL_WORKER_GROUP_STARTING,
    AVL_WORKER_GROUP_LOADING,
    AVL_WORKER_GROUP_READY,
    AVL_WORKER_GROUP_ENDING,
    AVL_WORKER_GROUP_STOPPED,
} avl_worker_group_state_t;

/* What is known of the group at one moment. */
typedef struct avl_worker_group_view {
    avl_worker_group_state_t state;
    uint64_t generation;
    int restarts; /* starts after the first */
    bool ever_ready;
    bool
        hopeless; /* restarts_max starts in a row failed; it is still tried, at the longest pause */
    double loading_share;
    char reason[AVL_STATUS_DETAIL_BYTES]; /* why the last incarnation ended */
    /* of the last Ready */
    int32_t ranks;
    char device[64];
    char dtype[8];
    int32_t context_rows_max;
    int32_t sequences_max;
    int64_t picture_bytes_max; /* of the prepared pictures it has at hand */
    int64_t load_ns;
    /* of the last Stats; 0 before */
    int64_t pages_total, pages_reserved;
    int32_t queued, active;
} avl_worker_group_view_t;

/* `changed`, `events` and `lost` come from the link's thread or (changed) the supervisor's, without
 * any lock held. `lost` comes after the last `events` of its generation and before the next
 * generation is ready. */
typedef struct avl_worker_group_observer {
    void *context;
    /* Something of the view is new: read it, for two calls may overtake each other. */
    void (*changed)(void *context);
    void (*events)(void *context, uint64_t generation, const Avl__Worker__V1__Events *events);
    void (*lost)(void *context, uint64_t generation);
    /* The group can never serve: the first load failed. */
    void (*fatal)(void *context, avl_status_t status, const char *detail);
} avl_worker_group_observer_t;

typedef struct avl_worker_group_config {
    const char *program;  /* avl-worker; NULL: the group is there already */
    const char *launcher; /* mpirun; used for more than one rank */
    int ranks;
    avl_link_server_t *links;
    const char *link_address; /* where they listen */
    /* Of a group that calls by itself: */
    const char *fingerprint;      /* of the model that it must serve; NULL: any */
    const char *dtype;            /* that it must compute in; NULL: any */
    const char *const *arguments; /* of the worker, after --coordinator ADDRESS; NULL-terminated */
    int64_t attach_ns;            /* bound from start to hello */
    int64_t load_ns;              /* bound between two signs of loading */
    int64_t pong_ns;              /* bound between two pongs that tell of progress */
    int64_t ping_ns;              /* between pings */
    int64_t pause_ns;             /* before the first restart; doubles */
    int64_t pause_max_ns;
    int restarts_max;
} avl_worker_group_config_t;

/* Keeps `config`'s strings. Errors: AVL_ERR_IO, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_worker_group_create(const avl_worker_group_config_t *config,
                                                    const avl_worker_group_observer_t *observer,
                                                    avl_worker_group_t **group_p);
/* Starts the first generation, or watches the group that is there. Errors: AVL_ERR_EXHAUSTED
 * without a thread. */
AVL_MUST_CHECK avl_status_t avl_worker_group_start(avl_worker_group_t *group);
/* From the link server's observer: what concerns this group's generation. */
void avl_worker_group_attached(avl_worker_group_t *group, uint64_t generation,
                               const Avl__Worker__V1__Hello *hello);
void avl_worker_group_message(avl_worker_group_t *group, uint64_t generation,
                              const Avl__Worker__V1__WorkerMessage *message);
void avl_worker_group_detached(avl_worker_group_t *group, uint64_t generation);
void avl_worker_group_view(avl_worker_group_t *group, avl_worker_group_view_t *view_p);
/* What the group's leader told last, as a message to be freed with
 * avl__worker__v1__stats__free_unpacked; NULL when it has told nothing since its start. */
Avl__Worker__V1__Stats *avl_worker_group_stats(avl_worker_group_t *group);
/* Sends to that generation if it is ready. Errors: AVL_ERR_UNAVAILABLE. */
AVL_MUST_CHECK avl_status_t avl_worker_group_submit(avl_worker_group_t *group, uint64_t generation,
                                                    Avl__Worker__V1__Submit *submit);
/* One answer, or all of them (`choice` -1). */
void avl_worker_group_cancel(avl_worker_group_t *group, uint64_t generation, uint64_t request_id,
                             int32_t choice);
/* Asks the group to drain, and to leave within `drain_ns`. Observers hear nothing from here on. */
void avl_worker_group_part(avl_worker_group_t *group, int64_t drain_ns);
/* Waits for that, then kills it. */
void avl_worker_group_stop(avl_worker_group_t *group, int64_t drain_ns);
void avl_worker_group_destroy(avl_worker_group_t *group);

#endif
