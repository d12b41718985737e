/* inputs/tokenizer_parts.h: what the files of the tokenizer know of each other. Nobody else
 * includes it.
 *
 * A text goes through these parts, in this order, as in the reference:
 *
 *   text     bytes made valid UTF-8                                  tokenizer_text.c
 *   vocab    added tokens cut out of the raw text                    tokenizer_vocab.c
 *   ops      each remaining segment normalized; added tokens that
 *            are matched in normalized text cut out of it            tokenizer_normalize.c
 *   steps    what remains split into words                           tokenizer_split.c
 *   merges   words into tokens                                       tokenizer_bpe.c
 *
 * All of a tokenizer is read-only after it was opened; what a call needs to write is in its
 * avl_encode_work_t. */
#ifndef AVL_INPUTS_TOKENIZER_PARTS_H
#define AVL_INPUTS_TOKENIZER_PARTS_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>

#include "base/utf8.h"
#include "inputs/tokenizer.h"

/* Ids live in arrays indexed by them; the largest published vocabularies have 2^18 tokens. */
#define AVL_TOKEN_ID_MAX ((1 << 24) - 1)
/* Of one added token. Matching them costs their length for each byte of text at worst. */
#define AVL_ADDED_TOKEN_BYTES_MAX 1024
/* Normalizers, pre-tokenizers and decoders of one file, sequences unfolded. */
#define AVL_PARTS_MAX 32

/* --- tokenizer_text.c: bytes and characters --- */

typedef struct avl_text { /* a growing byte string, not terminated */
    char *bytes;
    size_t count, capacity;
} avl_text_t;

avl_status_t avl_text_add(avl_text_t *text, const char *bytes, size_t count);
void avl_text_free(avl_text_t *text);

/* Appends `text` with U+FFFD for each maximal ill-formed subpart. */
avl_status_t avl_text_add_valid(avl_text_t *out, const char *text, size_t bytes);
/* The character at `text` (valid UTF-8, not empty) and its bytes. */
uint32_t avl_utf8_decode(const char *text, size_t *bytes_p);
/* Writes at most 4 bytes. */
size_t avl_utf8_encode(uint32_t character, char *out);
/* Start of the character before `offset` (> 0). */
size_t avl_utf8_before(const char *text, size_t offset);

bool avl_character_is_space(uint32_t character); /* Unicode White_Space */
bool avl_character_is_word(uint32_t character);  /* what \w means in Unicode regular expressions */
bool avl_character_is_numeric(uint32_t character); /* Nd, Nl, No */
bool avl_character_is_mark(uint32_t character);    /* Mn, Mc, Me */

/* --- tokenizer_pattern.c: literal strings and regular expressions --- */

typedef struct avl_pattern {
    pcre2_code *code; /* NULL: the literal */
    char *literal;
    size_t literal_bytes;
} avl_pattern_t;

typedef struct avl_encode_work avl_encode_work_t;

avl_status_t avl_pattern_literal(const char *literal, size_t bytes, avl_pattern_t *pattern_p);
/* Compiles an expression written for Oniguruma (Ruby's syntax); what means something else in PCRE2
 * is rewritten, or refused with AVL_ERR_UNSUPPORTED. */
avl_status_t avl_pattern_compile(const char *expression, size_t bytes, avl_pattern_t *pattern_p);
void avl_pattern_free(avl_pattern_t *pattern);

typedef struct avl_match_cursor {
    size_t at;       /* where the search goes on */
    size_t last_end; /* end of the last match */
    bool matched;    /* whether there was one */
} avl_match_cursor_t;
/* The next match, or *found_p false. */
avl_status_t avl_pattern_next(const avl_pattern_t *pattern, avl_encode_work_t *work,
                              const char *text, size_t bytes, avl_match_cursor_t *cursor,
                              bool *found_p, size_t *start_p, size_t *end_p);

/* --- tokenizer_vocab.c: tokens, merges, added tokens --- */

typedef struct avl_token {
    size_t offset; /* in the arena */
    uint32_t bytes;
    int32_t id;
    bool in_model; /* BPE may produce it; otherwise it is an added token only */
    bool special;  /* left out when decoding */
} avl_token_t;

typedef struct avl_merge {
    int32_t left, right; /* left is -1 in an empty slot */
    uint32_t rank;
    int32_t merged;
} avl_merge_t;

typedef struct avl_added_token {
    char *content;
    size_t bytes;
    bool single_word, lstrip, rstrip, normalized, special;
    int32_t id;
} avl_added_token_t;

typedef struct avl_trie_node {
    int32_t child, sibling; /* -1: none */
    int32_t id;             /* of the token that ends here, or -1 */
    unsigned char byte;
} avl_trie_node_t;

typedef struct avl_trie {
    avl_trie_node_t *nodes;
    size_t count, capacity;
    int32_t roots[256]; /* first node by byte, or -1 */
} avl_trie_t;

typedef struct avl_vocab {
    avl_text_t arena; /* spellings, each followed by a NUL */
    avl_token_t *tokens;
    size_t token_count, token_capacity;
    uint32_t *slots; /* token index + 1, by hash of its spelling */
    size_t slot_count;
    int32_t *by_id; /* token index or -1 */
    size_t id_limit, by_id_capacity;
    size_t model_count; /* entries of model.vocab */

    avl_merge_t *merges;
    size_t merge_slots;
    int32_t *character_ids; /* [65536] model token that is this one character, or -1 */
    int32_t byte_ids[256];  /* "<0x00>".. or -1 */

    avl_added_token_t *added; /* the newest properties of each added id, ascending */
    size_t added_count, added_capacity;
    /* Lists the tries are made of, in the order that decides ties: special ones first. */
    avl_added_token_t *listed_special, *listed_plain;
    size_t listed_special_count, listed_special_capacity, listed_plain_count, listed_plain_capacity;
    avl_trie_t raw, normalized;
} avl_vocab_t;

avl_status_t avl_vocab_init(avl_vocab_t *vocab, size_t expected_tokens);
void avl_vocab_free(avl_vocab_t *vocab);
/* A token of model.vocab. Errors: AVL_ERR_DATA for an id or a spelling given twice. */
avl_status_t avl_vocab_add_model(avl_vocab_t *vocab, const char *spelling, size_t bytes,
                                 int64_t id);
/* Tables that need the whole vocabulary. */
avl_status_t avl_vocab_index(avl_vocab_t *vocab, size_t merge_count);
avl_status_t avl_vocab_add_merge(avl_vocab_t *vocab, const char *left, size_t left_bytes,
                                 const char *right, size_t right_bytes, uint32_t rank,
                                 avl_text_t *scratch);
/* Index of the token spelled so, or -1. */
int32_t avl_vocab_find(const avl_vocab_t *vocab, const char *spelling, size_t bytes);
/* Id of the model's token spelled so, or -1. */
int32_t avl_vocab_model_id(const avl_vocab_t *vocab, const char *spelling, size_t bytes);
const avl_merge_t *avl_vocab_merge(const avl_vocab_t *vocab, int32_t left, int32_t right);
const avl_token_t *avl_vocab_token(const avl_vocab_t *vocab, int32_t id);
const char *avl_vocab_spelling(const avl_vocab_t *vocab, const avl_token_t *token);
/* Adds a batch as the reference's add_tokens does; ids are found or given here. `batch` is copied.
 */
avl_status_t avl_vocab_add_tokens(avl_vocab_t *vocab, const avl_added_token_t *batch, size_t count);
const avl_added_token_t *avl_vocab_added(const avl_vocab_t *vocab, int32_t id);

avl_status_t avl_trie_add(avl_trie_t *trie, const char *pattern, size_t bytes, int32_t id);
/* Id of the longest pattern that `text` starts with and its bytes, or -1. */
int32_t avl_trie_longest(const avl_trie_t *trie, const char *text, size_t bytes, size_t *length_p);

/* --- tokenizer_normalize.c --- */

typedef enum avl_normalize_kind {
    AVL_NORMALIZE_PREPEND,
    AVL_NORMALIZE_REPLACE,
    AVL_NORMALIZE_NFC,
    AVL_NORMALIZE_NFD,
    AVL_NORMALIZE_NFKC,
    AVL_NORMALIZE_NFKD,
    AVL_NORMALIZE_LOWERCASE,
    AVL_NORMALIZE_STRIP,
    AVL_NORMALIZE_STRIP_ACCENTS,
} avl_normalize_kind_t;

typedef struct avl_normalize_op {
    avl_normalize_kind_t kind;
    avl_pattern_t pattern; /* replace */
    char *content;         /* replace, prepend */
    size_t content_bytes;
    bool left, right; /* strip */
} avl_normalize_op_t;

/* --- tokenizer_split.c --- */

typedef enum avl_split_kind {
    AVL_SPLIT_PATTERN,
    AVL_SPLIT_DIGITS,
    AVL_SPLIT_METASPACE,
    AVL_SPLIT_BYTE_LEVEL,
} avl_split_kind_t;

typedef enum avl_split_behavior {
    AVL_SPLIT_ISOLATED,
    AVL_SPLIT_REMOVED,
    AVL_SPLIT_CONTIGUOUS,
    AVL_SPLIT_MERGED_WITH_PREVIOUS,
    AVL_SPLIT_MERGED_WITH_NEXT,
} avl_split_behavior_t;

typedef enum avl_prepend_scheme {
    AVL_PREPEND_ALWAYS,
    AVL_PREPEND_FIRST,
    AVL_PREPEND_NEVER,
} avl_prepend_scheme_t;

typedef struct avl_split_step {
    avl_split_kind_t kind;
    avl_pattern_t pattern; /* pattern, byte level with its expression */
    avl_split_behavior_t behavior;
    bool invert;
    char replacement[5]; /* metaspace */
    size_t replacement_bytes;
    avl_prepend_scheme_t prepend;
    bool split;            /* metaspace, byte level */
    bool add_prefix_space; /* byte level */
} avl_split_step_t;

/* --- tokenizer_decode.c --- */

typedef enum avl_decode_kind {
    AVL_DECODE_REPLACE,
    AVL_DECODE_BYTE_FALLBACK,
    AVL_DECODE_FUSE,
    AVL_DECODE_STRIP,
    AVL_DECODE_METASPACE,
    AVL_DECODE_BYTE_LEVEL,
} avl_decode_kind_t;

typedef struct avl_decode_stage {
    avl_decode_kind_t kind;
    avl_pattern_t pattern; /* replace */
    char *content;         /* replace; strip: one character; metaspace: the replacement */
    size_t content_bytes;
    size_t start, stop; /* strip */
    bool drop_first;    /* metaspace: the first token's replacement characters vanish */
} avl_decode_stage_t;

/* --- the whole --- */

struct avl_tokenizer {
    avl_vocab_t vocab;
    bool byte_fallback, fuse_unk, ignore_merges;
    int32_t unk_id; /* -1: unknown characters vanish */

    avl_normalize_op_t ops[AVL_PARTS_MAX];
    size_t op_count;
    avl_split_step_t steps[AVL_PARTS_MAX];
    size_t step_count;
    avl_decode_stage_t stages[AVL_PARTS_MAX];
    size_t stage_count;
    bool has_decoder; /* otherwise tokens are joined by spaces */
    bool clean_up;    /* clean_up_tokenization_spaces */

    int32_t *before, *after; /* the post-processor's tokens */
    size_t before_count, after_count;
};

/* What one call of encode writes to. */
typedef struct avl_symbol {
    int32_t id, previous, next;
} avl_symbol_t;

typedef struct avl_merge_candidate {
    uint64_t key; /* rank, then position */
    int32_t merged;
} avl_merge_candidate_t;

typedef struct avl_span {
    size_t start, end;
    bool match;
} avl_span_t;

struct avl_encode_work {
    const avl_tokenizer_t *tokenizer;
    pcre2_match_data *match_data;
    pcre2_match_context *match_context;
    pcre2_jit_stack *jit_stack;
    size_t text_limit; /* of one normalized segment */
    avl_text_t normal[2];
    int32_t *characters; /* normalization forms */
    size_t character_capacity;
    struct {
        avl_text_t text; /* the whole, when the step changes it */
        avl_text_t part; /* one part, likewise */
        avl_span_t *spans;
        size_t span_count, span_capacity;
    } steps[AVL_PARTS_MAX];
    avl_symbol_t *symbols;
    size_t symbol_count, symbol_capacity;
    avl_merge_candidate_t *heap;
    size_t heap_count, heap_capacity;
    int32_t *ids;
    size_t id_count, id_capacity;
};

avl_status_t avl_encode_work_init(avl_encode_work_t *work, const avl_tokenizer_t *tokenizer,
                                  size_t text_bytes);
void avl_encode_work_free(avl_encode_work_t *work);
avl_status_t avl_encode_work_push(avl_encode_work_t *work, int32_t id);

/* Runs all normalizers; the result lives in `work` (or is `text`) until the next call. */
avl_status_t avl_normalize(avl_encode_work_t *work, const char *text, size_t bytes,
                           const char **text_p, size_t *bytes_p);
/* Splits a segment from step `step` on and tokenizes the words. `first`: it begins where the whole
 * text begins. */
avl_status_t avl_split(avl_encode_work_t *work, size_t step, const char *text, size_t bytes,
                       bool first);
/* Appends the ids of one word. */
avl_status_t avl_bpe(avl_encode_work_t *work, const char *word, size_t bytes);

/* Character that stands for a byte in byte-level vocabularies, and back (-1: none). */
uint32_t avl_byte_level_character(unsigned char byte);
int avl_byte_level_byte(uint32_t character);

/* tokenizer_read.c: fills a zeroed tokenizer from the parsed tokenizer.json. */
avl_status_t avl_tokenizer_read(avl_tokenizer_t *tokenizer, const json_t *root);
/* tokenizer_config.c: applies the parsed tokenizer_config.json. */
avl_status_t avl_tokenizer_apply_config(avl_tokenizer_t *tokenizer, const json_t *config);
/* A file of a model directory, NUL-terminated. Errors: AVL_ERR_NOT_FOUND, AVL_ERR_IO, AVL_ERR_DATA
 * (too large). */
AVL_MUST_CHECK avl_status_t avl_tokenizer_file(const char *directory, const char *name,
                                               char **bytes_p, size_t *count_p);
/* Parses JSON, refusing objects that have a key twice. Errors: AVL_ERR_DATA with line and column.
 */
AVL_MUST_CHECK avl_status_t avl_tokenizer_json(const char *json, size_t bytes, json_t **root_p);
/* The same for files that say what goes with a tokenizer. Their integers come as reals: nothing
 * here needs them, and most tokenizer_config.json have a model_max_length of 10^30 ("no limit"),
 * which no integer holds. */
AVL_MUST_CHECK avl_status_t avl_tokenizer_config_json(const char *json, size_t bytes,
                                                      json_t **root_p);

/* Opens from JSON texts in memory; `config_json` may be NULL. For the fuzzer and
 * avl_tokenizer_open. */
AVL_MUST_CHECK avl_status_t avl_tokenizer_parse(const char *json, size_t json_bytes,
                                                const char *config_json, size_t config_bytes,
                                                avl_tokenizer_t **tokenizer_p);

#endif
