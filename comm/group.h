/* comm/group.h: the ranks that shard one model, and the only door to MPI.
 *
 * Backends: `mpi` (one process a rank, under mpirun or srun) and `loopback` (ranks are threads of
 * one process: one rank needs no launcher, several serve the tests, ThreadSanitizer included).
 * Every call is collective unless marked "local": all ranks make the same calls in the same order
 * with the same sizes. One thread of a rank at a time calls these (MPI_THREAD_FUNNELED).
 *
 * Errors: AVL_ERR_COMM, AVL_ERR_TIMEOUT (a peer stayed away longer than the group's bound),
 * AVL_ERR_PEER. After any of them the group is unusable: the process reports and ends; the
 * coordinator starts another. */
#ifndef AVL_COMM_GROUP_H
#define AVL_COMM_GROUP_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct avl_group avl_group_t;

/* One rank in this process, no launcher. */
AVL_MUST_CHECK avl_status_t avl_group_open_single(avl_group_t **group_p);
/* `rank_count` handles for threads of this process; groups_p[r] is rank r's. Each is closed by
 * avl_group_close. */
AVL_MUST_CHECK avl_status_t avl_group_open_loopback(int rank_count, avl_group_t **groups_p);
/* The job of the MPI launcher that started this process. */
AVL_MUST_CHECK avl_status_t avl_group_open_mpi(avl_group_t **group_p);
void avl_group_close(avl_group_t *group);

int avl_group_rank(const avl_group_t *group);  /* local; rank 0 leads */
int avl_group_ranks(const avl_group_t *group); /* local */
/* Ranks on this host, and this rank's place among them: for dividing cores. Local (found at open).
 */
int avl_group_local_ranks(const avl_group_t *group);
int avl_group_local_rank(const avl_group_t *group);
/* Memory that the group holds for its buffers. Local. */
int64_t avl_group_memory_bytes(const avl_group_t *group);
/* Time that this rank has spent in collectives since the group was opened, waiting for peers
 * included; wake and wait are none. Groups of one rank spend none. Local. */
typedef enum avl_group_operation {
    AVL_GROUP_BROADCAST,
    AVL_GROUP_ALL_REDUCE,
    AVL_GROUP_ALL_GATHER,
    AVL_GROUP_GATHER,
    AVL_GROUP_AGREE,
    AVL_GROUP_OPERATIONS,
} avl_group_operation_t;
typedef struct avl_group_times {
    int64_t ns[AVL_GROUP_OPERATIONS];
    int64_t calls[AVL_GROUP_OPERATIONS];
} avl_group_times_t;
avl_group_times_t avl_group_times(const avl_group_t *group);
static inline const char *avl_group_operation_name(avl_group_operation_t operation) {
    static const char *const names[AVL_GROUP_OPERATIONS] = {"broadcast", "all_reduce", "all_gather",
                                                            "gather", "agree"};
    return operation < AVL_GROUP_OPERATIONS ? names[operation] : "unknown";
}
/* Operations begun so far, in groups of one rank too: whoever watches from another thread sees that
 * a long step advances. Local, from any thread. */
uint64_t avl_group_operations(const avl_group_t *group);
/* Bound of every wait; default 60 s. Local. */
void avl_group_set_timeout(avl_group_t *group, int64_t timeout_ns);

/* From rank 0 to all. */
AVL_MUST_CHECK avl_status_t avl_group_broadcast(avl_group_t *group, void *data, size_t bytes);
/* Sum of f32 [count] over ranks, in place. Every rank ends with bit-identical data. */
AVL_MUST_CHECK avl_status_t avl_group_all_reduce(avl_group_t *group, float *data, int64_t count);
/* data[r * item_bytes ..] holds rank r's item on entry (own place filled), everyone's on return. */
AVL_MUST_CHECK avl_status_t avl_group_all_gather(avl_group_t *group, void *data, size_t item_bytes);
/* Rank r's bytes_by_rank[r] bytes, one after the other in `target` on rank 0 (NULL elsewhere).
 * bytes_by_rank is known to all. */
AVL_MUST_CHECK avl_status_t avl_group_gather(avl_group_t *group, const void *source,
                                             const size_t *bytes_by_rank, void *target);
/* Everyone states how it went; everyone learns the worst. Returns AVL_OK, the caller's own status
 * when that was a failure, or AVL_ERR_PEER naming the lowest failed rank and its status. */
AVL_MUST_CHECK avl_status_t avl_group_agree(avl_group_t *group, avl_status_t own);

/* Waiting for work without burning a core. Rank 0 calls wake before its broadcast; the others call
 * wait, which sleeps with growing pauses (at most a millisecond) and, after work, spins briefly
 * first. Returns AVL_ERR_TIMEOUT after `timeout_ns` (AVL_DEADLINE_NONE: never) with the group
 * intact. Not bounded by the group's timeout. */
AVL_MUST_CHECK avl_status_t avl_group_wake(avl_group_t *group);
AVL_MUST_CHECK avl_status_t avl_group_wait(avl_group_t *group, int64_t timeout_ns);

/* ---- what GPUs hold ----
 *
 * All calls above exchange host memory. Where every rank has a GPU of its own and NCCL
 * (libnccl.so.2) is there, sums of device memory go from GPU to GPU instead. */

#define AVL_GROUP_GPU_ID_BYTES 16

typedef struct avl_group_gpu {
    void *stream; /* cudaStream_t: sums take their place in its order. NULL: this rank has no GPU */
    uint8_t id[AVL_GROUP_GPU_ID_BYTES]; /* its UUID: no other GPU has it */
} avl_group_gpu_t;

/* Collective, once. Errors: AVL_ERR_UNSUPPORTED, on all ranks and with the reason, when the GPUs
 * cannot be joined (a rank without GPU or NCCL, two ranks on one GPU, NCCL's own refusal): the
 * group is as it was. */
AVL_MUST_CHECK avl_status_t avl_group_join_gpus(avl_group_t *group, const avl_group_gpu_t *gpu);
/* Before the stream goes. Waits for what is enqueued, unless the group is broken. Local; nothing to
 * do when they are not joined. */
void avl_group_leave_gpus(avl_group_t *group);
/* What joins them, "NCCL 2.28.9"; NULL when they are not joined. Local; the same on all ranks. */
const char *avl_group_gpus_name(const avl_group_t *group);

/* Sum over ranks of f32 [count] in device memory, in place, enqueued on the stream. With `merge`
 * every rank ends with the same bits by construction; without, as NCCL's all-reduce does it, in
 * half the time. Neither is counted in avl_group_times: the host does not wait. */
AVL_MUST_CHECK avl_status_t avl_group_gpus_all_reduce(avl_group_t *group, float *data,
                                                      int64_t count);
AVL_MUST_CHECK avl_status_t avl_group_gpus_merge(avl_group_t *group, float *data, int64_t count);
/* For whoever waits for the stream: called again and again with how long that has been. A failure
 * (a peer's, or none for as long as the group's timeout) ends all enqueued sums, and the group.
 * Local. */
AVL_MUST_CHECK avl_status_t avl_group_watch_gpus(avl_group_t *group, int64_t waited_ns);

/* The part [first, last) of `count` things that rank r of `ranks` holds: as even as it goes, the
 * larger parts first. */
static inline void avl_group_slice(int64_t count, int rank, int ranks, int64_t *first_p,
                                   int64_t *last_p) {
    int64_t base = count / ranks, extra = count % ranks;
    *first_p = rank * base + (rank < extra ? rank : extra);
    *last_p = *first_p + base + (rank < extra ? 1 : 0);
}

#endif
