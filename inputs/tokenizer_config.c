/* inputs/tokenizer_config.c: what tokenizer_config.json changes about a tokenizer, as loading the
 * directory with AutoTokenizer of `transformers` does:
 *
 *  - the classes of the LLaMA family replace the post-processor by bos and eos, as add_bos_token
 *    and add_eos_token say;
 *  - tokens of added_tokens_decoder and special tokens named here that tokenizer.json lacks are
 *    added;
 *  - clean_up_tokenization_spaces changes what decoding gives.
 *
 * Not read: add_prefix_space (it makes the reference convert tokenizer.model instead of reading
 * tokenizer.json), and special_tokens_map.json with added_tokens.json (read by the reference for
 * directories from before 2023 only). */
#include "inputs/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static bool llama_class(const char *class_name) {
    static const char *const classes[] = {"LlamaTokenizer",     "LlamaTokenizerFast",
                                          "CodeLlamaTokenizer", "CodeLlamaTokenizerFast",
                                          "GemmaTokenizer",     "GemmaTokenizerFast"};
    for (size_t i = 0; class_name != NULL && i < sizeof classes / sizeof *classes; i++) {
        if (strcmp(class_name, classes[i]) == 0)
            return true;
    }
    return false;
}

static avl_status_t read_flag(const json_t *config, const char *key, bool fallback, bool *flag_p) {
    const json_t *value = json_object_get(config, key);
    if (value != NULL && !json_is_null(value) && !json_is_boolean(value))
        return avl_fail(AVL_ERR_DATA, "%s must be true or false", key);
    *flag_p = json_is_boolean(value) ? json_is_true(value) : fallback;
    return AVL_OK;
}

/* A token given as a string, or as an object with `content` and flags. Content is borrowed from the
 * JSON. */
static avl_status_t read_token(const json_t *value, const char *name, bool special,
                               avl_added_token_t *token_p) {
    const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
    if (!json_is_string(content))
        return avl_fail(AVL_ERR_DATA, "%s must be a string or an object with one in content", name);
    avl_added_token_t token = {.id = -1, .bytes = json_string_length(content)};
    /* Read-only use: avl_vocab_add_tokens copies it. */
    memcpy(&token.content, &(const char *){json_string_value(content)}, sizeof token.content);
    AVL_TRY(read_flag(value, "special", special, &token.special));
    token.special = token.special || special;
    AVL_TRY(read_flag(value, "single_word", false, &token.single_word));
    AVL_TRY(read_flag(value, "lstrip", false, &token.lstrip));
    AVL_TRY(read_flag(value, "rstrip", false, &token.rstrip));
    AVL_TRY(read_flag(value, "normalized", !token.special, &token.normalized));
    if (token.bytes > AVL_ADDED_TOKEN_BYTES_MAX || strlen(token.content) != token.bytes)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s has %zu bytes, the limit is %d, or has a NUL",
                        name, token.bytes, AVL_ADDED_TOKEN_BYTES_MAX);
    *token_p = token;
    return AVL_OK;
}

typedef struct numbered {
    long id;
    const json_t *value;
} numbered_t;

static int by_number(const void *a, const void *b) {
    const numbered_t *first = a, *second = b;
    return (first->id > second->id) - (first->id < second->id);
}

/* added_tokens_decoder: {"32000": {...}, ...}, in the order of its numbers. */
static avl_status_t add_decoder_tokens(avl_tokenizer_t *tokenizer, json_t *tokens) {
    if (tokens == NULL || json_is_null(tokens))
        return AVL_OK;
    if (!json_is_object(tokens))
        return avl_fail(AVL_ERR_DATA, "added_tokens_decoder must be an object");
    numbered_t *sorted = NULL;
    AVL_TRY(avl_alloc(json_object_size(tokens), sizeof *sorted, "added tokens", &sorted));
    size_t count = 0;
    avl_status_t status = AVL_OK;
    const char *key;
    json_t *value;
    json_object_foreach(tokens, key, value) {
        char *end;
        long id = strtol(key, &end, 10);
        if (*end != 0 || end == key || id < 0 || id > AVL_TOKEN_ID_MAX || !json_is_object(value)) {
            status = avl_fail(AVL_ERR_DATA, "added_tokens_decoder: \"%.32s\" is no id with a token",
                              key);
            goto out;
        }
        sorted[count++] = (numbered_t){.id = id, .value = value};
    }
    qsort(sorted, count, sizeof *sorted, by_number);
    for (size_t i = 0; i < count; i++) {
        avl_added_token_t token;
        AVL_TRY_GOTO(status, read_token(sorted[i].value, "added_tokens_decoder", false, &token),
                     out);
        token.id = (int32_t)sorted[i].id;
        AVL_TRY_GOTO(status, avl_vocab_add_tokens(&tokenizer->vocab, &token, 1), out);
    }
out:
    free(sorted);
    return status;
}

/* Adds a special token that no added token is yet. */
static avl_status_t add_named(avl_tokenizer_t *tokenizer, const json_t *value, const char *name) {
    if (value == NULL || json_is_null(value))
        return AVL_OK;
    avl_added_token_t token;
    AVL_TRY(read_token(value, name, true, &token));
    int32_t index = avl_vocab_find(&tokenizer->vocab, token.content, token.bytes);
    if (index >= 0 && avl_vocab_added(&tokenizer->vocab, tokenizer->vocab.tokens[index].id) != NULL)
        return AVL_OK;
    return avl_vocab_add_tokens(&tokenizer->vocab, &token, 1);
}

static avl_status_t add_named_tokens(avl_tokenizer_t *tokenizer, const json_t *config) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        AVL_TRY(add_named(tokenizer, json_object_get(config, names[i]), names[i]));
    const json_t *more = json_object_get(config, "additional_special_tokens");
    for (size_t i = 0; json_is_array(more) && i < json_array_size(more); i++)
        AVL_TRY(add_named(tokenizer, json_array_get(more, i), "additional_special_tokens"));
    return AVL_OK;
}

/* One id, or none when the flag is off, in place of what the post-processor had. */
static avl_status_t replace_id(avl_tokenizer_t *tokenizer, const json_t *config, const char *flag,
                               bool flag_default, const char *name, const char *spelling_default,
                               int32_t **ids, size_t *count) {
    bool wanted;
    AVL_TRY(read_flag(config, flag, flag_default, &wanted));
    free(*ids);
    *ids = NULL;
    *count = 0;
    if (!wanted)
        return AVL_OK;
    const json_t *value = json_object_get(config, name);
    avl_added_token_t token = {.bytes = strlen(spelling_default)};
    memcpy(&token.content, &spelling_default, sizeof token.content);
    if (value != NULL)
        AVL_TRY(read_token(value, name, true, &token));
    int32_t index = avl_vocab_find(&tokenizer->vocab, token.content, token.bytes);
    if (index < 0)
        return avl_fail(AVL_ERR_DATA, "%s \"%.64s\" is no token of tokenizer.json", name,
                        token.content);
    AVL_TRY(avl_alloc(1, sizeof **ids, "post-processor", ids));
    (*ids)[0] = tokenizer->vocab.tokens[index].id;
    *count = 1;
    return AVL_OK;
}

avl_status_t avl_tokenizer_apply_config(avl_tokenizer_t *tokenizer, const json_t *config) {
    if (!json_is_object(config))
        return avl_fail(AVL_ERR_DATA, "the file must be an object");
    bool split_special;
    AVL_TRY(read_flag(config, "split_special_tokens", false, &split_special));
    if (split_special)
        return avl_fail(AVL_ERR_UNSUPPORTED, "split_special_tokens is not supported");
    AVL_TRY(read_flag(config, "clean_up_tokenization_spaces", false, &tokenizer->clean_up));
    AVL_TRY(add_decoder_tokens(tokenizer, json_object_get(config, "added_tokens_decoder")));
    AVL_TRY(add_named_tokens(tokenizer, config));
    if (!llama_class(json_string_value(json_object_get(config, "tokenizer_class"))))
        return AVL_OK;
    AVL_TRY(replace_id(tokenizer, config, "add_bos_token", true, "bos_token", "<s>",
                       &tokenizer->before, &tokenizer->before_count));
    return replace_id(tokenizer, config, "add_eos_token", false, "eos_token", "</s>",
                      &tokenizer->after, &tokenizer->after_count);
}
