/* tests/client/report.c: the arithmetic of a benchmark's report, on samples with known quantiles.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/bench_report.h"

static char model[] = "m", device[] = "cpu", dtype[] = "f32";

static json_t *print_and_parse(avl_bench_setting_t *setting, avl_bench_results_t *results) {
    Avl__V1__GetModelInfoResponse info;
    avl__v1__get_model_info_response__init(&info);
    info.model = model;
    info.device = device;
    info.dtype = dtype;
    info.ranks = 1;
    setting->info = &info;
    setting->server = "here:1";
    FILE *stream = tmpfile();
    assert_non_null(stream);
    assert_int_equal(avl_bench_print_json(stream, setting, results), AVL_OK);
    setting->info = NULL;
    rewind(stream);
    json_t *object = json_loadf(stream, 0, NULL);
    assert_non_null(object);
    fclose(stream);
    return object;
}

static void expect(const json_t *object, const char *key, double value) {
    double got = json_number_value(json_object_get(object, key));
    if (!(fabs(got - value) < 1e-6))
        fail_msg("%s is %g, not %g", key, got, value);
}

static void quantiles_are_interpolated(void **state) {
    (void)state;
    avl_bench_results_t results = {.duration_s = 2, .completed = 101, .good = 50};
    avl_bench_setting_t setting = {.concurrency = 1, .connections = 1, .deadline_s = 1};
    for (int i = 0; i <= 100; i++) /* 0 to 100, in another order */
        assert_int_equal(avl_bench_sample(&results.ttft_ms, i * 37 % 101), AVL_OK);
    assert_int_equal(avl_bench_sample(&results.tpot_ms, 5), AVL_OK);
    assert_int_equal(avl_bench_sample(&results.itl_ms, 3), AVL_OK);
    assert_int_equal(avl_bench_sample(&results.itl_ms, 1), AVL_OK);
    json_t *object = print_and_parse(&setting, &results);
    expect(object, "mean_ttft_ms", 50);
    expect(object, "median_ttft_ms", 50);
    expect(object, "p90_ttft_ms", 90);
    expect(object, "p99_ttft_ms", 99);
    expect(object, "p99_tpot_ms", 5);
    expect(object, "median_itl_ms", 2);
    expect(object, "p90_itl_ms", 2.8);
    assert_true(json_is_null(json_object_get(object, "mean_e2el_ms")));
    expect(object, "request_throughput", 50.5);
    expect(object, "request_goodput", 25);
    json_decref(object);
    avl_bench_results_free(&results);
}

static void errors_of_one_kind_are_one_line(void **state) {
    (void)state;
    avl_bench_results_t results = {0};
    avl_bench_setting_t setting = {.rate = 2.5, .connections = 1};
    avl_bench_count_error(&results, AVL_ERR_EXHAUSTED, "the first");
    avl_bench_count_error(&results, AVL_ERR_UNAVAILABLE, "lost");
    avl_bench_count_error(&results, AVL_ERR_EXHAUSTED, "the second");
    assert_int_equal(results.failed, 3);
    assert_int_equal(results.error_count, 2);
    assert_string_equal(results.errors[0].detail, "the first");
    json_t *object = print_and_parse(&setting, &results);
    const json_t *errors = json_object_get(object, "errors");
    assert_int_equal(json_object_size(errors), 2);
    expect(errors, "EXHAUSTED", 2);
    expect(errors, "UNAVAILABLE", 1);
    expect(object, "request_rate", 2.5);
    expect(object, "request_throughput", 0); /* without a duration as well */
    json_decref(object);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_are_interpolated),
        cmocka_unit_test(errors_of_one_kind_are_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
