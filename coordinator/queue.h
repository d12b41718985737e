/* coordinator/queue.h: who is let in, and in which order requests go to the groups.
 *
 * Bounded: every live request of the service has a place, whether it waits or is at work. Once a
 * second tenant is known, one tenant alone may hold at most AVL_QUEUE_SHARE x its weight times as
 * many places as are free (dynamic thresholds, Choudhury and Hahne, 1998): however many requests it
 * sends, others find room.
 *
 * Order: resumed requests before all; then the higher priority; then the tenant that has had the
 * least for its weight (start-time fair queueing, Goyal et al., 1996, in tokens); then the earlier
 * due time; then the earlier arrival.
 *
 * Not locked: its user guards it. It knows no clock. */
#ifndef AVL_COORDINATOR_QUEUE_H
#define AVL_COORDINATOR_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "coordinator/validate.h"

#define AVL_QUEUE_SHARE 8

typedef struct avl_queue avl_queue_t;
typedef struct avl_tenant avl_tenant_t;

typedef struct avl_tenant_weight {
    char name[AVL_TENANT_BYTES_MAX + 1];
    double weight; /* > 0; of tenants that are not named: 1 */
} avl_tenant_weight_t;

/* A part of whatever waits. */
typedef struct avl_queue_entry {
    void *owner;
    avl_tenant_t *tenant;
    bool resumed; /* was at work when its group was lost; its cost has been charged */
    int32_t priority;
    int64_t due_ns;
    uint64_t arrival; /* a number that grows */
    int64_t cost;     /* tokens, prompt and answer */
    /* the queue's */
    bool queued;
    size_t place;
} avl_queue_entry_t;

/* Keeps a copy of `weights`. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_queue_create(size_t places_max, const avl_tenant_weight_t *weights,
                                             size_t weight_count, avl_queue_t **queue_p);
void avl_queue_destroy(avl_queue_t *queue);

/* Takes a place for a request of the tenant called `name` (at most AVL_TENANT_BYTES_MAX bytes).
 * Errors: AVL_ERR_EXHAUSTED (no place is free, or none for this tenant), AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_queue_enter(avl_queue_t *queue, const char *name,
                                            avl_tenant_t **tenant_p);
/* Gives the place back. */
void avl_queue_leave(avl_queue_t *queue, avl_tenant_t *tenant);
const char *avl_tenant_name(const avl_tenant_t *tenant);
/* That its requests hold. */
size_t avl_tenant_places(const avl_tenant_t *tenant);

/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_queue_add(avl_queue_t *queue, avl_queue_entry_t *entry);
/* Nothing happens when it is not queued. */
void avl_queue_remove(avl_queue_t *queue, avl_queue_entry_t *entry);
/* Whose turn it is, or NULL. It stays. */
avl_queue_entry_t *avl_queue_first(avl_queue_t *queue);
/* The first one goes, and its tenant is charged its cost. */
void avl_queue_take(avl_queue_t *queue, avl_queue_entry_t *entry);
/* Corrects a charge once the real cost is known. */
void avl_queue_charge(avl_queue_t *queue, avl_tenant_t *tenant, int64_t tokens);
size_t avl_queue_count(const avl_queue_t *queue);

/* All that wait in the order in which they will go, and `newcomer` (which is not queued; NULL:
 * none) where it would be: list_p[0..*count_p), until the next call. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_queue_order(avl_queue_t *queue, avl_queue_entry_t *newcomer,
                                            avl_queue_entry_t *const **list_p, size_t *count_p);

#endif
