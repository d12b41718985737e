/* coordinator/estimate.h: how much there is to do for a request, learned from those before it: how
 * long answers get that end by themselves, how much of a prompt is there from earlier ones.
 *
 * Means that forget slowly, and how far from them single requests are: promises are made with what
 * hardly any request exceeds. How fast it is done is pace.h's matter.
 *
 * Not locked: its user guards it. Starts as zeros. */
#ifndef AVL_COORDINATOR_ESTIMATE_H
#define AVL_COORDINATOR_ESTIMATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AVL_ESTIMATE_ANSWERS 4
#define AVL_ESTIMATE_TOKENS 64 /* of an answer, while nothing is known */

typedef struct avl_mean {
    double value, deviation; /* mean distance from it */
    int64_t count;
} avl_mean_t;

typedef struct avl_estimate {
    avl_mean_t
        answer_tokens;      /* of those that end by themselves, and of longer ones that were cut */
    avl_mean_t all_tokens;  /* of all */
    avl_mean_t rows, tiles; /* of a request */
    avl_mean_t fresh_rows;  /* share of a prompt's rows that is computed */
} avl_estimate_t;

/* What is known of a request before it runs. */
typedef struct avl_demand {
    int32_t tiles, rows;
    int32_t tokens_max;
    bool all_tokens; /* the answer will be that long */
    int32_t answers; /* side by side; 0 is 1 */
} avl_demand_t;

/* A request is answered; `tokens` of one answer. */
void avl_estimate_answer(avl_estimate_t *estimate, const avl_demand_t *demand, int64_t rows_reused,
                         int32_t tokens);

/* Whether AVL_ESTIMATE_ANSWERS requests were answered. */
bool avl_estimate_is_known(const avl_estimate_t *estimate);
/* Tokens that an answer will have as a rule; what it will hardly exceed. */
int32_t avl_estimate_tokens(const avl_estimate_t *estimate, const avl_demand_t *demand);
int32_t avl_estimate_tokens_most(const avl_estimate_t *estimate, const avl_demand_t *demand);
/* Rows of its prompt that will hardly be exceeded by those that are computed. */
int32_t avl_estimate_rows_most(const avl_estimate_t *estimate, const avl_demand_t *demand);
/* What a request is like of which nothing is known: as the others, with any answer. */
avl_demand_t avl_estimate_demand(const avl_estimate_t *estimate);

#endif
