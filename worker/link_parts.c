/* worker/link_parts.c: the link's channel, and statistics as a message. */
#include "worker/link_parts.h"

#include <grpc/grpc_security.h>

static grpc_arg integer_arg(const char *key, int value) {
    union {
        const char *constant;
        char *variable;
    } name = {.constant = key}; /* the core only reads it */
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = name.variable};
    arg.value.integer = value;
    return arg;
}

grpc_channel *avl_link_channel_create(const char *address) {
    grpc_arg args[] = {
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1), /* pictures; the peer is our own */
        integer_arg(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1),
        integer_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0), /* never through a proxy of the environment */
        integer_arg(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        integer_arg(GRPC_ARG_KEEPALIVE_TIME_MS, 10000),
        integer_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000),
        integer_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        integer_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        integer_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100),
        integer_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000),
    };
    grpc_channel_args channel_args = {sizeof args / sizeof args[0], args};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(address, credentials, &channel_args);
    grpc_channel_credentials_release(credentials);
    return channel;
}

static void cache_fill(const avl_cache_counts_t *counts, Avl__Worker__V1__CacheStats *to) {
    avl__worker__v1__cache_stats__init(to);
    to->bytes_max = counts->bytes_max;
    to->bytes = counts->bytes;
    to->entries = counts->entries;
    to->hits = counts->hits;
    to->misses = counts->misses;
    to->evictions = counts->evictions;
}

static void memory_fill(const avl_ledger_t *ledger, int rank, avl_link_memory_message_t *to) {
    avl__worker__v1__rank_memory__init(&to->memory);
    to->memory.rank = rank;
    to->memory.budget_bytes = ledger->budget_bytes;
    to->memory.mapped_bytes = ledger->mapped_bytes;
    to->memory.n_lines = (size_t)ledger->line_count;
    to->memory.lines = to->list;
    for (int i = 0; i < ledger->line_count; i++) {
        union {
            const char *constant;
            char *variable;
        } name = {.constant = ledger->lines[i].name}; /* packing only reads it */
        avl__worker__v1__memory_line__init(&to->lines[i]);
        to->lines[i].name = name.variable;
        to->lines[i].bytes = ledger->lines[i].bytes;
        to->list[i] = &to->lines[i];
    }
}

void avl_link_stats_fill(const avl_stats_t *stats, avl_link_stats_message_t *to) {
    const avl_request_totals_t *totals = &stats->scheduler.totals;
    Avl__Worker__V1__Stats *message = &to->stats;
    avl__worker__v1__stats__init(message);
    message->pages_total = stats->pages.total;
    message->pages_taken = stats->pages.taken;
    message->pages_reserved = stats->scheduler.pages_reserved;
    message->pages_kept = stats->scheduler.pages_kept;
    message->page_bytes = stats->page_bytes;
    cache_fill(&stats->scheduler.encoder_cache, &to->encoder_cache);
    message->encoder_cache = &to->encoder_cache;
    cache_fill(&stats->scheduler.prompt_cache, &to->prompt_cache);
    message->prompt_cache = &to->prompt_cache;
    message->queued = stats->scheduler.queued;
    message->active = stats->scheduler.active;
    message->steps = stats->scheduler.steps;
    message->pages_evicted = totals->pages_evicted;
    message->prompt_rows = totals->prompt_rows;
    message->prompt_rows_reused = totals->prompt_rows_reused;
    message->visual_rows_seen = totals->visual_rows_seen;
    message->visual_rows_stored = totals->visual_rows_stored;
    message->visual_rows_computed = totals->visual_rows_computed;
    message->decode_rows = totals->decode_rows;
    int ranks = stats->rank_count < AVL_LINK_RANKS_MAX ? stats->rank_count : AVL_LINK_RANKS_MAX;
    message->n_memory = (size_t)ranks;
    message->memory = to->list;
    for (int rank = 0; rank < ranks; rank++) {
        memory_fill(&stats->ledgers[rank], rank, &to->memories[rank]);
        to->list[rank] = &to->memories[rank].memory;
    }
}
