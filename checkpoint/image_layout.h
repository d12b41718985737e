/* checkpoint/image_layout.h: how one picture becomes tiles and then rows of the prompt.
 *
 * Both sides need it and must agree: inputs/ cuts the tiles and counts placeholders, model/
 * assembles the features. The arithmetic is that of `transformers`
 * (LlavaNextImageProcessor.select_best_resolution and get_patch_output_size;
 * LlavaNextForConditionalGeneration.pack_image_features and unpad_image).
 *
 * llava       1 tile, patches² rows (one more with feature_drop_class == false).
 *
 * llava_next  tile 0 is the whole picture, resized; tiles 1.. are the grid, row by row. The rows of
 *             the prompt are tile 0's patches, then the unpadded grid's rows from top to bottom,
 *             each followed by image_newline. */
#ifndef AVL_CHECKPOINT_IMAGE_LAYOUT_H
#define AVL_CHECKPOINT_IMAGE_LAYOUT_H

#include "checkpoint/config.h"

typedef struct avl_image_layout {
    int image_width, image_height; /* of the original picture, pixels */
    int tile_count;                /* 1 + grid_rows * grid_columns for llava_next */
    int grid_rows, grid_columns;   /* 0 for llava */
    int base_rows;                 /* prompt rows of tile 0 */
    int crop_top, crop_left;       /* unpadding: first patch kept, in patches of the whole grid */
    int crop_rows, crop_columns;   /* patches kept; 0 for llava */
    int prompt_rows;               /* base_rows + crop_rows * (crop_columns + 1) */
} avl_image_layout_t;

/* Errors: AVL_ERR_INVALID for a picture without pixels or with an extent beyond 2^24. */
AVL_MUST_CHECK avl_status_t avl_image_layout(const avl_config_t *config, int image_width,
                                             int image_height, avl_image_layout_t *layout_p);

#endif
