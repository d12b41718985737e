/* tests/cuda/race_findings.cu: small kernels that lack an order among their accesses to memory, and
 * the same ones with it: shim/races.cpp finds the first and has nothing to say of the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

extern "C" {
#include <cmocka.h>
}

#include "kernels/cuda/ptx.h"
#include "tests/cuda/shim/shim.h"

enum { THREADS = 64 };

static cudaStream_t stream;
static int *memory; /* of the device: THREADS words, counters, and a sum */

static int open_stream(void **) {
    avl_shim_options_t options = {};
    options.devices = 1;
    avl_shim_configure(&options);
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
                   cudaMalloc((void **)&memory, 4 * THREADS * sizeof(int)) == cudaSuccess
               ? 0
               : -1;
}

static int close_stream(void **) {
    (void)avl_shim_take_finding();
    return cudaFree(memory) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess ? 0 : -1;
}

/* What the last launch was found to be: "" when it was right. */
static void expect(const char *text) {
    int is_right = text[0] == '\0';
    cudaError_t error = cudaStreamSynchronize(stream);
    const char *finding = avl_shim_take_finding();
    if (is_right && finding[0] != '\0')
        fail_msg("%s", finding);
    if (!is_right && strstr(finding, text) == NULL)
        fail_msg("not \"%s\" but \"%s\"", text, finding);
    assert_int_equal(error, is_right ? cudaSuccess : cudaErrorLaunchFailure);
}

static void run(void (*kernel)(int *, int), unsigned blocks, int is_right, const char *text) {
    assert_int_equal(cudaMemsetAsync(memory, 0, 4 * THREADS * sizeof(int), stream), cudaSuccess);
    AVL_LAUNCH(kernel, blocks, THREADS, avl_shared_part(THREADS * sizeof(int)), stream, memory,
               is_right);
    expect(is_right ? "" : text);
}

/* ---- within a block ---- */

__device__ static int *words_of(unsigned char *shared) {
    unsigned char *cursor = shared;
    return (int *)avl_shared_take(&cursor, THREADS * sizeof(int));
}

__global__ void reads_too_early(int *out, int is_right) {
    AVL_SHARED_BYTES(shared);
    int *words = words_of(shared), self = (int)threadIdx.x;
    words[self] = self;
    if (is_right)
        __syncthreads();
    out[self] = words[0]; /* the first thread's, which has always run by now */
}

__global__ void writes_too_early(int *out, int is_right) {
    AVL_SHARED_BYTES(shared);
    int *words = words_of(shared), self = (int)threadIdx.x;
    words[self] = self;
    __syncthreads();
    out[self] = words[THREADS - 1];
    if (is_right)
        __syncthreads();
    if (self == THREADS - 1)
        words[self] = 0;
}

/* A shuffle makes lanes wait for each other, and orders nothing. */
__global__ void shuffles_instead(int *out, int is_right) {
    AVL_SHARED_BYTES(shared);
    int *words = words_of(shared), self = (int)threadIdx.x, first = self / 32 * 32;
    words[self] = self;
    (void)__shfl_xor_sync(0xffffffffu, self, 1);
    if (is_right)
        __syncwarp();
    out[self] = words[first];
}

/* Between warps, that does not do. */
__global__ void syncs_its_warp_alone(int *out, int is_right) {
    AVL_SHARED_BYTES(shared);
    int *words = words_of(shared), self = (int)threadIdx.x;
    words[self] = self;
    if (is_right)
        __syncthreads();
    else
        __syncwarp();
    out[self] = words[0];
}

__global__ void counts_and_reads(int *out, int is_right) {
    AVL_SHARED_BYTES(shared);
    int *words = words_of(shared), self = (int)threadIdx.x;
    if (self == 0)
        words[0] = 0;
    __syncthreads();
    atomicAdd(&words[0], 1);
    if (is_right)
        __syncthreads();
    out[self] = words[0];
}

/* The next tile comes while others still read the last one. */
__global__ void fetches_too_early(int *out, int is_right) {
    AVL_SHARED_BYTES(shared);
    int *words = words_of(shared), self = (int)threadIdx.x;
    for (int round = 0; round < 2; round++) {
        if (self < THREADS / 4)
            avl_copy_async(words + 4 * self, out + 4 * self, 16);
        avl_copy_async_commit();
        avl_copy_async_wait<0>();
        __syncthreads();
        out[THREADS + self] = words[THREADS - 1 - self];
        if (is_right)
            __syncthreads();
    }
}

/* Device memory is no different. */
__global__ void reads_its_neighbour(int *out, int is_right) {
    int self = (int)threadIdx.x;
    out[self] = self;
    if (is_right)
        __syncthreads();
    out[THREADS + self] = out[0];
}

__global__ void reads_as_constant(int *out, int is_right) {
    int self = (int)threadIdx.x;
    out[self] = self;
    __syncthreads();
    out[THREADS + self] = is_right ? out[THREADS - 1 - self] : __ldg(out + THREADS - 1 - self);
}

__global__ void reads_a_crooked_vector(int *out, int is_right) {
    uint4 *vectors = (uint4 *)(out + 2 * THREADS);
    if (threadIdx.x == 0)
        vectors[0] = *(const uint4 *)(out + THREADS + (is_right ? 0 : 1));
}

__global__ void loads_a_crooked_vector(int *out, int is_right) {
    uint4 value = __ldg((const uint4 *)(out + THREADS + (is_right ? 0 : 2)));
    out[threadIdx.x] = (int)value.x;
}

static void within_a_block(void **) {
    static const struct {
        void (*kernel)(int *, int);
        const char *text;
    } kernels[] = {
        {reads_too_early, "a race: shared memory"},
        {writes_too_early, "then written here"},
        {shuffles_instead, "a race: shared memory"},
        {syncs_its_warp_alone, "is written by thread"},
        {counts_and_reads, "then counted here"},
        {fetches_too_early, "a race: shared memory"},
        {reads_its_neighbour, "a race: device memory"},
        {reads_as_constant, "__ldg"},
        {reads_a_crooked_vector, "not aligned"},
        {loads_a_crooked_vector, "not aligned"},
    };
    for (const auto &one : kernels) {
        run(one.kernel, 1, 1, one.text);
        run(one.kernel, 1, 0, one.text);
    }
}

/* ---- between blocks ---- */

__global__ void adds_to_one_word(int *out, int is_right) {
    if (threadIdx.x != 0)
        return;
    if (is_right)
        atomicAdd(out, 1);
    else
        *out += 1;
}

/* The block that ends last adds up what all have written. `missing`: what is left out. */
enum { NOTHING, WRITERS_FENCE, WRITERS_BARRIER, READERS_FENCE };

__device__ static void end_together(int *out, int missing) {
    AVL_SHARED_BYTES(shared);
    int *words = words_of(shared), self = (int)threadIdx.x;
    int *counter = out + 3 * THREADS;
    if (self < 32)
        out[blockIdx.x * 32 + self] = self;
    if (missing != WRITERS_FENCE)
        __threadfence();
    if (missing != WRITERS_BARRIER)
        __syncthreads();
    if (self == 0)
        words[0] = atomicAdd(counter, 1) == (int)gridDim.x - 1;
    __syncthreads();
    if (!words[0])
        return;
    if (missing != READERS_FENCE)
        __threadfence();
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x * 32; i++)
        sum += __ldcg(out + i);
    out[2 * THREADS + self] = sum;
    if (self == 0)
        *counter = 0;
}

__global__ void forgets_to_fence(int *out, int is_right) {
    end_together(out, is_right ? NOTHING : WRITERS_FENCE);
}
__global__ void forgets_the_barrier(int *out, int is_right) {
    end_together(out, is_right ? NOTHING : WRITERS_BARRIER);
}
__global__ void forgets_to_fence_before_reading(int *out, int is_right) {
    end_together(out, is_right ? NOTHING : READERS_FENCE);
}

static void between_blocks(void **) {
    static const char text[] = "by another that cannot know";
    run(adds_to_one_word, 3, 1, text);
    run(adds_to_one_word, 3, 0, text);
    run(forgets_to_fence, 3, 1, text);
    assert_int_equal(memory[2 * THREADS], 3 * 31 * 16);
    run(forgets_to_fence, 3, 0, text);
    run(forgets_the_barrier, 3, 0, text);
    run(forgets_to_fence_before_reading, 3, 0, text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(within_a_block, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(between_blocks, open_stream, close_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
