#include "coordinator/door.h"

#include <string.h>

#include "coordinator/validate.h"

/* Wire types of protobuf's encoding. */
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
/* What comes next. */
enum { STATE_TAG = 0, STATE_VALUE, STATE_LENGTH };
/* Fields of a GenerateRequest. */
enum {
    FIELD_MAX_TOKENS = 6,
    FIELD_IGNORE_EOS = 7,
    FIELD_PRIORITY = 20,
    FIELD_FORCED = 30,
    FIELD_N = 40,
};

static void take_value(avl_door_t *door) {
    switch (door->tag >> 3) {
    case FIELD_MAX_TOKENS:
        door->tokens = door->value;
        break;
    case FIELD_IGNORE_EOS:
        door->ignore_eos = door->value != 0;
        break;
    case FIELD_PRIORITY:
        door->priority = door->value;
        break;
    case FIELD_FORCED:
        door->forced++;
        break;
    case FIELD_N:
        door->answers = door->value;
        break;
    default:
        break;
    }
}

static void take_varint(avl_door_t *door) {
    switch (door->state) {
    case STATE_TAG:
        door->tag = door->value;
        if ((door->tag & 7) == WIRE_VARINT)
            door->state = STATE_VALUE;
        else if ((door->tag & 7) == WIRE_BYTES)
            door->state = STATE_LENGTH;
        else if ((door->tag & 7) == WIRE_64 || (door->tag & 7) == WIRE_32)
            door->skip = (door->tag & 7) == WIRE_64 ? 8 : 4;
        else
            door->broken = true;
        break;
    case STATE_VALUE:
        take_value(door);
        door->state = STATE_TAG;
        break;
    default:
        door->skip = door->value;
        door->state = STATE_TAG;
        break;
    }
}

/* Numbers of a packed field end with the bytes whose highest bit is clear. */
static uint64_t count_numbers(const uint8_t *bytes, size_t byte_count) {
    uint64_t count = 0;
    for (size_t i = 0; i < byte_count; i++)
        count += (bytes[i] & 0x80) == 0;
    return count;
}

void avl_door_read(avl_door_t *door, const uint8_t *bytes, size_t byte_count) {
    for (size_t at = 0; at < byte_count && !door->broken;) {
        if (door->skip > 0) {
            size_t left = byte_count - at;
            size_t count = door->skip < left ? (size_t)door->skip : left;
            if (door->tag >> 3 == FIELD_FORCED)
                door->forced += count_numbers(bytes + at, count);
            door->skip -= count;
            at += count;
            continue;
        }
        uint8_t byte = bytes[at++];
        door->value |= (uint64_t)(byte & 0x7f) << door->shift;
        door->shift += 7;
        if ((byte & 0x80) != 0) {
            door->broken = door->shift > 63;
            continue;
        }
        take_varint(door);
        door->value = 0;
        door->shift = 0;
    }
}

avl_asked_t avl_door_asked(const avl_door_t *door, int32_t choices_max, int32_t answer_tokens_max) {
    avl_asked_t asked;
    memset(&asked, 0, sizeof asked);
    if (door->broken)
        return asked;
    uint64_t tokens = door->forced > 0 ? door->forced : door->tokens;
    if (answer_tokens_max > 0 && (tokens == 0 || tokens > (uint64_t)answer_tokens_max))
        tokens = (uint64_t)answer_tokens_max;
    asked.tokens_max = tokens <= INT32_MAX ? (int32_t)tokens : 0;
    asked.all_tokens = (door->ignore_eos || door->forced > 0) && asked.tokens_max > 0;
    if (door->answers <= (uint64_t)choices_max)
        asked.answers = (int32_t)door->answers;
    int64_t priority = (int64_t)door->priority;
    if (priority >= -AVL_PRIORITY_MAX && priority <= AVL_PRIORITY_MAX)
        asked.priority = (int32_t)priority;
    return asked;
}
