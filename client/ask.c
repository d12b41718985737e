/* client/ask.c: avl ask --image F "question": one request, streamed to the terminal or printed as
 * one JSON object. */
#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/status.h"
#include "client/attention_options.h"
#include "client/client.h"
#include "client/json.h"
#include "client/options.h"
#include "client/request.h"
#include "client/rpc.h"
#include "client/terminal.h"
#include "proto/inference.pb-c.h"

typedef struct ask_options {
    const char *server;
    avl_request_options_t request;
    const char *question;
    const char *images[AVL_REQUEST_IMAGES_MAX];
    size_t image_count;
    double timeout_s;
    bool json;
} ask_options_t;

enum { KEY_JSON = 0x100, KEY_TIMEOUT, KEY_ANSWERS };

static const struct argp_option ask_option_list[] = {
    {"image", 'i', "FILE", 0,
     "a JPEG, PNG or WebP picture; repeatable, in the order of the question", 0},
    {"n", KEY_ANSWERS, "N", 0, "draw N answers side by side, each with a seed of its own", 0},
    {"timeout", KEY_TIMEOUT, "SECONDS", 0, "deadline of the request, kept by the service as well",
     0},
    {"json", KEY_JSON, NULL, 0, "print one JSON object instead of the text", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state) {
    ask_options_t *options = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->server;
        state->child_inputs[1] = &options->request;
        break;
    case 'i':
        if (options->image_count == AVL_REQUEST_IMAGES_MAX)
            argp_error(state, "--image: more than %d pictures", AVL_REQUEST_IMAGES_MAX);
        options->images[options->image_count++] = text;
        break;
    case KEY_TIMEOUT:
        options->timeout_s = avl_option_number_in(state, "--timeout", text, 1e-3, 1e6);
        break;
    case KEY_ANSWERS:
        options->request.answers = (uint32_t)avl_option_count(state, "--n", text, 1, 256);
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
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child ask_children[] = {
    {&avl_server_argp, 0, NULL, 0}, {&avl_request_argp, 0, NULL, 0}, {0}};

static const struct argp ask_argp = {
    .options = ask_option_list,
    .parser = parse_option,
    .children = ask_children,
    .args_doc = "QUESTION",
    .doc = "Asks a question about pictures and streams the answer.\v"
           "QUESTION may be - to read it from standard input (one newline at its end is dropped, "
           "except with --raw-prompt). Progress goes to standard error when that is a terminal."
           "\n\nExit status: 0 answered, 1 failed, 2 used wrongly, 130 interrupted.",
};

static avl_status_t read_question(const ask_options_t *options, char **question_p) {
    if (strcmp(options->question, "-") != 0)
        return avl_copy_string(options->question, question_p);
    AVL_TRY(avl_text_read(stdin, "standard input", question_p));
    size_t bytes = strlen(*question_p);
    if (bytes > 0 && (*question_p)[bytes - 1] == '\n' && !options->request.raw_prompt)
        (*question_p)[bytes - 1] = '\0';
    return AVL_OK;
}

static avl_status_t make_request(const ask_options_t *options, bool progress,
                                 avl_rpc_request_t **request_p) {
    avl_status_t status = AVL_OK;
    avl_picture_t *pictures = NULL;
    char *question = NULL;
    AVL_TRY(avl_alloc(options->image_count, sizeof *pictures, "pictures", &pictures));
    AVL_TRY_GOTO(status, read_question(options, &question), out);
    size_t total_bytes = 0;
    for (size_t i = 0; i < options->image_count; i++) {
        AVL_TRY_GOTO(status, avl_picture_read(options->images[i], &pictures[i]), out);
        total_bytes += pictures[i].byte_count;
        if (total_bytes > INT32_MAX) { /* do not read on for a request that cannot be sent */
            status = avl_fail(AVL_ERR_TOO_LARGE, "%s: with it the pictures exceed 2 GiB",
                              options->images[i]);
            goto out;
        }
    }
    status = avl_request_pack(&options->request, question, pictures, options->image_count, "",
                              progress, request_p);
out:
    for (size_t i = 0; i < options->image_count; i++)
        free(pictures[i].bytes);
    free(pictures);
    free(question);
    return status;
}

/* What has arrived of one answer. */
typedef struct answer {
    char *text; /* for JSON, and of several answers */
    size_t text_bytes, text_capacity;
    json_t *token_ids;
    Avl__V1__Finished *finished;
} answer_t;

typedef struct asked {
    bool json;
    bool any_text;
    avl_progress_t progress;
    answer_t *answers; /* [count] */
    uint32_t count, left;
} asked_t;

static void show_progress(asked_t *asked, const Avl__V1__Progress *progress) {
    static const struct {
        const char *label, *unit;
    } stages[] = {
        [AVL__V1__STAGE__STAGE_UNSPECIFIED] = {"working", ""},
        [AVL__V1__STAGE__STAGE_LOADING] = {"loading the model", "%"},
        [AVL__V1__STAGE__STAGE_QUEUED] = {"waiting in line", "requests"},
        [AVL__V1__STAGE__STAGE_PREPROCESS] = {"preparing", "pictures"},
        [AVL__V1__STAGE__STAGE_ENCODE] = {"looking", "pictures"},
        [AVL__V1__STAGE__STAGE_PREFILL] = {"reading the prompt", "tokens"},
        [AVL__V1__STAGE__STAGE_DECODE] = {"answering", "tokens"},
    };
    size_t stage = (size_t)progress->stage;
    if (asked->any_text || stage >= sizeof stages / sizeof stages[0])
        return;
    uint32_t done = progress->done, total = progress->total;
    if (stage == AVL__V1__STAGE__STAGE_LOADING) { /* parts per thousand on the wire */
        done /= 10;
        total /= 10;
    }
    avl_progress_show(&asked->progress, stages[stage].label, done, total, stages[stage].unit);
}

static avl_status_t output_failed(void) {
    return avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
}

static avl_status_t take_delta(asked_t *asked, const Avl__V1__Delta *delta) {
    answer_t *answer = &asked->answers[delta->choice];
    if (!asked->json && asked->count == 1) {
        if (delta->text[0] == '\0')
            return AVL_OK;
        avl_progress_clear(&asked->progress);
        asked->any_text = true;
        avl_terminal_write(stdout, delta->text);
        return fflush(stdout) != 0 || ferror(stdout) ? output_failed() : AVL_OK;
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

/* What belongs to an answer must name one that was asked for and has not ended. */
static avl_status_t check_choice(const asked_t *asked, const Avl__V1__GenerateResponse *response) {
    uint32_t choice = 0;
    if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_DELTA)
        choice = response->delta->choice;
    else if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED)
        choice = response->finished->choice;
    else
        return AVL_OK;
    if (choice >= asked->count)
        return avl_fail(AVL_ERR_INTERNAL, "the server sent answer %u, and %u %s asked for", choice,
                        asked->count, asked->count == 1 ? "was" : "were");
    if (asked->answers[choice].finished != NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server went on after the end of the answer");
    return AVL_OK;
}

static avl_status_t take_message(void *context, const uint8_t *bytes, size_t byte_count) {
    asked_t *asked = context;
    Avl__V1__GenerateResponse *response =
        avl__v1__generate_response__unpack(NULL, byte_count, bytes);
    if (response == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server sent a message that is no GenerateResponse");
    avl_status_t status =
        asked->left > 0 ? check_choice(asked, response)
                        : avl_fail(AVL_ERR_INTERNAL, "the server went on after the end of the "
                                                     "answer");
    if (status != AVL_OK) {
        avl__v1__generate_response__free_unpacked(response, NULL);
        return status;
    }
    switch (response->event_case) {
    case AVL__V1__GENERATE_RESPONSE__EVENT_PROGRESS:
        show_progress(asked, response->progress);
        break;
    case AVL__V1__GENERATE_RESPONSE__EVENT_DELTA:
        status = take_delta(asked, response->delta);
        break;
    case AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED:
        asked->answers[response->finished->choice].finished = response->finished;
        asked->left--;
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

/* The parts that the server left out count as zeros. */
static json_t *json_of_answer(const answer_t *answer) {
    static const Avl__V1__Usage no_usage = AVL__V1__USAGE__INIT;
    static const Avl__V1__AttentionReport no_attention = AVL__V1__ATTENTION_REPORT__INIT;
    static const Avl__V1__Timings no_timings = AVL__V1__TIMINGS__INIT;
    const Avl__V1__Finished *finished = answer->finished;
    const Avl__V1__Usage *usage = finished->usage != NULL ? finished->usage : &no_usage;
    const Avl__V1__AttentionReport *attention =
        finished->attention != NULL ? finished->attention : &no_attention;
    const Avl__V1__Timings *timings = finished->timings != NULL ? finished->timings : &no_timings;
    json_t *usage_object =
        json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)usage->prompt_tokens,
                  "visual_tokens", (json_int_t)usage->visual_tokens, "completion_tokens",
                  (json_int_t)usage->completion_tokens);
    json_t *attention_object = json_pack(
        "{s:f, s:f, s:I, s:I, s:I, s:f, s:o}", "visual_store_ratio", attention->visual_store_ratio,
        "visual_compute_ratio", attention->visual_compute_ratio, "visual_update_interval",
        (json_int_t)attention->visual_update_interval, "visual_rows_seen",
        (json_int_t)attention->visual_rows_seen, "visual_rows_stored",
        (json_int_t)attention->visual_rows_stored, "visual_rows_computed_per_step",
        attention->visual_rows_computed_per_step, "kv_bytes_returned",
        avl_json_u64(attention->kv_bytes_returned));
    if (attention->visual_mass > 0) {
        json_object_set_new(attention_object, "captured_mass", json_real(attention->captured_mass));
        json_object_set_new(attention_object, "stored_mass", json_real(attention->stored_mass));
        json_object_set_new(attention_object, "visual_mass", json_real(attention->visual_mass));
    }
    if (attention->text_rows_seen > 0) {
        json_object_set_new(attention_object, "text_rows_seen",
                            json_integer(attention->text_rows_seen));
        json_object_set_new(attention_object, "text_rows_stored",
                            json_integer(attention->text_rows_stored));
    }
    if (attention->parameters != NULL)
        json_object_set_new(attention_object, "parameters",
                            avl_attention_json(attention->parameters));
    json_t *timings_object =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "queue_seconds", timings->queue_seconds,
                  "preprocess_seconds", timings->preprocess_seconds, "encode_seconds",
                  timings->encode_seconds, "prefill_seconds", timings->prefill_seconds,
                  "decode_seconds_per_token", timings->decode_seconds_per_token, "total_seconds",
                  timings->total_seconds);
    return json_pack(
        "{s:s%, s:O, s:s, s:o, s:o, s:o, s:o}", "text", answer->text != NULL ? answer->text : "",
        answer->text_bytes, "token_ids", answer->token_ids, "finish_reason",
        finish_reason_name(finished->finish_reason), "seed", avl_json_u64(finished->seed), "usage",
        usage_object, "attention", attention_object, "timings", timings_object);
}

/* Several answers, and what they took together. */
static json_t *json_of_answers(const asked_t *asked) {
    json_int_t prompt = 0, visual = 0, completion = 0;
    json_t *list = json_array();
    for (uint32_t i = 0; i < asked->count && list != NULL; i++) {
        json_t *object = json_of_answer(&asked->answers[i]);
        const Avl__V1__Usage *usage = asked->answers[i].finished->usage;
        prompt += usage != NULL ? usage->prompt_tokens : 0;
        visual += usage != NULL ? usage->visual_tokens : 0;
        completion += usage != NULL ? usage->completion_tokens : 0;
        if (object == NULL || json_object_set_new(object, "choice", json_integer(i)) != 0 ||
            json_array_append_new(list, object) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return json_pack("{s:o, s:{s:I, s:I, s:I}}", "choices", list, "usage", "prompt_tokens", prompt,
                     "visual_tokens", visual, "completion_tokens", completion);
}

static avl_status_t print_json(const asked_t *asked) {
    json_t *object = asked->count == 1 ? json_of_answer(asked->answers) : json_of_answers(asked);
    char *text = object != NULL ? json_dumps(object, JSON_REAL_PRECISION(9) | JSON_COMPACT) : NULL;
    json_decref(object);
    if (text == NULL) /* text that is no UTF-8, numbers that are none */
        return avl_fail(AVL_ERR_INTERNAL, "the server's answer does not fit JSON");
    avl_terminal_write(stdout, text);
    free(text);
    return putchar('\n') == EOF || fflush(stdout) != 0 || ferror(stdout) ? output_failed() : AVL_OK;
}

/* Of several answers; a single one was shown as it came, but for its last newline. */
static avl_status_t print_texts(const asked_t *asked) {
    for (uint32_t i = 0; i < asked->count && asked->count > 1; i++) {
        const answer_t *answer = &asked->answers[i];
        printf("%s[%u, seed %llu] ", i > 0 ? "\n\n" : "", i,
               (unsigned long long)answer->finished->seed);
        avl_terminal_write(stdout, answer->text != NULL ? answer->text : "");
    }
    return putchar('\n') == EOF || fflush(stdout) != 0 || ferror(stdout) ? output_failed() : AVL_OK;
}

/* The one-line summary below an answer, for a person. */
static void print_summary(const asked_t *asked) {
    uint32_t tokens = 0, prompt = 0, visual = 0, cut = 0;
    double seconds = 0;
    if (!asked->progress.enabled)
        return;
    for (uint32_t i = 0; i < asked->count; i++) {
        const Avl__V1__Finished *one = asked->answers[i].finished;
        if (one->usage == NULL || one->timings == NULL || one->attention == NULL)
            return;
        prompt += one->usage->prompt_tokens;
        visual += one->usage->visual_tokens;
        tokens += one->usage->completion_tokens;
        cut += one->finish_reason == AVL__V1__FINISH_REASON__FINISH_REASON_LENGTH;
        seconds = one->timings->total_seconds > seconds ? one->timings->total_seconds : seconds;
    }
    fprintf(stderr, "(%u prompt tokens, %u of them visual; %u tokens in %.2f s", prompt, visual,
            tokens, seconds);
    const Avl__V1__AttentionReport *attention = asked->answers[0].finished->attention;
    if (visual > 0)
        fprintf(stderr, "; visual rows: %u seen, %u stored, %.1f computed a step",
                attention->visual_rows_seen, attention->visual_rows_stored,
                attention->visual_rows_computed_per_step);
    if (attention->text_rows_seen > 0)
        fprintf(stderr, "; text rows: %u of %u stored", attention->text_rows_stored,
                attention->text_rows_seen);
    if (cut > 0)
        fputs(asked->count > 1 ? "; some cut by the length limit" : "; cut by the length limit",
              stderr);
    fputs(")\n", stderr);
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static avl_status_t prepare_answers(const ask_options_t *options, asked_t *asked) {
    asked->count = asked->left = options->request.answers > 1 ? options->request.answers : 1;
    AVL_TRY(avl_alloc(asked->count, sizeof *asked->answers, "answers", &asked->answers));
    for (uint32_t i = 0; i < asked->count; i++) {
        asked->answers[i].token_ids = json_array();
        if (asked->answers[i].token_ids == NULL)
            return avl_fail(AVL_ERR_MEMORY, "answer: no memory");
    }
    return AVL_OK;
}

static void free_answers(asked_t *asked) {
    for (uint32_t i = 0; i < asked->count && asked->answers != NULL; i++) {
        free(asked->answers[i].text);
        json_decref(asked->answers[i].token_ids);
        if (asked->answers[i].finished != NULL)
            avl__v1__finished__free_unpacked(asked->answers[i].finished, NULL);
    }
    free(asked->answers);
}

static avl_status_t ask(const ask_options_t *options, asked_t *asked) {
    avl_rpc_request_t *request = NULL;
    avl_rpc_t *rpc = NULL;
    avl_status_t status = AVL_OK;
    AVL_TRY(prepare_answers(options, asked));
    AVL_TRY(make_request(options, asked->progress.enabled, &request));
    AVL_TRY_GOTO(status, avl_rpc_open(options->server, 1, &rpc), out);
    int64_t timeout_ns =
        options->timeout_s > 0 ? (int64_t)(options->timeout_s * 1e9) : AVL_DEADLINE_NONE;
    avl_progress_show(&asked->progress, "sending", 0, 0, "");
    AVL_TRY_GOTO(status,
                 avl_rpc_call(rpc, "/avl.v1.Inference/Generate", request, timeout_ns, &interrupted,
                              take_message, asked),
                 out);
    avl_progress_clear(&asked->progress);
    if (asked->left > 0) {
        status = avl_fail(AVL_ERR_INTERNAL, "the server ended the answer without finishing it");
        goto out;
    }
    status = options->json ? print_json(asked) : print_texts(asked);
    if (status == AVL_OK && !options->json)
        print_summary(asked);
out:
    avl_progress_clear(&asked->progress);
    avl_rpc_close(rpc);
    avl_rpc_request_destroy(request);
    return status;
}

int avl_command_ask(int argc, char **argv) {
    ask_options_t *options = NULL;
    if (avl_alloc(1, sizeof *options, "options", &options) != AVL_OK)
        return AVL_EXIT_FAILED;
    avl_request_options_init(&options->request);
    argp_err_exit_status = AVL_EXIT_USAGE;
    char name[] = "avl ask";
    argv[0] = name;
    argp_parse(&ask_argp, argc, argv, 0, NULL, options);

    /* The second interrupt ends the program at once. */
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    asked_t asked = {.json = options->json};
    avl_progress_begin(&asked.progress);
    avl_status_t status = ask(options, &asked);
    if (status != AVL_OK) {
        if (asked.any_text)
            putchar('\n');
        fflush(stdout);
        avl_terminal_report("avl ask", status, avl_status_detail());
    }
    free_answers(&asked);
    free(options);
    if (status == AVL_OK)
        return 0;
    return interrupted ? AVL_EXIT_INTERRUPTED : AVL_EXIT_FAILED;
}
