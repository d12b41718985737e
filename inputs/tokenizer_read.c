/* inputs/tokenizer_read.c: tokenizer.json, part by part. Whatever is missing, of a wrong type or
 * out of bounds is named with its place in the file; a part of a kind that avl does not do is
 * AVL_ERR_UNSUPPORTED with its name, because a tokenizer that skipped it would give other ids than
 * the model was trained with. */
#include "inputs/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define NESTING_MAX 8
/* Tokens that a post-processor may put on one side of a text; the known ones put one or two. */
#define POST_IDS_MAX 256

typedef struct section { /* where in the file we are */
    char name[120];
} section_t;

static section_t item_of(const section_t *section, const char *list, size_t index) {
    section_t item;
    snprintf(item.name, sizeof item.name, "%.60s.%s[%zu]", section->name, list, index);
    return item;
}

static const char *kind_of(const json_t *value) {
    static const char *const kinds[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return value == NULL ? "missing" : kinds[json_typeof(value)];
}

static avl_status_t want_string(const json_t *object, const section_t *section, const char *key,
                                const json_t **value_p) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value))
        return avl_fail(AVL_ERR_DATA, "%s.%s is %s, it must be a string", section->name, key,
                        kind_of(value));
    *value_p = value;
    return AVL_OK;
}

/* `fallback` stands for a missing or null value; -1: there must be one. */
static avl_status_t want_bool(const json_t *object, const section_t *section, const char *key,
                              int fallback, bool *value_p) {
    const json_t *value = json_object_get(object, key);
    if ((value == NULL || json_is_null(value)) && fallback >= 0) {
        *value_p = fallback != 0;
        return AVL_OK;
    }
    if (!json_is_boolean(value))
        return avl_fail(AVL_ERR_DATA, "%s.%s is %s, it must be true or false", section->name, key,
                        kind_of(value));
    *value_p = json_is_true(value);
    return AVL_OK;
}

static avl_status_t want_array(const json_t *object, const section_t *section, const char *key,
                               const json_t **value_p) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_array(value))
        return avl_fail(AVL_ERR_DATA, "%s.%s is %s, it must be an array", section->name, key,
                        kind_of(value));
    *value_p = value;
    return AVL_OK;
}

/* The `type` of a part, which must be an object. */
static avl_status_t want_type(const json_t *part, const section_t *section, const char **type_p) {
    if (!json_is_object(part))
        return avl_fail(AVL_ERR_DATA, "%s is %s, it must be an object", section->name,
                        kind_of(part));
    const json_t *type = NULL;
    AVL_TRY(want_string(part, section, "type", &type));
    *type_p = json_string_value(type);
    return AVL_OK;
}

static avl_status_t check_room(const section_t *section, size_t count) {
    if (count >= AVL_PARTS_MAX)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s: more than %d parts", section->name,
                        AVL_PARTS_MAX);
    return AVL_OK;
}

static avl_status_t unsupported(const section_t *section, const char *type) {
    return avl_fail(AVL_ERR_UNSUPPORTED, "%s: the type \"%.64s\" is not supported", section->name,
                    type);
}

static avl_status_t copy_string(const json_t *string, char **copy_p, size_t *bytes_p) {
    size_t bytes = json_string_length(string);
    char *copy = NULL;
    AVL_TRY(avl_alloc(bytes + 1, 1, "tokenizer", &copy));
    memcpy(copy, json_string_value(string), bytes);
    *copy_p = copy;
    *bytes_p = bytes;
    return AVL_OK;
}

/* {"String": "..."} or {"Regex": "..."} */
static avl_status_t read_pattern(const json_t *part, const section_t *section,
                                 avl_pattern_t *pattern_p) {
    const json_t *object = json_object_get(part, "pattern");
    const json_t *literal = json_object_get(object, "String");
    const json_t *regex = json_object_get(object, "Regex");
    avl_status_t status;
    if (json_is_string(literal) && regex == NULL)
        status =
            avl_pattern_literal(json_string_value(literal), json_string_length(literal), pattern_p);
    else if (json_is_string(regex) && literal == NULL)
        status =
            avl_pattern_compile(json_string_value(regex), json_string_length(regex), pattern_p);
    else
        return avl_fail(AVL_ERR_DATA, "%s.pattern must be an object with a String or a Regex",
                        section->name);
    return status == AVL_OK ? AVL_OK : avl_fail_in(status, "%s.pattern", section->name);
}

/* --- normalizers --- */

static avl_status_t read_normalizers(avl_tokenizer_t *tokenizer, const json_t *part,
                                     const section_t *section, int depth);

static avl_status_t read_normalizer_list(avl_tokenizer_t *tokenizer, const json_t *part,
                                         const section_t *section, int depth) {
    const json_t *list = NULL;
    AVL_TRY(want_array(part, section, "normalizers", &list));
    for (size_t i = 0; i < json_array_size(list); i++) {
        section_t item = item_of(section, "normalizers", i);
        AVL_TRY(read_normalizers(tokenizer, json_array_get(list, i), &item, depth + 1));
    }
    return AVL_OK;
}

static avl_status_t read_normalizers(avl_tokenizer_t *tokenizer, const json_t *part,
                                     const section_t *section, int depth) {
    static const struct {
        const char *type;
        avl_normalize_kind_t kind;
    } plain[] = {{"NFC", AVL_NORMALIZE_NFC},
                 {"NFD", AVL_NORMALIZE_NFD},
                 {"NFKC", AVL_NORMALIZE_NFKC},
                 {"NFKD", AVL_NORMALIZE_NFKD},
                 {"Lowercase", AVL_NORMALIZE_LOWERCASE},
                 {"StripAccents", AVL_NORMALIZE_STRIP_ACCENTS}};
    const char *type = NULL;
    AVL_TRY(want_type(part, section, &type));
    if (depth > NESTING_MAX)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s: sequences nested too deep", section->name);
    if (strcmp(type, "Sequence") == 0)
        return read_normalizer_list(tokenizer, part, section, depth);
    AVL_TRY(check_room(section, tokenizer->op_count));
    avl_normalize_op_t *op = &tokenizer->ops[tokenizer->op_count];
    const json_t *content = NULL;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (strcmp(type, plain[i].type) == 0) {
            op->kind = plain[i].kind;
            tokenizer->op_count++;
            return AVL_OK;
        }
    }
    if (strcmp(type, "Prepend") == 0) {
        op->kind = AVL_NORMALIZE_PREPEND;
        AVL_TRY(want_string(part, section, "prepend", &content));
    } else if (strcmp(type, "Replace") == 0) {
        op->kind = AVL_NORMALIZE_REPLACE;
        AVL_TRY(want_string(part, section, "content", &content));
        AVL_TRY(read_pattern(part, section, &op->pattern));
    } else if (strcmp(type, "Strip") == 0) {
        op->kind = AVL_NORMALIZE_STRIP;
        AVL_TRY(want_bool(part, section, "strip_left", -1, &op->left));
        AVL_TRY(want_bool(part, section, "strip_right", -1, &op->right));
    } else {
        return unsupported(section, type);
    }
    tokenizer->op_count++; /* from here on close frees it */
    return content != NULL ? copy_string(content, &op->content, &op->content_bytes) : AVL_OK;
}

/* --- pre-tokenizers --- */

/* The one character under `key`. */
static avl_status_t want_character(const json_t *part, const section_t *section, const char *key,
                                   const json_t **value_p) {
    const json_t *value = NULL;
    AVL_TRY(want_string(part, section, key, &value));
    size_t bytes = json_string_length(value), length = 0;
    if (bytes > 0)
        avl_utf8_decode(json_string_value(value), &length);
    if (bytes == 0 || length != bytes)
        return avl_fail(AVL_ERR_DATA, "%s.%s must be one character, it has %zu bytes",
                        section->name, key, bytes);
    *value_p = value;
    return AVL_OK;
}

/* Pre-tokenizer and decoder share these fields. */
static avl_status_t read_metaspace(const json_t *part, const section_t *section,
                                   const json_t **replacement_p, avl_prepend_scheme_t *scheme_p,
                                   bool *split_p) {
    static const char *const schemes[] = {"always", "first", "never"};
    AVL_TRY(want_character(part, section, "replacement", replacement_p));
    AVL_TRY(want_bool(part, section, "split", 1, split_p));
    *scheme_p = AVL_PREPEND_ALWAYS;
    const json_t *value = NULL;
    if (json_object_get(part, "prepend_scheme") != NULL) {
        AVL_TRY(want_string(part, section, "prepend_scheme", &value));
        size_t scheme = 0;
        while (scheme < 3 && strcmp(json_string_value(value), schemes[scheme]) != 0)
            scheme++;
        if (scheme == 3)
            return avl_fail(AVL_ERR_DATA,
                            "%s.prepend_scheme is \"%.32s\", not always, first or never",
                            section->name, json_string_value(value));
        *scheme_p = (avl_prepend_scheme_t)scheme;
    }
    bool prefix;
    AVL_TRY(want_bool(part, section, "add_prefix_space", 1, &prefix));
    if (!prefix && *scheme_p != AVL_PREPEND_NEVER)
        return avl_fail(AVL_ERR_DATA, "%s: add_prefix_space is false, but prepend_scheme is \"%s\"",
                        section->name, schemes[*scheme_p]);
    return AVL_OK;
}

static avl_status_t read_split(const json_t *part, const section_t *section,
                               avl_split_step_t *step) {
    static const char *const behaviors[] = {"Isolated", "Removed", "Contiguous",
                                            "MergedWithPrevious", "MergedWithNext"};
    const json_t *value = NULL;
    AVL_TRY(want_string(part, section, "behavior", &value));
    AVL_TRY(want_bool(part, section, "invert", -1, &step->invert));
    size_t behavior = 0;
    while (behavior < 5 && strcmp(json_string_value(value), behaviors[behavior]) != 0)
        behavior++;
    if (behavior == 5)
        return avl_fail(AVL_ERR_DATA, "%s.behavior: \"%.32s\" is none", section->name,
                        json_string_value(value));
    step->kind = AVL_SPLIT_PATTERN;
    step->behavior = (avl_split_behavior_t)behavior;
    return read_pattern(part, section, &step->pattern);
}

static avl_status_t read_byte_level(const json_t *part, const section_t *section,
                                    avl_split_step_t *step) {
    /* GPT-2's expression, built into the reference. */
    static const char gpt2[] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    step->kind = AVL_SPLIT_BYTE_LEVEL;
    AVL_TRY(want_bool(part, section, "add_prefix_space", -1, &step->add_prefix_space));
    AVL_TRY(want_bool(part, section, "use_regex", 1, &step->split));
    return step->split ? avl_pattern_compile(gpt2, sizeof gpt2 - 1, &step->pattern) : AVL_OK;
}

static avl_status_t read_pre_tokenizers(avl_tokenizer_t *tokenizer, const json_t *part,
                                        const section_t *section, int depth) {
    const char *type = NULL;
    AVL_TRY(want_type(part, section, &type));
    if (depth > NESTING_MAX)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s: sequences nested too deep", section->name);
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = NULL;
        AVL_TRY(want_array(part, section, "pretokenizers", &list));
        for (size_t i = 0; i < json_array_size(list); i++) {
            section_t item = item_of(section, "pretokenizers", i);
            AVL_TRY(read_pre_tokenizers(tokenizer, json_array_get(list, i), &item, depth + 1));
        }
        return AVL_OK;
    }
    AVL_TRY(check_room(section, tokenizer->step_count));
    avl_split_step_t *step = &tokenizer->steps[tokenizer->step_count];
    if (strcmp(type, "Split") == 0) {
        AVL_TRY(read_split(part, section, step));
    } else if (strcmp(type, "ByteLevel") == 0) {
        AVL_TRY(read_byte_level(part, section, step));
    } else if (strcmp(type, "Digits") == 0) {
        bool individual;
        AVL_TRY(want_bool(part, section, "individual_digits", -1, &individual));
        step->kind = AVL_SPLIT_DIGITS;
        step->behavior = individual ? AVL_SPLIT_ISOLATED : AVL_SPLIT_CONTIGUOUS;
    } else if (strcmp(type, "Metaspace") == 0) {
        const json_t *replacement = NULL;
        step->kind = AVL_SPLIT_METASPACE;
        AVL_TRY(read_metaspace(part, section, &replacement, &step->prepend, &step->split));
        step->replacement_bytes = json_string_length(replacement);
        memcpy(step->replacement, json_string_value(replacement), step->replacement_bytes);
        AVL_TRY(avl_pattern_literal(step->replacement, step->replacement_bytes, &step->pattern));
    } else {
        return unsupported(section, type);
    }
    tokenizer->step_count++;
    return AVL_OK;
}

/* --- decoders --- */

static avl_status_t read_decode_stage(const json_t *part, const section_t *section,
                                      const char *type, avl_decode_stage_t *stage,
                                      const json_t **content_p) {
    if (strcmp(type, "Replace") == 0) {
        stage->kind = AVL_DECODE_REPLACE;
        AVL_TRY(want_string(part, section, "content", content_p));
        return read_pattern(part, section, &stage->pattern);
    }
    if (strcmp(type, "ByteFallback") == 0) {
        stage->kind = AVL_DECODE_BYTE_FALLBACK;
        return AVL_OK;
    }
    if (strcmp(type, "Fuse") == 0) {
        stage->kind = AVL_DECODE_FUSE;
        return AVL_OK;
    }
    if (strcmp(type, "ByteLevel") == 0) {
        stage->kind = AVL_DECODE_BYTE_LEVEL;
        return AVL_OK;
    }
    if (strcmp(type, "Metaspace") == 0) {
        avl_prepend_scheme_t scheme;
        bool split;
        stage->kind = AVL_DECODE_METASPACE;
        AVL_TRY(read_metaspace(part, section, content_p, &scheme, &split));
        stage->drop_first = scheme != AVL_PREPEND_NEVER;
        return AVL_OK;
    }
    if (strcmp(type, "Strip") != 0)
        return unsupported(section, type);
    stage->kind = AVL_DECODE_STRIP;
    AVL_TRY(want_character(part, section, "content", content_p));
    const json_t *start = json_object_get(part, "start"), *stop = json_object_get(part, "stop");
    if (!json_is_integer(start) || !json_is_integer(stop) || json_integer_value(start) < 0 ||
        json_integer_value(stop) < 0)
        return avl_fail(AVL_ERR_DATA, "%s: start and stop must be integers from 0 on",
                        section->name);
    stage->start = (size_t)json_integer_value(start);
    stage->stop = (size_t)json_integer_value(stop);
    return AVL_OK;
}

/* After everything became one string only Strip can go on piece by piece, as streaming needs it. */
static avl_status_t check_order(const avl_tokenizer_t *tokenizer, avl_decode_kind_t kind,
                                const section_t *section, const char *type) {
    bool fused = false;
    for (size_t i = 0; i < tokenizer->stage_count; i++)
        fused = fused || tokenizer->stages[i].kind == AVL_DECODE_FUSE ||
                tokenizer->stages[i].kind == AVL_DECODE_BYTE_LEVEL;
    if (fused && kind != AVL_DECODE_STRIP && kind != AVL_DECODE_FUSE)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s: %s after Fuse or ByteLevel is not supported",
                        section->name, type);
    return AVL_OK;
}

static avl_status_t read_decoders(avl_tokenizer_t *tokenizer, const json_t *part,
                                  const section_t *section, int depth) {
    const char *type = NULL;
    AVL_TRY(want_type(part, section, &type));
    if (depth > NESTING_MAX)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s: sequences nested too deep", section->name);
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = NULL;
        AVL_TRY(want_array(part, section, "decoders", &list));
        for (size_t i = 0; i < json_array_size(list); i++) {
            section_t item = item_of(section, "decoders", i);
            AVL_TRY(read_decoders(tokenizer, json_array_get(list, i), &item, depth + 1));
        }
        return AVL_OK;
    }
    AVL_TRY(check_room(section, tokenizer->stage_count));
    avl_decode_stage_t *stage = &tokenizer->stages[tokenizer->stage_count];
    const json_t *content = NULL;
    AVL_TRY(read_decode_stage(part, section, type, stage, &content));
    avl_status_t status = check_order(tokenizer, stage->kind, section, type);
    tokenizer->stage_count++; /* from here on close frees it */
    if (status == AVL_OK && content != NULL)
        status = copy_string(content, &stage->content, &stage->content_bytes);
    return status;
}

/* --- the post-processor --- */

static avl_status_t append_ids(int32_t **ids, size_t *count, const int32_t *more,
                               size_t more_count) {
    int32_t *joined = NULL;
    if (*count + more_count > POST_IDS_MAX)
        return avl_fail(AVL_ERR_UNSUPPORTED, "post_processor adds more than %d tokens",
                        POST_IDS_MAX);
    AVL_TRY(avl_alloc(*count + more_count, sizeof *joined, "post-processor", &joined));
    if (*count > 0)
        memcpy(joined, *ids, *count * sizeof *joined);
    if (more_count > 0)
        memcpy(joined + *count, more, more_count * sizeof *joined);
    free(*ids);
    *ids = joined;
    *count += more_count;
    return AVL_OK;
}

/* Adds the ids that a template's special token stands for. */
static avl_status_t add_special(const json_t *part, const section_t *section, const json_t *piece,
                                int32_t **ids, size_t *count) {
    const char *name = json_string_value(json_object_get(piece, "id"));
    const json_t *token =
        name == NULL ? NULL : json_object_get(json_object_get(part, "special_tokens"), name);
    const json_t *list = json_object_get(token, "ids");
    if (!json_is_array(list))
        return avl_fail(AVL_ERR_DATA, "%s: the template's token \"%.64s\" is not in special_tokens",
                        section->name, name == NULL ? "" : name);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > AVL_TOKEN_ID_MAX)
            return avl_fail(AVL_ERR_DATA, "%s.special_tokens: \"%.64s\" has an id that is none",
                            section->name, name);
        int32_t value = (int32_t)json_integer_value(id);
        AVL_TRY(append_ids(ids, count, &value, 1));
    }
    return AVL_OK;
}

static avl_status_t read_template(avl_tokenizer_t *tokenizer, const json_t *part,
                                  const section_t *section) {
    const json_t *single = NULL;
    AVL_TRY(want_array(part, section, "single", &single));
    if (json_array_size(single) > 64)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s.single has more than 64 pieces", section->name);
    int32_t *before = NULL, *after = NULL;
    size_t before_count = 0, after_count = 0;
    bool seen = false;
    avl_status_t status = AVL_OK;
    for (size_t i = 0; i < json_array_size(single) && status == AVL_OK; i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *sequence = json_object_get(piece, "Sequence");
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *id = json_string_value(json_object_get(sequence, "id"));
        if (special != NULL)
            status = add_special(part, section, special, seen ? &after : &before,
                                 seen ? &after_count : &before_count);
        else if (id == NULL || strcmp(id, "A") != 0 || seen)
            status =
                avl_fail(AVL_ERR_DATA, "%s.single[%zu] is neither a token nor the sequence A once",
                         section->name, i);
        else
            seen = true;
    }
    if (status == AVL_OK && !seen)
        status = avl_fail(AVL_ERR_DATA, "%s.single lacks the sequence A", section->name);
    /* A later template goes around the earlier ones. */
    if (status == AVL_OK)
        status = append_ids(&before, &before_count, tokenizer->before, tokenizer->before_count);
    if (status == AVL_OK)
        status = append_ids(&tokenizer->after, &tokenizer->after_count, after, after_count);
    if (status == AVL_OK) {
        int32_t *old = tokenizer->before;
        tokenizer->before = before;
        tokenizer->before_count = before_count;
        before = old;
    }
    free(before);
    free(after);
    return status;
}

static avl_status_t read_post_processors(avl_tokenizer_t *tokenizer, const json_t *part,
                                         const section_t *section, int depth) {
    const char *type = NULL;
    AVL_TRY(want_type(part, section, &type));
    if (depth > NESTING_MAX)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s: sequences nested too deep", section->name);
    if (strcmp(type, "ByteLevel") == 0)
        return AVL_OK; /* moves offsets alone */
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(tokenizer, part, section);
    if (strcmp(type, "Sequence") != 0)
        return unsupported(section, type);
    const json_t *list = NULL;
    AVL_TRY(want_array(part, section, "processors", &list));
    if (json_array_size(list) > AVL_PARTS_MAX)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%s: more than %d parts", section->name,
                        AVL_PARTS_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        section_t item = item_of(section, "processors", i);
        AVL_TRY(read_post_processors(tokenizer, json_array_get(list, i), &item, depth + 1));
    }
    return AVL_OK;
}

/* --- the model --- */

static avl_status_t read_vocab(avl_tokenizer_t *tokenizer, json_t *vocab) {
    if (!json_is_object(vocab))
        return avl_fail(AVL_ERR_DATA, "model.vocab is %s, it must be an object", kind_of(vocab));
    if (json_object_size(vocab) == 0)
        return avl_fail(AVL_ERR_DATA, "model.vocab is empty");
    AVL_TRY(avl_vocab_init(&tokenizer->vocab, json_object_size(vocab)));
    const char *spelling;
    json_t *id;
    json_object_foreach(vocab, spelling, id) {
        if (!json_is_integer(id))
            return avl_fail(AVL_ERR_DATA, "model.vocab: \"%.64s\" has %s for an id", spelling,
                            kind_of(id));
        AVL_TRY(avl_vocab_add_model(&tokenizer->vocab, spelling, strlen(spelling),
                                    json_integer_value(id)));
    }
    return AVL_OK;
}

/* "a b" as two pieces. */
static avl_status_t split_merge(const char *merge, size_t bytes, size_t index, size_t *space_p) {
    const char *space = memchr(merge, ' ', bytes);
    if (space == NULL || memchr(space + 1, ' ', bytes - (size_t)(space + 1 - merge)) != NULL)
        return avl_fail(AVL_ERR_DATA, "model.merges[%zu] is \"%.64s\", not two pieces", index,
                        merge);
    *space_p = (size_t)(space - merge);
    return AVL_OK;
}

static avl_status_t read_merge(avl_vocab_t *vocab, const json_t *merge, size_t index, bool pairs,
                               uint32_t rank, avl_text_t *scratch) {
    if (pairs) {
        const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
        if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right))
            return avl_fail(AVL_ERR_DATA, "model.merges[%zu] is %s, it must be a pair of strings",
                            index, kind_of(merge));
        return avl_vocab_add_merge(vocab, json_string_value(left), json_string_length(left),
                                   json_string_value(right), json_string_length(right), rank,
                                   scratch);
    }
    const char *text = json_string_value(merge);
    if (text == NULL)
        return avl_fail(AVL_ERR_DATA, "model.merges[%zu] is %s, it must be a string", index,
                        kind_of(merge));
    size_t bytes = json_string_length(merge), space = 0;
    AVL_TRY(split_merge(text, bytes, index, &space));
    return avl_vocab_add_merge(vocab, text, space, text + space + 1, bytes - space - 1, rank,
                               scratch);
}

static avl_status_t read_merges(avl_tokenizer_t *tokenizer, const json_t *merges) {
    if (!json_is_array(merges))
        return avl_fail(AVL_ERR_DATA, "model.merges is %s, it must be an array", kind_of(merges));
    size_t count = json_array_size(merges);
    AVL_TRY(avl_vocab_index(&tokenizer->vocab, count));
    bool pairs = json_is_array(json_array_get(merges, 0));
    avl_text_t scratch = {0};
    avl_status_t status = AVL_OK;
    uint32_t rank = 0;
    for (size_t i = 0; i < count && status == AVL_OK; i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *text = json_string_value(merge);
        if (!pairs && text != NULL && strncmp(text, "#version", 8) == 0)
            continue; /* the head line of merges.txt */
        status = read_merge(&tokenizer->vocab, merge, i, pairs, rank++, &scratch);
    }
    avl_text_free(&scratch);
    return status;
}

/* Options of BPE that no known model of these families uses must be off. */
static avl_status_t check_model_options(const json_t *model) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *affix = json_object_get(model, affixes[i]);
        if (affix != NULL && !json_is_null(affix) && json_string_length(affix) != 0)
            return avl_fail(AVL_ERR_UNSUPPORTED, "model.%s is not supported", affixes[i]);
        if (affix != NULL && !json_is_null(affix) && !json_is_string(affix))
            return avl_fail(AVL_ERR_DATA, "model.%s is %s, it must be a string or null", affixes[i],
                            kind_of(affix));
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout == NULL || json_is_null(dropout))
        return AVL_OK;
    if (!json_is_number(dropout))
        return avl_fail(AVL_ERR_DATA, "model.dropout is %s, it must be a number or null",
                        kind_of(dropout));
    if (json_number_value(dropout) != 0)
        return avl_fail(AVL_ERR_UNSUPPORTED, "model.dropout is %g: ids would be random",
                        json_number_value(dropout));
    return AVL_OK;
}

static avl_status_t read_model(avl_tokenizer_t *tokenizer, const json_t *model) {
    section_t section = {"model"};
    if (!json_is_object(model))
        return avl_fail(AVL_ERR_DATA, "model is %s, it must be an object", kind_of(model));
    if (json_object_get(model, "type") != NULL) { /* files from before 2021 have none */
        const char *type = NULL;
        AVL_TRY(want_type(model, &section, &type));
        if (strcmp(type, "BPE") != 0)
            return unsupported(&section, type);
    }
    AVL_TRY(check_model_options(model));
    AVL_TRY(want_bool(model, &section, "fuse_unk", 0, &tokenizer->fuse_unk));
    AVL_TRY(want_bool(model, &section, "byte_fallback", 0, &tokenizer->byte_fallback));
    AVL_TRY(want_bool(model, &section, "ignore_merges", 0, &tokenizer->ignore_merges));
    AVL_TRY(read_vocab(tokenizer, json_object_get(model, "vocab")));
    AVL_TRY(read_merges(tokenizer, json_object_get(model, "merges")));
    tokenizer->unk_id = -1;
    const json_t *unk = json_object_get(model, "unk_token");
    if (unk == NULL || json_is_null(unk))
        return AVL_OK;
    if (!json_is_string(unk))
        return avl_fail(AVL_ERR_DATA, "model.unk_token is %s, it must be a string or null",
                        kind_of(unk));
    tokenizer->unk_id =
        avl_vocab_model_id(&tokenizer->vocab, json_string_value(unk), json_string_length(unk));
    if (tokenizer->unk_id < 0)
        return avl_fail(AVL_ERR_DATA, "model.unk_token \"%.64s\" is not in model.vocab",
                        json_string_value(unk));
    return AVL_OK;
}

/* --- added tokens --- */

static avl_status_t read_added(avl_tokenizer_t *tokenizer, const json_t *list) {
    if (list == NULL || json_is_null(list))
        return AVL_OK;
    if (!json_is_array(list))
        return avl_fail(AVL_ERR_DATA, "added_tokens is %s, it must be an array", kind_of(list));
    section_t root = {"tokenizer"};
    for (size_t i = 0; i < json_array_size(list); i++) {
        section_t section = item_of(&root, "added_tokens", i);
        const json_t *item = json_array_get(list, i);
        const json_t *id = json_object_get(item, "id"), *content = NULL;
        avl_added_token_t token = {0};
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > AVL_TOKEN_ID_MAX)
            return avl_fail(AVL_ERR_DATA, "%s.id must be an integer from 0 to %d", section.name,
                            AVL_TOKEN_ID_MAX);
        token.id = (int32_t)json_integer_value(id);
        AVL_TRY(want_string(item, &section, "content", &content));
        AVL_TRY(want_bool(item, &section, "single_word", -1, &token.single_word));
        AVL_TRY(want_bool(item, &section, "lstrip", -1, &token.lstrip));
        AVL_TRY(want_bool(item, &section, "rstrip", -1, &token.rstrip));
        AVL_TRY(want_bool(item, &section, "normalized", -1, &token.normalized));
        AVL_TRY(want_bool(item, &section, "special", -1, &token.special));
        token.bytes = json_string_length(content);
        if (token.bytes > AVL_ADDED_TOKEN_BYTES_MAX)
            return avl_fail(AVL_ERR_UNSUPPORTED, "%s.content has %zu bytes, the limit is %d",
                            section.name, token.bytes, AVL_ADDED_TOKEN_BYTES_MAX);
        AVL_TRY(avl_copy_string(json_string_value(content), &token.content));
        /* A spelling with a NUL cannot be told by avl_tokenizer_token. */
        avl_status_t status =
            strlen(token.content) != token.bytes
                ? avl_fail(AVL_ERR_UNSUPPORTED, "%s.content has a NUL", section.name)
                : avl_vocab_add_tokens(&tokenizer->vocab, &token, 1);
        free(token.content);
        AVL_TRY(status);
    }
    return AVL_OK;
}

static avl_status_t read_version(const json_t *root) {
    const json_t *version = json_object_get(root, "version");
    if (version == NULL)
        return AVL_OK;
    if (!json_is_string(version) || strcmp(json_string_value(version), "1.0") != 0)
        return avl_fail(AVL_ERR_UNSUPPORTED, "version is \"%.32s\", avl reads 1.0",
                        json_is_string(version) ? json_string_value(version) : kind_of(version));
    return AVL_OK;
}

avl_status_t avl_tokenizer_read(avl_tokenizer_t *tokenizer, const json_t *root) {
    if (!json_is_object(root))
        return avl_fail(AVL_ERR_DATA, "the file is %s, it must be an object", kind_of(root));
    AVL_TRY(read_version(root));
    static const struct {
        section_t section;
        avl_status_t (*read)(avl_tokenizer_t *, const json_t *, const section_t *, int);
    } parts[] = {{{"normalizer"}, read_normalizers},
                 {{"pre_tokenizer"}, read_pre_tokenizers},
                 {{"post_processor"}, read_post_processors},
                 {{"decoder"}, read_decoders}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const json_t *part = json_object_get(root, parts[i].section.name);
        if (part != NULL && !json_is_null(part))
            AVL_TRY(parts[i].read(tokenizer, part, &parts[i].section, 0));
    }
    const json_t *decoder = json_object_get(root, "decoder");
    tokenizer->has_decoder = decoder != NULL && !json_is_null(decoder);
    AVL_TRY(read_model(tokenizer, json_object_get(root, "model")));
    return read_added(tokenizer, json_object_get(root, "added_tokens"));
}
