#include "coordinator/validate.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/memory.h"

#define MESSAGES_MAX 4096 /* turns of one conversation: more is a mistake, not a talk */

static avl_status_t image_check(const Avl__V1__Image *image, size_t number) {
    if (image == NULL || image->data.len == 0)
        return avl_fail(AVL_ERR_INVALID,
                        "image %zu is empty: data holds the bytes of a JPEG, PNG or WebP file",
                        number);
    return AVL_OK;
}

static avl_status_t image_count_check(size_t count, int images_max) {
    if (count > (size_t)images_max)
        return avl_fail(AVL_ERR_TOO_LARGE, "the request has %zu images; at most %d are allowed",
                        count, images_max);
    return AVL_OK;
}

static avl_status_t role_read(const Avl__V1__Message *message, size_t index, avl_role_t *role_p) {
    switch (message->role) {
    case AVL__V1__ROLE__ROLE_SYSTEM:
        *role_p = AVL_ROLE_SYSTEM;
        return AVL_OK;
    case AVL__V1__ROLE__ROLE_USER:
        *role_p = AVL_ROLE_USER;
        return AVL_OK;
    case AVL__V1__ROLE__ROLE_ASSISTANT:
        *role_p = AVL_ROLE_ASSISTANT;
        return AVL_OK;
    default:
        return avl_fail(AVL_ERR_INVALID,
                        "messages[%zu].role is %d; allowed: 1 (system), 2 (user), 3 (assistant)",
                        index, (int)message->role);
    }
}

/* Fills one message; `part` and the images advance. */
static avl_status_t message_read(const Avl__V1__Message *from, size_t index, avl_message_t *to,
                                 avl_message_part_t *parts, avl_conversation_t *conversation) {
    AVL_TRY(role_read(from, index, &to->role));
    if (from->n_content == 0)
        return avl_fail(AVL_ERR_INVALID, "messages[%zu].content is empty", index);
    to->parts = parts;
    to->part_count = from->n_content;
    for (size_t i = 0; i < from->n_content; i++) {
        const Avl__V1__ContentPart *part = from->content[i];
        if (part->part_case == AVL__V1__CONTENT_PART__PART_TEXT) {
            parts[i].text = part->text;
        } else if (part->part_case == AVL__V1__CONTENT_PART__PART_IMAGE) {
            AVL_TRY(image_check(part->image, conversation->image_count + 1));
            parts[i].text = NULL;
            conversation->images[conversation->image_count++] = part->image;
        } else {
            return avl_fail(AVL_ERR_INVALID, "messages[%zu].content[%zu] is neither text nor image",
                            index, i);
        }
    }
    return AVL_OK;
}

avl_status_t avl_conversation_read(const Avl__V1__Conversation *from, int images_max,
                                   avl_conversation_t *conversation_p) {
    if (from == NULL || from->n_messages == 0)
        return avl_fail(AVL_ERR_INVALID, "conversation.messages is empty");
    if (from->n_messages > MESSAGES_MAX)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "the conversation has %zu messages; at most %d are allowed",
                        from->n_messages, MESSAGES_MAX);
    size_t parts = 0, images = 0;
    for (size_t m = 0; m < from->n_messages; m++) {
        parts += from->messages[m]->n_content;
        for (size_t i = 0; i < from->messages[m]->n_content; i++)
            images += from->messages[m]->content[i]->part_case == AVL__V1__CONTENT_PART__PART_IMAGE;
    }
    AVL_TRY(image_count_check(images, images_max));
    avl_conversation_t made = {NULL, from->n_messages, NULL, NULL, 0};
    avl_status_t status =
        avl_alloc(from->n_messages, sizeof *made.messages, "messages", &made.messages);
    if (status == AVL_OK)
        status = avl_alloc(parts, sizeof *made.parts, "message parts", &made.parts);
    if (status == AVL_OK)
        status = avl_alloc(images, sizeof *made.images, "images", &made.images);
    parts = 0;
    for (size_t m = 0; m < from->n_messages && status == AVL_OK; m++) {
        status = message_read(from->messages[m], m, &made.messages[m], made.parts + parts, &made);
        parts += from->messages[m]->n_content;
    }
    if (status != AVL_OK) {
        avl_conversation_free(&made);
        return status;
    }
    *conversation_p = made;
    return AVL_OK;
}

avl_status_t avl_raw_prompt_read(const Avl__V1__RawPrompt *prompt, int images_max,
                                 avl_conversation_t *conversation_p) {
    if (prompt == NULL || prompt->text[0] == '\0')
        return avl_fail(AVL_ERR_INVALID, "raw_prompt.text is empty");
    AVL_TRY(image_count_check(prompt->n_images, images_max));
    for (size_t i = 0; i < prompt->n_images; i++)
        AVL_TRY(image_check(prompt->images[i], i + 1));
    avl_conversation_t made = {NULL, 0, NULL, NULL, prompt->n_images};
    AVL_TRY(avl_alloc(prompt->n_images, sizeof *made.images, "images", &made.images));
    for (size_t i = 0; i < prompt->n_images; i++)
        made.images[i] = prompt->images[i];
    *conversation_p = made;
    return AVL_OK;
}

void avl_conversation_free(avl_conversation_t *conversation) {
    free(conversation->messages);
    free(conversation->parts);
    free(conversation->images);
    memset(conversation, 0, sizeof *conversation);
}

/* 53 bits: a seed that the answer reports survives a client that keeps numbers as doubles. */
static avl_status_t seed_draw(uint64_t *seed_p) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
        return avl_fail(AVL_ERR_IO, "no random seed: %s", strerror(errno));
    *seed_p = seed >> 11;
    return AVL_OK;
}

static avl_status_t range_check(const char *field, double value, double least, double most) {
    if (!(value >= least && value <= most))
        return avl_fail(AVL_ERR_INVALID, "sampling.%s is %g; allowed: %g to %g", field, value,
                        least, most);
    return AVL_OK;
}

/* What has no default of the model's. Token ids are the worker's to check: it knows the vocabulary.
 */
static avl_status_t sampling_extras_read(const Avl__V1__SamplingParameters *sampling,
                                         avl_sampling_choice_t *choice) {
    AVL_TRY(range_check("min_p", sampling->min_p, 0, 1));
    if (sampling->repetition_penalty != 0)
        AVL_TRY(range_check("repetition_penalty", sampling->repetition_penalty, 0.01, 100));
    AVL_TRY(range_check("presence_penalty", sampling->presence_penalty, -100, 100));
    AVL_TRY(range_check("frequency_penalty", sampling->frequency_penalty, -100, 100));
    if (sampling->min_tokens > INT32_MAX)
        return avl_fail(AVL_ERR_INVALID, "sampling.min_tokens is %u; allowed: 0 to %d",
                        sampling->min_tokens, INT32_MAX);
    if (sampling->_logprobs_case != 0 && sampling->logprobs > AVL_LOGPROBS_BEST_MAX)
        return avl_fail(AVL_ERR_INVALID, "sampling.logprobs is %u; allowed: 0 to %d",
                        sampling->logprobs, AVL_LOGPROBS_BEST_MAX);
    if (sampling->n_stop_token_ids > AVL_STOP_TOKENS_MAX)
        return avl_fail(AVL_ERR_INVALID,
                        "sampling.stop_token_ids has %zu tokens; at most %d are allowed",
                        sampling->n_stop_token_ids, AVL_STOP_TOKENS_MAX);
    choice->min_p = sampling->min_p;
    choice->repetition_penalty = sampling->repetition_penalty;
    choice->presence_penalty = sampling->presence_penalty;
    choice->frequency_penalty = sampling->frequency_penalty;
    choice->min_tokens = (int32_t)sampling->min_tokens;
    choice->logprob_count = sampling->_logprobs_case != 0 ? 1 + (int32_t)sampling->logprobs : 0;
    choice->stop_count = sampling->n_stop_token_ids;
    for (size_t i = 0; i < choice->stop_count; i++)
        choice->stop_ids[i] = sampling->stop_token_ids[i];
    return AVL_OK;
}

/* The comparisons are written so that a NaN fails them. */
avl_status_t avl_sampling_read(const Avl__V1__SamplingParameters *sampling,
                               const avl_generation_config_t *generation,
                               avl_sampling_choice_t *choice_p) {
    avl_sampling_choice_t choice = {
        .temperature = generation->sample ? (double)generation->temperature : 0,
        .top_p = (double)generation->top_p,
        .top_k = generation->top_k,
    };
    bool seeded = false;
    if (sampling != NULL) {
        if (sampling->_temperature_case != 0)
            choice.temperature = sampling->temperature;
        if (sampling->_top_p_case != 0)
            choice.top_p = sampling->top_p;
        if (sampling->_top_k_case != 0 && sampling->top_k > INT32_MAX)
            return avl_fail(AVL_ERR_INVALID, "sampling.top_k is %u; allowed: 0 (off) to %d",
                            sampling->top_k, INT32_MAX);
        if (sampling->_top_k_case != 0)
            choice.top_k = (int32_t)sampling->top_k;
        seeded = sampling->_seed_case != 0;
        if (seeded)
            choice.seed = sampling->seed;
        AVL_TRY(sampling_extras_read(sampling, &choice));
    }
    if (!(choice.temperature >= 0 && choice.temperature <= 100))
        return avl_fail(AVL_ERR_INVALID, "sampling.temperature is %g; allowed: 0 (greedy) to 100",
                        choice.temperature);
    if (!(choice.top_p > 0 && choice.top_p <= 1))
        return avl_fail(AVL_ERR_INVALID, "sampling.top_p is %g; allowed: more than 0, at most 1",
                        choice.top_p);
    if (!seeded)
        AVL_TRY(seed_draw(&choice.seed));
    *choice_p = choice;
    return AVL_OK;
}

avl_status_t avl_forced_read(const Avl__V1__GenerateRequest *request, int32_t id_limit,
                             int32_t most, int32_t **ids_p, int32_t *count_p) {
    size_t count = request->n_forced_token_ids;
    if (count == 0) {
        *ids_p = NULL;
        *count_p = 0;
        return AVL_OK;
    }
    if (request->max_tokens > 0 && count > request->max_tokens)
        return avl_fail(AVL_ERR_INVALID, "forced_token_ids has %zu tokens, and max_tokens is %u",
                        count, request->max_tokens);
    if (count > (size_t)most)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "forced_token_ids has %zu tokens; an answer can have %d here", count, most);
    if (request->sampling != NULL && request->sampling->n_stop > 0)
        return avl_fail(AVL_ERR_INVALID, "forced_token_ids excludes sampling.stop");
    for (size_t i = 0; i < count; i++) {
        int32_t id = request->forced_token_ids[i];
        if (id < 0 || id >= id_limit)
            return avl_fail(AVL_ERR_INVALID, "forced_token_ids[%zu] is %d; allowed: 0 to %d", i, id,
                            id_limit - 1);
    }
    int32_t *ids = NULL;
    AVL_TRY(avl_alloc(count, sizeof *ids, "forced tokens", &ids));
    memcpy(ids, request->forced_token_ids, count * sizeof *ids);
    *ids_p = ids;
    *count_p = (int32_t)count;
    return AVL_OK;
}

avl_status_t avl_generate_check(const Avl__V1__GenerateRequest *request) {
    size_t id_bytes = strlen(request->request_id);
    if (id_bytes > AVL_REQUEST_ID_BYTES_MAX)
        return avl_fail(AVL_ERR_INVALID, "request_id has %zu bytes; at most %d are allowed",
                        id_bytes, AVL_REQUEST_ID_BYTES_MAX);
    if (request->input_case == AVL__V1__GENERATE_REQUEST__INPUT__NOT_SET)
        return avl_fail(AVL_ERR_INVALID,
                        "the request has no input: give conversation or raw_prompt");
    if (request->max_tokens > INT32_MAX)
        return avl_fail(AVL_ERR_INVALID,
                        "max_tokens is %u; allowed: 0 (as many as the context holds) to %d",
                        request->max_tokens, INT32_MAX);
    if (request->priority < -AVL_PRIORITY_MAX || request->priority > AVL_PRIORITY_MAX)
        return avl_fail(AVL_ERR_INVALID, "priority is %d; allowed: %d to %d", request->priority,
                        -AVL_PRIORITY_MAX, AVL_PRIORITY_MAX);
    return AVL_OK;
}

avl_status_t avl_choice_count_read(const Avl__V1__GenerateRequest *request, int choices_max,
                                   int32_t *count_p) {
    if (request->n > (uint32_t)choices_max)
        return avl_fail(AVL_ERR_INVALID, "n is %u; allowed: 0 or 1 (one answer) to %d", request->n,
                        choices_max);
    if (request->n > 1 && request->n_forced_token_ids > 0)
        return avl_fail(AVL_ERR_INVALID, "forced_token_ids excludes n = %u: all would be the same",
                        request->n);
    *count_p = request->n > 1 ? (int32_t)request->n : 1;
    return AVL_OK;
}
