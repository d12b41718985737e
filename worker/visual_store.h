/* worker/visual_store.h: A-VL's visual store of one sequence in one layer (docs/A-VL.md).
 *
 * After the layer's prompt attention `store_rows` visual rows are kept, those that the prompt's
 * scoring rows look at most (or evenly spaced ones, or any), moved together in ascending position
 * to the front of the sequence's visual pages; the other pages go back to the pool at once. The
 * `core_rows` best of them are the core. Choices by scores are the device's, and what it chose the
 * host learns when it must (settle). With `coverage` that is one choice for all layers, made
 * when the last row has passed the last of them; until then all visual rows stay everywhere. The
 * store never changes afterwards; the core is chosen anew after every `update_interval`-th step, or
 * is nothing that lasts: then every step begins with the whole store, and each KV head chooses
 * (kernels/attention.h).
 *
 * Keys are stored rotated and never rotated again: positions stay what they were. */
#ifndef AVL_WORKER_VISUAL_STORE_H
#define AVL_WORKER_VISUAL_STORE_H

#include "kernels/select.h"
#include "worker/sequence.h"

/* Whether decode step `step` (the first is 1) computes the whole store and chooses the core anew.
 */
bool avl_visual_store_updates(const avl_sequence_shape_t *shape, int32_t step);
/* Whether that choice can change anything: without it the weights need not be exported. */
bool avl_visual_store_reselects(const avl_sequence_shape_t *shape, int32_t step);

/* Whether attention scores choose; else nothing is exported and nothing travels. */
bool avl_visual_store_ranks(const avl_sequence_shape_t *shape);

/* Choices by scores, made where the scores are, with nothing to wait for: each of these says what
 * avl_choose is to do. `scores` is device memory. Once the layer's store has been chosen from its
 * visual rows, keep follows, then the choice of its first core from `best`, what the first choice
 * wrote there (NULL where no core is listed, or another layer's choice writes the same). Where all
 * layers have one store they choose alike from the same scores. */
avl_choose_item_t avl_visual_store_choice(avl_sequence_t *sequence, int layer, const float *scores,
                                          float *best);
/* Gives up what the device's choice leaves. Local. Errors: those of the device; AVL_ERR_INTERNAL
 * for a dry pool. */
AVL_MUST_CHECK avl_status_t avl_visual_store_keep(avl_sequence_t *sequence, avl_pages_t *pages,
                                                  int layer);
/* The core by scores of the stored rows: the one that the prompt leaves, or a later one. */
avl_choose_item_t avl_visual_store_core_choice(avl_sequence_t *sequence, int layer,
                                               const float *scores, bool is_first);
/* The rows that go on to later layers, from those of the filter's last layer; and what the host
 * must know of them. That waits for the device. */
avl_choose_item_t avl_visual_store_filter_choice(avl_sequence_t *sequence, const float *scores);
AVL_MUST_CHECK avl_status_t avl_visual_store_filter(avl_sequence_t *sequence);
/* The same where no scores choose: the store and its first core, and the core after `step`. Local.
 */
AVL_MUST_CHECK avl_status_t avl_visual_store_spread(avl_sequence_t *sequence, avl_pages_t *pages,
                                                    int layer);
AVL_MUST_CHECK avl_status_t avl_visual_store_respread(avl_sequence_t *sequence, int layer,
                                                      int32_t step);

/* Brings the host's copies of stores and cores of layers [first, first + count) up to date where
 * the device is ahead of them; then it waits for the device, once for all. Errors: AVL_ERR_DEVICE;
 * AVL_ERR_INTERNAL for a store that is no part of the layer's visual rows, or a core that is none
 * of the store. */
AVL_MUST_CHECK avl_status_t avl_visual_store_settle(avl_sequence_t *sequence, int first, int count);

/* How many of the layer's visual rows (the store once it selected) stand before `visible_first`,
 * which are the first ones. Where that is some of them but not all, the host's copy of the store
 * must have been settled: *splits_p says so, unless it is NULL. */
int32_t avl_visual_store_hidden_rows(const avl_sequence_t *sequence, int layer,
                                     int32_t visible_first, bool *splits_p);
/* The visual rows that decode step `step` reads; only those at or after `visible_first`.
 * *skipped_p: how many of the list's first rows are not visible. Settled as above. */
avl_row_span_t avl_visual_store_span(const avl_sequence_t *sequence, int layer, int32_t step,
                                     int32_t visible_first, int32_t *skipped_p);
/* Adds to the sequence's step_mass what a decode step would look at: host memory, `weights` of all
 * visual rows but the first `hidden`, which are not visible. The step computed the rows at
 * core[0..core_rows), ascending places in the store; NULL: the whole store. Settled. */
void avl_visual_store_weigh(avl_sequence_t *sequence, int layer, int32_t hidden,
                            const float *weights, const int32_t *core, int32_t core_rows);
/* How many of `count` ascending positions, or places, are before `first`. */
int32_t avl_visual_store_hidden(const int32_t *positions, int32_t count, int32_t first);

#endif
