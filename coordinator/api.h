/* coordinator/api.h: the methods of avl.v1.Inference.
 *
 * On the server's threads a call is only admitted; its message is unpacked, checked, and its
 * pictures and text are made into numbers on the thread pool; from there on requests.c leads it. */
#ifndef AVL_COORDINATOR_API_H
#define AVL_COORDINATOR_API_H

#include "base/status.h"
#include "base/thread_pool.h"
#include "checkpoint/config.h"
#include "coordinator/grpc_server.h"
#include "coordinator/image_identity.h"
#include "coordinator/requests.h"
#include "coordinator/validate.h"
#include "inputs/prompt.h"
#include "inputs/tokenizer.h"

#define AVL_API_METHODS 3
#define AVL_TENANT_METADATA "x-avl-tenant"

/* Everything is borrowed, and outlives the calls. */
typedef struct avl_api {
    const char *model_name;
    const avl_config_t *config;
    const avl_tokenizer_t *tokenizer;
    const avl_chat_template_t *chat_template;
    avl_thread_pool_t *pool;
    const avl_image_identity_t *identity;
    avl_requests_t *requests;
    avl_groups_t *groups;
    avl_service_metrics_t *metrics;
    avl_request_policy_t policy;
    int64_t message_bytes_max;
    int64_t image_pixels_max;
} avl_api_t;

void avl_api_methods(avl_api_t *api, avl_method_t methods[AVL_API_METHODS]);

#endif
