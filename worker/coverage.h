/* worker/coverage.h: how much each row of the encoder cache differs from the others of its picture
 * (kernels/diversity.h), for requests that choose rows by that (`visual_selection` coverage).
 *
 * A picture's distances are computed when the first such request has all its features, and stay
 * beside them until another picture is encoded there. What is known follows from the plans alone,
 * so it is the same on every rank. */
#ifndef AVL_WORKER_COVERAGE_H
#define AVL_WORKER_COVERAGE_H

#include "checkpoint/config.h"
#include "worker/attend.h"

typedef struct avl_coverage avl_coverage_t;

/* Rows of the largest picture, at most. */
int64_t avl_coverage_picture_rows(const avl_config_t *config, int tiles, int32_t context_rows);
/* Bytes beside each row of features, and those of the scratch memory. */
int64_t avl_coverage_row_bytes(void);
int64_t avl_coverage_scratch_bytes(int64_t picture_rows, int64_t width);

/* For features [feature_rows, width]. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_coverage_create(avl_device_t *device, int32_t feature_rows,
                                                int64_t width, int64_t picture_rows,
                                                avl_coverage_t **coverage_p);
void avl_coverage_destroy(avl_coverage_t *coverage);

/* Device memory, [feature_rows]. */
const float *avl_coverage_distances(const avl_coverage_t *coverage);
/* A picture of so many rows is encoded there. */
void avl_coverage_encoded(avl_coverage_t *coverage, int32_t feature_row, int32_t rows);
/* Computes what the prompts that end in these runs need of their pictures, all of which are
 * encoded. Collective where something is to be computed. Errors: those of the device and the group;
 * AVL_ERR_INTERNAL for features that are not those of whole pictures. */
AVL_MUST_CHECK avl_status_t avl_coverage_measure(avl_coverage_t *coverage, avl_group_t *group,
                                                 const float *features, const avl_run_t *runs,
                                                 int run_count);

#endif
