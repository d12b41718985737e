/* bench/equal_memory.c: dense against adaptive attention with the same pages: how many requests run
 * at once, and tokens a second.
 *
 *     bench_equal_memory [-H HIDDEN] [-L LAYERS] [-k KV_HEADS] [-i PICTURES] [-n DENSE] [-s TOKENS]
 *                        [-t THREADS] [-c COUNTS] [-a SETTINGS] [-r ROUNDS]
 *
 * A model of random weights is written and removed; the pool has the pages of DENSE dense requests.
 * Every request has PICTURES grey pictures of 576 rows and 48 text tokens, all different, and
 * TOKENS new ones, greedily. For every count of the list, all settings run in turn, so that their
 * ratios are of the same minute; the best of ROUNDS is printed:
 *
 *   at once      most requests in one step
 *   decode       tokens a second of steps without prompt rows in which most of these take part
 *   all          tokens a second from the first arrival to the last token, prompts included
 *
 * Decode rates are what batching and skipped rows change; prompts cost the same in every setting.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/synthetic_model.h"
#include "bench/wait_policy.h"
#include "worker/engine.h"
#include "worker/scheduler.h"

enum { SEQUENCES_MAX = 64, TEXT_ROWS = 48, COUNTS_MAX = 16, SETTINGS_MAX = 8 };

/* The presets. */
#define COVERAGE(store, compute)                                                                   \
    {                                                                                              \
        .visual_store_ratio = (store), .visual_compute_ratio = (compute),                          \
        .visual_update_interval = 3, .visual_core = AVL_CORE_STEP,                                 \
        .visual_selection = AVL_VISUAL_COVERAGE,                                                   \
    }

static const struct setting {
    const char *name;
    avl_attention_params_t attention;
} settings[] = {
    {"dense", AVL_ATTENTION(1, 1, 1)},
    {".5/.3/3", AVL_ATTENTION(.5, .3, 3)},
    {".3/.15/3", AVL_ATTENTION(.3, .15, 3)},
    {".1/.05/3", AVL_ATTENTION(.1, .05, 3)},
    {"quality", COVERAGE(.5, .1)},
    {"balanced", COVERAGE(.3, .1)},
    {"lean", COVERAGE(.1, .05)},
};
enum { SETTING_COUNT = sizeof settings / sizeof *settings };

typedef struct result {
    int32_t at_once;
    double decode, all; /* tokens a second */
    double prompt_share;
} result_t;

typedef struct bench {
    avl_synthetic_model_t model_shape;
    char directory[64];
    int threads, tokens, pictures, dense_requests, rounds;
    unsigned chosen; /* bits of the settings */
    int counts[COUNTS_MAX], count_count;
    avl_config_t config;
    avl_device_t *device;
    avl_group_t *group;
    avl_weights_t *weights;
    avl_model_t *model;
    avl_engine_t *engine;
    avl_scheduler_t *scheduler;
    avl_image_layout_t layout;
    uint64_t next_id;
    int64_t tokens_out;
} bench_t;

static void require(avl_status_t status) {
    if (status == AVL_OK)
        return;
    fprintf(stderr, "bench_equal_memory: %s: %s\n", avl_status_name(status), avl_status_detail());
    exit(1);
}

static void *allocate(size_t count, size_t item_bytes) {
    void *memory = calloc(count, item_bytes);
    if (memory == NULL)
        abort();
    return memory;
}

static void take_event(void *context, const avl_event_t *event) {
    bench_t *bench = context;
    bench->tokens_out += event->kind == AVL_EVENT_TOKEN;
    if (event->kind == AVL_EVENT_FINISHED && event->status != AVL_OK) {
        fprintf(stderr, "bench_equal_memory: a request failed: %s\n", event->detail);
        exit(1);
    }
}

static int32_t prompt_rows(const bench_t *bench) {
    return TEXT_ROWS + bench->pictures * bench->layout.prompt_rows;
}

static void submit(bench_t *bench, const avl_attention_params_t *attention) {
    avl_request_t *request = allocate(1, sizeof *request);
    size_t side = (size_t)bench->config.model.vision.image_side;
    request->id = ++bench->next_id;
    request->row_count = prompt_rows(bench);
    request->token_ids = allocate((size_t)request->row_count, sizeof(int32_t));
    for (int32_t i = 0; i < request->row_count; i++)
        request->token_ids[i] = 5 + (int32_t)((request->id * 7 + (uint64_t)i) % 200);
    request->image_count = bench->pictures;
    request->images = allocate((size_t)bench->pictures + 1, sizeof *request->images);
    for (int32_t i = 0; i < bench->pictures; i++) {
        avl_request_image_t *image = &request->images[i];
        image->layout = bench->layout;
        image->first_row = 4 + i * bench->layout.prompt_rows;
        image->pixel_bytes = 3 * side * side;
        image->pixels = allocate(image->pixel_bytes, 1);
        for (size_t j = 0; j < image->pixel_bytes; j++)
            image->pixels[j] = (uint8_t)(j * (request->id + (uint64_t)i) >> 6);
        for (int32_t row = 0; row < bench->layout.prompt_rows; row++)
            request->token_ids[image->first_row + row] = -1;
    }
    request->attention = *attention;
    request->sampling.top_p = 1;
    request->max_tokens = bench->tokens;
    request->ignore_eos = true;
    request->arrival_ns = avl_clock_now_ns();
    request->deadline_ns = AVL_DEADLINE_NONE;
    avl_scheduler_submit(bench->scheduler, request);
}

/* The pages of so many dense requests with their answers. */
static int64_t pool_pages(const bench_t *bench) {
    int64_t visual = bench->pictures * (int64_t)bench->layout.prompt_rows;
    int64_t text = TEXT_ROWS + bench->tokens;
    int64_t pages =
        (visual + AVL_PAGE_ROWS - 1) / AVL_PAGE_ROWS + (text + AVL_PAGE_ROWS - 1) / AVL_PAGE_ROWS;
    return bench->dense_requests * bench->config.model.text.layer_count * pages;
}

static void open_group(bench_t *bench) {
    int32_t rows = prompt_rows(bench);
    avl_engine_limits_t limits = {.batch_rows = rows > 1024 ? rows : 1024,
                                  .sequences_max = SEQUENCES_MAX,
                                  .context_rows = rows + bench->tokens};
    require(avl_device_open_cpu(bench->threads, NULL, &bench->device));
    require(avl_group_open_single(&bench->group));
    require(avl_weights_open(bench->directory, &bench->weights));
    avl_dtype_t dtype = bench->device->info.fast_dtype;
    avl_model_options_t model = avl_engine_model_options(&bench->config, &limits, dtype);
    require(avl_model_create(&bench->config, bench->weights, bench->device, bench->group, &model,
                             &bench->model));
    avl_engine_options_t engine = {.config = &bench->config,
                                   .device = bench->device,
                                   .group = bench->group,
                                   .model = bench->model,
                                   .dtype = dtype,
                                   .limits = limits,
                                   .memory_bytes = INT64_C(64) << 30,
                                   .encoder_cache_bytes = 1,
                                   .page_count = pool_pages(bench)};
    require(avl_engine_create(&engine, &bench->engine));
    avl_event_sink_t sink = {.context = bench, .take = take_event};
    require(avl_scheduler_create(bench->engine, 1 << 16, &sink, &bench->scheduler));
    printf("%s, %s; hidden %d, %d layers, %d heads, %d KV heads; pool of %lld pages, %.0f MiB, for "
           "%d dense requests of %d + %d rows, %d of them visual\n",
           bench->device->info.name, avl_dtype_name(dtype), bench->model_shape.hidden_width,
           bench->model_shape.layer_count, bench->config.model.text.query_heads,
           bench->model_shape.kv_heads, (long long)avl_engine_pages(bench->engine).total,
           (double)avl_engine_pages(bench->engine).total *
               (double)avl_engine_page_bytes(bench->engine) / 1048576,
           bench->dense_requests, rows, bench->tokens, rows - TEXT_ROWS);
}

/* Time and tokens of decode steps by how many requests took part. */
typedef struct step_sums {
    int64_t ns[SEQUENCES_MAX + 1], tokens[SEQUENCES_MAX + 1];
} step_sums_t;

static double decode_rate(const step_sums_t *sums, int32_t most) {
    int64_t ns = 0, tokens = 0;
    for (int32_t i = most - most / 8; i <= most; i++) {
        ns += sums->ns[i];
        tokens += sums->tokens[i];
    }
    return ns > 0 ? (double)tokens * 1e9 / (double)ns : 0;
}

static result_t measure(bench_t *bench, const avl_attention_params_t *attention, int requests) {
    step_sums_t sums = {0};
    result_t result = {0};
    int64_t prompt_ns = 0;
    for (int i = 0; i < requests; i++)
        submit(bench, attention);
    bench->tokens_out = 0;
    int64_t begin_ns = avl_clock_now_ns(), end_ns = begin_ns;
    while (!avl_scheduler_is_idle(bench->scheduler)) {
        avl_step_result_t step;
        int64_t step_ns = end_ns, before = bench->tokens_out;
        const avl_plan_t *plan = avl_scheduler_plan(bench->scheduler);
        bool pure = plan->run_count > 0;
        for (int32_t i = 0; i < plan->run_count; i++)
            pure = pure && plan->runs[i].row_count == 0;
        int32_t runs = plan->run_count;
        require(avl_engine_execute(bench->engine, plan, &step));
        avl_scheduler_complete(bench->scheduler, &step);
        end_ns = avl_clock_now_ns();
        result.at_once = runs > result.at_once ? runs : result.at_once;
        if (!pure) {
            prompt_ns += end_ns - step_ns;
            continue;
        }
        sums.ns[runs] += end_ns - step_ns;
        sums.tokens[runs] += bench->tokens_out - before;
    }
    result.decode = decode_rate(&sums, result.at_once);
    result.all = (double)bench->tokens_out * 1e9 / (double)(end_ns - begin_ns);
    result.prompt_share = (double)prompt_ns / (double)(end_ns - begin_ns);
    return result;
}

static void measure_count(bench_t *bench, int requests) {
    result_t best[SETTING_COUNT] = {0};
    for (int round = 0; round < bench->rounds; round++) {
        for (int i = 0; i < SETTING_COUNT; i++) {
            if ((bench->chosen >> i & 1) == 0)
                continue;
            result_t result = measure(bench, &settings[i].attention, requests);
            best[i].at_once = result.at_once;
            best[i].prompt_share = result.prompt_share;
            best[i].decode = result.decode > best[i].decode ? result.decode : best[i].decode;
            best[i].all = result.all > best[i].all ? result.all : best[i].all;
        }
    }
    for (int i = 0; i < SETTING_COUNT; i++) {
        if ((bench->chosen >> i & 1) == 0)
            continue;
        printf("| %d | %s | %d | %.0f | %.2f | %.0f | %.2f | %.0f %% |\n", requests,
               settings[i].name, best[i].at_once, best[i].decode,
               best[0].decode > 0 ? best[i].decode / best[0].decode : 0, best[i].all,
               best[0].all > 0 ? best[i].all / best[0].all : 0, 100 * best[i].prompt_share);
    }
    fflush(stdout);
}

static void read_counts(bench_t *bench, char *text) {
    bench->count_count = 0;
    for (char *word = strtok(text, ","); word != NULL; word = strtok(NULL, ","))
        if (bench->count_count < COUNTS_MAX)
            bench->counts[bench->count_count++] = atoi(word);
}

static void read_option(bench_t *bench, int option, char *text) {
    int number = atoi(text);
    switch (option) {
    case 'H':
        bench->model_shape.hidden_width = number;
        break;
    case 'L':
        bench->model_shape.layer_count = number;
        break;
    case 'k':
        bench->model_shape.kv_heads = number;
        break;
    case 'i':
        bench->pictures = number;
        break;
    case 'n':
        bench->dense_requests = number;
        break;
    case 's':
        bench->tokens = number;
        break;
    case 't':
        bench->threads = number;
        break;
    case 'c':
        read_counts(bench, text);
        break;
    case 'a':
        bench->chosen = (unsigned)number;
        break;
    case 'r':
        bench->rounds = number;
        break;
    default:
        fprintf(stderr, "bench_equal_memory: see the head of bench/equal_memory.c\n");
        exit(2);
    }
}

static void remove_model(const char *directory) {
    static const char *const names[] = {"config.json", "preprocessor_config.json",
                                        "model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(directory);
}

int main(int argc, char **argv) {
    avl_bench_wait_passively(argv);
    static char empty[1];
    static bench_t bench = {.model_shape = {.hidden_width = 512,
                                            .layer_count = 4,
                                            .kv_heads = 8,
                                            .vocab_rows = 1000,
                                            .vision_width = 64,
                                            .vision_layers = 1},
                            .directory = "/tmp/avl-bench-XXXXXX",
                            .tokens = 192,
                            .pictures = 4,
                            .dense_requests = 16,
                            .rounds = 1,
                            .chosen = (1u << SETTING_COUNT) - 1,
                            .counts = {1, 4, 16, 32, 64},
                            .count_count = 5};
    for (int option; (option = getopt(argc, argv, "H:L:k:i:n:s:t:c:a:r:")) != -1;)
        read_option(&bench, option, optarg != NULL ? optarg : empty);
    if (mkdtemp(bench.directory) == NULL) {
        perror(bench.directory);
        return 1;
    }
    avl_synthetic_model_write(bench.directory, &bench.model_shape);
    require(avl_config_load(bench.directory, &bench.config));
    int side = bench.config.model.vision.image_side;
    require(avl_image_layout(&bench.config, side, side, &bench.layout));
    open_group(&bench);
    remove_model(bench.directory); /* what is mapped stays */
    printf("| requests | attention | at once | decode tokens/s | ratio | all tokens/s | ratio | "
           "time with prompt rows |\n|---|---|---|---|---|---|---|---|\n");
    (void)measure(&bench, &settings[1].attention, 2);
    for (int i = 0; i < bench.count_count; i++)
        measure_count(&bench, bench.counts[i]);
    avl_scheduler_destroy(bench.scheduler);
    avl_engine_destroy(bench.engine);
    avl_model_destroy(bench.model);
    avl_weights_close(bench.weights);
    avl_group_close(bench.group);
    avl_device_close(bench.device);
    return 0;
}
