/* tests/worker/engine_double.h: stands in for worker/engine.c: real plans, sequences and pages, no
 * arithmetic.
 *
 * It defines the functions of worker/engine.h, so a program that has it does not link the engine.
 * Every plan goes over its wire form; every row takes its slot from the real page pool, layer by
 * layer as attention does, and stores are cut where a prompt ends: what the scheduler reserved is
 * put to the test. Logits are a function of all tokens and pictures that the sequence was given, in
 * order, so that a token lost, repeated or misplaced anywhere changes everything after it.
 *
 * What a plan does wrong ends the process with a text (fail of engine_double_options_t). */
#ifndef AVL_TESTS_WORKER_ENGINE_DOUBLE_H
#define AVL_TESTS_WORKER_ENGINE_DOUBLE_H

#include "worker/engine.h"

typedef struct engine_double_options {
    const avl_config_t *config;
    avl_device_t *device;
    avl_engine_limits_t limits;
    int64_t page_count;
    int32_t pictures_max;           /* of a step */
    size_t plan_bytes;              /* room for prompts and pixels in a plan */
    void (*fail)(const char *text); /* does not return */
    bool (*admits)(void *context);  /* whether this step's admissions go well; NULL: always */
    void *context;
} engine_double_options_t;

avl_engine_t *engine_double_create(const engine_double_options_t *options);

/* Most pages taken at once during the last step. */
int64_t engine_double_step_pages(const avl_engine_t *engine);

/* What a sequence has been told. */
uint64_t engine_double_start(void);
uint64_t engine_double_token(uint64_t told, int32_t token_id);
/* What encoding a picture writes for its row `row`: never 0. */
uint64_t engine_double_feature(const uint8_t *pixels, size_t bytes, int32_t row);
/* The answer to that. */
void engine_double_logits(uint64_t told, float *logits, int32_t vocab_rows);

#endif
