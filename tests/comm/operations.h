/* tests/comm/operations.h: what every backend must do, as one program per rank. Used by the
 * loopback and the MPI test. */
#ifndef AVL_TESTS_COMM_OPERATIONS_H
#define AVL_TESTS_COMM_OPERATIONS_H

#include "comm/group.h"

/* All operations, small and large, with values that only the right order of additions gives.
 * Collective. `large`: elements of the largest reduction. Errors: AVL_ERR_INTERNAL naming the
 * operation whose result is wrong; those of the group. */
AVL_MUST_CHECK avl_status_t avl_operations_check(avl_group_t *group, int64_t large);

#endif
