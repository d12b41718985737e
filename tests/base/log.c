/* tests/base/log.c: what lines say, whatever the text has in it. */
#include "base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* The line that logging `text` writes to standard error. */
static void log_line(const char *text, int json, char *line, size_t line_bytes) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    int saved = dup(STDERR_FILENO);
    assert_true(saved >= 0);
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    avl_log_begin("test", AVL_LOG_INFO, json);
    avl_log_debug("too little to be said");
    avl_log_info("%s", text);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    close(ends[1]);
    ssize_t got = read(ends[0], line, line_bytes - 1);
    assert_true(got > 0);
    line[got] = '\0';
    close(ends[0]);
}

static void lines_are_safe(void **state) {
    (void)state;
    static const struct {
        const char *text, *plain, *json;
    } cases[] = {
        {"a \"b\" \\", "a \"b\" \\", "a \\\"b\\\" \\\\"},
        {"a\nb\tc\x1b[2J", "a\\nb\\u0009c\\u001b[2J", "a\\nb\\u0009c\\u001b[2J"},
        {"\xc2\x9b"
         "2J",
         "\\u009b2J", "\\u009b2J"}, /* CSI in one character */
        {"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80",
         "\xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\x9b"
         "2J \xe2\x82",
         "\\x9b2J \\xe2\\x82", "\\ufffd2J \\ufffd\\ufffd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[512], expected[512];
        log_line(cases[i].text, 0, line, sizeof line);
        snprintf(expected, sizeof expected, "Z info  test: %s\n", cases[i].plain);
        assert_string_equal(strchr(line, 'Z'), expected);
        log_line(cases[i].text, 1, line, sizeof line);
        snprintf(expected, sizeof expected,
                 "Z\",\"level\":\"info\",\"program\":\"test\",\"message\":\"%s\"}\n",
                 cases[i].json);
        assert_string_equal(strchr(line, 'Z'), expected);
    }
}

/* A long text is cut, and the line still ends as it should. */
static void long_lines_are_cut(void **state) {
    (void)state;
    char text[8192], line[8192];
    memset(text, '\x01', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    log_line(text, 1, line, sizeof line);
    assert_true(strlen(line) <= 2048);
    assert_string_equal(line + strlen(line) - 9, "\\u0001\"}\n");
}

/* What avl_log_with writes after the level. */
static void field_line(const avl_log_field_t *fields, size_t count, const char *message, int json,
                       char *line, size_t line_bytes) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    int saved = dup(STDERR_FILENO);
    assert_true(saved >= 0);
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    avl_log_begin("test", AVL_LOG_INFO, json);
    avl_log_tag("rank", 3);
    avl_log_with(AVL_LOG_DEBUG, fields, count, "too little to be said");
    avl_log_with(AVL_LOG_INFO, fields, count, "%s", message);
    avl_log_begin("test", AVL_LOG_INFO, 0);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    close(ends[1]);
    ssize_t got = read(ends[0], line, line_bytes - 1);
    assert_true(got > 0);
    line[got] = '\0';
    close(ends[0]);
}

static void fields_are_kept(void **state) {
    (void)state;
    const avl_log_field_t fields[] = {
        AVL_LOG_INTEGER("request", 7),
        AVL_LOG_TEXT("name", "a1"),
        AVL_LOG_TEXT("code", NULL),
        AVL_LOG_TEXT("detail", "a \"b\"\n\xff"),
        AVL_LOG_SECONDS("seconds", 1500000000L),
        AVL_LOG_TEXT("empty", ""),
    };
    char line[4096];
    field_line(fields, 6, "it \"is\" so", 0, line, sizeof line);
    assert_string_equal(strchr(line, 'Z'),
                        "Z info  test: it \"is\" so  rank=3 request=7 name=a1 detail=\"a "
                        "\\\"b\\\"\\n\\xff\" seconds=1.500000 empty=\"\"\n");
    field_line(fields, 6, "it \"is\" so", 1, line, sizeof line);
    assert_string_equal(strchr(line, 'Z'),
                        "Z\",\"level\":\"info\",\"program\":\"test\",\"message\":\"it "
                        "\\\"is\\\" so\",\"rank\":3,\"request\":7,\"name\":\"a1\",\"detail\":\"a "
                        "\\\"b\\\"\\n\\ufffd\",\"seconds\":1.500000,\"empty\":\"\"}\n");
}

/* A message is cut rather than its fields, and many long fields leave a whole line. */
static void fields_outlive_messages(void **state) {
    (void)state;
    char message[8192], line[4096], value[400];
    memset(message, '\x01', sizeof message - 1);
    message[sizeof message - 1] = '\0';
    memset(value, '"', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    const avl_log_field_t one[] = {AVL_LOG_INTEGER("request", 7)};
    field_line(one, 1, message, 1, line, sizeof line);
    assert_true(strlen(line) <= 2048);
    assert_non_null(strstr(line, "\\u0001\",\"rank\":3,\"request\":7}\n"));
    const avl_log_field_t many[] = {
        AVL_LOG_TEXT("a", value), AVL_LOG_TEXT("b", value),      AVL_LOG_TEXT("c", value),
        AVL_LOG_TEXT("d", value), AVL_LOG_INTEGER("request", 7),
    };
    field_line(many, 5, message, 1, line, sizeof line);
    assert_true(strlen(line) <= 2048);
    assert_string_equal(line + strlen(line) - 3, "\"}\n");
}

static void levels(void **state) {
    (void)state;
    avl_log_level_t level = AVL_LOG_DEBUG;
    assert_int_equal(avl_log_level_parse("error", &level), AVL_OK);
    assert_int_equal(level, AVL_LOG_ERROR);
    assert_int_equal(avl_log_level_parse("loud", &level), AVL_ERR_INVALID);
    assert_int_equal(level, AVL_LOG_ERROR);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_safe),  cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(fields_are_kept), cmocka_unit_test(fields_outlive_messages),
        cmocka_unit_test(levels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
