#include "client/eval_score.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/memory.h"

static const char white[] = " \t\r\n\f\v";

/* Without white space at its ends; in place. */
static char *strip(char *text) {
    text += strspn(text, white);
    size_t bytes = strlen(text);
    while (bytes > 0 && strchr(white, text[bytes - 1]) != NULL)
        text[--bytes] = '\0';
    return text;
}

/* The text as it is compared, in memory of its own, at *start_p. */
static avl_status_t normalise(const char *text, bool ignore_case, char **memory_p, char **start_p) {
    char *copy = NULL;
    if (ignore_case)
        copy = (char *)utf8proc_NFKC_Casefold((const utf8proc_uint8_t *)text);
    if (copy == NULL) /* case counts, or the text is no UTF-8, which has no case */
        AVL_TRY(avl_copy_string(text, &copy));
    char *start = strip(copy);
    size_t bytes = strlen(start);
    if (bytes > 0 && start[bytes - 1] == '.') {
        start[bytes - 1] = '\0';
        start = strip(start);
    }
    *memory_p = copy;
    *start_p = start;
    return AVL_OK;
}

typedef struct list {
    char **items;
    size_t count, capacity;
} list_t;

/* The items of a normalised text, which is cut up. */
static avl_status_t split(char *text, list_t *list) {
    char *lead = strstr(text, ": ");
    char *rest = lead != NULL ? lead + 2 : text;
    for (char *part; (part = strsep(&rest, ",")) != NULL;) {
        part = strip(part);
        if (part[0] == '\0')
            continue;
        AVL_TRY(avl_grow(list->count + 1, sizeof *list->items, "items of an answer", &list->items,
                         &list->capacity));
        list->items[list->count++] = part;
    }
    return AVL_OK;
}

/* Takes one item equal to `item` out of the list; false when there is none. */
static bool take(list_t *list, const char *item) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i] != NULL && strcmp(list->items[i], item) == 0) {
            list->items[i] = NULL;
            return true;
        }
    }
    return false;
}

/* `skip`: how many of the first given items do not count. */
static avl_status_t score_items(char *given, char *expected, size_t skip, double *score_p) {
    list_t here = {0}, there = {0};
    avl_status_t status = split(given, &here);
    if (status == AVL_OK)
        status = split(expected, &there);
    if (status == AVL_OK) {
        size_t there_count = there.count, common = 0;
        for (size_t i = 0; i < here.count; i++) {
            bool found = take(&there, here.items[i]);
            if (i < skip)
                there_count -= found;
            else
                common += found;
        }
        size_t here_count = here.count > skip ? here.count - skip : 0;
        size_t both = here_count + there_count;
        *score_p = both > 0 ? 2 * (double)common / (double)both : 1;
    }
    free(here.items);
    free(there.items);
    return status;
}

/* One accepted answer. */
static avl_status_t score_one(const avl_eval_item_t *item, const char *text, const char *answer,
                              size_t skip, double *score_p) {
    char *given_memory = NULL, *expected_memory = NULL, *given = NULL, *expected = NULL;
    AVL_TRY(normalise(text, item->ignore_case, &given_memory, &given));
    avl_status_t status = normalise(answer, item->ignore_case, &expected_memory, &expected);
    if (status == AVL_OK) {
        if (item->score == AVL_EVAL_ITEMS)
            status = score_items(given, expected, skip, score_p);
        else if (item->score == AVL_EVAL_CONTAINS)
            *score_p = strstr(given, expected) != NULL;
        else
            *score_p = strcmp(given, expected) == 0;
    }
    free(expected_memory);
    free(given_memory);
    return status;
}

static avl_status_t best_score(const avl_eval_item_t *item, const char *text, size_t skip,
                               double *score_p) {
    double best = 0;
    for (size_t i = 0; i < item->answer_count; i++) {
        double score = 0;
        AVL_TRY(score_one(item, text, item->answers[i], skip, &score));
        best = score > best ? score : best;
    }
    *score_p = best;
    return AVL_OK;
}

avl_status_t avl_eval_score(const avl_eval_item_t *item, const char *text, double *score_p) {
    return best_score(item, text, 0, score_p);
}

/* Whether `answer` cannot be had from the first token alone. */
static avl_status_t goes_on(const avl_eval_item_t *item, const char *first, const char *answer,
                            bool *goes_on_p) {
    char *begin_memory = NULL, *expected_memory = NULL, *begin = NULL, *expected = NULL;
    AVL_TRY(normalise(first, item->ignore_case, &begin_memory, &begin));
    avl_status_t status = normalise(answer, item->ignore_case, &expected_memory, &expected);
    if (status == AVL_OK && item->score == AVL_EVAL_EXACT)
        *goes_on_p = begin[0] != '\0' && strncmp(expected, begin, strlen(begin)) == 0 &&
                     strlen(expected) > strlen(begin);
    else if (status == AVL_OK)
        *goes_on_p = strstr(begin, expected) == NULL;
    free(expected_memory);
    free(begin_memory);
    return status;
}

avl_status_t avl_eval_score_after_first(const avl_eval_item_t *item, const char *text,
                                        const char *first, bool *counts_p, double *score_p) {
    bool counts = item->score == AVL_EVAL_ITEMS && item->answer_count > 0;
    for (size_t i = 0; i < item->answer_count && item->score != AVL_EVAL_ITEMS; i++) {
        bool one = false;
        AVL_TRY(goes_on(item, first, item->answers[i], &one));
        /* Several accepted answers: what one of them has from the first token alone is not
         * counted; for exact ones it is enough that the token begins one. */
        counts = item->score == AVL_EVAL_EXACT ? counts || one : (i == 0 || counts) && one;
    }
    *counts_p = counts;
    return best_score(item, text, item->score == AVL_EVAL_ITEMS ? 1 : 0, score_p);
}
