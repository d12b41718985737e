/* tests/cuda/shim/cuda_runtime.h: the part of the CUDA runtime that kernels/cuda uses, for a host
 * compiler. Names and meanings are those of the CUDA programming guide. */
#ifndef AVL_TESTS_CUDA_SHIM_CUDA_RUNTIME_H
#define AVL_TESTS_CUDA_SHIM_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <tuple>

#include "tests/cuda/shim/shim.h"
#include "tests/cuda/shim/stream.h"

#if defined(__SANITIZE_ADDRESS__)
#define AVL_SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define AVL_SHIM_ASAN 1
#endif
#endif
#ifdef AVL_SHIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

/* ---- language ---- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 {
    unsigned x, y;
} __attribute__((aligned(8)));
struct uint4 {
    unsigned x, y, z, w;
} __attribute__((aligned(16)));
struct float4 {
    float x, y, z, w;
} __attribute__((aligned(16)));
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return uint4{x, y, z, w};
}

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

/* What a running thread can ask for. One host thread runs one kernel thread at a time. */
struct avl_shim_place {
    uint3 thread_index, block_index;
    dim3 block_size, grid_size;
    unsigned char *shared;
};
avl_shim_place *avl_shim_here(void);
#define threadIdx (avl_shim_here()->thread_index)
#define blockIdx (avl_shim_here()->block_index)
#define blockDim (avl_shim_here()->block_size)
#define gridDim (avl_shim_here()->grid_size)

/* ---- barriers and warps ---- */

void avl_shim_barrier(const char *file, int line);
#define __syncthreads() avl_shim_barrier(__FILE__, __LINE__)

/* Every lane of `mask` arrives with the same `kind`; the last one runs finish over the lanes'
 * payloads (NULL for lanes outside the mask), then all go on. */
typedef void avl_shim_finish_t(void *const *payloads, unsigned mask);
void avl_shim_warp(const char *kind, unsigned mask, void *payload, avl_shim_finish_t *finish);
[[noreturn]] void avl_shim_stop(const char *format, ...) __attribute__((format(printf, 1, 2)));

template <typename T> struct avl_shim_shuffle {
    T value, result;
    int source; /* lane; -1: none, keeps its own */
};
template <typename T> void avl_shim_finish_shuffle(void *const *payloads, unsigned mask) {
    for (int lane = 0; lane < 32; lane++) {
        auto *own = (avl_shim_shuffle<T> *)payloads[lane];
        if (own == nullptr)
            continue;
        int source = own->source < 0 ? lane : own->source;
        if ((mask >> source & 1) == 0)
            avl_shim_stop("a shuffle of lane %d reads lane %d, which mask 0x%08x does not name",
                          lane, source, mask);
        own->result = ((avl_shim_shuffle<T> *)payloads[source])->value;
    }
}
template <typename T>
static inline T avl_shim_run_shuffle(const char *kind, unsigned mask, T value, int source) {
    avl_shim_shuffle<T> own = {value, value, source};
    avl_shim_warp(kind, mask, &own, avl_shim_finish_shuffle<T>);
    return own.result;
}
int avl_shim_lane(void);
template <typename T> static inline T __shfl_sync(unsigned mask, T value, int source) {
    return avl_shim_run_shuffle("__shfl_sync", mask, value, source & 31);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return avl_shim_run_shuffle("__shfl_xor_sync", mask, value, (avl_shim_lane() ^ bits) & 31);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
    int source = avl_shim_lane() - (int)delta;
    return avl_shim_run_shuffle("__shfl_up_sync", mask, value, source);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
    int source = avl_shim_lane() + (int)delta;
    return avl_shim_run_shuffle("__shfl_down_sync", mask, value, source > 31 ? -1 : source);
}
unsigned __ballot_sync(unsigned mask, int predicate);
void __syncwarp(unsigned mask = 0xffffffffu);
static inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}

/* ---- memory ---- */

/* What a thread does to memory, for races.cpp. */
typedef enum avl_shim_access {
    AVL_SHIM_READ,
    AVL_SHIM_READ_CONSTANT, /* by way of the cache for constants */
    AVL_SHIM_WRITE,
    AVL_SHIM_ATOMIC,
} avl_shim_access_t;
void avl_shim_note(const void *memory, size_t bytes, avl_shim_access_t kind);
void avl_shim_note_fence(void);
#define AVL_SHIM_SPECIAL __attribute__((no_sanitize("thread"))) /* told of by itself */
void avl_shim_check_aligned(const void *memory, size_t alignment);

template <typename T> AVL_SHIM_SPECIAL static inline T atomicAdd(T *target, T value) {
    avl_shim_check_aligned(target, sizeof *target);
    avl_shim_note(target, sizeof *target, AVL_SHIM_ATOMIC);
    T before = *target;
    *target = before + value;
    return before;
}
static inline void __threadfence(void) {
    avl_shim_note_fence();
}
template <typename T> AVL_SHIM_SPECIAL static inline T __ldg(const T *source) {
    avl_shim_check_aligned(source, sizeof *source);
    avl_shim_note(source, sizeof *source, AVL_SHIM_READ_CONSTANT);
    return *source;
}
template <typename T> AVL_SHIM_SPECIAL static inline T __ldcg(const T *source) {
    avl_shim_check_aligned(source, sizeof *source);
    avl_shim_note(source, sizeof *source, AVL_SHIM_READ);
    return *source;
}

/* ---- arithmetic ---- */

static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
/* Products and sums that are not contracted; this build contracts none. */
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int __popc(unsigned value) {
    return __builtin_popcount(value);
}
using std::max;
using std::min;

/* ---- the runtime ---- */

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
} cudaError_t;
typedef enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
} cudaMemcpyKind;
typedef enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
} cudaFuncAttribute;
typedef struct avl_shim_stream *cudaStream_t;
typedef struct avl_shim_event *cudaEvent_t;
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };

struct cudaUUID_t {
    char bytes[16];
};
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    int major, minor;
    int multiProcessorCount;
    size_t sharedMemPerBlockOptin;
};

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
/* There is no time here: who asks gets it done, but for what others have to do first. */
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
/* There is no time here: a millisecond lies between any two events. */
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaMalloc(void **memory, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t avl_shim_set_shared_most(void (*kernel)(void), int bytes);
template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int bytes) {
    return avl_shim_set_shared_most((void (*)(void))kernel, bytes);
}

/* ---- launching ---- */

void avl_shim_enqueue(cudaStream_t stream, avl_shim_task *task);
/* Calls body(context) as every thread of the grid. */
void avl_shim_run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *),
                       void *context);
cudaError_t avl_shim_check_launch(void (*kernel)(void), dim3 grid, dim3 block, size_t shared_bytes);
/* A kernel's arguments may not point to host memory: a finding. */
void avl_shim_check_arguments(const void *arguments, size_t bytes);

template <typename... P> struct avl_shim_kernel_task : avl_shim_task {
    void (*kernel)(P...);
    dim3 grid, block;
    size_t shared_bytes;
    std::tuple<std::decay_t<P>...> arguments;
};

template <typename... P, typename... A>
static inline void avl_shim_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                                   cudaStream_t stream, A... arguments) {
    typedef avl_shim_kernel_task<P...> task_t;
    if (avl_shim_check_launch((void (*)(void))kernel, grid, block, shared_bytes) != cudaSuccess)
        return;
    task_t *task = new (std::nothrow)
        task_t{{}, kernel, grid, block, shared_bytes, std::tuple<std::decay_t<P>...>(arguments...)};
    if (task == nullptr)
        avl_shim_stop("no memory for a launch");
    task->run = [](avl_shim_task *self) {
        task_t *own = (task_t *)self;
        avl_shim_run_grid(
            own->grid, own->block, own->shared_bytes,
            [](void *context) {
                task_t *mine = (task_t *)context;
                std::apply(mine->kernel, mine->arguments);
            },
            own);
    };
    task->destroy = [](avl_shim_task *self) { delete (task_t *)self; };
    avl_shim_check_arguments(&task->arguments, sizeof task->arguments);
    avl_shim_enqueue(stream, task);
}

#endif
