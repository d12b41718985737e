/* base/attention.h: the parameters of adaptive attention (docs/A-VL.md) as every layer knows them,
 * from the public API to a rank, and the one place that says which of them go together.
 *
 * All zeros but the first three fields (AVL_ATTENTION) is A-VL; with these 1 it is dense. */
#ifndef AVL_BASE_ATTENTION_H
#define AVL_BASE_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* What ranks the visual rows when the prompt has been read. */
typedef enum avl_visual_selection {
    AVL_VISUAL_LAST_ROW, /* the last prompt row's weights: A-VL */
    AVL_VISUAL_QUESTION, /* the mean of those of the rows after the last picture */
    AVL_VISUAL_RANDOM,   /* chance, by the selection seed and the layer: a control */
    AVL_VISUAL_UNIFORM,  /* rows at even distances: a control */
    /* The question's weights, times how much the row differs from the others of its picture; one
     * store for all layers. */
    AVL_VISUAL_COVERAGE,
} avl_visual_selection_t;

/* When the core is chosen, and for whom. */
typedef enum avl_visual_core {
    AVL_CORE_INTERVAL, /* after every visual_update_interval-th step, for all heads: A-VL */
    AVL_CORE_STEP,     /* in every decode step, by each KV head for itself */
} avl_visual_core_t;

/* What ranks text rows. */
typedef enum avl_text_policy {
    AVL_TEXT_A_VL, /* history scores above a quantile */
    AVL_TEXT_H2O,  /* sums of weights */
} avl_text_policy_t;

typedef struct avl_attention_params {
    double visual_store_ratio;      /* share of the visual rows kept after prefill: (0, 1] */
    double visual_compute_ratio;    /* share computed in ordinary steps: (0, store] */
    int32_t visual_update_interval; /* steps between reselections: >= 1; nothing to CORE_STEP */
    avl_visual_core_t visual_core;
    avl_visual_selection_t visual_selection;
    uint64_t selection_seed; /* of AVL_VISUAL_RANDOM */
    /* Share of the visual rows that goes on beyond layer `prefill_layer` (from 1) in prefill; 0 or
     * 1: all of them, no filter. */
    double prefill_keep_ratio;
    int32_t prefill_layer;
    /* Share of the text rows seen so far that stays in every layer and head, `text_keep_min` at
     * least; 0 or 1: all of them, nothing is evicted. */
    double text_keep_ratio;
    int32_t text_keep_min;
    avl_text_policy_t text_policy;
    bool protect_prompt;        /* evict generated text alone */
    bool measure_captured_mass; /* keep all visual rows to tell what the computed ones capture */
} avl_attention_params_t;

/* An initializer. */
#define AVL_ATTENTION(store, compute, interval)                                                    \
    {                                                                                              \
        .visual_store_ratio = (store), .visual_compute_ratio = (compute),                          \
        .visual_update_interval = (interval)                                                       \
    }

/* What stands beside a prefill_keep_ratio or a text_keep_ratio unless said otherwise. */
#define AVL_PREFILL_LAYER_DEFAULT 2
#define AVL_TEXT_KEEP_MIN_DEFAULT 20

/* Whether each value is allowed, and all of them together:
 *
 *   visual_compute_ratio   at most visual_store_ratio
 *   visual_store_ratio     at most prefill_keep_ratio, for what the filter drops cannot be kept;
 *                          but 1 beside a visual_compute_ratio of 1, the filter alone: every layer
 *                          keeps what it saw
 *   prefill_keep_ratio     where a store is kept, with `last-row` alone and nothing to measure
 *
 * Errors: AVL_ERR_INVALID naming parameter, value and allowed range, in the words of the public
 * API. */
AVL_MUST_CHECK avl_status_t avl_attention_params_check(const avl_attention_params_t *params);
/* Clears what has no effect beside the first three fields, so that parameters with the same effect
 * are equal. */
void avl_attention_params_settle(avl_attention_params_t *params);
/* Whether the state after a prompt, its selections included, is the same with both: settled
 * parameters that differ at most in what decides about later steps. */
bool avl_attention_params_same_prompt(const avl_attention_params_t *a,
                                      const avl_attention_params_t *b);

/* "last-row", "question", "random", "uniform", "coverage"; NULL for a number that is none of them.
 */
const char *avl_visual_selection_name(avl_visual_selection_t selection);
bool avl_visual_selection_parse(const char *name, avl_visual_selection_t *selection_p);
/* "interval", "step" */
const char *avl_visual_core_name(avl_visual_core_t core);
bool avl_visual_core_parse(const char *name, avl_visual_core_t *core_p);
/* "a-vl", "h2o" */
const char *avl_text_policy_name(avl_text_policy_t policy);
bool avl_text_policy_parse(const char *name, avl_text_policy_t *policy_p);

#endif
