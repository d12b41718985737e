/* tools/gpu_check/measure.cu: what the GPU can do, and what the kernels reach of it. One program,
 * one part a run, so that a part that fails takes no other with it:
 *
 *     measure copy|product|decode|select|prompt|rows|draw [small]
 *
 * Every line of output is one JSON object: name, median microseconds, and what was moved ("bytes")
 * or computed ("flops"). Shares are worked out by gpu-check.
 *
 * Inputs are random and rotate through a pool far larger than the cache. Several calls stand
 * between two events, as one graph where that can be captured, so that the time of launching them
 * from the host is not measured with them. */
#include <algorithm>
#include <numeric>
#include <random>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

extern "C" void avl_device_close(avl_device_t *device);

namespace {

constexpr int HEADS = 32, WIDTH = 128, ROW = HEADS * WIDTH;
constexpr int INTERVAL = 3; /* steps from one selection to the next, as in the shipped preset */

avl_device_t *device;
cudaStream_t stream;

/* Sizes: of a GPU, or so small that the execution shim can do them. */
int is_small, system_rows = 35, visual_rows = 2200, text_rows = 65, batch_most = 64, repeats = 30,
              warm_up = 3;

int all_rows(void) {
    return system_rows + visual_rows + text_rows;
}
/* Places of the pool: sequences that are decoded together begin at different ones every time. */
int places(void) {
    return batch_most + 1;
}

void end_with(const char *what, const char *why) {
    printf("{\"problem\": \"%s: %s\"}\n", what, why);
    fflush(stdout);
    _Exit(1);
}

void must(avl_status_t status, const char *what) {
    if (status != AVL_OK)
        end_with(what, avl_status_detail());
}

void must_cuda(cudaError_t error, const char *what) {
    if (error != cudaSuccess)
        end_with(what, cudaGetErrorString(error));
}

__global__ void fill_kernel(uint16_t *data, int64_t count, uint32_t seed) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u + seed;
        x ^= x >> 15;
        x *= 2246822519u;
        x ^= x >> 13;
        float value = (float)(x >> 8) * 0x1p-24f * 2.0f - 1.0f;
        data[i] = (uint16_t)(__float_as_uint(value) >> 16);
    }
}

void *allocate(size_t bytes, const char *what) {
    void *memory = nullptr;
    must(device->ops->allocate(device, bytes, what, &memory), what);
    return memory;
}

uint16_t *random_numbers(int64_t count, const char *what) {
    uint16_t *memory = (uint16_t *)allocate((size_t)count * 2, what);
    AVL_LAUNCH(fill_kernel, is_small ? 4 : 4096, 256, 0, stream, memory, count, (uint32_t)count);
    must(avl_cuda_launched("filling"), what);
    return memory;
}

int32_t *send(const std::vector<int32_t> &values) {
    int32_t *memory = (int32_t *)allocate(values.size() * 4, "indices");
    must(device->ops->upload(device, memory, values.data(), values.size() * 4), "indices");
    return memory;
}

/* `inner` calls as one graph; NULL when they cannot be captured. */
#ifdef AVL_CUDA_SHIM
typedef void *graph_t;
template <typename F> graph_t capture(F, int, int) {
    return nullptr;
}
void replay(graph_t) {
}
void discard(graph_t) {
}
#else
typedef cudaGraphExec_t graph_t;
template <typename F> graph_t capture(F run, int inner, int turn) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        (void)cudaGetLastError();
        return nullptr;
    }
    for (int i = 0; i < inner; i++)
        run(turn * inner + i);
    cudaError_t error = cudaStreamEndCapture(stream, &graph);
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&exec, graph, 0);
    if (graph != nullptr)
        (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    return error == cudaSuccess ? exec : nullptr;
}
void replay(graph_t exec) {
    must_cuda(cudaGraphLaunch(exec, stream), "launching a graph");
}
void discard(graph_t exec) {
    (void)cudaGraphExecDestroy(exec);
}
#endif

/* Median microseconds of one run(i), of `inner` between two events. */
template <typename F> double time_of(F run, int inner, const char *what) {
    constexpr int GRAPHS = 4; /* replayed in turn, so that each finds a cold cache */
    std::vector<float> times;
    cudaEvent_t begin, end;
    must_cuda(cudaEventCreate(&begin), what);
    must_cuda(cudaEventCreate(&end), what);
    for (int i = 0; i < warm_up; i++)
        run(i);
    must(device->ops->synchronize(device), what);
    graph_t graphs[GRAPHS] = {};
    for (int i = 0; i < GRAPHS && inner > 1; i++)
        graphs[i] = i == 0 || graphs[0] != nullptr ? capture(run, inner, i) : nullptr;
    int is_graph = inner > 1 && graphs[GRAPHS - 1] != nullptr;
    for (int i = 0; i < warm_up + repeats; i++) {
        must_cuda(cudaEventRecord(begin, stream), what);
        if (is_graph)
            replay(graphs[i % GRAPHS]);
        for (int j = 0; j < inner && !is_graph; j++)
            run(i * inner + j);
        must_cuda(cudaEventRecord(end, stream), what);
        must_cuda(cudaEventSynchronize(end), what);
        float milliseconds = 0;
        must_cuda(cudaEventElapsedTime(&milliseconds, begin, end), what);
        if (i >= warm_up)
            times.push_back(milliseconds);
    }
    for (int i = 0; i < GRAPHS; i++)
        if (graphs[i] != nullptr)
            discard(graphs[i]);
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e3 / inner;
}

void report(const char *name, int batch, double us, const char *unit, double amount) {
    printf("{\"name\": \"%s\", \"batch\": %d, \"us\": %.3f, \"%s\": %.0f}\n", name, batch, us, unit,
           amount);
    fflush(stdout);
}

void measure_copy(void) {
    const size_t bytes = is_small ? (size_t)1 << 16 : (size_t)4 << 30;
    char *from = (char *)random_numbers((int64_t)bytes / 2, "copy source");
    char *to = (char *)allocate(bytes, "copy target");
    double us = time_of(
        [&](int) {
            must_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
        },
        1, "copy");
    report("copy", 1, us, "bytes", 2.0 * (double)bytes);
}

void measure_product(void) {
    const int64_t side = is_small ? 64 : 8192;
    uint16_t *input = random_numbers(side * side, "input");
    uint16_t *weight = random_numbers(side * side, "weight");
    uint16_t *output = (uint16_t *)allocate((size_t)(side * side) * 2, "output");
    avl_linear_args_t args = {};
    args.input = input;
    args.input_stride = args.weight_stride = args.in_width = side;
    args.weight = weight;
    args.output = output;
    args.output_stride = args.out_width = side;
    args.rows = side;
    args.dtype = args.output_dtype = AVL_DTYPE_BF16;
    auto run = [&](int) { must(avl_linear(device, &args), "linear"); };
    report("matrix product, 8192 x 8192 x 8192", 1, time_of(run, 1, "linear"), "flops",
           2.0 * (double)side * (double)side * (double)side);
    for (int rows = 1; rows <= 64 && rows <= side; rows *= 8) {
        args.rows = rows;
        report("matrix product of few rows, 8192 x 8192", rows, time_of(run, 8, "linear"), "bytes",
               2.0 * (double)side * (double)(side + 2 * rows));
    }
}

typedef struct cache {
    uint16_t *keys, *values, *query, *output;
    float *weights;
    int32_t *chosen;
} cache_t;

cache_t make_cache(void) {
    int64_t slots = (int64_t)places() * all_rows();
    cache_t cache;
    cache.keys = random_numbers(slots * ROW, "keys");
    cache.values = random_numbers(slots * ROW, "values");
    cache.query = random_numbers((int64_t)batch_most * ROW, "query");
    cache.output = (uint16_t *)allocate((size_t)batch_most * ROW * 2, "output");
    cache.weights = (float *)allocate((size_t)batch_most * (size_t)visual_rows * 4, "weights");
    cache.chosen = (int32_t *)allocate((size_t)batch_most * (size_t)visual_rows * 4, "chosen rows");
    return cache;
}

/* One step of `batch` sequences, each with its `length` rows of the lists. `keep`: 0, or how many
 * of the visual rows each head chooses. */
void decode(const cache_t *cache, const int32_t *list, int visual, int keep, int batch, int exports,
            int i) {
    std::vector<avl_decode_sequence_t> sequences((size_t)batch);
    int length = system_rows + visual + text_rows;
    for (int s = 0; s < batch; s++) {
        int place = (s + i * batch) % places();
        const int32_t *rows = list + (int64_t)place * length;
        sequences[(size_t)s] = {s,
                                {{rows, system_rows},
                                 {rows + system_rows, visual},
                                 {rows + system_rows + visual, text_rows}},
                                exports ? cache->weights + (int64_t)s * visual_rows : nullptr};
        sequences[(size_t)s].visual_keep = keep;
    }
    avl_decode_attention_args_t args = {};
    args.query = cache->query;
    args.query_stride = args.output_stride = ROW;
    args.kv = {cache->keys, cache->values, ROW, HEADS, WIDTH, AVL_DTYPE_BF16};
    args.heads = {HEADS, 1, 0};
    args.sequences = sequences.data();
    args.sequence_count = batch;
    args.output = cache->output;
    args.scale = 0.088f;
    must(avl_decode_attention(device, &args), "decode_attention");
}

/* Per place of the pool: all rows, or a random ascending choice of `kept` visual rows. */
int32_t *make_lists(int kept) {
    std::mt19937 random(7);
    std::vector<int32_t> lists, order((size_t)visual_rows);
    for (int place = 0; place < places(); place++) {
        int32_t base = place * all_rows();
        std::iota(order.begin(), order.end(), 0);
        if (kept < visual_rows)
            std::shuffle(order.begin(), order.end(), random);
        std::sort(order.begin(), order.begin() + kept);
        for (int i = 0; i < system_rows; i++)
            lists.push_back(base + i);
        for (int i = 0; i < kept; i++)
            lists.push_back(base + system_rows + order[(size_t)i]);
        for (int i = 0; i < text_rows; i++)
            lists.push_back(base + system_rows + visual_rows + i);
    }
    return send(lists);
}

/* 30 % of all rows: those outside the picture are always read. */
int kept_rows(void) {
    return all_rows() * 30 / 100 - system_rows - text_rows;
}

void measure_decode(void) {
    cache_t cache = make_cache();
    int kept = kept_rows(), stored = visual_rows / 2, chosen = visual_rows / 10;
    int32_t *dense = make_lists(visual_rows), *indexed = make_lists(kept),
            *store = make_lists(stored);
    for (int batch = 1; batch <= batch_most; batch *= 2) {
        int inner = batch <= 8 ? 8 : 2;
        double row_bytes = 2.0 * ROW * 2 * batch;
        double us = time_of([&](int i) { decode(&cache, dense, visual_rows, 0, batch, 0, i); },
                            inner, "decode attention");
        report("decode attention, all rows", batch, us, "bytes", row_bytes * all_rows());
        us = time_of([&](int i) { decode(&cache, indexed, kept, 0, batch, 0, i); }, inner,
                     "decode attention by index");
        report("decode attention, 30 % by index", batch, us, "bytes",
               row_bytes * (system_rows + kept + text_rows));
        us = time_of([&](int i) { decode(&cache, store, stored, chosen, batch, 0, i); }, inner,
                     "decode attention with cores within the step");
        report("decode attention, half scored and 10 % read", batch, us, "bytes",
               row_bytes * (system_rows + (stored + chosen) / 2 + text_rows));
    }
}

/* What choosing costs beside the attention of an updating step: a layer's export and selection. */
void measure_select(void) {
    cache_t cache = make_cache();
    int32_t *dense = make_lists(visual_rows);
    for (int batch = 1; batch <= batch_most; batch *= batch < 8 ? 8 : 2) {
        int inner = batch <= 8 ? 8 : 2;
        double plain = time_of([&](int i) { decode(&cache, dense, visual_rows, 0, batch, 0, i); },
                               inner, "decode attention");
        double scored = time_of([&](int i) { decode(&cache, dense, visual_rows, 0, batch, 1, i); },
                                inner, "score export");
        std::vector<avl_choose_item_t> items((size_t)batch);
        for (int s = 0; s < batch; s++)
            items[(size_t)s] = {cache.weights + (int64_t)s * visual_rows,
                                visual_rows,
                                kept_rows(),
                                nullptr,
                                dense + (int64_t)s * all_rows() + system_rows,
                                cache.chosen + (int64_t)s * visual_rows,
                                nullptr};
        avl_choose_args_t args = {items.data(), batch};
        double chosen =
            time_of([&](int) { must(avl_choose(device, &args), "choose"); }, inner, "choose");
        printf("{\"name\": \"scores and selection of a layer\", \"batch\": %d, \"us\": %.3f, "
               "\"export_us\": %.3f, \"select_us\": %.3f, \"interval\": %d}\n",
               batch, scored - plain + chosen, scored - plain, chosen, INTERVAL);
        fflush(stdout);
    }
}

void attend(const char *name, int rows, int heads, int width, int causal, int sequences) {
    if (is_small)
        rows = 80;
    int64_t row = (int64_t)heads * width, total = (int64_t)rows * sequences;
    uint16_t *query = random_numbers(total * row, "query");
    uint16_t *keys = random_numbers(total * row, "keys");
    uint16_t *values = random_numbers(total * row, "values");
    uint16_t *output = (uint16_t *)allocate((size_t)(total * row) * 2, "output");
    std::vector<avl_attention_sequence_t> list((size_t)sequences);
    for (int s = 0; s < sequences; s++)
        list[(size_t)s] = {(int64_t)s * rows, rows, rows, nullptr, (int64_t)s * rows};
    avl_attention_args_t args = {};
    args.query = query;
    args.query_stride = args.output_stride = row;
    args.kv = {keys, values, row, heads, width, AVL_DTYPE_BF16};
    args.heads = {heads, 1, 0};
    args.sequences = list.data();
    args.sequence_count = sequences;
    args.output = output;
    args.scale = 0.1f;
    args.causal = causal;
    double us = time_of([&](int) { must(avl_attention(device, &args), "attention"); }, 2, name);
    report(name, sequences, us, "flops",
           4.0 * rows * rows * (double)row * sequences * (causal ? 0.5 : 1.0));
    device->ops->release(device, query);
    device->ops->release(device, keys);
    device->ops->release(device, values);
    device->ops->release(device, output);
}

void measure_prompt(void) {
    attend("prefill attention, 2304 causal, 32 x 128", 2304, 32, 128, 1, 1);
    attend("prefill attention, 2304 causal, 32 x 128, 4 prompts", 2304, 32, 128, 1, 4);
    attend("vision attention, 577, 16 x 64, 5 tiles", 577, 16, 64, 0, 5);
}

/* What stands between the products of a decode step, on 64 rows of a 7B model. */
void measure_rows(void) {
    const int64_t rows = is_small ? 4 : 64, hidden = 4096, inner_width = 11008;
    float *stream_rows = (float *)allocate((size_t)(rows * hidden) * 4, "stream");
    float *weight = (float *)allocate((size_t)hidden * 4, "weight");
    uint16_t *normed = random_numbers(rows * hidden, "normed");
    uint16_t *gate_up = random_numbers(rows * 2 * inner_width, "gate and up");
    uint16_t *mlp = random_numbers(rows * inner_width, "mlp");
    avl_norm_args_t norm = {};
    norm.input = stream_rows;
    norm.input_stride = norm.width = hidden;
    norm.weight = weight;
    norm.output = normed;
    norm.rows = rows;
    norm.epsilon = 1e-5f;
    norm.output_dtype = AVL_DTYPE_BF16;
    double us = time_of([&](int) { must(avl_norm(device, &norm), "norm"); }, 8, "norm");
    report("norm, 4096", (int)rows, us, "bytes", (double)(rows * hidden) * 6);
    avl_gated_args_t gated = {gate_up, mlp, rows, inner_width, AVL_DTYPE_BF16, AVL_ACTIVATION_SILU};
    us = time_of([&](int) { must(avl_gated(device, &gated), "gated"); }, 8, "gated");
    report("gated activation, 11008", (int)rows, us, "bytes", (double)(rows * inner_width) * 6);
    avl_add_args_t add = {stream_rows, stream_rows + 0, nullptr, hidden, rows * hidden};
    us = time_of([&](int) { must(avl_add(device, &add), "add"); }, 8, "add");
    report("addition to the stream, 4096", (int)rows, us, "bytes", (double)(rows * hidden) * 12);
}

/* Tokens from logits that lie as a vocabulary's do: like a bell, the best far off; in the cache, as
 * far as they fit, as a step finds those that it has just written. */
void measure_draws(void) {
    const int width = is_small ? 3000 : 152064, batches[] = {1, 16, 64};
    const int tops[] = {-1, -1, -1, 20};
    const char *names[] = {"draw, temperature", "draw, top-p", "draw, top-k and top-p",
                           "draw, greedy with 20 logprobs"};
    std::mt19937 random(1);
    std::normal_distribution<float> bell(0.0f, 2.5f);
    std::vector<float> logits((size_t)batch_most * (size_t)width);
    for (float &logit : logits)
        logit = bell(random);
    avl_sample_args_t args = {};
    args.logits = (float *)allocate(logits.size() * sizeof(float), "logits");
    must(device->ops->upload(device, args.logits, logits.data(), logits.size() * sizeof(float)),
         "logits");
    args.results =
        (avl_sample_result_t *)allocate((size_t)batch_most * sizeof *args.results, "results");
    args.stride = args.width = width;
    for (int kind = 0; kind < 4; kind++) {
        avl_sample_item_t item = {};
        item.scale = kind < 3 ? 1 / 0.8f : 0.0f;
        item.top_p = kind == 1 || kind == 2 ? 0.9 : 1.0;
        item.top_k = kind == 2 ? 50 : 0;
        item.forced_id = -1;
        item.tops = tops[kind];
        for (int batch : batches) {
            if (batch > batch_most)
                continue;
            std::vector<avl_sample_item_t> items((size_t)batch, item);
            for (int i = 0; i < batch; i++)
                items[(size_t)i].share = (uint64_t)random() << 32;
            args.items = items.data();
            args.rows = batch;
            /* One by one: what the host sends cannot be part of a graph. */
            double us = time_of([&](int) { must(avl_sample(device, &args), "draw"); }, 1, "draw");
            report(names[kind], batch, us, "bytes", 4.0 * batch * width);
        }
    }
}

typedef struct part {
    const char *name;
    void (*run)(void);
} part_t;

const part_t parts[] = {
    {"copy", measure_copy},     {"product", measure_product}, {"decode", measure_decode},
    {"select", measure_select}, {"prompt", measure_prompt},   {"rows", measure_rows},
    {"draw", measure_draws},
};

} // namespace

int main(int argc, char **argv) {
    is_small = argc > 2 && strcmp(argv[2], "small") == 0;
    if (is_small) {
        system_rows = 3;
        visual_rows = 60;
        text_rows = 5;
        batch_most = 2;
        repeats = warm_up = 1;
    }
    for (const part_t &part : parts) {
        if (argc < 2 || strcmp(argv[1], part.name) != 0)
            continue;
        must(avl_cuda_device_open(0, &device), "opening the device");
        stream = avl_cuda_of(device)->stream;
        printf("{\"device\": \"%s\", \"free_bytes\": %zu}\n", device->info.name,
               device->info.memory_bytes);
        fflush(stdout);
        part.run();
        must(device->ops->synchronize(device), "the end");
        return 0; /* memory goes with the process */
    }
    fprintf(stderr, "usage: %s copy|product|decode|select|prompt|rows [small]\n", argv[0]);
    return 2;
}
