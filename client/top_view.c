#include "client/top_view.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

typedef Avl__V1__GetStatsResponse stats_t;
typedef Avl__V1__WorkerGroupStats group_t;
typedef Avl__V1__CacheStats cache_t;

#define BAR_CELLS 20
#define TEXT_BYTES 64

/* A name of the service's, safe for a terminal and one cell a byte. */
static const char *clean(const char *text, char cleaned[TEXT_BYTES]) {
    size_t i = 0;
    for (; text[i] != '\0' && i < TEXT_BYTES - 1; i++)
        cleaned[i] = (char)(text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?');
    cleaned[i] = '\0';
    return cleaned;
}

static uint64_t grown(uint64_t before, uint64_t after) {
    return after >= before ? after - before : after;
}

static double rate(uint64_t before, uint64_t after, double seconds) {
    return seconds > 0 ? (double)grown(before, after) / seconds : 0;
}

/* ---- percentiles ---- */

/* Whether `after` can follow `before`: another service may have taken the address. */
static bool follows(const Avl__V1__Histogram *before, const Avl__V1__Histogram *after) {
    if (before == NULL || before->n_counts != after->n_counts)
        return false;
    for (size_t i = 0; i < after->n_counts; i++)
        if (after->counts[i] < before->counts[i])
            return false;
    return true;
}

/* Observations of bucket `i` in between. */
static uint64_t bucket(const Avl__V1__Histogram *before, const Avl__V1__Histogram *after,
                       size_t i) {
    return after->counts[i] - (before != NULL ? before->counts[i] : 0);
}

double avl_top_percentile(const Avl__V1__Histogram *before, const Avl__V1__Histogram *after,
                          double share) {
    if (after == NULL || after->n_counts != after->n_bounds + 1)
        return NAN;
    if (!follows(before, after))
        before = NULL;
    uint64_t total = 0;
    for (size_t i = 0; i < after->n_counts; i++)
        total += bucket(before, after, i);
    if (total == 0)
        return NAN;
    double wanted = share * (double)total, below = 0;
    for (size_t i = 0; i < after->n_bounds; i++) {
        double here = (double)bucket(before, after, i);
        if (here > 0 && below + here >= wanted) {
            double low = i > 0 ? after->bounds[i - 1] : 0;
            return low + (after->bounds[i] - low) * (wanted - below) / here;
        }
        below += here;
    }
    return INFINITY;
}

static void write_seconds(FILE *stream, double seconds, const Avl__V1__Histogram *histogram) {
    if (isnan(seconds))
        fprintf(stream, "%9s", "-");
    else if (isinf(seconds))
        fprintf(stream, "> %5.0f s", histogram->bounds[histogram->n_bounds - 1]);
    else if (seconds < 1)
        fprintf(stream, "%6.1f ms", seconds * 1e3);
    else
        fprintf(stream, "%6.2f s ", seconds);
}

static void write_latency(FILE *stream, const char *label, const Avl__V1__Histogram *before,
                          const Avl__V1__Histogram *after) {
    static const double shares[] = {0.5, 0.9, 0.99};
    fprintf(stream, "  %-16s", label);
    for (size_t i = 0; i < 3; i++) {
        fputs("  ", stream);
        write_seconds(stream, avl_top_percentile(before, after, shares[i]), after);
    }
    fputc('\n', stream);
}

/* ---- parts ---- */

static void write_head(FILE *stream, const char *server, const stats_t *after) {
    char model[TEXT_BYTES], version[TEXT_BYTES], address[TEXT_BYTES];
    uint64_t up = after->uptime_seconds > 0 ? (uint64_t)after->uptime_seconds : 0;
    fprintf(stream, "%s at %s, avl %s, up %" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ", %s\n\n",
            clean(after->model, model), clean(server, address), clean(after->version, version),
            up / 3600, up / 60 % 60, up % 60, after->ready ? "ready" : "not ready");
}

static uint64_t failures(const stats_t *stats) {
    uint64_t sum = 0;
    for (size_t i = 0; stats != NULL && i < stats->n_requests_failed; i++)
        sum += stats->requests_failed[i]->count;
    return sum;
}

static void write_requests(FILE *stream, const stats_t *before, const stats_t *after,
                           double seconds) {
    fprintf(stream, "requests   running %" PRIu64 "   waiting %" PRIu64, after->requests_running,
            after->requests_waiting);
    fprintf(
        stream,
        "   answered %" PRIu64 " (%.1f/s)   failed %" PRIu64 " (%.1f/s)   resumed %" PRIu64 "\n",
        after->requests_succeeded,
        rate(before ? before->requests_succeeded : 0, after->requests_succeeded, seconds),
        failures(after), rate(failures(before), failures(after), seconds), after->requests_resumed);
    for (size_t i = 0; i < after->n_requests_failed; i++) {
        char code[TEXT_BYTES];
        fprintf(stream, "%s%s %" PRIu64, i == 0 ? "           failed: " : ", ",
                clean(after->requests_failed[i]->code, code), after->requests_failed[i]->count);
    }
    if (after->n_requests_failed > 0)
        fputc('\n', stream);
}

static void write_tokens(FILE *stream, const stats_t *before, const stats_t *after,
                         double seconds) {
    fprintf(stream, "tokens     generated %.1f/s   prompts %.1f/s\n",
            rate(before ? before->generation_tokens : 0, after->generation_tokens, seconds),
            rate(before ? before->prompt_tokens : 0, after->prompt_tokens, seconds));
    uint64_t in = grown(before ? before->visual_tokens_in : 0, after->visual_tokens_in);
    uint64_t stored = grown(before ? before->visual_tokens_stored : 0, after->visual_tokens_stored);
    uint64_t computed =
        grown(before ? before->visual_tokens_computed : 0, after->visual_tokens_computed);
    uint64_t steps = grown(before ? before->decode_steps : 0, after->decode_steps);
    fprintf(stream, "visual     in %.1f/s", seconds > 0 ? (double)in / seconds : 0);
    if (in > 0)
        fprintf(stream, "   stored %.1f %%", 100 * (double)stored / (double)in);
    if (steps > 0)
        fprintf(stream, "   computed %.1f a step", (double)computed / (double)steps);
    fprintf(stream, "   cache returned %.1f MiB\n",
            (double)grown(before ? before->kv_bytes_returned : 0, after->kv_bytes_returned) /
                (1 << 20));
}

static void write_preprocess(FILE *stream, const stats_t *before, const stats_t *after,
                             double seconds) {
    const Avl__V1__PreprocessStats *now = after->preprocess;
    if (now == NULL)
        return;
    uint64_t completed = before && before->preprocess ? before->preprocess->completed : 0;
    fprintf(stream,
            "inputs     %u threads, %" PRIu64 " at work   queued %" PRIu64 " of %" PRIu64
            "   done %.1f/s   refused %" PRIu64 "\n",
            now->threads, now->running, now->queued, now->queue_capacity,
            rate(completed, now->completed, seconds), now->refused);
}

static void write_bar(FILE *stream, double share) {
    int filled = share <= 0 ? 0 : share >= 1 ? BAR_CELLS : (int)(share * BAR_CELLS + 0.5);
    fputc('[', stream);
    for (int i = 0; i < BAR_CELLS; i++)
        fputc(i < filled ? '#' : '.', stream);
    fprintf(stream, "] %5.1f %%", 100 * share);
}

static void write_cache(FILE *stream, const char *label, const cache_t *before,
                        const cache_t *after) {
    if (after == NULL || after->bytes_max == 0)
        return;
    fprintf(stream, "           %s ", label);
    write_bar(stream, (double)after->bytes / (double)after->bytes_max);
    fprintf(stream, " of %.1f MiB, %" PRIu64 " kept", (double)after->bytes_max / (1 << 20),
            after->entries);
    uint64_t queries = grown(before ? before->queries : 0, after->queries);
    if (queries > 0)
        fprintf(stream, ", hits %.1f %%",
                100 * (double)grown(before ? before->hits : 0, after->hits) / (double)queries);
    fputc('\n', stream);
}

/* Ranks fit on a line up to here. */
#define RANKS_SHOWN_MAX 8

static void write_collectives(FILE *stream, const group_t *before, const group_t *after,
                              double seconds) {
    if (before == NULL || seconds <= 0 || after->n_collective_seconds == 0 ||
        before->n_collective_seconds != after->n_collective_seconds)
        return;
    fputs("           in collectives, rank by rank:", stream);
    for (size_t i = 0; i < after->n_collective_seconds && i < RANKS_SHOWN_MAX; i++) {
        double spent = after->collective_seconds[i] - before->collective_seconds[i];
        fprintf(stream, " %.1f %%", spent > 0 ? 100 * spent / seconds : 0);
    }
    fputs(after->n_collective_seconds > RANKS_SHOWN_MAX ? " ...\n" : "\n", stream);
}

static void write_group(FILE *stream, size_t index, const group_t *before, const group_t *after,
                        double seconds) {
    char state[TEXT_BYTES], device[TEXT_BYTES], dtype[TEXT_BYTES];
    fprintf(stream, "group %-4zu %s", index, clean(after->state, state));
    if (strcmp(after->state, "loading") == 0)
        fprintf(stream, " %.0f %%", 100 * after->loading_share);
    if (after->ranks > 0)
        fprintf(stream, "   %u rank%s, %s, %s", after->ranks, after->ranks == 1 ? "" : "s",
                clean(after->device, device), clean(after->dtype, dtype));
    fprintf(stream, "   restarts %" PRIu64 "\n", after->restarts);
    if (!after->reported)
        return;
    bool known = before != NULL && before->reported;
    fprintf(stream, "           at work %u of %u   queued %u   steps %.1f/s", after->active,
            after->sequences_max, after->queued,
            rate(known ? before->steps : 0, after->steps, seconds));
    uint64_t prompt = grown(known ? before->prompt_tokens : 0, after->prompt_tokens);
    uint64_t reused = grown(known ? before->prompt_tokens_reused : 0, after->prompt_tokens_reused);
    if (prompt > 0)
        fprintf(stream, "   prompts reused %.1f %%", 100 * (double)reused / (double)prompt);
    fputs("\n           KV pages       ", stream);
    double total = after->pages_total > 0 ? (double)after->pages_total : 1;
    write_bar(stream, (double)after->pages_taken / total);
    fprintf(stream, " of %.1f MiB, %.1f %% reserved, %.1f %% kept\n",
            total * (double)after->page_bytes / (1 << 20),
            100 * (double)after->pages_reserved / total, 100 * (double)after->pages_kept / total);
    write_cache(stream, "encoder cache ", known ? before->encoder_cache : NULL,
                after->encoder_cache);
    write_cache(stream, "prompt cache  ", known ? before->prompt_cache : NULL, after->prompt_cache);
    write_collectives(stream, known ? before : NULL, after, seconds);
}

void avl_top_view_write(FILE *stream, const char *server, const stats_t *before,
                        const stats_t *after, double seconds) {
    if (before != NULL && after->uptime_seconds < before->uptime_seconds)
        before = NULL; /* the service is a new one */
    if (before == NULL)
        seconds = after->uptime_seconds;
    write_head(stream, server, after);
    write_requests(stream, before, after, seconds);
    write_tokens(stream, before, after, seconds);
    write_preprocess(stream, before, after, seconds);
    fprintf(stream, "\nlatency of the last %.1f s    50 %%        90 %%        99 %%\n", seconds);
    write_latency(stream, "first token", before ? before->first_token_seconds : NULL,
                  after->first_token_seconds);
    write_latency(stream, "between tokens", before ? before->between_tokens_seconds : NULL,
                  after->between_tokens_seconds);
    write_latency(stream, "whole request", before ? before->request_seconds : NULL,
                  after->request_seconds);
    fputc('\n', stream);
    for (size_t i = 0; i < after->n_groups; i++)
        write_group(stream, i, before != NULL && i < before->n_groups ? before->groups[i] : NULL,
                    after->groups[i], seconds);
}
