#include "tests/client/fake_server.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define REQUEST_BYTES_MAX (64 << 20)
#define HUGE_BYTES ((size_t)17 << 20)
#define PEERS_MAX 16

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "fake_server: %s\n", #condition);                                      \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

typedef enum event { EVENT_NEW, EVENT_RECEIVED, EVENT_CLOSED, EVENT_SENT, EVENT_COUNT } event_t;

typedef struct fake_call fake_call_t;

typedef struct tag {
    event_t event;
    fake_call_t *call;
} tag_t;

struct fake_call {
    fake_call_t *next, **link; /* in server->calls once it is a real call */
    grpc_call *core;
    grpc_metadata_array metadata;
    grpc_call_details details;
    grpc_byte_buffer *received;
    tag_t tags[EVENT_COUNT];
    int pending;
    int closed; /* gRPC's: cancelled or not */
    bool is_closed, generates, over;
    fake_behaviour_t behaviour;
    int step;
    int64_t due_ns; /* of the next step; 0: none */
};

struct fake_server {
    grpc_server *core;
    grpc_completion_queue *queue;
    pthread_t thread;
    char address[64];
    fake_call_t *calls;
    int under_way;
    pthread_mutex_t lock; /* what is below */
    fake_behaviour_t behaviour;
    fake_counts_t counts;
    char *peers[PEERS_MAX];
    uint8_t *request;
    size_t request_bytes;
};

static void batch(fake_call_t *call, const grpc_op *operations, size_t count, event_t event) {
    REQUIRE(grpc_call_start_batch(call->core, operations, count, &call->tags[event], NULL) ==
            GRPC_CALL_OK);
    call->pending++;
}

static void post(fake_server_t *server) {
    fake_call_t *call = calloc(1, sizeof *call);
    REQUIRE(call != NULL);
    for (event_t i = EVENT_NEW; i < EVENT_COUNT; i++)
        call->tags[i] = (tag_t){.event = i, .call = call};
    grpc_metadata_array_init(&call->metadata);
    grpc_call_details_init(&call->details);
    REQUIRE(grpc_server_request_call(server->core, &call->core, &call->details, &call->metadata,
                                     server->queue, server->queue,
                                     &call->tags[EVENT_NEW]) == GRPC_CALL_OK);
}

static void drop(fake_server_t *server, fake_call_t *call) {
    if (call->link != NULL) {
        *call->link = call->next;
        if (call->next != NULL)
            call->next->link = call->link;
    }
    if (call->generates) {
        server->under_way--;
        pthread_mutex_lock(&server->lock);
        server->counts.cancelled += call->closed != 0;
        pthread_mutex_unlock(&server->lock);
    }
    if (call->core != NULL)
        grpc_call_unref(call->core);
    grpc_byte_buffer_destroy(call->received);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    free(call);
}

static grpc_byte_buffer *buffer_of(const void *bytes, size_t byte_count) {
    grpc_slice slice = grpc_slice_from_copied_buffer(bytes, byte_count);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

/* Sends `message` (NULL: none), and the end of the call with `code` unless that is negative. */
static void send_step(fake_call_t *call, grpc_byte_buffer *message, int code, const char *text) {
    grpc_op operations[3] = {0};
    size_t count = 0;
    grpc_slice details = grpc_slice_from_copied_string(text != NULL ? text : "");
    if (call->step == 0)
        operations[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (message != NULL) {
        operations[count].op = GRPC_OP_SEND_MESSAGE;
        operations[count++].data.send_message.send_message = message;
    }
    if (code >= 0) {
        operations[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        operations[count].data.send_status_from_server.status = (grpc_status_code)code;
        operations[count++].data.send_status_from_server.status_details = &details;
        call->over = true;
    }
    call->step++;
    batch(call, operations, count, EVENT_SENT);
    grpc_slice_unref(details);
    grpc_byte_buffer_destroy(message);
}

static grpc_byte_buffer *pack_response(const Avl__V1__GenerateResponse *response) {
    size_t byte_count = avl__v1__generate_response__get_packed_size(response);
    uint8_t *bytes = malloc(byte_count + 1);
    REQUIRE(bytes != NULL);
    avl__v1__generate_response__pack(response, bytes);
    grpc_byte_buffer *buffer = buffer_of(bytes, byte_count);
    free(bytes);
    return buffer;
}

static grpc_byte_buffer *progress_message(int stage) {
    Avl__V1__Progress progress = AVL__V1__PROGRESS__INIT;
    progress.stage = (Avl__V1__Stage)stage;
    progress.done = 500;
    progress.total = 1000;
    Avl__V1__GenerateResponse response = AVL__V1__GENERATE_RESPONSE__INIT;
    response.event_case = AVL__V1__GENERATE_RESPONSE__EVENT_PROGRESS;
    response.progress = &progress;
    return pack_response(&response);
}

/* Two tokens of the vocabulary of ten: this one and the next. Without dense attention the second
 * one is the likelier where the token's number is odd. */
static void fill_logprobs(Avl__V1__TokenLogprob entries[3], int token, bool dense) {
    bool other = !dense && token % 2 == 1;
    const float logs[] = {logf(.7f), logf(.2f)};
    for (int i = 0; i < 3; i++)
        avl__v1__token_logprob__init(&entries[i]);
    entries[0].token_id = token;
    entries[0].logprob = logs[other];
    entries[1].token_id = token + other;
    entries[1].logprob = logs[0];
    entries[2].token_id = token + !other;
    entries[2].logprob = logs[1];
}

static grpc_byte_buffer *delta_message(const fake_behaviour_t *behaviour, int token) {
    Avl__V1__TokenLogprob entries[3], *best[] = {&entries[1], &entries[2]};
    Avl__V1__TokenLogprobs logprobs, *list[] = {&logprobs};
    fill_logprobs(entries, token, behaviour->dense);
    avl__v1__token_logprobs__init(&logprobs);
    logprobs.token = &entries[0];
    logprobs.n_best = 2;
    logprobs.best = best;
    Avl__V1__Delta delta;
    avl__v1__delta__init(&delta);
    delta.text = (char *)(uintptr_t)(behaviour->text != NULL ? behaviour->text : "w ");
    delta.n_token_ids = 1;
    delta.token_ids = &token;
    delta.n_logprobs = behaviour->logprobs ? 1 : 0;
    delta.logprobs = list;
    Avl__V1__GenerateResponse response = AVL__V1__GENERATE_RESPONSE__INIT;
    response.event_case = AVL__V1__GENERATE_RESPONSE__EVENT_DELTA;
    response.delta = &delta;
    return pack_response(&response);
}

static grpc_byte_buffer *finished_message(const fake_behaviour_t *behaviour) {
    Avl__V1__Usage usage = AVL__V1__USAGE__INIT;
    usage.prompt_tokens = 207;
    usage.visual_tokens = 196;
    usage.completion_tokens = (uint32_t)behaviour->tokens;
    Avl__V1__AttentionReport attention = AVL__V1__ATTENTION_REPORT__INIT;
    attention.visual_store_ratio = 0.5;
    attention.visual_compute_ratio =
        behaviour->ending == FAKE_FINISHED_NAN ? __builtin_nan("") : 0.25;
    attention.visual_update_interval = 3;
    attention.visual_rows_seen = 196;
    attention.visual_rows_stored = 98;
    attention.visual_rows_computed_per_step = 65.5;
    attention.kv_bytes_returned = UINT64_MAX;
    attention.kv_bytes_held = 4096;
    attention.captured_mass = behaviour->measure_mass ? .75 : 0;
    attention.stored_mass = behaviour->measure_mass ? .875 : 0;
    attention.visual_mass = behaviour->measure_mass ? .5 : 0;
    Avl__V1__AttentionParameters parameters;
    avl__v1__attention_parameters__init(&parameters);
    parameters.prefill_keep_ratio = .5;
    parameters._prefill_keep_ratio_case =
        AVL__V1__ATTENTION_PARAMETERS___PREFILL_KEEP_RATIO_PREFILL_KEEP_RATIO;
    attention.parameters = behaviour->filters ? &parameters : NULL;
    Avl__V1__Timings timings = AVL__V1__TIMINGS__INIT;
    timings.queue_seconds = 0.001;
    timings.preprocess_seconds = 0.002;
    timings.encode_seconds = 0.003;
    timings.prefill_seconds = 0.004;
    timings.decode_seconds_per_token = 0.005;
    timings.total_seconds = 0.006;
    Avl__V1__Finished finished = AVL__V1__FINISHED__INIT;
    finished.finish_reason = AVL__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    finished.seed = 7;
    if (behaviour->ending != FAKE_FINISHED_BARE) {
        finished.usage = &usage;
        finished.attention = &attention;
        finished.timings = &timings;
    }
    Avl__V1__GenerateResponse response = AVL__V1__GENERATE_RESPONSE__INIT;
    response.event_case = AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED;
    response.finished = &finished;
    return pack_response(&response);
}

static grpc_byte_buffer *huge_message(void) {
    char *bytes = calloc(1, HUGE_BYTES);
    REQUIRE(bytes != NULL);
    grpc_byte_buffer *buffer = buffer_of(bytes, HUGE_BYTES);
    free(bytes);
    return buffer;
}

/* The step that follows the tokens; `after` counts from 0. */
static void send_ending(fake_call_t *call, int after) {
    const fake_behaviour_t *behaviour = &call->behaviour;
    static const char garbage[] = "\xff\xff\xff\xff garbage";
    switch (behaviour->ending) {
    case FAKE_FINISHED:
    case FAKE_FINISHED_BARE:
    case FAKE_FINISHED_NAN:
        send_step(call, finished_message(behaviour), GRPC_STATUS_OK, NULL);
        break;
    case FAKE_FINISHED_TWICE:
        send_step(call, finished_message(behaviour), after == 0 ? -1 : GRPC_STATUS_OK, NULL);
        break;
    case FAKE_UNFINISHED:
        send_step(call, NULL, GRPC_STATUS_OK, NULL);
        break;
    case FAKE_STATUS:
        send_step(call, NULL, behaviour->status, behaviour->status_text);
        break;
    case FAKE_GARBAGE:
        send_step(call, buffer_of(garbage, sizeof garbage), GRPC_STATUS_OK, NULL);
        break;
    case FAKE_HUGE:
        send_step(call, huge_message(), GRPC_STATUS_OK, NULL);
        break;
    case FAKE_STALL:
        break;
    case FAKE_ENDLESS:
        send_step(call, delta_message(behaviour, 1), -1, NULL);
        break;
    }
}

static void take_step(fake_call_t *call) {
    const fake_behaviour_t *behaviour = &call->behaviour;
    int progress_steps = behaviour->progress ? AVL__V1__STAGE__STAGE_DECODE + 1 : 0;
    int token = call->step - progress_steps;
    call->due_ns = 0;
    if (call->step < progress_steps)
        send_step(call, progress_message(call->step), -1, NULL);
    else if (token < behaviour->tokens)
        send_step(call, delta_message(behaviour, token), -1, NULL);
    else
        send_ending(call, token - behaviour->tokens);
}

static void schedule(fake_call_t *call, int delay_ms) {
    if (delay_ms == 0)
        take_step(call);
    else
        call->due_ns = avl_clock_now_ns() + delay_ms * AVL_NS_PER_MS;
}

static void answer_info(fake_server_t *server, fake_call_t *call) {
    pthread_mutex_lock(&server->lock);
    bool bare = server->behaviour.bare_info;
    pthread_mutex_unlock(&server->lock);
    Avl__V1__AttentionParameters attention;
    avl__v1__attention_parameters__init(&attention);
    attention.visual_store_ratio = 0.5;
    attention._visual_store_ratio_case =
        AVL__V1__ATTENTION_PARAMETERS___VISUAL_STORE_RATIO_VISUAL_STORE_RATIO;
    Avl__V1__GetModelInfoResponse info;
    avl__v1__get_model_info_response__init(&info);
    info.model = (char *)(uintptr_t) "fake\x1b[31m";
    info.family = (char *)(uintptr_t) "llava";
    info.version = (char *)(uintptr_t) "1.2.3";
    info.device = (char *)(uintptr_t) "cpu";
    info.dtype = (char *)(uintptr_t) "bf16";
    info.ranks = 2;
    info.ready = true;
    info.context_tokens_max = 2048;
    info.attention_defaults = &attention;
    uint8_t bytes[512];
    REQUIRE(avl__v1__get_model_info_response__get_packed_size(&info) <= sizeof bytes);
    size_t byte_count = avl__v1__get_model_info_response__pack(&info, bytes);
    send_step(call, bare ? NULL : buffer_of(bytes, byte_count), GRPC_STATUS_OK, NULL);
}

static void store_request(fake_server_t *server, fake_call_t *call) {
    grpc_byte_buffer_reader reader;
    REQUIRE(grpc_byte_buffer_reader_init(&reader, call->received));
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    free(server->request);
    server->request_bytes = GRPC_SLICE_LENGTH(all);
    server->request = malloc(server->request_bytes + 1);
    REQUIRE(server->request != NULL);
    memcpy(server->request, GRPC_SLICE_START_PTR(all), server->request_bytes);
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
}

static void count_peer(fake_server_t *server, fake_call_t *call) {
    char *peer = grpc_call_get_peer(call->core);
    int i = 0;
    while (i < server->counts.connections && strcmp(server->peers[i], peer) != 0)
        i++;
    if (i == server->counts.connections && i < PEERS_MAX) {
        server->peers[server->counts.connections++] = peer;
        return;
    }
    gpr_free(peer);
}

/* Why the request is INVALID; NULL: it is not. */
static const char *fault_of(const fake_behaviour_t *behaviour, int number,
                            const Avl__V1__AttentionParameters *attention) {
    if (number == behaviour->invalid_at)
        return "too odd";
    if (!behaviour->checks_attention || attention == NULL)
        return NULL;
    if (strcmp(attention->preset, "no-such") == 0)
        return "preset is unknown";
    return behaviour->filters && attention->measure_captured_mass ? "no mass behind a filter"
                                                                  : NULL;
}

static void answer_generate(fake_server_t *server, fake_call_t *call) {
    call->generates = true;
    server->under_way++;
    pthread_mutex_lock(&server->lock);
    store_request(server, call);
    count_peer(server, call);
    call->behaviour = server->behaviour;
    int number = ++server->counts.requests;
    if (server->under_way > server->counts.together_most)
        server->counts.together_most = server->under_way;
    gpr_timespec never = gpr_inf_future(call->details.deadline.clock_type);
    server->counts.with_deadline += gpr_time_cmp(call->details.deadline, never) < 0;
    Avl__V1__GenerateRequest *request =
        avl__v1__generate_request__unpack(NULL, server->request_bytes, server->request);
    REQUIRE(request != NULL);
    call->behaviour.progress = call->behaviour.progress && request->progress;
    call->behaviour.dense = request->attention != NULL && request->attention->dense;
    call->behaviour.measure_mass =
        request->attention != NULL && request->attention->measure_captured_mass;
    call->behaviour.logprobs = request->sampling != NULL && request->sampling->_logprobs_case != 0;
    if (request->n_forced_token_ids > 0)
        call->behaviour.tokens =
            (int)request->n_forced_token_ids + (call->behaviour.one_more ? 1 : 0);
    call->behaviour.filters = call->behaviour.checks_attention && request->attention != NULL &&
                              request->attention->_prefill_keep_ratio_case != 0;
    const char *fault = fault_of(&call->behaviour, number, request->attention);
    avl__v1__generate_request__free_unpacked(request, NULL);
    pthread_mutex_unlock(&server->lock);
    int every = call->behaviour.refuse_every;
    if (fault != NULL)
        send_step(call, NULL, GRPC_STATUS_INVALID_ARGUMENT, fault);
    else if (every > 0 && number % every == 0)
        send_step(call, NULL, GRPC_STATUS_RESOURCE_EXHAUSTED, "no room");
    else
        schedule(call, call->behaviour.first_delay_ms);
}

static void take_new(fake_server_t *server, fake_call_t *call) {
    post(server);
    call->next = server->calls;
    call->link = &server->calls;
    if (call->next != NULL)
        call->next->link = &call->next;
    server->calls = call;
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                     .data.recv_close_on_server.cancelled = &call->closed};
    batch(call, &close, 1, EVENT_CLOSED);
    grpc_op receive = {.op = GRPC_OP_RECV_MESSAGE,
                       .data.recv_message.recv_message = &call->received};
    batch(call, &receive, 1, EVENT_RECEIVED);
}

static void take_received(fake_server_t *server, fake_call_t *call) {
    if (call->received == NULL || call->is_closed) /* it vanished, or sent nothing */
        return;
    if (grpc_slice_str_cmp(call->details.method, "/avl.v1.Inference/Generate") == 0)
        answer_generate(server, call);
    else if (grpc_slice_str_cmp(call->details.method, "/avl.v1.Inference/GetModelInfo") == 0)
        answer_info(server, call);
    else
        send_step(call, NULL, GRPC_STATUS_UNIMPLEMENTED, "no such method");
}

static void handle(fake_server_t *server, const tag_t *tag, bool success) {
    fake_call_t *call = tag->call;
    if (tag->event == EVENT_NEW) {
        if (success)
            take_new(server, call);
        else
            drop(server, call); /* the server is being shut down */
        return;
    }
    call->pending--;
    if (tag->event == EVENT_RECEIVED)
        take_received(server, call);
    if (tag->event == EVENT_CLOSED) {
        call->is_closed = true;
        call->due_ns = 0;
    }
    if (tag->event == EVENT_SENT && success && !call->over && !call->is_closed)
        schedule(call, call->behaviour.token_delay_ms);
    if (call->pending == 0)
        drop(server, call);
}

static gpr_timespec next_due(const fake_server_t *server) {
    int64_t due_ns = INT64_MAX, now_ns = avl_clock_now_ns();
    for (const fake_call_t *call = server->calls; call != NULL; call = call->next) {
        if (call->due_ns != 0 && call->due_ns < due_ns)
            due_ns = call->due_ns;
    }
    int64_t wait_ns = due_ns == INT64_MAX ? AVL_NS_PER_S : due_ns - now_ns;
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos(wait_ns > 0 ? wait_ns : 0, GPR_TIMESPAN));
}

static void *serve(void *argument) {
    fake_server_t *server = argument;
    for (;;) {
        grpc_event event = grpc_completion_queue_next(server->queue, next_due(server), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE && event.tag == server)
            grpc_completion_queue_shutdown(server->queue); /* all calls have ended */
        else if (event.type == GRPC_OP_COMPLETE)
            handle(server, event.tag, event.success != 0);
        int64_t now_ns = avl_clock_now_ns();
        for (fake_call_t *call = server->calls; call != NULL; call = call->next) {
            if (call->due_ns != 0 && call->due_ns <= now_ns)
                take_step(call);
        }
    }
}

fake_server_t *fake_server_start(void) {
    fake_server_t *server = calloc(1, sizeof *server);
    REQUIRE(server != NULL);
    pthread_mutex_init(&server->lock, NULL);
    grpc_init();
    grpc_arg arguments[] = {{.type = GRPC_ARG_INTEGER,
                             .key = (char *)(uintptr_t)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                             .value.integer = REQUEST_BYTES_MAX}};
    grpc_channel_args channel_arguments = {.num_args = 1, .args = arguments};
    server->core = grpc_server_create(&channel_arguments, NULL);
    server->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(server->core, server->queue, NULL);
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server->core, "127.0.0.1:0", credentials);
    grpc_server_credentials_release(credentials);
    REQUIRE(port > 0);
    snprintf(server->address, sizeof server->address, "127.0.0.1:%d", port);
    grpc_server_start(server->core);
    for (int i = 0; i < 4; i++)
        post(server);
    REQUIRE(pthread_create(&server->thread, NULL, serve, server) == 0);
    return server;
}

void fake_server_stop(fake_server_t *server) {
    grpc_server_shutdown_and_notify(server->core, server->queue, server);
    grpc_server_cancel_all_calls(server->core);
    pthread_join(server->thread, NULL);
    grpc_server_destroy(server->core);
    grpc_completion_queue_destroy(server->queue);
    grpc_shutdown_blocking();
    for (int i = 0; i < server->counts.connections; i++)
        gpr_free(server->peers[i]);
    pthread_mutex_destroy(&server->lock);
    free(server->request);
    free(server);
}

const char *fake_server_address(const fake_server_t *server) {
    return server->address;
}

void fake_server_behave(fake_server_t *server, const fake_behaviour_t *behaviour) {
    pthread_mutex_lock(&server->lock);
    for (int i = 0; i < server->counts.connections; i++)
        gpr_free(server->peers[i]);
    server->behaviour = *behaviour;
    server->counts = (fake_counts_t){0};
    pthread_mutex_unlock(&server->lock);
}

fake_counts_t fake_server_counts(fake_server_t *server) {
    pthread_mutex_lock(&server->lock);
    fake_counts_t counts = server->counts;
    pthread_mutex_unlock(&server->lock);
    return counts;
}

Avl__V1__GenerateRequest *fake_server_take_request(fake_server_t *server) {
    pthread_mutex_lock(&server->lock);
    Avl__V1__GenerateRequest *request = NULL;
    if (server->request != NULL)
        request = avl__v1__generate_request__unpack(NULL, server->request_bytes, server->request);
    free(server->request);
    server->request = NULL;
    pthread_mutex_unlock(&server->lock);
    return request;
}
