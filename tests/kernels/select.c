#include "tests/kernels/fixture.h"

#include "kernels/lists.h"
#include "kernels/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/reference.h"

enum { COUNT_MAX = 2000 };

/* Scores with ties of every kind: few distinct values, both zeros, infinities and NaN. */
static void fill(float *scores, int count, int kind) {
    for (int i = 0; i < count; i++) {
        scores[i] = (float)((double)(random_next() >> 11) * 0x1p-53);
        if (kind == 1)
            scores[i] = (float)random_below(5) - 2.0f;
        if (kind == 2 && random_below(4) == 0)
            scores[i] = random_below(2) ? NAN : -NAN;
        if (kind == 3)
            scores[i] = random_below(2) ? 0.0f : -0.0f;
        if (kind == 4)
            scores[i] = random_below(3) ? ldexpf(scores[i] - 0.5f, random_below(250) - 125)
                                        : (random_below(2) ? INFINITY : -INFINITY);
        if (kind == 5)
            scores[i] = NAN;
    }
}

static void selects_the_best(void **unused) {
    (void)unused;
    static const int counts[] = {0, 1, 2, 7, 64, 577, COUNT_MAX};
    avl_device_t *device = open_best(1);
    static float scores[COUNT_MAX];
    static int32_t expected[COUNT_MAX], got[COUNT_MAX + 1];
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (int kind = 0; kind <= 5; kind++) {
            int count = counts[c];
            fill(scores, count, kind);
            int keeps[] = {0, count / 3, count - 1, count};
            for (int k = 0; k < 4; k++) {
                int keep = keeps[k] < 0 ? 0 : keeps[k];
                reference_topk(scores, count, keep, expected);
                got[keep] = -77;
                avl_topk_args_t args = {scores, count, keep, got};
                expect_status(avl_topk(device, &args), AVL_OK, NULL);
                assert_memory_equal(got, expected, (size_t)keep * sizeof *got);
                assert_int_equal(got[keep], -77);
            }
        }
    }
    avl_topk_args_t bad = {scores, 5, 6, got};
    expect_status(avl_topk(device, &bad), AVL_ERR_SHAPE, "keep 6 of 5");
    bad = (avl_topk_args_t){NULL, 5, 2, got};
    expect_status(avl_topk(device, &bad), AVL_ERR_SHAPE, "scores is NULL");
    bad = (avl_topk_args_t){scores, -5, -6, got};
    expect_status(avl_topk(device, &bad), AVL_ERR_SHAPE, "negative");
    avl_device_close(device);
}

/* Many lists of all sizes at once: each as if alone, and rows that go with the choice. */
static void check_choose(avl_device_t *device, void *context) {
    enum { ITEMS = 70, LENGTH_MAX = 300 };
    (void)context;
    static float scores[ITEMS][LENGTH_MAX];
    static int32_t rows[ITEMS][LENGTH_MAX], indices[ITEMS][LENGTH_MAX + 1];
    static int32_t lists[ITEMS][LENGTH_MAX + 1], expected[LENGTH_MAX];
    static float best[ITEMS][LENGTH_MAX + 1];
    avl_choose_item_t items[ITEMS];
    for (int i = 0; i < ITEMS; i++) {
        int32_t count = i == 3 ? 0 : random_below(LENGTH_MAX) + 1;
        int32_t keep = i % 7 == 6 ? 0 : random_below(count + 1);
        fill(scores[i], count, i % 6);
        for (int32_t j = 0; j < count; j++)
            rows[i][j] = random_below(1000000);
        for (int32_t j = 0; j <= LENGTH_MAX; j++)
            indices[i][j] = lists[i][j] = -77, best[i][j] = -77.0f;
        items[i] =
            (avl_choose_item_t){scores[i], count, keep, indices[i], rows[i], lists[i], best[i]};
        if (i % 5 == 1)
            items[i].rows = NULL, items[i].list = NULL;
        if (i % 5 == 2)
            items[i].indices = NULL;
        if (i % 3 == 1)
            items[i].best = NULL;
    }
    expect_status(avl_choose(device, &(avl_choose_args_t){items, ITEMS}), AVL_OK, NULL);
    for (int i = 0; i < ITEMS; i++) {
        reference_topk(scores[i], items[i].count, items[i].keep, expected);
        for (int32_t j = 0; j <= LENGTH_MAX; j++) {
            int is_taken = j < items[i].keep;
            assert_int_equal(indices[i][j],
                             is_taken && items[i].indices != NULL ? expected[j] : -77);
            assert_int_equal(lists[i][j],
                             is_taken && items[i].list != NULL ? rows[i][expected[j]] : -77);
            float score = -77.0f;
            if (is_taken && items[i].best != NULL)
                score = scores[i][expected[j]];
            assert_memory_equal(&best[i][j], &score, sizeof score);
        }
    }
    avl_choose_item_t bad = {scores[0], 5, 6, indices[0], NULL, NULL, NULL};
    expect_status(avl_choose(device, &(avl_choose_args_t){&bad, 1}), AVL_ERR_SHAPE, "keep 6 of 5");
    bad = (avl_choose_item_t){scores[0], 5, 2, indices[0], rows[0], NULL, NULL};
    expect_status(avl_choose(device, &(avl_choose_args_t){&bad, 1}), AVL_ERR_SHAPE, "nowhere");
    expect_status(avl_choose(device, &(avl_choose_args_t){NULL, 1}), AVL_ERR_SHAPE, "NULL");
    expect_status(avl_choose(device, &(avl_choose_args_t){NULL, 0}), AVL_OK, NULL);
}

static void chooses_for_many(void **unused) {
    (void)unused;
    for_each_device(check_choose, NULL);
}

/* Pieces of all sizes, and nothing written beside them. */
static void check_pieces(avl_device_t *device, int item_count) {
    enum { ITEMS = 500, LENGTH_MAX = 70, ROOM = ITEMS * (LENGTH_MAX + 1) };
    static int32_t targets[ROOM], sources[ROOM], expected[ROOM];
    avl_publish_item_t items[ITEMS];
    for (int i = 0; i < ROOM; i++) {
        targets[i] = expected[i] = -77;
        sources[i] = random_below(1000000);
    }
    for (int i = 0; i < item_count; i++) {
        int32_t *target = targets + i * (LENGTH_MAX + 1);
        const int32_t *source = sources + i * (LENGTH_MAX + 1);
        int32_t count = i % 4 == 3 ? random_below(LENGTH_MAX + 1) : 1;
        items[i] = (avl_publish_item_t){target, source, count};
        memcpy(expected + (target - targets), source, (size_t)count * sizeof *source);
    }
    expect_status(avl_publish(device, &(avl_publish_args_t){items, item_count}), AVL_OK, NULL);
    expect_status(device->ops->synchronize(device), AVL_OK, NULL);
    assert_memory_equal(targets, expected, sizeof targets);
}

static void check_publish(avl_device_t *device, void *context) {
    /* Few and many, and around what travels with a launch. */
    static const int counts[] = {1, 2, 3, 10, 18, 50, 90, 100, 110, 500};
    static int32_t targets[1], sources[1];
    (void)context;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        check_pieces(device, counts[i]);
    avl_publish_item_t items[2] = {{targets, sources, 1}, {NULL, sources, 1}};
    expect_status(avl_publish(device, &(avl_publish_args_t){items, 2}), AVL_ERR_SHAPE, "NULL");
    items[1] = (avl_publish_item_t){targets, sources, -1};
    expect_status(avl_publish(device, &(avl_publish_args_t){items, 2}), AVL_ERR_SHAPE, "negative");
    expect_status(avl_publish(device, &(avl_publish_args_t){NULL, 0}), AVL_OK, NULL);
}

static void publishes_pieces(void **unused) {
    (void)unused;
    for_each_device(check_publish, NULL);
}

static int best_of(const float *row, int width, int strict) {
    int best = -1;
    for (int j = 0; j < width; j++) {
        if (strict && (isnan(row[j]) || row[j] == INFINITY))
            return j;
        if (!isnan(row[j]) && (best < 0 || row[j] > row[best]))
            best = j;
    }
    return best < 0 ? 0 : best;
}

static void check_argmax(avl_device_t *device, void *context) {
    (void)context;
    static const int widths[] = {1, 3, 15, 16, 17, 100, COUNT_MAX};
    enum { ROWS = 40 };
    for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
        for (int kind = 0; kind <= 5; kind++) {
            int width = widths[w], stride = width + 2;
            tensor_t logits = tensor_create(AVL_DTYPE_F32, ROWS * stride);
            tensor_t values = tensor_create(AVL_DTYPE_F32, ROWS);
            tensor_t indices = tensor_create(AVL_DTYPE_F32, ROWS); /* i32: the same size */
            fill(logits.data, ROWS * stride, kind);
            avl_argmax_args_t args = {logits.data,  stride,      ROWS, width,
                                      indices.data, values.data, 0};
            for (args.strict = 0; args.strict < 2; args.strict++) {
                expect_status(avl_argmax(device, &args), AVL_OK, NULL);
                for (int t = 0; t < ROWS; t++) {
                    const float *row = (const float *)logits.data + t * stride;
                    int best = best_of(row, width, args.strict);
                    assert_int_equal(((int32_t *)indices.data)[t], best);
                    assert_memory_equal((float *)values.data + t, row + best, sizeof(float));
                }
            }
            tensor_check_canaries(&indices);
            tensor_check_canaries(&values);
            args.width = 0;
            expect_status(avl_argmax(device, &args), AVL_ERR_SHAPE, "width 0");
            tensor_destroy(&logits);
            tensor_destroy(&values);
            tensor_destroy(&indices);
        }
    }
}

static void finds_the_largest(void **unused) {
    (void)unused;
    for_each_device(check_argmax, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selects_the_best),
        cmocka_unit_test(chooses_for_many),
        cmocka_unit_test(publishes_pieces),
        cmocka_unit_test(finds_the_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
