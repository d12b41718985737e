/* tests/kernels/diversity.c: the order that the distances tell, step by step in double precision.
 * Rows that are equally far may come in any order, so the order itself is not compared. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/diversity.h"

enum { ROWS_MAX = 300 };

enum kind { RANDOM, OFFSET, PAIRS, CONSTANT, ZERO, NOT_A_NUMBER, INFINITE, KINDS };

static void fill(tensor_t *features, int rows, int width, enum kind kind) {
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < width; j++) {
            double value = tensor_get(features, i * width + j);
            if (kind == OFFSET) /* what all rows share is large */
                value += (double)(j % 7) * 10;
            if (kind == PAIRS && i % 2 == 1)
                value = tensor_get(features, (i - 1) * width + j);
            if (kind == CONSTANT)
                value = 0.1 * (double)(j + 1);
            if (kind == ZERO)
                value = 0;
            if (kind == NOT_A_NUMBER && i == rows / 2)
                value = NAN;
            if (kind == INFINITE && i == rows / 3)
                value = INFINITY;
            tensor_set(features, i * width + j, value);
        }
    }
}

/* Likenesses [rows, rows]. */
static double *likeness_of(const tensor_t *features, int rows, int width) {
    double *units = calloc((size_t)rows * (size_t)width, sizeof *units);
    double *likeness = calloc((size_t)rows * (size_t)rows, sizeof *likeness);
    assert_true(units != NULL && likeness != NULL);
    for (int j = 0; j < width; j++) {
        double mean = 0;
        for (int i = 0; i < rows; i++)
            mean += tensor_get(features, (int64_t)i * width + j) / rows;
        for (int i = 0; i < rows; i++)
            units[i * width + j] = tensor_get(features, (int64_t)i * width + j) - mean;
    }
    for (int i = 0; i < rows; i++) {
        double length = 0;
        for (int j = 0; j < width; j++)
            length += units[i * width + j] * units[i * width + j];
        bool is_row = isfinite(length) && length > 1e-20;
        for (int j = 0; j < width; j++)
            units[i * width + j] = is_row ? units[i * width + j] / sqrt(length) : 0;
    }
    for (int i = 0; i < rows; i++) {
        for (int k = 0; k < rows; k++) {
            for (int j = 0; j < width; j++)
                likeness[i * rows + k] += units[i * width + j] * units[k * width + j];
        }
    }
    free(units);
    return likeness;
}

/* The row of the largest distance that has not come yet, the lower on a tie. */
static int next_row(const float *distances, const bool *came, int rows) {
    int next = -1;
    for (int i = 0; i < rows; i++) {
        if (!came[i] && (next < 0 || distances[i] > distances[next]))
            next = i;
    }
    return next;
}

static void expect_farthest_first(const double *likeness, const float *distances, int rows,
                                  double tolerance) {
    bool came[ROWS_MAX] = {false};
    double nearest[ROWS_MAX], sums[ROWS_MAX] = {0}, least = INFINITY;
    for (int i = 0; i < rows; i++) {
        nearest[i] = 2;
        for (int j = 0; j < rows; j++)
            sums[i] += likeness[i * rows + j];
    }
    /* The second row can be 2 away as well: the opposite of the first. */
    int first = 0;
    for (int i = 0; i < rows; i++) {
        bool better = distances[first] < 2 || sums[i] < sums[first] - tolerance * rows;
        first = distances[i] == 2 && better ? i : first;
        least = sums[i] < least ? sums[i] : least;
    }
    check_close(sums[first], least, tolerance * rows, 0, "the first row", first);
    for (int count = 0; count < rows; count++) {
        int pick = count == 0 ? first : next_row(distances, came, rows);
        check_close((double)distances[pick], nearest[pick], tolerance, 0, "distance", pick);
        came[pick] = true;
        for (int i = 0; i < rows; i++) {
            if (!came[i] && nearest[i] > (double)distances[pick] + tolerance)
                fail_msg("row %d is %g away and comes after row %d, %g away", i, nearest[i], pick,
                         (double)distances[pick]);
            double distance = 1 - likeness[pick * rows + i];
            nearest[i] = distance < nearest[i] ? distance : nearest[i];
        }
    }
}

static void check_rows(avl_device_t *device, int rows, int width, enum kind kind) {
    tensor_t features = tensor_random(AVL_DTYPE_F32, (int64_t)rows * width, 1);
    tensor_t distances = tensor_create(AVL_DTYPE_F32, rows);
    size_t scratch = avl_diversity_scratch_bytes(rows, width) / sizeof(float);
    tensor_t memory = tensor_create(AVL_DTYPE_F32, (int64_t)scratch);
    fill(&features, rows, width, kind);
    avl_diversity_args_t args = {.features = features.data,
                                 .rows = rows,
                                 .width = width,
                                 .distances = distances.data,
                                 .scratch = memory.data};
    expect_status(avl_diversity_prepare(device, rows, width), AVL_OK, NULL);
    expect_status(avl_diversity(device, &args), AVL_OK, NULL);
    tensor_check_canaries(&distances);
    tensor_check_canaries(&memory);
    const float *got = distances.data;
    double *likeness = likeness_of(&features, rows, width);
    expect_farthest_first(likeness, got, rows, 1e-5 * sqrt(width));
    /* Nothing to tell rows apart by. */
    for (int i = 0; i < rows && kind >= CONSTANT && kind != INFINITE; i++)
        assert_true(got[i] == (i == 0 ? 2.0f : 1.0f));
    free(likeness);
    tensor_destroy(&features);
    tensor_destroy(&distances);
    tensor_destroy(&memory);
}

static void check_diversity(avl_device_t *device, void *context) {
    (void)context;
    static const struct {
        int rows, width;
    } sizes[] = {{1, 5}, {2, 8}, {3, 1}, {17, 33}, {64, 64}, {147, 260}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int kind = 0; kind < KINDS; kind++)
            check_rows(device, sizes[i].rows, sizes[i].width, (enum kind)kind);
    }
    avl_diversity_args_t bad = {.rows = -1, .width = 3};
    expect_status(avl_diversity(device, &bad), AVL_ERR_SHAPE, "must not be negative");
    static float many[40000];
    bad = (avl_diversity_args_t){.features = many, .rows = 1, .width = 1, .scratch = many + 9};
    expect_status(avl_diversity(device, &bad), AVL_ERR_SHAPE, "distances is NULL");
    bad = (avl_diversity_args_t){.features = many, .rows = 1, .width = 1, .distances = many};
    expect_status(avl_diversity(device, &bad), AVL_ERR_SHAPE, "scratch is NULL");
    bad = (avl_diversity_args_t){.features = many, .rows = 40000, .distances = many};
    expect_status(avl_diversity(device, &bad), AVL_ERR_SHAPE, "40000 rows");
    expect_status(avl_diversity(device, &(avl_diversity_args_t){0}), AVL_OK, NULL);
}

static void finds_rows_that_differ(void **unused) {
    (void)unused;
    for_each_device(check_diversity, NULL);
}

/* Enough rows for the way of many through products. */
static void does_not_depend_on_threads(void **unused) {
    (void)unused;
    enum { WIDTH = 256 };
    static float got[3][ROWS_MAX];
    tensor_t features = tensor_random(AVL_DTYPE_F32, ROWS_MAX * WIDTH, 1);
    size_t scratch = avl_diversity_scratch_bytes(ROWS_MAX, WIDTH) / sizeof(float);
    tensor_t memory = tensor_create(AVL_DTYPE_F32, (int64_t)scratch);
    for (int threads = 1; threads <= 3; threads++) {
        avl_device_t *device = open_best(threads);
        avl_diversity_args_t args = {.features = features.data,
                                     .rows = ROWS_MAX,
                                     .width = WIDTH,
                                     .distances = got[threads - 1],
                                     .scratch = memory.data};
        expect_status(avl_diversity(device, &args), AVL_OK, NULL);
        avl_device_close(device);
    }
    assert_memory_equal(got[0], got[1], sizeof got[0]);
    assert_memory_equal(got[0], got[2], sizeof got[0]);
    double *likeness = likeness_of(&features, ROWS_MAX, WIDTH);
    expect_farthest_first(likeness, got[0], ROWS_MAX, 1e-5 * sqrt(WIDTH));
    free(likeness);
    tensor_destroy(&features);
    tensor_destroy(&memory);
}

static void check_weigh(avl_device_t *device, void *context) {
    (void)context;
    enum { COUNT = 500 };
    tensor_t target = tensor_random(AVL_DTYPE_F32, COUNT, 1), before = tensor_copy(&target);
    tensor_t scores = tensor_random(AVL_DTYPE_F32, COUNT, 1);
    tensor_t factors = tensor_random(AVL_DTYPE_F32, COUNT, 1);
    for (int count = 0; count <= COUNT; count += 125) {
        for (int adds = 0; adds < 2; adds++) {
            memcpy(target.data, before.data, COUNT * sizeof(float));
            avl_weigh_args_t args = {target.data, scores.data, factors.data, count, adds};
            expect_status(avl_weigh(device, &args), AVL_OK, NULL);
            for (int i = 0; i < COUNT; i++) {
                double expected = tensor_get(&scores, i) * tensor_get(&factors, i);
                expected += adds ? tensor_get(&before, i) : 0;
                check_close(tensor_get(&target, i), i < count ? expected : tensor_get(&before, i),
                            1e-6, 0, "weighed", i);
            }
        }
    }
    tensor_check_canaries(&target);
    avl_weigh_args_t bad = {target.data, scores.data, NULL, 3, 0};
    expect_status(avl_weigh(device, &bad), AVL_ERR_SHAPE, "factors is NULL");
    bad = (avl_weigh_args_t){target.data, scores.data, factors.data, -3, 0};
    expect_status(avl_weigh(device, &bad), AVL_ERR_SHAPE, "negative");
    tensor_destroy(&target);
    tensor_destroy(&before);
    tensor_destroy(&scores);
    tensor_destroy(&factors);
}

static void weighs_scores(void **unused) {
    (void)unused;
    for_each_device(check_weigh, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_rows_that_differ),
        cmocka_unit_test(does_not_depend_on_threads),
        cmocka_unit_test(weighs_scores),
    };
    return cmocka_run_group_tests_name("diversity", tests, NULL, NULL);
}
