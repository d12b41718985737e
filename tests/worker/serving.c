/* tests/worker/serving.c: the scheduler and the engine together, on the shipped model: batches,
 * chunks, replays, refusals, cancels. */
#include "tests/worker/rig.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define MODEL "models/avl-tiny"
#define CASE_COUNT 5
#define RANDOM_CASES 3

static const char *const case_names[CASE_COUNT] = {
    "models/cases/00", "models/cases/01", "models/cases/02", "models/cases/03", "models/cases/05"};
static const struct setting {
    double store, compute;
    int32_t interval;
    avl_visual_core_t core;
} settings[] = {{1, 1, 1, AVL_CORE_INTERVAL},    {.5, .3, 3, AVL_CORE_INTERVAL},
                {.4, .1, 1, AVL_CORE_STEP},      {.3, .15, 2, AVL_CORE_INTERVAL},
                {.1, .05, 3, AVL_CORE_INTERVAL}, {1, .25, 4, AVL_CORE_INTERVAL},
                {.5, .5, 1, AVL_CORE_INTERVAL}};
#define SETTING_COUNT ((int)(sizeof settings / sizeof *settings))

static rig_t *open_rig(int ranks, int32_t batch_rows, int64_t pages) {
    return rig_open(&(rig_options_t){
        .model = MODEL, .ranks = ranks, .limits = {.batch_rows = batch_rows}, .page_count = pages});
}

static void load_cases(const rig_t *rig, rig_case_t *cases) {
    for (int i = 0; i < CASE_COUNT; i++)
        cases[i] = rig_case_load(rig_config(rig), case_names[i]);
}

static void release_cases(rig_case_t *cases) {
    for (int i = 0; i < CASE_COUNT; i++)
        rig_case_release(&cases[i]);
}

/* Request number i of a fixed mixture of cases and settings. */
static avl_request_t *mixed_request(const rig_case_t *cases, int i, uint64_t id) {
    avl_request_t *request = rig_request(&cases[i % CASE_COUNT], id, 24 + i % 7);
    const struct setting *setting = &settings[i % SETTING_COUNT];
    rig_set_attention(request, setting->store, setting->compute, setting->interval);
    request->attention.visual_core = setting->core;
    request->ignore_eos = true;
    if (i % 3 == 2)
        request->sampling = (avl_sampling_params_t){
            .temperature = 1.5, .top_p = 0.95, .top_k = 40, .seed = 1000 + (uint64_t)i};
    return request;
}

#define MIXED_COUNT 8

/* Tokens of the mixture, each request alone, in one step each prompt. */
static void answer_alone(rig_result_t *alone) {
    rig_t *rig = open_rig(1, 512, 0);
    rig_case_t cases[CASE_COUNT];
    load_cases(rig, cases);
    for (int i = 0; i < MIXED_COUNT; i++)
        alone[i] = *rig_answer(rig, mixed_request(cases, i, (uint64_t)i + 1));
    release_cases(cases);
    rig_close(rig);
}

static void expect_same(const rig_result_t *got, const rig_result_t *expected, const char *what) {
    assert_int_equal(got->end.finish_reason, AVL_FINISH_LENGTH);
    rig_expect_tokens(got, expected->tokens, expected->token_count, what);
    assert_int_equal(got->end.completion_tokens, expected->end.completion_tokens);
    assert_memory_equal(&got->end.attention.visual_rows_seen,
                        &expected->end.attention.visual_rows_seen, sizeof(int32_t));
    assert_int_equal(got->end.attention.visual_rows_stored,
                     expected->end.attention.visual_rows_stored);
    assert_int_equal(got->end.attention.visual_rows_computed,
                     expected->end.attention.visual_rows_computed);
    assert_int_equal(got->end.attention.decode_steps, expected->end.attention.decode_steps);
}

/* The mixture at once, with the requests arriving a few steps apart, at any chunk size. */
static void check_mixture(int ranks, int32_t batch_rows, int64_t pages, int steps_between,
                          const rig_result_t *alone) {
    rig_t *rig = open_rig(ranks, batch_rows, pages);
    rig_case_t cases[CASE_COUNT];
    load_cases(rig, cases);
    for (int i = 0; i < MIXED_COUNT; i++) {
        avl_scheduler_submit(rig_scheduler(rig), mixed_request(cases, i, (uint64_t)i + 1));
        for (int j = 0; j < steps_between; j++)
            rig_step(rig);
    }
    rig_run(rig);
    for (int i = 0; i < MIXED_COUNT; i++) {
        char what[96];
        snprintf(what, sizeof what, "%d ranks, %d rows a step, %lld pages, request %d", ranks,
                 batch_rows, (long long)pages, i);
        expect_same(rig_result(rig, (uint64_t)i + 1), &alone[i], what);
    }
    release_cases(cases);
    rig_close(rig);
}

static void test_together_as_alone(void **state) {
    (void)state;
    rig_result_t *alone = calloc(MIXED_COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(alone);
    check_mixture(1, 512, 0, 0, alone);
    check_mixture(1, 64, 0, 2, alone); /* every prompt in chunks */
    check_mixture(1, 7, 0, 0, alone);
    check_mixture(1, 208, 0, 1, alone);
    check_mixture(1, 512, 168, 0, alone); /* room for about two at once */
    check_mixture(3, 100, 0, 2, alone);
    free(alone);
}

/* With a pool that their answers outgrow, requests give way and go on: every token as if alone. */
static void test_preempted_as_alone(void **state) {
    (void)state;
    rig_result_t *alone = calloc(MIXED_COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(alone);
    for (int ranks = 1; ranks <= 2; ranks++) {
        rig_t *rig = open_rig(ranks, 512, 132);
        avl_scheduler_set_growth_share(rig_scheduler(rig), 0);
        rig_case_t cases[CASE_COUNT];
        load_cases(rig, cases);
        for (int i = 0; i < MIXED_COUNT; i++)
            avl_scheduler_submit(rig_scheduler(rig), mixed_request(cases, i, (uint64_t)i + 1));
        rig_run(rig);
        assert_true(avl_scheduler_counts(rig_scheduler(rig)).preemptions > 0);
        for (int i = 0; i < MIXED_COUNT; i++)
            expect_same(rig_result(rig, (uint64_t)i + 1), &alone[i], "preempted");
        release_cases(cases);
        rig_close(rig);
    }
    free(alone);
}

static void test_evicted_pages_are_returned(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        rig_t *rig = open_rig(ranks, 512, 0);
        rig_case_t data = rig_case_load(rig_config(rig), case_names[0]);
        avl_request_t *request = rig_request(&data, 1, 4);
        rig_set_attention(request, .3, .15, 3);
        avl_scheduler_submit(rig_scheduler(rig), request);
        assert_true(rig_step(rig));
        int layers = rig_config(rig)->model.text.layer_count;
        int text = (data.row_count - 196 + 15) / 16, full = (196 + 15) / 16, kept = (58 + 15) / 16;
        avl_pages_counts_t counts = avl_engine_pages(rig_engine(rig, 0));
        assert_int_equal(counts.taken, layers * (text + kept));
        /* One full-size visual cache at a time. */
        assert_int_equal(counts.taken_most, layers * (text + kept) + full - kept);
        rig_run(rig);
        const rig_result_t *result = rig_result(rig, 1);
        int64_t returned =
            (int64_t)layers * (full - kept) * avl_engine_page_bytes(rig_engine(rig, 0));
        assert_int_equal(result->end.attention.kv_bytes_returned, returned);
        rig_case_release(&data);
        rig_close(rig);
    }
}

static void test_replay_continues(void **state) {
    (void)state;
    rig_t *rig = open_rig(2, 512, 0);
    rig_case_t cases[CASE_COUNT];
    load_cases(rig, cases);
    uint64_t id = 1;
    for (int i = 0; i < 4; i++) {
        rig_result_t whole = *rig_answer(rig, mixed_request(cases, i, id++));
        const int32_t cuts[] = {1, 2, 7, whole.token_count - 1, whole.token_count};
        for (int j = 0; j < 5; j++) {
            avl_request_t *request = mixed_request(cases, i, id);
            rig_set_replay(request, whole.tokens, cuts[j]);
            const rig_result_t *rest = rig_answer(rig, request);
            rig_expect_tokens(rest, whole.tokens + cuts[j], whole.token_count - cuts[j], "replay");
            assert_int_equal(rest->end.completion_tokens, whole.token_count);
            assert_int_equal(rest->end.finish_reason, AVL_FINISH_LENGTH);
            if (cuts[j] < whole.token_count)
                assert_int_equal(rest->end.attention.visual_rows_computed,
                                 whole.end.attention.visual_rows_computed);
            id++;
        }
    }
    release_cases(cases);
    rig_close(rig);
}

/* What a core within the step computes is told in half rows, behind the prefill filter as well, and
 * measuring it changes no token. */
static void test_cores_in_steps(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 0);
    rig_case_t data = rig_case_load(rig_config(rig), case_names[0]);
    static const double keeps[] = {0, .5};
    rig_result_t first = {0};
    for (int i = 0; i < 3; i++) {
        avl_request_t *request = rig_request(&data, 1 + (uint64_t)i, 21);
        rig_set_attention(request, .3, .1, 1);
        request->attention.visual_core = AVL_CORE_STEP;
        request->attention.prefill_keep_ratio = keeps[i % 2];
        request->attention.prefill_layer = 2;
        request->attention.measure_captured_mass = i == 2;
        request->ignore_eos = true;
        const rig_result_t *got = rig_answer(rig, request);
        const avl_attention_report_t *report = &got->end.attention;
        assert_int_equal(got->end.status, AVL_OK);
        int32_t store = avl_ratio_rows(.3, report->visual_rows_seen);
        int32_t core = avl_ratio_rows(.1, report->visual_rows_seen);
        assert_int_equal(report->decode_steps, 20);
        assert_int_equal(report->visual_rows_stored, store);
        assert_int_equal(report->visual_rows_computed, 10 * (store + core));
        if (i == 0)
            first = *got;
        if (i == 2) {
            rig_expect_tokens(got, first.tokens, first.token_count, "measured");
            assert_true(report->captured_mass > 0 && report->captured_mass < report->stored_mass);
        }
    }
    avl_request_t *request = rig_request(&data, 9, 4);
    rig_set_attention(request, .3, .1, 1);
    request->attention.visual_core = (avl_visual_core_t)7;
    avl_scheduler_submit(rig_scheduler(rig), request);
    assert_int_equal(rig_result(rig, 9)->end.status, AVL_ERR_INVALID);
    assert_non_null(strstr(rig_result(rig, 9)->end.detail, "visual_core is 7"));
    rig_case_release(&data);
    rig_close(rig);
}

static void test_first_token_is_dense(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 0);
    rig_case_t cases[CASE_COUNT];
    load_cases(rig, cases);
    uint64_t id = 1;
    for (int i = 0; i < CASE_COUNT; i++) {
        int32_t dense = rig_answer(rig, rig_request(&cases[i], id++, 1))->tokens[0];
        for (int j = 1; j < SETTING_COUNT; j++) {
            avl_request_t *request = rig_request(&cases[i], id++, 1);
            rig_set_attention(request, settings[j].store, settings[j].compute,
                              settings[j].interval);
            request->attention.visual_core = settings[j].core;
            assert_int_equal(rig_answer(rig, request)->tokens[0], dense);
        }
    }
    release_cases(cases);
    rig_close(rig);
}

/* ---- requests that cannot run ---- */

static void expect_refused(rig_t *rig, avl_request_t *request, avl_status_t status,
                           const char *words) {
    uint64_t id = request->id;
    avl_scheduler_submit(rig_scheduler(rig), request);
    const rig_result_t *result = rig_result(rig, id);
    assert_true(result->finished);
    assert_int_equal(result->end.finish_reason, AVL_FINISH_ERROR);
    if (result->end.status != status || strstr(result->end.detail, words) == NULL)
        fail_msg("%s: %s; expected %s with \"%s\"", avl_status_name(result->end.status),
                 result->end.detail, avl_status_name(status), words);
}

static void test_impossible_parameters(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 0);
    rig_case_t data = rig_case_load(rig_config(rig), case_names[0]);
    static const struct {
        double store, compute;
        int32_t interval;
        const char *words;
    } attention[] = {{0, 0, 1, "visual_store_ratio"},        {1.5, 1, 1, "visual_store_ratio"},
                     {NAN, .5, 1, "visual_store_ratio"},     {.5, .6, 1, "visual_compute_ratio"},
                     {.5, 0, 1, "visual_compute_ratio"},     {.5, -1, 1, "visual_compute_ratio"},
                     {.5, NAN, 1, "visual_compute_ratio"},   {.5, .3, 0, "visual_update_interval"},
                     {INFINITY, .3, 3, "visual_store_ratio"}};
    uint64_t id = 1;
    for (size_t i = 0; i < sizeof attention / sizeof *attention; i++) {
        avl_request_t *request = rig_request(&data, id++, 4);
        rig_set_attention(request, attention[i].store, attention[i].compute, attention[i].interval);
        expect_refused(rig, request, AVL_ERR_INVALID, attention[i].words);
    }
    const avl_sampling_params_t sampling[] = {{.temperature = -1, .top_p = 1},
                                              {.temperature = NAN, .top_p = 1},
                                              {.temperature = INFINITY, .top_p = 1},
                                              {.top_p = 0},
                                              {.top_p = 1.5},
                                              {.top_p = NAN},
                                              {.top_p = 1, .top_k = -1}};
    for (size_t i = 0; i < sizeof sampling / sizeof *sampling; i++) {
        avl_request_t *request = rig_request(&data, id++, 4);
        request->sampling = sampling[i];
        expect_refused(rig, request, AVL_ERR_INVALID, "allowed");
    }
    expect_refused(rig, rig_request(&data, id++, 0), AVL_ERR_INVALID, "max_tokens");
    rig_case_release(&data);
    rig_close(rig);
}

static void test_malformed_prompts(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 0);
    rig_case_t data = rig_case_load(rig_config(rig), case_names[0]);
    uint64_t id = 1;
    int32_t vocab_rows = rig_config(rig)->model.text.vocab_rows;
    char none[64], allowed[64], replayed[64];
    snprintf(none, sizeof none, "row 0 of the prompt holds token %d", vocab_rows);
    snprintf(allowed, sizeof allowed, "allowed: 0 to %d", vocab_rows - 1);
    snprintf(replayed, sizeof replayed, "token to replay 1 is %d", vocab_rows + 68);
    avl_request_t *request = rig_request(&data, id++, 4);
    request->token_ids[0] = vocab_rows;
    expect_refused(rig, request, AVL_ERR_INVALID, none);
    request = rig_request(&data, id++, 4);
    request->token_ids[0] = -1; /* a picture's row without a picture */
    expect_refused(rig, request, AVL_ERR_INVALID, "holds token -1");
    request = rig_request(&data, id++, 4);
    request->token_ids[data.images[0].first_row + 5] = 7;
    expect_refused(rig, request, AVL_ERR_INVALID, "belongs to picture 0");
    request = rig_request(&data, id++, 4);
    request->images[0].first_row = data.row_count - 10;
    expect_refused(rig, request, AVL_ERR_INVALID, allowed);
    request = rig_request(&data, id++, 4);
    request->images[0].first_row = -5;
    expect_refused(rig, request, AVL_ERR_INVALID, allowed);
    request = rig_request(&data, id++, 4);
    request->images[0].pixel_bytes--;
    expect_refused(rig, request, AVL_ERR_INVALID, "bytes of pixels");
    request = rig_request(&data, id++, 4);
    request->images[0].layout.prompt_rows = 195;
    expect_refused(rig, request, AVL_ERR_INVALID, "195 rows");
    request = rig_request(&data, id++, 4);
    request->images[0].layout.image_width = -3;
    expect_refused(rig, request, AVL_ERR_INVALID, "");
    request = rig_request(&data, id++, 4);
    request->row_count = 100; /* the picture is cut off */
    expect_refused(rig, request, AVL_ERR_INVALID, "picture 0 of 1");
    request = rig_request(&data, id++, 4);
    request->row_count = 0;
    expect_refused(rig, request, AVL_ERR_INVALID, "empty");
    const int32_t replay[] = {5, vocab_rows + 68};
    request = rig_request(&data, id++, 4);
    rig_set_replay(request, replay, 2);
    expect_refused(rig, request, AVL_ERR_INVALID, replayed);
    request = rig_request(&data, id++, 1);
    rig_set_replay(request, replay, 2);
    expect_refused(rig, request, AVL_ERR_INVALID, "2 tokens to replay");
    /* The next one is served. */
    assert_int_equal(rig_answer(rig, rig_request(&data, id++, 4))->token_count, 4);
    rig_case_release(&data);
    rig_close(rig);
}

static void test_context_limit(void **state) {
    (void)state;
    rig_t *rig =
        rig_open(&(rig_options_t){.model = MODEL, .ranks = 1, .limits = {.context_rows = 32}});
    int32_t ids[40];
    for (int i = 0; i < 40; i++)
        ids[i] = 300 + i;
    avl_request_t *request = rig_text_request(ids, 32, 1, 4);
    expect_refused(rig, request, AVL_ERR_TOO_LARGE, "32 rows; the context of 32");
    request = rig_text_request(ids, 31, 2, 4);
    request->ignore_eos = true;
    const rig_result_t *result = rig_answer(rig, request);
    assert_int_equal(result->token_count, 1); /* the context is full */
    assert_int_equal(result->end.finish_reason, AVL_FINISH_LENGTH);
    request = rig_text_request(ids, 20, 3, 100);
    request->ignore_eos = true;
    result = rig_answer(rig, request);
    assert_int_equal(result->token_count, 12);
    assert_int_equal(result->end.attention.visual_rows_seen, 0);
    rig_close(rig);
}

static void test_pool_too_small(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 48);
    rig_case_t data = rig_case_load(rig_config(rig), case_names[0]);
    /* Dense: 6 layers of 13 + 1 pages at least. With A-VL it fits. */
    expect_refused(rig, rig_request(&data, 1, 4), AVL_ERR_EXHAUSTED, "the pool has 48");
    avl_request_t *request = rig_request(&data, 2, 4);
    rig_set_attention(request, .1, .05, 3);
    assert_int_equal(rig_answer(rig, request)->token_count, 4);
    rig_case_release(&data);
    rig_close(rig);
}

static void test_nan_logits(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 512, 0);
    rig_case_t data = rig_case_load(rig_config(rig), case_names[1]);
    avl_scheduler_t *scheduler = rig_scheduler(rig);
    avl_scheduler_submit(scheduler, rig_request(&data, 1, 6));
    avl_scheduler_submit(scheduler, rig_request(&data, 2, 6));
    const avl_plan_t *plan = avl_scheduler_plan(scheduler);
    assert_int_equal(plan->run_count, 2);
    avl_step_result_t result;
    assert_int_equal(avl_engine_execute(rig_engine(rig, 0), plan, &result), AVL_OK);
    int32_t vocab_rows = rig_config(rig)->model.text.vocab_rows;
    float *logits = malloc(2 * (size_t)vocab_rows * sizeof *logits);
    assert_non_null(logits);
    memcpy(logits, result.logits, 2 * (size_t)vocab_rows * sizeof *logits);
    logits[17] = NAN;
    result.logits = logits;
    avl_scheduler_complete(scheduler, &result);
    free(logits);
    rig_run(rig);
    assert_int_equal(rig_result(rig, 1)->end.status, AVL_ERR_INTERNAL);
    assert_non_null(strstr(rig_result(rig, 1)->end.detail, "token 17"));
    /* The other one does not notice. */
    rig_result_t other = *rig_result(rig, 2);
    const rig_result_t *alone = rig_answer(rig, rig_request(&data, 3, 6));
    rig_expect_tokens(&other, alone->tokens, alone->token_count, "beside NaN");
    rig_case_release(&data);
    rig_close(rig);
}

/* ---- the life of requests ---- */

static void test_cancel_and_deadline(void **state) {
    (void)state;
    rig_t *rig = open_rig(2, 64, 0);
    rig_case_t data = rig_case_load(rig_config(rig), case_names[0]);
    avl_scheduler_t *scheduler = rig_scheduler(rig);
    for (int steps = 0; steps < 8; steps++) { /* queued, in chunks, decoding */
        uint64_t id = 10 + (uint64_t)steps;
        avl_scheduler_submit(scheduler, rig_request(&data, id, 20));
        for (int i = 0; i < steps; i++)
            rig_step(rig);
        avl_scheduler_cancel(scheduler, id, -1);
        avl_scheduler_cancel(scheduler, id, -1); /* twice is once */
        assert_int_equal(rig_result(rig, id)->end.finish_reason, AVL_FINISH_CANCELLED);
        rig_run(rig);
        assert_int_equal(avl_engine_pages(rig_engine(rig, 0)).taken, 0);
    }
    avl_request_t *late = rig_request(&data, 1, 20);
    late->deadline_ns = avl_clock_now_ns() - 1;
    expect_refused(rig, late, AVL_ERR_DEADLINE, "deadline");
    for (int steps = 0; steps < 6; steps += 5) {
        uint64_t id = 2 + (uint64_t)steps;
        late = rig_request(&data, id, 20);
        int64_t deadline_ns = avl_clock_now_ns() + (steps == 0 ? 1 : 3600) * AVL_NS_PER_S;
        late->deadline_ns = deadline_ns;
        avl_scheduler_submit(scheduler, late);
        for (int i = 0; i < steps; i++)
            rig_step(rig);
        assert_false(rig_result(rig, id)->finished);
        if (steps == 0)
            avl_clock_sleep_ns(deadline_ns - avl_clock_now_ns() + AVL_NS_PER_MS);
        else
            late->deadline_ns = 1; /* it is still the scheduler's */
        rig_step(rig);
        assert_int_equal(rig_result(rig, id)->end.status, AVL_ERR_DEADLINE);
        rig_run(rig);
    }
    rig_case_release(&data);
    rig_close(rig);
}

static void test_queue_and_drain(void **state) {
    (void)state;
    rig_t *rig = rig_open(&(rig_options_t){.model = MODEL, .ranks = 1, .queue_max = 3});
    int32_t ids[] = {1, 418, 709};
    for (uint64_t id = 1; id <= 3; id++)
        avl_scheduler_submit(rig_scheduler(rig), rig_text_request(ids, 3, id, 3));
    expect_refused(rig, rig_text_request(ids, 3, 4, 3), AVL_ERR_EXHAUSTED, "queue of 3");
    rig_step(rig);
    avl_scheduler_drain(rig_scheduler(rig));
    expect_refused(rig, rig_text_request(ids, 3, 5, 3), AVL_ERR_UNAVAILABLE, "draining");
    rig_run(rig);
    for (uint64_t id = 1; id <= 3; id++)
        assert_int_equal(rig_result(rig, id)->end.status, AVL_OK);
    rig_close(rig);
}

static uint64_t random_state;

static uint32_t random_below(uint32_t limit) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % limit;
}

/* Many short requests, joining, leaving, cancelled at any time, in a pool that holds few of them:
 * pages are conserved (rig_close), nobody waits for ever, and every request has exactly one end. */
static void check_random(int ranks, uint64_t seed, int request_count) {
    random_state = seed;
    rig_t *rig = rig_open(&(rig_options_t){
        .model = "tests/data/models/llava-gqa", /* several pictures; smaller than the shipped one */
        .ranks = ranks,
        .limits = {.batch_rows = 10 + (int32_t)random_below(100), .sequences_max = 6},
        .page_count = 30 + random_below(40)});
    rig_case_t cases[RANDOM_CASES];
    for (int i = 0; i < RANDOM_CASES; i++) {
        char directory[64];
        snprintf(directory, sizeof directory, "tests/data/cases/llava-gqa/%02d", i + 1);
        cases[i] = rig_case_load(rig_config(rig), directory);
    }
    avl_scheduler_t *scheduler = rig_scheduler(rig);
    for (int i = 0; i < request_count; i++) {
        uint64_t id = (uint64_t)i + 1;
        avl_request_t *request =
            rig_request(&cases[random_below(RANDOM_CASES)], id, 1 + (int32_t)random_below(6));
        const struct setting *setting = &settings[random_below((uint32_t)SETTING_COUNT)];
        rig_set_attention(request, setting->store, setting->compute, setting->interval);
        request->attention.visual_core = setting->core;
        request->ignore_eos = random_below(2) == 0;
        avl_scheduler_submit(scheduler, request);
        for (uint32_t j = random_below(3); j > 0; j--)
            rig_step(rig);
        if (random_below(4) == 0)
            avl_scheduler_cancel(scheduler, 1 + random_below((uint32_t)i + 1), -1);
    }
    rig_run(rig);
    for (int i = 0; i < request_count; i++) {
        const rig_result_t *result = rig_result(rig, (uint64_t)i + 1);
        assert_true(result->finished);
        assert_true(result->end.status == AVL_OK || result->end.status == AVL_ERR_CANCELLED);
    }
    for (int i = 0; i < RANDOM_CASES; i++)
        rig_case_release(&cases[i]);
    rig_close(rig);
}

static void test_random_runs(void **state) {
    (void)state;
    check_random(1, 1, 150);
    check_random(1, 2, 150);
    check_random(3, 3, 60);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_together_as_alone),
        cmocka_unit_test(test_preempted_as_alone),
        cmocka_unit_test(test_evicted_pages_are_returned),
        cmocka_unit_test(test_replay_continues),
        cmocka_unit_test(test_cores_in_steps),
        cmocka_unit_test(test_first_token_is_dense),
        cmocka_unit_test(test_impossible_parameters),
        cmocka_unit_test(test_malformed_prompts),
        cmocka_unit_test(test_context_limit),
        cmocka_unit_test(test_pool_too_small),
        cmocka_unit_test(test_nan_logits),
        cmocka_unit_test(test_cancel_and_deadline),
        cmocka_unit_test(test_queue_and_drain),
        cmocka_unit_test(test_random_runs),
    };
    return cmocka_run_group_tests_name("worker serving", tests, NULL, NULL);
}
