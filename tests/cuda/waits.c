/* tests/cuda/waits.c: what a step waits for on the device: its logits and its end, however many
 * layers it has and whatever it chooses or evicts in them. And what was chosen without the host
 * knowing serves the next request all the same. */
#include "tests/worker/rig.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tests/cuda/shim/shim.h"

static const char case_directory[] = "models/cases/01";

enum {
    STEP_WAITS = 2,   /* the logits, and the end */
    ENCODE_WAITS = 1, /* the end of a picture */
};

static rig_t *open_rig(int32_t kept_max) {
    return rig_open(
        &(rig_options_t){.model = "models/avl-tiny", .ranks = 1, .limits = {.kept_max = kept_max}});
}

/* With a picture that is known again. */
static avl_request_t *make_request(const rig_case_t *data, uint64_t id, int32_t max_tokens) {
    avl_request_t *request = rig_request(data, id, max_tokens);
    request->images[0].digest.bytes[0] = 1;
    rig_set_attention(request, 0.5, 0.3, 2);
    return request;
}

/* Runs the request step by step. Returns the waits of its first step, which reads the prompt. */
static int64_t count_waits(rig_t *rig, avl_request_t *request) {
    int64_t first_waits = -1, before = avl_shim_waits();
    avl_scheduler_submit(rig_scheduler(rig), request);
    while (rig_step(rig)) {
        int64_t waits = avl_shim_waits() - before;
        if (first_waits < 0)
            first_waits = waits;
        else
            assert_in_range(waits, 0, STEP_WAITS);
        before = avl_shim_waits();
    }
    return first_waits;
}

static void waits_for_nothing_within_a_step(void **state) {
    (void)state;
    rig_t *rig = open_rig(0);
    rig_case_t data = rig_case_load(rig_config(rig), case_directory);
    avl_request_t *request = make_request(&data, 1, 3);
    assert_int_equal(count_waits(rig, request), STEP_WAITS + ENCODE_WAITS);
    /* Text of the prompt goes as well; once the operation's scratch memory has grown to what it
     * needs. */
    for (uint64_t id = 7; id <= 8; id++) {
        request = make_request(&data, id, 3);
        rig_set_text(request, 0.5, 4);
        int64_t waits = count_waits(rig, request);
        assert_in_range(waits, STEP_WAITS, id == 7 ? STEP_WAITS + 1 : STEP_WAITS);
        assert_int_equal(rig_result(rig, id)->end.status, AVL_OK);
    }
    /* Scores of several rows, summed. */
    request = make_request(&data, 3, 3);
    request->attention.visual_selection = AVL_VISUAL_QUESTION;
    assert_int_equal(count_waits(rig, request), STEP_WAITS);
    /* One choice for all layers, the host's: the scores, the store, the core. */
    request = make_request(&data, 5, 3);
    request->attention.visual_selection = AVL_VISUAL_COVERAGE;
    assert_in_range(count_waits(rig, request), STEP_WAITS + 1, STEP_WAITS + 3);
    assert_int_equal(rig_result(rig, 5)->end.status, AVL_OK);
    /* Cores that nobody but their heads knows. */
    request = make_request(&data, 6, 3);
    request->attention.visual_core = AVL_CORE_STEP;
    assert_int_equal(count_waits(rig, request), STEP_WAITS);
    assert_int_equal(rig_result(rig, 6)->end.status, AVL_OK);
    /* The host says what goes on beyond a layer: what it waits for is counted. */
    request = make_request(&data, 4, 3);
    request->attention.prefill_keep_ratio = 0.6;
    request->attention.prefill_layer = 1;
    assert_true(count_waits(rig, request) > STEP_WAITS);
    assert_int_equal(rig_result(rig, 4)->end.status, AVL_OK);
    rig_case_release(&data);
    rig_close(rig);
}

/* The host learns store and first core when another request begins with them. */
static void hands_on_what_the_device_chose(void **state) {
    (void)state;
    enum { TOKENS = 5 };
    for (int core = AVL_CORE_INTERVAL; core <= AVL_CORE_STEP; core++) {
        rig_t *rig = open_rig(2);
        rig_case_t data = rig_case_load(rig_config(rig), case_directory);
        for (uint64_t id = 1; id <= 3; id++) {
            avl_request_t *request = make_request(&data, id, TOKENS);
            request->attention.visual_core = (avl_visual_core_t)core;
            request->attention.measure_captured_mass = id == 3; /* then the host chooses */
            assert_int_equal(rig_answer(rig, request)->end.status, AVL_OK);
        }
        const rig_result_t *first = rig_result(rig, 1), *second = rig_result(rig, 2);
        assert_int_equal(first->end.reuse.prompt_rows, 0);
        assert_int_equal(second->end.reuse.prompt_rows, data.row_count);
        rig_expect_tokens(second, first->tokens, first->token_count, "the same prompt again");
        rig_expect_tokens(rig_result(rig, 3), first->tokens, first->token_count, "measured");
        rig_case_release(&data);
        rig_close(rig);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waits_for_nothing_within_a_step),
        cmocka_unit_test(hands_on_what_the_device_chose),
    };
    return cmocka_run_group_tests_name("waits for the device", tests, NULL, NULL);
}
