/* inputs/tokenizer_bpe.c: one word into tokens by byte pair encoding.
 *
 * Symbols form a linked list; a heap holds the merges that were possible when they were seen, best
 * rank first and leftmost first among equals. Entries that later merges made stale are skipped when
 * they come up, so that a word of n characters takes n log n steps however long it is. */
#include "inputs/tokenizer_parts.h"

#include <string.h>

#include "base/memory.h"

static avl_status_t add_symbol(avl_encode_work_t *work, int32_t id) {
    if (work->symbol_count >= INT32_MAX)
        return avl_fail(AVL_ERR_TOO_LARGE, "tokenizer: a word of more than 2^31 characters");
    AVL_TRY(avl_grow(work->symbol_count + 1, sizeof *work->symbols, "word", &work->symbols,
                     &work->symbol_capacity));
    int32_t index = (int32_t)work->symbol_count++;
    work->symbols[index] = (avl_symbol_t){.id = id, .previous = index - 1, .next = -1};
    if (index > 0)
        work->symbols[index - 1].next = index;
    return AVL_OK;
}

/* The symbols of a character that the vocabulary lacks: its bytes, or nothing (*found_p false). */
static avl_status_t add_bytes(avl_encode_work_t *work, const char *character, size_t bytes,
                              bool *found_p) {
    const int32_t *byte_ids = work->tokenizer->vocab.byte_ids;
    *found_p = false;
    if (!work->tokenizer->byte_fallback)
        return AVL_OK;
    for (size_t i = 0; i < bytes; i++) {
        if (byte_ids[(unsigned char)character[i]] < 0)
            return AVL_OK;
    }
    for (size_t i = 0; i < bytes; i++)
        AVL_TRY(add_symbol(work, byte_ids[(unsigned char)character[i]]));
    *found_p = true;
    return AVL_OK;
}

static avl_status_t add_characters(avl_encode_work_t *work, const char *word, size_t bytes) {
    const avl_tokenizer_t *tokenizer = work->tokenizer;
    /* An unknown token waits for the next known character: it may swallow its neighbours
     * (fuse_unk). Bytes of a fallback overtake it; the reference does the same. */
    bool unknown = false;
    for (size_t at = 0, length; at < bytes; at += length) {
        uint32_t character = avl_utf8_decode(word + at, &length);
        int32_t id = character < 65536 ? tokenizer->vocab.character_ids[character]
                                       : avl_vocab_model_id(&tokenizer->vocab, word + at, length);
        if (id >= 0) {
            if (unknown)
                AVL_TRY(add_symbol(work, tokenizer->unk_id));
            unknown = false;
            AVL_TRY(add_symbol(work, id));
            continue;
        }
        bool found;
        AVL_TRY(add_bytes(work, word + at, length, &found));
        if (found || tokenizer->unk_id < 0)
            continue;
        if (unknown && !tokenizer->fuse_unk)
            AVL_TRY(add_symbol(work, tokenizer->unk_id));
        unknown = true;
    }
    return unknown ? add_symbol(work, tokenizer->unk_id) : AVL_OK;
}

static void sift_down(avl_merge_candidate_t *heap, size_t count, size_t index) {
    avl_merge_candidate_t moved = heap[index];
    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= count)
            break;
        if (child + 1 < count && heap[child + 1].key < heap[child].key)
            child++;
        if (heap[child].key >= moved.key)
            break;
        heap[index] = heap[child];
        index = child;
    }
    heap[index] = moved;
}

static void sift_up(avl_merge_candidate_t *heap, size_t index) {
    avl_merge_candidate_t moved = heap[index];
    while (index > 0 && heap[(index - 1) / 2].key > moved.key) {
        heap[index] = heap[(index - 1) / 2];
        index = (index - 1) / 2;
    }
    heap[index] = moved;
}

/* Notes that the symbol at `position` and its next one could be merged, if they can. */
static avl_status_t add_candidate(avl_encode_work_t *work, int32_t position) {
    const avl_symbol_t *left = &work->symbols[position];
    const avl_symbol_t *right = &work->symbols[left->next];
    const avl_merge_t *merge = avl_vocab_merge(&work->tokenizer->vocab, left->id, right->id);
    if (merge == NULL)
        return AVL_OK;
    AVL_TRY(avl_grow(work->heap_count + 1, sizeof *work->heap, "merges of a word", &work->heap,
                     &work->heap_capacity));
    work->heap[work->heap_count++] = (avl_merge_candidate_t){
        .key = (uint64_t)merge->rank << 32 | (uint32_t)position, .merged = merge->merged};
    return AVL_OK;
}

static avl_status_t merge_all(avl_encode_work_t *work) {
    avl_symbol_t *symbols = work->symbols;
    work->heap_count = 0;
    for (size_t i = 0; i + 1 < work->symbol_count; i++)
        AVL_TRY(add_candidate(work, (int32_t)i));
    for (size_t i = work->heap_count / 2; i-- > 0;)
        sift_down(work->heap, work->heap_count, i);
    while (work->heap_count > 0) {
        avl_merge_candidate_t best = work->heap[0];
        work->heap[0] = work->heap[--work->heap_count];
        if (work->heap_count > 0)
            sift_down(work->heap, work->heap_count, 0);
        int32_t position = (int32_t)(best.key & UINT32_MAX);
        avl_symbol_t *left = &symbols[position];
        if (left->id < 0 || left->next < 0)
            continue;
        avl_symbol_t *right = &symbols[left->next];
        const avl_merge_t *merge = avl_vocab_merge(&work->tokenizer->vocab, left->id, right->id);
        if (merge == NULL || merge->merged != best.merged)
            continue; /* stale */
        left->id = best.merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0)
            symbols[left->next].previous = position;
        size_t before = work->heap_count;
        if (left->previous >= 0)
            AVL_TRY(add_candidate(work, left->previous));
        if (work->heap_count > before)
            sift_up(work->heap, work->heap_count - 1);
        before = work->heap_count;
        if (left->next >= 0)
            AVL_TRY(add_candidate(work, position));
        if (work->heap_count > before)
            sift_up(work->heap, work->heap_count - 1);
    }
    return AVL_OK;
}

avl_status_t avl_bpe(avl_encode_work_t *work, const char *word, size_t bytes) {
    if (work->tokenizer->ignore_merges) {
        int32_t id = avl_vocab_model_id(&work->tokenizer->vocab, word, bytes);
        if (id >= 0)
            return avl_encode_work_push(work, id);
    }
    work->symbol_count = 0;
    AVL_TRY(add_characters(work, word, bytes));
    AVL_TRY(merge_all(work));
    for (size_t i = 0; i < work->symbol_count; i++) {
        if (work->symbols[i].id >= 0)
            AVL_TRY(avl_encode_work_push(work, work->symbols[i].id));
    }
    return AVL_OK;
}
