/* tests/cuda/nccl.c: ranks' GPUs joined by the stand-in for NCCL: their sums, who cannot join, and
 * what a group does when a rank stays away. */
#include "comm/group.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/device.h"
#include "tests/cuda/devices.h"
#include "tests/cuda/shim/shim.h"

enum { RANKS = 3, COUNT = 1000 };

typedef struct rank {
    int index;
    int place; /* of its GPU; -1: it has none */
    avl_group_t *group;
    avl_device_t *device;
    void (*run)(struct rank *rank);
    avl_status_t joined, status;
    char detail[AVL_STATUS_DETAIL_BYTES];
    const char *name;
    float *memory;
    float sums[COUNT], merged[COUNT];
} rank_t;

static avl_status_t watch(void *context, int64_t waited_ns) {
    rank_t *rank = context;
    return avl_group_watch_gpus(rank->group, waited_ns);
}

static avl_status_t open_gpu(rank_t *rank) {
    avl_shim_configure(&(avl_shim_options_t){
        .order = AVL_SHIM_ASCENDING, .deferred = 1, .guarded = 1, .devices = RANKS});
    AVL_TRY(avl_cuda_device_open(rank->place, &rank->device));
    rank->device->watch = watch;
    rank->device->watch_context = rank;
    void *memory;
    AVL_TRY(rank->device->ops->allocate(rank->device, COUNT * sizeof(float), "a test", &memory));
    rank->memory = memory;
    return AVL_OK;
}

static void *live(void *argument) {
    rank_t *rank = argument;
    avl_group_gpu_t gpu = {0};
    avl_status_t status = rank->place >= 0 ? open_gpu(rank) : AVL_OK;
    if (rank->device != NULL) {
        gpu.stream = rank->device->stream;
        memcpy(gpu.id, rank->device->gpu_id, sizeof gpu.id);
    }
    if (status == AVL_OK)
        status = rank->joined = avl_group_join_gpus(rank->group, &gpu);
    if (status != AVL_OK)
        strcpy(rank->detail, avl_status_detail());
    else
        rank->run(rank);
    avl_group_leave_gpus(rank->group);
    if (rank->memory != NULL)
        rank->device->ops->release(rank->device, rank->memory);
    if (rank->device != NULL)
        avl_device_close(rank->device);
    return NULL;
}

/* Every rank with a GPU of its own, unless the test has changed that. */
static void prepare(rank_t *ranks, void (*run)(rank_t *rank)) {
    avl_group_t *groups[RANKS];
    assert_int_equal(avl_group_open_loopback(RANKS, groups), AVL_OK);
    for (int i = 0; i < RANKS; i++)
        ranks[i] = (rank_t){.index = i, .place = i, .group = groups[i], .run = run};
}

static void live_all(rank_t *ranks) {
    pthread_t threads[RANKS];
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, live, &ranks[i]), 0);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
}

static void close_all(rank_t *ranks) {
    for (int i = 0; i < RANKS; i++)
        avl_group_close(ranks[i].group);
    assert_int_equal(avl_shim_live_allocations(), 0);
}

/* ---- sums ---- */

static float number(int rank, int round, int index) {
    return (float)((rank + 1) * (index % 37) - 11 * round);
}

/* Enqueues rounds of sums with nothing waited for between them; a host's collective in the midst of
 * them. */
static avl_status_t add_up(rank_t *rank) {
    const avl_device_ops_t *ops = rank->device->ops;
    for (int round = 0; round < 3; round++) {
        float numbers[COUNT];
        for (int i = 0; i < COUNT; i++)
            numbers[i] = number(rank->index, round, i);
        AVL_TRY(ops->upload(rank->device, rank->memory, numbers, sizeof numbers));
        AVL_TRY(round < 2 ? avl_group_gpus_all_reduce(rank->group, rank->memory, COUNT)
                          : avl_group_gpus_merge(rank->group, rank->memory, COUNT - 1));
        AVL_TRY(avl_group_agree(rank->group, AVL_OK));
        if (round == 1)
            AVL_TRY(ops->download(rank->device, rank->sums, rank->memory, sizeof rank->sums));
    }
    AVL_TRY(avl_group_gpus_all_reduce(rank->group, rank->memory, 0));
    return ops->download(rank->device, rank->merged, rank->memory, sizeof rank->merged);
}

static void keep_status(rank_t *rank, avl_status_t status) {
    rank->status = status;
    rank->name = avl_group_gpus_name(rank->group);
    if (status != AVL_OK)
        strcpy(rank->detail, avl_status_detail());
}

static void run_sums(rank_t *rank) {
    keep_status(rank, add_up(rank));
}

static void expect_sums(void) {
    static rank_t ranks[RANKS];
    prepare(ranks, run_sums);
    live_all(ranks);
    for (int rank = 0; rank < RANKS; rank++) {
        assert_int_equal(ranks[rank].status, AVL_OK);
        assert_non_null(ranks[rank].name);
        for (int i = 0; i < COUNT; i++) {
            float sum = 0, merged = 0;
            for (int other = 0; other < RANKS; other++) {
                sum += number(other, 1, i);
                merged += number(other, 2, i);
            }
            /* What lies behind the last one merged is as it was. */
            merged = i == COUNT - 1 ? number(rank, 2, i) : merged;
            assert_true(ranks[rank].sums[i] == sum);
            assert_true(ranks[rank].merged[i] == merged);
        }
    }
    close_all(ranks);
}

static void sums_over_ranks(void **state) {
    (void)state;
    expect_sums();
    /* As an administrator may ask for: no call of NCCL's waits for anything. */
    assert_int_equal(setenv("NCCL_COMM_BLOCKING", "0", 1), 0);
    expect_sums();
    assert_int_equal(unsetenv("NCCL_COMM_BLOCKING"), 0);
}

static void joins_one_rank(void **state) {
    (void)state;
    static rank_t rank;
    rank = (rank_t){.run = run_sums};
    assert_int_equal(avl_group_open_single(&rank.group), AVL_OK);
    assert_null(live(&rank));
    assert_int_equal(rank.status, AVL_OK);
    for (int i = 0; i < COUNT; i++)
        assert_true(rank.sums[i] == number(0, 1, i) && rank.merged[i] == number(0, 2, i));
    avl_group_close(rank.group);
}

/* ---- who cannot join ---- */

/* The group is as it was. */
static void expect_refusal(rank_t *ranks, const char *text) {
    live_all(ranks);
    int named = 0;
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(ranks[i].joined, AVL_ERR_UNSUPPORTED);
        assert_null(avl_group_gpus_name(ranks[i].group));
        named += strstr(ranks[i].detail, text) != NULL;
    }
    if (named == 0)
        fail_msg("no rank says \"%s\"; rank 0 says \"%s\"", text, ranks[0].detail);
    close_all(ranks);
}

static void refuses_ranks_without_a_gpu(void **state) {
    (void)state;
    static rank_t ranks[RANKS];
    prepare(ranks, run_sums);
    ranks[1].place = -1;
    expect_refusal(ranks, "rank 1 has no GPU");
}

static void refuses_ranks_that_share_a_gpu(void **state) {
    (void)state;
    static rank_t ranks[RANKS];
    prepare(ranks, run_sums);
    ranks[2].place = 0;
    expect_refusal(ranks, "ranks 0 and 2 share one GPU");
}

static void refuses_what_nccl_refuses(void **state) {
    (void)state;
    static const struct {
        const char *call, *text;
    } failures[] = {
        {"version", "is version 21300; 21400 or later is needed"},
        {"id", "NCCL: unhandled system error: the stand-in says so"},
        {"init", "joining: NCCL: unhandled system error: the stand-in says so"},
    };
    for (size_t i = 0; i < sizeof failures / sizeof *failures; i++) {
        static rank_t ranks[RANKS];
        assert_int_equal(setenv("AVL_SHIM_NCCL_FAILS", failures[i].call, 1), 0);
        prepare(ranks, run_sums);
        expect_refusal(ranks, failures[i].text);
    }
    assert_int_equal(unsetenv("AVL_SHIM_NCCL_FAILS"), 0);
}

/* ---- failures ---- */

/* The last rank has gone when the others wait for its part. */
static void run_without_the_last(rank_t *rank) {
    if (rank->index == RANKS - 1)
        return;
    avl_group_set_timeout(rank->group, 50 * AVL_NS_PER_MS);
    avl_status_t status = avl_group_gpus_all_reduce(rank->group, rank->memory, COUNT);
    if (status == AVL_OK)
        status =
            rank->device->ops->download(rank->device, rank->sums, rank->memory, sizeof rank->sums);
    keep_status(rank, status);
    /* And it is over: nothing more is tried, nobody hangs. */
    if (avl_group_gpus_all_reduce(rank->group, rank->memory, COUNT) != AVL_ERR_COMM)
        rank->status = AVL_OK;
}

static void ends_when_a_rank_stays_away(void **state) {
    (void)state;
    static rank_t ranks[RANKS];
    prepare(ranks, run_without_the_last);
    live_all(ranks);
    for (int i = 0; i < RANKS - 1; i++)
        assert_int_equal(ranks[i].status, AVL_ERR_TIMEOUT);
    close_all(ranks);
}

static void run_failing(rank_t *rank) {
    keep_status(rank, avl_group_gpus_all_reduce(rank->group, rank->memory, COUNT));
}

static void tells_what_nccl_says(void **state) {
    (void)state;
    static rank_t ranks[RANKS];
    prepare(ranks, run_failing);
    assert_int_equal(setenv("AVL_SHIM_NCCL_FAILS", "collective", 1), 0);
    live_all(ranks);
    assert_int_equal(unsetenv("AVL_SHIM_NCCL_FAILS"), 0);
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(ranks[i].status, AVL_ERR_COMM);
        assert_non_null(strstr(ranks[i].detail, "all-reduce: NCCL: unhandled system error"));
    }
    close_all(ranks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_over_ranks),
        cmocka_unit_test(joins_one_rank),
        cmocka_unit_test(refuses_ranks_without_a_gpu),
        cmocka_unit_test(refuses_ranks_that_share_a_gpu),
        cmocka_unit_test(refuses_what_nccl_refuses),
        cmocka_unit_test(ends_when_a_rank_stays_away),
        cmocka_unit_test(tells_what_nccl_says),
    };
    return cmocka_run_group_tests_name("joined GPUs", tests, NULL, NULL);
}
