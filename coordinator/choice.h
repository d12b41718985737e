/* coordinator/choice.h: one of the answers to a request: what was sent of it, and how it goes on.
 *
 * Its seed follows from the request's, so that an answer can be had again alone: the first has the
 * request's own; the i-th after it has the i-th number of splitmix64 (Steele, Lea and Flood, "Fast
 * splittable pseudorandom number generators", OOPSLA 2014) that starts there, cut to 53 bits.
 *
 * Part of a live request, whose lock guards it. */
#ifndef AVL_COORDINATOR_CHOICE_H
#define AVL_COORDINATOR_CHOICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "coordinator/stop_text.h"
#include "inputs/tokenizer.h"

typedef struct avl_choice {
    uint64_t seed;
    int32_t *sent_ids;
    size_t sent_count, sent_capacity;
    avl_detokenizer_t *detokenizer;
    avl_stop_text_t *stop; /* NULL: none */
    bool stopped; /* by a stop text: the group is told to end it, and its report is waited for */
    bool over;    /* the client has its `finished` */
    int64_t last_token_ns; /* 0: none yet */
} avl_choice_t;

uint64_t avl_choice_seed(uint64_t request_seed, int32_t index);

/* `count` answers that end before one of `texts`. avl_choices_destroy releases them. Errors: those
 * of avl_stop_text_create and of avl_detokenizer_create. */
AVL_MUST_CHECK avl_status_t avl_choices_create(const avl_tokenizer_t *tokenizer, char *const *texts,
                                               size_t text_count, uint64_t request_seed,
                                               int32_t count, avl_choice_t **choices_p);
void avl_choices_destroy(avl_choice_t *choices, int32_t count);

/* The token comes after the others. *text_p, until the next call: what the client may see now.
 * Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_choice_add(avl_choice_t *choice, int32_t token_id,
                                           const char **text_p);

#endif
