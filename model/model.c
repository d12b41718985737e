/* model/model.c: putting a model together and taking it apart; what its parts share. */
#include <stdlib.h>

#include "base/memory.h"
#include "model/network.h"

#define ARENA_ALIGNMENT ((size_t)64)

void *avl_arena_take(avl_arena_t *arena, int64_t count, int64_t item_bytes) {
    size_t offset = arena->used_bytes;
    size_t bytes = (size_t)count * (size_t)item_bytes;
    arena->used_bytes += (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    return arena->memory ? arena->memory + offset : NULL;
}

avl_status_t avl_model_product(const avl_model_t *model, const avl_product_t *product,
                               int with_bias, avl_linear_args_t args) {
    if (args.out_width == 0)
        return AVL_OK;
    args.weight = product->weight.data;
    args.weight_stride = product->weight.stride;
    args.bias = with_bias ? product->bias : NULL;
    args.dtype = model->options.dtype;
    return avl_linear(model->device, &args);
}

avl_status_t avl_model_all_reduce(avl_model_t *model, float *data, int64_t count,
                                  avl_status_t *status_p) {
    avl_device_t *device = model->device;
    if (device->is_host)
        return avl_group_all_reduce(model->group, data, count);
    if (avl_group_ranks(model->group) == 1)
        return AVL_OK;
    /* Joined whatever the status says; what a failed rank adds, it tells of itself. */
    if (avl_group_gpus_name(model->group) != NULL)
        return avl_group_gpus_all_reduce(model->group, data, count);
    size_t bytes = (size_t)count * sizeof(float);
    if (*status_p == AVL_OK)
        *status_p = device->ops->download(device, model->exchange, data, bytes);
    AVL_TRY(avl_group_all_reduce(model->group, model->exchange, count));
    if (*status_p == AVL_OK)
        *status_p = device->ops->upload(device, data, model->exchange, bytes);
    return AVL_OK;
}

avl_status_t avl_model_reduce_add(avl_model_t *model, float *stream, float *partial,
                                  const float *bias, int64_t rows, int64_t width,
                                  avl_status_t *status_p) {
    AVL_TRY(avl_model_all_reduce(model, partial, rows * width, status_p));
    if (*status_p == AVL_OK)
        *status_p = avl_add(model->device, &(avl_add_args_t){.target = stream,
                                                             .addend = partial,
                                                             .bias = bias,
                                                             .width = width,
                                                             .count = rows * width});
    return AVL_OK;
}

static avl_status_t check_options(const avl_config_t *config, const avl_device_t *device,
                                  const avl_model_options_t *options) {
    if (options->dtype != AVL_DTYPE_F32 && options->dtype != AVL_DTYPE_BF16 &&
        !(options->dtype == AVL_DTYPE_F16 && device->info.has_f16))
        return avl_fail(AVL_ERR_UNSUPPORTED, "a model computes in f32 or bf16 on %s, not in %s",
                        device->info.name, avl_dtype_name(options->dtype));
    if (options->rows_max < 1 || options->tiles_max < 1 || options->logit_rows_max < 1)
        return avl_fail(AVL_ERR_INVALID, "model limits: %d rows, %d tiles, %d logit rows",
                        options->rows_max, options->tiles_max, options->logit_rows_max);
    if (config->model.family == AVL_FAMILY_LLAVA_NEXT && !config->model.feature_drop_class)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "llava_next with vision_feature_select_strategy \"full\": a class token "
                        "has no place in the grid of tiles");
    return AVL_OK;
}

/* Weights of KV heads that other ranks hold as well: those whose query heads do not all live here.
 */
static size_t count_duplicates(const avl_model_t *model) {
    const avl_text_config_t *text = &model->config.model.text;
    const avl_shards_t *shards = &model->shards;
    int group = shards->head_map.group;
    int query_last = shards->query_heads.first + shards->query_heads.count;
    size_t shared = 0;
    for (int head = shards->kv_heads.first; head < shards->kv_heads.first + shards->kv_heads.count;
         head++)
        if (head * group < shards->query_heads.first || (head + 1) * group > query_last)
            shared++;
    return shared * 2 * (size_t)text->head_width * (size_t)text->hidden_width *
           avl_dtype_bytes(model->options.dtype) * (size_t)text->layer_count;
}

static avl_status_t load(avl_model_t *model, const avl_weights_t *weights) {
    avl_loader_t loader = {
        .weights = weights,
        .device = model->device,
        .dtype = model->options.dtype,
        .progress = model->options.progress,
        .progress_context = model->options.progress_context,
        .memory = &model->memory,
        .owned_p = &model->owned,
        .owned_count_p = &model->owned_count,
    };
    AVL_TRY(avl_vision_load(model, &loader));
    AVL_TRY(avl_projector_load(model, &loader));
    AVL_TRY(avl_decoder_load(model, &loader));
    model->memory.kv_duplicate_bytes = count_duplicates(model);
    if (loader.progress)
        loader.progress(loader.progress_context, 1.0);
    return AVL_OK;
}

static void lay_out(avl_model_t *model, avl_arena_t *encode, avl_arena_t *forward) {
    avl_vision_layout(model, encode);
    avl_projector_layout(model, encode);
    avl_decoder_layout(model, forward);
}

static avl_status_t allocate_activations(avl_model_t *model) {
    avl_arena_t encode = {0}, forward = {0};
    lay_out(model, &encode, &forward);
    size_t bytes = encode.used_bytes > forward.used_bytes ? encode.used_bytes : forward.used_bytes;
    AVL_TRY(model->device->ops->allocate(model->device, bytes, "activations", &model->arena));
    encode = forward = (avl_arena_t){.memory = model->arena};
    lay_out(model, &encode, &forward);
    model->memory.activation_bytes = bytes;
    return avl_decoder_prepare(model);
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Host memory beside the activations: for all that ranks exchange of what their devices computed.
 */
static avl_status_t allocate_exchange(avl_model_t *model) {
    const avl_model_options_t *options = &model->options;
    const avl_vision_config_t *vision = &model->config.model.vision;
    int64_t hidden = model->config.model.text.hidden_width;
    int64_t rows = options->tiles_max * avl_vision_feature_rows(model);
    AVL_TRY(avl_alloc((size_t)rows, sizeof(int32_t), "rows of a picture",
                      &model->projector.targets_host));
    model->memory.host_bytes += (size_t)rows * sizeof(int32_t);
    if (model->device->is_host)
        return AVL_OK;
    int64_t patches = (int64_t)vision->patches_per_side * vision->patches_per_side + 1;
    int64_t count = larger(options->rows_max * hidden, rows * avl_vision_feature_width(model));
    count = larger(count, options->tiles_max * patches * larger(vision->hidden_width, hidden));
    /* One more for the vote that goes with the logits. */
    count = larger(count, options->logit_rows_max * (int64_t)model->shards.vocab_rows.count + 1);
    model->memory.host_bytes += (size_t)count * sizeof(float);
    return avl_alloc_aligned((size_t)count, sizeof(float), "exchange between ranks",
                             &model->exchange);
}

static avl_status_t prepare_product(const avl_model_t *model, const avl_product_t *product,
                                    int64_t in_width, int64_t out_width) {
    if (in_width == 0 || out_width == 0)
        return AVL_OK;
    return avl_linear_prepare(model->device,
                              &(avl_linear_args_t){.input_stride = in_width,
                                                   .weight_stride = product->weight.stride,
                                                   .in_width = in_width,
                                                   .out_width = out_width,
                                                   .dtype = model->options.dtype});
}

static avl_status_t prepare_vision(const avl_model_t *model) {
    const avl_vision_config_t *vision = &model->config.model.vision;
    int64_t width = vision->hidden_width, head_width = width / vision->heads;
    int64_t heads = model->shards.vision_heads.count, columns = heads * head_width;
    int64_t mlp = model->shards.vision_mlp_columns.count, inner = model->projector.columns.count;
    avl_product_t patch = {.weight = model->vision.patch};
    AVL_TRY(prepare_product(model, &patch, 3 * (int64_t)vision->patch_side * vision->patch_side,
                            width));
    for (int i = 0; i < model->vision.layer_count; i++) {
        const avl_vision_layer_t *layer = &model->vision.layers[i];
        AVL_TRY(prepare_product(model, &layer->query, width, columns));
        AVL_TRY(prepare_product(model, &layer->key, width, columns));
        AVL_TRY(prepare_product(model, &layer->value, width, columns));
        AVL_TRY(prepare_product(model, &layer->output, columns, width));
        AVL_TRY(prepare_product(model, &layer->fc1, width, mlp));
        AVL_TRY(prepare_product(model, &layer->fc2, mlp, width));
    }
    AVL_TRY(
        prepare_product(model, &model->projector.linear_1, avl_vision_feature_width(model), inner));
    AVL_TRY(prepare_product(model, &model->projector.linear_2, inner,
                            model->config.model.text.hidden_width));
    return avl_attention_prepare(
        model->device, &(avl_attention_demand_t){
                           .head_width = (int)head_width, .query_heads = (int)heads, .group = 1});
}

/* Every product that a step may have: what it needs is there before the first step. The head's rows
 * are few. */
static avl_status_t prepare_kernels(const avl_model_t *model) {
    const avl_text_config_t *text = &model->config.model.text;
    const avl_shards_t *shards = &model->shards;
    int64_t hidden = text->hidden_width, columns = shards->mlp_columns.count;
    int64_t query = shards->query_heads.count * (int64_t)text->head_width;
    int64_t kv = shards->kv_heads.count * (int64_t)text->head_width;
    for (int i = 0; i < text->layer_count; i++) {
        const avl_decoder_layer_t *layer = &model->decoder.layers[i];
        AVL_TRY(prepare_product(model, &layer->query, hidden, query));
        AVL_TRY(prepare_product(model, &layer->key, hidden, kv));
        AVL_TRY(prepare_product(model, &layer->value, hidden, kv));
        AVL_TRY(prepare_product(model, &layer->output, query, hidden));
        AVL_TRY(prepare_product(model, &layer->gate, hidden, columns));
        AVL_TRY(prepare_product(model, &layer->up, hidden, columns));
        AVL_TRY(prepare_product(model, &layer->down, columns, hidden));
    }
    return prepare_vision(model);
}

static avl_status_t create_local(const avl_config_t *config, const avl_weights_t *weights,
                                 avl_device_t *device, avl_group_t *group,
                                 const avl_model_options_t *options, avl_model_t **model_p) {
    AVL_TRY(check_options(config, device, options));
    avl_model_t *model;
    AVL_TRY(avl_alloc(1, sizeof *model, "model", &model));
    model->config = *config;
    model->device = device;
    model->group = group;
    model->options = *options;
    avl_status_t status;
    AVL_TRY_GOTO(status,
                 avl_shards_plan(&config->model, avl_group_rank(group), avl_group_ranks(group),
                                 &model->shards),
                 err_destroy);
    AVL_TRY_GOTO(status, load(model, weights), err_destroy);
    AVL_TRY_GOTO(status, allocate_activations(model), err_destroy);
    AVL_TRY_GOTO(status, allocate_exchange(model), err_destroy);
    AVL_TRY_GOTO(status, prepare_kernels(model), err_destroy);
    *model_p = model;
    return AVL_OK;

err_destroy:
    avl_model_destroy(model);
    return status;
}

avl_status_t avl_model_create(const avl_config_t *config, const avl_weights_t *weights,
                              avl_device_t *device, avl_group_t *group,
                              const avl_model_options_t *options, avl_model_t **model_p) {
    avl_model_t *model = NULL;
    avl_status_t own = create_local(config, weights, device, group, options, &model);
    avl_status_t status = avl_group_agree(group, own);
    if (status != AVL_OK) {
        avl_model_destroy(model);
        return status;
    }
    *model_p = model;
    return AVL_OK;
}

void avl_model_destroy(avl_model_t *model) {
    if (!model)
        return;
    avl_decoder_release(model);
    if (model->arena)
        model->device->ops->release(model->device, model->arena);
    for (size_t index = 0; index < model->owned_count; index++)
        model->device->ops->release(model->device, model->owned[index]);
    free(model->exchange);
    free(model->projector.targets_host);
    free(model->owned);
    free(model->vision.layers);
    free(model->decoder.layers);
    free(model);
}

const avl_shards_t *avl_model_shards(const avl_model_t *model) {
    return &model->shards;
}

avl_model_memory_t avl_model_memory(const avl_model_t *model) {
    return model->memory;
}
