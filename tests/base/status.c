/* tests/base/status.c: what a failure says, and checked memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "base/memory.h"
#include "base/status.h"

static void detail_is_kept_and_put_into_context(void **state) {
    (void)state;
    assert_int_equal(avl_fail(AVL_ERR_DATA, "row %d", 7), AVL_ERR_DATA);
    assert_string_equal(avl_status_detail(), "row 7");
    assert_int_equal(avl_fail_in(AVL_ERR_DATA, "file %s", "a"), AVL_ERR_DATA);
    assert_string_equal(avl_status_detail(), "file a: row 7");
    /* The recorded text may be an argument of the next one. */
    assert_int_equal(avl_fail(AVL_ERR_IO, "<%s>", avl_status_detail()), AVL_ERR_IO);
    assert_string_equal(avl_status_detail(), "<file a: row 7>");
}

static void long_detail_is_cut_not_overrun(void **state) {
    (void)state;
    char text[3 * AVL_STATUS_DETAIL_BYTES];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    assert_int_equal(avl_fail(AVL_ERR_DATA, "%s", text), AVL_ERR_DATA);
    assert_int_equal(strlen(avl_status_detail()), AVL_STATUS_DETAIL_BYTES - 1);
    assert_int_equal(avl_fail_in(AVL_ERR_DATA, "%s", text), AVL_ERR_DATA);
    assert_int_equal(strlen(avl_status_detail()), AVL_STATUS_DETAIL_BYTES - 1);
}

/* A text that was cut inside a character, and bytes that never were one. */
static void detail_is_utf8(void **state) {
    (void)state;
    (void)avl_fail(AVL_ERR_DATA, "\"%.4s\" \xff", "\xe2\x82\xac\xe2\x82\xac");
    assert_string_equal(avl_status_detail(), "\"\xe2\x82\xac?\" ?");
    char text[AVL_STATUS_DETAIL_BYTES + 8];
    memset(text, 'x', sizeof text);
    memcpy(text + AVL_STATUS_DETAIL_BYTES - 2, "\xc3\xa9", 3); /* its second byte does not fit */
    (void)avl_fail(AVL_ERR_DATA, "%s", text);
    assert_int_equal(strlen(avl_status_detail()), AVL_STATUS_DETAIL_BYTES - 1);
    assert_int_equal(avl_status_detail()[AVL_STATUS_DETAIL_BYTES - 2], '?');
}

static void every_status_has_a_name_of_its_own(void **state) {
    (void)state;
    static const avl_status_t all[] = {AVL_OK,
                                       AVL_ERR_INVALID,
                                       AVL_ERR_NOT_FOUND,
                                       AVL_ERR_UNSUPPORTED,
                                       AVL_ERR_TOO_LARGE,
                                       AVL_ERR_EXHAUSTED,
                                       AVL_ERR_DEADLINE,
                                       AVL_ERR_CANCELLED,
                                       AVL_ERR_UNAVAILABLE,
                                       AVL_ERR_IO,
                                       AVL_ERR_DATA,
                                       AVL_ERR_MEMORY,
                                       AVL_ERR_SHAPE,
                                       AVL_ERR_DEVICE,
                                       AVL_ERR_COMM,
                                       AVL_ERR_TIMEOUT,
                                       AVL_ERR_PEER,
                                       AVL_ERR_INTERNAL};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        assert_string_not_equal(avl_status_name(all[i]), "UNKNOWN");
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(avl_status_name(all[i]), avl_status_name(all[j]));
    }
    assert_string_equal(avl_status_name((avl_status_t)9999), "UNKNOWN");
}

static void impossible_allocations_fail_with_numbers(void **state) {
    (void)state;
    int marker = 0;
    void *memory = &marker;
    assert_int_equal(avl_alloc(SIZE_MAX / 2, 4, "rows", &memory), AVL_ERR_MEMORY);
    assert_non_null(strstr(avl_status_detail(), "rows"));
    assert_int_equal(avl_alloc_aligned(SIZE_MAX, 1, "rows", &memory), AVL_ERR_MEMORY);
    assert_ptr_equal(memory, &marker);
    int *items = NULL;
    size_t capacity = 0;
    assert_int_equal(avl_grow(SIZE_MAX / 2, sizeof *items, "items", &items, &capacity),
                     AVL_ERR_MEMORY);
    assert_null(items);
    assert_int_equal(capacity, 0);
}

static void memory_is_zeroed_aligned_and_grows(void **state) {
    (void)state;
    unsigned char *bytes = NULL;
    assert_int_equal(avl_alloc_aligned(1000, 1, "bytes", &bytes), AVL_OK);
    assert_int_equal((uintptr_t)bytes % AVL_ALIGNMENT_BYTES, 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(bytes[i], 0);
    free(bytes);
    assert_int_equal(avl_alloc(0, 8, "nothing", &bytes), AVL_OK);
    assert_non_null(bytes);
    free(bytes);
    int *items = NULL;
    size_t capacity = 0;
    for (int i = 0; i < 5000; i++) {
        assert_int_equal(avl_grow((size_t)i + 1, sizeof *items, "items", &items, &capacity),
                         AVL_OK);
        items[i] = i;
    }
    for (int i = 0; i < 5000; i++)
        assert_int_equal(items[i], i);
    free(items);
}

static void number_formats_convert(void **state) {
    (void)state;
    /* bf16: every value survives a round trip; halfway cases go to the even neighbour. */
    for (uint32_t bits = 0; bits <= 0xffff; bits++) {
        float value = avl_bf16_to_f32((uint16_t)bits);
        if (value == value)
            assert_int_equal(avl_f32_to_bf16(value), bits);
    }
    assert_int_equal(avl_f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
    assert_int_equal(avl_f32_to_bf16(1.0f + 0x3p-8f), 0x3f82);
    float nan = avl_bf16_to_f32(avl_f32_to_bf16(__builtin_nanf("")));
    assert_true(nan != nan);
    /* f16 against its definition. */
    assert_true(avl_f16_to_f32(0x3c00) == 1.0f);
    assert_true(avl_f16_to_f32(0x0001) == 0x1p-24f);
    assert_true(avl_f16_to_f32(0x03ff) == 0x3ffp-24f);
    assert_true(avl_f16_to_f32(0x0400) == 0x1p-14f);
    assert_true(avl_f16_to_f32(0xfbff) == -65504.0f);
    assert_true(avl_f16_to_f32(0x7c00) == __builtin_inff());
    assert_true(avl_f16_to_f32(0x7e00) != avl_f16_to_f32(0x7e00));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(detail_is_kept_and_put_into_context),
        cmocka_unit_test(long_detail_is_cut_not_overrun),
        cmocka_unit_test(detail_is_utf8),
        cmocka_unit_test(every_status_has_a_name_of_its_own),
        cmocka_unit_test(impossible_allocations_fail_with_numbers),
        cmocka_unit_test(memory_is_zeroed_aligned_and_grows),
        cmocka_unit_test(number_formats_convert),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
