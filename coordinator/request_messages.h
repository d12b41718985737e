/* coordinator/request_messages.h: what requests.c knows as numbers, as messages. Local, no
 * locks. */
#ifndef AVL_COORDINATOR_REQUEST_MESSAGES_H
#define AVL_COORDINATOR_REQUEST_MESSAGES_H

#include "coordinator/requests.h"
#include "proto/worker.pb-c.h"

/* The message's parts; it points into them. */
typedef struct avl_logprobs_message {
    Avl__V1__TokenLogprob tokens[1 + AVL_LOGPROBS_BEST_MAX];
    Avl__V1__TokenLogprob *best[AVL_LOGPROBS_BEST_MAX];
    Avl__V1__TokenLogprobs message, *list[1];
} avl_logprobs_message_t;

typedef struct avl_delta_message {
    int32_t ids[1];
    avl_logprobs_message_t logprobs;
    Avl__V1__Delta delta;
    Avl__V1__GenerateResponse response;
} avl_delta_message_t;

/* A piece of answer number `choice`: `text`, which is only read, and what the event of a token
 * says; NULL: none. */
void avl_delta_message_fill(uint32_t choice, const char *text, const Avl__Worker__V1__Event *token,
                            avl_delta_message_t *to);
/* `images` and `list` of prepared->image_count. */
void avl_submit_images_fill(avl_prepared_t *prepared, Avl__Worker__V1__SubmitImage *images,
                            Avl__Worker__V1__SubmitImage **list);
/* The message points into the choice and only reads it. */
void avl_submit_sampling_fill(avl_sampling_choice_t *sampling, Avl__Worker__V1__Submit *submit);
/* Seeds and replays of the answers that are not over, at least one. avl_submit_choices_free
 * releases what it made; both may be called for a message without. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_submit_choices_fill(avl_prepared_t *prepared,
                                                    Avl__Worker__V1__Submit *submit);
void avl_submit_choices_free(Avl__Worker__V1__Submit *submit);

#endif
