/* The descriptor set is embedded by the assembler (AVL_DESCRIPTORS names its file) and walked anew
 * for every question: it is a few kilobytes. A file answers with itself alone; a client asks for
 * its imports by name. */
#include "coordinator/reflection.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/wire.h"
#include "proto/reflection.pb-c.h"

__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        "avl_descriptors_begin:\n"
        ".incbin \"" AVL_DESCRIPTORS "\"\n"
        "avl_descriptors_end:\n"
        ".byte 0\n"
        ".popsection\n");
extern const uint8_t avl_descriptors_begin[], avl_descriptors_end[];

#define SERVICES_MAX 16
#define NAME_BYTES 256

/* A piece of encoded protobuf. */
typedef struct span {
    const uint8_t *at;
    size_t byte_count;
} span_t;

static uint64_t take_varint(span_t *span) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && span->byte_count > 0; shift += 7) {
        uint8_t byte = *span->at++;
        span->byte_count--;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0)
            break;
    }
    return value;
}

/* The next length-delimited field; others are skipped. 0: the end. The content is protoc's, so it
 * is well formed. */
static unsigned next_field(span_t *span, span_t *value_p) {
    while (span->byte_count > 0) {
        uint64_t tag = take_varint(span);
        size_t skip = 0;
        if ((tag & 7) == 0)
            (void)take_varint(span);
        else if ((tag & 7) == 1)
            skip = 8;
        else if ((tag & 7) == 5)
            skip = 4;
        else
            skip = (size_t)take_varint(span);
        if (skip > span->byte_count)
            return 0;
        *value_p = (span_t){span->at, skip};
        span->at += skip;
        span->byte_count -= skip;
        if ((tag & 7) == 2)
            return (unsigned)(tag >> 3);
    }
    return 0;
}

/* The first field of this number, as text. */
static void text_field(span_t span, unsigned number, char text[NAME_BYTES]) {
    span_t value;
    text[0] = '\0';
    for (unsigned field; (field = next_field(&span, &value)) != 0;) {
        if (field == number) {
            snprintf(text, NAME_BYTES, "%.*s", (int)value.byte_count, (const char *)value.at);
            return;
        }
    }
}

/* Field numbers of descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    SERVICE_METHOD = 2,
    ANY_NAME = 1,
};

/* Whether `span`, a message, enum or service called `scope.NAME`, is or contains `symbol`. */
static bool defines(span_t span, const char *scope, const char *symbol, bool message,
                    bool service) {
    char name[NAME_BYTES], full[2 * NAME_BYTES + 2];
    text_field(span, ANY_NAME, name);
    snprintf(full, sizeof full, "%s%s%s", scope, scope[0] != '\0' ? "." : "", name);
    size_t length = strlen(full);
    if (strncmp(symbol, full, length) != 0)
        return false;
    if (symbol[length] == '\0')
        return true;
    if (symbol[length] != '.')
        return false;
    span_t value;
    for (unsigned field; (field = next_field(&span, &value)) != 0;) {
        bool nested = message && (field == MESSAGE_NESTED || field == MESSAGE_ENUM);
        bool leaf = (message && field == MESSAGE_FIELD) || (service && field == SERVICE_METHOD);
        if ((nested || leaf) &&
            defines(value, full, symbol, field == MESSAGE_NESTED && message, false))
            return true;
    }
    return false;
}

static bool file_defines(span_t file, const char *symbol) {
    char package[NAME_BYTES];
    text_field(file, FILE_PACKAGE, package);
    span_t value;
    for (unsigned field; (field = next_field(&file, &value)) != 0;)
        if ((field == FILE_MESSAGE || field == FILE_ENUM || field == FILE_SERVICE) &&
            defines(value, package, symbol, field == FILE_MESSAGE, field == FILE_SERVICE))
            return true;
    return false;
}

static bool find_file(const char *name, const char *symbol, span_t *file_p) {
    span_t set = {avl_descriptors_begin, (size_t)(avl_descriptors_end - avl_descriptors_begin)};
    span_t file;
    for (unsigned field; (field = next_field(&set, &file)) != 0;) {
        char own[NAME_BYTES];
        text_field(file, FILE_NAME, own);
        if (field == SET_FILE && ((name != NULL && strcmp(own, name) == 0) ||
                                  (symbol != NULL && file_defines(file, symbol)))) {
            *file_p = file;
            return true;
        }
    }
    return false;
}

/* Full names of all services; returns their number. */
static size_t list_services(char names[SERVICES_MAX][2 * NAME_BYTES]) {
    span_t set = {avl_descriptors_begin, (size_t)(avl_descriptors_end - avl_descriptors_begin)};
    span_t file, value;
    size_t count = 0;
    while (next_field(&set, &file) == SET_FILE) {
        char package[NAME_BYTES], name[NAME_BYTES];
        text_field(file, FILE_PACKAGE, package);
        span_t rest = file;
        for (unsigned field; (field = next_field(&rest, &value)) != 0;) {
            if (field != FILE_SERVICE || count == SERVICES_MAX)
                continue;
            text_field(value, ANY_NAME, name);
            snprintf(names[count++], 2 * NAME_BYTES, "%s.%s", package, name);
        }
    }
    return count;
}

typedef Grpc__Reflection__V1__ServerReflectionRequest request_t;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_t;
#define REQUEST(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define RESPONSE(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name

static void send_response(avl_call_t *call, response_t *response) {
    if (avl_call_send(call, &response->base) == AVL_ERR_EXHAUSTED)
        avl_call_abort(call, AVL_RPC_RESOURCE_EXHAUSTED, avl_status_detail());
}

static void send_error(avl_call_t *call, response_t *response, avl_rpc_code_t code,
                       const char *detail) {
    char text[2 * NAME_BYTES];
    snprintf(text, sizeof text, "%s", detail);
    Grpc__Reflection__V1__ErrorResponse error;
    grpc__reflection__v1__error_response__init(&error);
    error.error_code = (int32_t)code;
    error.error_message = text;
    response->message_response_case = RESPONSE(ERROR_RESPONSE);
    response->error_response = &error;
    send_response(call, response);
}

static void send_file(avl_call_t *call, response_t *response, const char *name,
                      const char *symbol) {
    span_t file;
    if (!find_file(name, symbol, &file)) {
        char text[2 * NAME_BYTES];
        snprintf(text, sizeof text, "no %s is called %.200s", name != NULL ? "file" : "symbol",
                 name != NULL ? name : symbol);
        send_error(call, response, AVL_RPC_NOT_FOUND, text);
        return;
    }
    union {
        const uint8_t *constant;
        uint8_t *variable;
    } bytes = {.constant = file.at}; /* packing only reads it */
    ProtobufCBinaryData data = {file.byte_count, bytes.variable};
    Grpc__Reflection__V1__FileDescriptorResponse files;
    grpc__reflection__v1__file_descriptor_response__init(&files);
    files.n_file_descriptor_proto = 1;
    files.file_descriptor_proto = &data;
    response->message_response_case = RESPONSE(FILE_DESCRIPTOR_RESPONSE);
    response->file_descriptor_response = &files;
    send_response(call, response);
}

static void send_services(avl_call_t *call, response_t *response) {
    char names[SERVICES_MAX][2 * NAME_BYTES];
    Grpc__Reflection__V1__ServiceResponse services[SERVICES_MAX], *list[SERVICES_MAX];
    Grpc__Reflection__V1__ListServiceResponse all;
    grpc__reflection__v1__list_service_response__init(&all);
    all.n_service = list_services(names);
    all.service = list;
    for (size_t i = 0; i < all.n_service; i++) {
        grpc__reflection__v1__service_response__init(&services[i]);
        services[i].name = names[i];
        list[i] = &services[i];
    }
    response->message_response_case = RESPONSE(LIST_SERVICES_RESPONSE);
    response->list_services_response = &all;
    send_response(call, response);
}

static void answer(avl_call_t *call, request_t *request) {
    response_t response;
    grpc__reflection__v1__server_reflection_response__init(&response);
    response.valid_host = request->host;
    response.original_request = request;
    switch (request->message_request_case) {
    case REQUEST(FILE_BY_FILENAME):
        send_file(call, &response, request->file_by_filename, NULL);
        break;
    case REQUEST(FILE_CONTAINING_SYMBOL):
        send_file(call, &response, NULL, request->file_containing_symbol);
        break;
    case REQUEST(LIST_SERVICES):
        send_services(call, &response);
        break;
    case REQUEST(FILE_CONTAINING_EXTENSION):
    case REQUEST(ALL_EXTENSION_NUMBERS_OF_TYPE):
        send_error(call, &response, AVL_RPC_NOT_FOUND, "there are no extensions here");
        break;
    default:
        send_error(call, &response, AVL_RPC_INVALID_ARGUMENT, "the request asks nothing");
    }
}

static void on_begin(void *context, avl_call_t *call, avl_payload_t *payload) {
    (void)context;
    (void)call;
    avl_payload_free(payload);
}

static void on_message(void *context, avl_call_t *call, avl_payload_t *payload) {
    (void)context;
    if (payload == NULL) {
        avl_call_finish(call, AVL_RPC_OK, "");
        return;
    }
    const uint8_t *bytes = NULL;
    size_t byte_count = 0;
    ProtobufCMessage *message = NULL;
    avl_status_t status = avl_payload_read(payload, &bytes, &byte_count);
    if (status == AVL_OK)
        status = avl_wire_unpack(&grpc__reflection__v1__server_reflection_request__descriptor,
                                 bytes, byte_count, &message);
    if (status == AVL_OK) {
        answer(call, (request_t *)message);
        protobuf_c_message_free_unpacked(message, NULL);
    } else {
        avl_call_finish(call, avl_rpc_code(status), avl_status_detail());
    }
    avl_payload_free(payload);
}

void avl_reflection_methods(avl_method_t methods[AVL_REFLECTION_METHODS]) {
    static const char *const paths[AVL_REFLECTION_METHODS] = {
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    };
    for (int i = 0; i < AVL_REFLECTION_METHODS; i++)
        methods[i] = (avl_method_t){
            .path = paths[i], .client_streams = true, .begin = on_begin, .message = on_message};
}
