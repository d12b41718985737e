#include "client/bench_report.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "client/json.h"
#include "client/terminal.h"

avl_status_t avl_bench_sample(avl_bench_samples_t *samples, double value) {
    AVL_TRY(avl_grow(samples->count + 1, sizeof samples->values[0], "samples", &samples->values,
                     &samples->capacity));
    samples->values[samples->count++] = value;
    return AVL_OK;
}

void avl_bench_count_error(avl_bench_results_t *results, avl_status_t status, const char *detail) {
    size_t i = 0;
    while (i < results->error_count && results->errors[i].status != status)
        i++;
    if (i == AVL_BENCH_ERRORS_MAX)
        i--; /* cannot be: it would mix two kinds, but count right */
    if (i == results->error_count) {
        results->errors[i].status = status;
        snprintf(results->errors[i].detail, sizeof results->errors[i].detail, "%s", detail);
        results->error_count++;
    }
    results->errors[i].count++;
    results->failed++;
}

void avl_bench_results_free(avl_bench_results_t *results) {
    free(results->ttft_ms.values);
    free(results->tpot_ms.values);
    free(results->itl_ms.values);
    free(results->e2el_ms.values);
    free(results->refused_ms.values);
}

static int compare(const void *left_p, const void *right_p) {
    double left = *(const double *)left_p, right = *(const double *)right_p;
    return (left > right) - (left < right);
}

typedef struct summary {
    size_t count; /* 0: the rest means nothing */
    double mean, p50, p90, p99;
} summary_t;

/* Between the two nearest samples, linearly. */
static double percentile(const avl_bench_samples_t *sorted, double share) {
    double place = share * (double)(sorted->count - 1);
    size_t below = (size_t)place;
    size_t above = below + 1 < sorted->count ? below + 1 : below;
    double part = place - (double)below;
    return sorted->values[below] * (1 - part) + sorted->values[above] * part;
}

static summary_t summarize(avl_bench_samples_t *samples) {
    summary_t summary = {.count = samples->count};
    if (samples->count == 0)
        return summary;
    qsort(samples->values, samples->count, sizeof samples->values[0], compare);
    for (size_t i = 0; i < samples->count; i++)
        summary.mean += samples->values[i] / (double)samples->count;
    summary.p50 = percentile(samples, 0.5);
    summary.p90 = percentile(samples, 0.9);
    summary.p99 = percentile(samples, 0.99);
    return summary;
}

static double per_second(const avl_bench_results_t *results, uint64_t count) {
    return results->duration_s > 0 ? (double)count / results->duration_s : 0;
}

/* A sum over `count` requests as their mean; 0 without any. */
static double mean_of(double sum, uint64_t count) {
    return count > 0 ? sum / (double)count : 0;
}

static void print_row(FILE *stream, const char *name, avl_bench_samples_t *samples) {
    summary_t summary = summarize(samples);
    if (summary.count == 0)
        fprintf(stream, "%-9s %10s %10s %10s %10s\n", name, "-", "-", "-", "-");
    else
        fprintf(stream, "%-9s %10.2f %10.2f %10.2f %10.2f\n", name, summary.mean, summary.p50,
                summary.p90, summary.p99);
}

static void print_head(FILE *stream, const avl_bench_setting_t *setting) {
    fputs("model      ", stream);
    avl_terminal_write(stream, setting->info->model);
    fprintf(stream, ", %u rank%s, ", setting->info->ranks, setting->info->ranks == 1 ? "" : "s");
    avl_terminal_write(stream, setting->info->device);
    fputs(", ", stream);
    avl_terminal_write(stream, setting->info->dtype);
    if (setting->rate > 0)
        fprintf(stream, "\nload       %g requests a second (Poisson, seed %" PRIu64 ")",
                setting->rate, setting->seed);
    else
        fprintf(stream, "\nload       %" PRIu64 " at once", setting->concurrency);
    if (setting->connections > 1)
        fprintf(stream, ", %" PRIu64 " connections", setting->connections);
    if (setting->cancel_rate > 0)
        fprintf(stream, ", %g %% to be cancelled", 100 * setting->cancel_rate);
    fputc('\n', stream);
}

avl_status_t avl_bench_print_table(FILE *stream, const avl_bench_setting_t *setting,
                                   avl_bench_results_t *results) {
    print_head(stream, setting);
    fprintf(stream, "requests   %" PRIu64 " completed", results->completed);
    if (results->cancelled > 0)
        fprintf(stream, ", %" PRIu64 " cancelled", results->cancelled);
    if (results->failed > 0)
        fprintf(stream, ", %" PRIu64 " failed (%zu refused, %" PRIu64 " late)", results->failed,
                results->refused_ms.count, results->late);
    if (results->unfinished > 0)
        fprintf(stream, ", %" PRIu64 " unfinished", results->unfinished);
    fprintf(stream, " in %.2f s\n", results->duration_s);
    fprintf(stream, "tokens     %" PRIu64 " prompt (%" PRIu64 " visual), %" PRIu64 " output\n",
            results->prompt_tokens, results->visual_tokens, results->output_tokens);
    fprintf(stream, "throughput %.2f requests/s, %.1f output tokens/s\n",
            per_second(results, results->completed), per_second(results, results->output_tokens));
    if (setting->deadline_s > 0)
        fprintf(stream, "goodput    %.2f requests/s within %g s (%.1f %% of all that ended)\n",
                per_second(results, results->good), setting->deadline_s,
                100 * mean_of((double)results->good, results->completed + results->failed));
    fprintf(stream, "\n%-9s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99");
    print_row(stream, "TTFT", &results->ttft_ms);
    print_row(stream, "TPOT", &results->tpot_ms);
    print_row(stream, "ITL", &results->itl_ms);
    print_row(stream, "E2EL", &results->e2el_ms);
    if (results->refused_ms.count > 0)
        print_row(stream, "refusal", &results->refused_ms);
    fprintf(stream,
            "\nserver     queue %.2f, preprocess %.2f, encode %.2f, prefill %.2f ms (means)\n",
            1e3 * mean_of(results->queue_s, results->completed),
            1e3 * mean_of(results->preprocess_s, results->completed),
            1e3 * mean_of(results->encode_s, results->completed),
            1e3 * mean_of(results->prefill_s, results->completed));
    if (results->visual_requests > 0)
        fprintf(stream, "visual     %.1f rows seen, %.1f stored, %.1f computed a step (means)\n",
                mean_of(results->rows_seen, results->visual_requests),
                mean_of(results->rows_stored, results->visual_requests),
                mean_of(results->rows_computed, results->visual_requests));
    for (size_t i = 0; i < results->error_count; i++) {
        const avl_bench_error_t *error = &results->errors[i];
        fprintf(stream, "error      %" PRIu64 " %s, first: ", error->count,
                avl_status_name(error->status));
        avl_terminal_write(stream, error->detail);
        fputc('\n', stream);
    }
    if (fflush(stream) != 0 || ferror(stream))
        return avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
    return AVL_OK;
}

/* mean_NAME_ms, median_NAME_ms, p90_NAME_ms, p99_NAME_ms; null without samples. */
static int add_metric(json_t *object, const char *name, avl_bench_samples_t *samples) {
    summary_t summary = summarize(samples);
    const struct {
        const char *kind;
        double value;
    } fields[] = {{"mean", summary.mean},
                  {"median", summary.p50},
                  {"p90", summary.p90},
                  {"p99", summary.p99}};
    int failed = 0;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_%s_ms", fields[i].kind, name);
        failed |= json_object_set_new(object, key,
                                      summary.count > 0 ? json_real(fields[i].value) : json_null());
    }
    return failed;
}

static json_t *setting_json(const avl_bench_setting_t *setting) {
    const Avl__V1__GetModelInfoResponse *info = setting->info;
    return json_pack(
        "{s:s, s:s, s:s, s:I, s:s, s:s, s:o, s:o, s:I, s:o, s:f, s:I, s:o}", "backend", "avl",
        "server", setting->server, "model_id", info->model, "ranks", (json_int_t)info->ranks,
        "device", info->device, "dtype", info->dtype, "request_rate",
        setting->rate > 0 ? json_real(setting->rate) : json_null(), "max_concurrency",
        setting->rate > 0 ? json_null() : json_integer((json_int_t)setting->concurrency),
        "connections", (json_int_t)setting->connections, "deadline_s",
        setting->deadline_s > 0 ? json_real(setting->deadline_s) : json_null(), "cancel_rate",
        setting->cancel_rate, "max_tokens", (json_int_t)setting->max_tokens, "seed",
        avl_json_u64(setting->seed));
}

static json_t *counts_json(const avl_bench_setting_t *setting, const avl_bench_results_t *results) {
    return json_pack(
        "{s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o, s:f, s:f}", "duration",
        results->duration_s, "completed", (json_int_t)results->completed, "failed",
        (json_int_t)results->failed, "cancelled", (json_int_t)results->cancelled, "unfinished",
        (json_int_t)results->unfinished, "total_input_tokens", (json_int_t)results->prompt_tokens,
        "total_visual_tokens", (json_int_t)results->visual_tokens, "total_output_tokens",
        (json_int_t)results->output_tokens, "request_throughput",
        per_second(results, results->completed), "request_goodput",
        setting->deadline_s > 0 ? json_real(per_second(results, results->good)) : json_null(),
        "output_throughput", per_second(results, results->output_tokens), "total_token_throughput",
        per_second(results, results->prompt_tokens + results->output_tokens));
}

static json_t *report_json(const avl_bench_setting_t *setting, avl_bench_results_t *results) {
    json_t *report = setting_json(setting);
    json_t *counts = counts_json(setting, results);
    json_t *server =
        json_pack("{s:f, s:f, s:f, s:f}", "mean_queue_ms",
                  1e3 * mean_of(results->queue_s, results->completed), "mean_preprocess_ms",
                  1e3 * mean_of(results->preprocess_s, results->completed), "mean_encode_ms",
                  1e3 * mean_of(results->encode_s, results->completed), "mean_prefill_ms",
                  1e3 * mean_of(results->prefill_s, results->completed));
    json_t *visual = json_pack(
        "{s:f, s:f, s:f}", "mean_rows_seen", mean_of(results->rows_seen, results->visual_requests),
        "mean_rows_stored", mean_of(results->rows_stored, results->visual_requests),
        "mean_rows_computed_per_step", mean_of(results->rows_computed, results->visual_requests));
    json_t *errors = json_object();
    int failed = json_object_update(report, counts);
    json_decref(counts);
    failed |= add_metric(report, "ttft", &results->ttft_ms);
    failed |= add_metric(report, "tpot", &results->tpot_ms);
    failed |= add_metric(report, "itl", &results->itl_ms);
    failed |= add_metric(report, "e2el", &results->e2el_ms);
    failed |= add_metric(report, "refusal", &results->refused_ms);
    failed |=
        json_object_set_new(report, "refused", json_integer((json_int_t)results->refused_ms.count));
    failed |= json_object_set_new(report, "late", json_integer((json_int_t)results->late));
    failed |= json_object_set_new(report, "server_timings", server);
    failed |= json_object_set_new(report, "visual", visual);
    for (size_t i = 0; i < results->error_count; i++)
        failed |= json_object_set_new(errors, avl_status_name(results->errors[i].status),
                                      json_integer((json_int_t)results->errors[i].count));
    failed |= json_object_set_new(report, "errors", errors);
    if (failed) {
        json_decref(report);
        return NULL;
    }
    return report;
}

avl_status_t avl_bench_print_json(FILE *stream, const avl_bench_setting_t *setting,
                                  avl_bench_results_t *results) {
    json_t *report = report_json(setting, results);
    char *text = report != NULL ? json_dumps(report, JSON_REAL_PRECISION(9) | JSON_COMPACT) : NULL;
    json_decref(report);
    if (text == NULL) /* names or numbers from the server that are none */
        return avl_fail(AVL_ERR_INTERNAL, "the results do not fit JSON");
    avl_terminal_write(stream, text);
    free(text);
    if (fputc('\n', stream) == EOF || fflush(stream) != 0 || ferror(stream))
        return avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
    return AVL_OK;
}
