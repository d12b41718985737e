/* client/eval_tasks.h: a file of questions about pictures, one JSON object a line, for `avl eval`.
 *
 *   id          text, unique in the file
 *   task        text that groups the scores; default "all"
 *   images      picture files, relative to the folder of the task file; of the first user message
 *   question    the one user message; or instead
 *   turns       [{"role": "user" or "assistant", "text": ..., "images": [...]}], the user first and
 *               last; assistant turns are given, not generated
 *   system      text before all of it
 *   answer      what is expected, or a list of what is accepted; without it, only agreement with
 *               dense attention is measured
 *   score       "exact" (default), "items" or "contains": client/eval_score.h
 *   ignore_case true or false (default)
 *   max_tokens  of the answer
 *   meta        whatever the writer wants to keep here
 *
 * Any other key is refused: a misspelt one would change the measurement without a word. */
#ifndef AVL_CLIENT_EVAL_TASKS_H
#define AVL_CLIENT_EVAL_TASKS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define AVL_EVAL_TASKS_MAX 32

typedef enum avl_eval_score_kind {
    AVL_EVAL_EXACT,
    AVL_EVAL_ITEMS,
    AVL_EVAL_CONTAINS,
} avl_eval_score_kind_t;

typedef struct avl_eval_turn {
    bool assistant;
    const char *text;
    char **images; /* [image_count] paths */
    size_t image_count;
} avl_eval_turn_t;

typedef struct avl_eval_item {
    json_t *json; /* its line; the texts below lie in it */
    size_t line;
    const char *id, *system; /* system: NULL: none */
    size_t task;             /* number of its task */
    avl_eval_turn_t *turns;
    size_t turn_count;
    avl_eval_score_kind_t score;
    bool ignore_case;
    const char **answers;
    size_t answer_count;
    uint32_t max_tokens; /* 0: not said */
} avl_eval_item_t;

typedef struct avl_eval_tasks {
    avl_eval_item_t *items;
    size_t item_count, item_capacity;
    const char *names[AVL_EVAL_TASKS_MAX]; /* of tasks, in order of appearance */
    size_t name_count;
    json_t *ids; /* every id seen */
} avl_eval_tasks_t;

/* Reads at most `limit` items of each task (0: all). Pictures must be there: regular files,
 * not empty. Errors name file, line
 * and field: AVL_ERR_NOT_FOUND, AVL_ERR_IO, AVL_ERR_INVALID, AVL_ERR_MEMORY. avl_eval_tasks_free
 * releases what was read, after an error as well. */
AVL_MUST_CHECK avl_status_t avl_eval_tasks_read(const char *path, size_t limit,
                                                avl_eval_tasks_t *tasks_p);
void avl_eval_tasks_free(avl_eval_tasks_t *tasks);

#endif
