/* worker/link_parts.c: the link's channel, and messages as numbers and back. */
#include "worker/link_parts.h"

#include <grpc/grpc_security.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

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

static void times_fill(const avl_group_times_t *times, int rank, avl_link_times_message_t *to) {
    avl__worker__v1__rank_collectives__init(&to->collectives);
    to->collectives.rank = rank;
    to->collectives.operations = to->list;
    for (int i = 0; i < AVL_GROUP_OPERATIONS; i++) {
        if (times->calls[i] == 0)
            continue;
        union {
            const char *constant;
            char *variable;
        } name = {.constant = avl_group_operation_name((avl_group_operation_t)i)}; /* as above */
        Avl__Worker__V1__CollectiveTime *operation = &to->operations[i];
        avl__worker__v1__collective_time__init(operation);
        operation->name = name.variable;
        operation->ns = times->ns[i];
        operation->calls = times->calls[i];
        to->list[to->collectives.n_operations++] = operation;
    }
}

Avl__Worker__V1__Work *avl_link_work_fill(const avl_step_work_t *work, Avl__Worker__V1__Work *to) {
    avl__worker__v1__work__init(to);
    to->steps = work->steps;
    to->ns = work->ns;
    to->decode_rows = work->decode_rows;
    to->prompt_rows = work->prompt_rows;
    to->tiles = work->tiles;
    to->encode_ns = work->encode_ns;
    return to;
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
    message->preemptions = stats->scheduler.preemptions;
    int ranks = stats->rank_count < AVL_LINK_RANKS_MAX ? stats->rank_count : AVL_LINK_RANKS_MAX;
    message->n_memory = (size_t)ranks;
    message->memory = to->list;
    for (int rank = 0; rank < ranks; rank++) {
        memory_fill(&stats->ledgers[rank], rank, &to->memories[rank]);
        to->list[rank] = &to->memories[rank].memory;
    }
    message->n_collectives = stats->times != NULL ? (size_t)ranks : 0;
    message->collectives = to->times_list;
    for (int rank = 0; rank < (int)message->n_collectives; rank++) {
        times_fill(&stats->times[rank], rank, &to->times[rank]);
        to->times_list[rank] = &to->times[rank].collectives;
    }
}

avl_status_t avl_link_logprobs_copy(const avl_event_t *event, avl_link_logprobs_t **logprobs_p) {
    avl_link_logprobs_t *logprobs;
    AVL_TRY(avl_alloc(1, sizeof *logprobs, "logprobs", &logprobs));
    AVL_ASSERT(event->logprob_count <= AVL_LOGPROBS_MAX);
    logprobs->count = (size_t)event->logprob_count;
    for (int32_t i = 0; i < event->logprob_count; i++) {
        logprobs->ids[i] = event->logprobs[i].token_id;
        logprobs->values[i] = event->logprobs[i].logprob;
    }
    *logprobs_p = logprobs;
    return AVL_OK;
}

/* One that is absent is all zeros, which the request's check refuses. */
static avl_attention_params_t attention_take(const Avl__Worker__V1__Attention *from) {
    if (from == NULL)
        return (avl_attention_params_t){0};
    return (avl_attention_params_t){
        .visual_store_ratio = from->visual_store_ratio,
        .visual_compute_ratio = from->visual_compute_ratio,
        .visual_update_interval = from->visual_update_interval,
        .visual_core = (avl_visual_core_t)from->visual_core,
        .visual_selection = (avl_visual_selection_t)from->visual_selection,
        .selection_seed = from->selection_seed,
        .prefill_keep_ratio = from->prefill_keep_ratio,
        .prefill_layer = from->prefill_layer,
        .text_keep_ratio = from->text_keep_ratio,
        .text_keep_min = from->text_keep_min,
        .text_policy = (avl_text_policy_t)from->text_policy,
        .protect_prompt = from->protect_prompt,
        .measure_captured_mass = from->measure_captured_mass,
    };
}

static void image_take(avl_request_image_t *to, Avl__Worker__V1__SubmitImage *from) {
    avl_image_layout_t *layout = &to->layout;
    layout->image_width = from->image_width;
    layout->image_height = from->image_height;
    layout->tile_count = from->tile_count;
    layout->grid_rows = from->grid_rows;
    layout->grid_columns = from->grid_columns;
    layout->base_rows = from->base_rows;
    layout->crop_top = from->crop_top;
    layout->crop_left = from->crop_left;
    layout->crop_rows = from->crop_rows;
    layout->crop_columns = from->crop_columns;
    layout->prompt_rows = from->prompt_rows;
    if (from->digest.len == sizeof to->digest)
        memcpy(&to->digest, from->digest.data, sizeof to->digest);
    to->first_row = from->first_row;
    to->pixels =
        from->pixels.data; /* protobuf-c's default allocator is malloc: the array changes hands */
    to->pixel_bytes = from->pixels.len;
    from->pixels.data = NULL;
    from->pixels.len = 0;
}

static avl_status_t choices_take(avl_request_t *request, Avl__Worker__V1__Submit *submit) {
    if (submit->n_choices > AVL_CHOICES_MAX)
        return avl_fail(AVL_ERR_DATA, "request %llu: %zu answers",
                        (unsigned long long)submit->request_id, submit->n_choices);
    if (submit->n_choices == 0)
        return AVL_OK;
    AVL_TRY(avl_alloc(submit->n_choices, sizeof *request->choices, "a request's answers",
                      &request->choices));
    for (size_t i = 0; i < submit->n_choices; i++) {
        Avl__Worker__V1__SubmitChoice *from = submit->choices[i];
        if (from->n_replay_ids > INT32_MAX)
            return avl_fail(AVL_ERR_DATA, "request %llu: %zu replayed tokens",
                            (unsigned long long)submit->request_id, from->n_replay_ids);
        request->choices[i] = (avl_request_choice_t){.index = from->index,
                                                     .seed = from->seed,
                                                     .replay_ids = from->replay_ids,
                                                     .replay_count = (int32_t)from->n_replay_ids};
        request->choice_count++;
        from->replay_ids = NULL;
        from->n_replay_ids = 0;
    }
    return AVL_OK;
}

avl_status_t avl_link_request_take(Avl__Worker__V1__Submit *submit, avl_request_t **request_p) {
    if (submit->n_token_ids == 0 || submit->n_token_ids > INT32_MAX ||
        submit->n_replay_ids > INT32_MAX || submit->n_forced_ids > INT32_MAX ||
        submit->n_stop_ids > INT32_MAX || submit->n_images > submit->n_token_ids ||
        strlen(submit->tenant) > AVL_TENANT_BYTES_MAX)
        return avl_fail(AVL_ERR_DATA, "request %llu: %zu rows, %zu pictures, %zu replayed tokens",
                        (unsigned long long)submit->request_id, submit->n_token_ids,
                        submit->n_images, submit->n_replay_ids);
    avl_request_t *request = NULL;
    AVL_TRY(avl_alloc(1, sizeof *request, "a request", &request));
    avl_status_t status = avl_alloc(submit->n_images, sizeof *request->images,
                                    "a request's pictures", &request->images);
    if (status == AVL_OK)
        status = choices_take(request, submit);
    if (status != AVL_OK) {
        avl_request_destroy(request);
        return status;
    }
    request->id = submit->request_id;
    snprintf(request->tenant, sizeof request->tenant, "%s", submit->tenant);
    request->token_ids = submit->token_ids;
    request->row_count = (int32_t)submit->n_token_ids;
    submit->token_ids = NULL;
    submit->n_token_ids = 0;
    request->replay_ids = submit->replay_ids;
    request->replay_count = (int32_t)submit->n_replay_ids;
    submit->replay_ids = NULL;
    submit->n_replay_ids = 0;
    request->forced_ids = submit->forced_ids;
    request->forced_count = (int32_t)submit->n_forced_ids;
    submit->forced_ids = NULL;
    submit->n_forced_ids = 0;
    request->image_count = (int32_t)submit->n_images;
    for (size_t i = 0; i < submit->n_images; i++)
        image_take(&request->images[i], submit->images[i]);
    request->attention = attention_take(submit->attention);
    request->sampling.temperature = submit->temperature;
    request->sampling.top_p = submit->top_p;
    request->sampling.top_k = submit->top_k;
    request->sampling.seed = submit->seed;
    request->sampling.min_p = submit->min_p;
    request->sampling.repetition_penalty = submit->repetition_penalty;
    request->sampling.presence_penalty = submit->presence_penalty;
    request->sampling.frequency_penalty = submit->frequency_penalty;
    request->sampling.min_tokens = submit->min_tokens;
    request->sampling.logprob_count = submit->logprob_count;
    request->stop_ids = submit->stop_ids;
    request->stop_count = (int32_t)submit->n_stop_ids;
    submit->stop_ids = NULL;
    submit->n_stop_ids = 0;
    request->priority = submit->priority;
    request->max_tokens = submit->max_tokens;
    request->ignore_eos = submit->ignore_eos;
    request->arrival_ns = avl_clock_now_ns();
    request->deadline_ns =
        submit->time_left_ns > 0 && submit->time_left_ns < AVL_DEADLINE_NONE - request->arrival_ns
            ? request->arrival_ns + submit->time_left_ns
            : AVL_DEADLINE_NONE;
    *request_p = request;
    return AVL_OK;
}
