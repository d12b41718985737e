/* tests/worker/rig.h: a whole worker group in one process, without a network: ranks are threads,
 * the test is the leader.
 *
 * Every function ends the test (cmocka fail) when something is not as it should be; ranks other
 * than the leader report through rig_close. */
#ifndef AVL_TESTS_WORKER_RIG_H
#define AVL_TESTS_WORKER_RIG_H

#include <jansson.h>

#include "worker/loop.h"

#define RIG_RANKS_MAX 8
#define RIG_RESULTS_MAX 512
#define RIG_TOKENS_MAX 256

typedef struct rig_options {
    const char *model; /* directory, from the source tree's root unless it begins with / */
    int ranks;
    int threads; /* of a rank; 0: 1 */
    avl_dtype_t dtype;
    avl_engine_limits_t limits;  /* zeros: 512 rows, 8 sequences, the model's context */
    int64_t page_count;          /* 0: plenty */
    int64_t encoder_cache_bytes; /* 0: plenty */
    int32_t queue_max;           /* 0: 1024 */
} rig_options_t;

/* What came out for one request. */
typedef struct rig_result {
    uint64_t request_id;
    int32_t tokens[RIG_TOKENS_MAX];
    float logprobs[RIG_TOKENS_MAX]; /* when asked for */
    int32_t token_count;
    int progress_events;
    bool finished;
    avl_event_t end;
} rig_result_t;

typedef struct rig rig_t;

rig_t *rig_open(const rig_options_t *options);
/* Stops the ranks and checks that each of them ended well with all pages free and the same counts.
 */
void rig_close(rig_t *rig);

const avl_config_t *rig_config(const rig_t *rig);
avl_scheduler_t *rig_scheduler(rig_t *rig);
avl_engine_t *rig_engine(rig_t *rig, int rank);
/* One step. Returns whether there was anything to do. */
bool rig_step(rig_t *rig);
/* Steps until nothing is left. */
void rig_run(rig_t *rig);
/* The name of an answer among several to one request, for rig_result. */
uint64_t rig_answer_id(uint64_t request_id, int32_t choice);
/* The result of a request; made empty when it is new. */
rig_result_t *rig_result(rig_t *rig, uint64_t request_id);
/* Submits `request`, runs until idle and returns its result. */
const rig_result_t *rig_answer(rig_t *rig, avl_request_t *request);

/* ---- reference cases ---- */

typedef struct rig_case {
    char directory[512];
    json_t *json;
    int32_t *token_ids; /* expanded; -1: visual */
    int32_t row_count;
    avl_request_image_t *images;
    int32_t image_count;
} rig_case_t;

/* `directory` from the source tree's root: models/cases/00, or tests/data/cases/MODEL/NN. Pictures
 * go through inputs/. */
rig_case_t rig_case_load(const avl_config_t *config, const char *directory);
void rig_case_release(rig_case_t *data);

/* A request with the case's prompt, dense and greedy, for `max_tokens` tokens; change it as needed.
 */
avl_request_t *rig_request(const rig_case_t *data, uint64_t id, int32_t max_tokens);
/* One without pictures: the ids themselves. */
avl_request_t *rig_text_request(const int32_t *ids, int32_t count, uint64_t id, int32_t max_tokens);
void rig_set_attention(avl_request_t *request, double store, double compute, int32_t interval);
/* Text eviction without the prompt's protection, as the authors have it. */
void rig_set_text(avl_request_t *request, double keep, int32_t keep_min);
void rig_set_replay(avl_request_t *request, const int32_t *ids, int32_t count);
/* `count` answers with these seeds. */
void rig_set_choices(avl_request_t *request, const uint64_t *seeds, int32_t count);

/* The result's tokens are exactly `ids`. */
void rig_expect_tokens(const rig_result_t *result, const int32_t *ids, int32_t count,
                       const char *what);

#endif
