/* worker/visual_store.h: A-VL's visual store of one sequence in one layer (docs/A-VL.md).
 *
 * After the layer's prompt attention `store_rows` visual rows are kept, those that the prompt's
 * scoring rows look at most (or evenly spaced ones, or any), moved together in ascending position
 * to the front of the sequence's visual pages; the other pages go back to the pool at once. The
 * `core_rows` best of them are the core. With `coverage` that is one choice for all layers, made
 * when the last row has passed the last of them; until then all visual rows stay everywhere. The
 * store never changes afterwards; the core is chosen anew after every `update_interval`-th step, or
 * is nothing that lasts: then every step begins with the whole store, and each KV head chooses
 * (worker/step_core.h).
 *
 * Keys are stored rotated and never rotated again: positions stay what they were. */
#ifndef AVL_WORKER_VISUAL_STORE_H
#define AVL_WORKER_VISUAL_STORE_H

#include "worker/selection.h"
#include "worker/sequence.h"

/* Whether decode step `step` (the first is 1) computes the whole store and chooses the core anew.
 */
bool avl_visual_store_updates(const avl_sequence_shape_t *shape, int32_t step);
/* Whether that choice can change anything: without it the weights need not be exported. */
bool avl_visual_store_reselects(const avl_sequence_shape_t *shape, int32_t step);

/* Whether attention scores choose; else nothing is exported and nothing travels. */
bool avl_visual_store_ranks(const avl_sequence_shape_t *shape);

/* Keeps the rows that `chosen` names (indices into all visual rows, scores as sums over heads) and
 * makes the first core. Local. */
AVL_MUST_CHECK avl_status_t avl_visual_store_keep(avl_sequence_t *sequence, avl_pages_t *pages,
                                                  avl_selection_t *selection, int layer,
                                                  const avl_selection_item_t *chosen);
/* The same in every layer, with one list for all. Local. */
AVL_MUST_CHECK avl_status_t avl_visual_store_keep_all(avl_sequence_t *sequence, avl_pages_t *pages,
                                                      avl_selection_t *selection,
                                                      const avl_selection_item_t *chosen);
/* What avl_visual_store_keep does where the scores are and stay, with nothing to wait for: the
 * caller has avl_choose do what `begin` asks for, then what `core` asks for. `chosen` as
 * avl_selection_begin laid it out, every row seen. Where no core is listed *core_p stays as it is.
 * The host's copies are brought up to date when somebody asks (settle). */
avl_choose_item_t avl_visual_store_keep_begin(avl_sequence_t *sequence, int layer,
                                              const avl_selection_item_t *chosen);
AVL_MUST_CHECK avl_status_t avl_visual_store_keep_core(avl_sequence_t *sequence, avl_pages_t *pages,
                                                       int layer,
                                                       const avl_selection_item_t *chosen,
                                                       avl_choose_item_t *core_p);
/* The rows that `chosen` names are those that go on to later layers; where a store is kept as well,
 * `chosen` then names its rows. Local. */
AVL_MUST_CHECK avl_status_t avl_visual_store_filter(avl_sequence_t *sequence,
                                                    avl_selection_t *selection, int layer,
                                                    avl_selection_item_t *chosen);
/* Makes `chosen` (indices into the store) the core. Local. */
AVL_MUST_CHECK avl_status_t avl_visual_store_reselect(avl_sequence_t *sequence, int layer,
                                                      const avl_selection_item_t *chosen);
/* The same where no scores choose: the store and its first core, and the core after `step`. */
AVL_MUST_CHECK avl_status_t avl_visual_store_spread(avl_sequence_t *sequence, avl_pages_t *pages,
                                                    int layer);
AVL_MUST_CHECK avl_status_t avl_visual_store_respread(avl_sequence_t *sequence, int layer,
                                                      int32_t step);

/* Brings the host's copies of store and core up to date where the device is ahead of them. Waits
 * for the device. Errors: AVL_ERR_DEVICE; AVL_ERR_INTERNAL for a store that is no part of the
 * layer's visual rows, or a core that is none of the store. */
AVL_MUST_CHECK avl_status_t avl_visual_store_settle(avl_sequence_t *sequence, int layer);

/* The visual rows that decode step `step` at `position` reads; only those at or after
 * `visible_first`. *skipped_p: how many of the list's first rows are not visible. */
avl_row_span_t avl_visual_store_span(const avl_sequence_t *sequence, int layer, int32_t step,
                                     int32_t visible_first, int32_t *skipped_p);
/* Adds to the sequence's step_mass what a decode step would look at: host memory, `weights` of all
 * visual rows but the first `hidden`, which are not visible. The step computed the rows at
 * core[0..core_rows), ascending places in the store; NULL: the whole store. */
void avl_visual_store_weigh(avl_sequence_t *sequence, int layer, int32_t hidden,
                            const float *weights, const int32_t *core, int32_t core_rows);
/* How many of `count` ascending positions are before `first`. */
int32_t avl_visual_store_hidden(const int32_t *positions, int32_t count, int32_t first);

#endif
