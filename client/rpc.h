/* client/rpc.h: a connection to a service and any number of calls over it: the client's only door
 * to gRPC.
 *
 * Everything happens on the thread that calls avl_rpc_poll: a call's handler runs inside it and
 * nowhere else. Handlers may start and cancel calls, but neither poll nor close. */
#ifndef AVL_CLIENT_RPC_H
#define AVL_CLIENT_RPC_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define AVL_RPC_CHANNELS_MAX 64

typedef struct avl_rpc avl_rpc_t;
typedef struct avl_rpc_call avl_rpc_call_t;
/* One message to send; several calls may share it. */
typedef struct avl_rpc_request avl_rpc_request_t;

typedef struct avl_rpc_handler {
    /* Takes one message of the answer; a failure cancels the call and is what on_end reports. */
    avl_status_t (*on_message)(void *context, const uint8_t *bytes, size_t byte_count);
    /* Called exactly once, last. `detail` is the text of a failure: this side's or, translated, the
     * server's; it lives as long as this function runs. The call's handle is gone afterwards. */
    void (*on_end)(void *context, avl_status_t status, const char *detail);
    void *context;
} avl_rpc_handler_t;

/* Whether `address` is "HOST:PORT", "[IPV6]:PORT", "unix:PATH" or "unix-abstract:NAME". Errors:
 * AVL_ERR_INVALID. */
AVL_MUST_CHECK avl_status_t avl_rpc_check_address(const char *address);

/* Prepares `channel_count` (1..AVL_RPC_CHANNELS_MAX) connections to `address`; nothing is sent yet.
 * Calls take them in turn. Errors: AVL_ERR_INVALID, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_rpc_open(const char *address, size_t channel_count,
                                         avl_rpc_t **rpc_p);
/* Cancels what is still under way, reporting it to the handlers. NULL is allowed. */
void avl_rpc_close(avl_rpc_t *rpc);

/* Takes `bytes` (from malloc; NULL for an empty message), on failure as well. Errors:
 * AVL_ERR_TOO_LARGE (more than a gRPC message can be), AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_rpc_request_create(uint8_t *bytes, size_t byte_count,
                                                   avl_rpc_request_t **request_p);
/* Calls under way keep what they need. NULL is allowed. */
void avl_rpc_request_destroy(avl_rpc_request_t *request);

/* Calls `method` ("/avl.v1.Inference/Generate"). `timeout_ns` travels to the server as the call's
 * deadline (AVL_DEADLINE_NONE: none). Errors: AVL_ERR_MEMORY, AVL_ERR_INTERNAL, without on_end;
 * whatever happens later is on_end's. `call_p` may be NULL. */
AVL_MUST_CHECK avl_status_t avl_rpc_start(avl_rpc_t *rpc, const char *method,
                                          const avl_rpc_request_t *request, int64_t timeout_ns,
                                          const avl_rpc_handler_t *handler,
                                          avl_rpc_call_t **call_p);
/* Gives the call up; on_end follows with `reason` and `detail`. The first reason counts. */
void avl_rpc_cancel(avl_rpc_call_t *call, avl_status_t reason, const char *detail);

/* Waits until `until_ns` of the monotonic clock for something to happen, and handles what has
 * happened; returns early when something was handled. */
void avl_rpc_poll(avl_rpc_t *rpc, int64_t until_ns);
/* Calls whose on_end is still to come. */
size_t avl_rpc_active(const avl_rpc_t *rpc);

/* One call from start to end. `*stop_p`, when it becomes non-zero (a signal handler may set it),
 * cancels it: AVL_ERR_CANCELLED. `stop_p` may be NULL. Errors: the call's. */
AVL_MUST_CHECK avl_status_t
avl_rpc_call(avl_rpc_t *rpc, const char *method, const avl_rpc_request_t *request,
             int64_t timeout_ns, const volatile sig_atomic_t *stop_p,
             avl_status_t (*on_message)(void *context, const uint8_t *bytes, size_t byte_count),
             void *context);

#endif
