/* client/info.h: what a service says about itself. */
#ifndef AVL_CLIENT_INFO_H
#define AVL_CLIENT_INFO_H

#include "base/status.h"
#include "client/rpc.h"
#include "proto/inference.pb-c.h"

/* Asks for the model behind the service; free it with the generated free_unpacked function.
 * Errors: AVL_ERR_UNAVAILABLE and the other ends of a call, AVL_ERR_INTERNAL. */
AVL_MUST_CHECK avl_status_t avl_info_get(avl_rpc_t *rpc, Avl__V1__GetModelInfoResponse **info_p);

#endif
