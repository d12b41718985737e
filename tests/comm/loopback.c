/* Ranks as threads: every operation at 1 to 4 ranks, and what happens when a rank stays away. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/comm/operations.h"

#define RANKS_MAX 8

typedef struct rank_thread {
    avl_group_t *group;
    avl_status_t (*body)(avl_group_t *group);
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
} rank_thread_t;

static void *run_rank(void *context) {
    rank_thread_t *self = context;
    self->status = self->body(self->group);
    snprintf(self->detail, sizeof self->detail, "%s",
             self->status == AVL_OK ? "" : avl_status_detail());
    avl_group_close(self->group);
    return NULL;
}

static void run_ranks(int ranks, avl_status_t (*body)(avl_group_t *group), rank_thread_t *results) {
    avl_group_t *groups[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    assert_int_equal(avl_group_open_loopback(ranks, groups), AVL_OK);
    for (int rank = 0; rank < ranks; rank++) {
        assert_int_equal(avl_group_rank(groups[rank]), rank);
        assert_int_equal(avl_group_ranks(groups[rank]), ranks);
        results[rank] = (rank_thread_t){.group = groups[rank], .body = body};
        assert_int_equal(pthread_create(&threads[rank], NULL, run_rank, &results[rank]), 0);
    }
    for (int rank = 0; rank < ranks; rank++)
        pthread_join(threads[rank], NULL);
}

static avl_status_t all_operations(avl_group_t *group) {
    return avl_operations_check(group, 200001);
}

static avl_status_t counted_operations(avl_group_t *group) {
    float data[8] = {0};
    AVL_TRY(avl_group_all_reduce(group, data, 8));
    AVL_TRY(avl_group_all_reduce(group, data, 8));
    AVL_TRY(avl_group_broadcast(group, data, sizeof data));
    AVL_TRY(avl_group_broadcast(group, data, 0)); /* nothing to do: none */
    AVL_TRY(avl_group_agree(group, AVL_OK));
    avl_group_times_t times = avl_group_times(group);
    int several = avl_group_ranks(group) > 1;
    const int64_t expected[AVL_GROUP_OPERATIONS] = {[AVL_GROUP_BROADCAST] = several,
                                                    [AVL_GROUP_ALL_REDUCE] = 2 * several,
                                                    [AVL_GROUP_AGREE] = several};
    for (int i = 0; i < AVL_GROUP_OPERATIONS; i++)
        if (times.calls[i] != expected[i] || times.ns[i] < 0 || (times.ns[i] > 0) > times.calls[i])
            return avl_fail(AVL_ERR_INTERNAL, "%s: %d calls, %d ns",
                            avl_group_operation_name((avl_group_operation_t)i), (int)times.calls[i],
                            (int)times.ns[i]);
    return AVL_OK;
}

static void test_times(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) {
        rank_thread_t results[RANKS_MAX];
        run_ranks(ranks, counted_operations, results);
        for (int rank = 0; rank < ranks; rank++)
            if (results[rank].status != AVL_OK)
                fail_msg("%d ranks: %s", ranks, results[rank].detail);
    }
}

static void test_operations(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        rank_thread_t results[RANKS_MAX];
        run_ranks(ranks, all_operations, results);
        for (int rank = 0; rank < ranks; rank++)
            if (results[rank].status != AVL_OK)
                fail_msg("%d ranks: %s: %s", ranks, avl_status_name(results[rank].status),
                         results[rank].detail);
    }
}

static void test_single(void **state) {
    (void)state;
    avl_group_t *group;
    assert_int_equal(avl_group_open_single(&group), AVL_OK);
    assert_int_equal(avl_group_rank(group), 0);
    assert_int_equal(avl_group_ranks(group), 1);
    assert_int_equal(avl_group_local_ranks(group), 1);
    assert_int_equal(avl_group_local_rank(group), 0);
    assert_int_equal(avl_operations_check(group, 1000), AVL_OK);
    assert_int_equal(avl_group_agree(group, AVL_ERR_DATA), AVL_ERR_DATA);
    avl_group_close(group);
}

/* Rank 1 comes long after the others' bound. */
static avl_status_t late_rank(avl_group_t *group) {
    float data[3] = {1, 2, 3};
    avl_group_set_timeout(group, 30 * AVL_NS_PER_MS);
    if (avl_group_rank(group) == 1)
        avl_clock_sleep_ns(400 * AVL_NS_PER_MS);
    return avl_group_all_reduce(group, data, 3);
}

static void test_late_rank(void **state) {
    (void)state;
    rank_thread_t results[RANKS_MAX];
    run_ranks(3, late_rank, results);
    int timeouts = 0;
    for (int rank = 0; rank < 3; rank++) {
        assert_true(results[rank].status == AVL_ERR_TIMEOUT ||
                    results[rank].status == AVL_ERR_COMM);
        assert_non_null(strstr(results[rank].detail, "for rank 1"));
        timeouts += results[rank].status == AVL_ERR_TIMEOUT;
    }
    assert_true(timeouts >= 1);
    assert_int_equal(results[1].status, AVL_ERR_COMM);
}

/* Rank 2 leaves; the others learn it at once, not after their bound, and the group stays unusable.
 */
static avl_status_t leaving_rank(avl_group_t *group) {
    char data[4] = {0};
    if (avl_group_rank(group) == 2)
        return AVL_OK;
    avl_status_t status = avl_group_broadcast(group, data, sizeof data);
    if (status != AVL_ERR_COMM)
        return avl_fail(AVL_ERR_INTERNAL, "got %s", avl_status_name(status));
    return avl_group_broadcast(group, data, sizeof data);
}

static void test_leaving_rank(void **state) {
    (void)state;
    rank_thread_t results[RANKS_MAX];
    run_ranks(3, leaving_rank, results);
    for (int rank = 0; rank < 2; rank++) {
        assert_int_equal(results[rank].status, AVL_ERR_COMM);
        assert_non_null(strstr(results[rank].detail, "already failed"));
    }
}

static avl_status_t waiting_rank(avl_group_t *group) {
    if (avl_group_rank(group) == 0)
        return AVL_OK;
    return avl_group_wait(group, AVL_DEADLINE_NONE);
}

static void test_leader_leaves_waiting_ranks(void **state) {
    (void)state;
    rank_thread_t results[RANKS_MAX];
    run_ranks(3, waiting_rank, results);
    assert_int_equal(results[1].status, AVL_ERR_COMM);
    assert_int_equal(results[2].status, AVL_ERR_COMM);
}

/* Different calls, or the same with different sizes, are told and not carried out. */
static avl_status_t out_of_step(avl_group_t *group) {
    float data[8] = {0};
    if (avl_group_rank(group) == 1)
        return avl_group_all_reduce(group, data, 8);
    return avl_group_all_reduce(group, data, 7);
}

static void test_out_of_step(void **state) {
    (void)state;
    rank_thread_t results[RANKS_MAX];
    run_ranks(3, out_of_step, results);
    for (int rank = 0; rank < 3; rank++) {
        assert_int_equal(results[rank].status, AVL_ERR_COMM);
        assert_non_null(strstr(results[rank].detail, "out of step"));
    }
}

static void test_bad_rank_counts(void **state) {
    (void)state;
    avl_group_t *groups[1];
    assert_int_equal(avl_group_open_loopback(0, groups), AVL_ERR_INVALID);
    assert_int_equal(avl_group_open_loopback(-3, groups), AVL_ERR_INVALID);
}

static void test_slices(void **state) {
    (void)state;
    for (int64_t count = 0; count < 40; count++)
        for (int ranks = 1; ranks <= 9; ranks++) {
            int64_t next = 0, largest = 0, smallest = count;
            for (int rank = 0; rank < ranks; rank++) {
                int64_t first, last;
                avl_group_slice(count, rank, ranks, &first, &last);
                assert_int_equal(first, next);
                assert_true(last >= first);
                largest = last - first > largest ? last - first : largest;
                smallest = last - first < smallest ? last - first : smallest;
                next = last;
            }
            assert_int_equal(next, count);
            assert_true(largest - smallest <= 1);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_times),        cmocka_unit_test(test_operations),
        cmocka_unit_test(test_single),       cmocka_unit_test(test_late_rank),
        cmocka_unit_test(test_leaving_rank), cmocka_unit_test(test_leader_leaves_waiting_ranks),
        cmocka_unit_test(test_out_of_step),  cmocka_unit_test(test_bad_rank_counts),
        cmocka_unit_test(test_slices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
