/* client/eval_report.h: what an evaluation found, per method and task: figures, table, JSON. */
#ifndef AVL_CLIENT_EVAL_REPORT_H
#define AVL_CLIENT_EVAL_REPORT_H

#include <stdio.h>

#include "client/eval_run.h"
#include "client/eval_stats.h"

/* One method on one task. Scores and shares are 0 to 1; differences are to dense attention, over
 * the questions that both have answered. */
typedef struct avl_eval_cell {
    size_t items, answered;
    avl_eval_mean_t score, score_difference;
    avl_eval_mean_t after, after_difference; /* the score without the first token */
    /* Answers of its own against those of dense attention. */
    avl_eval_mean_t same; /* all tokens are */
    avl_eval_mean_t kept; /* share of dense attention's tokens before the first other one */
    double first_other;   /* its place, from 0, in answers that have one; -1: none has */
    /* The dense answer forced, per token; "after": the first one left out. */
    avl_eval_mean_t agreed, agreed_after, divergence, divergence_after;
    avl_eval_mean_t mass, stored_mass; /* share of the mass that would lie on visual rows */
    /* Means over questions. */
    double prompt_tokens, cached_tokens, tokens;
    double rows_seen, rows_stored, rows_computed, kv_bytes;
    double first_token_s, token_s, total_s;
} avl_eval_cell_t;

typedef struct avl_eval_setting {
    const char *server, *tasks_path;
    const Avl__V1__GetModelInfoResponse *info;
    double duration_s;
    bool interrupted;
    const char *failure; /* what ended the run early; NULL: nothing did */
} avl_eval_setting_t;

/* [method_count, name_count of tasks] from malloc. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_eval_cells(const avl_eval_run_t *run, avl_eval_cell_t **cells_p);

/* Errors: AVL_ERR_IO; the JSON's also AVL_ERR_MEMORY, AVL_ERR_INTERNAL (numbers from the service
 * that JSON has no place for). */
AVL_MUST_CHECK avl_status_t avl_eval_print_table(FILE *stream, const avl_eval_setting_t *setting,
                                                 const avl_eval_run_t *run,
                                                 const avl_eval_cell_t *cells);
AVL_MUST_CHECK avl_status_t avl_eval_write_json(const char *path, const avl_eval_setting_t *setting,
                                                const avl_eval_run_t *run,
                                                const avl_eval_cell_t *cells);
/* Every answer as one line of JSON: item, method, text, score and what was measured of it. */
AVL_MUST_CHECK avl_status_t avl_eval_write_answers(const char *path, const avl_eval_run_t *run);

#endif
