#include "base/attention.h"

#include <stddef.h>
#include <string.h>

static const char *const selection_names[] = {
    [AVL_VISUAL_LAST_ROW] = "last-row", [AVL_VISUAL_QUESTION] = "question",
    [AVL_VISUAL_RANDOM] = "random",     [AVL_VISUAL_UNIFORM] = "uniform",
    [AVL_VISUAL_COVERAGE] = "coverage",
};
static const char *const core_names[] = {
    [AVL_CORE_INTERVAL] = "interval",
    [AVL_CORE_STEP] = "step",
};
static const char *const policy_names[] = {
    [AVL_TEXT_A_VL] = "a-vl",
    [AVL_TEXT_H2O] = "h2o",
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *name_of(const char *const *names, size_t count, unsigned number) {
    return number < count ? names[number] : NULL;
}

static bool number_of(const char *const *names, size_t count, const char *name,
                      unsigned *number_p) {
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(names[i], name) != 0)
            continue;
        *number_p = i;
        return true;
    }
    return false;
}

const char *avl_visual_selection_name(avl_visual_selection_t selection) {
    return name_of(selection_names, COUNT(selection_names), (unsigned)selection);
}

bool avl_visual_selection_parse(const char *name, avl_visual_selection_t *selection_p) {
    unsigned number;
    if (!number_of(selection_names, COUNT(selection_names), name, &number))
        return false;
    *selection_p = (avl_visual_selection_t)number;
    return true;
}

const char *avl_visual_core_name(avl_visual_core_t core) {
    return name_of(core_names, COUNT(core_names), (unsigned)core);
}

bool avl_visual_core_parse(const char *name, avl_visual_core_t *core_p) {
    unsigned number;
    if (!number_of(core_names, COUNT(core_names), name, &number))
        return false;
    *core_p = (avl_visual_core_t)number;
    return true;
}

const char *avl_text_policy_name(avl_text_policy_t policy) {
    return name_of(policy_names, COUNT(policy_names), (unsigned)policy);
}

bool avl_text_policy_parse(const char *name, avl_text_policy_t *policy_p) {
    unsigned number;
    if (!number_of(policy_names, COUNT(policy_names), name, &number))
        return false;
    *policy_p = (avl_text_policy_t)number;
    return true;
}

/* The comparisons are written so that a NaN fails them. */
static avl_status_t check_visual(const avl_attention_params_t *params) {
    double store = params->visual_store_ratio, compute = params->visual_compute_ratio;
    if (!(store > 0 && store <= 1))
        return avl_fail(AVL_ERR_INVALID,
                        "attention.visual_store_ratio is %g; allowed: more than 0, at most 1",
                        store);
    if (!(compute > 0 && compute <= store))
        return avl_fail(AVL_ERR_INVALID,
                        "attention.visual_compute_ratio is %g; allowed: more than 0, at most "
                        "visual_store_ratio (%g)",
                        compute, store);
    if (params->visual_update_interval < 1)
        return avl_fail(AVL_ERR_INVALID,
                        "attention.visual_update_interval is %d; allowed: at least 1",
                        params->visual_update_interval);
    if (avl_visual_core_name(params->visual_core) == NULL)
        return avl_fail(AVL_ERR_INVALID, "attention.visual_core is %d, which is unknown",
                        (int)params->visual_core);
    if (avl_visual_selection_name(params->visual_selection) == NULL)
        return avl_fail(AVL_ERR_INVALID, "attention.visual_selection is %d, which is unknown",
                        (int)params->visual_selection);
    return AVL_OK;
}

static avl_status_t check_prefill(const avl_attention_params_t *params) {
    double keep = params->prefill_keep_ratio;
    if (keep == 0)
        return AVL_OK;
    if (!(keep > 0 && keep <= 1))
        return avl_fail(AVL_ERR_INVALID,
                        "attention.prefill_keep_ratio is %g; allowed: more than 0, at most 1",
                        keep);
    if (params->prefill_layer < 1)
        return avl_fail(AVL_ERR_INVALID, "attention.prefill_layer is %d; allowed: at least 1",
                        params->prefill_layer);
    bool selects = keep < 1 && params->visual_compute_ratio < 1;
    if (selects && params->visual_store_ratio > keep)
        return avl_fail(AVL_ERR_INVALID,
                        "attention.visual_store_ratio is %g, which is more than the prefill "
                        "filter leaves (prefill_keep_ratio %g)",
                        params->visual_store_ratio, keep);
    if (selects && params->visual_selection != AVL_VISUAL_LAST_ROW)
        return avl_fail(AVL_ERR_INVALID,
                        "attention.visual_selection is %s; the prefill filter (prefill_keep_ratio "
                        "%g) goes with last-row alone, which is what it drops rows by",
                        avl_visual_selection_name(params->visual_selection), keep);
    if (selects && params->measure_captured_mass)
        return avl_fail(AVL_ERR_INVALID,
                        "attention.measure_captured_mass goes without a prefill filter "
                        "(prefill_keep_ratio %g): later layers have no cache of the rows that it "
                        "drops",
                        keep);
    return AVL_OK;
}

static avl_status_t check_text(const avl_attention_params_t *params) {
    double keep = params->text_keep_ratio;
    if (keep == 0)
        return AVL_OK;
    if (!(keep > 0 && keep <= 1))
        return avl_fail(AVL_ERR_INVALID,
                        "attention.text_keep_ratio is %g; allowed: more than 0, at most 1", keep);
    if (params->text_keep_min < 1)
        return avl_fail(AVL_ERR_INVALID, "attention.text_keep_min is %d; allowed: at least 1",
                        params->text_keep_min);
    if (avl_text_policy_name(params->text_policy) == NULL)
        return avl_fail(AVL_ERR_INVALID, "attention.text_policy is %d, which is unknown",
                        (int)params->text_policy);
    return AVL_OK;
}

avl_status_t avl_attention_params_check(const avl_attention_params_t *params) {
    AVL_TRY(check_visual(params));
    AVL_TRY(check_prefill(params));
    return check_text(params);
}

void avl_attention_params_settle(avl_attention_params_t *params) {
    if (params->visual_compute_ratio == 1) {
        /* Nothing is selected. */
        params->visual_core = AVL_CORE_INTERVAL;
        params->visual_selection = AVL_VISUAL_LAST_ROW;
        params->measure_captured_mass = false;
    }
    if (params->visual_selection != AVL_VISUAL_RANDOM)
        params->selection_seed = 0;
    if (params->prefill_keep_ratio == 0 || params->prefill_keep_ratio == 1) {
        params->prefill_keep_ratio = 0;
        params->prefill_layer = 0;
    }
    if (params->text_keep_ratio == 0 || params->text_keep_ratio == 1) {
        params->text_keep_ratio = 0;
        params->text_keep_min = 0;
        params->text_policy = AVL_TEXT_A_VL;
        params->protect_prompt = false;
    }
}

bool avl_attention_params_same_prompt(const avl_attention_params_t *a,
                                      const avl_attention_params_t *b) {
    return a->visual_selection == b->visual_selection && a->visual_core == b->visual_core &&
           a->selection_seed == b->selection_seed &&
           a->prefill_keep_ratio == b->prefill_keep_ratio && a->prefill_layer == b->prefill_layer &&
           a->text_keep_ratio == b->text_keep_ratio && a->text_keep_min == b->text_keep_min &&
           a->text_policy == b->text_policy && a->protect_prompt == b->protect_prompt &&
           a->measure_captured_mass == b->measure_captured_mass;
}
