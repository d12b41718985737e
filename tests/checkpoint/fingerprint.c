/* The same model has the same fingerprint wherever it lies; another one, however like it, has not.
 */
#include "checkpoint/fingerprint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define WEIGHTS_BYTES (5 << 20)

static char directory[] = "/tmp/avl-fingerprint-XXXXXX";

static void write_file(const char *name, size_t bytes, size_t changed) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (size_t i = 0; i < bytes; i++)
        assert_true(fputc((int)((i * 31 + (i >> 12) + (i == changed)) & 0xff), file) != EOF);
    assert_int_equal(fclose(file), 0);
}

static void remove_file(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    assert_int_equal(unlink(path), 0);
}

static void expect(const char *before, bool same) {
    char text[AVL_FINGERPRINT_BYTES];
    assert_int_equal(avl_fingerprint(directory, text), AVL_OK);
    assert_int_equal(strlen(text), 16);
    assert_int_equal(strcmp(text, before) == 0, same);
}

static void test_fingerprint(void **state) {
    (void)state;
    char first[AVL_FINGERPRINT_BYTES];
    assert_non_null(mkdtemp(directory));
    write_file("config.json", 500, SIZE_MAX);
    assert_int_equal(avl_fingerprint(directory, first), AVL_ERR_NOT_FOUND);
    write_file("b.safetensors", WEIGHTS_BYTES, SIZE_MAX);
    write_file("a.safetensors", 100, SIZE_MAX);
    assert_int_equal(avl_fingerprint(directory, first), AVL_OK);
    expect(first, true);
    write_file("README.md", 100, SIZE_MAX); /* matters to nobody */
    expect(first, true);
    write_file("config.json", 500, 499);
    expect(first, false);
    write_file("config.json", 500, SIZE_MAX);
    write_file("b.safetensors", WEIGHTS_BYTES, 1000); /* a header */
    expect(first, false);
    write_file("b.safetensors", WEIGHTS_BYTES + 1, SIZE_MAX);
    expect(first, false);
    write_file("b.safetensors", WEIGHTS_BYTES, WEIGHTS_BYTES / 2); /* a weight */
    expect(first, false);
    write_file("b.safetensors", WEIGHTS_BYTES, SIZE_MAX);
    expect(first, true);
    write_file("generation_config.json", 0, SIZE_MAX); /* there, though empty */
    expect(first, false);
    static const char *const names[] = {"config.json", "generation_config.json", "README.md",
                                        "a.safetensors", "b.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        remove_file(names[i]);
    assert_int_equal(rmdir(directory), 0);
    assert_int_equal(avl_fingerprint(directory, first), AVL_ERR_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fingerprint)};
    return cmocka_run_group_tests_name("checkpoint fingerprint", tests, NULL, NULL);
}
