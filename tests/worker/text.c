/* tests/worker/text.c: requests that evict text, and with a prefill filter, through the scheduler:
 * the same tokens and the
 * same bits of their log probabilities alone and in company, in chunks, after giving way, after a
 * replay, on prompts that were read before; and no more pages than promised. */
#include "tests/worker/rig.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Grouped heads: three ranks and four share KV heads. */
#define MODEL "tests/data/models/llava-gqa"
#define CASES 2
#define TOKENS 60

static const struct setting {
    double store, compute, keep;
    int32_t keep_min;
    avl_text_policy_t policy;
    bool protect;
    double filter;
    int32_t filter_layer;
} settings[] = {
    {1, 1, .3, 5, AVL_TEXT_A_VL, true, 0, 0},     {1, 1, .5, 4, AVL_TEXT_A_VL, false, 0, 0},
    {.5, .3, .6, 20, AVL_TEXT_H2O, true, 0, 0},   {.3, .15, .2, 2, AVL_TEXT_H2O, false, 0, 0},
    {.5, .3, .1, 1, AVL_TEXT_A_VL, true, 0, 0},   {.3, .15, .8, 1, AVL_TEXT_A_VL, false, 0, 0},
    {1, 1, 0, 0, AVL_TEXT_A_VL, true, .5, 1},     {.3, .15, 0, 0, AVL_TEXT_A_VL, true, .5, 2},
    {.4, .2, .3, 4, AVL_TEXT_A_VL, true, .45, 1}, {1, 1, .3, 4, AVL_TEXT_A_VL, false, .2, 2},
};
#define SETTINGS ((int)(sizeof settings / sizeof *settings))
#define COUNT (2 * SETTINGS)

static rig_t *open_rig(int ranks, int32_t batch_rows, int64_t pages, int32_t kept_max) {
    return rig_open(&(rig_options_t){.model = MODEL,
                                     .ranks = ranks,
                                     .limits = {.batch_rows = batch_rows, .kept_max = kept_max},
                                     .page_count = pages});
}

static void load_cases(const rig_t *rig, rig_case_t *cases) {
    for (int i = 0; i < CASES; i++) {
        char directory[64];
        snprintf(directory, sizeof directory, "tests/data/cases/llava-gqa/%02d", i + 1);
        cases[i] = rig_case_load(rig_config(rig), directory);
    }
}

static void release_cases(rig_case_t *cases) {
    for (int i = 0; i < CASES; i++)
        rig_case_release(&cases[i]);
}

static avl_request_t *mixed_request(const rig_case_t *cases, int i, uint64_t id) {
    const struct setting *setting = &settings[i % SETTINGS];
    avl_request_t *request = rig_request(&cases[i / SETTINGS % CASES], id, TOKENS);
    rig_set_attention(request, setting->store, setting->compute, 3);
    rig_set_text(request, setting->keep, setting->keep_min);
    request->attention.text_policy = setting->policy;
    request->attention.prefill_keep_ratio = setting->filter;
    request->attention.prefill_layer = setting->filter_layer;
    request->attention.protect_prompt = setting->protect;
    request->ignore_eos = true;
    request->sampling.logprob_count = 1;
    for (int32_t j = 0; j < request->image_count; j++)
        request->images[j].digest.bytes[3] = (uint8_t)(1 + j + 10 * (i / SETTINGS % CASES));
    return request;
}

/* Setting 1 is one that the reference has run. */
static void expect_reference(const rig_case_t *data, const rig_result_t *result) {
    const json_t *entries = json_object_get(data->json, "avl_more");
    for (size_t i = 0; i < json_array_size(entries); i++) {
        const json_t *entry = json_array_get(entries, i);
        if (json_object_get(entry, "store") != NULL ||
            json_object_get(entry, "prefill_keep") != NULL ||
            json_real_value(json_object_get(entry, "text_keep")) != settings[1].keep)
            continue;
        const json_t *ids = json_object_get(entry, "greedy_ids");
        for (int32_t j = 0; j < result->token_count; j++)
            assert_int_equal(result->tokens[j], json_integer_value(json_array_get(ids, (size_t)j)));
        return;
    }
    fail_msg("%s has no such run", data->directory);
}

/* Answers, each alone, the prompt in one step. */
static void answer_some(int ranks, int count, int32_t tokens, rig_result_t *alone) {
    rig_t *rig = open_rig(ranks, 512, 0, 0);
    rig_case_t cases[CASES];
    load_cases(rig, cases);
    for (int i = 0; i < count; i++) {
        avl_request_t *request = mixed_request(cases, i, (uint64_t)i + 1);
        request->max_tokens = tokens;
        alone[i] = *rig_answer(rig, request);
        if (i == 1)
            expect_reference(&cases[0], &alone[i]);
    }
    release_cases(cases);
    rig_close(rig);
}

static void answer_alone(int ranks, rig_result_t *alone) {
    answer_some(ranks, COUNT, TOKENS, alone);
}

static void expect_same(const rig_result_t *got, const rig_result_t *expected, bool bits,
                        const char *what, int i) {
    char text[96];
    snprintf(text, sizeof text, "%s, request %d", what, i);
    assert_int_equal(got->end.finish_reason, AVL_FINISH_LENGTH);
    rig_expect_tokens(got, expected->tokens, expected->token_count, text);
    if (bits && memcmp(got->logprobs, expected->logprobs,
                       (size_t)expected->token_count * sizeof *got->logprobs) != 0)
        fail_msg("%s: the log probabilities have other bits", text);
    assert_int_equal(got->end.attention.text_rows_seen, expected->end.attention.text_rows_seen);
    assert_int_equal(got->end.attention.text_rows_stored, expected->end.attention.text_rows_stored);
}

/* What the report must say of `tokens` tokens: the last one drawn is never cached. */
static void expect_report(const rig_result_t *result, const rig_case_t *data,
                          const struct setting *setting, int tokens) {
    int visual = result->end.attention.visual_rows_seen, system = 0, exempt;
    if (setting->keep == 0) {
        assert_int_equal(result->end.attention.text_rows_seen, 0);
        return;
    }
    while (data->token_ids[system] >= 0)
        system++;
    exempt = setting->protect ? data->row_count - visual : system;
    int seen = data->row_count - visual - exempt + tokens - 1;
    int budget = (int)(setting->keep * seen + 0.5);
    budget = budget > setting->keep_min ? budget : setting->keep_min;
    assert_int_equal(result->end.attention.text_rows_seen, seen);
    /* Halves are rounded to even: down, or up as here. */
    assert_in_range(result->end.attention.text_rows_stored, seen < budget ? seen : budget - 1,
                    seen < budget ? seen : budget);
}

static void test_together_as_alone(void **state) {
    (void)state;
    static const struct {
        int ranks;
        int32_t batch_rows;
        int64_t pages;
        bool gives_way;
    } rows[] = {{1, 512, 0, false}, {1, 9, 0, false},   {2, 31, 0, false},
                {3, 64, 0, false},  {1, 512, 34, true}, {4, 512, 36, true}};
    rig_result_t *alone = calloc(COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(1, alone);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        rig_t *rig = open_rig(rows[k].ranks, rows[k].batch_rows, rows[k].pages, 0);
        if (rows[k].gives_way)
            avl_scheduler_set_growth_share(rig_scheduler(rig), 0);
        rig_case_t cases[CASES];
        load_cases(rig, cases);
        for (int i = 0; i < COUNT; i++) {
            avl_scheduler_submit(rig_scheduler(rig), mixed_request(cases, i, (uint64_t)i + 1));
            for (int step = i % 3; step > 0; step--)
                rig_step(rig);
        }
        rig_run(rig);
        if (rows[k].gives_way)
            assert_true(avl_scheduler_counts(rig_scheduler(rig)).preemptions > 0);
        for (int i = 0; i < COUNT; i++) {
            const rig_result_t *result = rig_result(rig, (uint64_t)i + 1);
            if (settings[i % SETTINGS].filter > 0 &&
                cases[i / SETTINGS].row_count > rows[k].batch_rows) {
                assert_int_equal(result->end.status, AVL_ERR_TOO_LARGE);
                assert_non_null(strstr(result->end.detail, "is read in one step"));
                continue;
            }
            expect_same(result, &alone[i], rows[k].ranks == 1, "together", i);
            expect_report(result, &cases[i / SETTINGS], &settings[i % SETTINGS], TOKENS);
        }
        release_cases(cases);
        rig_close(rig);
    }
    free(alone);
}

static void test_replay_continues(void **state) {
    (void)state;
    rig_result_t *alone = calloc(COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(1, alone);
    rig_t *rig = open_rig(1, 100, 0, 0);
    rig_case_t cases[CASES];
    load_cases(rig, cases);
    uint64_t id = 1;
    for (int i = 0; i < SETTINGS; i++) {
        static const int cuts[] = {1, 6, 25, 59};
        for (size_t j = 0; j < sizeof cuts / sizeof *cuts; j++) {
            avl_request_t *request = mixed_request(cases, i, id++);
            rig_set_replay(request, alone[i].tokens, cuts[j]);
            const rig_result_t *rest = rig_answer(rig, request);
            rig_expect_tokens(rest, alone[i].tokens + cuts[j], TOKENS - cuts[j], "replay");
            assert_memory_equal(rest->logprobs, alone[i].logprobs + cuts[j],
                                (size_t)(TOKENS - cuts[j]) * sizeof *rest->logprobs);
        }
    }
    release_cases(cases);
    rig_close(rig);
    free(alone);
}

/* The same question again, while the first is answered and afterwards: a protected prompt is there
 * whole, whatever text is evicted afterwards; one that is evicted from leaves nothing. */
static void test_prompts_again(void **state) {
    (void)state;
    rig_result_t *alone = calloc(COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(1, alone);
    rig_t *rig = open_rig(1, 512, 0, 24);
    rig_case_t cases[CASES];
    load_cases(rig, cases);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) {
            uint64_t id = (uint64_t)(round * COUNT + i) + 1;
            avl_scheduler_submit(rig_scheduler(rig), mixed_request(cases, i, id));
            for (int step = 0; step < 3 * round; step++)
                rig_step(rig);
        }
        rig_run(rig);
        for (int i = 0; i < COUNT; i++) {
            const rig_result_t *result = rig_result(rig, (uint64_t)(round * COUNT + i) + 1);
            bool whole = result->end.reuse.prompt_rows == cases[i / SETTINGS].row_count;
            expect_same(result, &alone[i], true, "again", i);
            if (settings[i % SETTINGS].keep > 0 && !settings[i % SETTINGS].protect)
                assert_false(whole);
            else if (round == 2)
                assert_true(whole);
        }
    }
    release_cases(cases);
    rig_close(rig);
    free(alone);
}

/* Without a picture there is nothing that attention could move away from: dense. */
static void test_no_picture(void **state) {
    (void)state;
    static const int32_t ids[] = {1, 7, 9, 11, 13, 15, 17, 19};
    rig_t *rig = open_rig(1, 512, 0, 0);
    rig_result_t dense = *rig_answer(rig, rig_text_request(ids, 8, 1, 40));
    avl_request_t *request = rig_text_request(ids, 8, 2, 40);
    rig_set_text(request, .2, 2);
    const rig_result_t *result = rig_answer(rig, request);
    rig_expect_tokens(result, dense.tokens, dense.token_count, "no picture");
    assert_int_equal(result->end.attention.text_rows_seen, 0);
    rig_close(rig);
}

/* A long answer takes the pages of its budget, and the price says so. */
static void test_pages(void **state) {
    (void)state;
    int64_t held[2];
    for (int i = 0; i < 2; i++) {
        rig_t *rig = open_rig(1, 512, 0, 0);
        rig_case_t data = rig_case_load(rig_config(rig), "tests/data/cases/llava-gqa/01");
        avl_request_t *request = rig_request(&data, 1, 120);
        rig_set_text(request, i == 0 ? 0 : .1, 16);
        request->attention.protect_prompt = true;
        request->ignore_eos = true;
        const rig_result_t *result = rig_answer(rig, request);
        assert_int_equal(result->token_count, 120);
        held[i] = result->end.attention.kv_bytes_held / avl_engine_page_bytes(rig_engine(rig, 0));
        rig_case_release(&data);
        rig_close(rig);
    }
    /* Of 119 rows 16 and a hole are left in each layer. */
    avl_config_t config;
    assert_int_equal(avl_config_load(AVL_SOURCE_DIR "/" MODEL, &config), AVL_OK);
    assert_in_range(held[0] - held[1], 6 * config.model.text.layer_count,
                    7 * config.model.text.layer_count);
}

/* Two answers to one request, with a prompt that they share or that each reads for itself. */
static void test_two_answers(void **state) {
    (void)state;
    static const uint64_t seeds[] = {5, 6};
    rig_result_t *alone = calloc(COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(1, alone);
    rig_t *rig = open_rig(1, 512, 0, 0);
    rig_case_t cases[CASES];
    load_cases(rig, cases);
    for (int i = 0; i < SETTINGS; i++) {
        uint64_t id = 1 + (uint64_t)i;
        avl_request_t *request = mixed_request(cases, i, id);
        rig_set_choices(request, seeds, 2);
        avl_scheduler_submit(rig_scheduler(rig), request);
        rig_run(rig);
        for (int32_t choice = 0; choice < 2; choice++) {
            const rig_result_t *result = rig_result(rig, rig_answer_id(id, choice));
            expect_same(result, &alone[i], true, "two answers", i);
        }
    }
    release_cases(cases);
    rig_close(rig);
    free(alone);
}

static void expect_refused(rig_t *rig, avl_request_t *request, avl_status_t status,
                           const char *text) {
    const rig_result_t *result = rig_answer(rig, request);
    assert_int_equal(result->end.status, status);
    if (strstr(result->end.detail, text) == NULL)
        fail_msg("\"%s\" lacks \"%s\"", result->end.detail, text);
}

static void test_refusals(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 0, 0);
    rig_case_t cases[CASES];
    load_cases(rig, cases);
    int layers = rig_config(rig)->model.text.layer_count;
    avl_request_t *request = mixed_request(cases, 6, 1);
    request->attention.prefill_layer = layers;
    expect_refused(rig, request, AVL_ERR_INVALID, "the filter needs one behind it");
    request = mixed_request(cases, 7, 2);
    request->attention.visual_store_ratio = .6;
    expect_refused(rig, request, AVL_ERR_INVALID, "more than the prefill");
    request = mixed_request(cases, 7, 3);
    request->attention.measure_captured_mass = true;
    expect_refused(rig, request, AVL_ERR_INVALID, "goes without a prefill filter");
    request = mixed_request(cases, 6, 4);
    while (request->token_ids[request->row_count - 1] >= 0)
        request->row_count--;
    expect_refused(rig, request, AVL_ERR_INVALID, "needs text behind the last picture");
    release_cases(cases);
    rig_close(rig);
    rig = rig_open(&(rig_options_t){.model = "tests/data/models/llava-mistral", .ranks = 1});
    rig_case_t windowed = rig_case_load(rig_config(rig), "tests/data/cases/llava-mistral/01");
    expect_refused(rig, mixed_request(&windowed, 6, 1), AVL_ERR_UNSUPPORTED,
                   "this model's sliding window of");
    rig_case_release(&windowed);
    rig_close(rig);
}

/* `text device`: a little of everything, for devices on which a step takes long: each setting
 * alone, at one rank and three, against the CPU's tokens is what the other tests say. */
static void test_settings_agree(void **state) {
    (void)state;
    rig_result_t *one = calloc(COUNT, sizeof *one), *three = calloc(COUNT, sizeof *three);
    assert_true(one != NULL && three != NULL);
    answer_some(1, SETTINGS, 24, one);
    answer_some(3, SETTINGS, 24, three);
    for (int i = 0; i < SETTINGS; i++)
        expect_same(&three[i], &one[i], false, "on three ranks", i);
    free(one);
    free(three);
}

int main(int argc, char **argv) {
    const struct CMUnitTest device[] = {cmocka_unit_test(test_settings_agree)};
    if (argc == 2 && strcmp(argv[1], "device") == 0)
        return cmocka_run_group_tests_name("worker text, device", device, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_two_answers),
        cmocka_unit_test(test_together_as_alone),
        cmocka_unit_test(test_replay_continues),
        cmocka_unit_test(test_prompts_again),
        cmocka_unit_test(test_no_picture),
        cmocka_unit_test(test_pages),
    };
    return cmocka_run_group_tests_name("worker text", tests, NULL, NULL);
}
