/* client/eval_request.h: a question of a task file as the bytes of a GenerateRequest. */
#ifndef AVL_CLIENT_EVAL_REQUEST_H
#define AVL_CLIENT_EVAL_REQUEST_H

#include "client/eval_method.h"
#include "client/eval_tasks.h"
#include "client/rpc.h"
#include "proto/inference.pb-c.h"

/* How it is asked. */
typedef struct avl_eval_asking {
    const avl_eval_method_t *method;
    uint32_t max_tokens; /* for an item that does not say */
    /* The answer, when it is given: with the log probabilities of its steps. */
    const int32_t *forced_ids;
    size_t forced_count; /* 0: the model answers */
    bool trial;          /* one token is enough */
    bool mass;           /* measure what share of the attention mass is captured */
} avl_eval_asking_t;

/* Reads the item's pictures and packs them with its turns. Errors: those of avl_picture_read,
 * AVL_ERR_TOO_LARGE, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_eval_request_pack(const avl_eval_item_t *item,
                                                  const avl_eval_asking_t *asking,
                                                  avl_rpc_request_t **request_p);

#endif
