/* The order of the queue: priorities, tenants, due times; its bounds; what goes ahead. */
#include "coordinator/queue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/estimate.h"

static const avl_tenant_weight_t weights[] = {{"heavy", 3}, {"half", 0.5}};

static int setup(void **state) {
    avl_queue_t *queue = NULL;
    if (avl_queue_create(400, weights, 2, &queue) != AVL_OK)
        return -1;
    *state = queue;
    return 0;
}

static int teardown(void **state) {
    avl_queue_destroy(*state);
    return 0;
}

static avl_queue_entry_t entry(avl_queue_t *queue, const char *tenant, int32_t priority,
                               int64_t due_ns, uint64_t arrival) {
    avl_queue_entry_t one = {
        .priority = priority, .due_ns = due_ns, .arrival = arrival, .cost = 10};
    assert_int_equal(avl_queue_enter(queue, tenant, &one.tenant), AVL_OK);
    return one;
}

static avl_queue_entry_t *take(avl_queue_t *queue) {
    avl_queue_entry_t *first = avl_queue_first(queue);
    if (first != NULL) {
        avl_queue_take(queue, first);
        assert_false(first->queued);
        avl_queue_leave(queue, first->tenant);
    }
    return first;
}

static void test_order_of_one_tenant(void **state) {
    avl_queue_t *queue = *state;
    avl_queue_entry_t entries[] = {
        entry(queue, "", 0, 90, 1), entry(queue, "", 0, 50, 2),  entry(queue, "", 5, 99, 3),
        entry(queue, "", 0, 50, 4), entry(queue, "", -1, 10, 5), entry(queue, "", -9, 99, 6),
    };
    entries[5].resumed = true;
    const size_t order[] = {5, 2, 1, 3, 0, 4};
    assert_null(avl_queue_first(queue));
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(avl_queue_add(queue, &entries[i]), AVL_OK);
    assert_int_equal(avl_queue_count(queue), 6);
    for (size_t i = 0; i < 6; i++)
        assert_ptr_equal(take(queue), &entries[order[i]]);
    assert_null(avl_queue_first(queue));
}

/* Against a plain search through all that are in, with a generator of its own. */
static void test_random_order(void **state) {
    avl_queue_t *queue = *state;
    enum { COUNT = 300 };
    static avl_queue_entry_t entries[COUNT];
    uint32_t random = 12345;
    for (uint64_t i = 0; i < COUNT; i++) {
        random = random * 1664525u + 1013904223u;
        entries[i] = entry(queue, "", (int32_t)(random >> 16) % 4, (random >> 20) % 16, i);
        assert_int_equal(avl_queue_add(queue, &entries[i]), AVL_OK);
        random = random * 1664525u + 1013904223u;
        avl_queue_entry_t *gone = &entries[(random >> 16) % (i + 1)];
        if (random >> 31 != 0 && gone->queued) {
            avl_queue_remove(queue, gone);
            avl_queue_leave(queue, gone->tenant);
            avl_queue_remove(queue, gone); /* once more does nothing */
        }
    }
    while (avl_queue_count(queue) > 0) {
        const avl_queue_entry_t *best = NULL;
        for (size_t i = 0; i < COUNT; i++) {
            const avl_queue_entry_t *one = &entries[i];
            if (one->queued && (best == NULL || one->priority > best->priority ||
                                (one->priority == best->priority && one->due_ns < best->due_ns)))
                best = one;
        }
        assert_ptr_equal(take(queue), best);
    }
}

/* Whoever has more in the queue does not get more out of it; weights do that. */
static void test_fairness(void **state) {
    avl_queue_t *queue = *state;
    enum { MANY = 120 };
    static avl_queue_entry_t flood[MANY], heavy[MANY], light[20];
    for (uint64_t i = 0; i < MANY; i++) {
        flood[i] = entry(queue, "flood", 0, 0, i);
        heavy[i] = entry(queue, "heavy", 0, 100, 1000 + i);
        assert_int_equal(avl_queue_add(queue, &flood[i]), AVL_OK);
        assert_int_equal(avl_queue_add(queue, &heavy[i]), AVL_OK);
    }
    for (int i = 0; i < 20; i++)
        take(queue); /* the two have had something when the third comes */
    for (uint64_t i = 0; i < 20; i++) {
        light[i] = entry(queue, "light", 0, 1000, 9000 + i);
        assert_int_equal(avl_queue_add(queue, &light[i]), AVL_OK);
    }
    int counts[3] = {0, 0, 0};
    for (int i = 0; i < 50; i++) {
        const char *name = avl_tenant_name(take(queue)->tenant);
        counts[name[0] == 'f' ? 0 : name[0] == 'h' ? 1 : 2]++;
    }
    assert_in_range(counts[0], 9, 11);
    assert_in_range(counts[1], 28, 32);
    assert_in_range(counts[2], 9, 11);
    while (take(queue) != NULL)
        ;
}

/* Long requests count for more than short ones, and what was charged too much is given back. */
static void test_costs(void **state) {
    avl_queue_t *queue = *state;
    enum { MANY = 60 };
    static avl_queue_entry_t longs[MANY], shorts[MANY];
    for (uint64_t i = 0; i < MANY; i++) {
        longs[i] = entry(queue, "long", 0, 0, i);
        longs[i].cost = 100;
        shorts[i] = entry(queue, "short", 0, 0, 1000 + i);
        assert_int_equal(avl_queue_add(queue, &longs[i]), AVL_OK);
        assert_int_equal(avl_queue_add(queue, &shorts[i]), AVL_OK);
    }
    int long_count = 0;
    for (int i = 0; i < 33; i++)
        long_count += take(queue)->cost == 100;
    assert_in_range(long_count, 3, 4);
    avl_queue_charge(queue, longs[59].tenant, -90 * long_count); /* they were short after all */
    int more = 0;
    for (int i = 0; i < 3; i++)
        more += take(queue)->cost == 100;
    assert_int_equal(more, 3);
    while (take(queue) != NULL)
        ;
}

/* One who pauses has no credit for it, and one who leaves and returns is not forgiven. */
static void test_idle_tenants(void **state) {
    avl_queue_t *queue = *state;
    avl_queue_entry_t a[40], b[40];
    for (uint64_t i = 0; i < 20; i++) {
        a[i] = entry(queue, "a", 0, 0, i);
        assert_int_equal(avl_queue_add(queue, &a[i]), AVL_OK);
        assert_ptr_equal(take(queue), &a[i]);
    }
    for (uint64_t i = 0; i < 40; i++) {
        a[i] = entry(queue, "a", 0, 0, 100 + i);
        b[i] = entry(queue, "b", 0, 0, 200 + i);
        assert_int_equal(avl_queue_add(queue, &a[i]), AVL_OK);
        assert_int_equal(avl_queue_add(queue, &b[i]), AVL_OK);
    }
    int from_b = 0;
    for (int i = 0; i < 20; i++)
        from_b += avl_tenant_name(take(queue)->tenant)[0] == 'b';
    assert_in_range(from_b, 10, 11);
    while (take(queue) != NULL)
        ;
}

static void test_places(void **state) {
    (void)state;
    avl_queue_t *queue = NULL;
    avl_tenant_t *tenants[100], *other = NULL;
    assert_int_equal(avl_queue_create(100, NULL, 0, &queue), AVL_OK);
    /* Alone, it may have all. */
    for (int i = 0; i < 100; i++)
        assert_int_equal(avl_queue_enter(queue, "one", &tenants[i]), AVL_OK);
    assert_int_equal(avl_queue_enter(queue, "two", &other), AVL_ERR_EXHAUSTED);
    assert_non_null(strstr(avl_status_detail(), "100 requests"));
    avl_queue_leave(queue, tenants[99]);
    assert_int_equal(avl_queue_enter(queue, "two", &other), AVL_OK);
    /* Beside another one, never all: eight ninths of what the other leaves. */
    for (int i = 0; i < 99; i++)
        avl_queue_leave(queue, tenants[i]);
    int count = 0;
    while (avl_queue_enter(queue, "one", &tenants[count]) == AVL_OK)
        count++;
    assert_int_equal(count, 88);
    assert_non_null(strstr(avl_status_detail(), "of this tenant"));
    avl_tenant_t *second = NULL;
    assert_int_equal(avl_queue_enter(queue, "two", &second), AVL_OK);
    assert_ptr_equal(second, other);
    avl_queue_leave(queue, other);
    avl_queue_leave(queue, second);
    while (count > 0)
        avl_queue_leave(queue, tenants[--count]);
    avl_queue_destroy(queue);
}

/* The order that is foretold is the one that comes. */
static void test_foretold_order(void **state) {
    avl_queue_t *queue = *state;
    enum { COUNT = 120 };
    static avl_queue_entry_t entries[COUNT];
    avl_queue_entry_t *foretold[COUNT];
    static const char *const tenants[] = {"a", "heavy", "half", "b"};
    uint32_t random = 99;
    for (uint64_t i = 0; i < COUNT; i++) {
        random = random * 1664525u + 1013904223u;
        entries[i] = entry(queue, tenants[(random >> 10) % 4], (int32_t)(random >> 16) % 3,
                           (random >> 20) % 16, i);
        entries[i].cost = 1 + (random >> 24) % 50;
        entries[i].resumed = i % 17 == 0;
        if (i > 0)
            assert_int_equal(avl_queue_add(queue, &entries[i]), AVL_OK);
        if (i == COUNT / 2) /* the virtual time is not zero */
            for (int j = 0; j < 9; j++)
                take(queue);
    }
    avl_queue_entry_t *const *list;
    size_t count;
    assert_int_equal(avl_queue_order(queue, &entries[0], &list, &count), AVL_OK);
    assert_int_equal(count, avl_queue_count(queue) + 1);
    memcpy(foretold, list, count * sizeof *list);
    assert_int_equal(avl_queue_add(queue, &entries[0]), AVL_OK);
    for (size_t i = 0; i < count; i++)
        assert_ptr_equal(take(queue), foretold[i]);
    assert_int_equal(avl_queue_order(queue, NULL, &list, &count), AVL_OK);
    assert_int_equal(count, 0);
}

static void test_estimate(void **state) {
    (void)state;
    avl_estimate_t estimate;
    memset(&estimate, 0, sizeof estimate);
    const avl_demand_t demand = {2, 100, 64, true, 1}, text = {0, 100, 64, false, 1};
    assert_false(avl_estimate_is_known(&estimate));
    assert_int_equal(avl_estimate_tokens(&estimate, &text), 64);
    assert_int_equal(avl_estimate_rows_most(&estimate, &text), 100);
    for (int i = 0; i < AVL_ESTIMATE_ANSWERS; i++)
        avl_estimate_answer(&estimate, &demand, 0, 64);
    assert_true(avl_estimate_is_known(&estimate));
    assert_int_equal(avl_estimate_demand(&estimate).tiles, 2);
    const avl_demand_t unknown = avl_estimate_demand(&estimate);
    assert_int_equal(avl_estimate_tokens_most(&estimate, &unknown), 64);
    /* Answers turn out shorter than they might be, all alike. */
    for (int i = 0; i < 8; i++)
        avl_estimate_answer(&estimate, &text, 0, 16);
    assert_int_equal(avl_estimate_tokens(&estimate, &text), 16);
    assert_int_equal(avl_estimate_tokens_most(&estimate, &text), 16);
    assert_int_equal(avl_estimate_tokens(&estimate, &demand), 64);
    /* Then some are longer: what is promised is more than the mean. */
    for (int i = 0; i < 64; i++)
        avl_estimate_answer(&estimate, &text, 50, i % 2 == 0 ? 16 : 32);
    assert_in_range(avl_estimate_tokens(&estimate, &text), 20, 28);
    assert_in_range(avl_estimate_tokens_most(&estimate, &text), 36, 56);
    assert_in_range(avl_estimate_rows_most(&estimate, &text), 50, 90);
    avl_estimate_answer(&estimate, &text, 101, 16); /* more than there were: not counted */
    assert_in_range(avl_estimate_rows_most(&estimate, &text), 50, 90);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_order_of_one_tenant, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fairness, setup, teardown),
        cmocka_unit_test_setup_teardown(test_costs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idle_tenants, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foretold_order, setup, teardown),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_estimate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
