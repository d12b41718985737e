/* inputs/chat_template.c: finding a model directory's chat template, and rendering conversations
 * with it. */
#include "inputs/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "inputs/tokenizer_parts.h"

/* --- opening --- */

typedef avl_status_t parse_function(const char *json, size_t bytes, json_t **root_p);

/* A JSON file of the directory; *root_p stays NULL when there is none. */
static avl_status_t load(const char *directory, const char *name, parse_function *parse,
                         json_t **root_p) {
    char *bytes = NULL;
    size_t count = 0;
    avl_status_t status = avl_tokenizer_file(directory, name, &bytes, &count);
    if (status != AVL_OK)
        return status == AVL_ERR_NOT_FOUND ? AVL_OK : status;
    status = parse(bytes, count, root_p);
    free(bytes);
    return status == AVL_OK ? AVL_OK : avl_fail_in(status, "%s/%s", directory, name);
}

/* The template's source in a JSON file: a string, or a list of named ones of which "default"
 * counts. */
static avl_status_t source_in(const json_t *root, char **source_p) {
    const json_t *value = json_object_get(root, "chat_template");
    if (json_is_array(value)) {
        const json_t *list = value;
        value = NULL;
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *item = json_array_get(list, i);
            const char *name = json_string_value(json_object_get(item, "name"));
            if (name != NULL && strcmp(name, "default") == 0)
                value = json_object_get(item, "template");
        }
        if (value == NULL)
            return avl_fail(AVL_ERR_DATA, "chat_template is a list without one named \"default\"");
    }
    if (value == NULL || json_is_null(value))
        return AVL_OK;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return avl_fail(AVL_ERR_DATA, "chat_template must be a string without NULs");
    return avl_copy_string(json_string_value(value), source_p);
}

static avl_status_t find_source(const char *directory, const json_t *tokenizer_config,
                                char **source_p) {
    static const char *const files[] = {"chat_template.json", "processor_config.json"};
    size_t count = 0;
    avl_status_t status = avl_tokenizer_file(directory, "chat_template.jinja", source_p, &count);
    if (status == AVL_OK || status != AVL_ERR_NOT_FOUND)
        return status;
    for (size_t i = 0; i < 2 && *source_p == NULL; i++) {
        json_t *root = NULL;
        AVL_TRY(load(directory, files[i], avl_tokenizer_config_json, &root));
        status = source_in(root, source_p);
        json_decref(root);
        if (status != AVL_OK)
            return avl_fail_in(status, "%s/%s", directory, files[i]);
    }
    if (*source_p == NULL && source_in(tokenizer_config, source_p) != AVL_OK)
        return avl_fail_in(AVL_ERR_DATA, "%s/tokenizer_config.json", directory);
    return AVL_OK;
}

static const char *spelling(const json_t *token) {
    const json_t *content = json_is_object(token) ? json_object_get(token, "content") : token;
    return json_string_value(content);
}

/* The spelling of the image token: tokenizer_config.json lists added tokens by id; tokenizer.json
 * has them all. */
static avl_status_t find_placeholder(const char *directory, const json_t *tokenizer_config, int id,
                                     char **placeholder_p) {
    const json_t *tokens = json_object_get(tokenizer_config, "added_tokens_decoder");
    char key[16];
    snprintf(key, sizeof key, "%d", id);
    const char *known = spelling(json_object_get(tokens, key));
    if (known != NULL && known[0] != 0)
        return avl_copy_string(known, placeholder_p);
    json_t *root = NULL;
    AVL_TRY(load(directory, "tokenizer.json", avl_tokenizer_json, &root));
    const json_t *added = json_object_get(root, "added_tokens");
    known = NULL;
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i);
        if (json_integer_value(json_object_get(token, "id")) == id)
            known = spelling(token);
    }
    avl_status_t status =
        avl_copy_string(known == NULL || known[0] == 0 ? "<image>" : known, placeholder_p);
    json_decref(root);
    return status;
}

avl_status_t avl_chat_template_open(const char *directory, const avl_config_t *config,
                                    avl_chat_template_t **template_p) {
    avl_chat_template_t *chat_template = NULL;
    json_t *tokenizer_config = NULL;
    char *source = NULL;
    avl_status_t status;
    AVL_TRY_GOTO(status, avl_alloc(1, sizeof *chat_template, "chat template", &chat_template), out);
    AVL_TRY_GOTO(
        status,
        load(directory, "tokenizer_config.json", avl_tokenizer_config_json, &tokenizer_config),
        out);
    AVL_TRY_GOTO(status, find_source(directory, tokenizer_config, &source), out);
    AVL_TRY_GOTO(status,
                 find_placeholder(directory, tokenizer_config, config->model.image_token_id,
                                  &chat_template->placeholder),
                 out);
    const char *bos = spelling(json_object_get(tokenizer_config, "bos_token"));
    const char *eos = spelling(json_object_get(tokenizer_config, "eos_token"));
    status = avl_chat_template_recognise(chat_template, source, bos == NULL ? "" : bos,
                                         eos == NULL ? "" : eos);
    if (status != AVL_OK) {
        status = avl_fail_in(status, "%s", directory);
        goto out;
    }
    *template_p = chat_template;
    chat_template = NULL;
out:
    avl_chat_template_close(chat_template);
    json_decref(tokenizer_config);
    free(source);
    return status;
}

void avl_chat_template_close(avl_chat_template_t *chat_template) {
    if (chat_template == NULL)
        return;
    for (size_t i = 0; i < AVL_CHAT_STRINGS; i++)
        free(chat_template->strings[i]);
    free(chat_template->placeholder);
    free(chat_template);
}

const char *avl_chat_template_name(const avl_chat_template_t *chat_template) {
    static const char *const names[] = {"vicuna", "llama-2", "mistral", "llama-3", "chatml"};
    return names[chat_template->kind];
}

/* --- rendering --- */

typedef struct render {
    const avl_chat_template_t *chat_template;
    avl_text_t out;
} render_t;

static avl_status_t add(render_t *render, const char *text) {
    return avl_text_add(&render->out, text, strlen(text));
}

static avl_status_t add_string(render_t *render, avl_chat_string_t which) {
    return add(render, render->chat_template->strings[which]);
}

/* Pictures first, then texts, as the templates of LLaVA do. */
static avl_status_t add_content(render_t *render, const avl_message_t *message) {
    for (size_t i = 0; i < message->part_count; i++) {
        if (message->parts[i].text == NULL)
            AVL_TRY(add_string(render, AVL_CHAT_IMAGE));
    }
    for (size_t i = 0; i < message->part_count; i++) {
        if (message->parts[i].text == NULL)
            continue;
        AVL_TRY(add_string(render, AVL_CHAT_TEXT_BEFORE));
        AVL_TRY(add(render, message->parts[i].text));
        AVL_TRY(add_string(render, AVL_CHAT_TEXT_AFTER));
    }
    return AVL_OK;
}

/* White space for Python's strip(), which counts the four information separators as such. */
static bool is_stripped(uint32_t character) {
    return avl_character_is_space(character) || (character >= 0x1C && character <= 0x1F);
}

/* Takes white space off both ends of what was added since `start`. */
static void trim_from(render_t *render, size_t start) {
    avl_text_t *out = &render->out;
    size_t from = start, end = out->count, length;
    while (from < end) {
        if (!is_stripped(avl_utf8_decode(out->bytes + from, &length)))
            break;
        from += length;
    }
    while (end > from) {
        size_t before = avl_utf8_before(out->bytes, end);
        if (!is_stripped(avl_utf8_decode(out->bytes + before, &length)))
            break;
        end = before;
    }
    if (end > from)
        memmove(out->bytes + start, out->bytes + from, end - from);
    out->count = start + end - from;
}

static avl_status_t add_trimmed(render_t *render, const avl_message_t *message) {
    size_t start = render->out.count;
    AVL_TRY(add_content(render, message));
    if (render->chat_template->trim)
        trim_from(render, start);
    return AVL_OK;
}

static avl_status_t add_inst_message(render_t *render, const avl_message_t *message,
                                     const avl_message_t *system) {
    if (message->role == AVL_ROLE_ASSISTANT) {
        AVL_TRY(add_string(render, AVL_CHAT_ASSISTANT_BEFORE));
        AVL_TRY(add_trimmed(render, message));
        return add_string(render, AVL_CHAT_ASSISTANT_AFTER);
    }
    bool whole = message->role == AVL_ROLE_SYSTEM; /* LLaVA-NeXT: a message of its own */
    if (whole)
        system = message;
    else {
        AVL_TRY(add_string(render, AVL_CHAT_BOS));
        AVL_TRY(add_string(render, AVL_CHAT_ROLE_BEFORE));
    }
    size_t start = render->out.count;
    if (system != NULL) {
        AVL_TRY(add(render, "<<SYS>>\n"));
        AVL_TRY(add_content(render, system));
        AVL_TRY(add(render, "\n<</SYS>>\n\n"));
    }
    if (whole)
        return AVL_OK;
    AVL_TRY(add_content(render, message));
    if (render->chat_template->trim)
        trim_from(render, start);
    return add_string(render, AVL_CHAT_ROLE_AFTER);
}

static avl_status_t add_role_message(render_t *render, const avl_message_t *message) {
    static const char *const lower[] = {"system", "user", "assistant"};
    static const char *const upper[] = {"SYSTEM", "USER", "ASSISTANT"};
    bool vicuna = render->chat_template->kind == AVL_CHAT_VICUNA;
    if (!vicuna || message->role != AVL_ROLE_SYSTEM) {
        AVL_TRY(add_string(render, AVL_CHAT_ROLE_BEFORE));
        AVL_TRY(add(render, (vicuna ? upper : lower)[message->role]));
        AVL_TRY(add_string(render, AVL_CHAT_ROLE_AFTER));
    }
    AVL_TRY(add_trimmed(render, message));
    return add_string(render, AVL_CHAT_MESSAGE_AFTER);
}

static avl_status_t check_message(const avl_chat_template_t *chat_template,
                                  const avl_message_t *message, size_t index) {
    bool empty = true;
    if (message->role != AVL_ROLE_SYSTEM && message->role != AVL_ROLE_USER &&
        message->role != AVL_ROLE_ASSISTANT)
        return avl_fail(AVL_ERR_INVALID, "message %zu has the role %d, which is none", index,
                        (int)message->role);
    for (size_t i = 0; i < message->part_count; i++) {
        const char *text = message->parts[i].text;
        empty = empty && text != NULL && text[0] == 0;
        if (text == NULL && message->role != AVL_ROLE_USER)
            return avl_fail(AVL_ERR_INVALID, "message %zu has a picture but is not the user's",
                            index);
        if (text != NULL && !avl_utf8_valid(text, strlen(text)))
            return avl_fail(AVL_ERR_INVALID, "message %zu is not UTF-8", index);
        if (text != NULL && strstr(text, chat_template->placeholder) != NULL)
            return avl_fail(AVL_ERR_INVALID, "message %zu spells the image placeholder \"%s\"",
                            index, chat_template->placeholder);
    }
    return empty ? avl_fail(AVL_ERR_INVALID, "message %zu is empty", index) : AVL_OK;
}

/* Templates that count turns refuse two of one side in a row, and LLaMA-2 a system message anywhere
 * but first. */
static avl_status_t check_turns(const avl_chat_template_t *chat_template,
                                const avl_message_t *messages, size_t count) {
    if (!chat_template->alternate)
        return AVL_OK;
    size_t first = chat_template->kind == AVL_CHAT_LLAMA2 && messages[0].role == AVL_ROLE_SYSTEM;
    if (first == count)
        return avl_fail(AVL_ERR_INVALID, "a system message alone");
    for (size_t i = first; i < count; i++) {
        avl_role_t wanted = (i - first) % 2 == 0 ? AVL_ROLE_USER : AVL_ROLE_ASSISTANT;
        if (messages[i].role != wanted)
            return avl_fail(AVL_ERR_INVALID,
                            "message %zu: user and assistant must take turns, the user first%s", i,
                            first == 0 && messages[i].role == AVL_ROLE_SYSTEM
                                ? ", and this template has no place for a system message there"
                                : "");
    }
    return AVL_OK;
}

static avl_status_t add_messages(render_t *render, const avl_message_t *messages, size_t count) {
    const avl_chat_template_t *chat_template = render->chat_template;
    bool inst = chat_template->kind == AVL_CHAT_LLAMA2 || chat_template->kind == AVL_CHAT_MISTRAL;
    const avl_message_t *system = NULL; /* waits for the user message it goes into */
    if (!chat_template->default_system || messages[0].role != AVL_ROLE_SYSTEM)
        AVL_TRY(add_string(render, AVL_CHAT_FIRST));
    for (size_t i = 0; i < count; i++) {
        if (!inst) {
            AVL_TRY(add_role_message(render, &messages[i]));
        } else if (i == 0 && chat_template->kind == AVL_CHAT_LLAMA2 &&
                   messages[i].role == AVL_ROLE_SYSTEM) {
            system = &messages[i];
        } else {
            AVL_TRY(add_inst_message(render, &messages[i], system));
            system = NULL;
        }
    }
    AVL_TRY(add_string(render, AVL_CHAT_GENERATION));
    return avl_text_add(&render->out, "", 1);
}

avl_status_t avl_chat_template_render(const avl_chat_template_t *chat_template,
                                      const avl_message_t *messages, size_t message_count,
                                      char **text_p) {
    if (message_count == 0)
        return avl_fail(AVL_ERR_INVALID, "a conversation without messages");
    for (size_t i = 0; i < message_count; i++)
        AVL_TRY(check_message(chat_template, &messages[i], i));
    AVL_TRY(check_turns(chat_template, messages, message_count));
    render_t render = {.chat_template = chat_template};
    avl_status_t status = add_messages(&render, messages, message_count);
    if (status != AVL_OK) {
        avl_text_free(&render.out);
        return status;
    }
    *text_p = render.out.bytes;
    return AVL_OK;
}
