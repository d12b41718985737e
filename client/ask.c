/* client/ask.c: avl ask --image F "question": one request, streamed to the terminal or printed as
 * one JSON object. */
#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/status.h"
#include "client/client.h"
#include "client/rpc.h"
#include "client/terminal.h"
#include "proto/inference.pb-c.h"

/* A picture file larger than this is refused before it is read; the service has its own limit. */
#define IMAGE_FILE_BYTES_MAX ((off_t)1 << 30)
#define IMAGES_MAX 256
#define QUESTION_BYTES_MAX ((size_t)1 << 24)

typedef struct ask_options {
    const char *server;
    const char *system;
    const char *question;
    const char *images[IMAGES_MAX];
    size_t image_count;
    uint32_t max_tokens;
    double timeout_s;
    bool json, raw_prompt, ignore_eos;
    Avl__V1__SamplingParameters sampling;
    Avl__V1__AttentionParameters attention;
} ask_options_t;

enum {
    KEY_MAX_TOKENS = 0x100,
    KEY_TOP_P,
    KEY_TOP_K,
    KEY_SEED,
    KEY_STORE,
    KEY_COMPUTE,
    KEY_INTERVAL,
    KEY_DENSE,
    KEY_JSON,
    KEY_RAW_PROMPT,
    KEY_SYSTEM,
    KEY_TIMEOUT,
    KEY_IGNORE_EOS,
};

static const struct argp_option ask_option_list[] = {
    {"server", 's', "ADDRESS", 0,
     "HOST:PORT or unix:PATH of the service (default: $AVL_SERVER, else " AVL_DEFAULT_SERVER ")",
     0},
    {"image", 'i', "FILE", 0,
     "a JPEG, PNG or WebP picture; repeatable, in the order of the question", 0},
    {"max-tokens", KEY_MAX_TOKENS, "N", 0, "at most N new tokens (default: what the context holds)",
     0},
    {"temperature", 't', "T", 0, "0 is greedy (default: the model's own)", 0},
    {"top-p", KEY_TOP_P, "P", 0, "nucleus sampling, 0 < P <= 1", 0},
    {"top-k", KEY_TOP_K, "K", 0, "sample among the K best tokens; 0 is off", 0},
    {"seed", KEY_SEED, "S", 0, "the same seed gives the same answer", 0},
    {"visual-store", KEY_STORE, "R", 0,
     "share of the picture's rows kept after prefill, 0 < R <= 1", 0},
    {"visual-compute", KEY_COMPUTE, "R", 0, "share computed in ordinary steps, 0 < R <= store", 0},
    {"visual-interval", KEY_INTERVAL, "K", 0, "steps between reselections, K >= 1", 0},
    {"dense", KEY_DENSE, NULL, 0, "attend to everything", 0},
    {"system", KEY_SYSTEM, "TEXT", 0, "system message before the question", 0},
    {"raw-prompt", KEY_RAW_PROMPT, NULL, 0,
     "QUESTION is the whole prompt, image placeholders included; no chat template", 0},
    {"timeout", KEY_TIMEOUT, "SECONDS", 0, "deadline of the request, kept by the service as well",
     0},
    {"ignore-eos", KEY_IGNORE_EOS, NULL, 0, "go on after the end of the answer (measurements)", 0},
    {"json", KEY_JSON, NULL, 0, "print one JSON object instead of the text", 0},
    {0},
};

static double parse_number(struct argp_state *state, const char *name, const char *text) {
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !isfinite(value))
        argp_error(state, "%s: \"%s\" is not a number", name, text);
    return value;
}

static uint64_t parse_count(struct argp_state *state, const char *name, const char *text,
                            uint64_t least, uint64_t most) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || text[0] == '-' || value < least ||
        value > most)
        argp_error(state, "%s: \"%s\" is not a whole number from %llu to %llu", name, text,
                   (unsigned long long)least, (unsigned long long)most);
    return value;
}

static void parse_sampling(int key, const char *text, struct argp_state *state,
                           Avl__V1__SamplingParameters *sampling) {
    switch (key) {
    case 't':
        sampling->temperature = parse_number(state, "--temperature", text);
        sampling->_temperature_case = AVL__V1__SAMPLING_PARAMETERS___TEMPERATURE_TEMPERATURE;
        break;
    case KEY_TOP_P:
        sampling->top_p = parse_number(state, "--top-p", text);
        sampling->_top_p_case = AVL__V1__SAMPLING_PARAMETERS___TOP_P_TOP_P;
        break;
    case KEY_TOP_K:
        sampling->top_k = (uint32_t)parse_count(state, "--top-k", text, 0, INT32_MAX);
        sampling->_top_k_case = AVL__V1__SAMPLING_PARAMETERS___TOP_K_TOP_K;
        break;
    default:
        sampling->seed = parse_count(state, "--seed", text, 0, UINT64_MAX);
        sampling->_seed_case = AVL__V1__SAMPLING_PARAMETERS___SEED_SEED;
        break;
    }
}

static void parse_attention(int key, const char *text, struct argp_state *state,
                            Avl__V1__AttentionParameters *attention) {
    switch (key) {
    case KEY_STORE:
        attention->visual_store_ratio = parse_number(state, "--visual-store", text);
        attention->_visual_store_ratio_case =
            AVL__V1__ATTENTION_PARAMETERS___VISUAL_STORE_RATIO_VISUAL_STORE_RATIO;
        break;
    case KEY_COMPUTE:
        attention->visual_compute_ratio = parse_number(state, "--visual-compute", text);
        attention->_visual_compute_ratio_case =
            AVL__V1__ATTENTION_PARAMETERS___VISUAL_COMPUTE_RATIO_VISUAL_COMPUTE_RATIO;
        break;
    default:
        attention->visual_update_interval =
            (uint32_t)parse_count(state, "--visual-interval", text, 0, INT32_MAX);
        attention->_visual_update_interval_case =
            AVL__V1__ATTENTION_PARAMETERS___VISUAL_UPDATE_INTERVAL_VISUAL_UPDATE_INTERVAL;
        break;
    }
}

static error_t parse_option(int key, char *text, struct argp_state *state) {
    ask_options_t *options = state->input;
    switch (key) {
    case 's':
        options->server = text;
        break;
    case 'i':
        if (options->image_count == IMAGES_MAX)
            argp_error(state, "--image: more than %d pictures", IMAGES_MAX);
        options->images[options->image_count++] = text;
        break;
    case KEY_MAX_TOKENS:
        options->max_tokens = (uint32_t)parse_count(state, "--max-tokens", text, 1, INT32_MAX);
        break;
    case 't':
    case KEY_TOP_P:
    case KEY_TOP_K:
    case KEY_SEED:
        parse_sampling(key, text, state, &options->sampling);
        break;
    case KEY_STORE:
    case KEY_COMPUTE:
    case KEY_INTERVAL:
        parse_attention(key, text, state, &options->attention);
        break;
    case KEY_DENSE:
        options->attention.dense = true;
        break;
    case KEY_SYSTEM:
        options->system = text;
        break;
    case KEY_RAW_PROMPT:
        options->raw_prompt = true;
        break;
    case KEY_TIMEOUT:
        options->timeout_s = parse_number(state, "--timeout", text);
        if (options->timeout_s <= 0 || options->timeout_s > 1e6)
            argp_error(state, "--timeout: \"%s\" is not between 0 and 1000000 seconds", text);
        break;
    case KEY_IGNORE_EOS:
        options->ignore_eos = true;
        break;
    case KEY_JSON:
        options->json = true;
        break;
    case ARGP_KEY_ARG:
        if (options->question != NULL)
            argp_error(state, "one QUESTION only: put it in quotes");
        options->question = text;
        break;
    case ARGP_KEY_END:
        if (options->question == NULL)
            argp_error(state, "QUESTION is missing");
        if (options->raw_prompt && options->system != NULL)
            argp_error(state, "--system needs a chat template: not together with --raw-prompt");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp ask_argp = {
    .options = ask_option_list,
    .parser = parse_option,
    .args_doc = "QUESTION",
    .doc = "Asks a question about pictures and streams the answer.\v"
           "QUESTION may be - to read it from standard input. Progress goes to standard error when "
           "that is a "
           "terminal.\n\nExit status: 0 answered, 1 failed, 2 used wrongly, 130 interrupted.",
};

/* The whole of `stream` as malloc'ed, NUL-terminated bytes. */
static avl_status_t read_all(FILE *stream, const char *name, size_t bytes_max, uint8_t **bytes_p,
                             size_t *byte_count_p) {
    uint8_t *bytes = NULL;
    size_t used = 0, capacity = 0;
    for (;;) {
        avl_status_t status = avl_grow(used + 65536 + 1, 1, name, &bytes, &capacity);
        if (status != AVL_OK) {
            free(bytes);
            return status;
        }
        size_t got = fread(bytes + used, 1, capacity - used - 1, stream);
        used += got;
        if (used > bytes_max) {
            free(bytes);
            return avl_fail(AVL_ERR_TOO_LARGE, "%s: more than %zu bytes", name, bytes_max);
        }
        if (got == 0)
            break;
    }
    if (ferror(stream)) {
        free(bytes);
        return avl_fail(AVL_ERR_IO, "%s: %s", name, strerror(errno));
    }
    bytes[used] = '\0';
    *bytes_p = bytes;
    *byte_count_p = used;
    return AVL_OK;
}

static avl_status_t read_file(const char *path, ProtobufCBinaryData *data_p) {
    FILE *stream = fopen(path, "rb");
    if (stream == NULL)
        return avl_fail(errno == ENOENT ? AVL_ERR_NOT_FOUND : AVL_ERR_IO, "%s: %s", path,
                        strerror(errno));
    struct stat info;
    avl_status_t status = AVL_OK;
    if (fstat(fileno(stream), &info) == 0 && S_ISDIR(info.st_mode))
        status = avl_fail(AVL_ERR_IO, "%s: is a directory", path);
    if (status == AVL_OK)
        status = read_all(stream, path, IMAGE_FILE_BYTES_MAX, &data_p->data, &data_p->len);
    fclose(stream);
    return status;
}

/* The request as protobuf bytes. The structs live on this function's stack and in `parts`; only the
 * packed bytes leave. */
static avl_status_t pack_request(const ask_options_t *options, char *question,
                                 Avl__V1__Image *images, uint8_t **bytes_p, size_t *byte_count_p) {
    Avl__V1__ContentPart parts[IMAGES_MAX + 1];
    Avl__V1__ContentPart *part_list[IMAGES_MAX + 1];
    Avl__V1__Image *image_list[IMAGES_MAX];
    for (size_t i = 0; i <= options->image_count; i++) {
        avl__v1__content_part__init(&parts[i]);
        part_list[i] = &parts[i];
        if (i == options->image_count) {
            parts[i].part_case = AVL__V1__CONTENT_PART__PART_TEXT;
            parts[i].text = question;
        } else {
            image_list[i] = &images[i];
            parts[i].part_case = AVL__V1__CONTENT_PART__PART_IMAGE;
            parts[i].image = &images[i];
        }
    }
    Avl__V1__ContentPart system_part = AVL__V1__CONTENT_PART__INIT;
    Avl__V1__ContentPart *system_parts[] = {&system_part};
    Avl__V1__Message system = AVL__V1__MESSAGE__INIT;
    Avl__V1__Message user = AVL__V1__MESSAGE__INIT;
    Avl__V1__Message *messages[2];
    Avl__V1__Conversation conversation = AVL__V1__CONVERSATION__INIT;
    conversation.messages = messages;
    if (options->system != NULL) {
        system_part.part_case = AVL__V1__CONTENT_PART__PART_TEXT;
        system_part.text = (char *)(uintptr_t)options->system;
        system.role = AVL__V1__ROLE__ROLE_SYSTEM;
        system.n_content = 1;
        system.content = system_parts;
        messages[conversation.n_messages++] = &system;
    }
    user.role = AVL__V1__ROLE__ROLE_USER;
    user.n_content = options->image_count + 1;
    user.content = part_list;
    messages[conversation.n_messages++] = &user;

    Avl__V1__RawPrompt raw_prompt;
    avl__v1__raw_prompt__init(&raw_prompt);
    raw_prompt.text = question;
    raw_prompt.n_images = options->image_count;
    raw_prompt.images = image_list;

    Avl__V1__GenerateRequest request;
    avl__v1__generate_request__init(&request);
    if (options->raw_prompt) {
        request.input_case = AVL__V1__GENERATE_REQUEST__INPUT_RAW_PROMPT;
        request.raw_prompt = &raw_prompt;
    } else {
        request.input_case = AVL__V1__GENERATE_REQUEST__INPUT_CONVERSATION;
        request.conversation = &conversation;
    }
    Avl__V1__SamplingParameters sampling = options->sampling;
    Avl__V1__AttentionParameters attention = options->attention;
    request.sampling = &sampling;
    request.attention = &attention;
    request.max_tokens = options->max_tokens;
    request.ignore_eos = options->ignore_eos;
    request.progress = isatty(STDERR_FILENO) != 0;
    size_t byte_count = avl__v1__generate_request__get_packed_size(&request);
    AVL_TRY(avl_alloc(byte_count, 1, "request", bytes_p));
    *byte_count_p = avl__v1__generate_request__pack(&request, *bytes_p);
    return AVL_OK;
}

static avl_status_t make_request(const ask_options_t *options, uint8_t **bytes_p,
                                 size_t *byte_count_p) {
    avl_status_t status = AVL_OK;
    uint8_t *question = NULL;
    size_t question_bytes = 0;
    Avl__V1__Image *images = NULL;
    AVL_TRY(avl_alloc(options->image_count, sizeof *images, "pictures", &images));
    if (strcmp(options->question, "-") == 0) {
        AVL_TRY_GOTO(
            status,
            read_all(stdin, "standard input", QUESTION_BYTES_MAX, &question, &question_bytes), out);
        if (memchr(question, '\0', question_bytes) != NULL) {
            status = avl_fail(AVL_ERR_INVALID, "standard input: the question contains a NUL byte");
            goto out;
        }
    } else {
        char *copy = NULL;
        AVL_TRY_GOTO(status, avl_copy_string(options->question, &copy), out);
        question = (uint8_t *)copy;
    }
    for (size_t i = 0; i < options->image_count; i++) {
        avl__v1__image__init(&images[i]);
        AVL_TRY_GOTO(status, read_file(options->images[i], &images[i].data), out);
    }
    status = pack_request(options, (char *)question, images, bytes_p, byte_count_p);
out:
    for (size_t i = 0; i < options->image_count; i++)
        free(images[i].data.data);
    free(images);
    free(question);
    return status;
}

/* What has arrived of the answer. */
typedef struct answer {
    bool json;
    bool any_text;
    avl_progress_t progress;
    char *text; /* for JSON */
    size_t text_bytes, text_capacity;
    json_t *token_ids;
    Avl__V1__Finished *finished;
} answer_t;

static void show_progress(answer_t *answer, const Avl__V1__Progress *progress) {
    static const struct {
        const char *label, *unit;
    } stages[] = {
        [AVL__V1__STAGE__STAGE_UNSPECIFIED] = {"working", ""},
        [AVL__V1__STAGE__STAGE_LOADING] = {"loading the model", "permille"},
        [AVL__V1__STAGE__STAGE_QUEUED] = {"waiting in line", "requests"},
        [AVL__V1__STAGE__STAGE_PREPROCESS] = {"preparing", "pictures"},
        [AVL__V1__STAGE__STAGE_ENCODE] = {"looking", "pictures"},
        [AVL__V1__STAGE__STAGE_PREFILL] = {"reading the prompt", "tokens"},
        [AVL__V1__STAGE__STAGE_DECODE] = {"answering", "tokens"},
    };
    if (answer->any_text || (size_t)progress->stage >= sizeof stages / sizeof stages[0])
        return;
    avl_progress_show(&answer->progress, stages[progress->stage].label, progress->done,
                      progress->total, stages[progress->stage].unit);
}

static avl_status_t take_delta(answer_t *answer, const Avl__V1__Delta *delta) {
    if (!answer->json) {
        if (delta->text[0] == '\0')
            return AVL_OK;
        avl_progress_clear(&answer->progress);
        answer->any_text = true;
        avl_terminal_write(stdout, delta->text);
        if (fflush(stdout) != 0)
            return avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
        return AVL_OK;
    }
    size_t bytes = strlen(delta->text);
    AVL_TRY(avl_grow(answer->text_bytes + bytes + 1, 1, "answer", &answer->text,
                     &answer->text_capacity));
    memcpy(answer->text + answer->text_bytes, delta->text, bytes + 1);
    answer->text_bytes += bytes;
    for (size_t i = 0; i < delta->n_token_ids; i++) {
        if (json_array_append_new(answer->token_ids, json_integer(delta->token_ids[i])) != 0)
            return avl_fail(AVL_ERR_MEMORY, "answer: no memory");
    }
    return AVL_OK;
}

static avl_status_t take_message(void *context, const uint8_t *bytes, size_t byte_count) {
    answer_t *answer = context;
    Avl__V1__GenerateResponse *response =
        avl__v1__generate_response__unpack(NULL, byte_count, bytes);
    if (response == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server sent a message that is no GenerateResponse");
    avl_status_t status = AVL_OK;
    switch (response->event_case) {
    case AVL__V1__GENERATE_RESPONSE__EVENT_PROGRESS:
        show_progress(answer, response->progress);
        break;
    case AVL__V1__GENERATE_RESPONSE__EVENT_DELTA:
        status = take_delta(answer, response->delta);
        break;
    case AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED:
        if (answer->finished != NULL) {
            status = avl_fail(AVL_ERR_INTERNAL, "the server finished the answer twice");
            break;
        }
        answer->finished = response->finished;
        response->event_case = AVL__V1__GENERATE_RESPONSE__EVENT__NOT_SET; /* ours now */
        break;
    default: /* a newer server's event: nothing we could show */
        break;
    }
    avl__v1__generate_response__free_unpacked(response, NULL);
    return status;
}

static const char *finish_reason_name(Avl__V1__FinishReason reason) {
    return reason == AVL__V1__FINISH_REASON__FINISH_REASON_STOP     ? "stop"
           : reason == AVL__V1__FINISH_REASON__FINISH_REASON_LENGTH ? "length"
                                                                    : "unknown";
}

static avl_status_t print_json(const answer_t *answer) {
    static const Avl__V1__Usage no_usage = AVL__V1__USAGE__INIT;
    static const Avl__V1__AttentionReport no_attention = AVL__V1__ATTENTION_REPORT__INIT;
    static const Avl__V1__Timings no_timings = AVL__V1__TIMINGS__INIT;
    const Avl__V1__Finished *finished = answer->finished;
    const Avl__V1__Usage *usage = finished->usage != NULL ? finished->usage : &no_usage;
    const Avl__V1__AttentionReport *attention =
        finished->attention != NULL ? finished->attention : &no_attention;
    const Avl__V1__Timings *timings = finished->timings != NULL ? finished->timings : &no_timings;
    json_t *object = json_pack(
        "{s:s%, s:O, s:s, s:I, s:{s:i, s:i, s:i}, s:{s:f, s:f, s:i, s:i, s:i, s:f, s:I},"
        " s:{s:f, s:f, s:f, s:f, s:f, s:f}}",
        "text", answer->text != NULL ? answer->text : "", answer->text_bytes, "token_ids",
        answer->token_ids, "finish_reason", finish_reason_name(finished->finish_reason), "seed",
        (json_int_t)finished->seed, "usage", "prompt_tokens", (int)usage->prompt_tokens,
        "visual_tokens", (int)usage->visual_tokens, "completion_tokens",
        (int)usage->completion_tokens, "attention", "visual_store_ratio",
        attention->visual_store_ratio, "visual_compute_ratio", attention->visual_compute_ratio,
        "visual_update_interval", (int)attention->visual_update_interval, "visual_rows_seen",
        (int)attention->visual_rows_seen, "visual_rows_stored", (int)attention->visual_rows_stored,
        "visual_rows_computed_per_step", attention->visual_rows_computed_per_step,
        "kv_bytes_returned", (json_int_t)attention->kv_bytes_returned, "timings", "queue_seconds",
        timings->queue_seconds, "preprocess_seconds", timings->preprocess_seconds, "encode_seconds",
        timings->encode_seconds, "prefill_seconds", timings->prefill_seconds,
        "decode_seconds_per_token", timings->decode_seconds_per_token, "total_seconds",
        timings->total_seconds);
    if (object == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the answer does not fit JSON");
    int failed = json_dumpf(object, stdout, JSON_REAL_PRECISION(9) | JSON_COMPACT);
    json_decref(object);
    if (failed || putchar('\n') == EOF || fflush(stdout) != 0)
        return avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
    return AVL_OK;
}

/* The one-line summary below an answer, for a person. */
static void print_summary(const answer_t *answer) {
    const Avl__V1__Finished *finished = answer->finished;
    if (!answer->progress.enabled || finished->usage == NULL || finished->timings == NULL ||
        finished->attention == NULL)
        return;
    fprintf(stderr, "(%u prompt tokens, %u of them visual; %u tokens in %.2f s",
            finished->usage->prompt_tokens, finished->usage->visual_tokens,
            finished->usage->completion_tokens, finished->timings->total_seconds);
    if (finished->usage->visual_tokens > 0)
        fprintf(stderr, "; visual rows: %u seen, %u stored, %.1f computed a step",
                finished->attention->visual_rows_seen, finished->attention->visual_rows_stored,
                finished->attention->visual_rows_computed_per_step);
    if (finished->finish_reason == AVL__V1__FINISH_REASON__FINISH_REASON_LENGTH)
        fputs("; cut by the length limit", stderr);
    fputs(")\n", stderr);
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static avl_status_t ask(const ask_options_t *options, answer_t *answer) {
    uint8_t *request = NULL;
    size_t request_bytes = 0;
    avl_rpc_t *rpc = NULL;
    avl_status_t status = AVL_OK;
    answer->token_ids = json_array();
    if (answer->token_ids == NULL)
        return avl_fail(AVL_ERR_MEMORY, "answer: no memory");
    AVL_TRY(make_request(options, &request, &request_bytes));
    AVL_TRY_GOTO(status, avl_rpc_open(options->server, &rpc), out);
    int64_t timeout_ns =
        options->timeout_s > 0 ? (int64_t)(options->timeout_s * 1e9) : AVL_DEADLINE_NONE;
    avl_progress_show(&answer->progress, "sending", 0, 0, "");
    AVL_TRY_GOTO(status,
                 avl_rpc_call(rpc, "/avl.v1.Inference/Generate", request, request_bytes, timeout_ns,
                              &interrupted, take_message, answer),
                 out);
    avl_progress_clear(&answer->progress);
    if (answer->finished == NULL) {
        status = avl_fail(AVL_ERR_INTERNAL, "the server ended the answer without finishing it");
        goto out;
    }
    if (options->json) {
        status = print_json(answer);
    } else {
        fputc('\n', stdout);
        fflush(stdout);
        print_summary(answer);
    }
out:
    avl_progress_clear(&answer->progress);
    avl_rpc_close(rpc);
    free(request);
    return status;
}

int avl_command_ask(int argc, char **argv) {
    ask_options_t *options = NULL;
    if (avl_alloc(1, sizeof *options, "options", &options) != AVL_OK)
        return AVL_EXIT_FAILED;
    avl__v1__sampling_parameters__init(&options->sampling);
    avl__v1__attention_parameters__init(&options->attention);
    const char *from_environment = getenv("AVL_SERVER");
    options->server = from_environment != NULL ? from_environment : AVL_DEFAULT_SERVER;
    argp_err_exit_status = AVL_EXIT_USAGE;
    char name[] = "avl ask";
    argv[0] = name;
    argp_parse(&ask_argp, argc, argv, 0, NULL, options);

    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    answer_t answer = {.json = options->json};
    avl_progress_begin(&answer.progress);
    avl_status_t status = ask(options, &answer);
    if (status != AVL_OK) {
        if (answer.any_text)
            fputc('\n', stdout);
        fflush(stdout);
        fprintf(stderr, "avl ask: %s: %s\n", avl_status_name(status), avl_status_detail());
    }
    free(answer.text);
    json_decref(answer.token_ids);
    if (answer.finished != NULL)
        avl__v1__finished__free_unpacked(answer.finished, NULL);
    free(options);
    if (status == AVL_OK)
        return 0;
    return interrupted ? AVL_EXIT_INTERRUPTED : AVL_EXIT_FAILED;
}
