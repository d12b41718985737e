#include "client/eval_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "client/eval_stats.h"
#include "client/request.h"

/* A conversation's messages; texts are borrowed, pictures are its own. */
typedef struct talk {
    Avl__V1__Message *messages, **message_list;
    Avl__V1__ContentPart *parts, **part_list;
    Avl__V1__Image *images;
    size_t message_count, part_count, image_count;
    size_t bytes; /* of texts and pictures */
} talk_t;

static void talk_free(talk_t *talk) {
    for (size_t i = 0; i < talk->image_count; i++)
        free(talk->images[i].data.data);
    free(talk->images);
    free(talk->part_list);
    free(talk->parts);
    free(talk->message_list);
    free(talk->messages);
}

static avl_status_t talk_allocate(const avl_eval_item_t *item, talk_t *talk) {
    size_t messages = item->turn_count + 1, images = 0;
    for (size_t i = 0; i < item->turn_count; i++)
        images += item->turns[i].image_count;
    size_t parts = messages + images;
    AVL_TRY(avl_alloc(messages, sizeof *talk->messages, "messages", &talk->messages));
    AVL_TRY(avl_alloc(messages, sizeof *talk->message_list, "messages", &talk->message_list));
    AVL_TRY(avl_alloc(parts, sizeof *talk->parts, "message parts", &talk->parts));
    AVL_TRY(avl_alloc(parts, sizeof *talk->part_list, "message parts", &talk->part_list));
    return avl_alloc(images, sizeof *talk->images, "pictures", &talk->images);
}

static Avl__V1__ContentPart *add_part(talk_t *talk, Avl__V1__Message *message) {
    Avl__V1__ContentPart *part = &talk->parts[talk->part_count];
    avl__v1__content_part__init(part);
    talk->part_list[talk->part_count++] = part;
    message->n_content++;
    return part;
}

static void add_text(talk_t *talk, Avl__V1__Message *message, const char *text) {
    Avl__V1__ContentPart *part = add_part(talk, message);
    part->part_case = AVL__V1__CONTENT_PART__PART_TEXT;
    part->text = (char *)(uintptr_t)text; /* packing only reads it */
    talk->bytes += strlen(text);
}

static avl_status_t add_image(talk_t *talk, Avl__V1__Message *message, const char *path) {
    avl_picture_t picture;
    AVL_TRY(avl_picture_read(path, &picture));
    Avl__V1__Image *image = &talk->images[talk->image_count++];
    avl__v1__image__init(image);
    image->data.data = picture.bytes;
    image->data.len = picture.byte_count;
    Avl__V1__ContentPart *part = add_part(talk, message);
    part->part_case = AVL__V1__CONTENT_PART__PART_IMAGE;
    part->image = image;
    talk->bytes += picture.byte_count;
    if (talk->bytes > INT32_MAX - (1 << 20))
        return avl_fail(AVL_ERR_TOO_LARGE, "%s: with it the question exceeds 2 GiB", path);
    return AVL_OK;
}

static Avl__V1__Message *add_message(talk_t *talk, Avl__V1__Role role) {
    Avl__V1__Message *message = &talk->messages[talk->message_count];
    avl__v1__message__init(message);
    talk->message_list[talk->message_count++] = message;
    message->role = role;
    message->content = talk->part_list + talk->part_count;
    return message;
}

static avl_status_t talk_fill(const avl_eval_item_t *item, talk_t *talk) {
    AVL_TRY(talk_allocate(item, talk));
    if (item->system != NULL)
        add_text(talk, add_message(talk, AVL__V1__ROLE__ROLE_SYSTEM), item->system);
    for (size_t i = 0; i < item->turn_count; i++) {
        const avl_eval_turn_t *turn = &item->turns[i];
        Avl__V1__Message *message = add_message(
            talk, turn->assistant ? AVL__V1__ROLE__ROLE_ASSISTANT : AVL__V1__ROLE__ROLE_USER);
        for (size_t j = 0; j < turn->image_count; j++)
            AVL_TRY(add_image(talk, message, turn->images[j]));
        add_text(talk, message, turn->text);
    }
    return AVL_OK;
}

static avl_status_t pack(const Avl__V1__GenerateRequest *request, avl_rpc_request_t **request_p) {
    size_t byte_count = avl__v1__generate_request__get_packed_size(request);
    uint8_t *bytes = NULL;
    AVL_TRY(avl_alloc(byte_count, 1, "request", &bytes));
    avl__v1__generate_request__pack(request, bytes);
    return avl_rpc_request_create(bytes, byte_count, request_p);
}

/* FNV-1a, by G. Fowler, L. C. Noll and P. Vo. */
static uint64_t seed_of(const char *id) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *byte = id; *byte != '\0'; byte++)
        hash = (hash ^ (unsigned char)*byte) * UINT64_C(0x100000001b3);
    return hash >> 11;
}

avl_status_t avl_eval_request_pack(const avl_eval_item_t *item, const avl_eval_asking_t *asking,
                                   avl_rpc_request_t **request_p) {
    talk_t talk = {0};
    avl_status_t status = talk_fill(item, &talk);
    if (status == AVL_OK) {
        Avl__V1__Conversation conversation;
        avl__v1__conversation__init(&conversation);
        conversation.n_messages = talk.message_count;
        conversation.messages = talk.message_list;
        Avl__V1__SamplingParameters sampling;
        avl__v1__sampling_parameters__init(&sampling);
        sampling._temperature_case = AVL__V1__SAMPLING_PARAMETERS___TEMPERATURE_TEMPERATURE;
        Avl__V1__AttentionParameters attention = asking->method->attention;
        attention.preset = (char *)(uintptr_t)asking->method->preset; /* packing only reads it */
        /* Where chance chooses rows, it chooses others for every question, and the same ones
         * every time. */
        sampling._seed_case = AVL__V1__SAMPLING_PARAMETERS___SEED_SEED;
        sampling.seed = seed_of(item->id);
        attention.measure_captured_mass = asking->mass;
        char name[48];
        snprintf(name, sizeof name, "eval-%zu", item->line);
        Avl__V1__GenerateRequest request;
        avl__v1__generate_request__init(&request);
        request.request_id = name;
        request.input_case = AVL__V1__GENERATE_REQUEST__INPUT_CONVERSATION;
        request.conversation = &conversation;
        request.sampling = &sampling;
        request.attention = &attention;
        request.max_tokens = item->max_tokens > 0 ? item->max_tokens : asking->max_tokens;
        if (asking->trial)
            request.max_tokens = 1;
        if (asking->forced_count > 0) {
            sampling._logprobs_case = AVL__V1__SAMPLING_PARAMETERS___LOGPROBS_LOGPROBS;
            sampling.logprobs = AVL_EVAL_LOGPROBS;
            request.max_tokens = 0;
            request.n_forced_token_ids = asking->forced_count;
            request.forced_token_ids = (int32_t *)(uintptr_t)asking->forced_ids; /* likewise */
        }
        status = pack(&request, request_p);
    }
    talk_free(&talk);
    return status;
}
