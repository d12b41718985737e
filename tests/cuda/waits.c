/* tests/cuda/waits.c: what a step waits for on the device: its tokens or logits and its end,
 * however many layers it has and whatever it chooses or evicts in them. And what was chosen without
 * the host knowing serves the next request all the same. */
#include "tests/worker/rig.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "tests/cuda/shim/shim.h"

static const char case_directory[] = "models/cases/01";

enum {
    STEP_WAITS = 2,   /* the logits, and the end */
    ENCODE_WAITS = 1, /* the end of a picture */
};

static rig_t *open_rig(int ranks, int32_t kept_max) {
    return rig_open(&(rig_options_t){
        .model = "models/avl-tiny", .ranks = ranks, .limits = {.kept_max = kept_max}});
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
    rig_t *rig = open_rig(1, 0);
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
    /* One choice for all layers, and cores that nobody but their heads knows. */
    for (uint64_t id = 9; id <= 11; id++) {
        request = make_request(&data, id, 3);
        if (id <= 10)
            request->attention.visual_selection = AVL_VISUAL_COVERAGE;
        if (id >= 10)
            request->attention.visual_core = AVL_CORE_STEP;
        assert_int_equal(count_waits(rig, request), STEP_WAITS);
        assert_int_equal(rig_result(rig, id)->end.status, AVL_OK);
    }
    /* No scores choose. */
    request = make_request(&data, 12, 3);
    request->attention.visual_selection = AVL_VISUAL_UNIFORM;
    assert_int_equal(count_waits(rig, request), STEP_WAITS);
    assert_int_equal(rig_result(rig, 12)->end.status, AVL_OK);
    /* The host says what goes on beyond a layer: it fetches that, and is sure twice that what it
     * sent has been read. */
    request = make_request(&data, 4, 3);
    request->attention.prefill_keep_ratio = 0.6;
    request->attention.prefill_layer = 1;
    assert_int_equal(count_waits(rig, request), STEP_WAITS + 3);
    assert_int_equal(rig_result(rig, 4)->end.status, AVL_OK);
    rig_case_release(&data);
    rig_close(rig);
}

/* Joined GPUs add up what ranks have on their own: no more is waited for than at one rank. */
static void waits_for_no_other_rank(void **state) {
    (void)state;
    rig_t *rig = open_rig(2, 0);
    rig_case_t data = rig_case_load(rig_config(rig), case_directory);
    avl_request_t *request = make_request(&data, 1, 3);
    assert_int_equal(count_waits(rig, request), STEP_WAITS + ENCODE_WAITS);
    request = make_request(&data, 2, 3);
    request->attention.visual_core = AVL_CORE_STEP;
    assert_int_equal(count_waits(rig, request), STEP_WAITS);
    for (uint64_t id = 1; id <= 2; id++)
        assert_int_equal(rig_result(rig, id)->end.status, AVL_OK);
    rig_case_release(&data);
    rig_close(rig);
}

/* Everything that a draw may ask for, in a step of its own, and greedy beside it. */
static void waits_for_what_was_drawn_alone(void **state) {
    (void)state;
    enum { TOKENS = 4 };
    static int32_t forced[TOKENS] = {7, 11, 7, 3};
    const avl_sampling_params_t params[] = {
        {.top_p = 1, .temperature = 0.8, .seed = 3},
        {.top_p = 0.9, .temperature = 1.3, .top_k = 40, .min_p = 0.01, .seed = 4},
        {.top_p = 1, .repetition_penalty = 1.2, .presence_penalty = 0.5, .frequency_penalty = 0.1},
        {.top_p = 0.8, .temperature = 1, .logprob_count = AVL_LOGPROBS_MAX, .seed = 5},
        {.top_p = 1, .logprob_count = 1},
        {.top_p = 1, .min_tokens = 3},
    };
    enum { KINDS = sizeof params / sizeof *params };
    rig_t *rig = open_rig(1, 1); /* the dense prompt is read once; count_waits looks behind it */
    rig_case_t data = rig_case_load(rig_config(rig), case_directory);
    data.images[0].digest.bytes[0] = 1;
    for (int i = 0; i < KINDS; i++) {
        avl_request_t *request = rig_request(&data, (uint64_t)i + 1, TOKENS);
        request->sampling = params[i];
        request->ignore_eos = true;
        count_waits(rig, request);
        const rig_result_t *result = rig_result(rig, (uint64_t)i + 1);
        assert_int_equal(result->end.status, AVL_OK);
        assert_int_equal(result->token_count, TOKENS);
        assert_int_equal(result->end.reuse.prompt_rows, i == 0 ? 0 : data.row_count);
        for (int j = 0; params[i].logprob_count > 0 && j < TOKENS; j++)
            assert_true(result->logprobs[j] <= 0);
    }
    /* A whole answer that the caller chose, with logprobs. */
    avl_request_t *request = rig_request(&data, 20, TOKENS);
    request->sampling.logprob_count = 2;
    request->forced_ids = malloc(sizeof forced);
    assert_non_null(request->forced_ids);
    memcpy(request->forced_ids, forced, sizeof forced);
    request->forced_count = TOKENS;
    count_waits(rig, request);
    rig_expect_tokens(rig_result(rig, 20), forced, TOKENS, "forced");
    /* All together, with one that is greedy; they draw as they did alone. */
    for (uint64_t id = 30; id <= 30 + KINDS; id++) {
        avl_request_t *one = rig_request(&data, id, TOKENS);
        if (id < 30 + KINDS)
            one->sampling = params[id - 30];
        one->ignore_eos = true;
        avl_scheduler_submit(rig_scheduler(rig), one);
    }
    int64_t before = 0;
    for (int step = 0; rig_step(rig); step++) {
        assert_true(step == 0 || avl_shim_waits() - before <= STEP_WAITS);
        before = avl_shim_waits();
    }
    for (uint64_t id = 30; id < 30 + KINDS; id++)
        rig_expect_tokens(rig_result(rig, id), rig_result(rig, id - 29)->tokens, TOKENS,
                          "together");
    assert_int_equal(rig_result(rig, 30 + KINDS)->end.status, AVL_OK);
    rig_case_release(&data);
    rig_close(rig);
}

/* The host learns store and first core when another request begins with them. */
static void hands_on_what_the_device_chose(void **state) {
    (void)state;
    enum { TOKENS = 5 };
    for (int way = 0; way < 4; way++) {
        rig_t *rig = open_rig(1, 2);
        rig_case_t data = rig_case_load(rig_config(rig), case_directory);
        for (uint64_t id = 1; id <= 3; id++) {
            avl_request_t *request = make_request(&data, id, TOKENS);
            request->attention.visual_core = way % 2 > 0 ? AVL_CORE_STEP : AVL_CORE_INTERVAL;
            request->attention.visual_selection =
                way / 2 > 0 ? AVL_VISUAL_COVERAGE : AVL_VISUAL_LAST_ROW;
            request->attention.measure_captured_mass = id == 3; /* whose rows all stay */
            /* The end of a step that only begins it; stores and first cores; later cores. */
            if (id == 2)
                assert_int_equal(count_waits(rig, request), way % 2 > 0 ? 2 : 3);
            else
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

/* Under a sliding window the host asks for what the device chose while the window's edge is within
 * the picture, once for each layer's choice, and neither before nor afterwards. */
static void asks_for_what_a_window_splits(void **state) {
    (void)state;
    enum { TOKENS = 40 };
    rig_t *rig = rig_open(&(rig_options_t){
        .model = "tests/data/models/llava-mistral", .ranks = 1, .limits = {.kept_max = 0}});
    rig_case_t data = rig_case_load(rig_config(rig), "tests/data/cases/llava-mistral/04");
    int layers = rig_config(rig)->model.text.layer_count;
    for (uint64_t id = 1; id <= 2; id++) {
        avl_request_t *request = rig_request(&data, id, TOKENS);
        rig_set_attention(request, 0.6, 0.3, 1);
        request->attention.visual_selection = AVL_VISUAL_COVERAGE;
        request->attention.visual_core = AVL_CORE_STEP;
        request->ignore_eos = true;
        avl_scheduler_submit(rig_scheduler(rig), request);
        int64_t asked = 0, before = avl_shim_waits(), last_waits = 0;
        for (int step = 0; rig_step(rig); step++) {
            const avl_sequence_t *sequence = NULL;
            last_waits = avl_shim_waits() - before;
            if (step == 0)
                assert_int_equal(last_waits, STEP_WAITS + ENCODE_WAITS);
            else if (last_waits > STEP_WAITS)
                asked += last_waits - STEP_WAITS;
            /* The second one's copies are never behind. */
            if (id == 2)
                assert_int_equal(avl_engine_inspect(rig_engine(rig, 0), 0, &sequence), AVL_OK);
            before = avl_shim_waits();
        }
        assert_int_equal(asked, id == 1 ? layers : 0);
        assert_in_range(last_waits, 0, STEP_WAITS);
        assert_int_equal(rig_result(rig, id)->end.status, AVL_OK);
    }
    rig_expect_tokens(rig_result(rig, 2), rig_result(rig, 1)->tokens,
                      rig_result(rig, 1)->token_count, "with settled copies");
    rig_case_release(&data);
    rig_close(rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waits_for_nothing_within_a_step),
        cmocka_unit_test(waits_for_no_other_rank),
        cmocka_unit_test(waits_for_what_was_drawn_alone),
        cmocka_unit_test(hands_on_what_the_device_chose),
        cmocka_unit_test(asks_for_what_a_window_splits),
    };
    return cmocka_run_group_tests_name("waits for the device", tests, NULL, NULL);
}
