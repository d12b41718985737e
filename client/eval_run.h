/* client/eval_run.h: asks a service the questions of a task file, once with each method.
 *
 * First one question goes to every method, to find mistakes before anything is measured. Then two
 * requests a question and method: the answer (greedy), and then the dense answer's tokens
 * forced, with the log probabilities of every step, for the divergence. Dense attention comes
 * first, as the reference; where it is among the methods as well, it is measured again like them.
 * Several requests are under way at once; one thread does everything. */
#ifndef AVL_CLIENT_EVAL_RUN_H
#define AVL_CLIENT_EVAL_RUN_H

#include <signal.h>
#include <stdbool.h>

#include <jansson.h>

#include "client/eval_method.h"
#include "client/eval_stats.h"
#include "client/eval_tasks.h"
#include "client/rpc.h"

/* What came of one question with one method. */
typedef struct avl_eval_record {
    bool answered; /* the rest is there */
    char *text;
    size_t first_bytes; /* of the text: what the first tokens that show anything brought */
    int32_t *ids;       /* [id_count] */
    size_t id_count, id_capacity;
    size_t text_bytes, text_capacity;
    uint32_t prompt_tokens, cached_tokens;
    uint32_t rows_seen, rows_stored;
    double rows_computed;                   /* a step */
    uint64_t kv_bytes;                      /* held at the end */
    double first_token_s, token_s, total_s; /* token_s: of a token after the first; 0: none */
    /* The dense answer forced: sums over its tokens, and over those after the first. */
    bool compared;
    uint32_t positions, agreed, agreed_after;
    double divergence, divergence_after;
    bool mass_told;
    double mass, stored_mass; /* share of dense attention's on visual rows: computed, stored */
    avl_eval_step_t *steps;   /* [id_count] of the reference alone */
} avl_eval_record_t;

typedef struct avl_eval_run {
    const avl_eval_tasks_t *tasks;
    const avl_eval_method_t *methods; /* [method_count] the first is the reference: dense */
    size_t method_count;
    size_t concurrency;
    uint32_t max_tokens; /* for items that do not say */
    double timeout_s;
    bool scores_only;           /* no forced decoding */
    bool without_mass;          /* do not measure what share of the attention mass is captured */
    avl_eval_record_t *records; /* [method_count, item_count] */
    json_t **in_force;          /* [method_count] the parameters that the service reports */
    uint64_t failed;
    avl_status_t first_failure;
    char first_detail[AVL_STATUS_DETAIL_BYTES];
} avl_eval_run_t;

avl_eval_record_t *avl_eval_record(const avl_eval_run_t *run, size_t method, size_t item);

/* Fills `records`, which it allocates; what was measured until an error stays there, and
 * avl_eval_run_free releases it. Requests that the service has no room for are repeated; others
 * that fail are counted. Errors: AVL_ERR_INVALID (a question or method that the service refuses,
 * named), AVL_ERR_CANCELLED (*stop_p became non-zero), AVL_ERR_MEMORY, AVL_ERR_UNAVAILABLE and what
 * else makes the first eight questions fail in a row. */
AVL_MUST_CHECK avl_status_t avl_eval_run(avl_eval_run_t *run, avl_rpc_t *rpc,
                                         const volatile sig_atomic_t *stop_p);
/* Whether any question was answered. */
bool avl_eval_run_has_answers(const avl_eval_run_t *run);
void avl_eval_run_free(avl_eval_run_t *run);

#endif
