/* client/eval_score.h: how good an answer is, 0 to 1.
 *
 * Both texts are normalised: white space at the ends goes, one full stop at the end, white space
 * before it, and, where the item ignores case, case (by Unicode's case folding).
 *
 *   exact     1 when they are equal
 *   contains  1 when the expected text occurs in the answer
 *   items     F1 of two lists: whatever stands before the first ": " goes (a lead-in such as "five
 *             objects: "), the rest is split at commas, items are stripped and empty ones dropped.
 *             2 * common / (items here + items there), an item that occurs n and m times being
 *             common min(n, m) times. Two empty lists score 1. Order does not count
 *
 * Without the first token. With most methods prefill attends to everything, so the first token of
 * an answer is that of dense attention, and an answer decided by it flatters the method. So there
 * is a second score, of what follows:
 *
 *   exact     only items where dense attention's first token begins the expected answer rightly and
 *             does not complete it; the same items for all methods
 *   contains  only items where dense attention's first token does not hold the answer by itself
 *   items     the first item of the answer goes, and from the expected ones the one that it was
 *
 * Of several accepted answers the best score counts. */
#ifndef AVL_CLIENT_EVAL_SCORE_H
#define AVL_CLIENT_EVAL_SCORE_H

#include "base/status.h"
#include "client/eval_tasks.h"

/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_eval_score(const avl_eval_item_t *item, const char *text,
                                           double *score_p);
/* The score of what follows the first token; `first` is the text of dense attention's first token.
 * *counts_p says whether the item counts. */
AVL_MUST_CHECK avl_status_t avl_eval_score_after_first(const avl_eval_item_t *item,
                                                       const char *text, const char *first,
                                                       bool *counts_p, double *score_p);

#endif
