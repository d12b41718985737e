/* inputs/chat_template_recognise.c: the kind of a chat template, and the strings in which it
 * differs from others of its kind. The public templates of these families were the examples; what
 * strays from their shape is refused. */
#include "inputs/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "inputs/tokenizer_parts.h"

static avl_status_t set(avl_chat_template_t *chat_template, avl_chat_string_t which,
                        const char *value) {
    char *copy = NULL;
    AVL_TRY(avl_copy_string(value, &copy));
    free(chat_template->strings[which]);
    chat_template->strings[which] = copy;
    return AVL_OK;
}

static const char *skip_blanks(const char *at) {
    return at + strspn(at, " \t\r\n-");
}

/* Appends the string literal at `at` with its escapes resolved; NULL when there is none. */
static avl_status_t read_literal(const char *at, avl_text_t *out, const char **end_p) {
    char quote = *at;
    *end_p = NULL;
    if (quote != '\'' && quote != '"')
        return AVL_OK;
    for (at++; *at != 0 && *at != quote; at++) {
        char byte = *at;
        if (byte == '\\' && at[1] != 0) {
            at++;
            byte = *at == 'n' ? '\n' : *at == 't' ? '\t' : *at == 'r' ? '\r' : *at;
            /* An escape that Jinja does not know keeps its backslash. */
            if (byte == *at && strchr("\\'\"", byte) == NULL)
                AVL_TRY(avl_text_add(out, "\\", 1));
        }
        AVL_TRY(avl_text_add(out, &byte, 1));
    }
    if (*at == quote)
        *end_p = at + 1;
    return AVL_OK;
}

/* Literals joined by + from `at` on, as one string, with bos_token and eos_token among them. */
static avl_status_t read_joined(const char *at, const char *bos, const char *eos, avl_text_t *out) {
    for (;;) {
        const char *end = NULL;
        at = skip_blanks(at);
        if (strncmp(at, "bos_token", 9) == 0) {
            AVL_TRY(avl_text_add(out, bos, strlen(bos)));
            end = at + 9;
        } else if (strncmp(at, "eos_token", 9) == 0) {
            AVL_TRY(avl_text_add(out, eos, strlen(eos)));
            end = at + 9;
        } else {
            AVL_TRY(read_literal(at, out, &end));
        }
        if (end == NULL)
            return AVL_OK;
        at = skip_blanks(end);
        if (*at != '+')
            return AVL_OK;
        at++;
    }
}

/* The string that is joined behind the first `needle`: '...' of "needle + '...'". Unset when there
 * is none. */
static avl_status_t set_behind(avl_chat_template_t *chat_template, avl_chat_string_t which,
                               const char *source, const char *needle, const char *bos,
                               const char *eos) {
    const char *at = strstr(source, needle);
    if (at == NULL)
        return AVL_OK;
    at = skip_blanks(at + strlen(needle));
    if (*at != '+')
        return AVL_OK;
    avl_text_t text = {0};
    avl_status_t status = read_joined(at + 1, bos, eos, &text);
    if (status == AVL_OK)
        status = avl_text_add(&text, "", 1);
    if (status == AVL_OK)
        status = set(chat_template, which, text.bytes);
    avl_text_free(&text);
    return status;
}

/* The string that starts where `needle`, a quoted literal's start, is found. */
static avl_status_t set_at(avl_chat_template_t *chat_template, avl_chat_string_t which,
                           const char *source, const char *needle) {
    const char *at = strstr(source, needle);
    if (at == NULL)
        return AVL_OK;
    avl_text_t text = {0};
    avl_status_t status = read_joined(at, "", "", &text);
    if (status == AVL_OK)
        status = avl_text_add(&text, "", 1);
    if (status == AVL_OK)
        status = set(chat_template, which, text.bytes);
    avl_text_free(&text);
    return status;
}

/* The literal in front of `needle`: '...' of "'...' + needle". */
static avl_status_t set_before(avl_chat_template_t *chat_template, avl_chat_string_t which,
                               const char *source, const char *needle) {
    const char *at = strstr(source, needle);
    if (at == NULL)
        return AVL_OK;
    while (at > source && at[-1] == ' ')
        at--;
    if (at == source || at[-1] != '+')
        return AVL_OK;
    at--;
    while (at > source && at[-1] == ' ')
        at--;
    if (at - source < 2 || (at[-1] != '\'' && at[-1] != '"'))
        return AVL_OK;
    char quote = at[-1];
    const char *start = at - 2;
    while (start > source && *start != quote)
        start--;
    return *start == quote ? set_at(chat_template, which, start, start) : AVL_OK;
}

/* The picture's string: the literal that has the placeholder in it. */
static avl_status_t set_image(avl_chat_template_t *chat_template, const char *source) {
    size_t bytes = strlen(chat_template->placeholder);
    for (const char *at = source; (at = strstr(at, chat_template->placeholder)) != NULL;
         at += bytes) {
        const char *start = at;
        while (start > source && start[-1] != '\'' && start[-1] != '"' && start[-1] != '{')
            start--;
        if (start > source && start[-1] != '{')
            return set_at(chat_template, AVL_CHAT_IMAGE, start - 1, start - 1);
    }
    return AVL_OK;
}

/* What asks the model to go on stands behind the last condition: some templates name
 * add_generation_prompt at their start, too, to give it a default. */
static avl_status_t set_generation(avl_chat_template_t *chat_template, const char *source) {
    const char *condition = NULL;
    for (const char *at = source; (at = strstr(at, "add_generation_prompt")) != NULL; at++)
        condition = at;
    if (condition == NULL)
        return set(chat_template, AVL_CHAT_GENERATION, "");
    const char *at = strstr(condition, "{{");
    at = at == NULL ? "" : skip_blanks(at + 2);
    AVL_TRY(set_at(chat_template, AVL_CHAT_GENERATION, at, at));
    if (chat_template->strings[AVL_CHAT_GENERATION][0] == 0)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "a chat template with no plain text behind add_generation_prompt");
    return AVL_OK;
}

static avl_status_t set_all(avl_chat_template_t *chat_template, const char *const values[]) {
    for (int i = 0; i < AVL_CHAT_STRINGS; i++)
        AVL_TRY(set(chat_template, (avl_chat_string_t)i, values[i] == NULL ? "" : values[i]));
    return AVL_OK;
}

/* --- the kinds; a picture's default string was set before --- */

static avl_status_t read_vicuna(avl_chat_template_t *chat_template, const char *source) {
    AVL_TRY(set(chat_template, AVL_CHAT_ROLE_AFTER, ": "));
    AVL_TRY(set(chat_template, AVL_CHAT_TEXT_AFTER, " "));
    AVL_TRY(set(chat_template, AVL_CHAT_GENERATION, "ASSISTANT:"));
    chat_template->parts = true;
    if (source == NULL)
        return AVL_OK;
    if (strstr(source, "selectattr") == NULL)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "a Vicuna chat template for contents without pictures");
    AVL_TRY(
        set_behind(chat_template, AVL_CHAT_ROLE_AFTER, source, "message['role'].upper()", "", ""));
    AVL_TRY(set(chat_template, AVL_CHAT_TEXT_AFTER, ""));
    AVL_TRY(set_behind(chat_template, AVL_CHAT_TEXT_AFTER, source, "content['text']", "", ""));
    AVL_TRY(set_generation(chat_template, source));
    return set_image(chat_template, source);
}

/* LLaMA-3 and ChatML: `mark` opens a message, `end` closes it. */
static avl_status_t read_marked(avl_chat_template_t *chat_template, const char *source,
                                const char *mark, const char *role_after, const char *end,
                                const char *bos) {
    char quoted_end[32] = "'";
    strcat(strcat(quoted_end, end), "'");
    AVL_TRY(set(chat_template, AVL_CHAT_ROLE_BEFORE, mark));
    AVL_TRY(set(chat_template, AVL_CHAT_ROLE_AFTER, role_after));
    AVL_TRY(set_generation(chat_template, source));
    bool chatml = chat_template->kind == AVL_CHAT_CHATML;
    if (chat_template->parts) {
        AVL_TRY(set_behind(chat_template, AVL_CHAT_ROLE_AFTER, source, "message['role']", "", ""));
        AVL_TRY(set_before(chat_template, AVL_CHAT_TEXT_BEFORE, source, "content['text']"));
        AVL_TRY(set_behind(chat_template, AVL_CHAT_TEXT_AFTER, source, "content['text']", "", ""));
        if (strstr(chat_template->strings[AVL_CHAT_TEXT_AFTER], end) == NULL)
            AVL_TRY(set_at(chat_template, AVL_CHAT_MESSAGE_AFTER, source, quoted_end));
        return set_image(chat_template, source);
    }
    AVL_TRY(set(chat_template, AVL_CHAT_MESSAGE_AFTER, chatml ? "<|im_end|>\n" : end));
    if (!chatml) {
        chat_template->trim = strstr(source, "trim") != NULL;
        return strstr(source, "bos_token") != NULL ? set(chat_template, AVL_CHAT_FIRST, bos)
                                                   : AVL_OK;
    }
    chat_template->trim = strstr(source, "message['content'] | trim") != NULL ||
                          strstr(source, "message['content'].strip()") != NULL;
    AVL_TRY(set_at(chat_template, AVL_CHAT_FIRST, source, "'<|im_start|>system\\nYou "));
    chat_template->default_system = chat_template->strings[AVL_CHAT_FIRST][0] != 0;
    if (!chat_template->default_system && strstr(source, "<|im_start|>system") != NULL)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "a ChatML chat template with a system message that does not start with "
                        "\"You\"");
    return AVL_OK;
}

/* [INST] templates: Mistral's, LLaVA-NeXT's for Mistral, and LLaMA-2's. */
static avl_status_t read_inst(avl_chat_template_t *chat_template, const char *source,
                              const char *bos, const char *eos) {
    AVL_TRY(set(chat_template, AVL_CHAT_ROLE_BEFORE, "[INST] "));
    AVL_TRY(set(chat_template, AVL_CHAT_ROLE_AFTER, " [/INST]"));
    if (chat_template->parts) {
        AVL_TRY(set(chat_template, AVL_CHAT_ASSISTANT_BEFORE, ""));
        AVL_TRY(set_image(chat_template, source));
        const char *assistant = strstr(source, "'assistant'");
        if (assistant == NULL)
            return avl_fail(AVL_ERR_UNSUPPORTED, "an [INST] chat template without an assistant");
        AVL_TRY(set_before(chat_template, AVL_CHAT_ASSISTANT_BEFORE, assistant,
                           "message['content'][0]['text']"));
        return set_behind(chat_template, AVL_CHAT_ASSISTANT_AFTER, assistant,
                          "message['content'][0]['text']", bos, eos);
    }
    chat_template->alternate = true;
    if (chat_template->kind == AVL_CHAT_LLAMA2) {
        chat_template->trim = true;
        AVL_TRY(set(chat_template, AVL_CHAT_BOS, bos));
        AVL_TRY(set(chat_template, AVL_CHAT_ASSISTANT_BEFORE, " "));
        return set_behind(chat_template, AVL_CHAT_ASSISTANT_AFTER, strstr(source, "'assistant'"),
                          "content.strip()", bos, eos);
    }
    AVL_TRY(set(chat_template, AVL_CHAT_FIRST, bos));
    AVL_TRY(
        set_before(chat_template, AVL_CHAT_ASSISTANT_BEFORE, source, "message['content'] + eos"));
    AVL_TRY(set_behind(chat_template, AVL_CHAT_ROLE_AFTER, source, "'[INST] ' + message['content']",
                       bos, eos));
    return set_behind(chat_template, AVL_CHAT_ASSISTANT_AFTER, strstr(source, "'assistant'"),
                      "message['content']", bos, eos);
}

/* What a template writes before its loop over the messages must be known: nothing, or a bos. A
 * default system message, say, would be lost. */
static avl_status_t check_head(const avl_chat_template_t *chat_template, const char *source) {
    const char *loop = strstr(source, " for ");
    for (const char *at = source; (at = strstr(at, "{{")) != NULL && loop != NULL && at < loop;) {
        at = skip_blanks(at + 2);
        if (strncmp(at, "bos_token", 9) != 0 && !chat_template->default_system)
            return avl_fail(AVL_ERR_UNSUPPORTED,
                            "a chat template that writes \"%.40s\" before its messages", at);
    }
    return AVL_OK;
}

static avl_status_t unknown(const char *source) {
    source = skip_blanks(source);
    return avl_fail(AVL_ERR_UNSUPPORTED, "a chat template of an unknown kind: \"%.*s\"",
                    (int)(strcspn(source, "\n") < 120 ? strcspn(source, "\n") : 120), source);
}

static avl_status_t read_kind(avl_chat_template_t *chat_template, const char *source,
                              const char *bos, const char *eos) {
    chat_template->parts = strstr(source, "selectattr") != NULL;
    if (!chat_template->parts && strstr(source, "'type'") != NULL)
        return unknown(source); /* walks over pictures and texts in an order of its own */
    if (strstr(source, "<|start_header_id|>") != NULL && strstr(source, "date_string") == NULL) {
        chat_template->kind = AVL_CHAT_LLAMA3;
        return read_marked(chat_template, source, "<|start_header_id|>", "<|end_header_id|>\n\n",
                           "<|eot_id|>", bos);
    }
    if (strstr(source, "<|im_start|>") != NULL && strstr(source, "<|vision_start|>") == NULL) {
        chat_template->kind = AVL_CHAT_CHATML;
        return read_marked(chat_template, source, "<|im_start|>", "\n", "<|im_end|>", bos);
    }
    if (strstr(source, "[INST]") != NULL && strstr(source, "'assistant'") != NULL) {
        chat_template->kind = !chat_template->parts && strstr(source, "<<SYS>>") != NULL
                                  ? AVL_CHAT_LLAMA2
                                  : AVL_CHAT_MISTRAL;
        return read_inst(chat_template, source, bos, eos);
    }
    if (strstr(source, "ASSISTANT:") != NULL && strstr(source, "message['role'].upper()") != NULL) {
        chat_template->kind = AVL_CHAT_VICUNA;
        return read_vicuna(chat_template, source);
    }
    return unknown(source);
}

avl_status_t avl_chat_template_recognise(avl_chat_template_t *chat_template, const char *source,
                                         const char *bos, const char *eos) {
    const char *const empty[AVL_CHAT_STRINGS] = {0};
    AVL_TRY(set_all(chat_template, empty));
    avl_text_t image = {0};
    avl_status_t status =
        avl_text_add(&image, chat_template->placeholder, strlen(chat_template->placeholder));
    if (status == AVL_OK)
        status = avl_text_add(&image, "\n", 2);
    if (status == AVL_OK)
        status = set(chat_template, AVL_CHAT_IMAGE, image.bytes);
    avl_text_free(&image);
    AVL_TRY(status);
    if (source == NULL) {
        chat_template->kind = AVL_CHAT_VICUNA;
        return read_vicuna(chat_template, NULL);
    }
    AVL_TRY(read_kind(chat_template, source, bos, eos));
    return check_head(chat_template, source);
}
