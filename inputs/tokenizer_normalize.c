/* inputs/tokenizer_normalize.c: the normalizers, applied to one segment between added tokens.
 *
 * Unicode's forms are made here from utf8proc's tables: its own function sorts combining marks by
 * exchanging neighbours, which takes a time that grows with the square of a run of marks, and a
 * client chooses that run. */
#include "inputs/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/memory.h"

static avl_status_t add_limited(const avl_encode_work_t *work, avl_text_t *out, const char *bytes,
                                size_t count) {
    if (count > work->text_limit - out->count)
        return avl_fail(AVL_ERR_TOO_LARGE, "tokenizer: a normalized text of more than %zu bytes",
                        work->text_limit);
    return avl_text_add(out, bytes, count);
}

static avl_status_t add_character(const avl_encode_work_t *work, avl_text_t *out,
                                  uint32_t character) {
    char bytes[4];
    return add_limited(work, out, bytes, avl_utf8_encode(character, bytes));
}

static avl_status_t replace(const avl_normalize_op_t *op, avl_encode_work_t *work, const char *text,
                            size_t bytes, avl_text_t *out) {
    avl_match_cursor_t cursor = {0};
    size_t previous = 0;
    for (;;) {
        bool found;
        size_t start = 0, end = 0;
        AVL_TRY(avl_pattern_next(&op->pattern, work, text, bytes, &cursor, &found, &start, &end));
        if (!found)
            return add_limited(work, out, text + previous, bytes - previous);
        AVL_TRY(add_limited(work, out, text + previous, start - previous));
        AVL_TRY(add_limited(work, out, op->content, op->content_bytes));
        previous = end;
    }
}

static uint8_t combining_class(int32_t character) {
    return (uint8_t)utf8proc_get_property(character)->combining_class;
}

/* Sorts the runs of characters with a combining class by that class, keeping the order of equals: a
 * counting sort, linear in the run, with insertion for the short runs that texts have. */
static avl_status_t sort_marks(int32_t *characters, size_t count) {
    for (size_t start = 0; start < count;) {
        size_t end = start;
        while (end < count && combining_class(characters[end]) != 0)
            end++;
        size_t run = end - start;
        if (run > 1 && run <= 16) {
            for (size_t i = start + 1; i < end; i++) {
                int32_t moved = characters[i];
                size_t to = i;
                for (; to > start && combining_class(characters[to - 1]) > combining_class(moved);
                     to--)
                    characters[to] = characters[to - 1];
                characters[to] = moved;
            }
        } else if (run > 16) {
            size_t places[257] = {0};
            int32_t *sorted = NULL;
            AVL_TRY(avl_alloc(run, sizeof *sorted, "combining marks", &sorted));
            for (size_t i = start; i < end; i++)
                places[combining_class(characters[i]) + 1]++;
            for (size_t i = 0; i < 256; i++)
                places[i + 1] += places[i];
            for (size_t i = start; i < end; i++)
                sorted[places[combining_class(characters[i])]++] = characters[i];
            memcpy(characters + start, sorted, run * sizeof *sorted);
            free(sorted);
        }
        start = end + 1;
    }
    return AVL_OK;
}

static bool is_ascii(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if ((unsigned char)text[i] >= 0x80)
            return false;
    }
    return true;
}

static avl_status_t normal_form(avl_encode_work_t *work, const char *text, size_t bytes,
                                bool compat, bool compose, avl_text_t *out) {
    if (is_ascii(text, bytes))
        return add_limited(work, out, text, bytes);
    int options = UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    size_t count = 0;
    for (size_t at = 0; at < bytes;) {
        size_t character_bytes;
        int32_t character = (int32_t)avl_utf8_decode(text + at, &character_bytes);
        /* 32: more than any character's decomposition (18, U+FDFA) */
        AVL_TRY(avl_grow(count + 32, sizeof *work->characters, "normalization", &work->characters,
                         &work->character_capacity));
        int last_boundary = 0;
        utf8proc_ssize_t written = utf8proc_decompose_char(character, work->characters + count, 32,
                                                           options, &last_boundary);
        if (written < 0 || written > 32) { /* not a character utf8proc accepts: kept as it is */
            work->characters[count] = character;
            written = 1;
        }
        count += (size_t)written;
        at += character_bytes;
    }
    AVL_TRY(sort_marks(work->characters, count));
    if (compose) {
        utf8proc_ssize_t composed = utf8proc_normalize_utf32(
            work->characters, (utf8proc_ssize_t)count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (composed < 0)
            return avl_fail(AVL_ERR_INTERNAL, "normalization: %s", utf8proc_errmsg(composed));
        count = (size_t)composed;
    }
    for (size_t i = 0; i < count; i++)
        AVL_TRY(add_character(work, out, (uint32_t)work->characters[i]));
    return AVL_OK;
}

static avl_status_t lowercase(const avl_encode_work_t *work, const char *text, size_t bytes,
                              avl_text_t *out) {
    for (size_t at = 0, step; at < bytes; at += step) {
        uint32_t character = avl_utf8_decode(text + at, &step);
        if (character ==
            0x130) { /* the one character whose lower case is always two: i and a dot above */
            AVL_TRY(add_limited(work, out, "i\xCC\x87", 3));
            continue;
        }
        AVL_TRY(add_character(work, out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)character)));
    }
    return AVL_OK;
}

static avl_status_t strip(const avl_normalize_op_t *op, const avl_encode_work_t *work,
                          const char *text, size_t bytes, avl_text_t *out) {
    size_t start = 0, end = bytes, step;
    while (op->left && start < end && avl_character_is_space(avl_utf8_decode(text + start, &step)))
        start += step;
    while (op->right && end > start) {
        size_t before = avl_utf8_before(text, end);
        if (!avl_character_is_space(avl_utf8_decode(text + before, &step)))
            break;
        end = before;
    }
    return add_limited(work, out, text + start, end - start);
}

static avl_status_t strip_accents(const avl_encode_work_t *work, const char *text, size_t bytes,
                                  avl_text_t *out) {
    for (size_t at = 0, step; at < bytes; at += step) {
        if (!avl_character_is_mark(avl_utf8_decode(text + at, &step)))
            AVL_TRY(add_limited(work, out, text + at, step));
    }
    return AVL_OK;
}

static avl_status_t apply(const avl_normalize_op_t *op, avl_encode_work_t *work, const char *text,
                          size_t bytes, avl_text_t *out) {
    switch (op->kind) {
    case AVL_NORMALIZE_PREPEND:
        if (bytes > 0)
            AVL_TRY(add_limited(work, out, op->content, op->content_bytes));
        return add_limited(work, out, text, bytes);
    case AVL_NORMALIZE_REPLACE:
        return replace(op, work, text, bytes, out);
    case AVL_NORMALIZE_NFC:
        return normal_form(work, text, bytes, false, true, out);
    case AVL_NORMALIZE_NFD:
        return normal_form(work, text, bytes, false, false, out);
    case AVL_NORMALIZE_NFKC:
        return normal_form(work, text, bytes, true, true, out);
    case AVL_NORMALIZE_NFKD:
        return normal_form(work, text, bytes, true, false, out);
    case AVL_NORMALIZE_LOWERCASE:
        return lowercase(work, text, bytes, out);
    case AVL_NORMALIZE_STRIP:
        return strip(op, work, text, bytes, out);
    case AVL_NORMALIZE_STRIP_ACCENTS:
        return strip_accents(work, text, bytes, out);
    }
    return avl_fail(AVL_ERR_INTERNAL, "normalizer %d", (int)op->kind);
}

avl_status_t avl_normalize(avl_encode_work_t *work, const char *text, size_t bytes,
                           const char **text_p, size_t *bytes_p) {
    const avl_tokenizer_t *tokenizer = work->tokenizer;
    for (size_t i = 0; i < tokenizer->op_count; i++) {
        avl_text_t *out = &work->normal[i % 2];
        out->count = 0;
        AVL_TRY(apply(&tokenizer->ops[i], work, text, bytes, out));
        text = out->bytes == NULL ? "" : out->bytes;
        bytes = out->count;
    }
    *text_p = text;
    *bytes_p = bytes;
    return AVL_OK;
}
