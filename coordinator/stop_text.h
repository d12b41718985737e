/* coordinator/stop_text.h: finds the texts that end an answer, across the borders of tokens.
 *
 * Text that may be the beginning of a stop text is held back until that is settled, so that a
 * client never sees a part of one. Threads: one at a time. */
#ifndef AVL_COORDINATOR_STOP_TEXT_H
#define AVL_COORDINATOR_STOP_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

#define AVL_STOP_TEXTS_MAX 16
#define AVL_STOP_TEXT_BYTES_MAX 256

typedef struct avl_stop_text avl_stop_text_t;

/* Copies the texts. *stop_p is NULL for none. Errors: AVL_ERR_INVALID (an empty text, too many, too
 * long), AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_stop_text_create(char *const *texts, size_t count,
                                                 avl_stop_text_t **stop_p);
void avl_stop_text_destroy(avl_stop_text_t *stop);

/* Adds what the answer goes on with. *out_p (until the next call) is what may be shown now.
 * *found_p: a stop text has come; it and all after it are gone. The one that ends first counts; of
 * those the longest. Nothing comes out after that. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_stop_text_add(avl_stop_text_t *stop, const char *text,
                                              const char **out_p, bool *found_p);
/* The answer has ended: what was held back. */
const char *avl_stop_text_finish(avl_stop_text_t *stop);

#endif
