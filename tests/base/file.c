/* tests/base/file.c: whole files, and what is no file. */
#include "base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void reads_and_refuses(void **state) {
    (void)state;
    char directory[] = "/tmp/avl-file-XXXXXX", path[64];
    char *bytes = NULL;
    size_t count = 0;
    assert_non_null(mkdtemp(directory));
    assert_int_equal(avl_file_read(directory, "x", 8, &bytes, &count), AVL_ERR_NOT_FOUND);
    assert_non_null(strstr(avl_status_detail(), "/x: No such file"));
    snprintf(path, sizeof path, "%s/x", directory);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(avl_file_read(directory, "x", 8, &bytes, &count), AVL_ERR_IO);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(avl_file_read(directory, "x", 8, &bytes, &count), AVL_ERR_IO);
    assert_int_equal(rmdir(path), 0);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite("ab\0cd", 1, 5, file), 5);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(avl_file_read(path, "y", 8, &bytes, &count), AVL_ERR_NOT_FOUND);
    assert_int_equal(avl_file_read(directory, "x", 4, &bytes, &count), AVL_ERR_DATA);
    assert_non_null(strstr(avl_status_detail(), "5 bytes, more than the 4"));
    assert_null(bytes);
    assert_int_equal(avl_file_read(directory, "x", 5, &bytes, &count), AVL_OK);
    assert_int_equal(count, 5);
    assert_memory_equal(bytes, "ab\0cd", 6);
    free(bytes);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reads_and_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
