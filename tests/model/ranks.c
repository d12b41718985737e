/* The network over several ranks (threads): the same tokens and the same features on all of them,
 * logits as on one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/model/dense_run.h"

#define TOLERANCE 1e-3
#define RANKS_MAX 8
#define CASES AVL_SOURCE_DIR "/tests/data/cases/"

static void check(avl_status_t status) {
    if (status != AVL_OK)
        fail_msg("%s: %s", avl_status_name(status), avl_status_detail());
}

static void run(const char *path, avl_dtype_t dtype, int ranks, int token_count) {
    avl_case_t data;
    avl_dense_source_t source;
    avl_dense_result_t result;
    avl_status_t statuses[RANKS_MAX];
    int64_t differing[RANKS_MAX];
    check(avl_case_load(path, &data));
    check(avl_dense_open(data.model_path, &source));
    if (token_count > data.greedy_count)
        token_count = data.greedy_count;
    avl_dense_run_ranks(&source, dtype, &data, ranks, token_count, statuses, differing, &result);
    for (int rank = 0; rank < ranks; rank++) {
        assert_int_equal(statuses[rank], AVL_OK);
        assert_int_equal(differing[rank], 0);
    }
    if (dtype == AVL_DTYPE_F32) {
        double distance = avl_dense_distance(result.logits, data.first_logits, data.vocab_rows);
        print_message("%s at %d ranks: first logits %.2e\n", path, ranks, distance);
        assert_true(distance <= TOLERANCE);
        assert_memory_equal(result.tokens, data.greedy_ids, (size_t)token_count * sizeof(int32_t));
    }
    avl_dense_release(&result);
    avl_dense_close(&source);
    avl_case_release(&data);
}

/* The shipped model has 6 heads and 4 vision heads: at 4 ranks the heads go 2, 2, 1, 1, at 6 two
 * ranks have no vision head. */
static void test_shipped_model(void **state) {
    (void)state;
    const int ranks[] = {1, 2, 3, 4, 6};
    for (size_t index = 0; index < sizeof ranks / sizeof ranks[0]; index++)
        run(AVL_SOURCE_DIR "/models/cases/00", AVL_DTYPE_F32, ranks[index], 12);
}

/* 6 query and 3 KV heads, and 6 and 2: at 4 ranks the KV heads are shared unevenly, at 6 by all
 * that read one. */
static void test_grouped_heads(void **state) {
    (void)state;
    for (int ranks = 5; ranks <= 6; ranks++) {
        run(CASES "llava-gqa/01", AVL_DTYPE_F32, ranks, 16);
        run(CASES "next-gqa/02", AVL_DTYPE_F32, ranks, 16);
    }
}

static void test_families(void **state) {
    (void)state;
    const char *const cases[] = {"llava-mha/01", "llava-gqa/01", "llava-mistral/01",
                                 "next-mha/01",  "next-gqa/02",  "llava-bias/01"};
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++)
        for (int ranks = 2; ranks <= 4; ranks++) {
            char path[512];
            snprintf(path, sizeof path, CASES "%s", cases[index]);
            run(path, AVL_DTYPE_F32, ranks, 16);
        }
}

static void test_bf16_agrees(void **state) {
    (void)state;
    run(AVL_SOURCE_DIR "/models/cases/01", AVL_DTYPE_BF16, 3, 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shipped_model),
        cmocka_unit_test(test_grouped_heads),
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_bf16_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
