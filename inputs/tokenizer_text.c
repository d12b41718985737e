/* inputs/tokenizer_text.c: UTF-8 and the character classes of Unicode that tokenizers ask for. */
#include "inputs/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/memory.h"

static const char replacement[] = "\xEF\xBF\xBD";

avl_status_t avl_text_add(avl_text_t *text, const char *bytes, size_t count) {
    if (count == 0)
        return AVL_OK;
    if (count > text->capacity - text->count)
        AVL_TRY(avl_grow(text->count + count, 1, "text", &text->bytes, &text->capacity));
    memcpy(text->bytes + text->count, bytes, count);
    text->count += count;
    return AVL_OK;
}

void avl_text_free(avl_text_t *text) {
    free(text->bytes);
    *text = (avl_text_t){0};
}

avl_status_t avl_text_add_valid(avl_text_t *out, const char *text, size_t bytes) {
    const unsigned char *at = (const unsigned char *)text;
    size_t good = 0; /* bytes from `at` known to be well-formed */
    while (good < bytes) {
        size_t character = avl_utf8_character(at + good, bytes - good);
        if (character > 0) {
            good += character;
            continue;
        }
        bool ended;
        size_t broken = avl_utf8_broken(at + good, bytes - good, &ended);
        AVL_TRY(avl_text_add(out, (const char *)at, good));
        AVL_TRY(avl_text_add(out, replacement, 3));
        at += good + broken;
        bytes -= good + broken;
        good = 0;
    }
    return avl_text_add(out, (const char *)at, good);
}

uint32_t avl_utf8_decode(const char *text, size_t *bytes_p) {
    const unsigned char *at = (const unsigned char *)text;
    if (at[0] < 0x80) {
        *bytes_p = 1;
        return at[0];
    }
    if (at[0] < 0xE0) {
        *bytes_p = 2;
        return (at[0] & 0x1Fu) << 6 | (at[1] & 0x3Fu);
    }
    if (at[0] < 0xF0) {
        *bytes_p = 3;
        return (at[0] & 0xFu) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
    }
    *bytes_p = 4;
    return (at[0] & 7u) << 18 | (at[1] & 0x3Fu) << 12 | (at[2] & 0x3Fu) << 6 | (at[3] & 0x3Fu);
}

size_t avl_utf8_encode(uint32_t character, char *out) {
    if (character < 0x80) {
        out[0] = (char)character;
        return 1;
    }
    if (character < 0x800) {
        out[0] = (char)(0xC0 | character >> 6);
        out[1] = (char)(0x80 | (character & 0x3F));
        return 2;
    }
    if (character < 0x10000) {
        out[0] = (char)(0xE0 | character >> 12);
        out[1] = (char)(0x80 | (character >> 6 & 0x3F));
        out[2] = (char)(0x80 | (character & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | character >> 18);
    out[1] = (char)(0x80 | (character >> 12 & 0x3F));
    out[2] = (char)(0x80 | (character >> 6 & 0x3F));
    out[3] = (char)(0x80 | (character & 0x3F));
    return 4;
}

size_t avl_utf8_before(const char *text, size_t offset) {
    do
        offset--;
    while (offset > 0 && ((unsigned char)text[offset] & 0xC0) == 0x80);
    return offset;
}

bool avl_character_is_space(uint32_t character) {
    return (character >= 9 && character <= 13) || character == ' ' || character == 0x85 ||
           character == 0xA0 || character == 0x1680 ||
           (character >= 0x2000 && character <= 0x200A) || character == 0x2028 ||
           character == 0x2029 || character == 0x202F || character == 0x205F || character == 0x3000;
}

static utf8proc_category_t category(uint32_t character) {
    return utf8proc_category((utf8proc_int32_t)character);
}

bool avl_character_is_mark(uint32_t character) {
    utf8proc_category_t kind = category(character);
    return kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_MC ||
           kind == UTF8PROC_CATEGORY_ME;
}

bool avl_character_is_numeric(uint32_t character) {
    utf8proc_category_t kind = category(character);
    return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
           kind == UTF8PROC_CATEGORY_NO;
}

bool avl_character_is_word(uint32_t character) {
    switch (category(character)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        /* Join controls, and the symbols that Unicode lists as Other_Alphabetic. */
        return character == 0x200C || character == 0x200D ||
               (character >= 0x24B6 && character <= 0x24E9) ||
               (character >= 0x1F130 && character <= 0x1F149) ||
               (character >= 0x1F150 && character <= 0x1F169) ||
               (character >= 0x1F170 && character <= 0x1F189);
    }
}
