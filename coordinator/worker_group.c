#include "coordinator/worker_group.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/process.h"
#include "coordinator/scratch.h"

#define TERM_GRACE_NS (2 * AVL_NS_PER_S) /* from SIGTERM to SIGKILL */
#define STABLE_NS (10 * AVL_NS_PER_S)    /* ready so long: the next pause is the shortest again */
#define LOOK_NS (AVL_NS_PER_S / 5)       /* the supervisor looks around at least so often */
#define UNSEEN_NS AVL_NS_PER_S           /* longer between two looks is no ordinary pause */
#define ARGUMENTS_MAX 64
/* The pause after a group that had been ready: whatever killed it may come again at once, but
 * requests wait. */
#define READY_PAUSE_MAX_NS (2 * AVL_NS_PER_S)

struct avl_worker_group {
    avl_worker_group_config_t config;
    avl_worker_group_observer_t observer;
    avl_link_server_t *links; /* borrowed */
    pthread_t supervisor;
    bool supervised;
    int wake_fd; /* eventfd: the supervisor shall look */
    /* What the launcher and MPI write, and leave when they are killed. MPI's own segments must be
     * memory; the launcher's files need not take from it, for it is scarce in containers. */
    avl_scratch_t launcher_files, segments;

    pthread_mutex_t lock; /* all below; never held while an observer is called */
    avl_worker_group_view_t view;
    avl_process_t process;
    bool attached;
    bool stopping, drain_sent;
    int64_t stop_deadline_ns;
    int64_t phase_deadline_ns; /* STARTING, LOADING: its end; WAITING: the start; ENDING: SIGKILL */
    int64_t ready_ns, ping_sent_ns;
    int64_t progress_ns; /* when the group's progress was last seen to grow */
    int64_t looked_ns;   /* when the supervisor last looked */
    uint64_t ping_number, pong_number, progress;
    int failed_starts;
    int64_t pause_ns;
    bool reason_known;          /* of the running incarnation's end */
    avl_status_t failed_status; /* the worker's own word; AVL_OK: none */
    uint8_t *stats;             /* the last Stats of this generation, packed */
    size_t stats_bytes;
};

static void wake(avl_worker_group_t *group) {
    uint64_t one = 1;
    ssize_t written = write(group->wake_fd, &one, sizeof one);
    (void)written; /* a full counter wakes as well */
}

static void report_change(avl_worker_group_t *group) {
    pthread_mutex_lock(&group->lock);
    bool stopping = group->stopping;
    pthread_mutex_unlock(&group->lock);
    if (!stopping)
        group->observer.changed(group->observer.context);
}

/* The first reason is the cause; later ones are its consequences. */
static void set_reason_locked(avl_worker_group_t *group, const char *reason) {
    if (group->reason_known)
        return;
    group->reason_known = true;
    snprintf(group->view.reason, sizeof group->view.reason, "%s", reason);
}

/* Begins the end of the running incarnation; the supervisor does the rest. */
static void end_incarnation_locked(avl_worker_group_t *group, const char *reason) {
    if (group->view.state == AVL_WORKER_GROUP_ENDING ||
        group->view.state == AVL_WORKER_GROUP_STOPPED ||
        group->view.state == AVL_WORKER_GROUP_WAITING)
        return;
    set_reason_locked(group, reason);
    group->view.state = AVL_WORKER_GROUP_ENDING;
    group->phase_deadline_ns = avl_clock_now_ns() + TERM_GRACE_NS;
    avl_process_signal(&group->process, SIGTERM);
    wake(group);
}

/* ---- the link's thread ---- */

static bool joined(const avl_worker_group_t *group) {
    return group->config.program == NULL;
}

void avl_worker_group_attached(avl_worker_group_t *group, uint64_t generation,
                               const Avl__Worker__V1__Hello *hello) {
    pthread_mutex_lock(&group->lock);
    group->attached = true;
    if (joined(group)) {
        group->view.generation = generation;
        group->view.state = AVL_WORKER_GROUP_STARTING;
    }
    if (group->view.state == AVL_WORKER_GROUP_STARTING && group->view.generation == generation) {
        group->view.state = AVL_WORKER_GROUP_LOADING;
        group->view.loading_share = 0;
        group->phase_deadline_ns = avl_clock_now_ns() + group->config.load_ns;
    }
    pthread_mutex_unlock(&group->lock);
    avl_log_info("worker group %llu is attached (process %lld)", (unsigned long long)generation,
                 (long long)hello->process_id);
    wake(group);
    report_change(group);
}

static void on_loading(avl_worker_group_t *group, double share) {
    pthread_mutex_lock(&group->lock);
    bool loading = group->view.state == AVL_WORKER_GROUP_LOADING;
    if (loading) {
        group->view.loading_share = share >= 0 && share <= 1 ? share : 0;
        group->phase_deadline_ns = avl_clock_now_ns() + group->config.load_ns;
    }
    pthread_mutex_unlock(&group->lock);
    if (loading)
        report_change(group);
}

/* Tokens of a request may come from one group after another: they must be the same. False: `why`
 * says what is not. */
static bool serves_the_same(const avl_worker_group_t *group, const Avl__Worker__V1__Ready *ready,
                            char *why, size_t why_bytes) {
    const char *fingerprint = group->config.fingerprint, *dtype = group->config.dtype;
    if (fingerprint != NULL && strcmp(fingerprint, ready->fingerprint) != 0)
        snprintf(why, why_bytes,
                 "the worker group serves another model: its fingerprint is \"%.32s\", that of the "
                 "coordinator's is \"%s\"",
                 ready->fingerprint, fingerprint);
    else if (dtype != NULL && strcmp(dtype, ready->dtype) != 0)
        snprintf(why, why_bytes,
                 "the worker group computes in %.8s, and the service in %s: give it --dtype %s",
                 ready->dtype, dtype, dtype);
    else
        return true;
    return false;
}

static void on_ready(avl_worker_group_t *group, const Avl__Worker__V1__Ready *ready) {
    char why[AVL_STATUS_DETAIL_BYTES];
    pthread_mutex_lock(&group->lock);
    bool loading = group->view.state == AVL_WORKER_GROUP_LOADING;
    avl_worker_group_view_t *view = &group->view;
    if (loading && joined(group) && !serves_the_same(group, ready, why, sizeof why)) {
        avl_log_error("worker group %llu is refused: %s", (unsigned long long)view->generation,
                      why);
        group->failed_status = AVL_ERR_INVALID;
        end_incarnation_locked(group, why);
        loading = false;
    }
    if (loading) {
        view->state = AVL_WORKER_GROUP_READY;
        view->ever_ready = true;
        view->hopeless = false;
        view->loading_share = 1;
        view->ranks = ready->ranks;
        snprintf(view->device, sizeof view->device, "%s", ready->device);
        snprintf(view->dtype, sizeof view->dtype, "%s", ready->dtype);
        view->context_rows_max = ready->context_rows_max;
        view->sequences_max = ready->sequences_max;
        view->picture_bytes_max = ready->picture_bytes_max;
        view->load_ns = ready->load_ns;
        group->failed_starts = 0;
        group->ready_ns = group->progress_ns = avl_clock_now_ns();
        group->ping_sent_ns = 0;
        group->pong_number = group->ping_number;
    }
    uint64_t generation = view->generation;
    pthread_mutex_unlock(&group->lock);
    if (!loading)
        return;
    avl_log_info(
        "worker group %llu is ready: %d rank%s, %s, %s, context of %d rows, loaded in %.2f s",
        (unsigned long long)generation, ready->ranks, ready->ranks == 1 ? "" : "s", ready->device,
        ready->dtype, ready->context_rows_max, (double)ready->load_ns / 1e9);
    wake(group);
    report_change(group);
}

static void on_failed(avl_worker_group_t *group, const Avl__Worker__V1__Failed *failed) {
    char text[AVL_STATUS_DETAIL_BYTES];
    snprintf(text, sizeof text, "%s", failed->detail);
    pthread_mutex_lock(&group->lock);
    set_reason_locked(group, text);
    group->failed_status = failed->status != 0 ? (avl_status_t)failed->status : AVL_ERR_INTERNAL;
    end_incarnation_locked(group, text);
    pthread_mutex_unlock(&group->lock);
}

static void on_pong(avl_worker_group_t *group, const Avl__Worker__V1__Pong *pong) {
    pthread_mutex_lock(&group->lock);
    if (pong->number <= group->ping_number)
        group->pong_number = pong->number;
    if (pong->progress != group->progress) {
        group->progress = pong->progress;
        group->progress_ns = avl_clock_now_ns();
    }
    pthread_mutex_unlock(&group->lock);
}

/* Kept packed: whoever asks gets a message of its own. */
static void on_stats(avl_worker_group_t *group, uint64_t generation,
                     const Avl__Worker__V1__Stats *stats) {
    size_t byte_count = avl__worker__v1__stats__get_packed_size(stats);
    uint8_t *bytes = NULL;
    if (avl_alloc(byte_count, 1, "statistics of a group", &bytes) != AVL_OK) {
        avl_log_warn("%s", avl_status_detail());
        return;
    }
    avl__worker__v1__stats__pack(stats, bytes);
    pthread_mutex_lock(&group->lock);
    uint8_t *old = bytes;
    if (group->view.generation == generation) {
        old = group->stats;
        group->stats = bytes;
        group->stats_bytes = byte_count;
        group->view.pages_total = stats->pages_total;
        group->view.pages_reserved = stats->pages_reserved;
        group->view.queued = stats->queued;
        group->view.active = stats->active;
    }
    pthread_mutex_unlock(&group->lock);
    free(old);
}

void avl_worker_group_message(avl_worker_group_t *group, uint64_t generation,
                              const Avl__Worker__V1__WorkerMessage *message) {
    switch (message->message_case) {
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_LOADING:
        on_loading(group, message->loading->share);
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_READY:
        on_ready(group, message->ready);
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_FAILED:
        on_failed(group, message->failed);
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_EVENTS:
        group->observer.events(group->observer.context, generation, message->events);
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_PONG:
        on_pong(group, message->pong);
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_STATS:
        on_stats(group, generation, message->stats);
        break;
    default:
        avl_log_warn("worker group %llu sent a message of unknown kind %d",
                     (unsigned long long)generation, (int)message->message_case);
    }
}

void avl_worker_group_detached(avl_worker_group_t *group, uint64_t generation) {
    pthread_mutex_lock(&group->lock);
    end_incarnation_locked(group, "the link to the worker group was lost");
    bool stopping = group->stopping;
    pthread_mutex_unlock(&group->lock);
    if (!stopping)
        group->observer.lost(group->observer.context, generation);
    /* Only now may the next generation start: its `ready` must not overtake `lost`. */
    pthread_mutex_lock(&group->lock);
    group->attached = false;
    pthread_mutex_unlock(&group->lock);
    report_change(group);
    wake(group);
}

/* ---- the supervisor's thread ---- */

static avl_status_t make_token(char *text, size_t text_bytes) {
    unsigned char secret[16];
    if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret)
        return avl_fail(AVL_ERR_IO, "no random numbers: %s", strerror(errno));
    for (size_t i = 0; i < sizeof secret && 2 * i + 2 < text_bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", secret[i]);
    return AVL_OK;
}

static void command_line(const avl_worker_group_t *group, const char *ranks, const char **argv) {
    const avl_worker_group_config_t *config = &group->config;
    size_t count = 0;
    if (config->ranks > 1) {
        /* A rank that dies takes the others along at once: nothing is left for them to save. */
        const char *const launch[] = {config->launcher,
                                      "-n",
                                      ranks,
                                      "--oversubscribe",
                                      "--bind-to",
                                      "none",
                                      "-x",
                                      "AVL_GROUP_TOKEN",
                                      "-x",
                                      "AVL_GROUP_NUMBER",
                                      "--mca",
                                      "odls_base_sigkill_timeout",
                                      "0",
                                      "--mca",
                                      "orte_tmpdir_base",
                                      group->launcher_files.path,
                                      "--mca",
                                      "btl_vader_backing_directory",
                                      group->segments.path};
        for (size_t i = 0; i < sizeof launch / sizeof launch[0]; i++)
            argv[count++] = launch[i];
    }
    argv[count++] = config->program;
    argv[count++] = "--coordinator";
    argv[count++] = config->link_address;
    for (size_t i = 0; config->arguments[i] != NULL && count < ARGUMENTS_MAX - 1; i++)
        argv[count++] = config->arguments[i];
    argv[count] = NULL;
}

/* mpirun passes a SIGTERM on to its ranks, a SIGKILL would leave them. */
static avl_status_t start_process(avl_worker_group_t *group, uint64_t generation,
                                  avl_process_t *process_p) {
    char token[40] = "", variable[64], number[48], ranks[16];
    AVL_TRY(make_token(token, sizeof token));
    snprintf(variable, sizeof variable, "AVL_GROUP_TOKEN=%s", token);
    snprintf(number, sizeof number, "AVL_GROUP_NUMBER=%llu", (unsigned long long)generation);
    snprintf(ranks, sizeof ranks, "%d", group->config.ranks);
    const char *argv[ARGUMENTS_MAX];
    command_line(group, ranks, argv);
    bool root = group->config.ranks > 1 && geteuid() == 0;
    const char *const environment[] = {variable, number, root ? "OMPI_ALLOW_RUN_AS_ROOT=1" : NULL,
                                       root ? "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1" : NULL, NULL};
    avl_link_server_expect(group->links, generation, token);
    return avl_process_start(argv, environment, group->config.ranks > 1 ? SIGTERM : SIGKILL,
                             process_p);
}

static void start_incarnation(avl_worker_group_t *group) {
    uint64_t generation = avl_link_server_next_generation(group->links);
    pthread_mutex_lock(&group->lock);
    avl_worker_group_view_t *view = &group->view;
    view->restarts += view->generation != 0;
    view->generation = generation;
    view->pages_total = view->pages_reserved = 0;
    view->queued = view->active = 0;
    free(group->stats);
    group->stats = NULL;
    group->stats_bytes = 0;
    group->view.state = AVL_WORKER_GROUP_STARTING;
    group->view.loading_share = 0;
    group->phase_deadline_ns = avl_clock_now_ns() + group->config.attach_ns;
    group->reason_known = false;
    group->failed_status = AVL_OK;
    pthread_mutex_unlock(&group->lock);
    avl_process_t process = {0, -1};
    avl_status_t status = start_process(group, generation, &process);
    pthread_mutex_lock(&group->lock);
    if (status == AVL_OK) {
        group->process = process;
    } else {
        end_incarnation_locked(group, avl_status_detail());
        group->failed_status = status; /* a program that cannot be executed will not mend itself */
    }
    pthread_mutex_unlock(&group->lock);
    if (status == AVL_OK)
        avl_log_info("worker group %llu starts (process %d)", (unsigned long long)generation,
                     (int)process.pid);
    report_change(group);
}

/* The incarnation is over: process reaped, link closed. Decides what comes next. */
static void finish_incarnation(avl_worker_group_t *group) {
    if (group->config.ranks > 1) {
        avl_process_sweep();
        avl_scratch_clear(&group->launcher_files);
        avl_scratch_clear(&group->segments);
    }
    pthread_mutex_lock(&group->lock);
    avl_worker_group_view_t *view = &group->view;
    uint64_t generation = view->generation;
    int64_t now_ns = avl_clock_now_ns();
    bool was_ready = group->ready_ns != 0;
    bool stable = was_ready && now_ns - group->ready_ns >= STABLE_NS;
    if (!was_ready)
        group->failed_starts++;
    group->ready_ns = 0;
    int64_t doubled_ns = group->pause_ns * 2;
    group->pause_ns = stable || group->pause_ns == 0            ? group->config.pause_ns
                      : doubled_ns > group->config.pause_max_ns ? group->config.pause_max_ns
                                                                : doubled_ns;
    if (was_ready && group->pause_ns > READY_PAUSE_MAX_NS)
        group->pause_ns = READY_PAUSE_MAX_NS;
    view->hopeless = group->failed_starts >= group->config.restarts_max;
    if (view->hopeless)
        group->pause_ns = group->config.pause_max_ns;
    bool fatal =
        !joined(group) && !view->ever_ready && (group->failed_status != AVL_OK || view->hopeless);
    bool over = fatal || joined(group);
    view->state = over ? AVL_WORKER_GROUP_STOPPED : AVL_WORKER_GROUP_WAITING;
    group->phase_deadline_ns = now_ns + group->pause_ns;
    avl_status_t status =
        group->failed_status != AVL_OK ? group->failed_status : AVL_ERR_UNAVAILABLE;
    avl_worker_group_view_t copy = *view;
    double pause_s = (double)group->pause_ns / 1e9;
    bool stopping = group->stopping;
    pthread_mutex_unlock(&group->lock);
    avl_link_server_expect(group->links, generation, NULL);
    if (stopping)
        return;
    if (fatal) {
        group->observer.fatal(group->observer.context, status, copy.reason);
        return;
    }
    if (over)
        avl_log_warn("worker group %llu has left: %s", (unsigned long long)copy.generation,
                     copy.reason);
    else
        avl_log_warn("worker group %llu ended: %s; the next one starts in %.1f s",
                     (unsigned long long)copy.generation, copy.reason, pause_s);
    report_change(group);
}

/* A process that has ended ends its incarnation, and one that will not end is killed. */
static void watch_process(avl_worker_group_t *group) {
    char how[100], reason[160];
    pthread_mutex_lock(&group->lock);
    bool ended = avl_process_ended(&group->process, how, sizeof how) != 0;
    if (ended) {
        snprintf(reason, sizeof reason, "the worker process ended: %s", how);
        if (group->view.state == AVL_WORKER_GROUP_ENDING && !group->stopping)
            avl_log_info("worker group %llu: %s", (unsigned long long)group->view.generation,
                         reason);
        end_incarnation_locked(group, reason);
    }
    uint64_t generation = group->view.generation;
    bool ending = group->view.state == AVL_WORKER_GROUP_ENDING;
    if (ending && group->process.pid != 0 && avl_clock_now_ns() >= group->phase_deadline_ns)
        avl_process_signal(&group->process, SIGKILL);
    char text[AVL_STATUS_DETAIL_BYTES];
    snprintf(text, sizeof text, "%s", group->view.reason);
    bool attached = group->attached;
    pthread_mutex_unlock(&group->lock);
    if (ending && attached)
        avl_link_server_drop(group->links, generation, text);
}

static void send_ping(avl_worker_group_t *group, uint64_t generation, uint64_t number) {
    Avl__Worker__V1__Ping ping;
    avl__worker__v1__ping__init(&ping);
    ping.number = number;
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_PING;
    message.ping = &ping;
    if (avl_link_server_send(group->links, generation, &message) != AVL_OK)
        avl_log_debug("no ping: %s", avl_status_detail());
}

static void watch_bounds(avl_worker_group_t *group) {
    pthread_mutex_lock(&group->lock);
    int64_t now_ns = avl_clock_now_ns();
    char reason[160] = "";
    bool ping = false;
    const avl_worker_group_config_t *config = &group->config;
    if (group->view.state == AVL_WORKER_GROUP_STARTING && now_ns >= group->phase_deadline_ns)
        snprintf(reason, sizeof reason, "the worker group did not call within %.0f s",
                 (double)config->attach_ns / 1e9);
    if (group->view.state == AVL_WORKER_GROUP_LOADING && now_ns >= group->phase_deadline_ns)
        snprintf(reason, sizeof reason, "loading made no progress for %.0f s",
                 (double)config->load_ns / 1e9);
    if (group->view.state == AVL_WORKER_GROUP_READY) {
        /* Time in which nobody looked, because this process did not run, is not the group's. */
        if (now_ns - group->looked_ns > UNSEEN_NS)
            group->progress_ns += now_ns - group->looked_ns;
        if (now_ns - group->progress_ns >= config->pong_ns)
            snprintf(reason, sizeof reason, "the worker group %s for %.1f s",
                     group->pong_number < group->ping_number ? "did not answer"
                                                             : "made no progress",
                     (double)(now_ns - group->progress_ns) / 1e9);
        ping = reason[0] == '\0' && group->pong_number == group->ping_number &&
               now_ns - group->ping_sent_ns >= config->ping_ns;
        if (ping) {
            group->ping_number++;
            group->ping_sent_ns = now_ns;
        }
    }
    if (reason[0] != '\0')
        end_incarnation_locked(group, reason);
    group->looked_ns = now_ns;
    uint64_t generation = group->view.generation, number = group->ping_number;
    pthread_mutex_unlock(&group->lock);
    if (ping)
        send_ping(group, generation, number);
}

static void send_drain(avl_worker_group_t *group, uint64_t generation) {
    Avl__Worker__V1__Drain drain;
    avl__worker__v1__drain__init(&drain);
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_DRAIN;
    message.drain = &drain;
    if (avl_link_server_send(group->links, generation, &message) != AVL_OK)
        avl_log_debug("no drain: %s", avl_status_detail());
}

/* Returns true when the supervisor may leave. */
static bool watch_stop(avl_worker_group_t *group) {
    pthread_mutex_lock(&group->lock);
    avl_worker_group_state_t state = group->view.state;
    bool drain = group->stopping && !group->drain_sent && state == AVL_WORKER_GROUP_READY;
    if (group->stopping)
        group->drain_sent = true;
    if (group->stopping && (!drain || avl_clock_now_ns() >= group->stop_deadline_ns) &&
        (state != AVL_WORKER_GROUP_READY || avl_clock_now_ns() >= group->stop_deadline_ns))
        end_incarnation_locked(group, "the coordinator stops");
    state = group->view.state;
    bool done = group->stopping && group->process.pid == 0 && !group->attached &&
                state != AVL_WORKER_GROUP_STARTING && state != AVL_WORKER_GROUP_LOADING &&
                state != AVL_WORKER_GROUP_READY;
    uint64_t generation = group->view.generation;
    pthread_mutex_unlock(&group->lock);
    if (drain)
        send_drain(group, generation);
    return done;
}

static int64_t wait_ns(avl_worker_group_t *group) {
    pthread_mutex_lock(&group->lock);
    int64_t left_ns = LOOK_NS;
    if (group->view.state == AVL_WORKER_GROUP_WAITING && !group->stopping) {
        left_ns = group->phase_deadline_ns - avl_clock_now_ns();
        left_ns = left_ns < 0 ? 0 : left_ns > LOOK_NS ? LOOK_NS : left_ns;
    }
    pthread_mutex_unlock(&group->lock);
    return left_ns;
}

static void *supervise(void *context) {
    avl_worker_group_t *group = context;
    for (;;) {
        watch_process(group);
        watch_bounds(group);
        if (watch_stop(group))
            break;
        pthread_mutex_lock(&group->lock);
        bool start = group->view.state == AVL_WORKER_GROUP_WAITING && !group->stopping &&
                     !joined(group) && avl_clock_now_ns() >= group->phase_deadline_ns;
        bool finish = group->view.state == AVL_WORKER_GROUP_ENDING && group->process.pid == 0 &&
                      !group->attached;
        int process_fd = group->process.fd;
        pthread_mutex_unlock(&group->lock);
        if (finish)
            finish_incarnation(group);
        else if (start)
            start_incarnation(group);
        if (start || finish)
            continue;
        struct pollfd fds[2] = {{group->wake_fd, POLLIN, 0}, {process_fd, POLLIN, 0}};
        poll(fds, process_fd >= 0 ? 2 : 1, (int)(wait_ns(group) / AVL_NS_PER_MS) + 1);
        uint64_t count;
        ssize_t got = read(group->wake_fd, &count, sizeof count);
        (void)got; /* empty: it was time, or the process */
    }
    if (group->config.ranks > 1)
        avl_process_sweep();
    return NULL;
}

/* ---- life ---- */

static avl_status_t create_scratch(avl_worker_group_t *group) {
    bool shared = access("/dev/shm", W_OK | X_OK) == 0;
    AVL_TRY(avl_scratch_create("/tmp", &group->launcher_files));
    return avl_scratch_create(shared ? "/dev/shm" : "/tmp", &group->segments);
}

avl_status_t avl_worker_group_create(const avl_worker_group_config_t *config,
                                     const avl_worker_group_observer_t *observer,
                                     avl_worker_group_t **group_p) {
    avl_worker_group_t *group = NULL;
    AVL_TRY(avl_alloc(1, sizeof *group, "the worker group", &group));
    group->config = *config;
    group->observer = *observer;
    group->links = config->links;
    group->process.fd = -1;
    group->view.state = AVL_WORKER_GROUP_WAITING;
    snprintf(group->view.reason, sizeof group->view.reason, "not started yet");
    pthread_mutex_init(&group->lock, NULL);
    group->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    avl_status_t status = AVL_OK;
    if (config->ranks > 1)
        status = create_scratch(group);
    if (status == AVL_OK && group->wake_fd < 0)
        status = avl_fail(AVL_ERR_IO, "cannot make an eventfd: %s", strerror(errno));
    if (status != AVL_OK) {
        if (group->wake_fd >= 0)
            close(group->wake_fd);
        avl_scratch_destroy(&group->launcher_files);
        avl_scratch_destroy(&group->segments);
        pthread_mutex_destroy(&group->lock);
        free(group);
        return status;
    }
    *group_p = group;
    return AVL_OK;
}

avl_status_t avl_worker_group_start(avl_worker_group_t *group) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&group->supervisor, NULL, supervise, group);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return avl_fail(AVL_ERR_EXHAUSTED, "cannot start a thread: %s", strerror(error));
    group->supervised = true;
    return AVL_OK;
}

void avl_worker_group_view(avl_worker_group_t *group, avl_worker_group_view_t *view_p) {
    pthread_mutex_lock(&group->lock);
    *view_p = group->view;
    pthread_mutex_unlock(&group->lock);
}

Avl__Worker__V1__Stats *avl_worker_group_stats(avl_worker_group_t *group) {
    pthread_mutex_lock(&group->lock);
    Avl__Worker__V1__Stats *stats =
        group->stats != NULL
            ? avl__worker__v1__stats__unpack(NULL, group->stats_bytes, group->stats)
            : NULL;
    pthread_mutex_unlock(&group->lock);
    return stats;
}

avl_status_t avl_worker_group_submit(avl_worker_group_t *group, uint64_t generation,
                                     Avl__Worker__V1__Submit *submit) {
    pthread_mutex_lock(&group->lock);
    bool ready =
        group->view.state == AVL_WORKER_GROUP_READY && group->view.generation == generation;
    pthread_mutex_unlock(&group->lock);
    if (!ready)
        return avl_fail(AVL_ERR_UNAVAILABLE, "the worker group is not ready");
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_SUBMIT;
    message.submit = submit;
    return avl_link_server_send(group->links, generation, &message);
}

void avl_worker_group_cancel(avl_worker_group_t *group, uint64_t generation, uint64_t request_id,
                             int32_t choice) {
    Avl__Worker__V1__Cancel cancel;
    avl__worker__v1__cancel__init(&cancel);
    cancel.request_id = request_id;
    cancel.choice = choice + 1;
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL;
    message.cancel = &cancel;
    if (avl_link_server_send(group->links, generation, &message) != AVL_OK)
        avl_log_debug("no cancel: %s", avl_status_detail()); /* nothing is left to cancel then */
}

void avl_worker_group_part(avl_worker_group_t *group, int64_t drain_ns) {
    pthread_mutex_lock(&group->lock);
    if (!group->stopping)
        group->stop_deadline_ns = avl_clock_now_ns() + drain_ns;
    group->stopping = true;
    pthread_mutex_unlock(&group->lock);
    wake(group);
}

void avl_worker_group_stop(avl_worker_group_t *group, int64_t drain_ns) {
    avl_worker_group_part(group, drain_ns);
    if (group->supervised)
        pthread_join(group->supervisor, NULL);
    group->supervised = false;
}

void avl_worker_group_destroy(avl_worker_group_t *group) {
    if (group == NULL)
        return;
    close(group->wake_fd);
    avl_scratch_destroy(&group->launcher_files);
    avl_scratch_destroy(&group->segments);
    pthread_mutex_destroy(&group->lock);
    free(group->stats);
    free(group);
}
