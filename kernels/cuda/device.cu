/* kernels/cuda/device.cu: opening the GPU, its memory, and the ring of pinned memory between host
 * and GPU.
 *
 * Segments of the ring are filled one after another; leaving one records an event, and coming back
 * to it waits for that event. So copying a large array to pinned memory overlaps with its transfer,
 * and host memory that the caller reuses at once is never read late. */
#include "kernels/cuda/device.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/cuda/blas.h"

static const size_t segment_bytes = (size_t)4 << 20;
static const size_t first_scratch_bytes = (size_t)32 << 20;

avl_status_t avl_cuda_status(cudaError_t error, const char *what) {
    if (error == cudaSuccess)
        return AVL_OK;
    return avl_fail(AVL_ERR_DEVICE, "cuda device: %s: %s", what, cudaGetErrorString(error));
}

avl_status_t avl_cuda_launched(const char *operation) {
    return avl_cuda_status(cudaGetLastError(), operation);
}

/* ---- memory ---- */

static avl_status_t allocate_raw(size_t bytes, const char *what, void **memory_p) {
    void *memory = nullptr;
    cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* or the next launch would be blamed */
        return avl_fail(AVL_ERR_MEMORY, "%s: no device memory for %zu bytes", what, bytes);
    }
    AVL_TRY(avl_cuda_status(error, what));
    *memory_p = memory;
    return AVL_OK;
}

static avl_status_t allocate(avl_device_t *device, size_t bytes, const char *what,
                             void **memory_p) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    if (bytes > PTRDIFF_MAX)
        return avl_fail(AVL_ERR_MEMORY, "%s: %zu bytes do not fit the address space", what, bytes);
    void *memory = nullptr;
    size_t whole = bytes > 0 ? bytes : 1;
    AVL_TRY(allocate_raw(whole, what, &memory));
    avl_status_t status = avl_cuda_status(cudaMemsetAsync(memory, 0, whole, cuda->stream), what);
    if (status != AVL_OK) {
        (void)cudaFree(memory);
        return status;
    }
    *memory_p = memory;
    return AVL_OK;
}

/* Waits for the GPU: what it still does may use the memory. */
static void release(avl_device_t *device, void *memory) {
    (void)device;
    (void)cudaFree(memory);
}

avl_status_t avl_cuda_scratch(avl_cuda_device_t *cuda, size_t bytes, const char *what,
                              void **scratch_p) {
    if (bytes > cuda->scratch_bytes) {
        void *memory = nullptr;
        AVL_TRY(allocate_raw(bytes, what, &memory));
        (void)cudaFree(cuda->scratch);
        cuda->scratch = memory;
        cuda->scratch_bytes = bytes;
    }
    *scratch_p = cuda->scratch;
    return AVL_OK;
}

avl_status_t avl_cuda_pack(avl_cuda_device_t *cuda, size_t bytes, const char *what,
                           void **packed_p) {
    if (bytes > cuda->packed_bytes) {
        void *memory = realloc(cuda->packed, bytes);
        if (memory == nullptr)
            return avl_fail(AVL_ERR_MEMORY, "%s: no memory for %zu bytes", what, bytes);
        cuda->packed = memory;
        cuda->packed_bytes = bytes;
    }
    *packed_p = cuda->packed;
    return AVL_OK;
}

/* ---- waiting ---- */

/* Until `ask` is no longer answered with cudaErrorNotReady. Somebody who watches may end it. */
template <typename T>
static avl_status_t wait_watched(avl_cuda_device_t *cuda, cudaError_t (*ask)(T), T what_for,
                                 const char *what) {
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (;;) {
        cudaError_t error = ask(what_for);
        if (error != cudaErrorNotReady)
            return avl_cuda_status(error, what);
        (void)cudaGetLastError(); /* or the next launch would be blamed */
        clock_gettime(CLOCK_MONOTONIC, &now);
        int64_t waited_ns =
            (now.tv_sec - begin.tv_sec) * INT64_C(1000000000) + (now.tv_nsec - begin.tv_nsec);
        AVL_TRY(cuda->device.watch(cuda->device.watch_context, waited_ns));
        sched_yield();
    }
}

static avl_status_t wait_stream(avl_cuda_device_t *cuda, const char *what) {
    return cuda->device.watch == nullptr
               ? avl_cuda_status(cudaStreamSynchronize(cuda->stream), what)
               : wait_watched(cuda, cudaStreamQuery, cuda->stream, what);
}

static avl_status_t wait_event(avl_cuda_device_t *cuda, cudaEvent_t event, const char *what) {
    return cuda->device.watch == nullptr ? avl_cuda_status(cudaEventSynchronize(event), what)
                                         : wait_watched(cuda, cudaEventQuery, event, what);
}

/* ---- copies ---- */

/* Room in the ring: at least one byte, at most `wanted`. */
static avl_status_t reserve_ring(avl_cuda_device_t *cuda, size_t wanted, const char *what,
                                 unsigned char **room_p, size_t *room_bytes_p) {
    if (cuda->ring_filled == segment_bytes) {
        AVL_TRY(avl_cuda_status(
            cudaEventRecord(cuda->ring_events[cuda->ring_segment], cuda->stream), what));
        int next = (cuda->ring_segment + 1) % AVL_CUDA_SEGMENTS;
        AVL_TRY(wait_event(cuda, cuda->ring_events[next], what));
        cuda->ring_segment = next;
        cuda->ring_filled = 0;
    }
    size_t rest = segment_bytes - cuda->ring_filled;
    *room_p = cuda->ring + (size_t)cuda->ring_segment * segment_bytes + cuda->ring_filled;
    *room_bytes_p = wanted < rest ? wanted : rest;
    return AVL_OK;
}

avl_status_t avl_cuda_send(avl_cuda_device_t *cuda, void *target, const void *source, size_t bytes,
                           const char *what) {
    for (size_t sent = 0; sent < bytes;) {
        unsigned char *room = nullptr;
        size_t room_bytes = 0;
        AVL_TRY(reserve_ring(cuda, bytes - sent, what, &room, &room_bytes));
        memcpy(room, (const char *)source + sent, room_bytes);
        AVL_TRY(avl_cuda_status(cudaMemcpyAsync((char *)target + sent, room, room_bytes,
                                                cudaMemcpyHostToDevice, cuda->stream),
                                what));
        cuda->ring_filled += room_bytes;
        sent += room_bytes;
    }
    return AVL_OK;
}

static avl_status_t check_copy(const void *target, const void *source, size_t bytes) {
    if (bytes > 0 && (target == nullptr || source == nullptr))
        return avl_fail(AVL_ERR_SHAPE, "cuda device: copying %zu bytes %s NULL", bytes,
                        target == nullptr ? "to" : "from");
    return AVL_OK;
}

static avl_status_t upload(avl_device_t *device, void *target, const void *source, size_t bytes) {
    AVL_TRY(check_copy(target, source, bytes));
    return avl_cuda_send(avl_cuda_of(device), target, source, bytes, "upload");
}

static avl_status_t synchronize(avl_device_t *device) {
    return wait_stream(avl_cuda_of(device), "waiting for the GPU");
}

static avl_status_t measure(avl_device_t *device) {
    size_t available = 0, total = 0;
    AVL_TRY(avl_cuda_status(cudaMemGetInfo(&available, &total), "asking for free memory"));
    device->info.memory_bytes = available;
    return AVL_OK;
}

/* A copy into memory that is not pinned itself waits for all before it, unwatched: so it goes
 * through the ring. */
static avl_status_t download_watched(avl_cuda_device_t *cuda, void *target, const void *source,
                                     size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        unsigned char *room = nullptr;
        size_t room_bytes = 0;
        AVL_TRY(reserve_ring(cuda, bytes - done, "download", &room, &room_bytes));
        AVL_TRY(avl_cuda_status(cudaMemcpyAsync(room, (const char *)source + done, room_bytes,
                                                cudaMemcpyDeviceToHost, cuda->stream),
                                "download"));
        cuda->ring_filled += room_bytes;
        AVL_TRY(wait_stream(cuda, "download"));
        memcpy((char *)target + done, room, room_bytes);
        done += room_bytes;
    }
    return AVL_OK;
}

static avl_status_t download(avl_device_t *device, void *target, const void *source, size_t bytes) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(check_copy(target, source, bytes));
    if (bytes == 0)
        return AVL_OK;
    if (cuda->device.watch != nullptr)
        return download_watched(cuda, target, source, bytes);
    AVL_TRY(avl_cuda_status(
        cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, cuda->stream), "download"));
    return synchronize(device);
}

/* ---- opening and closing ---- */

static void close_device(avl_device_t *device) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    if (cuda->stream != nullptr)
        (void)cudaStreamSynchronize(cuda->stream);
    avl_cuda_blas_destroy(cuda->blas);
    (void)cudaFree(cuda->scratch);
    (void)cudaFree(cuda->counters);
    for (int i = 0; i < AVL_CUDA_SEGMENTS; i++)
        if (cuda->ring_events[i] != nullptr)
            (void)cudaEventDestroy(cuda->ring_events[i]);
    (void)cudaFreeHost(cuda->ring);
    if (cuda->stream != nullptr)
        (void)cudaStreamDestroy(cuda->stream);
    free(cuda->packed);
    free(cuda);
}

static const avl_device_ops_t cuda_ops = {
    .close = close_device,
    .allocate = allocate,
    .release = release,
    .upload = upload,
    .download = download,
    .synchronize = synchronize,
    .measure = measure,
    .linear = avl_cuda_linear,
    .norm = avl_cuda_norm,
    .rope = avl_cuda_rope,
    .activation = avl_cuda_activation,
    .gated = avl_cuda_gated,
    .add = avl_cuda_add,
    .embed = avl_cuda_embed,
    .patches = avl_cuda_patches,
    .copy_rows = avl_cuda_copy_rows,
    .attention = avl_cuda_attention,
    .decode_attention = avl_cuda_decode_attention,
    .kv_write = avl_cuda_kv_write,
    .kv_move = avl_cuda_kv_move,
    .topk = avl_cuda_topk,
    .argmax = avl_cuda_argmax,
    .sample = avl_cuda_sample,
    .choose = avl_cuda_choose,
    .publish = avl_cuda_publish,
    .round = avl_cuda_round,
    .text_weights = avl_cuda_text_weights,
    .text_update = avl_cuda_text_update,
    .text_keep = avl_cuda_text_keep,
    .diversity = avl_cuda_diversity,
    .weigh = avl_cuda_weigh,
    .prepare_linear = nullptr, /* the library's workspace is there from the start */
    .prepare_attention = avl_cuda_prepare_attention,
};

static avl_status_t find_gpu(int place, cudaDeviceProp *properties_p, int *count_p) {
    int count = 0; /* some failures leave it as it was */
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count < 1) {
        (void)cudaGetLastError();
        return avl_fail(AVL_ERR_UNSUPPORTED, "no CUDA device: %s",
                        error != cudaSuccess ? cudaGetErrorString(error) : "this host has none");
    }
    int gpu = place % count;
    AVL_TRY(avl_cuda_status(cudaSetDevice(gpu), "choosing a GPU"));
    AVL_TRY(avl_cuda_status(cudaGetDeviceProperties(properties_p, gpu), "asking what the GPU is"));
    if (properties_p->major < 8)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "no CUDA device: %s has compute capability %d.%d; 8.0 is needed",
                        properties_p->name, properties_p->major, properties_p->minor);
    *count_p = count;
    return AVL_OK;
}

static avl_status_t prepare(avl_cuda_device_t *cuda, const cudaDeviceProp *properties) {
    cuda->shared_bytes_max = properties->sharedMemPerBlockOptin;
    AVL_TRY(avl_cuda_status(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking),
                            "making a stream"));
    for (int i = 0; i < AVL_CUDA_SEGMENTS; i++)
        AVL_TRY(
            avl_cuda_status(cudaEventCreateWithFlags(&cuda->ring_events[i], cudaEventDisableTiming),
                            "making an event"));
    void *memory = nullptr;
    AVL_TRY(avl_cuda_status(
        cudaHostAlloc(&memory, AVL_CUDA_SEGMENTS * segment_bytes, cudaHostAllocDefault),
        "pinned memory"));
    cuda->ring = (unsigned char *)memory;
    AVL_TRY(avl_cuda_scratch(cuda, first_scratch_bytes, "scratch memory", &memory));
    cuda->device.workspace_bytes = cuda->scratch_bytes;
    AVL_TRY(allocate(&cuda->device, AVL_CUDA_COUNTERS * sizeof(int), "counters", &memory));
    cuda->counters = (int *)memory;
    AVL_TRY(avl_cuda_blas_create(cuda->stream, &cuda->blas));
    AVL_TRY(synchronize(&cuda->device));
    cuda->device.stream = cuda->stream;
    return measure(&cuda->device);
}

extern "C" avl_status_t avl_cuda_device_open(int place, avl_device_t **device_p) {
    cudaDeviceProp properties;
    int gpu_count = 0;
    AVL_CHECK_SHAPE(place >= 0, "cuda device: place %d", place);
    AVL_TRY(find_gpu(place, &properties, &gpu_count));
    avl_cuda_device_t *cuda = (avl_cuda_device_t *)calloc(1, sizeof *cuda);
    if (cuda == nullptr)
        return avl_fail(AVL_ERR_MEMORY, "no memory for the cuda device");
    cuda->device.ops = &cuda_ops;
    cuda->device.info.threads = 1;
    cuda->device.info.fast_dtype = AVL_DTYPE_BF16;
    cuda->device.info.has_f16 = 1;
    cuda->device.info.gpu_count = gpu_count;
    static_assert(sizeof properties.uuid == AVL_GPU_ID_BYTES, "a UUID");
    memcpy(cuda->device.gpu_id, &properties.uuid, sizeof properties.uuid);
    snprintf(cuda->device.info.name, sizeof cuda->device.info.name, "cuda: %.40s (sm_%d%d)",
             properties.name, properties.major, properties.minor);
    avl_status_t status = prepare(cuda, &properties);
    if (status != AVL_OK) {
        close_device(&cuda->device);
        return status;
    }
    *device_p = &cuda->device;
    return AVL_OK;
}
