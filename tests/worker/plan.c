/* tests/worker/plan.c: step plans there and back, and bytes that are none. */
#include "worker/plan.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

static const avl_plan_limits_t limits = {.sequences_max = 4,
                                         .indices_max = 6,
                                         .pictures_max = 3,
                                         .context_rows = 64,
                                         .feature_rows = 40,
                                         .bytes_max = 4096};

static const int32_t prompt[] = {1, 5, -1, -1, -1, 9, 2};
static const avl_plan_place_t places[] = {{38, 2}, {0, 1}};
static const uint8_t pixels[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

static void fill(avl_plan_t *plan) {
    avl_plan_begin(plan, AVL_PLAN_STEP, 77);
    plan->retirements[plan->retirement_count++] = 1;
    plan->releases[plan->release_count++] = 5;
    plan->admissions[plan->admission_count++] = (avl_plan_admission_t){
        .request_id = UINT64_C(0x1234567890abcdef),
        .sequence = 2,
        .prompt_rows = 7,
        .rows_max = 20,
        .place_count = 2,
        .source = 5,
        .source_rows = 6,
        .attention = {.visual_store_ratio = .5,
                      .visual_compute_ratio = .25,
                      .visual_update_interval = 3,
                      .visual_core = AVL_CORE_STEP,
                      .visual_selection = AVL_VISUAL_RANDOM,
                      .selection_seed = 12,
                      .prefill_layer = 2,
                      .text_keep_ratio = .5,
                      .text_keep_min = 20,
                      .text_policy = AVL_TEXT_H2O,
                      .protect_prompt = true,
                      .measure_captured_mass = true},
        .token_ids = prompt,
        .places = places,
    };
    plan->pictures[plan->picture_count++] = (avl_plan_picture_t){
        .sequence = 2,
        .feature_row = 29,
        .layout = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
        .pixels = pixels,
        .pixel_bytes = sizeof pixels,
    };
    plan->runs[plan->run_count++] =
        (avl_plan_run_t){.sequence = 2, .row_count = 7, .token_id = -1, .logits = 1};
    plan->runs[plan->run_count++] =
        (avl_plan_run_t){.sequence = 0, .row_count = 0, .token_id = 42, .logits = AVL_PLAN_BEST};
}

typedef struct pair {
    avl_plan_t sent, received;
    size_t bytes;
    _Alignas(8) uint8_t buffer[4096];
} pair_t;

static void open_pair(pair_t *pair) {
    assert_int_equal(avl_plan_create(&limits, &pair->sent), AVL_OK);
    assert_int_equal(avl_plan_create(&limits, &pair->received), AVL_OK);
    fill(&pair->sent);
    pair->bytes = avl_plan_bytes(&pair->sent);
    assert_true(pair->bytes <= sizeof pair->buffer);
    memset(pair->buffer, 0xee, sizeof pair->buffer);
    avl_plan_encode(&pair->sent, pair->buffer);
    assert_int_equal(pair->buffer[pair->bytes], 0xee);
}

static void close_pair(pair_t *pair) {
    avl_plan_destroy(&pair->sent);
    avl_plan_destroy(&pair->received);
}

static void test_there_and_back(void **state) {
    (void)state;
    pair_t pair;
    open_pair(&pair);
    const avl_plan_t *got = &pair.received;
    assert_int_equal(avl_plan_decode(pair.buffer, pair.bytes, &limits, &pair.received), AVL_OK);
    assert_int_equal(got->kind, AVL_PLAN_STEP);
    assert_int_equal(got->step, 77);
    assert_int_equal(got->release_count, 1);
    assert_int_equal(got->releases[0], 5);
    assert_int_equal(got->retirement_count, 1);
    assert_int_equal(got->retirements[0], 1);
    assert_int_equal(got->admission_count, 1);
    assert_true(got->admissions[0].request_id == UINT64_C(0x1234567890abcdef));
    assert_int_equal(got->admissions[0].rows_max, 20);
    assert_int_equal(got->admissions[0].source, 5);
    assert_int_equal(got->admissions[0].source_rows, 6);
    assert_int_equal(got->admissions[0].place_count, 2);
    assert_memory_equal(got->admissions[0].places, places, sizeof places);
    assert_int_equal(got->pictures[0].feature_row, 29);
    assert_memory_equal(&got->admissions[0].attention, &pair.sent.admissions[0].attention,
                        sizeof(double) * 2 + sizeof(int32_t));
    assert_true(avl_attention_params_same_prompt(&got->admissions[0].attention,
                                                 &pair.sent.admissions[0].attention));
    assert_memory_equal(got->admissions[0].token_ids, prompt, sizeof prompt);
    assert_memory_equal(&got->pictures[0].layout, &pair.sent.pictures[0].layout,
                        sizeof(avl_image_layout_t));
    assert_memory_equal(got->pictures[0].pixels, pixels, sizeof pixels);
    assert_memory_equal(got->runs, pair.sent.runs, 2 * sizeof *got->runs);
    close_pair(&pair);
}

static void test_frame_is_enough(void **state) {
    (void)state;
    pair_t pair;
    open_pair(&pair);
    avl_plan_t *plan = &pair.sent;
    avl_plan_begin(plan, AVL_PLAN_STEP, 1);
    plan->retirement_count = plan->run_count = limits.sequences_max;
    plan->release_count = limits.indices_max;
    plan->admission_count = limits.sequences_max;
    plan->picture_count = limits.pictures_max;
    size_t contents = 0;
    for (int i = 0; i < 4; i++) {
        plan->admissions[i] = (avl_plan_admission_t){.prompt_rows = 2 * i + 1, .place_count = i};
        contents += 4 * (2 * (size_t)i + 1) + (size_t)i * sizeof(avl_plan_place_t);
    }
    for (int i = 0; i < 3; i++) {
        plan->pictures[i] = (avl_plan_picture_t){.pixel_bytes = 1 + (size_t)i};
        contents += 1 + (size_t)i;
    }
    assert_true(avl_plan_bytes(plan) <= avl_plan_frame_bytes(4, 6, 3) + contents);
    close_pair(&pair);
}

/* Each cut and each changed byte gives an error or a plan within the limits; sanitizers watch the
 * reading. */
static void test_hostile_bytes(void **state) {
    (void)state;
    pair_t pair;
    open_pair(&pair);
    for (size_t bytes = 0; bytes < pair.bytes; bytes++) {
        uint8_t *cut = malloc(bytes + 8);
        assert_non_null(cut);
        memcpy(cut, pair.buffer, bytes);
        assert_int_equal(avl_plan_decode(cut, bytes, &limits, &pair.received), AVL_ERR_DATA);
        free(cut);
    }
    assert_int_equal(avl_plan_decode(pair.buffer, pair.bytes + 8, &limits, &pair.received),
                     AVL_ERR_DATA);
    assert_int_equal(avl_plan_decode(pair.buffer, 1 << 20, &limits, &pair.received), AVL_ERR_DATA);
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    for (size_t at = 0; at < pair.bytes; at++) {
        for (size_t i = 0; i < sizeof values; i++) {
            uint8_t *changed = aligned_alloc(8, (pair.bytes + 7) & ~(size_t)7);
            assert_non_null(changed);
            memcpy(changed, pair.buffer, pair.bytes);
            changed[at] = values[i];
            avl_status_t status = avl_plan_decode(changed, pair.bytes, &limits, &pair.received);
            if (status == AVL_OK) {
                assert_in_range(pair.received.run_count, 0, limits.sequences_max);
                assert_in_range(pair.received.runs[0].sequence, 0, limits.indices_max - 1);
            }
            free(changed);
        }
    }
    close_pair(&pair);
}

/* What goes with a filter alone. */
static void test_filter_there_and_back(void **state) {
    (void)state;
    pair_t pair;
    open_pair(&pair);
    avl_attention_params_t sent = AVL_ATTENTION(.5, .25, 3);
    sent.prefill_keep_ratio = .75;
    sent.prefill_layer = 7;
    sent.text_keep_ratio = .5;
    sent.text_keep_min = 20;
    pair.sent.admissions[0].attention = sent;
    avl_plan_encode(&pair.sent, pair.buffer);
    assert_int_equal(avl_plan_decode(pair.buffer, pair.bytes, &limits, &pair.received), AVL_OK);
    assert_true(avl_attention_params_same_prompt(&pair.received.admissions[0].attention, &sent));
    assert_int_equal(pair.received.admissions[0].attention.prefill_layer, 7);
    avl_plan_destroy(&pair.sent);
    avl_plan_destroy(&pair.received);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_filter_there_and_back),
        cmocka_unit_test(test_frame_is_enough),
        cmocka_unit_test(test_hostile_bytes),
    };
    return cmocka_run_group_tests_name("worker plan", tests, NULL, NULL);
}
