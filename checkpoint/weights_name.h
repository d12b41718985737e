/* checkpoint/weights_name.h: the names of tensors in the layouts that `transformers` has written.
 * Inside this folder. */
#ifndef AVL_CHECKPOINT_WEIGHTS_NAME_H
#define AVL_CHECKPOINT_WEIGHTS_NAME_H

#include "base/status.h"

/* The older-layout name of the tensor that a file calls `stored`; free() releases it. Names of
 * neither layout stay as they are. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_weights_name(const char *stored, char **name_p);

#endif
