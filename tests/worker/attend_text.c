/* tests/worker/attend_text.c: adaptive text attention over the paged cache against the algorithm
 * written out: what every head attends to and holds, on every rank, and what it takes of the pool.
 */
#include "tests/worker/attend_rig.h"

#include <stdlib.h>
#include <string.h>

/* Text eviction alone and with a store, with and without the prompt's protection, by either policy,
 * for attend_prompts at once and in chunks, on ranks that share KV heads (4 to 6) and that do not,
 * under a window. */
static void test_text_eviction(void **state) {
    (void)state;
    static const struct {
        double keep;
        int keep_min;
    } settings[] = {{.5, 1}, {.6, 4}, {.25, 3}, {.9, 1}, {.3, 40}};
    static const int chunks[] = {0, 11}, windows[] = {0, 0, 25};
    for (size_t i = 0; i < ATTEND_PROMPTS; i++) {
        for (size_t j = 0; j < sizeof settings / sizeof *settings; j++) {
            for (int ranks = 1; ranks <= RANKS_MAX; ranks++) {
                size_t mix = i + j + (size_t)ranks;
                script_t script = SCRIPT(ranks, attend_prompts[i], 40, mix % 3 ? .5 : 1,
                                         mix % 3 ? .3 : 1, 3, windows[mix % 3], chunks[mix % 2]);
                script.text.keep = settings[j].keep;
                script.text.keep_min = settings[j].keep_min;
                script.text.h2o = (i + j) % 2;
                script.measures = mix % 4 == 1;
                attend_check(script);
                script.text.protect = true;
                attend_check(script);
                script.core = AVL_CORE_STEP;
                attend_check(script);
                script.text.protect = false;
                attend_check(script);
            }
        }
    }
}

/* A full budget takes no page more: what goes makes room for what comes. */
static void test_text_takes_no_page(void **state) {
    (void)state;
    trace_t *trace = calloc(1, sizeof *trace);
    assert_non_null(trace);
    script_t script = SCRIPT(1, attend_prompts[0], 15, .5, .3, 3, 0, 0);
    script.text.keep = .1;
    script.text.keep_min = 15;
    script.text.protect = true;
    attend_run(&script, trace);
    int64_t full = trace->pages.taken;
    /* 12 rows of the prompt, 15 of the answer and a hole: 2 pages, where 60 rows would take 5. */
    assert_int_equal(full, LAYERS * (2 + 2));
    memset(trace, 0, sizeof *trace);
    script.decode_steps = 48;
    attend_run(&script, trace);
    assert_int_equal(trace->pages.taken, full);
    /* Without protection the 7 rows behind the picture count as well. */
    script.text.protect = false;
    script.text.keep_min = 9;
    memset(trace, 0, sizeof *trace);
    attend_run(&script, trace);
    assert_int_equal(trace->pages.taken, LAYERS * (1 + 2));
    free(trace);
}

/* A prompt in chunks leaves the same state as at once, to the bit. */
static void test_text_in_chunks(void **state) {
    (void)state;
    script_t whole = SCRIPT(2, attend_prompts[2], 30, .5, .3, 3, 0, 0), chunks;
    whole.text.keep = .4;
    whole.text.keep_min = 4;
    chunks = whole;
    for (chunks.chunk_rows = 3; chunks.chunk_rows < 40; chunks.chunk_rows += 9)
        attend_expect_same_bits(whole, chunks);
    /* As long as nothing goes, it is as if nothing could. */
    script_t kept = whole, dense = whole;
    kept.text.keep_min = 100;
    dense.text.keep = 0;
    attend_expect_same_bits(kept, dense);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_eviction),
        cmocka_unit_test(test_text_takes_no_page),
        cmocka_unit_test(test_text_in_chunks),
    };
    return cmocka_run_group_tests_name("worker attend text", tests, NULL, NULL);
}
