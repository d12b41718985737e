#include "tests/model/dense_run.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

avl_status_t avl_dense_open(const char *model_path, avl_dense_source_t *source_p) {
    AVL_TRY(avl_config_load(model_path, &source_p->config));
    return avl_weights_open(model_path, &source_p->weights);
}

void avl_dense_close(avl_dense_source_t *source) {
    avl_weights_close(source->weights);
}

void avl_dense_release(avl_dense_result_t *result) {
    free(result->features);
    free(result->logits);
    free(result->tokens);
}

double avl_dense_distance(const float *a, const float *b, int64_t count) {
    double worst = 0.0;
    for (int64_t index = 0; index < count; index++) {
        double distance = fabs((double)a[index] - (double)b[index]);
        if (!(distance <= worst)) /* a NaN is worst of all */
            worst = distance;
    }
    return worst;
}

/* Keys and values of all layers: slot = position. */
typedef struct dense_cache {
    avl_device_t *device;
    const avl_text_config_t *text;
    const avl_shards_t *shards;
    avl_dtype_t dtype;
    int capacity;
    int filled;          /* rows before this step */
    int rows;            /* of this step */
    char *keys, *values; /* [layer, capacity, Hk * D] */
    int32_t *slots;      /* [capacity] */
} dense_cache_t;

static avl_status_t attend(void *context, const avl_attention_call_t *call) {
    dense_cache_t *cache = context;
    int64_t width = (int64_t)cache->shards->kv_heads.count * cache->text->head_width;
    int64_t query_width = (int64_t)cache->shards->query_heads.count * cache->text->head_width;
    int64_t layer_bytes = cache->capacity * width * (int64_t)avl_dtype_bytes(cache->dtype);
    char *keys = cache->keys + call->layer * layer_bytes;
    char *values = cache->values + call->layer * layer_bytes;
    for (int row = 0; row < cache->rows; row++)
        cache->slots[row] = cache->filled + row;
    AVL_TRY(avl_kv_write(cache->device, &(avl_kv_write_args_t){.key = call->key,
                                                               .value = call->value,
                                                               .source_stride = call->kv_stride,
                                                               .slots = cache->slots,
                                                               .rows = cache->rows,
                                                               .keys = keys,
                                                               .values = values,
                                                               .row_width = width,
                                                               .dtype = cache->dtype}));
    avl_attention_sequence_t sequence = {.query_count = cache->rows,
                                         .row_count = cache->filled + cache->rows};
    return avl_attention(cache->device, &(avl_attention_args_t){
                                            .query = call->query,
                                            .query_stride = call->query_stride,
                                            .kv = {.keys = keys,
                                                   .values = values,
                                                   .row_stride = width,
                                                   .kv_heads = cache->shards->kv_heads.count,
                                                   .head_width = cache->text->head_width,
                                                   .dtype = cache->dtype},
                                            .heads = cache->shards->head_map,
                                            .sequences = &sequence,
                                            .sequence_count = 1,
                                            .output = call->output,
                                            .output_stride = query_width,
                                            .scale = 1.0f / sqrtf((float)cache->text->head_width),
                                            .window = cache->text->sliding_window,
                                            .causal = 1,
                                        });
}

static avl_status_t open_cache(dense_cache_t *cache) {
    size_t width = (size_t)cache->shards->kv_heads.count * (size_t)cache->text->head_width;
    size_t count = (size_t)cache->text->layer_count * (size_t)cache->capacity * width;
    size_t bytes = avl_dtype_bytes(cache->dtype);
    AVL_TRY(avl_alloc_aligned(count, bytes, "keys", &cache->keys));
    AVL_TRY(avl_alloc_aligned(count, bytes, "values", &cache->values));
    return avl_alloc((size_t)cache->capacity, sizeof *cache->slots, "slots", &cache->slots);
}

static void close_cache(dense_cache_t *cache) {
    free(cache->keys);
    free(cache->values);
    free(cache->slots);
}

/* The bytes that normalisation made `pixels` of. */
static avl_status_t take_pixels(const avl_config_t *config, const avl_case_t *data,
                                uint8_t **bytes_p) {
    const avl_preprocessor_config_t *processor = &config->preprocessor;
    int64_t side = config->model.vision.image_side;
    AVL_TRY(avl_alloc((size_t)data->pixel_count, 1, "pixels", bytes_p));
    for (int64_t index = 0; index < data->pixel_count; index++) {
        int channel = (int)(index / (side * side) % 3);
        double value = data->pixels[index];
        if (processor->normalize)
            value = value * (double)processor->std[channel] + (double)processor->mean[channel];
        double byte = round(value / (processor->rescale ? processor->rescale_factor : 1.0));
        if (!(byte >= 0.0 && byte <= 255.0))
            return avl_fail(AVL_ERR_DATA, "%s: pixel %lld is no byte", data->path,
                            (long long)index);
        (*bytes_p)[index] = (uint8_t)byte;
    }
    return AVL_OK;
}

static avl_status_t encode(avl_model_t *model, const avl_config_t *config, const avl_case_t *data,
                           const uint8_t *pixels, float *features) {
    int64_t side = config->model.vision.image_side;
    int64_t hidden = config->model.text.hidden_width;
    for (int image = 0; image < data->image_count; image++) {
        avl_image_layout_t layout;
        AVL_TRY(avl_image_layout(config, data->image_widths[image], data->image_heights[image],
                                 &layout));
        if (layout.prompt_rows != data->image_rows[image])
            return avl_fail(AVL_ERR_DATA, "%s: picture %d has %d rows, not %d", data->path, image,
                            layout.prompt_rows, data->image_rows[image]);
        AVL_TRY(avl_model_encode(model, pixels, &layout, features));
        pixels += layout.tile_count * 3 * side * side;
        features += layout.prompt_rows * hidden;
    }
    return AVL_OK;
}

/* The expanded prompt: ids with -1 for picture rows. */
typedef struct dense_prompt {
    int rows;
    int32_t *ids, *positions, *lengths, *embed_rows;
    const float **embed_features;
} dense_prompt_t;

static void release_prompt(dense_prompt_t *prompt) {
    free(prompt->ids);
    free(prompt->positions);
    free(prompt->lengths);
    free(prompt->embed_rows);
    free(prompt->embed_features);
}

static avl_status_t expand(const avl_config_t *config, const avl_case_t *data,
                           const float *features, dense_prompt_t *prompt) {
    size_t rows = (size_t)data->prompt_count;
    for (int image = 0; image < data->image_count; image++)
        rows += (size_t)data->image_rows[image] - 1;
    AVL_TRY(avl_alloc(rows, sizeof(int32_t), "ids", &prompt->ids));
    AVL_TRY(avl_alloc(rows, sizeof(int32_t), "positions", &prompt->positions));
    AVL_TRY(avl_alloc(rows, sizeof(int32_t), "lengths", &prompt->lengths));
    AVL_TRY(avl_alloc(rows, sizeof(int32_t), "embed rows", &prompt->embed_rows));
    AVL_TRY(avl_alloc(rows, sizeof(float *), "embed features", &prompt->embed_features));
    int image = 0;
    int64_t feature = 0, hidden = config->model.text.hidden_width;
    for (int index = 0; index < data->prompt_count; index++) {
        int is_image = data->prompt_ids[index] == config->model.image_token_id;
        if (is_image && image == data->image_count)
            return avl_fail(AVL_ERR_DATA, "%s: more placeholders than pictures", data->path);
        int count = is_image ? data->image_rows[image++] : 1;
        for (int row = 0; row < count; row++, prompt->rows++) {
            prompt->ids[prompt->rows] = is_image ? -1 : data->prompt_ids[index];
            prompt->embed_features[prompt->rows] = is_image ? features + feature++ * hidden : NULL;
        }
    }
    for (int row = 0; row < prompt->rows; row++) {
        prompt->positions[row] = row;
        prompt->lengths[row] = prompt->rows;
    }
    return AVL_OK;
}

static avl_status_t prefill(avl_model_t *model, dense_cache_t *cache, dense_prompt_t *prompt,
                            int chunk_rows, float *logits) {
    avl_attention_hook_t hook = {.context = cache, .attend = attend};
    for (int first = 0; first < prompt->rows; first += chunk_rows) {
        int rows = prompt->rows - first < chunk_rows ? prompt->rows - first : chunk_rows;
        int32_t last = rows - 1;
        avl_forward_batch_t batch = {.rows = rows,
                                     .token_ids = prompt->ids + first,
                                     .positions = prompt->positions + first,
                                     .sequence_rows = prompt->lengths + first,
                                     .embed_rows = prompt->embed_rows,
                                     .embed_features = prompt->embed_features,
                                     .logit_rows = &last,
                                     .logit_count = first + rows == prompt->rows};
        const float *features[4096];
        for (int row = 0; row < rows; row++)
            if (prompt->ids[first + row] == -1) {
                features[batch.embed_count] = prompt->embed_features[first + row];
                prompt->embed_rows[batch.embed_count++] = row;
            }
        batch.embed_features = features;
        cache->rows = rows;
        AVL_TRY(avl_model_forward(model, &batch, &hook, logits));
        cache->filled += rows;
    }
    return AVL_OK;
}

static int32_t best_of(const float *logits, int64_t count) {
    int64_t best = 0;
    for (int64_t index = 1; index < count; index++)
        if (logits[index] > logits[best])
            best = index;
    return (int32_t)best;
}

static avl_status_t decode(avl_model_t *model, dense_cache_t *cache, avl_group_t *group,
                           const int32_t *forced, avl_dense_result_t *result) {
    avl_attention_hook_t hook = {.context = cache, .attend = attend};
    int64_t vocab = cache->text->vocab_rows;
    for (int step = 0;; step++) {
        float *logits = result->logits + step * vocab;
        result->tokens[step] = best_of(logits, vocab);
        AVL_TRY(avl_group_broadcast(group, &result->tokens[step], sizeof result->tokens[step]));
        if (step == result->token_count - 1)
            return AVL_OK;
        int32_t token = forced ? forced[step] : result->tokens[step];
        int32_t position = cache->filled, length = cache->filled + 1, row = 0;
        cache->rows = 1;
        AVL_TRY(avl_model_forward(model,
                                  &(avl_forward_batch_t){.rows = 1,
                                                         .token_ids = &token,
                                                         .positions = &position,
                                                         .sequence_rows = &length,
                                                         .logit_rows = &row,
                                                         .logit_count = 1},
                                  &hook, logits + vocab));
        cache->filled++;
    }
}

static avl_status_t run_prompt(avl_model_t *model, dense_cache_t *cache, avl_group_t *group,
                               const avl_config_t *config, const avl_case_t *data, int chunk_rows,
                               const int32_t *forced, avl_dense_result_t *result) {
    dense_prompt_t prompt = {0};
    avl_status_t status = expand(config, data, result->features, &prompt);
    if (status == AVL_OK)
        status =
            prefill(model, cache, &prompt, chunk_rows ? chunk_rows : prompt.rows, result->logits);
    release_prompt(&prompt);
    return status == AVL_OK ? decode(model, cache, group, forced, result) : status;
}

static int prompt_rows(const avl_case_t *data) {
    int rows = data->prompt_count;
    for (int image = 0; image < data->image_count; image++)
        rows += data->image_rows[image] - 1;
    return rows;
}

avl_status_t avl_dense_run(avl_model_t *model, avl_device_t *device, avl_group_t *group,
                           const avl_dense_source_t *source, avl_dtype_t dtype,
                           const avl_case_t *data, int chunk_rows, const int32_t *forced,
                           int token_count, avl_dense_result_t *result_p) {
    const avl_config_t *config = &source->config;
    avl_dense_result_t result = {.token_count = token_count};
    dense_cache_t cache = {.device = device,
                           .text = &config->model.text,
                           .shards = avl_model_shards(model),
                           .dtype = dtype,
                           .capacity = prompt_rows(data) + token_count};
    uint8_t *pixels = NULL;
    avl_status_t status;
    AVL_TRY_GOTO(status, open_cache(&cache), out);
    AVL_TRY_GOTO(
        status,
        avl_alloc_aligned((size_t)data->feature_count, sizeof(float), "features", &result.features),
        out);
    AVL_TRY_GOTO(status,
                 avl_alloc((size_t)token_count * (size_t)config->model.text.vocab_rows,
                           sizeof(float), "logits", &result.logits),
                 out);
    AVL_TRY_GOTO(status, avl_alloc((size_t)token_count, sizeof(int32_t), "tokens", &result.tokens),
                 out);
    AVL_TRY_GOTO(status, take_pixels(config, data, &pixels), out);
    AVL_TRY_GOTO(status, encode(model, config, data, pixels, result.features), out);
    AVL_TRY_GOTO(status,
                 run_prompt(model, &cache, group, config, data, chunk_rows, forced, &result), out);
    *result_p = result;
out:
    free(pixels);
    close_cache(&cache);
    if (status != AVL_OK)
        avl_dense_release(&result);
    return status;
}

avl_status_t avl_dense_run_group(const avl_dense_source_t *source, avl_group_t *group, int threads,
                                 avl_dtype_t dtype, const avl_case_t *data, int chunk_rows,
                                 int tiles_max, const int32_t *forced, int token_count,
                                 avl_dense_result_t *result_p) {
    avl_device_t *device;
    avl_model_t *model = NULL;
    AVL_TRY(avl_device_open_cpu(threads, NULL, &device));
    avl_model_options_t options = {.dtype = dtype,
                                   .rows_max = chunk_rows ? chunk_rows : prompt_rows(data),
                                   .tiles_max = tiles_max,
                                   .logit_rows_max = 1};
    avl_status_t status =
        avl_model_create(&source->config, source->weights, device, group, &options, &model);
    if (status == AVL_OK)
        status = avl_dense_run(model, device, group, source, dtype, data, chunk_rows, forced,
                               token_count, result_p);
    avl_model_destroy(model);
    avl_device_close(device);
    return status;
}

avl_status_t avl_dense_run_single(const avl_dense_source_t *source, avl_dtype_t dtype,
                                  const avl_case_t *data, int chunk_rows, int tiles_max,
                                  const int32_t *forced, int token_count,
                                  avl_dense_result_t *result_p) {
    avl_group_t *group;
    AVL_TRY(avl_group_open_single(&group));
    avl_status_t status = avl_dense_run_group(source, group, 0, dtype, data, chunk_rows, tiles_max,
                                              forced, token_count, result_p);
    avl_group_close(group);
    return status;
}

typedef struct rank_run {
    const avl_dense_source_t *source;
    avl_group_t *group;
    avl_dtype_t dtype;
    const avl_case_t *data;
    int token_count;
    avl_status_t status;
    avl_dense_result_t result;
    char detail[AVL_STATUS_DETAIL_BYTES];
} rank_run_t;

static void *run_rank(void *context) {
    rank_run_t *run = context;
    run->status = avl_dense_run_group(run->source, run->group, 1, run->dtype, run->data, 0, 2, NULL,
                                      run->token_count, &run->result);
    if (run->status != AVL_OK)
        snprintf(run->detail, sizeof run->detail, "%s", avl_status_detail());
    avl_group_close(run->group);
    return NULL;
}

static int64_t count_differing(const avl_dense_result_t *a, const avl_dense_result_t *b,
                               int64_t features) {
    int64_t differing = 0;
    for (int64_t index = 0; index < features; index++)
        differing += memcmp(&a->features[index], &b->features[index], sizeof(float)) != 0;
    for (int step = 0; step < a->token_count; step++)
        differing += a->tokens[step] != b->tokens[step];
    return differing;
}

void avl_dense_run_ranks(const avl_dense_source_t *source, avl_dtype_t dtype,
                         const avl_case_t *data, int ranks, int token_count, avl_status_t *statuses,
                         int64_t *differing, avl_dense_result_t *result_p) {
    rank_run_t runs[16] = {0};
    avl_group_t *groups[16];
    pthread_t threads[16];
    AVL_ASSERT(ranks >= 1 && ranks <= 16);
    avl_status_t status = avl_group_open_loopback(ranks, groups);
    AVL_ASSERT(status == AVL_OK);
    for (int rank = 0; rank < ranks; rank++) {
        runs[rank] = (rank_run_t){.source = source,
                                  .group = groups[rank],
                                  .dtype = dtype,
                                  .data = data,
                                  .token_count = token_count};
        int failed = pthread_create(&threads[rank], NULL, run_rank, &runs[rank]);
        AVL_ASSERT(failed == 0);
    }
    for (int rank = 0; rank < ranks; rank++) {
        pthread_join(threads[rank], NULL);
        statuses[rank] = runs[rank].status;
        if (runs[rank].status != AVL_OK)
            fprintf(stderr, "rank %d: %s: %s\n", rank, avl_status_name(runs[rank].status),
                    runs[rank].detail);
        differing[rank] = -1;
        if (runs[0].status == AVL_OK && runs[rank].status == AVL_OK)
            differing[rank] =
                count_differing(&runs[0].result, &runs[rank].result, data->feature_count);
    }
    for (int rank = 1; rank < ranks; rank++)
        avl_dense_release(&runs[rank].result);
    *result_p = runs[0].result;
}
