/* tests/worker/forced.c: answers that the caller chose: each token a step like a drawn one. */
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

#define TOKENS 30
#define REQUESTS 8

static rig_t *open_rig(int ranks, int64_t pages) {
    return rig_open(
        &(rig_options_t){.model = "models/avl-tiny", .ranks = ranks, .page_count = pages});
}

static avl_request_t *request_of(const rig_case_t *data, uint64_t id, bool dense) {
    avl_request_t *request = rig_request(data, id, TOKENS);
    if (!dense)
        rig_set_attention(request, .1, .05, 3);
    request->ignore_eos = true;
    request->sampling.logprob_count = 1;
    return request;
}

static void force(avl_request_t *request, const int32_t *ids, int32_t count) {
    request->forced_ids = malloc((size_t)count * sizeof *ids);
    assert_non_null(request->forced_ids);
    memcpy(request->forced_ids, ids, (size_t)count * sizeof *ids);
    request->forced_count = count;
}

static void expect_same(const rig_result_t *got, const rig_result_t *expected) {
    rig_expect_tokens(got, expected->tokens, expected->token_count, "forced");
    assert_memory_equal(got->logprobs, expected->logprobs,
                        (size_t)expected->token_count * sizeof *expected->logprobs);
    assert_int_equal(got->end.finish_reason, AVL_FINISH_LENGTH);
    assert_int_equal(got->end.attention.decode_steps, expected->token_count - 1);
}

/* An answer forced on the request that gave it repeats every bit; on another one, it does not. */
static void forced_tokens_are_steps_like_others(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        rig_t *rig = open_rig(ranks, 0);
        rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
        rig_result_t own[2];
        for (int dense = 0; dense < 2; dense++) {
            own[dense] = *rig_answer(rig, request_of(&data, 1 + (uint64_t)dense, dense != 0));
            assert_int_equal(own[dense].token_count, TOKENS);
            avl_request_t *request = request_of(&data, 3 + (uint64_t)dense, dense != 0);
            force(request, own[dense].tokens, TOKENS);
            request->sampling.temperature = 2; /* means nothing */
            expect_same(rig_answer(rig, request), &own[dense]);
        }
        avl_request_t *request = request_of(&data, 5, false);
        force(request, own[1].tokens, TOKENS);
        const rig_result_t *other = rig_answer(rig, request);
        rig_expect_tokens(other, own[1].tokens, TOKENS, "the dense answer forced on A-VL");
        assert_true(other->logprobs[0] == own[1].logprobs[0]); /* of dense prefill */
        assert_memory_not_equal(other->logprobs, own[1].logprobs, sizeof(float) * TOKENS);
        assert_true(other->end.attention.kv_bytes_held > 0);
        rig_case_release(&data);
        rig_close(rig);
    }
}

static void replays_and_preemption_keep_them(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 0);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/01");
    rig_result_t whole = *rig_answer(rig, request_of(&data, 1, true));
    avl_request_t *request = request_of(&data, 2, false);
    force(request, whole.tokens, TOKENS);
    whole = *rig_answer(rig, request);
    const int32_t cuts[] = {1, 7, TOKENS - 1};
    for (int i = 0; i < 3; i++) {
        request = request_of(&data, 3 + (uint64_t)i, false);
        force(request, whole.tokens, TOKENS);
        rig_set_replay(request, whole.tokens, cuts[i]);
        const rig_result_t *rest = rig_answer(rig, request);
        rig_expect_tokens(rest, whole.tokens + cuts[i], TOKENS - cuts[i], "after a replay");
        assert_memory_equal(rest->logprobs, whole.logprobs + cuts[i],
                            sizeof(float) * (size_t)(TOKENS - cuts[i]));
        assert_int_equal(rest->end.completion_tokens, TOKENS);
    }
    rig_case_release(&data);
    rig_close(rig);

    rig = open_rig(1, 72); /* their answers outgrow it */
    data = rig_case_load(rig_config(rig), "models/cases/01");
    avl_scheduler_set_growth_share(rig_scheduler(rig), 0);
    for (uint64_t id = 1; id <= REQUESTS; id++) {
        request = request_of(&data, id, false);
        force(request, whole.tokens, TOKENS);
        avl_scheduler_submit(rig_scheduler(rig), request);
    }
    rig_run(rig);
    assert_true(avl_scheduler_counts(rig_scheduler(rig)).preemptions > 0);
    for (uint64_t id = 1; id <= REQUESTS; id++)
        expect_same(rig_result(rig, id), &whole);
    rig_case_release(&data);
    rig_close(rig);
}

static void only_the_last_one_ends_the_answer(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 0);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    int32_t eos = rig_config(rig)->generation.eos_ids[0];
    const int32_t inside[] = {412, eos, 391, eos, 300}, last[] = {412, eos, 391, eos};
    for (int i = 0; i < 2; i++) {
        avl_request_t *request = rig_request(&data, 1 + (uint64_t)i, 9);
        request->sampling.min_tokens = 9; /* means nothing either */
        force(request, i == 0 ? inside : last, 5 - i);
        const rig_result_t *result = rig_answer(rig, request);
        rig_expect_tokens(result, inside, 5 - i, "with ends inside");
        assert_int_equal(result->end.finish_reason, i == 0 ? AVL_FINISH_LENGTH : AVL_FINISH_STOP);
    }
    rig_case_release(&data);
    rig_close(rig);
}

static void impossible_ones_are_refused(void **state) {
    (void)state;
    rig_t *rig = open_rig(1, 0);
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    int32_t vocab_rows = rig_config(rig)->model.text.vocab_rows;
    int32_t context = avl_engine_options(rig_engine(rig, 0))->limits.context_rows;
    const struct {
        int32_t id, count, max_tokens;
        avl_status_t status;
        const char *words;
    } refusals[] = {{-1, 2, 9, AVL_ERR_INVALID, "forced token 1 is -1; allowed: 0 to"},
                    {vocab_rows, 2, 9, AVL_ERR_INVALID, "forced token 1 is"},
                    {5, 10, 9, AVL_ERR_INVALID, "10 forced tokens, and max_tokens is 9"},
                    {5, context, context, AVL_ERR_TOO_LARGE, "tokens are forced; the context"}};
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        avl_request_t *request = rig_request(&data, 1 + i, refusals[i].max_tokens);
        int32_t *ids = calloc((size_t)refusals[i].count, sizeof *ids);
        assert_non_null(ids);
        ids[1] = refusals[i].id;
        force(request, ids, refusals[i].count);
        free(ids);
        avl_scheduler_submit(rig_scheduler(rig), request);
        const rig_result_t *result = rig_result(rig, 1 + i);
        assert_int_equal(result->end.status, refusals[i].status);
        if (strstr(result->end.detail, refusals[i].words) == NULL)
            fail_msg("%s", result->end.detail);
    }
    rig_case_release(&data);
    rig_close(rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forced_tokens_are_steps_like_others),
        cmocka_unit_test(replays_and_preemption_keep_them),
        cmocka_unit_test(only_the_last_one_ends_the_answer),
        cmocka_unit_test(impossible_ones_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
