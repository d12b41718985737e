/* coordinator/listen_address.h: what gRPC does not say about an address to listen on. */
#ifndef AVL_COORDINATOR_LISTEN_ADDRESS_H
#define AVL_COORDINATOR_LISTEN_ADDRESS_H

#include "base/status.h"

/* Whether `address` is "HOST:PORT" or "unix:PATH", and nobody listens on the path.
 * Errors: AVL_ERR_INVALID, AVL_ERR_IO. */
AVL_MUST_CHECK avl_status_t avl_listen_address_check(const char *address);
/* Why it could not be bound: tries it the plain way for errno. Never AVL_OK. */
AVL_MUST_CHECK avl_status_t avl_listen_address_explain(const char *address);

#endif
