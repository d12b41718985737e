/* client/eval.c: avl eval: how good answers are with less attention, measured on a task file
 * against a running service. */
#include <argp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "client/client.h"
#include "client/eval_plot.h"
#include "client/eval_report.h"
#include "client/info.h"
#include "client/options.h"
#include "client/terminal.h"

#define DEFAULT_CONCURRENCY 4
#define DEFAULT_MAX_TOKENS 256
#define DEFAULT_METHODS "dense,a-vl"
#define DEFAULT_TIMEOUT_S 600
#define CONCURRENCY_MAX 1024

typedef struct eval_options {
    const char *server, *tasks, *method_text, *budgets;
    avl_eval_method_t *methods;
    size_t method_count;
    const char *json, *plots, *answers;
    uint64_t concurrency, limit, max_tokens;
    double timeout_s;
    bool scores_only, without_mass;
} eval_options_t;

enum {
    KEY_METHODS = 0x100,
    KEY_BUDGETS,
    KEY_LIMIT,
    KEY_JSON,
    KEY_PLOTS,
    KEY_ANSWERS,
    KEY_MAX_TOKENS,
    KEY_TIMEOUT,
    KEY_SCORES_ONLY,
    KEY_NO_MASS,
};

static const struct argp_option eval_option_list[] = {
    {"tasks", 'f', "FILE", 0, "the questions, one JSON object a line (see below)", 0},
    {"methods", KEY_METHODS, "SPEC,...", 0,
     "ways of attending to compare with dense attention (default: " DEFAULT_METHODS ")", 0},
    {"budgets", KEY_BUDGETS, "S/C[/K],...", 0,
     "shares of visual rows stored and computed, and steps between reselections", 0},
    {"concurrency", 'c', "N", 0, "keep N requests under way (default: 4)", 0},
    {"limit", KEY_LIMIT, "N", 0, "the first N questions of each task (default: all)", 0},
    {"max-tokens", KEY_MAX_TOKENS, "N", 0,
     "of an answer whose question does not say (default: 256)", 0},
    {"timeout", KEY_TIMEOUT, "SECONDS", 0, "deadline of each request (default: 600)", 0},
    {"scores-only", KEY_SCORES_ONLY, NULL, 0, "no forced decoding: half the time, and no KL", 0},
    {"no-mass", KEY_NO_MASS, NULL, 0,
     "do not measure what share of the attention mass the computed rows capture", 0},
    {"json", KEY_JSON, "FILE", 0, "write all figures there; - prints them instead of the table", 0},
    {"answers", KEY_ANSWERS, "FILE", 0, "write every answer there, one JSON object a line", 0},
    {"plots", KEY_PLOTS, "DIR", 0,
     "write quality-by-bytes.png and quality-by-rows.png into this folder", 0},
    {0},
};

/* Dense attention first, as the reference. */
static avl_status_t read_methods(eval_options_t *options) {
    avl_eval_method_t *asked = NULL, *dense = NULL;
    size_t asked_count = 0, dense_count = 0;
    AVL_TRY(avl_eval_methods_read(options->method_text, options->budgets, &asked, &asked_count));
    avl_status_t status = avl_eval_methods_read("dense", NULL, &dense, &dense_count);
    if (status == AVL_OK)
        status = avl_alloc(asked_count + 1, sizeof *asked, "methods", &options->methods);
    if (status == AVL_OK) {
        options->methods[options->method_count++] = dense[0];
        for (size_t i = 0; i < asked_count; i++) {
            avl_eval_method_t *method = &options->methods[options->method_count++];
            *method = asked[i];
            if (method->dense)
                snprintf(method->name, sizeof method->name, "dense, again");
        }
    }
    free(dense);
    free(asked);
    return status;
}

static error_t parse_numbers(int key, char *text, struct argp_state *state,
                             eval_options_t *options) {
    switch (key) {
    case 'c':
        options->concurrency = avl_option_count(state, "--concurrency", text, 1, CONCURRENCY_MAX);
        return 0;
    case KEY_LIMIT:
        options->limit = avl_option_count(state, "--limit", text, 1, INT32_MAX);
        return 0;
    case KEY_MAX_TOKENS:
        options->max_tokens = avl_option_count(state, "--max-tokens", text, 1, INT32_MAX);
        return 0;
    case KEY_TIMEOUT:
        options->timeout_s = avl_option_number_in(state, "--timeout", text, 1e-3, 1e6);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_option(int key, char *text, struct argp_state *state) {
    eval_options_t *options = state->input;
    if (parse_numbers(key, text, state, options) == 0)
        return 0;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->server;
        return 0;
    case 'f':
        options->tasks = text;
        return 0;
    case KEY_METHODS:
        options->method_text = text;
        return 0;
    case KEY_BUDGETS:
        options->budgets = text;
        return 0;
    case KEY_SCORES_ONLY:
        options->scores_only = true;
        return 0;
    case KEY_NO_MASS:
        options->without_mass = true;
        return 0;
    case KEY_JSON:
        options->json = text;
        return 0;
    case KEY_ANSWERS:
        options->answers = text;
        return 0;
    case KEY_PLOTS:
        options->plots = text;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "takes no argument, but got \"%s\" (see --tasks)", text);
        return 0;
    case ARGP_KEY_END:
        if (options->tasks == NULL)
            argp_error(state, "--tasks is missing");
        if (read_methods(options) != AVL_OK)
            argp_error(state, "--methods: %s", avl_status_detail());
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static char *make_help(int key, const char *text, void *input) {
    (void)input;
    if (key != ARGP_KEY_HELP_POST_DOC)
        return (char *)(uintptr_t)text;
    char *whole = NULL;
    return asprintf(&whole, "%s\n\n%s", avl_eval_method_help, text) < 0 ? NULL : whole;
}

static const struct argp_child eval_children[] = {{&avl_server_argp, 0, NULL, 0}, {0}};

static const struct argp eval_argp = {
    .options = eval_option_list,
    .parser = parse_option,
    .children = eval_children,
    .help_filter = make_help,
    .doc = "Measures answers with adaptive attention against dense attention: scores, agreement, "
           "memory, time.\v"
           "A line of the task file: {\"id\": \"1\", \"task\": \"reading\", \"images\": "
           "[\"a.png\"], \"question\": \"What does the sign say?\", \"answer\": \"STOP\", "
           "\"score\": \"exact\"}. Instead of question: turns, a list of {\"role\": \"user\" or "
           "\"assistant\", \"text\": ..., \"images\": [...]}. score: exact, items (F1 of lists "
           "separated by commas) or contains. Optional: task, images, answer (or a list of "
           "accepted ones; without it only agreement is measured), system, ignore_case, "
           "max_tokens, meta. Answers are greedy."
           "\n\nColumns: score and its 95 % interval; the paired difference to dense attention; "
           "after1: the score without the answer's first token, which dense prefill gives to most "
           "methods; same: answers with dense attention's tokens throughout; forced, KL: dense "
           "attention's answer forced on the method, share of tokens after the first that it "
           "would choose too, and divergence of its next-token distribution in nats; mass: of the "
           "attention that would lie on visual rows, the share on those computed; rows stored "
           "and computed a step, cache at the end, time."
           "\n\nExit status: 0 measured, 1 failed, 2 used wrongly, 130 interrupted."};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static avl_status_t report(const eval_options_t *options, const avl_eval_setting_t *setting,
                           const avl_eval_run_t *run) {
    avl_eval_cell_t *cells = NULL;
    AVL_TRY(avl_eval_cells(run, &cells));
    avl_status_t status = AVL_OK;
    if (options->json == NULL || strcmp(options->json, "-") != 0)
        status = avl_eval_print_table(stdout, setting, run, cells);
    if (status == AVL_OK && options->json != NULL)
        status = avl_eval_write_json(options->json, setting, run, cells);
    if (status == AVL_OK && options->answers != NULL)
        status = avl_eval_write_answers(options->answers, run);
    if (status == AVL_OK && options->plots != NULL)
        status = avl_eval_plot(options->plots, setting, run, cells);
    free(cells);
    return status;
}

/* What was measured before the run ended early is told all the same, if there is anything; the
 * reason stays the last word. */
static avl_status_t report_part(const eval_options_t *options, avl_eval_setting_t *setting,
                                const avl_eval_run_t *run, avl_status_t reason) {
    char failure[AVL_STATUS_DETAIL_BYTES];
    snprintf(failure, sizeof failure, "%s", avl_status_detail());
    if (run->records == NULL || (!setting->interrupted && !avl_eval_run_has_answers(run)))
        return reason;
    if (!setting->interrupted)
        setting->failure = failure;
    AVL_TRY(report(options, setting, run));
    return avl_fail(reason, "%s", failure);
}

static avl_status_t measure(const eval_options_t *options, avl_eval_run_t *run) {
    avl_rpc_t *rpc = NULL;
    Avl__V1__GetModelInfoResponse *info = NULL;
    AVL_TRY(avl_rpc_open(options->server, 1, &rpc));
    avl_status_t status = avl_info_get(rpc, &info);
    if (status == AVL_OK) {
        int64_t begin_ns = avl_clock_now_ns();
        status = avl_eval_run(run, rpc, &interrupted);
        avl_eval_setting_t setting = {
            .server = options->server,
            .tasks_path = options->tasks,
            .info = info,
            .duration_s = (double)(avl_clock_now_ns() - begin_ns) / 1e9,
            .interrupted = interrupted != 0,
        };
        if (status == AVL_OK)
            status = report(options, &setting, run);
        else
            status = report_part(options, &setting, run, status);
        avl__v1__get_model_info_response__free_unpacked(info, NULL);
    }
    avl_rpc_close(rpc);
    return status;
}

static avl_status_t eval(const eval_options_t *options) {
    avl_eval_tasks_t tasks = {0};
    avl_status_t status = avl_eval_tasks_read(options->tasks, options->limit, &tasks);
    if (status == AVL_OK) {
        avl_eval_run_t run = {
            .tasks = &tasks,
            .methods = options->methods,
            .method_count = options->method_count,
            .concurrency = options->concurrency,
            .max_tokens = (uint32_t)options->max_tokens,
            .timeout_s = options->timeout_s,
            .scores_only = options->scores_only,
            .without_mass = options->without_mass,
        };
        status = measure(options, &run);
        if (status == AVL_OK && run.failed > 0)
            status = avl_fail(run.first_failure, "%llu requests failed, first: %s",
                              (unsigned long long)run.failed, run.first_detail);
        avl_eval_run_free(&run);
    }
    avl_eval_tasks_free(&tasks);
    return status;
}

int avl_command_eval(int argc, char **argv) {
    eval_options_t options = {
        .method_text = DEFAULT_METHODS,
        .concurrency = DEFAULT_CONCURRENCY,
        .max_tokens = DEFAULT_MAX_TOKENS,
        .timeout_s = DEFAULT_TIMEOUT_S,
    };
    argp_err_exit_status = AVL_EXIT_USAGE;
    char name[] = "avl eval";
    argv[0] = name;
    argp_parse(&eval_argp, argc, argv, 0, NULL, &options);

    /* The second interrupt ends the program at once. */
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    avl_status_t status = eval(&options);
    if (status != AVL_OK)
        avl_terminal_report("avl eval", status, avl_status_detail());
    free(options.methods);
    if (status == AVL_OK)
        return 0;
    return interrupted ? AVL_EXIT_INTERRUPTED : AVL_EXIT_FAILED;
}
