/* worker/text_store.h: which text rows of a sequence are held (docs/A-VL.md, adaptive text
 * attention): counts, which follow from prompt and parameters alone, and the eviction of prompt
 * rows.
 *
 * Evicted is what stands behind `exempt_rows` in the list of text rows: with protect_prompt
 * generated text, else all text but what stands before the first picture. Each KV head ranks and
 * evicts rows by itself, so heads differ in rows, but not in counts: in the part of the list that
 * is evicted from, slot and head have a position of their own (worker/pages.h), and a list of slots
 * serves all heads.
 *
 * With `seen` rows so far, evicted ones counted, a head holds
 *
 *   held(seen) = min(seen, budget),   budget = max(round(text_keep_ratio * seen), text_keep_min)
 *
 * and of these floor(budget / 2) are the newest. The budget grows by one a row at most, so a decode
 * step evicts one row a head or none: the next row is written into the hole, or takes a slot more.
 */
#ifndef AVL_WORKER_TEXT_STORE_H
#define AVL_WORKER_TEXT_STORE_H

#include "worker/sequence.h"

/* round is half to even, and exact for decimal ratios. */
int32_t avl_text_store_budget(const avl_sequence_shape_t *shape, int32_t seen);
int32_t avl_text_store_held(const avl_sequence_shape_t *shape, int32_t seen);
/* Slots of text that a sequence has in a layer once `text_rows` >= shape->text_rows rows of text
 * have been cached: exempt ones, and those that all heads hold, a hole included. */
int32_t avl_text_store_slots(const avl_sequence_shape_t *shape, int32_t text_rows);

/* Whether prompt rows are evicted: then only what stands before the first picture is as it was. */
bool avl_text_store_evicts_prompt(const avl_sequence_shape_t *shape);

/* Rows before this position may go when `seen` rows have been seen. */
int32_t avl_text_store_recent(const avl_sequence_t *sequence, int32_t seen);

/* Evicts from the prompt, whose rows are ranked: each head's rows move together to the front, and
 * pages without any go back. Enqueues; what the host knows follows from counts alone. `memory`: for
 * the largest sequence, int32_t entries of device memory. */
typedef struct avl_text_store_memory {
    int32_t *moves;   /* avl_text_store_entries */
    int32_t *scratch; /* the same */
} avl_text_store_memory_t;
AVL_MUST_CHECK avl_status_t avl_text_store_evict(avl_sequence_t *sequence, avl_pages_t *pages,
                                                 int layer, const avl_text_store_memory_t *memory);
int64_t avl_text_store_entries(int32_t context_rows, int kv_heads);

#endif
