/* tests/worker/sampler.c: the next token from logits. */
#include "worker/sampler.h"

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

#define VOCAB 50

static avl_sampler_t *sampler;

static int set_up(void **state) {
    (void)state;
    return avl_sampler_create(VOCAB, &sampler);
}

static int tear_down(void **state) {
    (void)state;
    avl_sampler_destroy(sampler);
    return 0;
}

static avl_sampler_token_t draw_after(const float *logits, avl_sampling_params_t params,
                                      avl_sampler_history_t history) {
    avl_sampler_token_t token = {.token_id = -1};
    assert_int_equal(avl_sampling_params_check(&params), AVL_OK);
    assert_int_equal(avl_sampler_draw(sampler, logits, &params, &history, &token), AVL_OK);
    assert_in_range(token.token_id, 0, VOCAB - 1);
    return token;
}

static int32_t draw(const float *logits, avl_sampling_params_t params, uint64_t index) {
    return draw_after(logits, params, (avl_sampler_history_t){.token_count = (int32_t)index})
        .token_id;
}

static void flat(float *logits, float value) {
    for (int i = 0; i < VOCAB; i++)
        logits[i] = value;
}

/* Known answers of the published generator (philox4x32-10). */
static void test_philox(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], words[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t words[4];
        avl_philox(known[i].counter, known[i].key, words);
        assert_memory_equal(words, known[i].words, sizeof words);
    }
}

/* What a device that looks for the best by itself comes to. */
static avl_status_t take_best(const float *logits, avl_sampler_token_t *token_p) {
    int32_t best = 0;
    for (int32_t i = 0; i < VOCAB; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return avl_sampler_take_best(sampler, i, logits[i], token_p);
        best = logits[i] > logits[best] ? i : best;
    }
    return avl_sampler_take_best(sampler, best, logits[best], token_p);
}

static void expect_best(const float *logits, int32_t token_id) {
    avl_sampler_token_t token = {.token_id = -1, .logprob_count = -1};
    assert_int_equal(take_best(logits, &token), AVL_OK);
    assert_int_equal(token.token_id, token_id);
    assert_int_equal(token.logprob_count, 0);
}

static void test_best_is_enough(void **state) {
    (void)state;
    assert_true(avl_sampler_wants_best(&(avl_sampling_params_t){.top_p = 1}, 0));
    assert_true(avl_sampler_wants_best(
        &(avl_sampling_params_t){.top_p = 0.5, .top_k = 3, .repetition_penalty = 1}, 0));
    assert_false(avl_sampler_wants_best(&(avl_sampling_params_t){.top_p = 1}, 1));
    const avl_sampling_params_t others[] = {
        {.top_p = 1, .temperature = 1},        {.top_p = 1, .repetition_penalty = 1.1},
        {.top_p = 1, .presence_penalty = 0.1}, {.top_p = 1, .frequency_penalty = -0.1},
        {.top_p = 1, .logprob_count = 1},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(avl_sampler_wants_best(&others[i], 0));
}

static void test_greedy(void **state) {
    (void)state;
    float logits[VOCAB];
    flat(logits, -3);
    logits[31] = logits[12] = logits[40] = 2;
    avl_sampling_params_t greedy = {.top_p = 1};
    assert_int_equal(draw(logits, greedy, 0), 12); /* the lowest on a tie */
    expect_best(logits, 12);
    flat(logits, -INFINITY);
    logits[49] = -1e30f;
    assert_int_equal(draw(logits, greedy, 0), 49);
    expect_best(logits, 49);
}

static void expect_refused(const float *logits, const char *words) {
    avl_sampling_params_t greedy = {.top_p = 1}, warm = {.top_p = 1, .temperature = 1};
    avl_sampler_token_t token = {.token_id = 77};
    avl_sampler_history_t first = {0};
    assert_int_equal(avl_sampler_draw(sampler, logits, &greedy, &first, &token), AVL_ERR_INTERNAL);
    assert_non_null(strstr(avl_status_detail(), words));
    assert_int_equal(avl_sampler_draw(sampler, logits, &warm, &first, &token), AVL_ERR_INTERNAL);
    char detail[AVL_STATUS_DETAIL_BYTES];
    snprintf(detail, sizeof detail, "%s", avl_status_detail());
    assert_int_equal(take_best(logits, &token), AVL_ERR_INTERNAL);
    assert_string_equal(avl_status_detail(), detail);
    assert_int_equal(token.token_id, 77);
}

static void test_numbers_that_are_none(void **state) {
    (void)state;
    float logits[VOCAB];
    flat(logits, 1);
    logits[49] = NAN;
    expect_refused(logits, "token 49");
    logits[0] = INFINITY;
    expect_refused(logits, "token 0");
    flat(logits, -INFINITY);
    expect_refused(logits, "all -infinity");
}

/* 60,000 draws of a seed against the softmax: chi-square with 9 degrees of freedom stays below 27.9
 * (p = .001). */
static void test_distribution(void **state) {
    (void)state;
    float logits[VOCAB];
    flat(logits, -INFINITY);
    double weights[10], sum = 0, chi = 0;
    for (int i = 0; i < 10; i++) {
        logits[3 * i] = 0.35f * (float)((i * 7) % 10);
        sum += weights[i] = exp((double)logits[3 * i] / 0.7);
    }
    int counts[VOCAB] = {0};
    const int draws = 60000;
    for (int i = 0; i < draws; i++)
        counts[draw(logits, (avl_sampling_params_t){.temperature = 0.7, .top_p = 1, .seed = 4242},
                    (uint64_t)i)]++;
    for (int i = 0; i < 10; i++) {
        double expected = draws * weights[i] / sum, difference = counts[3 * i] - expected;
        chi += difference * difference / expected;
    }
    assert_true(chi < 27.9);
}

static void test_draws_are_a_function_of_seed_and_index(void **state) {
    (void)state;
    float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        logits[i] = sinf((float)i);
    int32_t first[200];
    int others = 0, repeats = 0;
    avl_sampling_params_t params = {.temperature = 1, .top_p = 1, .seed = UINT64_MAX};
    for (uint64_t i = 0; i < 200; i++)
        first[i] = draw(logits, params, i);
    for (uint64_t i = 200; i-- > 0;) { /* in any order */
        assert_int_equal(draw(logits, params, i), first[i]);
        avl_sampling_params_t other = params;
        other.seed ^= UINT64_C(1) << 40;
        others += draw(logits, other, i) != first[i];
        repeats += i > 0 && first[i] == first[i - 1];
    }
    assert_true(others > 150);
    assert_true(repeats < 50);
}

static void test_top_k(void **state) {
    (void)state;
    float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)((i * 37) % VOCAB) * 0.01f;
    int seen[VOCAB] = {0}, kinds = 0;
    for (uint64_t i = 0; i < 2000; i++)
        seen[draw(logits, (avl_sampling_params_t){.temperature = 2, .top_p = 1, .top_k = 5}, i)]++;
    for (int i = 0; i < VOCAB; i++) {
        kinds += seen[i] > 0;
        if (seen[i] > 0)
            assert_true(logits[i] >= 0.45f - 1e-6f);
    }
    assert_int_equal(kinds, 5);
    flat(logits, 0); /* ties: the lower ids */
    for (uint64_t i = 0; i < 200; i++)
        assert_in_range(
            draw(logits, (avl_sampling_params_t){.temperature = 1, .top_p = 1, .top_k = 3}, i), 0,
            2);
}

/* Probabilities .5, .25, .125, ...: the smallest set that reaches .8 has three tokens; .5 is
 * reached by the first alone. */
static void test_top_p(void **state) {
    (void)state;
    float logits[VOCAB];
    flat(logits, -INFINITY);
    for (int i = 0; i < 20; i++)
        logits[10 + i] = (float)-i * (float)M_LN2;
    int seen[VOCAB] = {0};
    for (uint64_t i = 0; i < 3000; i++)
        seen[draw(logits, (avl_sampling_params_t){.temperature = 1, .top_p = .8}, i)]++;
    assert_true(seen[10] > 1500 && seen[11] > 700 && seen[12] > 300);
    assert_int_equal(seen[10] + seen[11] + seen[12], 3000);
    for (uint64_t i = 0; i < 300; i++)
        assert_int_equal(draw(logits, (avl_sampling_params_t){.temperature = 1, .top_p = .49}, i),
                         10);
}

/* The token is the one whose share of the weights that are left, added up in the order of the ids,
 * the uniform number falls into: philox of the token's index, as a part of 2^64. */
static void test_order_of_ids(void **state) {
    (void)state;
    float logits[VOCAB];
    double weights[VOCAB], sum = 0;
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)((i * 17) % VOCAB) * 0.1f;
    /* Of 50 logits from 4.9 down in steps of 0.1 the 30 largest are left, then those down to e^-2 /
     * 1.3 of the best: 1.3 * 2 below it, 26 steps and itself. */
    const avl_sampling_params_t params = {
        .temperature = 1.3, .top_p = 1, .top_k = 30, .min_p = 0.1353, .seed = 0x123456789abcdef};
    for (int i = 0; i < VOCAB; i++) {
        weights[i] = logits[i] > 2.25f ? exp(((double)logits[i] - 4.9) / 1.3) : 0;
        sum += weights[i];
    }
    int clear = 0;
    for (uint32_t index = 0; index < 500; index++) {
        uint32_t words[4];
        avl_philox((const uint32_t[4]){index}, (const uint32_t[2]){0x89abcdef, 0x01234567}, words);
        double share = ((double)words[0] + (double)words[1] * 0x1p-32) * 0x1p-32;
        double reached = 0;
        int32_t expected = 0;
        for (; reached + weights[expected] <= share * sum; expected++)
            reached += weights[expected];
        bool near = share * sum - reached < 1e-5 * sum ||
                    reached + weights[expected] - share * sum < 1e-5 * sum;
        int32_t token_id = draw(logits, params, index);
        clear += !near;
        if (!near)
            assert_int_equal(token_id, expected);
    }
    assert_true(clear > 450);
}

/* Presence and frequency together, a ban of a penalised token, and each token listed once. */
static void test_items(void **state) {
    (void)state;
    static const int32_t prompt[] = {4, -1, 4, 7}, answer[] = {9, 9, 4}, banned[] = {9, 30, VOCAB};
    const avl_sampler_history_t history = {prompt, 4, answer, 3, banned, 3};
    const avl_sampling_params_t params = {.top_p = 0.5,
                                          .temperature = 2,
                                          .min_p = 0.1,
                                          .top_k = 9,
                                          .repetition_penalty = 1.5,
                                          .presence_penalty = 0.25,
                                          .frequency_penalty = 0.5,
                                          .logprob_count = 4};
    avl_sample_adjustment_t list[VOCAB];
    assert_in_range(avl_sampler_adjustments_most(sampler, &params, &history), 4, VOCAB);
    avl_sample_item_t item = avl_sampler_item(sampler, &params, &history, -1, list);
    assert_int_equal(item.adjustment_count, 4);
    for (int32_t i = 0; i < 4; i++) {
        int32_t id = list[i].token_id;
        float subtract = id == 4 ? 0.75f : id == 7 ? 0.0f : INFINITY;
        assert_true(id == 4 || id == 7 || id == 9 || id == 30);
        assert_true(list[i].factor == (id == 30 ? 1.0f : 1.5f) && list[i].subtract == subtract);
        for (int32_t j = 0; j < i; j++)
            assert_int_not_equal(list[j].token_id, id);
    }
    assert_true(item.scale == 0.5f && item.top_p == 0.5 && item.least >= 0.1f);
    assert_true((double)item.least >= 0.1 && (double)nextafterf(item.least, 0) < 0.1);
    assert_int_equal(item.top_k, 9);
    assert_int_equal(item.tops, 3);
    assert_int_equal(item.forced_id, -1);
    item = avl_sampler_item(sampler, &params, &history, 31, list);
    assert_int_equal(item.adjustment_count, 0);
    assert_int_equal(item.forced_id, 31);
    item = avl_sampler_item(sampler, &(avl_sampling_params_t){.top_p = 1}, &history, -1, list);
    assert_true(item.scale == 0 && item.tops == -1);
    assert_int_equal(item.adjustment_count, 2); /* the bans */
}

static void test_min_p(void **state) {
    (void)state;
    float logits[VOCAB];
    flat(logits, -INFINITY);
    for (int i = 0; i < 20; i++)
        logits[10 + i] = (float)-i * (float)M_LN2;
    int seen[VOCAB] = {0};
    for (uint64_t i = 0; i < 3000; i++)
        seen[draw(logits, (avl_sampling_params_t){.temperature = 1, .top_p = 1, .min_p = .2}, i)]++;
    assert_int_equal(seen[10] + seen[11] + seen[12], 3000); /* 1, 1/2, 1/4 of the best */
    assert_true(seen[12] > 300);
}

static void test_penalties(void **state) {
    (void)state;
    static const int32_t prompt[] = {4, -1, -1, 4, 7}, answer[] = {9, 9, 4};
    avl_sampler_history_t history = {
        .prompt_ids = prompt, .prompt_rows = 5, .token_ids = answer, .token_count = 3};
    float logits[VOCAB];
    flat(logits, -8);
    logits[4] = 6, logits[9] = 5, logits[7] = 4, logits[30] = 2.5f;
    avl_sampling_params_t params = {.top_p = 1};
    assert_int_equal(draw_after(logits, params, history).token_id, 4);
    params.presence_penalty = 1.5; /* 4.5, 3.5, 4, 2.5 */
    assert_int_equal(draw_after(logits, params, history).token_id, 4);
    params.frequency_penalty = 1; /* 3.5, 1.5, 4, 2.5 */
    assert_int_equal(draw_after(logits, params, history).token_id, 7);
    params.presence_penalty = params.frequency_penalty = 0;
    params.repetition_penalty = 2; /* 3, 2.5, 2, 2.5: each once, however often it stands there */
    assert_int_equal(draw_after(logits, params, history).token_id, 4);
    params.repetition_penalty = 2.5; /* 2.4, 2, 1.6, 2.5 */
    assert_int_equal(draw_after(logits, params, history).token_id, 30);
    flat(logits, -1);
    logits[9] = -0.9f; /* negative ones move away from 0 */
    assert_int_equal(draw_after(logits, params, history).token_id, 0);
    params.logprob_count = 3;
    float before[VOCAB];
    memcpy(before, logits, sizeof before);
    draw_after(logits, params, history);
    assert_memory_equal(before, logits, sizeof before);
}

static void test_banned(void **state) {
    (void)state;
    static const int32_t banned[] = {5, 6};
    avl_sampler_history_t history = {.banned_ids = banned, .banned_count = 2};
    float logits[VOCAB];
    flat(logits, -INFINITY);
    logits[5] = 9, logits[6] = 8, logits[11] = 1;
    avl_sampling_params_t params = {.top_p = 1};
    assert_int_equal(draw_after(logits, params, history).token_id, 11);
    params.temperature = 2;
    assert_int_equal(draw_after(logits, params, history).token_id, 11);
    logits[11] = -INFINITY;
    avl_sampler_token_t token;
    assert_int_equal(avl_sampler_draw(sampler, logits, &params, &history, &token),
                     AVL_ERR_INTERNAL);
}

/* Of the model's own distribution, whatever was done to it for the draw. */
static void test_logprobs(void **state) {
    (void)state;
    float logits[VOCAB];
    flat(logits, -INFINITY);
    for (int i = 0; i < 10; i++)
        logits[40 - i] = (float)-i * (float)M_LN2;
    static const int32_t banned[] = {40};
    avl_sampler_history_t history = {.banned_ids = banned, .banned_count = 1};
    avl_sampling_params_t params = {.top_p = 1, .logprob_count = 4};
    avl_sampler_token_t token = draw_after(logits, params, history);
    assert_int_equal(token.token_id, 39);
    assert_int_equal(token.logprob_count, 4);
    static const int32_t ids[] = {39, 40, 39, 38};
    static const double shares[] = {.25, .5, .25, .125};
    double sum = 0.5 * (1 - pow(.5, 10)) / .5; /* of .5, .25, ... */
    for (int i = 0; i < 4; i++) {
        assert_int_equal(token.logprobs[i].token_id, ids[i]);
        assert_true(fabs((double)token.logprobs[i].logprob - log(shares[i] / sum)) < 1e-5);
    }
    params.logprob_count = 1;
    assert_int_equal(draw_after(logits, params, history).logprob_count, 1);
    params.logprob_count = 0;
    assert_int_equal(draw_after(logits, params, history).logprob_count, 0);
}

/* Top-k and top-p against a full sort, for vocabularies of all orders and many ties. */
static void test_filters_against_sorting(void **state) {
    (void)state;
    uint32_t chance = 1;
    for (int round = 0; round < 300; round++) {
        float logits[VOCAB];
        for (int i = 0; i < VOCAB; i++) {
            chance = chance * 1664525 + 1013904223;
            logits[i] = (float)(chance >> 24) / (round % 2 ? 64.0f : 8.0f);
            if (round % 3 == 0)
                logits[i] = floorf(logits[i]);
        }
        int order[VOCAB];
        for (int i = 0; i < VOCAB; i++) { /* insertion: by logit, then id */
            int place = i;
            for (; place > 0 && logits[order[place - 1]] < logits[i]; place--)
                order[place] = order[place - 1];
            order[place] = i;
        }
        int k = 1 + round % VOCAB;
        bool allowed[VOCAB] = {false};
        for (int i = 0; i < k; i++)
            allowed[order[i]] = true;
        for (uint64_t i = 0; i < 40; i++)
            assert_true(allowed[draw(
                logits, (avl_sampling_params_t){.temperature = 4, .top_p = 1, .top_k = k}, i)]);
        double sum = 0, reached = 0, top_p = 0.02 * (1 + round % 49);
        memset(allowed, 0, sizeof allowed);
        for (int i = 0; i < VOCAB; i++)
            sum += exp((double)(logits[i] - logits[order[0]]) / 4);
        for (int i = 0; i < VOCAB && reached < (top_p + 1e-6) * sum; i++) {
            allowed[order[i]] = true;
            reached += exp((double)(logits[order[i]] - logits[order[0]]) / 4);
        }
        for (uint64_t i = 0; i < 40; i++)
            assert_true(allowed[draw(
                logits, (avl_sampling_params_t){.temperature = 4, .top_p = top_p}, i)]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_best_is_enough),
        cmocka_unit_test(test_numbers_that_are_none),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_draws_are_a_function_of_seed_and_index),
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_order_of_ids),
        cmocka_unit_test(test_items),
        cmocka_unit_test(test_min_p),
        cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_banned),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_filters_against_sorting),
    };
    return cmocka_run_group_tests_name("worker sampler", tests, set_up, tear_down);
}
