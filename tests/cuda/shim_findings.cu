/* tests/cuda/shim_findings.cu: small broken kernels, and the finding that each must lead to. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <cmocka.h>
}

#include "kernels/cuda/ptx.h"
#include "tests/cuda/shim/shim.h"

static cudaStream_t stream;

static int open_stream(void **) {
    avl_shim_options_t options = {};
    options.devices = 1;
    avl_shim_configure(&options);
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess ? 0 : -1;
}

static int close_stream(void **) {
    (void)avl_shim_take_finding();
    return cudaStreamDestroy(stream) == cudaSuccess ? 0 : -1;
}

static void use_order(avl_shim_order_t order) {
    avl_shim_options_t options = {};
    options.order = order;
    options.devices = 1;
    options.seed = 3;
    avl_shim_configure(&options);
}

/* The last launch failed, and the reason holds `text`. */
static void expect_finding(const char *text) {
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    assert_non_null(strstr(cudaGetErrorString(cudaErrorLaunchFailure), text));
    const char *finding = avl_shim_take_finding();
    assert_non_null(strstr(finding, text));
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
}

/* ---- barriers ---- */

__global__ void half_ends(int) {
    if (threadIdx.x < 32)
        return;
    __syncthreads();
}

__global__ void two_barriers(int) {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncthreads();
}

__global__ void barrier_and_shuffle(int) {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        (void)__shfl_xor_sync(0xffffffffu, 1, 1);
}

static void barriers(void **) {
    for (int order = AVL_SHIM_ASCENDING; order <= AVL_SHIM_RANDOM; order++) {
        use_order((avl_shim_order_t)order);
        AVL_LAUNCH(half_ends, 1, 64, 0, stream, 0);
        expect_finding("barrier divergence");
        AVL_LAUNCH(two_barriers, 1, 32, 0, stream, 0);
        expect_finding("barrier divergence");
        AVL_LAUNCH(barrier_and_shuffle, 1, 32, 0, stream, 0);
        expect_finding("mask 0xffffffff");
    }
}

/* ---- warps ---- */

__global__ void lane_has_ended(int *out) {
    if (threadIdx.x == 5)
        return;
    out[threadIdx.x] = __shfl_sync(0xffffffffu, (int)threadIdx.x, 0);
}

__global__ void lane_not_named(int *out) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, (int)threadIdx.x, 0);
}

__global__ void source_not_named(int *out) {
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_sync(0x0000ffffu, (int)threadIdx.x, 20);
}

__global__ void lanes_that_do_not_exist(int *out) {
    out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
}

__global__ void different_masks(int *out) {
    unsigned mask = threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u;
    out[threadIdx.x] = __ballot_sync(mask, 1);
}

__global__ void right_shuffles(int *out) {
    int lane = (int)threadIdx.x, sum = lane;
    for (int bit = 16; bit > 0; bit /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    int before = __shfl_up_sync(0xffffffffu, lane, 1);
    int behind = __shfl_down_sync(0xffffffffu, lane, 2);
    unsigned even = __ballot_sync(0xffffffffu, lane % 2 == 0);
    int upper = lane >= 16 ? __shfl_sync(0xffff0000u, lane, 17) : 17;
    out[lane] = sum == 496 && before == (lane > 0 ? lane - 1 : 0) &&
                behind == (lane < 30 ? lane + 2 : lane) && even == 0x55555555u && upper == 17;
}

static void warps(void **) {
    int *out = nullptr;
    assert_int_equal(cudaMalloc((void **)&out, 32 * sizeof(int)), cudaSuccess);
    for (int order = AVL_SHIM_ASCENDING; order <= AVL_SHIM_RANDOM; order++) {
        use_order((avl_shim_order_t)order);
        AVL_LAUNCH(lane_has_ended, 1, 32, 0, stream, out);
        expect_finding("lane 5");
        AVL_LAUNCH(lane_not_named, 1, 32, 0, stream, out);
        expect_finding("does not name it");
        AVL_LAUNCH(source_not_named, 1, 32, 0, stream, out);
        expect_finding("reads lane 20");
        AVL_LAUNCH(lanes_that_do_not_exist, 1, 20, 0, stream, out);
        expect_finding("does not exist");
        AVL_LAUNCH(different_masks, 1, 32, 0, stream, out);
        expect_finding("mask");
        AVL_LAUNCH(right_shuffles, 1, 32, 0, stream, out);
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        for (int lane = 0; lane < 32; lane++)
            assert_int_equal(out[lane], 1);
    }
    assert_int_equal(cudaFree(out), cudaSuccess);
}

/* ---- shared memory ---- */

/* Every thread writes its word and reads its neighbour's: `barrier` makes that right. */
__global__ void neighbours(int *out, int barrier) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int *words = (int *)avl_shared_take(&cursor, 64 * sizeof(int));
    words[threadIdx.x] = (int)threadIdx.x;
    if (barrier)
        __syncthreads();
    out[threadIdx.x] = words[(threadIdx.x + 1) % 64] + words[(threadIdx.x + 63) % 64];
}

/* The last word is never written. */
__global__ void unwritten_word(float *out) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    float *words = (float *)avl_shared_take(&cursor, 65 * sizeof(float));
    words[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = words[threadIdx.x] + words[threadIdx.x + 1];
}

/* Reads the word of the second round before everybody has read that of the first. */
__global__ void overwritten_too_early(int *out, int barrier) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    int *words = (int *)avl_shared_take(&cursor, 64 * sizeof(int));
    int sum = 0;
    for (int round = 0; round < 2; round++) {
        words[threadIdx.x] = (int)threadIdx.x + round;
        __syncthreads();
        sum += words[(threadIdx.x + 1) % 64];
        if (barrier)
            __syncthreads();
    }
    out[threadIdx.x] = sum;
}

static int wrong_words(const int *out, int expect_offset, int rounds) {
    int wrong = 0;
    for (int i = 0; i < 64; i++) {
        int expected =
            rounds == 1 ? (i + 1) % 64 + (i + 63) % 64 : 2 * ((i + 1) % 64) + expect_offset;
        wrong += out[i] != expected;
    }
    return wrong;
}

static void shared_memory(void **) {
    int *out = nullptr;
    size_t bytes = avl_shared_part(65 * sizeof(float));
    assert_int_equal(cudaMalloc((void **)&out, 64 * sizeof(int)), cudaSuccess);
    for (int order = AVL_SHIM_ASCENDING; order <= AVL_SHIM_RANDOM; order++) {
        use_order((avl_shim_order_t)order);
        AVL_LAUNCH(neighbours, 1, 64, bytes, stream, out, 1);
        assert_int_equal(wrong_words(out, 0, 1), 0);
        AVL_LAUNCH(neighbours, 1, 64, bytes, stream, out, 0);
        assert_true(wrong_words(out, 0, 1) > 0);
        AVL_LAUNCH(overwritten_too_early, 1, 64, bytes, stream, out, 1);
        assert_int_equal(wrong_words(out, 1, 2), 0);
        AVL_LAUNCH(overwritten_too_early, 1, 64, bytes, stream, out, 0);
        assert_true(wrong_words(out, 1, 2) > 0);
        AVL_LAUNCH(unwritten_word, 1, 64, bytes, stream, (float *)out);
        assert_true(((float *)out)[0] == 2.0f);
        assert_true(((float *)out)[63] != ((float *)out)[63]); /* NaN */
    }
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(cudaFree(out), cudaSuccess);
}

/* ---- asynchronous copies ---- */

__global__ void copy_without_wait(const uint4 *in, uint4 *out, int waits) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    uint4 *words = (uint4 *)avl_shared_take(&cursor, 2 * sizeof(uint4));
    avl_copy_async(&words[0], in, 16);
    avl_copy_async_commit();
    avl_copy_async(&words[1], in, 8);
    avl_copy_async_commit();
    if (waits == 1)
        avl_copy_async_wait<1>();
    if (waits == 2)
        avl_copy_async_wait<0>();
    out[0] = words[0];
    out[1] = words[1];
    if (waits != 2)
        return;
    avl_copy_async_wait<0>();
}

static void asynchronous_copies(void **) {
    uint4 *memory = nullptr;
    use_order(AVL_SHIM_ASCENDING);
    assert_int_equal(cudaMalloc((void **)&memory, 3 * sizeof(uint4)), cudaSuccess);
    memory[0] = make_uint4(1, 2, 3, 4);
    size_t bytes = avl_shared_part(2 * sizeof(uint4));
    AVL_LAUNCH(copy_without_wait, 1, 1, bytes, stream, memory, memory + 1, 0);
    expect_finding("never waited for");
    assert_int_equal(memory[1].x, 0xffffffffu);
    AVL_LAUNCH(copy_without_wait, 1, 1, bytes, stream, memory, memory + 1, 1);
    expect_finding("never waited for");
    assert_int_equal(memory[1].x, 1);
    assert_int_equal(memory[2].x, 0xffffffffu);
    AVL_LAUNCH(copy_without_wait, 1, 1, bytes, stream, memory, memory + 1, 2);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(memory[2].y, 2);
    assert_int_equal(memory[2].z, 0); /* behind the valid bytes */
    AVL_LAUNCH(copy_without_wait, 1, 1, bytes, stream, (uint4 *)((char *)memory + 4), memory + 1,
               2);
    expect_finding("aligned to 16 bytes");
    assert_int_equal(cudaFree(memory), cudaSuccess);
}

/* ---- the runtime ---- */

__global__ void write_one(int *out) {
    *out = 1;
}

static void deferred_streams(void **) {
    avl_shim_options_t options = {};
    options.devices = options.deferred = 1;
    avl_shim_configure(&options);
    int *out = nullptr, host = 5;
    assert_int_equal(cudaMalloc((void **)&out, sizeof(int)), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(out, &host, sizeof host, cudaMemcpyHostToDevice, stream),
                     cudaSuccess);
    host = 6; /* too early: the copy has not been made */
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(*out, 6);
    AVL_LAUNCH(write_one, 1, 1, 0, stream, out);
    assert_int_equal(*out, 6);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(*out, 1);
    assert_int_equal(cudaFree(out), cudaSuccess);
}

static void host_memory(void **) {
    use_order(AVL_SHIM_ASCENDING);
    int host = 0;
    AVL_LAUNCH(write_one, 1, 1, 0, stream, &host);
    expect_finding("host memory");
    assert_int_equal(host, 0);
}

/* Reads a word of guarded device memory on the host; says how the process that did ended. */
static int end_of_peeking(void) {
    avl_shim_options_t options = {};
    options.devices = options.guarded = 1;
    avl_shim_configure(&options);
    int *out = nullptr, host = 0;
    assert_int_equal(cudaMalloc((void **)&out, sizeof(int)), cudaSuccess);
    AVL_LAUNCH(write_one, 1, 1, 0, stream, out);
    assert_int_equal(cudaMemcpyAsync(&host, out, sizeof host, cudaMemcpyDeviceToHost, stream),
                     cudaSuccess);
    assert_int_equal(host, 1);
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(*(volatile int *)out);
    }
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    assert_int_equal(cudaFree(out), cudaSuccess);
    return status;
}

static void guarded_memory(void **) {
    int status = end_of_peeking();
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    use_order(AVL_SHIM_ASCENDING);
}

static void refused_calls(void **) {
    use_order(AVL_SHIM_ASCENDING);
    int host = 0;
    int *out = nullptr;
    assert_int_equal(cudaMalloc((void **)&out, sizeof(int)), cudaSuccess);
    AVL_LAUNCH(write_one, 1, 2048, 0, stream, out);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    AVL_LAUNCH(write_one, 0, 32, 0, stream, out);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    AVL_LAUNCH(write_one, dim3(1, 70000), 32, 0, stream, out);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    /* More than 48 KB of shared memory must be asked for, kernel by kernel. */
    AVL_LAUNCH(write_one, 1, 32, (size_t)48 << 10, stream, out);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    AVL_LAUNCH(write_one, 1, 32, ((size_t)48 << 10) + 16, stream, out);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(
        cudaFuncSetAttribute(write_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10),
        cudaSuccess);
    AVL_LAUNCH(write_one, 1, 32, (size_t)64 << 10, stream, out);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    AVL_LAUNCH(write_one, 1, 32, (size_t)65 << 10, stream, out);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    AVL_LAUNCH(half_ends, 1, 64, (size_t)64 << 10, stream, 0);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(
        cudaFuncSetAttribute(write_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20),
        cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    /* Host memory is not device memory, and a copy ends within its allocation. */
    assert_int_equal(cudaMemcpyAsync(&host, out, sizeof host, cudaMemcpyHostToDevice, stream),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemsetAsync(out, 0, 2 * sizeof(int), stream), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(&host), cudaErrorInvalidValue);
    (void)cudaGetLastError();
    assert_int_equal(cudaFree(out), cudaSuccess);
    assert_int_equal(avl_shim_live_allocations(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(barriers, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(warps, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(shared_memory, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(asynchronous_copies, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(deferred_streams, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(host_memory, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(guarded_memory, open_stream, close_stream),
        cmocka_unit_test_setup_teardown(refused_calls, open_stream, close_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
