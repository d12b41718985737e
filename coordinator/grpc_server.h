/* coordinator/grpc_server.h: a gRPC server over the C core: methods in, messages out, nothing of
 * what they mean.
 *
 * It owns the completion queue, its threads and the call objects, and answers by itself what no
 * method should have to care about: unknown methods (UNIMPLEMENTED), oversized messages
 * (RESOURCE_EXHAUSTED), connections that speak no HTTP/2, clients that vanish. All use of gRPC on
 * this side of the wire is in grpc_server.c.
 *
 * A call: `begin` once, then `message` for every further message of a streaming client, at last
 * `close`, exactly once, whatever happened. With more than one thread `message` and `close` of one
 * call may overlap; nothing follows `close` but a `message` that had begun before. Handlers run on
 * the server's threads and must be short.
 *
 * Sending never blocks: messages wait in the call's queue, bounded by send_queue_bytes_max, one
 * being on its way. */
#ifndef AVL_COORDINATOR_GRPC_SERVER_H
#define AVL_COORDINATOR_GRPC_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/status.h"

typedef struct avl_server avl_server_t;
typedef struct avl_call avl_call_t;
typedef struct avl_payload avl_payload_t;

/* gRPC's status codes, by its numbers. */
typedef enum avl_rpc_code {
    AVL_RPC_OK = 0,
    AVL_RPC_CANCELLED = 1,
    AVL_RPC_INVALID_ARGUMENT = 3,
    AVL_RPC_DEADLINE_EXCEEDED = 4,
    AVL_RPC_NOT_FOUND = 5,
    AVL_RPC_PERMISSION_DENIED = 7,
    AVL_RPC_RESOURCE_EXHAUSTED = 8,
    AVL_RPC_UNIMPLEMENTED = 12,
    AVL_RPC_INTERNAL = 13,
    AVL_RPC_UNAVAILABLE = 14,
} avl_rpc_code_t;

/* The one table from avl_status_t to gRPC. A prompt beyond the context or a picture beyond the
 * pixel limit (TOO_LARGE) is INVALID_ARGUMENT, since no retry mends it; RESOURCE_EXHAUSTED means
 * "not now". */
avl_rpc_code_t avl_rpc_code(avl_status_t status);
const char *avl_rpc_code_name(avl_rpc_code_t code);

typedef struct avl_method {
    const char *path; /* "/package.Service/Method" */
    bool client_streams;
    void *context;
    /* `request`, owned by the handler, is the client's one message; NULL when the client streams,
     * or sent none. */
    void (*begin)(void *context, avl_call_t *call, avl_payload_t *request);
    /* A further message, owned by the handler; NULL: the client has said all. Only for
     * client_streams. */
    void (*message)(void *context, avl_call_t *call, avl_payload_t *message);
    /* The call is over; `cancelled` when the client did not get a status: it cancelled, vanished,
     * or its deadline passed. May be NULL. */
    void (*close)(void *context, avl_call_t *call, bool cancelled);
} avl_method_t;

/* Hears of every call, on the server's threads; `method` is NULL for methods that do not exist. */
typedef struct avl_server_observer {
    void *context;
    void (*started)(void *context, const avl_method_t *method);
    /* With the status that the client was given, or would have been. */
    void (*ended)(void *context, const avl_method_t *method, avl_rpc_code_t code);
} avl_server_observer_t;

typedef struct avl_server_config {
    const char *address;         /* "HOST:PORT" (port 0: the kernel picks one) or "unix:PATH" */
    const avl_method_t *methods; /* kept by the caller as long as the server */
    size_t method_count;
    int threads;                    /* 1: handlers never run side by side */
    int64_t message_bytes_max;      /* of a received message; -1: any */
    size_t send_queue_bytes_max;    /* of one call */
    int keepalive_ms;               /* a silent peer is asked after so long ... */
    int keepalive_timeout_ms;       /* ... and given up after so much longer */
    avl_server_observer_t observer; /* its functions may be NULL */
} avl_server_config_t;

/* Binds and serves. Errors: AVL_ERR_INVALID (no such address), AVL_ERR_IO (it is taken; the cause
 * is named), AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_server_create(const avl_server_config_t *config,
                                              avl_server_t **server_p);
/* The address with the real port. */
const char *avl_server_address(const avl_server_t *server);
/* Closes the listener, gives running calls `grace_ns` to end, cancels the rest, and waits for their
 * `close`. */
void avl_server_stop(avl_server_t *server, int64_t grace_ns);
/* After avl_server_stop; waits until nobody holds a call any more. */
void avl_server_destroy(avl_server_t *server);

void avl_call_ref(avl_call_t *call);
void avl_call_unref(avl_call_t *call);
/* The client's deadline on avl_clock, or AVL_DEADLINE_NONE. */
int64_t avl_call_deadline_ns(const avl_call_t *call);
/* Whether a client that gives the call up now does so because its deadline has come. Its clock may
 * ring a little before ours, and the wire rounds deadlines up. */
bool avl_call_late(const avl_call_t *call);
/* A pointer of the handler's own; set it in `begin`. */
void avl_call_set_user(avl_call_t *call, void *user);
void *avl_call_user(const avl_call_t *call);

/* Copies the value of a client's metadata entry, "" if it sent none. Errors: AVL_ERR_INVALID: it
 * has more than value_bytes - 1 bytes, or others than printable ASCII. */
AVL_MUST_CHECK avl_status_t avl_call_metadata(const avl_call_t *call, const char *key, char *value,
                                              size_t value_bytes);
/* With the status goes when the client should try again: `retry-after-ms`, and
 * `grpc-retry-pushback-ms` for clients whose library retries by itself. Before the end. */
void avl_call_set_retry(avl_call_t *call, int64_t after_ns);

/* Tells the client that it was accepted, before any message. */
void avl_call_accept(avl_call_t *call);
/* Queues a message. Errors: AVL_ERR_EXHAUSTED (the client does not read: the queue is full),
 * AVL_ERR_CANCELLED (the call is over), AVL_ERR_MEMORY; the message is dropped then. */
AVL_MUST_CHECK avl_status_t avl_call_send(avl_call_t *call, const ProtobufCMessage *message);
/* Ends the call when all that was queued is sent. A second end is ignored. */
void avl_call_finish(avl_call_t *call, avl_rpc_code_t code, const char *text);
/* Ends the call now: what is queued is dropped. */
void avl_call_abort(avl_call_t *call, avl_rpc_code_t code, const char *text);

/* Shows the message's bytes as they came, in portions, without touching them; nothing when it is
 * compressed or has been read. */
void avl_payload_peek(avl_payload_t *payload,
                      void (*portion)(void *context, const uint8_t *bytes, size_t byte_count),
                      void *context);
/* The message's bytes in one piece; they live as long as the payload. */
AVL_MUST_CHECK avl_status_t avl_payload_read(avl_payload_t *payload, const uint8_t **bytes_p,
                                             size_t *byte_count_p);
void avl_payload_free(avl_payload_t *payload);

#endif
