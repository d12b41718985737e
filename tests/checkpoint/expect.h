/* tests/checkpoint/expect.h: checks of a failure's code and of the text that explains it. */
#ifndef AVL_TESTS_CHECKPOINT_EXPECT_H
#define AVL_TESTS_CHECKPOINT_EXPECT_H

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/status.h"

/* The call succeeded; else the test shows why not. */
#define expect_ok(call)                                                                            \
    do {                                                                                           \
        avl_status_t expect_status = (call);                                                       \
        if (expect_status != AVL_OK)                                                               \
            fail_msg("%s: %s", avl_status_name(expect_status), avl_status_detail());               \
    } while (0)

/* The call failed with `code` and a text that holds every one of the words. */
#define expect_failure(call, code, ...)                                                            \
    do {                                                                                           \
        avl_status_t expect_status = (call);                                                       \
        const char *expect_words[] = {__VA_ARGS__};                                                \
        if (expect_status != (code))                                                               \
            fail_msg("%s where %s is expected (%s)", avl_status_name(expect_status),               \
                     avl_status_name(code), avl_status_detail());                                  \
        for (size_t expect_i = 0; expect_i < sizeof expect_words / sizeof expect_words[0];         \
             expect_i++) {                                                                         \
            if (strstr(avl_status_detail(), expect_words[expect_i]) == NULL)                       \
                fail_msg("\"%s\" does not say \"%s\"", avl_status_detail(),                        \
                         expect_words[expect_i]);                                                  \
        }                                                                                          \
    } while (0)

#endif
