#include "coordinator/grpc_server.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/listen_address.h"

/* Requests for calls that stand posted per method: while a handler is in begin, others can already
 * come in. A core without a posted request queues calls without bound. */
#define SLOTS_PER_METHOD 16
#define SLOTS_UNKNOWN 4
#define THREADS_MAX 8
#define TEXT_BYTES 640 /* of a status: metadata beyond some 8 KB would be refused by clients */

/* What a completed operation was: the low bits of its tag; the rest points to its slot, call or
 * server. */
typedef enum tag_kind {
    TAG_NEW,
    TAG_SEND,
    TAG_RECEIVE,
    TAG_CLOSE,
    TAG_SHUTDOWN,
} tag_kind_t;

#define TAG_KIND_BITS ((uintptr_t)7)

static void *tag_of(void *owner, tag_kind_t kind) {
    AVL_ASSERT(((uintptr_t)owner & TAG_KIND_BITS) == 0);
    return (char *)owner + kind;
}

/* A posted request for a call. */
typedef struct slot {
    /* Set when the slot is posted and read first by the thread that takes the event: whoever posted
     * may be another. The core orders the two as well, but out of sight of a race detector. */
    atomic_int posted;
    avl_server_t *server;
    const avl_method_t *method; /* NULL: any method that is not registered */
    void *registered;
    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_call_details details; /* of unregistered methods */
    grpc_byte_buffer *payload;
} slot_t;

typedef struct message {
    struct message *next;
    grpc_byte_buffer *buffer;
    size_t byte_count;
} message_t;

struct avl_server {
    const avl_method_t *methods;
    size_t method_count;
    size_t send_queue_bytes_max;
    avl_server_observer_t observer;
    grpc_server *core;
    grpc_completion_queue *queue;
    pthread_t threads[THREADS_MAX];
    int thread_count;
    slot_t *slots;
    size_t slot_count;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t call_count; /* avl_call_t that exist */
    bool shut_down;    /* the core has reported the end of shutdown */
    char address[256];
};

struct avl_call {
    avl_server_t *server;
    const avl_method_t *method;
    grpc_call *core;
    int64_t begin_ns, deadline_ns;
    atomic_int references;
    _Atomic(void *) user;
    grpc_byte_buffer *received;
    int cancelled;
    grpc_metadata_array metadata; /* the client's; the core's own memory, as long as `core` */

    /* All below, and every grpc_call_start_batch; a handler of a completion takes it before it
     * reads anything, so that it sees what the starting thread wrote. */
    pthread_mutex_t lock;
    message_t *first, **last_p;
    size_t queued_bytes;
    message_t *sending;
    bool accept, initial_sent, send_active, status_sent;
    bool finish; /* the status follows the queue */
    bool closed;
    avl_rpc_code_t code;
    char text[TEXT_BYTES];
    int64_t retry_ms; /* 0: no hint */
};

struct avl_payload {
    grpc_byte_buffer *buffer;
    grpc_slice slice;
    bool read;
};

/* ---- payloads ---- */

static avl_payload_t *payload_create(grpc_byte_buffer *buffer) {
    avl_payload_t *payload = NULL;
    if (buffer == NULL)
        return NULL;
    if (avl_alloc(1, sizeof *payload, "a message", &payload) != AVL_OK) {
        grpc_byte_buffer_destroy(buffer);
        return NULL;
    }
    payload->buffer = buffer;
    return payload;
}

void avl_payload_peek(avl_payload_t *payload,
                      void (*portion)(void *context, const uint8_t *bytes, size_t byte_count),
                      void *context) {
    grpc_byte_buffer_reader reader;
    grpc_slice slice;
    if (payload->read || payload->buffer->type != GRPC_BB_RAW ||
        payload->buffer->data.raw.compression != GRPC_COMPRESS_NONE ||
        !grpc_byte_buffer_reader_init(&reader, payload->buffer))
        return;
    while (grpc_byte_buffer_reader_next(&reader, &slice) != 0) {
        portion(context, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice));
        grpc_slice_unref(slice);
    }
    grpc_byte_buffer_reader_destroy(&reader);
}

avl_status_t avl_payload_read(avl_payload_t *payload, const uint8_t **bytes_p,
                              size_t *byte_count_p) {
    if (!payload->read) {
        grpc_byte_buffer_reader reader;
        if (!grpc_byte_buffer_reader_init(&reader, payload->buffer))
            return avl_fail(AVL_ERR_INVALID, "the message cannot be decompressed");
        payload->slice = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
        grpc_byte_buffer_destroy(
            payload->buffer); /* its memory is wanted back before pictures are decoded */
        payload->buffer = NULL;
        payload->read = true;
    }
    *bytes_p = GRPC_SLICE_START_PTR(payload->slice);
    *byte_count_p = GRPC_SLICE_LENGTH(payload->slice);
    return AVL_OK;
}

void avl_payload_free(avl_payload_t *payload) {
    if (payload == NULL)
        return;
    if (payload->read)
        grpc_slice_unref(payload->slice);
    if (payload->buffer != NULL)
        grpc_byte_buffer_destroy(payload->buffer);
    free(payload);
}

/* ---- calls ---- */

static int64_t deadline_of(gpr_timespec deadline) {
    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0)
        return AVL_DEADLINE_NONE;
    gpr_timespec left = gpr_time_sub(gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC),
                                     gpr_now(GPR_CLOCK_MONOTONIC));
    int64_t left_ns;
    if (left.tv_sec > INT64_C(1000000000)) /* thirty years: as good as none */
        return AVL_DEADLINE_NONE;
    left_ns = left.tv_sec < 0 ? 0 : left.tv_sec * AVL_NS_PER_S + left.tv_nsec;
    return avl_clock_now_ns() + left_ns;
}

static avl_call_t *call_create(slot_t *slot) {
    avl_call_t *call = NULL;
    if (avl_alloc(1, sizeof *call, "a call", &call) != AVL_OK)
        return NULL;
    call->server = slot->server;
    call->method = slot->method;
    call->core = slot->call;
    call->metadata = slot->metadata;
    grpc_metadata_array_init(&slot->metadata);
    call->begin_ns = avl_clock_now_ns();
    call->deadline_ns = deadline_of(slot->method != NULL ? slot->deadline : slot->details.deadline);
    atomic_init(&call->references, 1);
    call->last_p = &call->first;
    pthread_mutex_init(&call->lock, NULL);
    pthread_mutex_lock(&call->server->lock);
    call->server->call_count++;
    pthread_mutex_unlock(&call->server->lock);
    return call;
}

static void message_free(message_t *message) {
    if (message != NULL) {
        grpc_byte_buffer_destroy(message->buffer);
        free(message);
    }
}

static void drop_queue_locked(avl_call_t *call) {
    while (call->first != NULL) {
        message_t *message = call->first;
        call->first = message->next;
        message_free(message);
    }
    call->last_p = &call->first;
    call->queued_bytes = 0;
}

void avl_call_ref(avl_call_t *call) {
    atomic_fetch_add(&call->references, 1);
}

void avl_call_unref(avl_call_t *call) {
    if (atomic_fetch_sub(&call->references, 1) != 1)
        return;
    avl_server_t *server = call->server;
    drop_queue_locked(call);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_unref(call->core);
    pthread_mutex_destroy(&call->lock);
    free(call);
    pthread_mutex_lock(&server->lock);
    server->call_count--;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

int64_t avl_call_deadline_ns(const avl_call_t *call) {
    return call->deadline_ns;
}

bool avl_call_late(const avl_call_t *call) {
    if (call->deadline_ns == AVL_DEADLINE_NONE)
        return false;
    int64_t slack_ns = (call->deadline_ns - call->begin_ns) / 50 + 10 * AVL_NS_PER_MS;
    return call->deadline_ns - slack_ns <= avl_clock_now_ns();
}

avl_status_t avl_call_metadata(const avl_call_t *call, const char *key, char *value,
                               size_t value_bytes) {
    value[0] = '\0';
    for (size_t i = 0; i < call->metadata.count; i++) {
        const grpc_metadata *entry = &call->metadata.metadata[i];
        if (grpc_slice_str_cmp(entry->key, key) != 0)
            continue;
        size_t length = GRPC_SLICE_LENGTH(entry->value);
        const uint8_t *bytes = GRPC_SLICE_START_PTR(entry->value);
        bool printable = true;
        for (size_t b = 0; b < length; b++)
            printable = printable && bytes[b] > ' ' && bytes[b] < 0x7f;
        if (length >= value_bytes || !printable)
            return avl_fail(AVL_ERR_INVALID,
                            "metadata %s: a value has at most %zu bytes, all printable ASCII", key,
                            value_bytes - 1);
        memcpy(value, bytes, length);
        value[length] = '\0';
        return AVL_OK;
    }
    return AVL_OK;
}

void avl_call_set_retry(avl_call_t *call, int64_t after_ns) {
    pthread_mutex_lock(&call->lock);
    call->retry_ms = (after_ns + AVL_NS_PER_MS - 1) / AVL_NS_PER_MS;
    pthread_mutex_unlock(&call->lock);
}

void avl_call_set_user(avl_call_t *call, void *user) {
    atomic_store(&call->user, user);
}

void *avl_call_user(const avl_call_t *call) {
    return atomic_load(&call->user);
}

/* The trailing metadata of a status. */
typedef struct trailer {
    grpc_metadata entries[2];
    size_t count;
} trailer_t;

static void trailer_fill_locked(const avl_call_t *call, trailer_t *trailer) {
    static const char *const keys[] = {"retry-after-ms", "grpc-retry-pushback-ms"};
    memset(trailer, 0, sizeof *trailer);
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)call->retry_ms);
    for (size_t i = 0; i < 2 && call->retry_ms > 0; i++) {
        trailer->entries[i].key = grpc_slice_from_static_string(keys[i]);
        trailer->entries[i].value = grpc_slice_from_copied_string(text);
        trailer->count++;
    }
}

static void trailer_clear(trailer_t *trailer) {
    for (size_t i = 0; i < trailer->count; i++)
        grpc_slice_unref(trailer->entries[i].value);
}

/* Starts the next batch unless one is on its way: the initial metadata ride with the first message,
 * the status with the last. */
static void send_next_locked(avl_call_t *call) {
    if (call->send_active || call->closed || call->status_sent)
        return;
    grpc_op ops[3];
    memset(ops, 0, sizeof ops);
    size_t count = 0;
    message_t *message = call->first;
    bool status = call->finish && (message == NULL || message->next == NULL);
    if (!call->initial_sent && (call->accept || message != NULL || status))
        ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (message != NULL) {
        call->first = message->next;
        if (call->first == NULL)
            call->last_p = &call->first;
        call->queued_bytes -= message->byte_count;
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = message->buffer;
    }
    grpc_slice details = grpc_empty_slice();
    trailer_t trailer = {.count = 0};
    if (status) {
        details = grpc_slice_from_copied_string(call->text);
        trailer_fill_locked(call, &trailer);
        ops[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[count].data.send_status_from_server.trailing_metadata_count = trailer.count;
        ops[count].data.send_status_from_server.trailing_metadata = trailer.entries;
        ops[count].data.send_status_from_server.status = (grpc_status_code)call->code;
        ops[count++].data.send_status_from_server.status_details = &details;
    }
    if (count == 0)
        return;
    avl_call_ref(call);
    call->send_active = true;
    call->sending = message;
    call->initial_sent = true;
    call->status_sent = status;
    grpc_call_error error =
        grpc_call_start_batch(call->core, ops, count, tag_of(call, TAG_SEND), NULL);
    grpc_slice_unref(details);
    trailer_clear(&trailer); /* the core holds what it needs */
    if (error != GRPC_CALL_OK) {
        avl_log_error("gRPC refused a batch of %zu operations: %d", count, (int)error);
        call->send_active = false;
        call->sending = NULL;
        message_free(message);
        atomic_fetch_sub(&call->references, 1); /* never the last: the caller holds one */
        grpc_call_cancel(call->core, NULL);
    }
}

void avl_call_accept(avl_call_t *call) {
    pthread_mutex_lock(&call->lock);
    call->accept = true;
    send_next_locked(call);
    pthread_mutex_unlock(&call->lock);
}

static avl_status_t message_create(const ProtobufCMessage *content, message_t **message_p) {
    size_t byte_count = protobuf_c_message_get_packed_size(content);
    message_t *message = NULL;
    AVL_TRY(avl_alloc(1, sizeof *message, "a message", &message));
    grpc_slice slice = grpc_slice_malloc(byte_count);
    protobuf_c_message_pack(content, GRPC_SLICE_START_PTR(slice));
    message->buffer = grpc_raw_byte_buffer_create(&slice, 1);
    message->byte_count = byte_count;
    grpc_slice_unref(slice);
    *message_p = message;
    return AVL_OK;
}

avl_status_t avl_call_send(avl_call_t *call, const ProtobufCMessage *content) {
    message_t *message = NULL;
    AVL_TRY(message_create(content, &message));
    pthread_mutex_lock(&call->lock);
    avl_status_t status = AVL_OK;
    if (call->closed || call->finish) {
        status = avl_fail(AVL_ERR_CANCELLED, "the call is over");
    } else if (call->first != NULL &&
               message->byte_count > call->server->send_queue_bytes_max - call->queued_bytes) {
        status = avl_fail(AVL_ERR_EXHAUSTED,
                          "the client does not read: %zu bytes wait for it, the most are %zu",
                          call->queued_bytes, call->server->send_queue_bytes_max);
    } else {
        *call->last_p = message;
        call->last_p = &message->next;
        call->queued_bytes += message->byte_count;
        message = NULL;
        send_next_locked(call);
    }
    pthread_mutex_unlock(&call->lock);
    message_free(message);
    return status;
}

void avl_call_finish(avl_call_t *call, avl_rpc_code_t code, const char *text) {
    pthread_mutex_lock(&call->lock);
    if (!call->finish) {
        call->finish = true;
        call->code = code;
        snprintf(call->text, sizeof call->text, "%s", text);
        send_next_locked(call);
    }
    pthread_mutex_unlock(&call->lock);
}

void avl_call_abort(avl_call_t *call, avl_rpc_code_t code, const char *text) {
    pthread_mutex_lock(&call->lock);
    call->finish = true;
    call->code = code;
    call->status_sent = true; /* the core sends its own */
    drop_queue_locked(call);
    pthread_mutex_unlock(&call->lock);
    grpc_call_cancel_with_status(call->core, (grpc_status_code)code, text, NULL);
}

static void receive(avl_call_t *call) {
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &call->received;
    pthread_mutex_lock(&call->lock);
    avl_call_ref(call);
    grpc_call_error error =
        grpc_call_start_batch(call->core, &op, 1, tag_of(call, TAG_RECEIVE), NULL);
    pthread_mutex_unlock(&call->lock);
    if (error != GRPC_CALL_OK) {
        avl_log_error("gRPC refused to receive: %d", (int)error);
        avl_call_unref(call);
    }
}

/* This alone tells promptly of cancellation, deadline and vanished clients. */
static void watch_close(avl_call_t *call) {
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &call->cancelled;
    pthread_mutex_lock(&call->lock);
    grpc_call_error error =
        grpc_call_start_batch(call->core, &op, 1, tag_of(call, TAG_CLOSE), NULL);
    pthread_mutex_unlock(&call->lock);
    AVL_ASSERT(error == GRPC_CALL_OK);
}

static void on_sent(avl_call_t *call, bool success) {
    pthread_mutex_lock(&call->lock);
    message_t *message = call->sending;
    call->sending = NULL;
    call->send_active = false;
    if (success)
        send_next_locked(call);
    else
        drop_queue_locked(call); /* the close follows */
    pthread_mutex_unlock(&call->lock);
    message_free(message);
    avl_call_unref(call);
}

static void on_received(avl_call_t *call, bool success) {
    pthread_mutex_lock(&call->lock);
    grpc_byte_buffer *buffer = call->received;
    call->received = NULL;
    pthread_mutex_unlock(&call->lock);
    avl_payload_t *payload = payload_create(success ? buffer : NULL);
    bool more = payload != NULL;
    call->method->message(call->method->context, call, payload);
    if (more)
        receive(call);
    avl_call_unref(call);
}

static void on_closed(avl_call_t *call) {
    pthread_mutex_lock(&call->lock);
    call->closed = true;
    drop_queue_locked(call);
    /* What the client gave up without a status of ours has the one that its own side made. */
    bool ours = call->finish && (call->cancelled == 0 || call->code != AVL_RPC_OK);
    avl_rpc_code_t code = ours                  ? call->code
                          : avl_call_late(call) ? AVL_RPC_DEADLINE_EXCEEDED
                                                : AVL_RPC_CANCELLED;
    pthread_mutex_unlock(&call->lock);
    const avl_server_observer_t *observer = &call->server->observer;
    if (observer->ended != NULL)
        observer->ended(observer->context, call->method, code);
    if (call->method != NULL && call->method->close != NULL)
        call->method->close(call->method->context, call, call->cancelled != 0);
    avl_call_unref(call);
}

/* ---- slots ---- */

static void slot_post(slot_t *slot) {
    avl_server_t *server = slot->server;
    grpc_call_error error;
    slot->call = NULL;
    slot->payload = NULL;
    atomic_store(&slot->posted, 1);
    if (slot->method == NULL) {
        error = grpc_server_request_call(server->core, &slot->call, &slot->details, &slot->metadata,
                                         server->queue, server->queue, tag_of(slot, TAG_NEW));
    } else {
        bool streams = slot->method->client_streams;
        error = grpc_server_request_registered_call(
            server->core, slot->registered, &slot->call, &slot->deadline, &slot->metadata,
            streams ? NULL : &slot->payload, server->queue, server->queue, tag_of(slot, TAG_NEW));
    }
    AVL_ASSERT(error == GRPC_CALL_OK);
}

static void slot_clear(slot_t *slot) {
    grpc_metadata_array_destroy(&slot->metadata);
    grpc_metadata_array_init(&slot->metadata);
    if (slot->method == NULL) {
        grpc_call_details_destroy(&slot->details);
        grpc_call_details_init(&slot->details);
    }
}

static void refuse_unknown(slot_t *slot, avl_call_t *call) {
    char *path = grpc_slice_to_c_string(slot->details.method);
    char text[TEXT_BYTES];
    snprintf(text, sizeof text, "unknown method %.200s", path);
    gpr_free(path);
    avl_call_finish(call, AVL_RPC_UNIMPLEMENTED, text);
}

static void on_new(slot_t *slot, bool success) {
    AVL_ASSERT(atomic_load(&slot->posted) == 1);
    if (!success) { /* the server shuts down: the slot stays empty */
        slot_clear(slot);
        return;
    }
    avl_call_t *call = call_create(slot);
    avl_payload_t *payload = payload_create(slot->payload);
    if (call == NULL) {
        grpc_call_cancel_with_status(slot->call, GRPC_STATUS_RESOURCE_EXHAUSTED, "out of memory",
                                     NULL);
        grpc_call_unref(slot->call);
        avl_payload_free(payload);
    } else if (slot->method == NULL) {
        refuse_unknown(slot, call);
    }
    const avl_method_t *method = slot->method;
    const avl_server_observer_t *observer = &slot->server->observer;
    if (call != NULL && observer->started != NULL)
        observer->started(observer->context, method);
    slot_clear(slot);
    slot_post(slot);
    if (call == NULL)
        return;
    if (method != NULL)
        method->begin(method->context, call, payload);
    if (method != NULL && method->client_streams)
        receive(call);
    watch_close(call);
}

static void *serve(void *context) {
    avl_server_t *server = context;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(server->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type != GRPC_OP_COMPLETE)
            continue;
        tag_kind_t kind = (tag_kind_t)((uintptr_t)event.tag & TAG_KIND_BITS);
        void *owner = (char *)event.tag - kind;
        bool success = event.success != 0;
        switch (kind) {
        case TAG_NEW:
            on_new(owner, success);
            break;
        case TAG_SEND:
            on_sent(owner, success);
            break;
        case TAG_RECEIVE:
            on_received(owner, success);
            break;
        case TAG_CLOSE:
            on_closed(owner);
            break;
        case TAG_SHUTDOWN:
            pthread_mutex_lock(&server->lock);
            server->shut_down = true;
            pthread_cond_broadcast(&server->changed);
            pthread_mutex_unlock(&server->lock);
            break;
        }
    }
}

/* ---- the server ---- */

static avl_status_t bind_address(avl_server_t *server, const char *address) {
    bool local = strncmp(address, "unix:", 5) == 0;
    const char *colon = strrchr(address, ':');
    AVL_TRY(avl_listen_address_check(address));
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server->core, address, credentials);
    grpc_server_credentials_release(credentials);
    if (port == 0)
        return avl_listen_address_explain(address);
    if (local)
        snprintf(server->address, sizeof server->address, "%s", address);
    else
        snprintf(server->address, sizeof server->address, "%.*s:%d", (int)(colon - address),
                 address, port);
    return AVL_OK;
}

static grpc_arg integer_arg(const char *key, int value) {
    union {
        const char *constant;
        char *variable;
    } name = {.constant = key}; /* the core only reads it */
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = name.variable};
    arg.value.integer = value;
    return arg;
}

static grpc_server *core_create(const avl_server_config_t *config) {
    int message_bytes = config->message_bytes_max < 0 || config->message_bytes_max > INT32_MAX
                            ? -1
                            : (int)config->message_bytes_max;
    grpc_arg args[] = {
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, message_bytes),
        integer_arg(GRPC_ARG_ALLOW_REUSEPORT, 0), /* else two servers share a port silently */
        integer_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024),
        integer_arg(GRPC_ARG_KEEPALIVE_TIME_MS, config->keepalive_ms),
        integer_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, config->keepalive_timeout_ms),
        integer_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        integer_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        integer_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000),
        integer_arg("grpc.server_handshake_timeout_ms", 20000),
        /* Pictures do not shrink; and the size limit is of compressed messages: a small one could
           unpack to any size. */
        integer_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
    };
    grpc_channel_args channel_args = {sizeof args / sizeof args[0], args};
    return grpc_server_create(&channel_args, NULL);
}

static avl_status_t slots_create(avl_server_t *server) {
    server->slot_count = server->method_count * SLOTS_PER_METHOD + SLOTS_UNKNOWN;
    AVL_TRY(avl_alloc(server->slot_count, sizeof *server->slots, "call slots", &server->slots));
    for (size_t i = 0; i < server->slot_count; i++) {
        slot_t *slot = &server->slots[i];
        slot->server = server;
        grpc_metadata_array_init(&slot->metadata);
        grpc_call_details_init(&slot->details);
    }
    for (size_t m = 0; m < server->method_count; m++) {
        const avl_method_t *method = &server->methods[m];
        void *registered = grpc_server_register_method(
            server->core, method->path, NULL,
            method->client_streams ? GRPC_SRM_PAYLOAD_NONE
                                   : GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER,
            0);
        if (registered == NULL)
            return avl_fail(AVL_ERR_INTERNAL, "cannot register the method %s", method->path);
        for (size_t i = 0; i < SLOTS_PER_METHOD; i++) {
            server->slots[m * SLOTS_PER_METHOD + i].method = method;
            server->slots[m * SLOTS_PER_METHOD + i].registered = registered;
        }
    }
    return AVL_OK;
}

/* Signals are the main thread's business, also for threads that the core starts. */
static avl_status_t threads_start(avl_server_t *server, int thread_count) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    grpc_server_start(server->core);
    for (size_t i = 0; i < server->slot_count; i++)
        slot_post(&server->slots[i]);
    avl_status_t status = AVL_OK;
    while (server->thread_count < thread_count && status == AVL_OK) {
        int error = pthread_create(&server->threads[server->thread_count], NULL, serve, server);
        if (error != 0)
            status = avl_fail(AVL_ERR_EXHAUSTED, "cannot start a thread: %s", strerror(error));
        else
            server->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

/* The core's own log goes where ours goes; what matters of it is said again by the caller, in the
 * caller's words. */
static void forward_log(gpr_log_func_args *args) {
    avl_log_debug("gRPC: %s", args->message);
}

avl_status_t avl_server_create(const avl_server_config_t *config, avl_server_t **server_p) {
    avl_server_t *server = NULL;
    AVL_TRY(avl_alloc(1, sizeof *server, "a server", &server));
    server->methods = config->methods;
    server->method_count = config->method_count;
    server->send_queue_bytes_max = config->send_queue_bytes_max;
    server->observer = config->observer;
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);

    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    gpr_set_log_function(forward_log);
    grpc_init();
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    server->queue = grpc_completion_queue_create_for_next(NULL);
    server->core = core_create(config);
    grpc_server_register_completion_queue(server->core, server->queue, NULL);
    avl_status_t status = slots_create(server);
    if (status == AVL_OK)
        status = bind_address(server, config->address);
    int threads = config->threads < 1             ? 1
                  : config->threads > THREADS_MAX ? THREADS_MAX
                                                  : config->threads;
    if (status == AVL_OK)
        status = threads_start(server, threads);
    if (status != AVL_OK) {
        if (server->thread_count == 0) { /* somebody must take the shutdown's event */
            int error = pthread_create(&server->threads[0], NULL, serve, server);
            server->thread_count = error == 0;
        }
        if (server->thread_count > 0) {
            avl_server_stop(server, 0);
            avl_server_destroy(server);
        }
        return status;
    }
    *server_p = server;
    return AVL_OK;
}

const char *avl_server_address(const avl_server_t *server) {
    return server->address;
}

void avl_server_stop(avl_server_t *server, int64_t grace_ns) {
    grpc_server_shutdown_and_notify(server->core, server->queue, tag_of(server, TAG_SHUTDOWN));
    struct timespec limit = avl_clock_after(grace_ns);
    pthread_mutex_lock(&server->lock);
    int waited = 0;
    while (!server->shut_down && waited == 0)
        waited = pthread_cond_timedwait(&server->changed, &server->lock, &limit);
    bool cancel = !server->shut_down;
    pthread_mutex_unlock(&server->lock);
    if (cancel)
        grpc_server_cancel_all_calls(server->core);
}

void avl_server_destroy(avl_server_t *server) {
    if (server == NULL)
        return;
    pthread_mutex_lock(&server->lock);
    while (!server->shut_down || server->call_count > 0)
        pthread_cond_wait(&server->changed, &server->lock);
    pthread_mutex_unlock(&server->lock);
    grpc_completion_queue_shutdown(server->queue);
    for (int i = 0; i < server->thread_count; i++)
        pthread_join(server->threads[i], NULL);
    grpc_server_destroy(server->core);
    grpc_completion_queue_destroy(server->queue);
    for (size_t i = 0; i < server->slot_count; i++)
        slot_clear(&server->slots[i]);
    free(server->slots);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    free(server);
    grpc_shutdown();
}
