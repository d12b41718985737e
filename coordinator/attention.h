/* coordinator/attention.h: attention parameters as clients and the operator give them: presets,
 * defaults, and what must not stand together. */
#ifndef AVL_COORDINATOR_ATTENTION_H
#define AVL_COORDINATOR_ATTENTION_H

#include <stddef.h>

#include "base/attention.h"
#include "proto/inference.pb-c.h"
#include "proto/worker.pb-c.h"

/* Parameters with a name, the same in every service. */
typedef struct avl_attention_preset {
    const char *name;
    avl_attention_params_t params;
} avl_attention_preset_t;

extern const avl_attention_preset_t avl_attention_presets[];
extern const size_t avl_attention_preset_count;
/* Where neither operator nor request says anything: the preset `quality`. */
extern const avl_attention_params_t avl_attention_default;

/* What a request says over `defaults`; NULL: nothing. A preset stands in for the defaults. A
 * default that what was given cannot stand beside gives way: a compute share above the given store,
 * a store above the given filter, a filter beside another given selection than the last row's or a
 * wish to measure, and each of these beside a given filter; a core in every step beside a given
 * interval. `seed` seeds random selection unless the request names another. Errors:
 * AVL_ERR_INVALID, AVL_ERR_UNSUPPORTED (text of which says what). */
AVL_MUST_CHECK avl_status_t avl_attention_read(const Avl__V1__AttentionParameters *given,
                                               const avl_attention_params_t *defaults,
                                               uint64_t seed, avl_attention_params_t *params_p);
/* In the words of the public API. */
Avl__V1__VisualSelection avl_attention_selection(avl_visual_selection_t selection);
Avl__V1__VisualCore avl_attention_core(avl_visual_core_t core);
Avl__V1__TextPolicy avl_attention_text_policy(avl_text_policy_t policy);
/* The whole of it but for what has no effect. */
void avl_attention_write(const avl_attention_params_t *params, Avl__V1__AttentionParameters *to);
/* For a worker. */
void avl_attention_submit(const avl_attention_params_t *params, Avl__Worker__V1__Attention *to);

#endif
