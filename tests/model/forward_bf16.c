/* bf16 on one rank: along the reference's own bf16 run, wherever the margin in f32 is beyond what
 * rounding does, the best token must be that of f32. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/model/dense_run.h"

/* Two logits change places when their errors differ by more than the margin: three standard
 * deviations of that difference, 3 sqrt(2) times the error of one. Ours are smaller than the
 * reference's, whose stream is bf16, too. */
#define MARGIN_OVER_RMS 4.2
/* Logits of the shipped model, around 20 at most: a few steps of bf16. */
#define SHIPPED_MARGIN 1.0f

static void check(avl_status_t status) {
    if (status != AVL_OK)
        fail_msg("%s: %s", avl_status_name(status), avl_status_detail());
}

static void run_forced(const avl_case_t *data, const avl_dense_source_t *source, int *steps,
                       int *judged) {
    avl_dense_result_t result;
    check(avl_dense_run_single(source, AVL_DTYPE_BF16, data, 0, 4, data->bf16_ids, data->bf16_count,
                               &result));
    for (int step = 0; step < data->bf16_count; step++, ++*steps) {
        if ((double)data->f32_margins[step] < MARGIN_OVER_RMS * data->bf16_error_rms)
            continue;
        ++*judged;
        if (result.tokens[step] != data->f32_best[step])
            fail_msg("%s: step %d: token %d, not %d, at a margin of %g", data->path, step,
                     result.tokens[step], data->f32_best[step], (double)data->f32_margins[step]);
    }
    avl_dense_release(&result);
}

static void test_reference(void **state) {
    (void)state;
    int steps = 0, judged = 0;
    const char *const families[] = {"llava-mha", "llava-gqa", "next-mha", "next-gqa"};
    for (size_t family = 0; family < sizeof families / sizeof families[0]; family++) {
        char folder[512];
        char **paths;
        int count;
        snprintf(folder, sizeof folder, AVL_SOURCE_DIR "/tests/data/cases/%s", families[family]);
        check(avl_case_list(folder, &paths, &count));
        for (int index = 0; index < count; index++) {
            avl_case_t data;
            avl_dense_source_t source;
            check(avl_case_load(paths[index], &data));
            check(avl_dense_open(data.model_path, &source));
            if (data.bf16_ids)
                run_forced(&data, &source, &steps, &judged);
            avl_dense_close(&source);
            avl_case_release(&data);
            free(paths[index]);
        }
        free(paths);
    }
    print_message("%d of %d steps judged\n", judged, steps);
    assert_true(judged >= 200);
}

/* The shipped model was trained: its margins are wide, and bf16 gives the tokens of f32. */
static void test_shipped_model(void **state) {
    (void)state;
    avl_case_t data;
    avl_dense_source_t source;
    avl_dense_result_t result;
    check(avl_case_load(AVL_SOURCE_DIR "/models/cases/00", &data));
    check(avl_dense_open(data.model_path, &source));
    check(avl_dense_run_single(&source, AVL_DTYPE_BF16, &data, 0, 1, NULL, data.greedy_count,
                               &result));
    assert_memory_equal(result.tokens, data.greedy_ids,
                        (size_t)data.greedy_count * sizeof(int32_t));
    assert_true(avl_dense_distance(result.logits, data.first_logits, data.vocab_rows) <=
                SHIPPED_MARGIN);
    avl_dense_release(&result);
    avl_dense_close(&source);
    avl_case_release(&data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_shipped_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
