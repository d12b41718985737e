/* kernels/cpu/topk.c: selection: a list an item. */
#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

avl_status_t avl_cpu_topk(avl_device_t *device, const avl_topk_args_t *args) {
    AVL_TRY(avl_check_array("topk", "scores", args->scores, args->count));
    AVL_CHECK_SHAPE(args->keep >= 0 && args->keep <= args->count,
                    "topk: keep %" PRId32 " of %" PRId32 " scores", args->keep, args->count);
    AVL_TRY(avl_check_array("topk", "indices", args->indices, args->keep));
    avl_cpu_device(device)->kernels->choose(&(avl_choose_item_t){.scores = args->scores,
                                                                 .count = args->count,
                                                                 .keep = args->keep,
                                                                 .indices = args->indices});
    return AVL_OK;
}

typedef struct choose_run {
    const avl_choose_args_t *args;
    const avl_cpu_kernels_t *kernels;
} choose_run_t;

static void choose_item(void *context, int64_t index, int thread) {
    const choose_run_t *run = context;
    (void)thread;
    run->kernels->choose(&run->args->items[index]);
}

avl_status_t avl_cpu_choose(avl_device_t *device, const avl_choose_args_t *args) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    AVL_TRY(avl_check_choose(args));
    int64_t work = 0; /* about 20 passes, a vector at a time */
    for (int i = 0; i < args->item_count; i++)
        work += 3 * (int64_t)args->items[i].count;
    choose_run_t run = {args, cpu->kernels};
    avl_cpu_parallel(cpu, args->item_count, work, choose_item, &run);
    return AVL_OK;
}
