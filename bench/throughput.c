/* bench/throughput.c: tokens a second of one rank, by the number of sequences decoded together,
 * dense and with A-VL, through scheduler and engine.
 *
 *     bench_throughput -m MODEL [-t THREADS] [-s TOKENS] [-r ROWS] [-p PAGES] [-i PICTURES]
 *
 * Every request has PICTURES grey pictures, ROWS text tokens and TOKENS new ones, greedily. For
 * each count: prompt rows a second until all are read, then tokens a second of pure decode steps,
 * and the shares of a step's time. With -p the pool has so many pages: the most requests that run
 * at once are printed, too. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/wait_policy.h"
#include "worker/engine.h"
#include "worker/scheduler.h"

#define SEQUENCES_MAX 64

typedef struct bench {
    const char *model_path;
    int threads, tokens, text_rows, pictures;
    int64_t pages;
    avl_config_t config;
    avl_device_t *device;
    avl_group_t *group;
    avl_weights_t *weights;
    avl_model_t *model;
    avl_engine_t *engine;
    avl_scheduler_t *scheduler;
    avl_image_layout_t layout;
    uint64_t next_id;
    int64_t events;
} bench_t;

static void require(avl_status_t status) {
    if (status == AVL_OK)
        return;
    fprintf(stderr, "bench_throughput: %s: %s\n", avl_status_name(status), avl_status_detail());
    exit(1);
}

static void take_event(void *context, const avl_event_t *event) {
    bench_t *bench = context;
    bench->events += event->kind == AVL_EVENT_TOKEN;
    if (event->kind == AVL_EVENT_FINISHED && event->status != AVL_OK) {
        fprintf(stderr, "bench_throughput: a request failed: %s\n", event->detail);
        exit(1);
    }
}

static void submit(bench_t *bench, const avl_attention_params_t *attention) {
    avl_request_t *request = calloc(1, sizeof *request);
    int32_t rows = bench->text_rows + bench->pictures * bench->layout.prompt_rows;
    size_t side = (size_t)bench->config.model.vision.image_side;
    size_t bytes = (size_t)bench->layout.tile_count * 3 * side * side;
    if (request == NULL)
        abort();
    request->token_ids = calloc((size_t)rows, sizeof(int32_t));
    request->images = calloc((size_t)bench->pictures + 1, sizeof *request->images);
    if (request->token_ids == NULL || request->images == NULL)
        abort();
    request->id = ++bench->next_id;
    request->row_count = rows;
    for (int32_t i = 0; i < rows; i++)
        request->token_ids[i] = i == 0 ? 1 : 5 + (int32_t)((request->id * 7 + (uint64_t)i) % 200);
    request->image_count = bench->pictures;
    for (int32_t i = 0; i < bench->pictures; i++) {
        avl_request_image_t *image = &request->images[i];
        image->layout = bench->layout;
        image->first_row = 4 + i * bench->layout.prompt_rows;
        image->pixel_bytes = bytes;
        image->pixels = malloc(bytes);
        if (image->pixels == NULL)
            abort();
        memset(image->pixels, (int)(request->id * 16 % 256), bytes);
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

static void open_group(bench_t *bench) {
    avl_engine_limits_t limits = {.batch_rows = 1024,
                                  .sequences_max = SEQUENCES_MAX,
                                  .context_rows = avl_engine_context_most(&bench->config.model)};
    require(avl_device_open_cpu(bench->threads, NULL, &bench->device));
    require(avl_group_open_single(&bench->group));
    require(avl_weights_open(bench->model_path, &bench->weights));
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
                                   .memory_bytes = INT64_C(4) << 30,
                                   .page_count = bench->pages};
    require(avl_engine_create(&engine, &bench->engine));
    avl_event_sink_t sink = {.context = bench, .take = take_event};
    require(avl_scheduler_create(bench->engine, 1 << 16, &sink, &bench->scheduler));
    printf("%s, %s, %lld pages; prompts of %d rows (%d of pictures), %d tokens\n",
           bench->device->info.name, avl_dtype_name(dtype),
           (long long)avl_engine_pages(bench->engine).total,
           bench->text_rows + bench->pictures * bench->layout.prompt_rows,
           bench->pictures * bench->layout.prompt_rows, bench->tokens);
}

static void measure(bench_t *bench, const char *name, const avl_attention_params_t *attention,
                    int sequences) {
    int64_t execute_ns = 0, decode_ns = 0, tokens = 0, prompt_ns = 0;
    int32_t most = 0;
    for (int i = 0; i < sequences; i++)
        submit(bench, attention);
    int64_t begin_ns = avl_clock_now_ns();
    bench->events = 0;
    while (!avl_scheduler_is_idle(bench->scheduler)) {
        avl_step_result_t result;
        int64_t step_ns = avl_clock_now_ns(), events = bench->events;
        const avl_plan_t *plan = avl_scheduler_plan(bench->scheduler);
        bool pure = plan->run_count > 0;
        for (int32_t i = 0; i < plan->run_count; i++)
            pure = pure && plan->runs[i].row_count == 0;
        int64_t planned_ns = avl_clock_now_ns();
        require(avl_engine_execute(bench->engine, plan, &result));
        int64_t executed_ns = avl_clock_now_ns();
        most = plan->run_count > most ? plan->run_count : most;
        avl_scheduler_complete(bench->scheduler, &result);
        int64_t end_ns = avl_clock_now_ns();
        if (pure) {
            decode_ns += end_ns - step_ns;
            execute_ns += executed_ns - planned_ns;
            tokens += bench->events - events;
        } else {
            prompt_ns += end_ns - step_ns;
        }
    }
    double all = (double)(avl_clock_now_ns() - begin_ns) / 1e9;
    int64_t rows =
        sequences * (int64_t)(bench->text_rows + bench->pictures * bench->layout.prompt_rows);
    printf("%-12s %6d %8d %12.0f %12.0f %12.0f %9.1f %%\n", name, sequences, most,
           (double)rows * 1e9 / (double)(prompt_ns > 0 ? prompt_ns : 1),
           (double)tokens * 1e9 / (double)(decode_ns > 0 ? decode_ns : 1),
           (double)bench->events / all,
           decode_ns > 0 ? 100.0 * (double)execute_ns / (double)decode_ns : 0.0);
}

static void read_options(bench_t *bench, int argc, char **argv) {
    for (int option; (option = getopt(argc, argv, "m:t:s:r:p:i:")) != -1;) {
        int number = option == 'm' ? 0 : atoi(optarg);
        switch (option) {
        case 'm':
            bench->model_path = optarg;
            break;
        case 't':
            bench->threads = number;
            break;
        case 's':
            bench->tokens = number;
            break;
        case 'r':
            bench->text_rows = number;
            break;
        case 'p':
            bench->pages = number;
            break;
        case 'i':
            bench->pictures = number;
            break;
        default:
            bench->model_path = NULL;
        }
    }
    if (bench->model_path == NULL || bench->text_rows < 8 || bench->tokens < 2) {
        fprintf(stderr, "usage: bench_throughput -m MODEL [-t THREADS] [-s TOKENS] [-r ROWS] "
                        "[-p PAGES] [-i PICTURES]\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    avl_bench_wait_passively(argv);
    bench_t bench = {.tokens = 96, .text_rows = 48, .pictures = 1};
    read_options(&bench, argc, argv);
    require(avl_config_load(bench.model_path, &bench.config));
    int side = bench.config.model.vision.image_side;
    require(avl_image_layout(&bench.config, side, side, &bench.layout));
    open_group(&bench);
    printf("%-12s %6s %8s %12s %12s %12s %11s\n", "attention", "asked", "at once", "prompt rows/s",
           "decode tok/s", "all tok/s", "in the model");
    static const int counts[] = {1, 4, 16, 64};
    measure(&bench, "warming up", &(avl_attention_params_t)AVL_ATTENTION(1, 1, 1), 4);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        measure(&bench, "dense", &(avl_attention_params_t)AVL_ATTENTION(1, 1, 1), counts[i]);
        measure(&bench, "A-VL", &(avl_attention_params_t)AVL_ATTENTION(.5, .3, 3), counts[i]);
    }
    avl_scheduler_destroy(bench.scheduler);
    avl_engine_destroy(bench.engine);
    avl_model_destroy(bench.model);
    avl_weights_close(bench.weights);
    avl_group_close(bench.group);
    avl_device_close(bench.device);
    return 0;
}
