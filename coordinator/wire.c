#include "coordinator/wire.h"

#include <stdbool.h>
#include <string.h>

/* Wire types of protobuf's encoding. */
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value_p) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0) {
            *value_p = value;
            return true;
        }
    }
    return false;
}

/* Bytes of the UTF-8 character at `at`, or 0: overlong forms, surrogates and numbers beyond
 * U+10FFFF are none. */
static size_t character_bytes(const uint8_t *at, size_t left) {
    uint8_t first = at[0];
    if (first < 0x80)
        return 1;
    size_t count = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || count > left)
        return 0;
    for (size_t i = 1; i < count; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    bool wrong = (first == 0xe0 && at[1] < 0xa0) || (first == 0xed && at[1] > 0x9f) ||
                 (first == 0xf0 && at[1] < 0x90) || (first == 0xf4 && at[1] > 0x8f);
    return wrong ? 0 : count;
}

static avl_status_t check_string(const ProtobufCMessageDescriptor *message, const char *field,
                                 const uint8_t *bytes, size_t byte_count) {
    for (size_t i = 0; i < byte_count;) {
        size_t count = character_bytes(bytes + i, byte_count - i);
        if (count == 0)
            return avl_fail(AVL_ERR_INVALID, "%s.%s is not valid UTF-8: byte 0x%02x at offset %zu",
                            message->short_name, field, bytes[i], i);
        if (bytes[i] == 0)
            return avl_fail(AVL_ERR_INVALID, "%s.%s holds a NUL character at offset %zu",
                            message->short_name, field, i);
        i += count;
    }
    return AVL_OK;
}

static avl_status_t malformed(const ProtobufCMessageDescriptor *message) {
    return avl_fail(AVL_ERR_INVALID, "malformed protobuf: not a %s", message->name);
}

static avl_status_t check_message(const ProtobufCMessageDescriptor *message, const uint8_t *at,
                                  const uint8_t *end) {
    while (at < end) {
        uint64_t tag, length;
        if (!read_varint(&at, end, &tag))
            return malformed(message);
        int wire = (int)(tag & 7);
        size_t left = (size_t)(end - at);
        if (wire == WIRE_VARINT) {
            if (!read_varint(&at, end, &length))
                return malformed(message);
            continue;
        }
        if (wire == WIRE_64 || wire == WIRE_32) {
            length = wire == WIRE_64 ? 8 : 4;
        } else if (wire != WIRE_BYTES || !read_varint(&at, end, &length)) {
            return malformed(message);
        }
        left = (size_t)(end - at);
        if (length > left)
            return malformed(message);
        const ProtobufCFieldDescriptor *field =
            wire == WIRE_BYTES && (tag >> 3) <= UINT32_MAX
                ? protobuf_c_message_descriptor_get_field(message, (unsigned)(tag >> 3))
                : NULL;
        if (field != NULL && field->type == PROTOBUF_C_TYPE_STRING)
            AVL_TRY(check_string(message, field->name, at, length));
        if (field != NULL && field->type == PROTOBUF_C_TYPE_MESSAGE)
            AVL_TRY(check_message(field->descriptor, at, at + length));
        at += length;
    }
    return AVL_OK;
}

avl_status_t avl_wire_unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes,
                             size_t byte_count, ProtobufCMessage **message_p) {
    if (byte_count > 0)
        AVL_TRY(check_message(descriptor, bytes, bytes + byte_count));
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, NULL, byte_count, bytes);
    if (message == NULL)
        return malformed(descriptor);
    *message_p = message;
    return AVL_OK;
}
