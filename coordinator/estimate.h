/* coordinator/estimate.h: how long a request will take, learned from those before it.
 *
 * Means that forget slowly, of what groups report: nanoseconds per tile of a picture, per prompt
 * row and per token of an answer, all as they are under the load at hand, and the length of answers
 * that end by themselves. Nothing is claimed before AVL_ESTIMATE_ANSWERS answers: a service that
 * has just started refuses nobody for what it does not know.
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
    double value;
    int64_t count;
} avl_mean_t;

typedef struct avl_estimate {
    avl_mean_t tile_ns, row_ns, token_ns, answer_tokens, work_ns;
} avl_estimate_t;

/* What is known of a request before it runs. */
typedef struct avl_demand {
    int32_t tiles, rows;
    int32_t tokens_max;
    bool all_tokens; /* the answer will be that long */
    int32_t answers; /* side by side; 0 is 1 */
} avl_demand_t;

/* A token came so long after the one before it. */
void avl_estimate_token(avl_estimate_t *estimate, int64_t interval_ns);
/* An answer is complete. */
void avl_estimate_answer(avl_estimate_t *estimate, const avl_demand_t *demand, int64_t encode_ns,
                         int64_t prefill_ns, int32_t tokens, int64_t work_ns);

/* Tokens that the answer will have. */
int32_t avl_estimate_tokens(const avl_estimate_t *estimate, const avl_demand_t *demand);
/* How long it will be at work; 0: not known yet. */
int64_t avl_estimate_work_ns(const avl_estimate_t *estimate, const avl_demand_t *demand);
/* The same for a request that nothing is known of. */
int64_t avl_estimate_mean_work_ns(const avl_estimate_t *estimate);

/* How the groups stand, and what goes first. */
typedef struct avl_backlog {
    int32_t parallel;        /* requests that all groups work on side by side */
    size_t running;          /* that they have */
    int64_t running_left_ns; /* their work that is left, together */
    size_t ahead;            /* that wait and go first */
    int64_t ahead_ns;
} avl_backlog_t;

/* How long until it is at work. */
int64_t avl_estimate_wait_ns(const avl_backlog_t *backlog);

#endif
