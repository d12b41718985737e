/* kernels/cuda/attention.cu: prompt and picture attention over row lists.
 *
 * For bf16 and f16: a block takes 64 queries of one head, a warp 16 of them, and walks the visible
 * rows in tiles of 64, brought to shared memory row by row while the tile before is computed; both
 * products run on the tensor cores with f32 sums, and the softmax is kept running
 * (FlashAttention-2, Dao 2023). Queries stay in registers, and weights go from one product to the
 * other without leaving them, because the layouts of a product's result and of its left operand
 * agree.
 *
 * For f32, odd widths and unaligned rows: a plain kernel, one query of one head a block.
 *
 * A block depends on its own sequence alone. */
#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / AVL_WARP;
constexpr int QUERIES = 16 * WARPS;
constexpr int KEYS = 64;
constexpr int STAGES = 2;
constexpr int VECTOR = 8; /* 16-bit numbers of 16 bytes */
constexpr int PADDING = 8;
constexpr int INLINE_SEQUENCES = 32;
constexpr int HEAD_WIDTH_MAX = 4096;
constexpr int GRID_YZ_MAX = 65535;

typedef struct params {
    const void *query;
    int64_t query_stride;
    avl_kv_view_t kv;
    avl_head_map_t heads;
    void *output;
    int64_t output_stride;
    float scale;
    int window;
    int causal;
    const avl_attention_sequence_t *sequences; /* NULL: in `inlined` */
    avl_attention_sequence_t inlined[INLINE_SEQUENCES];
} params_t;

__device__ __forceinline__ const avl_attention_sequence_t *sequence_of(const params_t &params) {
    return params.sequences != nullptr ? params.sequences + blockIdx.z
                                       : params.inlined + blockIdx.z;
}

__device__ __forceinline__ int64_t slot_of(const avl_attention_sequence_t *sequence, int index) {
    return sequence->rows != nullptr ? sequence->rows[index] : sequence->first_row + index;
}

/* The rows that the query at `place` of the list sees: [begin, end). */
__device__ __forceinline__ int visible_begin(const params_t &params, int place) {
    return params.causal && params.window > 0 && place >= params.window ? place - params.window + 1
                                                                        : 0;
}
__device__ __forceinline__ int visible_end(const params_t &params,
                                           const avl_attention_sequence_t *sequence, int place) {
    return params.causal && place + 1 < sequence->row_count ? place + 1 : sequence->row_count;
}

/* ---- tensor cores ---- */

/* What a block works on: queries first .. of the sequence's chunk, rows begin .. end of its list.
 */
typedef struct task {
    const avl_attention_sequence_t *sequence;
    int first, place; /* of the block's first query: in the chunk, in the list */
    int begin, end;
    int64_t head_offset; /* elements, in a cache row */
} task_t;

/* A tile of keys or values on its way to shared memory: rows behind the list and columns behind the
 * head become zero. A thread has one column of vectors to itself; where a row has not as many as
 * threads, some have none, which is cheaper than working out who has what. */
template <int WIDTH>
__device__ __forceinline__ void fetch_tile(const params_t &params, const task_t &task,
                                           const void *cache, int tile,
                                           uint16_t (*target)[WIDTH + PADDING]) {
    constexpr int LANES = WIDTH <= 64 ? 8 : 16; /* of a row */
    static_assert(WIDTH <= LANES * VECTOR && KEYS % (THREADS / LANES) == 0, "a tile is covered");
    for (int i = (int)threadIdx.x; i < KEYS * LANES; i += THREADS) {
        int row = i / LANES, column = i % LANES * VECTOR;
        if (column >= WIDTH)
            continue;
        int is_there = tile + row < task.end && column < params.kv.head_width;
        const uint16_t *source = (const uint16_t *)cache;
        if (is_there)
            source += slot_of(task.sequence, tile + row) * params.kv.row_stride + task.head_offset +
                      column;
        avl_copy_async(&target[row][column], source, is_there ? 16 : 0);
    }
}

/* The warp's 16 queries as left operands: lane i holds rows i / 4 and 8 below. */
template <int WIDTH>
__device__ __forceinline__ void load_queries(const params_t &params, const task_t &task,
                                             uint32_t (&queries)[WIDTH / 16][4]) {
    int lane = (int)threadIdx.x % AVL_WARP, warp = (int)threadIdx.x / AVL_WARP;
    const uint16_t *query =
        (const uint16_t *)params.query + (int64_t)blockIdx.y * params.kv.head_width;
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            int index = task.first + warp * 16 + lane / 4 + part % 2 * 8;
            int column = step * 16 + lane % 4 * 2 + part / 2 * 8;
            queries[step][part] = 0;
            if (index < task.sequence->query_count && column < params.kv.head_width)
                queries[step][part] =
                    *(const uint32_t *)(query +
                                        (task.sequence->first_query + index) * params.query_stride +
                                        column);
        }
    }
}

/* Only tiles at the edge of what the block's first or last query sees need a mask. */
__device__ __forceinline__ int is_edge(const params_t &params, const task_t &task, int tile) {
    return tile + KEYS > visible_end(params, task.sequence, task.place) ||
           tile < visible_begin(params, task.place + QUERIES - 1);
}

/* scores[16, KEYS] = queries keys^T, masked. */
template <typename T, int WIDTH>
__device__ __forceinline__ void score_tile(const params_t &params, const task_t &task, int tile,
                                           const uint32_t (&queries)[WIDTH / 16][4],
                                           const uint16_t (*keys)[WIDTH + PADDING],
                                           float (&scores)[KEYS / 8][4]) {
    int lane = (int)threadIdx.x % AVL_WARP, warp = (int)threadIdx.x / AVL_WARP;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
        scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
        for (int pair = 0; pair < WIDTH / 32; pair++) {
            uint32_t parts[4];
            avl_load_matrices(parts, &keys[n * 8 + lane % 8][pair * 32 + lane / 8 * 8]);
            const uint32_t low[2] = {parts[0], parts[1]}, high[2] = {parts[2], parts[3]};
            avl_sixteen<T>::multiply(scores[n], queries[2 * pair], low);
            avl_sixteen<T>::multiply(scores[n], queries[2 * pair + 1], high);
        }
    }
    if (!is_edge(params, task, tile))
        return;
    int place = task.place + warp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = tile + n * 8 + lane % 4 * 2 + i % 2, own = place + i / 2 * 8;
            if (row < visible_begin(params, own) || row >= visible_end(params, task.sequence, own))
                scores[n][i] = -INFINITY;
        }
    }
}

/* Scores become weights relative to the running largest; what was summed before is rescaled. */
template <int WIDTH>
__device__ __forceinline__ void soften_tile(float factor, float (&scores)[KEYS / 8][4],
                                            float (&largest)[2], float (&total)[2],
                                            float (&sums)[WIDTH / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = largest[half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]) * factor);
        most = fmaxf(most, __shfl_xor_sync(AVL_ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(AVL_ALL_LANES, most, 2));
        float base = most == -INFINITY ? 0.0f : most; /* nothing seen yet */
        float rescale = exp2f(largest[half] - base);
        largest[half] = most;
        total[half] *= rescale;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = exp2f(scores[n][i] * factor - base);
                total[half] += scores[n][i];
            }
        }
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) {
            sums[n][2 * half] *= rescale;
            sums[n][2 * half + 1] *= rescale;
        }
    }
}

/* The weights of 16 rows as left operands. */
template <typename T>
__device__ __forceinline__ void pack_weights(const float (&weights)[KEYS / 8][4], int step,
                                             uint32_t (&a)[4]) {
    const float(&left)[4] = weights[2 * step], (&right)[4] = weights[2 * step + 1];
    a[0] = avl_sixteen<T>::pack(left[0], left[1]);
    a[1] = avl_sixteen<T>::pack(left[2], left[3]);
    a[2] = avl_sixteen<T>::pack(right[0], right[1]);
    a[3] = avl_sixteen<T>::pack(right[2], right[3]);
}

/* 16 rows of 16 columns of values as right operands. */
template <int WIDTH>
__device__ __forceinline__ void load_values(const uint16_t (*values)[WIDTH + PADDING], int step,
                                            int pair, uint32_t (&parts)[4]) {
    int lane = (int)threadIdx.x % AVL_WARP, matrix = lane / 8;
    avl_load_matrices_transposed(
        parts, &values[step * 16 + matrix % 2 * 8 + lane % 8][pair * 16 + matrix / 2 * 8]);
}

/* Whether the lower or the upper of two numbers is not finite. */
template <typename T> __device__ __forceinline__ int is_low_bad(uint32_t pair) {
    constexpr uint32_t exponent = avl_sixteen<T>::exponent;
    return (pair & exponent) == exponent;
}
template <typename T> __device__ __forceinline__ int is_high_bad(uint32_t pair) {
    return is_low_bad<T>(pair >> 16);
}

/* Zeros for the numbers that are not finite. */
template <typename T> __device__ __forceinline__ uint32_t without_bad(uint32_t pair) {
    pair = is_low_bad<T>(pair) ? pair & 0xffff0000u : pair;
    return is_high_bad<T>(pair) ? pair & 0xffffu : pair;
}

/* sums[16, WIDTH] += weights values; HAS_BAD: but for values that are not finite. */
template <typename T, int WIDTH, bool HAS_BAD>
__device__ __forceinline__ void add_tile(const float (&weights)[KEYS / 8][4],
                                         const uint16_t (*values)[WIDTH + PADDING],
                                         float (&sums)[WIDTH / 8][4]) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t a[4];
        pack_weights<T>(weights, step, a);
#pragma unroll
        for (int pair = 0; pair < WIDTH / 16; pair++) {
            uint32_t parts[4];
            load_values<WIDTH>(values, step, pair, parts);
            for (int i = 0; i < 4 && HAS_BAD; i++)
                parts[i] = without_bad<T>(parts[i]);
            const uint32_t low[2] = {parts[0], parts[1]}, high[2] = {parts[2], parts[3]};
            avl_sixteen<T>::multiply(sums[2 * pair], a, low);
            avl_sixteen<T>::multiply(sums[2 * pair + 1], a, high);
        }
    }
}

/* The same for all lanes of the warp. */
template <typename T, int WIDTH>
__device__ __forceinline__ int tile_is_finite(const uint16_t (*values)[WIDTH + PADDING]) {
    unsigned bad = 0;
    for (int i = (int)threadIdx.x % AVL_WARP; i < KEYS * WIDTH / 2; i += AVL_WARP) {
        uint32_t pair;
        memcpy(&pair, &values[i / (WIDTH / 2)][i % (WIDTH / 2) * 2], sizeof pair);
        bad |= is_low_bad<T>(pair) || is_high_bad<T>(pair);
    }
    for (int bit = AVL_WARP / 2; bit > 0; bit /= 2)
        bad |= __shfl_xor_sync(AVL_ALL_LANES, bad, bit);
    return bad == 0;
}

/* Ones where one of the two numbers is not finite. */
template <typename T> __device__ __forceinline__ uint32_t mark_bad(uint32_t pair) {
    constexpr uint32_t one = avl_sixteen<T>::one;
    return (is_low_bad<T>(pair) ? one : 0u) | (is_high_bad<T>(pair) ? one << 16 : 0u);
}

/* Makes undefined the sums of queries with a weight for a value that is not finite; add_tile has
 * left those values out, because a product takes hidden rows along with a weight of 0. */
template <typename T, int WIDTH>
__device__ __forceinline__ void spoil_sums(const float (&weights)[KEYS / 8][4],
                                           const uint16_t (*values)[WIDTH + PADDING],
                                           float (&sums)[WIDTH / 8][4]) {
#pragma unroll
    for (int pair = 0; pair < WIDTH / 16; pair++) {
        float marks[2][4] = {};
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t a[4], parts[4];
            pack_weights<T>(weights, step, a);
            load_values<WIDTH>(values, step, pair, parts);
            const uint32_t low[2] = {mark_bad<T>(parts[0]), mark_bad<T>(parts[1])};
            const uint32_t high[2] = {mark_bad<T>(parts[2]), mark_bad<T>(parts[3])};
            avl_sixteen<T>::multiply(marks[0], a, low);
            avl_sixteen<T>::multiply(marks[1], a, high);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[2 * pair][i] = marks[0][i] != 0.0f ? NAN : sums[2 * pair][i];
            sums[2 * pair + 1][i] = marks[1][i] != 0.0f ? NAN : sums[2 * pair + 1][i];
        }
    }
}

template <typename T, int WIDTH>
__device__ __forceinline__ void write_queries(const params_t &params, const task_t &task,
                                              const float (&total)[2],
                                              const float (&sums)[WIDTH / 8][4]) {
    int lane = (int)threadIdx.x % AVL_WARP, warp = (int)threadIdx.x / AVL_WARP;
    uint16_t *output = (uint16_t *)params.output + (int64_t)blockIdx.y * params.kv.head_width;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float whole = total[half] + __shfl_xor_sync(AVL_ALL_LANES, total[half], 1);
        whole += __shfl_xor_sync(AVL_ALL_LANES, whole, 2);
        int index = task.first + warp * 16 + lane / 4 + half * 8;
        if (index >= task.sequence->query_count)
            continue;
        uint16_t *row = output + (task.sequence->first_query + index) * params.output_stride;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) {
            int column = n * 8 + lane % 4 * 2;
            if (column < params.kv.head_width)
                *(uint32_t *)(row + column) =
                    avl_sixteen<T>::pack(sums[n][2 * half] / whole, sums[n][2 * half + 1] / whole);
        }
    }
}

template <int WIDTH> static size_t tensor_shared_bytes(void) {
    return 2 * avl_shared_part(STAGES * KEYS * (WIDTH + PADDING) * sizeof(uint16_t));
}

/* Returns whether the block has queries. The blocks that see the most rows come first. */
__device__ __forceinline__ int find_task(const params_t &params, task_t *task) {
    const avl_attention_sequence_t *sequence = sequence_of(params);
    task->sequence = sequence;
    task->first = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES;
    if (task->first >= sequence->query_count)
        return 0;
    int last = min(task->first + QUERIES, sequence->query_count) - 1;
    int before = sequence->row_count - sequence->query_count;
    task->place = before + task->first;
    task->begin = visible_begin(params, task->place) / KEYS * KEYS;
    task->end = visible_end(params, sequence, before + last);
    int kv_head = ((int)blockIdx.y + params.heads.query_head_offset) / params.heads.group;
    task->head_offset = (int64_t)kv_head * params.kv.head_width;
    return 1;
}

template <typename T, int WIDTH>
__global__ void __launch_bounds__(THREADS) tensor_kernel(const __grid_constant__ params_t params) {
    typedef uint16_t tile_t[KEYS][WIDTH + PADDING];
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    tile_t *keys = (tile_t *)avl_shared_take(&cursor, STAGES * sizeof(tile_t));
    tile_t *values = (tile_t *)avl_shared_take(&cursor, STAGES * sizeof(tile_t));
    task_t task;
    if (!find_task(params, &task))
        return;
    uint32_t queries[WIDTH / 16][4];
    float sums[WIDTH / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    float factor = params.scale * 1.4426950408889634f; /* exp(x) = exp2(x log2(e)) */
    load_queries<WIDTH>(params, task, queries);
    fetch_tile<WIDTH>(params, task, params.kv.keys, task.begin, keys[0]);
    fetch_tile<WIDTH>(params, task, params.kv.values, task.begin, values[0]);
    avl_copy_async_commit();
    int stage = 0;
    for (int tile = task.begin; tile < task.end; tile += KEYS, stage ^= 1) {
        if (tile + KEYS < task.end) {
            fetch_tile<WIDTH>(params, task, params.kv.keys, tile + KEYS, keys[stage ^ 1]);
            fetch_tile<WIDTH>(params, task, params.kv.values, tile + KEYS, values[stage ^ 1]);
            avl_copy_async_commit();
            avl_copy_async_wait<1>();
        } else {
            avl_copy_async_wait<0>();
        }
        __syncthreads();
        float scores[KEYS / 8][4];
        score_tile<T, WIDTH>(params, task, tile, queries, keys[stage], scores);
        soften_tile<WIDTH>(factor, scores, largest, total, sums);
        if (is_edge(params, task, tile) && !tile_is_finite<T, WIDTH>(values[stage])) {
            add_tile<T, WIDTH, true>(scores, values[stage], sums);
            spoil_sums<T, WIDTH>(scores, values[stage], sums);
        } else {
            add_tile<T, WIDTH, false>(scores, values[stage], sums);
        }
        __syncthreads(); /* the next round fetches over this stage */
    }
    write_queries<T, WIDTH>(params, task, total, sums);
}

/* ---- plain ---- */

static size_t plain_shared_bytes(int width) {
    return avl_shared_part((size_t)width * sizeof(float)) +
           2 * avl_shared_part(THREADS * sizeof(float)) + avl_shared_part(WARPS * sizeof(float));
}

/* One query of one head; a thread computes the logit of one row of a tile, then sums of columns. */
template <typename T>
__global__ void __launch_bounds__(THREADS) plain_kernel(const __grid_constant__ params_t params) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int width = params.kv.head_width;
    float *sums = (float *)avl_shared_take(&cursor, (size_t)width * sizeof(float));
    float *weights = (float *)avl_shared_take(&cursor, THREADS * sizeof(float));
    int32_t *slots = (int32_t *)avl_shared_take(&cursor, THREADS * sizeof(int32_t));
    float *scratch = (float *)avl_shared_take(&cursor, WARPS * sizeof(float));
    const avl_attention_sequence_t *sequence = sequence_of(params);
    int index = (int)(gridDim.x - 1 - blockIdx.x), self = (int)threadIdx.x;
    if (index >= sequence->query_count)
        return;
    int place = sequence->row_count - sequence->query_count + index;
    int begin = visible_begin(params, place), end = visible_end(params, sequence, place);
    int kv_head = ((int)blockIdx.y + params.heads.query_head_offset) / params.heads.group;
    const T *query = (const T *)params.query +
                     (sequence->first_query + index) * params.query_stride +
                     (int64_t)blockIdx.y * width;
    const T *keys = (const T *)params.kv.keys + (int64_t)kv_head * width;
    const T *values = (const T *)params.kv.values + (int64_t)kv_head * width;
    float largest = -INFINITY, total = 0.0f;
    for (int d = self; d < width; d += THREADS)
        sums[d] = 0.0f;
    for (int tile = begin; tile < end; tile += THREADS) {
        int count = min(THREADS, end - tile);
        float logit = -INFINITY;
        if (self < count) {
            int64_t slot = slot_of(sequence, tile + self);
            slots[self] = (int32_t)slot;
            float dot = 0.0f;
            for (int d = 0; d < width; d++)
                dot += avl_load(query, d) * avl_load(keys, slot * params.kv.row_stride + d);
            logit = dot * params.scale;
        }
        float most = fmaxf(largest, avl_block_max(logit, scratch));
        float rescale = expf(largest - most);
        float weight = self < count ? expf(logit - most) : 0.0f;
        weights[self] = weight;
        total = total * rescale + avl_block_sum(weight, scratch);
        largest = most;
        for (int d = self; d < width; d += THREADS) {
            float sum = sums[d] * rescale;
            for (int r = 0; r < count; r++)
                sum += weights[r] * avl_load(values, slots[r] * params.kv.row_stride + d);
            sums[d] = sum;
        }
        __syncthreads(); /* weights and slots are read until here */
    }
    T *output = (T *)params.output + (sequence->first_query + index) * params.output_stride +
                (int64_t)blockIdx.y * width;
    for (int d = self; d < width; d += THREADS)
        avl_store(output, d, sums[d] / total);
}

/* ---- on the host ---- */

static avl_status_t check_sequence(const avl_attention_args_t *args, int index) {
    const avl_attention_sequence_t *sequence = &args->sequences[index];
    AVL_CHECK_SHAPE(sequence->query_count >= 0 && sequence->row_count >= sequence->query_count,
                    "attention: sequence %d has %" PRId32 " queries and %" PRId32
                    " rows: every query's own row is among the rows",
                    index, sequence->query_count, sequence->row_count);
    if (sequence->query_count == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(sequence->row_count <= INT32_MAX - 2 * KEYS,
                    "attention: sequence %d is of %d rows", index, sequence->row_count);
    AVL_CHECK_SHAPE(sequence->first_query >= 0 && sequence->first_query <= INT32_MAX,
                    "attention: sequence %d begins at query row %" PRId64, index,
                    sequence->first_query);
    AVL_CHECK_SHAPE(sequence->rows != nullptr ||
                        (sequence->first_row >= 0 && sequence->first_row <= INT32_MAX),
                    "attention: sequence %d begins at slot %" PRId64, index, sequence->first_row);
    int64_t rows = sequence->first_query + sequence->query_count;
    int64_t width = (int64_t)args->heads.query_heads * args->kv.head_width;
    AVL_TRY(avl_check_matrix("attention", "query", args->query, rows, args->query_stride, width));
    return avl_check_matrix("attention", "output", args->output, rows, args->output_stride, width);
}

typedef void kernel_t(const params_t);

typedef struct plan {
    kernel_t *kernel;
    size_t shared_bytes;
    int queries; /* a block */
} plan_t;

template <typename T> static plan_t choose_sixteen(const avl_attention_args_t *args) {
    const avl_kv_view_t *kv = &args->kv;
    int width = kv->head_width;
    uint64_t bits = (uintptr_t)kv->keys | (uintptr_t)kv->values | (uint64_t)kv->row_stride * 2 |
                    (uint64_t)width * 2;
    uint64_t pair_bits = (uintptr_t)args->query | (uintptr_t)args->output |
                         (uint64_t)args->query_stride * 2 | (uint64_t)args->output_stride * 2;
    if (!avl_cuda_divides(bits, 16) || !avl_cuda_divides(pair_bits, 4) || width > 128)
        return {plain_kernel<T>, plain_shared_bytes(width), 1};
    if (width <= 64)
        return {tensor_kernel<T, 64>, tensor_shared_bytes<64>(), QUERIES};
    if (width <= 96)
        return {tensor_kernel<T, 96>, tensor_shared_bytes<96>(), QUERIES};
    return {tensor_kernel<T, 128>, tensor_shared_bytes<128>(), QUERIES};
}

static plan_t choose(const avl_attention_args_t *args) {
    if (args->kv.dtype == AVL_DTYPE_F32)
        return {plain_kernel<float>, plain_shared_bytes(args->kv.head_width), 1};
    return args->kv.dtype == AVL_DTYPE_F16 ? choose_sixteen<avl_f16_t>(args)
                                           : choose_sixteen<uint16_t>(args);
}

static avl_status_t launch(avl_cuda_device_t *cuda, const avl_attention_args_t *args,
                           const plan_t *plan, int first, int count) {
    params_t params = {};
    params.query = args->query;
    params.query_stride = args->query_stride;
    params.kv = args->kv;
    params.heads = args->heads;
    params.output = args->output;
    params.output_stride = args->output_stride;
    params.scale = args->scale;
    params.window = args->window;
    params.causal = args->causal;
    int queries_max = 0;
    for (int i = 0; i < count; i++)
        queries_max = max(queries_max, args->sequences[first + i].query_count);
    if (queries_max == 0)
        return AVL_OK;
    size_t bytes = (size_t)count * sizeof *args->sequences;
    if (count <= INLINE_SEQUENCES) {
        memcpy(params.inlined, args->sequences + first, bytes);
    } else {
        void *scratch = nullptr;
        AVL_TRY(avl_cuda_scratch(cuda, bytes, "attention: sequences", &scratch));
        AVL_TRY(avl_cuda_send(cuda, scratch, args->sequences + first, bytes, "attention"));
        params.sequences = (const avl_attention_sequence_t *)scratch;
    }
    dim3 grid((unsigned)avl_cuda_ceil_div(queries_max, plan->queries),
              (unsigned)args->heads.query_heads, (unsigned)count);
    AVL_LAUNCH(plan->kernel, grid, THREADS, plan->shared_bytes, cuda->stream, params);
    return avl_cuda_launched("attention");
}

} // namespace

avl_status_t avl_cuda_attention(avl_device_t *device, const avl_attention_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(avl_cuda_check_heads("attention", &args->kv, &args->heads));
    AVL_CHECK_SHAPE(args->window >= 0, "attention: the window is negative, %d", args->window);
    AVL_TRY(avl_check_array("attention", "sequences", args->sequences, args->sequence_count));
    if (args->heads.query_heads == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(args->kv.head_width <= HEAD_WIDTH_MAX && args->heads.query_heads <= GRID_YZ_MAX,
                    "attention: %d heads of width %d; %d of %d are the most",
                    args->heads.query_heads, args->kv.head_width, GRID_YZ_MAX, HEAD_WIDTH_MAX);
    for (int i = 0; i < args->sequence_count; i++)
        AVL_TRY(check_sequence(args, i));
    plan_t plan = choose(args);
    AVL_TRY(avl_cuda_status(cudaFuncSetAttribute(plan.kernel,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 (int)plan.shared_bytes),
                            "attention: shared memory"));
    for (int first = 0; first < args->sequence_count; first += GRID_YZ_MAX)
        AVL_TRY(launch(cuda, args, &plan, first,
                       (int)avl_cuda_min(GRID_YZ_MAX, args->sequence_count - first)));
    return AVL_OK;
}
