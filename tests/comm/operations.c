#include "tests/comm/operations.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

/* Rank r's element i: sums of these depend on the order of the additions. */
static float term(int rank, int64_t index) {
    uint32_t mixed = (uint32_t)(index * 2654435761u) ^ (uint32_t)(rank * 40503u);
    float magnitude = (float)(1 << (mixed >> 8 & 15));
    return (mixed & 1 ? -magnitude : magnitude) * (1.0f + (float)(mixed >> 12) * 0x1p-22f);
}

static float expected_sum(int ranks, int64_t index) {
    float sum = term(0, index);
    for (int rank = 1; rank < ranks; rank++)
        sum += term(rank, index);
    return sum;
}

static avl_status_t wrong(const avl_group_t *group, const char *operation, int64_t count,
                          int64_t index) {
    return avl_fail(AVL_ERR_INTERNAL, "rank %d: %s of %lld is wrong at %lld", avl_group_rank(group),
                    operation, (long long)count, (long long)index);
}

static avl_status_t check_reductions(avl_group_t *group, int64_t count) {
    int rank = avl_group_rank(group), ranks = avl_group_ranks(group);
    float *data;
    AVL_TRY(avl_alloc((size_t)count, sizeof *data, "data", &data));
    avl_status_t status = AVL_OK;
    for (int64_t index = 0; index < count; index++)
        data[index] = term(rank, index);
    AVL_TRY_GOTO(status, avl_group_all_reduce(group, data, count), out);
    for (int64_t index = 0; index < count && status == AVL_OK; index++) {
        float sum = expected_sum(ranks, index);
        if (memcmp(&data[index], &sum, sizeof sum) != 0)
            status = wrong(group, "all-reduce", count, index);
    }
out:
    free(data);
    return status;
}

static unsigned char byte_of(int rank, size_t index) {
    return (unsigned char)((size_t)(rank + 1) * 31 + index * 7);
}

static avl_status_t check_broadcast(avl_group_t *group, size_t bytes) {
    unsigned char *data;
    AVL_TRY(avl_alloc(bytes, 1, "data", &data));
    for (size_t index = 0; index < bytes; index++)
        data[index] = byte_of(avl_group_rank(group), index);
    avl_status_t status = avl_group_broadcast(group, data, bytes);
    for (size_t index = 0; index < bytes && status == AVL_OK; index++)
        if (data[index] != byte_of(0, index))
            status = wrong(group, "broadcast", (int64_t)bytes, (int64_t)index);
    free(data);
    return status;
}

static avl_status_t check_all_gather(avl_group_t *group, size_t bytes) {
    int ranks = avl_group_ranks(group), own = avl_group_rank(group);
    unsigned char *data;
    AVL_TRY(avl_alloc(bytes * (size_t)ranks, 1, "data", &data));
    for (size_t index = 0; index < bytes; index++)
        data[(size_t)own * bytes + index] = byte_of(own, index);
    avl_status_t status = avl_group_all_gather(group, data, bytes);
    for (int rank = 0; rank < ranks; rank++)
        for (size_t index = 0; index < bytes && status == AVL_OK; index++)
            if (data[(size_t)rank * bytes + index] != byte_of(rank, index))
                status = wrong(group, "all-gather", (int64_t)bytes, (int64_t)index);
    free(data);
    return status;
}

/* Rank r gives `bytes` * r bytes: rank 0 nothing, everyone something else. */
/* `in_place`: rank 0's part lies at the start of the target already. */
static avl_status_t check_gather(avl_group_t *group, size_t bytes, bool in_place) {
    int ranks = avl_group_ranks(group), own = avl_group_rank(group);
    size_t sizes[64] = {0}, total = 0;
    AVL_ASSERT(ranks <= 64);
    for (int rank = 0; rank < ranks; rank++)
        total += sizes[rank] = bytes * (size_t)((rank + 1) % 3); /* 1, 2, 0, 1, ... */
    unsigned char *source, *target = NULL;
    AVL_TRY(avl_alloc(total + 1, 1, "source", &source));
    avl_status_t status = own == 0 ? avl_alloc(total + 1, 1, "target", &target) : AVL_OK;
    unsigned char *part = own == 0 && in_place && status == AVL_OK ? target : source;
    for (size_t index = 0; index < sizes[own]; index++)
        part[index] = byte_of(own, index);
    if (status == AVL_OK)
        status = avl_group_gather(group, part, sizes, target);
    const unsigned char *cursor = target;
    for (int rank = 0; own == 0 && rank < ranks; rank++)
        for (size_t index = 0; index < sizes[rank] && status == AVL_OK; index++)
            if (*cursor++ != byte_of(rank, index))
                status = wrong(group, "gather", (int64_t)bytes, (int64_t)index);
    free(source);
    free(target);
    return status;
}

static avl_status_t check_agreement(avl_group_t *group) {
    int own = avl_group_rank(group), ranks = avl_group_ranks(group);
    AVL_TRY(avl_group_agree(group, AVL_OK));
    if (ranks < 2)
        return AVL_OK;
    /* The last rank and, of three or more, the one before it fail; the lowest failed one is named.
     */
    int first_failed = ranks > 2 ? ranks - 2 : ranks - 1;
    avl_status_t vote = own < first_failed ? AVL_OK
                        : own == ranks - 1 ? avl_fail(AVL_ERR_DATA, "own cause")
                                           : avl_fail(AVL_ERR_MEMORY, "own cause");
    avl_status_t got = avl_group_agree(group, vote);
    if (vote != AVL_OK && (got != vote || strcmp(avl_status_detail(), "own cause") != 0))
        return avl_fail(AVL_ERR_INTERNAL, "rank %d: its own failure did not come back", own);
    if (vote == AVL_OK) {
        char named[32];
        snprintf(named, sizeof named, "rank %d ", first_failed);
        if (got != AVL_ERR_PEER || !strstr(avl_status_detail(), named))
            return avl_fail(AVL_ERR_INTERNAL, "rank %d: agreement gave %s", own,
                            avl_status_name(got));
    }
    return avl_group_agree(group, AVL_OK);
}

/* The leader wakes the others twice; between and after, there is nothing to do for a while. */
static avl_status_t check_waiting(avl_group_t *group) {
    if (avl_group_ranks(group) < 2)
        return AVL_OK;
    for (int round = 0; round < 2; round++) {
        if (avl_group_rank(group) == 0) {
            AVL_TRY(avl_group_wake(group));
        } else {
            AVL_TRY(avl_group_wait(group, AVL_DEADLINE_NONE));
        }
        AVL_TRY(check_broadcast(group, 100));
    }
    if (avl_group_rank(group) != 0) {
        avl_status_t status = avl_group_wait(group, 5 * AVL_NS_PER_MS);
        if (status != AVL_ERR_TIMEOUT)
            return avl_fail(AVL_ERR_INTERNAL, "waiting without work gave %s",
                            avl_status_name(status));
    }
    return check_broadcast(group, 1);
}

avl_status_t avl_operations_check(avl_group_t *group, int64_t large) {
    const int64_t counts[] = {1, 2, 3, 7, 4096, 4097, 100003, large};
    for (size_t index = 0; index < sizeof counts / sizeof counts[0]; index++)
        AVL_TRY(check_reductions(group, counts[index]));
    const size_t bytes[] = {0, 1, 5, 4096, 300007};
    for (size_t index = 0; index < sizeof bytes / sizeof bytes[0]; index++) {
        AVL_TRY(check_broadcast(group, bytes[index]));
        AVL_TRY(check_all_gather(group, bytes[index]));
        AVL_TRY(check_gather(group, bytes[index], false));
        AVL_TRY(check_gather(group, bytes[index], true));
    }
    AVL_TRY(check_agreement(group));
    return check_waiting(group);
}
