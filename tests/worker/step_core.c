/* tests/worker/step_core.c: the rows that KV heads choose within a step: each head's best by its
 * own query heads, in groups of any size, whatever else is in a group. */

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "worker/step_core.h"

enum {
    QUERY_HEADS = 5,
    GROUP = 2,
    OFFSET = 1, /* the first KV head is another rank's as well */
    KV_HEADS = 3,
    WIDTH = 6,
    PAGES = 20,
    SLOTS = PAGES * AVL_PAGE_ROWS,
    SEQUENCES = 6,
};

static const int32_t row_counts[SEQUENCES] = {40, 1, 300, 77, 5, 120};
static const int32_t keeps[SEQUENCES] = {7, 1, 100, 77, 1, 119};

static float query[SEQUENCES][QUERY_HEADS][WIDTH];
static int32_t slots[SEQUENCES][SLOTS];

typedef struct bed {
    avl_device_t *device;
    avl_pages_t *pages;
    avl_step_core_t *core;
} bed_t;

static float number(uint32_t x) {
    for (int i = 0; i < 3; i++) {
        x ^= x >> 16;
        x *= 0x7feb352du;
    }
    return (float)(x >> 8) / 16777216.0f - 0.5f;
}

static bed_t open_bed(int64_t step_scores_max, int runs_max) {
    bed_t bed = {0};
    assert_int_equal(avl_device_open_cpu(2, NULL, &bed.device), AVL_OK);
    assert_int_equal(
        avl_pages_create(bed.device, KV_HEADS, WIDTH, AVL_DTYPE_F32, PAGES, &bed.pages), AVL_OK);
    float *keys = avl_pages_keys(bed.pages);
    for (int i = 0; i < SLOTS * KV_HEADS * WIDTH; i++)
        keys[i] = 4 * number((uint32_t)i);
    for (int i = 0; i < SEQUENCES * QUERY_HEADS * WIDTH; i++)
        ((float *)query)[i] = 4 * number((uint32_t)(i + 1000000));
    for (int s = 0; s < SEQUENCES; s++) {
        for (int i = 0; i < SLOTS; i++)
            slots[s][i] = (i * 37 + s) % SLOTS;
    }
    avl_attend_options_t options = {
        .device = bed.device,
        .pages = bed.pages,
        .head_map = {.query_heads = QUERY_HEADS, .group = GROUP, .query_head_offset = OFFSET},
        .head_width = WIDTH,
        .runs_max = runs_max,
        .sequence_scores_max = SLOTS,
        .step_scores_max = step_scores_max,
    };
    assert_int_equal(avl_step_core_create(&options, &bed.core), AVL_OK);
    return bed;
}

static void close_bed(bed_t *bed) {
    avl_step_core_destroy(bed->core);
    avl_pages_destroy(bed->pages);
    avl_device_close(bed->device);
}

/* The sum over a KV head's query heads of their softmax over the sequence's rows. */
static void weigh(const bed_t *bed, int s, int kv_head, double *weights) {
    const float *keys = avl_pages_view(bed->pages).keys;
    memset(weights, 0, SLOTS * sizeof *weights);
    for (int head = 0; head < QUERY_HEADS; head++) {
        double own[SLOTS], sum = 0;
        if ((head + OFFSET) / GROUP != kv_head)
            continue;
        for (int32_t i = 0; i < row_counts[s]; i++) {
            double dot = 0;
            for (int d = 0; d < WIDTH; d++)
                dot += (double)query[s][head][d] *
                       (double)keys[(slots[s][i] * KV_HEADS + kv_head) * WIDTH + d];
            own[i] = exp(dot / sqrt(WIDTH));
            sum += own[i];
        }
        for (int32_t i = 0; i < row_counts[s]; i++)
            weights[i] += own[i] / sum;
    }
}

/* Ascending places, as many as wished, none of them worse than one that was left. */
static void check_lists(const bed_t *bed, int s, const avl_decode_sequence_t *decode) {
    assert_int_equal(decode->spans[AVL_SPAN_VISUAL].row_count, keeps[s]);
    assert_in_range(decode->visual_stride, keeps[s], row_counts[s]);
    for (int head = 0; head < KV_HEADS; head++) {
        const int32_t *list =
            decode->spans[AVL_SPAN_VISUAL].rows + (int64_t)head * decode->visual_stride;
        double weights[SLOTS], least = INFINITY, most = -INFINITY;
        int32_t next = 0;
        weigh(bed, s, head, weights);
        for (int32_t i = 0; i < row_counts[s]; i++) {
            bool chosen = next < keeps[s] && list[next] == slots[s][i];
            next += chosen;
            if (chosen && weights[i] < least)
                least = weights[i];
            if (!chosen && weights[i] > most)
                most = weights[i];
        }
        assert_int_equal(next, keeps[s]);
        assert_true(most <= least + 1e-6);
    }
}

/* Chooses for all sequences, in as many groups as it takes. Returns their number. */
static int choose_all(const bed_t *bed, int repeats) {
    const avl_attention_call_t call = {.query = query, .query_stride = QUERY_HEADS * WIDTH};
    avl_decode_sequence_t decodes[SEQUENCES];
    int groups = 0, first = 0;
    for (int n = 0; n <= SEQUENCES * repeats; n++) {
        bool ends = n == SEQUENCES * repeats;
        int s = n % SEQUENCES;
        if (n > first &&
            (ends || n - first == SEQUENCES || !avl_step_core_fits(bed->core, row_counts[s]))) {
            assert_int_equal(avl_step_core_choose(bed->core, &call), AVL_OK);
            assert_int_equal(avl_step_core_choose(bed->core, &call), AVL_OK); /* nothing to do */
            for (int i = first; i < n; i++)
                check_lists(bed, i % SEQUENCES, &decodes[i % SEQUENCES]);
            first = n;
            groups++;
        }
        if (ends)
            break;
        decodes[s] = (avl_decode_sequence_t){.query_row = s,
                                             .spans[AVL_SPAN_VISUAL] = {slots[s], row_counts[s]}};
        assert_true(avl_step_core_fits(bed->core, row_counts[s]) || n > first);
        avl_step_core_add(bed->core, &decodes[s], keeps[s]);
    }
    return groups;
}

static void test_lists(void **state) {
    (void)state;
    bed_t bed = open_bed(1 << 20, SEQUENCES);
    assert_int_equal(choose_all(&bed, 1), 1);
    assert_int_equal(choose_all(&bed, 3), 3);
    close_bed(&bed);
}

static void test_groups(void **state) {
    (void)state;
    /* Room for a sequence of all slots: 40 and 1; 300; 77, 5, 120, 40, 1; 300; the rest. */
    bed_t bed = open_bed(1, SEQUENCES);
    assert_int_equal(choose_all(&bed, 2), 5);
    close_bed(&bed);
    /* 40, 1 and 300; the rest. */
    bed = open_bed(KV_HEADS * 400, SEQUENCES);
    assert_int_equal(choose_all(&bed, 1), 2);
    close_bed(&bed);
    /* Sequences bound a group as well. */
    bed = open_bed(1 << 20, 2);
    assert_int_equal(choose_all(&bed, 1), 3);
    close_bed(&bed);
}

static void test_bytes(void **state) {
    (void)state;
    avl_attend_options_t options = {
        .head_map = {.query_heads = 8, .group = 2},
        .runs_max = 3,
        .sequence_scores_max = 100,
        .step_scores_max = 1000,
    };
    assert_int_equal(avl_step_core_bytes(&options), 8 * 1000);
    options.step_scores_max = 399; /* one sequence always fits */
    assert_int_equal(avl_step_core_bytes(&options), 8 * 400);
    options.step_scores_max = AVL_STEP_CORE_SCORES; /* not more than can be wanted */
    assert_int_equal(avl_step_core_bytes(&options), 8 * 1200);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests_name("worker step_core", tests, NULL, NULL);
}
