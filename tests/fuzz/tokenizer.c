/* tests/fuzz/tokenizer.c: a hostile tokenizer.json, and a text encoded and decoded with what it
 * describes. Input: tokenizer.json, then perhaps a NUL, then tokenizer_config.json, a NUL, and the
 * text. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "inputs/tokenizer_parts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Steps that a text costs grow with what the file chose for patterns; a short text keeps each run
 * short. */
#define TEXT_BYTES_MAX 2048

static void check(bool holds) {
    if (!holds)
        abort();
}

static void round_trip(const avl_tokenizer_t *tokenizer, const char *text, size_t bytes) {
    int32_t *ids = NULL;
    size_t count = 0;
    if (avl_tokenizer_encode(tokenizer, text, bytes, true, &ids, &count) != AVL_OK)
        return;
    avl_detokenizer_t *detokenizer = NULL;
    const char *piece = NULL;
    if (avl_detokenizer_create(tokenizer, &detokenizer) != AVL_OK)
        abort();
    for (size_t i = 0; i < count; i++) {
        check(ids[i] >= 0);
        if (avl_detokenizer_add(detokenizer, ids[i], &piece) != AVL_OK)
            break;
        check(avl_utf8_valid(piece, avl_detokenizer_bytes(detokenizer)));
    }
    if (avl_detokenizer_finish(detokenizer, &piece) == AVL_OK)
        check(avl_utf8_valid(piece, avl_detokenizer_bytes(detokenizer)));
    avl_detokenizer_destroy(detokenizer);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *json = (const char *)data, *config = NULL, *text = json;
    size_t json_bytes = strnlen(json, size), config_bytes = 0, text_bytes = size;
    if (json_bytes < size) {
        config = json + json_bytes + 1;
        config_bytes = strnlen(config, size - json_bytes - 1);
        text = config;
        text_bytes = size - json_bytes - 1;
        if (config_bytes < text_bytes) {
            text += config_bytes + 1;
            text_bytes -= config_bytes + 1;
        }
        if (config_bytes == 0)
            config = NULL;
    }
    avl_tokenizer_t *tokenizer = NULL;
    if (avl_tokenizer_parse(json, json_bytes, config, config_bytes, &tokenizer) != AVL_OK)
        return 0;
    round_trip(tokenizer, text, text_bytes < TEXT_BYTES_MAX ? text_bytes : TEXT_BYTES_MAX);
    avl_tokenizer_close(tokenizer);
    return 0;
}
