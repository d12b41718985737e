/* base/memory.h: allocation that checks its arithmetic and reports failure as a status. */
#ifndef AVL_BASE_MEMORY_H
#define AVL_BASE_MEMORY_H

#include <stddef.h>

#include "base/status.h"

/* Alignment of avl_alloc_aligned: a cache line, and the widest vector register. */
#define AVL_ALIGNMENT_BYTES 64

/* Zeroed array of `count` items of `item_bytes`; free() releases it. A count of 0 gives a non-NULL
 * pointer. Errors: AVL_ERR_MEMORY, naming `what`; *memory_p is set only on success. */
AVL_MUST_CHECK avl_status_t avl_alloc(size_t count, size_t item_bytes, const char *what,
                                      void *memory_p);
/* The same, aligned to AVL_ALIGNMENT_BYTES; free() releases it. */
AVL_MUST_CHECK avl_status_t avl_alloc_aligned(size_t count, size_t item_bytes, const char *what,
                                              void *memory_p);
/* Makes room for at least `needed` items in a growing array: *items_p and *capacity_p change
 * together, at least doubling. New items are not initialised. Errors: AVL_ERR_MEMORY, with both
 * unchanged. */
AVL_MUST_CHECK avl_status_t avl_grow(size_t needed, size_t item_bytes, const char *what,
                                     void *items_p, size_t *capacity_p);
/* Copy of `text`, released by free(). */
AVL_MUST_CHECK avl_status_t avl_copy_string(const char *text, char **copy_p);

#endif
