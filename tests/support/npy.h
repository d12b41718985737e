/* tests/support/npy.h: reads NumPy's .npy files: versions 1 to 3, little-endian f4, i4, i8, C
 * order. Refuses everything else. */
#ifndef AVL_TESTS_SUPPORT_NPY_H
#define AVL_TESTS_SUPPORT_NPY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define AVL_NPY_AXES_MAX 4

typedef struct avl_npy {
    char type[3]; /* "f4", "i4", "i8" */
    int axis_count;
    int64_t shape[AVL_NPY_AXES_MAX];
    int64_t count; /* elements */
    void *data;    /* free() it */
} avl_npy_t;

/* Errors: AVL_ERR_NOT_FOUND (no such file), AVL_ERR_IO, AVL_ERR_DATA, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_npy_read(const char *path, avl_npy_t *array_p);

#endif
