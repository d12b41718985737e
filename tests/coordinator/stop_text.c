/* tests/coordinator/stop_text.c: texts that end an answer, however the answer is cut into pieces.
 */
#include "coordinator/stop_text.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

/* `answer` in pieces of `step` bytes; returns what is shown, and whether a text was found. */
static bool feed(char *const *texts, size_t count, const char *answer, size_t step, char *shown) {
    avl_stop_text_t *stop;
    assert_int_equal(avl_stop_text_create(texts, count, &stop), AVL_OK);
    bool found = false;
    shown[0] = '\0';
    for (size_t at = 0; at < strlen(answer); at += step) {
        char piece[64] = "";
        const char *out;
        strncat(piece, answer + at, step);
        assert_int_equal(avl_stop_text_add(stop, piece, &out, &found), AVL_OK);
        strcat(shown, out);
        /* Nothing of a stop text is ever shown. */
        for (size_t i = 0; i < count; i++)
            assert_null(strstr(shown, texts[i]));
    }
    if (!found)
        strcat(shown, avl_stop_text_finish(stop));
    avl_stop_text_destroy(stop);
    return found;
}

static void expect(char *const *texts, size_t count, const char *answer, const char *shown,
                   bool found) {
    for (size_t step = 1; step <= strlen(answer) + 1; step++) {
        char got[256];
        assert_int_equal(feed(texts, count, answer, step, got), found);
        assert_string_equal(got, shown);
    }
}

static void test_cuts(void **state) {
    (void)state;
    char end[] = "END", newline[] = "\n\n", abab[] = "abab", ab[] = "ab", dot[] = ".";
    char *one[] = {end}, *two[] = {end, newline}, *repeated[] = {abab}, *nested[] = {abab, ab},
         *any[] = {dot, end};
    expect(one, 1, "The answer.END and more", "The answer.", true);
    expect(one, 1, "EENEEND", "EENE", true);
    expect(one, 1, "almost EN", "almost EN", false);
    expect(one, 1, "END", "", true);
    expect(two, 2, "a\nb\n\nc END", "a\nb", true);
    expect(repeated, 1, "aababab", "a", true);
    expect(repeated, 1, "abaab", "abaab", false);
    expect(nested, 2, "xxabab", "xx", true); /* the one that ends first */
    expect(any, 2, "", "", false);
    expect(any, 2, "EN.END", "EN", true);
}

static void test_longest_of_those_that_end_together(void **state) {
    (void)state;
    char long_text[] = "stop now", short_text[] = "now";
    char *texts[] = {short_text, long_text};
    expect(texts, 2, "please stop now!", "please ", true);
    expect(texts, 2, "please now!", "please ", true);
}

static void test_text_at_once_when_nothing_is_open(void **state) {
    (void)state;
    char end[] = "END";
    char *texts[] = {end};
    avl_stop_text_t *stop;
    const char *out;
    bool found;
    assert_int_equal(avl_stop_text_create(texts, 1, &stop), AVL_OK);
    assert_int_equal(avl_stop_text_add(stop, "no", &out, &found), AVL_OK);
    assert_string_equal(out, "no");
    assert_int_equal(avl_stop_text_add(stop, " trEN", &out, &found), AVL_OK);
    assert_string_equal(out, " tr");
    assert_int_equal(avl_stop_text_add(stop, "ch", &out, &found), AVL_OK);
    assert_string_equal(out, "ENch");
    assert_false(found);
    avl_stop_text_destroy(stop);
}

static void test_refusals(void **state) {
    (void)state;
    char empty[] = "", *one[] = {empty}, long_text[AVL_STOP_TEXT_BYTES_MAX + 2];
    avl_stop_text_t *stop = NULL;
    assert_int_equal(avl_stop_text_create(one, 1, &stop), AVL_ERR_INVALID);
    assert_non_null(strstr(avl_status_detail(), "sampling.stop[0] has 0 bytes"));
    memset(long_text, 'x', sizeof long_text);
    long_text[sizeof long_text - 1] = '\0';
    one[0] = long_text;
    assert_int_equal(avl_stop_text_create(one, 1, &stop), AVL_ERR_INVALID);
    char *many[AVL_STOP_TEXTS_MAX + 1];
    for (size_t i = 0; i < sizeof many / sizeof *many; i++)
        many[i] = long_text + sizeof long_text - 2;
    assert_int_equal(avl_stop_text_create(many, AVL_STOP_TEXTS_MAX + 1, &stop), AVL_ERR_INVALID);
    assert_int_equal(avl_stop_text_create(many, AVL_STOP_TEXTS_MAX, &stop), AVL_OK);
    avl_stop_text_destroy(stop);
    assert_int_equal(avl_stop_text_create(NULL, 0, &stop), AVL_OK);
    assert_null(stop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_longest_of_those_that_end_together),
        cmocka_unit_test(test_text_at_once_when_nothing_is_open),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("coordinator stop texts", tests, NULL, NULL);
}
