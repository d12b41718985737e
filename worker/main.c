/* worker/main.c: avl-worker: one rank of a worker group, from the command line to the last step.
 *
 * Rank 0, the leader, also keeps the line to the coordinator and the schedule; the others follow
 * its plans. The process ends with 0  after a drain (SIGTERM, or the coordinator's word), all
 * requests finished or out of time with 1  when it cannot start, the link is lost, or a step fails:
 * then the group is lost with it, and the coordinator starts another one */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "checkpoint/fingerprint.h"
#include "worker/link.h"
#include "worker/loop.h"
#include "worker/settings.h"

#define LINK_TIMEOUT_NS (30 * AVL_NS_PER_S)
/* Ranks read their slices at different speeds; the coordinator watches the progress of loading. */
#define LOAD_TIMEOUT_NS (3600 * AVL_NS_PER_S)
/* Between two collectives of a step lies one layer at most. */
#define STEP_TIMEOUT_NS (120 * AVL_NS_PER_S)
/* A rank that fails alone would wait for the others, which wait for it in a step, before it leaves;
 * only an end that all have agreed upon is worth so much time. */
#define FAILED_CLOSE_NS (3 * AVL_NS_PER_S)
/* An idle leader looks up this often: for signals; commands wake it at once. */
#define IDLE_POLL_NS (100 * AVL_NS_PER_MS)
/* Commands taken between two steps at most, so that a flood of them does not stop decoding. */
#define COMMANDS_PER_STEP 64
#define QUEUE_MAX 4096

typedef struct worker {
    avl_worker_settings_t settings;
    int64_t start_ns;
    avl_group_t *group;
    avl_link_t *link; /* leader */
    avl_device_t *device;
    char device_choice[sizeof((avl_device_t *)0)->choice];
    avl_config_t config;
    avl_weights_t *weights;
    char fingerprint[AVL_FINGERPRINT_BYTES]; /* leader */
    avl_dtype_t dtype;
    avl_engine_limits_t limits;
    avl_model_t *model;
    avl_engine_t *engine;
    avl_loop_t *loop;
    avl_scheduler_t *scheduler; /* leader */
    bool draining;
    int64_t drain_deadline_ns;
    avl_stats_clock_t stats_clock;
    int64_t step_end_ns; /* leader: of the last step */
} worker_t;

static volatile sig_atomic_t asked_to_end;

static void on_signal(int number) {
    (void)number;
    asked_to_end = 1;
}

/* The OpenMP runtime reads its environment before main: threads that wait must sleep, because ranks
 * share cores. */
static void set_openmp_environment(char **argv) {
    if (getenv("OMP_WAIT_POLICY") != NULL || setenv("OMP_WAIT_POLICY", "passive", 1) != 0)
        return;
    execv("/proc/self/exe", argv);
    avl_log_warn("OMP_WAIT_POLICY cannot be set for this process: %s", strerror(errno));
}

static void watch_signals(bool leads) {
    /* A launcher sends SIGTERM to every rank; the leader alone decides when the group ends. */
    struct sigaction action = {.sa_handler = leads ? on_signal : SIG_IGN};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
}

static bool leads(const worker_t *worker) {
    return avl_group_rank(worker->group) == 0;
}

/* ---- start ---- */

static uint64_t count_operations(void *context) {
    const worker_t *worker = context;
    return avl_group_operations(worker->group);
}

static avl_status_t open_link(worker_t *worker) {
    avl_status_t status = AVL_OK;
    if (leads(worker)) {
        const char *token = getenv("AVL_GROUP_TOKEN");
        status = avl_link_open(worker->settings.link_address, token != NULL ? token : "",
                               LINK_TIMEOUT_NS, &worker->link);
        if (status == AVL_OK)
            avl_link_watch(worker->link, count_operations, worker);
    }
    return avl_group_agree(worker->group, status);
}

static avl_status_t open_device(worker_t *worker) {
    int local_ranks = avl_group_local_ranks(worker->group);
    int place = avl_group_local_rank(worker->group);
    AVL_TRY(
        avl_device_open(worker->settings.device, worker->settings.threads, place, &worker->device));
    snprintf(worker->device_choice, sizeof worker->device_choice, "%s", worker->device->choice);
    if (worker->settings.threads > 0 || local_ranks == 1 || !worker->device->is_host)
        return AVL_OK;
    int threads = avl_worker_threads(worker->device->info.threads, local_ranks);
    avl_device_close(worker->device);
    worker->device = NULL;
    return avl_device_open("cpu", threads, place, &worker->device);
}

/* What can fail on one rank alone before the first collective of loading. */
static avl_status_t open_files(worker_t *worker) {
    const avl_worker_settings_t *settings = &worker->settings;
    AVL_TRY(avl_config_load(settings->model, &worker->config));
    worker->limits = avl_worker_limits(settings, &worker->config);
    AVL_TRY(avl_engine_limits_check(&worker->config, &worker->limits));
    AVL_TRY(avl_weights_open(settings->model, &worker->weights));
    if (leads(worker))
        AVL_TRY(avl_fingerprint(settings->model, worker->fingerprint));
    AVL_TRY(open_device(worker));
    return avl_worker_dtype(settings->dtype, &worker->config, worker->device, &worker->dtype);
}

static avl_status_t watch_peers(void *context, int64_t waited_ns) {
    worker_t *worker = context;
    return avl_group_watch_gpus(worker->group, waited_ns);
}

/* Joins the ranks' GPUs, if they are to be and can be. Collective. */
static avl_status_t join_gpus(worker_t *worker) {
    avl_device_t *device = worker->device;
    avl_exchange_t exchange = worker->settings.exchange;
    if (exchange == AVL_EXCHANGE_HOST || avl_group_ranks(worker->group) == 1)
        return AVL_OK;
    avl_group_gpu_t gpu = {.stream = device->stream};
    memcpy(gpu.id, device->gpu_id, sizeof gpu.id);
    avl_status_t status = avl_group_join_gpus(worker->group, &gpu);
    if (status == AVL_ERR_UNSUPPORTED && exchange == AVL_EXCHANGE_AUTO) {
        if (leads(worker) && !device->is_host)
            avl_log_info("the ranks exchange through host memory: %s", avl_status_detail());
        return AVL_OK;
    }
    AVL_TRY(status);
    device->watch = watch_peers;
    device->watch_context = worker;
    if (leads(worker))
        avl_log_info("the ranks' GPUs exchange through %s", avl_group_gpus_name(worker->group));
    /* NCCL's buffers are no longer there to be divided. */
    return avl_group_agree(worker->group, device->ops->measure(device));
}

static void report_progress(void *context, double share) {
    worker_t *worker = context;
    avl_link_loading(worker->link, share);
}

static avl_status_t load_model(worker_t *worker) {
    avl_model_options_t options =
        avl_engine_model_options(&worker->config, &worker->limits, worker->dtype);
    if (leads(worker)) {
        options.progress = report_progress;
        options.progress_context = worker;
    }
    return avl_model_create(&worker->config, worker->weights, worker->device, worker->group,
                            &options, &worker->model);
}

static void send_event(void *context, const avl_event_t *event) {
    worker_t *worker = context;
    avl_link_send(worker->link, event);
}

static avl_status_t make_engine(worker_t *worker) {
    avl_engine_options_t options = {
        .config = &worker->config,
        .device = worker->device,
        .group = worker->group,
        .model = worker->model,
        .dtype = worker->dtype,
        .limits = worker->limits,
        .memory_bytes = avl_worker_memory(&worker->settings, worker->device,
                                          avl_group_local_ranks(worker->group)),
        .encoder_cache_bytes = worker->settings.encoder_cache_bytes,
    };
    AVL_TRY(avl_engine_create(&options, &worker->engine));
    AVL_TRY(avl_loop_create(worker->engine, &worker->loop));
    avl_status_t status = AVL_OK;
    if (leads(worker)) {
        avl_event_sink_t sink = {.context = worker, .take = send_event};
        status = avl_scheduler_create(worker->engine, QUEUE_MAX, &sink, &worker->scheduler);
    }
    return avl_group_agree(worker->group, status);
}

static avl_status_t load(worker_t *worker) {
    avl_status_t status = open_files(worker);
    if (status != AVL_OK)
        avl_log_error("cannot load: %s", avl_status_detail());
    AVL_TRY(avl_group_agree(worker->group, status));
    AVL_TRY(join_gpus(worker));
    AVL_TRY(load_model(worker));
    return make_engine(worker);
}

static void report_ready(worker_t *worker) {
    const avl_text_config_t *text = &worker->config.model.text;
    avl_pages_counts_t pages = avl_engine_pages(worker->engine);
    avl_capacity_t capacity = {
        .ranks = avl_group_ranks(worker->group),
        .context_rows_max = worker->limits.context_rows,
        .sequences_max = worker->limits.sequences_max,
        .kv_rows = pages.total * AVL_PAGE_ROWS / text->layer_count,
        .load_ns = avl_clock_now_ns() - worker->start_ns,
        .picture_bytes_max = avl_engine_picture_bytes(&worker->config, &worker->limits),
    };
    snprintf(capacity.fingerprint, sizeof capacity.fingerprint, "%s", worker->fingerprint);
    snprintf(capacity.device, sizeof capacity.device, "%s", worker->device->info.name);
    snprintf(capacity.dtype, sizeof capacity.dtype, "%s", avl_dtype_name(worker->dtype));
    avl_ledger_log(avl_engine_ledger(worker->engine), avl_group_rank(worker->group),
                   capacity.ranks);
    if (worker->device_choice[0] != '\0')
        avl_log_info("--device auto takes %s: %s", capacity.device, worker->device_choice);
    avl_log_info("ready after %.2f s: %d ranks on %s, %d threads each, %s; context %d, %d "
                 "sequences, %lld rows of cache in %lld pages",
                 (double)capacity.load_ns / 1e9, capacity.ranks, capacity.device,
                 worker->device->info.threads, capacity.dtype, capacity.context_rows_max,
                 capacity.sequences_max, (long long)capacity.kv_rows, (long long)pages.total);
    avl_link_ready(worker->link, &capacity);
}

/* ---- the leader's life ---- */

static void begin_drain(worker_t *worker, const char *why) {
    if (worker->draining)
        return;
    worker->draining = true;
    worker->drain_deadline_ns = avl_clock_now_ns() + worker->settings.drain_seconds * AVL_NS_PER_S;
    avl_log_info("draining: %s", why);
    avl_scheduler_drain(worker->scheduler);
}

/* Takes the commands that are there, waiting up to `wait_ns` for the first. Errors: the link's,
 * when that is lost. */
static avl_status_t take_commands(worker_t *worker, int64_t wait_ns) {
    for (int i = 0; i < COMMANDS_PER_STEP; i++, wait_ns = 0) {
        avl_command_t command;
        avl_link_poll(worker->link, wait_ns, &command);
        switch (command.kind) {
        case AVL_COMMAND_NONE:
            return AVL_OK;
        case AVL_COMMAND_SUBMIT:
            avl_scheduler_submit(worker->scheduler, command.request);
            break;
        case AVL_COMMAND_CANCEL:
            avl_scheduler_cancel(worker->scheduler, command.request_id, command.choice);
            break;
        case AVL_COMMAND_DRAIN:
            begin_drain(worker, "the coordinator says so");
            break;
        case AVL_COMMAND_LOST:
            return avl_fail(command.status != AVL_OK ? command.status : AVL_ERR_UNAVAILABLE,
                            "the link to the coordinator is lost");
        }
    }
    return AVL_OK;
}

static avl_status_t report_stats(worker_t *worker) {
    bool busy = !avl_scheduler_is_idle(worker->scheduler);
    avl_stats_t stats;
    if (!avl_stats_due(&worker->stats_clock, busy, avl_scheduler_counts(worker->scheduler).steps,
                       avl_clock_now_ns()))
        return AVL_OK;
    avl_stats_read(worker->engine, worker->scheduler, &stats);
    if (avl_group_ranks(worker->group) > 1)
        AVL_TRY(avl_loop_tell(worker->loop, &stats.times));
    avl_link_stats(worker->link, &stats);
    return AVL_OK;
}

/* One step, if there is anything to do; tells what it did. A step that follows another one counts
 * from that one's end: what lies between is a part of the pace. */
static avl_status_t lead_step(worker_t *worker, bool *worked_p) {
    int64_t begin_ns = *worked_p ? worker->step_end_ns : avl_clock_now_ns();
    AVL_TRY(avl_loop_lead(worker->loop, worker->scheduler, worked_p));
    if (!*worked_p)
        return AVL_OK;
    avl_step_work_t work = avl_scheduler_work(worker->scheduler);
    worker->step_end_ns = avl_clock_now_ns();
    work.ns = worker->step_end_ns - begin_ns;
    avl_link_work(worker->link, &work);
    return AVL_OK;
}

static avl_status_t lead(worker_t *worker) {
    bool worked = false;
    for (;;) {
        AVL_TRY(report_stats(worker));
        AVL_TRY(take_commands(worker, worked ? 0 : IDLE_POLL_NS));
        if (asked_to_end)
            begin_drain(worker, "signal");
        if (worker->draining && avl_scheduler_is_idle(worker->scheduler))
            break;
        if (worker->draining && avl_clock_now_ns() >= worker->drain_deadline_ns) {
            avl_log_warn("leaving with %d requests unfinished: the time to drain is over",
                         avl_scheduler_counts(worker->scheduler).active);
            break;
        }
        AVL_TRY(lead_step(worker, &worked));
    }
    return avl_loop_stop(worker->loop);
}

static avl_status_t serve(worker_t *worker) {
    if (!leads(worker))
        return avl_loop_follow(worker->loop);
    report_ready(worker);
    return lead(worker);
}

static avl_status_t work(worker_t *worker) {
    AVL_TRY(avl_worker_has_launcher() ? avl_group_open_mpi(&worker->group)
                                      : avl_group_open_single(&worker->group));
    avl_log_tag("rank", avl_group_rank(worker->group));
    watch_signals(leads(worker));
    avl_group_set_timeout(worker->group, LOAD_TIMEOUT_NS);
    AVL_TRY(open_link(worker));
    AVL_TRY(load(worker));
    avl_group_set_timeout(worker->group, STEP_TIMEOUT_NS);
    return serve(worker);
}

static void close_all(worker_t *worker) {
    if (worker->link != NULL)
        avl_link_close(worker->link);
    avl_scheduler_destroy(worker->scheduler);
    avl_loop_destroy(worker->loop);
    avl_engine_destroy(worker->engine);
    avl_model_destroy(worker->model);
    avl_weights_close(worker->weights);
    if (worker->group != NULL)
        avl_group_leave_gpus(worker->group);
    if (worker->device != NULL)
        avl_device_close(worker->device);
    if (worker->group != NULL)
        avl_group_close(worker->group);
}

int main(int argc, char **argv) {
    worker_t worker = {.start_ns = avl_clock_now_ns()};
    avl_worker_settings_parse(argc, argv, &worker.settings);
    avl_log_begin("worker", worker.settings.log_level, worker.settings.log_json);
    const char *group = getenv("AVL_GROUP_NUMBER");
    if (group != NULL)
        avl_log_tag("group", strtoll(group, NULL, 10));
    set_openmp_environment(argv);
    avl_status_t status = work(&worker);
    if (status != AVL_OK) {
        avl_log_error("rank ends: %s: %s", avl_status_name(status), avl_status_detail());
        if (worker.link != NULL)
            avl_link_failed(worker.link, status, avl_status_detail());
        if (worker.group != NULL)
            avl_group_set_timeout(worker.group, FAILED_CLOSE_NS);
    }
    close_all(&worker);
    return status == AVL_OK ? 0 : 1;
}
