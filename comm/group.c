/* comm/group.c: the part of a group that does not depend on how bytes travel.
 *
 * Invariants: a backend's operation is called with two ranks or more only, and never after a
 * failure. */
#include "comm/group.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"

enum { VOTES_IN_PLACE = 256 };

int64_t avl_group_deadline_ns(int64_t duration_ns) {
    int64_t now_ns = avl_clock_now_ns();
    return duration_ns >= AVL_DEADLINE_NONE - now_ns ? AVL_DEADLINE_NONE : now_ns + duration_ns;
}

static void single_close(avl_group_t *group) {
    free(group);
}

avl_status_t avl_group_open_single(avl_group_t **group_p) {
    static const avl_group_ops_t ops = {.close = single_close};
    avl_group_t *group;
    AVL_TRY(avl_alloc(1, sizeof *group, "group of one rank", &group));
    group->ops = &ops;
    group->ranks = group->local_ranks = 1;
    group->timeout_ns = AVL_GROUP_TIMEOUT_DEFAULT_NS;
    *group_p = group;
    return AVL_OK;
}

void avl_group_close(avl_group_t *group) {
    if (group == NULL)
        return;
    avl_group_leave_gpus(group);
    group->ops->close(group);
}

int avl_group_rank(const avl_group_t *group) {
    return group->rank;
}

int avl_group_ranks(const avl_group_t *group) {
    return group->ranks;
}

int avl_group_local_ranks(const avl_group_t *group) {
    return group->local_ranks;
}

int avl_group_local_rank(const avl_group_t *group) {
    return group->local_rank;
}

int64_t avl_group_memory_bytes(const avl_group_t *group) {
    return group->memory_bytes;
}

void avl_group_set_timeout(avl_group_t *group, int64_t timeout_ns) {
    group->timeout_ns = timeout_ns;
}

uint64_t avl_group_operations(const avl_group_t *group) {
    return atomic_load_explicit(&group->operations, memory_order_relaxed);
}

static avl_status_t check_usable(avl_group_t *group, const char *operation) {
    atomic_fetch_add_explicit(&group->operations, 1, memory_order_relaxed);
    if (group->broken == AVL_OK)
        return AVL_OK;
    return avl_fail(AVL_ERR_COMM, "rank %d: %s on a group that already failed with %s", group->rank,
                    operation, avl_status_name(group->broken));
}

static avl_status_t settle(avl_group_t *group, avl_status_t status) {
    if (status != AVL_OK)
        group->broken = status;
    return status;
}

/* The end of a collective that began at `begin_ns`. */
static avl_status_t account(avl_group_t *group, avl_group_operation_t operation, int64_t begin_ns,
                            avl_status_t status) {
    group->times.ns[operation] += avl_clock_now_ns() - begin_ns;
    group->times.calls[operation]++;
    return settle(group, status);
}

avl_group_times_t avl_group_times(const avl_group_t *group) {
    return group->times;
}

avl_status_t avl_group_broadcast(avl_group_t *group, void *data, size_t bytes) {
    AVL_TRY(check_usable(group, "broadcast"));
    if (group->ranks == 1 || bytes == 0)
        return AVL_OK;
    int64_t begin_ns = avl_clock_now_ns();
    return account(group, AVL_GROUP_BROADCAST, begin_ns, group->ops->broadcast(group, data, bytes));
}

avl_status_t avl_group_all_reduce(avl_group_t *group, float *data, int64_t count) {
    AVL_TRY(check_usable(group, "all-reduce"));
    if (group->ranks == 1 || count <= 0)
        return AVL_OK;
    int64_t begin_ns = avl_clock_now_ns();
    return account(group, AVL_GROUP_ALL_REDUCE, begin_ns,
                   group->ops->all_reduce(group, data, count));
}

avl_status_t avl_group_all_gather(avl_group_t *group, void *data, size_t item_bytes) {
    AVL_TRY(check_usable(group, "all-gather"));
    if (group->ranks == 1 || item_bytes == 0)
        return AVL_OK;
    int64_t begin_ns = avl_clock_now_ns();
    return account(group, AVL_GROUP_ALL_GATHER, begin_ns,
                   group->ops->all_gather(group, data, item_bytes));
}

avl_status_t avl_group_gather(avl_group_t *group, const void *source, const size_t *bytes_by_rank,
                              void *target) {
    AVL_TRY(check_usable(group, "gather"));
    int64_t begin_ns = avl_clock_now_ns();
    if (group->ranks > 1)
        return account(group, AVL_GROUP_GATHER, begin_ns,
                       group->ops->gather(group, source, bytes_by_rank, target));
    if (bytes_by_rank[0] && source != target)
        memcpy(target, source, bytes_by_rank[0]);
    return AVL_OK;
}

avl_status_t avl_group_agree(avl_group_t *group, avl_status_t own) {
    if (group->ranks == 1)
        return own;
    AVL_TRY(check_usable(group, "agreement"));
    /* A vote must be possible when memory is what failed. Beyond so many ranks it is not, which the
     * others learn by their time-out. */
    int32_t few[VOTES_IN_PLACE], *votes = few;
    if (group->ranks > VOTES_IN_PLACE)
        AVL_TRY(avl_alloc((size_t)group->ranks, sizeof *votes, "votes", &votes));
    votes[group->rank] = (int32_t)own;
    int64_t begin_ns = avl_clock_now_ns();
    avl_status_t status = account(group, AVL_GROUP_AGREE, begin_ns,
                                  group->ops->all_gather(group, votes, sizeof *votes));
    if (status == AVL_OK)
        status = own;
    for (int rank = 0; status == AVL_OK && rank < group->ranks; rank++)
        if (votes[rank] != AVL_OK)
            status = avl_fail(AVL_ERR_PEER, "rank %d failed with %s", rank,
                              avl_status_name((avl_status_t)votes[rank]));
    if (votes != few)
        free(votes);
    return status;
}

void avl_group_leave_gpus(avl_group_t *group) {
    if (group->gpus != NULL)
        group->gpus->ops->leave(group->gpus);
    group->gpus = NULL;
}

const char *avl_group_gpus_name(const avl_group_t *group) {
    return group->gpus != NULL ? group->gpus->name : NULL;
}

avl_status_t avl_group_gpus_all_reduce(avl_group_t *group, float *data, int64_t count) {
    AVL_ASSERT(group->gpus != NULL);
    AVL_TRY(check_usable(group, "sum on GPUs"));
    return count > 0 ? settle(group, group->gpus->ops->all_reduce(group->gpus, data, count))
                     : AVL_OK;
}

avl_status_t avl_group_gpus_merge(avl_group_t *group, float *data, int64_t count) {
    AVL_ASSERT(group->gpus != NULL);
    AVL_TRY(check_usable(group, "sum on GPUs"));
    return count > 0 ? settle(group, group->gpus->ops->merge(group->gpus, data, count)) : AVL_OK;
}

avl_status_t avl_group_watch_gpus(avl_group_t *group, int64_t waited_ns) {
    return group->gpus != NULL ? settle(group, group->gpus->ops->watch(group->gpus, waited_ns))
                               : AVL_OK;
}

avl_status_t avl_group_wake(avl_group_t *group) {
    AVL_TRY(check_usable(group, "wake"));
    AVL_ASSERT(group->rank == 0);
    return group->ranks == 1 ? AVL_OK : settle(group, group->ops->wake(group));
}

avl_status_t avl_group_wait(avl_group_t *group, int64_t timeout_ns) {
    AVL_TRY(check_usable(group, "wait"));
    AVL_ASSERT(group->rank != 0);
    avl_status_t status = group->ops->wait(group, timeout_ns);
    /* Nothing to do for so long is no failure of the group. */
    return status == AVL_ERR_TIMEOUT ? status : settle(group, status);
}
