/* tests/worker/selection.c: scores of all ranks: what one rank would choose by, and the same bits
 * everywhere. */

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/select.h"
#include "worker/selection.h"

#define ITEMS 4
#define COUNT_MAX 600
#define RANKS_MAX 6

typedef struct job {
    avl_group_t *group;
    const float *scores; /* of this rank, all items */
    const int32_t *counts, *keeps, *unseen;
    int items;
    int32_t indices[COUNT_MAX];
    float kept[COUNT_MAX];
    avl_status_t own, status; /* before and after */
} job_t;

/* Sums, and chooses. */
static avl_status_t run_items(job_t *job, avl_device_t *device, avl_selection_t *selection,
                              avl_selection_item_t *items) {
    const float *source = job->scores;
    AVL_TRY(avl_selection_begin(selection, items, job->items));
    /* Hidden rows hold what was there before. */
    for (int i = 0; i < job->items; i++)
        memset(items[i].scores, 0xff, (size_t)items[i].count * sizeof(float));
    for (int i = 0; i < job->items; source += job->counts[i++])
        memcpy(items[i].weights, source + job->unseen[i],
               (size_t)(job->counts[i] - job->unseen[i]) * sizeof *source);
    AVL_TRY(avl_selection_sum(selection, items, job->items, job->own));
    int32_t *indices = job->indices;
    float *kept = job->kept;
    for (int i = 0; i < job->items; i++) {
        avl_choose_item_t choice = {.scores = items[i].scores,
                                    .count = items[i].count,
                                    .keep = job->keeps[i],
                                    .indices = indices,
                                    .best = items[i].best};
        AVL_TRY(avl_choose(device, &(avl_choose_args_t){.items = &choice, .item_count = 1}));
        memcpy(kept, items[i].best, (size_t)job->keeps[i] * sizeof *kept);
        indices += job->keeps[i];
        kept += job->keeps[i];
    }
    return AVL_OK;
}

static void *choose(void *argument) {
    job_t *job = argument;
    avl_device_t *device;
    avl_selection_t *selection;
    avl_selection_item_t items[ITEMS] = {0};
    int scores = 0;
    for (int i = 0; i < job->items; i++) {
        items[i].count = job->counts[i];
        items[i].unseen = job->unseen[i];
        scores += job->counts[i];
    }
    job->status = avl_device_open_cpu(1, NULL, &device);
    if (job->status != AVL_OK)
        return NULL;
    job->status = avl_selection_create(device, job->group, scores, ITEMS, &selection);
    if (job->status == AVL_OK) {
        job->status = run_items(job, device, selection, items);
        avl_selection_destroy(selection);
    }
    avl_device_close(device);
    return NULL;
}

static bool better(float a, int i, float b, int j) {
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b) ? i < j : isnan(b);
    return a != b ? a > b : i < j;
}

/* The plain answer for one item: rank of each score among all. */
static int expect_item(const float *sums, int count, int keep, const int32_t *indices,
                       const float *kept) {
    int next = 0;
    for (int i = 0; i < count; i++) {
        int before = 0;
        for (int j = 0; j < count; j++)
            before += j != i && better(sums[j], j, sums[i], i);
        if (before >= keep)
            continue;
        assert_int_equal(indices[next], i);
        assert_true(kept[next] == sums[i] || (isnan(kept[next]) && isnan(sums[i])));
        next++;
    }
    assert_int_equal(next, keep);
    return next;
}

/* `scores`: whole numbers, so that sums over ranks are exact in any order. */
static void check(int ranks, int items, const int32_t *counts, const int32_t *keeps,
                  const int32_t *unseen, int spread, bool with_nan) {
    avl_group_t *groups[RANKS_MAX];
    static float scores[RANKS_MAX][COUNT_MAX], sums[COUNT_MAX];
    static job_t jobs[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    int total = 0;
    for (int i = 0; i < items; i++)
        total += counts[i];
    memset(sums, 0, sizeof sums);
    for (int rank = 0; rank < ranks; rank++) {
        for (int i = 0; i < total; i++) {
            scores[rank][i] = (float)(rand() % spread);
            if (with_nan && rand() % 9 == 0)
                scores[rank][i] = NAN;
            sums[i] += scores[rank][i];
        }
    }
    for (int i = 0, at = 0; i < items; at += counts[i++]) {
        for (int j = 0; j < unseen[i]; j++)
            sums[at + j] = 0;
    }
    if (ranks == 1)
        assert_int_equal(avl_group_open_single(groups), AVL_OK);
    else
        assert_int_equal(avl_group_open_loopback(ranks, groups), AVL_OK);
    for (int rank = 0; rank < ranks; rank++) {
        jobs[rank] = (job_t){.group = groups[rank],
                             .scores = scores[rank],
                             .counts = counts,
                             .keeps = keeps,
                             .unseen = unseen,
                             .items = items};
        assert_int_equal(pthread_create(&threads[rank], NULL, choose, &jobs[rank]), 0);
    }
    for (int rank = 0; rank < ranks; rank++)
        assert_int_equal(pthread_join(threads[rank], NULL), 0);
    for (int rank = 0; rank < ranks; rank++) {
        assert_int_equal(jobs[rank].status, AVL_OK);
        assert_memory_equal(jobs[rank].indices, jobs[0].indices, sizeof jobs[0].indices);
        avl_group_close(groups[rank]);
    }
    for (int i = 0, at = 0, kept = 0; i < items; at += counts[i++])
        kept += expect_item(sums + at, counts[i], keeps[i], jobs[0].indices + kept,
                            jobs[0].kept + kept);
}

static void test_selection(void **state) {
    (void)state;
    static const struct {
        int items;
        int32_t counts[ITEMS], keeps[ITEMS], unseen[ITEMS];
    } mixtures[] = {
        {1, {1}, {1}, {0}},
        {1, {5}, {0}, {0}},
        {1, {196}, {98}, {0}},
        {1, {300}, {299}, {17}},
        {1, {40}, {12}, {40}},
        {4, {7, 196, 0, 33}, {3, 58, 0, 33}, {0, 20, 0, 1}},
        {3, {1, 1, 1}, {1, 0, 1}, {0, 0, 0}},
        {2, {3, 400}, {2, 9}, {0, 390}},
    };
    srand(20240229);
    for (size_t i = 0; i < sizeof mixtures / sizeof *mixtures; i++) {
        for (int ranks = 1; ranks <= RANKS_MAX; ranks++) {
            for (int spread = 2; spread <= 2000; spread *= 10) /* many ties, then few */
                check(ranks, mixtures[i].items, mixtures[i].counts, mixtures[i].keeps,
                      mixtures[i].unseen, spread, false);
            check(ranks, mixtures[i].items, mixtures[i].counts, mixtures[i].keeps,
                  mixtures[i].unseen, 50, true);
        }
    }
}

/* A rank that failed before is not missed, and hears of its own failure again. */
static void test_failure(void **state) {
    (void)state;
    enum { RANKS = 3, FAILED = 1 };
    static const int32_t counts[] = {20}, keeps[] = {7}, unseen[] = {2};
    static float scores[20];
    static job_t jobs[RANKS];
    avl_group_t *groups[RANKS];
    pthread_t threads[RANKS];
    assert_int_equal(avl_group_open_loopback(RANKS, groups), AVL_OK);
    for (int rank = 0; rank < RANKS; rank++) {
        jobs[rank] = (job_t){.group = groups[rank],
                             .scores = scores,
                             .counts = counts,
                             .keeps = keeps,
                             .unseen = unseen,
                             .items = 1,
                             .own = rank == FAILED ? AVL_ERR_DEVICE : AVL_OK};
        assert_int_equal(pthread_create(&threads[rank], NULL, choose, &jobs[rank]), 0);
    }
    for (int rank = 0; rank < RANKS; rank++) {
        assert_int_equal(pthread_join(threads[rank], NULL), 0);
        assert_int_equal(jobs[rank].status, jobs[rank].own);
        avl_group_close(groups[rank]);
    }
}

static void test_bounds(void **state) {
    (void)state;
    avl_device_t *device;
    avl_group_t *group;
    avl_selection_t *selection;
    assert_int_equal(avl_device_open_cpu(1, NULL, &device), AVL_OK);
    assert_int_equal(avl_group_open_single(&group), AVL_OK);
    assert_int_equal(avl_selection_create(device, group, 10, 2, &selection), AVL_OK);
    avl_selection_item_t items[3] = {{.count = 5}, {.count = 5}, {.count = 0}};
    assert_int_equal(avl_selection_begin(selection, items, 2), AVL_OK);
    assert_int_equal(avl_selection_begin(selection, items, 3), AVL_ERR_INTERNAL);
    items[1].count = 6;
    assert_int_equal(avl_selection_begin(selection, items, 2), AVL_ERR_INTERNAL);
    avl_selection_destroy(selection);
    avl_group_close(group);
    avl_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests_name("worker selection", tests, NULL, NULL);
}
