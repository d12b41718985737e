/* inputs/chat_template.h: what the two files of the chat templates share. Nobody else includes it.
 *
 * A template is not interpreted. Its kind is found by the markers that only this kind has, and the
 * strings in which templates of one kind differ are read out of its source: what stands before and
 * after a role, a picture, a text. */
#ifndef AVL_INPUTS_CHAT_TEMPLATE_H
#define AVL_INPUTS_CHAT_TEMPLATE_H

#include "inputs/prompt.h"

typedef enum avl_chat_kind {
    AVL_CHAT_VICUNA,
    AVL_CHAT_LLAMA2,
    AVL_CHAT_MISTRAL,
    AVL_CHAT_LLAMA3,
    AVL_CHAT_CHATML,
} avl_chat_kind_t;

typedef enum avl_chat_string {
    AVL_CHAT_ROLE_BEFORE, /* of every message but Vicuna's system message */
    AVL_CHAT_ROLE_AFTER,
    AVL_CHAT_IMAGE,       /* one picture */
    AVL_CHAT_TEXT_BEFORE, /* one text */
    AVL_CHAT_TEXT_AFTER,
    AVL_CHAT_MESSAGE_AFTER,
    AVL_CHAT_GENERATION, /* asks the model to go on */
    AVL_CHAT_FIRST, /* opens the whole text: a spelled-out bos, or a system message nobody gave */
    AVL_CHAT_ASSISTANT_BEFORE, /* [INST] kinds */
    AVL_CHAT_ASSISTANT_AFTER,
    AVL_CHAT_BOS, /* spelled out by LLaMA-2 before every user message */
    AVL_CHAT_STRINGS
} avl_chat_string_t;

struct avl_chat_template {
    avl_chat_kind_t kind;
    bool parts; /* made for contents of pictures and texts; otherwise a content is one string */
    bool default_system; /* FIRST is for conversations that do not start with a system message */
    bool trim;           /* contents lose white space at both ends */
    bool alternate;      /* users and assistants must take turns */
    char *placeholder;   /* of a picture */
    char *strings[AVL_CHAT_STRINGS];
};

/* Recognises the template in `source` (NULL: the family's default) and fills the zeroed template,
 * whose placeholder is set. bos and eos are spellings, perhaps empty. Errors: AVL_ERR_UNSUPPORTED,
 * AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_chat_template_recognise(avl_chat_template_t *chat_template,
                                                        const char *source, const char *bos,
                                                        const char *eos);

#endif
