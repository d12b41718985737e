/* tests/worker/attend.c: A-VL over the paged cache against the algorithm written out in double
 * precision over plain arrays, with random queries, keys and values: outputs of every row, and the
 * rows kept and computed, in every layer, on every rank. */

#include "tests/worker/attend_rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* More rows after the picture than rank it. */
static const char long_question[] =
    "tttvvvvvvvvvvvvvvvvvvvvvvvvvvvttttttttttttttttttttttttttttttttt"
    "ttttttttttttttttttttttttttttttttttttttttttt";

static void test_against_reference(void **state) {
    (void)state;
    static const struct {
        double store, compute;
        int interval;
    } settings[] = {{.5, .3, 3}, {.3, .15, 1}, {.1, .02, 4}, {1, .25, 2}, {.5, .5, 3}, {1, 1, 2}};
    static const int chunks[] = {0, 11};
    for (size_t i = 0; i < ATTEND_PROMPTS; i++) {
        for (size_t j = 0; j < sizeof settings / sizeof *settings; j++) {
            for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
                attend_check((script_t)SCRIPT(ranks, attend_prompts[i], 14, settings[j].store,
                                              settings[j].compute, settings[j].interval, 0,
                                              chunks[(i + j + (size_t)ranks) % 2]));
        }
    }
}

static void test_sliding_window(void **state) {
    (void)state;
    static const int windows[] = {1, 8, 20, 45, 100};
    for (size_t i = 0; i < ATTEND_PROMPTS; i++) {
        for (size_t j = 0; j < sizeof windows / sizeof *windows; j++) {
            attend_check((script_t)SCRIPT(1, attend_prompts[i], 14, .5, .3, 3, windows[j], 0));
            attend_check((script_t)SCRIPT(3, attend_prompts[i], 14, .3, .2, 2, windows[j], 17));
            attend_check((script_t)SCRIPT(2, attend_prompts[i], 14, 1, 1, 2, windows[j], 0));
        }
    }
}

/* Every way to choose, with the same budgets. */
static void test_selections(void **state) {
    (void)state;
    static const avl_visual_selection_t ways[] = {AVL_VISUAL_LAST_ROW, AVL_VISUAL_QUESTION,
                                                  AVL_VISUAL_RANDOM, AVL_VISUAL_UNIFORM,
                                                  AVL_VISUAL_COVERAGE};
    static const struct {
        double store, compute;
        int interval, window;
    } settings[] = {{.5, .3, 3, 0}, {.3, .15, 1, 0}, {.1, .02, 4, 0}, {1, .25, 2, 0},
                    {.5, .5, 3, 0}, {1, 1, 2, 0},    {.4, .2, 2, 30}};
    static const int chunks[] = {0, 11, 17, 1};
    for (size_t i = 0; i < ATTEND_PROMPTS; i++) {
        for (size_t j = 0; j < sizeof settings / sizeof *settings; j++) {
            for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
                size_t turn = i + j + way;
                script_t script =
                    SCRIPT(1 + (int)(turn % 4), attend_prompts[i], 14, settings[j].store,
                           settings[j].compute, settings[j].interval, settings[j].window,
                           chunks[(turn + i) % 4]);
                script.selection = ways[way];
                script.measures = turn % 3 == 0;
                script.seed = turn % 2 ? 7 : UINT64_C(0x123456789abcdef0);
                attend_check(script);
            }
        }
    }
}

/* Cores within steps: on ranks that share KV heads (4 to 6) and that do not, under windows, with
 * nothing to compute and nothing to choose, and whatever chose the store. */
static void test_cores_in_steps(void **state) {
    (void)state;
    static const struct {
        double store, compute;
        int window;
    } settings[] = {{.5, .3, 0}, {.3, .02, 0}, {.4, .1, 20}, {1, .25, 8},
                    {.5, .5, 0}, {1, 1, 0},    {.6, .2, 45}};
    static const int chunks[] = {0, 11, 17, 1};
    for (size_t i = 0; i < ATTEND_PROMPTS; i++) {
        for (size_t j = 0; j < sizeof settings / sizeof *settings; j++) {
            for (int ranks = 1; ranks <= RANKS_MAX; ranks++) {
                size_t turn = i + j + (size_t)ranks;
                script_t script =
                    SCRIPT(ranks, attend_prompts[i], 14, settings[j].store, settings[j].compute, 3,
                           settings[j].window, chunks[turn % 4]);
                script.core = AVL_CORE_STEP;
                script.selection = (avl_visual_selection_t)((i + (size_t)ranks) % 5);
                script.measures = turn % 2;
                attend_check(script);
            }
        }
    }
}

/* A core of all of the store is the store, in every step; measuring changes no bit. */
static void test_cores_in_steps_bit_for_bit(void **state) {
    (void)state;
    script_t left = SCRIPT(2, attend_prompts[1], 14, .5, .5, 3, 0, 0), right = left;
    left.core = AVL_CORE_STEP;
    right.interval = 1;
    attend_expect_same_bits(left, right);
    left.store = left.compute = right.store = right.compute = 1;
    attend_expect_same_bits(left, right);
    left = (script_t)SCRIPT(3, attend_prompts[1], 14, .5, .2, 3, 0, 0);
    left.core = AVL_CORE_STEP;
    right = left;
    right.measures = true;
    attend_expect_same_bits(left, right);
    right.interval = 1;
    right.chunk_rows = 7;
    attend_expect_same_bits(left, right);
}

/* The rows of a question add up to the same bits however they are cut into chunks. */
static void check_chunks(avl_visual_selection_t selection) {
    trace_t *whole = calloc(1, sizeof *whole), *cut = calloc(1, sizeof *cut);
    assert_true(whole != NULL && cut != NULL);
    script_t script = SCRIPT(2, attend_prompts[2], 14, .5, .3, 3, 0, 0);
    script.selection = selection;
    attend_run(&script, whole);
    script_t other = script;
    other.kinds = long_question;
    other.chunk_rows = 40;
    attend_check(other);
    for (int chunk = 1; chunk < 50; chunk += 7) {
        script.chunk_rows = chunk;
        memset(cut, 0, sizeof *cut);
        attend_run(&script, cut);
        assert_memory_equal(cut->store, whole->store, sizeof whole->store);
        assert_memory_equal(cut->core, whole->core, sizeof whole->core);
    }
    free(whole);
    free(cut);
}

static void test_question_in_chunks(void **state) {
    (void)state;
    check_chunks(AVL_VISUAL_QUESTION);
    check_chunks(AVL_VISUAL_COVERAGE);
}

/* One set for all layers, beside text that is evicted as well. */
static void test_coverage_is_one_choice(void **state) {
    (void)state;
    trace_t *trace = calloc(1, sizeof *trace);
    assert_non_null(trace);
    for (int chunk = 0; chunk < 30; chunk += 13) {
        script_t script = SCRIPT(3, attend_prompts[1], 14, .4, .2, 3, 0, chunk);
        script.selection = AVL_VISUAL_COVERAGE;
        attend_run(&script, trace);
        assert_memory_equal(trace->store[0], trace->store[1], sizeof trace->store[0]);
        assert_memory_equal(trace->core[0][0], trace->core[1][0], sizeof trace->core[0][0]);
        script.text.keep = .4;
        script.text.keep_min = 3;
        attend_check(script);
    }
    free(trace);
}

/* To measure what the computed rows capture changes no bit of an answer, and gives no page back. */
static void test_measuring_changes_nothing(void **state) {
    (void)state;
    trace_t *plain = calloc(1, sizeof *plain), *measured = calloc(1, sizeof *measured);
    assert_true(plain != NULL && measured != NULL);
    script_t script = SCRIPT(2, attend_prompts[1], 14, .5, .3, 3, 0, 17);
    attend_run(&script, plain);
    script.measures = true;
    attend_run(&script, measured);
    assert_memory_equal(plain->outputs, measured->outputs, sizeof plain->outputs);
    assert_memory_equal(plain->store, measured->store, sizeof plain->store);
    assert_memory_equal(plain->core, measured->core, sizeof plain->core);
    assert_int_equal(measured->pages.taken, LAYERS * (2 + 3));
    free(plain);
    free(measured);
}

/* Another seed, other rows; every layer its own. */
static void test_random_depends_on_seed_and_layer(void **state) {
    (void)state;
    trace_t *one = calloc(1, sizeof *one), *two = calloc(1, sizeof *two);
    assert_true(one != NULL && two != NULL);
    script_t script = SCRIPT(1, attend_prompts[0], 6, .5, .3, 3, 0, 0);
    script.selection = AVL_VISUAL_RANDOM;
    attend_run(&script, one);
    script.seed = 1;
    attend_run(&script, two);
    assert_memory_not_equal(one->store[0], two->store[0], 19 * sizeof(int32_t));
    assert_memory_not_equal(one->store[0], one->store[1], 19 * sizeof(int32_t));
    assert_memory_not_equal(one->core[0][0], one->core[0][3], 11 * sizeof(int32_t));
    assert_memory_equal(one->core[0][0], one->core[0][2], 11 * sizeof(int32_t));
    free(one);
    free(two);
}

/* store = compute = 1 is dense attention, to the bit; so is an interval of 1 with everything
 * stored, where every step reads the whole store. And where core and store are one, the interval
 * does not matter. */
static void test_dense_bit_for_bit(void **state) {
    (void)state;
    script_t dense = SCRIPT(2, attend_prompts[0], 14, 1, 1, 1, 0, 0), other = dense;
    other.interval = 3;
    attend_expect_same_bits(dense, other);
    other = dense;
    other.compute = .4;
    attend_expect_same_bits(dense, other);
    script_t left = SCRIPT(2, attend_prompts[1], 14, .5, .5, 3, 0, 0), right = left;
    right.interval = 1;
    attend_expect_same_bits(left, right);
    right.compute = .2;
    attend_expect_same_bits(left, right);
}

static void test_pages_follow_the_price(void **state) {
    (void)state;
    script_t script = SCRIPT(1, attend_prompts[0], 14, .5, .3, 3, 0, 0);
    trace_t *trace = calloc(1, sizeof *trace);
    assert_non_null(trace);
    attend_run(&script, trace);
    /* 38 visual rows, 19 kept; 12 + 14 text rows: 2 pages each in each layer; at most one layer
     * with 3 visual ones. */
    assert_int_equal(trace->pages.taken, LAYERS * (2 + 2));
    assert_int_equal(trace->pages.total, LAYERS * (2 + 2) + 1);
    script.chunk_rows = 20;
    attend_run(&script, trace);
    assert_int_equal(trace->pages.taken, LAYERS * (2 + 2));
    assert_int_equal(trace->pages.total, LAYERS * (2 + 3));
    /* Where one store serves all layers, all of them hold all visual rows until it is chosen. */
    script.chunk_rows = 0;
    script.selection = AVL_VISUAL_COVERAGE;
    attend_run(&script, trace);
    assert_int_equal(trace->pages.taken, LAYERS * (2 + 2));
    assert_int_equal(trace->pages.total, LAYERS * (2 + 3));
    free(trace);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_sliding_window),
        cmocka_unit_test(test_selections),
        cmocka_unit_test(test_cores_in_steps),
        cmocka_unit_test(test_cores_in_steps_bit_for_bit),
        cmocka_unit_test(test_question_in_chunks),
        cmocka_unit_test(test_coverage_is_one_choice),
        cmocka_unit_test(test_measuring_changes_nothing),
        cmocka_unit_test(test_random_depends_on_seed_and_layer),
        cmocka_unit_test(test_dense_bit_for_bit),
        cmocka_unit_test(test_pages_follow_the_price),
    };
    return cmocka_run_group_tests_name("worker attend", tests, NULL, NULL);
}
