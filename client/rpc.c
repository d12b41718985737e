/* client/rpc.c: see rpc.h. One completion queue for all channels and calls, no thread of its own.
 *
 * A call has up to three gRPC operations under way (start, message, status); it ends, and on_end is
 * called, when none is. Each operation's completion tag points into the call. */
#include "client/rpc.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

/* How often a waiting avl_rpc_call looks at the stop flag. */
#define STOP_POLL_NS (50 * AVL_NS_PER_MS)
/* Answers are small; the bound guards against a server that is none of ours. */
#define ANSWER_BYTES_MAX (16 << 20)
/* gRPC counts a message's bytes in 32 bits, and the other side's limit is a signed one. */
#define REQUEST_BYTES_MAX ((size_t)INT32_MAX)
/* A host that swallows packets: given up after this, twice for the whole name. */
#define CONNECT_MS 5000
/* A server whose host vanished is noticed after the sum of both. The service allows a ping each 5
 * s.
 */
#define KEEPALIVE_MS 20000
#define KEEPALIVE_TIMEOUT_MS 10000

typedef enum operation {
    OPERATION_START,
    OPERATION_MESSAGE,
    OPERATION_STATUS,
    OPERATION_COUNT,
} operation_t;

typedef struct tag {
    avl_rpc_call_t *call;
    operation_t operation;
    bool pending;
} tag_t;

struct avl_rpc_call {
    avl_rpc_t *rpc;
    avl_rpc_call_t *next, **link; /* in rpc->calls; *link is this call */
    avl_rpc_handler_t handler;
    grpc_call *core;
    tag_t tags[OPERATION_COUNT];
    grpc_byte_buffer *message; /* filled by OPERATION_MESSAGE; NULL: the answer has ended */
    grpc_metadata_array initial_metadata;
    grpc_metadata_array trailing_metadata;
    grpc_status_code code;
    grpc_slice details;
    avl_status_t local_status; /* why this side gave up */
    char local_detail[AVL_STATUS_DETAIL_BYTES];
};

struct avl_rpc {
    grpc_completion_queue *queue;
    grpc_channel *channels[AVL_RPC_CHANNELS_MAX];
    size_t channel_count, next_channel;
    avl_rpc_call_t *calls;
    size_t call_count;
    char *address;
};

struct avl_rpc_request {
    grpc_byte_buffer *buffer;
};

avl_status_t avl_rpc_check_address(const char *address) {
    if (strncmp(address, "unix:", 5) == 0 || strncmp(address, "unix-abstract:", 14) == 0) {
        if (strchr(address, ':')[1] == '\0')
            return avl_fail(AVL_ERR_INVALID, "\"%s\" names no socket", address);
        return AVL_OK;
    }
    const char *colon = strrchr(address, ':');
    char *end = NULL;
    long port = colon != NULL ? strtol(colon + 1, &end, 10) : 0;
    bool number = colon != NULL && colon[1] >= '0' && colon[1] <= '9' && *end == '\0';
    if (!number || port < 1 || port > 65535 || colon == address)
        return avl_fail(AVL_ERR_INVALID, "\"%s\" is neither HOST:PORT nor unix:PATH", address);
    size_t host_bytes = (size_t)(colon - address);
    bool bracketed = address[0] == '[' && colon[-1] == ']' && host_bytes > 2;
    if (!bracketed && memchr(address, ':', host_bytes) != NULL)
        return avl_fail(AVL_ERR_INVALID, "\"%s\": an IPv6 address stands in brackets, as [::1]:%ld",
                        address, port);
    if (strpbrk(address, " \t\r\n/") != NULL || (address[0] == '[' && !bracketed))
        return avl_fail(AVL_ERR_INVALID, "\"%s\" is neither HOST:PORT nor unix:PATH", address);
    return AVL_OK;
}

/* gRPC counts its users; grpc_shutdown() is the counterpart. */
static void begin_grpc(void) {
    /* It would log every failed attempt to connect; what matters is in the call's status. */
    setenv("GRPC_VERBOSITY", "NONE", 0);
    grpc_init();
}

static grpc_channel *create_channel(const char *address) {
    static const struct {
        const char *key;
        int value;
    } settings[] = {
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, ANSWER_BYTES_MAX},
        {GRPC_ARG_ENABLE_HTTP_PROXY, 0}, /* the address is meant as it stands */
        {GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1},
        {GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1}, /* else all channels share one connection */
        {GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CONNECT_MS},
        {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200},
        {GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000},
        {GRPC_ARG_DNS_ARES_QUERY_TIMEOUT_MS, CONNECT_MS},
        {GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS},
        {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
    };
    grpc_arg arguments[sizeof settings / sizeof settings[0]];
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        arguments[i] = (grpc_arg){.type = GRPC_ARG_INTEGER,
                                  .key = (char *)(uintptr_t)settings[i].key,
                                  .value.integer = settings[i].value};
    grpc_channel_args channel_arguments = {.num_args = sizeof settings / sizeof settings[0],
                                           .args = arguments};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(address, credentials, &channel_arguments);
    grpc_channel_credentials_release(credentials);
    return channel;
}

avl_status_t avl_rpc_open(const char *address, size_t channel_count, avl_rpc_t **rpc_p) {
    AVL_ASSERT(channel_count >= 1 && channel_count <= AVL_RPC_CHANNELS_MAX);
    AVL_TRY(avl_rpc_check_address(address));
    avl_rpc_t *rpc = NULL;
    AVL_TRY(avl_alloc(1, sizeof *rpc, "connection", &rpc));
    avl_status_t status = avl_copy_string(address, &rpc->address);
    if (status != AVL_OK) {
        free(rpc);
        return status;
    }
    begin_grpc();
    rpc->queue = grpc_completion_queue_create_for_next(NULL);
    rpc->channel_count = channel_count;
    for (size_t i = 0; i < channel_count; i++)
        rpc->channels[i] = create_channel(address);
    *rpc_p = rpc;
    return AVL_OK;
}

void avl_rpc_close(avl_rpc_t *rpc) {
    if (rpc == NULL)
        return;
    for (avl_rpc_call_t *call = rpc->calls; call != NULL; call = call->next)
        avl_rpc_cancel(call, AVL_ERR_CANCELLED, "the connection was closed");
    while (rpc->calls != NULL)
        avl_rpc_poll(rpc, INT64_MAX);
    for (size_t i = 0; i < rpc->channel_count; i++)
        grpc_channel_destroy(rpc->channels[i]);
    grpc_completion_queue_shutdown(rpc->queue);
    while (grpc_completion_queue_next(rpc->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL).type !=
           GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(rpc->queue);
    grpc_shutdown();
    free(rpc->address);
    free(rpc);
}

avl_status_t avl_rpc_request_create(uint8_t *bytes, size_t byte_count,
                                    avl_rpc_request_t **request_p) {
    if (byte_count > REQUEST_BYTES_MAX) {
        free(bytes);
        return avl_fail(AVL_ERR_TOO_LARGE, "a request of %zu bytes: at most %zu fit one message",
                        byte_count, REQUEST_BYTES_MAX);
    }
    avl_rpc_request_t *request = NULL;
    avl_status_t status = avl_alloc(1, sizeof *request, "request", &request);
    if (status != AVL_OK) {
        free(bytes);
        return status;
    }
    begin_grpc(); /* a request may exist before a connection */
    grpc_slice slice =
        byte_count > 0 ? grpc_slice_new(bytes, byte_count, free) : grpc_empty_slice();
    if (byte_count == 0)
        free(bytes);
    request->buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    *request_p = request;
    return AVL_OK;
}

void avl_rpc_request_destroy(avl_rpc_request_t *request) {
    if (request == NULL)
        return;
    grpc_byte_buffer_destroy(request->buffer);
    grpc_shutdown();
    free(request);
}

static avl_status_t status_of_code(grpc_status_code code) {
    switch (code) {
    case GRPC_STATUS_OK:
        return AVL_OK;
    case GRPC_STATUS_CANCELLED:
        return AVL_ERR_CANCELLED;
    case GRPC_STATUS_INVALID_ARGUMENT:
    case GRPC_STATUS_FAILED_PRECONDITION:
        return AVL_ERR_INVALID;
    case GRPC_STATUS_OUT_OF_RANGE:
        return AVL_ERR_TOO_LARGE;
    case GRPC_STATUS_NOT_FOUND:
        return AVL_ERR_NOT_FOUND;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return AVL_ERR_DEADLINE;
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        return AVL_ERR_EXHAUSTED;
    case GRPC_STATUS_UNIMPLEMENTED:
        return AVL_ERR_UNSUPPORTED;
    case GRPC_STATUS_UNAVAILABLE:
        return AVL_ERR_UNAVAILABLE;
    default:
        return AVL_ERR_INTERNAL;
    }
}

void avl_rpc_cancel(avl_rpc_call_t *call, avl_status_t reason, const char *detail) {
    if (call->local_status != AVL_OK)
        return;
    call->local_status = reason;
    snprintf(call->local_detail, sizeof call->local_detail, "%s", detail);
    grpc_call_cancel(call->core, NULL);
}

static avl_status_t start_batch(avl_rpc_call_t *call, const grpc_op *operations, size_t count,
                                operation_t operation) {
    tag_t *tag = &call->tags[operation];
    grpc_call_error error = grpc_call_start_batch(call->core, operations, count, tag, NULL);
    if (error != GRPC_CALL_OK)
        return avl_fail(AVL_ERR_INTERNAL, "gRPC refused an operation: %s",
                        grpc_call_error_to_string(error));
    tag->pending = true;
    return AVL_OK;
}

static avl_status_t receive_next(avl_rpc_call_t *call) {
    grpc_op operation = {.op = GRPC_OP_RECV_MESSAGE,
                         .data.recv_message.recv_message = &call->message};
    return start_batch(call, &operation, 1, OPERATION_MESSAGE);
}

static avl_status_t start_operations(avl_rpc_call_t *call, grpc_byte_buffer *request) {
    grpc_op status_operation = {
        .op = GRPC_OP_RECV_STATUS_ON_CLIENT,
        .data.recv_status_on_client = {.trailing_metadata = &call->trailing_metadata,
                                       .status = &call->code,
                                       .status_details = &call->details}};
    AVL_TRY(start_batch(call, &status_operation, 1, OPERATION_STATUS));
    grpc_op operations[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = request},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &call->initial_metadata},
    };
    AVL_TRY(
        start_batch(call, operations, sizeof operations / sizeof operations[0], OPERATION_START));
    return receive_next(call);
}

avl_status_t avl_rpc_start(avl_rpc_t *rpc, const char *method, const avl_rpc_request_t *request,
                           int64_t timeout_ns, const avl_rpc_handler_t *handler,
                           avl_rpc_call_t **call_p) {
    avl_rpc_call_t *call = NULL;
    AVL_TRY(avl_alloc(1, sizeof *call, "call", &call));
    call->rpc = rpc;
    call->handler = *handler;
    for (operation_t i = OPERATION_START; i < OPERATION_COUNT; i++)
        call->tags[i] = (tag_t){.call = call, .operation = i};
    call->details = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial_metadata);
    grpc_metadata_array_init(&call->trailing_metadata);
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (timeout_ns != AVL_DEADLINE_NONE)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_nanos(timeout_ns, GPR_TIMESPAN));
    grpc_channel *channel = rpc->channels[rpc->next_channel++ % rpc->channel_count];
    grpc_slice method_slice = grpc_slice_from_copied_string(method);
    call->core = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, rpc->queue,
                                          method_slice, NULL, deadline, NULL);
    grpc_slice_unref(method_slice);
    call->next = rpc->calls;
    call->link = &rpc->calls;
    if (call->next != NULL)
        call->next->link = &call->next;
    rpc->calls = call;
    rpc->call_count++;
    /* From here on the end comes through the queue: the first batch, at least, is accepted. */
    avl_status_t status = start_operations(call, request->buffer);
    if (status != AVL_OK) {
        AVL_ASSERT(call->tags[OPERATION_STATUS].pending);
        avl_rpc_cancel(call, status, avl_status_detail());
    }
    if (call_p != NULL)
        *call_p = call;
    return AVL_OK;
}

static void take_message(avl_rpc_call_t *call) {
    if (call->message == NULL)
        return; /* end of the answer; the status follows */
    avl_status_t status = AVL_OK;
    grpc_byte_buffer_reader reader;
    if (call->local_status != AVL_OK) {
        /* Given up: nobody wants what was still on its way. */
    } else if (!grpc_byte_buffer_reader_init(&reader, call->message)) {
        status = avl_fail(AVL_ERR_INTERNAL, "the answer cannot be decompressed");
    } else {
        grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
        status = call->handler.on_message(call->handler.context, GRPC_SLICE_START_PTR(all),
                                          GRPC_SLICE_LENGTH(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(call->message);
    call->message = NULL;
    if (status == AVL_OK)
        status = receive_next(call); /* after a cancellation as well: it ends with NULL */
    if (status != AVL_OK)
        avl_rpc_cancel(call, status, avl_status_detail());
}

/* The call's result with its text in `detail`. */
static avl_status_t call_result(const avl_rpc_call_t *call, char *detail, size_t detail_bytes) {
    detail[0] = '\0';
    if (call->local_status != AVL_OK) {
        snprintf(detail, detail_bytes, "%s", call->local_detail);
        return call->local_status;
    }
    avl_status_t status = status_of_code(call->code);
    if (status == AVL_OK)
        return AVL_OK;
    char *text = grpc_slice_to_c_string(call->details);
    const char *address = call->rpc->address;
    if (call->code == GRPC_STATUS_UNAVAILABLE && strstr(text, "DNS resolution failed") != NULL)
        snprintf(detail, detail_bytes, "%s: no such host", address);
    else if (call->code == GRPC_STATUS_UNAVAILABLE && strstr(text, "failed to connect") != NULL)
        snprintf(detail, detail_bytes,
                 "no service answers at %s: is avl-coordinator running there?", address);
    else if (call->code == GRPC_STATUS_DEADLINE_EXCEEDED && strcmp(text, "Deadline Exceeded") == 0)
        snprintf(detail, detail_bytes, "no complete answer within the time given");
    else if (text[0] == '\0')
        snprintf(detail, detail_bytes, "the server gave status %d and no text", (int)call->code);
    else
        snprintf(detail, detail_bytes, "%s", text);
    gpr_free(text);
    return status;
}

static void end_call(avl_rpc_call_t *call) {
    char detail[AVL_STATUS_DETAIL_BYTES];
    avl_status_t status = call_result(call, detail, sizeof detail);
    *call->link = call->next;
    if (call->next != NULL)
        call->next->link = call->link;
    call->rpc->call_count--;
    call->handler.on_end(call->handler.context, status, detail);
    grpc_call_unref(call->core);
    grpc_slice_unref(call->details);
    grpc_metadata_array_destroy(&call->initial_metadata);
    grpc_metadata_array_destroy(&call->trailing_metadata);
    free(call);
}

static gpr_timespec grpc_time(int64_t until_ns) {
    if (until_ns == INT64_MAX)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    int64_t wait_ns = until_ns - avl_clock_now_ns();
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos(wait_ns > 0 ? wait_ns : 0, GPR_TIMESPAN));
}

void avl_rpc_poll(avl_rpc_t *rpc, int64_t until_ns) {
    grpc_event event = grpc_completion_queue_next(rpc->queue, grpc_time(until_ns), NULL);
    if (event.type != GRPC_OP_COMPLETE)
        return;
    tag_t *tag = event.tag;
    avl_rpc_call_t *call = tag->call;
    tag->pending = false;
    if (tag->operation == OPERATION_MESSAGE)
        take_message(call);
    for (operation_t i = OPERATION_START; i < OPERATION_COUNT; i++) {
        if (call->tags[i].pending)
            return;
    }
    end_call(call);
}

size_t avl_rpc_active(const avl_rpc_t *rpc) {
    return rpc->call_count;
}

typedef struct single_call {
    avl_status_t (*on_message)(void *context, const uint8_t *bytes, size_t byte_count);
    void *context;
    bool ended;
    avl_status_t status;
} single_call_t;

static avl_status_t single_message(void *context, const uint8_t *bytes, size_t byte_count) {
    single_call_t *single = context;
    return single->on_message(single->context, bytes, byte_count);
}

static void single_end(void *context, avl_status_t status, const char *detail) {
    single_call_t *single = context;
    single->ended = true;
    single->status = status != AVL_OK ? avl_fail(status, "%s", detail) : AVL_OK;
}

avl_status_t avl_rpc_call(avl_rpc_t *rpc, const char *method, const avl_rpc_request_t *request,
                          int64_t timeout_ns, const volatile sig_atomic_t *stop_p,
                          avl_status_t (*on_message)(void *context, const uint8_t *bytes,
                                                     size_t byte_count),
                          void *context) {
    single_call_t single = {.on_message = on_message, .context = context};
    avl_rpc_handler_t handler = {
        .on_message = single_message, .on_end = single_end, .context = &single};
    avl_rpc_call_t *call = NULL;
    AVL_TRY(avl_rpc_start(rpc, method, request, timeout_ns, &handler, &call));
    while (!single.ended) {
        if (stop_p != NULL && *stop_p)
            avl_rpc_cancel(call, AVL_ERR_CANCELLED, "interrupted");
        avl_rpc_poll(rpc, avl_clock_now_ns() + STOP_POLL_NS);
    }
    return single.status;
}
