/* kernels/cpu/parallel.c: the one place where threads are used. OpenMP owns them, because oneDNN
 * brings OpenMP anyway and two pools would fight over the cores. */
#include <stdatomic.h>

#include "kernels/cpu/device.h"

/* Waking a thread costs some microseconds: about this many multiply-adds. */
static const int64_t work_per_thread_min = 1 << 15;

#ifdef __SANITIZE_THREAD__
#define AVL_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define AVL_THREAD_SANITIZER 1
#endif
#endif

/* The OpenMP runtime is not instrumented, so ThreadSanitizer cannot see that a region begins after
 * what came before it and ends before what follows. The marks say so; work inside a region is
 * checked as usual. */
#ifdef AVL_THREAD_SANITIZER
void __tsan_acquire(void *address);
void __tsan_release(void *address);
static char region_begin, region_end;
#define MARK_RELEASE(address) __tsan_release(address)
#define MARK_ACQUIRE(address) __tsan_acquire(address)
#define UNCHECKED __attribute__((no_sanitize_thread))
#else
#define MARK_RELEASE(address) (void)0
#define MARK_ACQUIRE(address) (void)0
#define UNCHECKED
#endif

typedef struct run {
    avl_cpu_task_t *task;
    void *context;
    int64_t items;
    _Atomic int64_t next;
} run_t;

/* Items are claimed one at a time: other processes share the cores, and a thread that loses its
 * core should not hold a fixed share of the work. */
static void __attribute__((noinline)) run_items(run_t *run, int thread) {
    for (;;) {
        int64_t item = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        if (item >= run->items)
            return;
        run->task(run->context, item, thread);
    }
}

UNCHECKED static void run_threads(run_t *run, int threads) {
    MARK_RELEASE(&region_begin);
    int claimed = 0;
#pragma omp parallel num_threads(threads) shared(run, claimed)
    {
        int thread = 0;
#pragma omp atomic capture
        thread = claimed++;
        MARK_ACQUIRE(&region_begin);
        run_items(run, thread);
        MARK_RELEASE(&region_end);
    }
    MARK_ACQUIRE(&region_end);
}

void avl_cpu_parallel(const avl_cpu_device_t *cpu, int64_t items, int64_t work,
                      avl_cpu_task_t *task, void *context) {
    int64_t threads = avl_min64(cpu->device.info.threads, items);
    threads = avl_min64(threads, work / work_per_thread_min);
    run_t run = {.task = task, .context = context, .items = items};
    atomic_init(&run.next, 0);
    if (threads <= 1)
        run_items(&run, 0);
    else
        run_threads(&run, (int)threads);
}
