/* tools/gpu_check/measure.cu: what the GPU can do, and how much of it the kernels reach. Every line
 * of output is one JSON object: name, median microseconds, and what was moved or computed.
 *
 * Inputs are random and rotate through a pool far larger than the cache; times are medians of runs
 * between events, after a warm-up. */
#include <algorithm>
#include <numeric>
#include <random>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "kernels/cuda/device.h"

extern "C" void avl_device_close(avl_device_t *device);

namespace {

constexpr int HEADS = 32, WIDTH = 128, ROW = HEADS * WIDTH;
constexpr int SYSTEM = 35, VISUAL = 2200, TEXT = 65, ROWS = SYSTEM + VISUAL + TEXT;
constexpr int64_t SLOTS = 64 * ROWS + ROWS;
constexpr int BATCH_MAX = 64, REPEATS = 30, WARM_UP = 5;

avl_device_t *device;
cudaStream_t stream;
double copy_rate, product_rate;

void must(avl_status_t status, const char *what) {
    if (status == AVL_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, avl_status_detail());
    exit(1);
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
    fill_kernel<<<4096, 256, 0, stream>>>(memory, count, (uint32_t)count);
    return memory;
}

int32_t *send(const std::vector<int32_t> &values) {
    int32_t *memory = (int32_t *)allocate(values.size() * 4, "indices");
    must(device->ops->upload(device, memory, values.data(), values.size() * 4), "indices");
    return memory;
}

/* Median microseconds of run(i). */
template <typename F> double time_of(F run) {
    std::vector<float> times;
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int i = 0; i < WARM_UP + REPEATS; i++) {
        cudaEventRecord(begin, stream);
        run(i);
        cudaEventRecord(end, stream);
        if (cudaEventSynchronize(end) != cudaSuccess) {
            fprintf(stderr, "a measured run failed: %s\n", cudaGetErrorString(cudaGetLastError()));
            exit(1);
        }
        float milliseconds = 0;
        cudaEventElapsedTime(&milliseconds, begin, end);
        if (i >= WARM_UP)
            times.push_back(milliseconds);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e3;
}

void report_bytes(const char *name, int batch, double us, double bytes) {
    double rate = bytes / us * 1e-3;
    printf("{\"name\": \"%s\", \"batch\": %d, \"us\": %.2f, \"gb_per_s\": %.1f, "
           "\"share_of_copy\": %.3f}\n",
           name, batch, us, rate, copy_rate > 0 ? rate / copy_rate : 1.0);
    fflush(stdout);
}

void report_flops(const char *name, double us, double flops) {
    double rate = flops / us * 1e-6;
    printf("{\"name\": \"%s\", \"us\": %.2f, \"tflops\": %.1f, \"share_of_product\": %.3f}\n", name,
           us, rate, product_rate > 0 ? rate / product_rate : 1.0);
    fflush(stdout);
}

void measure_copy(void) {
    const size_t bytes = (size_t)1 << 30;
    char *from = (char *)random_numbers((int64_t)bytes / 2, "copy source");
    char *to = (char *)allocate(bytes, "copy target");
    double us =
        time_of([&](int) { cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream); });
    copy_rate = 2.0 * (double)bytes / us * 1e-3;
    report_bytes("copy, bytes read and written", 1, us, 2.0 * (double)bytes);
    device->ops->release(device, from);
    device->ops->release(device, to);
}

void measure_product(void) {
    constexpr int64_t M = 8192, N = 8192, K = 4096;
    uint16_t *input = random_numbers(M * K, "input"), *weight = random_numbers(N * K, "weight");
    uint16_t *output = (uint16_t *)allocate(M * N * 2, "output");
    avl_linear_args_t args = {};
    args.input = input;
    args.input_stride = args.weight_stride = args.in_width = K;
    args.weight = weight;
    args.output = output;
    args.output_stride = args.out_width = N;
    args.rows = M;
    args.dtype = args.output_dtype = AVL_DTYPE_BF16;
    double us = time_of([&](int) { must(avl_linear(device, &args), "linear"); });
    product_rate = 2.0 * M * N * K / us * 1e-6;
    report_flops("matrix product 8192 x 8192 x 4096", us, 2.0 * M * N * K);
    args.rows = 1;
    us = time_of([&](int) { must(avl_linear(device, &args), "linear"); });
    report_bytes("matrix product of one row, 8192 x 4096", 1, us, 2.0 * N * K);
    device->ops->release(device, input);
    device->ops->release(device, weight);
    device->ops->release(device, output);
}

typedef struct cache {
    uint16_t *keys, *values, *query, *output;
    float *weights;
    int32_t *chosen;
} cache_t;

/* One step of `batch` sequences whose rows begin at `shift` in the pool. */
void decode(const cache_t *cache, const int32_t *dense, const int32_t *indexed, int visual,
            int batch, int exports, int i) {
    std::vector<avl_decode_sequence_t> sequences((size_t)batch);
    const int32_t *list = indexed != nullptr ? indexed : dense;
    int length = SYSTEM + visual + TEXT;
    for (int s = 0; s < batch; s++) {
        int place = (s + i * batch) % (int)(SLOTS / ROWS - 1);
        const int32_t *rows = list + (int64_t)place * length;
        sequences[(size_t)s] = {
            s,
            {{rows, SYSTEM}, {rows + SYSTEM, visual}, {rows + SYSTEM + visual, TEXT}},
            exports ? cache->weights + (int64_t)s * VISUAL : nullptr};
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
    std::vector<int32_t> lists, order(VISUAL);
    for (int place = 0; place < (int)(SLOTS / ROWS - 1); place++) {
        int32_t base = place * ROWS;
        std::iota(order.begin(), order.end(), 0);
        if (kept < VISUAL)
            std::shuffle(order.begin(), order.end(), random);
        std::sort(order.begin(), order.begin() + kept);
        for (int i = 0; i < SYSTEM; i++)
            lists.push_back(base + i);
        for (int i = 0; i < kept; i++)
            lists.push_back(base + SYSTEM + order[(size_t)i]);
        for (int i = 0; i < TEXT; i++)
            lists.push_back(base + SYSTEM + VISUAL + i);
    }
    return send(lists);
}

void measure_decode(const cache_t *cache) {
    /* 30 % of all rows: those outside the picture are always read. */
    constexpr int KEPT = ROWS * 30 / 100 - SYSTEM - TEXT;
    constexpr int INTERVAL = 8; /* steps from one selection to the next */
    int32_t *dense = make_lists(VISUAL), *indexed = make_lists(KEPT);
    for (int batch = 1; batch <= BATCH_MAX; batch *= 2) {
        double row_bytes = 2.0 * ROW * 2 * batch;
        double full = time_of([&](int i) { decode(cache, dense, nullptr, VISUAL, batch, 0, i); });
        report_bytes("decode attention, 2300 rows", batch, full, row_bytes * ROWS);
        double part = time_of([&](int i) { decode(cache, dense, indexed, KEPT, batch, 0, i); });
        report_bytes("decode attention, 30 % by index", batch, part,
                     row_bytes * (SYSTEM + KEPT + TEXT));
        double scored = time_of([&](int i) { decode(cache, dense, nullptr, VISUAL, batch, 1, i); });
        double chosen = time_of([&](int) {
            for (int s = 0; s < batch; s++) {
                avl_topk_args_t args = {cache->weights + (int64_t)s * VISUAL, VISUAL, KEPT,
                                        cache->chosen};
                must(avl_topk(device, &args), "topk");
            }
        });
        double extra = scored - full + chosen;
        printf("{\"name\": \"scores and selection\", \"batch\": %d, \"us\": %.2f, "
               "\"export_us\": %.2f, \"select_us\": %.2f, \"share_of_attention\": %.4f, "
               "\"interval\": %d}\n",
               batch, extra, scored - full, chosen, extra / (INTERVAL * part), INTERVAL);
        fflush(stdout);
    }
    device->ops->release(device, dense);
    device->ops->release(device, indexed);
}

void measure_prompt(const char *name, int rows, int heads, int width, int causal, int sequences) {
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
    double us = time_of([&](int) { must(avl_attention(device, &args), "attention"); });
    report_flops(name, us, 4.0 * rows * rows * (double)row * sequences * (causal ? 0.5 : 1.0));
    device->ops->release(device, query);
    device->ops->release(device, keys);
    device->ops->release(device, values);
    device->ops->release(device, output);
}

} // namespace

int main(void) {
    must(avl_cuda_device_open(&device), "opening the device");
    stream = avl_cuda_of(device)->stream;
    printf("{\"name\": \"device\", \"text\": \"%s\", \"free_bytes\": %zu}\n", device->info.name,
           device->info.memory_bytes);
    measure_copy();
    measure_product();
    cache_t cache;
    cache.keys = random_numbers(SLOTS * ROW, "keys");
    cache.values = random_numbers(SLOTS * ROW, "values");
    cache.query = random_numbers(BATCH_MAX * ROW, "query");
    cache.output = (uint16_t *)allocate(BATCH_MAX * ROW * 2, "output");
    cache.weights = (float *)allocate(BATCH_MAX * VISUAL * 4, "weights");
    cache.chosen = (int32_t *)allocate(VISUAL * 4, "chosen rows");
    measure_decode(&cache);
    measure_prompt("prefill attention, 2304 causal, 32 x 128", 2304, 32, 128, 1, 1);
    measure_prompt("prefill attention, 2304 causal, 32 x 128, 4 prompts", 2304, 32, 128, 1, 4);
    measure_prompt("vision attention, 577, 16 x 64, 5 tiles", 577, 16, 64, 0, 5);
    must(device->ops->synchronize(device), "the end");
    avl_device_close(device);
    return 0;
}
