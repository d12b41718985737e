#include "base/clock.h"

#include <errno.h>
#include <time.h>

int64_t avl_clock_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * AVL_NS_PER_S + now.tv_nsec;
}

void avl_clock_sleep_ns(int64_t duration_ns) {
    struct timespec left = {.tv_sec = duration_ns / AVL_NS_PER_S,
                            .tv_nsec = duration_ns % AVL_NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
    }
}

struct timespec avl_clock_after(int64_t duration_ns) {
    struct timespec when;
    clock_gettime(CLOCK_MONOTONIC, &when);
    int64_t ns = when.tv_nsec + duration_ns % AVL_NS_PER_S;
    when.tv_sec += duration_ns / AVL_NS_PER_S + ns / AVL_NS_PER_S;
    when.tv_nsec = ns % AVL_NS_PER_S;
    return when;
}
