/* How fast groups are held to be, and when requests will end by that. */
#include "coordinator/forecast.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MS 1e6

/* A group whose steps take 1 ms and 0.1 ms for each sequence, 0.01 ms for each prompt row, and 5 ms
 * for each tile. */
static double true_step_ns(double sequences) {
    return MS + sequences * MS / 10;
}

static avl_work_t work(int64_t steps, int64_t sequences, int64_t rows, int64_t tiles,
                       double slowness) {
    double ns = (double)steps * true_step_ns((double)sequences) + (double)rows * MS / 100;
    double encode_ns = (double)tiles * 5 * MS * slowness;
    return (avl_work_t){steps,
                        (int64_t)(ns * slowness + encode_ns),
                        steps * sequences,
                        rows,
                        tiles,
                        (int64_t)encode_ns};
}

static void assert_near(double value, double expected, double share) {
    if (!(value >= expected * (1 - share) && value <= expected * (1 + share)))
        fail_msg("%g is not within %g %% of %g", value, 100 * share, expected);
}

static avl_pace_t learned(void) {
    avl_pace_t pace;
    memset(&pace, 0, sizeof pace);
    for (int i = 0; i < 400; i++) {
        avl_work_t one = work(1 + i % 3, 1 << i % 7, 0, 0, 1);
        avl_pace_add(&pace, &one);
        one = work(1, 1 << i % 7, 50 + i % 100, i % 5 == 0, 1);
        avl_pace_add(&pace, &one);
    }
    return pace;
}

static void test_pace(void **state) {
    (void)state;
    avl_pace_t pace;
    memset(&pace, 0, sizeof pace);
    assert_false(avl_pace_is_known(&pace));
    assert_true(avl_pace_step_ns(&pace, 4) <= 0);
    pace = learned();
    assert_true(avl_pace_is_known(&pace));
    for (int sequences = 1; sequences <= 64; sequences *= 2)
        assert_near(avl_pace_step_ns(&pace, sequences), true_step_ns(sequences), .1);
    assert_near(avl_pace_step_ns(&pace, 24), true_step_ns(24), .1); /* between two */
    assert_near(avl_pace_prompt_ns(&pace, 0, 1000), 10 * MS, .1);
    assert_near(avl_pace_prompt_ns(&pace, 3, 0), 15 * MS, .01);
    /* Beyond what was seen it errs to the safe side. */
    assert_true(avl_pace_step_ns(&pace, 256) >= true_step_ns(256));
    assert_true(avl_pace_step_ns(&pace, 0.5) > 0);
}

/* It gets slower, with every step of one mixture: the sum is right soon. */
static void test_pace_changes(void **state) {
    (void)state;
    avl_pace_t pace = learned();
    avl_work_t slow = work(1, 32, 100, 0, 3);
    for (int i = 0; i < 100; i++)
        avl_pace_add(&pace, &slow);
    assert_near(avl_pace_step_ns(&pace, 32) + avl_pace_prompt_ns(&pace, 0, 100), (double)slow.ns,
                .05);
    assert_true(avl_pace_step_ns(&pace, 32) > 2 * true_step_ns(32));
    assert_true(avl_pace_prompt_ns(&pace, 0, 100) > 1.2 * MS);
}

static void test_nonsense_is_not_learned(void **state) {
    (void)state;
    avl_pace_t pace = learned();
    const avl_pace_t before = pace;
    const avl_work_t bad[] = {{0, 5, 5, 5, 5, 5},
                              {1, 0, 1, 1, 0, 0},
                              {1, -5, 1, 1, 0, 0},
                              {1, 5, -1, 1, 0, 0},
                              {-1, 5, 1, 1, 0, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        avl_pace_add(&pace, &bad[i]);
    assert_memory_equal(&pace, &before, sizeof pace);
    const avl_work_t disturbed = {1, INT64_MAX, 1, 1, 0, 0};
    avl_pace_add(&pace, &disturbed); /* a machine that stood still */
    assert_true(avl_pace_step_ns(&pace, 1) < 2 * true_step_ns(1));
}

static avl_forecast_item_t item(int64_t rows, int64_t tokens, int32_t answers) {
    return (avl_forecast_item_t){.rows = rows, .tokens = tokens, .answers = answers};
}

static void test_forecast(void **state) {
    (void)state;
    const avl_pace_t pace = learned();
    avl_forecast_t forecast;
    memset(&forecast, 0, sizeof forecast);
    avl_forecast_item_t alone = item(100, 50, 1);
    assert_int_equal(avl_forecast_play(&forecast, &pace, 1, 4, &alone, 1), AVL_OK);
    assert_near(alone.end_ns, MS + 50 * true_step_ns(1), .1);
    assert_true(alone.begin_ns <= 0);
    /* Two side by side, then the third in the place of the first; the longest runs on alone. */
    avl_forecast_item_t three[] = {item(0, 10, 1), item(0, 50, 1), item(200, 20, 1)};
    assert_int_equal(avl_forecast_play(&forecast, &pace, 1, 2, three, 3), AVL_OK);
    assert_near(three[0].end_ns, 10 * true_step_ns(2), .1);
    assert_near(three[2].begin_ns, three[0].end_ns, .001);
    assert_near(three[2].end_ns, 10 * true_step_ns(2) + 2 * MS + 20 * true_step_ns(2), .1);
    assert_near(three[1].end_ns, three[2].end_ns + 20 * true_step_ns(1), .1);
    /* Several answers take as many places; more than there are, several turns. */
    avl_forecast_item_t many[] = {item(0, 10, 3), item(0, 10, 2), item(0, 10, 9)};
    assert_int_equal(avl_forecast_play(&forecast, &pace, 1, 4, many, 3), AVL_OK);
    assert_near(many[0].end_ns, 10 * true_step_ns(3), .1);
    assert_near(many[1].begin_ns, many[0].end_ns, .001);
    assert_near(many[2].begin_ns, many[1].end_ns, .001);
    assert_near(many[2].end_ns - many[2].begin_ns, 30 * true_step_ns(4), .1);
    avl_forecast_item_t even = item(0, 10, 8); /* two turns, no more */
    assert_int_equal(avl_forecast_play(&forecast, &pace, 1, 4, &even, 1), AVL_OK);
    assert_near(even.end_ns, 20 * true_step_ns(4), .1);
    /* Two groups halve it. */
    avl_forecast_item_t apart[] = {item(0, 10, 1), item(0, 10, 1)};
    assert_int_equal(avl_forecast_play(&forecast, &pace, 2, 8, apart, 2), AVL_OK);
    assert_near(apart[1].end_ns, 10 * true_step_ns(1), .1);
    assert_int_equal(avl_forecast_play(&forecast, &pace, 1, 8, NULL, 0), AVL_OK);
    avl_forecast_destroy(&forecast);
}

/* Against a play of every single step. */
static void test_random_forecasts(void **state) {
    (void)state;
    const avl_pace_t pace = learned();
    avl_forecast_t forecast;
    memset(&forecast, 0, sizeof forecast);
    uint32_t random = 4711;
    for (int round = 0; round < 50; round++) {
        enum { COUNT = 40 };
        avl_forecast_item_t items[COUNT];
        int64_t left[COUNT];
        double end_ns[COUNT], now_ns = 0;
        const int32_t parallel = 1 + round % 9;
        for (int i = 0; i < COUNT; i++) {
            random = random * 1664525u + 1013904223u;
            items[i] = item((random >> 8) % 300, 1 + (random >> 20) % 60, 1);
            left[i] = items[i].tokens;
        }
        for (int first = 0, next = 0, running = 0; first < COUNT;) {
            for (; next < COUNT && running < parallel; next++, running++)
                now_ns += avl_pace_prompt_ns(&pace, 0, items[next].rows);
            now_ns += avl_pace_step_ns(&pace, running);
            for (int i = first; i < next; i++)
                if (left[i] > 0 && --left[i] == 0) {
                    end_ns[i] = now_ns;
                    running--;
                }
            while (first < COUNT && left[first] == 0)
                first++;
        }
        assert_int_equal(avl_forecast_play(&forecast, &pace, 1, parallel, items, COUNT), AVL_OK);
        for (int i = 0; i < COUNT; i++) {
            /* Who ends in the same step as another one may wait for the next prompt as well. */
            if (items[i].end_ns < end_ns[i] * .98 || items[i].end_ns > end_ns[i] * 1.2)
                fail_msg("item %d ends after %g ms; foretold: %g", i, end_ns[i] / MS,
                         items[i].end_ns / MS);
        }
    }
    avl_forecast_destroy(&forecast);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pace),
        cmocka_unit_test(test_pace_changes),
        cmocka_unit_test(test_nonsense_is_not_learned),
        cmocka_unit_test(test_forecast),
        cmocka_unit_test(test_random_forecasts),
    };
    return cmocka_run_group_tests_name("coordinator forecast", tests, NULL, NULL);
}
