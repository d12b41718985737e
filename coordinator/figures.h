/* coordinator/figures.h: the answer of GetStats. */
#ifndef AVL_COORDINATOR_FIGURES_H
#define AVL_COORDINATOR_FIGURES_H

#include "coordinator/monitor.h"

/* Errors: those of avl_call_send. */
AVL_MUST_CHECK avl_status_t avl_figures_send(const avl_monitor_t *monitor, avl_call_t *call);

#endif
