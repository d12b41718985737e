#include "checkpoint/image_layout.h"

#include <stdint.h>

/* Beyond it the doubles of select_resolution would no longer hold every product exactly. */
#define IMAGE_EXTENT_MAX (1 << 24)

/* select_best_resolution of `transformers` (image_processing_utils.py): the grid that keeps most of
 * the picture's pixels, and of those the one that wastes least. In doubles and cut to integers as
 * there, because int(w * (W / w)) may be W - 1, and such a tie decides which grid wins. */
static int select_resolution(const avl_preprocessor_config_t *config, int image_width,
                             int image_height) {
    int best = 0;
    int64_t best_kept = 0;
    int64_t best_wasted = INT64_MAX;
    for (int i = 0; i < config->grid_pinpoint_count; i++) {
        int height = config->grid_pinpoints[i].height;
        int width = config->grid_pinpoints[i].width;
        double scale_width = (double)width / image_width;
        double scale_height = (double)height / image_height;
        double scale = scale_width < scale_height ? scale_width : scale_height;
        int64_t scaled = (int64_t)(image_width * scale) * (int64_t)(image_height * scale);
        int64_t pixels = (int64_t)image_width * image_height;
        int64_t kept = scaled < pixels ? scaled : pixels;
        int64_t wasted = (int64_t)width * height - kept;
        if (kept > best_kept || (kept == best_kept && wasted < best_wasted)) {
            best = i;
            best_kept = kept;
            best_wasted = wasted;
        }
    }
    return best;
}

/* unpad_image of `transformers` (modeling_llava_next.py): the rows or columns of patches that hold
 * nothing but padding go, the same number on both sides. Versions differ in how they round height *
 * (columns / width): 4.46 cuts the double, later ones round it to 7 decimals first, and the
 * processor, which counts the placeholders, divides integers. For extents up to 2^24 the last two
 * are the same number, and the first is one less for a few sizes, for which 4.46 itself fails, its
 * two sides disagreeing; so this divides integers. */
static void unpad(int rows, int columns, avl_image_layout_t *layout) {
    int64_t width = layout->image_width;
    int64_t height = layout->image_height;
    layout->crop_rows = rows;
    layout->crop_columns = columns;
    if (width * rows > columns * height) { /* wider than the grid: padding above and below */
        layout->crop_top = (rows - (int)(height * columns / width)) / 2;
        layout->crop_rows = rows - 2 * layout->crop_top;
    } else {
        layout->crop_left = (columns - (int)(width * rows / height)) / 2;
        layout->crop_columns = columns - 2 * layout->crop_left;
    }
}

avl_status_t avl_image_layout(const avl_config_t *config, int image_width, int image_height,
                              avl_image_layout_t *layout_p) {
    if (image_width < 1 || image_height < 1) {
        return avl_fail(AVL_ERR_INVALID, "a picture of %d x %d has no pixels", image_width,
                        image_height);
    }
    if (image_width > IMAGE_EXTENT_MAX || image_height > IMAGE_EXTENT_MAX) {
        return avl_fail(AVL_ERR_INVALID, "a picture of %d x %d exceeds %d on a side", image_width,
                        image_height, IMAGE_EXTENT_MAX);
    }
    const avl_model_config_t *model = &config->model;
    int side = model->vision.patches_per_side;
    avl_image_layout_t layout = {
        .image_width = image_width,
        .image_height = image_height,
        .tile_count = 1,
        .base_rows = side * side + (model->feature_drop_class ? 0 : 1),
    };
    layout.prompt_rows = layout.base_rows;
    if (model->family == AVL_FAMILY_LLAVA_NEXT) {
        int best = select_resolution(&config->preprocessor, image_width, image_height);
        layout.grid_rows =
            config->preprocessor.grid_pinpoints[best].height / model->vision.image_side;
        layout.grid_columns =
            config->preprocessor.grid_pinpoints[best].width / model->vision.image_side;
        layout.tile_count += layout.grid_rows * layout.grid_columns;
        unpad(layout.grid_rows * side, layout.grid_columns * side, &layout);
        layout.prompt_rows += layout.crop_rows * (layout.crop_columns + 1);
    }
    *layout_p = layout;
    return AVL_OK;
}
