#include "coordinator/options.h"

#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "coordinator/groups.h"
#include "inputs/image.h"

enum key {
    KEY_MODEL = 'm',
    KEY_LISTEN = 'l',
    KEY_TP = 1000,
    KEY_DEVICE,
    KEY_DTYPE,
    KEY_EXCHANGE,
    KEY_THREADS,
    KEY_MEMORY,
    KEY_SEQUENCES,
    KEY_ENCODER_CACHE,
    KEY_KEPT_PROMPTS,
    KEY_CONTEXT,
    KEY_WORKER_PROGRAM,
    KEY_LAUNCHER,
    KEY_PREPROCESS_THREADS,
    KEY_PREPROCESS_QUEUE,
    KEY_REQUEST_TIMEOUT,
    KEY_DRAIN_TIMEOUT,
    KEY_WORKER_TIMEOUT,
    KEY_LOAD_TIMEOUT,
    KEY_MESSAGE_BYTES_MAX,
    KEY_IMAGE_PIXELS_MAX,
    KEY_IMAGES_MAX,
    KEY_CHOICES_MAX,
    KEY_QUEUE_MAX,
    KEY_QUEUE_TIMEOUT,
    KEY_TENANT_WEIGHT,
    KEY_REQUEST_PIXELS_MAX,
    KEY_PROMPT_TOKENS_MAX,
    KEY_ANSWER_TOKENS_MAX,
    KEY_REPLICAS,
    KEY_JOIN,
    KEY_JOIN_SECRET_FILE,
    KEY_METRICS_LISTEN,
    KEY_LOG_LEVEL,
    KEY_LOG_JSON,
};

#define HEADING(text, group)                                                                       \
    { NULL, 0, NULL, 0, text, group }

static const struct argp_option option_table[] = {
    HEADING("Model and address", 1),
    {"model", KEY_MODEL, "DIR", 0, "model directory, as Hugging Face writes it (required)", 1},
    {"listen", KEY_LISTEN, "ADDRESS", 0,
     "HOST:PORT (port 0: any free one) or unix:PATH; default 127.0.0.1:50051", 1},
    HEADING("Workers", 2),
    {"tp", KEY_TP, "N", 0, "ranks that share the model (tensor parallelism); default 1", 2},
    {"replicas", KEY_REPLICAS, "N", 0,
     "groups of such ranks, each with a model of its own; default 1; 0 with --join", 2},
    {"join", KEY_JOIN, "ADDRESS", 0,
     "let further groups join there (HOST:PORT; a network that is trusted), as long as they last",
     2},
    {"join-secret-file", KEY_JOIN_SECRET_FILE, "PATH", 0,
     "the first line of this file is the secret that groups join with", 2},
    {"device", KEY_DEVICE, "NAME", 0, "auto (default), cpu or cuda", 2},
    {"dtype", KEY_DTYPE, "NAME", 0, "auto (default), f32, bf16, or f16 on a GPU", 2},
    {"exchange", KEY_EXCHANGE, "NAME", 0,
     "how the GPUs of a group exchange: auto (default; nccl where it is possible), nccl or host",
     2},
    {"threads", KEY_THREADS, "N", 0, "threads of a rank", 2},
    {"memory", KEY_MEMORY, "BYTES", 0, "memory of a rank; K, M and G are understood", 2},
    {"encoder-cache", KEY_ENCODER_CACHE, "BYTES", 0,
     "of that memory, for features of pictures that may come again (default: a sixteenth)", 2},
    {"kept-prompts", KEY_KEPT_PROMPTS, "N", 0,
     "prompts kept for requests that begin alike (default: 16; 0: none)", 2},
    {"sequences", KEY_SEQUENCES, "N", 0, "requests decoded together at most", 2},
    {"context", KEY_CONTEXT, "N", 0, "rows of prompt and answer together at most", 2},
    {"worker-timeout", KEY_WORKER_TIMEOUT, "SECONDS", 0,
     "a group that makes no progress for so long is restarted; default 15", 2},
    {"load-timeout", KEY_LOAD_TIMEOUT, "SECONDS", 0,
     "loading must advance at least so often; default 600", 2},
    {"worker-program", KEY_WORKER_PROGRAM, "PATH", 0,
     "program of a rank; default: avl-worker beside this program", 2},
    {"launcher", KEY_LAUNCHER, "PROGRAM", 0, "what starts several ranks; default mpirun", 2},
    HEADING("Requests", 3),
    {"queue-max", KEY_QUEUE_MAX, "N", 0, "requests in progress or waiting at most; default 256", 3},
    {"queue-timeout", KEY_QUEUE_TIMEOUT, "SECONDS", 0,
     "longest wait for a group, estimated or real; 0 (default): unlimited", 3},
    {"tenant-weight", KEY_TENANT_WEIGHT, "NAME=W", 0,
     "share of this tenant (metadata x-avl-tenant) against others, whose weight is 1; repeatable",
     3},
    {"request-timeout", KEY_REQUEST_TIMEOUT, "SECONDS", 0,
     "longest life of a request, whatever its deadline; 0: unlimited; default 600", 3},
    {"message-bytes-max", KEY_MESSAGE_BYTES_MAX, "BYTES", 0, "size of a request; default 64M", 3},
    {"images-max", KEY_IMAGES_MAX, "N", 0, "images of a request; default 16", 3},
    {"choices-max", KEY_CHOICES_MAX, "N", 0, "answers to one request (n); default 8", 3},
    {"image-pixels-max", KEY_IMAGE_PIXELS_MAX, "N", 0, "pixels of an image; default 64M", 3},
    {"request-pixels-max", KEY_REQUEST_PIXELS_MAX, "N", 0,
     "pixels of all images of a request together; default 256M", 3},
    {"prompt-tokens-max", KEY_PROMPT_TOKENS_MAX, "N", 0,
     "tokens of a prompt, pictures included; default: what the context holds", 3},
    {"answer-tokens-max", KEY_ANSWER_TOKENS_MAX, "N", 0,
     "tokens of an answer; a request that asks for more gets so many", 3},
    {"preprocess-threads", KEY_PREPROCESS_THREADS, "N", 0,
     "threads that decode images and tokenize; default: one per processor", 3},
    {"preprocess-queue", KEY_PREPROCESS_QUEUE, "N", 0,
     "requests that wait for one of these at most; default: --queue-max and 64 more", 3},
    HEADING("Operation", 5),
    {"drain-timeout", KEY_DRAIN_TIMEOUT, "SECONDS", 0,
     "after SIGTERM, running requests have so long to finish; default 30", 5},
    {"metrics-listen", KEY_METRICS_LISTEN, "ADDRESS", 0,
     "HOST:PORT for /metrics, /healthz and /readyz over HTTP; default: none", 5},
    {"log-level", KEY_LOG_LEVEL, "LEVEL", 0, "debug, info (default), warn or error", 5},
    {"log-json", KEY_LOG_JSON, NULL, 0, "log as JSON lines", 5},
    {NULL, 0, NULL, 0, NULL, 0},
};

static int64_t integer(struct argp_state *state, const char *option, const char *text,
                       int64_t least, int64_t most, bool suffix) {
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    int64_t factor = 1;
    if (suffix && end != text && *end != '\0' && end[1] == '\0') {
        const char *const letters = "KMG";
        const char *letter = strchr(letters, *end);
        if (letter != NULL) {
            factor = INT64_C(1) << (10 * (letter - letters + 1));
            end++;
        }
    }
    if (end == text || *end != '\0' || errno != 0 || value > INT64_MAX / factor || value < 0 ||
        value * factor < least || value * factor > most)
        argp_error(state, "--%s %s: expected a whole number from %lld to %lld", option, text,
                   (long long)least, (long long)most);
    return value * factor;
}

static double number(struct argp_state *state, const char *option, const char *text, double most) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value <= most))
        argp_error(state, "--%s %s: expected a number from 0 to %g", option, text, most);
    return value;
}

static int64_t duration_ns(struct argp_state *state, const char *option, const char *text) {
    return (int64_t)(number(state, option, text, 1e8) * 1e9);
}

static const char *one_of(struct argp_state *state, const char *option, const char *text,
                          const char *const *names) {
    for (size_t i = 0; names[i] != NULL; i++)
        if (strcmp(text, names[i]) == 0)
            return text;
    argp_error(state, "--%s %s: expected %s, %s or %s", option, text, names[0], names[1], names[2]);
    return text;
}

/* What workers get as typed; checked here all the same, so that a slip is told before anything
 * starts. */
static const char *passed(struct argp_state *state, const char *option, const char *text,
                          bool suffix) {
    (void)integer(state, option, text, 1, suffix ? INT64_MAX : INT_MAX, suffix);
    return text;
}

static void tenant_weight(struct argp_state *state, const char *text, avl_options_t *options) {
    const char *equals = strrchr(text, '=');
    char *end = NULL;
    double weight = equals != NULL ? strtod(equals + 1, &end) : 0;
    size_t length = equals != NULL ? (size_t)(equals - text) : 0;
    if (equals == NULL || length > AVL_TENANT_BYTES_MAX || end == equals + 1 || *end != '\0' ||
        !(weight >= 0.001 && weight <= 1000))
        argp_error(state, "--tenant-weight %s: expected NAME=W, W from 0.001 to 1000", text);
    if (options->tenant_weight_count >= AVL_TENANT_WEIGHTS_MAX)
        argp_error(state, "--tenant-weight: at most %d are allowed", AVL_TENANT_WEIGHTS_MAX);
    avl_tenant_weight_t *entry = &options->tenant_weights[options->tenant_weight_count++];
    memcpy(entry->name, text, length);
    entry->name[length] = '\0';
    entry->weight = weight;
}

static bool parse_worker(int key, char *text, struct argp_state *state, avl_options_t *options) {
    static const char *const devices[] = {"auto", "cpu", "cuda", NULL};
    static const char *const dtypes[] = {"auto", "f32", "bf16", "f16", NULL};
    static const char *const exchanges[] = {"auto", "nccl", "host", NULL};
    switch (key) {
    case KEY_TP:
        options->ranks = (int)integer(state, "tp", text, 1, 1024, false);
        return true;
    case KEY_REPLICAS:
        options->replicas = (int)integer(state, "replicas", text, 0, AVL_GROUPS_MAX, false);
        return true;
    case KEY_JOIN:
        options->join_address = text;
        return true;
    case KEY_JOIN_SECRET_FILE:
        options->join_secret_file = text;
        return true;
    case KEY_DEVICE:
        options->device = one_of(state, "device", text, devices);
        return true;
    case KEY_DTYPE:
        options->dtype = one_of(state, "dtype", text, dtypes);
        return true;
    case KEY_EXCHANGE:
        options->exchange = one_of(state, "exchange", text, exchanges);
        return true;
    case KEY_THREADS:
        options->threads = passed(state, "threads", text, false);
        return true;
    case KEY_MEMORY:
        options->memory = passed(state, "memory", text, true);
        return true;
    case KEY_KEPT_PROMPTS:
        (void)integer(state, "kept-prompts", text, 0, 4096, false);
        options->kept_prompts = text;
        return true;
    case KEY_ENCODER_CACHE:
        options->encoder_cache = passed(state, "encoder-cache", text, true);
        return true;
    case KEY_SEQUENCES:
        options->sequences = passed(state, "sequences", text, false);
        return true;
    case KEY_CONTEXT:
        options->context = passed(state, "context", text, false);
        return true;
    case KEY_WORKER_PROGRAM:
        options->worker_program = text;
        return true;
    case KEY_LAUNCHER:
        options->launcher = text;
        return true;
    case KEY_WORKER_TIMEOUT:
        options->worker_timeout_ns = duration_ns(state, "worker-timeout", text);
        return true;
    case KEY_LOAD_TIMEOUT:
        options->load_timeout_ns = duration_ns(state, "load-timeout", text);
        return true;
    default:
        return false;
    }
}

static bool parse_request(int key, char *text, struct argp_state *state, avl_options_t *options) {
    switch (key) {
    case KEY_QUEUE_MAX:
        options->queue_max = (int)integer(state, "queue-max", text, 1, 100000, false);
        return true;
    case KEY_QUEUE_TIMEOUT:
        options->queue_timeout_ns = duration_ns(state, "queue-timeout", text);
        if (options->queue_timeout_ns == 0)
            options->queue_timeout_ns = AVL_DEADLINE_NONE;
        return true;
    case KEY_TENANT_WEIGHT:
        tenant_weight(state, text, options);
        return true;
    case KEY_REQUEST_PIXELS_MAX:
        options->request_pixels_max =
            integer(state, "request-pixels-max", text, 1, INT64_MAX, true);
        return true;
    case KEY_PROMPT_TOKENS_MAX:
        options->prompt_tokens_max =
            (int)integer(state, "prompt-tokens-max", text, 1, INT32_MAX, true);
        return true;
    case KEY_ANSWER_TOKENS_MAX:
        options->answer_tokens_max =
            (int)integer(state, "answer-tokens-max", text, 1, INT32_MAX, true);
        return true;
    case KEY_REQUEST_TIMEOUT:
        options->request_timeout_ns = duration_ns(state, "request-timeout", text);
        if (options->request_timeout_ns == 0)
            options->request_timeout_ns = AVL_DEADLINE_NONE;
        return true;
    case KEY_MESSAGE_BYTES_MAX:
        options->message_bytes_max =
            integer(state, "message-bytes-max", text, 1024, INT32_MAX, true);
        return true;
    case KEY_IMAGES_MAX:
        options->images_max = (int)integer(state, "images-max", text, 0, 4096, false);
        return true;
    case KEY_CHOICES_MAX:
        options->choices_max = (int)integer(state, "choices-max", text, 1, 256, false);
        return true;
    case KEY_IMAGE_PIXELS_MAX:
        options->image_pixels_max = integer(state, "image-pixels-max", text, 1, INT32_MAX, true);
        return true;
    case KEY_PREPROCESS_QUEUE:
        options->preprocess_queue = (int)integer(state, "preprocess-queue", text, 1, 100000, false);
        return true;
    case KEY_PREPROCESS_THREADS:
        options->preprocess_threads =
            (int)integer(state, "preprocess-threads", text, 1, 1024, false);
        return true;
    default:
        return false;
    }
}

static void finish(struct argp_state *state, avl_options_t *options) {
    if (state->argc > state->next)
        argp_error(state, "unexpected argument %s", state->argv[state->next]);
    if (options->model == NULL)
        argp_error(state, "--model DIR is required");
    if ((options->join_address != NULL) != (options->join_secret_file != NULL))
        argp_error(state, "--join and --join-secret-file belong together");
    if (options->replicas == 0 && options->join_address == NULL)
        argp_error(state, "--replicas 0 needs --join: else nobody computes");
}

static error_t parse(int key, char *text, struct argp_state *state) {
    avl_options_t *options = state->input;
    if (parse_worker(key, text, state, options) || parse_request(key, text, state, options))
        return 0;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->attention;
        break;
    case KEY_MODEL:
        options->model = text;
        break;
    case KEY_LISTEN:
        options->listen = text;
        break;
    case KEY_DRAIN_TIMEOUT:
        options->drain_timeout_ns = duration_ns(state, "drain-timeout", text);
        break;
    case KEY_METRICS_LISTEN:
        options->metrics_listen = text;
        break;
    case KEY_LOG_LEVEL:
        if (avl_log_level_parse(text, &options->log_level) != AVL_OK)
            argp_error(state, "--log-level: %s", avl_status_detail());
        options->log_level_name = text;
        break;
    case KEY_LOG_JSON:
        options->log_json = true;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument %s", text);
        break;
    case ARGP_KEY_END:
        finish(state, options);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

void avl_options_parse(int argc, char **argv, avl_options_t *options_p) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    avl_options_t options = {
        .listen = "127.0.0.1:50051",
        .ranks = 1,
        .replicas = 1,
        .device = "auto",
        .dtype = "auto",
        .exchange = "auto",
        .launcher = "mpirun",
        .preprocess_threads = processors > 0 && processors <= 1024 ? (int)processors : 2,
        .request_timeout_ns = 600 * AVL_NS_PER_S,
        .drain_timeout_ns = 30 * AVL_NS_PER_S,
        .worker_timeout_ns = 15 * AVL_NS_PER_S,
        .load_timeout_ns = 600 * AVL_NS_PER_S,
        .message_bytes_max = 64 << 20,
        .image_pixels_max = AVL_IMAGE_PIXELS_MAX_DEFAULT,
        .images_max = 16,
        .choices_max = 8,
        .queue_max = 256,
        .queue_timeout_ns = AVL_DEADLINE_NONE,
        .request_pixels_max = 256 << 20,
        .log_level = AVL_LOG_INFO,
        .log_level_name = "info",
    };
    avl_attention_options_init(&options.attention);
    argp_program_version = "avl-coordinator " AVL_VERSION;
    const struct argp_child children[] = {
        {&avl_attention_argp, 0, "Attention, where a request does not say", 4}, {0}};
    const struct argp argp = {
        .options = option_table,
        .parser = parse,
        .children = children,
        .doc = "Serves a vision-language model over gRPC: takes requests, starts and watches the "
               "workers that "
               "compute, and prints one line `ready ADDRESS' when it serves."
               "\vSIGTERM or SIGINT drains: running requests finish, new ones are refused. A "
               "second one ends at once.",
    };
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    *options_p = options;
}
