/* base/thread_pool.h: a fixed number of threads and a bounded queue of work for them.
 *
 * The queue is allocated at the start, and a full one refuses: whoever submits decides what to do
 * about it. Threads: every function may be called from any thread; a job may submit further jobs,
 * but neither wait for the pool nor destroy it. */
#ifndef AVL_BASE_THREAD_POOL_H
#define AVL_BASE_THREAD_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define AVL_THREAD_POOL_THREADS_MAX 1024

typedef struct avl_thread_pool avl_thread_pool_t;

typedef enum avl_job_end {
    AVL_JOB_RUN,    /* do the work */
    AVL_JOB_CANCEL, /* the pool is being destroyed: release what `argument` owns, and no more */
} avl_job_end_t;

/* Called exactly once for every accepted job, so that it can own its argument. */
typedef void (*avl_job_fn)(void *argument, avl_job_end_t end);

typedef struct avl_thread_pool_counts {
    size_t queued; /* accepted, not begun */
    size_t running;
    uint64_t completed; /* since the start; cancelled ones not counted */
    uint64_t cancelled;
    uint64_t refused; /* submissions to a full queue */
} avl_thread_pool_counts_t;

/* `name` (at most 10 characters are used) names the threads for debuggers.
 * Errors: AVL_ERR_INVALID (no thread, too many, no room), AVL_ERR_MEMORY, AVL_ERR_EXHAUSTED (the
 * system refused a thread). */
AVL_MUST_CHECK avl_status_t avl_thread_pool_create(const char *name, int thread_count,
                                                   size_t queue_capacity,
                                                   avl_thread_pool_t **pool_p);

/* Jobs begin in the order in which they were accepted.
 * Errors: AVL_ERR_EXHAUSTED (the queue is full), AVL_ERR_UNAVAILABLE (draining or being destroyed).
 * Either way `function` is not called. */
AVL_MUST_CHECK avl_status_t avl_thread_pool_submit(avl_thread_pool_t *pool, avl_job_fn function,
                                                   void *argument);

/* Accepts nothing more and waits until all that was accepted has run, or until `deadline_ns` of the
 * monotonic clock. Errors: AVL_ERR_DEADLINE; the pool still refuses work then, and goes on with
 * what it has. */
AVL_MUST_CHECK avl_status_t avl_thread_pool_drain(avl_thread_pool_t *pool, int64_t deadline_ns);

/* Lets running jobs end, cancels queued ones (in order, on the calling thread) and frees the pool.
 * To run them instead, drain first. NULL is allowed. */
void avl_thread_pool_destroy(avl_thread_pool_t *pool);

avl_thread_pool_counts_t avl_thread_pool_counts(avl_thread_pool_t *pool);

#endif
