#include "coordinator/group_metrics.h"

#include <stdio.h>

typedef Avl__Worker__V1__Stats stats_t;
typedef Avl__Worker__V1__CacheStats cache_t;

const char *avl_group_state_name(avl_worker_group_state_t state) {
    switch (state) {
    case AVL_WORKER_GROUP_WAITING:
        return "waiting";
    case AVL_WORKER_GROUP_STARTING:
        return "starting";
    case AVL_WORKER_GROUP_LOADING:
        return "loading";
    case AVL_WORKER_GROUP_READY:
        return "ready";
    case AVL_WORKER_GROUP_ENDING:
        return "ending";
    case AVL_WORKER_GROUP_STOPPED:
        return "stopped";
    }
    return "unknown";
}

static void write_state(const avl_worker_group_view_t *view, avl_exposition_t *exposition) {
    avl_exposition_gauge(exposition, "avl_worker_group_ready", "1: requests may go to the group.",
                         view->state == AVL_WORKER_GROUP_READY);
    avl_exposition_gauge(exposition, "avl_worker_group_loading_ratio",
                         "How much of the model is loaded.", view->loading_share);
    avl_exposition_counter(exposition, "avl_worker_group_restarts_total",
                           "Starts of the group after the first.",
                           view->generation > 0 ? view->generation - 1 : 0);
    if (!view->ever_ready)
        return;
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_worker_group_ranks",
                          "Ranks that share the model.");
    const avl_label_t labels[] = {{"device", view->device}, {"dtype", view->dtype}};
    avl_exposition_integer(exposition, labels, 2, view->ranks);
    avl_exposition_gauge(exposition, "avl_worker_group_sequences_max",
                         "Requests decoded together at most.", view->sequences_max);
    avl_exposition_gauge(exposition, "avl_worker_group_load_seconds",
                         "From the group's start to ready.", (double)view->load_ns / 1e9);
}

static void write_pages(const stats_t *stats, avl_exposition_t *exposition) {
    double total = (double)stats->pages_total;
    avl_exposition_gauge(exposition, "avl_kv_cache_usage_ratio",
                         "Pages of the cache that hold rows, 0 to 1.",
                         total > 0 ? (double)stats->pages_taken / total : 0);
    const struct {
        const char *state;
        int64_t pages;
    } states[] = {{"total", stats->pages_total},
                  {"taken", stats->pages_taken},
                  {"reserved", stats->pages_reserved},
                  {"kept", stats->pages_kept}};
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_kv_cache_pages",
                          "Pages of the cache: all, holding rows, promised to requests in flight, "
                          "of prompts kept for reuse.");
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
        const avl_label_t label = {"state", states[i].state};
        avl_exposition_integer(exposition, &label, 1, states[i].pages);
    }
    avl_exposition_gauge(exposition, "avl_kv_cache_page_bytes", "One page, over all ranks.",
                         (double)stats->page_bytes);
    avl_exposition_counter(exposition, "avl_kv_pages_evicted_total",
                           "Pages given back by adaptive attention, of ended requests.",
                           (uint64_t)stats->pages_evicted);
    avl_exposition_gauge(exposition, "avl_group_requests_queued",
                         "Requests that wait for room in the group.", stats->queued);
    avl_exposition_gauge(exposition, "avl_group_requests_active",
                         "Requests that take part in steps.", stats->active);
    avl_exposition_counter(exposition, "avl_group_steps_total", "Steps of the group.",
                           (uint64_t)stats->steps);
    avl_exposition_counter(exposition, "avl_preemptions_total",
                           "Requests that gave way to others for want of pages, and began again.",
                           (uint64_t)stats->preemptions);
}

static void write_gauge(avl_exposition_t *exposition, const char *cache, const char *what,
                        const char *help, int64_t value) {
    char name[96];
    snprintf(name, sizeof name, "avl_%s_cache_%s", cache, what);
    avl_exposition_gauge(exposition, name, help, (double)value);
}

static void write_counter(avl_exposition_t *exposition, const char *cache, const char *what,
                          const char *help, int64_t value) {
    char name[96];
    snprintf(name, sizeof name, "avl_%s_cache_%s_total", cache, what);
    avl_exposition_counter(exposition, name, help, (uint64_t)value);
}

static void write_cache(const cache_t *cache, const char *name, avl_exposition_t *exposition) {
    if (cache == NULL)
        return;
    write_gauge(exposition, name, "capacity_bytes", "Room, on one rank.", cache->bytes_max);
    write_gauge(exposition, name, "bytes", "Taken, on one rank.", cache->bytes);
    write_gauge(exposition, name, "entries", "Things kept.", cache->entries);
    write_counter(exposition, name, "queries", "Times that something was looked for.",
                  cache->hits + cache->misses);
    write_counter(exposition, name, "hits", "Times that it was there.", cache->hits);
    write_counter(exposition, name, "evictions", "Things given up for others.", cache->evictions);
}

static void write_reuse(const stats_t *stats, avl_exposition_t *exposition) {
    avl_exposition_counter(exposition, "avl_group_prompt_tokens_total",
                           "Prompt tokens of ended requests.", (uint64_t)stats->prompt_rows);
    avl_exposition_counter(exposition, "avl_group_prompt_tokens_reused_total",
                           "Those that were found in the cache, and not computed again.",
                           (uint64_t)stats->prompt_rows_reused);
}

static void write_memory(const stats_t *stats, avl_exposition_t *exposition) {
    char rank[16];
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_rank_memory_bytes",
                          "Memory that a rank set aside at its start, by purpose.");
    for (size_t r = 0; r < stats->n_memory; r++) {
        const Avl__Worker__V1__RankMemory *memory = stats->memory[r];
        snprintf(rank, sizeof rank, "%d", memory->rank);
        for (size_t i = 0; i < memory->n_lines; i++) {
            const avl_label_t labels[] = {{"rank", rank}, {"part", memory->lines[i]->name}};
            avl_exposition_integer(exposition, labels, 2, memory->lines[i]->bytes);
        }
    }
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_rank_memory_budget_bytes",
                          "What a rank may use.");
    for (size_t r = 0; r < stats->n_memory; r++) {
        snprintf(rank, sizeof rank, "%d", stats->memory[r]->rank);
        const avl_label_t label = {"rank", rank};
        avl_exposition_integer(exposition, &label, 1, stats->memory[r]->budget_bytes);
    }
}

typedef Avl__Worker__V1__CollectiveTime collective_t;

static void write_collectives_of(const stats_t *stats, avl_exposition_t *exposition, bool calls) {
    char rank[16];
    for (size_t r = 0; r < stats->n_collectives; r++) {
        const Avl__Worker__V1__RankCollectives *times = stats->collectives[r];
        snprintf(rank, sizeof rank, "%d", times->rank);
        for (size_t i = 0; i < times->n_operations; i++) {
            const collective_t *operation = times->operations[i];
            const avl_label_t labels[] = {{"rank", rank}, {"operation", operation->name}};
            if (calls)
                avl_exposition_integer(exposition, labels, 2, operation->calls);
            else
                avl_exposition_number(exposition, labels, 2, (double)operation->ns / 1e9);
        }
    }
}

static void write_collectives(const stats_t *stats, avl_exposition_t *exposition) {
    if (stats->n_collectives == 0)
        return;
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_collective_seconds_total",
                          "Time that a rank spent in collectives, waiting for others included.");
    write_collectives_of(stats, exposition, false);
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_collective_calls_total",
                          "Collectives of a rank.");
    write_collectives_of(stats, exposition, true);
}

void avl_group_metrics_write(avl_worker_group_t *group, avl_exposition_t *exposition) {
    avl_worker_group_view_t view;
    avl_worker_group_view(group, &view);
    write_state(&view, exposition);
    stats_t *stats = avl_worker_group_stats(group);
    if (stats == NULL)
        return;
    write_pages(stats, exposition);
    write_cache(stats->encoder_cache, "encoder", exposition);
    write_cache(stats->prompt_cache, "prefix", exposition);
    write_reuse(stats, exposition);
    write_memory(stats, exposition);
    write_collectives(stats, exposition);
    avl__worker__v1__stats__free_unpacked(stats, NULL);
}
