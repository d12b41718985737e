/* coordinator/link_server.h: the coordinator's end of proto/worker.proto: lets one leader in, and
 * carries messages.
 *
 * It checks who calls (the version, the secret of the group that was started last) and refuses the
 * rest. What the messages mean is the observer's business (worker_group.c).
 *
 * Threads: the observer's functions are called by the server's one thread, one at a time and in the
 * order of the wire; they may call the functions below, which are for any thread. */
#ifndef AVL_COORDINATOR_LINK_SERVER_H
#define AVL_COORDINATOR_LINK_SERVER_H

#include <stdint.h>

#include "base/status.h"
#include "proto/worker.pb-c.h"

typedef struct avl_link_server avl_link_server_t;

typedef struct avl_link_observer {
    void *context;
    /* The leader of group `generation` is there. */
    void (*attached)(void *context, uint64_t generation, const Avl__Worker__V1__Hello *hello);
    /* Any message but hello. */
    void (*message)(void *context, uint64_t generation,
                    const Avl__Worker__V1__WorkerMessage *message);
    /* Its link is gone; nothing more comes of this generation. */
    void (*detached)(void *context, uint64_t generation);
} avl_link_observer_t;

/* Errors: those of avl_server_create. */
AVL_MUST_CHECK avl_status_t avl_link_server_create(const char *address,
                                                   const avl_link_observer_t *observer,
                                                   avl_link_server_t **server_p);
/* The leader that is expected next. A `token` of NULL: none. */
void avl_link_server_expect(avl_link_server_t *server, uint64_t generation, const char *token);
/* Errors: AVL_ERR_UNAVAILABLE when the leader of `generation` is not attached. */
AVL_MUST_CHECK avl_status_t
avl_link_server_send(avl_link_server_t *server, uint64_t generation,
                     const Avl__Worker__V1__CoordinatorMessage *message);
/* Ends the leader's link; `detached` follows if it was attached. */
void avl_link_server_drop(avl_link_server_t *server, uint64_t generation, const char *reason);
void avl_link_server_destroy(avl_link_server_t *server);

#endif
