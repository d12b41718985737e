/* tests/worker/prompt_cache.c: prompts and prefixes that are there from earlier requests: the same
 * tokens and the same bits of their log probabilities as without, fewer rows computed, nothing
 * shared between tenants, and nobody waits for pages that kept prompts hold. */
#include "worker/prompt_cache.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/worker/rig.h"

#define MODEL "models/avl-tiny"
#define TOKENS 12

static rig_t *open_rig(int ranks, int32_t batch_rows, int32_t kept_max, int64_t pages) {
    return rig_open(&(rig_options_t){.model = MODEL,
                                     .ranks = ranks,
                                     .limits = {.batch_rows = batch_rows, .kept_max = kept_max},
                                     .page_count = pages});
}

/* Question `question` about the case's picture. */
static avl_request_t *ask(const rig_case_t *data, uint64_t id, int question, double store,
                          double compute) {
    avl_request_t *request = rig_request(data, id, TOKENS);
    rig_set_attention(request, store, compute, 3);
    request->ignore_eos = true;
    request->sampling.logprob_count = 1;
    for (int32_t i = 0; i < request->image_count; i++)
        request->images[i].digest.bytes[3] = (uint8_t)(1 + i);
    int32_t *last = &request->token_ids[request->row_count - 2];
    *last = (*last + question) % 200;
    return request;
}

static void expect_same(const rig_result_t *got, const rig_result_t *expected, const char *what) {
    assert_int_equal(got->end.finish_reason, AVL_FINISH_LENGTH);
    assert_true(expected->logprobs[0] < 0);
    rig_expect_tokens(got, expected->tokens, expected->token_count, what);
    if (memcmp(got->logprobs, expected->logprobs,
               (size_t)expected->token_count * sizeof *got->logprobs) != 0)
        fail_msg("%s: the log probabilities have other bits", what);
    assert_int_equal(got->end.attention.visual_rows_stored,
                     expected->end.attention.visual_rows_stored);
    assert_int_equal(got->end.attention.visual_rows_computed,
                     expected->end.attention.visual_rows_computed);
}

static const double settings[][2] = {{1, 1}, {.5, .3}, {1, .25}};
#define SETTING_COUNT ((int)(sizeof settings / sizeof *settings))

static void check_whole(int ranks, int32_t batch_rows) {
    rig_t *without = open_rig(ranks, batch_rows, 0, 0);
    rig_t *rig = open_rig(ranks, batch_rows, 8, 0);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    for (int i = 0; i < SETTING_COUNT; i++) {
        double store = settings[i][0], compute = settings[i][1];
        uint64_t id = 10 * (uint64_t)i;
        const rig_result_t *expected = rig_answer(without, ask(&data, id + 1, i, store, compute));
        assert_int_equal(expected->end.reuse.prompt_rows, 0);
        expect_same(rig_answer(rig, ask(&data, id + 1, i, store, compute)), expected, "first");
        for (uint64_t again = 2; again < 4; again++) {
            const rig_result_t *got = rig_answer(rig, ask(&data, id + again, i, store, compute));
            expect_same(got, expected, "again");
            assert_int_equal(got->end.reuse.prompt_rows, data.row_count);
            assert_int_equal(got->end.timings.encode_ns, 0);
        }
        /* While the first is still answering; the third is replayed in part. */
        avl_scheduler_submit(rig_scheduler(rig), ask(&data, id + 5, i + 20, store, compute));
        while (rig_result(rig, id + 5)->token_count < 3)
            rig_step(rig);
        avl_scheduler_submit(rig_scheduler(rig), ask(&data, id + 6, i + 20, store, compute));
        avl_request_t *replayed = ask(&data, id + 7, i + 20, store, compute);
        rig_set_replay(replayed, rig_result(rig, id + 5)->tokens, 3);
        avl_scheduler_submit(rig_scheduler(rig), replayed);
        rig_run(rig);
        const rig_result_t *leader = rig_result(rig, id + 5), *late = rig_result(rig, id + 6);
        expect_same(late, leader, "beside the first");
        assert_int_equal(late->end.reuse.prompt_rows, data.row_count);
        const rig_result_t *rest = rig_result(rig, id + 7);
        assert_int_equal(rest->end.reuse.prompt_rows, data.row_count);
        rig_expect_tokens(rest, leader->tokens + 3, leader->token_count - 3, "replayed");
    }
    rig_case_release(&data);
    rig_close(rig);
    rig_close(without);
}

static void test_whole_prompts(void **state) {
    (void)state;
    check_whole(1, 512);
    check_whole(3, 100);
}

/* What others leave is as long as tokens and pictures are the same and nothing of it was evicted.
 */
static void check_prefixes(int ranks, int32_t batch_rows) {
    rig_t *without = open_rig(ranks, batch_rows, 0, 0);
    rig_t *rig = open_rig(ranks, batch_rows, 8, 0);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    int32_t before = data.images[0].first_row;
    static const struct {
        double first[2], second[2];
        bool pictures; /* are shared */
    } pairs[] = {
        {{1, 1}, {1, 1}, true},     {{1, .3}, {1, 1}, true},   {{1, 1}, {.5, .3}, true},
        {{1, 1}, {.06, .03}, true}, {{.5, .3}, {1, 1}, false}, {{.5, .3}, {.5, .3}, false},
    };
    for (int i = 0; i < (int)(sizeof pairs / sizeof *pairs); i++) {
        uint64_t id = 10 * (uint64_t)i;
        const double *first = pairs[i].first, *second = pairs[i].second;
        /* Other pictures than those of the pairs before. */
        avl_request_t *requests[3];
        for (int j = 0; j < 3; j++) {
            const double *own = j == 0 ? first : second;
            requests[j] = ask(&data, id + (uint64_t)j + 1, j == 0 ? 50 : 60, own[0], own[1]);
            for (int32_t k = 0; k < requests[j]->image_count; k++)
                requests[j]->images[k].digest.bytes[4] = (uint8_t)(i + 1);
        }
        (void)rig_answer(rig, requests[0]);
        const rig_result_t *got = rig_answer(rig, requests[1]);
        const rig_result_t *expected = rig_answer(without, requests[2]);
        char what[64];
        snprintf(what, sizeof what, "%d ranks, %d rows, pair %d", ranks, batch_rows, i);
        expect_same(got, expected, what);
        if (pairs[i].pictures)
            assert_int_equal(got->end.reuse.prompt_rows, data.row_count - 2);
        else
            assert_in_range(got->end.reuse.prompt_rows, 0, before);
        assert_int_equal(got->end.reuse.pictures, data.image_count);
    }
    rig_case_release(&data);
    rig_close(rig);
    rig_close(without);
}

static void test_prefixes(void **state) {
    (void)state;
    check_prefixes(1, 512);
    check_prefixes(3, 64);
}

/* Every way to choose rows: what ranks them is computed, whatever is there already, and a prompt's
 * state is another one's only where the rows were chosen in the same way. */
static void check_selections(int ranks, int32_t batch_rows) {
    rig_t *without = open_rig(ranks, 512, 0, 0);
    rig_t *rig = open_rig(ranks, batch_rows, 8, 0);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    int32_t after = data.images[0].first_row + data.images[0].layout.prompt_rows;
    static const struct {
        avl_visual_selection_t selection;
        avl_visual_core_t core;
    } ways[] = {{AVL_VISUAL_QUESTION, AVL_CORE_INTERVAL}, {AVL_VISUAL_LAST_ROW, AVL_CORE_INTERVAL},
                {AVL_VISUAL_LAST_ROW, AVL_CORE_STEP},     {AVL_VISUAL_RANDOM, AVL_CORE_INTERVAL},
                {AVL_VISUAL_UNIFORM, AVL_CORE_INTERVAL},  {AVL_VISUAL_QUESTION, AVL_CORE_STEP},
                {AVL_VISUAL_COVERAGE, AVL_CORE_INTERVAL}, {AVL_VISUAL_COVERAGE, AVL_CORE_STEP}};
    assert_int_equal(data.image_count, 1);
    (void)rig_answer(rig, ask(&data, 1, 90, 1, 1));
    for (int i = 0; i < (int)(sizeof ways / sizeof *ways); i++) {
        const rig_result_t *results[4];
        for (int j = 0; j < 4; j++) {
            avl_request_t *request = ask(&data, 10 * (uint64_t)i + 2 + (uint64_t)j, 91, .4, .2);
            request->attention.visual_selection = ways[i].selection;
            request->attention.visual_core = ways[i].core;
            if (ways[i].selection == AVL_VISUAL_RANDOM)
                request->attention.selection_seed = j == 3 ? 6 : 5;
            results[j] = rig_answer(j == 0 ? without : rig, request);
        }
        expect_same(results[1], results[0], "after a dense request");
        expect_same(results[2], results[0], "again");
        int32_t reused = results[1]->end.reuse.prompt_rows;
        if (ways[i].selection == AVL_VISUAL_QUESTION)
            assert_int_equal(reused, after);
        else if (ways[i].selection == AVL_VISUAL_COVERAGE) /* no part with pictures */
            assert_int_equal(reused, 0);
        else
            assert_int_equal(reused, data.row_count - 2);
        assert_int_equal(results[2]->end.reuse.prompt_rows, data.row_count);
        if (ways[i].selection == AVL_VISUAL_RANDOM)
            assert_int_equal(results[3]->end.reuse.prompt_rows, data.row_count - 2);
    }
    rig_case_release(&data);
    rig_close(rig);
    rig_close(without);
}

static void test_selections(void **state) {
    (void)state;
    check_selections(1, 512);
    check_selections(3, 64);
}

/* A request that measures what it captures answers as without, also from a prompt that is there,
 * and all ranks together measure what one does. */
static void test_measuring(void **state) {
    (void)state;
    double captured[2] = {0};
    for (int i = 0; i < 2; i++) {
        rig_t *rig = open_rig(i == 0 ? 1 : 3, i == 0 ? 512 : 64, 8, 0);
        rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
        const rig_result_t *results[3];
        for (int j = 0; j < 3; j++) {
            avl_request_t *request = ask(&data, (uint64_t)j + 1, 91, .4, .2);
            request->attention.measure_captured_mass = j > 0;
            results[j] = rig_answer(rig, request);
            const avl_attention_report_t *report = &results[j]->end.attention;
            expect_same(results[j], results[0], "measured");
            assert_true((report->kv_bytes_returned == 0) == (j > 0));
            assert_true((report->visual_mass == 0) == (j == 0));
        }
        assert_int_equal(results[2]->end.reuse.prompt_rows, data.row_count);
        const avl_attention_report_t *report = &results[1]->end.attention;
        captured[i] = report->captured_mass;
        assert_true(report->captured_mass > 0 && report->captured_mass < report->stored_mass);
        assert_true(report->stored_mass < 1 && report->visual_mass < 1);
        assert_true(report->captured_mass == results[2]->end.attention.captured_mass);
        rig_case_release(&data);
        rig_close(rig);
    }
    assert_true(captured[0] - captured[1] < 1e-4 && captured[1] - captured[0] < 1e-4);
}

static void test_tenants_share_nothing(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 8, 0);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    (void)rig_answer(rig, ask(&data, 1, 0, 1, 1));
    avl_request_t *request = ask(&data, 2, 0, 1, 1);
    snprintf(request->tenant, sizeof request->tenant, "another");
    assert_int_equal(rig_answer(rig, request)->end.reuse.prompt_rows, 0);
    request = ask(&data, 3, 0, 1, 1);
    snprintf(request->tenant, sizeof request->tenant, "another");
    assert_int_equal(rig_answer(rig, request)->end.reuse.prompt_rows, data.row_count);
    /* Pictures without a name are nobody's. */
    for (uint64_t id = 4; id < 6; id++) {
        request = ask(&data, id, 0, 1, 1);
        memset(&request->images[0].digest, 0, sizeof request->images[0].digest);
        assert_in_range(rig_answer(rig, request)->end.reuse.prompt_rows, 0,
                        data.images[0].first_row);
    }
    rig_case_release(&data);
    rig_close(rig);
}

/* Room for two or three sequences: kept prompts go as soon as a request needs their pages. */
static void test_requests_come_first(void **state) {
    (void)state;
    rig_t *without = open_rig(1, 512, 0, 0);
    rig_t *rig = open_rig(2, 512, 8, 156);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    for (uint64_t id = 1; id <= 24; id++) {
        const double *own = settings[id % SETTING_COUNT];
        avl_scheduler_submit(rig_scheduler(rig), ask(&data, id, (int)(id % 7), own[0], own[1]));
        rig_step(rig);
    }
    rig_run(rig);
    for (uint64_t id = 1; id <= 24; id++) {
        const double *own = settings[id % SETTING_COUNT];
        const rig_result_t *expected =
            rig_answer(without, ask(&data, id, (int)(id % 7), own[0], own[1]));
        rig_expect_tokens(rig_result(rig, id), expected->tokens, expected->token_count, "crowded");
    }
    avl_scheduler_counts_t counts = avl_scheduler_counts(rig_scheduler(rig));
    assert_true(counts.prompt_cache.evictions > 0);
    assert_true(counts.pages_kept <= 156);
    rig_case_release(&data);
    rig_close(rig);
    rig_close(without);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_prompts),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_selections),
        cmocka_unit_test(test_measuring),
        cmocka_unit_test(test_tenants_share_nothing),
        cmocka_unit_test(test_requests_come_first),
    };
    return cmocka_run_group_tests_name("prompt cache", tests, NULL, NULL);
}
