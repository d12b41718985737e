/* tests/cuda/shim/shim.h: how the execution shim is steered and what it reports.
 *
 * The shim runs CUDA kernels on one host thread so that their logic can be tested where there is no
 * GPU. Every thread of a block is a fiber that runs until it waits: at a barrier, at a warp
 * operation, or at its end. Blocks run one after another. It finds
 *   - barriers that not every thread of a block reaches, or that threads reach at different places;
 *   - warp operations whose mask names a lane that has ended or waits elsewhere;
 *   - shared memory read before it is written: it begins each block as 0xff bytes, which are NaN as
 *     numbers and -1 as indices, and so is fresh device memory;
 *   - accesses outside an allocation: under AddressSanitizer every allocation has its exact size,
 *     and parts of shared memory are kept apart by poisoned gaps;
 *   - missing barriers: threads and blocks can run in ascending, descending or random order, and
 *     what one order hides another shows;
 *   - asynchronous copies that nobody waits for: they happen at the wait, not before;
 *   - host memory given back or overwritten too early: with `deferred`, nothing on a stream happens
 *     before somebody waits for it;
 *   - host memory handed to a kernel, and device memory touched by the host (with `guarded`);
 *   - accesses to memory that nothing puts in order, within a block and between blocks, where the
 *     kernels were compiled to be watched (races.cpp).
 * It does not model time or caches. Settings belong to the calling thread. */
#ifndef AVL_TESTS_CUDA_SHIM_H
#define AVL_TESTS_CUDA_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum avl_shim_order {
    AVL_SHIM_ASCENDING,
    AVL_SHIM_DESCENDING,
    AVL_SHIM_RANDOM,
} avl_shim_order_t;

typedef struct avl_shim_options {
    avl_shim_order_t order;
    uint64_t seed;
    int deferred;
    int guarded;         /* the host that touches device memory dies of it; no exact sizes then */
    int devices;         /* what cudaGetDeviceCount says */
    int fail_allocation; /* the n-th allocation from now fails; 0: none */
} avl_shim_options_t;

void avl_shim_configure(const avl_shim_options_t *options);
/* The finding of the last launch that failed on this thread; "" when none did. Clears it. */
const char *avl_shim_take_finding(void);
/* How often the calling thread has waited for a stream, and the GPU that it chose last. */
int64_t avl_shim_waits(void);
int avl_shim_chosen_device(void);
/* Device and pinned allocations of this process that were not given back. */
int64_t avl_shim_live_allocations(void);

#ifdef __cplusplus
}
#endif

#endif
