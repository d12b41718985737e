/* comm/loopback.c: a group whose ranks are threads of this process.
 *
 * Every operation is the same dance: publish what the call is and where its data lies, meet, let
 * each rank do its share of the copying or adding, meet again.
 *
 * Invariants:
 *
 * 1. The first meeting is bounded by the caller's time-out; whoever gives up marks the whole group
 *    as failed, so that nobody is left waiting and nobody touches the data of a rank that has gone.
 *
 * 2. The second meeting is not bounded: all ranks are inside the call with only memory traffic left
 *    to do.
 *
 * 3. During the share, an element of anybody's data is written by one rank and read by that rank
 *    alone. Sums are taken in the order of the ranks, so that results do not depend on timing. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"

/* Far more than a process has use for. */
#define RANKS_MAX 1024

typedef struct loopback_call {
    const char *name;
    uint64_t extent; /* bytes or elements: what must be equal on all ranks */
    void *data;
    int arrived;
} loopback_call_t;

typedef struct loopback_hub {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int ranks;
    int handles; /* not closed yet */
    int waiting;
    uint64_t meeting; /* number of meetings that took place */
    uint64_t wakes;
    avl_status_t failed;
    int left_rank; /* a rank that closed its handle; -1: none */
    char cause[160];
    loopback_call_t *calls; /* [ranks] */
} loopback_hub_t;

typedef struct loopback_group {
    avl_group_t head;
    loopback_hub_t *hub;
    uint64_t wakes_seen;
} loopback_group_t;

static void hub_destroy(loopback_hub_t *hub) {
    pthread_cond_destroy(&hub->changed);
    pthread_mutex_destroy(&hub->lock);
    free(hub->calls);
    free(hub);
}

static void loopback_close(avl_group_t *group) {
    loopback_group_t *self = (loopback_group_t *)group;
    loopback_hub_t *hub = self->hub;
    pthread_mutex_lock(&hub->lock);
    if (hub->left_rank < 0)
        hub->left_rank = group->rank;
    int last = --hub->handles == 0;
    pthread_cond_broadcast(&hub->changed);
    pthread_mutex_unlock(&hub->lock);
    if (last)
        hub_destroy(hub);
    free(self);
}

/* Waits for a change until the deadline; false when that has passed. Called with the lock held. */
static int wait_change(loopback_hub_t *hub, int64_t deadline_ns) {
    if (deadline_ns == AVL_DEADLINE_NONE)
        return pthread_cond_wait(&hub->changed, &hub->lock) == 0;
    struct timespec until = {.tv_sec = deadline_ns / AVL_NS_PER_S,
                             .tv_nsec = deadline_ns % AVL_NS_PER_S};
    return pthread_cond_timedwait(&hub->changed, &hub->lock, &until) != ETIMEDOUT;
}

/* Called with the lock held. */
static avl_status_t mark_failed(loopback_hub_t *hub, avl_status_t status, const char *cause) {
    hub->failed = status;
    snprintf(hub->cause, sizeof hub->cause, "%s", cause);
    pthread_cond_broadcast(&hub->changed);
    return avl_fail(status, "%s", cause);
}

static avl_status_t give_up(loopback_hub_t *hub, const avl_group_t *group, const char *name) {
    int missing = 0;
    while (missing < hub->ranks - 1 && hub->calls[missing].arrived)
        missing++;
    char cause[160];
    snprintf(cause, sizeof cause, "rank %d waited %.3f s in %s for rank %d", group->rank,
             (double)group->timeout_ns / (double)AVL_NS_PER_S, name, missing);
    return mark_failed(hub, AVL_ERR_TIMEOUT, cause);
}

/* Called with the lock held; a bounded meeting fails when a rank does not come. */
static avl_status_t meet(loopback_group_t *self, const char *name, int bounded) {
    loopback_hub_t *hub = self->hub;
    uint64_t meeting = hub->meeting;
    if (++hub->waiting == hub->ranks) {
        hub->waiting = 0;
        hub->meeting++;
        pthread_cond_broadcast(&hub->changed);
        return AVL_OK;
    }
    int64_t deadline_ns =
        bounded ? avl_group_deadline_ns(self->head.timeout_ns) : AVL_DEADLINE_NONE;
    for (;;) {
        if (hub->meeting != meeting)
            return AVL_OK;
        if (hub->failed != AVL_OK)
            return avl_fail(AVL_ERR_COMM, "rank %d in %s: %s", self->head.rank, name, hub->cause);
        if (hub->left_rank >= 0 && bounded) {
            char cause[160];
            snprintf(cause, sizeof cause, "rank %d left the group during %s of rank %d",
                     hub->left_rank, name, self->head.rank);
            return mark_failed(hub, AVL_ERR_COMM, cause);
        }
        if (!wait_change(hub, deadline_ns) && hub->meeting == meeting && hub->failed == AVL_OK)
            return give_up(hub, &self->head, name);
    }
}

/* All ranks must be in the same call with the same extent: otherwise the callers are out of step.
 */
static avl_status_t check_calls(loopback_hub_t *hub, int own) {
    const loopback_call_t *mine = &hub->calls[own];
    for (int rank = 0; rank < hub->ranks; rank++) {
        const loopback_call_t *other = &hub->calls[rank];
        if (strcmp(other->name, mine->name) != 0 || other->extent != mine->extent)
            return avl_fail(AVL_ERR_COMM,
                            "out of step: rank %d calls %s of %llu, rank %d %s of %llu", own,
                            mine->name, (unsigned long long)mine->extent, rank, other->name,
                            (unsigned long long)other->extent);
    }
    return AVL_OK;
}

static avl_status_t enter(loopback_group_t *self, const char *name, uint64_t extent, void *data) {
    loopback_hub_t *hub = self->hub;
    loopback_call_t *call = &hub->calls[self->head.rank];
    pthread_mutex_lock(&hub->lock);
    *call = (loopback_call_t){.name = name, .extent = extent, .data = data, .arrived = 1};
    avl_status_t status;
    if (hub->failed != AVL_OK)
        status = avl_fail(AVL_ERR_COMM, "rank %d in %s: %s", self->head.rank, name, hub->cause);
    else
        status = meet(self, name, 1);
    if (status == AVL_OK)
        status = check_calls(hub, self->head.rank);
    pthread_mutex_unlock(&hub->lock);
    return status;
}

static void leave(loopback_group_t *self) {
    loopback_hub_t *hub = self->hub;
    pthread_mutex_lock(&hub->lock);
    hub->calls[self->head.rank].arrived = 0;
    /* Cannot fail: a failure is only ever declared by a rank outside the shares. */
    avl_status_t status = meet(self, "leaving", 0);
    AVL_ASSERT(status == AVL_OK);
    pthread_mutex_unlock(&hub->lock);
}

static avl_status_t loopback_broadcast(avl_group_t *group, void *data, size_t bytes) {
    loopback_group_t *self = (loopback_group_t *)group;
    AVL_TRY(enter(self, "broadcast", bytes, data));
    if (group->rank != 0)
        memcpy(data, self->hub->calls[0].data, bytes);
    leave(self);
    return AVL_OK;
}

/* The sum of element `index` over all ranks, in their order. */
static float sum_at(const loopback_hub_t *hub, int64_t index) {
    float sum = ((const float *)hub->calls[0].data)[index];
    for (int rank = 1; rank < hub->ranks; rank++)
        sum += ((const float *)hub->calls[rank].data)[index];
    return sum;
}

static avl_status_t loopback_all_reduce(avl_group_t *group, float *data, int64_t count) {
    loopback_group_t *self = (loopback_group_t *)group;
    loopback_hub_t *hub = self->hub;
    AVL_TRY(enter(self, "all-reduce", (uint64_t)count, data));
    int64_t first, last;
    avl_group_slice(count, group->rank, group->ranks, &first, &last);
    for (int64_t index = first; index < last; index++) {
        float sum = sum_at(hub, index);
        for (int rank = 0; rank < hub->ranks; rank++)
            ((float *)hub->calls[rank].data)[index] = sum;
    }
    leave(self);
    return AVL_OK;
}

static avl_status_t loopback_all_gather(avl_group_t *group, void *data, size_t item_bytes) {
    loopback_group_t *self = (loopback_group_t *)group;
    AVL_TRY(enter(self, "all-gather", item_bytes, data));
    for (int rank = 0; rank < group->ranks; rank++)
        if (rank != group->rank)
            memcpy((char *)data + (size_t)rank * item_bytes,
                   (const char *)self->hub->calls[rank].data + (size_t)rank * item_bytes,
                   item_bytes);
    leave(self);
    return AVL_OK;
}

static avl_status_t loopback_gather(avl_group_t *group, const void *source,
                                    const size_t *bytes_by_rank, void *target) {
    loopback_group_t *self = (loopback_group_t *)group;
    size_t before = 0, total = 0;
    for (int rank = 0; rank < group->ranks; rank++) {
        before += rank < group->rank ? bytes_by_rank[rank] : 0;
        total += bytes_by_rank[rank];
    }
    AVL_TRY(enter(self, "gather", total, target));
    size_t own_bytes = bytes_by_rank[group->rank];
    char *place = (char *)self->hub->calls[0].data + before;
    if (own_bytes && place != source) /* rank 0's part may lie in its place already */
        memcpy(place, source, own_bytes);
    leave(self);
    return AVL_OK;
}

static avl_status_t loopback_wake(avl_group_t *group) {
    loopback_hub_t *hub = ((loopback_group_t *)group)->hub;
    pthread_mutex_lock(&hub->lock);
    hub->wakes++;
    pthread_cond_broadcast(&hub->changed);
    pthread_mutex_unlock(&hub->lock);
    return AVL_OK;
}

static avl_status_t loopback_wait(avl_group_t *group, int64_t timeout_ns) {
    loopback_group_t *self = (loopback_group_t *)group;
    loopback_hub_t *hub = self->hub;
    int64_t deadline_ns = avl_group_deadline_ns(timeout_ns);
    avl_status_t status = AVL_OK;
    pthread_mutex_lock(&hub->lock);
    while (hub->wakes == self->wakes_seen && status == AVL_OK) {
        if (hub->failed != AVL_OK)
            status = avl_fail(AVL_ERR_COMM, "rank %d waiting: %s", group->rank, hub->cause);
        else if (hub->left_rank >= 0)
            status = avl_fail(AVL_ERR_COMM, "rank %d left the group while rank %d waited for work",
                              hub->left_rank, group->rank);
        else if (!wait_change(hub, deadline_ns) && hub->wakes == self->wakes_seen)
            status = avl_fail(AVL_ERR_TIMEOUT, "rank %d: no work for %.3f s", group->rank,
                              (double)timeout_ns / (double)AVL_NS_PER_S);
    }
    if (status == AVL_OK)
        self->wakes_seen++;
    pthread_mutex_unlock(&hub->lock);
    return status;
}

static const avl_group_ops_t loopback_ops = {
    .close = loopback_close,
    .broadcast = loopback_broadcast,
    .all_reduce = loopback_all_reduce,
    .all_gather = loopback_all_gather,
    .gather = loopback_gather,
    .wake = loopback_wake,
    .wait = loopback_wait,
};

static avl_status_t hub_create(int ranks, loopback_hub_t **hub_p) {
    loopback_hub_t *hub;
    AVL_TRY(avl_alloc(1, sizeof *hub, "loopback group", &hub));
    avl_status_t status =
        avl_alloc((size_t)ranks, sizeof *hub->calls, "loopback calls", &hub->calls);
    if (status != AVL_OK) {
        free(hub);
        return status;
    }
    hub->ranks = hub->handles = ranks;
    hub->left_rank = -1;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&hub->lock, NULL);
    pthread_cond_init(&hub->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    *hub_p = hub;
    return AVL_OK;
}

avl_status_t avl_group_open_loopback(int rank_count, avl_group_t **groups_p) {
    if (rank_count < 1 || rank_count > RANKS_MAX)
        return avl_fail(AVL_ERR_INVALID, "a loopback group of %d ranks (1 to %d)", rank_count,
                        RANKS_MAX);
    loopback_hub_t *hub;
    loopback_group_t *groups[RANKS_MAX];
    AVL_TRY(hub_create(rank_count, &hub));
    for (int rank = 0; rank < rank_count; rank++) {
        loopback_group_t *self;
        avl_status_t status = avl_alloc(1, sizeof *self, "loopback rank", &self);
        if (status != AVL_OK) {
            while (rank > 0)
                free(groups[--rank]);
            hub_destroy(hub);
            return status;
        }
        self->head = (avl_group_t){.ops = &loopback_ops,
                                   .rank = rank,
                                   .ranks = rank_count,
                                   .local_rank = rank,
                                   .local_ranks = rank_count,
                                   .timeout_ns = AVL_GROUP_TIMEOUT_DEFAULT_NS};
        self->hub = hub;
        groups[rank] = self;
    }
    for (int rank = 0; rank < rank_count; rank++)
        groups_p[rank] = &groups[rank]->head;
    return AVL_OK;
}
