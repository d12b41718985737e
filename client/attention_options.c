#include "client/attention_options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/attention.h"
#include "client/json.h"
#include "client/options.h"
#include "client/terminal.h"

#define CASE(name) AVL__V1__ATTENTION_PARAMETERS___##name

enum {
    KEY_PRESET = 0x300,
    KEY_DENSE,
    KEY_STORE,
    KEY_COMPUTE,
    KEY_INTERVAL,
    KEY_CORE,
    KEY_SELECTION,
    KEY_SELECTION_SEED,
    KEY_PREFILL_KEEP,
    KEY_PREFILL_LAYER,
    KEY_TEXT_KEEP,
    KEY_TEXT_KEEP_MIN,
    KEY_TEXT_POLICY,
    KEY_PROTECT_PROMPT,
    KEY_CAPTURED_MASS,
};

static const struct argp_option option_table[] = {
    {"preset", KEY_PRESET, "NAME", 0, "attention parameters by name (`avl info` lists them)", 0},
    {"dense", KEY_DENSE, NULL, 0, "attend to everything", 0},
    {"visual-store", KEY_STORE, "R", 0,
     "share of the picture's rows kept after prefill, 0 < R <= 1", 0},
    {"visual-compute", KEY_COMPUTE, "R", 0, "share computed in ordinary steps, 0 < R <= store", 0},
    {"visual-interval", KEY_INTERVAL, "K", 0, "steps between reselections, K >= 1", 0},
    {"visual-core", KEY_CORE, "NAME", 0,
     "when the computed rows are chosen: interval, or step: in every step, by each KV head", 0},
    {"visual-selection", KEY_SELECTION, "NAME", 0,
     "what ranks the picture's rows: last-row, question, coverage, random or uniform", 0},
    {"selection-seed", KEY_SELECTION_SEED, "S", 0, "of random selection (default: --seed)", 0},
    {"prefill-keep", KEY_PREFILL_KEEP, "R", 0,
     "share of the picture's rows that later layers see in prefill, 0 < R <= 1", 0},
    {"prefill-layer", KEY_PREFILL_LAYER, "N", 0, "the last layer that sees all, N >= 1", 0},
    {"text-keep", KEY_TEXT_KEEP, "R", 0,
     "share of the text rows that layers and heads keep, 0 < R <= 1", 0},
    {"text-keep-min", KEY_TEXT_KEEP_MIN, "N", 0, "as many stay at least, N >= 1", 0},
    {"text-policy", KEY_TEXT_POLICY, "NAME", 0, "what ranks text rows: a-vl or h2o", 0},
    {"captured-mass", KEY_CAPTURED_MASS, NULL, 0,
     "report what share of the attention mass the computed rows captured (diagnosis)", 0},
    {"protect-prompt", KEY_PROTECT_PROMPT, "yes|no", 0, "never evict what the prompt says", 0},
    {0},
};

/* Only what is no number or no name is refused here: what a ratio may be, the service says. */
static error_t parse_visual(int key, const char *text, struct argp_state *state,
                            Avl__V1__AttentionParameters *attention) {
    avl_visual_selection_t selection;
    avl_visual_core_t core;
    switch (key) {
    case KEY_STORE:
        attention->visual_store_ratio = avl_option_number(state, "--visual-store", text);
        attention->_visual_store_ratio_case = CASE(VISUAL_STORE_RATIO_VISUAL_STORE_RATIO);
        return 0;
    case KEY_COMPUTE:
        attention->visual_compute_ratio = avl_option_number(state, "--visual-compute", text);
        attention->_visual_compute_ratio_case = CASE(VISUAL_COMPUTE_RATIO_VISUAL_COMPUTE_RATIO);
        return 0;
    case KEY_INTERVAL:
        attention->visual_update_interval =
            (uint32_t)avl_option_count(state, "--visual-interval", text, 0, INT32_MAX);
        attention->_visual_update_interval_case =
            CASE(VISUAL_UPDATE_INTERVAL_VISUAL_UPDATE_INTERVAL);
        return 0;
    case KEY_CORE:
        if (!avl_visual_core_parse(text, &core))
            argp_error(state, "--visual-core: \"%s\" is not interval or step", text);
        attention->visual_core = (Avl__V1__VisualCore)(core + 1);
        return 0;
    case KEY_SELECTION:
        if (!avl_visual_selection_parse(text, &selection))
            argp_error(state,
                       "--visual-selection: \"%s\" is not last-row, question, coverage, "
                       "random or uniform",
                       text);
        /* The message counts from 1 for its `unspecified`. */
        attention->visual_selection = (Avl__V1__VisualSelection)(selection + 1);
        return 0;
    case KEY_SELECTION_SEED:
        attention->selection_seed =
            avl_option_count(state, "--selection-seed", text, 0, UINT64_MAX);
        attention->_selection_seed_case = CASE(SELECTION_SEED_SELECTION_SEED);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_rest(int key, char *text, struct argp_state *state,
                          Avl__V1__AttentionParameters *attention) {
    avl_text_policy_t policy;
    switch (key) {
    case KEY_PREFILL_KEEP:
        attention->prefill_keep_ratio = avl_option_number(state, "--prefill-keep", text);
        attention->_prefill_keep_ratio_case = CASE(PREFILL_KEEP_RATIO_PREFILL_KEEP_RATIO);
        return 0;
    case KEY_PREFILL_LAYER:
        attention->prefill_layer =
            (uint32_t)avl_option_count(state, "--prefill-layer", text, 0, INT32_MAX);
        attention->_prefill_layer_case = CASE(PREFILL_LAYER_PREFILL_LAYER);
        return 0;
    case KEY_TEXT_KEEP:
        attention->text_keep_ratio = avl_option_number(state, "--text-keep", text);
        attention->_text_keep_ratio_case = CASE(TEXT_KEEP_RATIO_TEXT_KEEP_RATIO);
        return 0;
    case KEY_TEXT_KEEP_MIN:
        attention->text_keep_min =
            (uint32_t)avl_option_count(state, "--text-keep-min", text, 0, INT32_MAX);
        attention->_text_keep_min_case = CASE(TEXT_KEEP_MIN_TEXT_KEEP_MIN);
        return 0;
    case KEY_TEXT_POLICY:
        if (!avl_text_policy_parse(text, &policy))
            argp_error(state, "--text-policy: \"%s\" is not a-vl or h2o", text);
        attention->text_policy = (Avl__V1__TextPolicy)(policy + 1);
        return 0;
    case KEY_PROTECT_PROMPT:
        if (strcmp(text, "yes") != 0 && strcmp(text, "no") != 0)
            argp_error(state, "--protect-prompt: \"%s\" is not yes or no", text);
        attention->protect_prompt = strcmp(text, "yes") == 0;
        attention->_protect_prompt_case = CASE(PROTECT_PROMPT_PROTECT_PROMPT);
        return 0;
    case KEY_PRESET:
        attention->preset = text;
        return 0;
    case KEY_DENSE:
        attention->dense = true;
        return 0;
    case KEY_CAPTURED_MASS:
        attention->measure_captured_mass = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *text, struct argp_state *state) {
    error_t taken = parse_visual(key, text, state, state->input);
    return taken == 0 ? 0 : parse_rest(key, text, state, state->input);
}

const struct argp avl_attention_argp = {.options = option_table, .parser = parse};

static const char *selection_name(const Avl__V1__AttentionParameters *attention) {
    return attention->visual_selection == 0
               ? NULL
               : avl_visual_selection_name(
                     (avl_visual_selection_t)(attention->visual_selection - 1));
}

static const char *core_name(const Avl__V1__AttentionParameters *attention) {
    return attention->visual_core == 0
               ? NULL
               : avl_visual_core_name((avl_visual_core_t)(attention->visual_core - 1));
}

static const char *policy_name(const Avl__V1__AttentionParameters *attention) {
    return attention->text_policy == 0
               ? NULL
               : avl_text_policy_name((avl_text_policy_t)(attention->text_policy - 1));
}

void avl_attention_print(const Avl__V1__AttentionParameters *attention) {
    if (attention->dense ||
        (attention->_visual_compute_ratio_case != 0 && attention->visual_compute_ratio == 1 &&
         attention->_prefill_keep_ratio_case == 0 && attention->_text_keep_ratio_case == 0)) {
        fputs("dense", stdout);
        return;
    }
    printf("store %g, compute %g", attention->visual_store_ratio, attention->visual_compute_ratio);
    if (attention->visual_core == AVL__V1__VISUAL_CORE__VISUAL_CORE_STEP)
        fputs(" in every step and head", stdout);
    else
        printf(", interval %u", attention->visual_update_interval);
    const char *selection = selection_name(attention), *policy = policy_name(attention);
    if (selection != NULL)
        printf(", by %s", selection);
    if (attention->_prefill_keep_ratio_case != 0)
        printf(", %g beyond layer %u in prefill", attention->prefill_keep_ratio,
               attention->prefill_layer);
    if (attention->_text_keep_ratio_case != 0)
        printf(", text %g (at least %u) by %s%s", attention->text_keep_ratio,
               attention->text_keep_min, policy != NULL ? policy : "a-vl",
               attention->protect_prompt ? ", prompt protected" : "");
}

json_t *avl_attention_json(const Avl__V1__AttentionParameters *attention) {
    json_t *object = json_object();
    const struct {
        const char *name;
        bool given;
        json_t *value;
    } fields[] = {
        {"visual_store_ratio", attention->_visual_store_ratio_case != 0,
         json_real(attention->visual_store_ratio)},
        {"visual_compute_ratio", attention->_visual_compute_ratio_case != 0,
         json_real(attention->visual_compute_ratio)},
        {"visual_update_interval", attention->_visual_update_interval_case != 0,
         json_integer(attention->visual_update_interval)},
        {"visual_core", core_name(attention) != NULL, json_string(core_name(attention))},
        {"visual_selection", selection_name(attention) != NULL,
         json_string(selection_name(attention))},
        {"selection_seed", attention->_selection_seed_case != 0,
         avl_json_u64(attention->selection_seed)},
        {"prefill_keep_ratio", attention->_prefill_keep_ratio_case != 0,
         json_real(attention->prefill_keep_ratio)},
        {"prefill_layer", attention->_prefill_layer_case != 0,
         json_integer(attention->prefill_layer)},
        {"text_keep_ratio", attention->_text_keep_ratio_case != 0,
         json_real(attention->text_keep_ratio)},
        {"text_keep_min", attention->_text_keep_min_case != 0,
         json_integer(attention->text_keep_min)},
        {"text_policy", policy_name(attention) != NULL, json_string(policy_name(attention))},
        {"protect_prompt", attention->_protect_prompt_case != 0,
         json_boolean(attention->protect_prompt)},
    };
    bool failed = object == NULL;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (failed || !fields[i].given)
            json_decref(fields[i].value);
        else
            failed = json_object_set_new(object, fields[i].name, fields[i].value) != 0;
    }
    if (!failed)
        return object;
    json_decref(object);
    return NULL;
}
