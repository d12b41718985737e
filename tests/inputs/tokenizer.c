/* tests/inputs/tokenizer.c: ids and texts of every kind of tokenizer against the Hugging Face
 * libraries, from the files that tools/reference/tokenizer.py writes; streaming; texts that could
 * take long. */
#include "inputs/tokenizer.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "inputs/tokenizer_parts.h"

#define DATA AVL_SOURCE_DIR "/tests/inputs/data/tokenizer/"

typedef struct reader {
    unsigned char *bytes;
    size_t count, at;
} reader_t;

static reader_t open_file(const char *path) {
    reader_t reader = {0};
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    reader.count = (size_t)ftell(file);
    rewind(file);
    reader.bytes = malloc(reader.count);
    assert_non_null(reader.bytes);
    assert_int_equal(fread(reader.bytes, 1, reader.count, file), reader.count);
    fclose(file);
    return reader;
}

static uint64_t read_number(reader_t *reader, size_t bytes) {
    uint64_t value = 0;
    assert_true(reader->count - reader->at >= bytes);
    for (size_t i = bytes; i-- > 0;)
        value = value << 8 | reader->bytes[reader->at + i];
    reader->at += bytes;
    return value;
}

static uint64_t fnv(const char *bytes, size_t count) {
    uint64_t value = 0xCBF29CE484222325u;
    for (size_t i = 0; i < count; i++)
        value = (value ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return value;
}

/* The whole decoded text, in `out`; every piece on its way must be UTF-8. */
static void decode(const avl_tokenizer_t *tokenizer, const int32_t *ids, size_t count,
                   avl_text_t *out) {
    avl_detokenizer_t *detokenizer = NULL;
    const char *piece = NULL;
    out->count = 0;
    assert_int_equal(avl_detokenizer_create(tokenizer, &detokenizer), AVL_OK);
    for (size_t i = 0; i <= count; i++) {
        if (i < count)
            assert_int_equal(avl_detokenizer_add(detokenizer, ids[i], &piece), AVL_OK);
        else
            assert_int_equal(avl_detokenizer_finish(detokenizer, &piece), AVL_OK);
        size_t bytes = avl_detokenizer_bytes(detokenizer);
        assert_int_equal(piece[bytes], 0);
        assert_true(avl_utf8_valid(piece, bytes));
        assert_int_equal(avl_text_add(out, piece, bytes), AVL_OK);
    }
    avl_detokenizer_destroy(detokenizer);
}

static void print_ids(const avl_tokenizer_t *tokenizer, const char *what, const int32_t *ids,
                      size_t count) {
    fprintf(stderr, "  %s:", what);
    for (size_t i = 0; i < count; i++) {
        const char *token = avl_tokenizer_token(tokenizer, ids[i]);
        fprintf(stderr, " %d(%s)", ids[i], token == NULL ? "?" : token);
    }
    fprintf(stderr, "\n");
}

/* Compares one text; returns the number of differences (0, 1 or 2). */
static size_t compare_text(const avl_tokenizer_t *tokenizer, size_t index, const char *text,
                           size_t bytes, reader_t *reference) {
    int32_t *ids = NULL;
    size_t count = 0, expected_count = read_number(reference, 4), differences = 0;
    int32_t *expected = malloc((expected_count + 1) * sizeof *expected);
    assert_non_null(expected);
    for (size_t i = 0; i < expected_count; i++)
        expected[i] = (int32_t)read_number(reference, 2);
    size_t decoded_bytes = read_number(reference, 4);
    uint64_t decoded_hash = read_number(reference, 8);

    assert_int_equal(avl_tokenizer_encode(tokenizer, text, bytes, true, &ids, &count), AVL_OK);
    if (count != expected_count || memcmp(ids, expected, count * sizeof *ids) != 0) {
        fprintf(stderr, "text %zu \"%.*s\"\n", index, (int)bytes, text);
        print_ids(tokenizer, "got     ", ids, count);
        print_ids(tokenizer, "expected", expected, expected_count);
        differences++;
    }
    avl_text_t decoded = {0};
    decode(tokenizer, expected, expected_count, &decoded);
    if (decoded.count != decoded_bytes || fnv(decoded.bytes, decoded.count) != decoded_hash) {
        fprintf(stderr, "text %zu decodes to %zu bytes \"%.*s\", expected %zu\n", index,
                decoded.count, (int)decoded.count, decoded.bytes, decoded_bytes);
        differences++;
    }
    avl_text_free(&decoded);
    free(expected);
    free(ids);
    return differences;
}

static uint64_t state;

static uint64_t following(void) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* Drawn id sequences: bytes that are no characters, unknown ids, special tokens anywhere. */
static size_t compare_drawn(const avl_tokenizer_t *tokenizer, reader_t *reference) {
    size_t differences = 0, sequences = read_number(reference, 4);
    uint64_t limit = (uint64_t)avl_tokenizer_id_limit(tokenizer);
    assert_true(sequences >= 500);
    state = 1;
    for (size_t i = 0; i < sequences; i++) {
        int32_t ids[12];
        size_t count = following() % 12 + 1;
        bool low = following() % 2 == 0;
        for (size_t j = 0; j < count; j++)
            ids[j] = (int32_t)(following() % (!low ? limit + 3 : limit < 300 ? limit : 300));
        avl_text_t decoded = {0};
        decode(tokenizer, ids, count, &decoded);
        size_t bytes = read_number(reference, 4);
        uint64_t hash = read_number(reference, 8);
        if (decoded.count != bytes || fnv(decoded.bytes, decoded.count) != hash) {
            fprintf(stderr, "drawn %zu decodes to \"%.*s\", expected %zu bytes\n", i,
                    (int)decoded.count, decoded.bytes, bytes);
            print_ids(tokenizer, "ids", ids, count);
            differences++;
        }
        avl_text_free(&decoded);
    }
    return differences;
}

static avl_tokenizer_t *open_tokenizer(const char *directory) {
    avl_tokenizer_t *tokenizer = NULL;
    if (avl_tokenizer_open(directory, &tokenizer) != AVL_OK)
        fail_msg("%s", avl_status_detail());
    return tokenizer;
}

static void test_reference(void **context) {
    const char *kind = *context;
    char path[512];
    bool tiny = strcmp(kind, "avl-tiny") == 0;
    snprintf(path, sizeof path, "%s%s", tiny ? AVL_SOURCE_DIR "/models/" : DATA, kind);
    avl_tokenizer_t *tokenizer = open_tokenizer(path);
    reader_t texts = open_file(DATA "texts.bin");
    snprintf(path, sizeof path, DATA "%s/ids.bin", kind);
    reader_t reference = open_file(path);
    size_t count = read_number(&texts, 4), differences = 0;
    assert_true(count >= 2500);
    assert_int_equal(read_number(&reference, 4), count);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = read_number(&texts, 4);
        assert_true(texts.count - texts.at >= bytes);
        differences +=
            compare_text(tokenizer, i, (const char *)texts.bytes + texts.at, bytes, &reference);
        texts.at += bytes;
    }
    differences += compare_drawn(tokenizer, &reference);
    assert_int_equal(reference.at, reference.count);
    assert_int_equal(differences, 0);
    free(texts.bytes);
    free(reference.bytes);
    avl_tokenizer_close(tokenizer);
}

/* Text comes out at once unless something later could change it, and never in halves. */
static void test_streaming(void **context) {
    (void)context;
    avl_tokenizer_t *tokenizer = open_tokenizer(DATA "llama-prepend");
    avl_detokenizer_t *detokenizer = NULL;
    const char *piece = NULL;
    assert_int_equal(avl_detokenizer_create(tokenizer, &detokenizer), AVL_OK);
    const struct {
        const char *token, *text;
    } steps[] = {
        {"<s>", ""},          {"▁a", "a"},  {"<0xE6>", ""}, {"<0xBC>", ""},
        {"<0xA2>", ""},       {"b", "漢b"}, {"<0xE6>", ""}, {"<0x41>", "\uFFFD\uFFFD"},
        {"<0x42>", "\uFFFD"}, {"▁", " "},   {"<0xC3>", ""}, {"</s>", ""},
    };
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        int32_t id = avl_tokenizer_find(tokenizer, steps[i].token);
        assert_true(id >= 0);
        assert_int_equal(avl_detokenizer_add(detokenizer, id, &piece), AVL_OK);
        assert_string_equal(piece, steps[i].text);
    }
    assert_int_equal(avl_detokenizer_add(detokenizer, 1 << 30, &piece), AVL_OK);
    assert_string_equal(piece, "");
    assert_int_equal(avl_detokenizer_add(detokenizer, -1, &piece), AVL_OK);
    assert_string_equal(piece, "");
    assert_int_equal(avl_detokenizer_finish(detokenizer, &piece), AVL_OK);
    assert_string_equal(piece, "\uFFFD");
    assert_int_equal(avl_detokenizer_finish(detokenizer, &piece), AVL_OK);
    assert_string_equal(piece, "");
    avl_detokenizer_destroy(detokenizer);
    avl_tokenizer_close(tokenizer);
}

static void test_find(void **context) {
    (void)context;
    avl_tokenizer_t *tokenizer = open_tokenizer(AVL_SOURCE_DIR "/models/avl-tiny");
    assert_int_equal(avl_tokenizer_find(tokenizer, "<image>"), 913);
    assert_int_equal(avl_tokenizer_find(tokenizer, "</s>"), 2);
    assert_int_equal(avl_tokenizer_find(tokenizer, "no such token"), -1);
    assert_int_equal(avl_tokenizer_find(tokenizer, ""), -1);
    assert_string_equal(avl_tokenizer_token(tokenizer, 914), "<pad>");
    assert_null(avl_tokenizer_token(tokenizer, 915));
    assert_null(avl_tokenizer_token(tokenizer, -1));
    assert_int_equal(avl_tokenizer_id_limit(tokenizer), 915);
    avl_tokenizer_close(tokenizer);
}

/* Without `special` nothing is added, and an empty text has no ids. */
static void test_without_special(void **context) {
    (void)context;
    avl_tokenizer_t *tokenizer = open_tokenizer(AVL_SOURCE_DIR "/models/avl-tiny");
    int32_t *ids = NULL;
    size_t count = 7;
    assert_int_equal(avl_tokenizer_encode(tokenizer, "", 0, false, &ids, &count), AVL_OK);
    assert_int_equal(count, 0);
    assert_non_null(ids);
    free(ids);
    assert_int_equal(avl_tokenizer_encode(tokenizer, "", 0, true, &ids, &count), AVL_OK);
    assert_int_equal(count, 1);
    assert_int_equal(ids[0], 1);
    free(ids);
    avl_tokenizer_close(tokenizer);
}

/* A megabyte of one thing: what takes quadratic time somewhere would not end here. */
static void test_long(void **context) {
    const char *kind = *context;
    static const char *const units[] = {
        " ", "a", "\n", " \n", "\xCC\x81\xCC\xA7", "<s>", "é", "\xFF", "word ", "<both> ", "1"};
    char path[512];
    snprintf(path, sizeof path, DATA "%s", kind);
    avl_tokenizer_t *tokenizer = open_tokenizer(path);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t unit = strlen(units[i]), bytes = (1u << 20) / unit * unit, count = 0;
        char *text = malloc(bytes);
        assert_non_null(text);
        for (size_t at = 0; at < bytes; at += unit)
            memcpy(text + at, units[i], unit);
        int32_t *ids = NULL;
        assert_int_equal(avl_tokenizer_encode(tokenizer, text, bytes, true, &ids, &count), AVL_OK);
        free(ids);
        free(text);
    }
    avl_tokenizer_close(tokenizer);
}

/* One tokenizer, several threads: each gets what a lone one gets. */
static void *encode_often(void *argument) {
    const avl_tokenizer_t *tokenizer = argument;
    static const char text[] = "<|begin_of_text|>It's e\u0301 1234 <both> naïve 漢字\n\n word";
    int32_t *first = NULL;
    size_t first_count = 0;
    for (int i = 0; i < 200; i++) {
        int32_t *ids = NULL;
        size_t count = 0;
        if (avl_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &count) != AVL_OK)
            break;
        bool same =
            first == NULL || (count == first_count && memcmp(ids, first, count * sizeof *ids) == 0);
        if (first == NULL) {
            first = ids;
            first_count = count;
        } else {
            free(ids);
        }
        if (!same) {
            free(first);
            return NULL;
        }
    }
    return first;
}

static void test_threads(void **context) {
    (void)context;
    avl_tokenizer_t *tokenizer = open_tokenizer(DATA "qwen2");
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, tokenizer), 0);
    for (size_t i = 0; i < 4; i++) {
        void *ids = NULL;
        assert_int_equal(pthread_join(threads[i], &ids), 0);
        assert_non_null(ids);
        free(ids);
    }
    avl_tokenizer_close(tokenizer);
}

static void test_too_large(void **context) {
    (void)context;
    avl_tokenizer_t *tokenizer = open_tokenizer(AVL_SOURCE_DIR "/models/avl-tiny");
    int32_t *ids = NULL;
    size_t count = 0;
    assert_int_equal(
        avl_tokenizer_encode(tokenizer, "", (size_t)INT32_MAX / 4 + 1, true, &ids, &count),
        AVL_ERR_TOO_LARGE);
    assert_null(ids);
    avl_tokenizer_close(tokenizer);
}

#define REFERENCE(kind)                                                                            \
    { "reference " kind, test_reference, NULL, NULL, (void *)(uintptr_t)kind }
#define LONG(kind)                                                                                 \
    { "long " kind, test_long, NULL, NULL, (void *)(uintptr_t)kind }

int main(void) {
    const struct CMUnitTest tests[] = {
        REFERENCE("avl-tiny"),
        REFERENCE("llama-prepend"),
        REFERENCE("llama-first"),
        REFERENCE("metaspace-always"),
        REFERENCE("fused-unknown"),
        REFERENCE("llama3"),
        REFERENCE("qwen2"),
        REFERENCE("gpt2"),
        LONG("llama-prepend"),
        LONG("llama3"),
        LONG("qwen2"),
        LONG("gpt2"),
        cmocka_unit_test(test_streaming),
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_without_special),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
