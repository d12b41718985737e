#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/wire.h"
#include "proto/inference.pb-c.h"

static avl_status_t unpack(const void *bytes, size_t byte_count) {
    ProtobufCMessage *message = NULL;
    avl_status_t status =
        avl_wire_unpack(&avl__v1__generate_request__descriptor, bytes, byte_count, &message);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
    return status;
}

/* raw_prompt.text as it stands. */
static avl_status_t unpack_text(const char *text, size_t text_bytes) {
    unsigned char bytes[64] = {0x1a, (unsigned char)(text_bytes + 2), 0x0a,
                               (unsigned char)text_bytes};
    memcpy(bytes + 4, text, text_bytes);
    return unpack(bytes, text_bytes + 4);
}

static void test_strings(void **state) {
    (void)state;
    static const char *const good[] = {"",
                                       "plain",
                                       "\xc3\xa9",
                                       "\xe2\x82\xac",
                                       "\xf0\x9f\x98\x80",
                                       "\xef\xbf\xbf",
                                       "\xf4\x8f\xbf\xbf",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80"};
    static const char *const bad[] = {
        "\x80",     "\xc3",         "\xc0\xaf",         "\xc1\xbf",         "\xe0\x80\xaf",
        "\xe2\x82", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80",
        "ab\xff",   "\xe2\x28\xa1", "\xf0\x9f\x98"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_int_equal(unpack_text(good[i], strlen(good[i])), AVL_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(unpack_text(bad[i], strlen(bad[i])), AVL_ERR_INVALID);
        assert_non_null(strstr(avl_status_detail(), "RawPrompt.text is not valid UTF-8"));
    }
    assert_int_equal(unpack_text("ab\0c", 4), AVL_ERR_INVALID);
    assert_string_equal(avl_status_detail(), "RawPrompt.text holds a NUL character at offset 2");
}

static void test_malformed(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t byte_count;
    } cases[] = {
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11}, /* a varint without end */
        {"\x0a", 1},                                          /* a length is missing */
        {"\x0a\x05"
         "ab",
         4},                                              /* shorter than it says */
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 10}, /* far longer */
        {"\x1a\x02\x0a\x05", 4},                          /* the same, nested */
        {"\x0b", 1},                                      /* a group */
        {"\x0f", 1},                                      /* no wire type */
        {"\x09\x01\x02", 3},                              /* half a 64-bit number */
        {"\x38", 1},                                      /* a bool without value */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(unpack(cases[i].bytes, cases[i].byte_count), AVL_ERR_INVALID);
        assert_non_null(strstr(avl_status_detail(), "malformed protobuf"));
    }
}

static void test_unknown_fields_pass(void **state) {
    (void)state;
    assert_int_equal(unpack("", 0), AVL_OK);
    assert_int_equal(unpack("\xfa\x7f\x02\xff\xff", 5),
                     AVL_OK); /* bytes of a field that a later version may have */
    assert_int_equal(unpack("\x0a\x01"
                            "a"
                            "\x0a\x01"
                            "b",
                            6),
                     AVL_OK); /* the last one counts */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_unknown_fields_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
