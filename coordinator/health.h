/* coordinator/health.h: grpc.health.v1, Check and Watch, for "" and "avl.v1.Inference". */
#ifndef AVL_COORDINATOR_HEALTH_H
#define AVL_COORDINATOR_HEALTH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "coordinator/grpc_server.h"

#define AVL_HEALTH_METHODS 2

typedef struct avl_health avl_health_t;

/* Starts as NOT_SERVING. */
AVL_MUST_CHECK avl_status_t avl_health_create(avl_health_t **health_p);
void avl_health_methods(avl_health_t *health, avl_method_t methods[AVL_HEALTH_METHODS]);
/* Watchers hear of a change at once. */
void avl_health_set(avl_health_t *health, bool serving);
bool avl_health_serving(avl_health_t *health);
/* NOT_SERVING for good; ends every watch as UNAVAILABLE, since an open one would keep the server
 * from stopping. */
void avl_health_end(avl_health_t *health);
/* All calls must be over. */
void avl_health_destroy(avl_health_t *health);

#endif
