/* inputs/prompt.h: a conversation as the token ids the model expects, with the places of its
 * pictures.
 *
 * The chat template comes from the model directory (chat_template.jinja, chat_template.json or
 * tokenizer_config.json), recognised by its markers and rendered by code of our own per kind:
 * Vicuna, LLaMA-2, Mistral, LLaMA-3, ChatML. A directory without one gets its family's default:
 * Vicuna ("USER: <image>\n{text} ASSISTANT:"). */
#ifndef AVL_INPUTS_PROMPT_H
#define AVL_INPUTS_PROMPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "checkpoint/config.h"
#include "checkpoint/image_layout.h"
#include "inputs/tokenizer.h"

typedef enum avl_role {
    AVL_ROLE_SYSTEM,
    AVL_ROLE_USER,
    AVL_ROLE_ASSISTANT,
} avl_role_t;

typedef struct avl_message_part {
    const char *text; /* NULL: a picture, the next one of the request */
} avl_message_part_t;

typedef struct avl_message {
    avl_role_t role;
    const avl_message_part_t *parts;
    size_t part_count;
} avl_message_t;

typedef struct avl_chat_template avl_chat_template_t;

/* Errors: AVL_ERR_IO, AVL_ERR_DATA; AVL_ERR_UNSUPPORTED for a template of an unknown kind (its
 * first line is quoted). */
AVL_MUST_CHECK avl_status_t avl_chat_template_open(const char *directory,
                                                   const avl_config_t *config,
                                                   avl_chat_template_t **template_p);
void avl_chat_template_close(avl_chat_template_t *chat_template);
/* "vicuna", "llama-2", "mistral", "llama-3", "chatml". */
const char *avl_chat_template_name(const avl_chat_template_t *chat_template);

/* Renders messages, with the generation prompt, into malloc'ed text; every picture is the model's
 * image placeholder. Errors: AVL_ERR_INVALID (no message, empty message, roles in an order that the
 * template refuses, a picture outside a user message, text that spells the image placeholder),
 * AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_chat_template_render(const avl_chat_template_t *chat_template,
                                                     const avl_message_t *messages,
                                                     size_t message_count, char **text_p);

typedef struct avl_image_span {
    int32_t start; /* first prompt row of this picture, after expansion */
    int32_t rows;  /* its rows: layout.prompt_rows */
} avl_image_span_t;

typedef struct avl_prompt {
    int32_t *token_ids; /* [row_count], image rows hold config.image_token_id */
    int32_t row_count;
    avl_image_span_t *images; /* [image_count], ascending */
    int32_t image_count;
} avl_prompt_t;

/* Tokenizes `text` (with the post-processor's bos unless the text already starts with it) and
 * expands the i-th image placeholder to layouts[i].prompt_rows rows. Errors: AVL_ERR_INVALID when
 * placeholders and layouts differ in number (both numbers are named) or the prompt is empty;
 * AVL_ERR_TOO_LARGE when it has more than `rows_max` rows; AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_prompt_build(const avl_tokenizer_t *tokenizer,
                                             const avl_config_t *config, const char *text,
                                             const avl_image_layout_t *layouts, size_t layout_count,
                                             int32_t rows_max, avl_prompt_t *prompt_p);
void avl_prompt_free(avl_prompt_t *prompt);

#endif
