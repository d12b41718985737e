#include "worker/stats.h"

#include "base/clock.h"

#define INTERVAL_NS AVL_NS_PER_S
#define CHANGE_NS (100 * AVL_NS_PER_MS) /* so that many short requests do not flood the link */

void avl_stats_read(const avl_engine_t *engine, const avl_scheduler_t *scheduler,
                    avl_stats_t *stats_p) {
    *stats_p = (avl_stats_t){
        .pages = avl_engine_pages(engine),
        .page_bytes = avl_engine_page_bytes(engine),
        .scheduler = avl_scheduler_counts(scheduler),
        .ledgers = avl_engine_ledgers(engine),
        .rank_count = avl_group_ranks(avl_engine_options(engine)->group),
    };
}

bool avl_stats_due(avl_stats_clock_t *clock, bool busy, int64_t steps, int64_t now_ns) {
    int64_t silent_ns = now_ns - clock->told_ns;
    /* Work that began and ended since the last time leaves its steps behind. */
    bool news = busy != clock->told_busy || (!busy && steps != clock->told_steps);
    bool changed = news && silent_ns >= CHANGE_NS;
    if (clock->told_ns != 0 && !changed && !(busy && silent_ns >= INTERVAL_NS))
        return false;
    clock->told_ns = now_ns;
    clock->told_busy = busy;
    clock->told_steps = steps;
    return true;
}
