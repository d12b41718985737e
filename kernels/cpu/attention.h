/* kernels/cpu/attention.h: what the operations of the cache check alike, on every device. */
#ifndef AVL_KERNELS_CPU_ATTENTION_H
#define AVL_KERNELS_CPU_ATTENTION_H

#include "kernels/attention.h"

AVL_MUST_CHECK avl_status_t avl_check_heads(const char *operation, const avl_kv_view_t *kv,
                                            const avl_head_map_t *heads);
/* That what a row's heads need is there when they are written one by one. */
AVL_MUST_CHECK avl_status_t avl_check_kv_heads(const avl_kv_write_args_t *args);

/* Whether what sequence `index` of decode attention wants of its visual rows goes together. */
AVL_MUST_CHECK avl_status_t avl_check_visual_keep(const avl_decode_sequence_t *sequence, int index);

#endif
