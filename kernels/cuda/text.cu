/* kernels/cuda/text.cu: adaptive text attention: weights of rows, and the histories that they make.
 *
 * Weights: a warp takes one row and the query heads of one KV head. Histories: a block takes one
 * sequence and KV head and goes through the sequence's items in order; a thread always has the same
 * rows, so only the quantile and the row that goes need the others: the quantile's value is found
 * byte by byte from histograms, as in topk.cu. */
#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / AVL_WARP;
constexpr int BLOCK_ROWS = 64;
constexpr int BINS = 256;
constexpr int INLINE_ROWS = 24; /* items that travel in the launch's parameters, of 4 KB at most */
constexpr int GRID_Z_MAX = 65535;

/* The items: in the launch's parameters, or in device memory. */
typedef struct items {
    const avl_text_row_t *rows; /* NULL: inlined */
    avl_text_row_t inlined[INLINE_ROWS];
    int count;
} items_t;

__device__ __forceinline__ const avl_text_row_t *item_of(const items_t &items, int index) {
    return items.rows != nullptr ? items.rows + index : items.inlined + index;
}

/* ---- weights ---- */

typedef struct weights_params {
    const void *query;
    int64_t query_stride;
    avl_kv_view_t kv;
    avl_head_map_t heads;
    const int32_t *positions;
    int first_head;
    float scale;
    items_t items;
} weights_params_t;

/* First query head of this rank that reads KV head `kv_head` or a later one. */
__device__ __forceinline__ int first_query_head(const avl_head_map_t &heads, int kv_head) {
    int64_t head = (int64_t)kv_head * heads.group - heads.query_head_offset;
    head = head < 0 ? 0 : head;
    return (int)(head > heads.query_heads ? heads.query_heads : head);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    weights_kernel(const __grid_constant__ weights_params_t params) {
    const avl_text_row_t *row = item_of(params.items, (int)blockIdx.z);
    int kv_head = (int)blockIdx.x, lane = (int)threadIdx.x % AVL_WARP;
    int width = params.kv.head_width, kv_heads = params.kv.kv_heads;
    int begin = first_query_head(params.heads, kv_head);
    int end = first_query_head(params.heads, kv_head + 1);
    int first = (int)blockIdx.y * BLOCK_ROWS, last = min(first + BLOCK_ROWS, row->row_count);
    float *weights = row->weights + (int64_t)(params.first_head + kv_head) * row->row_count;
    for (int j = first + (int)threadIdx.x / AVL_WARP; j < last; j += WARPS) {
        int64_t slot = row->rows[j];
        float sum = 0.0f;
        if (row->first_position <= 0 ||
            params.positions[avl_cuda_row_place(slot, kv_head, kv_heads)] >= row->first_position) {
            const T *key =
                (const T *)params.kv.keys + slot * params.kv.row_stride + (int64_t)kv_head * width;
            for (int head = begin; head < end; head++) {
                const T *query = (const T *)params.query + row->query_row * params.query_stride +
                                 (int64_t)head * width;
                float dot = 0.0f;
                for (int d = lane; d < width; d += AVL_WARP)
                    dot += avl_load(query, d) * avl_load(key, d);
                dot = avl_warp_sum(dot);
                sum += expf(dot * params.scale - row->totals[2 * head]) *
                       (1.0f / row->totals[2 * head + 1]);
            }
        }
        if (lane == 0)
            weights[j] = sum;
    }
}

/* ---- histories ---- */

typedef struct update_params {
    float *scores;
    const int32_t *positions;
    int kv_heads, first_head;
    float share;
    items_t items;
} update_params_t;

/* What a block shares. */
typedef struct update_shared {
    int *histogram; /* [BINS] */
    float *scores;  /* [THREADS] */
    int *indices;   /* [THREADS] */
    uint32_t *found;
    int *left;
} update_shared_t;

/* The weights at hand: row j's, as it counts in the quantile. */
typedef struct weights_view {
    const float *weights;
    float share;
    int count, left_out; /* -1: none is */
} weights_view_t;

/* A weight is never negative, so its bits are ordered as it is; sorting wants numbers. */
__device__ __forceinline__ uint32_t key_of(const weights_view_t &view, int j) {
    float weight = view.share * view.weights[j];
    return weight == weight ? __float_as_uint(weight + 0.0f) : 0;
}

/* The value of rank `place`, counting from the smallest. */
__device__ __forceinline__ uint32_t key_of_rank(const weights_view_t &view, int place,
                                                const update_shared_t &shared) {
    if (threadIdx.x == 0) {
        *shared.found = 0;
        *shared.left = place;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t mask = shift == 24 ? 0 : ~0u << (shift + 8);
        for (int bin = (int)threadIdx.x; bin < BINS; bin += THREADS)
            shared.histogram[bin] = 0;
        __syncthreads();
        uint32_t found = *shared.found;
        for (int j = (int)threadIdx.x; j < view.count; j += THREADS) {
            uint32_t key = key_of(view, j);
            if (j != view.left_out && (key & mask) == found)
                atomicAdd(&shared.histogram[key >> shift & 0xff], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int bin = 0, left = *shared.left;
            for (; bin < BINS - 1 && left >= shared.histogram[bin]; bin++)
                left -= shared.histogram[bin];
            *shared.left = left;
            *shared.found = found | (uint32_t)bin << shift;
        }
        __syncthreads();
    }
    return *shared.found;
}

/* How many values are at most `limit`, and the least one above it. */
__device__ __forceinline__ int count_up_to(const weights_view_t &view, uint32_t limit,
                                           const update_shared_t &shared, float *above_p) {
    int own = 0;
    float above = INFINITY;
    for (int j = (int)threadIdx.x; j < view.count; j += THREADS) {
        uint32_t key = key_of(view, j);
        if (j == view.left_out)
            continue;
        own += key <= limit;
        if (key > limit)
            above = fminf(above, __uint_as_float(key));
    }
    __syncthreads();
    shared.indices[threadIdx.x] = own;
    shared.scores[threadIdx.x] = above;
    __syncthreads();
    int total = 0;
    for (int i = 0; i < THREADS; i++) {
        total += shared.indices[i];
        above = fminf(above, shared.scores[i]);
    }
    *above_p = above;
    __syncthreads();
    return total;
}

__device__ __forceinline__ float quantile_of(const weights_view_t &view, float quantile,
                                             const update_shared_t &shared) {
    int count = view.count - (view.left_out >= 0);
    if (count < 1)
        return 0.0f;
    float rank = quantile * (float)(count - 1), lower = floorf(rank);
    int place = min((int)lower, count - 1);
    uint32_t key = key_of_rank(view, place, shared);
    float value = __uint_as_float(key), above = 0.0f;
    int up_to = count_up_to(view, key, shared, &above);
    float next = place + 1 >= count || up_to > place + 1 ? value : above;
    return value + (rank - lower) * (next - value);
}

/* Whether a row of score a at position p goes before one of score b at position q. */
__device__ __forceinline__ int goes_before(float a, int32_t p, float b, int32_t q) {
    int a_is_number = a == a, b_is_number = b == b;
    if (a_is_number != b_is_number)
        return b_is_number;
    return a < b || (!(b < a) && p > q);
}

__device__ __forceinline__ int64_t place_of(const update_params_t &params,
                                            const avl_text_row_t *row, int j, int head) {
    return avl_cuda_row_place(row->rows[j], head, params.kv_heads);
}

__device__ __forceinline__ void name_hole(const update_params_t &params, const avl_text_row_t *row,
                                          int head, const update_shared_t &shared) {
    int hole = -1;
    float least = 0.0f;
    int32_t position = 0;
    for (int j = (int)threadIdx.x; j < row->row_count; j += THREADS) {
        int64_t place = place_of(params, row, j, head);
        if (params.positions[place] >= row->recent_position ||
            (hole >= 0 &&
             !goes_before(params.scores[place], params.positions[place], least, position)))
            continue;
        hole = j;
        least = params.scores[place];
        position = params.positions[place];
    }
    shared.indices[threadIdx.x] = hole;
    shared.scores[threadIdx.x] = least;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (int i = 1; i < THREADS; i++) {
        if (shared.indices[i] < 0)
            continue;
        int32_t other = params.positions[place_of(params, row, shared.indices[i], head)];
        if (hole >= 0 && !goes_before(shared.scores[i], other, least, position))
            continue;
        hole = shared.indices[i];
        least = shared.scores[i];
        position = other;
    }
    hole = hole < 0 ? 0 : hole; /* the caller's mistake: nothing may go */
    row->holes[head] = hole;
    row->holes[params.kv_heads + head] = row->rows[hole];
}

__device__ __forceinline__ void update_row(const update_params_t &params, const avl_text_row_t *row,
                                           int head, const update_shared_t &shared) {
    const float *weights = row->weights + (int64_t)(params.first_head + head) * row->row_count;
    int own = row->own >= 0 ? row->own : row->holes[head];
    float taken_off = 0.0f;
    if (row->quantile >= 0.0f) {
        weights_view_t view = {weights, params.share, row->row_count,
                               row->quantile_of_own ? -1 : own};
        taken_off = quantile_of(view, row->quantile, shared);
    }
    for (int j = (int)threadIdx.x; j < row->row_count; j += THREADS) {
        float weight = params.share * weights[j];
        float *score = params.scores + place_of(params, row, j, head);
        *score = j == own ? weight : *score + (weight - taken_off);
    }
    __syncthreads(); /* all have read the old hole */
    if (row->recent_position > 0)
        name_hole(params, row, head, shared);
    __syncthreads();
}

static size_t update_shared_bytes(void) {
    return avl_shared_part(BINS * sizeof(int)) + avl_shared_part(THREADS * sizeof(float)) +
           avl_shared_part(THREADS * sizeof(int)) + avl_shared_part(sizeof(uint32_t)) +
           avl_shared_part(sizeof(int));
}

__global__ void __launch_bounds__(THREADS)
    update_kernel(const __grid_constant__ update_params_t params) {
    AVL_SHARED_BYTES(memory);
    unsigned char *cursor = memory;
    update_shared_t shared;
    shared.histogram = (int *)avl_shared_take(&cursor, BINS * sizeof(int));
    shared.scores = (float *)avl_shared_take(&cursor, THREADS * sizeof(float));
    shared.indices = (int *)avl_shared_take(&cursor, THREADS * sizeof(int));
    shared.found = (uint32_t *)avl_shared_take(&cursor, sizeof(uint32_t));
    shared.left = (int *)avl_shared_take(&cursor, sizeof(int));
    int i = (int)blockIdx.z;
    if (i > 0 && item_of(params.items, i)->follows)
        return; /* the block of its first item does it */
    update_row(params, item_of(params.items, i), (int)blockIdx.x, shared);
    for (i++; i < params.items.count && item_of(params.items, i)->follows; i++)
        update_row(params, item_of(params.items, i), (int)blockIdx.x, shared);
}

/* ---- on the host ---- */

/* Many items go through scratch memory. */
static avl_status_t send_items(avl_cuda_device_t *cuda, const avl_text_row_t *rows, int count,
                               items_t *items) {
    items->count = count;
    items->rows = nullptr;
    if (count <= INLINE_ROWS) {
        memcpy(items->inlined, rows, (size_t)count * sizeof *rows);
        return AVL_OK;
    }
    void *scratch = nullptr;
    AVL_TRY(avl_cuda_scratch(cuda, (size_t)count * sizeof *rows, "text rows of a step", &scratch));
    items->rows = (const avl_text_row_t *)scratch;
    return avl_cuda_send(cuda, scratch, rows, (size_t)count * sizeof *rows, "text rows of a step");
}

static avl_status_t check_row(const char *operation, const avl_text_row_t *row, int index) {
    AVL_CHECK_SHAPE(row->row_count >= 1 && row->own >= -1 && row->own < row->row_count &&
                        row->row_count <= GRID_Z_MAX * BLOCK_ROWS,
                    "%s: item %d has %" PRId32 " rows, and its own is %" PRId32, operation, index,
                    row->row_count, row->own);
    AVL_TRY(avl_check_array(operation, "weights", row->weights, row->row_count));
    return avl_check_array(operation, "rows", row->rows, row->row_count);
}

static avl_status_t check_query(const avl_text_weights_args_t *args, int index) {
    const avl_text_row_t *row = &args->rows[index];
    AVL_CHECK_SHAPE(row->first_position <= 0 || args->positions != nullptr,
                    "text_weights: item %d hides rows before position %" PRId32
                    " and no positions are given",
                    index, row->first_position);
    AVL_CHECK_SHAPE(row->query_row >= 0 && row->query_row <= INT32_MAX,
                    "text_weights: item %d has query row %" PRId64, index, row->query_row);
    AVL_TRY(avl_check_array("text_weights", "totals", row->totals, 1));
    return avl_check_matrix("text_weights", "query", args->query, row->query_row + 1,
                            args->query_stride,
                            (int64_t)args->heads.query_heads * args->kv.head_width);
}

/* ---- what of a prompt stays ---- */

/* `scores`: [Hk, count]; `kept`: [Hk, count], of which the first `heavy` are chosen from those. */
typedef struct keep_params {
    avl_text_keep_args_t args;
    float *scores;
    int32_t *kept;
    int32_t older, heavy;
} keep_params_t;

__global__ void __launch_bounds__(THREADS) gather_scores_kernel(keep_params_t params) {
    const avl_text_keep_args_t &args = params.args;
    int head = (int)blockIdx.y;
    float *scores = params.scores + (int64_t)head * args.count;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < params.older;
         i += (int64_t)gridDim.x * THREADS)
        scores[i] = args.scores[avl_cuda_row_place(args.rows[i], head, args.kv_heads)];
}

/* A block a head, in pieces: what a piece reads stands at its own places or behind them, so nothing
 * that a later piece reads has been overwritten. */
__global__ void __launch_bounds__(THREADS) keep_kernel(keep_params_t params) {
    const avl_text_keep_args_t &args = params.args;
    int head = (int)blockIdx.x;
    const int32_t *kept = params.kept + (int64_t)head * args.count;
    for (int32_t first = 0; first < args.keep; first += THREADS) {
        int32_t i = first + (int32_t)threadIdx.x, position = 0;
        int is_row = i < args.keep;
        float score = 0.0f;
        if (is_row) {
            int32_t source =
                args.rows[i < params.heavy ? kept[i] : params.older + (i - params.heavy)];
            int64_t from = avl_cuda_row_place(source, head, args.kv_heads);
            score = args.scores[from];
            position = args.positions[from];
            args.sources[(int64_t)i * args.kv_heads + head] = source;
            args.targets[(int64_t)i * args.kv_heads + head] = args.rows[i];
        }
        __syncthreads();
        if (is_row) {
            int64_t to = avl_cuda_row_place(args.rows[i], head, args.kv_heads);
            args.scores[to] = score;
            args.positions[to] = position;
        }
        __syncthreads();
    }
}

/* Every head's best, as many lists to choose from as go in one call. */
static avl_status_t choose_rows(avl_device_t *device, const keep_params_t *params) {
    constexpr int LISTS = 32;
    const avl_text_keep_args_t *args = &params->args;
    avl_choose_item_t items[LISTS] = {};
    for (int first = 0; first < args->kv_heads; first += LISTS) {
        int count = min(LISTS, args->kv_heads - first);
        for (int i = 0; i < count; i++) {
            int64_t place = (int64_t)(first + i) * args->count;
            items[i].scores = params->scores + place;
            items[i].count = params->older;
            items[i].keep = params->heavy;
            items[i].indices = params->kept + place;
        }
        avl_choose_args_t lists = {items, count};
        AVL_TRY(avl_cuda_choose(device, &lists));
    }
    return AVL_OK;
}

} // namespace

avl_status_t avl_cuda_text_weights(avl_device_t *device, const avl_text_weights_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(avl_cuda_check_heads("text_weights", &args->kv, &args->heads));
    AVL_TRY(avl_check_array("text_weights", "rows", args->rows, args->count));
    AVL_CHECK_SHAPE(args->count <= GRID_Z_MAX, "text_weights: %d items; %d are the most",
                    args->count, GRID_Z_MAX);
    AVL_CHECK_SHAPE(args->first_head >= 0, "text_weights: the buffer's first head is %d",
                    args->first_head);
    int32_t rows_most = 0;
    for (int i = 0; i < args->count; i++) {
        AVL_TRY(check_row("text_weights", &args->rows[i], i));
        AVL_TRY(check_query(args, i));
        rows_most = args->rows[i].row_count > rows_most ? args->rows[i].row_count : rows_most;
    }
    if (args->count == 0 || args->heads.query_heads == 0)
        return AVL_OK;
    weights_params_t params = {};
    params.query = args->query;
    params.query_stride = args->query_stride;
    params.kv = args->kv;
    params.heads = args->heads;
    params.positions = args->positions;
    params.first_head = args->first_head;
    params.scale = args->scale;
    AVL_TRY(send_items(cuda, args->rows, args->count, &params.items));
    dim3 grid((unsigned)args->kv.kv_heads, (unsigned)avl_cuda_ceil_div(rows_most, BLOCK_ROWS),
              (unsigned)args->count);
    auto *kernel = AVL_CUDA_BY_DTYPE(weights_kernel, args->kv.dtype);
    AVL_LAUNCH(kernel, grid, THREADS, 0, cuda->stream, params);
    return avl_cuda_launched("text_weights");
}

avl_status_t avl_cuda_text_update(avl_device_t *device, const avl_text_update_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(avl_check_array("text_update", "rows", args->rows, args->count));
    AVL_CHECK_SHAPE(args->count <= GRID_Z_MAX, "text_update: %d items; %d are the most",
                    args->count, GRID_Z_MAX);
    AVL_CHECK_SHAPE(args->kv_heads >= 0 && args->first_head >= 0,
                    "text_update: %d KV heads from %d on", args->kv_heads, args->first_head);
    for (int i = 0; i < args->count; i++) {
        const avl_text_row_t *row = &args->rows[i];
        AVL_TRY(check_row("text_update", row, i));
        AVL_CHECK_SHAPE(row->holes != nullptr || (row->own >= 0 && row->recent_position <= 0),
                        "text_update: item %d has no holes", i);
        AVL_CHECK_SHAPE(row->quantile <= 1.0f, "text_update: item %d takes quantile %g", i,
                        (double)row->quantile);
    }
    AVL_TRY(avl_check_array("text_update", "scores", args->scores, args->count));
    AVL_TRY(avl_check_array("text_update", "positions", args->positions, args->count));
    if (args->count == 0 || args->kv_heads == 0)
        return AVL_OK;
    update_params_t params = {};
    params.scores = args->scores;
    params.positions = args->positions;
    params.kv_heads = args->kv_heads;
    params.first_head = args->first_head;
    params.share = args->share;
    AVL_TRY(send_items(cuda, args->rows, args->count, &params.items));
    dim3 grid((unsigned)args->kv_heads, 1, (unsigned)args->count);
    AVL_LAUNCH(update_kernel, grid, THREADS, update_shared_bytes(), cuda->stream, params);
    return avl_cuda_launched("text_update");
}

avl_status_t avl_cuda_text_keep(avl_device_t *device, const avl_text_keep_args_t *args) {
    cudaStream_t stream = avl_cuda_of(device)->stream;
    AVL_TRY(avl_check_text_keep(args));
    AVL_CHECK_SHAPE(args->kv_heads <= GRID_Z_MAX, "text_keep: %d KV heads", args->kv_heads);
    if (args->keep == 0 || args->kv_heads == 0)
        return AVL_OK;
    keep_params_t params = {};
    params.args = *args;
    params.scores = (float *)args->scratch;
    params.kept = (int32_t *)(params.scores + (int64_t)args->kv_heads * args->count);
    params.older = args->count - args->recent;
    params.heavy = args->keep - args->recent;
    if (params.heavy > 0) {
        dim3 grid((unsigned)avl_cuda_min(avl_cuda_ceil_div(params.older, THREADS), 1 << 10),
                  (unsigned)args->kv_heads);
        AVL_LAUNCH(gather_scores_kernel, grid, THREADS, 0, stream, params);
        AVL_TRY(avl_cuda_launched("text_keep"));
        AVL_TRY(choose_rows(device, &params));
    }
    AVL_LAUNCH(keep_kernel, (unsigned)args->kv_heads, THREADS, 0, stream, params);
    return avl_cuda_launched("text_keep");
}
