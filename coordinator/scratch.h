/* coordinator/scratch.h: directories for sockets and shared memory that do not outlive their owner.
 *
 * Nobody but this user can enter one. Its owner holds a lock on a file in it; whoever makes the
 * next directory beside it removes those that nobody holds any more, which is what a killed process
 * leaves. */
#ifndef AVL_COORDINATOR_SCRATCH_H
#define AVL_COORDINATOR_SCRATCH_H

#include "base/status.h"

typedef struct avl_scratch {
    char path[64]; /* empty: there is none */
    int lock_fd;
} avl_scratch_t;

/* Makes `base`/avl-XXXXXX; `base` is an absolute path of at most 32 characters.
 * Errors: AVL_ERR_INVALID, AVL_ERR_IO. */
AVL_MUST_CHECK avl_status_t avl_scratch_create(const char *base, avl_scratch_t *scratch_p);
/* Removes everything in it. */
void avl_scratch_clear(const avl_scratch_t *scratch);
/* Removes it and what is in it; an empty one may be given. */
void avl_scratch_destroy(avl_scratch_t *scratch);

#endif
