/* bench/kernels.c: how fast the operations are on this machine, beside what its memory and a plain
 * copy give.
 *
 * Every figure is the best of several repetitions: other processes share the cores, and the best is
 * what repeats. */
#include <argp.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/wait_policy.h"
#include "kernels/attention.h"
#include "kernels/device.h"
#include "kernels/linear.h"
#include "kernels/select.h"

enum { REPETITIONS = 5 };

static const double repetition_seconds = 0.05;

typedef avl_status_t work_t(avl_device_t *device, void *context);

/* Seconds of one call of `work`. */
static double measure(avl_device_t *device, work_t *work, void *context) {
    double best = INFINITY;
    for (int i = 0; i < REPETITIONS; i++) {
        int64_t begin = avl_clock_now_ns();
        int calls = 0;
        double seconds = 0;
        while (seconds < repetition_seconds) {
            avl_status_t status = work(device, context);
            if (status != AVL_OK) {
                fprintf(stderr, "%s: %s\n", avl_status_name(status), avl_status_detail());
                exit(EXIT_FAILURE);
            }
            calls++;
            seconds = (double)(avl_clock_now_ns() - begin) * 1e-9;
        }
        best = fmin(best, seconds / calls);
    }
    return best;
}

static void *create(avl_device_t *device, size_t bytes) {
    void *memory = NULL;
    if (device->ops->allocate(device, bytes, "a benchmark's tensor", &memory) != AVL_OK) {
        fprintf(stderr, "%s\n", avl_status_detail());
        exit(EXIT_FAILURE);
    }
    return memory;
}

static void *create_random(avl_device_t *device, int64_t count, avl_dtype_t dtype) {
    char *memory = create(device, (size_t)count * avl_dtype_bytes(dtype));
    uint32_t state = 12345;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        float value = (float)(int32_t)state * 0x1p-31f;
        uint16_t half = avl_f32_to_bf16(value);
        if (dtype == AVL_DTYPE_F32)
            memcpy(memory + i * 4, &value, 4);
        else
            memcpy(memory + i * 2, &half, 2);
    }
    return memory;
}

static avl_status_t linear(avl_device_t *device, void *context) {
    return avl_linear(device, context);
}

static void bench_linear(avl_device_t *device, double read_bandwidth) {
    static const int rows[] = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 127, 128, 512};
    enum { ROWS_MAX = 512, IN = 4096, OUT = 11008 };
    for (int f = 0; f < 2; f++) {
        avl_dtype_t dtype = f ? AVL_DTYPE_BF16 : AVL_DTYPE_F32;
        void *input = create_random(device, (int64_t)ROWS_MAX * IN, dtype);
        void *weight = create_random(device, (int64_t)OUT * IN, dtype);
        void *output = create(device, (size_t)ROWS_MAX * OUT * 4);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            avl_linear_args_t args = {.input = input,
                                      .input_stride = IN,
                                      .weight = weight,
                                      .weight_stride = IN,
                                      .output = output,
                                      .output_stride = OUT,
                                      .rows = rows[i],
                                      .in_width = IN,
                                      .out_width = OUT,
                                      .dtype = dtype,
                                      .output_dtype = dtype};
            double seconds = measure(device, linear, &args);
            double bytes = (double)OUT * IN * (double)avl_dtype_bytes(dtype);
            printf(
                "linear %-4s %4d x %d x %d  %9.3f ms  %8.1f GFLOP/s  weights %6.2f GB/s (%.2f of "
                "reading)\n",
                avl_dtype_name(dtype), rows[i], IN, OUT, seconds * 1e3,
                2e-9 * rows[i] * IN * OUT / seconds, bytes / seconds * 1e-9,
                bytes / seconds / read_bandwidth);
        }
        device->ops->release(device, input);
        device->ops->release(device, weight);
        device->ops->release(device, output);
    }
}

static avl_status_t decode(avl_device_t *device, void *context) {
    return avl_decode_attention(device, context);
}

/* The cache is larger than any cache of the processor: every sequence has rows of its own, several
 * times over. */
static void bench_decode(avl_device_t *device, double read_bandwidth) {
    enum { ROWS = 2300, HEADS = 32, WIDTH = 128, BATCH_MAX = 4, SLOTS = ROWS * BATCH_MAX };
    /* Of the rows: listed, and read of them; all that are listed, or each head's best. */
    static const struct { double listed, read; } shares[] = {{1.0, 1.0}, {0.3, 0.3}, {0.5, 0.1}};
    int64_t row_width = HEADS * WIDTH;
    void *keys = create_random(device, SLOTS * row_width, AVL_DTYPE_BF16);
    void *values = create_random(device, SLOTS * row_width, AVL_DTYPE_BF16);
    void *query = create_random(device, BATCH_MAX * row_width, AVL_DTYPE_BF16);
    void *output = create(device, BATCH_MAX * (size_t)row_width * 2);
    int32_t *slots = create(device, SLOTS * sizeof *slots);
    for (int batch = 1; batch <= BATCH_MAX; batch *= 4) {
        double dense_seconds = 0;
        for (int s = 0; s < 3; s++) {
            avl_decode_sequence_t sequences[BATCH_MAX] = {{0}};
            int count = 0, read = (int)(shares[s].read * ROWS);
            for (int b = 0; b < batch; b++) {
                count = 0;
                for (int i = 0; i < ROWS; i++) { /* scattered, ascending */
                    if ((i * 797) % 1000 < shares[s].listed * 1000)
                        slots[b * ROWS + count++] = b * ROWS + i;
                }
                sequences[b].query_row = b;
                sequences[b].spans[AVL_SPAN_VISUAL] = (avl_row_span_t){slots + b * ROWS, count};
                sequences[b].visual_keep = read < count ? read : 0;
            }
            avl_decode_attention_args_t args = {
                .query = query,
                .query_stride = row_width,
                .kv = {keys, values, row_width, HEADS, WIDTH, AVL_DTYPE_BF16},
                .heads = {HEADS, 1, 0},
                .sequences = sequences,
                .sequence_count = batch,
                .output = output,
                .output_stride = row_width,
                .scale = 0.088f};
            double seconds = measure(device, decode, &args);
            read = avl_decode_visual_rows(&sequences[0]);
            double bytes = 2.0 * batch * (count + read) * (double)row_width;
            if (s == 0)
                dense_seconds = seconds;
            printf(
                "decode attention, batch %d, %4d of %4d of %d rows  %8.3f ms  %6.2f GB/s (%.2f of "
                "reading)  %.2fx dense\n",
                batch, read, count, ROWS, seconds * 1e3, bytes / seconds * 1e-9,
                bytes / seconds / read_bandwidth, dense_seconds / seconds);
        }
    }
    device->ops->release(device, keys);
    device->ops->release(device, values);
    device->ops->release(device, query);
    device->ops->release(device, output);
    device->ops->release(device, slots);
}

static avl_status_t attention(avl_device_t *device, void *context) {
    return avl_attention(device, context);
}

static void bench_attention(avl_device_t *device) {
    static const int row_counts[] = {577, 2304};
    enum { HEADS = 8, ROWS_MAX = 2304 };
    for (int v = 0; v < 8; v++) {
        int rows = row_counts[v % 2], width = v & 2 ? 128 : 64, causal = width == 128;
        avl_dtype_t dtype = v & 4 ? AVL_DTYPE_BF16 : AVL_DTYPE_F32;
        int64_t row_width = (int64_t)HEADS * width;
        void *query = create_random(device, rows * row_width, dtype);
        void *keys = create_random(device, rows * row_width, dtype);
        void *values = create_random(device, rows * row_width, dtype);
        void *output = create(device, (size_t)(rows * row_width) * 4);
        avl_attention_sequence_t sequence = {.query_count = rows, .row_count = rows};
        avl_attention_args_t args = {.query = query,
                                     .query_stride = row_width,
                                     .kv = {keys, values, row_width, HEADS, width, dtype},
                                     .heads = {HEADS, 1, 0},
                                     .sequences = &sequence,
                                     .sequence_count = 1,
                                     .output = output,
                                     .output_stride = row_width,
                                     .scale = 0.1f,
                                     .causal = causal};
        double seconds = measure(device, attention, &args);
        double pairs = causal ? 0.5 * rows * (rows + 1.0) : (double)rows * rows;
        printf("attention %-4s D=%-3d %s %4d rows  %9.3f ms  %7.1f GFLOP/s\n",
               avl_dtype_name(dtype), width, causal ? "causal" : "full  ", rows, seconds * 1e3,
               4e-9 * pairs * HEADS * width / seconds);
        device->ops->release(device, query);
        device->ops->release(device, keys);
        device->ops->release(device, values);
        device->ops->release(device, output);
    }
}

static avl_status_t topk(avl_device_t *device, void *context) {
    return avl_topk(device, context);
}

static void bench_topk(avl_device_t *device) {
    static const int counts[] = {576, 2880};
    for (int i = 0; i < 2; i++) {
        float *scores = create_random(device, counts[i], AVL_DTYPE_F32);
        int32_t *indices = create(device, (size_t)counts[i] * sizeof *indices);
        avl_topk_args_t args = {scores, counts[i], counts[i] * 3 / 10, indices};
        printf("topk %4d of %4d  %7.2f us\n", args.keep, args.count,
               measure(device, topk, &args) * 1e6);
        device->ops->release(device, scores);
        device->ops->release(device, indices);
    }
}

enum { STREAM_BYTES = 256 << 20, STREAM_PART_BYTES = 1 << 20 };

/* A one-row product with rows this long does nothing but read: it stands for the reading bandwidth.
 */
static double bench_memory(avl_device_t *device) {
    uint64_t *weight = create(device, STREAM_BYTES);
    for (size_t i = 0; i < STREAM_BYTES / sizeof *weight; i++)
        weight[i] = 0x3f803f803f803f80u;
    uint64_t best_sum = 0;
    double read_seconds = INFINITY;
    for (int repetition = 0; repetition < 4 * REPETITIONS; repetition++) {
        int64_t begin = avl_clock_now_ns();
        uint64_t sum = 0;
#pragma omp parallel for num_threads(device->info.threads) reduction(+ : sum)
        for (size_t i = 0; i < STREAM_BYTES / sizeof *weight; i += 8) {
            sum += weight[i] + weight[i + 1] + weight[i + 2] + weight[i + 3] + weight[i + 4] +
                   weight[i + 5] + weight[i + 6] + weight[i + 7];
        }
        read_seconds = fmin(read_seconds, (double)(avl_clock_now_ns() - begin) * 1e-9);
        best_sum += sum;
    }
    double bandwidth = STREAM_BYTES / read_seconds;
    printf("reading %d MiB  %6.2f GB/s (checksum %llx)\n", STREAM_BYTES >> 20, bandwidth * 1e-9,
           (unsigned long long)best_sum);
    int64_t begin = avl_clock_now_ns();
    memcpy(weight, (char *)weight + STREAM_BYTES / 2, STREAM_BYTES / 2);
    printf("memcpy  %d MiB  %6.2f GB/s read and written, one thread\n", STREAM_BYTES >> 21,
           (double)STREAM_BYTES / ((double)(avl_clock_now_ns() - begin) * 1e-9) * 1e-9);
    device->ops->release(device, weight);
    return bandwidth;
}

typedef struct options {
    int threads;
    const char *isa;
    const char *only;
} options_t;

static error_t parse_option(int key, char *text, struct argp_state *state) {
    options_t *options = state->input;
    switch (key) {
    case 't':
        options->threads = atoi(text);
        return 0;
    case 'i':
        options->isa = text;
        return 0;
    case 'o':
        options->only = text;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int wants(const options_t *options, const char *name) {
    return options->only == NULL || strcmp(options->only, name) == 0;
}

int main(int argc, char **argv) {
    avl_bench_wait_passively(argv);
    static const struct argp_option table[] = {
        {"threads", 't', "N", 0, "threads (default: all)", 0},
        {"isa", 'i', "NAME", 0, "portable, avx2, avx512, avx512bf16 (default: the best)", 0},
        {"only", 'o', "NAME", 0, "linear, decode, attention or topk", 0},
        {0}};
    static const struct argp argp = {table, parse_option, NULL, "Measures the CPU kernels.",
                                     NULL,  NULL,         NULL};
    options_t options = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    avl_device_t *device = NULL;
    if (avl_device_open_cpu(options.threads, options.isa, &device) != AVL_OK) {
        fprintf(stderr, "%s\n", avl_status_detail());
        return EXIT_FAILURE;
    }
    printf("%s, %d threads\n", device->info.name, device->info.threads);
    double read_bandwidth = bench_memory(device);
    if (wants(&options, "linear"))
        bench_linear(device, read_bandwidth);
    if (wants(&options, "decode"))
        bench_decode(device, read_bandwidth);
    if (wants(&options, "attention"))
        bench_attention(device);
    if (wants(&options, "topk"))
        bench_topk(device);
    avl_device_close(device);
    return EXIT_SUCCESS;
}
