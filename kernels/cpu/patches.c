#include <inttypes.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

typedef struct patches_run {
    const avl_patches_args_t *args;
    int grid; /* patches along a side */
    /* A byte has 256 values: the normalised value of each, per channel. */
    float f32[3][256];
    uint16_t bf16[3][256];
} patches_run_t;

/* One item is one row of patches of one tile. */
static void patches_item(void *context, int64_t item, int thread) {
    const patches_run_t *run = context;
    const avl_patches_args_t *args = run->args;
    (void)thread;
    int patch = args->patch, side = args->side;
    int64_t tile = item / run->grid, patch_row = item % run->grid;
    int64_t width = INT64_C(3) * patch * patch;
    for (int column = 0; column < run->grid; column++) {
        int64_t position = (item * run->grid + column) * width;
        for (int channel = 0; channel < 3; channel++) {
            const uint8_t *plane = args->pixels + (tile * 3 + channel) * side * side;
            for (int y = 0; y < patch; y++) {
                const uint8_t *line =
                    plane + (patch_row * patch + y) * side + (int64_t)column * patch;
                if (args->dtype == AVL_DTYPE_F32) {
                    float *output = (float *)args->output + position;
                    for (int x = 0; x < patch; x++)
                        output[x] = run->f32[channel][line[x]];
                } else {
                    uint16_t *output = (uint16_t *)args->output + position;
                    for (int x = 0; x < patch; x++)
                        output[x] = run->bf16[channel][line[x]];
                }
                position += patch;
            }
        }
    }
}

avl_status_t avl_cpu_patches(avl_device_t *device, const avl_patches_args_t *args) {
    AVL_CHECK_SHAPE(args->tiles >= 0 && args->side >= 0 && args->patch > 0,
                    "patches: %d tiles of side %d in patches of %d", args->tiles, args->side,
                    args->patch);
    AVL_CHECK_SHAPE(args->side <= 1 << 15, "patches: side %d is beyond %d", args->side, 1 << 15);
    AVL_TRY(avl_check_dtype("patches", "output", args->dtype));
    patches_run_t run = {.args = args, .grid = args->side / args->patch};
    if (args->tiles == 0 || run.grid == 0)
        return AVL_OK;
    int64_t pixels = INT64_C(3) * args->side * args->side * args->tiles;
    AVL_TRY(avl_check_array("patches", "pixels", args->pixels, pixels));
    AVL_TRY(avl_check_array("patches", "output", args->output, pixels));
    for (int channel = 0; channel < 3; channel++) {
        for (int byte = 0; byte < 256; byte++) {
            float value = (float)byte * args->scale[channel] + args->shift[channel];
            run.f32[channel][byte] = value;
            run.bf16[channel][byte] = avl_f32_to_bf16(value);
        }
    }
    avl_cpu_parallel(avl_cpu_device(device), (int64_t)args->tiles * run.grid, pixels, patches_item,
                     &run);
    return AVL_OK;
}
