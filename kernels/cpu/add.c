#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

enum { ELEMENTS_PER_ITEM = 1 << 14 };

typedef struct add_run {
    const avl_cpu_kernels_t *kernels;
    const avl_add_args_t *args;
    int64_t item_elements;
} add_run_t;

static void add_item(void *context, int64_t item, int thread) {
    const add_run_t *run = context;
    (void)thread;
    int64_t first = item * run->item_elements;
    run->kernels->add(run->args, first, avl_min64(run->item_elements, run->args->count - first));
}

avl_status_t avl_cpu_add(avl_device_t *device, const avl_add_args_t *args) {
    AVL_TRY(avl_check_array("add", "target", args->target, args->count));
    if (args->bias != NULL) {
        AVL_CHECK_SHAPE(args->width > 0 && args->count % args->width == 0,
                        "add: %" PRId64 " elements are not rows of the bias's width %" PRId64,
                        args->count, args->width);
    }
    if (args->count == 0 || (args->addend == NULL && args->bias == NULL))
        return AVL_OK;
    add_run_t run = {avl_cpu_device(device)->kernels, args, ELEMENTS_PER_ITEM};
    if (args->bias != NULL) /* whole rows */
        run.item_elements = avl_round_up(ELEMENTS_PER_ITEM, args->width);
    avl_cpu_parallel(avl_cpu_device(device), avl_ceil_div(args->count, run.item_elements),
                     args->count, add_item, &run);
    return AVL_OK;
}
