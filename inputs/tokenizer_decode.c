/* inputs/tokenizer_decode.c: token ids back into text, one at a time.
 *
 * The decoders of the file form a chain. Before the first Fuse or ByteLevel what travels along it
 * are tokens; from there on it is one string that arrives in pieces, of which each decoder holds
 * back what a later piece could still change:
 *
 *   ByteFallback  a run of byte tokens, until it ends: one wrong byte turns every byte of the run
 *                 into U+FFFD
 *
 *   ByteLevel     the start of a character
 *
 *   Strip         spaces that would have to go if the string ended here
 *
 *   clean-up      at most three characters that may become the start of " n't" and its like
 *
 * The chain is walked by recursion of at most AVL_PARTS_MAX levels. */
#include "inputs/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* What clean_up_tokenization of `transformers` replaces, in its order; each loses its first space,
 * the fifth both. */
static const struct {
    const char *pattern, *content;
} clean_ups[] = {{" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
                 {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
#define CLEAN_UPS (sizeof clean_ups / sizeof *clean_ups)

typedef struct stage_state {
    avl_text_t held;  /* byte fallback: the run; byte level: the start of a character; replace: its
                         result */
    size_t run_bytes; /* byte fallback: bytes of the run that are whole characters */
    bool broken;      /* byte fallback: the run is no UTF-8 and was given out as U+FFFD */
    bool begun;     /* metaspace: the first token went by; strip of a whole string: past its head */
    size_t dropped; /* strip: characters taken off the head */
    size_t tail;    /* strip: characters held back at the end */
} stage_state_t;

struct avl_detokenizer {
    const avl_tokenizer_t *tokenizer;
    avl_encode_work_t work;        /* for the expressions of Replace */
    bool fused[AVL_PARTS_MAX + 1]; /* whether a stage gets pieces of one string */
    stage_state_t states[AVL_PARTS_MAX];
    size_t clean_matched[CLEAN_UPS]; /* characters of the pattern seen */
    bool joined; /* without a decoder: a token went out, the next needs a space */
    bool finished;
    avl_text_t out;
};

avl_status_t avl_detokenizer_create(const avl_tokenizer_t *tokenizer,
                                    avl_detokenizer_t **detokenizer_p) {
    avl_detokenizer_t *detokenizer = NULL;
    AVL_TRY(avl_alloc(1, sizeof *detokenizer, "detokenizer", &detokenizer));
    detokenizer->tokenizer = tokenizer;
    avl_status_t status = avl_encode_work_init(&detokenizer->work, tokenizer, 0);
    if (status != AVL_OK) {
        free(detokenizer);
        return status;
    }
    for (size_t i = 0; i < tokenizer->stage_count; i++) {
        avl_decode_kind_t kind = tokenizer->stages[i].kind;
        detokenizer->fused[i + 1] =
            detokenizer->fused[i] || kind == AVL_DECODE_FUSE || kind == AVL_DECODE_BYTE_LEVEL;
    }
    *detokenizer_p = detokenizer;
    return AVL_OK;
}

void avl_detokenizer_destroy(avl_detokenizer_t *detokenizer) {
    if (detokenizer == NULL)
        return;
    for (size_t i = 0; i < AVL_PARTS_MAX; i++)
        avl_text_free(&detokenizer->states[i].held);
    avl_encode_work_free(&detokenizer->work);
    avl_text_free(&detokenizer->out);
    free(detokenizer);
}

/* --- clean-up, byte by byte through the ten replacements --- */

static avl_status_t clean(avl_detokenizer_t *detokenizer, size_t pass, char byte) {
    if (pass == CLEAN_UPS)
        return avl_text_add(&detokenizer->out, &byte, 1);
    const char *pattern = clean_ups[pass].pattern;
    size_t *matched = &detokenizer->clean_matched[pass];
    if (pattern[*matched] != byte && *matched > 0) {
        /* No proper end of a partial match starts the pattern again, so all of it goes on. */
        size_t count = *matched;
        *matched = 0;
        for (size_t i = 0; i < count; i++)
            AVL_TRY(clean(detokenizer, pass + 1, pattern[i]));
    }
    if (pattern[*matched] != byte)
        return clean(detokenizer, pass + 1, byte);
    if (pattern[++*matched] != 0)
        return AVL_OK;
    *matched = 0;
    for (const char *content = clean_ups[pass].content; *content != 0; content++)
        AVL_TRY(clean(detokenizer, pass + 1, *content));
    return AVL_OK;
}

static avl_status_t clean_finish(avl_detokenizer_t *detokenizer) {
    for (size_t pass = 0; pass < CLEAN_UPS; pass++) {
        size_t count = detokenizer->clean_matched[pass];
        detokenizer->clean_matched[pass] = 0;
        for (size_t i = 0; i < count; i++)
            AVL_TRY(clean(detokenizer, pass + 1, clean_ups[pass].pattern[i]));
    }
    return AVL_OK;
}

static avl_status_t put_out(avl_detokenizer_t *detokenizer, const char *bytes, size_t count) {
    if (!detokenizer->tokenizer->clean_up)
        return avl_text_add(&detokenizer->out, bytes, count);
    for (size_t i = 0; i < count; i++)
        AVL_TRY(clean(detokenizer, 0, bytes[i]));
    return AVL_OK;
}

/* --- the stages --- */

static avl_status_t push(avl_detokenizer_t *detokenizer, size_t index, const char *bytes,
                         size_t count);

static avl_status_t push_broken(avl_detokenizer_t *detokenizer, size_t index, size_t count) {
    for (size_t i = 0; i < count; i++)
        AVL_TRY(push(detokenizer, index, "\xEF\xBF\xBD", 3));
    return AVL_OK;
}

static int hex_digit(char byte) {
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    if (byte >= 'a' && byte <= 'f')
        return byte - 'a' + 10;
    return byte >= 'A' && byte <= 'F' ? byte - 'A' + 10 : -1;
}

/* The byte that a token like "<0x0A>" stands for, or -1. */
static int fallback_byte(const char *token, size_t bytes) {
    if (bytes != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>')
        return -1;
    int high =
        token[3] == '+' ? 0 : hex_digit(token[3]); /* the reference's number parser takes a sign */
    int low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static avl_status_t end_run(avl_detokenizer_t *detokenizer, size_t index) {
    stage_state_t *state = &detokenizer->states[index];
    size_t count = state->held.count;
    state->held.count = state->run_bytes = 0;
    bool broken = state->broken;
    state->broken = false;
    if (count == 0 || broken)
        return AVL_OK;
    if (avl_utf8_valid(state->held.bytes, count))
        return push(detokenizer, index + 1, state->held.bytes, count);
    return push_broken(detokenizer, index + 1, count);
}

static avl_status_t byte_fallback(avl_detokenizer_t *detokenizer, size_t index, const char *token,
                                  size_t bytes) {
    stage_state_t *state = &detokenizer->states[index];
    int byte = fallback_byte(token, bytes);
    if (byte < 0) {
        AVL_TRY(end_run(detokenizer, index));
        return push(detokenizer, index + 1, token, bytes);
    }
    if (state->broken)
        return push_broken(detokenizer, index + 1, 1);
    char value = (char)byte;
    AVL_TRY(avl_text_add(&state->held, &value, 1));
    /* Only the last character can be unfinished: look from its start. */
    const unsigned char *held = (const unsigned char *)state->held.bytes;
    size_t start = state->run_bytes;
    size_t length = avl_utf8_character(held + start, state->held.count - start);
    bool ended = false;
    if (length > 0)
        state->run_bytes += length;
    else
        avl_utf8_broken(held + start, state->held.count - start, &ended);
    if (length > 0 || ended)
        return AVL_OK;
    state->broken = true;
    return push_broken(detokenizer, index + 1, state->held.count);
}

static avl_status_t byte_level_text(avl_detokenizer_t *detokenizer, size_t index) {
    avl_text_t *held = &detokenizer->states[index].held;
    size_t at = 0;
    while (at < held->count) {
        const unsigned char *text = (const unsigned char *)held->bytes + at;
        size_t good = 0, length;
        while (at + good < held->count &&
               (length = avl_utf8_character(text + good, held->count - at - good)) > 0)
            good += length;
        if (good > 0)
            AVL_TRY(push(detokenizer, index + 1, (const char *)text, good));
        at += good;
        if (at == held->count)
            break;
        bool ended;
        size_t broken = avl_utf8_broken(text + good, held->count - at, &ended);
        if (ended)
            break;
        AVL_TRY(push_broken(detokenizer, index + 1, 1));
        at += broken;
    }
    memmove(held->bytes, held->bytes + at, held->count - at);
    held->count -= at;
    return AVL_OK;
}

static avl_status_t byte_level(avl_detokenizer_t *detokenizer, size_t index, const char *token,
                               size_t bytes) {
    avl_text_t *held = &detokenizer->states[index].held;
    size_t before = held->count;
    for (size_t at = 0, length; at < bytes; at += length) {
        int byte = avl_byte_level_byte(avl_utf8_decode(token + at, &length));
        if (byte < 0) { /* not a byte-level spelling: an added token, taken as it is */
            held->count = before;
            AVL_TRY(avl_text_add(held, token, bytes));
            break;
        }
        char value = (char)byte;
        AVL_TRY(avl_text_add(held, &value, 1));
    }
    return held->count == 0 ? AVL_OK : byte_level_text(detokenizer, index);
}

static avl_status_t replace(avl_detokenizer_t *detokenizer, size_t index, const char *token,
                            size_t bytes) {
    const avl_decode_stage_t *stage = &detokenizer->tokenizer->stages[index];
    avl_text_t *result = &detokenizer->states[index].held;
    avl_match_cursor_t cursor = {0};
    size_t previous = 0;
    bool found;
    result->count = 0;
    do {
        size_t start = bytes, end = bytes;
        AVL_TRY(avl_pattern_next(&stage->pattern, &detokenizer->work, token, bytes, &cursor, &found,
                                 &start, &end));
        AVL_TRY(avl_text_add(result, token + previous, start - previous));
        if (found)
            AVL_TRY(avl_text_add(result, stage->content, stage->content_bytes));
        previous = end;
    } while (found);
    return push(detokenizer, index + 1, result->bytes == NULL ? "" : result->bytes, result->count);
}

static avl_status_t metaspace(avl_detokenizer_t *detokenizer, size_t index, const char *token,
                              size_t bytes) {
    const avl_decode_stage_t *stage = &detokenizer->tokenizer->stages[index];
    stage_state_t *state = &detokenizer->states[index];
    bool drop = stage->drop_first && !state->begun;
    state->begun = true;
    state->held.count = 0;
    for (size_t at = 0, length; at < bytes; at += length) {
        avl_utf8_decode(token + at, &length);
        if (length != stage->content_bytes || memcmp(token + at, stage->content, length) != 0)
            AVL_TRY(avl_text_add(&state->held, token + at, length));
        else if (!drop)
            AVL_TRY(avl_text_add(&state->held, " ", 1));
    }
    const char *bytes_held = state->held.bytes == NULL ? "" : state->held.bytes;
    return push(detokenizer, index + 1, bytes_held, state->held.count);
}

static bool starts_with(const char *text, size_t bytes, const avl_decode_stage_t *stage) {
    return bytes >= stage->content_bytes && memcmp(text, stage->content, stage->content_bytes) == 0;
}

static avl_status_t strip_token(avl_detokenizer_t *detokenizer, size_t index, const char *token,
                                size_t bytes) {
    const avl_decode_stage_t *stage = &detokenizer->tokenizer->stages[index];
    size_t width = stage->content_bytes;
    for (size_t i = 0; i < stage->start && starts_with(token, bytes, stage); i++) {
        token += width;
        bytes -= width;
    }
    for (size_t i = 0;
         i < stage->stop && bytes >= width && starts_with(token + bytes - width, width, stage); i++)
        bytes -= width;
    return push(detokenizer, index + 1, token, bytes);
}

static avl_status_t strip_piece(avl_detokenizer_t *detokenizer, size_t index, const char *piece,
                                size_t bytes) {
    const avl_decode_stage_t *stage = &detokenizer->tokenizer->stages[index];
    stage_state_t *state = &detokenizer->states[index];
    while (!state->begun && bytes > 0) {
        if (state->dropped < stage->start && starts_with(piece, bytes, stage)) {
            state->dropped++;
            piece += stage->content_bytes;
            bytes -= stage->content_bytes;
        } else {
            state->begun = true;
        }
    }
    while (bytes > 0) {
        /* Everything up to the tail of this piece is certain, and so are spaces that were held
         * before it. */
        size_t end = bytes, tail = 0;
        while (tail < stage->stop && end >= stage->content_bytes &&
               starts_with(piece + end - stage->content_bytes, stage->content_bytes, stage)) {
            end -= stage->content_bytes;
            tail++;
        }
        size_t release = state->tail;
        if (end == 0) /* nothing but such characters: the oldest leave when there are too many */
            release = state->tail + tail > stage->stop ? state->tail + tail - stage->stop : 0;
        for (size_t i = 0; i < release; i++)
            AVL_TRY(push(detokenizer, index + 1, stage->content, stage->content_bytes));
        state->tail = end == 0 ? state->tail + tail - release : tail;
        return end > 0 ? push(detokenizer, index + 1, piece, end) : AVL_OK;
    }
    return AVL_OK;
}

static avl_status_t push(avl_detokenizer_t *detokenizer, size_t index, const char *bytes,
                         size_t count) {
    if (index == detokenizer->tokenizer->stage_count)
        return put_out(detokenizer, bytes, count);
    switch (detokenizer->tokenizer->stages[index].kind) {
    case AVL_DECODE_REPLACE:
        return replace(detokenizer, index, bytes, count);
    case AVL_DECODE_BYTE_FALLBACK:
        return byte_fallback(detokenizer, index, bytes, count);
    case AVL_DECODE_FUSE:
        return push(detokenizer, index + 1, bytes, count);
    case AVL_DECODE_STRIP:
        return detokenizer->fused[index] ? strip_piece(detokenizer, index, bytes, count)
                                         : strip_token(detokenizer, index, bytes, count);
    case AVL_DECODE_METASPACE:
        return metaspace(detokenizer, index, bytes, count);
    case AVL_DECODE_BYTE_LEVEL:
        return byte_level(detokenizer, index, bytes, count);
    }
    return avl_fail(AVL_ERR_INTERNAL, "decoder %d",
                    (int)detokenizer->tokenizer->stages[index].kind);
}

static avl_status_t give(avl_detokenizer_t *detokenizer, const char **text_p) {
    AVL_TRY(avl_text_add(&detokenizer->out, "", 1));
    detokenizer->out.count--;
    *text_p = detokenizer->out.bytes;
    return AVL_OK;
}

avl_status_t avl_detokenizer_add(avl_detokenizer_t *detokenizer, int32_t id, const char **text_p) {
    const avl_tokenizer_t *tokenizer = detokenizer->tokenizer;
    const avl_token_t *token = avl_vocab_token(&tokenizer->vocab, id);
    detokenizer->out.count = 0;
    if (token != NULL && !token->special && !detokenizer->finished) {
        if (!tokenizer->has_decoder && detokenizer->joined)
            AVL_TRY(put_out(detokenizer, " ", 1));
        detokenizer->joined = true;
        AVL_TRY(push(detokenizer, 0, avl_vocab_spelling(&tokenizer->vocab, token), token->bytes));
    }
    return give(detokenizer, text_p);
}

avl_status_t avl_detokenizer_finish(avl_detokenizer_t *detokenizer, const char **text_p) {
    detokenizer->out.count = 0;
    for (size_t i = 0; i < detokenizer->tokenizer->stage_count && !detokenizer->finished; i++) {
        avl_decode_kind_t kind = detokenizer->tokenizer->stages[i].kind;
        if (kind == AVL_DECODE_BYTE_FALLBACK)
            AVL_TRY(end_run(detokenizer, i));
        if (kind == AVL_DECODE_BYTE_LEVEL && detokenizer->states[i].held.count > 0)
            AVL_TRY(push_broken(detokenizer, i + 1, 1));
    }
    if (!detokenizer->finished && detokenizer->tokenizer->clean_up)
        AVL_TRY(clean_finish(detokenizer));
    detokenizer->finished = true;
    return give(detokenizer, text_p);
}

size_t avl_detokenizer_bytes(const avl_detokenizer_t *detokenizer) {
    return detokenizer->out.count;
}
