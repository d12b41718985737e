/* model/vision.c: the CLIP vision tower (modeling_clip.py: CLIPVisionEmbeddings, CLIPEncoderLayer).
 *
 * Heads and MLP columns are dealt over the ranks; a rank without heads contributes zeros to the
 * sums. The tower's final norm applies to the pooled output alone and is not used here: hidden
 * states are taken as the layers leave them. */
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "model/network.h"

#define NAME_BYTES 160
#define TOWER "vision_tower.vision_model."

static int64_t tile_patches(const avl_model_t *model) {
    int64_t side = model->config.model.vision.patches_per_side;
    return side * side;
}

int64_t avl_vision_feature_rows(const avl_model_t *model) {
    return tile_patches(model) + (model->config.model.feature_drop_class ? 0 : 1);
}

int64_t avl_vision_feature_width(const avl_model_t *model) {
    return (int64_t)model->config.model.vision.hidden_width *
           model->config.model.feature_layer_count;
}

static avl_status_t load_norm(avl_loader_t *loader, const char *prefix, int width,
                              avl_layer_norm_t *norm_p) {
    char name[NAME_BYTES];
    const int64_t shape[1] = {width};
    snprintf(name, sizeof name, "%s.weight", prefix);
    AVL_TRY(avl_loader_floats(loader, name, 1, shape, (avl_shard_t){0, width}, &norm_p->weight));
    snprintf(name, sizeof name, "%s.bias", prefix);
    return avl_loader_floats(loader, name, 1, shape, (avl_shard_t){0, width}, &norm_p->bias);
}

/* A product of which this rank holds output rows (column-parallel) or input columns (row-parallel,
 * whole bias). */
static avl_status_t load_product(avl_loader_t *loader, const char *prefix, int rows, int columns,
                                 avl_shard_t row_shard, avl_shard_t column_shard,
                                 avl_product_t *product_p) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.weight", prefix);
    AVL_TRY(avl_loader_matrix(loader, name, rows, columns, row_shard, column_shard,
                              &product_p->weight));
    snprintf(name, sizeof name, "%s.bias", prefix);
    return avl_loader_floats(loader, name, 1, (const int64_t[]){rows}, row_shard, &product_p->bias);
}

static avl_status_t load_layer(avl_model_t *model, avl_loader_t *loader, int index,
                               avl_vision_layer_t *layer) {
    const avl_vision_config_t *vision = &model->config.model.vision;
    int width = vision->hidden_width, head_width = width / vision->heads;
    avl_shard_t all = {0, width};
    avl_shard_t heads = {model->shards.vision_heads.first * head_width,
                         model->shards.vision_heads.count * head_width};
    avl_shard_t columns = model->shards.vision_mlp_columns;
    char prefix[NAME_BYTES - 16];
#define LAYER_NAME(suffix)                                                                         \
    (snprintf(prefix, sizeof prefix, TOWER "encoder.layers.%d." suffix, index), prefix)
    AVL_TRY(load_norm(loader, LAYER_NAME("layer_norm1"), width, &layer->norm1));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.q_proj"), width, width, heads, all,
                         &layer->query));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.k_proj"), width, width, heads, all,
                         &layer->key));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.v_proj"), width, width, heads, all,
                         &layer->value));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.out_proj"), width, width, all, heads,
                         &layer->output));
    AVL_TRY(load_norm(loader, LAYER_NAME("layer_norm2"), width, &layer->norm2));
    AVL_TRY(load_product(loader, LAYER_NAME("mlp.fc1"), vision->mlp_width, width, columns, all,
                         &layer->fc1));
    return load_product(loader, LAYER_NAME("mlp.fc2"), width, vision->mlp_width, all, columns,
                        &layer->fc2);
#undef LAYER_NAME
}

static avl_status_t load_embeddings(avl_model_t *model, avl_loader_t *loader) {
    const avl_vision_config_t *vision = &model->config.model.vision;
    int width = vision->hidden_width;
    int64_t rows = tile_patches(model) + 1;
    AVL_TRY(avl_loader_convolution(loader, TOWER "embeddings.patch_embedding.weight", width, 3,
                                   vision->patch_side, &model->vision.patch));
    AVL_TRY(avl_loader_floats(loader, TOWER "embeddings.position_embedding.weight", 2,
                              (const int64_t[]){rows, width}, (avl_shard_t){0, (int)(rows * width)},
                              &model->vision.positions));
    float *class_embedding;
    AVL_TRY(avl_loader_floats(loader, TOWER "embeddings.class_embedding", 1,
                              (const int64_t[]){width}, (avl_shard_t){0, width}, &class_embedding));
    AVL_TRY(avl_add(model->device, &(avl_add_args_t){.target = model->vision.positions,
                                                     .addend = class_embedding,
                                                     .width = width,
                                                     .count = width}));
    return load_norm(loader, TOWER "pre_layrnorm", width, &model->vision.pre_norm);
}

avl_status_t avl_vision_load(avl_model_t *model, avl_loader_t *loader) {
    const avl_model_config_t *config = &model->config.model;
    avl_vision_t *vision = &model->vision;
    if (config->vision.hidden_width % config->vision.heads != 0)
        return avl_fail(AVL_ERR_UNSUPPORTED, "vision tower: width %d over %d heads",
                        config->vision.hidden_width, config->vision.heads);
    for (int index = 0; index < config->feature_layer_count; index++)
        if (config->feature_layers[index] > vision->layer_count)
            vision->layer_count = config->feature_layers[index];
    AVL_TRY(avl_alloc((size_t)vision->layer_count, sizeof *vision->layers, "vision layers",
                      &vision->layers));
    AVL_TRY(load_embeddings(model, loader));
    for (int index = 0; index < vision->layer_count; index++)
        AVL_TRY(load_layer(model, loader, index, &vision->layers[index]));
    return AVL_OK;
}

void avl_vision_layout(avl_model_t *model, avl_arena_t *arena) {
    const avl_vision_config_t *config = &model->config.model.vision;
    avl_vision_t *vision = &model->vision;
    int64_t tiles = model->options.tiles_max, patches = tiles * tile_patches(model);
    int64_t rows = patches + tiles, width = config->hidden_width;
    int64_t head_columns = (int64_t)model->shards.vision_heads.count * (width / config->heads);
    int64_t bytes = (int64_t)avl_dtype_bytes(model->options.dtype);
    int64_t patch_values = 3 * (int64_t)config->patch_side * config->patch_side;
    vision->patches = avl_arena_take(arena, patches * patch_values, bytes);
    vision->stream = avl_arena_take(arena, rows * width, sizeof(float));
    vision->normed = avl_arena_take(arena, rows * width, bytes);
    vision->qkv = avl_arena_take(arena, rows * 3 * head_columns, bytes);
    vision->attended = avl_arena_take(arena, rows * head_columns, bytes);
    vision->mlp = avl_arena_take(arena, rows * model->shards.vision_mlp_columns.count, bytes);
    vision->partial = avl_arena_take(arena, rows * width, sizeof(float));
    vision->chosen = avl_arena_take(
        arena, tiles * avl_vision_feature_rows(model) * avl_vision_feature_width(model),
        sizeof(float));
}

/* Pixels to the stream before the first layer. */
static avl_status_t embed_tiles(avl_model_t *model, const uint8_t *pixels, int tiles) {
    const avl_vision_config_t *config = &model->config.model.vision;
    const avl_preprocessor_config_t *processor = &model->config.preprocessor;
    avl_vision_t *vision = &model->vision;
    int64_t patches = tile_patches(model), width = config->hidden_width;
    int64_t patch_values = 3 * (int64_t)config->patch_side * config->patch_side;
    int64_t patch_bytes = patches * patch_values * (int64_t)avl_dtype_bytes(model->options.dtype);
    avl_patches_args_t gather = {.pixels = pixels,
                                 .output = vision->patches,
                                 .tiles = tiles,
                                 .side = config->image_side,
                                 .patch = config->patch_side,
                                 .dtype = model->options.dtype};
    for (int channel = 0; channel < 3; channel++) {
        double rescale = processor->rescale ? processor->rescale_factor : 1.0;
        double mean = processor->normalize ? (double)processor->mean[channel] : 0.0;
        double deviation = processor->normalize ? (double)processor->std[channel] : 1.0;
        gather.scale[channel] = (float)(rescale / deviation);
        gather.shift[channel] = (float)(-mean / deviation);
    }
    AVL_TRY(avl_patches(model->device, &gather));
    for (int tile = 0; tile < tiles; tile++) {
        float *rows = vision->stream + tile * (patches + 1) * width;
        AVL_TRY(avl_copy_rows(model->device, &(avl_copy_rows_args_t){.input = vision->positions,
                                                                     .input_stride = width,
                                                                     .output = rows,
                                                                     .output_stride = width,
                                                                     .rows = 1,
                                                                     .width = width}));
        avl_product_t patch = {.weight = vision->patch};
        AVL_TRY(avl_model_product(
            model, &patch, 0,
            (avl_linear_args_t){.input = (const char *)vision->patches + tile * patch_bytes,
                                .input_stride = patch_values,
                                .output = rows + width,
                                .output_stride = width,
                                .rows = patches,
                                .in_width = patch_values,
                                .out_width = width,
                                .output_dtype = AVL_DTYPE_F32}));
        AVL_TRY(avl_add(model->device, &(avl_add_args_t){.target = rows + width,
                                                         .addend = vision->positions + width,
                                                         .width = width,
                                                         .count = patches * width}));
    }
    return avl_norm(model->device, &(avl_norm_args_t){.input = vision->stream,
                                                      .input_stride = width,
                                                      .weight = vision->pre_norm.weight,
                                                      .bias = vision->pre_norm.bias,
                                                      .output = vision->stream,
                                                      .rows = tiles * (patches + 1),
                                                      .width = width,
                                                      .epsilon = config->layer_norm_epsilon,
                                                      .output_dtype = AVL_DTYPE_F32});
}

static avl_status_t normalize(avl_model_t *model, const avl_layer_norm_t *norm, int64_t rows) {
    const avl_vision_config_t *config = &model->config.model.vision;
    return avl_norm(model->device, &(avl_norm_args_t){.input = model->vision.stream,
                                                      .input_stride = config->hidden_width,
                                                      .weight = norm->weight,
                                                      .bias = norm->bias,
                                                      .output = model->vision.normed,
                                                      .rows = rows,
                                                      .width = config->hidden_width,
                                                      .epsilon = config->layer_norm_epsilon,
                                                      .output_dtype = model->options.dtype});
}

enum { TILES_PER_CALL = 16 };

/* Every tile attends to itself, all of its rows to all. */
static avl_status_t attend(avl_model_t *model, int tiles, int head_width) {
    avl_vision_t *vision = &model->vision;
    int heads = model->shards.vision_heads.count;
    if (heads == 0)
        return AVL_OK;
    int rows = (int)tile_patches(model) + 1;
    int64_t columns = (int64_t)heads * head_width;
    int64_t part_bytes = columns * (int64_t)avl_dtype_bytes(model->options.dtype);
    avl_attention_args_t args = {
        .query = vision->qkv,
        .query_stride = 3 * columns,
        .kv = {.keys = (const char *)vision->qkv + part_bytes,
               .values = (const char *)vision->qkv + 2 * part_bytes,
               .row_stride = 3 * columns,
               .kv_heads = heads,
               .head_width = head_width,
               .dtype = model->options.dtype},
        .heads = {.query_heads = heads, .group = 1},
        .output = vision->attended,
        .output_stride = columns,
        .scale = 1.0f / sqrtf((float)head_width),
    };
    avl_attention_sequence_t sequences[TILES_PER_CALL];
    args.sequences = sequences;
    for (int tile = 0; tile < tiles; tile += args.sequence_count) {
        args.sequence_count = tiles - tile < TILES_PER_CALL ? tiles - tile : TILES_PER_CALL;
        for (int i = 0; i < args.sequence_count; i++) {
            int64_t first = (int64_t)(tile + i) * rows;
            sequences[i] = (avl_attention_sequence_t){
                .first_query = first, .query_count = rows, .row_count = rows, .first_row = first};
        }
        AVL_TRY(avl_attention(model->device, &args));
    }
    return AVL_OK;
}

/* The rank's part of a layer's attention, into `partial`. */
static avl_status_t attention_part(avl_model_t *model, const avl_vision_layer_t *layer, int tiles) {
    const avl_vision_config_t *config = &model->config.model.vision;
    avl_vision_t *vision = &model->vision;
    int head_width = config->hidden_width / config->heads;
    int64_t rows = tiles * (tile_patches(model) + 1), width = config->hidden_width;
    int64_t columns = (int64_t)model->shards.vision_heads.count * head_width;
    int64_t part_bytes = columns * (int64_t)avl_dtype_bytes(model->options.dtype);
    AVL_TRY(normalize(model, &layer->norm1, rows));
    const avl_product_t *products[3] = {&layer->query, &layer->key, &layer->value};
    for (int part = 0; part < 3; part++)
        AVL_TRY(
            avl_model_product(model, products[part], 1,
                              (avl_linear_args_t){.input = vision->normed,
                                                  .input_stride = width,
                                                  .output = (char *)vision->qkv + part * part_bytes,
                                                  .output_stride = 3 * columns,
                                                  .rows = rows,
                                                  .in_width = width,
                                                  .out_width = columns,
                                                  .output_dtype = model->options.dtype}));
    AVL_TRY(attend(model, tiles, head_width));
    return avl_model_product(model, &layer->output, 0,
                             (avl_linear_args_t){.input = vision->attended,
                                                 .input_stride = columns,
                                                 .output = vision->partial,
                                                 .output_stride = width,
                                                 .rows = rows,
                                                 .in_width = columns,
                                                 .out_width = width,
                                                 .output_dtype = AVL_DTYPE_F32});
}

static avl_status_t mlp_part(avl_model_t *model, const avl_vision_layer_t *layer, int tiles) {
    const avl_vision_config_t *config = &model->config.model.vision;
    avl_vision_t *vision = &model->vision;
    int64_t rows = tiles * (tile_patches(model) + 1), width = config->hidden_width;
    int64_t columns = model->shards.vision_mlp_columns.count;
    AVL_TRY(normalize(model, &layer->norm2, rows));
    AVL_TRY(avl_model_product(model, &layer->fc1, 1,
                              (avl_linear_args_t){.input = vision->normed,
                                                  .input_stride = width,
                                                  .output = vision->mlp,
                                                  .output_stride = columns,
                                                  .rows = rows,
                                                  .in_width = width,
                                                  .out_width = columns,
                                                  .output_dtype = model->options.dtype,
                                                  .activation = config->activation}));
    return avl_model_product(model, &layer->fc2, 0,
                             (avl_linear_args_t){.input = vision->mlp,
                                                 .input_stride = columns,
                                                 .output = vision->partial,
                                                 .output_stride = width,
                                                 .rows = rows,
                                                 .in_width = columns,
                                                 .out_width = width,
                                                 .output_dtype = AVL_DTYPE_F32});
}

/* Copies the stream after `layer` layers into each place of `chosen` that wants it. */
static avl_status_t choose(avl_model_t *model, int layer, int tiles) {
    const avl_model_config_t *config = &model->config.model;
    avl_vision_t *vision = &model->vision;
    int64_t width = config->vision.hidden_width, stride = avl_vision_feature_width(model);
    int64_t rows = avl_vision_feature_rows(model), tile_rows = tile_patches(model) + 1;
    for (int place = 0; place < config->feature_layer_count; place++) {
        if (config->feature_layers[place] != layer)
            continue;
        for (int tile = 0; tile < tiles; tile++)
            AVL_TRY(avl_copy_rows(
                model->device,
                &(avl_copy_rows_args_t){
                    .input = vision->stream + (tile * tile_rows + tile_rows - rows) * width,
                    .input_stride = width,
                    .output = vision->chosen + tile * rows * stride + place * width,
                    .output_stride = stride,
                    .rows = rows,
                    .width = width}));
    }
    return AVL_OK;
}

avl_status_t avl_vision_run(avl_model_t *model, const uint8_t *pixels, int tiles,
                            avl_status_t *status_p) {
    avl_vision_t *vision = &model->vision;
    int64_t rows = tiles * (tile_patches(model) + 1);
    int64_t width = model->config.model.vision.hidden_width;
    if (*status_p == AVL_OK)
        *status_p = embed_tiles(model, pixels, tiles);
    if (*status_p == AVL_OK)
        *status_p = choose(model, 0, tiles);
    for (int index = 0; index < vision->layer_count; index++) {
        const avl_vision_layer_t *layer = &vision->layers[index];
        if (*status_p == AVL_OK)
            *status_p = attention_part(model, layer, tiles);
        AVL_TRY(avl_model_reduce_add(model, vision->stream, vision->partial, layer->output.bias,
                                     rows, width, status_p));
        if (*status_p == AVL_OK)
            *status_p = mlp_part(model, layer, tiles);
        AVL_TRY(avl_model_reduce_add(model, vision->stream, vision->partial, layer->fc2.bias, rows,
                                     width, status_p));
        if (*status_p == AVL_OK)
            *status_p = choose(model, index + 1, tiles);
    }
    return AVL_OK;
}
