/* worker/selection.h: the best rows by score, the same list on every rank.
 *
 * Scores start as sums over one rank's query heads. They are summed over ranks so that each rank
 * owns a slice of them; each takes the best of its slice, and the candidates of all slices are
 * merged: every rank merges the same bytes, so the lists are bit-identical by construction. Several
 * sequences are chosen for at once: one reduce-scatter and one gather a layer.
 *
 * Order of merit: the larger score, then the lower index (kernels/select.h). */
#ifndef AVL_WORKER_SELECTION_H
#define AVL_WORKER_SELECTION_H

#include "comm/group.h"
#include "kernels/select.h"

typedef struct avl_selection avl_selection_t;

/* One list to choose from. */
typedef struct avl_selection_item {
    int32_t count;  /* scores */
    int32_t keep;   /* <= count */
    int32_t unseen; /* the first so many were not computed (sliding window): they score 0 */
    /* Set by begin: where decode attention is to write scores[unseen..count), device memory. */
    float *weights;
    float *best; /* device memory for scores of the kept ones; NULL when the device is the host */
    /* Set by run, host memory, valid until the next begin: */
    int32_t *indices; /* [keep] ascending */
    float *scores;    /* [keep] of those */
} avl_selection_item_t;

/* Bytes that create will allocate. */
int64_t avl_selection_bytes(int64_t scores_max);
/* Room for `scores_max` scores and `items_max` lists in one run. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_selection_create(avl_device_t *device, avl_group_t *group,
                                                 int64_t scores_max, int items_max,
                                                 avl_selection_t **selection_p);
void avl_selection_destroy(avl_selection_t *selection);

/* Lays the lists out: sets `weights` of every item. Local. Errors: AVL_ERR_INTERNAL beyond
 * scores_max or items_max. */
AVL_MUST_CHECK avl_status_t avl_selection_begin(avl_selection_t *selection,
                                                avl_selection_item_t *items, int item_count);
/* Chooses. Collective when item_count > 0; the counts are the same on every rank. With `own` a
 * failure, the scores mean nothing: the rank joins the collectives all the same, so that the others
 * are not left waiting, and gets its failure back. */
AVL_MUST_CHECK avl_status_t avl_selection_run(avl_selection_t *selection,
                                              avl_selection_item_t *items, int item_count,
                                              avl_status_t own);
/* The `keep` best of host scores, as ascending indices in host memory. Local. */
AVL_MUST_CHECK avl_status_t avl_selection_best(avl_selection_t *selection, const float *scores,
                                               int32_t count, int32_t keep, int32_t *indices);

#endif
