#include "worker/settings.h"

#include <argp.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Prompts up to here are read in one step, so that their full-size visual cache exists for one
 * layer at a time; it is also what the activations are sized for. */
#define BATCH_ROWS_DEFAULT 4096
#define SEQUENCES_DEFAULT 32
#define KEPT_PROMPTS_DEFAULT 16
#define DRAIN_SECONDS_DEFAULT 60

enum {
    OPTION_COORDINATOR = 256,
    OPTION_DEVICE,
    OPTION_DTYPE,
    OPTION_EXCHANGE,
    OPTION_THREADS,
    OPTION_MEMORY,
    OPTION_ENCODER_CACHE,
    OPTION_BATCH_ROWS,
    OPTION_SEQUENCES,
    OPTION_KEPT_PROMPTS,
    OPTION_CONTEXT,
    OPTION_DRAIN,
    OPTION_LOG_LEVEL,
    OPTION_LOG_JSON,
};

static const struct argp_option options[] = {
    {"model", 'm', "DIR", 0, "Model directory as Hugging Face writes it", 0},
    {"coordinator", OPTION_COORDINATOR, "ADDRESS", 0,
     "Where the coordinator listens for worker groups: unix:PATH or HOST:PORT. The group's secret "
     "comes in the environment variable AVL_GROUP_TOKEN",
     0},
    {"link", 0, NULL, OPTION_ALIAS, NULL, 0},
    {"device", OPTION_DEVICE, "NAME", 0, "auto, cpu or cuda (default: auto)", 0},
    {"dtype", OPTION_DTYPE, "NAME", 0,
     "auto, f32, bf16, or f16 with --device cuda (default: auto: f32 for f32 checkpoints, f16 for "
     "f16 "
     "ones where the device has it, else what is fastest)",
     0},
    {"exchange", OPTION_EXCHANGE, "NAME", 0,
     "How the GPUs of a group exchange: auto, nccl (each rank has a GPU of its own), or host, "
     "through host memory (default: auto: nccl where it is possible)",
     0},
    {"threads", OPTION_THREADS, "N", 0,
     "CPU threads of this rank (default: its share of the host's cores)", 0},
    {"memory", OPTION_MEMORY, "BYTES", 0,
     "Memory of this rank, weights included; K, M, G and T may follow the number (default: a share "
     "of what is available)",
     0},
    {"encoder-cache", OPTION_ENCODER_CACHE, "BYTES", 0,
     "Of that memory, for features of pictures that may come again (default: a sixteenth of what "
     "weights and buffers leave)",
     0},
    {"batch-rows", OPTION_BATCH_ROWS, "N", 0,
     "Prompt rows read in one step (default: the context, at most 4096)", 0},
    {"sequences", OPTION_SEQUENCES, "N", 0, "Requests in flight at once (default: 32)", 0},
    {"kept-prompts", OPTION_KEPT_PROMPTS, "N", 0,
     "Prompts kept for requests that begin alike, as long as nobody needs their pages (default: "
     "16)",
     0},
    {"context", OPTION_CONTEXT, "N", 0,
     "Rows of one request, prompt and answer (default: the model's)", 0},
    {"drain-seconds", OPTION_DRAIN, "N", 0,
     "How long SIGTERM waits for requests in flight (default: 60)", 0},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "debug, info, warn or error (default: info)", 0},
    {"log-json", OPTION_LOG_JSON, NULL, 0, "Log in JSON lines", 0},
    {0},
};

static int64_t parse_number(const struct argp_state *state, const char *name, const char *text,
                            int64_t least, int64_t most) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < least || value > most)
        argp_error(state, "--%s is \"%s\"; allowed: a whole number from %lld to %lld", name, text,
                   (long long)least, (long long)most);
    return value;
}

static int64_t parse_bytes(const struct argp_state *state, const char *name, const char *text) {
    static const char suffixes[] = "KMGT";
    size_t length = strlen(text);
    const char *suffix = length > 0 ? strchr(suffixes, text[length - 1]) : NULL;
    int shift = suffix != NULL && *suffix != '\0' ? 10 * (int)(suffix - suffixes + 1) : 0;
    char number[32] = "";
    if (length < sizeof number)
        memcpy(number, text, length - (shift > 0));
    return parse_number(state, name, number, 1, INT64_MAX >> shift) << shift;
}

static error_t parse_option(int key, char *text, struct argp_state *state) {
    avl_worker_settings_t *settings = state->input;
    switch (key) {
    case 'm':
        settings->model = text;
        break;
    case OPTION_COORDINATOR:
        settings->link_address = text;
        break;
    case OPTION_DEVICE:
        settings->device = text;
        break;
    case OPTION_DTYPE:
        settings->dtype = text;
        break;
    case OPTION_EXCHANGE:
        if (avl_exchange_parse(text, &settings->exchange) != AVL_OK)
            argp_error(state, "%s", avl_status_detail());
        break;
    case OPTION_THREADS:
        settings->threads = (int)parse_number(state, "threads", text, 1, 1024);
        break;
    case OPTION_MEMORY:
        settings->memory_bytes = parse_bytes(state, "memory", text);
        break;
    case OPTION_ENCODER_CACHE:
        settings->encoder_cache_bytes = parse_bytes(state, "encoder-cache", text);
        break;
    case OPTION_BATCH_ROWS:
        settings->batch_rows = (int32_t)parse_number(state, "batch-rows", text, 1, 1 << 20);
        break;
    case OPTION_SEQUENCES:
        settings->sequences_max = (int32_t)parse_number(state, "sequences", text, 1, 4096);
        break;
    case OPTION_KEPT_PROMPTS:
        settings->kept_prompts = (int32_t)parse_number(state, "kept-prompts", text, 0, 4096);
        break;
    case OPTION_CONTEXT:
        settings->context_rows = (int32_t)parse_number(state, "context", text, 2, 1 << 24);
        break;
    case OPTION_DRAIN:
        settings->drain_seconds = (int32_t)parse_number(state, "drain-seconds", text, 0, 86400);
        break;
    case OPTION_LOG_LEVEL:
        if (avl_log_level_parse(text, &settings->log_level) != AVL_OK)
            argp_error(state, "%s", avl_status_detail());
        break;
    case OPTION_LOG_JSON:
        settings->log_json = 1;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument \"%s\"", text);
        break;
    case ARGP_KEY_END:
        if (settings->model == NULL)
            argp_error(state, "--model is missing");
        if (settings->link_address == NULL)
            argp_error(state, "--coordinator is missing");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

void avl_worker_settings_parse(int argc, char **argv, avl_worker_settings_t *settings_p) {
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .doc = "One rank of a worker group. The coordinator starts it; more than one rank of a "
               "group are started by an MPI launcher (mpirun, srun).",
    };
    *settings_p = (avl_worker_settings_t){
        .device = "auto",
        .dtype = "auto",
        .sequences_max = SEQUENCES_DEFAULT,
        .kept_prompts = KEPT_PROMPTS_DEFAULT,
        .drain_seconds = DRAIN_SECONDS_DEFAULT,
        .log_level = AVL_LOG_INFO,
    };
    argp_parse(&argp, argc, argv, 0, NULL, settings_p);
}

avl_status_t avl_exchange_parse(const char *name, avl_exchange_t *exchange_p) {
    static const char *const names[] = {
        [AVL_EXCHANGE_AUTO] = "auto", [AVL_EXCHANGE_NCCL] = "nccl", [AVL_EXCHANGE_HOST] = "host"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *exchange_p = (avl_exchange_t)i;
            return AVL_OK;
        }
    }
    return avl_fail(AVL_ERR_INVALID, "--exchange is \"%s\"; allowed: auto, nccl, host", name);
}

static int environment_number(const char *name) {
    const char *text = getenv(name);
    return text != NULL ? atoi(text) : 0;
}

bool avl_worker_has_launcher(void) {
    if (environment_number("OMPI_COMM_WORLD_SIZE") > 1)
        return true;
    bool inside = getenv("PMIX_RANK") != NULL || getenv("PMI_RANK") != NULL;
    return inside && (environment_number("SLURM_NTASKS") > 1 || environment_number("PMI_SIZE") > 1);
}

int avl_worker_threads(int usable, int local_ranks) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t set;
    int bound = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
    /* A launcher that binds ranks gives each cores of its own; those are not to be divided again.
     */
    bool exclusive = bound > 0 && bound < online && (long)bound * local_ranks <= online;
    int threads = exclusive ? usable : usable / local_ranks;
    return threads > 0 ? threads : 1;
}

avl_engine_limits_t avl_worker_limits(const avl_worker_settings_t *settings,
                                      const avl_config_t *config) {
    avl_engine_limits_t limits = {
        .batch_rows = settings->batch_rows,
        .sequences_max = settings->sequences_max,
        .context_rows = settings->context_rows,
        .kept_max = settings->kept_prompts,
    };
    if (limits.context_rows == 0)
        limits.context_rows = avl_engine_context_most(&config->model);
    if (limits.batch_rows == 0)
        limits.batch_rows =
            limits.context_rows < BATCH_ROWS_DEFAULT ? limits.context_rows : BATCH_ROWS_DEFAULT;
    return limits;
}

avl_status_t avl_worker_dtype(const char *name, const avl_config_t *config,
                              const avl_device_t *device, avl_dtype_t *dtype_p) {
    if (strcmp(name, "auto") == 0)
        *dtype_p = config->model.weights_dtype == AVL_DTYPE_F32 ||
                           (config->model.weights_dtype == AVL_DTYPE_F16 && device->info.has_f16)
                       ? config->model.weights_dtype
                       : device->info.fast_dtype;
    else if (strcmp(name, "f32") == 0)
        *dtype_p = AVL_DTYPE_F32;
    else if (strcmp(name, "bf16") == 0)
        *dtype_p = AVL_DTYPE_BF16;
    else if (strcmp(name, "f16") == 0 && device->info.has_f16)
        *dtype_p = AVL_DTYPE_F16;
    else if (strcmp(name, "f16") == 0)
        return avl_fail(AVL_ERR_INVALID, "--dtype is f16, which %s does not compute in",
                        device->info.name);
    else
        return avl_fail(AVL_ERR_INVALID, "--dtype is \"%s\"; allowed: auto, f32, bf16, f16", name);
    return AVL_OK;
}

int64_t avl_worker_memory(const avl_worker_settings_t *settings, const avl_device_t *device,
                          int local_ranks) {
    if (settings->memory_bytes > 0)
        return settings->memory_bytes;
    if (device->info.gpu_count > 0) /* ranks beyond the GPUs here share one with another */
        local_ranks = (local_ranks + device->info.gpu_count - 1) / device->info.gpu_count;
    double share = (device->is_host ? 0.5 : 0.9) / local_ranks;
    return (int64_t)((double)device->info.memory_bytes * share);
}
