#include "coordinator/attention_options.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define CASE(name) AVL__V1__ATTENTION_PARAMETERS___##name

enum {
    KEY_PRESET = 2000,
    KEY_DENSE,
    KEY_STORE,
    KEY_COMPUTE,
    KEY_INTERVAL,
    KEY_CORE,
    KEY_SELECTION,
    KEY_PREFILL_KEEP,
    KEY_PREFILL_LAYER,
    KEY_TEXT_KEEP,
    KEY_TEXT_KEEP_MIN,
    KEY_TEXT_POLICY,
    KEY_PROTECT_PROMPT,
};

static const struct argp_option option_table[] = {
    {"preset", KEY_PRESET, "NAME", 0, "parameters by name (`avl info` lists them); default quality",
     0},
    {"dense", KEY_DENSE, NULL, 0, "attend to everything", 0},
    {"visual-store", KEY_STORE, "RATIO", 0,
     "share of the visual rows kept after prefill; default 0.5", 0},
    {"visual-compute", KEY_COMPUTE, "RATIO", 0, "share computed in ordinary steps; default 0.1", 0},
    {"visual-interval", KEY_INTERVAL, "N", 0,
     "steps between reselections, of visual-core interval; default 3", 0},
    {"visual-core", KEY_CORE, "NAME", 0,
     "when the computed rows are chosen: step (default), in every step by each KV head, or "
     "interval",
     0},
    {"visual-selection", KEY_SELECTION, "NAME", 0,
     "what ranks visual rows: last-row, question, coverage (default), random or uniform", 0},
    {"prefill-keep", KEY_PREFILL_KEEP, "RATIO", 0,
     "share of the visual rows that later layers see in prefill; default 1", 0},
    {"prefill-layer", KEY_PREFILL_LAYER, "N", 0, "the last layer that sees all; default 2", 0},
    {"text-keep", KEY_TEXT_KEEP, "RATIO", 0,
     "share of the text rows that layers and heads keep; default 1", 0},
    {"text-keep-min", KEY_TEXT_KEEP_MIN, "N", 0, "as many stay at least; default 20", 0},
    {"text-policy", KEY_TEXT_POLICY, "NAME", 0, "what ranks text rows: a-vl (default) or h2o", 0},
    {"protect-prompt", KEY_PROTECT_PROMPT, "yes|no", 0,
     "never evict what the prompt says; default yes", 0},
    {0},
};

void avl_attention_options_init(avl_attention_options_t *options) {
    avl__v1__attention_parameters__init(&options->given);
    options->params = avl_attention_default;
}

/* What a ratio may be, avl_attention_read says. */
static double ratio(struct argp_state *state, const char *option, const char *text) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0')
        argp_error(state, "--%s %s: expected a number", option, text);
    return value;
}

static uint32_t count(struct argp_state *state, const char *option, const char *text) {
    char *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < 1 || value > INT_MAX)
        argp_error(state, "--%s %s: expected a whole number from 1 to %d", option, text, INT_MAX);
    return (uint32_t)value;
}

static error_t parse_visual(int key, char *text, struct argp_state *state,
                            Avl__V1__AttentionParameters *given) {
    avl_visual_selection_t selection;
    avl_visual_core_t core;
    switch (key) {
    case KEY_STORE:
        given->_visual_store_ratio_case = CASE(VISUAL_STORE_RATIO_VISUAL_STORE_RATIO);
        given->visual_store_ratio = ratio(state, "visual-store", text);
        return 0;
    case KEY_COMPUTE:
        given->_visual_compute_ratio_case = CASE(VISUAL_COMPUTE_RATIO_VISUAL_COMPUTE_RATIO);
        given->visual_compute_ratio = ratio(state, "visual-compute", text);
        return 0;
    case KEY_INTERVAL:
        given->_visual_update_interval_case = CASE(VISUAL_UPDATE_INTERVAL_VISUAL_UPDATE_INTERVAL);
        given->visual_update_interval = count(state, "visual-interval", text);
        return 0;
    case KEY_CORE:
        if (!avl_visual_core_parse(text, &core))
            argp_error(state, "--visual-core %s: expected interval or step", text);
        given->visual_core = avl_attention_core(core);
        return 0;
    case KEY_SELECTION:
        if (!avl_visual_selection_parse(text, &selection))
            argp_error(
                state,
                "--visual-selection %s: expected last-row, question, coverage, random or uniform",
                text);
        given->visual_selection = avl_attention_selection(selection);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_rest(int key, char *text, struct argp_state *state,
                          Avl__V1__AttentionParameters *given) {
    avl_text_policy_t policy;
    switch (key) {
    case KEY_PREFILL_KEEP:
        given->_prefill_keep_ratio_case = CASE(PREFILL_KEEP_RATIO_PREFILL_KEEP_RATIO);
        given->prefill_keep_ratio = ratio(state, "prefill-keep", text);
        return 0;
    case KEY_PREFILL_LAYER:
        given->_prefill_layer_case = CASE(PREFILL_LAYER_PREFILL_LAYER);
        given->prefill_layer = count(state, "prefill-layer", text);
        return 0;
    case KEY_TEXT_KEEP:
        given->_text_keep_ratio_case = CASE(TEXT_KEEP_RATIO_TEXT_KEEP_RATIO);
        given->text_keep_ratio = ratio(state, "text-keep", text);
        return 0;
    case KEY_TEXT_KEEP_MIN:
        given->_text_keep_min_case = CASE(TEXT_KEEP_MIN_TEXT_KEEP_MIN);
        given->text_keep_min = count(state, "text-keep-min", text);
        return 0;
    case KEY_TEXT_POLICY:
        if (!avl_text_policy_parse(text, &policy))
            argp_error(state, "--text-policy %s: expected a-vl or h2o", text);
        given->text_policy = avl_attention_text_policy(policy);
        return 0;
    case KEY_PROTECT_PROMPT:
        if (strcmp(text, "yes") != 0 && strcmp(text, "no") != 0)
            argp_error(state, "--protect-prompt %s: expected yes or no", text);
        given->_protect_prompt_case = CASE(PROTECT_PROMPT_PROTECT_PROMPT);
        given->protect_prompt = strcmp(text, "yes") == 0;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *text, struct argp_state *state) {
    avl_attention_options_t *options = state->input;
    if (parse_visual(key, text, state, &options->given) == 0 ||
        parse_rest(key, text, state, &options->given) == 0)
        return 0;
    switch (key) {
    case KEY_PRESET:
        options->given.preset = text;
        return 0;
    case KEY_DENSE:
        options->given.dense = true;
        return 0;
    case ARGP_KEY_END:
        if (avl_attention_read(&options->given, &options->params, 0, &options->params) != AVL_OK)
            argp_error(state, "%s", avl_status_detail());
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp avl_attention_argp = {.options = option_table, .parser = parse};
