/* base/file.h: a file of a directory as bytes in memory. */
#ifndef AVL_BASE_FILE_H
#define AVL_BASE_FILE_H

#include <stddef.h>

#include "base/status.h"

/* The bytes of `directory`/`name`, with a NUL behind them; free() releases them. Anything but a
 * regular file is refused, so that a pipe or a device cannot hang the reader.
 * Errors, each with the path: AVL_ERR_NOT_FOUND, AVL_ERR_IO, AVL_ERR_DATA (more than `bytes_max`),
 * AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_file_read(const char *directory, const char *name, size_t bytes_max,
                                          char **bytes_p, size_t *byte_count_p);

#endif
