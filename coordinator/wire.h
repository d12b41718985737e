/* coordinator/wire.h: what protobuf-c does not look at: its strings are C strings, so a NUL inside
 * one would cut it silently, and nobody checks UTF-8. This walks an encoded message beside its
 * descriptor and checks every string. */
#ifndef AVL_COORDINATOR_WIRE_H
#define AVL_COORDINATOR_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/status.h"

/* Unpacks `bytes`, which must be a `descriptor` with clean strings;
 * protobuf_c_message_free_unpacked releases *message_p. Errors: AVL_ERR_INVALID: malformed, or a
 * string (named) that is no UTF-8 or holds a NUL. The message type must not contain itself. */
AVL_MUST_CHECK avl_status_t avl_wire_unpack(const ProtobufCMessageDescriptor *descriptor,
                                            const uint8_t *bytes, size_t byte_count,
                                            ProtobufCMessage **message_p);

#endif
