/* tests/model/dense_run.h: reference cases, and the bare model run over them with dense attention.
 *
 * Attention is a hook over plain arrays, one row per position, so that nothing of the worker's
 * cache takes part. Functions return a status and use no assertion of the test library: ranks are
 * threads. */
#ifndef AVL_TESTS_MODEL_DENSE_RUN_H
#define AVL_TESTS_MODEL_DENSE_RUN_H

#include "model/model.h"

#define AVL_CASE_IMAGES_MAX 4

typedef struct avl_case {
    char path[512];       /* of the case's directory */
    char model_path[512]; /* of the model's */
    int prompt_count;     /* with one id per picture */
    int32_t *prompt_ids;
    int image_count;
    int image_rows[AVL_CASE_IMAGES_MAX];
    int image_widths[AVL_CASE_IMAGES_MAX];
    int image_heights[AVL_CASE_IMAGES_MAX];
    float *pixels; /* normalised, of all tiles; NULL without pictures */
    int64_t pixel_count;
    float *image_features; /* [sum of image_rows, hidden] */
    int64_t feature_count;
    float *first_logits; /* [vocab] */
    int64_t vocab_rows;
    float *all_logits; /* [step_count, vocab], or NULL */
    int all_logits_steps;
    int32_t *greedy_ids;
    int greedy_count;
    int32_t *bf16_ids; /* the reference's tokens in bf16, or NULL; and along them in f32: */
    int32_t *f32_best;
    float *f32_margins;
    double bf16_error_rms; /* of the reference's bf16 logits against f32 */
    int bf16_count;
} avl_case_t;

/* `directory`: of one case below models/cases or tests/data/cases. */
AVL_MUST_CHECK avl_status_t avl_case_load(const char *directory, avl_case_t *case_p);
void avl_case_release(avl_case_t *data);
/* Directories of cases: [count] strings, free() each and the array. Sorted. */
AVL_MUST_CHECK avl_status_t avl_case_list(const char *parent, char ***paths_p, int *count_p);

/* A model directory opened for one or more runs. */
typedef struct avl_dense_source {
    avl_config_t config;
    avl_weights_t *weights;
} avl_dense_source_t;
AVL_MUST_CHECK avl_status_t avl_dense_open(const char *model_path, avl_dense_source_t *source_p);
void avl_dense_close(avl_dense_source_t *source);

typedef struct avl_dense_result {
    float *features; /* [feature_count] of the case */
    float *logits;   /* [token_count, vocab]: what each token was chosen from (rank 0) */
    int32_t *tokens; /* the best ones, or the forced ones' rivals; [token_count] */
    int token_count;
} avl_dense_result_t;
void avl_dense_release(avl_dense_result_t *result);

/* Encodes the pictures, prefills the prompt in chunks of at most `chunk_rows` (0: at once) and
 * decodes `token_count` tokens: the best one each time, or with `forced` those, the best one being
 * recorded still. Collective over the model's group. */
AVL_MUST_CHECK avl_status_t avl_dense_run(avl_model_t *model, avl_device_t *device,
                                          avl_group_t *group, const avl_dense_source_t *source,
                                          avl_dtype_t dtype, const avl_case_t *data, int chunk_rows,
                                          const int32_t *forced, int token_count,
                                          avl_dense_result_t *result_p);

/* The rank of `group` that this thread is: model created, run, destroyed. Collective. */
AVL_MUST_CHECK avl_status_t avl_dense_run_group(const avl_dense_source_t *source,
                                                avl_group_t *group, int threads, avl_dtype_t dtype,
                                                const avl_case_t *data, int chunk_rows,
                                                int tiles_max, const int32_t *forced,
                                                int token_count, avl_dense_result_t *result_p);

/* One process, one rank: model created, run, destroyed. tiles_max as given. */
AVL_MUST_CHECK avl_status_t avl_dense_run_single(const avl_dense_source_t *source,
                                                 avl_dtype_t dtype, const avl_case_t *data,
                                                 int chunk_rows, int tiles_max,
                                                 const int32_t *forced, int token_count,
                                                 avl_dense_result_t *result_p);

/* `ranks` threads over a loopback group; the result is rank 0's, differing[r] the number of feature
 * values in which rank r differs from rank 0 in any bit. Every rank's status is in statuses[r]. */
void avl_dense_run_ranks(const avl_dense_source_t *source, avl_dtype_t dtype,
                         const avl_case_t *data, int ranks, int token_count, avl_status_t *statuses,
                         int64_t *differing, avl_dense_result_t *result_p);

/* The largest |a - b|. */
double avl_dense_distance(const float *a, const float *b, int64_t count);

#endif
