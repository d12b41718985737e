#include "checkpoint/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/checkpoint/expect.h"
#include "tests/support/safetensors_writer.h"

static avl_status_t parse(const char *text, avl_json_document_t *document_p) {
    return avl_json_parse("some/file.json", text, strlen(text), document_p);
}

static void says_where_the_syntax_ends(void **state) {
    (void)state;
    static const struct {
        const char *text, *place;
    } cases[] = {
        {"", "file.json:1:0"},
        {"{\n  \"a\": 1,\n  \"b\" 2\n}", "file.json:3:"},
        {"{\"a\": NaN}", "file.json:1:"},
        {"{\"a\": Infinity}", "file.json:1:"},
        {"{\"a\": -Infinity}", "file.json:1:"},
        {"{\"a\": 1e999}", "real number overflow"},
        {"{\"a\": 9223372036854775808}", "too big integer"},
        {"{\"a\": 1, \"a\": 1}", "duplicate object key"},
        {"{\"a\": \"\xff\"}", "unable to decode byte 0xff"},
        {"{\"a\": \"\\u0000\"}", "file.json:1:"},
        {"{} {}", "file.json:1:"},
        {"{\"a\": 1", "file.json:1:"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        avl_json_document_t document;
        expect_failure(parse(cases[i].text, &document), AVL_ERR_DATA, "some/", cases[i].place);
    }
}

static void survives_a_million_brackets(void **state) {
    (void)state;
    size_t bytes = 1000000;
    char *text = malloc(bytes);
    assert_non_null(text);
    memset(text, '[', bytes);
    avl_json_document_t document;
    expect_failure(avl_json_parse("deep.json", text, bytes, &document), AVL_ERR_DATA,
                   "deep.json:", "depth");
    free(text);
}

static void names_key_path_and_value(void **state) {
    (void)state;
    avl_json_document_t document;
    expect_ok(
        parse("{\"a\": {\"list\": [1, {\"x\": 2.5}]}, \"s\": \"text\", \"t\": true}", &document));
    avl_json_node_t root = avl_json_root(&document);
    avl_json_node_t a = avl_json_member(&root, "a");
    avl_json_node_t list = avl_json_member(&a, "list");
    avl_json_node_t second = avl_json_element(&list, 1);
    avl_json_node_t x = avl_json_member(&second, "x");
    int64_t whole = 0;
    double number = 0.0;
    bool flag = false;
    const char *text = NULL;
    expect_failure(avl_json_int(&x, 0, 9, &whole), AVL_ERR_DATA, "some/file.json", "a.list[1].x",
                   "2.5", "integer");
    expect_failure(avl_json_double(&x, 3, 4, &number), AVL_ERR_DATA, "a.list[1].x", "2.5", "3..4");
    expect_failure(avl_json_bool(&x, &flag), AVL_ERR_DATA, "a.list[1].x", "true or false");
    expect_failure(avl_json_string(&x, &text), AVL_ERR_DATA, "a.list[1].x", "string");
    expect_failure(avl_json_expect_object(&list), AVL_ERR_DATA, "a.list", "array of 2", "object");
    expect_failure(avl_json_expect_array(&a), AVL_ERR_DATA, "key a", "object of 1");
    avl_json_node_t first = avl_json_element(&list, 0);
    expect_failure(avl_json_int(&first, 2, 9, &whole), AVL_ERR_DATA, "a.list[0]",
                   "1 is outside 2..9");
    avl_json_node_t flag_node = avl_json_member(&root, "t");
    expect_failure(avl_json_int(&flag_node, 0, 1, &whole), AVL_ERR_DATA, "key t", "found true");
    expect_failure(avl_json_double(&flag_node, 0, 1, &number), AVL_ERR_DATA, "key t");
    avl_json_node_t missing = avl_json_member(&root, "missing");
    expect_failure(avl_json_int(&missing, 0, 1, &whole), AVL_ERR_DATA, "missing", "nothing");
    expect_ok(avl_json_double(&x, 0, 9, &number));
    assert_true(number == 2.5);
    avl_json_close(&document);
}

static void null_is_absent(void **state) {
    (void)state;
    avl_json_document_t document;
    expect_ok(parse("{\"n\": null, \"zero\": 0}", &document));
    avl_json_node_t root = avl_json_root(&document);
    avl_json_node_t n = avl_json_member(&root, "n");
    avl_json_node_t below = avl_json_member(&n, "deeper");
    avl_json_node_t absent = avl_json_member(&root, "absent");
    assert_false(avl_json_present(&n));
    assert_true(avl_json_is_null(&n));
    assert_false(avl_json_is_null(&absent));
    assert_false(avl_json_present(&below));
    int value = 0;
    expect_ok(avl_json_get_int(&root, "n", 1, 9, 7, &value));
    assert_int_equal(value, 7);
    expect_ok(avl_json_get_int(&below, "x", 1, 9, 8, &value));
    assert_int_equal(value, 8);
    expect_failure(avl_json_get_int(&root, "zero", 1, 9, 7, &value), AVL_ERR_DATA, "key zero");
    assert_int_equal(value, 8); /* outputs change on success only */
    avl_json_close(&document);
}

static void long_values_and_paths_are_cut(void **state) {
    (void)state;
    char key[300];
    char value[300];
    memset(key, 'k', sizeof key - 1);
    memset(value, 'v', sizeof value - 1);
    key[sizeof key - 1] = value[sizeof value - 1] = '\0';
    char text[700];
    snprintf(text, sizeof text, "{\"%s\": \"%s\"}", key, value);
    avl_json_document_t document;
    expect_ok(parse(text, &document));
    avl_json_node_t root = avl_json_root(&document);
    avl_json_node_t node = avl_json_member(&root, key);
    int64_t number = 0;
    expect_failure(avl_json_int(&node, 0, 1, &number), AVL_ERR_DATA, "kkkk", "vvvv...");
    avl_json_close(&document);
}

static void files_that_are_none(void **state) {
    (void)state;
    char *directory = avl_test_make_directory();
    char path[4096];
    avl_json_document_t document;
    expect_failure(avl_json_open(directory, "a.json", 100, &document), AVL_ERR_NOT_FOUND, "/a.json",
                   "No such file");
    snprintf(path, sizeof path, "%s/pipe.json", directory);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_failure(avl_json_open(directory, "pipe.json", 100, &document), AVL_ERR_IO, "pipe.json",
                   "regular");
    snprintf(path, sizeof path, "%s/dir.json", directory);
    assert_int_equal(mkdir(path, 0700), 0);
    expect_failure(avl_json_open(directory, "dir.json", 100, &document), AVL_ERR_IO, "dir.json");
    avl_test_write_text(directory, "long.json", "[1, 2, 3]");
    expect_failure(avl_json_open(directory, "long.json", 8, &document), AVL_ERR_DATA, "long.json",
                   "9 bytes");
    expect_ok(avl_json_open(directory, "long.json", 9, &document));
    avl_json_node_t root = avl_json_root(&document);
    assert_int_equal(avl_json_count(&root), 3);
    avl_json_close(&document);
    avl_test_remove_directory(directory);
    free(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_where_the_syntax_ends),
        cmocka_unit_test(survives_a_million_brackets),
        cmocka_unit_test(names_key_path_and_value),
        cmocka_unit_test(null_is_absent),
        cmocka_unit_test(long_values_and_paths_are_cut),
        cmocka_unit_test(files_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
