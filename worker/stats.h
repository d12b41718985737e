/* worker/stats.h: how a worker group stands, as its leader tells the coordinator: what is taken and
 * waiting now, counters since the start, and every rank's ledger.
 *
 * Sent when the group is ready, when work begins or ends, and about once a second between. */
#ifndef AVL_WORKER_STATS_H
#define AVL_WORKER_STATS_H

#include "worker/scheduler.h"

typedef struct avl_stats {
    avl_pages_counts_t pages;
    int64_t page_bytes; /* one page, over all ranks */
    avl_scheduler_counts_t scheduler;
    const avl_ledger_t *ledgers;    /* [rank_count] */
    const avl_group_times_t *times; /* [rank_count]; NULL: not known */
    int rank_count;
} avl_stats_t;

/* `stats_p` points into the engine; times are the caller's to add. */
void avl_stats_read(const avl_engine_t *engine, const avl_scheduler_t *scheduler,
                    avl_stats_t *stats_p);

/* When to tell: a value of all zeros has told nothing. */
typedef struct avl_stats_clock {
    int64_t told_ns;
    bool told_busy;
    int64_t told_steps;
} avl_stats_clock_t;

/* Whether it is time; takes note that it was told. */
bool avl_stats_due(avl_stats_clock_t *clock, bool busy, int64_t steps, int64_t now_ns);

#endif
