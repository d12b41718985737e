/* client/bench.c: avl bench: many questions at once, and how long their answers took.
 *
 * Closed loop: a fixed number of requests is always under way. Open loop (--rate): requests arrive
 * as a Poisson process, whatever the service does; their times count from the arrival, so that a
 * stalling service is not measured less often. One thread does everything. */
#include <argp.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/status.h"
#include "client/bench_report.h"
#include "client/client.h"
#include "client/info.h"
#include "client/options.h"
#include "client/request.h"
#include "client/rpc.h"
#include "client/terminal.h"
#include "proto/texts.h"

#define DEFAULT_REQUESTS 100
#define DEFAULT_MAX_TOKENS 128
#define DEFAULT_PROMPT "Describe the image."
#define DEFAULT_TEXT_PROMPT "What can you tell me?"
#define IMAGES_MAX 1024
#define PROMPTS_MAX 65536
#define CONCURRENCY_MAX 16384
/* After a failure a place in the closed loop stays empty for so long: a service that refuses at
 * once is not asked a hundred thousand times a second. */
#define PAUSE_NS (10 * AVL_NS_PER_MS)
/* How often the loop looks at the stop flag and redraws. */
#define LOOK_NS (50 * AVL_NS_PER_MS)

typedef struct bench_options {
    const char *server;
    avl_request_options_t request;
    const char *images[IMAGES_MAX];
    size_t image_count;
    const char **prompts; /* borrowed from the command line or from prompts_text */
    size_t prompt_count, prompt_capacity;
    char *prompts_text;
    uint64_t concurrency, requests, warmup, connections;
    double rate, duration_s, cancel_rate, deadline_s;
    bool json;
} bench_options_t;

enum {
    KEY_PROMPT = 0x100,
    KEY_PROMPTS,
    KEY_WARMUP,
    KEY_CANCEL_RATE,
    KEY_DEADLINE,
    KEY_CONNECTIONS,
    KEY_JSON,
};

static const struct argp_option bench_option_list[] = {
    {"concurrency", 'c', "N", 0, "keep N requests under way (default: 1)", 0},
    {"rate", 'r', "R", 0, "instead, R requests arrive a second, as a Poisson process", 0},
    {"requests", 'n', "N", 0, "start N requests (default: 100, without end with --duration)", 0},
    {"duration", 'd', "SECONDS", 0, "start requests for so long, then wait for their ends", 0},
    {"warmup", KEY_WARMUP, "N", 0, "N requests before, which do not count (default: 0)", 0},
    {"image", 'i', "FILE", 0, "a picture; repeatable: requests take them in turn, one each", 0},
    {"prompt", KEY_PROMPT, "TEXT", 0, "a question; repeatable: requests take them in turn", 0},
    {"prompts", KEY_PROMPTS, "FILE", 0, "a file with a question on each line", 0},
    {"cancel-rate", KEY_CANCEL_RATE, "P", 0,
     "share of the requests that are given up somewhere on the way, 0 <= P <= 1", 0},
    {"deadline", KEY_DEADLINE, "SECONDS", 0,
     "deadline of each request; goodput counts what is complete within it", 0},
    {"connections", KEY_CONNECTIONS, "N", 0, "spread the requests over N connections (default: 1)",
     0},
    {"json", KEY_JSON, NULL, 0, "print one JSON object instead of the table", 0},
    {0},
};

static void add_prompt(struct argp_state *state, bench_options_t *options, const char *text) {
    if (options->prompt_count == PROMPTS_MAX)
        argp_error(state, "more than %d questions", PROMPTS_MAX);
    if (avl_grow(options->prompt_count + 1, sizeof options->prompts[0], "questions",
                 &options->prompts, &options->prompt_capacity) != AVL_OK)
        argp_failure(state, AVL_EXIT_FAILED, 0, "%s", avl_status_detail());
    options->prompts[options->prompt_count++] = text;
}

/* Empty lines are skipped. */
static void read_prompts(struct argp_state *state, bench_options_t *options, const char *path) {
    if (options->prompts_text != NULL)
        argp_error(state, "--prompts: only one file");
    FILE *stream = fopen(path, "r");
    if (stream == NULL) {
        argp_failure(state, AVL_EXIT_FAILED, errno, "%s", path);
        return; /* for the analyser: not reached */
    }
    if (avl_text_read(stream, path, &options->prompts_text) != AVL_OK)
        argp_failure(state, AVL_EXIT_FAILED, 0, "%s", avl_status_detail());
    fclose(stream);
    size_t before = options->prompt_count;
    char *rest = options->prompts_text;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        size_t bytes = strlen(line);
        if (bytes > 0 && line[bytes - 1] == '\r')
            line[bytes - 1] = '\0';
        if (line[0] != '\0')
            add_prompt(state, options, line);
    }
    if (options->prompt_count == before)
        argp_failure(state, AVL_EXIT_FAILED, 0, "%s: no question in it", path);
}

static error_t parse_load_option(int key, char *text, struct argp_state *state,
                                 bench_options_t *options) {
    switch (key) {
    case 'c':
        options->concurrency = avl_option_count(state, "--concurrency", text, 1, CONCURRENCY_MAX);
        return 0;
    case 'r':
        options->rate = avl_option_number_in(state, "--rate", text, 1e-3, 1e6);
        return 0;
    case 'n':
        options->requests = avl_option_count(state, "--requests", text, 1, INT32_MAX);
        return 0;
    case 'd':
        options->duration_s = avl_option_number_in(state, "--duration", text, 1e-3, 1e6);
        return 0;
    case KEY_WARMUP:
        options->warmup = avl_option_count(state, "--warmup", text, 0, INT32_MAX);
        return 0;
    case KEY_CANCEL_RATE:
        options->cancel_rate = avl_option_number_in(state, "--cancel-rate", text, 0, 1);
        return 0;
    case KEY_DEADLINE:
        options->deadline_s = avl_option_number_in(state, "--deadline", text, 1e-3, 1e6);
        return 0;
    case KEY_CONNECTIONS:
        options->connections =
            avl_option_count(state, "--connections", text, 1, AVL_RPC_CHANNELS_MAX);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_option(int key, char *text, struct argp_state *state) {
    bench_options_t *options = state->input;
    if (parse_load_option(key, text, state, options) == 0)
        return 0;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->server;
        state->child_inputs[1] = &options->request;
        return 0;
    case 'i':
        if (options->image_count == IMAGES_MAX)
            argp_error(state, "--image: more than %d pictures", IMAGES_MAX);
        options->images[options->image_count++] = text;
        return 0;
    case KEY_PROMPT:
        add_prompt(state, options, text);
        return 0;
    case KEY_PROMPTS:
        read_prompts(state, options, text);
        return 0;
    case KEY_JSON:
        options->json = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "takes no argument, but got \"%s\" (see --prompt)", text);
        return 0;
    case ARGP_KEY_END:
        if (options->rate > 0 && options->concurrency > 0)
            argp_error(state, "--rate and --concurrency are two kinds of load: give one");
        if (options->concurrency == 0)
            options->concurrency = 1;
        if (options->requests == 0 && options->duration_s == 0)
            options->requests = DEFAULT_REQUESTS;
        if (options->prompt_count == 0)
            add_prompt(state, options,
                       options->image_count > 0 ? DEFAULT_PROMPT : DEFAULT_TEXT_PROMPT);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child bench_children[] = {
    {&avl_server_argp, 0, NULL, 0}, {&avl_request_argp, 0, "Each request:", 0}, {0}};

static const struct argp bench_argp = {
    .options = bench_option_list,
    .parser = parse_option,
    .children = bench_children,
    .doc = "Puts a service under load and reports TTFT, TPOT, ITL, end-to-end latency, throughput "
           "and errors.\v"
           "Answers have at most 128 tokens unless --max-tokens says otherwise. --seed drives "
           "arrivals and cancellations as well; request number i samples with seed S + i. "
           "Interrupting once ends the run and reports what was measured."
           "\n\nExit status: 0 measured, 1 failed or no request succeeded, 2 used wrongly, 130 "
           "interrupted.",
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

typedef struct load load_t;

/* A request under way. */
typedef struct asked {
    load_t *load;
    struct asked *next, **link; /* in load->asked; *link is this one */
    avl_rpc_call_t *call;
    int64_t start_ns, first_ns, last_ns; /* 0: not yet */
    uint64_t tokens;
    uint64_t cancel_after; /* tokens; UINT64_MAX: never */
    bool cancelled;
    Avl__V1__Finished *finished;
} asked_t;

/* One run: a number of requests from the first start to the last end. */
struct load {
    const bench_options_t *options;
    avl_rpc_t *rpc;
    const avl_picture_t *pictures;
    avl_bench_results_t *results;
    uint64_t limit;  /* of requests; UINT64_MAX: none */
    int64_t stop_ns; /* no request is started from here on */
    uint64_t started, ended;
    int64_t begin_ns, end_ns;
    int64_t arrival_ns; /* open loop: of the next request */
    asked_t *asked;
    uint64_t under_way;
    /* Closed loop: when paused places may be taken again. A ring, in order, because every pause is
     * of one length. */
    int64_t *pauses;
    size_t pause_first, pause_count;
    uint64_t random;
    bool interrupted;
    avl_status_t failure; /* of this program; ends the run */
    char failure_detail[AVL_STATUS_DETAIL_BYTES];
    avl_progress_t progress;
    const char *label;
};

static void fail_load(load_t *load, avl_status_t status) {
    if (load->failure != AVL_OK)
        return;
    load->failure = status;
    snprintf(load->failure_detail, sizeof load->failure_detail, "%s", avl_status_detail());
}

/* splitmix64, by S. Vigna: any state is a good one. */
static uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* In [0, 1). */
static double random_share(uint64_t *state) {
    return (double)(random_bits(state) >> 11) * 0x1p-53;
}

static double milliseconds(int64_t duration_ns) {
    return (double)duration_ns / 1e6;
}

static void cancel_on_purpose(asked_t *asked) {
    asked->cancelled = true;
    avl_rpc_cancel(asked->call, AVL_ERR_CANCELLED, "given up on purpose");
}

static avl_status_t take_delta(asked_t *asked, const Avl__V1__Delta *delta) {
    if (delta->n_token_ids == 0)
        return AVL_OK;
    int64_t now_ns = avl_clock_now_ns();
    avl_bench_results_t *results = asked->load->results;
    if (asked->first_ns == 0)
        asked->first_ns = now_ns;
    else
        AVL_TRY(avl_bench_sample(&results->itl_ms, milliseconds(now_ns - asked->last_ns)));
    asked->last_ns = now_ns;
    asked->tokens += delta->n_token_ids;
    results->output_tokens += delta->n_token_ids;
    if (asked->tokens >= asked->cancel_after)
        cancel_on_purpose(asked);
    return AVL_OK;
}

static avl_status_t take_message(void *context, const uint8_t *bytes, size_t byte_count) {
    asked_t *asked = context;
    Avl__V1__GenerateResponse *response =
        avl__v1__generate_response__unpack(NULL, byte_count, bytes);
    if (response == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server sent a message that is no GenerateResponse");
    avl_status_t status = AVL_OK;
    if (asked->finished != NULL) {
        status = avl_fail(AVL_ERR_INTERNAL, "the server went on after the end of the answer");
    } else if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_DELTA) {
        status = take_delta(asked, response->delta);
    } else if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED) {
        asked->finished = response->finished;
        response->event_case = AVL__V1__GENERATE_RESPONSE__EVENT__NOT_SET; /* ours now */
    }
    avl__v1__generate_response__free_unpacked(response, NULL);
    return status;
}

static avl_status_t count_completed(const asked_t *asked, int64_t now_ns) {
    avl_bench_results_t *results = asked->load->results;
    const Avl__V1__Finished *finished = asked->finished;
    double deadline_s = asked->load->options->deadline_s;
    results->completed++;
    if (deadline_s == 0 || (double)(now_ns - asked->start_ns) <= deadline_s * 1e9)
        results->good++;
    if (finished->usage != NULL) {
        results->prompt_tokens += finished->usage->prompt_tokens;
        results->visual_tokens += finished->usage->visual_tokens;
    }
    const Avl__V1__AttentionReport *attention = finished->attention;
    if (attention != NULL && attention->visual_rows_seen > 0) {
        results->visual_requests++;
        results->rows_seen += attention->visual_rows_seen;
        results->rows_stored += attention->visual_rows_stored;
        results->rows_computed += attention->visual_rows_computed_per_step;
    }
    if (finished->timings != NULL) {
        results->queue_s += finished->timings->queue_seconds;
        results->preprocess_s += finished->timings->preprocess_seconds;
        results->encode_s += finished->timings->encode_seconds;
        results->prefill_s += finished->timings->prefill_seconds;
    }
    AVL_TRY(avl_bench_sample(&results->e2el_ms, milliseconds(now_ns - asked->start_ns)));
    if (asked->first_ns != 0)
        AVL_TRY(
            avl_bench_sample(&results->ttft_ms, milliseconds(asked->first_ns - asked->start_ns)));
    if (asked->tokens > 1)
        AVL_TRY(avl_bench_sample(&results->tpot_ms, milliseconds(asked->last_ns - asked->first_ns) /
                                                        (double)(asked->tokens - 1)));
    return AVL_OK;
}

/* What kind of failure it is: refused at once, or taken and late. */
static void count_refusal(const asked_t *asked, avl_status_t status, const char *detail,
                          int64_t now_ns) {
    avl_bench_results_t *results = asked->load->results;
    double deadline_s = asked->load->options->deadline_s;
    double after_s = (double)(now_ns - asked->start_ns) / 1e9;
    bool given_up = strncmp(detail, AVL_TEXT_GIVEN_UP, strlen(AVL_TEXT_GIVEN_UP)) == 0;
    bool early = !given_up && asked->tokens == 0 && (deadline_s == 0 || after_s < 0.9 * deadline_s);
    if (status == AVL_ERR_DEADLINE && !early)
        results->late++;
    else if ((status == AVL_ERR_DEADLINE || status == AVL_ERR_EXHAUSTED) &&
             avl_bench_sample(&results->refused_ms, milliseconds(now_ns - asked->start_ns)) !=
                 AVL_OK)
        fail_load(asked->load, AVL_ERR_MEMORY);
}

static void on_end(void *context, avl_status_t status, const char *detail) {
    asked_t *asked = context;
    load_t *load = asked->load;
    int64_t now_ns = avl_clock_now_ns();
    bool pause = false;
    load->ended++;
    load->under_way--;
    load->end_ns = now_ns;
    if (status == AVL_OK && asked->finished != NULL) {
        avl_status_t counted = count_completed(asked, now_ns);
        if (counted != AVL_OK)
            fail_load(load, counted);
    } else if (asked->cancelled) {
        load->results->cancelled++;
    } else if (load->interrupted) {
        load->results->unfinished++;
    } else {
        count_refusal(asked, status, detail, now_ns);
        avl_bench_count_error(
            load->results, status != AVL_OK ? status : AVL_ERR_INTERNAL,
            status != AVL_OK ? detail : "the server ended the answer without finishing it");
        pause = true;
    }
    if (pause && load->options->rate == 0) {
        size_t place = (load->pause_first + load->pause_count++) % load->options->concurrency;
        load->pauses[place] = now_ns + PAUSE_NS;
    }
    *asked->link = asked->next;
    if (asked->next != NULL)
        asked->next->link = asked->link;
    if (asked->finished != NULL)
        avl__v1__finished__free_unpacked(asked->finished, NULL);
    free(asked);
}

static avl_status_t pack_next(load_t *load, avl_rpc_request_t **request_p) {
    const bench_options_t *options = load->options;
    uint64_t index = load->started;
    avl_request_options_t request = options->request;
    request.sampling.seed += index; /* means nothing unless --seed is given */
    char name[48];
    snprintf(name, sizeof name, "bench-%llu", (unsigned long long)index);
    const avl_picture_t *picture =
        options->image_count > 0 ? &load->pictures[index % options->image_count] : NULL;
    return avl_request_pack(&request, options->prompts[index % options->prompt_count], picture,
                            picture != NULL ? 1 : 0, name, false, request_p);
}

/* `start_ns` is when the request counts as begun; 0: now, once it is packed. */
static avl_status_t start_request(load_t *load, int64_t start_ns) {
    const bench_options_t *options = load->options;
    avl_rpc_request_t *request = NULL;
    AVL_TRY(pack_next(load, &request));
    if (start_ns == 0)
        start_ns = avl_clock_now_ns();
    asked_t *asked = NULL;
    avl_status_t status = AVL_OK;
    AVL_TRY_GOTO(status, avl_alloc(1, sizeof *asked, "request", &asked), out);
    asked->load = load;
    asked->start_ns = start_ns;
    asked->cancel_after = UINT64_MAX;
    /* Both numbers are drawn always, so that a cancel rate leaves the arrivals as they are. */
    double chance = random_share(&load->random), place = random_share(&load->random);
    if (chance < options->cancel_rate)
        asked->cancel_after = (uint64_t)(place * options->request.max_tokens);
    int64_t timeout_ns = AVL_DEADLINE_NONE;
    if (options->deadline_s > 0) {
        timeout_ns = start_ns + (int64_t)(options->deadline_s * 1e9) - avl_clock_now_ns();
        if (timeout_ns < 1)
            timeout_ns = 1;
    }
    avl_rpc_handler_t handler = {.on_message = take_message, .on_end = on_end, .context = asked};
    status = avl_rpc_start(load->rpc, "/avl.v1.Inference/Generate", request, timeout_ns, &handler,
                           &asked->call);
    if (status != AVL_OK) {
        free(asked);
        goto out;
    }
    asked->next = load->asked;
    asked->link = &load->asked;
    if (asked->next != NULL)
        asked->next->link = &asked->next;
    load->asked = asked;
    load->under_way++;
    load->started++;
    if (asked->cancel_after == 0)
        cancel_on_purpose(asked);
out:
    avl_rpc_request_destroy(request);
    return status;
}

static bool may_start(const load_t *load, int64_t now_ns) {
    return !load->interrupted && load->failure == AVL_OK && load->started < load->limit &&
           now_ns < load->stop_ns;
}

/* Starts what is due. */
static avl_status_t start_due(load_t *load, int64_t now_ns) {
    const bench_options_t *options = load->options;
    if (options->rate == 0) {
        while (load->pause_count > 0 && load->pauses[load->pause_first] <= now_ns) {
            load->pause_first = (load->pause_first + 1) % options->concurrency;
            load->pause_count--;
        }
        while (may_start(load, now_ns) &&
               load->under_way + load->pause_count < options->concurrency)
            AVL_TRY(start_request(load, 0));
        return AVL_OK;
    }
    while (may_start(load, now_ns) && load->arrival_ns <= now_ns) {
        if (load->under_way == CONCURRENCY_MAX)
            return avl_fail(AVL_ERR_EXHAUSTED,
                            "%d requests are under way: the service is far behind --rate",
                            CONCURRENCY_MAX);
        AVL_TRY(start_request(load, load->arrival_ns));
        double wait_s = -log1p(-random_share(&load->random)) / options->rate;
        load->arrival_ns += (int64_t)(wait_s * 1e9);
    }
    return AVL_OK;
}

static int64_t earlier(int64_t left_ns, int64_t right_ns) {
    return left_ns < right_ns ? left_ns : right_ns;
}

static int64_t next_look_ns(const load_t *load, int64_t now_ns) {
    int64_t until_ns = now_ns + LOOK_NS;
    if (!may_start(load, now_ns))
        return until_ns;
    if (load->options->rate > 0)
        return earlier(until_ns, load->arrival_ns);
    if (load->pause_count > 0)
        return earlier(until_ns, load->pauses[load->pause_first]);
    return until_ns;
}

static void show_progress(load_t *load, int64_t now_ns) {
    if (!load->progress.enabled)
        return;
    double elapsed_s = (double)(now_ns - load->begin_ns) / 1e9;
    char unit[96];
    const char *what = load->limit != UINT64_MAX ? "requests" : "s";
    int used = snprintf(unit, sizeof unit, "%s, %llu running, %.0f tokens/s", what,
                        (unsigned long long)load->under_way,
                        elapsed_s > 0 ? (double)load->results->output_tokens / elapsed_s : 0);
    if (load->results->failed > 0 && used > 0 && (size_t)used < sizeof unit)
        snprintf(unit + used, sizeof unit - (size_t)used, ", %llu failed",
                 (unsigned long long)load->results->failed);
    if (load->limit != UINT64_MAX)
        avl_progress_show(&load->progress, load->label, load->ended, load->limit, unit);
    else
        avl_progress_show(&load->progress, load->label, (uint64_t)elapsed_s,
                          (uint64_t)ceil(load->options->duration_s), unit);
}

/* Ends what is under way, once. */
static void interrupt_load(load_t *load, const char *detail) {
    if (load->interrupted)
        return;
    load->interrupted = true;
    for (asked_t *asked = load->asked; asked != NULL; asked = asked->next)
        avl_rpc_cancel(asked->call, AVL_ERR_CANCELLED, detail);
}

/* Runs requests until `limit` or `duration_s` (0: none) and the ends of all of them. */
static avl_status_t run_load(const bench_options_t *options, avl_rpc_t *rpc,
                             const avl_picture_t *pictures, const char *label, uint64_t limit,
                             double duration_s, avl_bench_results_t *results) {
    load_t load = {
        .options = options,
        .rpc = rpc,
        .pictures = pictures,
        .results = results,
        .limit = limit > 0 ? limit : UINT64_MAX,
        .random = options->request.sampling.seed,
        .label = label,
    };
    AVL_TRY(avl_alloc(options->concurrency, sizeof load.pauses[0], "places", &load.pauses));
    avl_progress_begin(&load.progress);
    int64_t now_ns = avl_clock_now_ns();
    load.begin_ns = load.end_ns = load.arrival_ns = now_ns;
    load.stop_ns = duration_s > 0 ? now_ns + (int64_t)(duration_s * 1e9) : INT64_MAX;
    for (;;) {
        avl_status_t status = start_due(&load, now_ns);
        if (status != AVL_OK)
            fail_load(&load, status);
        if (interrupted)
            interrupt_load(&load, "interrupted");
        if (load.failure != AVL_OK)
            interrupt_load(&load, load.failure_detail);
        if (load.under_way == 0 && !may_start(&load, now_ns))
            break;
        show_progress(&load, now_ns);
        avl_rpc_poll(rpc, next_look_ns(&load, now_ns));
        now_ns = avl_clock_now_ns();
    }
    avl_progress_clear(&load.progress);
    free(load.pauses);
    results->duration_s = (double)(load.end_ns - load.begin_ns) / 1e9;
    if (load.failure != AVL_OK)
        return avl_fail(load.failure, "%s", load.failure_detail);
    return AVL_OK;
}

static avl_status_t report(const bench_options_t *options,
                           const Avl__V1__GetModelInfoResponse *info,
                           avl_bench_results_t *results) {
    avl_bench_setting_t setting = {
        .server = options->server,
        .info = info,
        .rate = options->rate,
        .concurrency = options->concurrency,
        .connections = options->connections,
        .deadline_s = options->deadline_s,
        .cancel_rate = options->cancel_rate,
        .max_tokens = options->request.max_tokens,
        .seed = options->request.sampling.seed,
    };
    return options->json ? avl_bench_print_json(stdout, &setting, results)
                         : avl_bench_print_table(stdout, &setting, results);
}

static avl_status_t bench(const bench_options_t *options, avl_bench_results_t *results) {
    avl_status_t status = AVL_OK;
    avl_picture_t *pictures = NULL;
    avl_rpc_t *rpc = NULL;
    Avl__V1__GetModelInfoResponse *info = NULL;
    AVL_TRY(avl_alloc(options->image_count, sizeof *pictures, "pictures", &pictures));
    for (size_t i = 0; i < options->image_count; i++)
        AVL_TRY_GOTO(status, avl_picture_read(options->images[i], &pictures[i]), out);
    AVL_TRY_GOTO(status, avl_rpc_open(options->server, options->connections, &rpc), out);
    AVL_TRY_GOTO(status, avl_info_get(rpc, &info), out);
    if (options->warmup > 0) {
        avl_bench_results_t ignored = {0};
        status = run_load(options, rpc, pictures, "warming up", options->warmup, 0, &ignored);
        avl_bench_results_free(&ignored);
        if (status != AVL_OK)
            goto out;
    }
    avl_status_t run = run_load(options, rpc, pictures, "benchmark", options->requests,
                                options->duration_s, results);
    char run_detail[AVL_STATUS_DETAIL_BYTES];
    snprintf(run_detail, sizeof run_detail, "%s", avl_status_detail());
    AVL_TRY_GOTO(status, report(options, info, results), out);
    if (run != AVL_OK) /* what was measured until then is printed all the same */
        status = avl_fail(run, "%s", run_detail);
    else if (interrupted)
        status = avl_fail(AVL_ERR_CANCELLED, "interrupted");
    else if (results->completed == 0 && results->failed > 0)
        status = avl_fail(results->errors[0].status, "no request succeeded: %s",
                          results->errors[0].detail);
out:
    if (info != NULL)
        avl__v1__get_model_info_response__free_unpacked(info, NULL);
    avl_rpc_close(rpc);
    for (size_t i = 0; i < options->image_count; i++)
        free(pictures[i].bytes);
    free(pictures);
    return status;
}

int avl_command_bench(int argc, char **argv) {
    bench_options_t *options = NULL;
    if (avl_alloc(1, sizeof *options, "options", &options) != AVL_OK)
        return AVL_EXIT_FAILED;
    avl_request_options_init(&options->request);
    options->request.max_tokens = DEFAULT_MAX_TOKENS;
    options->connections = 1;
    argp_err_exit_status = AVL_EXIT_USAGE;
    char name[] = "avl bench";
    argv[0] = name;
    argp_parse(&bench_argp, argc, argv, 0, NULL, options);

    /* The second interrupt ends the program at once. */
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    avl_bench_results_t results = {0};
    avl_status_t status = bench(options, &results);
    if (status != AVL_OK)
        avl_terminal_report("avl bench", status, avl_status_detail());
    avl_bench_results_free(&results);
    free(options->prompts);
    free(options->prompts_text);
    free(options);
    if (status == AVL_OK)
        return 0;
    return interrupted ? AVL_EXIT_INTERRUPTED : AVL_EXIT_FAILED;
}
