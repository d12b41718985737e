/* tools/gpu_check/step.c: whole steps of a model of LLaVA-7B's shape through the engine: encoding,
 * prompts, and decode steps by the number of sequences, dense and with A-VL.
 *
 *     step DIRECTORY DTYPE [small]
 *
 * DIRECTORY has config.json and preprocessor_config.json; the weights are random numbers made here,
 * one buffer for all matrices, which the loader converts, checks and sends like a checkpoint's.
 * Every line of output is one JSON object. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "checkpoint/weights.h"
#include "tests/cuda/devices.h"
#include "worker/engine.h"

enum { PICTURES = 4, TEXT_ROWS = 96, WARM_UP = 6, STEPS = 30, INTERVAL = 3 };

typedef struct mode {
    const char *name;
    avl_attention_params_t attention;
} mode_t_;

static const mode_t_ modes[] = {
    {"dense", {.visual_store_ratio = 1, .visual_compute_ratio = 1, .visual_update_interval = 3}},
    {".5/.3/3",
     {.visual_store_ratio = .5, .visual_compute_ratio = .3, .visual_update_interval = INTERVAL}},
    {".1/.05/3",
     {.visual_store_ratio = .1, .visual_compute_ratio = .05, .visual_update_interval = INTERVAL}},
    /* The presets quality, which is the service's default, and lean. */
    {"quality",
     {.visual_selection = AVL_VISUAL_COVERAGE,
      .visual_core = AVL_CORE_STEP,
      .visual_store_ratio = .5,
      .visual_compute_ratio = .1,
      .visual_update_interval = 1}},
    {"lean",
     {.visual_selection = AVL_VISUAL_COVERAGE,
      .visual_core = AVL_CORE_STEP,
      .visual_store_ratio = .1,
      .visual_compute_ratio = .05,
      .visual_update_interval = 1}},
};

static int batches[] = {64, 32, 8, 1};
enum { BATCHES = sizeof batches / sizeof *batches, BATCH_MAX = 64 };

typedef struct bench {
    avl_config_t config;
    avl_dtype_t dtype;
    avl_device_t *device;
    avl_group_t *group;
    avl_model_t *model;
    avl_engine_t *engine;
    avl_plan_t plan;
    uint64_t step;
    int32_t prompt_rows, rows_max;
    int32_t *token_ids;
    avl_plan_place_t places[PICTURES];
    int steps, warm_up, batch_most;
} bench_t;

static bench_t bench;

static void must(avl_status_t status, const char *what) {
    if (status == AVL_OK)
        return;
    printf("{\"problem\": \"%s: %s: %s\"}\n", what, avl_status_name(status), avl_status_detail());
    fflush(stdout);
    _Exit(1);
}

/* ---- weights: random numbers of one buffer ---- */

struct avl_weights {
    uint16_t *matrix, *vector;
    size_t bytes;
};
enum { VECTOR_MAX = 1 << 16 };

static avl_weights_t weights;

static void make_weights(void) {
    const avl_text_config_t *text = &bench.config.model.text;
    size_t width = (size_t)text->hidden_width, most = (size_t)text->vocab_rows;
    most = most > (size_t)text->mlp_width ? most : (size_t)text->mlp_width;
    size_t count = most * width;
    size_t least = (size_t)bench.config.model.vision.mlp_width *
                   (size_t)bench.config.model.vision.hidden_width;
    count = count > least ? count : least;
    least = (size_t)bench.config.model.vision.hidden_width * 3 *
            (size_t)bench.config.model.vision.patch_side *
            (size_t)bench.config.model.vision.patch_side;
    count = count > least ? count : least;
    weights.matrix = malloc(count * 2);
    weights.vector = malloc(VECTOR_MAX * 2);
    weights.bytes = count * 2;
    if (weights.matrix == NULL || weights.vector == NULL)
        must(avl_fail(AVL_ERR_MEMORY, "%zu weights", count), "weights");
    float spread = 1;
    while (spread * spread * (float)width > 1)
        spread /= 2;
    uint64_t random = 1;
    for (size_t i = 0; i < count; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        weights.matrix[i] = avl_f32_to_bf16(((float)(random >> 40) * 0x1p-23f - 1) * spread);
    }
    for (size_t i = 0; i < VECTOR_MAX; i++)
        weights.vector[i] = avl_f32_to_bf16(1 + .1f * (float)(i % 7) / 7);
}

avl_status_t avl_weights_view(const avl_weights_t *own, const char *name, int axis_count,
                              const int64_t *shape, avl_tensor_view_t *view_p) {
    size_t count = 1;
    *view_p = (avl_tensor_view_t){.dtype = AVL_DTYPE_BF16, .axis_count = axis_count};
    for (int i = 0; i < axis_count; i++) {
        view_p->shape[i] = shape[i];
        count *= (size_t)shape[i];
    }
    view_p->bytes = count * 2;
    view_p->data = axis_count == 1 ? own->vector : own->matrix;
    if (view_p->bytes > (axis_count == 1 ? VECTOR_MAX * 2 : own->bytes))
        return avl_fail(AVL_ERR_DATA, "tensor %s is larger than expected", name);
    return AVL_OK;
}

int avl_weights_has(const avl_weights_t *own, const char *name) {
    (void)own;
    (void)name;
    return 1;
}

size_t avl_weights_bytes(const avl_weights_t *own) {
    return own->bytes;
}

/* ---- steps ---- */

static double execute(avl_step_result_t *result_p, const char *what) {
    avl_step_result_t result;
    int64_t begin_ns = avl_clock_now_ns();
    must(avl_engine_execute(bench.engine, &bench.plan, &result), what);
    must(result.admission, result.admission_detail);
    int64_t end_ns = avl_clock_now_ns();
    if (result_p != NULL)
        *result_p = result;
    return (double)(end_ns - begin_ns) * 1e-3;
}

static void begin_step(void) {
    avl_plan_begin(&bench.plan, AVL_PLAN_STEP, ++bench.step);
}

static void add_admission(int32_t sequence, const avl_attention_params_t *attention) {
    bench.plan.admissions[bench.plan.admission_count++] = (avl_plan_admission_t){
        .request_id = bench.step,
        .sequence = sequence,
        .prompt_rows = bench.prompt_rows,
        .rows_max = bench.rows_max,
        .place_count = PICTURES,
        .source = -1,
        .attention = *attention,
        .token_ids = bench.token_ids,
        .places = bench.places,
    };
}

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Admits and reads the prompts one by one; the first also has the pictures encoded. Returns the
 * median time of a prompt. */
static double read_prompts(const avl_attention_params_t *attention, int batch,
                           const avl_image_layout_t *layout, uint8_t *pixels, size_t pixel_bytes) {
    double times[BATCH_MAX];
    for (int32_t s = 0; s < batch; s++) {
        begin_step();
        add_admission(s, attention);
        for (int32_t i = 0; s == 0 && i < PICTURES; i++)
            bench.plan.pictures[bench.plan.picture_count++] = (avl_plan_picture_t){
                .sequence = 0,
                .feature_row = bench.places[i].feature_row,
                .layout = *layout,
                .pixels = pixels,
                .pixel_bytes = pixel_bytes,
            };
        avl_step_result_t result;
        if (s == 0) {
            execute(&result, "encoding");
            printf("{\"name\": \"encoding of a picture of %d rows\", \"us\": %.1f}\n",
                   layout->prompt_rows, (double)result.encode_ns[PICTURES - 1] * 1e-3);
            begin_step();
        }
        bench.plan.runs[bench.plan.run_count++] = (avl_plan_run_t){.sequence = s,
                                                                   .row_count = bench.prompt_rows,
                                                                   .token_id = -1,
                                                                   .logits = AVL_PLAN_LOGITS};
        times[s] = execute(NULL, "a prompt");
    }
    qsort(times, (size_t)batch, sizeof *times, by_size);
    return times[batch / 2];
}

typedef struct decoded {
    double mean_us, ordinary_us, update_us;
} decoded_t;

static decoded_t decode(int batch) {
    double ordinary[STEPS], updates[STEPS], sum = 0;
    int ordinary_count = 0, update_count = 0;
    for (int i = 0; i < bench.warm_up + bench.steps; i++) {
        int32_t step = avl_engine_sequence(bench.engine, 0)->decode_steps + 1;
        begin_step();
        for (int32_t s = 0; s < batch; s++)
            bench.plan.runs[bench.plan.run_count++] =
                (avl_plan_run_t){.sequence = s,
                                 .token_id = (int32_t)((bench.step * 31 + (uint64_t)s) % 97),
                                 .logits = AVL_PLAN_BEST};
        double us = execute(NULL, "a decode step");
        if (i < bench.warm_up)
            continue;
        sum += us;
        if (step % INTERVAL == 0)
            updates[update_count++] = us;
        else
            ordinary[ordinary_count++] = us;
    }
    qsort(ordinary, (size_t)ordinary_count, sizeof *ordinary, by_size);
    qsort(updates, (size_t)update_count, sizeof *updates, by_size);
    return (decoded_t){sum / bench.steps, ordinary[ordinary_count / 2], updates[update_count / 2]};
}

static void run_mode(const mode_t_ *mode, const avl_image_layout_t *layout, uint8_t *pixels,
                     size_t pixel_bytes) {
    double prompt_us =
        read_prompts(&mode->attention, bench.batch_most, layout, pixels, pixel_bytes);
    printf("{\"name\": \"prompt of %d rows\", \"mode\": \"%s\", \"us\": %.1f}\n", bench.prompt_rows,
           mode->name, prompt_us);
    for (int i = 0; i < BATCHES; i++) {
        if (batches[i] > bench.batch_most)
            continue;
        decoded_t times = decode(batches[i]);
        printf("{\"name\": \"decode step\", \"mode\": \"%s\", \"batch\": %d, \"us\": %.1f, "
               "\"ordinary_us\": %.1f, \"update_us\": %.1f}\n",
               mode->name, batches[i], times.mean_us, times.ordinary_us, times.update_us);
        fflush(stdout);
    }
    begin_step();
    for (int32_t s = 0; s < bench.batch_most; s++)
        bench.plan.releases[bench.plan.release_count++] = s;
    execute(NULL, "releasing");
}

/* ---- putting it together ---- */

static void make_prompt(const avl_image_layout_t *layout) {
    int32_t picture = layout->prompt_rows;
    bench.prompt_rows = PICTURES * picture + TEXT_ROWS;
    bench.rows_max = bench.prompt_rows + BATCHES * (bench.warm_up + bench.steps) + 1;
    bench.token_ids = calloc((size_t)bench.prompt_rows, sizeof *bench.token_ids);
    for (int32_t i = 0; i < bench.prompt_rows; i++)
        bench.token_ids[i] =
            i < TEXT_ROWS / 2 || i >= bench.prompt_rows - TEXT_ROWS / 2 ? 3 + i % 89 : -1;
    for (int32_t i = 0; i < PICTURES; i++)
        bench.places[i] = (avl_plan_place_t){.feature_row = i * picture, .rows = picture};
}

static void open_engine(void) {
    avl_engine_limits_t limits = {.batch_rows = bench.prompt_rows,
                                  .sequences_max = bench.batch_most,
                                  .context_rows = bench.rows_max};
    avl_model_options_t model = avl_engine_model_options(&bench.config, &limits, bench.dtype);
    int64_t begin_ns = avl_clock_now_ns();
    must(avl_engine_limits_check(&bench.config, &limits), "limits");
    must(avl_model_create(&bench.config, &weights, bench.device, bench.group, &model, &bench.model),
         "loading");
    double seconds = (double)(avl_clock_now_ns() - begin_ns) * 1e-9;
    avl_model_memory_t memory = avl_model_memory(bench.model);
    printf("{\"name\": \"loading of weights\", \"us\": %.0f, \"bytes\": %zu}\n", seconds * 1e6,
           memory.weight_bytes);
    fflush(stdout);
    avl_engine_options_t options = {
        .config = &bench.config,
        .device = bench.device,
        .group = bench.group,
        .model = bench.model,
        .dtype = bench.dtype,
        .limits = limits,
        .memory_bytes = (int64_t)((double)bench.device->info.memory_bytes * .95),
    };
    must(avl_engine_create(&options, &bench.engine), "engine");
    /* Fewer sequences where the card does not hold them all. */
    int64_t pages = avl_engine_pages(bench.engine).total;
    int64_t each = bench.config.model.text.layer_count *
                   (int64_t)((bench.rows_max + AVL_PAGE_ROWS - 1) / AVL_PAGE_ROWS + 1);
    while (bench.batch_most > 1 && bench.batch_most * each > pages)
        bench.batch_most = bench.batch_most > 32 ? 32 : bench.batch_most > 8 ? 8 : 1;
    must(avl_plan_create(avl_engine_plan_limits(bench.engine), &bench.plan), "plan");
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s DIRECTORY bf16|f16|f32 [small]\n", argv[0]);
        return 2;
    }
    bool is_small = argc > 3 && strcmp(argv[3], "small") == 0;
    bench.steps = is_small ? 6 : STEPS;
    bench.warm_up = is_small ? 1 : WARM_UP;
    bench.batch_most = is_small ? 8 : BATCH_MAX;
    bench.dtype = strcmp(argv[2], "f32") == 0   ? AVL_DTYPE_F32
                  : strcmp(argv[2], "f16") == 0 ? AVL_DTYPE_F16
                                                : AVL_DTYPE_BF16;
    must(avl_config_load(argv[1], &bench.config), "config");
    must(avl_group_open_single(&bench.group), "group");
    must(avl_cuda_device_open(0, &bench.device), "device");
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    bench.device->info.threads = online > 0 ? (int)online : 1;
    make_weights();
    avl_image_layout_t layout;
    int side = bench.config.model.vision.image_side;
    must(avl_image_layout(&bench.config, side, side, &layout), "layout");
    size_t pixel_bytes = (size_t)layout.tile_count * 3 * (size_t)side * (size_t)side;
    uint8_t *pixels = malloc(pixel_bytes);
    for (size_t i = 0; pixels != NULL && i < pixel_bytes; i++)
        pixels[i] = (uint8_t)(i * 2654435761u >> 13);
    make_prompt(&layout);
    open_engine();
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        run_mode(&modes[i], &layout, pixels, pixel_bytes);
    fflush(stdout);
    _Exit(0); /* the GPU gives memory back faster by itself */
}
