/* coordinator/rpc_code.c: the status codes of avl in the words of gRPC (grpc_server.h). */
#include "coordinator/grpc_server.h"

avl_rpc_code_t avl_rpc_code(avl_status_t status) {
    switch (status) {
    case AVL_OK:
        return AVL_RPC_OK;
    case AVL_ERR_INVALID:
    case AVL_ERR_NOT_FOUND:
    case AVL_ERR_TOO_LARGE:
        return AVL_RPC_INVALID_ARGUMENT;
    case AVL_ERR_UNSUPPORTED:
        return AVL_RPC_UNIMPLEMENTED;
    case AVL_ERR_EXHAUSTED:
    case AVL_ERR_MEMORY:
        return AVL_RPC_RESOURCE_EXHAUSTED;
    case AVL_ERR_DEADLINE:
        return AVL_RPC_DEADLINE_EXCEEDED;
    case AVL_ERR_CANCELLED:
        return AVL_RPC_CANCELLED;
    case AVL_ERR_UNAVAILABLE:
        return AVL_RPC_UNAVAILABLE;
    case AVL_ERR_IO:
    case AVL_ERR_DATA:
    case AVL_ERR_SHAPE:
    case AVL_ERR_DEVICE:
    case AVL_ERR_COMM:
    case AVL_ERR_TIMEOUT:
    case AVL_ERR_PEER:
    case AVL_ERR_INTERNAL:
        break;
    }
    return AVL_RPC_INTERNAL;
}

const char *avl_rpc_code_name(avl_rpc_code_t code) {
    switch (code) {
    case AVL_RPC_OK:
        return "OK";
    case AVL_RPC_CANCELLED:
        return "CANCELLED";
    case AVL_RPC_INVALID_ARGUMENT:
        return "INVALID_ARGUMENT";
    case AVL_RPC_DEADLINE_EXCEEDED:
        return "DEADLINE_EXCEEDED";
    case AVL_RPC_NOT_FOUND:
        return "NOT_FOUND";
    case AVL_RPC_PERMISSION_DENIED:
        return "PERMISSION_DENIED";
    case AVL_RPC_RESOURCE_EXHAUSTED:
        return "RESOURCE_EXHAUSTED";
    case AVL_RPC_UNIMPLEMENTED:
        return "UNIMPLEMENTED";
    case AVL_RPC_INTERNAL:
        return "INTERNAL";
    case AVL_RPC_UNAVAILABLE:
        return "UNAVAILABLE";
    }
    return "UNKNOWN";
}
