#include "coordinator/choice.h"

#include <stdlib.h>

#include "base/memory.h"

uint64_t avl_choice_seed(uint64_t request_seed, int32_t index) {
    if (index == 0)
        return request_seed;
    uint64_t x = request_seed + (uint64_t)index * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) >> 11; /* clients that keep numbers as doubles can send it back */
}

avl_status_t avl_choices_create(const avl_tokenizer_t *tokenizer, char *const *texts,
                                size_t text_count, uint64_t request_seed, int32_t count,
                                avl_choice_t **choices_p) {
    avl_choice_t *choices = NULL;
    AVL_TRY(avl_alloc((size_t)count, sizeof *choices, "answers of a request", &choices));
    avl_status_t status = AVL_OK;
    for (int32_t i = 0; i < count && status == AVL_OK; i++) {
        choices[i].seed = avl_choice_seed(request_seed, i);
        status = avl_stop_text_create(texts, text_count, &choices[i].stop);
        if (status == AVL_OK)
            status = avl_detokenizer_create(tokenizer, &choices[i].detokenizer);
    }
    if (status != AVL_OK) {
        avl_choices_destroy(choices, count);
        return status;
    }
    *choices_p = choices;
    return AVL_OK;
}

void avl_choices_destroy(avl_choice_t *choices, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        free(choices[i].sent_ids);
        avl_detokenizer_destroy(choices[i].detokenizer);
        avl_stop_text_destroy(choices[i].stop);
    }
    free(choices);
}

avl_status_t avl_choice_add(avl_choice_t *choice, int32_t token_id, const char **text_p) {
    const char *text = "";
    AVL_TRY(avl_grow(choice->sent_count + 1, sizeof *choice->sent_ids, "tokens", &choice->sent_ids,
                     &choice->sent_capacity));
    AVL_TRY(avl_detokenizer_add(choice->detokenizer, token_id, &text));
    if (choice->stop != NULL)
        AVL_TRY(avl_stop_text_add(choice->stop, text, &text, &choice->stopped));
    choice->sent_ids[choice->sent_count++] = token_id;
    *text_p = text;
    return AVL_OK;
}
