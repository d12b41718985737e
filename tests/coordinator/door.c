/* What is read of a call before it is unpacked: any portions, any fields, any bytes. */
#include "coordinator/door.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/inference.pb-c.h"

static avl_asked_t look(const uint8_t *bytes, size_t byte_count, size_t portion) {
    avl_door_t door;
    memset(&door, 0, sizeof door);
    for (size_t at = 0; at < byte_count; at += portion)
        avl_door_read(&door, bytes + at, byte_count - at < portion ? byte_count - at : portion);
    return avl_door_asked(&door, 8, 0);
}

static void expect(const Avl__V1__GenerateRequest *request, avl_asked_t expected) {
    uint8_t bytes[2048];
    assert_true(avl__v1__generate_request__get_packed_size(request) <= sizeof bytes);
    size_t byte_count = avl__v1__generate_request__pack(request, bytes);
    for (size_t portion = 1; portion <= byte_count + 1; portion++) {
        avl_asked_t asked = look(bytes, byte_count, portion);
        assert_int_equal(asked.priority, expected.priority);
        assert_int_equal(asked.tokens_max, expected.tokens_max);
        assert_int_equal(asked.answers, expected.answers);
        assert_int_equal(asked.all_tokens, expected.all_tokens);
    }
}

static void test_fields(void **state) {
    (void)state;
    char text[700], name[] = "name";
    memset(text, 0x82, sizeof text - 1); /* would be numbers */
    text[sizeof text - 1] = '\0';
    Avl__V1__GenerateRequest request;
    Avl__V1__RawPrompt prompt;
    Avl__V1__SamplingParameters sampling;
    avl__v1__generate_request__init(&request);
    avl__v1__raw_prompt__init(&prompt);
    avl__v1__sampling_parameters__init(&sampling);
    expect(&request, (avl_asked_t){0});
    prompt.text = text;
    request.request_id = name;
    request.input_case = AVL__V1__GENERATE_REQUEST__INPUT_RAW_PROMPT;
    request.raw_prompt = &prompt;
    sampling._temperature_case = 1;
    sampling.temperature = 0.5;
    request.sampling = &sampling;
    request.max_tokens = 300;
    request.priority = -7;
    request.n = 5;
    expect(&request, (avl_asked_t){.tokens_max = 300, .priority = -7, .answers = 5});
    request.ignore_eos = true;
    expect(&request,
           (avl_asked_t){.tokens_max = 300, .priority = -7, .answers = 5, .all_tokens = true});
    request.max_tokens = 0; /* as many as the context holds, which is not known here */
    request.n = 9;          /* more than are allowed: refused later */
    request.priority = 101;
    expect(&request, (avl_asked_t){0});
    int32_t forced[] = {1, 300, 70000, 5};
    request.ignore_eos = false;
    request.n_forced_token_ids = 4;
    request.forced_token_ids = forced;
    expect(&request, (avl_asked_t){.tokens_max = 4, .all_tokens = true});
}

static void test_operators_limit(void **state) {
    (void)state;
    const uint8_t bytes[] = {6 << 3, 100};
    avl_door_t door;
    memset(&door, 0, sizeof door);
    assert_int_equal(avl_door_asked(&door, 8, 50).tokens_max, 50);
    avl_door_read(&door, bytes, sizeof bytes);
    assert_int_equal(avl_door_asked(&door, 8, 50).tokens_max, 50);
    assert_int_equal(avl_door_asked(&door, 8, 200).tokens_max, 100);
}

static void test_nonsense(void **state) {
    (void)state;
    uint8_t bytes[64];
    uint32_t random = 4711;
    for (int round = 0; round < 20000; round++) {
        for (size_t i = 0; i < sizeof bytes; i++) {
            random = random * 1664525u + 1013904223u;
            bytes[i] = (uint8_t)(random >> 24);
        }
        if (round % 2 == 0)
            memset(bytes + round % 40, 0xff, 20);
        avl_asked_t whole = look(bytes, sizeof bytes, sizeof bytes), apart = look(bytes, 64, 3);
        assert_int_equal(whole.tokens_max, apart.tokens_max);
        assert_in_range(whole.answers, 0, 8);
        assert_true(whole.priority >= -100 && whole.priority <= 100 && whole.tokens_max >= 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_operators_limit),
        cmocka_unit_test(test_nonsense),
    };
    return cmocka_run_group_tests_name("coordinator door", tests, NULL, NULL);
}
