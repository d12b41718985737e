/* coordinator/monitor.h: what those who watch the service read.
 *
 *   GET /metrics   counts and times, for Prometheus (text 0.0.4, or OpenMetrics when asked for)
 *   GET /healthz   200: this process answers
 *   GET /readyz    200: a worker group is ready and the service is not draining; else 503 and why
 *   GetStats       the key figures over gRPC, for `avl top`
 *
 * Everything is borrowed and read at the moment of asking. */
#ifndef AVL_COORDINATOR_MONITOR_H
#define AVL_COORDINATOR_MONITOR_H

#include "base/thread_pool.h"
#include "coordinator/groups.h"
#include "coordinator/grpc_server.h"
#include "coordinator/health.h"
#include "coordinator/http.h"
#include "coordinator/service_metrics.h"

#define AVL_MONITOR_ROUTES 3
#define AVL_MONITOR_METHODS 1

typedef struct avl_monitor {
    const avl_service_metrics_t *metrics;
    avl_health_t *health;
    avl_groups_t *groups;
    const char *model_name;
    avl_thread_pool_t *pool; /* preprocessing */
    int pool_threads;
    size_t pool_capacity;
    int64_t start_ns; /* of the service, on avl_clock */
} avl_monitor_t;

void avl_monitor_methods(avl_monitor_t *monitor, avl_method_t methods[AVL_MONITOR_METHODS]);
void avl_monitor_routes(avl_monitor_t *monitor, avl_http_route_t routes[AVL_MONITOR_ROUTES]);

#endif
