#include "coordinator/request_messages.h"

#include <stdlib.h>
#include <string.h>

void avl_prepared_free(avl_prepared_t *prepared) {
    for (size_t i = 0; i < prepared->image_count; i++)
        free(prepared->images[i].pixels);
    free(prepared->images);
    free(prepared->token_ids);
    free(prepared->forced_ids);
    avl_stop_text_destroy(prepared->stop);
    memset(prepared, 0, sizeof *prepared);
}

static void fill_logprobs(const Avl__Worker__V1__Event *event, avl_logprobs_message_t *to,
                          Avl__V1__Delta *delta) {
    size_t count =
        event->n_logprobs < event->n_logprob_ids ? event->n_logprobs : event->n_logprob_ids;
    if (count == 0 || count > 1 + AVL_LOGPROBS_BEST_MAX)
        return;
    for (size_t i = 0; i < count; i++) {
        avl__v1__token_logprob__init(&to->tokens[i]);
        to->tokens[i].token_id = event->logprob_ids[i];
        to->tokens[i].logprob = event->logprobs[i];
        if (i > 0)
            to->best[i - 1] = &to->tokens[i];
    }
    avl__v1__token_logprobs__init(&to->message);
    to->message.token = &to->tokens[0];
    to->message.n_best = count - 1;
    to->message.best = to->best;
    to->list[0] = &to->message;
    delta->n_logprobs = 1;
    delta->logprobs = to->list;
}

void avl_delta_message_fill(const char *text, const Avl__Worker__V1__Event *token,
                            avl_delta_message_t *to) {
    union {
        const char *constant;
        char *variable;
    } shared_text = {.constant = text};
    avl__v1__delta__init(&to->delta);
    to->delta.text = shared_text.variable;
    if (token != NULL) {
        to->ids[0] = token->token_id;
        to->delta.n_token_ids = 1;
        to->delta.token_ids = to->ids;
        fill_logprobs(token, &to->logprobs, &to->delta);
    }
    avl__v1__generate_response__init(&to->response);
    to->response.event_case = AVL__V1__GENERATE_RESPONSE__EVENT_DELTA;
    to->response.delta = &to->delta;
}

void avl_submit_images_fill(avl_prepared_t *prepared, Avl__Worker__V1__SubmitImage *images,
                            Avl__Worker__V1__SubmitImage **list) {
    for (size_t i = 0; i < prepared->image_count; i++) {
        avl_prepared_image_t *from = &prepared->images[i];
        const avl_image_layout_t *layout = &from->layout;
        Avl__Worker__V1__SubmitImage *to = &images[i];
        avl__worker__v1__submit_image__init(to);
        to->image_width = layout->image_width;
        to->image_height = layout->image_height;
        to->first_row = from->first_row;
        to->pixels.data = from->pixels;
        to->pixels.len = from->pixel_bytes;
        to->digest.data = from->digest;
        to->digest.len = sizeof from->digest;
        to->tile_count = layout->tile_count;
        to->grid_rows = layout->grid_rows;
        to->grid_columns = layout->grid_columns;
        to->base_rows = layout->base_rows;
        to->crop_top = layout->crop_top;
        to->crop_left = layout->crop_left;
        to->crop_rows = layout->crop_rows;
        to->crop_columns = layout->crop_columns;
        to->prompt_rows = layout->prompt_rows;
        list[i] = to;
    }
}

void avl_submit_sampling_fill(avl_sampling_choice_t *sampling, Avl__Worker__V1__Submit *submit) {
    submit->temperature = sampling->temperature;
    submit->top_p = sampling->top_p;
    submit->top_k = sampling->top_k;
    submit->seed = sampling->seed;
    submit->min_p = sampling->min_p;
    submit->repetition_penalty = sampling->repetition_penalty;
    submit->presence_penalty = sampling->presence_penalty;
    submit->frequency_penalty = sampling->frequency_penalty;
    submit->min_tokens = sampling->min_tokens;
    submit->logprob_count = sampling->logprob_count;
    submit->n_stop_ids = sampling->stop_count;
    submit->stop_ids = sampling->stop_ids;
}
