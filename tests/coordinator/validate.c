#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/validate.h"

static const avl_generation_config_t generation = {
    .sample = true, .temperature = 0.5f, .top_p = 0.75f, .top_k = 40};

#define SAMPLING(name) AVL__V1__SAMPLING_PARAMETERS___##name

static void test_sampling_defaults(void **state) {
    (void)state;
    avl_sampling_choice_t choice;
    assert_int_equal(avl_sampling_read(NULL, &generation, &choice), AVL_OK);
    assert_true(choice.temperature == 0.5 && choice.top_p == 0.75 && choice.top_k == 40);
    avl_generation_config_t greedy = generation;
    greedy.sample = false;
    assert_int_equal(avl_sampling_read(NULL, &greedy, &choice), AVL_OK);
    assert_true(choice.temperature == 0);
    uint64_t first = choice.seed;
    assert_int_equal(avl_sampling_read(NULL, &greedy, &choice), AVL_OK);
    assert_true(choice.seed != first); /* wrong once in 2^64 */
}

static void test_sampling_values(void **state) {
    (void)state;
    static const struct {
        double temperature, top_p;
        avl_status_t status;
        const char *text;
    } rows[] = {
        {0, 1, AVL_OK, ""},
        {100, 1e-9, AVL_OK, ""},
        {-0.1, 1, AVL_ERR_INVALID, "sampling.temperature is -0.1; allowed: 0 (greedy) to 100"},
        {NAN, 1, AVL_ERR_INVALID, "sampling.temperature is nan; allowed: 0 (greedy) to 100"},
        {INFINITY, 1, AVL_ERR_INVALID, "sampling.temperature is inf; allowed: 0 (greedy) to 100"},
        {1, 0, AVL_ERR_INVALID, "sampling.top_p is 0; allowed: more than 0, at most 1"},
        {1, 1.25, AVL_ERR_INVALID, "sampling.top_p is 1.25; allowed: more than 0, at most 1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Avl__V1__SamplingParameters given;
        avl__v1__sampling_parameters__init(&given);
        given._temperature_case = SAMPLING(TEMPERATURE_TEMPERATURE);
        given.temperature = rows[i].temperature;
        given._top_p_case = SAMPLING(TOP_P_TOP_P);
        given.top_p = rows[i].top_p;
        given._seed_case = SAMPLING(SEED_SEED);
        given.seed = 17;
        avl_sampling_choice_t choice;
        assert_int_equal(avl_sampling_read(&given, &generation, &choice), rows[i].status);
        if (rows[i].status == AVL_OK)
            assert_true(choice.seed == 17 && choice.top_k == 40 &&
                        choice.temperature == rows[i].temperature);
        else
            assert_string_equal(avl_status_detail(), rows[i].text);
    }
}

static void test_conversation(void **state) {
    (void)state;
    unsigned char byte = 1;
    Avl__V1__Image image;
    avl__v1__image__init(&image);
    image.data = (ProtobufCBinaryData){1, &byte};
    char hello[] = "hello";
    Avl__V1__ContentPart parts[3], *part_list[3] = {&parts[0], &parts[1], &parts[2]};
    for (int i = 0; i < 3; i++) {
        avl__v1__content_part__init(&parts[i]);
        parts[i].part_case = AVL__V1__CONTENT_PART__PART_IMAGE;
        parts[i].image = &image;
    }
    parts[1].part_case = AVL__V1__CONTENT_PART__PART_TEXT;
    parts[1].text = hello;
    Avl__V1__Message message, *messages[1] = {&message};
    avl__v1__message__init(&message);
    message.role = AVL__V1__ROLE__ROLE_USER;
    message.n_content = 3;
    message.content = part_list;
    Avl__V1__Conversation conversation;
    avl__v1__conversation__init(&conversation);
    conversation.n_messages = 1;
    conversation.messages = messages;

    avl_conversation_t made;
    assert_int_equal(avl_conversation_read(&conversation, 2, &made), AVL_OK);
    assert_int_equal(made.message_count, 1);
    assert_int_equal(made.image_count, 2);
    assert_int_equal(made.messages[0].role, AVL_ROLE_USER);
    assert_int_equal(made.messages[0].part_count, 3);
    assert_null(made.messages[0].parts[0].text);
    assert_string_equal(made.messages[0].parts[1].text, "hello");
    avl_conversation_free(&made);

    assert_int_equal(avl_conversation_read(&conversation, 1, &made), AVL_ERR_TOO_LARGE);
    assert_string_equal(avl_status_detail(), "the request has 2 images; at most 1 are allowed");
    image.data.len = 0;
    assert_int_equal(avl_conversation_read(&conversation, 2, &made), AVL_ERR_INVALID);
    message.role = (Avl__V1__Role)9;
    assert_int_equal(avl_conversation_read(&conversation, 2, &made), AVL_ERR_INVALID);
    assert_string_equal(avl_status_detail(),
                        "messages[0].role is 9; allowed: 1 (system), 2 (user), 3 (assistant)");
    conversation.n_messages = 0;
    assert_int_equal(avl_conversation_read(&conversation, 2, &made), AVL_ERR_INVALID);
    assert_int_equal(avl_conversation_read(NULL, 2, &made), AVL_ERR_INVALID);
    assert_int_equal(avl_raw_prompt_read(NULL, 2, &made), AVL_ERR_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampling_defaults),
        cmocka_unit_test(test_sampling_values),
        cmocka_unit_test(test_conversation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
