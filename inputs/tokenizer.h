/* inputs/tokenizer.h: text to token ids and back, as the model directory's tokenizer.json says.
 *
 * BPE in its two families: SentencePiece-style with byte fallback (LLaMA, Vicuna, Mistral) and
 * byte-level with a pre-tokenizer regex (LLaMA-3, Qwen, GPT-2); normalizers, added and special
 * tokens, post-processor (bos), decoders. Ids are those of the Hugging Face `tokenizers` library.
 *
 * Threads: an open tokenizer is read-only and may be used by any number of threads at once; a
 * decoder belongs to one. */
#ifndef AVL_INPUTS_TOKENIZER_H
#define AVL_INPUTS_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct avl_tokenizer avl_tokenizer_t;

/* Errors: AVL_ERR_NOT_FOUND, AVL_ERR_IO, AVL_ERR_DATA (malformed: the text says where),
 * AVL_ERR_UNSUPPORTED (a model, normalizer, pre-tokenizer or decoder type that avl does not know:
 * named). */
AVL_MUST_CHECK avl_status_t avl_tokenizer_open(const char *directory,
                                               avl_tokenizer_t **tokenizer_p);
void avl_tokenizer_close(avl_tokenizer_t *tokenizer);

/* Encodes `text` (bytes; invalid UTF-8 is replaced by U+FFFD as Python's errors="replace" does).
 * With `special`, the post-processor adds its tokens (bos). Special tokens written in the text are
 * recognised, as in the reference. *ids_p is malloc'ed; the caller frees it. Errors:
 * AVL_ERR_MEMORY, AVL_ERR_TOO_LARGE (more than INT32_MAX / 4 bytes). */
AVL_MUST_CHECK avl_status_t avl_tokenizer_encode(const avl_tokenizer_t *tokenizer, const char *text,
                                                 size_t text_bytes, bool special, int32_t **ids_p,
                                                 size_t *id_count_p);

/* Id of exactly this token ("<image>", "</s>"), or -1. */
int32_t avl_tokenizer_find(const avl_tokenizer_t *tokenizer, const char *token);
/* The token's own spelling ("▁the"), or NULL for an id that is none. */
const char *avl_tokenizer_token(const avl_tokenizer_t *tokenizer, int32_t id);
/* One more than the largest id. */
int32_t avl_tokenizer_id_limit(const avl_tokenizer_t *tokenizer);

/* Streaming detokenizer: text comes out as soon as it is certain, and never half a UTF-8 character.
 * The pieces together equal what the reference's decode(all ids, skip_special_tokens=True) gives.
 */
typedef struct avl_detokenizer avl_detokenizer_t;

AVL_MUST_CHECK avl_status_t avl_detokenizer_create(const avl_tokenizer_t *tokenizer,
                                                   avl_detokenizer_t **detokenizer_p);
void avl_detokenizer_destroy(avl_detokenizer_t *detokenizer);
/* Adds one id. *text_p (NUL-terminated valid UTF-8, perhaps empty) belongs to the detokenizer and
 * lives until its next call. Errors: AVL_ERR_MEMORY. An id that is no token adds nothing. */
AVL_MUST_CHECK avl_status_t avl_detokenizer_add(avl_detokenizer_t *detokenizer, int32_t id,
                                                const char **text_p);
/* Ends the text: what was held back comes out, incomplete characters as U+FFFD. */
AVL_MUST_CHECK avl_status_t avl_detokenizer_finish(avl_detokenizer_t *detokenizer,
                                                   const char **text_p);
/* Bytes of the text that the last call gave: more than strlen() when the model wrote a NUL. */
size_t avl_detokenizer_bytes(const avl_detokenizer_t *detokenizer);

#endif
