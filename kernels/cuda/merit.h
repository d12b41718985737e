/* kernels/cuda/merit.h: the best of a list by one block: scores as integers in the order of merit,
 * of which the keep-th best is found byte by byte from histograms; then one pass in ascending order
 * takes what lies above it and the first of those that equal it. */
#ifndef AVL_KERNELS_CUDA_MERIT_H
#define AVL_KERNELS_CUDA_MERIT_H

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

/* Threads of a block that takes, and keys that go into its shared memory at most. */
#define AVL_MERIT_THREADS 512
#define AVL_MERIT_SHARED_KEYS 8192

namespace {

constexpr int MERIT_WARPS = AVL_MERIT_THREADS / AVL_WARP;
constexpr int DIGITS = 4;
constexpr int BINS = 256;

/* What the passes know: keys with (key & mask) == found are still in question, and `wanted` of them
 * are to be taken. */
typedef struct search {
    uint32_t found, mask;
    int32_t wanted;
} search_t;

/* Unsigned integers in the order of merit: NaN below everything, both zeros equal. */
__device__ __forceinline__ uint32_t key_of(float score) {
    if (score != score)
        return 0;
    uint32_t bits = __float_as_uint(score + 0.0f); /* -0 becomes +0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint32_t key_at(const float *scores, int64_t index) {
    return key_of(scores[index]);
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
 * equal ones stand before. `counts`: shared memory [2][MERIT_WARPS]. */
template <typename K>
__device__ __forceinline__ void take(const K *keys, int64_t first, int64_t end,
                                     const search_t *search, int32_t above, int32_t equal,
                                     int (*counts)[MERIT_WARPS], const avl_choose_item_t &item) {
    uint32_t limit = search->found;
    int32_t ties = search->wanted;
    int lane = (int)threadIdx.x % AVL_WARP, warp = (int)threadIdx.x / AVL_WARP;
    for (int64_t base = first; base < end; base += AVL_MERIT_THREADS) {
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
        for (int w = 0; w < MERIT_WARPS; w++) {
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

/* What a block needs beside its keys, in shared memory. */
typedef struct merit {
    int *histogram;             /* [BINS] */
    int (*counts)[MERIT_WARPS]; /* [2] */
    search_t *search;
} merit_t;

static size_t merit_shared_bytes(void) {
    return avl_shared_part(BINS * sizeof(int)) + avl_shared_part(2 * MERIT_WARPS * sizeof(int)) +
           avl_shared_part(sizeof(search_t));
}

__device__ __forceinline__ merit_t take_merit(unsigned char **cursor) {
    merit_t merit;
    merit.histogram = (int *)avl_shared_take(cursor, BINS * sizeof(int));
    merit.counts = (int(*)[MERIT_WARPS])avl_shared_take(cursor, 2 * MERIT_WARPS * sizeof(int));
    merit.search = (search_t *)avl_shared_take(cursor, sizeof(search_t));
    return merit;
}

/* Does for one list what avl_choose does. `keys`: of item.scores, in memory that all threads of the
 * block see; every thread has written the places that are its own index plus multiples of the
 * number of threads. */
__device__ __forceinline__ void choose_best(const uint32_t *keys, const merit_t &merit,
                                            const avl_choose_item_t &item) {
    if (threadIdx.x == 0)
        *merit.search = {0, 0, item.keep};
    for (int digit = 0; digit < DIGITS; digit++) {
        for (int bin = (int)threadIdx.x; bin < BINS; bin += AVL_MERIT_THREADS)
            merit.histogram[bin] = 0;
        __syncthreads();
        count_digits(keys, 0, item.count, digit, merit.search, merit.histogram);
        __syncthreads();
        if (threadIdx.x < AVL_WARP)
            pick_digit(merit.histogram, digit, merit.search);
        __syncthreads();
    }
    take(keys, 0, item.count, merit.search, 0, 0, merit.counts, item);
}

} // namespace

#endif
