/* kernels/lists.h: lists of rows that the host keeps and kernels read. */
#ifndef AVL_KERNELS_LISTS_H
#define AVL_KERNELS_LISTS_H

#include "kernels/device.h"

/* target[i] = source[i] for i < count. */
typedef struct avl_publish_item {
    int32_t *target;       /* device memory */
    const int32_t *source; /* HOST, read before the call returns; may be `target` on the CPU */
    int32_t count;
} avl_publish_item_t;

/* Brings many short pieces of lists to the device in one go. `items` is a HOST array; no two
 * targets overlap. */
typedef struct avl_publish_args {
    const avl_publish_item_t *items;
    int64_t item_count;
} avl_publish_args_t;

static inline AVL_MUST_CHECK avl_status_t avl_publish(avl_device_t *device,
                                                      const avl_publish_args_t *args) {
    return device->ops->publish(device, args);
}

#endif
