/* worker/step_core.h: cores that are chosen within a decode step (docs/A-VL.md, visual_core step):
 * every KV head scores the keys of the sequence's store with this step's queries and names the rows
 * whose values it goes on to read. Nothing of it lasts, travels between ranks or reaches the host.
 *
 * Sequences come in groups, as many as the memory for scores and lists holds: one call scores a
 * group, one chooses for all its heads, one attends. A sequence's rows do not depend on its group.
 */
#ifndef AVL_WORKER_STEP_CORE_H
#define AVL_WORKER_STEP_CORE_H

#include "worker/attend.h"

/* What to set options.step_scores_max to: 16 MB of scores and lists, 75 sequences at 32 KV heads of
 * which each keeps 864 rows. */
#define AVL_STEP_CORE_SCORES (INT64_C(2) << 20)

typedef struct avl_step_core avl_step_core_t;

/* Bytes that create will allocate. */
int64_t avl_step_core_bytes(const avl_attend_options_t *options);
/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_step_core_create(const avl_attend_options_t *options,
                                                 avl_step_core_t **core_p);
void avl_step_core_destroy(avl_step_core_t *core);

/* Whether a sequence with `rows` rows to choose from fits into the group as well; into an empty one
 * every sequence does. */
bool avl_step_core_fits(const avl_step_core_t *core, int32_t rows);
/* Adds a sequence whose visual span names the rows to choose from. The span then names each head's
 * `keep` rows instead, which are there once avl_step_core_choose has been called and until the next
 * group is begun. keep: at most the span's rows, at least 1. */
void avl_step_core_add(avl_step_core_t *core, avl_decode_sequence_t *decode, int32_t keep);
/* Chooses for the group; the next sequence begins another. */
AVL_MUST_CHECK avl_status_t avl_step_core_choose(avl_step_core_t *core,
                                                 const avl_attention_call_t *call);

/* Adds to the sequence's step_mass what this step's row would look at if it read all visual rows,
 * head by head with the rows that each chose. `all`: the row's system and text spans, and all
 * visual rows but the first `hidden`. Waits for the device. Between groups. */
AVL_MUST_CHECK avl_status_t avl_step_core_weigh(avl_step_core_t *core,
                                                const avl_attention_call_t *call,
                                                avl_sequence_t *sequence,
                                                const avl_decode_sequence_t *all, int32_t hidden,
                                                int32_t visible_first);

#endif
