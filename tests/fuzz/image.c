/* Any bytes as a picture, and then through the steps of both families on a tiny vision tower. */
#include <stdlib.h>

#include "inputs/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static avl_config_t make_config(avl_family_t family, bool pad) {
    avl_config_t config = {
        .model = {.family = family,
                  .vision = {.image_side = 28, .patch_side = 14, .patches_per_side = 2},
                  .feature_drop_class = true},
        .preprocessor = {.resize = true,
                         .center_crop = true,
                         .resize_shortest_edge = 28,
                         .crop_height = 28,
                         .crop_width = 28,
                         .resample = AVL_RESAMPLE_BICUBIC,
                         .pad = pad}};
    static const int grids[][2] = {{1, 2}, {2, 1}, {2, 2}};
    for (int i = 0; family == AVL_FAMILY_LLAVA_NEXT && i < 3; i++) {
        config.preprocessor.grid_pinpoints[i].height = grids[i][0] * 28;
        config.preprocessor.grid_pinpoints[i].width = grids[i][1] * 28;
        config.preprocessor.grid_pinpoint_count = i + 1;
    }
    return config;
}

static void run(const avl_config_t *config, const avl_image_t *image) {
    avl_pixels_t pixels;
    if (avl_preprocess(config, image, &pixels) == AVL_OK)
        avl_pixels_free(&pixels);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    int width, height;
    avl_image_t image;
    avl_status_t probed = avl_image_probe(data, data_bytes, &width, &height);
    if (avl_image_decode(data, data_bytes, 40000, &image) != AVL_OK)
        return 0;
    if (probed != AVL_OK || width != image.width || height != image.height)
        abort(); /* the probe is what admission relies on */
    avl_config_t configs[] = {make_config(AVL_FAMILY_LLAVA, false),
                              make_config(AVL_FAMILY_LLAVA, true),
                              make_config(AVL_FAMILY_LLAVA_NEXT, true)};
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++)
        run(&configs[i], &image);
    avl_image_free(&image);
    return 0;
}
