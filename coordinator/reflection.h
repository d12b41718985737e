/* coordinator/reflection.h: gRPC server reflection (v1 and v1alpha, one on the wire) from the
 * descriptors that protoc made. */
#ifndef AVL_COORDINATOR_REFLECTION_H
#define AVL_COORDINATOR_REFLECTION_H

#include "coordinator/grpc_server.h"

#define AVL_REFLECTION_METHODS 2

void avl_reflection_methods(avl_method_t methods[AVL_REFLECTION_METHODS]);

#endif
