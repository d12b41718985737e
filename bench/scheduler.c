/* bench/scheduler.c: what a step costs besides the model: the leader's plan, and taking its
 * results.
 *
 *     bench_scheduler [-n SEQUENCES] [-v VOCABULARY] [-s STEPS]
 *
 * The engine is the tests' double, and its time does not count. All sequences decode; as one ends
 * the next comes, with a queue of as many behind them. Prints microseconds a step: the plan; taking
 * the results without drawing (tokens are replayed); drawing greedily; drawing with temperature,
 * the whole vocabulary and with top-k or top-p. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/worker/engine_double.h"
#include "worker/scheduler.h"

#define PROMPT_ROWS 48
#define ANSWER_TOKENS 256

typedef struct bench {
    int32_t sequences, vocab_rows, steps;
    avl_config_t config;
    avl_device_t *device;
    avl_engine_t *engine;
    avl_scheduler_t *scheduler;
    uint64_t next_id;
    int32_t unfinished;
} bench_t;

static void fail(const char *text) {
    fprintf(stderr, "bench_scheduler: %s\n", text);
    exit(1);
}

static void take_event(void *context, const avl_event_t *event) {
    bench_t *bench = context;
    if (event->kind != AVL_EVENT_FINISHED)
        return;
    if (event->finish_reason == AVL_FINISH_ERROR)
        fail(event->detail);
    bench->unfinished--;
}

static void submit(bench_t *bench, const avl_sampling_params_t *sampling, bool replay) {
    avl_request_t *request = calloc(1, sizeof *request);
    if (request == NULL)
        fail("no memory");
    request->id = ++bench->next_id;
    request->row_count = PROMPT_ROWS;
    request->token_ids = calloc(PROMPT_ROWS, sizeof(int32_t));
    request->replay_ids = calloc(ANSWER_TOKENS, sizeof(int32_t));
    if (request->token_ids == NULL || request->replay_ids == NULL)
        fail("no memory");
    for (int32_t i = 0; i < PROMPT_ROWS; i++)
        request->token_ids[i] =
            (int32_t)((bench->next_id * 31 + (uint64_t)i * 7) % (uint64_t)bench->vocab_rows);
    request->replay_count = replay ? ANSWER_TOKENS - 1 : 0;
    request->attention = (avl_attention_params_t)AVL_ATTENTION(1, 1, 1);
    request->sampling = *sampling;
    request->max_tokens = ANSWER_TOKENS - (int32_t)(bench->next_id % 64);
    if (request->replay_count >= request->max_tokens)
        request->replay_count = request->max_tokens - 1;
    request->ignore_eos = true;
    request->arrival_ns = avl_clock_now_ns();
    request->deadline_ns = request->arrival_ns + 3600 * AVL_NS_PER_S;
    avl_scheduler_submit(bench->scheduler, request);
    bench->unfinished++;
}

static void open_group(bench_t *bench) {
    engine_double_options_t options = {
        .config = &bench->config,
        .device = bench->device,
        .limits = {.batch_rows = 512, .sequences_max = bench->sequences, .context_rows = 512},
        .page_count = (int64_t)bench->sequences * 32 * bench->config.model.text.layer_count,
        .pictures_max = 8,
        .plan_bytes = 4 * 2048,
        .fail = fail,
    };
    bench->engine = engine_double_create(&options);
    avl_event_sink_t sink = {.context = bench, .take = take_event};
    if (avl_scheduler_create(bench->engine, 1 << 16, &sink, &bench->scheduler) != AVL_OK)
        fail(avl_status_detail());
}

static void measure(bench_t *bench, const char *name, const avl_sampling_params_t *sampling,
                    bool replay) {
    int64_t plan_ns = 0, complete_ns = 0, runs = 0;
    open_group(bench);
    for (int32_t i = -64; i < bench->steps; i++) {
        while (bench->unfinished < 2 * bench->sequences)
            submit(bench, sampling, replay);
        avl_step_result_t result;
        int64_t begin_ns = avl_clock_now_ns();
        const avl_plan_t *plan = avl_scheduler_plan(bench->scheduler);
        int64_t planned_ns = avl_clock_now_ns();
        if (avl_engine_execute(bench->engine, plan, &result) != AVL_OK)
            fail(avl_status_detail());
        int64_t executed_ns = avl_clock_now_ns();
        int32_t run_count = plan->run_count;
        avl_scheduler_complete(bench->scheduler, &result);
        if (i < 0)
            continue; /* until the sequences are spread over their lengths */
        plan_ns += planned_ns - begin_ns;
        complete_ns += avl_clock_now_ns() - executed_ns;
        runs += run_count;
    }
    printf("%-28s %8.1f %10.1f %8.1f\n", name, (double)plan_ns / 1e3 / bench->steps,
           (double)complete_ns / 1e3 / bench->steps, (double)runs / bench->steps);
    avl_scheduler_destroy(bench->scheduler);
    avl_engine_destroy(bench->engine);
    bench->unfinished = 0;
}

int main(int argc, char **argv) {
    bench_t bench = {.sequences = 64, .vocab_rows = 32064, .steps = 400};
    for (int option; (option = getopt(argc, argv, "n:v:s:")) != -1;) {
        int32_t *target = option == 'n'   ? &bench.sequences
                          : option == 'v' ? &bench.vocab_rows
                          : option == 's' ? &bench.steps
                                          : NULL;
        if (target == NULL || (*target = atoi(optarg)) < 1)
            fail("usage: bench_scheduler [-n SEQUENCES] [-v VOCABULARY] [-s STEPS]");
    }
    bench.config.model.text.layer_count = 32;
    bench.config.model.text.vocab_rows = bench.vocab_rows;
    bench.config.model.vision.image_side = 2;
    bench.config.model.vision.patches_per_side = 1;
    if (avl_device_open_cpu(1, NULL, &bench.device) != AVL_OK)
        fail(avl_status_detail());
    printf("%d sequences, vocabulary of %d; microseconds a step\n%-28s %8s %10s %8s\n",
           bench.sequences, bench.vocab_rows, "tokens", "plan", "complete", "runs");
    measure(&bench, "replayed", &(avl_sampling_params_t){.top_p = 1}, true);
    measure(&bench, "greedy", &(avl_sampling_params_t){.top_p = 1}, false);
    measure(&bench, "temperature",
            &(avl_sampling_params_t){.temperature = .02, .top_p = 1, .seed = 1}, false);
    measure(&bench, "temperature, top-k 50",
            &(avl_sampling_params_t){.temperature = .02, .top_p = 1, .top_k = 50, .seed = 1},
            false);
    measure(&bench, "temperature, top-p 0.9",
            &(avl_sampling_params_t){.temperature = .02, .top_p = .9, .seed = 1}, false);
    avl_device_close(bench.device);
    return 0;
}
