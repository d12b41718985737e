/* Directories that do not outlive their owner. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coordinator/scratch.h"

static char base[] = "/tmp/scratch-XXXXXX";

static bool exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

static void put(const char *directory, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fclose(file);
}

static void fill(const char *directory) {
    char path[256];
    put(directory, "file");
    snprintf(path, sizeof path, "%s/deep", directory);
    assert_int_equal(mkdir(path, 0700), 0);
    put(path, "owner"); /* only the one at the top is the lock */
    snprintf(path, sizeof path, "%s/link", directory);
    assert_int_equal(symlink(base, path), 0);
}

static void test_life(void **state) {
    (void)state;
    avl_scratch_t first, second;
    assert_int_equal(avl_scratch_create(base, &first), AVL_OK);
    struct stat status;
    assert_int_equal(stat(first.path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0700);
    fill(first.path);
    assert_int_equal(avl_scratch_create(base, &second), AVL_OK);
    char file[256], lock[256];
    snprintf(file, sizeof file, "%s/file", first.path);
    snprintf(lock, sizeof lock, "%s/owner", first.path);
    assert_true(exists(file)); /* the other one's is left alone */
    avl_scratch_clear(&first);
    assert_false(exists(file));
    assert_true(exists(lock));
    fill(first.path);
    char path[64];
    memcpy(path, first.path, sizeof path);
    avl_scratch_destroy(&first);
    assert_false(exists(path));
    assert_true(exists(base)); /* links are not followed */
    avl_scratch_destroy(&first);
    avl_scratch_destroy(&second);
}

static void test_killed_owner(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        avl_scratch_t own;
        if (avl_scratch_create(base, &own) != AVL_OK)
            _exit(1);
        fill(own.path);
        if (write(ends[1], own.path, sizeof own.path) != (ssize_t)sizeof own.path)
            _exit(1);
        pause();
        _exit(1);
    }
    char path[64] = "";
    assert_int_equal(read(ends[0], path, sizeof path), sizeof path);
    avl_scratch_t other;
    assert_int_equal(avl_scratch_create(base, &other), AVL_OK);
    assert_true(exists(path));
    avl_scratch_destroy(&other);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_int_equal(avl_scratch_create(base, &other), AVL_OK);
    assert_false(exists(path));
    avl_scratch_destroy(&other);
    close(ends[0]);
    close(ends[1]);
}

static void test_refusals(void **state) {
    (void)state;
    avl_scratch_t scratch;
    assert_int_equal(avl_scratch_create("here", &scratch), AVL_ERR_INVALID);
    assert_int_equal(avl_scratch_create("/a/path/that/is/too/long/for/sockets/below", &scratch),
                     AVL_ERR_INVALID);
    assert_int_equal(avl_scratch_create("/nonexistent", &scratch), AVL_ERR_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_killed_owner),
        cmocka_unit_test(test_refusals),
    };
    if (mkdtemp(base) == NULL)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return rmdir(base) != 0 || failed != 0;
}
