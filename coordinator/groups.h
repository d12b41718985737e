/* coordinator/groups.h: all worker groups of the service: replicas of one model.
 *
 * Some are started here (replicas) and restarted when they end; others may join while the service
 * runs, by calling with the operator's secret, and leave when they end. A generation names one
 * life of one group, and never comes again.
 *
 * Which group a request goes to: one that is ready and has room, that is, fewer requests than it
 * decodes side by side and a few more, so that its next step need not wait for the line; a group
 * whose pages are taken gets none beyond those, nor more pictures than it has memory for. Of these,
 * the one with the least load; if it has pictures, the one that the first picture's identity points
 * to (rendezvous hashing: it very likely has the features) unless its load is more than
 * AVL_GROUPS_SLACK above the least.
 *
 * Threads: any. The observer's functions come without a lock held, those of one generation one at a
 * time and in order. */
#ifndef AVL_COORDINATOR_GROUPS_H
#define AVL_COORDINATOR_GROUPS_H

#include "coordinator/worker_group.h"

#define AVL_GROUPS_MAX 64
#define AVL_GROUPS_SLACK 0.25

typedef struct avl_groups avl_groups_t;

typedef struct avl_groups_config {
    avl_worker_group_config_t group; /* `links` is filled in */
    int replicas;                    /* to start */
    const char *join_address;        /* NULL: nobody may join */
    const char *join_secret;
} avl_groups_config_t;

typedef struct avl_groups_view {
    int count, ready; /* groups */
    bool hopeless;    /* none is ready, none can be started, and none may join */
    double loading_share;
    int32_t sequences_max;                /* of those ready, together */
    int32_t parallel;                     /* the same, as far as pages allow now */
    avl_worker_group_view_t best;         /* of one that is ready, else of the one most advanced */
    char reason[AVL_STATUS_DETAIL_BYTES]; /* when hopeless */
} avl_groups_view_t;

/* What a request needs. */
typedef struct avl_groups_need {
    int32_t rows;          /* of context */
    int32_t answers;       /* side by side; 0 is 1 */
    uint64_t picture;      /* of the identity of its first picture; 0: none */
    int64_t picture_bytes; /* of all its pictures, prepared */
} avl_groups_need_t;

/* `fatal` comes when no group can ever serve. Keeps the configuration's strings. Errors: those of
 * the link server. */
AVL_MUST_CHECK avl_status_t avl_groups_create(const avl_groups_config_t *config,
                                              const avl_worker_group_observer_t *observer,
                                              avl_groups_t **groups_p);
/* Starts the replicas. Errors: AVL_ERR_EXHAUSTED. */
AVL_MUST_CHECK avl_status_t avl_groups_start(avl_groups_t *groups);
void avl_groups_view(avl_groups_t *groups, avl_groups_view_t *view_p);
/* The groups there are, for those who watch: calls `each` with every one, under the lock. */
void avl_groups_each(avl_groups_t *groups,
                     void (*each)(void *context, int number, avl_worker_group_t *group),
                     void *context);

/* Chooses a group and takes a place in it for every answer, and the room of the pictures; an idle
 * group takes more answers than it has room for. Errors: AVL_ERR_UNAVAILABLE (none is ready),
 * AVL_ERR_EXHAUSTED (none has room now), AVL_ERR_TOO_LARGE (none has a context of so many rows, or
 * room for such pictures). */
AVL_MUST_CHECK avl_status_t avl_groups_reserve(avl_groups_t *groups, const avl_groups_need_t *need,
                                               uint64_t *generation_p);
/* Gives the places back; after the group's end nothing happens. */
void avl_groups_release(avl_groups_t *groups, uint64_t generation, const avl_groups_need_t *need);
/* Rows of context in that group; 0 when it has ended. */
int32_t avl_groups_context(avl_groups_t *groups, uint64_t generation);
/* Errors: AVL_ERR_UNAVAILABLE. */
AVL_MUST_CHECK avl_status_t avl_groups_submit(avl_groups_t *groups, uint64_t generation,
                                              Avl__Worker__V1__Submit *submit);
/* One answer, or all of them (`choice` -1). */
void avl_groups_cancel(avl_groups_t *groups, uint64_t generation, uint64_t request_id,
                       int32_t choice);

/* As avl_worker_group_stop, all at once. */
void avl_groups_stop(avl_groups_t *groups, int64_t drain_ns);
void avl_groups_destroy(avl_groups_t *groups);

#endif
