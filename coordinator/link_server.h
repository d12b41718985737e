/* coordinator/link_server.h: the coordinator's end of proto/worker.proto: lets leaders in, and
 * carries messages.
 *
 * It checks who calls (the version, and the secret of a group that was started) and refuses the
 * rest. A second door, for groups that others have started, knows one secret for all. What the
 * messages mean is the observer's business (groups.c).
 *
 * Threads: each door has one, which calls the observer's functions for the leaders that came in
 * there, in the order of the wire; they may call the functions below, which are for any thread. */
#ifndef AVL_COORDINATOR_LINK_SERVER_H
#define AVL_COORDINATOR_LINK_SERVER_H

#include <stdint.h>

#include "base/status.h"
#include "proto/worker.pb-c.h"

#define AVL_JOIN_SECRET_BYTES_MIN 16
#define AVL_JOIN_SECRET_BYTES_MAX 127

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
/* Opens the second door, where any leader with `secret` (kept, at least
 * AVL_JOIN_SECRET_BYTES_MIN bytes) comes in, as a generation of its own; once. Errors: those of
 * avl_server_create; AVL_ERR_INVALID (the secret). */
AVL_MUST_CHECK avl_status_t avl_link_server_open(avl_link_server_t *server, const char *address,
                                                 const char *secret);
/* Where it is, with the real port. */
const char *avl_link_server_join_address(const avl_link_server_t *server);
/* A number that no group had before. */
uint64_t avl_link_server_next_generation(avl_link_server_t *server);
/* A leader that may come in, once. A `token` of NULL: it may not any more. */
void avl_link_server_expect(avl_link_server_t *server, uint64_t generation, const char *token);
/* Errors: AVL_ERR_UNAVAILABLE when the leader of `generation` is not attached. */
AVL_MUST_CHECK avl_status_t
avl_link_server_send(avl_link_server_t *server, uint64_t generation,
                     const Avl__Worker__V1__CoordinatorMessage *message);
/* Ends the leader's link; `detached` follows if it was attached. */
void avl_link_server_drop(avl_link_server_t *server, uint64_t generation, const char *reason);
void avl_link_server_destroy(avl_link_server_t *server);

#endif
