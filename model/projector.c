/* model/projector.c: features of the vision tower to rows of the prompt.
 *
 * Two products with an activation between them (LlavaMultiModalProjector); the inner width is dealt
 * over the ranks. For llava_next the rows of tile 0 come first, then the grid's rows inside the
 * unpadded window with image_newline after each
 * (LlavaNextForConditionalGeneration.pack_image_features). */

#include "model/network.h"

avl_status_t avl_projector_load(avl_model_t *model, avl_loader_t *loader) {
    const avl_model_config_t *config = &model->config.model;
    avl_projector_t *projector = &model->projector;
    int hidden = config->text.hidden_width, input = (int)avl_vision_feature_width(model);
    int64_t first, last;
    avl_group_slice(hidden, avl_group_rank(model->group), avl_group_ranks(model->group), &first,
                    &last);
    avl_shard_t columns = {(int)first, (int)(last - first)}, all = {0, hidden};
    projector->columns = columns;
    AVL_TRY(avl_loader_matrix(loader, "multi_modal_projector.linear_1.weight", hidden, input,
                              columns, (avl_shard_t){0, input}, &projector->linear_1.weight));
    AVL_TRY(avl_loader_matrix(loader, "multi_modal_projector.linear_2.weight", hidden, hidden, all,
                              columns, &projector->linear_2.weight));
    const int64_t shape[1] = {hidden};
    if (config->projector_bias) {
        AVL_TRY(avl_loader_floats(loader, "multi_modal_projector.linear_1.bias", 1, shape, columns,
                                  &projector->linear_1.bias));
        AVL_TRY(avl_loader_floats(loader, "multi_modal_projector.linear_2.bias", 1, shape, all,
                                  &projector->linear_2.bias));
    }
    if (config->family == AVL_FAMILY_LLAVA_NEXT)
        AVL_TRY(avl_loader_floats(loader, "image_newline", 1, shape, all, &projector->newline));
    return AVL_OK;
}

void avl_projector_layout(avl_model_t *model, avl_arena_t *arena) {
    avl_projector_t *projector = &model->projector;
    int64_t rows = model->options.tiles_max * avl_vision_feature_rows(model);
    int64_t bytes = (int64_t)avl_dtype_bytes(model->options.dtype);
    int64_t hidden = model->config.model.text.hidden_width;
    projector->input = avl_arena_take(arena, rows * avl_vision_feature_width(model), bytes);
    projector->inner = avl_arena_take(arena, rows * projector->columns.count, bytes);
    projector->projected = avl_arena_take(arena, rows * hidden, sizeof(float));
    projector->targets = avl_arena_take(arena, rows, sizeof(int32_t));
}

/* The tower's f32 rows as the products' input. */
static avl_status_t take_input(avl_model_t *model, int64_t count, const void **input_p) {
    if (model->options.dtype == AVL_DTYPE_F32) {
        *input_p = model->vision.chosen;
        return AVL_OK;
    }
    *input_p = model->projector.input;
    return avl_round(model->device, &(avl_round_args_t){.input = model->vision.chosen,
                                                        .output = model->projector.input,
                                                        .count = count,
                                                        .dtype = model->options.dtype});
}

/* This rank's part of the projection, into `projected`. */
static avl_status_t project_part(avl_model_t *model, int64_t rows) {
    avl_projector_t *projector = &model->projector;
    int64_t width = avl_vision_feature_width(model), columns = projector->columns.count;
    int64_t hidden = model->config.model.text.hidden_width;
    const void *input = NULL;
    AVL_TRY(take_input(model, rows * width, &input));
    AVL_TRY(avl_model_product(
        model, &projector->linear_1, 1,
        (avl_linear_args_t){.input = input,
                            .input_stride = width,
                            .output = projector->inner,
                            .output_stride = columns,
                            .rows = rows,
                            .in_width = width,
                            .out_width = columns,
                            .output_dtype = model->options.dtype,
                            .activation = model->config.model.projector_activation}));
    return avl_model_product(model, &projector->linear_2, 0,
                             (avl_linear_args_t){.input = projector->inner,
                                                 .input_stride = columns,
                                                 .output = projector->projected,
                                                 .output_stride = hidden,
                                                 .rows = rows,
                                                 .in_width = columns,
                                                 .out_width = hidden,
                                                 .output_dtype = AVL_DTYPE_F32});
}

/* The row of the prompt that patch `patch` of tile `tile` becomes; -1: it is padding. */
static int32_t prompt_row(const avl_model_t *model, const avl_image_layout_t *layout, int tile,
                          int64_t patch) {
    if (tile == 0)
        return (int32_t)patch;
    int64_t side = model->config.model.vision.patches_per_side;
    int64_t y = (tile - 1) / layout->grid_columns * side + patch / side - layout->crop_top;
    int64_t x = (tile - 1) % layout->grid_columns * side + patch % side - layout->crop_left;
    if (y < 0 || y >= layout->crop_rows || x < 0 || x >= layout->crop_columns)
        return -1;
    return (int32_t)(layout->base_rows + y * (layout->crop_columns + 1) + x);
}

static avl_status_t place_tiles(avl_model_t *model, const avl_image_layout_t *layout,
                                int first_tile, int tiles, float *features) {
    avl_projector_t *projector = &model->projector;
    int64_t tile_rows = avl_vision_feature_rows(model);
    int64_t hidden = model->config.model.text.hidden_width;
    for (int tile = 0; tile < tiles; tile++)
        for (int64_t patch = 0; patch < tile_rows; patch++)
            projector->targets_host[tile * tile_rows + patch] =
                prompt_row(model, layout, first_tile + tile, patch);
    AVL_TRY(model->device->ops->upload(model->device, projector->targets, projector->targets_host,
                                       (size_t)(tiles * tile_rows) * sizeof(int32_t)));
    const float *bias = projector->linear_2.bias;
    if (bias)
        AVL_TRY(avl_add(model->device, &(avl_add_args_t){.target = projector->projected,
                                                         .bias = bias,
                                                         .width = hidden,
                                                         .count = tiles * tile_rows * hidden}));
    return avl_copy_rows(model->device, &(avl_copy_rows_args_t){.input = projector->projected,
                                                                .input_stride = hidden,
                                                                .output = features,
                                                                .output_stride = hidden,
                                                                .target_rows = projector->targets,
                                                                .rows = tiles * tile_rows,
                                                                .width = hidden});
}

static avl_status_t place_newlines(avl_model_t *model, const avl_image_layout_t *layout,
                                   float *features) {
    int64_t hidden = model->config.model.text.hidden_width;
    for (int row = 0; row < layout->crop_rows; row++) {
        int64_t target =
            layout->base_rows + (int64_t)row * (layout->crop_columns + 1) + layout->crop_columns;
        AVL_TRY(avl_copy_rows(model->device,
                              &(avl_copy_rows_args_t){.input = model->projector.newline,
                                                      .input_stride = hidden,
                                                      .output = features + target * hidden,
                                                      .output_stride = hidden,
                                                      .rows = 1,
                                                      .width = hidden}));
    }
    return AVL_OK;
}

/* The layout comes from the same arithmetic on both sides; one that does not fit the model would
 * write outside `features`. */
static avl_status_t check_layout(const avl_model_t *model, const avl_image_layout_t *layout) {
    int64_t side = model->config.model.vision.patches_per_side;
    int next = model->config.model.family == AVL_FAMILY_LLAVA_NEXT;
    int64_t grid_tiles = (int64_t)layout->grid_rows * layout->grid_columns;
    int fits = layout->base_rows == avl_vision_feature_rows(model) && layout->grid_rows >= 0 &&
               layout->grid_columns >= 0 && layout->tile_count == 1 + grid_tiles &&
               layout->crop_rows >= 0 && layout->crop_columns >= 0 && layout->crop_top >= 0 &&
               layout->crop_left >= 0 && (next || grid_tiles == 0) &&
               layout->crop_top + layout->crop_rows <= layout->grid_rows * side &&
               layout->crop_left + layout->crop_columns <= layout->grid_columns * side;
    int64_t grid_prompt_rows =
        grid_tiles ? (int64_t)layout->crop_rows * (layout->crop_columns + 1) : 0;
    if (!fits || layout->prompt_rows != layout->base_rows + grid_prompt_rows)
        return avl_fail(
            AVL_ERR_SHAPE,
            "picture layout does not fit the model: %d tiles, grid %dx%d, window %dx%d, "
            "%d prompt rows",
            layout->tile_count, layout->grid_rows, layout->grid_columns, layout->crop_rows,
            layout->crop_columns, layout->prompt_rows);
    return AVL_OK;
}

avl_status_t avl_model_encode(avl_model_t *model, const uint8_t *pixels,
                              const avl_image_layout_t *layout, float *features) {
    AVL_TRY(check_layout(model, layout));
    int64_t side = model->config.model.vision.image_side, tile_bytes = 3 * side * side;
    int64_t hidden = model->config.model.text.hidden_width;
    avl_status_t status = AVL_OK;
    for (int first = 0; first < layout->tile_count; first += model->options.tiles_max) {
        int tiles = layout->tile_count - first;
        if (tiles > model->options.tiles_max)
            tiles = model->options.tiles_max;
        AVL_TRY(avl_vision_run(model, pixels + first * tile_bytes, tiles, &status));
        int64_t rows = tiles * avl_vision_feature_rows(model);
        if (status == AVL_OK)
            status = project_part(model, rows);
        AVL_TRY(avl_model_all_reduce(model, model->projector.projected, rows * hidden, &status));
        if (status == AVL_OK)
            status = place_tiles(model, layout, first, tiles, features);
    }
    if (status == AVL_OK && model->projector.newline)
        status = place_newlines(model, layout, features);
    return status;
}
