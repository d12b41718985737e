#include "coordinator/figures.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/memory.h"
#include "coordinator/group_metrics.h"
#include "proto/inference.pb-c.h"

/* Packing only reads what a message points to. */
static char *shared(const char *text) {
    union {
        const char *constant;
        char *variable;
    } pointer = {.constant = text != NULL ? text : ""};
    return pointer.variable;
}

static uint64_t natural(int64_t value) {
    return value > 0 ? (uint64_t)value : 0;
}

typedef struct histogram {
    Avl__V1__Histogram message;
    double bounds[AVL_HISTOGRAM_BOUNDS_MAX];
    uint64_t counts[AVL_HISTOGRAM_BOUNDS_MAX + 1];
} histogram_t;

static Avl__V1__Histogram *fill_histogram(const avl_histogram_t *from, histogram_t *to) {
    avl__v1__histogram__init(&to->message);
    for (size_t i = 0; i < from->bound_count; i++)
        to->bounds[i] = from->bounds[i];
    for (size_t i = 0; i <= from->bound_count; i++)
        to->counts[i] = avl_counter_value(&from->counts[i]);
    to->message.n_bounds = from->bound_count;
    to->message.bounds = to->bounds;
    to->message.n_counts = from->bound_count + 1;
    to->message.counts = to->counts;
    to->message.sum = (double)atomic_load_explicit(&from->sum, memory_order_relaxed) * from->unit;
    return &to->message;
}

static void fill_cache(const Avl__Worker__V1__CacheStats *from, Avl__V1__CacheStats *to) {
    avl__v1__cache_stats__init(to);
    if (from == NULL)
        return;
    to->bytes = natural(from->bytes);
    to->bytes_max = natural(from->bytes_max);
    to->entries = natural(from->entries);
    to->queries = natural(from->hits + from->misses);
    to->hits = natural(from->hits);
}

#define RANKS_SHOWN_MAX 64

typedef struct group {
    Avl__V1__WorkerGroupStats message;
    Avl__V1__CacheStats encoder_cache, prompt_cache;
    avl_worker_group_view_t view;
    double collective_seconds[RANKS_SHOWN_MAX];
} group_t;

static void fill_collectives(const Avl__Worker__V1__Stats *stats, group_t *to) {
    size_t ranks = stats->n_collectives < RANKS_SHOWN_MAX ? stats->n_collectives : RANKS_SHOWN_MAX;
    for (size_t r = 0; r < ranks; r++) {
        const Avl__Worker__V1__RankCollectives *times = stats->collectives[r];
        to->collective_seconds[r] = 0;
        for (size_t i = 0; i < times->n_operations; i++)
            to->collective_seconds[r] += (double)times->operations[i]->ns / 1e9;
    }
    to->message.n_collective_seconds = ranks;
    to->message.collective_seconds = to->collective_seconds;
}

typedef struct group_list {
    group_t groups[AVL_GROUPS_MAX];
    Avl__V1__WorkerGroupStats *messages[AVL_GROUPS_MAX];
    size_t count;
} group_list_t;

static Avl__V1__WorkerGroupStats *fill_group(avl_worker_group_t *from, group_t *to) {
    Avl__V1__WorkerGroupStats *message = &to->message;
    avl__v1__worker_group_stats__init(message);
    avl_worker_group_view(from, &to->view);
    message->state = shared(avl_group_state_name(to->view.state));
    message->loading_share = to->view.loading_share;
    message->restarts = natural(to->view.restarts);
    message->ranks = (uint32_t)natural(to->view.ranks);
    message->device = to->view.device;
    message->dtype = to->view.dtype;
    message->sequences_max = (uint32_t)natural(to->view.sequences_max);
    Avl__Worker__V1__Stats *stats = avl_worker_group_stats(from);
    if (stats == NULL)
        return message;
    message->reported = true;
    message->queued = (uint32_t)natural(stats->queued);
    message->active = (uint32_t)natural(stats->active);
    message->steps = natural(stats->steps);
    message->pages_total = natural(stats->pages_total);
    message->pages_taken = natural(stats->pages_taken);
    message->pages_reserved = natural(stats->pages_reserved);
    message->pages_kept = natural(stats->pages_kept);
    message->page_bytes = natural(stats->page_bytes);
    fill_cache(stats->encoder_cache, &to->encoder_cache);
    fill_cache(stats->prompt_cache, &to->prompt_cache);
    message->encoder_cache = &to->encoder_cache;
    message->prompt_cache = &to->prompt_cache;
    message->prompt_tokens = natural(stats->prompt_rows);
    message->prompt_tokens_reused = natural(stats->prompt_rows_reused);
    fill_collectives(stats, to);
    avl__worker__v1__stats__free_unpacked(stats, NULL);
    return message;
}

static void add_group(void *context, int number, avl_worker_group_t *group) {
    group_list_t *list = context;
    (void)number; /* their order says it */
    list->messages[list->count] = fill_group(group, &list->groups[list->count]);
    list->count++;
}

static void fill_preprocess(const avl_monitor_t *monitor, Avl__V1__PreprocessStats *to) {
    avl_thread_pool_counts_t counts = avl_thread_pool_counts(monitor->pool);
    avl__v1__preprocess_stats__init(to);
    to->threads = (uint32_t)monitor->pool_threads;
    to->running = counts.running;
    to->queued = counts.queued;
    to->queue_capacity = monitor->pool_capacity;
    to->completed = counts.completed;
    to->refused = counts.refused;
}

static void fill_counters(const avl_service_metrics_t *metrics, Avl__V1__GetStatsResponse *to) {
    to->requests_running = natural(avl_gauge_value(&metrics->requests_running));
    to->requests_waiting = natural(avl_gauge_value(&metrics->requests_waiting));
    to->requests_succeeded = avl_service_metrics_succeeded(metrics);
    to->requests_resumed = avl_counter_value(&metrics->requests_resumed);
    to->prompt_tokens = avl_counter_value(&metrics->prompt_tokens);
    to->generation_tokens = avl_counter_value(&metrics->generation_tokens);
    to->visual_tokens_in = avl_counter_value(&metrics->visual_rows_seen);
    to->visual_tokens_stored = avl_counter_value(&metrics->visual_rows_stored);
    to->visual_tokens_computed = avl_counter_value(&metrics->visual_rows_computed);
    to->decode_steps = avl_counter_value(&metrics->decode_steps);
    to->kv_bytes_returned = avl_counter_value(&metrics->kv_bytes_returned);
}

static size_t fill_failures(const avl_service_metrics_t *metrics,
                            Avl__V1__CodeCount counts[AVL_RPC_CODES],
                            Avl__V1__CodeCount *list[AVL_RPC_CODES]) {
    size_t count = 0;
    for (size_t code = 0; code < AVL_RPC_CODES; code++) {
        uint64_t value = avl_counter_value(&metrics->requests_failed[code]);
        if (value == 0)
            continue;
        avl__v1__code_count__init(&counts[count]);
        counts[count].code = shared(avl_rpc_code_name((avl_rpc_code_t)code));
        counts[count].count = value;
        list[count] = &counts[count];
        count++;
    }
    return count;
}

avl_status_t avl_figures_send(const avl_monitor_t *monitor, avl_call_t *call) {
    const avl_service_metrics_t *metrics = monitor->metrics;
    histogram_t first_token, between_tokens, request;
    group_list_t *groups = NULL;
    AVL_TRY(avl_alloc(1, sizeof *groups, "figures", &groups));
    avl_groups_each(monitor->groups, add_group, groups);
    Avl__V1__PreprocessStats preprocess;
    Avl__V1__CodeCount failures[AVL_RPC_CODES], *failure_list[AVL_RPC_CODES];
    Avl__V1__GetStatsResponse response;
    avl__v1__get_stats_response__init(&response);
    response.model = shared(monitor->model_name);
    response.version = shared(AVL_VERSION);
    response.uptime_seconds = (double)(avl_clock_now_ns() - monitor->start_ns) / 1e9;
    response.ready = avl_health_serving(monitor->health);
    fill_counters(metrics, &response);
    response.n_requests_failed = fill_failures(metrics, failures, failure_list);
    response.requests_failed = failure_list;
    response.first_token_seconds = fill_histogram(&metrics->first_token, &first_token);
    response.between_tokens_seconds = fill_histogram(&metrics->between_tokens, &between_tokens);
    response.request_seconds = fill_histogram(&metrics->whole_request, &request);
    response.n_groups = groups->count;
    response.groups = groups->messages;
    fill_preprocess(monitor, &preprocess);
    response.preprocess = &preprocess;
    avl_status_t status = avl_call_send(call, &response.base);
    free(groups);
    return status;
}
