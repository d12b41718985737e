/* comm/nccl_abi.h: what comm/nccl.c needs of NCCL's interface. The library is looked for when a
 * group of GPUs starts, so that one build serves hosts with and without it; its binary interface
 * has been the same since 2.14 (2022). Where NCCL's header is, tests/comm/nccl_abi.c compares. */
#ifndef AVL_COMM_NCCL_ABI_H
#define AVL_COMM_NCCL_ABI_H

#include <stddef.h>

#define AVL_NCCL_LIBRARY "libnccl.so.2"
#define AVL_NCCL_ID_BYTES 128
#define AVL_NCCL_LEAST_VERSION 21400

enum { AVL_NCCL_SUCCESS = 0, AVL_NCCL_IN_PROGRESS = 7 }; /* ncclResult_t */
enum { AVL_NCCL_FLOAT32 = 7 };                           /* ncclDataType_t */
enum { AVL_NCCL_SUM = 0 };                               /* ncclRedOp_t */

typedef struct avl_nccl_comm avl_nccl_comm_t; /* ncclComm_t is a pointer to one */

typedef struct avl_nccl_id { /* ncclUniqueId */
    char bytes[AVL_NCCL_ID_BYTES];
} avl_nccl_id_t;

typedef struct avl_nccl_functions {
    int (*get_version)(int *version_p);
    const char *(*get_error_string)(int result);
    const char *(*get_last_error)(avl_nccl_comm_t *comm); /* NULL in old libraries */
    int (*get_unique_id)(avl_nccl_id_t *id_p);
    int (*comm_init)(avl_nccl_comm_t **comm_p, int ranks, avl_nccl_id_t id, int rank);
    int (*comm_get_async_error)(avl_nccl_comm_t *comm, int *result_p);
    int (*comm_finalize)(avl_nccl_comm_t *comm);
    int (*comm_destroy)(avl_nccl_comm_t *comm);
    int (*comm_abort)(avl_nccl_comm_t *comm);
    int (*all_reduce)(const void *source, void *target, size_t count, int type, int operation,
                      avl_nccl_comm_t *comm, void *stream);
    int (*reduce)(const void *source, void *target, size_t count, int type, int operation, int root,
                  avl_nccl_comm_t *comm, void *stream);
    int (*broadcast)(const void *source, void *target, size_t count, int type, int root,
                     avl_nccl_comm_t *comm, void *stream);
} avl_nccl_functions_t;

#endif
