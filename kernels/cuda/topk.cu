/* kernels/cuda/topk.cu: selection by digits (merit.h). Up to 8,192 scores that is one block with
 * the keys in shared memory; beyond, every pass is a launch over many blocks. */
#include <inttypes.h>

#include "kernels/cuda/merit.h"

namespace {

constexpr int THREADS = AVL_MERIT_THREADS;
constexpr int BLOCK_SCORES = AVL_MERIT_SHARED_KEYS; /* of one block, and of a block of the many */
constexpr int INLINE_ITEMS = 64; /* travel in the launch's parameters, of 4 KB at most */

/* ---- one block ---- */

static size_t block_shared_bytes(int32_t count) {
    return avl_shared_part((size_t)count * sizeof(uint32_t)) + merit_shared_bytes();
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
    merit_t merit = take_merit(&cursor);
    for (int i = (int)threadIdx.x; i < item.count; i += THREADS)
        keys[i] = key_at(item.scores, i);
    choose_best(keys, merit, item);
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
    int(*counts)[MERIT_WARPS] =
        (int(*)[MERIT_WARPS])avl_shared_take(&cursor, 2 * MERIT_WARPS * sizeof(int));
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
               avl_shared_part(2 * sizeof(int)) + avl_shared_part(2 * MERIT_WARPS * sizeof(int)),
               stream, *args, many, block_counts);
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
