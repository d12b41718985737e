/* tests/cuda/shim/runtime.cpp: memory, streams and events of the shim. */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cuda/shim/engine.h"

enum { ALIGNMENT = 256, THREADS_MAX = 1024, GRID_YZ_MAX = 65535 };

static const useconds_t not_ready_us = 200;
static const size_t total_bytes = (size_t)1 << 30;
static const size_t shared_bytes_max = 227 << 10;  /* of an H200 */
static const size_t shared_bytes_plain = 48 << 10; /* without cudaFuncSetAttribute */

struct allocation_t {
    allocation_t *next;
    unsigned char *memory;
    size_t bytes;
    int is_device, is_guarded;
};

/* Guarded device memory of a thread: pages that are open while its streams run alone, and are never
 * handed out twice. */
static const size_t arena_bytes = (size_t)4 << 30;
struct arena_t {
    unsigned char *pages;
    size_t used;
};
static thread_local arena_t arena;

static void open_arena(int is_open) {
    if (arena.pages != nullptr)
        mprotect(arena.pages, arena_bytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static unsigned char *take_guarded(size_t bytes) {
    if (arena.pages == nullptr) {
        void *pages = mmap(nullptr, arena_bytes, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pages == MAP_FAILED)
            return nullptr;
        arena.pages = (unsigned char *)pages;
        madvise(pages, arena_bytes, MADV_HUGEPAGE); /* or every opening walks all its pages */
    }
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (rounded > arena_bytes - arena.used)
        return nullptr;
    unsigned char *memory = arena.pages + arena.used;
    arena.used += rounded;
    return memory;
}

/* Of all threads: memory may be given back by another. */
static pthread_mutex_t allocations_lock = PTHREAD_MUTEX_INITIALIZER;
static allocation_t *allocations;
static int64_t allocation_count;
static size_t allocated_bytes;

struct avl_shim_event {
    avl_shim_stream *stream;
    uint64_t position;
};

static thread_local avl_shim_stream *streams;
static thread_local int64_t waits;
static thread_local int chosen_device;
/* Like the real runtime: a refused launch is told once, a fault within a kernel for ever. */
static thread_local cudaError_t last_error, fault;

static cudaError_t result(cudaError_t error) {
    if (fault != cudaSuccess)
        return fault;
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

const char *avl_shim_take_finding(void) {
    static thread_local char text[512];
    snprintf(text, sizeof text, "%s", avl_shim_finding());
    avl_shim_clear_finding();
    fault = last_error = cudaSuccess;
    return text;
}

int64_t avl_shim_waits(void) {
    return waits;
}

int avl_shim_chosen_device(void) {
    return chosen_device;
}

int64_t avl_shim_live_allocations(void) {
    pthread_mutex_lock(&allocations_lock);
    int64_t count = allocation_count;
    pthread_mutex_unlock(&allocations_lock);
    return count;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure:
        return avl_shim_finding()[0] != '\0' ? avl_shim_finding() : "unspecified launch failure";
    }
    return "unrecognized error code";
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = fault != cudaSuccess ? fault : last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) {
    return fault != cudaSuccess ? fault : last_error;
}

cudaError_t cudaGetDeviceCount(int *count) {
    if (avl_shim_options()->devices <= 0)
        return cudaErrorNoDevice; /* and the count stays what it was */
    *count = avl_shim_options()->devices;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= avl_shim_options()->devices)
        return result(cudaErrorInvalidValue);
    chosen_device = device;
    return result(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    *properties = cudaDeviceProp{};
    snprintf(properties->name, sizeof properties->name, "execution shim");
    memcpy(properties->uuid.bytes, "GPU", 4);
    properties->uuid.bytes[15] = (char)device;
    properties->major = 8;
    properties->multiProcessorCount = 4;
    properties->sharedMemPerBlockOptin = shared_bytes_max;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    pthread_mutex_lock(&allocations_lock);
    *available = allocated_bytes < total_bytes ? total_bytes - allocated_bytes : 0;
    pthread_mutex_unlock(&allocations_lock);
    *total = total_bytes;
    return cudaSuccess;
}

/* ---- streams ---- */

static int is_first_ready(const avl_shim_stream *stream) {
    avl_shim_task *task = stream->first;
    if (task->is_ready == nullptr || fault != cudaSuccess)
        return 1;
    open_arena(1);
    int is_ready = task->is_ready(task);
    open_arena(0);
    return is_ready;
}

static void run_first(avl_shim_stream *stream) {
    avl_shim_task *task = stream->first;
    stream->first = task->next;
    if (stream->first == nullptr)
        stream->last = nullptr;
    open_arena(1);
    if (fault == cudaSuccess)
        task->run(task);
    open_arena(0);
    if (avl_shim_finding()[0] != '\0')
        fault = cudaErrorLaunchFailure;
    task->destroy(task);
    stream->done++;
}

static void run_until(avl_shim_stream *stream, uint64_t position) {
    while (stream->done < position) {
        if (is_first_ready(stream))
            run_first(stream);
        else
            usleep(not_ready_us);
    }
}

static cudaError_t query(avl_shim_stream *stream, uint64_t position) {
    while (stream->done < position) {
        if (!is_first_ready(stream)) {
            usleep(not_ready_us); /* who asks in a loop leaves the processor to the others */
            return cudaErrorNotReady;
        }
        run_first(stream);
    }
    waits++; /* like one that slept until then */
    return result(cudaSuccess);
}

void avl_shim_enqueue(cudaStream_t stream, avl_shim_task *task) {
    task->next = nullptr;
    if (stream->last != nullptr)
        stream->last->next = task;
    else
        stream->first = task;
    stream->last = task;
    stream->enqueued++;
    if (!avl_shim_options()->deferred)
        run_until(stream, stream->enqueued);
}

/* Kernels that may have more shared memory than others. */
struct raised_t {
    void (*kernel)(void);
    size_t bytes;
};
enum { RAISED_MAX = 256 };
static raised_t raised[RAISED_MAX];
static int raised_count;

cudaError_t avl_shim_set_shared_most(void (*kernel)(void), int bytes) {
    if (bytes < 0 || (size_t)bytes > shared_bytes_max)
        return result(cudaErrorInvalidValue);
    pthread_mutex_lock(&allocations_lock);
    int i = 0;
    while (i < raised_count && raised[i].kernel != kernel)
        i++;
    if (i < RAISED_MAX) {
        raised[i] = {kernel, (size_t)bytes};
        raised_count = max(raised_count, i + 1);
    }
    pthread_mutex_unlock(&allocations_lock);
    return result(cudaSuccess);
}

static size_t shared_most(void (*kernel)(void)) {
    size_t most = shared_bytes_plain;
    pthread_mutex_lock(&allocations_lock);
    for (int i = 0; i < raised_count; i++)
        if (raised[i].kernel == kernel)
            most = max(most, raised[i].bytes);
    pthread_mutex_unlock(&allocations_lock);
    return most;
}

cudaError_t avl_shim_check_launch(void (*kernel)(void), dim3 grid, dim3 block,
                                  size_t shared_bytes) {
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    int is_valid = threads > 0 && threads <= THREADS_MAX && grid.x > 0 && grid.x <= INT_MAX &&
                   grid.y > 0 && grid.y <= GRID_YZ_MAX && grid.z > 0 && grid.z <= GRID_YZ_MAX;
    if (!is_valid)
        return result(cudaErrorInvalidConfiguration);
    return result(shared_bytes <= shared_most(kernel) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = (cudaStream_t)calloc(1, sizeof **stream);
    if (*stream == nullptr)
        return result(cudaErrorMemoryAllocation);
    (*stream)->enqueue = avl_shim_enqueue;
    (*stream)->next = streams;
    streams = *stream;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    run_until(stream, stream->enqueued);
    for (avl_shim_stream **link = &streams; *link != nullptr; link = &(*link)->next) {
        if (*link == stream) {
            *link = stream->next;
            break;
        }
    }
    free(stream);
    return result(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    waits++;
    run_until(stream, stream->enqueued);
    return result(cudaSuccess);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return query(stream, stream->enqueued);
}

static void synchronize_all(void) {
    waits++;
    for (avl_shim_stream *stream = streams; stream != nullptr; stream = stream->next)
        run_until(stream, stream->enqueued);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = (cudaEvent_t)calloc(1, sizeof **event);
    return result(*event != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, 0);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = 1.0f;
    return result(begin->stream != nullptr && end->stream != nullptr ? cudaSuccess
                                                                     : cudaErrorInvalidValue);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->stream = stream;
    event->position = stream->enqueued;
    return result(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    waits++;
    if (event->stream != nullptr)
        run_until(event->stream, event->position);
    return result(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return event->stream != nullptr ? query(event->stream, event->position) : result(cudaSuccess);
}

/* ---- memory ---- */

static cudaError_t allocate(void **memory, size_t bytes, int is_device) {
    avl_shim_options_t *options = avl_shim_options();
    int fails = options->fail_allocation > 0 && --options->fail_allocation == 0;
    allocation_t *allocation = (allocation_t *)malloc(sizeof *allocation);
    void *block = nullptr;
    int is_guarded = is_device && options->guarded,
        is_refused = fails || bytes == 0 || bytes > total_bytes;
    if (!is_refused && is_guarded)
        block = take_guarded(bytes);
    else if (!is_refused && posix_memalign(&block, ALIGNMENT, bytes) != 0)
        block = nullptr;
    if (allocation == nullptr || block == nullptr) {
        free(allocation);
        free(is_guarded ? nullptr : block);
        return result(cudaErrorMemoryAllocation);
    }
    open_arena(1);
    memset(block, 0xff, bytes);
    open_arena(0);
    pthread_mutex_lock(&allocations_lock);
    *allocation = {allocations, (unsigned char *)block, bytes, is_device, is_guarded};
    allocations = allocation;
    allocation_count++;
    allocated_bytes += bytes;
    pthread_mutex_unlock(&allocations_lock);
    *memory = block;
    return result(cudaSuccess);
}

static cudaError_t give_back(void *memory, int is_device) {
    if (memory == nullptr)
        return result(cudaSuccess);
    synchronize_all();
    allocation_t *found = nullptr;
    pthread_mutex_lock(&allocations_lock);
    for (allocation_t **link = &allocations; *link != nullptr; link = &(*link)->next) {
        if ((*link)->memory == memory && (*link)->is_device == is_device) {
            found = *link;
            *link = found->next;
            allocation_count--;
            allocated_bytes -= found->bytes;
            break;
        }
    }
    pthread_mutex_unlock(&allocations_lock);
    if (found == nullptr)
        return result(cudaErrorInvalidValue);
    if (!found->is_guarded)
        free(found->memory);
    free(found);
    return result(cudaSuccess);
}

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    return allocate(memory, bytes, 1);
}
cudaError_t cudaFree(void *memory) {
    return give_back(memory, 1);
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
    return allocate(memory, bytes, 0);
}
cudaError_t cudaFreeHost(void *memory) {
    return give_back(memory, 0);
}

static int is_allocated(const void *memory, size_t bytes, int is_device) {
    int found = 0;
    pthread_mutex_lock(&allocations_lock);
    for (const allocation_t *a = allocations; a != nullptr && !found; a = a->next)
        found = a->is_device == is_device && (const unsigned char *)memory >= a->memory &&
                (const unsigned char *)memory + bytes <= a->memory + a->bytes;
    pthread_mutex_unlock(&allocations_lock);
    return found;
}

static int is_device_memory(const void *memory, size_t bytes) {
    return is_allocated(memory, bytes, 1);
}

/* Words that are addresses of this process's memory, and not of the device's. Numbers look like
 * that only by chance, and then mostly nothing is mapped there. */
void avl_shim_check_arguments(const void *arguments, size_t bytes) {
    const uintptr_t lowest = (uintptr_t)1 << 44, highest = (uintptr_t)1 << 47;
    for (size_t i = 0; i + sizeof(uintptr_t) <= bytes; i += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, (const char *)arguments + i, sizeof word);
        unsigned char resident;
        /* A small number beside padding, which holds anything. */
        if ((uint32_t)word < 1 << 16)
            continue;
        /* An empty array may stand right behind an allocation. */
        if (word < lowest || word >= highest || is_device_memory((const void *)word, 0) ||
            mincore((void *)(word & ~(uintptr_t)4095), 1, &resident) != 0)
            continue;
        char text[128];
        snprintf(text, sizeof text,
                 "a kernel is given host memory: word %zu of its arguments is %p", i / sizeof word,
                 (void *)word);
        avl_shim_record(text);
    }
}

struct copy_task : avl_shim_task {
    void *target;
    const void *source; /* nullptr: fill with `value` */
    size_t bytes;
    int value;
};

static cudaError_t enqueue_copy(cudaStream_t stream, void *target, const void *source, size_t bytes,
                                int value) {
    copy_task *task = (copy_task *)calloc(1, sizeof *task);
    if (task == nullptr)
        return result(cudaErrorMemoryAllocation);
    task->target = target;
    task->source = source;
    task->bytes = bytes;
    task->value = value;
    task->run = [](avl_shim_task *self) {
        copy_task *own = (copy_task *)self;
        if (own->source == nullptr)
            memset(own->target, own->value, own->bytes);
        else
            memmove(own->target, own->source, own->bytes);
    };
    task->destroy = [](avl_shim_task *self) { free(self); };
    avl_shim_enqueue(stream, task);
    return result(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (target == nullptr || source == nullptr || (to_device && !is_device_memory(target, bytes)) ||
        (from_device && !is_device_memory(source, bytes)))
        return result(cudaErrorInvalidValue);
    cudaError_t error = enqueue_copy(stream, target, source, bytes, 0);
    /* Into memory that is not pinned, it returns when the copy has been made and all before it. */
    if (error == cudaSuccess && kind == cudaMemcpyDeviceToHost && !is_allocated(target, bytes, 0)) {
        run_until(stream, stream->enqueued);
        error = result(cudaSuccess);
    }
    return error;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    if (!is_device_memory(memory, bytes))
        return result(cudaErrorInvalidValue);
    return enqueue_copy(stream, memory, nullptr, bytes, value);
}
