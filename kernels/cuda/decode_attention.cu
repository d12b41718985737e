/* kernels/cuda/decode_attention.cu: a decode step's attention over row lists, split over rows.
 *
 * A block takes one chunk of one sequence's rows (the three spans read as one list), one KV head,
 * and the query heads that read it: so a row is read once for a whole group. It writes the chunk's
 * weighted values, largest logit and sum of weights; the block that ends last for its sequence and
 * heads merges the chunks in their order. Chunks stand at fixed places, so a result depends on the
 * sequence's spans alone, and one launch serves the batch. When weights are wanted, raw logits of
 * the visual rows are kept, and a second small kernel turns them into weights. Where KV heads
 * choose their visual rows, two launches go before: one keeps the logits of all, as chunks; in the
 * other a block a sequence and KV head chooses, and moves the logits of the chosen rows together,
 * so that no key is read twice.
 *
 * Two forms: 16-byte loads for bf16 and f16 heads of a multiple of 8 up to 256, aligned; a plain
 * one for the rest. */
#include <inttypes.h>

#include "kernels/cuda/decode_choice.h"

/* tools/gpu-check measures other values, too. */
#ifndef AVL_DECODE_CHUNK
#define AVL_DECODE_CHUNK 256
#endif
#ifndef AVL_DECODE_UNROLL
#define AVL_DECODE_UNROLL 4
#endif

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / AVL_WARP;
constexpr int CHUNK = AVL_DECODE_CHUNK;   /* rows a block: 128 KB of cache at 128 wide bf16 heads */
constexpr int UNROLL = AVL_DECODE_UNROLL; /* rows under way for every thread */
constexpr int VECTOR = 8;                 /* 16-bit numbers of a 16-byte load */
constexpr int VECTOR_WIDTH_MAX = 256;
constexpr int WEIGHT_THREADS = 256;
constexpr int HEAD_WIDTH_MAX = 4096;
constexpr int GRID_YZ_MAX = 65535;

static const int64_t scratch_floats_max = INT64_C(16) << 20;

/* What a block works on. */
typedef struct task {
    const entry_t *entry;
    int chunk, rows;      /* rows of this chunk */
    int stored, computed; /* logits of rows [stored, computed) are there already */
    int head, head_count; /* query heads */
    int kv_head;
} task_t;

__device__ __forceinline__ int64_t row_total(const entry_t *entry) {
    return (int64_t)entry->counts[0] + entry->counts[1] + entry->counts[2];
}

/* The place of row `index` in the chunk, or the nearest there is. */
__device__ __forceinline__ int in_chunk(const task_t &task, int64_t index) {
    index -= (int64_t)task.chunk * CHUNK;
    return (int)(index < 0 ? 0 : index > task.rows ? task.rows : index);
}

/* Returns whether the block has work; the same for all its threads. `scores`: all rows of the
 * visual span in place of those attended to. */
__device__ __forceinline__ int find_task(const params_t &params, int heads_per_block, int scores,
                                         task_t *task) {
    const entry_t *entry = entry_of(params, blockIdx.z);
    task->entry = entry;
    task->chunk = (int)blockIdx.y;
    int64_t rest = scores ? entry->visual_rows : row_total(entry);
    rest -= (int64_t)task->chunk * CHUNK;
    if (rest <= 0 || (scores && entry->places == nullptr))
        return 0;
    task->rows = rest < CHUNK ? (int)rest : CHUNK;
    int64_t system = entry->counts[AVL_SPAN_SYSTEM];
    int has_stored = !scores && entry->places != nullptr;
    task->stored = has_stored ? in_chunk(*task, system) : task->rows;
    task->computed =
        has_stored ? in_chunk(*task, system + entry->counts[AVL_SPAN_VISUAL]) : task->rows;
    task->kv_head = (int)blockIdx.x / params.passes;
    int end = first_query_head(params.heads, task->kv_head + 1);
    task->head = first_query_head(params.heads, task->kv_head) +
                 (int)blockIdx.x % params.passes * heads_per_block;
    task->head_count = min(end - task->head, heads_per_block);
    return task->head_count > 0;
}

/* slots[r] for the chunk's rows. */
__device__ __forceinline__ void load_slots(const task_t &task, int32_t *slots) {
    const entry_t *entry = task.entry;
    for (int r = (int)threadIdx.x; r < task.rows; r += THREADS) {
        int64_t index = (int64_t)task.chunk * CHUNK + r;
        int span = 0;
        while (index >= entry->counts[span])
            index -= entry->counts[span++];
        const int32_t *rows = entry->rows[span];
        if (span == AVL_SPAN_VISUAL && entry->places != nullptr)
            rows = entry->slots + (int64_t)task.kv_head * entry->counts[AVL_SPAN_VISUAL];
        slots[r] = rows[index];
    }
}

/* Whether the logit of the chunk's row is still to be computed. */
__device__ __forceinline__ int is_missing(const task_t &task, int r) {
    return r < task.rows && (r < task.stored || r >= task.computed);
}

/* logits[h][r] of the rows whose logits are there. */
__device__ __forceinline__ void load_stored(const task_t &task, float *logits) {
    const entry_t *entry = task.entry;
    int count = task.computed - task.stored;
    int64_t first = (int64_t)task.chunk * CHUNK + task.stored - entry->counts[AVL_SPAN_SYSTEM];
    for (int i = (int)threadIdx.x; i < count * task.head_count; i += THREADS) {
        int h = i / count, r = i % count;
        logits[h * CHUNK + task.stored + r] =
            entry->chosen[(int64_t)(task.head + h) * entry->counts[AVL_SPAN_VISUAL] + first + r];
    }
}

__device__ __forceinline__ float *partial_of(const params_t &params, const entry_t *entry,
                                             int chunk, int head) {
    int64_t place = (int64_t)chunk * params.heads.query_heads + head;
    return entry->partials + place * (params.kv.head_width + 2);
}

/* Text rows of the chunk that stand before text_first weigh nothing: their logits of one head, by
 * a warp, whose threads are those that go on with them. */
__device__ __forceinline__ void hide_text(const params_t &params, const task_t &task,
                                          const int32_t *slots, float *logits) {
    const entry_t *entry = task.entry;
    int text = entry->counts[AVL_SPAN_SYSTEM] + entry->counts[AVL_SPAN_VISUAL];
    for (int r = (int)threadIdx.x % AVL_WARP; r < task.rows; r += AVL_WARP) {
        if ((int64_t)task.chunk * CHUNK + r >= text &&
            params.text_positions[avl_cuda_row_place(slots[r], task.kv_head, params.kv.kv_heads)] <
                entry->text_first)
            logits[r] = -INFINITY;
    }
}

/* A warp a head: keeps the visual logits, then logits become weights relative to the chunk's
 * largest. */
__device__ __forceinline__ void soften(const params_t &params, const task_t &task,
                                       const int32_t *slots, float (*logits)[CHUNK]) {
    const entry_t *entry = task.entry;
    int lane = (int)threadIdx.x % AVL_WARP, width = params.kv.head_width;
    for (int h = (int)threadIdx.x / AVL_WARP; h < task.head_count; h += WARPS) {
        float largest = -INFINITY, sum = 0.0f;
        if (entry->text_first > 0)
            hide_text(params, task, slots, logits[h]);
        for (int r = lane; r < task.rows; r += AVL_WARP)
            largest = fmaxf(largest, logits[h][r]);
        largest = avl_warp_max(largest);
        int is_hidden = entry->text_first > 0 && largest == -INFINITY;
        for (int r = lane; r < task.rows; r += AVL_WARP) {
            int64_t visual = (int64_t)task.chunk * CHUNK + r - entry->counts[AVL_SPAN_SYSTEM];
            if (entry->weights != nullptr && visual >= 0 && visual < entry->visual_rows)
                entry->logits[(int64_t)(task.head + h) * entry->visual_rows + visual] =
                    logits[h][r];
            float weight = is_hidden ? 0.0f : expf(logits[h][r] - largest);
            logits[h][r] = weight;
            sum += weight;
        }
        sum = avl_warp_sum(sum);
        if (lane == 0) {
            float *partial = partial_of(params, entry, task.chunk, task.head + h);
            partial[width] = largest;
            partial[width + 1] = sum;
        }
    }
}

/* Reads what other blocks wrote past the first cache, which may hold older neighbours. */
template <typename T>
__device__ __forceinline__ void merge_head(const params_t &params, const entry_t *entry, int head) {
    int width = params.kv.head_width;
    int64_t step = (int64_t)params.heads.query_heads * (width + 2);
    const float *first = partial_of(params, entry, 0, head);
    float largest = -INFINITY, total = 0.0f;
    for (int chunk = 0; chunk < entry->chunks; chunk++)
        largest = fmaxf(largest, __ldcg(first + chunk * step + width));
    for (int chunk = 0; chunk < entry->chunks; chunk++) {
        const float *partial = first + chunk * step + width;
        total += expf(__ldcg(partial) - largest) * __ldcg(partial + 1);
    }
    if (threadIdx.x == 0) {
        entry->totals[2 * head] = largest;
        entry->totals[2 * head + 1] = total;
    }
    if (params.output == nullptr)
        return;
    T *output =
        (T *)params.output + entry->query_row * params.output_stride + (int64_t)head * width;
    for (int d = (int)threadIdx.x; d < width; d += THREADS) {
        float value = 0.0f;
        for (int chunk = 0; chunk < entry->chunks; chunk++) {
            const float *partial = first + chunk * step;
            value += expf(__ldcg(partial + width) - largest) * __ldcg(partial + d);
        }
        avl_store(output, d, value / total);
    }
}

/* The last block of its sequence and heads merges, whichever that is; the order of the sums is
 * fixed. */
template <typename T>
__device__ __forceinline__ void finish(const params_t &params, const task_t &task, int *is_last) {
    int *counter = params.counters + (int64_t)blockIdx.z * gridDim.x + blockIdx.x;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        *is_last = atomicAdd(counter, 1) == task.entry->chunks - 1;
    __syncthreads();
    if (!*is_last)
        return;
    __threadfence();
    for (int h = 0; h < task.head_count; h++)
        merge_head<T>(params, task.entry, task.head + h);
    if (threadIdx.x == 0)
        *counter = 0; /* for the next launch */
}

/* ---- 16-byte loads: LANES threads a row ---- */

/* logits[h * stride + r] of the rows that miss theirs. */
template <typename T, int LANES, int HEADS>
__device__ __forceinline__ void vector_logits(const params_t &params, const task_t &task,
                                              const int32_t *slots, float *logits, int64_t stride) {
    constexpr int STEP = THREADS / LANES;
    int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES;
    int width = params.kv.head_width, is_active = lane * VECTOR < width;
    const uint16_t *query = (const uint16_t *)params.query +
                            task.entry->query_row * params.query_stride + lane * VECTOR;
    const uint16_t *keys =
        (const uint16_t *)params.kv.keys + (int64_t)task.kv_head * width + lane * VECTOR;
    float queries[HEADS][VECTOR];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        uint4 packed = make_uint4(0, 0, 0, 0);
        if (is_active && h < task.head_count)
            packed = *(const uint4 *)(query + (int64_t)(task.head + h) * width);
        avl_unpack<T>(packed, queries[h]);
    }
    for (int base = 0; base < task.rows; base += STEP * UNROLL) {
        if (base >= task.stored && base + STEP * UNROLL <= task.computed)
            continue;
        uint4 packed[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int r = base + u * STEP + group;
            packed[u] = make_uint4(0, 0, 0, 0);
            if (is_active && is_missing(task, r))
                packed[u] = __ldg((const uint4 *)(keys + slots[r] * params.kv.row_stride));
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int r = base + u * STEP + group;
            float key[VECTOR];
            avl_unpack<T>(packed[u], key);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float dot = 0.0f;
#pragma unroll
                for (int e = 0; e < VECTOR; e++)
                    dot += queries[h][e] * key[e];
#pragma unroll
                for (int bit = LANES / 2; bit > 0; bit /= 2)
                    dot += __shfl_xor_sync(AVL_ALL_LANES, dot, bit);
                if (lane == 0 && is_missing(task, r) && h < task.head_count)
                    logits[h * stride + r] = dot * params.scale;
            }
        }
    }
}

template <typename T, int LANES, int HEADS>
__device__ __forceinline__ void vector_values(const params_t &params, const task_t &task,
                                              const int32_t *slots, const float (*weights)[CHUNK],
                                              float *sums) {
    constexpr int STEP = THREADS / LANES;
    int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES;
    int width = params.kv.head_width, is_active = lane * VECTOR < width;
    const uint16_t *values =
        (const uint16_t *)params.kv.values + (int64_t)task.kv_head * width + lane * VECTOR;
    float totals[HEADS][VECTOR] = {};
    for (int base = 0; base < task.rows; base += STEP * UNROLL) {
        uint4 packed[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int r = base + u * STEP + group;
            packed[u] = make_uint4(0, 0, 0, 0);
            if (is_active && r < task.rows)
                packed[u] = __ldg((const uint4 *)(values + slots[r] * params.kv.row_stride));
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int r = base + u * STEP + group;
            float value[VECTOR];
            avl_unpack<T>(packed[u], value);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float weight = r < task.rows && h < task.head_count ? weights[h][r] : 0.0f;
#pragma unroll
                for (int e = 0; e < VECTOR; e++)
                    totals[h][e] += weight * value[e];
            }
        }
    }
    int warp = (int)threadIdx.x / AVL_WARP;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int e = 0; e < VECTOR; e++) {
#pragma unroll
            for (int bit = LANES; bit < AVL_WARP; bit *= 2)
                totals[h][e] += __shfl_xor_sync(AVL_ALL_LANES, totals[h][e], bit);
            if ((int)threadIdx.x % AVL_WARP < LANES)
                sums[((int64_t)warp * HEADS + h) * (LANES * VECTOR) + lane * VECTOR + e] =
                    totals[h][e];
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < task.head_count * width; i += THREADS) {
        int h = i / width, d = i % width;
        float total = 0.0f;
        for (int w = 0; w < WARPS; w++)
            total += sums[((int64_t)w * HEADS + h) * (LANES * VECTOR) + d];
        partial_of(params, task.entry, task.chunk, task.head + h)[d] = total;
    }
}

template <int LANES, int HEADS> static size_t vector_shared_bytes(void) {
    return avl_shared_part(CHUNK * sizeof(int32_t)) +
           avl_shared_part(HEADS * CHUNK * sizeof(float)) +
           avl_shared_part((size_t)WARPS * HEADS * LANES * VECTOR * sizeof(float)) +
           avl_shared_part(sizeof(int));
}

template <typename T, int LANES, int HEADS>
__global__ void __launch_bounds__(THREADS) vector_kernel(const __grid_constant__ params_t params) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int32_t *slots = (int32_t *)avl_shared_take(&cursor, CHUNK * sizeof(int32_t));
    float(*logits)[CHUNK] =
        (float(*)[CHUNK])avl_shared_take(&cursor, HEADS * CHUNK * sizeof(float));
    float *sums =
        (float *)avl_shared_take(&cursor, (size_t)WARPS * HEADS * LANES * VECTOR * sizeof(float));
    int *is_last = (int *)avl_shared_take(&cursor, sizeof(int));
    task_t task;
    if (!find_task(params, HEADS, 0, &task))
        return;
    load_slots(task, slots);
    load_stored(task, logits[0]);
    __syncthreads();
    vector_logits<T, LANES, HEADS>(params, task, slots, logits[0], CHUNK);
    __syncthreads();
    soften(params, task, slots, logits);
    __syncthreads();
    if (params.output != nullptr)
        vector_values<T, LANES, HEADS>(params, task, slots, logits, sums);
    finish<T>(params, task, is_last);
}

/* Slots of the visual span's rows, and where the logits of the block's heads go. */
__device__ __forceinline__ float *begin_scores(const task_t &task, int32_t *slots) {
    const entry_t *entry = task.entry;
    int64_t first = (int64_t)task.chunk * CHUNK;
    for (int r = (int)threadIdx.x; r < task.rows; r += THREADS)
        slots[r] = entry->rows[AVL_SPAN_VISUAL][first + r];
    return entry->logits + (int64_t)task.head * entry->visual_rows + first;
}

template <typename T, int LANES, int HEADS>
__global__ void __launch_bounds__(THREADS)
    vector_score_kernel(const __grid_constant__ params_t params) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int32_t *slots = (int32_t *)avl_shared_take(&cursor, CHUNK * sizeof(int32_t));
    task_t task;
    if (!find_task(params, HEADS, 1, &task))
        return;
    float *logits = begin_scores(task, slots);
    __syncthreads();
    vector_logits<T, LANES, HEADS>(params, task, slots, logits, task.entry->visual_rows);
}

/* ---- any width, format and alignment: one query head a block ---- */

template <typename T>
__device__ __forceinline__ void plain_logits(const params_t &params, const task_t &task,
                                             const int32_t *slots, float *logits) {
    int width = params.kv.head_width, lane = (int)threadIdx.x % AVL_WARP;
    const T *query = (const T *)params.query + task.entry->query_row * params.query_stride +
                     (int64_t)task.head * width;
    const T *keys = (const T *)params.kv.keys + (int64_t)task.kv_head * width;
    for (int r = (int)threadIdx.x / AVL_WARP; r < task.rows; r += WARPS) {
        if (!is_missing(task, r))
            continue;
        float dot = 0.0f;
        for (int d = lane; d < width; d += AVL_WARP)
            dot += avl_load(query, d) * avl_load(keys, slots[r] * params.kv.row_stride + d);
        dot = avl_warp_sum(dot);
        if (lane == 0)
            logits[r] = dot * params.scale;
    }
}

static size_t plain_shared_bytes(void) {
    return avl_shared_part(CHUNK * sizeof(int32_t)) + avl_shared_part(CHUNK * sizeof(float)) +
           avl_shared_part(sizeof(int));
}

template <typename T>
__global__ void __launch_bounds__(THREADS) plain_kernel(const __grid_constant__ params_t params) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int32_t *slots = (int32_t *)avl_shared_take(&cursor, CHUNK * sizeof(int32_t));
    float(*logits)[CHUNK] = (float(*)[CHUNK])avl_shared_take(&cursor, CHUNK * sizeof(float));
    int *is_last = (int *)avl_shared_take(&cursor, sizeof(int));
    task_t task;
    if (!find_task(params, 1, 0, &task))
        return;
    load_slots(task, slots);
    load_stored(task, logits[0]);
    __syncthreads();
    int width = params.kv.head_width;
    const T *values = (const T *)params.kv.values + (int64_t)task.kv_head * width;
    plain_logits<T>(params, task, slots, logits[0]);
    __syncthreads();
    soften(params, task, slots, logits);
    __syncthreads();
    if (params.output != nullptr) {
        float *partial = partial_of(params, task.entry, task.chunk, task.head);
        for (int d = (int)threadIdx.x; d < width; d += THREADS) {
            float total = 0.0f;
            for (int r = 0; r < task.rows; r++)
                total += logits[0][r] * avl_load(values, slots[r] * params.kv.row_stride + d);
            partial[d] = total;
        }
    }
    finish<T>(params, task, is_last);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    plain_score_kernel(const __grid_constant__ params_t params) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int32_t *slots = (int32_t *)avl_shared_take(&cursor, CHUNK * sizeof(int32_t));
    task_t task;
    if (!find_task(params, 1, 1, &task))
        return;
    float *logits = begin_scores(task, slots);
    __syncthreads();
    plain_logits<T>(params, task, slots, logits);
}

/* ---- weights ---- */

__global__ void __launch_bounds__(WEIGHT_THREADS)
    weights_kernel(const __grid_constant__ params_t params) {
    const entry_t *entry = entry_of(params, blockIdx.z);
    int64_t visual = entry->visual_rows;
    int64_t row = (int64_t)blockIdx.x * WEIGHT_THREADS + threadIdx.x;
    if (entry->weights == nullptr || row >= visual || (blockIdx.y > 0 && !entry->weights_by_head))
        return;
    int head = 0, end = params.heads.query_heads;
    if (entry->weights_by_head) {
        head = first_query_head(params.heads, (int)blockIdx.y);
        end = first_query_head(params.heads, (int)blockIdx.y + 1);
    }
    float sum = 0.0f;
    for (; head < end; head++)
        sum += expf(entry->logits[head * visual + row] - entry->totals[2 * head]) *
               (1.0f / entry->totals[2 * head + 1]);
    entry->weights[blockIdx.y * visual + row] = sum;
}

/* ---- on the host ---- */

static avl_status_t check_sequence(const avl_decode_attention_args_t *args, int index) {
    static const char *const names[] = {"system rows", "visual rows", "text rows"};
    const avl_decode_sequence_t *sequence = &args->sequences[index];
    for (int span = 0; span < AVL_SPAN_COUNT; span++)
        AVL_TRY(avl_check_array("decode_attention", names[span], sequence->spans[span].rows,
                                sequence->spans[span].row_count));
    AVL_TRY(avl_check_visual_keep(sequence, index));
    int64_t rows = avl_decode_rows(sequence) + sequence->spans[AVL_SPAN_VISUAL].row_count -
                   avl_decode_visual_rows(sequence);
    AVL_CHECK_SHAPE(rows > 0 && rows <= INT32_MAX && rows <= (int64_t)GRID_YZ_MAX * CHUNK,
                    "decode_attention: sequence %d has %" PRId64 " rows", index, rows);
    AVL_CHECK_SHAPE(sequence->query_row >= 0 && sequence->query_row <= INT32_MAX,
                    "decode_attention: sequence %d has query row %" PRId64, index,
                    sequence->query_row);
    AVL_CHECK_SHAPE(sequence->text_first <= 0 || args->text_positions != nullptr,
                    "decode_attention: sequence %d hides text before position %" PRId32
                    " and no positions are given",
                    index, sequence->text_first);
    int64_t width = (int64_t)args->heads.query_heads * args->kv.head_width;
    AVL_TRY(avl_check_matrix("decode_attention", "query", args->query, sequence->query_row + 1,
                             args->query_stride, width));
    if (args->output == nullptr)
        return AVL_OK;
    return avl_check_matrix("decode_attention", "output", args->output, sequence->query_row + 1,
                            args->output_stride, width);
}

typedef void kernel_t(const params_t);

typedef struct plan {
    kernel_t *kernel, *score_kernel;
    int heads_per_block;
    int passes;
    unsigned head_blocks; /* gridDim.x */
    size_t shared_bytes;
} plan_t;

template <typename T, int LANES, int HEADS> static plan_t one_plan(void) {
    return {vector_kernel<T, LANES, HEADS>,     vector_score_kernel<T, LANES, HEADS>, HEADS, 0, 0,
            vector_shared_bytes<LANES, HEADS>()};
}

template <typename T> static plan_t plain_plan(void) {
    return {plain_kernel<T>, plain_score_kernel<T>, 1, 0, 0, plain_shared_bytes()};
}

template <typename T, int LANES> static plan_t vector_plan(int group) {
    if (group == 1)
        return one_plan<T, LANES, 1>();
    if (group <= 4)
        return one_plan<T, LANES, 4>();
    return one_plan<T, LANES, 8>();
}

template <typename T> static plan_t choose_sixteen(const avl_decode_attention_args_t *args) {
    const avl_kv_view_t *kv = &args->kv;
    int width = kv->head_width,
        group = (int)avl_cuda_min(args->heads.group, args->heads.query_heads);
    uint64_t bits = (uintptr_t)args->query | (uintptr_t)kv->keys | (uintptr_t)kv->values |
                    (uint64_t)args->query_stride * 2 | (uint64_t)kv->row_stride * 2 |
                    (uint64_t)width * 2;
    if (!avl_cuda_divides(bits, 16) || width > VECTOR_WIDTH_MAX)
        return plain_plan<T>();
    if (width <= 64)
        return vector_plan<T, 8>(group);
    if (width <= 128)
        return vector_plan<T, 16>(group);
    return vector_plan<T, 32>(group);
}

static plan_t choose(const avl_decode_attention_args_t *args) {
    const avl_kv_view_t *kv = &args->kv;
    int group = (int)avl_cuda_min(args->heads.group, args->heads.query_heads);
    plan_t plan = plain_plan<float>();
    if (kv->dtype != AVL_DTYPE_F32)
        plan = kv->dtype == AVL_DTYPE_F16 ? choose_sixteen<avl_f16_t>(args)
                                          : choose_sixteen<uint16_t>(args);
    plan.passes = (int)avl_cuda_ceil_div(group, plan.heads_per_block);
    plan.head_blocks = (unsigned)(kv->kv_heads * plan.passes);
    return plan;
}

static int64_t entry_floats(const avl_decode_attention_args_t *args,
                            const avl_decode_sequence_t *sequence) {
    int64_t heads = args->heads.query_heads;
    int64_t chunks = avl_cuda_ceil_div(avl_decode_rows(sequence), CHUNK);
    int64_t visual = sequence->spans[AVL_SPAN_VISUAL].row_count;
    int64_t floats = heads * (chunks * (args->kv.head_width + 2) + 2);
    if (sequence->visual_weights != nullptr || sequence->visual_keep > 0)
        floats += heads * visual;
    if (sequence->visual_keep > 0)
        floats += choice_floats(heads, args->kv.kv_heads, visual, sequence->visual_keep);
    return floats;
}

/* How many sequences from `first` on go together: at least one, as many as scratch memory and
 * counters hold. */
static int group_count(const avl_decode_attention_args_t *args, const plan_t *plan, int first,
                       int64_t *floats_p) {
    int64_t floats = 0;
    int count = 0;
    while (first + count < args->sequence_count && count < GRID_YZ_MAX &&
           (int64_t)(count + 1) * plan->head_blocks <= AVL_CUDA_COUNTERS) {
        int64_t more = entry_floats(args, &args->sequences[first + count]);
        if (count > 0 && floats + more > scratch_floats_max)
            break;
        floats += more;
        count++;
    }
    *floats_p = floats;
    return count;
}

static entry_t make_entry(const avl_decode_attention_args_t *args,
                          const avl_decode_sequence_t *sequence, float **next_p) {
    entry_t entry = {};
    int64_t heads = args->heads.query_heads;
    entry.query_row = sequence->query_row;
    for (int span = 0; span < AVL_SPAN_COUNT; span++) {
        entry.rows[span] = sequence->spans[span].rows;
        entry.counts[span] = sequence->spans[span].row_count;
    }
    int64_t visual = entry.counts[AVL_SPAN_VISUAL];
    entry.visual_rows = (int32_t)visual;
    entry.counts[AVL_SPAN_VISUAL] = avl_decode_visual_rows(sequence);
    entry.chunks = (int32_t)avl_cuda_ceil_div(avl_decode_rows(sequence), CHUNK);
    float *next = *next_p;
    entry.partials = next;
    next += heads * entry.chunks * (args->kv.head_width + 2);
    entry.text_first = sequence->text_first;
    entry.weights_by_head = sequence->weights_by_head;
    entry.totals = sequence->totals != nullptr ? sequence->totals : next;
    next += heads * 2;
    entry.weights = visual > 0 ? sequence->visual_weights : nullptr;
    if (entry.weights != nullptr || sequence->visual_keep > 0) {
        entry.logits = next;
        next += heads * visual;
    }
    if (sequence->visual_keep > 0) {
        int64_t places = (int64_t)args->kv.kv_heads * sequence->visual_keep;
        entry.chosen = next;
        next += heads * sequence->visual_keep;
        entry.places =
            sequence->visual_places != nullptr ? sequence->visual_places : (int32_t *)next;
        next += places;
        entry.slots = (int32_t *)next;
        next += places;
        if (visual > AVL_MERIT_SHARED_KEYS) {
            entry.keys = (uint32_t *)next;
            next += args->kv.kv_heads * visual;
        }
    }
    *next_p = next;
    return entry;
}

static params_t make_params(const avl_decode_attention_args_t *args, const plan_t *plan,
                            int *counters) {
    params_t params = {};
    params.query = args->query;
    params.query_stride = args->query_stride;
    params.kv = args->kv;
    params.heads = args->heads;
    params.output = args->output;
    params.output_stride = args->output_stride;
    params.scale = args->scale;
    params.text_positions = args->text_positions;
    params.passes = plan->passes;
    params.counters = counters;
    return params;
}

/* How much the launches of a group have to do at most. */
typedef struct launches {
    int32_t chunks;
    int32_t chosen_rows;   /* that are chosen from */
    int32_t weighted_rows; /* whose weights are wanted */
    int weight_parts;
} launches_t;

static void count_launches(const avl_decode_attention_args_t *args, const entry_t *entry,
                           launches_t *launches) {
    launches->chunks = max(launches->chunks, entry->chunks);
    if (entry->places != nullptr)
        launches->chosen_rows = max(launches->chosen_rows, entry->visual_rows);
    if (entry->weights == nullptr)
        return;
    launches->weighted_rows = max(launches->weighted_rows, entry->visual_rows);
    launches->weight_parts =
        max(launches->weight_parts, entry->weights_by_head ? args->kv.kv_heads : 1);
}

static avl_status_t launch_choice(avl_cuda_device_t *cuda, const plan_t *plan,
                                  const params_t *params, int32_t rows, unsigned count) {
    dim3 scores((unsigned)plan->head_blocks, (unsigned)avl_cuda_ceil_div(rows, CHUNK), count);
    AVL_LAUNCH(plan->score_kernel, scores, THREADS, avl_shared_part(CHUNK * sizeof(int32_t)),
               cuda->stream, *params);
    AVL_TRY(avl_cuda_launched("decode_attention: scores"));
    int32_t shared_keys = min(rows, AVL_MERIT_SHARED_KEYS);
    dim3 choices((unsigned)params->kv.kv_heads, count);
    AVL_LAUNCH(choice_kernel, choices, AVL_MERIT_THREADS, choice_shared_bytes(shared_keys),
               cuda->stream, *params, shared_keys);
    return avl_cuda_launched("decode_attention: choices");
}

static avl_status_t launch(avl_cuda_device_t *cuda, const plan_t *plan, const params_t *params,
                           const launches_t *launches, unsigned count) {
    if (launches->chosen_rows > 0)
        AVL_TRY(launch_choice(cuda, plan, params, launches->chosen_rows, count));
    dim3 grid(plan->head_blocks, (unsigned)launches->chunks, count);
    AVL_LAUNCH(plan->kernel, grid, THREADS, plan->shared_bytes, cuda->stream, *params);
    AVL_TRY(avl_cuda_launched("decode_attention"));
    if (launches->weighted_rows == 0)
        return AVL_OK;
    dim3 weights_grid((unsigned)avl_cuda_ceil_div(launches->weighted_rows, WEIGHT_THREADS),
                      (unsigned)launches->weight_parts, count);
    AVL_LAUNCH(weights_kernel, weights_grid, WEIGHT_THREADS, 0, cuda->stream, *params);
    return avl_cuda_launched("decode_attention: weights");
}

/* Scratch memory: the entries when they are many, then the floats. */
static avl_status_t run_group(avl_cuda_device_t *cuda, const avl_decode_attention_args_t *args,
                              const plan_t *plan, int first, int count, int64_t floats) {
    params_t params = make_params(args, plan, cuda->counters);
    size_t entry_bytes = avl_cuda_ceil_div((int64_t)count * (int64_t)sizeof(entry_t), 256) * 256;
    void *scratch = nullptr;
    AVL_TRY(avl_cuda_scratch(cuda, entry_bytes + (size_t)floats * sizeof(float),
                             "decode_attention: partial sums", &scratch));
    float *next = (float *)((char *)scratch + entry_bytes);
    entry_t *entries = params.inlined;
    if (count > INLINE_ENTRIES) {
        void *packed = nullptr;
        AVL_TRY(avl_cuda_pack(cuda, entry_bytes, "decode_attention", &packed));
        entries = (entry_t *)packed;
    }
    launches_t launches = {};
    for (int i = 0; i < count; i++) {
        entry_t entry = make_entry(args, &args->sequences[first + i], &next);
        entries[i] = entry;
        count_launches(args, &entry, &launches);
    }
    if (count > INLINE_ENTRIES) {
        AVL_TRY(avl_cuda_send(cuda, scratch, entries, (size_t)count * sizeof *entries,
                              "decode_attention"));
        params.entries = (const entry_t *)scratch;
    }
    return launch(cuda, plan, &params, &launches, (unsigned)count);
}

} // namespace

avl_status_t avl_cuda_decode_attention(avl_device_t *device,
                                       const avl_decode_attention_args_t *args) {
    AVL_TRY(avl_cuda_check_heads("decode_attention", &args->kv, &args->heads));
    AVL_TRY(
        avl_check_array("decode_attention", "sequences", args->sequences, args->sequence_count));
    if (args->heads.query_heads == 0 || args->sequence_count == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(args->kv.head_width <= HEAD_WIDTH_MAX,
                    "decode_attention: heads of width %d; %d is the most", args->kv.head_width,
                    HEAD_WIDTH_MAX);
    for (int i = 0; i < args->sequence_count; i++)
        AVL_TRY(check_sequence(args, i));
    plan_t plan = choose(args);
    AVL_CHECK_SHAPE(plan.head_blocks <= AVL_CUDA_COUNTERS, "decode_attention: %d KV heads",
                    args->kv.kv_heads);
    for (int first = 0; first < args->sequence_count;) {
        int64_t floats = 0;
        int count = group_count(args, &plan, first, &floats);
        AVL_TRY(run_group(avl_cuda_of(device), args, &plan, first, count, floats));
        first += count;
    }
    return AVL_OK;
}

/* The largest group is one sequence, or as many as stay below the bound (group_count). */
avl_status_t avl_cuda_prepare_attention(avl_device_t *device,
                                        const avl_attention_demand_t *demand) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    int64_t chunks = avl_cuda_ceil_div(demand->decode_rows_max, CHUNK);
    avl_head_map_t heads = {demand->query_heads, demand->group, demand->group - 1};
    int64_t rows = demand->decode_rows_max;
    int64_t one = demand->query_heads * (chunks * (demand->head_width + 2) + 2 + rows) +
                  choice_floats(demand->query_heads, avl_head_map_kv_heads(&heads), rows, rows);
    int64_t floats = avl_cuda_min(one * demand->decode_sequences_max, scratch_floats_max);
    floats = one > floats ? one : floats;
    int64_t entry_bytes = demand->decode_sequences_max * (int64_t)sizeof(entry_t) + 256;
    void *scratch = nullptr;
    if (demand->decode_rows_max > 0)
        AVL_TRY(avl_cuda_scratch(cuda, (size_t)(entry_bytes + floats * (int64_t)sizeof(float)),
                                 "decode_attention: partial sums", &scratch));
    device->workspace_bytes = cuda->scratch_bytes;
    return AVL_OK;
}
