/* coordinator/group_metrics.h: a worker group's state and what its leader told last, as metrics. */
#ifndef AVL_COORDINATOR_GROUP_METRICS_H
#define AVL_COORDINATOR_GROUP_METRICS_H

#include "coordinator/metrics.h"
#include "coordinator/worker_group.h"

const char *avl_group_state_name(avl_worker_group_state_t state);
void avl_group_metrics_write(avl_worker_group_t *group, avl_exposition_t *exposition);

#endif
