/* coordinator/validate.h: a GenerateRequest checked and translated: every refusal names the field,
 * the value and what is allowed. */
#ifndef AVL_COORDINATOR_VALIDATE_H
#define AVL_COORDINATOR_VALIDATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/attention.h"
#include "base/status.h"
#include "checkpoint/config.h"
#include "inputs/prompt.h"
#include "proto/inference.pb-c.h"

#define AVL_REQUEST_ID_BYTES_MAX 128
#define AVL_TENANT_BYTES_MAX 64
#define AVL_PRIORITY_MAX 100 /* the worker's; and the least is -AVL_PRIORITY_MAX */
#define AVL_STOP_TOKENS_MAX 64
#define AVL_LOGPROBS_BEST_MAX 20

typedef struct avl_sampling_choice {
    double temperature;
    double top_p;
    int32_t top_k;
    uint64_t seed;
    double min_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    int32_t min_tokens;
    int32_t logprob_count; /* of a token: 0: none; 1: its own; more: the best besides */
    int32_t stop_ids[AVL_STOP_TOKENS_MAX];
    size_t stop_count;
} avl_sampling_choice_t;

/* What the operator and the model say about requests. */
typedef struct avl_request_policy {
    int images_max;
    int64_t request_pixels_max; /* of all images together, as sent */
    int32_t prompt_tokens_max;  /* visual ones included; 0: as many as the context holds */
    int32_t answer_tokens_max;  /* the same */
    int choices_max;            /* answers to one request */
    avl_attention_params_t attention;
    const avl_generation_config_t *generation;
} avl_request_policy_t;

/* A conversation as inputs/prompt.h takes it; the texts stay in the protobuf message. */
typedef struct avl_conversation {
    avl_message_t *messages;
    size_t message_count;
    avl_message_part_t *parts;
    const Avl__V1__Image **images; /* in the order of the text */
    size_t image_count;
} avl_conversation_t;

/* Errors: AVL_ERR_INVALID, AVL_ERR_TOO_LARGE, AVL_ERR_MEMORY. avl_conversation_free releases what
 * it made. */
AVL_MUST_CHECK avl_status_t avl_conversation_read(const Avl__V1__Conversation *conversation,
                                                  int images_max,
                                                  avl_conversation_t *conversation_p);
/* The same for a raw prompt's pictures: no messages. */
AVL_MUST_CHECK avl_status_t avl_raw_prompt_read(const Avl__V1__RawPrompt *prompt, int images_max,
                                                avl_conversation_t *conversation_p);
void avl_conversation_free(avl_conversation_t *conversation);

/* `sampling` may be NULL: all absent. Without a seed one is drawn. Errors: AVL_ERR_INVALID. */
AVL_MUST_CHECK avl_status_t avl_sampling_read(const Avl__V1__SamplingParameters *sampling,
                                              const avl_generation_config_t *generation,
                                              avl_sampling_choice_t *choice_p);
/* forced_token_ids, copied; *ids_p is NULL without any. `id_limit`: of the vocabulary; `most`: as
 * many as an answer can have. Errors: AVL_ERR_INVALID, AVL_ERR_TOO_LARGE, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_forced_read(const Avl__V1__GenerateRequest *request,
                                            int32_t id_limit, int32_t most, int32_t **ids_p,
                                            int32_t *count_p);
/* The fields that stand alone: request_id, max_tokens. */
AVL_MUST_CHECK avl_status_t avl_generate_check(const Avl__V1__GenerateRequest *request);
/* How many answers are asked for. Errors: AVL_ERR_INVALID. */
AVL_MUST_CHECK avl_status_t avl_choice_count_read(const Avl__V1__GenerateRequest *request,
                                                  int choices_max, int32_t *count_p);

#endif
