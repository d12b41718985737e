/* tests/cuda/shim/nccl.cpp: a libnccl.so.2 for the execution shim: what comm/nccl.c calls, between
 * threads of one process or processes of one host. Like the real one under NCCL_COMM_BLOCKING=0,
 * calls then say that they are under way before they are done. A collective runs when the stream
 * comes to it and every rank has, and stays under way for ever where one does not, until its own
 * rank aborts.
 *
 * It finds collectives that differ between ranks (kind, count or root): the process ends with a
 * message. AVL_SHIM_NCCL_FAILS names a call that fails, for tests of what happens then. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>

#include "tests/cuda/shim/stream.h"

extern "C" {
#include "comm/nccl_abi.h"
}

enum { RANKS_MAX = 8, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, REMOTE_ERROR = 6 };
static const size_t slot_bytes = (size_t)64
                                 << 20; /* of the largest collective; touched as needed */

/* What a rank brings to a collective. */
struct offer_t {
    int kind, root;
    size_t count;
};

struct hub_t {
    std::atomic<int> joined;
    std::atomic<uint64_t> arrivals, departures;
    offer_t offers[RANKS_MAX];
};

struct avl_nccl_comm {
    hub_t *hub;
    unsigned char *slots;
    char name[64];
    int rank, ranks;
    uint64_t begun; /* collectives enqueued */
    avl_nccl_comm *next;
    int is_aborted;
    int is_told; /* that the last call is under way */
};

enum kind_t { ALL_REDUCE, REDUCE, BROADCAST };

struct collective_t : avl_shim_task {
    avl_nccl_comm *comm;
    uint64_t number;
    offer_t offer;
    const float *source;
    float *target;
    int has_arrived;
};

static size_t hub_bytes(void) {
    return (sizeof(hub_t) + 4095) / 4096 * 4096;
}

static int fails(const char *call) {
    const char *named = getenv("AVL_SHIM_NCCL_FAILS");
    return named != nullptr && strcmp(named, call) == 0;
}

/* What a call returns that has begun well. */
static int begun(avl_nccl_comm *comm) {
    const char *blocking = getenv("NCCL_COMM_BLOCKING");
    comm->is_told = blocking == nullptr || strcmp(blocking, "0") != 0;
    return comm->is_told ? AVL_NCCL_SUCCESS : AVL_NCCL_IN_PROGRESS;
}

static float *slot_of(const avl_nccl_comm *comm, int rank) {
    return (float *)(comm->slots + slot_bytes * (size_t)rank);
}

/* Arrives as soon as everybody has left the collective before this one. */
static int is_ready(avl_shim_task *task) {
    collective_t *self = static_cast<collective_t *>(task);
    avl_nccl_comm *comm = self->comm;
    uint64_t ranks = (uint64_t)comm->ranks;
    if (comm->is_aborted)
        return 1;
    if (!self->has_arrived) {
        if (comm->hub->departures < ranks * self->number)
            return 0;
        comm->hub->offers[comm->rank] = self->offer;
        memcpy(slot_of(comm, comm->rank), self->source, self->offer.count * sizeof(float));
        self->has_arrived = 1;
        comm->hub->arrivals++;
    }
    return comm->hub->arrivals >= ranks * (self->number + 1);
}

static void compare(const collective_t *self) {
    for (int rank = 0; rank < self->comm->ranks; rank++) {
        const offer_t *other = &self->comm->hub->offers[rank], *own = &self->offer;
        if (other->kind == own->kind && other->count == own->count && other->root == own->root)
            continue;
        fprintf(stderr,
                "nccl: rank %d is in collective %llu with kind %d of %zu to %d, rank %d with kind "
                "%d of %zu to %d\n",
                self->comm->rank, (unsigned long long)self->number, own->kind, own->count,
                own->root, rank, other->kind, other->count, other->root);
        abort();
    }
}

static void run(avl_shim_task *task) {
    collective_t *self = static_cast<collective_t *>(task);
    avl_nccl_comm *comm = self->comm;
    if (comm->is_aborted)
        return;
    compare(self);
    int is_root = comm->rank == self->offer.root;
    if (self->offer.kind == BROADCAST)
        memcpy(self->target, slot_of(comm, self->offer.root), self->offer.count * sizeof(float));
    for (size_t i = 0; self->offer.kind != BROADCAST && i < self->offer.count; i++) {
        float sum = slot_of(comm, 0)[i];
        for (int rank = 1; rank < comm->ranks; rank++)
            sum += slot_of(comm, rank)[i];
        if (self->offer.kind == ALL_REDUCE || is_root)
            self->target[i] = sum;
    }
    comm->hub->departures++;
}

static int enqueue(kind_t kind, const void *source, void *target, size_t count, int type, int root,
                   avl_nccl_comm *comm, void *stream) {
    if (fails("collective"))
        return SYSTEM_ERROR;
    if (comm == nullptr || stream == nullptr || type != AVL_NCCL_FLOAT32 ||
        count * sizeof(float) > slot_bytes)
        return INVALID_ARGUMENT;
    collective_t *task = (collective_t *)calloc(1, sizeof *task);
    if (task == nullptr)
        return SYSTEM_ERROR;
    task->comm = comm;
    task->number = comm->begun++;
    task->offer = {kind, root, count};
    task->source = (const float *)source;
    task->target = (float *)target;
    task->is_ready = is_ready;
    task->run = run;
    task->destroy = [](avl_shim_task *self) { free(self); };
    avl_shim_stream *on = (avl_shim_stream *)stream;
    on->enqueue(on, task);
    return begun(comm);
}

static int map_hub(avl_nccl_comm *comm) {
    size_t bytes = hub_bytes() + slot_bytes * (size_t)comm->ranks;
    int file = shm_open(comm->name, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, (off_t)bytes) != 0)
        return SYSTEM_ERROR;
    void *memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    if (memory == MAP_FAILED)
        return SYSTEM_ERROR;
    comm->hub = (hub_t *)memory;
    comm->slots = (unsigned char *)memory + hub_bytes();
    return AVL_NCCL_SUCCESS;
}

static void release(avl_nccl_comm *comm) {
    shm_unlink(comm->name); /* the last of several says so in vain */
    if (comm->hub != nullptr)
        munmap(comm->hub, hub_bytes() + slot_bytes * (size_t)comm->ranks);
    free(comm);
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int ncclGetVersion(int *version) {
    *version = fails("version") ? 21300 : 22809;
    return AVL_NCCL_SUCCESS;
}

EXPORT const char *ncclGetErrorString(int result) {
    return result == SYSTEM_ERROR       ? "unhandled system error"
           : result == INVALID_ARGUMENT ? "invalid argument"
           : result == REMOTE_ERROR     ? "remote process exited or there was a network error"
                                        : "internal error";
}

EXPORT const char *ncclGetLastError(avl_nccl_comm *) {
    return "the stand-in says so";
}

EXPORT int ncclGetUniqueId(avl_nccl_id_t *id) {
    uint64_t words[2];
    if (fails("id") || getrandom(words, sizeof words, 0) != sizeof words)
        return SYSTEM_ERROR;
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "/avl-nccl-%016llx%016llx", (unsigned long long)words[0],
             (unsigned long long)words[1]);
    return AVL_NCCL_SUCCESS;
}

EXPORT int ncclCommInitRank(avl_nccl_comm **comm_p, int ranks, avl_nccl_id_t id, int rank) {
    if (ranks > RANKS_MAX)
        return INVALID_ARGUMENT;
    if (fails("init"))
        return SYSTEM_ERROR;
    avl_nccl_comm *comm = (avl_nccl_comm *)calloc(1, sizeof *comm);
    if (comm == nullptr)
        return SYSTEM_ERROR;
    memcpy(comm->name, id.bytes, sizeof comm->name - 1);
    comm->rank = rank;
    comm->ranks = ranks;
    if (map_hub(comm) != AVL_NCCL_SUCCESS) {
        release(comm);
        return SYSTEM_ERROR;
    }
    comm->hub->joined++;
    *comm_p = comm;
    int result = begun(comm);
    while (result == AVL_NCCL_SUCCESS && comm->hub->joined < ranks)
        usleep(200);
    return result;
}

EXPORT int ncclCommGetAsyncError(avl_nccl_comm *comm, int *result) {
    if (comm->is_aborted)
        *result = REMOTE_ERROR;
    else if (comm->hub->joined < comm->ranks)
        *result = AVL_NCCL_IN_PROGRESS;
    else
        *result = comm->is_told ? AVL_NCCL_SUCCESS : AVL_NCCL_IN_PROGRESS;
    comm->is_told = 1;
    return AVL_NCCL_SUCCESS;
}

EXPORT int ncclCommFinalize(avl_nccl_comm *comm) {
    return begun(comm);
}

EXPORT int ncclCommDestroy(avl_nccl_comm *comm) {
    release(comm);
    return AVL_NCCL_SUCCESS;
}

/* What is enqueued still refers to it. */
EXPORT int ncclCommAbort(avl_nccl_comm *comm) {
    static std::atomic<avl_nccl_comm *> aborted;
    comm->is_aborted = 1;
    shm_unlink(comm->name);
    comm->next = aborted.exchange(comm); /* and so it is no leak */
    return AVL_NCCL_SUCCESS;
}

EXPORT int ncclAllReduce(const void *source, void *target, size_t count, int type, int,
                         avl_nccl_comm *comm, void *stream) {
    return enqueue(ALL_REDUCE, source, target, count, type, 0, comm, stream);
}

EXPORT int ncclReduce(const void *source, void *target, size_t count, int type, int, int root,
                      avl_nccl_comm *comm, void *stream) {
    return enqueue(REDUCE, source, target, count, type, root, comm, stream);
}

EXPORT int ncclBroadcast(const void *source, void *target, size_t count, int type, int root,
                         avl_nccl_comm *comm, void *stream) {
    return enqueue(BROADCAST, source, target, count, type, root, comm, stream);
}
