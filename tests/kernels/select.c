#include "tests/kernels/fixture.h"

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
            avl_argmax_args_t args = {logits.data, stride, ROWS, width, indices.data, values.data};
            expect_status(avl_argmax(device, &args), AVL_OK, NULL);
            for (int t = 0; t < ROWS; t++) {
                const float *row = (const float *)logits.data + t * stride;
                int best = -1;
                for (int j = 0; j < width; j++) {
                    if (!isnan(row[j]) && (best < 0 || row[j] > row[best]))
                        best = j;
                }
                best = best < 0 ? 0 : best;
                assert_int_equal(((int32_t *)indices.data)[t], best);
                assert_memory_equal((float *)values.data + t, row + best, sizeof(float));
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
        cmocka_unit_test(finds_the_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
