/* inputs/tokenizer_split.c: the pre-tokenizers. A segment goes through the steps depth first: each
 * part that a step makes is split by the next one at once, and what leaves the last step is a word
 * for BPE. Every step has buffers of its own, because the steps below it work while it is still
 * walking over its parts. */
#include "inputs/tokenizer_parts.h"

#include <string.h>

#include "base/memory.h"

uint32_t avl_byte_level_character(unsigned char byte) {
    /* GPT-2's table: printable Latin-1 stands for itself, the others follow from U+0100 on in their
     * order. */
    if ((byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE)
        return byte;
    if (byte <= ' ')
        return 0x100u + byte;
    if (byte < 0xA1)
        return 0x100u + 33 + (byte - 0x7Fu);
    return 0x100u + 67; /* 0xAD */
}

int avl_byte_level_byte(uint32_t character) {
    if (character < 0x100)
        return avl_byte_level_character((unsigned char)character) == character ? (int)character
                                                                               : -1;
    if (character <= 0x120)
        return (int)(character - 0x100);
    if (character <= 0x142)
        return (int)(character - 0x121 + 0x7F);
    return character == 0x143 ? 0xAD : -1;
}

static avl_status_t add_span(avl_encode_work_t *work, size_t step, size_t start, size_t end,
                             bool match) {
    AVL_TRY(avl_grow(work->steps[step].span_count + 1, sizeof(avl_span_t), "parts of a text",
                     &work->steps[step].spans, &work->steps[step].span_capacity));
    work->steps[step].spans[work->steps[step].span_count++] =
        (avl_span_t){.start = start, .end = end, .match = match};
    return AVL_OK;
}

/* Covers the text with spans that match and spans between matches. */
static avl_status_t find_pattern(avl_encode_work_t *work, size_t step, const char *text,
                                 size_t bytes) {
    const avl_pattern_t *pattern = &work->tokenizer->steps[step].pattern;
    avl_match_cursor_t cursor = {0};
    size_t previous = 0;
    for (;;) {
        bool found;
        size_t start = 0, end = 0;
        AVL_TRY(avl_pattern_next(pattern, work, text, bytes, &cursor, &found, &start, &end));
        if (!found)
            break;
        if (previous < start)
            AVL_TRY(add_span(work, step, previous, start, false));
        AVL_TRY(add_span(work, step, start, end, true));
        previous = end;
    }
    return previous < bytes ? add_span(work, step, previous, bytes, false) : AVL_OK;
}

static avl_status_t find_digits(avl_encode_work_t *work, size_t step, const char *text,
                                size_t bytes) {
    size_t previous = 0;
    for (size_t at = 0, length; at < bytes; at += length) {
        if (!avl_character_is_numeric(avl_utf8_decode(text + at, &length)))
            continue;
        if (previous < at)
            AVL_TRY(add_span(work, step, previous, at, false));
        AVL_TRY(add_span(work, step, at, at + length, true));
        previous = at + length;
    }
    return previous < bytes ? add_span(work, step, previous, bytes, false) : AVL_OK;
}

/* Joins neighbours as the behavior says; afterwards `match` marks the spans that are removed. */
static void join_spans(avl_encode_work_t *work, size_t step, avl_split_behavior_t behavior) {
    avl_span_t *spans = work->steps[step].spans;
    size_t count = work->steps[step].span_count, kept = 0;
    bool previous = false;
    if (behavior == AVL_SPLIT_REMOVED)
        return;
    if (behavior ==
        AVL_SPLIT_MERGED_WITH_NEXT) { /* from the end: a match is the head of what follows it */
        kept = count;
        for (size_t i = count; i-- > 0;) {
            avl_span_t span = spans[i];
            if (span.match && !previous && kept < count)
                spans[kept].start = span.start;
            else
                spans[--kept] = (avl_span_t){.start = span.start, .end = span.end};
            previous = span.match;
        }
        memmove(spans, spans + kept, (count - kept) * sizeof *spans);
        work->steps[step].span_count = count - kept;
        return;
    }
    for (size_t i = 0; i < count; i++) {
        avl_span_t span = spans[i];
        bool join = behavior == AVL_SPLIT_CONTIGUOUS             ? span.match == previous
                    : behavior == AVL_SPLIT_MERGED_WITH_PREVIOUS ? span.match && !previous
                                                                 : false;
        if (join && kept > 0)
            spans[kept - 1].end = span.end;
        else
            spans[kept++] = (avl_span_t){.start = span.start, .end = span.end};
        previous = span.match;
    }
    work->steps[step].span_count = kept;
}

static avl_status_t add_byte_level(avl_text_t *out, const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        char character[4];
        size_t length =
            avl_utf8_encode(avl_byte_level_character((unsigned char)text[i]), character);
        AVL_TRY(avl_text_add(out, character, length));
    }
    return AVL_OK;
}

/* Hands the parts to the next step. */
static avl_status_t descend(avl_encode_work_t *work, size_t step, const char *text, bool first) {
    bool byte_level = work->tokenizer->steps[step].kind == AVL_SPLIT_BYTE_LEVEL;
    for (size_t i = 0; i < work->steps[step].span_count; i++) {
        avl_span_t span = work->steps[step].spans[i];
        if (span.match || span.start == span.end)
            continue;
        const char *part = text + span.start;
        size_t bytes = span.end - span.start;
        if (byte_level) {
            avl_text_t *out = &work->steps[step].part;
            out->count = 0;
            AVL_TRY(add_byte_level(out, part, bytes));
            part = out->bytes;
            bytes = out->count;
        }
        AVL_TRY(avl_split(work, step + 1, part, bytes, first && span.start == 0));
    }
    return AVL_OK;
}

static avl_status_t metaspace(avl_encode_work_t *work, size_t index, const char **text_p,
                              size_t *bytes_p, bool first) {
    const avl_split_step_t *step = &work->tokenizer->steps[index];
    avl_text_t *out = &work->steps[index].text;
    const char *text = *text_p;
    size_t bytes = *bytes_p;
    out->count = 0;
    bool marked = text[0] == ' ' || (bytes >= step->replacement_bytes &&
                                     memcmp(text, step->replacement, step->replacement_bytes) == 0);
    if (!marked &&
        (step->prepend == AVL_PREPEND_ALWAYS || (step->prepend == AVL_PREPEND_FIRST && first)))
        AVL_TRY(avl_text_add(out, step->replacement, step->replacement_bytes));
    for (size_t at = 0; at < bytes;) {
        const char *space = memchr(text + at, ' ', bytes - at);
        size_t end = space == NULL ? bytes : (size_t)(space - text);
        AVL_TRY(avl_text_add(out, text + at, end - at));
        if (space != NULL)
            AVL_TRY(avl_text_add(out, step->replacement, step->replacement_bytes));
        at = end + 1;
    }
    *text_p = out->bytes;
    *bytes_p = out->count;
    return AVL_OK;
}

static avl_status_t prefix_space(avl_encode_work_t *work, size_t index, const char **text_p,
                                 size_t *bytes_p) {
    avl_text_t *out = &work->steps[index].text;
    out->count = 0;
    AVL_TRY(avl_text_add(out, " ", 1));
    AVL_TRY(avl_text_add(out, *text_p, *bytes_p));
    *text_p = out->bytes;
    *bytes_p = out->count;
    return AVL_OK;
}

avl_status_t avl_split(avl_encode_work_t *work, size_t index, const char *text, size_t bytes,
                       bool first) {
    if (bytes == 0)
        return AVL_OK;
    if (index == work->tokenizer->step_count)
        return avl_bpe(work, text, bytes);
    const avl_split_step_t *step = &work->tokenizer->steps[index];
    avl_split_behavior_t behavior = step->behavior;
    bool split = true;
    if (step->kind == AVL_SPLIT_METASPACE) {
        AVL_TRY(metaspace(work, index, &text, &bytes, first));
        behavior = AVL_SPLIT_MERGED_WITH_NEXT;
        split = step->split;
    } else if (step->kind == AVL_SPLIT_BYTE_LEVEL) {
        if (step->add_prefix_space && text[0] != ' ')
            AVL_TRY(prefix_space(work, index, &text, &bytes));
        behavior = AVL_SPLIT_ISOLATED;
        split = step->split;
    }
    work->steps[index].span_count = 0;
    if (!split)
        AVL_TRY(add_span(work, index, 0, bytes, false));
    else if (step->kind == AVL_SPLIT_DIGITS)
        AVL_TRY(find_digits(work, index, text, bytes));
    else
        AVL_TRY(find_pattern(work, index, text, bytes));
    for (size_t i = 0; step->invert && i < work->steps[index].span_count; i++)
        work->steps[index].spans[i].match = !work->steps[index].spans[i].match;
    join_spans(work, index, behavior);
    return descend(work, index, text, first);
}
