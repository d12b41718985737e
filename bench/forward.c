/* bench/forward.c: speed of the bare model: loading, pictures, prompts, decode steps. No cache
 * policy, no scheduler.
 *
 *   bench_forward --model models/avl-tiny
 *   bench_forward --hidden 1024 --layers 8 --rows 1024 --sequences 4      a synthetic model in a
 * temporary directory */
#include <argp.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/synthetic_model.h"
#include "bench/wait_policy.h"
#include "kernels/linear.h"
#include "model/model.h"

typedef struct settings {
    const char *model;
    avl_synthetic_model_t synthetic;
    int rows, steps, sequences, threads;
    const char *isa;
    avl_dtype_t dtype;
} settings_t;

static const struct argp_option options[] = {
    {"model", 'm', "DIR", 0, "Model directory (default: a synthetic model)", 0},
    {"hidden", 'w', "N", 0, "Synthetic: width of the decoder (1024)", 0},
    {"layers", 'l', "N", 0, "Synthetic: layers of the decoder (8)", 0},
    {"vocab", 'v', "N", 0, "Synthetic: vocabulary (32064)", 0},
    {"rows", 'r', "N", 0, "Rows of the prompt (512)", 0},
    {"steps", 's', "N", 0, "Decode steps (32)", 0},
    {"sequences", 'b', "N", 0, "Sequences that decode together (1)", 0},
    {"threads", 't', "N", 0, "Threads (0: all)", 0},
    {"isa", 'i', "NAME", 0, "portable, avx2, avx512, avx512bf16", 0},
    {"dtype", 'd', "NAME", 0, "f32 or bf16 (bf16)", 0},
    {0},
};

static error_t take_option(int key, char *argument, struct argp_state *state) {
    settings_t *settings = state->input;
    switch (key) {
    case 'm':
        settings->model = argument;
        break;
    case 'w':
        settings->synthetic.hidden_width = atoi(argument);
        break;
    case 'l':
        settings->synthetic.layer_count = atoi(argument);
        break;
    case 'v':
        settings->synthetic.vocab_rows = atoi(argument);
        break;
    case 'r':
        settings->rows = atoi(argument);
        break;
    case 's':
        settings->steps = atoi(argument);
        break;
    case 'b':
        settings->sequences = atoi(argument);
        break;
    case 't':
        settings->threads = atoi(argument);
        break;
    case 'i':
        settings->isa = argument;
        break;
    case 'd':
        settings->dtype = strcmp(argument, "f32") == 0 ? AVL_DTYPE_F32 : AVL_DTYPE_BF16;
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static void check(avl_status_t status) {
    if (status == AVL_OK)
        return;
    fprintf(stderr, "%s: %s\n", avl_status_name(status), avl_status_detail());
    exit(1);
}

static int remove_entry(const char *path, const struct stat *found, int kind, struct FTW *place) {
    (void)found;
    (void)kind;
    (void)place;
    return remove(path);
}

/* Sequences one after the other, each with room for `capacity` rows in every layer. */
typedef struct bench_cache {
    avl_device_t *device;
    const avl_text_config_t *text;
    avl_shards_t shards;
    avl_dtype_t dtype;
    int sequences, capacity, filled, new_rows;
    char *keys, *values;
    int32_t *slots; /* of the step's rows */
    int32_t *all;   /* 0, 1, 2, ...: every slot */
    avl_attention_sequence_t *parts;
    avl_decode_sequence_t *singles;
    int64_t attention_ns;
} bench_cache_t;

static avl_status_t attend_prompt(bench_cache_t *cache, const avl_attention_call_t *call,
                                  const avl_kv_view_t *view, int64_t query_width, float scale) {
    return avl_attention(cache->device, &(avl_attention_args_t){.query = call->query,
                                                                .query_stride = call->query_stride,
                                                                .kv = *view,
                                                                .heads = cache->shards.head_map,
                                                                .sequences = cache->parts,
                                                                .sequence_count = cache->sequences,
                                                                .output = call->output,
                                                                .output_stride = query_width,
                                                                .scale = scale,
                                                                .causal = 1});
}

static avl_status_t attend_single(bench_cache_t *cache, const avl_attention_call_t *call,
                                  const avl_kv_view_t *view, int64_t query_width, float scale) {
    return avl_decode_attention(cache->device,
                                &(avl_decode_attention_args_t){.query = call->query,
                                                               .query_stride = call->query_stride,
                                                               .kv = *view,
                                                               .heads = cache->shards.head_map,
                                                               .sequences = cache->singles,
                                                               .sequence_count = cache->sequences,
                                                               .output = call->output,
                                                               .output_stride = query_width,
                                                               .scale = scale});
}

static avl_status_t attend(void *context, const avl_attention_call_t *call) {
    bench_cache_t *cache = context;
    int64_t begin_ns = avl_clock_now_ns();
    int64_t width = (int64_t)cache->shards.kv_heads.count * cache->text->head_width;
    int64_t query_width = (int64_t)cache->shards.query_heads.count * cache->text->head_width;
    int64_t layer_bytes = (int64_t)cache->sequences * cache->capacity * width *
                          (int64_t)avl_dtype_bytes(cache->dtype);
    float scale = 1.0f / sqrtf((float)cache->text->head_width);
    avl_kv_write_args_t write = {.key = call->key,
                                 .value = call->value,
                                 .source_stride = call->kv_stride,
                                 .slots = cache->slots,
                                 .rows = (int64_t)cache->sequences * cache->new_rows,
                                 .keys = cache->keys + call->layer * layer_bytes,
                                 .values = cache->values + call->layer * layer_bytes,
                                 .row_width = width,
                                 .dtype = cache->dtype};
    avl_kv_view_t view = {.keys = write.keys,
                          .values = write.values,
                          .row_stride = width,
                          .kv_heads = cache->shards.kv_heads.count,
                          .head_width = cache->text->head_width,
                          .dtype = cache->dtype};
    AVL_TRY(avl_kv_write(cache->device, &write));
    AVL_TRY(cache->new_rows > 1 ? attend_prompt(cache, call, &view, query_width, scale)
                                : attend_single(cache, call, &view, query_width, scale));
    cache->attention_ns += avl_clock_now_ns() - begin_ns;
    return AVL_OK;
}

/* One step of `rows` new rows for each sequence. */
static void step(avl_model_t *model, bench_cache_t *cache, int rows, float *logits) {
    int total = rows * cache->sequences;
    int32_t *ids = calloc((size_t)total * 3, sizeof *ids);
    if (!ids)
        exit(1);
    int32_t *positions = ids + total, *logit_rows = positions + total;
    for (int row = 0; row < total; row++) {
        int sequence = row / rows;
        ids[row] = 3 + row % (cache->text->vocab_rows - 4);
        positions[row] = cache->filled + row % rows;
        cache->slots[row] = sequence * cache->capacity + positions[row];
    }
    for (int sequence = 0; sequence < cache->sequences; sequence++) {
        logit_rows[sequence] = (sequence + 1) * rows - 1;
        cache->parts[sequence] =
            (avl_attention_sequence_t){.first_query = (int64_t)sequence * rows,
                                       .query_count = rows,
                                       .row_count = cache->filled + rows,
                                       .first_row = (int64_t)sequence * cache->capacity};
        cache->singles[sequence] = (avl_decode_sequence_t){
            .query_row = sequence,
            .spans[AVL_SPAN_TEXT] = {.rows = cache->all + (int64_t)sequence * cache->capacity,
                                     .row_count = cache->filled + rows}};
    }
    cache->new_rows = rows;
    avl_attention_hook_t hook = {.context = cache, .attend = attend};
    check(avl_model_forward(
        model,
        &(avl_forward_batch_t){.rows = total,
                               .many_rows = rows >= AVL_LINEAR_MANY_ROWS ? total : 0,
                               .token_ids = ids,
                               .positions = positions,
                               .logit_rows = logit_rows,
                               .logit_count = cache->sequences},
        &hook, logits));
    cache->filled += rows;
    free(ids);
}

static void bench_pictures(avl_model_t *model, const avl_config_t *config) {
    int side = config->model.vision.image_side;
    avl_image_layout_t layout;
    uint8_t *pixels;
    float *features;
    check(avl_image_layout(config, side, side, &layout));
    check(avl_alloc((size_t)layout.tile_count * 3 * (size_t)side * (size_t)side, 1, "pixels",
                    &pixels));
    check(avl_alloc_aligned((size_t)layout.prompt_rows * (size_t)config->model.text.hidden_width,
                            sizeof(float), "features", &features));
    check(avl_model_encode(model, pixels, &layout, features));
    int64_t begin_ns = avl_clock_now_ns();
    check(avl_model_encode(model, pixels, &layout, features));
    int64_t spent_ns = avl_clock_now_ns() - begin_ns;
    printf("picture   %9.2f ms   %d tiles, %d prompt rows\n", (double)spent_ns * 1e-6,
           layout.tile_count, layout.prompt_rows);
    free(pixels);
    free(features);
}

static void bench_text(avl_model_t *model, bench_cache_t *cache, const settings_t *settings,
                       float *logits) {
    step(model, cache, settings->rows, logits); /* touches the weights */
    cache->filled = 0;
    cache->attention_ns = 0;
    int64_t begin_ns = avl_clock_now_ns();
    step(model, cache, settings->rows, logits);
    int64_t spent_ns = avl_clock_now_ns() - begin_ns;
    int total = settings->rows * settings->sequences;
    printf("prefill   %9.2f ms   %.0f rows/s, attention %.0f %%\n", (double)spent_ns * 1e-6,
           total * 1e9 / (double)spent_ns, 100.0 * (double)cache->attention_ns / (double)spent_ns);
    cache->attention_ns = 0;
    begin_ns = avl_clock_now_ns();
    for (int index = 0; index < settings->steps; index++)
        step(model, cache, 1, logits);
    spent_ns = avl_clock_now_ns() - begin_ns;
    avl_model_memory_t memory = avl_model_memory(model);
    double step_ns = (double)spent_ns / settings->steps;
    printf("decode    %9.3f ms   %.1f tokens/s over %d sequences, attention %.0f %%, at most %.1f "
           "GB/s of weights\n",
           step_ns * 1e-6, settings->sequences * 1e9 / step_ns, settings->sequences,
           100.0 * (double)cache->attention_ns / (double)spent_ns,
           (double)(memory.weight_bytes + memory.mapped_bytes) / step_ns);
}

static void run(const settings_t *settings, const char *directory) {
    avl_config_t config;
    avl_weights_t *weights;
    avl_device_t *device;
    avl_group_t *group;
    avl_model_t *model;
    check(avl_config_load(directory, &config));
    check(avl_weights_open(directory, &weights));
    check(avl_device_open_cpu(settings->threads, settings->isa, &device));
    check(avl_group_open_single(&group));
    int total = settings->rows * settings->sequences;
    avl_model_options_t limits = {.dtype = settings->dtype,
                                  .rows_max = total,
                                  .tiles_max = 1,
                                  .logit_rows_max = settings->sequences};
    int64_t begin_ns = avl_clock_now_ns();
    check(avl_model_create(&config, weights, device, group, &limits, &model));
    avl_model_memory_t memory = avl_model_memory(model);
    printf("device    %s, %d threads, %s\n", device->info.name, device->info.threads,
           avl_dtype_name(settings->dtype));
    printf("load      %9.2f ms   %.1f MiB mapped, %.1f MiB owned, %.1f MiB activations\n",
           (double)(avl_clock_now_ns() - begin_ns) * 1e-6, (double)memory.mapped_bytes * 0x1p-20,
           (double)memory.weight_bytes * 0x1p-20, (double)memory.activation_bytes * 0x1p-20);
    bench_pictures(model, &config);
    bench_cache_t cache = {.device = device,
                           .text = &config.model.text,
                           .shards = *avl_model_shards(model),
                           .dtype = settings->dtype,
                           .sequences = settings->sequences,
                           .capacity = settings->rows + settings->steps};
    size_t slots = (size_t)cache.sequences * (size_t)cache.capacity;
    size_t values = slots * (size_t)config.model.text.layer_count *
                    (size_t)cache.shards.kv_heads.count * (size_t)config.model.text.head_width;
    float *logits;
    check(avl_alloc_aligned(values, avl_dtype_bytes(cache.dtype), "keys", &cache.keys));
    check(avl_alloc_aligned(values, avl_dtype_bytes(cache.dtype), "values", &cache.values));
    check(avl_alloc(slots, sizeof(int32_t), "slots", &cache.slots));
    check(avl_alloc(slots, sizeof(int32_t), "slots", &cache.all));
    for (size_t slot = 0; slot < slots; slot++)
        cache.all[slot] = (int32_t)slot;
    check(avl_alloc((size_t)cache.sequences, sizeof *cache.parts, "sequences", &cache.parts));
    check(avl_alloc((size_t)cache.sequences, sizeof *cache.singles, "sequences", &cache.singles));
    check(avl_alloc((size_t)cache.sequences * (size_t)config.model.text.vocab_rows, sizeof(float),
                    "logits", &logits));
    bench_text(model, &cache, settings, logits);
    free(logits);
    free(cache.parts);
    free(cache.singles);
    free(cache.all);
    free(cache.slots);
    free(cache.values);
    free(cache.keys);
    avl_model_destroy(model);
    avl_group_close(group);
    avl_device_close(device);
    avl_weights_close(weights);
}

int main(int count, char **arguments) {
    avl_bench_wait_passively(arguments);
    settings_t settings = {.synthetic = {.hidden_width = 1024,
                                         .layer_count = 8,
                                         .kv_heads = 0,
                                         .vocab_rows = 32064,
                                         .vision_width = 512,
                                         .vision_layers = 4},
                           .rows = 512,
                           .steps = 32,
                           .sequences = 1,
                           .dtype = AVL_DTYPE_BF16};
    const struct argp parser = {.options = options, .parser = take_option};
    argp_parse(&parser, count, arguments, 0, NULL, &settings);
    avl_synthetic_model_t *synthetic = &settings.synthetic;
    if (settings.rows < 1 || settings.steps < 1 || settings.sequences < 1 ||
        synthetic->hidden_width < 128 || synthetic->hidden_width % 128 ||
        synthetic->layer_count < 1 || synthetic->vocab_rows < 100) {
        fprintf(stderr,
                "rows, steps, sequences and layers are positive, the width is a multiple of 128\n");
        return 1;
    }
    if (settings.model) {
        run(&settings, settings.model);
        return 0;
    }
    char directory[] = "/tmp/avl-bench-XXXXXX";
    if (!mkdtemp(directory)) {
        perror(directory);
        return 1;
    }
    synthetic->kv_heads = synthetic->hidden_width / 128; /* GQA, two query heads each */
    avl_synthetic_model_write(directory, synthetic);
    run(&settings, directory);
    nftw(directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}
