#include "client/eval_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define QUANTILE_95 1.959963984540054
#define SEED UINT64_C(20240607)
/* What rounding leaves of a probability that is told as a 32-bit logarithm. */
#define REST_LEAST 1e-9

avl_status_t avl_eval_sample(avl_eval_samples_t *samples, double value, double weight) {
    /* Nor may a resample be drawn from such samples alone: it would have no mean. */
    if (!(weight > 0))
        return AVL_OK;
    AVL_TRY(avl_grow(samples->count + 1, sizeof *samples->values, "samples", &samples->values,
                     &samples->value_capacity));
    AVL_TRY(avl_grow(samples->count + 1, sizeof *samples->weights, "samples", &samples->weights,
                     &samples->weight_capacity));
    bool binary = (value == 0 || value == 1) && weight == 1;
    samples->all_binary = binary && (samples->count == 0 || samples->all_binary);
    samples->values[samples->count] = value;
    samples->weights[samples->count++] = weight;
    return AVL_OK;
}

void avl_eval_samples_free(avl_eval_samples_t *samples) {
    free(samples->values);
    free(samples->weights);
    memset(samples, 0, sizeof *samples);
}

/* splitmix64, by S. Vigna. */
static uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static int compare(const void *left_p, const void *right_p) {
    double left = *(const double *)left_p, right = *(const double *)right_p;
    return (left > right) - (left < right);
}

static void wilson(avl_eval_mean_t *mean) {
    double n = (double)mean->count, z = QUANTILE_95;
    double middle = (mean->mean + z * z / (2 * n)) / (1 + z * z / n);
    double half =
        z / (1 + z * z / n) * sqrt(mean->mean * (1 - mean->mean) / n + z * z / (4 * n * n));
    mean->low = middle - half > 0 ? middle - half : 0;
    mean->high = middle + half < 1 ? middle + half : 1;
}

static avl_status_t bootstrap(const avl_eval_samples_t *samples, avl_eval_mean_t *mean) {
    double *means = NULL;
    AVL_TRY(avl_alloc(AVL_EVAL_RESAMPLES, sizeof *means, "resamples", &means));
    uint64_t state = SEED;
    for (size_t i = 0; i < AVL_EVAL_RESAMPLES; i++) {
        double value = 0, weight = 0;
        for (size_t j = 0; j < samples->count; j++) {
            /* The high bits of a product: a draw below count without a division. */
            size_t place = (size_t)(((random_bits(&state) >> 32) * samples->count) >> 32);
            value += samples->values[place];
            weight += samples->weights[place];
        }
        means[i] = value / weight;
    }
    qsort(means, AVL_EVAL_RESAMPLES, sizeof *means, compare);
    mean->low = means[(size_t)(0.025 * (AVL_EVAL_RESAMPLES - 1))];
    mean->high = means[AVL_EVAL_RESAMPLES - 1 - (size_t)(0.025 * (AVL_EVAL_RESAMPLES - 1))];
    free(means);
    return AVL_OK;
}

avl_status_t avl_eval_mean(const avl_eval_samples_t *samples, bool differences,
                           avl_eval_mean_t *mean_p) {
    avl_eval_mean_t mean = {.count = samples->count};
    double value = 0, weight = 0;
    for (size_t i = 0; i < samples->count; i++) {
        value += samples->values[i];
        weight += samples->weights[i];
    }
    mean.mean = mean.low = mean.high = samples->count > 0 ? value / weight : 0;
    if (samples->count > 0 && samples->all_binary && !differences)
        wilson(&mean);
    else if (samples->count > 1)
        AVL_TRY(bootstrap(samples, &mean));
    *mean_p = mean;
    return AVL_OK;
}

/* The place of a token in a step's list, or -1. */
static int32_t place_of(const avl_eval_step_t *step, int32_t id) {
    for (int32_t i = 0; i < step->count; i++) {
        if (step->ids[i] == id)
            return i;
    }
    return -1;
}

double avl_eval_divergence(const avl_eval_step_t *from, const avl_eval_step_t *to) {
    double sum = 0, from_told = 0, to_told = 0;
    for (int32_t i = 0; i < from->count; i++) {
        int32_t place = place_of(to, from->ids[i]);
        /* The token's own entry comes again among the best, if it is one of them. */
        if (place < 0 || place_of(from, from->ids[i]) != i)
            continue;
        double p = exp((double)from->logprobs[i]), q = exp((double)to->logprobs[place]);
        from_told += p;
        to_told += q;
        if (p > 0)
            sum += p * ((double)from->logprobs[i] - (double)to->logprobs[place]);
    }
    double from_rest = fmax(1 - from_told, REST_LEAST), to_rest = fmax(1 - to_told, REST_LEAST);
    sum += from_rest * log(from_rest / to_rest);
    return sum > 0 ? sum : 0;
}
