/* tests/worker/answers.c: several answers to one request: each as if it had been asked for alone
 * with its seed, the prompt read and its pictures encoded once, its pages held once. */
#include "worker/answers.h"

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

/* The shipped model, and one whose query heads share KV heads, also among ranks. */
static const struct model {
    const char *model, *directory;
} shipped = {"models/avl-tiny", "models/cases/00"},
  grouped = {"tests/data/models/llava-gqa", "tests/data/cases/llava-gqa/01"};
#define TOKENS 24
#define ANSWERS 5

static const uint64_t seeds[ANSWERS] = {7, 1234567, 3, 99, UINT64_MAX};
static const struct setting {
    double store, compute, text;
    bool unprotected; /* text of the prompt is evicted, too: nothing is shared */
    avl_visual_core_t core;
    avl_visual_selection_t selection;
} settings[] = {{1, 1, 0, false, AVL_CORE_INTERVAL, AVL_VISUAL_LAST_ROW},
                {.5, .3, 0, false, AVL_CORE_INTERVAL, AVL_VISUAL_LAST_ROW},
                {1, .25, 0, false, AVL_CORE_INTERVAL, AVL_VISUAL_LAST_ROW},
                {.5, .1, 0, false, AVL_CORE_STEP, AVL_VISUAL_LAST_ROW},
                {.5, .3, .5, false, AVL_CORE_INTERVAL, AVL_VISUAL_LAST_ROW},
                {.5, .3, 0, false, AVL_CORE_INTERVAL, AVL_VISUAL_COVERAGE},
                {.5, .3, .5, true, AVL_CORE_INTERVAL, AVL_VISUAL_LAST_ROW}};
#define SHARING_COUNT 6
#define SETTING_COUNT ((int)(sizeof settings / sizeof *settings))

typedef struct shape {
    const struct model *model; /* NULL: the shipped one */
    int ranks;
    int32_t batch_rows, sequences_max, kept_max;
    int64_t pages;
} shape_t;

static const struct model *model_of(const shape_t *shape) {
    return shape->model != NULL ? shape->model : &shipped;
}

static rig_t *open_rig(const shape_t *shape) {
    return rig_open(&(rig_options_t){.model = model_of(shape)->model,
                                     .ranks = shape->ranks,
                                     .limits = {.batch_rows = shape->batch_rows,
                                                .sequences_max = shape->sequences_max,
                                                .kept_max = shape->kept_max},
                                     .page_count = shape->pages});
}

static avl_request_t *ask(const rig_case_t *data, uint64_t id, int setting) {
    avl_request_t *request = rig_request(data, id, TOKENS);
    rig_set_attention(request, settings[setting].store, settings[setting].compute, 3);
    request->attention.visual_selection = settings[setting].selection;
    request->attention.visual_core = settings[setting].core;
    if (settings[setting].text > 0) {
        request->attention.text_keep_ratio = settings[setting].text;
        request->attention.text_keep_min = 4;
        request->attention.protect_prompt = !settings[setting].unprotected;
    }
    request->ignore_eos = true;
    request->sampling = (avl_sampling_params_t){.temperature = 1.5,
                                                .top_p = .95,
                                                .repetition_penalty = 1.1,
                                                .frequency_penalty = .2,
                                                .logprob_count = 1};
    for (int32_t i = 0; i < request->image_count; i++)
        request->images[i].digest.bytes[3] = (uint8_t)(1 + i);
    return request;
}

/* Each alone, with its seed. */
static void answer_alone(const struct model *model, int ranks,
                         rig_result_t alone[SETTING_COUNT][ANSWERS]) {
    rig_t *rig = open_rig(&(shape_t){.model = model, .ranks = ranks, .batch_rows = 512});
    rig_case_t data = rig_case_load(rig_config(rig), model->directory);
    for (int i = 0; i < SETTING_COUNT; i++)
        for (int j = 0; j < ANSWERS; j++) {
            avl_request_t *request = ask(&data, (uint64_t)(1 + i * ANSWERS + j), i);
            request->sampling.seed = seeds[j];
            alone[i][j] = *rig_answer(rig, request);
        }
    rig_case_release(&data);
    rig_close(rig);
}

static void expect_same(rig_t *rig, uint64_t id, int32_t choice, const rig_result_t *expected,
                        int32_t replayed, const char *what) {
    const rig_result_t *got = rig_result(rig, rig_answer_id(id, choice));
    assert_true(got->finished);
    assert_int_equal(got->end.choice, choice);
    assert_int_equal(got->end.finish_reason, AVL_FINISH_LENGTH);
    rig_expect_tokens(got, expected->tokens + replayed, expected->token_count - replayed, what);
    for (int32_t i = replayed; i < expected->token_count; i++) /* ranks add in another order */
        assert_float_equal(got->logprobs[i - replayed], expected->logprobs[i], 1e-3);
    assert_int_equal(got->end.completion_tokens, expected->token_count);
    assert_int_equal(got->end.attention.visual_rows_stored,
                     expected->end.attention.visual_rows_stored);
    assert_int_equal(got->end.attention.visual_rows_computed,
                     expected->end.attention.visual_rows_computed);
}

static void check_together(const shape_t *shape, rig_result_t alone[SETTING_COUNT][ANSWERS],
                           bool read_once) {
    rig_t *rig = open_rig(shape);
    rig_case_t data = rig_case_load(rig_config(rig), model_of(shape)->directory);
    for (int i = 0; i < SETTING_COUNT; i++) {
        uint64_t id = (uint64_t)i + 1;
        avl_request_t *request = ask(&data, id, i);
        rig_set_choices(request, seeds, ANSWERS);
        avl_scheduler_submit(rig_scheduler(rig), request);
        if (shape->pages == 0)
            rig_run(rig); /* else all at once */
    }
    rig_run(rig);
    char what[96];
    for (int i = 0; i < SETTING_COUNT; i++)
        for (int j = 0; j < ANSWERS; j++) {
            /* Two ranks have a KV head in common, of which each chooses by its own query heads. */
            if (shape->ranks == 2 && settings[i].core == AVL_CORE_STEP)
                continue;
            snprintf(what, sizeof what, "%d ranks, %d rows, %d sequences, setting %d, answer %d",
                     shape->ranks, shape->batch_rows, shape->sequences_max, i, j);
            expect_same(rig, (uint64_t)i + 1, j, &alone[i][j], 0, what);
        }
    avl_scheduler_counts_t counts = avl_scheduler_counts(rig_scheduler(rig));
    if (read_once) {
        int times = SHARING_COUNT + (SETTING_COUNT - SHARING_COUNT) * ANSWERS;
        assert_int_equal(counts.totals.prompt_rows, times * data.row_count);
        assert_int_equal(counts.encoder_cache.misses, data.image_count);
        assert_in_range(counts.encoder_cache.hits, 0, (times - 1) * data.image_count);
    }
    rig_case_release(&data);
    rig_close(rig);
}

static void test_each_as_alone(void **state) {
    (void)state;
    rig_result_t(*alone)[ANSWERS] = calloc(SETTING_COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(&shipped, 1, alone);
    check_together(&(shape_t){.ranks = 1, .batch_rows = 512}, alone, true);
    check_together(&(shape_t){.ranks = 3, .batch_rows = 64}, alone, true);
    check_together(&(shape_t){.ranks = 1, .batch_rows = 512, .kept_max = 4}, alone, true);
    /* Less room than answers. */
    check_together(&(shape_t){.ranks = 2, .batch_rows = 512, .sequences_max = 3}, alone, false);
    check_together(&(shape_t){.ranks = 1, .batch_rows = 7, .sequences_max = 2, .kept_max = 1},
                   alone, false);
    check_together(&(shape_t){.ranks = 1, .batch_rows = 512, .sequences_max = 1}, alone, false);
    check_together(&(shape_t){.ranks = 1, .batch_rows = 512, .pages = 120}, alone, false);
    free(alone);
}

static void test_each_as_alone_with_grouped_heads(void **state) {
    (void)state;
    rig_result_t(*alone)[ANSWERS] = calloc(SETTING_COUNT, sizeof *alone);
    assert_non_null(alone);
    /* A random model has rows that are as good as equal: with other ranks, which add in another
     * order, others of them may go. */
    for (int ranks = 1; ranks <= 6; ranks++) {
        answer_alone(&grouped, ranks, alone);
        check_together(&(shape_t){.model = &grouped, .ranks = ranks, .batch_rows = 64}, alone,
                       true);
    }
    free(alone);
}

/* Five answers hold the pages of one prompt, and each its own beyond. */
static void test_pages_are_held_once(void **state) {
    (void)state;
    rig_t *rig = open_rig(&(shape_t){.ranks = 1, .batch_rows = 512});
    rig_case_t data = rig_case_load(rig_config(rig), shipped.directory);
    avl_request_t *request = ask(&data, 1, 1);
    rig_set_choices(request, seeds, ANSWERS);
    avl_scheduler_submit(rig_scheduler(rig), request);
    rig_step(rig);
    rig_step(rig);
    int layers = rig_config(rig)->model.text.layer_count;
    int visual = 0;
    for (int32_t i = 0; i < data.row_count; i++)
        visual += data.token_ids[i] < 0;
    int text = data.row_count - visual, store = visual / 2;
    int64_t shared = (int64_t)layers * (text / AVL_PAGE_ROWS + (store + 15) / AVL_PAGE_ROWS);
    int64_t own = (int64_t)layers * ANSWERS; /* the page that the answer begins in */
    assert_int_equal(avl_engine_pages(rig_engine(rig, 0)).taken, shared + own);
    assert_int_equal(avl_scheduler_counts(rig_scheduler(rig)).pages_reserved, shared + own);
    assert_int_equal(avl_scheduler_counts(rig_scheduler(rig)).active, ANSWERS);
    rig_run(rig);
    /* Each tells of all that it held, as one that is alone does. */
    int64_t held = rig_answer(rig, ask(&data, 2, 1))->end.attention.kv_bytes_held;
    assert_true(held > shared * avl_engine_page_bytes(rig_engine(rig, 0)));
    for (int32_t j = 0; j < ANSWERS; j++)
        assert_int_equal(rig_result(rig, rig_answer_id(1, j))->end.attention.kv_bytes_held, held);
    rig_case_release(&data);
    rig_close(rig);
}

/* A new group goes on where the old one was: each answer at a place of its own, one at its end. */
static void test_replay(void **state) {
    (void)state;
    rig_result_t(*alone)[ANSWERS] = calloc(SETTING_COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(&shipped, 1, alone);
    rig_t *rig = open_rig(&(shape_t){.ranks = 2, .batch_rows = 512});
    rig_case_t data = rig_case_load(rig_config(rig), shipped.directory);
    const int32_t cuts[][ANSWERS] = {
        {0, 3, 9, TOKENS, 1}, {5, 0, 0, 0, 0}, {TOKENS, 2, 2, 2, 2}, {7, 7, 7, 7, 7}};
    for (int i = 0; i < 4; i++) {
        avl_request_t *request = ask(&data, 10 + (uint64_t)i, 1);
        rig_set_choices(request, seeds, ANSWERS);
        for (int j = 0; j < ANSWERS; j++) {
            avl_request_choice_t *choice = &request->choices[j];
            free(choice->replay_ids);
            choice->replay_ids = malloc(TOKENS * sizeof(int32_t));
            assert_non_null(choice->replay_ids);
            memcpy(choice->replay_ids, alone[1][j].tokens, TOKENS * sizeof(int32_t));
            choice->replay_count = cuts[i][j];
        }
        avl_scheduler_submit(rig_scheduler(rig), request);
        rig_run(rig);
        for (int j = 0; j < ANSWERS; j++) {
            const rig_result_t *got = rig_result(rig, rig_answer_id(10 + (uint64_t)i, j));
            if (cuts[i][j] < TOKENS)
                expect_same(rig, 10 + (uint64_t)i, j, &alone[1][j], cuts[i][j], "replay");
            else
                assert_int_equal(got->end.completion_tokens, TOKENS);
        }
    }
    rig_case_release(&data);
    rig_close(rig);
    free(alone);
}

/* Those that are left go on, whoever is cancelled and when. */
static void test_cancel(void **state) {
    (void)state;
    rig_result_t(*alone)[ANSWERS] = calloc(SETTING_COUNT, sizeof *alone);
    assert_non_null(alone);
    answer_alone(&shipped, 1, alone);
    rig_t *rig = open_rig(&(shape_t){.ranks = 1, .batch_rows = 64});
    rig_case_t data = rig_case_load(rig_config(rig), shipped.directory);
    uint64_t id = 1;
    for (int steps = 0; steps < 9; steps++)
        for (int32_t gone = 0; gone < ANSWERS; gone += 2, id++) {
            avl_request_t *request = ask(&data, id, 1);
            rig_set_choices(request, seeds, ANSWERS);
            avl_scheduler_submit(rig_scheduler(rig), request);
            for (int i = 0; i < steps; i++)
                rig_step(rig);
            avl_scheduler_cancel(rig_scheduler(rig), id, gone);
            avl_scheduler_cancel(rig_scheduler(rig), id, ANSWERS); /* none of them */
            rig_run(rig);
            for (int32_t j = 0; j < ANSWERS; j++)
                if (j != gone)
                    expect_same(rig, id, j, &alone[1][j], 0, "others cancelled");
            const rig_result_t *got = rig_result(rig, rig_answer_id(id, gone));
            assert_int_equal(got->end.finish_reason, AVL_FINISH_CANCELLED);
            assert_int_equal(avl_scheduler_counts(rig_scheduler(rig)).pages_reserved, 0);
        }
    rig_case_release(&data);
    rig_close(rig);
    free(alone);
}

/* Whoever reads the prompt ends with its first token: the others still begin. */
static void test_short_answers(void **state) {
    (void)state;
    for (int32_t kept_max = 0; kept_max < 2; kept_max++) {
        rig_t *rig = open_rig(&(shape_t){.ranks = 1, .batch_rows = 512, .kept_max = kept_max});
        rig_case_t data = rig_case_load(rig_config(rig), shipped.directory);
        avl_request_t *request = ask(&data, 1, 1);
        rig_set_choices(request, seeds, ANSWERS);
        request->max_tokens = 1;
        avl_scheduler_submit(rig_scheduler(rig), request);
        rig_run(rig);
        for (int32_t j = 0; j < ANSWERS; j++)
            assert_int_equal(rig_result(rig, rig_answer_id(1, j))->token_count, 1);
        rig_case_release(&data);
        rig_close(rig);
    }
}

static void test_refusals(void **state) {
    (void)state;
    rig_t *rig = open_rig(&(shape_t){.ranks = 1, .batch_rows = 512});
    rig_case_t data = rig_case_load(rig_config(rig), shipped.directory);
    avl_request_t *request = ask(&data, 1, 1);
    rig_set_choices(request, seeds, 3);
    request->choices[1].index = 9; /* not ascending */
    avl_scheduler_submit(rig_scheduler(rig), request);
    assert_int_equal(rig_result(rig, rig_answer_id(1, 9))->end.status, AVL_ERR_INVALID);
    request = ask(&data, 2, 1);
    rig_set_choices(request, seeds, 2);
    request->max_tokens = 0;
    avl_scheduler_submit(rig_scheduler(rig), request);
    for (int32_t i = 0; i < 2; i++)
        assert_int_equal(rig_result(rig, rig_answer_id(2, i))->end.status, AVL_ERR_INVALID);
    rig_run(rig);
    rig_case_release(&data);
    rig_close(rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_as_alone),
        cmocka_unit_test(test_each_as_alone_with_grouped_heads),
        cmocka_unit_test(test_pages_are_held_once),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_short_answers),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("worker answers", tests, NULL, NULL);
}
