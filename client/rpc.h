/* client/rpc.h: one connection to a service and calls over it: the client's only door to gRPC. */
#ifndef AVL_CLIENT_RPC_H
#define AVL_CLIENT_RPC_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct avl_rpc avl_rpc_t;

/* Prepares a connection to "HOST:PORT" or "unix:PATH"; nothing is sent yet. Errors:
 * AVL_ERR_INVALID, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_rpc_open(const char *address, avl_rpc_t **rpc_p);
void avl_rpc_close(avl_rpc_t *rpc);

/* Takes one message of the answer; a failure cancels the call and is what avl_rpc_call returns. */
typedef avl_status_t (*avl_rpc_message_t)(void *context, const uint8_t *bytes, size_t byte_count);

/* Calls `method` ("/avl.v1.Inference/Generate") with one message and hands every message of the
 * answer to `on_message`. Returns when the call has ended. `timeout_ns` travels to the server as
 * the call's deadline (AVL_DEADLINE_NONE: none). `*stop_p`, when it becomes non-zero (a signal
 * handler may set it), cancels the call: AVL_ERR_CANCELLED. Errors: the server's status,
 * translated, with its own text; AVL_ERR_UNAVAILABLE when nobody answers at the address. */
AVL_MUST_CHECK avl_status_t avl_rpc_call(avl_rpc_t *rpc, const char *method, const uint8_t *request,
                                         size_t request_bytes, int64_t timeout_ns,
                                         const volatile sig_atomic_t *stop_p,
                                         avl_rpc_message_t on_message, void *context);

#endif
