#include "coordinator/group_metrics.h"

#include <stddef.h>
#include <stdio.h>

typedef Avl__Worker__V1__Stats stats_t;
typedef Avl__Worker__V1__CacheStats cache_t;

typedef struct sample {
    char group[12];
    avl_worker_group_view_t view;
    stats_t *stats; /* NULL: none yet */
} sample_t;

typedef struct samples {
    sample_t list[AVL_GROUPS_MAX];
    int count;
} samples_t;

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

static void collect(void *context, int number, avl_worker_group_t *group) {
    samples_t *samples = context;
    sample_t *sample = &samples->list[samples->count++];
    snprintf(sample->group, sizeof sample->group, "%d", number);
    avl_worker_group_view(group, &sample->view);
    sample->stats = avl_worker_group_stats(group);
}

static void write_state(const samples_t *samples, avl_exposition_t *exposition) {
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_worker_group_ready",
                          "1: requests may go to the group.");
    for (int i = 0; i < samples->count; i++) {
        const avl_label_t label = {"group", samples->list[i].group};
        avl_exposition_integer(exposition, &label, 1,
                               samples->list[i].view.state == AVL_WORKER_GROUP_READY);
    }
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_worker_group_loading_ratio",
                          "How much of the model is loaded.");
    for (int i = 0; i < samples->count; i++) {
        const avl_label_t label = {"group", samples->list[i].group};
        avl_exposition_number(exposition, &label, 1, samples->list[i].view.loading_share);
    }
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_worker_group_restarts_total",
                          "Starts of the group after the first.");
    for (int i = 0; i < samples->count; i++) {
        const avl_label_t label = {"group", samples->list[i].group};
        avl_exposition_integer(exposition, &label, 1, samples->list[i].view.restarts);
    }
}

static void write_capacity(const samples_t *samples, avl_exposition_t *exposition) {
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_worker_group_ranks",
                          "Ranks that share the model.");
    for (int i = 0; i < samples->count; i++) {
        const avl_worker_group_view_t *view = &samples->list[i].view;
        const avl_label_t labels[] = {
            {"group", samples->list[i].group}, {"device", view->device}, {"dtype", view->dtype}};
        if (view->ever_ready)
            avl_exposition_integer(exposition, labels, 3, view->ranks);
    }
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_worker_group_sequences_max",
                          "Requests decoded together at most.");
    for (int i = 0; i < samples->count; i++) {
        const avl_label_t label = {"group", samples->list[i].group};
        if (samples->list[i].view.ever_ready)
            avl_exposition_integer(exposition, &label, 1, samples->list[i].view.sequences_max);
    }
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_worker_group_load_seconds",
                          "From the group's start to ready.");
    for (int i = 0; i < samples->count; i++) {
        const avl_label_t label = {"group", samples->list[i].group};
        if (samples->list[i].view.ever_ready)
            avl_exposition_number(exposition, &label, 1,
                                  (double)samples->list[i].view.load_ns / 1e9);
    }
}

static void write_pages(const samples_t *samples, avl_exposition_t *exposition) {
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_kv_cache_usage_ratio",
                          "Pages of the cache that hold rows, 0 to 1.");
    for (int i = 0; i < samples->count; i++) {
        const stats_t *stats = samples->list[i].stats;
        const avl_label_t label = {"group", samples->list[i].group};
        if (stats != NULL)
            avl_exposition_number(exposition, &label, 1,
                                  stats->pages_total > 0
                                      ? (double)stats->pages_taken / (double)stats->pages_total
                                      : 0);
    }
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_kv_cache_pages",
                          "Pages of the cache: all, holding rows, promised to requests in flight, "
                          "of prompts kept for reuse.");
    for (int i = 0; i < samples->count; i++) {
        const stats_t *stats = samples->list[i].stats;
        const struct {
            const char *state;
            int64_t pages;
        } states[] = {{"total", stats != NULL ? stats->pages_total : 0},
                      {"taken", stats != NULL ? stats->pages_taken : 0},
                      {"reserved", stats != NULL ? stats->pages_reserved : 0},
                      {"kept", stats != NULL ? stats->pages_kept : 0}};
        for (size_t n = 0; stats != NULL && n < sizeof states / sizeof states[0]; n++) {
            const avl_label_t labels[] = {{"group", samples->list[i].group},
                                          {"state", states[n].state}};
            avl_exposition_integer(exposition, labels, 2, states[n].pages);
        }
    }
}

/* A field of what groups tell. */
typedef struct figure {
    avl_family_type_t type;
    const char *name, *help;
    size_t offset;
    bool narrow; /* int32_t, else int64_t */
} figure_t;

static int64_t read_figure(const void *message, const figure_t *figure) {
    const char *at = (const char *)message + figure->offset;
    if (figure->narrow)
        return *(const int32_t *)(const void *)at;
    return *(const int64_t *)(const void *)at;
}

#define FIELD(type, field) offsetof(type, field), sizeof(((type *)NULL)->field) == 4

static void write_figures(const samples_t *samples, avl_exposition_t *exposition) {
    static const figure_t figures[] = {
        {AVL_FAMILY_GAUGE, "avl_kv_cache_page_bytes", "One page, over all ranks.",
         FIELD(stats_t, page_bytes)},
        {AVL_FAMILY_COUNTER, "avl_kv_pages_evicted_total",
         "Pages given back by adaptive attention, of ended requests.",
         FIELD(stats_t, pages_evicted)},
        {AVL_FAMILY_GAUGE, "avl_group_requests_queued", "Requests that wait for room in the group.",
         FIELD(stats_t, queued)},
        {AVL_FAMILY_GAUGE, "avl_group_requests_active", "Requests that take part in steps.",
         FIELD(stats_t, active)},
        {AVL_FAMILY_COUNTER, "avl_group_steps_total", "Steps of the group.", FIELD(stats_t, steps)},
        {AVL_FAMILY_COUNTER, "avl_preemptions_total",
         "Requests that gave way to others for want of pages, and began again.",
         FIELD(stats_t, preemptions)},
        {AVL_FAMILY_COUNTER, "avl_group_prompt_tokens_total", "Prompt tokens of ended requests.",
         FIELD(stats_t, prompt_rows)},
        {AVL_FAMILY_COUNTER, "avl_group_prompt_tokens_reused_total",
         "Those that were found in the cache, and not computed again.",
         FIELD(stats_t, prompt_rows_reused)},
    };
    for (size_t f = 0; f < sizeof figures / sizeof figures[0]; f++) {
        avl_exposition_family(exposition, figures[f].type, figures[f].name, figures[f].help);
        for (int i = 0; i < samples->count; i++) {
            const avl_label_t label = {"group", samples->list[i].group};
            if (samples->list[i].stats != NULL)
                avl_exposition_integer(exposition, &label, 1,
                                       read_figure(samples->list[i].stats, &figures[f]));
        }
    }
}

/* `offset`: of the cache's own message in what groups tell. */
static void write_cache(const samples_t *samples, const char *cache, size_t offset,
                        avl_exposition_t *exposition) {
    static const figure_t figures[] = {
        {AVL_FAMILY_GAUGE, "capacity_bytes", "Room, on one rank.", FIELD(cache_t, bytes_max)},
        {AVL_FAMILY_GAUGE, "bytes", "Taken, on one rank.", FIELD(cache_t, bytes)},
        {AVL_FAMILY_GAUGE, "entries", "Things kept.", FIELD(cache_t, entries)},
        {AVL_FAMILY_COUNTER, "hits_total", "Times that something looked for was there.",
         FIELD(cache_t, hits)},
        {AVL_FAMILY_COUNTER, "evictions_total", "Things given up for others.",
         FIELD(cache_t, evictions)},
    };
    for (size_t f = 0; f < sizeof figures / sizeof figures[0]; f++) {
        char name[96];
        snprintf(name, sizeof name, "avl_%s_cache_%s", cache, figures[f].name);
        avl_exposition_family(exposition, figures[f].type, name, figures[f].help);
        for (int i = 0; i < samples->count; i++) {
            const stats_t *stats = samples->list[i].stats;
            const avl_label_t label = {"group", samples->list[i].group};
            const cache_t *from =
                stats != NULL ? *(cache_t *const *)(const void *)((const char *)stats + offset)
                              : NULL;
            if (from != NULL)
                avl_exposition_integer(exposition, &label, 1, read_figure(from, &figures[f]));
        }
    }
}

static void write_queries(const samples_t *samples, avl_exposition_t *exposition) {
    static const char *const names[] = {"avl_encoder_cache_queries_total",
                                        "avl_prefix_cache_queries_total"};
    for (int c = 0; c < 2; c++) {
        avl_exposition_family(exposition, AVL_FAMILY_COUNTER, names[c],
                              "Times that something was looked for.");
        for (int i = 0; i < samples->count; i++) {
            const stats_t *stats = samples->list[i].stats;
            const cache_t *cache = stats == NULL ? NULL
                                   : c == 0      ? stats->encoder_cache
                                                 : stats->prompt_cache;
            const avl_label_t label = {"group", samples->list[i].group};
            if (cache != NULL)
                avl_exposition_integer(exposition, &label, 1, cache->hits + cache->misses);
        }
    }
}

static void write_memory(const samples_t *samples, avl_exposition_t *exposition) {
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_rank_memory_bytes",
                          "Memory that a rank set aside at its start, by purpose.");
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1)
            avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_rank_memory_budget_bytes",
                                  "What a rank may use.");
        for (int i = 0; i < samples->count; i++) {
            const stats_t *stats = samples->list[i].stats;
            for (size_t r = 0; stats != NULL && r < stats->n_memory; r++) {
                const Avl__Worker__V1__RankMemory *memory = stats->memory[r];
                char rank[16];
                snprintf(rank, sizeof rank, "%d", memory->rank);
                avl_label_t labels[] = {
                    {"group", samples->list[i].group}, {"rank", rank}, {"part", ""}};
                if (pass == 1)
                    avl_exposition_integer(exposition, labels, 2, memory->budget_bytes);
                for (size_t n = 0; pass == 0 && n < memory->n_lines; n++) {
                    labels[2].value = memory->lines[n]->name;
                    avl_exposition_integer(exposition, labels, 3, memory->lines[n]->bytes);
                }
            }
        }
    }
}

typedef Avl__Worker__V1__CollectiveTime collective_t;

static void write_collectives_of(const samples_t *samples, avl_exposition_t *exposition,
                                 bool calls) {
    for (int g = 0; g < samples->count; g++) {
        const stats_t *stats = samples->list[g].stats;
        for (size_t r = 0; stats != NULL && r < stats->n_collectives; r++) {
            const Avl__Worker__V1__RankCollectives *times = stats->collectives[r];
            char rank[16];
            snprintf(rank, sizeof rank, "%d", times->rank);
            for (size_t i = 0; i < times->n_operations; i++) {
                const collective_t *operation = times->operations[i];
                const avl_label_t labels[] = {{"group", samples->list[g].group},
                                              {"rank", rank},
                                              {"operation", operation->name}};
                if (calls)
                    avl_exposition_integer(exposition, labels, 3, operation->calls);
                else
                    avl_exposition_number(exposition, labels, 3, (double)operation->ns / 1e9);
            }
        }
    }
}

static void write_collectives(const samples_t *samples, avl_exposition_t *exposition) {
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_collective_seconds_total",
                          "Time that a rank spent in collectives, waiting for others included.");
    write_collectives_of(samples, exposition, false);
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_collective_calls_total",
                          "Collectives of a rank.");
    write_collectives_of(samples, exposition, true);
}

void avl_group_metrics_write(avl_groups_t *groups, avl_exposition_t *exposition) {
    samples_t samples;
    samples.count = 0;
    avl_groups_each(groups, collect, &samples);
    write_state(&samples, exposition);
    write_capacity(&samples, exposition);
    write_pages(&samples, exposition);
    write_figures(&samples, exposition);
    write_cache(&samples, "encoder", offsetof(stats_t, encoder_cache), exposition);
    write_cache(&samples, "prefix", offsetof(stats_t, prompt_cache), exposition);
    write_queries(&samples, exposition);
    write_memory(&samples, exposition);
    write_collectives(&samples, exposition);
    for (int i = 0; i < samples.count; i++)
        if (samples.list[i].stats != NULL)
            avl__worker__v1__stats__free_unpacked(samples.list[i].stats, NULL);
}
