/* coordinator/process_metrics.h: the process_* metrics that Prometheus' own libraries export, of
 * this process. */
#ifndef AVL_COORDINATOR_PROCESS_METRICS_H
#define AVL_COORDINATOR_PROCESS_METRICS_H

#include "coordinator/metrics.h"

/* What /proc does not tell is left out. */
void avl_process_metrics_write(avl_exposition_t *exposition);

#endif
