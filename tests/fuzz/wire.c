/* Every request message of the public API, and both sides of the worker link, from arbitrary bytes:
 * unpacked cleanly or refused, and what is unpacked survives validation. */
#include <stdlib.h>

#include "coordinator/attention.h"
#include "coordinator/door.h"
#include "coordinator/validate.h"
#include "coordinator/wire.h"
#include "proto/reflection.pb-c.h"
#include "proto/worker.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void validate(const Avl__V1__GenerateRequest *request) {
    const avl_generation_config_t generation = {.temperature = 1, .top_p = 1};
    const avl_attention_params_t defaults = AVL_ATTENTION(0.5, 0.3, 3);
    avl_sampling_choice_t sampling;
    avl_attention_params_t attention;
    avl_conversation_t conversation;
    avl_status_t status = avl_generate_check(request);
    if (status == AVL_OK && request->input_case == AVL__V1__GENERATE_REQUEST__INPUT_RAW_PROMPT)
        status = avl_raw_prompt_read(request->raw_prompt, 4, &conversation);
    else if (status == AVL_OK)
        status = avl_conversation_read(request->conversation, 4, &conversation);
    if (status == AVL_OK)
        avl_conversation_free(&conversation);
    if (avl_sampling_read(request->sampling, &generation, &sampling) == AVL_OK &&
        !(sampling.top_p > 0))
        abort();
    if (avl_attention_read(request->attention, &defaults, 0, &attention) == AVL_OK &&
        !(attention.visual_compute_ratio <= attention.visual_store_ratio))
        abort();
}

/* In one portion and in two: the same. */
static void look(const uint8_t *bytes, size_t byte_count) {
    avl_door_t whole = {0}, parts = {0};
    avl_door_read(&whole, bytes, byte_count);
    avl_door_read(&parts, bytes, byte_count / 2);
    avl_door_read(&parts, bytes + byte_count / 2, byte_count - byte_count / 2);
    avl_asked_t a = avl_door_asked(&whole, 8, 0), b = avl_door_asked(&parts, 8, 0);
    if (a.tokens_max != b.tokens_max || a.priority != b.priority || a.answers != b.answers)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const ProtobufCMessageDescriptor *const types[] = {
        &avl__v1__generate_request__descriptor,
        &avl__v1__tokenize_request__descriptor,
        &grpc__reflection__v1__server_reflection_request__descriptor,
        &avl__worker__v1__worker_message__descriptor,
        &avl__worker__v1__coordinator_message__descriptor,
    };
    if (size == 0)
        return 0;
    look(data + 1, size - 1);
    const ProtobufCMessageDescriptor *type = types[data[0] % (sizeof types / sizeof types[0])];
    ProtobufCMessage *message = NULL;
    if (avl_wire_unpack(type, data + 1, size - 1, &message) != AVL_OK)
        return 0;
    if (type == &avl__v1__generate_request__descriptor)
        validate((Avl__V1__GenerateRequest *)message);
    protobuf_c_message_free_unpacked(message, NULL);
    return 0;
}
