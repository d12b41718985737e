#include "coordinator/monitor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "coordinator/figures.h"
#include "coordinator/group_metrics.h"
#include "coordinator/process_metrics.h"

static void write_service(const avl_monitor_t *monitor, avl_exposition_t *exposition) {
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, "avl_build_info",
                          "Always 1; the labels tell what runs.");
    const avl_label_t build[] = {{"version", AVL_VERSION}, {"model_name", monitor->model_name}};
    avl_exposition_integer(exposition, build, 2, 1);
    avl_exposition_gauge(exposition, "avl_ready",
                         "1: a worker group is ready and the service is not draining.",
                         avl_health_serving(monitor->health));
}

static void write_pool(const avl_monitor_t *monitor, avl_exposition_t *exposition) {
    avl_thread_pool_counts_t counts = avl_thread_pool_counts(monitor->pool);
    avl_exposition_gauge(exposition, "avl_preprocess_queue_depth",
                         "Jobs that wait for a preprocessing thread.", (double)counts.queued);
    avl_exposition_gauge(exposition, "avl_preprocess_queue_capacity",
                         "Jobs that may wait; further ones are refused.",
                         (double)monitor->pool_capacity);
    avl_exposition_gauge(exposition, "avl_preprocess_running", "Jobs that are being worked on.",
                         (double)counts.running);
    avl_exposition_gauge(exposition, "avl_preprocess_threads", "Threads that do it.",
                         monitor->pool_threads);
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "avl_preprocess_jobs_total",
                          "Jobs of the preprocessing threads, by how they ended.");
    const struct {
        const char *result;
        uint64_t count;
    } results[] = {{"completed", counts.completed},
                   {"cancelled", counts.cancelled},
                   {"refused", counts.refused}};
    for (size_t i = 0; i < 3; i++) {
        const avl_label_t label = {"result", results[i].result};
        avl_exposition_integer(exposition, &label, 1, (int64_t)results[i].count);
    }
}

static avl_status_t answer_metrics(void *context, const char *accept, avl_http_answer_t *answer_p) {
    const avl_monitor_t *monitor = context;
    bool open = strstr(accept, "application/openmetrics-text") != NULL;
    avl_exposition_format_t format = open ? AVL_EXPOSITION_OPENMETRICS : AVL_EXPOSITION_TEXT;
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    if (stream == NULL)
        return avl_fail(AVL_ERR_MEMORY, "no memory for the metrics");
    avl_exposition_t exposition;
    avl_exposition_begin(&exposition, stream, format);
    write_service(monitor, &exposition);
    avl_service_metrics_write(monitor->metrics, &exposition);
    write_pool(monitor, &exposition);
    avl_group_metrics_write(monitor->groups, &exposition);
    avl_process_metrics_write(&exposition);
    avl_exposition_end(&exposition);
    bool failed = ferror(stream) != 0;
    if (fclose(stream) != 0 || failed) {
        free(text);
        return avl_fail(AVL_ERR_MEMORY, "no memory for the metrics");
    }
    answer_p->content_type = avl_exposition_content_type(format);
    answer_p->body = text;
    answer_p->body_bytes = bytes;
    return AVL_OK;
}

static avl_status_t answer_text(avl_http_answer_t *answer_p, unsigned status, const char *text) {
    char *body = NULL;
    int bytes = asprintf(&body, "%s\n", text);
    if (bytes < 0)
        return avl_fail(AVL_ERR_MEMORY, "no memory for an answer");
    answer_p->status = status;
    answer_p->body = body;
    answer_p->body_bytes = (size_t)bytes;
    return AVL_OK;
}

static avl_status_t answer_alive(void *context, const char *accept, avl_http_answer_t *answer_p) {
    (void)context;
    (void)accept;
    return answer_text(answer_p, 200, "ok");
}

static avl_status_t answer_ready(void *context, const char *accept, avl_http_answer_t *answer_p) {
    const avl_monitor_t *monitor = context;
    (void)accept;
    if (avl_health_serving(monitor->health))
        return answer_text(answer_p, 200, "ready");
    avl_groups_view_t all;
    avl_groups_view(monitor->groups, &all);
    const avl_worker_group_view_t view = all.best;
    char text[64];
    if (view.state == AVL_WORKER_GROUP_READY)
        snprintf(text, sizeof text, "draining");
    else if (view.state == AVL_WORKER_GROUP_LOADING)
        snprintf(text, sizeof text, "loading, %.0f %%", 100 * view.loading_share);
    else
        snprintf(text, sizeof text, "the worker group is %s", avl_group_state_name(view.state));
    return answer_text(answer_p, 503, text);
}

void avl_monitor_routes(avl_monitor_t *monitor, avl_http_route_t routes[AVL_MONITOR_ROUTES]) {
    routes[0] = (avl_http_route_t){"/metrics", monitor, answer_metrics};
    routes[1] = (avl_http_route_t){"/healthz", monitor, answer_alive};
    routes[2] = (avl_http_route_t){"/readyz", monitor, answer_ready};
}

static void on_stats(void *context, avl_call_t *call, avl_payload_t *payload) {
    avl_payload_free(payload); /* the request has no fields */
    avl_status_t status = avl_figures_send(context, call);
    avl_call_finish(call, avl_rpc_code(status), status == AVL_OK ? "" : avl_status_detail());
}

void avl_monitor_methods(avl_monitor_t *monitor, avl_method_t methods[AVL_MONITOR_METHODS]) {
    methods[0] =
        (avl_method_t){.path = "/avl.v1.Inference/GetStats", .context = monitor, .begin = on_stats};
}
