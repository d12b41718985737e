/* base/clock.h: the monotonic clock every deadline and timing uses. */
#ifndef AVL_BASE_CLOCK_H
#define AVL_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define AVL_NS_PER_MS INT64_C(1000000)
#define AVL_NS_PER_S INT64_C(1000000000)
/* A deadline that never comes. */
#define AVL_DEADLINE_NONE INT64_MAX

/* Nanoseconds since an arbitrary start; never goes back; the same origin for every process of a
 * host. */
int64_t avl_clock_now_ns(void);
/* So much later on that clock, for timed waits. */
struct timespec avl_clock_after(int64_t duration_ns);
/* Sleeps for at least `duration_ns`, signals notwithstanding. */
void avl_clock_sleep_ns(int64_t duration_ns);

#endif
