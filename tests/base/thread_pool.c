/* The pool under contention, full, draining, and destroyed with work in its queue. */
#include "base/thread_pool.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

/* A gate that jobs wait at, and a record of what became of them. */
typedef struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool open;
    int waiting;
    atomic_int run, cancelled;
} gate_t;

static void gate_init(gate_t *gate) {
    memset(gate, 0, sizeof *gate);
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

static void gate_end(gate_t *gate) {
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mutex);
}

static void gate_open(gate_t *gate) {
    pthread_mutex_lock(&gate->mutex);
    gate->open = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

static void gate_await(gate_t *gate, int waiting) {
    pthread_mutex_lock(&gate->mutex);
    while (gate->waiting < waiting)
        pthread_cond_wait(&gate->changed, &gate->mutex);
    pthread_mutex_unlock(&gate->mutex);
}

static void wait_at_gate(void *argument, avl_job_end_t end) {
    gate_t *gate = argument;
    if (end == AVL_JOB_CANCEL) {
        atomic_fetch_add(&gate->cancelled, 1);
        return;
    }
    pthread_mutex_lock(&gate->mutex);
    gate->waiting++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        pthread_cond_wait(&gate->changed, &gate->mutex);
    pthread_mutex_unlock(&gate->mutex);
    atomic_fetch_add(&gate->run, 1);
}

static void count(void *argument, avl_job_end_t end) {
    gate_t *gate = argument;
    atomic_fetch_add(end == AVL_JOB_RUN ? &gate->run : &gate->cancelled, 1);
}

static avl_thread_pool_t *make_pool(int threads, size_t capacity) {
    avl_thread_pool_t *pool = NULL;
    assert_int_equal(avl_thread_pool_create("test", threads, capacity, &pool), AVL_OK);
    return pool;
}

static void test_refusals(void **state) {
    (void)state;
    avl_thread_pool_t *pool = NULL;
    assert_int_equal(avl_thread_pool_create("x", 0, 1, &pool), AVL_ERR_INVALID);
    assert_int_equal(avl_thread_pool_create("x", 1025, 1, &pool), AVL_ERR_INVALID);
    assert_int_equal(avl_thread_pool_create("x", 1, 0, &pool), AVL_ERR_INVALID);
    assert_int_equal(avl_thread_pool_create("x", 1, SIZE_MAX / 2, &pool), AVL_ERR_MEMORY);
    assert_null(pool);
    avl_thread_pool_destroy(NULL);
}

static void test_full(void **state) {
    (void)state;
    gate_t gate;
    gate_init(&gate);
    avl_thread_pool_t *pool = make_pool(2, 3);
    for (int i = 0; i < 2; i++)
        assert_int_equal(avl_thread_pool_submit(pool, wait_at_gate, &gate), AVL_OK);
    gate_await(&gate, 2);
    for (int i = 0; i < 3; i++)
        assert_int_equal(avl_thread_pool_submit(pool, wait_at_gate, &gate), AVL_OK);
    assert_int_equal(avl_thread_pool_submit(pool, wait_at_gate, &gate), AVL_ERR_EXHAUSTED);
    avl_thread_pool_counts_t counts = avl_thread_pool_counts(pool);
    assert_int_equal(counts.queued, 3);
    assert_int_equal(counts.running, 2);
    assert_int_equal(counts.refused, 1);
    assert_int_equal(avl_thread_pool_drain(pool, avl_clock_now_ns() + 1000000), AVL_ERR_DEADLINE);
    assert_int_equal(avl_thread_pool_drain(pool, -1), AVL_ERR_DEADLINE); /* long past */
    assert_int_equal(avl_thread_pool_submit(pool, wait_at_gate, &gate), AVL_ERR_UNAVAILABLE);
    gate_open(&gate);
    assert_int_equal(avl_thread_pool_drain(pool, AVL_DEADLINE_NONE), AVL_OK);
    counts = avl_thread_pool_counts(pool);
    assert_int_equal(counts.completed, 5);
    assert_int_equal(counts.queued + counts.running, 0);
    assert_int_equal(atomic_load(&gate.run), 5);
    avl_thread_pool_destroy(pool);
    gate_end(&gate);
}

typedef struct opener {
    gate_t *gate;
    avl_thread_pool_t *pool;
} opener_t;

/* Opens the gate once the pool under destruction refuses work, so that its queue is certain to be
 * cancelled. */
static void *open_when_closed(void *argument) {
    opener_t *opener = argument;
    gate_t unused;
    gate_init(&unused);
    while (avl_thread_pool_submit(opener->pool, count, &unused) == AVL_ERR_EXHAUSTED)
        avl_clock_sleep_ns(100000);
    gate_open(opener->gate);
    gate_end(&unused);
    return NULL;
}

static void test_destroy_cancels(void **state) {
    (void)state;
    gate_t gate;
    gate_init(&gate);
    opener_t opener = {.gate = &gate, .pool = make_pool(1, 4)};
    assert_int_equal(avl_thread_pool_submit(opener.pool, wait_at_gate, &gate), AVL_OK);
    gate_await(&gate, 1);
    for (int i = 0; i < 4; i++)
        assert_int_equal(avl_thread_pool_submit(opener.pool, count, &gate), AVL_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, open_when_closed, &opener), 0);
    avl_thread_pool_destroy(opener.pool);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&gate.run), 1);
    assert_int_equal(atomic_load(&gate.cancelled), 4);
    gate_end(&gate);
}

typedef struct order {
    int next;
    bool wrong;
    int numbers[64];
} order_t;

static order_t order;

static void record(void *argument, avl_job_end_t end) {
    (void)end;
    if (*(int *)argument != order.next++)
        order.wrong = true;
}

static void test_order(void **state) {
    (void)state;
    memset(&order, 0, sizeof order);
    avl_thread_pool_t *pool = make_pool(1, 64);
    for (int i = 0; i < 64; i++) {
        order.numbers[i] = i;
        assert_int_equal(avl_thread_pool_submit(pool, record, &order.numbers[i]), AVL_OK);
    }
    assert_int_equal(avl_thread_pool_drain(pool, AVL_DEADLINE_NONE), AVL_OK);
    avl_thread_pool_destroy(pool);
    assert_int_equal(order.next, 64);
    assert_false(order.wrong);
}

static void *submit_many(void *argument) {
    opener_t *opener = argument;
    for (int i = 0; i < 2000;) {
        if (avl_thread_pool_submit(opener->pool, count, opener->gate) == AVL_OK)
            i++;
        else
            avl_clock_sleep_ns(10000);
    }
    return NULL;
}

static void test_contention(void **state) {
    (void)state;
    gate_t gate;
    gate_init(&gate);
    opener_t opener = {.gate = &gate, .pool = make_pool(4, 7)};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, submit_many, &opener), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(avl_thread_pool_drain(opener.pool, AVL_DEADLINE_NONE), AVL_OK);
    assert_int_equal(avl_thread_pool_counts(opener.pool).completed, 8000);
    avl_thread_pool_destroy(opener.pool);
    assert_int_equal(atomic_load(&gate.run), 8000);
    gate_end(&gate);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_full),
        cmocka_unit_test(test_destroy_cancels), cmocka_unit_test(test_order),
        cmocka_unit_test(test_contention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
