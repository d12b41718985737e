/* worker/selection.h: the scores by which rows are chosen, the same on every rank.
 *
 * Scores start as sums over one rank's query heads, in device memory, where attention writes them.
 * They are summed over ranks, and every rank ends with the same bits: so whatever it chooses by
 * them (kernels/select.h) is the same everywhere, without another word. Several sequences' scores
 * lie side by side: one all-reduce a layer, and none at one rank, where nothing waits. */
#ifndef AVL_WORKER_SELECTION_H
#define AVL_WORKER_SELECTION_H

#include "comm/group.h"
#include "kernels/device.h"

typedef struct avl_selection avl_selection_t;

/* One list to choose from. */
typedef struct avl_selection_item {
    int32_t count;  /* scores */
    int32_t unseen; /* the first so many are not computed (sliding window): they are 0 */
    /* Set by begin, device memory: */
    float *scores;  /* [count] once summed */
    float *weights; /* scores + unseen: where decode attention is to write the others */
    float *best;    /* [count] for scores of the chosen */
} avl_selection_item_t;

/* Bytes that create will allocate. */
int64_t avl_selection_bytes(int64_t scores_max);
/* Room for `scores_max` scores and `items_max` lists at once. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_selection_create(avl_device_t *device, avl_group_t *group,
                                                 int64_t scores_max, int items_max,
                                                 avl_selection_t **selection_p);
void avl_selection_destroy(avl_selection_t *selection);

/* Lays the lists out. Local. Errors: AVL_ERR_INTERNAL beyond scores_max or items_max. */
AVL_MUST_CHECK avl_status_t avl_selection_begin(avl_selection_t *selection,
                                                avl_selection_item_t *items, int item_count);
/* Makes the scores those of all ranks. Collective when item_count > 0; the counts are the same on
 * every rank. With `own` a failure, the scores mean nothing: the rank joins all the same, so that
 * the others are not left waiting, and gets its failure back. */
AVL_MUST_CHECK avl_status_t avl_selection_sum(avl_selection_t *selection,
                                              const avl_selection_item_t *items, int item_count,
                                              avl_status_t own);

#endif
