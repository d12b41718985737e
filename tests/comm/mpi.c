/* One rank of an MPI job, started by the launcher. Prints `rank R of P: MODE passed`. Modes:
 *
 *   operations  all operations of the contract; a second group after the end of the first is
 * refused stopped     the last rank stops itself (SIGSTOP); the others must get AVL_ERR_TIMEOUT
 * within their bound absent      the last rank comes to an agreement after the others' bound has
 * passed */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/comm/operations.h"

#define BOUND_NS (300 * AVL_NS_PER_MS)
/* A wait that took this long was not bounded by 0.3 s; far beyond any scheduling delay. */
#define LATE_NS (20 * AVL_NS_PER_S)

static avl_status_t run_operations(avl_group_t *group) {
    if (avl_group_local_ranks(group) != avl_group_ranks(group) ||
        avl_group_local_rank(group) != avl_group_rank(group))
        return avl_fail(AVL_ERR_INTERNAL, "local rank %d of %d", avl_group_local_rank(group),
                        avl_group_local_ranks(group));
    AVL_TRY(avl_operations_check(group, (INT64_C(1) << 20) + 5));
    return avl_operations_check(group, 100);
}

/* The last rank stops; the others' all-reduce must end within the bound. (It stays stopped: the
 * launcher ends it.) */
static avl_status_t run_stopped(avl_group_t *group) {
    static float data[50000];
    AVL_TRY(avl_group_all_reduce(group, data, 50000));
    if (avl_group_rank(group) == avl_group_ranks(group) - 1) {
        raise(SIGSTOP);
        _exit(0); /* the launcher lets it go on to end it */
    }
    avl_group_set_timeout(group, BOUND_NS);
    int64_t begin_ns = avl_clock_now_ns();
    avl_status_t status = avl_group_all_reduce(group, data, 50000);
    int64_t waited_ns = avl_clock_now_ns() - begin_ns;
    if (status != AVL_ERR_TIMEOUT || waited_ns > LATE_NS)
        return avl_fail(AVL_ERR_INTERNAL, "got %s after %" PRId64 " ms", avl_status_name(status),
                        waited_ns / AVL_NS_PER_MS);
    /* The group refuses what comes after. */
    status = avl_group_agree(group, AVL_OK);
    return status == AVL_ERR_COMM ? AVL_OK : avl_fail(AVL_ERR_INTERNAL, "the group went on");
}

static avl_status_t run_absent(avl_group_t *group) {
    if (avl_group_rank(group) == avl_group_ranks(group) - 1) {
        avl_clock_sleep_ns(3 * BOUND_NS);
        return AVL_OK;
    }
    avl_group_set_timeout(group, BOUND_NS);
    avl_status_t status = avl_group_agree(group, AVL_OK);
    return status == AVL_ERR_TIMEOUT
               ? AVL_OK
               : avl_fail(AVL_ERR_INTERNAL, "got %s", avl_status_name(status));
}

static int report(int rank, int ranks, const char *mode, avl_status_t status) {
    if (status == AVL_OK)
        printf("rank %d of %d: %s passed\n", rank, ranks, mode);
    else
        printf("rank %d of %d: %s FAILED: %s\n", rank, ranks, mode, avl_status_detail());
    fflush(stdout);
    return status == AVL_OK ? 0 : 1;
}

int main(int count, char **arguments) {
    const char *mode = count > 1 ? arguments[1] : "operations";
    avl_group_t *group;
    avl_status_t status = avl_group_open_mpi(&group);
    if (status != AVL_OK)
        return report(-1, -1, mode, status);
    int rank = avl_group_rank(group), ranks = avl_group_ranks(group);
    int stopped = strcmp(mode, "stopped") == 0;
    if (stopped || strcmp(mode, "absent") == 0) {
        int code = report(rank, ranks, mode, stopped ? run_stopped(group) : run_absent(group));
        avl_group_close(group);
        /* The launcher ends everyone with the first that leaves: not before all have reported. */
        avl_clock_sleep_ns(6 * BOUND_NS);
        _exit(code);
    }
    status = run_operations(group);
    avl_group_close(group);
    if (status == AVL_OK && avl_group_open_mpi(&group) != AVL_ERR_COMM)
        status = avl_fail(AVL_ERR_INTERNAL, "a second group began after the first had ended");
    return report(rank, ranks, mode, status);
}
