/* tests/comm/nccl_abi.c: comm/nccl_abi.h says what NCCL's own header says. Compiling is the test.
 */
#include "comm/nccl_abi.h"

#include <nccl.h>

#define SAME(a, b) _Static_assert((int)(a) == (int)(b), #a " is not " #b)
SAME(AVL_NCCL_SUCCESS, ncclSuccess);
SAME(AVL_NCCL_IN_PROGRESS, ncclInProgress);
SAME(AVL_NCCL_FLOAT32, ncclFloat32);
SAME(AVL_NCCL_SUM, ncclSum);
SAME(sizeof(avl_nccl_id_t), sizeof(ncclUniqueId));
SAME(_Alignof(avl_nccl_id_t), _Alignof(ncclUniqueId));
SAME(sizeof(int), sizeof(ncclResult_t));

/* The functions' types: what differs in the names of types alone is cast away, the rest must fit.
 */
typedef struct nccl_functions {
    ncclResult_t (*get_version)(int *);
    const char *(*get_error_string)(ncclResult_t);
    const char *(*get_last_error)(ncclComm_t);
    ncclResult_t (*get_unique_id)(ncclUniqueId *);
    ncclResult_t (*comm_init)(ncclComm_t *, int, ncclUniqueId, int);
    ncclResult_t (*comm_get_async_error)(ncclComm_t, ncclResult_t *);
    ncclResult_t (*comm_finalize)(ncclComm_t);
    ncclResult_t (*comm_destroy)(ncclComm_t);
    ncclResult_t (*comm_abort)(ncclComm_t);
    ncclResult_t (*all_reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t,
                               ncclComm_t, cudaStream_t);
    ncclResult_t (*reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int,
                           ncclComm_t, cudaStream_t);
    ncclResult_t (*broadcast)(const void *, void *, size_t, ncclDataType_t, int, ncclComm_t,
                              cudaStream_t);
} nccl_functions_t;
SAME(sizeof(nccl_functions_t), sizeof(avl_nccl_functions_t));

extern const nccl_functions_t avl_nccl_functions;
const nccl_functions_t avl_nccl_functions = {
    .get_version = ncclGetVersion,
    .get_error_string = ncclGetErrorString,
    .get_last_error = ncclGetLastError,
    .get_unique_id = ncclGetUniqueId,
    .comm_init = ncclCommInitRank,
    .comm_get_async_error = ncclCommGetAsyncError,
    .comm_finalize = ncclCommFinalize,
    .comm_destroy = ncclCommDestroy,
    .comm_abort = ncclCommAbort,
    .all_reduce = ncclAllReduce,
    .reduce = ncclReduce,
    .broadcast = ncclBroadcast,
};
