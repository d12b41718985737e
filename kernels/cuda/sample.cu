/* kernels/cuda/sample.cu: a block draws a row's token. It reads the row two to fifteen times, as
 * the parameters want it; a row of 152,000 logits is 600 KB, which the second-level cache keeps.
 *
 * Top-k and top-p look for the least token that is kept: first among 2,048 equal steps of the
 * logits, over which those of a vocabulary lie spread, so that few threads add to the same one;
 * then, within the step, by the digits of the logit's bits, as in topk.cu. Sums of weights are
 * whole numbers, so it does not matter who adds first. */
#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"
#include "kernels/sample_weight.h"

namespace {

typedef unsigned long long wide_t;

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / AVL_WARP;
constexpr int STEPS = 2048; /* bins of the first pass; those beyond it fall into the last */
constexpr int DIGITS = 3;   /* of 11, 11 and 10 bits */
constexpr int AHEAD = 8;    /* logits that a thread has under way */
constexpr float STEPS_COUNT = 48.0f;  /* a unit of logits: they reach 42 below the best */
constexpr float STEPS_WEIGHT = 72.0f; /* a power of e: 2^-40 is e^-27.7 */

/* Shared memory of a block. */
typedef struct room {
    uint32_t *low, *high; /* [STEPS] sums of 64 bits: halves, for which the hardware has atomics */
    wide_t *sums;         /* [WARPS] */
    float *values;        /* [WARPS] */
    int *indices;         /* [WARPS] */
    struct found *found;
} room_t;

/* What one thread found for all. */
typedef struct found {
    wide_t before, within; /* sums over the bins before the one that was looked for, and in it */
    int bin;
    int place;
    int count;
    int32_t ids[AVL_SAMPLE_TOPS_MAX];
    float logits[AVL_SAMPLE_TOPS_MAX];
} found_t;

typedef enum measure {
    WEIGHT, /* what a token weighs */
    COUNT,  /* 1 */
    TIES,   /* 1 for those whose logit is the last that is kept */
} measure_t;

/* Which tokens are left, and what is summed over them. */
typedef struct kept {
    measure_t measure;
    float best, scale, least;
    uint32_t key; /* of the last one that is kept, by logit and id */
    int32_t last_id;
} kept_t;

typedef struct row {
    float *logits;
    int width;
} row_t;

static size_t shared_bytes(void) {
    return 2 * avl_shared_part(STEPS * sizeof(uint32_t)) + avl_shared_part(WARPS * sizeof(wide_t)) +
           avl_shared_part(WARPS * sizeof(float)) + avl_shared_part(WARPS * sizeof(int)) +
           avl_shared_part(sizeof(found_t));
}

__device__ __forceinline__ room_t divide_shared(unsigned char *shared) {
    unsigned char *cursor = shared;
    room_t room;
    room.low = (uint32_t *)avl_shared_take(&cursor, STEPS * sizeof(uint32_t));
    room.high = (uint32_t *)avl_shared_take(&cursor, STEPS * sizeof(uint32_t));
    room.sums = (wide_t *)avl_shared_take(&cursor, WARPS * sizeof(wide_t));
    room.values = (float *)avl_shared_take(&cursor, WARPS * sizeof(float));
    room.indices = (int *)avl_shared_take(&cursor, WARPS * sizeof(int));
    room.found = (found_t *)avl_shared_take(&cursor, sizeof(found_t));
    return room;
}

/* Unsigned integers in the order of logits that are no NaN, both zeros equal. */
__device__ __forceinline__ uint32_t key_of(float logit) {
    uint32_t bits = __float_as_uint(logit + 0.0f); /* -0 becomes +0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/* 0 for one that is not kept. */
__device__ __forceinline__ wide_t weigh(const kept_t &kept, float logit, int id) {
    uint32_t key = key_of(logit);
    if (key < kept.key || (key == kept.key && id > kept.last_id))
        return 0;
    if (kept.measure == COUNT)
        return 1;
    if (kept.measure == TIES)
        return key == kept.key;
    float weight = avl_weight_of(logit, kept.best, kept.scale);
    return weight >= kept.least ? avl_weight_whole(weight) : 0;
}

/* Those of the row at first, first + step, ...; beyond `end` there is nothing. */
__device__ __forceinline__ void load(const row_t &row, int first, int step, int end,
                                     float (&logits)[AHEAD]) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++)
        logits[u] = first + u * step < end ? row.logits[first + u * step] : 0.0f;
}

/* ---- sums over the block ---- */

/* What the threads before this one have; the whole is the same for every thread. */
__device__ __forceinline__ wide_t sum_before(wide_t own, const room_t &room, wide_t *sum_p) {
    int lane = (int)threadIdx.x % AVL_WARP, warp = (int)threadIdx.x / AVL_WARP;
    wide_t until = own, sum = 0;
    for (unsigned delta = 1; delta < AVL_WARP; delta *= 2) {
        wide_t before = __shfl_up_sync(AVL_ALL_LANES, until, delta);
        if (lane >= (int)delta)
            until += before;
    }
    __syncthreads(); /* an earlier call's may still be read */
    if (lane == AVL_WARP - 1)
        room.sums[warp] = until;
    __syncthreads();
    wide_t before = until - own;
    for (int w = 0; w < WARPS; w++) {
        if (w < warp)
            before += room.sums[w];
        sum += room.sums[w];
    }
    *sum_p = sum;
    return before;
}

/* room.sums: those of each warp's piece of the row. Returns the whole. */
__device__ __forceinline__ wide_t sum_pieces(const row_t &row, const kept_t &kept,
                                             const room_t &room) {
    int lane = (int)threadIdx.x % AVL_WARP, warp = (int)threadIdx.x / AVL_WARP;
    int piece = (row.width + WARPS - 1) / WARPS;
    int end = min((warp + 1) * piece, row.width);
    wide_t own = 0, sum = 0;
    for (int first = warp * piece + lane; first < end; first += AHEAD * AVL_WARP) {
        float logits[AHEAD];
        load(row, first, AVL_WARP, end, logits);
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
            if (first + u * AVL_WARP < end)
                own += weigh(kept, logits[u], first + u * AVL_WARP);
    }
    for (int bit = AVL_WARP / 2; bit > 0; bit /= 2)
        own += __shfl_xor_sync(AVL_ALL_LANES, own, bit);
    __syncthreads();
    if (lane == 0)
        room.sums[warp] = own;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        sum += room.sums[w];
    return sum;
}

/* After sum_pieces: the first token up to which the sum exceeds `target`, which is less than the
 * whole. */
__device__ __forceinline__ int find_place(const row_t &row, const kept_t &kept, wide_t target,
                                          const room_t &room) {
    int warp = 0, piece = (row.width + WARPS - 1) / WARPS;
    for (; warp < WARPS - 1 && target >= room.sums[warp]; warp++)
        target -= room.sums[warp];
    int first = warp * piece, end = min(first + piece, row.width);
    int chunk = (end - first + THREADS - 1) / THREADS;
    first += (int)threadIdx.x * chunk;
    end = min(first + chunk, end);
    wide_t own = 0, whole = 0;
    for (int i = first; i < end; i++)
        own += weigh(kept, row.logits[i], i);
    wide_t before = sum_before(own, room, &whole);
    if (before <= target && target < before + own) {
        int i = first;
        for (target -= before; i < end - 1; i++) {
            wide_t weight = weigh(kept, row.logits[i], i);
            if (target < weight)
                break;
            target -= weight;
        }
        room.found->place = i;
    }
    __syncthreads();
    return room.found->place;
}

/* ---- the least that is kept ---- */

__device__ __forceinline__ void add_to_bin(const room_t &room, int bin, wide_t weight) {
    uint32_t low = (uint32_t)weight, before = atomicAdd(&room.low[bin], low);
    uint32_t high = (uint32_t)(weight >> 32) + (before + low < before);
    if (high != 0)
        atomicAdd(&room.high[bin], high);
}

__device__ __forceinline__ wide_t bin_sum(const room_t &room, int bin) {
    return (wide_t)room.high[bin] << 32 | room.low[bin];
}

/* The steps go down from the best. */
__device__ __forceinline__ int step_of(const kept_t &kept, float steps, float logit) {
    return (int)fminf((kept.best - logit) * steps, (float)(STEPS - 1));
}

/* Finds the bin in which the sum reaches `wanted` and takes what lies before it off that. With
 * top_p < 1, `wanted` is that share of the sum. */
__device__ __forceinline__ int pick_bin(int bins, double top_p, wide_t *wanted_p,
                                        const room_t &room) {
    int each = (bins + THREADS - 1) / THREADS, first = (int)threadIdx.x * each;
    int end = min(first + each, bins);
    wide_t own = 0, sum = 0;
    for (int bin = first; bin < end; bin++)
        own += bin_sum(room, bin);
    wide_t before = sum_before(own, room, &sum);
    wide_t wanted = top_p < 1 ? avl_weight_share(sum, top_p) : *wanted_p;
    if (before < wanted && wanted <= before + own) {
        int bin = first;
        for (; before + bin_sum(room, bin) < wanted; bin++)
            before += bin_sum(room, bin);
        room.found->bin = bin;
        room.found->before = before;
        room.found->within = bin_sum(room, bin);
    }
    __syncthreads();
    *wanted_p = wanted - room.found->before;
    return room.found->bin;
}

/* Which bits of a key are looked at in a pass; in the first, none: the steps are. */
typedef struct digit {
    int bins, shift;
    uint32_t found, mask; /* what the passes before know */
    int step;
} digit_t;

__device__ __forceinline__ digit_t next_digit(int index, const digit_t &last, int bin) {
    digit_t digit = last;
    digit.bins = index < DIGITS - 1 ? 2048 : 1024;
    digit.shift = index < DIGITS - 1 ? 21 - 11 * index : 0;
    if (index == 0) {
        digit.step = bin;
    } else {
        digit.found |= (uint32_t)(last.bins - 1 - bin) << last.shift;
        digit.mask |= (uint32_t)(last.bins - 1) << last.shift;
    }
    return digit;
}

/* Adds up what is kept and agrees with the passes before, the best in bin 0. */
__device__ __forceinline__ void fill_bins(const row_t &row, const kept_t &kept, int is_first,
                                          const digit_t &digit, const room_t &room) {
    float steps = kept.measure == COUNT ? STEPS_COUNT : STEPS_WEIGHT * kept.scale;
    for (int bin = (int)threadIdx.x; bin < digit.bins; bin += THREADS)
        room.low[bin] = room.high[bin] = 0;
    __syncthreads();
    for (int first = (int)threadIdx.x; first < row.width; first += AHEAD * THREADS) {
        float logits[AHEAD];
        load(row, first, THREADS, row.width, logits);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            int i = first + u * THREADS;
            if (i >= row.width)
                continue;
            int bin = step_of(kept, steps, logits[u]);
            uint32_t key = key_of(logits[u]);
            if (!is_first && (bin != digit.step || (key & digit.mask) != digit.found))
                continue;
            wide_t weight = weigh(kept, logits[u], i);
            bin = is_first
                      ? bin
                      : digit.bins - 1 - (int)(key >> digit.shift & (uint32_t)(digit.bins - 1));
            if (weight > 0)
                add_to_bin(room, bin, weight);
        }
    }
    __syncthreads();
}

/* Leaves of those that are kept the first, by logit and id, that reach `wanted` of kept.measure, or
 * with top_p < 1 that share of their sum. */
__device__ __forceinline__ void cut(const row_t &row, double top_p, wide_t wanted,
                                    const room_t &room, kept_t *kept) {
    digit_t digit = {STEPS, 0, 0, 0, 0};
    for (int index = 0; index <= DIGITS; index++) {
        fill_bins(row, *kept, index == 0, digit, room);
        int bin = pick_bin(digit.bins, index == 0 ? top_p : 1.0, &wanted, room);
        digit = next_digit(index, digit, bin);
    }
    uint32_t found = digit.found;
    /* All in the last bin have one logit, so they weigh the same. */
    wide_t each = kept->measure == COUNT
                      ? 1
                      : avl_weight_whole(avl_weight_of(logit_of(found), kept->best, kept->scale));
    wide_t taken = (wanted + each - 1) / each, ties = room.found->within / each;
    kept->last_id = found == kept->key ? kept->last_id : INT32_MAX;
    kept->key = found;
    if (taken == ties)
        return;
    kept_t same = *kept;
    same.measure = TIES;
    (void)sum_pieces(row, same, room);
    kept->last_id = find_place(row, same, taken - 1, room);
}

/* ---- a row ---- */

/* The largest, the lowest on a tie; the first that is NaN or +infinity where there is one. */
__device__ __forceinline__ int find_best(const row_t &row, const room_t &room) {
    float value = 0.0f;
    int index = -1;
    for (int first = (int)threadIdx.x; first < row.width; first += AHEAD * THREADS) {
        float logits[AHEAD];
        load(row, first, THREADS, row.width, logits);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            float logit = logits[u] == logits[u] ? logits[u] : __uint_as_float(0x7f800000u);
            int i = first + u * THREADS;
            avl_take_better(logit, i < row.width ? i : -1, &value, &index);
        }
    }
    return avl_block_best(value, index, room.values, room.indices);
}

__device__ __forceinline__ int outcome_of(float best) {
    if (best != best || best == __uint_as_float(0x7f800000u))
        return AVL_SAMPLE_STRANGE;
    return best == __uint_as_float(0xff800000u) ? AVL_SAMPLE_NOTHING : AVL_SAMPLE_TOKEN;
}

/* What the logprobs are made of. */
__device__ __forceinline__ void tell(const row_t &row, float best, int tops, const room_t &room,
                                     avl_sample_result_t *result) {
    kept_t kept = {WEIGHT, best, 1.0f, 0.0f, 0, INT32_MAX};
    wide_t sum = sum_pieces(row, kept, room);
    if (threadIdx.x == 0) {
        result->best = best;
        result->sum = sum;
        room.found->count = 0;
    }
    tops = min(tops, row.width);
    if (tops <= 0)
        return;
    kept.measure = COUNT;
    cut(row, 1.0, (wide_t)tops, room, &kept);
    for (int i = (int)threadIdx.x; i < row.width; i += THREADS) {
        float logit = row.logits[i];
        if (weigh(kept, logit, i) == 0)
            continue;
        int place = atomicAdd(&room.found->count, 1);
        room.found->ids[place] = i;
        room.found->logits[place] = logit;
    }
    __syncthreads();
    if ((int)threadIdx.x >= tops)
        return;
    int id = room.found->ids[threadIdx.x], before = 0;
    float logit = room.found->logits[threadIdx.x];
    for (int i = 0; i < tops; i++) {
        float other = room.found->logits[i];
        before += other > logit || (other == logit && room.found->ids[i] < id);
    }
    result->top_ids[before] = id;
    result->top_logits[before] = logit;
}

/* The list remembers what the logits were. */
__device__ __forceinline__ void adjust(const row_t &row, avl_sample_adjustment_t *list, int count) {
    for (int i = (int)threadIdx.x; i < count; i += THREADS) {
        float *place = &row.logits[list[i].token_id];
        float logit = *place, factor = list[i].factor, subtract = list[i].subtract;
        float value = logit > 0.0f ? __fdiv_rn(logit, factor) : __fmul_rn(logit, factor);
        int banned = subtract == __uint_as_float(0x7f800000u);
        *place = banned ? -subtract : __fadd_rn(value, -subtract);
        list[i].subtract = logit;
    }
}

__device__ __forceinline__ int draw(const row_t &row, const avl_sample_item_t &item, float best,
                                    const room_t &room) {
    kept_t kept = {WEIGHT, best, item.scale, 0.0f, 0, INT32_MAX};
    if (item.top_k > 0 && item.top_k < row.width) {
        kept.measure = COUNT;
        cut(row, 1.0, (wide_t)item.top_k, room, &kept);
        kept.measure = WEIGHT;
    }
    if (item.top_p < 1)
        cut(row, item.top_p, 0, room, &kept);
    kept.least = item.least;
    wide_t sum = sum_pieces(row, kept, room);
    return find_place(row, kept, __umul64hi(item.share, sum), room);
}

/* A launch's. */
typedef struct rows {
    float *logits;
    int64_t stride;
    int width;
    const avl_sample_item_t *items; /* their adjustments: device memory */
    avl_sample_result_t *results;
} rows_t;

__global__ void __launch_bounds__(THREADS) sample_kernel(rows_t rows) {
    AVL_SHARED_BYTES(shared);
    room_t room = divide_shared(shared);
    const avl_sample_item_t item = rows.items[blockIdx.x];
    avl_sample_result_t *result = rows.results + blockIdx.x;
    row_t row = {rows.logits + blockIdx.x * rows.stride, rows.width};
    auto *list = const_cast<avl_sample_adjustment_t *>(item.adjustments);
    int index = find_best(row, room), told = index;
    float best = row.logits[index], told_best = best;
    if (item.tops >= 0 && outcome_of(best) == AVL_SAMPLE_TOKEN)
        tell(row, best, item.tops, room, result);
    if (item.adjustment_count > 0) {
        __syncthreads();
        adjust(row, list, item.adjustment_count);
        __syncthreads();
        index = find_best(row, room);
        best = row.logits[index];
    }
    int outcome = outcome_of(best);
    if (outcome == AVL_SAMPLE_TOKEN && item.tops >= 0 &&
        outcome_of(told_best) == AVL_SAMPLE_STRANGE) {
        outcome = AVL_SAMPLE_STRANGE;
        index = told;
        best = told_best;
    }
    float logit = best;
    if (outcome == AVL_SAMPLE_TOKEN) {
        if (item.forced_id >= 0)
            index = item.forced_id;
        else if (item.scale > 0.0f)
            index = draw(row, item, best, room);
        logit = row.logits[index];
    }
    if (threadIdx.x == 0) {
        result->outcome = outcome;
        result->token_id = index;
        result->logit = logit;
    }
    if (outcome != AVL_SAMPLE_TOKEN)
        return;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < item.adjustment_count; i += THREADS)
        if (list[i].token_id == index)
            result->logit = list[i].subtract;
}

static avl_status_t check_item(const avl_sample_item_t *item, int64_t row, int64_t width) {
    AVL_CHECK_SHAPE(item->scale >= 0 && item->scale <= 1e30f && item->least >= 0 &&
                        item->least <= 1 && item->top_p > 0 && item->top_k >= 0,
                    "sample: row %" PRId64 ": scale %g, top_k %" PRId32 ", top_p %g, least %g", row,
                    (double)item->scale, item->top_k, item->top_p, (double)item->least);
    AVL_CHECK_SHAPE(item->forced_id >= -1 && item->forced_id < width &&
                        (item->forced_id < 0 || item->adjustment_count == 0),
                    "sample: row %" PRId64 ": token %" PRId32 " of %" PRId64
                    " is forced, with %" PRId32 " adjustments",
                    row, item->forced_id, width, item->adjustment_count);
    AVL_CHECK_SHAPE(item->tops >= -1 && item->tops <= AVL_SAMPLE_TOPS_MAX,
                    "sample: row %" PRId64 ": the best %" PRId32 " tokens; at most %d", row,
                    item->tops, AVL_SAMPLE_TOPS_MAX);
    AVL_TRY(avl_check_array("sample", "adjustments", item->adjustments, item->adjustment_count));
    for (int32_t i = 0; i < item->adjustment_count; i++) {
        const avl_sample_adjustment_t *a = &item->adjustments[i];
        AVL_CHECK_SHAPE(a->token_id >= 0 && a->token_id < width && a->factor > 0 &&
                            a->factor <= 1e30f && a->subtract > -1e38f,
                        "sample: row %" PRId64 ": token %" PRId32 " of %" PRId64
                        ", factor %g, less %g",
                        row, a->token_id, width, (double)a->factor, (double)a->subtract);
    }
    return AVL_OK;
}

static avl_status_t check(const avl_sample_args_t *args, int64_t *adjustment_count_p) {
    AVL_TRY(
        avl_check_matrix("sample", "logits", args->logits, args->rows, args->stride, args->width));
    if (args->rows == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(args->width > 0 && args->width <= AVL_SAMPLE_WIDTH_MAX,
                    "sample: rows of width %" PRId64 "; allowed: 1 to %d", args->width,
                    AVL_SAMPLE_WIDTH_MAX);
    AVL_CHECK_SHAPE(args->rows <= INT32_MAX, "sample: %" PRId64 " rows", args->rows);
    AVL_TRY(avl_check_array("sample", "items", args->items, args->rows));
    AVL_TRY(avl_check_array("sample", "results", args->results, args->rows));
    for (int64_t i = 0; i < args->rows; i++) {
        AVL_TRY(check_item(&args->items[i], i, args->width));
        *adjustment_count_p += args->items[i].adjustment_count;
    }
    return AVL_OK;
}

} // namespace

avl_status_t avl_cuda_sample(avl_device_t *device, const avl_sample_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    int64_t adjustment_count = 0;
    AVL_TRY(check(args, &adjustment_count));
    if (args->rows == 0)
        return AVL_OK;
    size_t item_bytes = (size_t)args->rows * sizeof(avl_sample_item_t);
    size_t bytes = item_bytes + (size_t)adjustment_count * sizeof(avl_sample_adjustment_t);
    void *scratch = nullptr, *packed = nullptr;
    AVL_TRY(avl_cuda_scratch(cuda, bytes, "sample", &scratch));
    AVL_TRY(avl_cuda_pack(cuda, bytes, "sample", &packed));
    avl_sample_item_t *items = (avl_sample_item_t *)packed;
    auto *there = (avl_sample_adjustment_t *)((char *)scratch + item_bytes);
    auto *here = (avl_sample_adjustment_t *)((char *)packed + item_bytes);
    memcpy(items, args->items, item_bytes);
    for (int64_t i = 0; i < args->rows; i++) {
        size_t count = (size_t)items[i].adjustment_count;
        if (count > 0)
            memcpy(here, items[i].adjustments, count * sizeof *here);
        items[i].adjustments = there;
        here += count;
        there += count;
    }
    AVL_TRY(avl_cuda_send(cuda, scratch, packed, bytes, "sample"));
    rows_t rows = {args->logits, args->stride, (int)args->width, (avl_sample_item_t *)scratch,
                   args->results};
    AVL_LAUNCH(sample_kernel, (unsigned)args->rows, THREADS, shared_bytes(), cuda->stream, rows);
    return avl_cuda_launched("sample");
}
