/* tests/cuda/sampler.c: what the host draws (worker/sampler.h) and what the device draws
 * (kernels/sample.h) is the same, to the last bit of a logprob and the last word of a refusal. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "worker/sampler.h"

enum { VOCAB = 2100, PROMPT = 300, ANSWER = 60, BANNED = 3, ROUNDS = 120 };

static double chance(void) {
    return (double)(random_next() >> 11) * 0x1p-53;
}

static void fill(float *logits, int round) {
    for (int i = 0; i < VOCAB; i++) {
        logits[i] = (float)(4 * (chance() + chance() + chance() - 1.5));
        if (round % 4 == 1) /* many ties */
            logits[i] = floorf(logits[i]);
        if (round % 4 == 2 && random_below(3) > 0)
            logits[i] = -INFINITY;
        if (round % 8 == 3)
            logits[i] *= 40;
    }
    if (round % 16 == 15)
        logits[random_below(VOCAB)] = random_below(2) ? NAN : INFINITY;
    if (round % 60 == 31)
        for (int i = 0; i < VOCAB; i++)
            logits[i] = -INFINITY;
}

static avl_sampling_params_t make_params(int round) {
    return (avl_sampling_params_t){
        .temperature = round % 7 == 0 ? 0 : 0.1 + 3 * chance(),
        .top_p = round % 3 == 0 ? 1 : 0.01 + 0.98 * chance(),
        .top_k = round % 2 == 0 ? 0 : 1 + random_below(round % 5 == 0 ? 2 * VOCAB : 50),
        .min_p = round % 4 == 0 ? 0.3 * chance() : 0,
        .seed = random_next(),
        .repetition_penalty = round % 5 == 1 ? 0.5 + chance() : 0,
        .presence_penalty = round % 6 == 2 ? 2 * chance() - 1 : 0,
        .frequency_penalty = round % 6 > 3 ? chance() : 0,
        .logprob_count = round % 3 == 1 ? random_below(AVL_LOGPROBS_MAX + 1) : 0,
    };
}

static void compare(avl_device_t *device, avl_sampler_t *sampler, int round) {
    static float logits[VOCAB], copy[VOCAB];
    static avl_sample_adjustment_t adjustments[VOCAB];
    int32_t prompt[PROMPT], answer[ANSWER], banned[BANNED];
    fill(logits, round);
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = random_below(VOCAB + 1) - 1;
    for (int i = 0; i < ANSWER; i++)
        answer[i] = i % 3 ? random_below(VOCAB) : 5;
    for (int i = 0; i < BANNED; i++)
        banned[i] = i == 0 ? answer[1] : random_below(VOCAB + 7);
    avl_sampler_history_t history = {.prompt_ids = prompt,
                                     .prompt_rows = PROMPT,
                                     .token_ids = answer,
                                     .token_count = random_below(ANSWER + 1),
                                     .banned_ids = banned,
                                     .banned_count = round % 9 == 4 ? BANNED : 0};
    avl_sampling_params_t params = make_params(round);
    int32_t forced = round % 10 == 9 ? random_below(VOCAB) : -1;
    expect_status(avl_sampling_params_check(&params), AVL_OK, NULL);

    memcpy(copy, logits, sizeof logits);
    avl_sample_item_t item = avl_sampler_item(sampler, &params, &history, forced, adjustments);
    assert_true(item.adjustment_count <= avl_sampler_adjustments_most(sampler, &params, &history));
    avl_sample_result_t result;
    avl_sample_args_t args = {copy, VOCAB, 1, VOCAB, &item, &result};
    expect_status(avl_sample(device, &args), AVL_OK, NULL);
    avl_sampler_token_t theirs = {.token_id = -1}, ours = {.token_id = -1};
    avl_token_logprob_t logprobs[AVL_LOGPROBS_MAX];
    char detail[AVL_STATUS_DETAIL_BYTES] = "";
    avl_status_t status = avl_sampler_take(sampler, &params, &result, &theirs);
    if (status == AVL_OK)
        memcpy(logprobs, theirs.logprobs, sizeof logprobs);
    else
        snprintf(detail, sizeof detail, "%s", avl_status_detail());

    avl_status_t expected = forced >= 0
                                ? avl_sampler_force(sampler, logits, &params, forced, &ours)
                                : avl_sampler_draw(sampler, logits, &params, &history, &ours);
    assert_int_equal(status, expected);
    if (expected != AVL_OK) {
        assert_string_equal(detail, avl_status_detail());
        return;
    }
    if (theirs.token_id != ours.token_id)
        fail_msg("round %d: the device draws %d, the host %d", round, theirs.token_id,
                 ours.token_id);
    assert_int_equal(theirs.logprob_count, ours.logprob_count);
    assert_int_equal(theirs.logprob_count, params.logprob_count);
    for (int i = 0; i < ours.logprob_count; i++) {
        assert_int_equal(logprobs[i].token_id, ours.logprobs[i].token_id);
        assert_memory_equal(&logprobs[i].logprob, &ours.logprobs[i].logprob, sizeof(float));
    }
}

static void check_draws(avl_device_t *device, void *context) {
    for (int round = 0; round < ROUNDS; round++)
        compare(device, context, round);
}

static void device_and_host_draw_the_same(void **unused) {
    (void)unused;
    random_seed(11);
    avl_sampler_t *sampler = NULL;
    expect_status(avl_sampler_create(VOCAB, &sampler), AVL_OK, NULL);
    for_each_device(check_draws, sampler);
    avl_sampler_destroy(sampler);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(device_and_host_draw_the_same)};
    return cmocka_run_group_tests_name("draws of host and device", tests, NULL, NULL);
}
