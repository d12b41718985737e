/* tools/gpu_check/cmocka.h: the few names of cmocka that the kernels' tests use, for machines that
 * have a GPU but not the library. A failed assertion ends its test. */
#ifndef AVL_TOOLS_GPU_CHECK_CMOCKA_H
#define AVL_TOOLS_GPU_CHECK_CMOCKA_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(function)                                                                 \
    { #function, function }
#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    check_run((tests), sizeof(tests) / sizeof *(tests))
#define cmocka_run_group_tests_name(name, tests, setup, teardown)                                  \
    cmocka_run_group_tests(tests, setup, teardown)

int check_run(const struct CMUnitTest *tests, size_t count);
void check_fail(const char *file, int line, const char *format, ...)
    __attribute__((noreturn, format(printf, 3, 4)));
#define print_message printf

#define fail_msg(...) check_fail(__FILE__, __LINE__, __VA_ARGS__)
#define assert_true(condition)                                                                     \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("not true: %s", #condition);                                                  \
    } while (0)
#define assert_false(condition) assert_true(!(condition))
#define assert_in_range(value, least, most)                                                        \
    assert_true((long long)(value) >= (long long)(least) && (long long)(value) <= (long long)(most))
#define assert_non_null(pointer) assert_true((pointer) != NULL)
#define assert_null(pointer) assert_true((pointer) == NULL)
#define assert_int_equal(a, b) assert_true((long long)(a) == (long long)(b))
#define assert_int_not_equal(a, b) assert_true((long long)(a) != (long long)(b))
#define assert_string_equal(a, b) assert_true(strcmp((a), (b)) == 0)
#define assert_memory_equal(a, b, bytes) assert_true(memcmp((a), (b), (bytes)) == 0)

#endif
