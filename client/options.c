#include "client/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/status.h"
#include "client/attention_options.h"
#include "client/client.h"
#include "client/rpc.h"

enum {
    KEY_MAX_TOKENS = 0x200,
    KEY_TOP_P,
    KEY_TOP_K,
    KEY_SEED,
    KEY_RAW_PROMPT,
    KEY_SYSTEM,
    KEY_IGNORE_EOS,
    KEY_MIN_P,
    KEY_REPETITION,
    KEY_PRESENCE,
    KEY_FREQUENCY,
    KEY_MIN_TOKENS,
    KEY_STOP,
};

double avl_option_number(struct argp_state *state, const char *name, const char *text) {
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !isfinite(value))
        argp_error(state, "%s: \"%s\" is not a number", name, text);
    return value;
}

double avl_option_number_in(struct argp_state *state, const char *name, const char *text,
                            double least, double most) {
    double value = avl_option_number(state, name, text);
    if (value < least || value > most)
        argp_error(state, "%s: \"%s\" is not between %g and %g", name, text, least, most);
    return value;
}

uint64_t avl_option_count(struct argp_state *state, const char *name, const char *text,
                          uint64_t least, uint64_t most) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    /* strtoull itself would take " 1" and "-1" */
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || value < least ||
        value > most)
        argp_error(state, "%s: \"%s\" is not a whole number from %llu to %llu", name, text,
                   (unsigned long long)least, (unsigned long long)most);
    return value;
}

static const struct argp_option request_option_list[] = {
    {"max-tokens", KEY_MAX_TOKENS, "N", 0, "at most N new tokens (default: what the context holds)",
     0},
    {"temperature", 't', "T", 0, "0 is greedy (default: the model's own)", 0},
    {"top-p", KEY_TOP_P, "P", 0, "nucleus sampling, 0 < P <= 1", 0},
    {"top-k", KEY_TOP_K, "K", 0, "sample among the K best tokens; 0 is off", 0},
    {"min-p", KEY_MIN_P, "P", 0, "only tokens with at least P of the best one's probability", 0},
    {"repetition-penalty", KEY_REPETITION, "X", 0,
     "against tokens of question and answer; 1 is off", 0},
    {"presence-penalty", KEY_PRESENCE, "X", 0, "against tokens of the answer", 0},
    {"frequency-penalty", KEY_FREQUENCY, "X", 0, "the same, for every time they came", 0},
    {"min-tokens", KEY_MIN_TOKENS, "N", 0, "no end before N tokens", 0},
    {"stop", KEY_STOP, "TEXT", 0, "end the answer before TEXT; may be given several times", 0},
    {"seed", KEY_SEED, "S", 0, "the same seed gives the same answer", 0},
    {"system", KEY_SYSTEM, "TEXT", 0, "system message before the question", 0},
    {"raw-prompt", KEY_RAW_PROMPT, NULL, 0,
     "the question is the whole prompt, image placeholders included; no chat template", 0},
    {"ignore-eos", KEY_IGNORE_EOS, NULL, 0, "go on after the end of the answer (measurements)", 0},
    {0},
};

void avl_request_options_init(avl_request_options_t *options) {
    *options = (avl_request_options_t){0};
    avl__v1__sampling_parameters__init(&options->sampling);
    avl__v1__attention_parameters__init(&options->attention);
}

static error_t parse_sampling(int key, const char *text, struct argp_state *state,
                              Avl__V1__SamplingParameters *sampling) {
    switch (key) {
    case 't':
        sampling->temperature = avl_option_number(state, "--temperature", text);
        sampling->_temperature_case = AVL__V1__SAMPLING_PARAMETERS___TEMPERATURE_TEMPERATURE;
        return 0;
    case KEY_TOP_P:
        sampling->top_p = avl_option_number(state, "--top-p", text);
        sampling->_top_p_case = AVL__V1__SAMPLING_PARAMETERS___TOP_P_TOP_P;
        return 0;
    case KEY_TOP_K:
        sampling->top_k = (uint32_t)avl_option_count(state, "--top-k", text, 0, INT32_MAX);
        sampling->_top_k_case = AVL__V1__SAMPLING_PARAMETERS___TOP_K_TOP_K;
        return 0;
    case KEY_SEED:
        sampling->seed = avl_option_count(state, "--seed", text, 0, UINT64_MAX);
        sampling->_seed_case = AVL__V1__SAMPLING_PARAMETERS___SEED_SEED;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_penalties(int key, const char *text, struct argp_state *state,
                               Avl__V1__SamplingParameters *sampling) {
    switch (key) {
    case KEY_MIN_P:
        sampling->min_p = avl_option_number(state, "--min-p", text);
        return 0;
    case KEY_REPETITION:
        sampling->repetition_penalty = avl_option_number(state, "--repetition-penalty", text);
        return 0;
    case KEY_PRESENCE:
        sampling->presence_penalty = avl_option_number(state, "--presence-penalty", text);
        return 0;
    case KEY_FREQUENCY:
        sampling->frequency_penalty = avl_option_number(state, "--frequency-penalty", text);
        return 0;
    case KEY_MIN_TOKENS:
        sampling->min_tokens =
            (uint32_t)avl_option_count(state, "--min-tokens", text, 0, INT32_MAX);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void add_stop(avl_request_options_t *options, char *text, struct argp_state *state) {
    if (options->sampling.n_stop == AVL_REQUEST_STOPS_MAX)
        argp_error(state, "--stop: at most %d texts", AVL_REQUEST_STOPS_MAX);
    options->stop[options->sampling.n_stop++] = text;
    options->sampling.stop = options->stop;
}

static error_t parse_request_option(int key, char *text, struct argp_state *state) {
    avl_request_options_t *options = state->input;
    if (parse_sampling(key, text, state, &options->sampling) == 0 ||
        parse_penalties(key, text, state, &options->sampling) == 0)
        return 0;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->attention;
        return 0;
    case KEY_MAX_TOKENS:
        options->max_tokens = (uint32_t)avl_option_count(state, "--max-tokens", text, 1, INT32_MAX);
        return 0;
    case KEY_SYSTEM:
        options->system = text;
        return 0;
    case KEY_STOP:
        add_stop(options, text, state);
        return 0;
    case KEY_RAW_PROMPT:
        options->raw_prompt = true;
        return 0;
    case KEY_IGNORE_EOS:
        options->ignore_eos = true;
        return 0;
    case ARGP_KEY_END:
        if (options->raw_prompt && options->system != NULL)
            argp_error(state, "--system needs a chat template: not together with --raw-prompt");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child request_children[] = {{&avl_attention_argp, 0, NULL, 0}, {0}};

const struct argp avl_request_argp = {
    .options = request_option_list,
    .parser = parse_request_option,
    .children = request_children,
};

static const struct argp_option server_option_list[] = {
    {"server", 's', "ADDRESS", 0,
     "HOST:PORT or unix:PATH of the service (default: $AVL_SERVER, else " AVL_DEFAULT_SERVER ")",
     0},
    {0},
};

static error_t parse_server_option(int key, char *text, struct argp_state *state) {
    const char **server = state->input;
    const char *from_environment = getenv("AVL_SERVER");
    switch (key) {
    case 's':
        *server = text;
        return 0;
    case ARGP_KEY_END:
        if (*server == NULL)
            *server = from_environment != NULL && from_environment[0] != '\0' ? from_environment
                                                                              : AVL_DEFAULT_SERVER;
        if (avl_rpc_check_address(*server) != AVL_OK)
            argp_error(state, "--server: %s", avl_status_detail());
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp avl_server_argp = {
    .options = server_option_list,
    .parser = parse_server_option,
};
