#include "base/utf8.h"

/* Smallest and largest second byte after a lead byte: RFC 3629's table without overlong forms and
 * surrogates. */
static size_t sequence_bytes(unsigned char lead, unsigned char *low_p, unsigned char *high_p) {
    *low_p = 0x80;
    *high_p = 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    if (lead < 0xE0)
        return 2;
    if (lead == 0xE0)
        *low_p = 0xA0;
    else if (lead == 0xED)
        *high_p = 0x9F;
    else if (lead == 0xF0)
        *low_p = 0x90;
    else if (lead == 0xF4)
        *high_p = 0x8F;
    return lead < 0xF0 ? 3 : 4;
}

/* Bytes at `text` that fit the start of a character; *needed_p is what the character would have, 0
 * for none. */
static size_t fitting_bytes(const unsigned char *text, size_t bytes, size_t *needed_p) {
    unsigned char low, high;
    size_t needed = sequence_bytes(text[0], &low, &high), fitting = 1;
    *needed_p = needed;
    while (fitting < needed && fitting < bytes && text[fitting] >= low && text[fitting] <= high) {
        low = 0x80;
        high = 0xBF;
        fitting++;
    }
    return fitting;
}

size_t avl_utf8_character(const unsigned char *text, size_t bytes) {
    size_t needed;
    size_t fitting = fitting_bytes(text, bytes, &needed);
    return fitting == needed ? needed : 0;
}

size_t avl_utf8_broken(const unsigned char *text, size_t bytes, bool *ended_p) {
    size_t needed;
    size_t fitting = fitting_bytes(text, bytes, &needed);
    *ended_p = needed > fitting && fitting == bytes;
    return fitting;
}

bool avl_utf8_valid(const char *text, size_t bytes) {
    const unsigned char *at = (const unsigned char *)text;
    while (bytes > 0) {
        size_t character = avl_utf8_character(at, bytes);
        if (character == 0)
            return false;
        at += character;
        bytes -= character;
    }
    return true;
}
