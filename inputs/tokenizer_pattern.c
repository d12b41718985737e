/* inputs/tokenizer_pattern.c: the literal strings and regular expressions of tokenizer.json, found
 * in text.
 *
 * The files' expressions are written for Oniguruma with Ruby's syntax. PCRE2 reads the same
 * language except for some escapes and a few rare constructs: escapes are rewritten, rare
 * constructs refused, so that no expression silently means something else. Matching is bounded: an
 * expression that needs more steps or stack than the limits below fails the request instead of
 * holding a thread. */
#include "inputs/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

avl_status_t avl_pattern_literal(const char *literal, size_t bytes, avl_pattern_t *pattern_p) {
    if (bytes == 0)
        return avl_fail(AVL_ERR_UNSUPPORTED, "an empty pattern");
    char *copy = NULL;
    AVL_TRY(avl_alloc(bytes + 1, 1, "pattern", &copy));
    memcpy(copy, literal, bytes);
    *pattern_p = (avl_pattern_t){.literal = copy, .literal_bytes = bytes};
    return AVL_OK;
}

void avl_pattern_free(avl_pattern_t *pattern) {
    pcre2_code_free(pattern->code);
    free(pattern->literal);
    *pattern = (avl_pattern_t){0};
}

static avl_status_t refuse(const char *expression, size_t at, const char *what) {
    return avl_fail(AVL_ERR_UNSUPPORTED, "regular expression \"%.100s\": %s at byte %zu",
                    expression, what, at);
}

static avl_status_t add(avl_text_t *out, const char *text) {
    return avl_text_add(out, text, strlen(text));
}

/* Rewrites the escape whose letter is at `at`; *next_p is what follows it. */
static avl_status_t translate_escape(const char *expression, size_t bytes, size_t at, bool in_class,
                                     avl_text_t *out, size_t *next_p) {
    static const char word[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
    char letter = expression[at];
    char copy[3] = {'\\', letter, 0};
    *next_p = at + 1;
    switch (letter) {
    case 's': /* PCRE2's \s has U+180E, which is no white space any more */
        return add(out, "\\p{White_Space}");
    case 'S':
        return add(out, "\\P{White_Space}");
    case 'd':
        return add(out, "\\p{Nd}");
    case 'D':
        return add(out, "\\P{Nd}");
    case 'w':
        AVL_TRY(add(out, in_class ? "" : "["));
        AVL_TRY(add(out, word));
        return add(out, in_class ? "" : "]");
    case 'W':
        if (in_class)
            return refuse(expression, at, "\\W inside a class");
        AVL_TRY(add(out, "[^"));
        AVL_TRY(add(out, word));
        return add(out, "]");
    case 'v':
        return add(out, "\\x0B");
    case 'p':
    case 'P': {
        const char *end = at + 1 < bytes && expression[at + 1] == '{'
                              ? memchr(expression + at, '}', bytes - at)
                              : NULL;
        if (end == NULL)
            return refuse(expression, at, "a property without braces");
        *next_p = (size_t)(end - expression) + 1;
        AVL_TRY(add(out, "\\"));
        return avl_text_add(out, expression + at, *next_p - at);
    }
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'a':
    case 'e':
        return add(out, copy);
    case 'A':
    case 'z':
        return in_class ? refuse(expression, at, "an anchor inside a class") : add(out, copy);
    case 'u': {
        char hex[12];
        if (bytes - at < 5 || strspn(expression + at + 1, "0123456789abcdefABCDEF") < 4)
            return refuse(expression, at, "\\u without four digits");
        snprintf(hex, sizeof hex, "\\x{%.4s}", expression + at + 1);
        *next_p = at + 5;
        return add(out, hex);
    }
    case 'x':
        if (at + 1 < bytes &&
            (expression[at + 1] == '{' || (expression[at + 1] >= '0' && expression[at + 1] <= '7')))
            return add(out, copy);
        return refuse(expression, at, "a byte that is no character");
    default:
        if ((letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') ||
            (letter >= 'A' && letter <= 'Z')) {
            char what[32];
            snprintf(what, sizeof what, "the escape \\%c", letter);
            return refuse(expression, at, what);
        }
        AVL_TRY(add(out, "\\"));
        *next_p = at;
        while (*next_p < bytes &&
               (*next_p == at || ((unsigned char)expression[*next_p] & 0xC0) == 0x80))
            ++*next_p;
        return avl_text_add(out, expression + at, *next_p - at);
    }
}

/* Checks the group that opens at `at`. */
static avl_status_t check_group(const char *expression, size_t bytes, size_t at) {
    static const char *const known[] = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?i:", "?-i:"};
    if (at + 1 >= bytes || expression[at + 1] != '?')
        return at + 1 < bytes && expression[at + 1] == '*' ? refuse(expression, at, "a verb")
                                                           : AVL_OK;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strncmp(expression + at + 1, known[i], strlen(known[i])) == 0)
            return AVL_OK;
    }
    return refuse(expression, at, "a group of an unknown kind");
}

static avl_status_t translate(const char *expression, size_t bytes, avl_text_t *out) {
    bool in_class = false, class_start = false;
    for (size_t at = 0; at < bytes;) {
        char byte = expression[at];
        bool first = class_start;
        class_start = false;
        if (byte == 0)
            return refuse(expression, at, "a NUL");
        if (byte == '\\') {
            if (at + 1 >= bytes)
                return refuse(expression, at, "a backslash at the end");
            AVL_TRY(translate_escape(expression, bytes, at + 1, in_class, out, &at));
            continue;
        }
        if (in_class) {
            if (byte == '[')
                return refuse(expression, at, "a class inside a class");
            if (byte == '&' && at + 1 < bytes && expression[at + 1] == '&')
                return refuse(expression, at, "an intersection of classes");
            if (byte == ']' && first)
                return refuse(expression, at, "an empty class");
            in_class = byte != ']';
            class_start = first && byte == '^';
        } else if (byte == '[') {
            in_class = class_start = true;
        } else if (byte == '(') {
            AVL_TRY(check_group(expression, bytes, at));
        } else if (byte == '}' && at + 1 < bytes && expression[at + 1] == '+') {
            return refuse(expression, at, "a possessive interval");
        }
        AVL_TRY(avl_text_add(out, &byte, 1));
        at++;
    }
    return AVL_OK;
}

avl_status_t avl_pattern_compile(const char *expression, size_t bytes, avl_pattern_t *pattern_p) {
    avl_text_t translated = {0};
    avl_status_t status;
    AVL_TRY_GOTO(status, translate(expression, bytes, &translated), out);
    AVL_TRY_GOTO(status, avl_text_add(&translated, "", 1), out);
    int error;
    PCRE2_SIZE where;
    /* Ruby's ^ and $ are always those of lines. */
    pcre2_code *code = pcre2_compile(
        (PCRE2_SPTR)translated.bytes, translated.count - 1,
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &where, NULL);
    if (code == NULL) {
        char message[120];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof message);
        status = avl_fail(AVL_ERR_DATA, "regular expression \"%.100s\": %s", expression, message);
        goto out;
    }
    /* Without JIT (hardened kernels refuse executable memory) the interpreter does the same,
     * slower. */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    *pattern_p = (avl_pattern_t){.code = code};
out:
    avl_text_free(&translated);
    return status;
}

static avl_status_t next_literal(const avl_pattern_t *pattern, const char *text, size_t bytes,
                                 avl_match_cursor_t *cursor, bool *found_p, size_t *start_p,
                                 size_t *end_p) {
    const char *at = cursor->at < bytes ? memmem(text + cursor->at, bytes - cursor->at,
                                                 pattern->literal, pattern->literal_bytes)
                                        : NULL;
    *found_p = at != NULL;
    if (at != NULL) {
        *start_p = (size_t)(at - text);
        *end_p = *start_p + pattern->literal_bytes;
        cursor->at = *end_p;
    }
    return AVL_OK;
}

avl_status_t avl_pattern_next(const avl_pattern_t *pattern, avl_encode_work_t *work,
                              const char *text, size_t bytes, avl_match_cursor_t *cursor,
                              bool *found_p, size_t *start_p, size_t *end_p) {
    if (pattern->code == NULL)
        return next_literal(pattern, text, bytes, cursor, found_p, start_p, end_p);
    *found_p = false;
    while (cursor->at <= bytes) {
        int result = pcre2_match(pattern->code, (PCRE2_SPTR)text, bytes, cursor->at,
                                 PCRE2_NO_UTF_CHECK, work->match_data, work->match_context);
        if (result == PCRE2_ERROR_NOMATCH)
            return AVL_OK;
        if (result < 0) {
            char message[120];
            pcre2_get_error_message(result, (PCRE2_UCHAR *)message, sizeof message);
            return avl_fail(AVL_ERR_TOO_LARGE,
                            "tokenizer: matching its expression failed at byte %zu of %zu: %s",
                            cursor->at, bytes, message);
        }
        const PCRE2_SIZE *match = pcre2_get_ovector_pointer(work->match_data);
        size_t start = match[0], end = match[1];
        /* As in the reference: an empty match right behind the last one does not count. */
        if (start == end && cursor->matched && cursor->last_end == end) {
            size_t character = 1;
            if (cursor->at < bytes)
                avl_utf8_decode(text + cursor->at, &character);
            cursor->at += character;
            continue;
        }
        cursor->at = end;
        cursor->last_end = end;
        cursor->matched = true;
        *found_p = true;
        *start_p = start;
        *end_p = end;
        return AVL_OK;
    }
    return AVL_OK;
}
