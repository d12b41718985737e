/* tests/client/top_view.c: what avl top makes of two answers. */
#include "client/top_view.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static double bounds[] = {0.1, 0.2, 0.4};

static Avl__V1__Histogram histogram(uint64_t counts[4]) {
    Avl__V1__Histogram made;
    avl__v1__histogram__init(&made);
    made.n_bounds = 3;
    made.bounds = bounds;
    made.n_counts = 4;
    made.counts = counts;
    return made;
}

static void percentiles(void **state) {
    (void)state;
    uint64_t none[] = {0, 0, 0, 0}, some[] = {10, 10, 0, 0}, more[] = {10, 10, 20, 1};
    Avl__V1__Histogram zero = histogram(none), first = histogram(some), second = histogram(more);
    assert_true(isnan(avl_top_percentile(NULL, &zero, 0.5)));
    assert_true(isnan(avl_top_percentile(&first, &first, 0.5)));
    assert_true(isnan(avl_top_percentile(NULL, NULL, 0.5)));
    assert_true(fabs(avl_top_percentile(NULL, &first, 0.5) - 0.1) < 1e-9);
    assert_true(fabs(avl_top_percentile(NULL, &first, 0.75) - 0.15) < 1e-9);
    assert_true(fabs(avl_top_percentile(&first, &second, 0.5) - (0.2 + 0.2 * 10.5 / 20)) < 1e-9);
    assert_true(isinf(avl_top_percentile(&first, &second, 0.99)));
    /* a new service counts from zero */
    assert_true(fabs(avl_top_percentile(&second, &first, 0.75) - 0.15) < 1e-9);
    /* what does not fit together is no reason to read beyond */
    Avl__V1__Histogram odd = first;
    odd.n_counts = 2;
    assert_true(isnan(avl_top_percentile(NULL, &odd, 0.5)));
    assert_true(fabs(avl_top_percentile(&odd, &first, 0.75) - 0.15) < 1e-9);
}

static char *view(const Avl__V1__GetStatsResponse *before, const Avl__V1__GetStatsResponse *after) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    assert_non_null(stream);
    avl_top_view_write(stream, "host:1", before, after, 2);
    fclose(stream);
    return text;
}

static void expect(const char *text, const char *part) {
    if (strstr(text, part) == NULL)
        fail_msg("no \"%s\" in:\n%s", part, text);
}

static void figures(void **state) {
    (void)state;
    char hostile[] = "m\x1b[2J\n\xff";
    uint64_t some[] = {10, 10, 0, 0};
    Avl__V1__Histogram first = histogram(some);
    Avl__V1__GetStatsResponse before, after;
    avl__v1__get_stats_response__init(&before);
    avl__v1__get_stats_response__init(&after);
    before.requests_succeeded = 10;
    before.generation_tokens = 100;
    after.model = hostile;
    after.uptime_seconds = 3725;
    after.ready = true;
    after.requests_running = 3;
    after.requests_succeeded = 20;
    after.generation_tokens = 300;
    after.visual_tokens_in = 1000;
    after.visual_tokens_stored = 500;
    after.visual_tokens_computed = 600;
    after.decode_steps = 3;
    after.first_token_seconds = &first;
    Avl__V1__WorkerGroupStats group, *groups[] = {&group};
    avl__v1__worker_group_stats__init(&group);
    char ready[] = "ready";
    group.state = ready;
    group.ranks = 2;
    group.reported = true;
    group.active = 3;
    group.sequences_max = 32;
    group.pages_total = 100;
    group.pages_taken = 25;
    group.page_bytes = 1 << 20;
    after.n_groups = 1;
    after.groups = groups;
    char *text = view(&before, &after);
    expect(text, "m?[2J?? at host:1");
    expect(text, "up 1:02:05, ready");
    expect(text, "running 3   waiting 0   answered 20 (5.0/s)");
    expect(text, "generated 100.0/s");
    expect(text, "stored 50.0 %   computed 200.0 a step");
    expect(text, "  first token        100.0 ms   180.0 ms   198.0 ms\n");
    expect(text, "between tokens            -          -          -\n");
    expect(text, "group 0    ready   2 ranks");
    expect(text, "at work 3 of 32");
    expect(text, "[#####...............]  25.0 % of 100.0 MiB");
    for (const char *at = text; *at != '\0'; at++)
        assert_true(*at == '\n' || (*at >= 0x20 && *at < 0x7f));
    free(text);
    text = view(NULL, &after); /* everything since the start */
    expect(text, "generated 0.1/s");
    free(text);
    after.n_groups = 0; /* an answer with nothing in it */
    after.first_token_seconds = NULL;
    free(view(&after, &before));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles),
        cmocka_unit_test(figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
