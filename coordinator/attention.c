#include "coordinator/attention.h"

#include <stdio.h>
#include <string.h>

#define CASE(name) AVL__V1__ATTENTION_PARAMETERS___##name

/* Rows that the question looks at and that differ from one another, read by the key in every step:
 * what lost least, whatever was asked (docs/A-VL.md). */
#define COVERAGE(store, compute)                                                                   \
    {                                                                                              \
        .visual_store_ratio = (store), .visual_compute_ratio = (compute),                          \
        .visual_update_interval = 3, .visual_core = AVL_CORE_STEP,                                 \
        .visual_selection = AVL_VISUAL_COVERAGE,                                                   \
    }

#define QUALITY COVERAGE(0.5, 0.1)

/* `a-vl` is the paper's method and stays; the others are this project's choice. */
const avl_attention_preset_t avl_attention_presets[] = {
    {"dense", AVL_ATTENTION(1, 1, 1)}, {"a-vl", AVL_ATTENTION(0.5, 0.3, 3)}, {"quality", QUALITY},
    {"balanced", COVERAGE(0.3, 0.1)},  {"lean", COVERAGE(0.1, 0.05)},
};
const avl_attention_params_t avl_attention_default = QUALITY;
const size_t avl_attention_preset_count =
    sizeof avl_attention_presets / sizeof *avl_attention_presets;

static avl_status_t find_preset(const char *name, avl_attention_params_t *params_p) {
    char names[256] = "";
    size_t length = 0;
    for (size_t i = 0; i < avl_attention_preset_count; i++) {
        const avl_attention_preset_t *preset = &avl_attention_presets[i];
        if (strcmp(preset->name, name) == 0) {
            *params_p = preset->params;
            return AVL_OK;
        }
        if (length < sizeof names)
            length += (size_t)snprintf(names + length, sizeof names - length, "%s%s",
                                       i > 0 ? ", " : "", preset->name);
    }
    return avl_fail(AVL_ERR_INVALID, "attention.preset \"%.64s\" is unknown; there are %s", name,
                    names);
}

static bool has_only_dense(const Avl__V1__AttentionParameters *given) {
    return given->preset[0] == '\0' && given->_visual_store_ratio_case == 0 &&
           given->_visual_compute_ratio_case == 0 && given->_visual_update_interval_case == 0 &&
           given->visual_selection == 0 && given->_selection_seed_case == 0 &&
           given->_prefill_keep_ratio_case == 0 && given->_prefill_layer_case == 0 &&
           given->_text_keep_ratio_case == 0 && given->_text_keep_min_case == 0 &&
           given->text_policy == 0 && given->_protect_prompt_case == 0 && given->visual_core == 0 &&
           !given->measure_captured_mass;
}

static avl_status_t read_count(const char *name, uint32_t value, int32_t *to) {
    if (value < 1 || value > INT32_MAX)
        return avl_fail(AVL_ERR_INVALID, "attention.%s is %u; allowed: 1 to %d", name, value,
                        INT32_MAX);
    *to = (int32_t)value;
    return AVL_OK;
}

/* 0 is `off` in the parameters, and no share. */
static avl_status_t read_share(const char *name, double value, double *to) {
    if (!(value > 0 && value <= 1))
        return avl_fail(AVL_ERR_INVALID, "attention.%s is %g; allowed: more than 0, at most 1",
                        name, value);
    *to = value;
    return AVL_OK;
}

static avl_status_t read_visual(const Avl__V1__AttentionParameters *given,
                                avl_attention_params_t *params) {
    if (given->_visual_store_ratio_case != 0) {
        params->visual_store_ratio = given->visual_store_ratio;
        if (params->visual_compute_ratio > params->visual_store_ratio)
            params->visual_compute_ratio = params->visual_store_ratio;
        /* A filter of the defaults that would drop what is to be stored. */
        if (given->_prefill_keep_ratio_case == 0 && params->prefill_keep_ratio != 0 &&
            params->prefill_keep_ratio < params->visual_store_ratio)
            params->prefill_keep_ratio = params->visual_store_ratio;
    }
    if (given->_visual_compute_ratio_case != 0)
        params->visual_compute_ratio = given->visual_compute_ratio;
    if (given->_visual_update_interval_case != 0)
        AVL_TRY(read_count("visual_update_interval", given->visual_update_interval,
                           &params->visual_update_interval));
    return AVL_OK;
}

/* The interval means nothing to a core in every step: who gives the one does not want the other. */
static avl_status_t read_core(const Avl__V1__AttentionParameters *given,
                              avl_attention_params_t *params) {
    bool intervals = given->_visual_update_interval_case != 0;
    switch (given->visual_core) {
    case AVL__V1__VISUAL_CORE__VISUAL_CORE_UNSPECIFIED:
        if (intervals)
            params->visual_core = AVL_CORE_INTERVAL;
        break;
    case AVL__V1__VISUAL_CORE__VISUAL_CORE_INTERVAL:
        params->visual_core = AVL_CORE_INTERVAL;
        break;
    case AVL__V1__VISUAL_CORE__VISUAL_CORE_STEP:
        params->visual_core = AVL_CORE_STEP;
        if (intervals)
            return avl_fail(AVL_ERR_INVALID,
                            "attention.visual_update_interval is %u; visual_core step chooses in "
                            "every step and goes without an interval",
                            given->visual_update_interval);
        break;
    default:
        return avl_fail(AVL_ERR_INVALID, "attention.visual_core is %d, which is unknown",
                        (int)given->visual_core);
    }
    return AVL_OK;
}

static avl_status_t read_selection(const Avl__V1__AttentionParameters *given, uint64_t seed,
                                   avl_attention_params_t *params) {
    switch (given->visual_selection) {
    case AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_UNSPECIFIED:
        break;
    case AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_LAST_ROW:
        params->visual_selection = AVL_VISUAL_LAST_ROW;
        break;
    case AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_QUESTION:
        params->visual_selection = AVL_VISUAL_QUESTION;
        break;
    case AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_RANDOM:
        params->visual_selection = AVL_VISUAL_RANDOM;
        break;
    case AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_UNIFORM:
        params->visual_selection = AVL_VISUAL_UNIFORM;
        break;
    case AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_COVERAGE:
        params->visual_selection = AVL_VISUAL_COVERAGE;
        break;
    default:
        return avl_fail(AVL_ERR_INVALID, "attention.visual_selection is %d, which is unknown",
                        (int)given->visual_selection);
    }
    if (given->_selection_seed_case != 0 && params->visual_selection != AVL_VISUAL_RANDOM)
        return avl_fail(AVL_ERR_INVALID,
                        "attention.selection_seed is for visual_selection random alone");
    params->selection_seed = given->_selection_seed_case != 0 ? given->selection_seed : seed;
    return AVL_OK;
}

/* A filter and what it cannot stand beside where rows are selected: of the two the one that is
 * nobody's but the operator's gives way. Who names a preset has named what is in it. */
static void settle_filter(const Avl__V1__AttentionParameters *given,
                          avl_attention_params_t *params) {
    bool asks = given->_prefill_keep_ratio_case != 0 || given->_prefill_layer_case != 0;
    bool filters = params->prefill_keep_ratio != 0 && params->prefill_keep_ratio < 1;
    if (!filters || params->visual_compute_ratio == 1 || given->preset[0] != '\0')
        return;
    bool ranks_else = params->visual_selection != AVL_VISUAL_LAST_ROW;
    bool excludes = (given->visual_selection != 0 && ranks_else) || given->measure_captured_mass;
    if (!asks && excludes) {
        params->prefill_keep_ratio = 0;
        params->prefill_layer = 0;
    } else if (asks) {
        if (given->visual_selection == 0 && given->_selection_seed_case == 0)
            params->visual_selection = AVL_VISUAL_LAST_ROW;
        params->measure_captured_mass = given->measure_captured_mass;
    }
}

static avl_status_t read_prefill(const Avl__V1__AttentionParameters *given,
                                 avl_attention_params_t *params) {
    bool filters = given->_prefill_keep_ratio_case != 0 || params->prefill_keep_ratio != 0;
    if (given->_prefill_layer_case != 0 && !filters)
        return avl_fail(AVL_ERR_INVALID, "attention.prefill_layer needs prefill_keep_ratio");
    if (given->_prefill_keep_ratio_case != 0) {
        AVL_TRY(read_share("prefill_keep_ratio", given->prefill_keep_ratio,
                           &params->prefill_keep_ratio));
        /* What the caller did not ask for cannot be more than what the filter leaves. */
        if (given->_visual_store_ratio_case == 0 &&
            params->visual_store_ratio > params->prefill_keep_ratio)
            params->visual_store_ratio = params->prefill_keep_ratio;
        if (given->_visual_compute_ratio_case == 0 &&
            params->visual_compute_ratio > params->visual_store_ratio)
            params->visual_compute_ratio = params->visual_store_ratio;
    }
    if (filters && params->prefill_layer == 0)
        params->prefill_layer = AVL_PREFILL_LAYER_DEFAULT;
    if (given->_prefill_layer_case != 0)
        AVL_TRY(read_count("prefill_layer", given->prefill_layer, &params->prefill_layer));
    return AVL_OK;
}

static avl_status_t read_text(const Avl__V1__AttentionParameters *given,
                              avl_attention_params_t *params) {
    bool evicts = given->_text_keep_ratio_case != 0 || params->text_keep_ratio != 0;
    const char *stray = given->_text_keep_min_case != 0    ? "text_keep_min"
                        : given->text_policy != 0          ? "text_policy"
                        : given->_protect_prompt_case != 0 ? "protect_prompt"
                                                           : NULL;
    if (stray != NULL && !evicts)
        return avl_fail(AVL_ERR_INVALID, "attention.%s needs text_keep_ratio", stray);
    if (!evicts)
        return AVL_OK;
    if (params->text_keep_ratio == 0) {
        params->text_keep_min = AVL_TEXT_KEEP_MIN_DEFAULT;
        params->protect_prompt = true;
    }
    if (given->_text_keep_ratio_case != 0)
        AVL_TRY(read_share("text_keep_ratio", given->text_keep_ratio, &params->text_keep_ratio));
    if (given->_text_keep_min_case != 0)
        AVL_TRY(read_count("text_keep_min", given->text_keep_min, &params->text_keep_min));
    switch (given->text_policy) {
    case AVL__V1__TEXT_POLICY__TEXT_POLICY_UNSPECIFIED:
        break;
    case AVL__V1__TEXT_POLICY__TEXT_POLICY_A_VL:
        params->text_policy = AVL_TEXT_A_VL;
        break;
    case AVL__V1__TEXT_POLICY__TEXT_POLICY_H2O:
        params->text_policy = AVL_TEXT_H2O;
        break;
    default:
        return avl_fail(AVL_ERR_INVALID, "attention.text_policy is %d, which is unknown",
                        (int)given->text_policy);
    }
    if (given->_protect_prompt_case != 0)
        params->protect_prompt = given->protect_prompt;
    return AVL_OK;
}

static avl_status_t read_fields(const Avl__V1__AttentionParameters *given, uint64_t seed,
                                avl_attention_params_t *params) {
    if (given->dense) {
        if (!has_only_dense(given))
            return avl_fail(AVL_ERR_INVALID, "attention.dense excludes every other field");
        *params = (avl_attention_params_t)AVL_ATTENTION(1, 1, 1);
        return AVL_OK;
    }
    if (given->preset[0] != '\0')
        AVL_TRY(find_preset(given->preset, params));
    AVL_TRY(read_visual(given, params));
    AVL_TRY(read_core(given, params));
    AVL_TRY(read_selection(given, seed, params));
    AVL_TRY(read_prefill(given, params));
    params->measure_captured_mass |= given->measure_captured_mass;
    settle_filter(given, params);
    return read_text(given, params);
}

avl_status_t avl_attention_read(const Avl__V1__AttentionParameters *given,
                                const avl_attention_params_t *defaults, uint64_t seed,
                                avl_attention_params_t *params_p) {
    avl_attention_params_t params = *defaults;
    params.selection_seed = seed;
    if (given != NULL)
        AVL_TRY(read_fields(given, seed, &params));
    AVL_TRY(avl_attention_params_check(&params));
    avl_attention_params_settle(&params);
    *params_p = params;
    return AVL_OK;
}

Avl__V1__VisualSelection avl_attention_selection(avl_visual_selection_t selection) {
    switch (selection) {
    case AVL_VISUAL_LAST_ROW:
        return AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_LAST_ROW;
    case AVL_VISUAL_QUESTION:
        return AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_QUESTION;
    case AVL_VISUAL_RANDOM:
        return AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_RANDOM;
    case AVL_VISUAL_UNIFORM:
        return AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_UNIFORM;
    case AVL_VISUAL_COVERAGE:
        return AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_COVERAGE;
    }
    return AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_UNSPECIFIED;
}

Avl__V1__VisualCore avl_attention_core(avl_visual_core_t core) {
    return core == AVL_CORE_STEP ? AVL__V1__VISUAL_CORE__VISUAL_CORE_STEP
                                 : AVL__V1__VISUAL_CORE__VISUAL_CORE_INTERVAL;
}

Avl__V1__TextPolicy avl_attention_text_policy(avl_text_policy_t policy) {
    return policy == AVL_TEXT_A_VL ? AVL__V1__TEXT_POLICY__TEXT_POLICY_A_VL
                                   : AVL__V1__TEXT_POLICY__TEXT_POLICY_H2O;
}

void avl_attention_write(const avl_attention_params_t *params, Avl__V1__AttentionParameters *to) {
    avl__v1__attention_parameters__init(to);
    to->_visual_store_ratio_case = CASE(VISUAL_STORE_RATIO_VISUAL_STORE_RATIO);
    to->visual_store_ratio = params->visual_store_ratio;
    to->_visual_compute_ratio_case = CASE(VISUAL_COMPUTE_RATIO_VISUAL_COMPUTE_RATIO);
    to->visual_compute_ratio = params->visual_compute_ratio;
    to->visual_core = avl_attention_core(params->visual_core);
    if (params->visual_core != AVL_CORE_STEP) {
        to->_visual_update_interval_case = CASE(VISUAL_UPDATE_INTERVAL_VISUAL_UPDATE_INTERVAL);
        to->visual_update_interval = (uint32_t)params->visual_update_interval;
    }
    to->visual_selection = avl_attention_selection(params->visual_selection);
    if (params->visual_selection == AVL_VISUAL_RANDOM) {
        to->_selection_seed_case = CASE(SELECTION_SEED_SELECTION_SEED);
        to->selection_seed = params->selection_seed;
    }
    if (params->prefill_keep_ratio != 0) {
        to->_prefill_keep_ratio_case = CASE(PREFILL_KEEP_RATIO_PREFILL_KEEP_RATIO);
        to->prefill_keep_ratio = params->prefill_keep_ratio;
        to->_prefill_layer_case = CASE(PREFILL_LAYER_PREFILL_LAYER);
        to->prefill_layer = (uint32_t)params->prefill_layer;
    }
    to->measure_captured_mass = params->measure_captured_mass;
    if (params->text_keep_ratio == 0)
        return;
    to->_text_keep_ratio_case = CASE(TEXT_KEEP_RATIO_TEXT_KEEP_RATIO);
    to->text_keep_ratio = params->text_keep_ratio;
    to->_text_keep_min_case = CASE(TEXT_KEEP_MIN_TEXT_KEEP_MIN);
    to->text_keep_min = (uint32_t)params->text_keep_min;
    to->text_policy = avl_attention_text_policy(params->text_policy);
    to->_protect_prompt_case = CASE(PROTECT_PROMPT_PROTECT_PROMPT);
    to->protect_prompt = params->protect_prompt;
}

void avl_attention_submit(const avl_attention_params_t *params, Avl__Worker__V1__Attention *to) {
    avl__worker__v1__attention__init(to);
    to->visual_store_ratio = params->visual_store_ratio;
    to->visual_compute_ratio = params->visual_compute_ratio;
    to->visual_update_interval = params->visual_update_interval;
    to->visual_core = (int32_t)params->visual_core;
    to->visual_selection = (int32_t)params->visual_selection;
    to->selection_seed = params->selection_seed;
    to->prefill_keep_ratio = params->prefill_keep_ratio;
    to->prefill_layer = params->prefill_layer;
    to->text_keep_ratio = params->text_keep_ratio;
    to->text_keep_min = params->text_keep_min;
    to->text_policy = (int32_t)params->text_policy;
    to->protect_prompt = params->protect_prompt;
    to->measure_captured_mass = params->measure_captured_mass;
}
