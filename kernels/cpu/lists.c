#include <string.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

avl_status_t avl_cpu_publish(avl_device_t *device, const avl_publish_args_t *args) {
    (void)device;
    AVL_TRY(avl_check_publish(args));
    for (int64_t i = 0; i < args->item_count; i++) {
        const avl_publish_item_t *item = &args->items[i];
        if (item->count > 0 && item->target != item->source)
            memcpy(item->target, item->source, (size_t)item->count * sizeof *item->target);
    }
    return AVL_OK;
}
