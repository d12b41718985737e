#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

enum { ELEMENTS_PER_ITEM = 1 << 14 };

static void round_item(void *context, int64_t item, int thread) {
    const avl_round_args_t *args = context;
    (void)thread;
    int64_t first = item * ELEMENTS_PER_ITEM;
    int64_t end = first + avl_min64(ELEMENTS_PER_ITEM, args->count - first);
    uint16_t *output = args->output;
    for (int64_t i = first; i < end; i++)
        output[i] = avl_f32_to_bf16(args->input[i]);
}

avl_status_t avl_cpu_round(avl_device_t *device, const avl_round_args_t *args) {
    AVL_TRY(avl_check_array("round", "input", args->input, args->count));
    AVL_TRY(avl_check_array("round", "output", args->output, args->count));
    AVL_CHECK_SHAPE(args->dtype == AVL_DTYPE_BF16,
                    "round: number format %d; the CPU's is bf16 (%d)", (int)args->dtype,
                    (int)AVL_DTYPE_BF16);
    avl_round_args_t run = *args;
    avl_cpu_parallel(avl_cpu_device(device), avl_ceil_div(args->count, ELEMENTS_PER_ITEM),
                     args->count, round_item, &run);
    return AVL_OK;
}
