/* comm/backend.h: what a backend of comm/group.h provides. Included by comm/ alone.
 *
 * group.c answers the local questions, short-cuts groups of one rank, refuses groups that failed
 * before, and builds the agreement; a backend moves the bytes of two ranks or more. */
#ifndef AVL_COMM_BACKEND_H
#define AVL_COMM_BACKEND_H

#include <stdatomic.h>

#include "comm/group.h"

#define AVL_GROUP_TIMEOUT_DEFAULT_NS INT64_C(60000000000)

typedef struct avl_group_ops {
    void (*close)(avl_group_t *group);
    avl_status_t (*broadcast)(avl_group_t *group, void *data, size_t bytes);
    avl_status_t (*all_reduce)(avl_group_t *group, float *data, int64_t count);
    avl_status_t (*all_gather)(avl_group_t *group, void *data, size_t item_bytes);
    avl_status_t (*gather)(avl_group_t *group, const void *source, const size_t *bytes_by_rank,
                           void *target);
    avl_status_t (*wake)(avl_group_t *group);
    avl_status_t (*wait)(avl_group_t *group, int64_t timeout_ns);
} avl_group_ops_t;

/* GPUs that are joined: what nccl.c provides. */
typedef struct avl_group_gpus avl_group_gpus_t;
typedef struct avl_group_gpus_ops {
    avl_status_t (*all_reduce)(avl_group_gpus_t *gpus, float *data, int64_t count);
    avl_status_t (*merge)(avl_group_gpus_t *gpus, float *data, int64_t count);
    avl_status_t (*watch)(avl_group_gpus_t *gpus, int64_t waited_ns);
    void (*leave)(avl_group_gpus_t *gpus);
} avl_group_gpus_ops_t;
struct avl_group_gpus {
    const avl_group_gpus_ops_t *ops;
    char name[32]; /* "NCCL 2.28.9" */
};

struct avl_group { /* the head of every backend's own struct */
    const avl_group_ops_t *ops;
    int rank, ranks;
    int local_rank, local_ranks;
    int64_t timeout_ns;
    int64_t memory_bytes; /* of buffers that the backend holds */
    avl_group_times_t times;
    atomic_uint_fast64_t operations; /* begun on this rank */
    avl_group_gpus_t *gpus;          /* NULL: not joined */
    avl_status_t broken; /* the failure that made the group unusable; AVL_OK while it works */
};

/* now + duration, never beyond AVL_DEADLINE_NONE. */
int64_t avl_group_deadline_ns(int64_t duration_ns);

#endif
