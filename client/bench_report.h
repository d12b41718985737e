/* client/bench_report.h: what a benchmark has counted, and its table and JSON. Metrics have the
 * names and meanings of vLLM's benchmark: TTFT (time to first token), TPOT (time per output token
 * after the first, one value a request), ITL (inter-token latency, one value a message), E2EL
 * (end-to-end latency). */
#ifndef AVL_CLIENT_BENCH_REPORT_H
#define AVL_CLIENT_BENCH_REPORT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "proto/inference.pb-c.h"

#define AVL_BENCH_ERRORS_MAX 24 /* more than there are statuses */

typedef struct avl_bench_samples {
    double *values;
    size_t count, capacity;
} avl_bench_samples_t;

typedef struct avl_bench_error {
    avl_status_t status;
    uint64_t count;
    char detail[AVL_STATUS_DETAIL_BYTES]; /* of the first one */
} avl_bench_error_t;

typedef struct avl_bench_results {
    avl_bench_samples_t ttft_ms, tpot_ms, itl_ms, e2el_ms;
    avl_bench_samples_t refused_ms; /* of failed ones: refused at the door, by load or deadline */
    uint64_t completed;
    uint64_t good;      /* completed within the deadline */
    uint64_t cancelled; /* on purpose */
    uint64_t failed;
    uint64_t late;                         /* of those: taken, and not complete at the deadline */
    uint64_t unfinished;                   /* under way when the benchmark was interrupted */
    uint64_t prompt_tokens, visual_tokens; /* of completed requests */
    uint64_t output_tokens;                /* received, whatever came of the request */
    uint64_t visual_requests;              /* completed ones with a picture, summed up here: */
    double rows_seen, rows_stored, rows_computed;
    /* The server's own timings, summed over completed requests. */
    double queue_s, preprocess_s, encode_s, prefill_s;
    avl_bench_error_t errors[AVL_BENCH_ERRORS_MAX];
    size_t error_count;
    double duration_s;
} avl_bench_results_t;

/* How the load was made, for the report's head. */
typedef struct avl_bench_setting {
    const char *server;
    const Avl__V1__GetModelInfoResponse *info;
    double rate;          /* arrivals a second; 0: closed loop */
    uint64_t concurrency; /* of the closed loop */
    uint64_t connections;
    double deadline_s; /* 0: none */
    double cancel_rate;
    uint32_t max_tokens;
    uint64_t seed;
} avl_bench_setting_t;

/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_bench_sample(avl_bench_samples_t *samples, double value);
void avl_bench_count_error(avl_bench_results_t *results, avl_status_t status, const char *detail);
void avl_bench_results_free(avl_bench_results_t *results);

/* Both sort the samples. Errors: AVL_ERR_IO, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_bench_print_table(FILE *stream, const avl_bench_setting_t *setting,
                                                  avl_bench_results_t *results);
AVL_MUST_CHECK avl_status_t avl_bench_print_json(FILE *stream, const avl_bench_setting_t *setting,
                                                 avl_bench_results_t *results);

#endif
