/* coordinator/http.h: a small HTTP server for machines that watch this one: fixed paths, GET and
 * HEAD, whole answers.
 *
 * It lives on one thread of its own, over libmicrohttpd (http.c is its only user), apart from
 * gRPC's: whatever is sent to this port can at most make this port busy. Bounds: AVL_HTTP_*; a
 * connection is closed after one answer, and when it grows too old, however busily it drips. */
#ifndef AVL_COORDINATOR_HTTP_H
#define AVL_COORDINATOR_HTTP_H

#include <stddef.h>

#include "base/status.h"

#define AVL_HTTP_CONNECTIONS_MAX 64      /* more are refused */
#define AVL_HTTP_CONNECTION_AGE_MAX_S 10 /* from accept to close, everything included */
#define AVL_HTTP_REQUEST_BYTES_MAX 16384 /* line and headers */

typedef struct avl_http avl_http_t;

typedef struct avl_http_answer {
    unsigned status; /* 200, 503, ... */
    const char *content_type;
    char *body; /* malloc'ed; the server frees it */
    size_t body_bytes;
} avl_http_answer_t;

typedef struct avl_http_route {
    const char *path; /* "/metrics" */
    void *context;
    /* Fills the answer, on the server's thread; `accept` is the client's Accept header or "". A
     * failure becomes 500 with its text. Must be short. */
    avl_status_t (*answer)(void *context, const char *accept, avl_http_answer_t *answer_p);
} avl_http_route_t;

/* Serves on `address` ("HOST:PORT", port 0: the kernel picks one; [IPV6]:PORT). `routes` are kept
 * by the caller as long as the server. Errors: AVL_ERR_INVALID (no such address), AVL_ERR_IO (it
 * is taken; the cause is named), AVL_ERR_MEMORY, AVL_ERR_EXHAUSTED without a thread. */
AVL_MUST_CHECK avl_status_t avl_http_create(const char *address, const avl_http_route_t *routes,
                                            size_t route_count, avl_http_t **http_p);
/* The address with the real port. */
const char *avl_http_address(const avl_http_t *http);
/* Closes every connection. NULL is allowed. */
void avl_http_destroy(avl_http_t *http);

#endif
