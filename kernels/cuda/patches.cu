#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

/* One thread an output element; neighbours write neighbours. */
template <typename T> __global__ void patches_kernel(avl_patches_args_t args, int grid) {
    int64_t patch_pixels = (int64_t)args.patch * args.patch, width = 3 * patch_pixels;
    int64_t count = (int64_t)args.tiles * grid * grid * width;
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        int64_t row = i / width, column = i % width;
        int64_t tile = row / ((int64_t)grid * grid);
        int patch_y = (int)(row / grid % grid), patch_x = (int)(row % grid);
        int channel = (int)(column / patch_pixels);
        int y = patch_y * args.patch + (int)(column % patch_pixels / args.patch);
        int x = patch_x * args.patch + (int)(column % args.patch);
        int64_t pixel = ((tile * 3 + channel) * args.side + y) * args.side + x;
        float value = (float)args.pixels[pixel] * args.scale[channel] + args.shift[channel];
        avl_store((T *)args.output, i, value);
    }
}

avl_status_t avl_cuda_patches(avl_device_t *device, const avl_patches_args_t *args) {
    AVL_CHECK_SHAPE(args->tiles >= 0 && args->side >= 0 && args->patch > 0,
                    "patches: %d tiles of side %d in patches of %d", args->tiles, args->side,
                    args->patch);
    AVL_CHECK_SHAPE(args->side <= 1 << 15, "patches: side %d is beyond %d", args->side, 1 << 15);
    AVL_TRY(avl_cuda_check_dtype("patches", "output", args->dtype));
    int grid = args->side / args->patch;
    if (args->tiles == 0 || grid == 0)
        return AVL_OK;
    int64_t pixels = INT64_C(3) * args->side * args->side * args->tiles;
    AVL_TRY(avl_check_array("patches", "pixels", args->pixels, pixels));
    AVL_TRY(avl_check_array("patches", "output", args->output, pixels));
    auto *kernel = AVL_CUDA_BY_DTYPE(patches_kernel, args->dtype);
    AVL_LAUNCH(kernel, avl_cuda_blocks(pixels), AVL_CUDA_THREADS, 0, avl_cuda_of(device)->stream,
               *args, grid);
    return avl_cuda_launched("patches");
}
