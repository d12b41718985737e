/* kernels/cpu/attention.h: what the two attention operations check alike. */
#ifndef AVL_KERNELS_CPU_ATTENTION_H
#define AVL_KERNELS_CPU_ATTENTION_H

#include "kernels/attention.h"

AVL_MUST_CHECK avl_status_t avl_check_heads(const char *operation, const avl_kv_view_t *kv,
                                            const avl_head_map_t *heads);

#endif
