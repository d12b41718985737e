#include "coordinator/request_messages.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

void avl_prepared_free(avl_prepared_t *prepared) {
    for (size_t i = 0; i < prepared->image_count; i++)
        free(prepared->images[i].pixels);
    free(prepared->images);
    free(prepared->token_ids);
    free(prepared->forced_ids);
    avl_choices_destroy(prepared->choices, prepared->choice_count);
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

void avl_delta_message_fill(uint32_t choice, const char *text, const Avl__Worker__V1__Event *token,
                            avl_delta_message_t *to) {
    union {
        const char *constant;
        char *variable;
    } shared_text = {.constant = text};
    avl__v1__delta__init(&to->delta);
    to->delta.text = shared_text.variable;
    to->delta.choice = choice;
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
    submit->min_p = sampling->min_p;
    submit->repetition_penalty = sampling->repetition_penalty;
    submit->presence_penalty = sampling->presence_penalty;
    submit->frequency_penalty = sampling->frequency_penalty;
    submit->min_tokens = sampling->min_tokens;
    submit->logprob_count = sampling->logprob_count;
    submit->n_stop_ids = sampling->stop_count;
    submit->stop_ids = sampling->stop_ids;
}

avl_status_t avl_submit_choices_fill(avl_prepared_t *prepared, Avl__Worker__V1__Submit *submit) {
    Avl__Worker__V1__SubmitChoice *messages = NULL;
    if (prepared->choice_count == 1) {
        submit->seed = prepared->choices[0].seed;
        submit->n_replay_ids = prepared->choices[0].sent_count;
        submit->replay_ids = prepared->choices[0].sent_ids;
        return AVL_OK;
    }
    size_t most = (size_t)prepared->choice_count;
    AVL_TRY(avl_alloc(most, sizeof *submit->choices, "answers of a request", &submit->choices));
    avl_status_t status = avl_alloc(most, sizeof *messages, "answers of a request", &messages);
    if (status != AVL_OK) {
        free(submit->choices);
        submit->choices = NULL;
        return status;
    }
    for (int32_t i = 0; i < prepared->choice_count; i++) {
        const avl_choice_t *choice = &prepared->choices[i];
        if (choice->over)
            continue;
        Avl__Worker__V1__SubmitChoice *to = &messages[submit->n_choices];
        avl__worker__v1__submit_choice__init(to);
        to->index = i;
        to->seed = choice->seed;
        to->n_replay_ids = choice->sent_count;
        to->replay_ids = choice->sent_ids;
        submit->choices[submit->n_choices++] = to;
    }
    return AVL_OK;
}

void avl_submit_choices_free(Avl__Worker__V1__Submit *submit) {
    if (submit->choices != NULL)
        free(submit->choices[0]); /* they lie side by side */
    free(submit->choices);
}
