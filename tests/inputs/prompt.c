/* tests/inputs/prompt.c: chat templates against what `transformers` renders with the published ones
 * (tools/reference/tokenizer_prompts.py), and prompts with their pictures' rows. */
#include "inputs/prompt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#define PARTS_MAX 8
#define MESSAGES_MAX 8

typedef struct conversation {
    avl_message_part_t parts[MESSAGES_MAX][PARTS_MAX];
    avl_message_t messages[MESSAGES_MAX];
    size_t count;
} conversation_t;

static avl_role_t role_of(const char *name) {
    if (strcmp(name, "system") == 0)
        return AVL_ROLE_SYSTEM;
    return strcmp(name, "user") == 0 ? AVL_ROLE_USER : AVL_ROLE_ASSISTANT;
}

static void read_conversation(const json_t *list, conversation_t *conversation) {
    conversation->count = json_array_size(list);
    assert_true(conversation->count <= MESSAGES_MAX);
    for (size_t i = 0; i < conversation->count; i++) {
        const json_t *message = json_array_get(list, i), *parts = json_object_get(message, "parts");
        assert_true(json_array_size(parts) <= PARTS_MAX);
        for (size_t j = 0; j < json_array_size(parts); j++)
            conversation->parts[i][j].text = json_string_value(json_array_get(parts, j));
        conversation->messages[i] =
            (avl_message_t){.role = role_of(json_string_value(json_object_get(message, "role"))),
                            .parts = conversation->parts[i],
                            .part_count = json_array_size(parts)};
    }
}

static void write_text(const char *directory, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void write_json(const char *directory, const char *name, const json_t *json) {
    char *text = json_dumps(json, 0);
    assert_non_null(text);
    write_text(directory, name, text);
    free(text);
}

static void remove_directory(const char *directory) {
    static const char *const names[] = {"chat_template.jinja", "chat_template.json",
                                        "processor_config.json", "tokenizer_config.json",
                                        "tokenizer.json"};
    char path[256];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(directory), 0);
}

static avl_config_t config_with(int image_token_id) {
    avl_config_t config;
    memset(&config, 0, sizeof config);
    config.model.image_token_id = image_token_id;
    return config;
}

#define SHIPPED AVL_SOURCE_DIR "/models/avl-tiny"

static avl_config_t shipped(void) {
    avl_config_t config;
    assert_int_equal(avl_config_load(SHIPPED, &config), AVL_OK);
    return config;
}

/* Puts the template where its entry says that such models have it. */
static void write_template(const char *directory, const json_t *entry) {
    const char *place = json_string_value(json_object_get(entry, "place"));
    const char *source = json_string_value(json_object_get(entry, "template"));
    json_t *config =
        json_pack("{s:s, s:{s:s}}", "bos_token", json_string_value(json_object_get(entry, "bos")),
                  "eos_token", "content", json_string_value(json_object_get(entry, "eos")));
    if (strcmp(place, "tokenizer_config.json") == 0)
        json_object_set_new(config, "chat_template", json_string(source));
    else if (strcmp(place, "list") == 0)
        json_object_set_new(config, "chat_template",
                            json_pack("[{s:s, s:s}, {s:s, s:s}]", "name", "tool_use", "template",
                                      "no", "name", "default", "template", source));
    else
        json_object_set_new(config, "chat_template", json_string("never read"));
    write_json(directory, "tokenizer_config.json", config);
    json_decref(config);
    if (strcmp(place, "chat_template.jinja") == 0) {
        write_text(directory, place, source);
    } else if (strcmp(place, "chat_template.json") == 0 ||
               strcmp(place, "processor_config.json") == 0) {
        json_t *file = json_pack("{s:s}", "chat_template", source);
        write_json(directory, place, file);
        json_decref(file);
    }
}

static void check_entry(const json_t *entry, const json_t *conversations) {
    char directory[] = "/tmp/avl-prompt-XXXXXX";
    const char *name = json_string_value(json_object_get(entry, "name"));
    assert_non_null(mkdtemp(directory));
    write_template(directory, entry);
    avl_config_t config = config_with(32000);
    avl_chat_template_t *chat_template = NULL;
    if (avl_chat_template_open(directory, &config, &chat_template) != AVL_OK)
        fail_msg("%s: %s", name, avl_status_detail());
    assert_string_equal(avl_chat_template_name(chat_template),
                        json_string_value(json_object_get(entry, "kind")));
    const json_t *rendered = json_object_get(entry, "rendered");
    assert_int_equal(json_array_size(rendered), json_array_size(conversations));
    for (size_t i = 0; i < json_array_size(conversations); i++) {
        conversation_t conversation;
        read_conversation(json_array_get(conversations, i), &conversation);
        const char *expected = json_string_value(json_array_get(rendered, i));
        char *text = NULL;
        avl_status_t status = avl_chat_template_render(chat_template, conversation.messages,
                                                       conversation.count, &text);
        if (status != (expected == NULL ? AVL_ERR_INVALID : AVL_OK) ||
            (expected != NULL && strcmp(text, expected) != 0))
            fail_msg("%s, conversation %zu: status %d, \"%s\"; expected \"%s\"", name, i,
                     (int)status, text == NULL ? avl_status_detail() : text,
                     expected == NULL ? "(refused)" : expected);
        free(text);
    }
    avl_chat_template_close(chat_template);
    remove_directory(directory);
}

static void test_reference(void **context) {
    (void)context;
    json_error_t error;
    json_t *data = json_load_file(AVL_SOURCE_DIR "/tests/inputs/data/prompts.json", 0, &error);
    assert_non_null(data);
    const json_t *templates = json_object_get(data, "templates");
    assert_true(json_array_size(templates) >= 12);
    for (size_t i = 0; i < json_array_size(templates); i++)
        check_entry(json_array_get(templates, i), json_object_get(data, "conversations"));
    json_decref(data);
}

/* A directory without a template gets Vicuna's; the placeholder is spelled as the tokenizer spells
 * the image id. */
static void test_default(void **context) {
    (void)context;
    char directory[] = "/tmp/avl-prompt-XXXXXX";
    assert_non_null(mkdtemp(directory));
    avl_config_t config = config_with(7);
    avl_message_part_t parts[] = {{"What?"}, {NULL}};
    avl_message_t message = {AVL_ROLE_USER, parts, 2};
    static const char *const expected[] = {
        "USER: <image>\nWhat? ASSISTANT:", "USER: <pic>\nWhat? ASSISTANT:",
        "USER: [IMG]\nWhat? ASSISTANT:"};
    for (size_t i = 0; i < 3; i++) {
        if (i == 1)
            write_text(directory, "tokenizer.json",
                       "{\"added_tokens\":[{\"id\":7,\"content\":\"<pic>\"}]}");
        if (i == 2)
            write_text(directory, "tokenizer_config.json",
                       "{\"model_max_length\":1000000000000000019884624838656,"
                       "\"added_tokens_decoder\":{\"7\":{\"content\":\"[IMG]\"}}}");
        avl_chat_template_t *chat_template = NULL;
        assert_int_equal(avl_chat_template_open(directory, &config, &chat_template), AVL_OK);
        assert_string_equal(avl_chat_template_name(chat_template), "vicuna");
        char *text = NULL;
        assert_int_equal(avl_chat_template_render(chat_template, &message, 1, &text), AVL_OK);
        assert_string_equal(text, expected[i]);
        free(text);
        avl_chat_template_close(chat_template);
    }
    remove_directory(directory);
}

static void test_unknown(void **context) {
    (void)context;
    static const struct {
        const char *config, *words;
        avl_status_t status;
    } cases[] = {
        {"{\"chat_template\":\"{{ mystery }}\\nmore\"}", "\"{{ mystery }}\"", AVL_ERR_UNSUPPORTED},
        {"{\"chat_template\":\"[INST] 'assistant' if part['type'] == 1\"}", "unknown kind",
         AVL_ERR_UNSUPPORTED},
        {"{\"chat_template\":3}", "chat_template must be a string", AVL_ERR_DATA},
        {"{\"chat_template\":[{\"name\":\"rag\",\"template\":\"x\"}]}", "\"default\"",
         AVL_ERR_DATA},
        {"{\"chat_template\":", "line 1", AVL_ERR_DATA},
        {"{\"chat_template\":\"<|im_start|>{% if add_generation_prompt %}{{ start }}{% endif %}\"}",
         "no plain text behind add_generation_prompt", AVL_ERR_UNSUPPORTED},
        {"{\"chat_template\":\"<|im_start|>{{ '<|im_start|>system\\nA chat.' }}\"}",
         "does not start with \"You\"", AVL_ERR_UNSUPPORTED},
        {"{\"chat_template\":\"{{ 'A chat.' }}{% for m in messages %} selectattr ASSISTANT: "
         "message['role'].upper(){% endfor %}\"}",
         "writes \"'A chat.'", AVL_ERR_UNSUPPORTED},
        {"{\"chat_template\":\"ASSISTANT: message['role'].upper()\"}", "without pictures",
         AVL_ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char directory[] = "/tmp/avl-prompt-XXXXXX";
        assert_non_null(mkdtemp(directory));
        write_text(directory, "tokenizer_config.json", cases[i].config);
        avl_config_t config = config_with(7);
        avl_chat_template_t *chat_template = NULL;
        assert_int_equal(avl_chat_template_open(directory, &config, &chat_template),
                         cases[i].status);
        if (strstr(avl_status_detail(), cases[i].words) == NULL)
            fail_msg("case %zu: %s", i, avl_status_detail());
        assert_null(chat_template);
        remove_directory(directory);
    }
}

static void test_refused(void **context) {
    (void)context;
    avl_config_t config = shipped();
    avl_chat_template_t *chat_template = NULL;
    assert_int_equal(avl_chat_template_open(SHIPPED, &config, &chat_template), AVL_OK);
    avl_message_part_t text = {"hi"}, empty = {""}, picture = {NULL}, spelled = {"a <image> b"},
                       broken = {"\xFF"};
    const struct {
        avl_message_t message;
        const char *words;
    } cases[] = {
        {{AVL_ROLE_USER, NULL, 0}, "message 1 is empty"},
        {{AVL_ROLE_USER, &empty, 1}, "message 1 is empty"},
        {{AVL_ROLE_ASSISTANT, &picture, 1}, "message 1 has a picture"},
        {{AVL_ROLE_SYSTEM, &picture, 1}, "message 1 has a picture"},
        {{AVL_ROLE_USER, &spelled, 1}, "spells the image placeholder \"<image>\""},
        {{AVL_ROLE_USER, &broken, 1}, "message 1 is not UTF-8"},
        {{(avl_role_t)9, &text, 1}, "message 1 has the role 9"},
    };
    char *rendered = NULL;
    assert_int_equal(avl_chat_template_render(chat_template, NULL, 0, &rendered), AVL_ERR_INVALID);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        avl_message_t messages[] = {{AVL_ROLE_USER, &text, 1}, cases[i].message};
        assert_int_equal(avl_chat_template_render(chat_template, messages, 2, &rendered),
                         AVL_ERR_INVALID);
        if (strstr(avl_status_detail(), cases[i].words) == NULL)
            fail_msg("case %zu: %s", i, avl_status_detail());
        assert_null(rendered);
    }
    avl_chat_template_close(chat_template);
}

/* --- prompts --- */

static avl_tokenizer_t *tiny(void) {
    avl_tokenizer_t *tokenizer = NULL;
    assert_int_equal(avl_tokenizer_open(SHIPPED, &tokenizer), AVL_OK);
    return tokenizer;
}

static void test_build(void **context) {
    (void)context;
    avl_tokenizer_t *tokenizer = tiny();
    avl_config_t config = shipped();
    avl_image_layout_t layouts[] = {{.prompt_rows = 3}, {.prompt_rows = 1}};
    static const char *const texts[] = {"<image>\nA<image> b", "<s><image>\nA<image> b"};
    for (size_t i = 0; i < 2; i++) { /* a bos written in the text is not doubled */
        avl_prompt_t prompt;
        assert_int_equal(avl_prompt_build(tokenizer, &config, texts[i], layouts, 2, 64, &prompt),
                         AVL_OK);
        assert_int_equal(prompt.image_count, 2);
        assert_int_equal(prompt.token_ids[0], 1);
        assert_int_equal(prompt.images[0].start, 1);
        assert_int_equal(prompt.images[0].rows, 3);
        for (int32_t row = 1; row < 4; row++)
            assert_int_equal(prompt.token_ids[row], config.model.image_token_id);
        assert_int_not_equal(prompt.token_ids[4], config.model.image_token_id);
        assert_int_equal(prompt.images[1].rows, 1);
        assert_int_equal(prompt.token_ids[prompt.images[1].start], config.model.image_token_id);
        assert_true(prompt.images[1].start > 4);
        assert_true(prompt.row_count > prompt.images[1].start + 1);
        avl_prompt_free(&prompt);
        assert_null(prompt.token_ids);
    }
    avl_tokenizer_close(tokenizer);
}

static void test_build_refused(void **context) {
    (void)context;
    avl_tokenizer_t *tokenizer = tiny();
    avl_config_t config = shipped();
    avl_image_layout_t layouts[] = {
        {.prompt_rows = 196}, {.prompt_rows = INT32_MAX}, {.prompt_rows = 0}};
    avl_prompt_t prompt = {0};
    assert_int_equal(avl_prompt_build(tokenizer, &config, "", NULL, 0, 64, &prompt),
                     AVL_ERR_INVALID);
    assert_int_equal(avl_prompt_build(tokenizer, &config, "hi", layouts, 1, 999, &prompt),
                     AVL_ERR_INVALID);
    assert_non_null(strstr(avl_status_detail(), "0 image placeholders, the request has 1 image"));
    assert_int_equal(
        avl_prompt_build(tokenizer, &config, "<image><image>", layouts, 1, 999, &prompt),
        AVL_ERR_INVALID);
    assert_non_null(strstr(avl_status_detail(), "2 image placeholders, the request has 1 image"));
    assert_int_equal(avl_prompt_build(tokenizer, &config, "<image>", layouts, 1, 196, &prompt),
                     AVL_ERR_TOO_LARGE);
    assert_non_null(strstr(avl_status_detail(), "197 rows, the limit is 196"));
    assert_int_equal(
        avl_prompt_build(tokenizer, &config, "<image><image>", layouts, 2, 999, &prompt),
        AVL_ERR_TOO_LARGE);
    assert_int_equal(avl_prompt_build(tokenizer, &config, "<image>", layouts + 2, 1, 999, &prompt),
                     AVL_ERR_INVALID);
    assert_null(prompt.token_ids);
    avl_tokenizer_close(tokenizer);
}

/* The prompts of the shipped cases, from the question to the ids. */
static void test_cases(void **context) {
    (void)context;
    static const char *const names[] = {"00", "01", "02", "03", "04", "05"};
    avl_tokenizer_t *tokenizer = tiny();
    avl_config_t config = shipped();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[512];
        json_error_t error;
        snprintf(path, sizeof path, AVL_SOURCE_DIR "/models/cases/%s/case.json", names[i]);
        json_t *root = json_load_file(path, 0, &error);
        assert_non_null(root);
        const json_t *ids = json_object_get(root, "prompt_ids");
        avl_image_layout_t layout = {
            .prompt_rows = (int)json_integer_value(json_object_get(root, "image_tokens"))};
        avl_prompt_t prompt;
        assert_int_equal(avl_prompt_build(tokenizer, &config,
                                          json_string_value(json_object_get(root, "prompt")),
                                          &layout, 1, 1024, &prompt),
                         AVL_OK);
        int32_t start = (int32_t)json_integer_value(json_object_get(root, "image_start"));
        assert_int_equal(prompt.images[0].start, start);
        assert_int_equal(prompt.row_count, (int)json_array_size(ids) + layout.prompt_rows - 1);
        for (int32_t row = 0; row < prompt.row_count; row++) {
            int32_t at = row < start                        ? row
                         : row < start + layout.prompt_rows ? start
                                                            : row - layout.prompt_rows + 1;
            assert_int_equal(prompt.token_ids[row],
                             json_integer_value(json_array_get(ids, (size_t)at)));
        }
        avl_prompt_free(&prompt);
        json_decref(root);
    }
    avl_tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_default),
        cmocka_unit_test(test_unknown),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_build),     cmocka_unit_test(test_build_refused),
        cmocka_unit_test(test_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
