/* tests/worker/attend_rig.h: A-VL over the paged cache beside the algorithm written out in double
 * precision over plain arrays, with random queries, keys and values. */
#ifndef AVL_TESTS_WORKER_ATTEND_RIG_H
#define AVL_TESTS_WORKER_ATTEND_RIG_H

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/attend.h"

#define LAYERS 2
#define QUERY_HEADS 6
#define KV_HEADS 3
#define WIDTH 8
#define ROWS_MAX 128
#define RANKS_MAX 6

/* What is run. */
typedef struct script {
    int ranks;
    const char *kinds; /* of the prompt's rows: 't' text, 'v' visual */
    int decode_steps;
    double store, compute;
    int interval;
    int window;
    int chunk_rows; /* 0: the prompt at once */
    avl_visual_core_t core;
    avl_visual_selection_t selection;
    uint64_t seed;
    bool measures;
    struct {
        double keep; /* 0: all */
        int keep_min;
        bool protect, h2o;
    } text;
} script_t;

/* A-VL's own way to choose. */
#define SCRIPT(ranks_, kinds_, steps_, store_, compute_, interval_, window_, chunk_)               \
    {                                                                                              \
        .ranks = (ranks_), .kinds = (kinds_), .decode_steps = (steps_), .store = (store_),         \
        .compute = (compute_), .interval = (interval_), .window = (window_),                       \
        .chunk_rows = (chunk_)                                                                     \
    }

/* What came out of one layer; of all heads. */
typedef struct trace {
    float outputs[LAYERS][ROWS_MAX][QUERY_HEADS][WIDTH];
    /* After each row from the last prompt row on: positions kept and computed. */
    int32_t store[LAYERS][ROWS_MAX], store_count;
    int32_t core[LAYERS][ROWS_MAX][ROWS_MAX], core_count;
    int64_t computed_halves;
    avl_visual_mass_t mass; /* of all ranks */
    avl_pages_counts_t pages;
    /* After the last step: the text rows behind the exempt ones that each KV head holds; of the
     * ranks: and the one that its hole still shows. */
    bool held[LAYERS][KV_HEADS][ROWS_MAX];
} trace_t;

/* Prompts: one picture; two with text between; a picture first; a picture last; none. */
extern const char *const attend_prompts[];
#define ATTEND_PROMPTS 5

/* Runs the script on its ranks. */
void attend_run(const script_t *script, trace_t *trace);
/* Runs it, and the reference, and compares: outputs of every row, and the rows kept and computed,
 * in every layer, on every rank. */
void attend_check(script_t script);
/* Two scripts' outputs have the same bits. */
void attend_expect_same_bits(script_t left, script_t right);

#endif
