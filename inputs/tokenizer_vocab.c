/* inputs/tokenizer_vocab.c: the tokens of a tokenizer by spelling and by id, its merges, and the
 * tokens added to the model's own.
 *
 * One table holds model and added tokens; BPE sees the model's alone (in_model). Added tokens are
 * found in text by two tries, one for raw and one for normalized text; the longest one at the
 * leftmost place wins. */
#include "inputs/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"

static uint64_t hash_bytes(const char *bytes, size_t count) {
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a, then mixed: the low bits choose the slot */
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    hash ^= hash >> 32;
    return hash * 0x9E3779B97F4A7C15u >> 16;
}

static uint64_t hash_pair(int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    pair = (pair ^ pair >> 31) * 0x9E3779B97F4A7C15u;
    return pair ^ pair >> 29;
}

/* A power of two that leaves a table at most half full. */
static size_t slots_for(size_t count) {
    size_t slots = 16;
    while (slots < count * 2)
        slots *= 2;
    return slots;
}

static void trie_init(avl_trie_t *trie) {
    for (size_t i = 0; i < 256; i++)
        trie->roots[i] = -1;
}

avl_status_t avl_vocab_init(avl_vocab_t *vocab, size_t expected_tokens) {
    trie_init(&vocab->raw);
    trie_init(&vocab->normalized);
    vocab->slot_count = slots_for(expected_tokens + 64);
    return avl_alloc(vocab->slot_count, sizeof *vocab->slots, "vocabulary", &vocab->slots);
}

static void free_added(avl_added_token_t *tokens, size_t count) {
    for (size_t i = 0; i < count; i++)
        free(tokens[i].content);
    free(tokens);
}

void avl_vocab_free(avl_vocab_t *vocab) {
    avl_text_free(&vocab->arena);
    free(vocab->tokens);
    free(vocab->slots);
    free(vocab->by_id);
    free(vocab->merges);
    free(vocab->character_ids);
    free_added(vocab->added, vocab->added_count);
    free_added(vocab->listed_special, vocab->listed_special_count);
    free_added(vocab->listed_plain, vocab->listed_plain_count);
    free(vocab->raw.nodes);
    free(vocab->normalized.nodes);
}

const char *avl_vocab_spelling(const avl_vocab_t *vocab, const avl_token_t *token) {
    return vocab->arena.bytes + token->offset;
}

/* The slot of a spelling, or the empty one where it belongs. */
static size_t find_slot(const avl_vocab_t *vocab, const char *spelling, size_t bytes) {
    size_t slot = hash_bytes(spelling, bytes) & (vocab->slot_count - 1);
    while (vocab->slots[slot] != 0) {
        const avl_token_t *token = &vocab->tokens[vocab->slots[slot] - 1];
        if (token->bytes == bytes && memcmp(avl_vocab_spelling(vocab, token), spelling, bytes) == 0)
            break;
        slot = (slot + 1) & (vocab->slot_count - 1);
    }
    return slot;
}

int32_t avl_vocab_find(const avl_vocab_t *vocab, const char *spelling, size_t bytes) {
    return (int32_t)vocab->slots[find_slot(vocab, spelling, bytes)] - 1;
}

int32_t avl_vocab_model_id(const avl_vocab_t *vocab, const char *spelling, size_t bytes) {
    int32_t index = avl_vocab_find(vocab, spelling, bytes);
    return index >= 0 && vocab->tokens[index].in_model ? vocab->tokens[index].id : -1;
}

const avl_token_t *avl_vocab_token(const avl_vocab_t *vocab, int32_t id) {
    if (id < 0 || (size_t)id >= vocab->id_limit || vocab->by_id[id] < 0)
        return NULL;
    return &vocab->tokens[vocab->by_id[id]];
}

static avl_status_t grow_slots(avl_vocab_t *vocab) {
    size_t slot_count = vocab->slot_count * 2;
    uint32_t *slots = NULL;
    AVL_TRY(avl_alloc(slot_count, sizeof *slots, "vocabulary", &slots));
    free(vocab->slots);
    vocab->slots = slots;
    vocab->slot_count = slot_count;
    for (size_t i = 0; i < vocab->token_count; i++) {
        const avl_token_t *token = &vocab->tokens[i];
        const char *spelling = avl_vocab_spelling(vocab, token);
        vocab->slots[find_slot(vocab, spelling, token->bytes)] = (uint32_t)i + 1;
    }
    return AVL_OK;
}

/* Adds a spelling that is not there yet. */
static avl_status_t add_token(avl_vocab_t *vocab, const char *spelling, size_t bytes, int32_t id,
                              bool in_model) {
    if (vocab->token_count * 2 >= vocab->slot_count)
        AVL_TRY(grow_slots(vocab));
    size_t slot = find_slot(vocab, spelling, bytes);
    AVL_TRY(avl_grow(vocab->token_count + 1, sizeof *vocab->tokens, "vocabulary", &vocab->tokens,
                     &vocab->token_capacity));
    if ((size_t)id >= vocab->id_limit) {
        AVL_TRY(avl_grow((size_t)id + 1, sizeof *vocab->by_id, "vocabulary", &vocab->by_id,
                         &vocab->by_id_capacity));
        for (size_t i = vocab->id_limit; i <= (size_t)id; i++)
            vocab->by_id[i] = -1;
        vocab->id_limit = (size_t)id + 1;
    }
    avl_token_t *token = &vocab->tokens[vocab->token_count];
    *token = (avl_token_t){
        .offset = vocab->arena.count, .bytes = (uint32_t)bytes, .id = id, .in_model = in_model};
    AVL_TRY(avl_text_add(&vocab->arena, spelling, bytes));
    AVL_TRY(avl_text_add(&vocab->arena, "", 1));
    vocab->by_id[id] = (int32_t)vocab->token_count++;
    vocab->slots[slot] = (uint32_t)vocab->token_count;
    return AVL_OK;
}

avl_status_t avl_vocab_add_model(avl_vocab_t *vocab, const char *spelling, size_t bytes,
                                 int64_t id) {
    if (id < 0 || id > AVL_TOKEN_ID_MAX)
        return avl_fail(AVL_ERR_DATA, "model.vocab: \"%.64s\" has id %lld, ids go from 0 to %d",
                        spelling, (long long)id, AVL_TOKEN_ID_MAX);
    const avl_token_t *other = avl_vocab_token(vocab, (int32_t)id);
    if (other != NULL)
        return avl_fail(AVL_ERR_DATA, "model.vocab: id %lld belongs to \"%.64s\" and to \"%.64s\"",
                        (long long)id, avl_vocab_spelling(vocab, other), spelling);
    if (avl_vocab_find(vocab, spelling, bytes) >= 0)
        return avl_fail(AVL_ERR_DATA, "model.vocab: \"%.64s\" is there twice", spelling);
    AVL_TRY(add_token(vocab, spelling, bytes, (int32_t)id, true));
    vocab->model_count++;
    return AVL_OK;
}

avl_status_t avl_vocab_index(avl_vocab_t *vocab, size_t merge_count) {
    AVL_TRY(avl_alloc(65536, sizeof *vocab->character_ids, "vocabulary", &vocab->character_ids));
    memset(vocab->character_ids, 0xFF, 65536 * sizeof *vocab->character_ids);
    for (size_t i = 0; i < vocab->token_count; i++) {
        const avl_token_t *token = &vocab->tokens[i];
        if (token->bytes == 0 || token->bytes > 3)
            continue;
        size_t bytes;
        uint32_t character = avl_utf8_decode(avl_vocab_spelling(vocab, token), &bytes);
        if (bytes == token->bytes)
            vocab->character_ids[character] = token->id;
    }
    for (unsigned i = 0; i < 256; i++) {
        char spelling[8];
        int bytes = snprintf(spelling, sizeof spelling, "<0x%02X>", i);
        vocab->byte_ids[i] = avl_vocab_model_id(vocab, spelling, (size_t)bytes);
    }
    vocab->merge_slots = slots_for(merge_count);
    AVL_TRY(avl_alloc(vocab->merge_slots, sizeof *vocab->merges, "merges", &vocab->merges));
    for (size_t i = 0; i < vocab->merge_slots; i++)
        vocab->merges[i].left = -1;
    return AVL_OK;
}

static avl_merge_t *merge_slot(const avl_vocab_t *vocab, int32_t left, int32_t right) {
    size_t slot = hash_pair(left, right) & (vocab->merge_slots - 1);
    for (;;) {
        avl_merge_t *merge = &vocab->merges[slot];
        if (merge->left < 0 || (merge->left == left && merge->right == right))
            return merge;
        slot = (slot + 1) & (vocab->merge_slots - 1);
    }
}

const avl_merge_t *avl_vocab_merge(const avl_vocab_t *vocab, int32_t left, int32_t right) {
    const avl_merge_t *merge = merge_slot(vocab, left, right);
    return merge->left < 0 ? NULL : merge;
}

avl_status_t avl_vocab_add_merge(avl_vocab_t *vocab, const char *left, size_t left_bytes,
                                 const char *right, size_t right_bytes, uint32_t rank,
                                 avl_text_t *scratch) {
    scratch->count = 0;
    AVL_TRY(avl_text_add(scratch, left, left_bytes));
    AVL_TRY(avl_text_add(scratch, right, right_bytes));
    int32_t left_id = avl_vocab_model_id(vocab, left, left_bytes);
    int32_t right_id = avl_vocab_model_id(vocab, right, right_bytes);
    int32_t merged = avl_vocab_model_id(vocab, scratch->bytes, scratch->count);
    if (left_id < 0 || right_id < 0 || merged < 0) {
        bool whole = left_id >= 0 && right_id >= 0;
        const char *missing = whole ? scratch->bytes : left_id < 0 ? left : right;
        size_t bytes = whole ? scratch->count : left_id < 0 ? left_bytes : right_bytes;
        return avl_fail(AVL_ERR_DATA, "model.merges[%u]: \"%.*s\" is not in model.vocab", rank,
                        (int)(bytes < 64 ? bytes : 64), missing);
    }
    *merge_slot(vocab, left_id, right_id) =
        (avl_merge_t){.left = left_id, .right = right_id, .rank = rank, .merged = merged};
    return AVL_OK;
}

/* --- added tokens --- */

static bool same_added(const avl_added_token_t *a, const avl_added_token_t *b) {
    return a->bytes == b->bytes && memcmp(a->content, b->content, a->bytes) == 0 &&
           a->single_word == b->single_word && a->lstrip == b->lstrip && a->rstrip == b->rstrip &&
           a->normalized == b->normalized && a->special == b->special;
}

static avl_status_t copy_added(const avl_added_token_t *from, avl_added_token_t *copy_p) {
    char *content = NULL;
    AVL_TRY(avl_alloc(from->bytes + 1, 1, "added token", &content));
    memcpy(content, from->content, from->bytes);
    *copy_p = *from;
    copy_p->content = content;
    return AVL_OK;
}

static avl_status_t append_added(avl_added_token_t **list, size_t *count, size_t *capacity,
                                 const avl_added_token_t *token) {
    AVL_TRY(avl_grow(*count + 1, sizeof **list, "added tokens", list, capacity));
    AVL_TRY(copy_added(token, &(*list)[*count]));
    ++*count;
    return AVL_OK;
}

const avl_added_token_t *avl_vocab_added(const avl_vocab_t *vocab, int32_t id) {
    /* Sorted by id: avl_vocab_add_tokens keeps it so. */
    size_t low = 0, high = vocab->added_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (vocab->added[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < vocab->added_count && vocab->added[low].id == id ? &vocab->added[low] : NULL;
}

static bool is_special(const avl_vocab_t *vocab, const avl_added_token_t *token) {
    int32_t index = avl_vocab_find(vocab, token->content, token->bytes);
    return index >= 0 && vocab->tokens[index].special;
}

/* The id of a token that neither the model nor an added token has: the reference counts on from the
 * larger of the vocabulary's size and the largest added id. */
static int64_t next_id(const avl_vocab_t *vocab) {
    int64_t size = (int64_t)vocab->model_count;
    if (vocab->added_count == 0)
        return size;
    int64_t largest = vocab->added[vocab->added_count - 1].id;
    return largest >= size || size == 0 ? largest + 1 : size;
}

/* Puts the newest properties of an added id in its place, in order of ids. */
static avl_status_t set_added(avl_vocab_t *vocab, const avl_added_token_t *token) {
    size_t place = vocab->added_count;
    while (place > 0 && vocab->added[place - 1].id >= token->id)
        place--;
    avl_added_token_t copy;
    if (place < vocab->added_count && vocab->added[place].id == token->id) {
        AVL_TRY(copy_added(token, &copy));
        free(vocab->added[place].content);
        vocab->added[place] = copy;
        return AVL_OK;
    }
    AVL_TRY(avl_grow(vocab->added_count + 1, sizeof *vocab->added, "added tokens", &vocab->added,
                     &vocab->added_capacity));
    AVL_TRY(copy_added(token, &copy));
    memmove(&vocab->added[place + 1], &vocab->added[place],
            (vocab->added_count - place) * sizeof *vocab->added);
    vocab->added[place] = copy;
    vocab->added_count++;
    return AVL_OK;
}

static avl_status_t add_one(avl_vocab_t *vocab, const avl_added_token_t *given) {
    avl_added_token_t token = *given;
    int32_t index = avl_vocab_find(vocab, token.content, token.bytes);
    if (index >= 0) {
        token.id = vocab->tokens[index].id;
        const avl_added_token_t *known = avl_vocab_added(vocab, token.id);
        if (known != NULL && same_added(known, &token))
            return AVL_OK;
    } else {
        int64_t id = next_id(vocab);
        if (id > AVL_TOKEN_ID_MAX)
            return avl_fail(AVL_ERR_DATA, "added token \"%.64s\" would have id %lld, beyond %d",
                            token.content, (long long)id, AVL_TOKEN_ID_MAX);
        token.id = (int32_t)id;
        AVL_TRY(add_token(vocab, token.content, token.bytes, token.id, false));
        index = (int32_t)vocab->token_count - 1;
        vocab->tokens[index].special = token.special;
    }
    if (given->id >= 0 && given->id != token.id)
        avl_log_warn("tokenizer: added token \"%.64s\" says id %d but has id %d by its place",
                     token.content, given->id, token.id);
    AVL_TRY(set_added(vocab, &token));
    if (!is_special(vocab, &token))
        AVL_TRY(append_added(&vocab->listed_plain, &vocab->listed_plain_count,
                             &vocab->listed_plain_capacity, &token));
    return AVL_OK;
}

avl_status_t avl_vocab_add_tokens(avl_vocab_t *vocab, const avl_added_token_t *batch,
                                  size_t count) {
    for (size_t i = 0; i < count; i++) {
        const avl_added_token_t *token = &batch[i];
        if (token->bytes == 0)
            continue;
        bool listed = is_special(vocab, token);
        int32_t index = avl_vocab_find(vocab, token->content, token->bytes);
        if (index >= 0 && token->special)
            vocab->tokens[index].special = true;
        AVL_TRY(add_one(vocab, token));
        if (!token->special || listed)
            continue;
        avl_added_token_t named = *token;
        named.id = vocab->tokens[avl_vocab_find(vocab, token->content, token->bytes)].id;
        AVL_TRY(append_added(&vocab->listed_special, &vocab->listed_special_count,
                             &vocab->listed_special_capacity, &named));
    }
    return AVL_OK;
}

/* --- tries --- */

avl_status_t avl_trie_add(avl_trie_t *trie, const char *pattern, size_t bytes, int32_t id) {
    int32_t node = -1;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)pattern[i];
        int32_t next = i == 0 ? trie->roots[byte] : trie->nodes[node].child;
        while (next >= 0 && trie->nodes[next].byte != byte)
            next = trie->nodes[next].sibling;
        if (next < 0) {
            if (trie->count >= INT32_MAX)
                return avl_fail(AVL_ERR_TOO_LARGE, "added tokens: more than 2^31 characters");
            AVL_TRY(avl_grow(trie->count + 1, sizeof *trie->nodes, "added tokens", &trie->nodes,
                             &trie->capacity));
            next = (int32_t)trie->count++;
            trie->nodes[next] = (avl_trie_node_t){.child = -1,
                                                  .sibling = i == 0 ? -1 : trie->nodes[node].child,
                                                  .id = -1,
                                                  .byte = byte};
            if (i == 0)
                trie->roots[byte] = next;
            else
                trie->nodes[node].child = next;
        }
        node = next;
    }
    if (node >= 0 && trie->nodes[node].id < 0)
        trie->nodes[node].id = id; /* of two equal patterns the first one counts */
    return AVL_OK;
}

int32_t avl_trie_longest(const avl_trie_t *trie, const char *text, size_t bytes, size_t *length_p) {
    int32_t node = trie->roots[(unsigned char)text[0]], id = -1;
    for (size_t i = 0; node >= 0;) {
        if (trie->nodes[node].id >= 0) {
            id = trie->nodes[node].id;
            *length_p = i + 1;
        }
        if (++i == bytes)
            break;
        unsigned char byte = (unsigned char)text[i];
        for (node = trie->nodes[node].child; node >= 0 && trie->nodes[node].byte != byte;)
            node = trie->nodes[node].sibling;
    }
    return id;
}
