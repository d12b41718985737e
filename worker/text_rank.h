/* worker/text_rank.h: ranks the text rows of a layer by the weights that this step's rows gave
 * them, and says which go (docs/A-VL.md, adaptive text attention; worker/text_store.h for the
 * counts).
 *
 * Decode rows of sequences that evict text: attention leaves each head's largest logit and sum of
 * weights (avl_text_rank_totals); from these and the rows' keys come the weights, from the weights
 * the histories, from those the row of each head that goes: its hole. All that stays on the device;
 * the next step's row is written through avl_text_rank_holes. Prompt rows, where those are evicted,
 * are ranked chunk by chunk, each text row as a query of its own, and evicted when the last has
 * passed.
 *
 * A KV head's weights are the mean over its query heads. Where some of those are on another rank,
 * all ranks sum what they have: then every call is collective, with sizes that follow from the plan
 * alone. */
#ifndef AVL_WORKER_TEXT_RANK_H
#define AVL_WORKER_TEXT_RANK_H

#include "worker/attend.h"
#include "worker/text_store.h"

typedef struct avl_text_rank avl_text_rank_t;

/* Bytes that create will allocate. */
int64_t avl_text_rank_bytes(const avl_attend_options_t *options);
/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_text_rank_create(const avl_attend_options_t *options,
                                                 avl_text_rank_t **rank_p);
void avl_text_rank_destroy(avl_text_rank_t *rank);

/* Whether the sequence's next decode row has a hole of every head to go to; else it takes a slot.
 */
bool avl_text_rank_has_hole(const avl_sequence_t *sequence, int layer);
/* The slot of avl_kv_write_args_t that stands for those holes, and the redirects that it is in. */
int32_t avl_text_rank_hole_slot(const avl_text_rank_t *rank, const avl_sequence_t *sequence,
                                int layer);
const int32_t *avl_text_rank_holes(const avl_text_rank_t *rank);
/* Where attention is to leave the totals of run `index`. */
float *avl_text_rank_totals(const avl_text_rank_t *rank, int index);

/* After the layer's attention: ranks the rows of all runs whose sequences evict text, and names the
 * holes of decode rows. `positions`: host, of the step's rows. Joins the collectives whatever
 * *own_p says; a local failure is kept there. With one from the start `call` may be NULL. Returns
 * only the collectives' own failure. */
AVL_MUST_CHECK avl_status_t avl_text_rank_run(avl_text_rank_t *rank,
                                              const avl_attention_call_t *call, int layer,
                                              const avl_run_t *runs, int run_count,
                                              const int32_t *positions, avl_status_t *own_p);
/* Evicts from the prompts that end with this step. Local. */
AVL_MUST_CHECK avl_status_t avl_text_rank_evict(avl_text_rank_t *rank, int layer,
                                                const avl_run_t *runs, int run_count);

#endif
