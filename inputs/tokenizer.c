/* inputs/tokenizer.c: opening a tokenizer, and the way of a text through its parts. Added tokens
 * are cut out first from the raw text, then, after each segment between them was normalized, from
 * the normalized one. */
#include "inputs/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

/* The largest published tokenizer.json has 33 MB. */
#define FILE_BYTES_MAX ((size_t)256 << 20)
/* Backtracking steps and stack of one match: thousands of times what the known expressions need. */
#define MATCH_STEPS_MAX 50000000u
#define MATCH_STACK_BYTES (4u << 20)

/* --- opening --- */

static avl_status_t parse_json(const char *json, size_t bytes, size_t flags, json_t **root_p) {
    json_error_t error;
    json_t *root = json_loadb(json, bytes, flags | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (root == NULL)
        return avl_fail(json_error_code(&error) == json_error_out_of_memory ? AVL_ERR_MEMORY
                                                                            : AVL_ERR_DATA,
                        "line %d, column %d: %s", error.line, error.column, error.text);
    *root_p = root;
    return AVL_OK;
}

avl_status_t avl_tokenizer_json(const char *json, size_t bytes, json_t **root_p) {
    return parse_json(json, bytes, 0, root_p);
}

avl_status_t avl_tokenizer_config_json(const char *json, size_t bytes, json_t **root_p) {
    return parse_json(json, bytes, JSON_DECODE_INT_AS_REAL, root_p);
}

/* Makes the tries. What is matched in normalized text is itself normalized first. */
static avl_status_t index_added(avl_tokenizer_t *tokenizer) {
    avl_vocab_t *vocab = &tokenizer->vocab;
    avl_encode_work_t work;
    AVL_TRY(avl_encode_work_init(&work, tokenizer, AVL_ADDED_TOKEN_BYTES_MAX));
    avl_status_t status = AVL_OK;
    size_t count = vocab->listed_special_count + vocab->listed_plain_count;
    for (size_t i = 0; i < count && status == AVL_OK; i++) {
        const avl_added_token_t *token =
            i < vocab->listed_special_count ? &vocab->listed_special[i]
                                            : &vocab->listed_plain[i - vocab->listed_special_count];
        if (!token->normalized) {
            status = avl_trie_add(&vocab->raw, token->content, token->bytes, token->id);
            continue;
        }
        const char *text = NULL;
        size_t bytes = 0;
        status = avl_normalize(&work, token->content, token->bytes, &text, &bytes);
        if (status == AVL_OK && bytes > 0)
            status = avl_trie_add(&vocab->normalized, text, bytes, token->id);
    }
    avl_encode_work_free(&work);
    return status;
}

avl_status_t avl_tokenizer_parse(const char *json, size_t json_bytes, const char *config_json,
                                 size_t config_bytes, avl_tokenizer_t **tokenizer_p) {
    json_t *root = NULL, *config = NULL;
    avl_tokenizer_t *tokenizer = NULL;
    avl_status_t status;
    AVL_TRY_GOTO(status, avl_alloc(1, sizeof *tokenizer, "tokenizer", &tokenizer), out);
    status = avl_tokenizer_json(json, json_bytes, &root);
    if (status == AVL_OK)
        status = avl_tokenizer_read(tokenizer, root);
    json_decref(root);
    if (status != AVL_OK) {
        status = avl_fail_in(status, "tokenizer.json");
        goto out;
    }
    if (config_json != NULL) {
        status = avl_tokenizer_config_json(config_json, config_bytes, &config);
        if (status == AVL_OK)
            status = avl_tokenizer_apply_config(tokenizer, config);
        json_decref(config);
        if (status != AVL_OK) {
            status = avl_fail_in(status, "tokenizer_config.json");
            goto out;
        }
    }
    AVL_TRY_GOTO(status, index_added(tokenizer), out);
    *tokenizer_p = tokenizer;
    tokenizer = NULL;
out:
    avl_tokenizer_close(tokenizer);
    return status;
}

avl_status_t avl_tokenizer_file(const char *directory, const char *name, char **bytes_p,
                                size_t *count_p) {
    return avl_file_read(directory, name, FILE_BYTES_MAX, bytes_p, count_p);
}

avl_status_t avl_tokenizer_open(const char *directory, avl_tokenizer_t **tokenizer_p) {
    char *json = NULL, *config = NULL;
    size_t json_bytes = 0, config_bytes = 0;
    AVL_TRY(avl_tokenizer_file(directory, "tokenizer.json", &json, &json_bytes));
    avl_status_t status =
        avl_tokenizer_file(directory, "tokenizer_config.json", &config, &config_bytes);
    if (status == AVL_OK || status == AVL_ERR_NOT_FOUND) { /* a directory may do without one */
        status = avl_tokenizer_parse(json, json_bytes, config, config_bytes, tokenizer_p);
        if (status != AVL_OK)
            status = avl_fail_in(status, "%s", directory);
    }
    free(json);
    free(config);
    return status;
}

void avl_tokenizer_close(avl_tokenizer_t *tokenizer) {
    if (tokenizer == NULL)
        return;
    /* A part whose reading failed half-way lies behind the counted ones. */
    for (size_t i = 0; i < AVL_PARTS_MAX; i++) {
        avl_pattern_free(&tokenizer->ops[i].pattern);
        free(tokenizer->ops[i].content);
        avl_pattern_free(&tokenizer->steps[i].pattern);
        avl_pattern_free(&tokenizer->stages[i].pattern);
        free(tokenizer->stages[i].content);
    }
    avl_vocab_free(&tokenizer->vocab);
    free(tokenizer->before);
    free(tokenizer->after);
    free(tokenizer);
}

/* --- asking --- */

int32_t avl_tokenizer_find(const avl_tokenizer_t *tokenizer, const char *token) {
    int32_t index = avl_vocab_find(&tokenizer->vocab, token, strlen(token));
    return index < 0 ? -1 : tokenizer->vocab.tokens[index].id;
}

const char *avl_tokenizer_token(const avl_tokenizer_t *tokenizer, int32_t id) {
    const avl_token_t *token = avl_vocab_token(&tokenizer->vocab, id);
    return token == NULL ? NULL : avl_vocab_spelling(&tokenizer->vocab, token);
}

int32_t avl_tokenizer_id_limit(const avl_tokenizer_t *tokenizer) {
    return (int32_t)tokenizer->vocab.id_limit;
}

/* --- encoding --- */

avl_status_t avl_encode_work_init(avl_encode_work_t *work, const avl_tokenizer_t *tokenizer,
                                  size_t text_bytes) {
    *work = (avl_encode_work_t){.tokenizer = tokenizer};
    /* Normal forms grow a text elevenfold at most; this also bounds what replacing can do. */
    work->text_limit = text_bytes * 64 + 65536;
    work->match_data = pcre2_match_data_create(1, NULL);
    work->match_context = pcre2_match_context_create(NULL);
    work->jit_stack = pcre2_jit_stack_create(32768, MATCH_STACK_BYTES, NULL);
    if (work->match_data == NULL || work->match_context == NULL || work->jit_stack == NULL) {
        avl_encode_work_free(work);
        return avl_fail(AVL_ERR_MEMORY, "tokenizer: no memory for matching");
    }
    pcre2_set_match_limit(work->match_context, MATCH_STEPS_MAX);
    pcre2_jit_stack_assign(work->match_context, NULL, work->jit_stack);
    return AVL_OK;
}

void avl_encode_work_free(avl_encode_work_t *work) {
    pcre2_match_data_free(work->match_data);
    pcre2_match_context_free(work->match_context);
    pcre2_jit_stack_free(work->jit_stack);
    avl_text_free(&work->normal[0]);
    avl_text_free(&work->normal[1]);
    free(work->characters);
    for (size_t i = 0; i < AVL_PARTS_MAX; i++) {
        avl_text_free(&work->steps[i].text);
        avl_text_free(&work->steps[i].part);
        free(work->steps[i].spans);
    }
    free(work->symbols);
    free(work->heap);
    free(work->ids);
}

avl_status_t avl_encode_work_push(avl_encode_work_t *work, int32_t id) {
    AVL_TRY(avl_grow(work->id_count + 1, sizeof *work->ids, "token ids", &work->ids,
                     &work->id_capacity));
    work->ids[work->id_count++] = id;
    return AVL_OK;
}

/* Whether the characters around a match let it stand as a word of its own. */
static bool is_single_word(const char *text, size_t bytes, size_t start, size_t end) {
    size_t length;
    if (start > 0 &&
        avl_character_is_word(avl_utf8_decode(text + avl_utf8_before(text, start), &length)))
        return false;
    return end == bytes || !avl_character_is_word(avl_utf8_decode(text + end, &length));
}

static size_t spaces_before(const char *text, size_t start, size_t least) {
    size_t length;
    while (start > least) {
        size_t before = avl_utf8_before(text, start);
        if (!avl_character_is_space(avl_utf8_decode(text + before, &length)))
            break;
        start = before;
    }
    return start;
}

static size_t spaces_after(const char *text, size_t end, size_t bytes) {
    size_t length;
    while (end < bytes && avl_character_is_space(avl_utf8_decode(text + end, &length)))
        end += length;
    return end;
}

typedef avl_status_t segment_function(avl_encode_work_t *work, const char *text, size_t bytes,
                                      bool first);

/* Cuts the tokens of `trie` out of the text: their ids are pushed, what lies between goes to
 * `segment`. */
static avl_status_t cut_added(avl_encode_work_t *work, const avl_trie_t *trie, const char *text,
                              size_t bytes, bool first, segment_function *segment) {
    size_t done = 0; /* everything before was handed on */
    size_t spaces_end =
        0; /* end of the white space last walked over, so that none is walked twice */
    for (size_t at = 0; at < bytes;) {
        size_t length = 0;
        int32_t id = avl_trie_longest(trie, text + at, bytes - at, &length);
        if (id < 0) {
            at++;
            continue;
        }
        size_t start = at, end = at + length;
        at = end;
        const avl_added_token_t *token = avl_vocab_added(&work->tokenizer->vocab, id);
        if (token->single_word && !is_single_word(text, bytes, start, end))
            continue;
        if (token->lstrip && start > done)
            start = spaces_before(text, start, done);
        if (token->rstrip) {
            if (end > spaces_end)
                spaces_end = spaces_after(text, end, bytes);
            end = spaces_end;
        }
        if (done < start)
            AVL_TRY(segment(work, text + done, start - done, first && done == 0));
        AVL_TRY(avl_encode_work_push(work, id));
        done = end;
    }
    return done < bytes ? segment(work, text + done, bytes - done, first && done == 0) : AVL_OK;
}

static avl_status_t encode_normalized(avl_encode_work_t *work, const char *text, size_t bytes,
                                      bool first) {
    return avl_split(work, 0, text, bytes, first);
}

static avl_status_t encode_raw(avl_encode_work_t *work, const char *text, size_t bytes,
                               bool first) {
    AVL_TRY(avl_normalize(work, text, bytes, &text, &bytes));
    return cut_added(work, &work->tokenizer->vocab.normalized, text, bytes, first,
                     encode_normalized);
}

static avl_status_t push_all(avl_encode_work_t *work, const int32_t *ids, size_t count) {
    for (size_t i = 0; i < count; i++)
        AVL_TRY(avl_encode_work_push(work, ids[i]));
    return AVL_OK;
}

avl_status_t avl_tokenizer_encode(const avl_tokenizer_t *tokenizer, const char *text,
                                  size_t text_bytes, bool special, int32_t **ids_p,
                                  size_t *id_count_p) {
    if (text_bytes > INT32_MAX / 4)
        return avl_fail(AVL_ERR_TOO_LARGE, "a text of %zu bytes, the limit is %d", text_bytes,
                        INT32_MAX / 4);
    avl_encode_work_t work;
    avl_text_t valid = {0};
    AVL_TRY(avl_encode_work_init(&work, tokenizer, text_bytes));
    avl_status_t status = AVL_OK;
    if (!avl_utf8_valid(text, text_bytes)) {
        AVL_TRY_GOTO(status, avl_text_add_valid(&valid, text, text_bytes), out);
        text = valid.bytes;
        text_bytes = valid.count;
    }
    if (special)
        AVL_TRY_GOTO(status, push_all(&work, tokenizer->before, tokenizer->before_count), out);
    AVL_TRY_GOTO(status,
                 cut_added(&work, &tokenizer->vocab.raw, text, text_bytes, true, encode_raw), out);
    if (special)
        AVL_TRY_GOTO(status, push_all(&work, tokenizer->after, tokenizer->after_count), out);
    if (work.ids == NULL) /* an empty array is an array all the same */
        AVL_TRY_GOTO(status, avl_alloc(1, sizeof *work.ids, "token ids", &work.ids), out);
    *ids_p = work.ids;
    *id_count_p = work.id_count;
    work.ids = NULL;
out:
    avl_text_free(&valid);
    avl_encode_work_free(&work);
    return status;
}
