/* tests/worker/parts.c: ratios, pages, sequences and the ledger, each alone. */

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "worker/ledger.h"
#include "worker/sequence.h"
#include "worker/spread.h"
#include "worker/stats.h"

/* Every thousandth, as a decimal literal would be read, against integer arithmetic. */
static void test_ratios_are_exact(void **state) {
    (void)state;
    for (int thousandths = 1; thousandths <= 1000; thousandths++) {
        double ratio = thousandths / 1000.0;
        for (int32_t count = 0; count <= 3000; count++) {
            int32_t expected = (int32_t)((int64_t)thousandths * count / 1000);
            if (avl_ratio_rows(ratio, count) != expected)
                fail_msg("%d/1000 of %d: %d, expected %d", thousandths, count,
                         avl_ratio_rows(ratio, count), expected);
        }
        assert_int_equal(avl_ratio_rows(ratio, 16777213), (int64_t)thousandths * 16777213 / 1000);
    }
    assert_int_equal(avl_ratio_rows(0.3, 2880), 864);
    assert_int_equal(avl_ratio_rows(1 - 0.7, 2880), 864); /* 0.30000000000000004 */
    assert_int_equal(avl_ratio_rows(1.0, INT32_MAX), INT32_MAX);
    assert_int_equal(avl_ratio_rows(1e-300, INT32_MAX), 0);
    assert_int_equal(avl_ratio_rows(NAN, 10), 0);
    assert_int_equal(avl_ratio_rows(7, 10), 10);
    assert_int_equal(avl_ratio_rows(-1, 10), 0);
}

static avl_device_t *open_device(void) {
    avl_device_t *device;
    assert_int_equal(avl_device_open_cpu(1, NULL, &device), AVL_OK);
    return device;
}

static void test_pages(void **state) {
    (void)state;
    avl_device_t *device = open_device();
    avl_pages_t *pages;
    assert_int_equal(avl_pages_create(device, 3, 8, AVL_DTYPE_BF16, 5, &pages), AVL_OK);
    assert_int_equal(avl_pages_page_bytes(3, 8, AVL_DTYPE_BF16), 16 * 3 * (2 * 8 * 2 + 4 + 4));
    const avl_page_owner_t owner = {2, 7, AVL_SEGMENT_VISUAL}, other = {1, 0, AVL_SEGMENT_TEXT};
    int32_t taken[5], seen = 0;
    for (int i = 0; i < 5; i++) {
        taken[i] = avl_pages_take(pages, i < 3 ? owner : other);
        assert_in_range(taken[i], 0, 4);
        seen |= 1 << taken[i];
    }
    assert_int_equal(seen, 31);
    assert_int_equal(avl_pages_take(pages, owner), -1);
    assert_int_equal(avl_pages_owned(pages, 2), 3);
    assert_int_equal(avl_pages_owned(pages, 1), 2);
    avl_pages_give(pages, taken[1], owner);
    assert_int_equal(avl_pages_take(pages, other), taken[1]);
    avl_pages_give(pages, taken[1], other);
    for (int i = 0; i < 5; i++) {
        if (i != 1)
            avl_pages_give(pages, taken[i], i < 3 ? owner : other);
    }
    avl_pages_counts_t counts = avl_pages_counts(pages);
    assert_int_equal(counts.total, 5);
    assert_int_equal(counts.taken, 0);
    assert_int_equal(counts.taken_most, 5);
    avl_pages_destroy(pages);
    assert_int_equal(avl_pages_create(device, 3, 8, AVL_DTYPE_F32, 0, &pages), AVL_ERR_TOO_LARGE);
    assert_int_equal(avl_pages_create(device, 3, 8, AVL_DTYPE_F32, INT64_C(1) << 40, &pages),
                     AVL_ERR_TOO_LARGE);
    avl_device_close(device);
}

static void test_sequence_lists(void **state) {
    (void)state;
    avl_device_t *device = open_device();
    avl_pages_t *pages;
    assert_int_equal(avl_pages_create(device, 1, 4, AVL_DTYPE_F32, 30, &pages), AVL_OK);
    int32_t ids[40];
    for (int i = 0; i < 40; i++)
        ids[i] = i >= 3 && i < 23 ? -1 : i >= 26 && i < 36 ? -1 : 5; /* 3 t, 20 v, 3 t, 10 v, 4 t */
    const avl_attention_params_t params = AVL_ATTENTION(.5, .25, 2);
    avl_sequence_shape_t shape = avl_sequence_shape(ids, 40, 60, &params);
    assert_int_equal(shape.visual_rows, 30);
    assert_int_equal(shape.text_rows, 10);
    assert_int_equal(shape.system_rows, 3);
    assert_int_equal(shape.store_rows, 15);
    assert_int_equal(shape.core_rows, 7);
    assert_true(shape.selects);
    avl_sequence_price_t price = avl_sequence_price(&shape, 2, true);
    assert_int_equal(price.decode_pages, 2 * (2 + 1));
    assert_int_equal(price.prefill_pages, 2 * (2 + 1) + 1);
    assert_int_equal(avl_sequence_price(&shape, 2, false).prefill_pages, 2 * (2 + 2));
    avl_sequence_t *sequence;
    assert_int_equal(avl_sequence_create(device, 0, &shape, 2, ids, &sequence), AVL_OK);
    for (int32_t i = 0; i < 60; i++) {
        int32_t slot = avl_sequence_append(sequence, pages, 1, i);
        assert_in_range(slot, 0, 30 * 16 - 1);
    }
    const avl_sequence_layer_t *layer = &sequence->layers[1];
    assert_int_equal(layer->text.slots.count, 30);
    assert_int_equal(layer->visual.slots.count, 30);
    assert_int_equal(layer->order.count, 40);
    assert_int_equal(layer->order.host[3], layer->visual.slots.host[0]);
    assert_int_equal(layer->order.host[23], layer->text.slots.host[3]);
    assert_int_equal(sequence->visual_positions[20], 26);
    assert_int_equal(sequence->text_positions[10], 40);
    assert_int_equal(avl_pages_counts(pages).taken, 4);
    avl_sequence_cut_visual(sequence, pages, 1, 16);
    assert_int_equal(avl_pages_counts(pages).taken, 3);
    assert_int_equal(sequence->returned_pages, 1);
    avl_sequence_destroy(sequence, pages);
    assert_int_equal(avl_pages_counts(pages).taken, 0);
    avl_pages_destroy(pages);
    avl_device_close(device);
}

static void test_spread(void **state) {
    (void)state;
    int32_t rows[64];
    avl_spread_even(10, 3, rows);
    assert_true(rows[0] == 1 && rows[1] == 5 && rows[2] == 8);
    for (int32_t count = 1; count <= 64; count++) {
        for (int32_t keep = 0; keep <= count; keep++) {
            avl_spread_even(count, keep, rows);
            for (int32_t i = 0; i < keep; i++) /* middles of equal parts */
                assert_int_equal(rows[i], (int32_t)((i + 0.5) * count / keep + 1e-9));
        }
    }
}

/* Sets of the wished size, each row as often as another. */
static void test_chance(void **state) {
    (void)state;
    int32_t rows[20], times[20] = {0};
    for (uint64_t seed = 0; seed < 4000; seed++) {
        avl_spread_chance(seed, 3, 0, AVL_SPREAD_STORE, 20, 5, rows);
        for (int i = 0; i < 5; i++) {
            assert_true(rows[i] < 20 && (i == 0 || rows[i] > rows[i - 1]));
            times[rows[i]]++;
        }
    }
    for (int i = 0; i < 20; i++)
        assert_in_range(times[i], 1000 - 120, 1000 + 120); /* four standard deviations and more */
    avl_spread_chance(1, 0, 0, AVL_SPREAD_CORE, 20, 20, rows);
    assert_int_equal(rows[19], 19);
    avl_spread_chance(1, 0, 0, AVL_SPREAD_CORE, 20, 0, rows);
}

static void test_ledger(void **state) {
    (void)state;
    avl_ledger_t ledger = {.budget_bytes = 1000};
    avl_ledger_add(&ledger, "weights", 300);
    avl_ledger_add(&ledger, "activations", 200);
    int64_t pages = -1;
    assert_int_equal(avl_ledger_pages(&ledger, 100, 2, 100, &pages), AVL_OK);
    assert_int_equal(pages, 5);
    assert_int_equal(avl_ledger_pages(&ledger, 100, 2, 3, &pages), AVL_OK);
    assert_int_equal(pages, 3);
    assert_int_equal(avl_ledger_pages(&ledger, 100, 6, 100, &pages), AVL_ERR_EXHAUSTED);
    avl_ledger_add(&ledger, "more", 10000);
    assert_int_equal(avl_ledger_pages(&ledger, 100, 1, 100, &pages), AVL_ERR_EXHAUSTED);
    assert_non_null(strstr(avl_status_detail(), "one sequence needs 1"));
    assert_int_equal(pages, 3);
}

static void test_ledgers_of_ranks(void **state) {
    (void)state;
    avl_group_t *group;
    assert_int_equal(avl_group_open_single(&group), AVL_OK);
    avl_ledger_t own = {.budget_bytes = 1000, .mapped_bytes = 7};
    avl_ledger_add(&own, "weights", 300);
    avl_ledger_add(&own, "pages", 500);
    avl_ledger_t *all;
    assert_int_equal(avl_ledger_gather(&own, group, &all), AVL_OK);
    assert_memory_equal(all, &own, sizeof own);
    free(all);
    avl_group_close(group);
}

/* Told at once, at changes, and every second of work; not when idle, not in a flood. */
static void test_stats_clock(void **state) {
    (void)state;
    avl_stats_clock_t clock = {0};
    int64_t now = 5 * AVL_NS_PER_S;
    assert_true(avl_stats_due(&clock, false, 0, now));
    assert_false(avl_stats_due(&clock, false, 0, now + 10 * AVL_NS_PER_S));
    now += 20 * AVL_NS_PER_S;
    assert_true(avl_stats_due(&clock, true, 0, now));
    assert_false(avl_stats_due(&clock, true, 0, now + AVL_NS_PER_S - 1));
    assert_false(avl_stats_due(&clock, false, 0, now + AVL_NS_PER_MS));
    assert_true(avl_stats_due(&clock, true, 0, now + AVL_NS_PER_S));
    assert_true(avl_stats_due(&clock, false, 0, now + 2 * AVL_NS_PER_S));
    /* Work that came and went unseen leaves its steps behind. */
    assert_false(avl_stats_due(&clock, false, 0, now + 9 * AVL_NS_PER_S));
    assert_true(avl_stats_due(&clock, false, 3, now + 9 * AVL_NS_PER_S));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ratios_are_exact), cmocka_unit_test(test_pages),
        cmocka_unit_test(test_sequence_lists),   cmocka_unit_test(test_spread),
        cmocka_unit_test(test_chance),           cmocka_unit_test(test_ledger),
        cmocka_unit_test(test_ledgers_of_ranks), cmocka_unit_test(test_stats_clock),
    };
    return cmocka_run_group_tests_name("worker parts", tests, NULL, NULL);
}
