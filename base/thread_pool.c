/* A ring of jobs under one mutex. Jobs here are long (a picture's preprocessing takes
 * milliseconds), so that a queue without locks would gain nothing.
 *
 * Invariants, under `mutex`: queued <= capacity; the ring holds jobs first .. first + queued; a job
 * is in the ring or counted in running or done, never two of them; once `closed` is set it stays,
 * and nothing enters the ring. */
#include "base/thread_pool.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"

typedef struct job {
    avl_job_fn function;
    void *argument;
} job_t;

struct avl_thread_pool {
    pthread_mutex_t mutex;
    pthread_cond_t work; /* a job entered, or `stopping` was set */
    pthread_cond_t idle; /* nothing is queued and nothing runs */
    bool closed;         /* refuses new jobs */
    bool stopping;       /* threads leave after their job */
    job_t *ring;
    size_t capacity, first;
    avl_thread_pool_counts_t counts;
    pthread_t *threads;
    int thread_count;
};

static job_t take(avl_thread_pool_t *pool) {
    job_t job = pool->ring[pool->first];
    pool->first = (pool->first + 1) % pool->capacity;
    pool->counts.queued--;
    return job;
}

static void *serve(void *argument) {
    avl_thread_pool_t *pool = argument;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (!pool->stopping && pool->counts.queued == 0)
            pthread_cond_wait(&pool->work, &pool->mutex);
        if (pool->stopping)
            break;
        job_t job = take(pool);
        pool->counts.running++;
        pthread_mutex_unlock(&pool->mutex);
        job.function(job.argument, AVL_JOB_RUN);
        pthread_mutex_lock(&pool->mutex);
        pool->counts.running--;
        pool->counts.completed++;
        if (pool->counts.running == 0 && pool->counts.queued == 0)
            pthread_cond_broadcast(&pool->idle);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

static void stop_threads(avl_thread_pool_t *pool) {
    pthread_mutex_lock(&pool->mutex);
    pool->closed = true;
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
}

static void release(avl_thread_pool_t *pool) {
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->threads);
    free(pool->ring);
    free(pool);
}

static avl_status_t start_threads(avl_thread_pool_t *pool, const char *name, int thread_count) {
    for (int i = 0; i < thread_count; i++) {
        int error = pthread_create(&pool->threads[i], NULL, serve, pool);
        if (error)
            return avl_fail(AVL_ERR_EXHAUSTED, "thread %d of %d of pool %s: %s", i + 1,
                            thread_count, name, strerror(error));
        pool->thread_count = i + 1;
        char thread_name[32];
        snprintf(thread_name, sizeof thread_name, "%.10s-%d", name, i);
        thread_name[15] = '\0'; /* the kernel's limit */
        pthread_setname_np(pool->threads[i], thread_name);
    }
    return AVL_OK;
}

avl_status_t avl_thread_pool_create(const char *name, int thread_count, size_t queue_capacity,
                                    avl_thread_pool_t **pool_p) {
    if (thread_count < 1 || thread_count > AVL_THREAD_POOL_THREADS_MAX)
        return avl_fail(AVL_ERR_INVALID, "pool %s of %d threads: 1 to %d are possible", name,
                        thread_count, AVL_THREAD_POOL_THREADS_MAX);
    if (queue_capacity < 1)
        return avl_fail(AVL_ERR_INVALID, "pool %s has no room for a job", name);
    avl_thread_pool_t *pool = NULL;
    AVL_TRY(avl_alloc(1, sizeof *pool, "a thread pool", &pool));
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->work, &attributes);
    pthread_cond_init(&pool->idle, &attributes);
    pthread_condattr_destroy(&attributes);
    pool->capacity = queue_capacity;
    avl_status_t status;
    AVL_TRY_GOTO(status, avl_alloc(queue_capacity, sizeof(job_t), "a pool's queue", &pool->ring),
                 err_pool);
    AVL_TRY_GOTO(
        status,
        avl_alloc((size_t)thread_count, sizeof(pthread_t), "a pool's threads", &pool->threads),
        err_pool);
    AVL_TRY_GOTO(status, start_threads(pool, name, thread_count), err_threads);
    *pool_p = pool;
    return AVL_OK;
err_threads:
    stop_threads(pool);
err_pool:
    release(pool);
    return status;
}

avl_status_t avl_thread_pool_submit(avl_thread_pool_t *pool, avl_job_fn function, void *argument) {
    pthread_mutex_lock(&pool->mutex);
    if (pool->closed) {
        pthread_mutex_unlock(&pool->mutex);
        return avl_fail(AVL_ERR_UNAVAILABLE, "the thread pool accepts no more jobs");
    }
    if (pool->counts.queued == pool->capacity) {
        pool->counts.refused++;
        pthread_mutex_unlock(&pool->mutex);
        return avl_fail(AVL_ERR_EXHAUSTED, "%zu jobs are queued already", pool->capacity);
    }
    pool->ring[(pool->first + pool->counts.queued) % pool->capacity] =
        (job_t){.function = function, .argument = argument};
    pool->counts.queued++;
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    return AVL_OK;
}

avl_status_t avl_thread_pool_drain(avl_thread_pool_t *pool, int64_t deadline_ns) {
    struct timespec deadline = {.tv_sec = deadline_ns / AVL_NS_PER_S,
                                .tv_nsec = deadline_ns % AVL_NS_PER_S};
    pthread_mutex_lock(&pool->mutex);
    pool->closed = true;
    int error = 0;
    /* Any error ends the wait: a deadline before the clock's origin is EINVAL, again and again. */
    while (error == 0 && (pool->counts.queued > 0 || pool->counts.running > 0)) {
        if (deadline_ns == AVL_DEADLINE_NONE)
            pthread_cond_wait(&pool->idle, &pool->mutex);
        else
            error = pthread_cond_timedwait(&pool->idle, &pool->mutex, &deadline);
    }
    size_t queued = pool->counts.queued, running = pool->counts.running;
    pthread_mutex_unlock(&pool->mutex);
    if (queued > 0 || running > 0)
        return avl_fail(AVL_ERR_DEADLINE, "%zu jobs still run and %zu wait", running, queued);
    return AVL_OK;
}

void avl_thread_pool_destroy(avl_thread_pool_t *pool) {
    if (!pool)
        return;
    stop_threads(pool);
    while (pool->counts.queued > 0) { /* the threads have gone: nobody else looks */
        job_t job = take(pool);
        job.function(job.argument, AVL_JOB_CANCEL);
        pool->counts.cancelled++;
    }
    release(pool);
}

avl_thread_pool_counts_t avl_thread_pool_counts(avl_thread_pool_t *pool) {
    pthread_mutex_lock(&pool->mutex);
    avl_thread_pool_counts_t counts = pool->counts;
    pthread_mutex_unlock(&pool->mutex);
    return counts;
}
