/* comm/nccl.c: sums of what GPUs hold, from GPU to GPU. The only caller of NCCL.
 *
 * Invariants:
 *
 * 1. A sum is enqueued and returns; who waits for the stream calls avl_group_watch_gpus, which ends
 *    the sums of a group whose peers stay away. (NCCL's calls that never block would start a thread
 *    for every sum. Where the environment asks for them, NCCL_COMM_BLOCKING=0, what is under way is
 *    asked for until a deadline.) Joining alone can block, when a rank that has just said that it
 *    will join does not: the launcher ends the job of a rank that died, and the coordinator the
 *    group that does not advance.
 *
 * 2. Whether a group's GPUs are joined is the same on every rank: each step of joining ends with
 *    an agreement. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"
#include "comm/nccl_abi.h"

/* Ranks of one group start together; NCCL's rendezvous takes a second or two. */
#define JOIN_TIMEOUT_NS (120 * AVL_NS_PER_S)
#define LEAVE_TIMEOUT_NS (5 * AVL_NS_PER_S)
#define POLL_NS (50 * INT64_C(1000))

typedef struct nccl {
    avl_group_gpus_t head;
    avl_group_t *group;
    avl_nccl_functions_t call;
    avl_nccl_comm_t *comm; /* NULL: aborted, or not made */
    void *stream;
} nccl_t;

/* What a rank tells the others before they join. */
typedef struct introduction {
    int32_t status;
    uint8_t gpu_id[AVL_GROUP_GPU_ID_BYTES];
} introduction_t;

static avl_status_t find_functions(avl_nccl_functions_t *call) {
    /* Stays loaded for the life of the process: it keeps threads. */
    void *library = dlopen(AVL_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return avl_fail(AVL_ERR_UNSUPPORTED, "no NCCL: %s", dlerror());
    const struct {
        const char *name;
        void *function_p;
        int required;
    } wanted[] = {
        {"ncclGetVersion", &call->get_version, 1},
        {"ncclGetErrorString", &call->get_error_string, 1},
        {"ncclGetLastError", &call->get_last_error, 0},
        {"ncclGetUniqueId", &call->get_unique_id, 1},
        {"ncclCommInitRank", &call->comm_init, 1},
        {"ncclCommGetAsyncError", &call->comm_get_async_error, 1},
        {"ncclCommFinalize", &call->comm_finalize, 1},
        {"ncclCommDestroy", &call->comm_destroy, 1},
        {"ncclCommAbort", &call->comm_abort, 1},
        {"ncclAllReduce", &call->all_reduce, 1},
        {"ncclReduce", &call->reduce, 1},
        {"ncclBroadcast", &call->broadcast, 1},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *symbol = dlsym(library, wanted[i].name);
        if (symbol == NULL && wanted[i].required)
            return avl_fail(AVL_ERR_UNSUPPORTED,
                            "no NCCL: %s has no function %s; 2.14 or later is "
                            "needed",
                            AVL_NCCL_LIBRARY, wanted[i].name);
        /* ISO C has no cast from data to function pointers. */
        memcpy(wanted[i].function_p, &symbol, sizeof symbol);
    }
    return AVL_OK;
}

static avl_status_t find_library(nccl_t *self) {
    AVL_TRY(find_functions(&self->call));
    int version = 0;
    if (self->call.get_version(&version) != AVL_NCCL_SUCCESS || version < AVL_NCCL_LEAST_VERSION)
        return avl_fail(AVL_ERR_UNSUPPORTED, "no NCCL: %s is version %d; 21400 or later is needed",
                        AVL_NCCL_LIBRARY, version);
    snprintf(self->head.name, sizeof self->head.name, "NCCL %d.%d.%d", version / 10000,
             version / 100 % 100, version % 100);
    return AVL_OK;
}

static avl_status_t check(const nccl_t *self, avl_status_t code, const char *what, int result) {
    if (result == AVL_NCCL_SUCCESS)
        return AVL_OK;
    const char *detail = self->call.get_last_error != NULL ? self->call.get_last_error(NULL) : NULL;
    return avl_fail(code, "rank %d: %s: NCCL: %s%s%s", self->group->rank, what,
                    self->call.get_error_string(result), detail != NULL && *detail ? ": " : "",
                    detail != NULL ? detail : "");
}

static void abandon(nccl_t *self) {
    if (self->comm != NULL)
        (void)self->call.comm_abort(self->comm);
    self->comm = NULL;
}

/* Waits until what was begun with `result` is under way or done, as NCCL means it. */
static avl_status_t finish(nccl_t *self, avl_status_t code, const char *what, int result,
                           int64_t timeout_ns) {
    int64_t begin_ns = avl_clock_now_ns();
    while (result == AVL_NCCL_IN_PROGRESS) {
        int asked = self->call.comm_get_async_error(self->comm, &result);
        if (asked != AVL_NCCL_SUCCESS)
            result = asked;
        if (result != AVL_NCCL_IN_PROGRESS)
            break;
        if (avl_clock_now_ns() - begin_ns >= timeout_ns)
            return avl_fail(AVL_ERR_TIMEOUT, "rank %d waited %.3f s in %s for its peers' GPUs",
                            self->group->rank,
                            (double)(avl_clock_now_ns() - begin_ns) / (double)AVL_NS_PER_S, what);
        avl_clock_sleep_ns(POLL_NS);
    }
    return check(self, code, what, result);
}

/* ---- sums ---- */

static avl_status_t begin_sum(const nccl_t *self) {
    return self->comm != NULL ? AVL_OK
                              : avl_fail(AVL_ERR_COMM, "rank %d: the GPUs are no longer joined",
                                         self->group->rank);
}

static avl_status_t nccl_all_reduce(avl_group_gpus_t *gpus, float *data, int64_t count) {
    nccl_t *self = (nccl_t *)gpus;
    AVL_TRY(begin_sum(self));
    int result = self->call.all_reduce(data, data, (size_t)count, AVL_NCCL_FLOAT32, AVL_NCCL_SUM,
                                       self->comm, self->stream);
    return finish(self, AVL_ERR_COMM, "all-reduce", result, self->group->timeout_ns);
}

/* One rank adds, the others get its sums: the same bits by construction. */
static avl_status_t nccl_merge(avl_group_gpus_t *gpus, float *data, int64_t count) {
    nccl_t *self = (nccl_t *)gpus;
    AVL_TRY(begin_sum(self));
    int result = self->call.reduce(data, data, (size_t)count, AVL_NCCL_FLOAT32, AVL_NCCL_SUM, 0,
                                   self->comm, self->stream);
    AVL_TRY(finish(self, AVL_ERR_COMM, "reduce", result, self->group->timeout_ns));
    result = self->call.broadcast(data, data, (size_t)count, AVL_NCCL_FLOAT32, 0, self->comm,
                                  self->stream);
    return finish(self, AVL_ERR_COMM, "broadcast", result, self->group->timeout_ns);
}

static avl_status_t nccl_watch(avl_group_gpus_t *gpus, int64_t waited_ns) {
    nccl_t *self = (nccl_t *)gpus;
    AVL_TRY(begin_sum(self));
    int result = AVL_NCCL_SUCCESS;
    int asked = self->call.comm_get_async_error(self->comm, &result);
    result = asked != AVL_NCCL_SUCCESS        ? asked
             : result == AVL_NCCL_IN_PROGRESS ? AVL_NCCL_SUCCESS
                                              : result;
    avl_status_t status = check(self, AVL_ERR_COMM, "waiting for the GPU", result);
    if (status == AVL_OK && waited_ns >= self->group->timeout_ns)
        status =
            avl_fail(AVL_ERR_TIMEOUT, "rank %d waited %.3f s for its GPU, and that for its peers'",
                     self->group->rank, (double)waited_ns / (double)AVL_NS_PER_S);
    if (status != AVL_OK)
        abandon(self); /* or the stream would never be done */
    return status;
}

static void nccl_leave(avl_group_gpus_t *gpus) {
    nccl_t *self = (nccl_t *)gpus;
    if (self->comm != NULL && self->group->broken == AVL_OK &&
        finish(self, AVL_ERR_COMM, "leaving", self->call.comm_finalize(self->comm),
               LEAVE_TIMEOUT_NS) == AVL_OK) {
        (void)self->call.comm_destroy(self->comm);
        self->comm = NULL;
    }
    abandon(self);
    free(self);
}

static const avl_group_gpus_ops_t nccl_ops = {
    .all_reduce = nccl_all_reduce,
    .merge = nccl_merge,
    .watch = nccl_watch,
    .leave = nccl_leave,
};

/* ---- joining ---- */

/* What this rank can say before the others are asked. */
static avl_status_t introduce(nccl_t *self, const avl_group_gpu_t *gpu, introduction_t *own) {
    memcpy(own->gpu_id, gpu->id, sizeof own->gpu_id);
    if (gpu->stream == NULL)
        return avl_fail(AVL_ERR_UNSUPPORTED, "rank %d has no GPU", self->group->rank);
    return find_library(self);
}

/* Whether every rank can join, and has a GPU of its own. Returns the same on all, but for the
 * text. */
static avl_status_t compare(const avl_group_t *group, const introduction_t *ranks,
                            avl_status_t own) {
    for (int rank = 0; rank < group->ranks; rank++) {
        if (ranks[rank].status == AVL_OK)
            continue;
        if (own != AVL_OK)
            return AVL_ERR_UNSUPPORTED; /* its text stands */
        return avl_fail(AVL_ERR_UNSUPPORTED, "rank %d has no GPU or no NCCL", rank);
    }
    for (int rank = 1; rank < group->ranks; rank++) {
        for (int other = 0; other < rank; other++)
            if (memcmp(ranks[rank].gpu_id, ranks[other].gpu_id, sizeof ranks->gpu_id) == 0)
                return avl_fail(AVL_ERR_UNSUPPORTED, "ranks %d and %d share one GPU", other, rank);
    }
    return AVL_OK;
}

/* Makes the communicator. What one rank cannot do leaves all of them without. */
static avl_status_t meet(nccl_t *self) {
    avl_group_t *group = self->group;
    struct {
        int32_t status;
        avl_nccl_id_t id;
    } invitation = {0};
    if (group->rank == 0)
        invitation.status = (int32_t)check(self, AVL_ERR_UNSUPPORTED, "beginning",
                                           self->call.get_unique_id(&invitation.id));
    AVL_TRY(avl_group_broadcast(group, &invitation, sizeof invitation));
    if (invitation.status != AVL_OK)
        return group->rank == 0 ? AVL_ERR_UNSUPPORTED
                                : avl_fail(AVL_ERR_UNSUPPORTED, "rank 0 cannot begin with NCCL");
    int result = self->call.comm_init(&self->comm, group->ranks, invitation.id, group->rank);
    avl_status_t own = finish(self, AVL_ERR_UNSUPPORTED, "joining", result, JOIN_TIMEOUT_NS);
    avl_status_t agreed =
        avl_group_agree(group, own == AVL_ERR_TIMEOUT ? AVL_ERR_UNSUPPORTED : own);
    return agreed == AVL_ERR_PEER ? avl_fail(AVL_ERR_UNSUPPORTED, "%s", avl_status_detail())
                                  : agreed;
}

static avl_status_t join(nccl_t *self, const avl_group_gpu_t *gpu) {
    avl_group_t *group = self->group;
    introduction_t *ranks;
    AVL_TRY(avl_alloc((size_t)group->ranks, sizeof *ranks, "ranks' GPUs", &ranks));
    introduction_t *own = &ranks[group->rank];
    avl_status_t introduced = introduce(self, gpu, own);
    own->status = (int32_t)introduced;
    avl_status_t status = avl_group_all_gather(group, ranks, sizeof *ranks);
    if (status == AVL_OK)
        status = compare(group, ranks, introduced);
    free(ranks);
    AVL_TRY(status);
    return meet(self);
}

avl_status_t avl_group_join_gpus(avl_group_t *group, const avl_group_gpu_t *gpu) {
    AVL_ASSERT(group->gpus == NULL);
    /* Its buffers are there from the start, before anybody divides the memory that is left. */
    if (setenv("NCCL_RUNTIME_CONNECT", "0", 0) != 0)
        return avl_fail(AVL_ERR_MEMORY, "no memory for NCCL's environment");
    nccl_t *self;
    AVL_TRY(avl_alloc(1, sizeof *self, "joined GPUs", &self));
    self->head.ops = &nccl_ops;
    self->group = group;
    self->stream = gpu->stream;
    avl_status_t status = join(self, gpu);
    if (status != AVL_OK) {
        abandon(self);
        free(self);
        return status;
    }
    group->gpus = &self->head;
    return AVL_OK;
}
