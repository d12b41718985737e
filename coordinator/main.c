/* avl-coordinator: puts the parts together, waits for signals, and takes them apart again. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "checkpoint/fingerprint.h"
#include "coordinator/api.h"
#include "coordinator/health.h"
#include "coordinator/monitor.h"
#include "coordinator/options.h"
#include "coordinator/reflection.h"
#include "coordinator/scratch.h"
#include "inputs/preprocess.h"

/* Balancers hear NOT_SERVING before the listener closes. */
#define LAME_DUCK_NS (AVL_NS_PER_S / 4)
/* Idle workers leave within it. */
#define PARTING_NS (5 * AVL_NS_PER_S)
#define METHOD_COUNT                                                                               \
    (AVL_API_METHODS + AVL_HEALTH_METHODS + AVL_REFLECTION_METHODS + AVL_MONITOR_METHODS)
#define ATTACH_NS (120 * AVL_NS_PER_S)
#define WORKER_ARGUMENTS_MAX 32

typedef struct service {
    avl_options_t options;
    char model_path[PATH_MAX];
    avl_config_t config;
    avl_tokenizer_t *tokenizer;
    avl_chat_template_t *chat_template;
    avl_scratch_t link_directory;
    char link_address[96];
    char worker_program[PATH_MAX];
    const char *worker_arguments[WORKER_ARGUMENTS_MAX];
    avl_image_identity_t *identity;
    avl_requests_t *requests;
    avl_thread_pool_t *pool;
    avl_admission_t *admission;
    avl_groups_t *groups;
    char join_secret[AVL_JOIN_SECRET_BYTES_MAX + 2];
    char fingerprint[AVL_FINGERPRINT_BYTES];
    avl_health_t *health;
    avl_api_t api;
    avl_method_t methods[METHOD_COUNT];
    avl_server_t *server;
    avl_service_metrics_t metrics;
    avl_monitor_t monitor;
    avl_http_route_t routes[AVL_MONITOR_ROUTES];
    avl_http_t *http;
    int signal_fd, event_fd;

    pthread_mutex_t lock; /* makes changes of health follow the group's in order */
    bool draining;
    bool first_ready, announced;
    bool fatal;
    avl_status_t fatal_status;
    char fatal_detail[AVL_STATUS_DETAIL_BYTES];
} service_t;

/* ---- what the groups tell ---- */

static void tell_main(service_t *service) {
    uint64_t one = 1;
    ssize_t written = write(service->event_fd, &one, sizeof one);
    (void)written; /* a full counter wakes as well */
}

static void on_changed(void *context) {
    service_t *service = context;
    avl_groups_view_t view;
    pthread_mutex_lock(&service->lock);
    avl_groups_view(service->groups, &view);
    bool ready = view.ready > 0;
    avl_health_set(service->health, ready && !service->draining);
    bool first = ready && !service->first_ready;
    service->first_ready = service->first_ready || ready;
    pthread_mutex_unlock(&service->lock);
    avl_requests_group_changed(service->requests);
    if (first)
        tell_main(service);
}

static void on_events(void *context, uint64_t generation, const Avl__Worker__V1__Events *events) {
    service_t *service = context;
    avl_requests_group_events(service->requests, generation, events);
}

static void on_lost(void *context, uint64_t generation) {
    service_t *service = context;
    on_changed(service); /* NOT_SERVING first */
    avl_requests_group_lost(service->requests, generation);
}

static void on_fatal(void *context, avl_status_t status, const char *detail) {
    service_t *service = context;
    pthread_mutex_lock(&service->lock);
    service->fatal = true;
    service->fatal_status = status;
    snprintf(service->fatal_detail, sizeof service->fatal_detail, "%s", detail);
    pthread_mutex_unlock(&service->lock);
    tell_main(service);
}

/* ---- start ---- */

static avl_status_t open_model(service_t *service) {
    const char *model = service->options.model;
    if (realpath(model, service->model_path) == NULL)
        return avl_fail(AVL_ERR_NOT_FOUND, "model directory %s: %s", model, strerror(errno));
    AVL_TRY(avl_config_load(model, &service->config));
    AVL_TRY(avl_preprocess_check(&service->config));
    AVL_TRY(avl_tokenizer_open(model, &service->tokenizer));
    return avl_chat_template_open(model, &service->config, &service->chat_template);
}

static avl_status_t find_worker(service_t *service) {
    const char *given = service->options.worker_program;
    char *path = service->worker_program;
    if (given != NULL) {
        snprintf(path, sizeof service->worker_program, "%s", given);
    } else {
        ssize_t got = readlink("/proc/self/exe", path, sizeof service->worker_program - 1);
        if (got < 0)
            return avl_fail(AVL_ERR_IO, "cannot read /proc/self/exe: %s", strerror(errno));
        path[got] = '\0';
        char *slash = strrchr(path, '/');
        size_t room = sizeof service->worker_program - (size_t)(slash + 1 - path);
        if (slash == NULL || (size_t)snprintf(slash + 1, room, "avl-worker") >= room)
            return avl_fail(AVL_ERR_IO, "no room for the worker's path beside %s", path);
    }
    if (access(path, X_OK) != 0)
        return avl_fail(AVL_ERR_NOT_FOUND, "the worker program %s: %s", path, strerror(errno));
    return AVL_OK;
}

static void worker_command(service_t *service) {
    const avl_options_t *options = &service->options;
    const char *const pairs[][2] = {
        {"--model", options->model},
        {"--device", options->device},
        {"--dtype", options->dtype},
        {"--exchange", options->exchange},
        {"--log-level", options->log_level_name},
        {"--threads", options->threads},
        {"--memory", options->memory},
        {"--sequences", options->sequences},
        {"--context", options->context},
        {"--encoder-cache", options->encoder_cache},
        {"--kept-prompts", options->kept_prompts},
    };
    size_t count = 0;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        if (pairs[i][1] == NULL)
            continue;
        service->worker_arguments[count++] = pairs[i][0];
        service->worker_arguments[count++] = pairs[i][1];
    }
    if (options->log_json)
        service->worker_arguments[count++] = "--log-json";
    service->worker_arguments[count] = NULL;
}

/* A directory that nobody else can enter guards the link. */
static avl_status_t make_link_directory(service_t *service) {
    const char *base = getenv("XDG_RUNTIME_DIR");
    if (base == NULL || base[0] != '/' || strlen(base) > 32 || access(base, W_OK | X_OK) != 0)
        base = "/tmp";
    AVL_TRY(avl_scratch_create(base, &service->link_directory));
    snprintf(service->link_address, sizeof service->link_address, "unix:%s/link",
             service->link_directory.path);
    return AVL_OK;
}

/* The first line of the operator's file. */
static avl_status_t read_join_secret(service_t *service) {
    const char *path = service->options.join_secret_file;
    if (path == NULL)
        return AVL_OK;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return avl_fail(AVL_ERR_IO, "the secret for joining: %s: %s", path, strerror(errno));
    char *line = fgets(service->join_secret, sizeof service->join_secret, file);
    fclose(file);
    if (line == NULL)
        return avl_fail(AVL_ERR_DATA, "the secret for joining: %s is empty", path);
    line[strcspn(line, "\r\n")] = '\0';
    return AVL_OK;
}

static avl_status_t create_groups(service_t *service) {
    const avl_options_t *options = &service->options;
    AVL_TRY(read_join_secret(service));
    if (options->join_address != NULL) {
        AVL_TRY(avl_fingerprint(options->model, service->fingerprint));
        avl_log_info("groups that join must serve the model with fingerprint %s",
                     service->fingerprint);
    }
    avl_worker_group_config_t group = {
        .program = service->worker_program,
        .launcher = options->launcher,
        .ranks = options->ranks,
        .link_address = service->link_address,
        .fingerprint = options->join_address != NULL ? service->fingerprint : NULL,
        .dtype =
            options->dtype != NULL && strcmp(options->dtype, "auto") != 0 ? options->dtype : NULL,
        .arguments = service->worker_arguments,
        .attach_ns = ATTACH_NS,
        .load_ns = options->load_timeout_ns,
        .pong_ns = options->worker_timeout_ns,
        .ping_ns = options->worker_timeout_ns / 4 < AVL_NS_PER_S ? options->worker_timeout_ns / 4
                                                                 : AVL_NS_PER_S,
        .pause_ns = AVL_NS_PER_S / 10,
        .pause_max_ns = 30 * AVL_NS_PER_S,
        .restarts_max = 5,
    };
    avl_worker_group_observer_t observer = {service, on_changed, on_events, on_lost, on_fatal};
    avl_groups_config_t config = {group, options->replicas, options->join_address,
                                  service->join_secret};
    return avl_groups_create(&config, &observer, &service->groups);
}

/* Pictures and texts that wait for a thread: every request that may wait, and calls besides. */
static size_t pool_queue(const avl_options_t *options) {
    return options->preprocess_queue > 0 ? (size_t)options->preprocess_queue
                                         : (size_t)options->queue_max + 64;
}

static avl_status_t create_server(service_t *service) {
    const avl_options_t *options = &service->options;
    const char *slash = strrchr(service->model_path, '/');
    const char *name = slash != NULL && slash[1] != '\0' ? slash + 1 : service->model_path;
    AVL_TRY(avl_image_identity_create(service->model_path, name, &service->identity));
    service->api = (avl_api_t){
        .model_name = name,
        .identity = service->identity,
        .config = &service->config,
        .tokenizer = service->tokenizer,
        .chat_template = service->chat_template,
        .pool = service->pool,
        .requests = service->requests,
        .groups = service->groups,
        .metrics = &service->metrics,
        .policy = {.images_max = options->images_max,
                   .request_pixels_max = options->request_pixels_max,
                   .prompt_tokens_max = options->prompt_tokens_max,
                   .answer_tokens_max = options->answer_tokens_max,
                   .choices_max = options->choices_max,
                   .attention = options->attention.params,
                   .generation = &service->config.generation},
        .message_bytes_max = options->message_bytes_max,
        .image_pixels_max = options->image_pixels_max,
    };
    service->monitor = (avl_monitor_t){
        .metrics = &service->metrics,
        .health = service->health,
        .groups = service->groups,
        .model_name = service->api.model_name,
        .pool = service->pool,
        .pool_threads = options->preprocess_threads,
        .pool_capacity = pool_queue(options),
        .start_ns = avl_clock_now_ns(),
    };
    avl_api_methods(&service->api, service->methods);
    avl_health_methods(service->health, service->methods + AVL_API_METHODS);
    avl_reflection_methods(service->methods + AVL_API_METHODS + AVL_HEALTH_METHODS);
    avl_monitor_methods(&service->monitor, service->methods + METHOD_COUNT - AVL_MONITOR_METHODS);
    avl_server_config_t config = {
        .address = options->listen,
        .methods = service->methods,
        .method_count = METHOD_COUNT,
        .threads = 2,
        .message_bytes_max = options->message_bytes_max,
        .send_queue_bytes_max = 1 << 20, /* some fifty thousand tokens */
        .keepalive_ms = 20000,
        .keepalive_timeout_ms = 10000,
        .observer = avl_service_metrics_server_observer(&service->metrics),
    };
    avl_service_metrics_set_methods(&service->metrics, service->methods, METHOD_COUNT);
    return avl_server_create(&config, &service->server);
}

static avl_status_t create_monitor(service_t *service) {
    const char *address = service->options.metrics_listen;
    if (address == NULL)
        return AVL_OK;
    avl_monitor_routes(&service->monitor, service->routes);
    AVL_TRY(avl_http_create(address, service->routes, AVL_MONITOR_ROUTES, &service->http));
    avl_log_info("metrics on http://%s/metrics", avl_http_address(service->http));
    return AVL_OK;
}

static avl_status_t start(service_t *service) {
    avl_service_metrics_init(&service->metrics);
    AVL_TRY(open_model(service));
    AVL_TRY(find_worker(service));
    worker_command(service);
    AVL_TRY(make_link_directory(service));
    const avl_options_t *options = &service->options;
    avl_admission_config_t admission = {(size_t)options->queue_max, options->queue_timeout_ns,
                                        options->tenant_weights, options->tenant_weight_count};
    AVL_TRY(avl_admission_create(&admission, &service->admission));
    avl_requests_config_t requests = {service->tokenizer, service->admission,
                                      service->options.request_timeout_ns, &service->metrics};
    AVL_TRY(avl_requests_create(&requests, &service->requests));
    AVL_TRY(avl_thread_pool_create("inputs", service->options.preprocess_threads,
                                   pool_queue(&service->options), &service->pool));
    AVL_TRY(avl_health_create(&service->health));
    AVL_TRY(create_groups(service));
    avl_requests_set_groups(service->requests, service->groups);
    AVL_TRY(create_server(service));
    AVL_TRY(create_monitor(service));
    avl_log_info("listening on %s; loading %s", avl_server_address(service->server),
                 service->options.model);
    return avl_groups_start(service->groups);
}

/* ---- run ---- */

/* Whether a signal has come; waits up to `timeout_ns` for one. */
static bool signalled(service_t *service, int64_t timeout_ns) {
    struct pollfd fd = {service->signal_fd, POLLIN, 0};
    struct signalfd_siginfo info;
    return poll(&fd, 1, (int)(timeout_ns / AVL_NS_PER_MS)) > 0 &&
           read(service->signal_fd, &info, sizeof info) == (ssize_t)sizeof info;
}

/* Until a signal, or until the group can never serve; false then. */
static bool run(service_t *service) {
    for (;;) {
        struct pollfd fds[2] = {{service->signal_fd, POLLIN, 0}, {service->event_fd, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return false;
        uint64_t count;
        if (fds[1].revents != 0 && read(service->event_fd, &count, sizeof count) < 0)
            return false;
        pthread_mutex_lock(&service->lock);
        bool fatal = service->fatal;
        bool announce = service->first_ready && !service->announced;
        service->announced = service->announced || announce;
        pthread_mutex_unlock(&service->lock);
        if (fatal)
            return false;
        if (announce) {
            printf("ready %s\n", avl_server_address(service->server));
            fflush(stdout);
        }
        if (fds[0].revents != 0 && signalled(service, 0))
            return true;
    }
}

/* Running requests finish, within the bound and unless a second signal comes; true when it did not.
 */
static bool drain(service_t *service) {
    pthread_mutex_lock(&service->lock);
    service->draining = true;
    avl_health_set(service->health, false);
    pthread_mutex_unlock(&service->lock);
    avl_requests_drain(service->requests);
    avl_log_info("draining: %zu requests in progress", avl_requests_count(service->requests));
    int64_t now_ns = avl_clock_now_ns();
    int64_t deadline_ns = now_ns + service->options.drain_timeout_ns;
    bool patient = !signalled(service, LAME_DUCK_NS);
    while (patient && avl_clock_now_ns() < deadline_ns &&
           avl_requests_wait(service->requests, avl_clock_now_ns() + AVL_NS_PER_S / 20) > 0)
        patient = !signalled(service, 0);
    return patient;
}

static void stop(service_t *service, bool patient) {
    if (service->requests != NULL) {
        avl_requests_drain(service->requests);
        avl_requests_fail_all(service->requests, AVL_ERR_UNAVAILABLE,
                              "the service is shutting down");
    }
    if (service->health != NULL)
        avl_health_end(service->health);
    avl_http_destroy(service->http);        /* it looks at the pool and the group */
    avl_thread_pool_destroy(service->pool); /* its jobs hold calls */
    if (service->server != NULL) {
        avl_server_stop(service->server, patient ? 2 * AVL_NS_PER_S : AVL_NS_PER_S / 10);
        avl_server_destroy(service->server);
    }
    if (service->groups != NULL) {
        avl_groups_stop(service->groups, patient ? PARTING_NS : 0);
        avl_requests_stop(service->requests);
        avl_groups_destroy(service->groups);
    }
    avl_requests_destroy(service->requests);
    avl_admission_destroy(service->admission);
    avl_image_identity_destroy(service->identity);
    avl_health_destroy(service->health);
    avl_scratch_destroy(&service->link_directory);
    avl_chat_template_close(service->chat_template);
    avl_tokenizer_close(service->tokenizer);
}

static bool prepare_process(service_t *service) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread exists: all inherit it */
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* orphaned ranks come here, to be swept up */
    service->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    service->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return service->signal_fd >= 0 && service->event_fd >= 0;
}

int main(int argc, char **argv) {
    static service_t service;
    avl_options_parse(argc, argv, &service.options);
    avl_log_begin("coordinator", service.options.log_level, service.options.log_json);
    pthread_mutex_init(&service.lock, NULL);
    if (!prepare_process(&service)) {
        avl_log_error("cannot wait for signals: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    avl_status_t status = start(&service);
    if (status != AVL_OK) {
        avl_log_error("cannot start: %s", avl_status_detail());
        stop(&service, false);
        return EXIT_FAILURE;
    }
    bool asked = run(&service);
    bool patient = asked && drain(&service);
    stop(&service, patient);
    if (service.fatal)
        avl_log_error("cannot serve %s: %s: %s", service.options.model,
                      avl_status_name(service.fatal_status), service.fatal_detail);
    else
        avl_log_info("stopped");
    return asked ? EXIT_SUCCESS : EXIT_FAILURE;
}
