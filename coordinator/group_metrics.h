/* coordinator/group_metrics.h: each worker group's state and what its leader told last, as metrics
 * with the label `group`, its number. */
#ifndef AVL_COORDINATOR_GROUP_METRICS_H
#define AVL_COORDINATOR_GROUP_METRICS_H

#include "coordinator/groups.h"
#include "coordinator/metrics.h"

const char *avl_group_state_name(avl_worker_group_state_t state);
void avl_group_metrics_write(avl_groups_t *groups, avl_exposition_t *exposition);

#endif
