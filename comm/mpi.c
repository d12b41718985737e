/* comm/mpi.c: a group whose ranks are the processes of an MPI job. The only file that includes
 * mpi.h.
 *
 * Invariants:
 *
 * 1. Only MPI calls that return at once are used between open and close; every wait is a loop of
 *    MPI_Test* with a deadline, so that a lost or stopped peer gives a status and not a hang.
 *
 * 2. Sums are taken in the order of the ranks from the same operands on whichever rank computes
 *    them, so that every rank has the same bits and a loopback group of as many ranks has them too.
 *    (MPI_Allreduce promises neither.)
 *
 * 3. After a failed wait, requests are still open on the caller's buffers: the group refuses
 *    everything, and close() leaves MPI without MPI_Finalize, which would wait for the peer again.
 */
#include <limits.h>
#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"

enum { TAG_DATA = 1, TAG_WAKE = 2 };

/* Elements of one round of a reduction: bounds the scratch memory (4 MiB). */
#define ROUND_COUNT (INT64_C(1) << 20)
/* Up to here everyone sends everything to everyone: one latency instead of two. Beyond, slices
 * halve the traffic. */
#define EXCHANGE_COUNT_MAX 4096
/* Bytes of one MPI message: MPI counts are int. */
#define MESSAGE_BYTES_MAX (INT64_C(1) << 30)
/* How a wait escalates. A yield costs next to nothing when no other rank wants the processor and is
 * what lets a peer proceed when one does; a peer that takes milliseconds is computing, and sleeping
 * does not hurt. */
#define YIELD_NS INT64_C(2000000)
#define SLEEP_MIN_NS INT64_C(20000)
#define SLEEP_MAX_NS AVL_NS_PER_MS

typedef struct mpi_group {
    avl_group_t head;
    MPI_Comm comm;
    int finalize;          /* this group called MPI_Init */
    float *scratch;        /* [ROUND_COUNT + ranks] */
    MPI_Request *requests; /* [2 * ranks] */
    size_t *offsets;       /* [ranks] */
} mpi_group_t;

static avl_status_t check_mpi(const mpi_group_t *self, const char *what, int code) {
    if (code == MPI_SUCCESS)
        return AVL_OK;
    char text[MPI_MAX_ERROR_STRING];
    int text_bytes = 0;
    if (MPI_Error_string(code, text, &text_bytes) != MPI_SUCCESS)
        text_bytes = 0;
    return avl_fail(AVL_ERR_COMM, "rank %d: %s: MPI error %d: %.*s", self->head.rank, what, code,
                    text_bytes, text);
}

/* One step of a wait that began `waited_ns` ago: yield, then sleep ever longer. */
static void pause_once(int64_t waited_ns) {
    if (waited_ns < YIELD_NS) {
        sched_yield();
        return;
    }
    int64_t sleep_ns = waited_ns / 16;
    if (sleep_ns < SLEEP_MIN_NS)
        sleep_ns = SLEEP_MIN_NS;
    avl_clock_sleep_ns(sleep_ns > SLEEP_MAX_NS ? SLEEP_MAX_NS : sleep_ns);
}

/* Waits for the first `count` requests. */
static avl_status_t finish(mpi_group_t *self, const char *what, int count) {
    int64_t begin_ns = 0;
    for (;;) {
        int done = 0;
        AVL_TRY(
            check_mpi(self, what, MPI_Testall(count, self->requests, &done, MPI_STATUSES_IGNORE)));
        if (done)
            return AVL_OK;
        int64_t now_ns = avl_clock_now_ns();
        if (begin_ns == 0)
            begin_ns = now_ns;
        if (now_ns - begin_ns >= self->head.timeout_ns)
            return avl_fail(AVL_ERR_TIMEOUT, "rank %d waited %.3f s in %s for its peers",
                            self->head.rank, (double)(now_ns - begin_ns) / (double)AVL_NS_PER_S,
                            what);
        pause_once(now_ns - begin_ns);
    }
}

static avl_status_t start_send(mpi_group_t *self, const char *what, const void *data, size_t bytes,
                               int peer, int *request_count) {
    AVL_TRY(check_mpi(self, what,
                      MPI_Isend(data, (int)bytes, MPI_BYTE, peer, TAG_DATA, self->comm,
                                &self->requests[*request_count])));
    ++*request_count;
    return AVL_OK;
}

static avl_status_t start_receive(mpi_group_t *self, const char *what, void *data, size_t bytes,
                                  int peer, int *request_count) {
    AVL_TRY(check_mpi(self, what,
                      MPI_Irecv(data, (int)bytes, MPI_BYTE, peer, TAG_DATA, self->comm,
                                &self->requests[*request_count])));
    ++*request_count;
    return AVL_OK;
}

static avl_status_t mpi_broadcast(avl_group_t *group, void *data, size_t bytes) {
    mpi_group_t *self = (mpi_group_t *)group;
    for (size_t done = 0; done < bytes;) {
        size_t part = bytes - done < MESSAGE_BYTES_MAX ? bytes - done : MESSAGE_BYTES_MAX;
        AVL_TRY(check_mpi(self, "broadcast",
                          MPI_Ibcast((char *)data + done, (int)part, MPI_BYTE, 0, self->comm,
                                     &self->requests[0])));
        AVL_TRY(finish(self, "broadcast", 1));
        done += part;
    }
    return AVL_OK;
}

/* Sends data[0, count) to every peer and receives theirs into the scratch memory, rank by rank. */
static avl_status_t sum_by_exchange(mpi_group_t *self, float *data, int64_t count) {
    int requests = 0;
    size_t bytes = (size_t)count * sizeof *data;
    for (int rank = 0; rank < self->head.ranks; rank++)
        if (rank != self->head.rank)
            AVL_TRY(start_receive(self, "all-reduce", self->scratch + rank * count, bytes, rank,
                                  &requests));
    for (int rank = 0; rank < self->head.ranks; rank++)
        if (rank != self->head.rank)
            AVL_TRY(start_send(self, "all-reduce", data, bytes, rank, &requests));
    AVL_TRY(finish(self, "all-reduce", requests));
    memcpy(self->scratch + self->head.rank * count, data, bytes);
    for (int64_t index = 0; index < count; index++) {
        float sum = self->scratch[index];
        for (int rank = 1; rank < self->head.ranks; rank++)
            sum += self->scratch[rank * count + index];
        data[index] = sum;
    }
    return AVL_OK;
}

/* Each rank's slice of data[0, count) becomes the sum there; the rest is as it was. */
static avl_status_t sum_own_slice(mpi_group_t *self, float *data, int64_t count) {
    int own = self->head.rank, ranks = self->head.ranks, requests = 0;
    int64_t first, last;
    avl_group_slice(count, own, ranks, &first, &last);
    int64_t width = last - first;
    for (int rank = 0; rank < ranks; rank++)
        if (rank != own && width > 0)
            AVL_TRY(start_receive(self, "all-reduce", self->scratch + rank * width,
                                  (size_t)width * sizeof *data, rank, &requests));
    for (int step = 1; step < ranks; step++) {
        int rank = (own + step) % ranks;
        int64_t peer_first, peer_last;
        avl_group_slice(count, rank, ranks, &peer_first, &peer_last);
        if (peer_last > peer_first)
            AVL_TRY(start_send(self, "all-reduce", data + peer_first,
                               (size_t)(peer_last - peer_first) * sizeof *data, rank, &requests));
    }
    AVL_TRY(finish(self, "all-reduce", requests));
    memcpy(self->scratch + own * width, data + first, (size_t)width * sizeof *data);
    for (int64_t index = 0; index < width; index++) {
        float sum = self->scratch[index];
        for (int rank = 1; rank < ranks; rank++)
            sum += self->scratch[rank * width + index];
        data[first + index] = sum;
    }
    return AVL_OK;
}

static avl_status_t share_slices(mpi_group_t *self, float *data, int64_t count) {
    int own = self->head.rank, ranks = self->head.ranks, requests = 0;
    int64_t first, last;
    for (int rank = 0; rank < ranks; rank++) {
        avl_group_slice(count, rank, ranks, &first, &last);
        if (rank != own && last > first)
            AVL_TRY(start_receive(self, "all-reduce", data + first,
                                  (size_t)(last - first) * sizeof *data, rank, &requests));
    }
    avl_group_slice(count, own, ranks, &first, &last);
    for (int step = 1; step < ranks && last > first; step++)
        AVL_TRY(start_send(self, "all-reduce", data + first, (size_t)(last - first) * sizeof *data,
                           (own + step) % ranks, &requests));
    return finish(self, "all-reduce", requests);
}

static avl_status_t mpi_all_reduce(avl_group_t *group, float *data, int64_t count) {
    mpi_group_t *self = (mpi_group_t *)group;
    if (count <= EXCHANGE_COUNT_MAX && count * group->ranks <= ROUND_COUNT)
        return sum_by_exchange(self, data, count);
    for (int64_t done = 0; done < count; done += ROUND_COUNT) {
        int64_t part = count - done < ROUND_COUNT ? count - done : ROUND_COUNT;
        AVL_TRY(sum_own_slice(self, data + done, part));
        AVL_TRY(share_slices(self, data + done, part));
    }
    return AVL_OK;
}

static avl_status_t mpi_all_gather(avl_group_t *group, void *data, size_t item_bytes) {
    mpi_group_t *self = (mpi_group_t *)group;
    char *items = data;
    for (size_t done = 0; done < item_bytes;) {
        size_t part = item_bytes - done < MESSAGE_BYTES_MAX ? item_bytes - done : MESSAGE_BYTES_MAX;
        int requests = 0;
        for (int rank = 0; rank < group->ranks; rank++)
            if (rank != group->rank)
                AVL_TRY(start_receive(self, "all-gather", items + (size_t)rank * item_bytes + done,
                                      part, rank, &requests));
        for (int step = 1; step < group->ranks; step++)
            AVL_TRY(start_send(self, "all-gather", items + (size_t)group->rank * item_bytes + done,
                               part, (group->rank + step) % group->ranks, &requests));
        AVL_TRY(finish(self, "all-gather", requests));
        done += part;
    }
    return AVL_OK;
}

static avl_status_t mpi_gather(avl_group_t *group, const void *source, const size_t *bytes_by_rank,
                               void *target) {
    mpi_group_t *self = (mpi_group_t *)group;
    size_t longest = 0, end = 0;
    for (int rank = 0; rank < group->ranks; rank++) {
        self->offsets[rank] = end;
        end += bytes_by_rank[rank];
        if (bytes_by_rank[rank] > longest)
            longest = bytes_by_rank[rank];
    }
    /* All ranks make as many rounds as the longest part needs; most messages take one. */
    for (size_t done = 0; done < longest; done += MESSAGE_BYTES_MAX) {
        int requests = 0;
        for (int rank = 1; rank < group->ranks; rank++) {
            size_t part = bytes_by_rank[rank] > done ? bytes_by_rank[rank] - done : 0;
            part = part < MESSAGE_BYTES_MAX ? part : MESSAGE_BYTES_MAX;
            if (part == 0)
                continue;
            if (group->rank == 0)
                AVL_TRY(start_receive(self, "gather", (char *)target + self->offsets[rank] + done,
                                      part, rank, &requests));
            else if (group->rank == rank)
                AVL_TRY(
                    start_send(self, "gather", (const char *)source + done, part, 0, &requests));
        }
        AVL_TRY(finish(self, "gather", requests));
    }
    if (group->rank == 0 && bytes_by_rank[0] && source != target)
        memcpy(target, source, bytes_by_rank[0]);
    return AVL_OK;
}

static avl_status_t mpi_wake(avl_group_t *group) {
    mpi_group_t *self = (mpi_group_t *)group;
    for (int rank = 1; rank < group->ranks; rank++)
        AVL_TRY(check_mpi(
            self, "wake",
            MPI_Isend(NULL, 0, MPI_BYTE, rank, TAG_WAKE, self->comm, &self->requests[rank - 1])));
    return finish(self, "wake", group->ranks - 1);
}

static avl_status_t mpi_wait(avl_group_t *group, int64_t timeout_ns) {
    mpi_group_t *self = (mpi_group_t *)group;
    int64_t begin_ns = avl_clock_now_ns();
    for (;;) {
        int found = 0;
        AVL_TRY(check_mpi(self, "wait",
                          MPI_Iprobe(0, TAG_WAKE, self->comm, &found, MPI_STATUS_IGNORE)));
        if (found) {
            AVL_TRY(check_mpi(
                self, "wait",
                MPI_Irecv(NULL, 0, MPI_BYTE, 0, TAG_WAKE, self->comm, &self->requests[0])));
            return finish(self, "wait", 1);
        }
        int64_t waited_ns = avl_clock_now_ns() - begin_ns;
        if (waited_ns >= timeout_ns)
            return avl_fail(AVL_ERR_TIMEOUT, "rank %d: no work for %.3f s", group->rank,
                            (double)waited_ns / (double)AVL_NS_PER_S);
        pause_once(waited_ns);
    }
}

static void release(mpi_group_t *self) {
    free(self->scratch);
    free(self->requests);
    free(self->offsets);
    free(self);
}

/* Ends MPI when all ranks come to it; see invariant 3. */
static void mpi_close(avl_group_t *group) {
    mpi_group_t *self = (mpi_group_t *)group;
    avl_status_t status = group->broken;
    if (status == AVL_OK && self->comm != MPI_COMM_NULL) {
        status = check_mpi(self, "close", MPI_Ibarrier(self->comm, &self->requests[0]));
        if (status == AVL_OK)
            status = finish(self, "close", 1);
        if (status == AVL_OK)
            MPI_Comm_free(&self->comm);
    }
    if (status == AVL_OK && self->finalize)
        MPI_Finalize();
    /* After a failure, open requests refer to the buffers: they stay until the process ends, which
     * is next. */
    if (status == AVL_OK)
        release(self);
}

static const avl_group_ops_t mpi_ops = {
    .close = mpi_close,
    .broadcast = mpi_broadcast,
    .all_reduce = mpi_all_reduce,
    .all_gather = mpi_all_gather,
    .gather = mpi_gather,
    .wake = mpi_wake,
    .wait = mpi_wait,
};

static avl_status_t begin_mpi(int *finalize_p) {
    int running = 0, ended = 0, provided = MPI_THREAD_SINGLE;
    MPI_Initialized(&running);
    MPI_Finalized(&ended);
    if (ended)
        return avl_fail(AVL_ERR_COMM, "MPI was finalized in this process and cannot begin again");
    if (!running && MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        return avl_fail(AVL_ERR_COMM, "MPI_Init_thread failed");
    if (running)
        MPI_Query_thread(&provided);
    *finalize_p = !running;
    if (provided >= MPI_THREAD_FUNNELED)
        return AVL_OK;
    if (!running)
        MPI_Finalize();
    return avl_fail(AVL_ERR_COMM, "this MPI offers thread level %d, FUNNELED is needed", provided);
}

static avl_status_t find_place(mpi_group_t *self) {
    MPI_Comm local;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    AVL_TRY(check_mpi(self, "open", MPI_Comm_dup(MPI_COMM_WORLD, &self->comm)));
    MPI_Comm_set_errhandler(self->comm, MPI_ERRORS_RETURN);
    AVL_TRY(check_mpi(self, "open", MPI_Comm_rank(self->comm, &self->head.rank)));
    AVL_TRY(check_mpi(self, "open", MPI_Comm_size(self->comm, &self->head.ranks)));
    AVL_TRY(check_mpi(self, "open",
                      MPI_Comm_split_type(self->comm, MPI_COMM_TYPE_SHARED, self->head.rank,
                                          MPI_INFO_NULL, &local)));
    AVL_TRY(check_mpi(self, "open", MPI_Comm_rank(local, &self->head.local_rank)));
    AVL_TRY(check_mpi(self, "open", MPI_Comm_size(local, &self->head.local_ranks)));
    AVL_TRY(check_mpi(self, "open", MPI_Comm_free(&local)));
    return AVL_OK;
}

avl_status_t avl_group_open_mpi(avl_group_t **group_p) {
    mpi_group_t *self;
    AVL_TRY(avl_alloc(1, sizeof *self, "MPI group", &self));
    self->head.ops = &mpi_ops;
    self->head.timeout_ns = AVL_GROUP_TIMEOUT_DEFAULT_NS;
    self->comm = MPI_COMM_NULL;
    avl_status_t status = begin_mpi(&self->finalize);
    if (status != AVL_OK) {
        release(self);
        return status;
    }
    AVL_TRY_GOTO(status, find_place(self), err_release);
    size_t ranks = (size_t)self->head.ranks;
    AVL_TRY_GOTO(
        status,
        avl_alloc_aligned(ROUND_COUNT + ranks, sizeof(float), "reduction scratch", &self->scratch),
        err_release);
    AVL_TRY_GOTO(status, avl_alloc(2 * ranks, sizeof(MPI_Request), "MPI requests", &self->requests),
                 err_release);
    AVL_TRY_GOTO(status, avl_alloc(ranks, sizeof(size_t), "gather offsets", &self->offsets),
                 err_release);
    self->head.memory_bytes =
        (int64_t)((ROUND_COUNT + ranks) * sizeof(float) + 2 * ranks * sizeof(MPI_Request));
    *group_p = &self->head;
    return AVL_OK;

err_release:
    /* The others may have succeeded and wait for this rank: the process that ends now is what they
     * see. */
    release(self);
    return status;
}
