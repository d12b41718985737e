/* client/rpc.c: see rpc.h. One completion queue, one call at a time, no thread of its own. */
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

/* How often a waiting call looks at the stop flag. */
#define STOP_POLL_NS (50 * AVL_NS_PER_MS)

struct avl_rpc {
    grpc_completion_queue *queue;
    grpc_channel *channel;
    char *address;
};

/* Names of the operations that are under way on a call, as completion tags. */
enum { TAG_START = 1, TAG_MESSAGE, TAG_STATUS };

typedef struct call_state {
    grpc_call *call;
    grpc_byte_buffer *message; /* filled by TAG_MESSAGE; NULL: the answer has ended */
    grpc_metadata_array initial_metadata;
    grpc_metadata_array trailing_metadata;
    grpc_status_code code;
    grpc_slice details;
    bool start_pending, message_pending, status_pending;
    avl_status_t local_status; /* why this side cancelled */
    char local_detail[AVL_STATUS_DETAIL_BYTES];
} call_state_t;

avl_status_t avl_rpc_open(const char *address, avl_rpc_t **rpc_p) {
    if (address[0] == '\0')
        return avl_fail(AVL_ERR_INVALID, "the server's address is empty");
    avl_rpc_t *rpc = NULL;
    AVL_TRY(avl_alloc(1, sizeof *rpc, "connection", &rpc));
    avl_status_t status = avl_copy_string(address, &rpc->address);
    if (status != AVL_OK) {
        free(rpc);
        return status;
    }
    grpc_init();
    rpc->queue = grpc_completion_queue_create_for_next(NULL);
    /* Answers are small; the bound guards against a server that is none of ours. */
    grpc_arg arguments[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = 16 << 20},
    };
    grpc_channel_args channel_arguments = {.num_args = 1, .args = arguments};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    rpc->channel = grpc_channel_create(address, credentials, &channel_arguments);
    grpc_channel_credentials_release(credentials);
    *rpc_p = rpc;
    return AVL_OK;
}

void avl_rpc_close(avl_rpc_t *rpc) {
    if (rpc == NULL)
        return;
    grpc_channel_destroy(rpc->channel);
    grpc_completion_queue_shutdown(rpc->queue);
    while (grpc_completion_queue_next(rpc->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL).type !=
           GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(rpc->queue);
    grpc_shutdown();
    free(rpc->address);
    free(rpc);
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

/* Cancels the call for a reason of this side; the first reason counts. */
static void cancel_locally(call_state_t *state, avl_status_t status) {
    if (state->local_status != AVL_OK)
        return;
    state->local_status = status;
    snprintf(state->local_detail, sizeof state->local_detail, "%s", avl_status_detail());
    grpc_call_cancel(state->call, NULL);
}

static avl_status_t start_batch(call_state_t *state, const grpc_op *operations, size_t count,
                                int tag, bool *pending_p) {
    grpc_call_error error =
        grpc_call_start_batch(state->call, operations, count, (void *)(intptr_t)tag, NULL);
    if (error != GRPC_CALL_OK)
        return avl_fail(AVL_ERR_INTERNAL, "gRPC refused an operation: %s",
                        grpc_call_error_to_string(error));
    *pending_p = true;
    return AVL_OK;
}

static avl_status_t receive_next(call_state_t *state) {
    grpc_op operation = {.op = GRPC_OP_RECV_MESSAGE,
                         .data.recv_message.recv_message = &state->message};
    return start_batch(state, &operation, 1, TAG_MESSAGE, &state->message_pending);
}

static avl_status_t start_call(call_state_t *state, grpc_byte_buffer *request) {
    grpc_op status_operation = {
        .op = GRPC_OP_RECV_STATUS_ON_CLIENT,
        .data.recv_status_on_client = {.trailing_metadata = &state->trailing_metadata,
                                       .status = &state->code,
                                       .status_details = &state->details}};
    AVL_TRY(start_batch(state, &status_operation, 1, TAG_STATUS, &state->status_pending));
    grpc_op operations[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = request},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &state->initial_metadata},
    };
    AVL_TRY(start_batch(state, operations, sizeof operations / sizeof operations[0], TAG_START,
                        &state->start_pending));
    return receive_next(state);
}

static void take_message(call_state_t *state, avl_rpc_message_t on_message, void *context) {
    if (state->message == NULL)
        return; /* end of the answer; the status follows */
    avl_status_t status;
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, state->message)) {
        status = avl_fail(AVL_ERR_INTERNAL, "the answer cannot be decompressed");
    } else {
        grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
        status = on_message(context, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(state->message);
    state->message = NULL;
    if (status == AVL_OK && state->local_status == AVL_OK)
        status = receive_next(state);
    if (status != AVL_OK)
        cancel_locally(state, status);
}

/* Runs the call's events until none of its operations is under way. */
static void run_call(avl_rpc_t *rpc, call_state_t *state, const volatile sig_atomic_t *stop_p,
                     avl_rpc_message_t on_message, void *context) {
    while (state->start_pending || state->message_pending || state->status_pending) {
        gpr_timespec until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                          gpr_time_from_nanos(STOP_POLL_NS, GPR_TIMESPAN));
        grpc_event event = grpc_completion_queue_next(rpc->queue, until, NULL);
        if (stop_p != NULL && *stop_p)
            cancel_locally(state, avl_fail(AVL_ERR_CANCELLED, "interrupted"));
        if (event.type != GRPC_OP_COMPLETE)
            continue;
        switch ((int)(intptr_t)event.tag) {
        case TAG_START:
            state->start_pending = false;
            break;
        case TAG_MESSAGE:
            state->message_pending = false;
            take_message(state, on_message, context);
            break;
        case TAG_STATUS:
            state->status_pending = false;
            break;
        }
    }
}

static avl_status_t call_result(const avl_rpc_t *rpc, const call_state_t *state) {
    if (state->local_status != AVL_OK)
        return avl_fail(state->local_status, "%s", state->local_detail);
    if (state->code == GRPC_STATUS_OK)
        return AVL_OK;
    char *details = grpc_slice_to_c_string(state->details);
    avl_status_t status = status_of_code(state->code);
    if (state->code == GRPC_STATUS_UNAVAILABLE && strstr(details, "failed to connect") != NULL)
        status = avl_fail(status, "no service answers at %s: is avl-coordinator running there?",
                          rpc->address);
    else
        status = avl_fail(status, "%s", details);
    gpr_free(details);
    return status;
}

avl_status_t avl_rpc_call(avl_rpc_t *rpc, const char *method, const uint8_t *request,
                          size_t request_bytes, int64_t timeout_ns,
                          const volatile sig_atomic_t *stop_p, avl_rpc_message_t on_message,
                          void *context) {
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (timeout_ns != AVL_DEADLINE_NONE)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_nanos(timeout_ns, GPR_TIMESPAN));
    call_state_t state = {.details = grpc_empty_slice()};
    grpc_metadata_array_init(&state.initial_metadata);
    grpc_metadata_array_init(&state.trailing_metadata);
    grpc_slice method_slice = grpc_slice_from_copied_string(method);
    state.call = grpc_channel_create_call(rpc->channel, NULL, GRPC_PROPAGATE_DEFAULTS, rpc->queue,
                                          method_slice, NULL, deadline, NULL);
    grpc_slice request_slice = grpc_slice_from_copied_buffer((const char *)request, request_bytes);
    grpc_byte_buffer *request_buffer = grpc_raw_byte_buffer_create(&request_slice, 1);
    grpc_slice_unref(request_slice);

    avl_status_t status = start_call(&state, request_buffer);
    if (status != AVL_OK)
        cancel_locally(&state, status);
    run_call(rpc, &state, stop_p, on_message, context);
    status = call_result(rpc, &state);

    grpc_byte_buffer_destroy(request_buffer);
    grpc_call_unref(state.call);
    grpc_slice_unref(method_slice);
    grpc_slice_unref(state.details);
    grpc_metadata_array_destroy(&state.initial_metadata);
    grpc_metadata_array_destroy(&state.trailing_metadata);
    return status;
}
