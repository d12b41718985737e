/* kernels/cuda/topk.cu: selection by digits, as in cpu/topk.c: the key of the keep-th best score is
 * found byte by byte from histograms, then one pass in ascending order takes what lies above it and
 * the first of those that equal it. Up to 8,192 scores that is one block with the keys in shared
 * memory; beyond, every pass is a launch over many blocks. */
#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

namespace {

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / AVL_WARP;
constexpr int DIGITS = 4;
constexpr int BINS = 256;
constexpr int BLOCK_SCORES = 8192; /* of one block, and of a block of the many */
constexpr int INLINE_ITEMS = 64;   /* travel in the launch's parameters, of 4 KB at most */

/* What the passes know: keys with (key & mask) == found are still in question, and `wanted` of them
 * are to be taken. */
typedef struct search {
    uint32_t found, mask;
    int32_t wanted;
} search_t;

/* Unsigned integers in the order of merit: NaN below everything, both zeros equal. */
__device__ __forceinline__ uint32_t key_at(const float *scores, int64_t index) {
    float score = scores[index];
    if (score != score)
        return 0;
    uint32_t bits = __float_as_uint(score + 0.0f); /* -0 becomes +0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint32_t key_at(const uint32_t *keys, int64_t index) {
    return keys[index];
}

/* By one warp: the digit at which the wanted key lies, counting from the largest. A lane takes
 * eight bins. */
__device__ __forceinline__ void pick_digit(const int *histogram, int digit, search_t *search) {
    constexpr int LANE_BINS = BINS / AVL_WARP;
    int lane = (int)threadIdx.x % AVL_WARP, top = BINS - 1 - lane * LANE_BINS, own = 0;
    for (int i = 0; i < LANE_BINS; i++)
        own += histogram[top - i];
    int until = own;
    for (unsigned delta = 1; delta < AVL_WARP; delta *= 2) {
        int before = __shfl_up_sync(AVL_ALL_LANES, until, delta);
        if (lane >= (int)delta)
            until += before;
    }
    int wanted = search->wanted, shift = 24 - 8 * digit;
    __syncwarp(); /* all have read what one changes */
    if (until < wanted || until - own >= wanted)
        return;
    wanted -= until - own;
    int bin = top;
    for (; histogram[bin] < wanted; bin--)
        wanted -= histogram[bin];
    search->found |= (uint32_t)bin << shift;
    search->mask |= 0xffu << shift;
    search->wanted = wanted;
}

template <typename K>
__device__ __forceinline__ void count_digits(const K *keys, int64_t first, int64_t end, int digit,
                                             const search_t *search, int *histogram) {
    uint32_t found = search->found, mask = search->mask;
    for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        uint32_t key = key_at(keys, i);
        if ((key & mask) == found)
            atomicAdd(&histogram[key >> (24 - 8 * digit) & 0xff], 1);
    }
}

/* Writes the taken among keys [first, end) in ascending order, of which `above` larger and `equal`
 * equal ones stand before. `counts`: shared memory [2][WARPS]. */
template <typename K>
__device__ __forceinline__ void take(const K *keys, int64_t first, int64_t end,
                                     const search_t *search, int32_t above, int32_t equal,
                                     int (*counts)[WARPS], const avl_choose_item_t &item) {
    uint32_t limit = search->found;
    int32_t ties = search->wanted;
    int lane = (int)threadIdx.x % AVL_WARP, warp = (int)threadIdx.x / AVL_WARP;
    for (int64_t base = first; base < end; base += THREADS) {
        int64_t i = base + threadIdx.x;
        uint32_t key = i < end ? key_at(keys, i) : 0;
        int is_above = i < end && key > limit, is_equal = i < end && key == limit;
        unsigned above_lanes = __ballot_sync(AVL_ALL_LANES, is_above);
        unsigned equal_lanes = __ballot_sync(AVL_ALL_LANES, is_equal);
        if (lane == 0) {
            counts[0][warp] = __popc(above_lanes);
            counts[1][warp] = __popc(equal_lanes);
        }
        __syncthreads();
        unsigned lower = (1u << lane) - 1;
        int32_t above_before = above + __popc(above_lanes & lower);
        int32_t equal_before = equal + __popc(equal_lanes & lower);
        for (int w = 0; w < WARPS; w++) {
            if (w < warp) {
                above_before += counts[0][w];
                equal_before += counts[1][w];
            }
            above += counts[0][w];
            equal += counts[1][w];
        }
        if (is_above || (is_equal && equal_before < ties)) {
            int32_t place = above_before + min(equal_before, ties);
            if (item.indices != nullptr)
                item.indices[place] = (int32_t)i;
            if (item.list != nullptr)
                item.list[place] = item.rows[i];
            if (item.best != nullptr)
                item.best[place] = item.scores[i];
        }
        __syncthreads();
    }
}

/* ---- one block ---- */

static size_t block_shared_bytes(int32_t count) {
    return avl_shared_part((size_t)count * sizeof(uint32_t)) + avl_shared_part(BINS * sizeof(int)) +
           avl_shared_part(2 * WARPS * sizeof(int)) + avl_shared_part(sizeof(search_t));
}

/* The lists of a launch: as many as its parameters may hold, or in device memory. */
typedef struct lists {
    const avl_choose_item_t *items; /* NULL: in `inlined` */
    int32_t count_max;
    avl_choose_item_t inlined[INLINE_ITEMS];
} lists_t;

/* A block a list. */
__global__ void __launch_bounds__(THREADS) block_kernel(const __grid_constant__ lists_t lists) {
    const avl_choose_item_t &item =
        lists.items != nullptr ? lists.items[blockIdx.x] : lists.inlined[blockIdx.x];
    if (item.keep == 0)
        return;
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    uint32_t *keys =
        (uint32_t *)avl_shared_take(&cursor, (size_t)lists.count_max * sizeof(uint32_t));
    int *histogram = (int *)avl_shared_take(&cursor, BINS * sizeof(int));
    int(*counts)[WARPS] = (int(*)[WARPS])avl_shared_take(&cursor, 2 * WARPS * sizeof(int));
    search_t *search = (search_t *)avl_shared_take(&cursor, sizeof(search_t));
    for (int i = (int)threadIdx.x; i < item.count; i += THREADS)
        keys[i] = key_at(item.scores, i);
    if (threadIdx.x == 0)
        *search = {0, 0, item.keep};
    for (int digit = 0; digit < DIGITS; digit++) {
        for (int bin = (int)threadIdx.x; bin < BINS; bin += THREADS)
            histogram[bin] = 0;
        __syncthreads();
        count_digits(keys, 0, item.count, digit, search, histogram);
        __syncthreads();
        if (threadIdx.x < AVL_WARP)
            pick_digit(histogram, digit, search);
        __syncthreads();
    }
    take(keys, 0, item.count, search, 0, 0, counts, item);
}

/* ---- many blocks ---- */

/* Device memory that the launches share. */
typedef struct many {
    search_t search;
    int histograms[DIGITS][BINS];
} many_t;

__global__ void begin_kernel(many_t *many, int32_t keep) {
    for (int i = (int)threadIdx.x; i < DIGITS * BINS; i += THREADS)
        many->histograms[i / BINS][i % BINS] = 0;
    if (threadIdx.x == 0)
        many->search = {0, 0, keep};
}

__global__ void __launch_bounds__(THREADS)
    histogram_kernel(avl_choose_item_t args, many_t *many, int digit) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int *histogram = (int *)avl_shared_take(&cursor, BINS * sizeof(int));
    for (int bin = (int)threadIdx.x; bin < BINS; bin += THREADS)
        histogram[bin] = 0;
    __syncthreads();
    int64_t first = (int64_t)blockIdx.x * BLOCK_SCORES;
    int64_t end = first + BLOCK_SCORES < args.count ? first + BLOCK_SCORES : args.count;
    count_digits(args.scores, first, end, digit, &many->search, histogram);
    __syncthreads();
    for (int bin = (int)threadIdx.x; bin < BINS; bin += THREADS)
        if (histogram[bin] != 0)
            atomicAdd(&many->histograms[digit][bin], histogram[bin]);
}

__global__ void __launch_bounds__(AVL_WARP) pick_kernel(many_t *many, int digit) {
    pick_digit(many->histograms[digit], digit, &many->search);
}

/* block_counts[block]: how many of the block's keys lie above the limit, and how many equal it. */
__global__ void __launch_bounds__(THREADS)
    count_kernel(avl_choose_item_t args, const many_t *many, uint2 *block_counts) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int *counts = (int *)avl_shared_take(&cursor, 2 * sizeof(int));
    if (threadIdx.x < 2)
        counts[threadIdx.x] = 0;
    __syncthreads();
    int64_t first = (int64_t)blockIdx.x * BLOCK_SCORES;
    int64_t end = first + BLOCK_SCORES < args.count ? first + BLOCK_SCORES : args.count;
    int above = 0, equal = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS) {
        uint32_t key = key_at(args.scores, i);
        above += key > many->search.found;
        equal += key == many->search.found;
    }
    if (above > 0)
        atomicAdd(&counts[0], above);
    if (equal > 0)
        atomicAdd(&counts[1], equal);
    __syncthreads();
    if (threadIdx.x == 0)
        block_counts[blockIdx.x] = {(unsigned)counts[0], (unsigned)counts[1]};
}

__global__ void __launch_bounds__(THREADS)
    take_kernel(avl_choose_item_t args, const many_t *many, const uint2 *block_counts) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int *before = (int *)avl_shared_take(&cursor, 2 * sizeof(int));
    int(*counts)[WARPS] = (int(*)[WARPS])avl_shared_take(&cursor, 2 * WARPS * sizeof(int));
    if (threadIdx.x < 2)
        before[threadIdx.x] = 0;
    __syncthreads();
    int above = 0, equal = 0;
    for (unsigned block = threadIdx.x; block < blockIdx.x; block += THREADS) {
        above += (int)block_counts[block].x;
        equal += (int)block_counts[block].y;
    }
    atomicAdd(&before[0], above);
    atomicAdd(&before[1], equal);
    __syncthreads();
    int64_t first = (int64_t)blockIdx.x * BLOCK_SCORES;
    int64_t end = first + BLOCK_SCORES < args.count ? first + BLOCK_SCORES : args.count;
    take(args.scores, first, end, &many->search, before[0], before[1], counts, args);
}

static avl_status_t run_many(avl_cuda_device_t *cuda, const avl_choose_item_t *args) {
    unsigned blocks = (unsigned)avl_cuda_ceil_div(args->count, BLOCK_SCORES);
    void *scratch = nullptr;
    size_t many_bytes = (sizeof(many_t) + 255) / 256 * 256;
    AVL_TRY(avl_cuda_scratch(cuda, many_bytes + blocks * sizeof(uint2), "topk", &scratch));
    many_t *many = (many_t *)scratch;
    uint2 *block_counts = (uint2 *)((char *)scratch + many_bytes);
    cudaStream_t stream = cuda->stream;
    AVL_LAUNCH(begin_kernel, 1, THREADS, 0, stream, many, args->keep);
    for (int digit = 0; digit < DIGITS; digit++) {
        AVL_LAUNCH(histogram_kernel, blocks, THREADS, avl_shared_part(BINS * sizeof(int)), stream,
                   *args, many, digit);
        AVL_LAUNCH(pick_kernel, 1, AVL_WARP, 0, stream, many, digit);
    }
    AVL_LAUNCH(count_kernel, blocks, THREADS, avl_shared_part(2 * sizeof(int)), stream, *args, many,
               block_counts);
    AVL_LAUNCH(take_kernel, blocks, THREADS,
               avl_shared_part(2 * sizeof(int)) + avl_shared_part(2 * WARPS * sizeof(int)), stream,
               *args, many, block_counts);
    return avl_cuda_launched("topk");
}

/* Lists of one block each, in one launch. */
static avl_status_t run_short(avl_cuda_device_t *cuda, const avl_choose_item_t *items, int count) {
    lists_t lists = {};
    for (int i = 0; i < count; i++)
        lists.count_max = max(lists.count_max, items[i].count);
    size_t bytes = (size_t)count * sizeof *items;
    if (count <= INLINE_ITEMS) {
        memcpy(lists.inlined, items, bytes);
    } else {
        void *scratch = nullptr;
        AVL_TRY(avl_cuda_scratch(cuda, bytes, "choose: lists", &scratch));
        AVL_TRY(avl_cuda_send(cuda, scratch, items, bytes, "choose"));
        lists.items = (const avl_choose_item_t *)scratch;
    }
    AVL_LAUNCH(block_kernel, (unsigned)count, THREADS, block_shared_bytes(lists.count_max),
               cuda->stream, lists);
    return avl_cuda_launched("choose");
}

} // namespace

avl_status_t avl_cuda_choose(avl_device_t *device, const avl_choose_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(avl_check_choose(args));
    /* Runs of short lists go together; a long one is several launches of its own. */
    for (int first = 0; first < args->item_count;) {
        int count = 0;
        while (first + count < args->item_count && args->items[first + count].count <= BLOCK_SCORES)
            count++;
        if (count > 0)
            AVL_TRY(run_short(cuda, args->items + first, count));
        else if (args->items[first].keep > 0)
            AVL_TRY(run_many(cuda, &args->items[first]));
        first += count > 0 ? count : 1;
    }
    return AVL_OK;
}

avl_status_t avl_cuda_topk(avl_device_t *device, const avl_topk_args_t *args) {
    AVL_TRY(avl_check_array("topk", "scores", args->scores, args->count));
    AVL_CHECK_SHAPE(args->keep >= 0 && args->keep <= args->count,
                    "topk: keep %" PRId32 " of %" PRId32 " scores", args->keep, args->count);
    AVL_TRY(avl_check_array("topk", "indices", args->indices, args->keep));
    avl_choose_item_t item = {args->scores, args->count, args->keep, args->indices,
                              nullptr,      nullptr,     nullptr};
    avl_choose_args_t one = {&item, 1};
    return args->keep == 0 ? AVL_OK : avl_cuda_choose(device, &one);
}
