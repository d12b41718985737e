/* tests/coordinator/metrics.c: counting, and how counts are written. */
#include "coordinator/metrics.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const double bounds[] = {0.1, 0.5, 2};

typedef struct written {
    FILE *stream;
    char *text;
    size_t bytes;
    avl_exposition_t exposition;
} written_t;

static avl_exposition_t *begin(written_t *written, avl_exposition_format_t format) {
    written->stream = open_memstream(&written->text, &written->bytes);
    assert_non_null(written->stream);
    avl_exposition_begin(&written->exposition, written->stream, format);
    return &written->exposition;
}

static void expect(written_t *written, const char *expected) {
    avl_exposition_end(&written->exposition);
    fclose(written->stream);
    assert_string_equal(written->text, expected);
    free(written->text);
}

static void numbers(void **state) {
    (void)state;
    written_t written;
    avl_exposition_t *exposition = begin(&written, AVL_EXPOSITION_TEXT);
    avl_exposition_counter(exposition, "a_total", "Help with \\ and\nlines, \"quoted\".",
                           UINT64_C(9007199254740993));
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "b", "B.");
    avl_exposition_number(exposition, NULL, 0, 0.25);
    avl_exposition_number(exposition, NULL, 0, -3);
    avl_exposition_number(exposition, NULL, 0, NAN);
    avl_exposition_number(exposition, NULL, 0, INFINITY);
    avl_exposition_number(exposition, NULL, 0, -INFINITY);
    expect(&written, "# HELP a_total Help with \\\\ and\\nlines, \"quoted\".\n"
                     "# TYPE a_total counter\na_total 9007199254740993\n"
                     "# HELP b B.\n# TYPE b gauge\nb 0.25\nb -3\nb NaN\nb +Inf\nb -Inf\n");
}

static void labels_are_escaped(void **state) {
    (void)state;
    written_t written;
    avl_exposition_t *exposition = begin(&written, AVL_EXPOSITION_OPENMETRICS);
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "c_total", "With \"quotes\".");
    const avl_label_t labels[] = {{"model", "a\"b\\c\nd\xff\xe2\x82"}, {"x", ""}};
    avl_exposition_integer(exposition, labels, 2, 7);
    expect(&written,
           "# HELP c With \\\"quotes\\\".\n# TYPE c counter\n"
           "c_total{model=\"a\\\"b\\\\c\\nd\xef\xbf\xbd\xef\xbf\xbd\",x=\"\"} 7\n# EOF\n");
}

static void histograms(void **state) {
    (void)state;
    avl_histogram_t histogram = {0};
    avl_histogram_init(&histogram, 0.001, bounds, 3);
    static const int64_t steps[] = {100, 101, 500, 2000, 2001, -5};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        avl_histogram_observe(&histogram, steps[i]);
    written_t written;
    avl_exposition_t *exposition = begin(&written, AVL_EXPOSITION_TEXT);
    avl_exposition_family(exposition, AVL_FAMILY_HISTOGRAM, "h_seconds", "H.");
    const avl_label_t label = {"stage", "x"};
    avl_exposition_histogram(exposition, &label, 1, &histogram);
    expect(&written, "# HELP h_seconds H.\n# TYPE h_seconds histogram\n"
                     "h_seconds_bucket{stage=\"x\",le=\"0.1\"} 2\n"
                     "h_seconds_bucket{stage=\"x\",le=\"0.5\"} 4\n"
                     "h_seconds_bucket{stage=\"x\",le=\"2.0\"} 5\n"
                     "h_seconds_bucket{stage=\"x\",le=\"+Inf\"} 6\n"
                     "h_seconds_sum{stage=\"x\"} 4.702\nh_seconds_count{stage=\"x\"} 6\n");
}

#define THREADS 4
#define ROUNDS 20000

static avl_histogram_t shared_histogram;
static avl_counter_t shared_counter;

static void *count(void *context) {
    (void)context;
    for (int i = 0; i < ROUNDS; i++) {
        avl_counter_add(&shared_counter, 2);
        avl_histogram_observe(&shared_histogram, i % 4);
    }
    return NULL;
}

static void threads_lose_nothing(void **state) {
    (void)state;
    avl_histogram_init(&shared_histogram, 1, bounds, 3);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(avl_counter_value(&shared_counter), 2 * THREADS * ROUNDS);
    assert_int_equal(atomic_load(&shared_histogram.sum), THREADS * ROUNDS / 4 * 6);
    assert_int_equal(avl_counter_value(&shared_histogram.counts[2]), THREADS * ROUNDS / 2);
    assert_int_equal(avl_counter_value(&shared_histogram.counts[3]), THREADS * ROUNDS / 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers),
        cmocka_unit_test(labels_are_escaped),
        cmocka_unit_test(histograms),
        cmocka_unit_test(threads_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
