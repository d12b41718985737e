/* Truncated and lying weights, with the words that each error must hold. */
#include "checkpoint/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/checkpoint/expect.h"
#include "tests/support/safetensors_writer.h"

static char *directory;
static char path_text[4096];

static int make_directory(void **state) {
    (void)state;
    directory = avl_test_make_directory();
    return 0;
}

static int remove_directory(void **state) {
    (void)state;
    avl_test_remove_directory(directory);
    free(directory);
    return 0;
}

static const char *path(const char *name) {
    snprintf(path_text, sizeof path_text, "%s/%s", directory, name);
    return path_text;
}

/* Opens and expects `words`; the output stays as it was. */
#define refuse(status, ...)                                                                        \
    do {                                                                                           \
        avl_weights_t *refused = (void *)directory;                                                \
        expect_failure(avl_weights_open(directory, &refused), status, __VA_ARGS__);                \
        assert_ptr_equal(refused, directory);                                                      \
    } while (0)

#define TENSOR(name, dtype, shape, begin, end)                                                     \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin        \
    "," #end "]}"

static void lying_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *first, *second;
    } cases[] = {
        {"{" TENSOR("a", "F32", "2", 0, 8), 8, "model.safetensors:1:", "}"},
        {"[1]", 0, "model.safetensors", "does not start with {"},
        {" {}", 0, "model.safetensors", "does not start with {"},
        {"", 0, "model.safetensors", "does not start with {"},
        {"{} {}", 0, "model.safetensors:1:", "end of file"},
        {"{\"a\":5}", 0, "key a", "not an object"},
        {"{\"a\":{}}", 0, "a.dtype", "nothing"},
        {"{\"a\":{\"dtype\":\"F32\"}}", 0, "a.shape", "missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, "a.data_offsets", "pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0]}}", 0, "a.data_offsets",
         "pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4,8]}}", 8, "a.data_offsets",
         "pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":\"x\"}}", 8, "a.data_offsets",
         "array"},
        {"{\"a\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "a.dtype", "string"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,4]}}", 4, "a.shape", "array"},
        {"{" TENSOR("a", "F33", "2", 0, 8) "}", 8, "a.dtype", "F33"},
        {"{" TENSOR("a", "F32", "-1", 0, 8) "}", 8, "a.shape[0]", "-1"},
        {"{" TENSOR("a", "F32", "2.0", 0, 8) "}", 8, "a.shape[0]", "2.0"},
        {"{" TENSOR("a", "F32", "3", 0, 8) "}", 8, "key a", "12 bytes, data_offsets to 8"},
        {"{" TENSOR("a", "BF16", "2", 0, 8) "}", 8, "key a", "4 bytes, data_offsets to 8"},
        {"{" TENSOR("a", "F32", "2", 0, 8) "}", 7, "a.data_offsets", "0..8"},
        {"{" TENSOR("a", "F32", "2", 4, 12) "}", 8, "a.data_offsets", "4..12"},
        {"{" TENSOR("a", "F32", "2", 8, 0) "}", 8, "a.data_offsets", "8..0"},
        {"{" TENSOR("a", "F32", "2", -8, 0) "}", 8, "a.data_offsets[0]", "-8"},
        {"{" TENSOR("a", "F32", "2", 0, 9223372036854775807) "}", 8, "a.data_offsets",
         "9223372036854775807"},
        {"{" TENSOR("a", "F32", "2", 0, 9223372036854775808) "}", 8, "model.safetensors:1:", "big"},
        {"{" TENSOR("a", "F32", "4611686018427387904,4", 0, 0) "}", 0, "a.shape", "overflow"},
        {"{" TENSOR("a", "F32", "9223372036854775807,9223372036854775807", 0, 8) "}", 8, "a.shape",
         "overflow"},
        {"{" TENSOR("a", "F32", "4294967296,4294967296,4294967296", 0, 0) "}", 0, "a.shape",
         "overflow"},
        {"{" TENSOR("a", "U8", "1152921504606846976,8", 0, 0) "}", 0, "a.shape", "overflow"},
        {"{" TENSOR("a", "F4", "3", 0, 1) "}", 1, "a.shape", "12 bits"},
        {"{" TENSOR("a", "F32", "2", 0, 8) "," TENSOR("a", "F32", "2", 8, 16) "}", 16,
         "model.safetensors:1:", "duplicate"},
        {"{" TENSOR("a", "F32", "2", 0, 8) "," TENSOR("b", "F32", "2", 4, 12) "}", 12, "a and b",
         "overlap"},
        {"{" TENSOR("a", "F32", "2", 0, 8) "," TENSOR("b", "F32", "2", 0, 8) "}", 8, "overlap",
         "model.safetensors"},
        {"{" TENSOR("a", "F32", "2", 0, 8) "," TENSOR("b", "F32", "2", 12, 20) "}", 20,
         "hole of 4 bytes", "tensor b"},
        {"{" TENSOR("a", "F32", "2", 4, 12) "}", 12, "hole of 4 bytes", "tensor a"},
        {"{" TENSOR("a", "F32", "2", 0, 8) "}", 9, "8 of 9", "model.safetensors"},
        {"{}", 1, "0 of 1", "model.safetensors"},
        {"{\"__metadata__\":[]}", 0, "__metadata__", "not an object"},
        {"{\"__metadata__\":{\"format\":1}}", 0, "__metadata__.format", "string"},
        {"{" TENSOR("lm_head.weight", "F32", "1", 0, 4) "," TENSOR("language_model.lm_head.weight",
                                                                   "F32", "1", 4, 8) "}",
         8, "tensor language_model.lm_head.weight", "as lm_head.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        avl_test_write_safetensors_raw(path("model.safetensors"), strlen(cases[i].header),
                                       cases[i].header, cases[i].data_bytes);
        refuse(AVL_ERR_DATA, directory, cases[i].first, cases[i].second);
    }
}

static void lying_lengths(void **state) {
    (void)state;
    static const struct {
        uint64_t length;
        const char *word;
    } cases[] = {
        {UINT64_C(1) << 63, "9223372036854775808"},
        {UINT64_MAX, "18446744073709551615"},
        {UINT64_MAX - 7, "18446744073709551608"},
        {100000001, "100000001 bytes is longer than the 100000000 allowed"},
        {100000000, "100000000 bytes in a file of 10"},
        {3, "3 bytes in a file of 10"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        avl_test_write_safetensors_raw(path("model.safetensors"), cases[i].length, "{}", 0);
        refuse(AVL_ERR_DATA, "model.safetensors", cases[i].word);
    }
}

/* Every prefix of an honest file is refused. */
static void truncated_files(void **state) {
    (void)state;
    const avl_test_tensor_t tensors[] = {{"a", "F32", 1, {2}, NULL, 8},
                                         {"b", "F16", 1, {2}, NULL, 4}};
    avl_test_write_safetensors(path("model.safetensors"), tensors, 2);
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(directory, &weights));
    avl_weights_close(weights);
    struct stat file;
    assert_int_equal(stat(path("model.safetensors"), &file), 0);
    for (off_t size = file.st_size - 1; size >= 0; size--) {
        assert_int_equal(truncate(path("model.safetensors"), size), 0);
        refuse(AVL_ERR_DATA, "model.safetensors");
    }
}

static void missing_files(void **state) {
    (void)state;
    refuse(AVL_ERR_NOT_FOUND, directory, "neither model.safetensors nor");
    avl_weights_t *weights = NULL;
    expect_failure(avl_weights_open("/nonexistent", &weights), AVL_ERR_NOT_FOUND, "/nonexistent");
    assert_int_equal(mkdir(path("model.safetensors"), 0700), 0);
    refuse(AVL_ERR_IO, "model.safetensors", "regular");
    assert_int_equal(rmdir(path("model.safetensors")), 0);
    assert_int_equal(symlink("nowhere", path("model.safetensors.index.json")), 0);
    refuse(AVL_ERR_NOT_FOUND, directory);
}

static void write_index(const char *weight_map) {
    char text[1024];
    snprintf(text, sizeof text, "{\"weight_map\": %s}", weight_map);
    avl_test_write_text(directory, "model.safetensors.index.json", text);
}

static void lying_indexes(void **state) {
    (void)state;
    const avl_test_tensor_t a = {"a", "F32", 1, {1}, NULL, 4};
    const avl_test_tensor_t b = {"b", "F32", 1, {1}, NULL, 4};
    avl_test_write_safetensors(path("1.safetensors"), &a, 1);
    avl_test_write_safetensors(path("2.safetensors"), &b, 1);
    avl_test_write_safetensors(path("3.safetensors"), &b, 1);
    avl_test_write_text(directory, "torn.safetensors", "torn");
    write_index("{\"a\": \"1.safetensors\", \"b\": \"2.safetensors\"}");
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(directory, &weights));
    avl_weights_close(weights);
    static const struct {
        const char *map;
        avl_status_t status;
        const char *first, *second;
    } cases[] = {
        {"[]", AVL_ERR_DATA, "weight_map", "not an object"},
        {"{}", AVL_ERR_DATA, "weight_map", "not an object"},
        {"{\"a\": 5}", AVL_ERR_DATA, "weight_map.a", "found 5"},
        {"{\"a\": \"4.safetensors\"}", AVL_ERR_NOT_FOUND, "/4.safetensors", "No such file"},
        {"{\"a\": \"2.safetensors\", \"b\": \"1.safetensors\"}", AVL_ERR_DATA, "weight_map.a",
         "not in 2.safetensors, but in"},
        {"{\"c\": \"1.safetensors\"}", AVL_ERR_DATA, "weight_map.c", "1.safetensors has no such"},
        {"{\"b\": \"2.safetensors\", \"x\": \"3.safetensors\"}", AVL_ERR_DATA, "tensor b",
         "3.safetensors"},
        {"{\"a\": \"../1.safetensors\"}", AVL_ERR_DATA, "weight_map.a", "\"../1.safetensors\""},
        {"{\"a\": \"/etc/passwd\"}", AVL_ERR_DATA, "weight_map.a", "\"/etc/passwd\""},
        {"{\"a\": \"sub/1.safetensors\"}", AVL_ERR_DATA, "weight_map.a", "sub/"},
        {"{\"a\": \"..\"}", AVL_ERR_DATA, "weight_map.a", "\"..\""},
        {"{\"a\": \".\"}", AVL_ERR_DATA, "weight_map.a", "\".\""},
        {"{\"a\": \"\"}", AVL_ERR_DATA, "weight_map.a", "\"\""},
        {"{\"a\": \"torn.safetensors\"}", AVL_ERR_DATA, "torn.safetensors", "4 bytes"},
        {"{\"a\": \"1.safetensors\", \"a\": \"1.safetensors\"}", AVL_ERR_DATA,
         "index.json:1:", "duplicate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_index(cases[i].map);
        refuse(cases[i].status, directory, cases[i].first, cases[i].second);
    }
    avl_test_write_text(directory, "model.safetensors.index.json", "7");
    refuse(AVL_ERR_DATA, "index.json", "weight_map");
    avl_test_write_text(directory, "model.safetensors.index.json", "{\"weight_map\"");
    refuse(AVL_ERR_DATA, "index.json:1:");
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_directory, remove_directory)
    const struct CMUnitTest tests[] = {
        TEST(lying_headers), TEST(lying_lengths), TEST(truncated_files),
        TEST(missing_files), TEST(lying_indexes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
