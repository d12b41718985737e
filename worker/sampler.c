#include "worker/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/sample_weight.h"

/* Rows of logits are read in blocks of this many, so that compilers use vector registers without
 * being asked to reorder sums. */
#define LANES 16
/* Below it is greedy: the division would leave the range of floats. */
#define TEMPERATURE_LEAST 1e-6
#define NUCLEUS_FIRST 64 /* tokens that are sorted before more are looked at */
#define HEAP_MOST 1024   /* a larger top-k is cheaper by partitioning */
#define LIGHT 0x1p-16f
#define EXPONENTS 128 /* of weights: 1 down to 2^-127 */

typedef struct choice {
    float logit;
    float weight; /* avl_weight_of */
    int32_t token_id;
} choice_t;

struct avl_sampler {
    int32_t vocab_rows;
    choice_t *choices; /* [vocab_rows] */
    float *logits;     /* [vocab_rows] changed by penalties and bans */
    float *weights;    /* [vocab_rows] */
    uint32_t *marks;   /* [vocab_rows] == mark: has an adjustment already in this draw */
    uint32_t mark;
    int32_t *places;                      /* [vocab_rows] which */
    avl_sample_adjustment_t *adjustments; /* [vocab_rows] */
    avl_token_logprob_t logprobs[AVL_LOGPROBS_MAX];
};

avl_status_t avl_sampler_create(int32_t vocab_rows, avl_sampler_t **sampler_p) {
    avl_sampler_t *sampler;
    AVL_TRY(avl_alloc(1, sizeof *sampler, "sampler", &sampler));
    sampler->vocab_rows = vocab_rows;
    size_t rows = (size_t)vocab_rows;
    avl_status_t status = avl_alloc(rows, sizeof *sampler->choices, "sampler", &sampler->choices);
    if (status == AVL_OK)
        status = avl_alloc_aligned(rows, sizeof *sampler->logits, "sampler", &sampler->logits);
    if (status == AVL_OK)
        status = avl_alloc_aligned(rows, sizeof *sampler->weights, "sampler", &sampler->weights);
    if (status == AVL_OK)
        status = avl_alloc(rows, sizeof *sampler->marks, "sampler", &sampler->marks);
    if (status == AVL_OK)
        status = avl_alloc(rows, sizeof *sampler->places, "sampler", &sampler->places);
    if (status == AVL_OK)
        status = avl_alloc(rows, sizeof *sampler->adjustments, "sampler", &sampler->adjustments);
    if (status != AVL_OK) {
        avl_sampler_destroy(sampler);
        return status;
    }
    *sampler_p = sampler;
    return AVL_OK;
}

void avl_sampler_destroy(avl_sampler_t *sampler) {
    if (sampler == NULL)
        return;
    free(sampler->choices);
    free(sampler->logits);
    free(sampler->weights);
    free(sampler->marks);
    free(sampler->places);
    free(sampler->adjustments);
    free(sampler);
}

/* The comparisons are written so that a NaN fails them. */
avl_status_t avl_sampling_params_check(const avl_sampling_params_t *params) {
    if (!(params->temperature >= 0 && params->temperature <= 100))
        return avl_fail(AVL_ERR_INVALID, "temperature is %g; allowed: 0 (greedy) to 100",
                        params->temperature);
    if (!(params->top_p > 0 && params->top_p <= 1))
        return avl_fail(AVL_ERR_INVALID, "top_p is %g; allowed: more than 0, at most 1 (off)",
                        params->top_p);
    if (params->top_k < 0)
        return avl_fail(AVL_ERR_INVALID, "top_k is %d; allowed: at least 0 (off)", params->top_k);
    if (!(params->min_p >= 0 && params->min_p <= 1))
        return avl_fail(AVL_ERR_INVALID, "min_p is %g; allowed: 0 (off) to 1", params->min_p);
    if (params->repetition_penalty != 0 &&
        !(params->repetition_penalty >= 0.01 && params->repetition_penalty <= 100))
        return avl_fail(AVL_ERR_INVALID, "repetition_penalty is %g; allowed: 0.01 to 100, 1 is off",
                        params->repetition_penalty);
    if (!(params->presence_penalty >= -100 && params->presence_penalty <= 100))
        return avl_fail(AVL_ERR_INVALID, "presence_penalty is %g; allowed: -100 to 100",
                        params->presence_penalty);
    if (!(params->frequency_penalty >= -100 && params->frequency_penalty <= 100))
        return avl_fail(AVL_ERR_INVALID, "frequency_penalty is %g; allowed: -100 to 100",
                        params->frequency_penalty);
    if (params->min_tokens < 0)
        return avl_fail(AVL_ERR_INVALID, "min_tokens is %d; allowed: at least 0",
                        params->min_tokens);
    if (params->logprob_count < 0 || params->logprob_count > AVL_LOGPROBS_MAX)
        return avl_fail(AVL_ERR_INVALID, "%d logprobs of a token; allowed: 0 to %d",
                        params->logprob_count, AVL_LOGPROBS_MAX);
    return AVL_OK;
}

void avl_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t words[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = UINT64_C(0xD2511F53) * c0, b = UINT64_C(0xCD9E8D57) * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        k0 += UINT32_C(0x9E3779B9);
        k1 += UINT32_C(0xBB67AE85);
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

/* Uniform in [0, 1), in parts of 2^64. */
static uint64_t uniform(uint64_t seed, uint64_t token_index) {
    const uint32_t counter[4] = {(uint32_t)token_index, (uint32_t)(token_index >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    avl_philox(counter, key, words);
    return (uint64_t)words[0] << 32 | words[1];
}

/* ---- greedy ---- */

static bool is_strange(float logit) {
    return isnan(logit) || logit == INFINITY;
}

static avl_status_t refuse_strange(int32_t token_id, float logit) {
    return avl_fail(AVL_ERR_INTERNAL,
                    "the model's logit of token %d is %g: the numbers of "
                    "this request left the range of its format",
                    token_id, (double)logit);
}

static avl_status_t refuse_all(void) {
    return avl_fail(AVL_ERR_INTERNAL, "the logits are all -infinity: no token is allowed");
}

static avl_status_t refuse(const float *logits, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        if (is_strange(logits[i]))
            return refuse_strange(i, logits[i]);
    }
    return refuse_all();
}

/* The largest logit; refuses what is no number. */
static avl_status_t largest(const float *logits, int32_t count, float *best_p) {
    float best[LANES], strange[LANES] = {0};
    for (int j = 0; j < LANES; j++)
        best[j] = -INFINITY;
    int32_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            float logit = logits[i + j];
            /* NaN and the infinities leave NaN behind, every number 0. */
            strange[j] += (logit < -3e38f ? 0.0f : logit) * 0.0f;
            best[j] = logit > best[j] ? logit : best[j];
        }
    }
    for (; i < count; i++) {
        strange[0] += (logits[i] < -3e38f ? 0.0f : logits[i]) * 0.0f;
        best[0] = logits[i] > best[0] ? logits[i] : best[0];
    }
    for (int j = 1; j < LANES; j++) {
        strange[0] += strange[j];
        best[0] = best[j] > best[0] ? best[j] : best[0];
    }
    if (strange[0] != 0 || best[0] == -INFINITY) /* also true of NaN */
        return refuse(logits, count);
    *best_p = best[0];
    return AVL_OK;
}

static int32_t first_of(const float *logits, int32_t count, float value) {
    int32_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        int32_t here = 0;
        for (int j = 0; j < LANES; j++)
            here |= logits[i + j] == value;
        if (here)
            break;
    }
    while (logits[i] != value)
        i++;
    return i;
}

/* ---- penalties ---- */

static void next_mark(avl_sampler_t *sampler) {
    if (++sampler->mark == 0) { /* once in four thousand million draws */
        memset(sampler->marks, 0, (size_t)sampler->vocab_rows * sizeof *sampler->marks);
        sampler->mark = 1;
    }
}

/* The token's adjustment, a new one when it has none; NULL for what is no token. */
static avl_sample_adjustment_t *find(avl_sampler_t *sampler, int32_t token_id,
                                     avl_sample_adjustment_t *adjustments, int32_t *count_p) {
    if (token_id < 0 || token_id >= sampler->vocab_rows)
        return NULL;
    if (sampler->marks[token_id] != sampler->mark) {
        sampler->marks[token_id] = sampler->mark;
        sampler->places[token_id] = (*count_p)++;
        adjustments[sampler->places[token_id]] =
            (avl_sample_adjustment_t){.token_id = token_id, .factor = 1};
    }
    return &adjustments[sampler->places[token_id]];
}

static bool repeats(const avl_sampling_params_t *params) {
    return params->repetition_penalty > 0 && params->repetition_penalty != 1;
}

static bool subtracts(const avl_sampling_params_t *params) {
    return params->presence_penalty != 0 || params->frequency_penalty != 0;
}

static bool penalises(const avl_sampling_params_t *params) {
    return repeats(params) || subtracts(params);
}

int32_t avl_sampler_adjustments_most(const avl_sampler_t *sampler,
                                     const avl_sampling_params_t *params,
                                     const avl_sampler_history_t *history) {
    int64_t most = history->banned_count;
    if (repeats(params))
        most += history->prompt_rows;
    if (penalises(params))
        most += history->token_count;
    return most < sampler->vocab_rows ? (int32_t)most : sampler->vocab_rows;
}

/* What penalties and bans change, each token once. Returns how many. */
static int32_t list_adjustments(avl_sampler_t *sampler, const avl_sampling_params_t *params,
                                const avl_sampler_history_t *history,
                                avl_sample_adjustment_t *adjustments) {
    int32_t count = 0;
    avl_sample_adjustment_t *found;
    next_mark(sampler);
    for (int32_t i = 0; penalises(params) && i < history->token_count; i++) {
        found = find(sampler, history->token_ids[i], adjustments, &count);
        if (found != NULL)
            found->subtract += 1; /* how often, for now */
    }
    for (int32_t i = 0; i < count; i++)
        adjustments[i].subtract =
            (float)(params->presence_penalty +
                    params->frequency_penalty * (double)adjustments[i].subtract);
    for (int32_t i = 0; repeats(params) && i < history->prompt_rows; i++)
        (void)find(sampler, history->prompt_ids[i], adjustments, &count);
    for (int32_t i = 0; repeats(params) && i < count; i++)
        adjustments[i].factor = (float)params->repetition_penalty;
    for (int32_t i = 0; i < history->banned_count; i++) {
        found = find(sampler, history->banned_ids[i], adjustments, &count);
        if (found != NULL)
            found->subtract = INFINITY;
    }
    return count;
}

/* The logits to choose by: the model's own, or a copy with penalties and bans. */
static const float *adjust(avl_sampler_t *sampler, const float *logits,
                           const avl_sampling_params_t *params,
                           const avl_sampler_history_t *history) {
    int32_t count = list_adjustments(sampler, params, history, sampler->adjustments);
    if (count == 0)
        return logits;
    memcpy(sampler->logits, logits, (size_t)sampler->vocab_rows * sizeof *logits);
    for (int32_t i = 0; i < count; i++) {
        const avl_sample_adjustment_t *adjustment = &sampler->adjustments[i];
        float *logit = &sampler->logits[adjustment->token_id];
        *logit = *logit > 0 ? *logit / adjustment->factor : *logit * adjustment->factor;
        *logit = adjustment->subtract == INFINITY ? -INFINITY : *logit - adjustment->subtract;
    }
    return sampler->logits;
}

/* ---- filters ---- */

/* By logit descending, then by id. */
static bool before(const choice_t *a, const choice_t *b) {
    return a->logit != b->logit ? a->logit > b->logit : a->token_id < b->token_id;
}

static void swap(choice_t *a, choice_t *b) {
    choice_t kept = *a;
    *a = *b;
    *b = kept;
}

/* Divides [low, high] (Hoare, median of three): what is up to *low_end_p goes before what is from
 * *high_begin_p on; one between them is in its place. */
static void divide(choice_t *choices, int32_t low, int32_t high, int32_t *low_end_p,
                   int32_t *high_begin_p) {
    choice_t *middle = &choices[low + (high - low) / 2];
    if (before(middle, &choices[low]))
        swap(middle, &choices[low]);
    if (before(&choices[high], &choices[low]))
        swap(&choices[high], &choices[low]);
    if (before(&choices[high], middle))
        swap(&choices[high], middle);
    choice_t pivot = *middle;
    int32_t i = low, j = high;
    while (i <= j) {
        while (before(&choices[i], &pivot))
            i++;
        while (before(&pivot, &choices[j]))
            j--;
        if (i <= j)
            swap(&choices[i++], &choices[j--]);
    }
    *low_end_p = j;
    *high_begin_p = i;
}

/* Sorts [low, high] where it lies: qsort would ask for memory. The smaller half goes first, so that
 * the depth stays logarithmic. */
static void sort(choice_t *choices, int32_t low, int32_t high) {
    while (high - low >= 12) {
        int32_t low_end, high_begin;
        divide(choices, low, high, &low_end, &high_begin);
        if (low_end - low < high - high_begin) {
            sort(choices, low, low_end);
            low = high_begin;
        } else {
            sort(choices, high_begin, high);
            high = low_end;
        }
    }
    for (int32_t i = low + 1; i <= high; i++) {
        choice_t choice = choices[i];
        int32_t j = i;
        for (; j > low && before(&choice, &choices[j - 1]); j--)
            choices[j] = choices[j - 1];
        choices[j] = choice;
    }
}

/* Brings the `keep` first of the order to the front (quickselect), sorted. */
static void front(choice_t *choices, int32_t count, int32_t keep) {
    int32_t low = 0, high = count - 1;
    while (low < high && keep < count) {
        int32_t low_end, high_begin;
        divide(choices, low, high, &low_end, &high_begin);
        if (keep - 1 <= low_end)
            high = low_end;
        else if (keep - 1 >= high_begin)
            low = high_begin;
        else
            break;
    }
    sort(choices, 0, (keep < count ? keep : count) - 1);
}

/* Weights of `count` logits; returns their sum. */
static uint64_t weigh(const float *restrict logits, int32_t count, float best, float scale,
                      float *restrict weights) {
    uint64_t sum = 0;
    for (int32_t i = 0; i < count; i++)
        weights[i] = avl_weight_of(logits[i], best, scale);
    for (int32_t i = 0; i < count; i++)
        sum += avl_weight_whole(weights[i]);
    return sum;
}

/* Puts the choice at `place` of a heap whose root comes last, and lets it sink. */
static void sink(choice_t *heap, int32_t count, int32_t place, choice_t choice) {
    for (int32_t child; (child = 2 * place + 1) < count; place = child) {
        if (child + 1 < count && before(&heap[child], &heap[child + 1]))
            child++;
        if (!before(&choice, &heap[child]))
            break;
        heap[place] = heap[child];
    }
    heap[place] = choice;
}

/* The `keep` best as choices, sorted; without weights. */
static void best_choices(const float *logits, int32_t count, int32_t keep, choice_t *choices) {
    int32_t filled = keep > HEAP_MOST ? count : keep;
    for (int32_t i = 0; i < filled; i++)
        choices[i] = (choice_t){.logit = logits[i], .token_id = i};
    if (filled < count) {
        for (int32_t i = keep / 2; i-- > 0;) /* a heap, from the leaves up */
            sink(choices, keep, i, choices[i]);
        for (int32_t i = keep; i < count; i++) { /* of equals the first stay */
            if (logits[i] > choices[0].logit)
                sink(choices, keep, 0, (choice_t){.logit = logits[i], .token_id = i});
        }
    }
    front(choices, filled, keep);
}

static int exponent_of(float weight) {
    union {
        float value;
        uint32_t bits;
    } number = {.value = weight}; /* 0 < weight <= 1: exponents 127 down */
    int below = 127 - (int)(number.bits >> 23);
    return below < EXPONENTS ? below : EXPONENTS - 1;
}

/* Choices of all weights down to a power of two, so many that they reach `wanted`; not sorted. */
static int32_t heavy_choices(const float *logits, const float *weights, int32_t count,
                             uint64_t wanted, choice_t *choices) {
    uint64_t by_exponent[EXPONENTS], reached;
    /* Most tokens are light and seldom needed: they are looked at only when the others do not do.
     */
    float light = LIGHT;
    int last = 0;
    for (int pass = 0; pass < 2; pass++, light = 0) {
        memset(by_exponent, 0, sizeof by_exponent);
        for (int32_t i = 0; i < count; i++) {
            if (weights[i] >= light && weights[i] > 0)
                by_exponent[exponent_of(weights[i])] += avl_weight_whole(weights[i]);
        }
        reached = by_exponent[0];
        for (last = 0; last < EXPONENTS - 1 && reached < wanted;)
            reached += by_exponent[++last];
        if (last < EXPONENTS - 1)
            break;
    }
    /* One more, because of two logits at a power of two the larger may weigh less by a rounding. */
    float least = last + 1 < EXPONENTS - 1 ? ldexpf(1, -last - 1) : 0;
    int32_t kept = 0;
    for (int32_t i = 0; i < count; i++) {
        if (weights[i] >= least && weights[i] > 0)
            choices[kept++] = (choice_t){.logit = logits[i], .weight = weights[i], .token_id = i};
    }
    return kept;
}

/* Brings the fewest that reach `wanted` to the front; returns how many. Sorts four times as many
 * whenever those sorted do not suffice. */
static int32_t nucleus(choice_t *choices, int32_t count, uint64_t wanted, bool sorted) {
    uint64_t reached = 0;
    int32_t done = 0, ahead = sorted ? count : NUCLEUS_FIRST;
    while (done < count) {
        int32_t part = ahead < count - done ? ahead : count - done;
        if (!sorted)
            front(choices + done, count - done, part);
        for (int32_t end = done + part; done < end;) {
            reached += avl_weight_whole(choices[done++].weight);
            if (reached >= wanted)
                return done;
        }
        ahead *= 4;
    }
    return count;
}

/* What top-k and top-p leave, in choices, the last of the order at the end; returns how many. */
static int32_t filter(avl_sampler_t *sampler, const float *logits, float best, float scale,
                      const avl_sampling_params_t *params) {
    choice_t *choices = sampler->choices;
    int32_t count = sampler->vocab_rows;
    bool cut = params->top_k > 0 && params->top_k < count;
    uint64_t sum = 0, wanted;
    if (cut) {
        count = params->top_k;
        best_choices(logits, sampler->vocab_rows, count, choices);
        for (int32_t i = 0; i < count; i++) {
            choices[i].weight = avl_weight_of(choices[i].logit, best, scale);
            sum += avl_weight_whole(choices[i].weight);
        }
    } else {
        sum = weigh(logits, count, best, scale, sampler->weights);
    }
    if (params->top_p >= 1)
        return count;
    wanted = avl_weight_share(sum, params->top_p);
    if (!cut)
        count = heavy_choices(logits, sampler->weights, count, wanted, choices);
    return nucleus(choices, count, wanted, cut);
}

/* floor(share * sum / 2^64) */
static uint64_t target_of(uint64_t share, uint64_t sum) {
    uint64_t high = (share >> 32) * (sum >> 32), low = (share & UINT32_MAX) * (sum & UINT32_MAX);
    uint64_t one = (share >> 32) * (sum & UINT32_MAX), other = (share & UINT32_MAX) * (sum >> 32);
    uint64_t middle = (low >> 32) + (one & UINT32_MAX) + (other & UINT32_MAX);
    return high + (one >> 32) + (other >> 32) + (middle >> 32);
}

/* One of all tokens. */
static int32_t draw_any(avl_sampler_t *sampler, const float *logits, float best, float scale,
                        float least, uint64_t share) {
    float *weights = sampler->weights;
    int32_t count = sampler->vocab_rows, last = 0;
    uint64_t sum = weigh(logits, count, best, scale, weights);
    if (least > 0) {
        sum = 0;
        for (int32_t i = 0; i < count; i++) {
            weights[i] = weights[i] >= least ? weights[i] : 0;
            sum += avl_weight_whole(weights[i]);
        }
    }
    uint64_t target = target_of(share, sum), reached = 0;
    for (; last < count; last++) {
        reached += avl_weight_whole(weights[last]);
        if (reached > target)
            break;
    }
    return last;
}

/* One of `count` choices, in the order of the ids; `choices` holds them, and those that follow the
 * last of them do not count. */
static int32_t draw_chosen(const avl_sampler_t *sampler, const float *logits, float best,
                           float scale, float least, uint64_t share, int32_t count) {
    const choice_t *choices = sampler->choices, last = choices[count - 1];
    uint64_t sum = 0, reached = 0;
    for (int32_t i = 0; i < count; i++) {
        if (choices[i].weight >= least)
            sum += avl_weight_whole(choices[i].weight);
    }
    uint64_t target = target_of(share, sum);
    int32_t id = 0;
    for (; id < sampler->vocab_rows; id++) {
        if (logits[id] < last.logit || (logits[id] == last.logit && id > last.token_id))
            continue;
        float weight = avl_weight_of(logits[id], best, scale);
        reached += weight >= least ? avl_weight_whole(weight) : 0;
        if (reached > target)
            break;
    }
    return id;
}

/* The least float that is not less: what is compared with it fares as with `value`. */
static float float_from(double value) {
    float nearest = (float)value;
    return (double)nearest < value ? nextafterf(nearest, INFINITY) : nearest;
}

static int32_t draw(avl_sampler_t *sampler, const float *logits, float best,
                    const avl_sampling_params_t *params, uint64_t token_index) {
    uint64_t share = uniform(params->seed, token_index);
    float scale = 1 / (float)params->temperature, least = float_from(params->min_p);
    if ((params->top_k <= 0 || params->top_k >= sampler->vocab_rows) && params->top_p >= 1)
        return draw_any(sampler, logits, best, scale, least, share);
    int32_t count = filter(sampler, logits, best, scale, params);
    return draw_chosen(sampler, logits, best, scale, least, share, count);
}

/* ---- logprobs ---- */

static double base_of(float best, uint64_t sum) {
    return (double)best + log((double)sum / (double)AVL_WEIGHT_ONE);
}

static avl_token_logprob_t logprob_of(int32_t token_id, float logit, double base) {
    return (avl_token_logprob_t){.token_id = token_id, .logprob = (float)((double)logit - base)};
}

/* Of a token, how many besides its own: -1 without logprobs. */
static int32_t tops_of(const avl_sampler_t *sampler, const avl_sampling_params_t *params) {
    int32_t tops = params->logprob_count - 1;
    return tops < sampler->vocab_rows ? tops : sampler->vocab_rows;
}

/* The token, with the logprobs that are wanted: its own and the best tokens', by the model's
 * logits. */
static avl_status_t tell(avl_sampler_t *sampler, const float *logits,
                         const avl_sampling_params_t *params, int32_t token_id,
                         avl_sampler_token_t *token_p) {
    const choice_t *choices = sampler->choices;
    int32_t count = sampler->vocab_rows, tops = tops_of(sampler, params);
    float best;
    if (tops >= 0) {
        AVL_TRY(largest(logits, count, &best));
        double base = base_of(best, weigh(logits, count, best, 1, sampler->weights));
        if (tops > 0)
            best_choices(logits, count, tops, sampler->choices);
        sampler->logprobs[0] = logprob_of(token_id, logits[token_id], base);
        for (int32_t i = 0; i < tops; i++)
            sampler->logprobs[1 + i] = logprob_of(choices[i].token_id, choices[i].logit, base);
    }
    *token_p = (avl_sampler_token_t){
        .token_id = token_id, .logprob_count = tops + 1, .logprobs = sampler->logprobs};
    return AVL_OK;
}

avl_status_t avl_sampler_draw(avl_sampler_t *sampler, const float *logits,
                              const avl_sampling_params_t *params,
                              const avl_sampler_history_t *history, avl_sampler_token_t *token_p) {
    const float *adjusted = adjust(sampler, logits, params, history);
    int32_t token_id;
    float best;
    AVL_TRY(largest(adjusted, sampler->vocab_rows, &best));
    if (params->temperature < TEMPERATURE_LEAST)
        token_id = first_of(adjusted, sampler->vocab_rows, best);
    else
        token_id = draw(sampler, adjusted, best, params, (uint64_t)history->token_count);
    return tell(sampler, logits, params, token_id, token_p);
}

bool avl_sampler_wants_best(const avl_sampling_params_t *params, int32_t banned_count) {
    return params->temperature < TEMPERATURE_LEAST && !penalises(params) && banned_count == 0 &&
           params->logprob_count == 0;
}

avl_status_t avl_sampler_take_best(avl_sampler_t *sampler, int32_t token_id, float logit,
                                   avl_sampler_token_t *token_p) {
    if (is_strange(logit))
        return refuse_strange(token_id, logit);
    if (logit == -INFINITY)
        return refuse_all();
    *token_p = (avl_sampler_token_t){.token_id = token_id, .logprobs = sampler->logprobs};
    return AVL_OK;
}

avl_status_t avl_sampler_force(avl_sampler_t *sampler, const float *logits,
                               const avl_sampling_params_t *params, int32_t token_id,
                               avl_sampler_token_t *token_p) {
    float best;
    AVL_TRY(largest(logits, sampler->vocab_rows, &best));
    return tell(sampler, logits, params, token_id, token_p);
}

/* ---- on the device ---- */

avl_sample_item_t avl_sampler_item(avl_sampler_t *sampler, const avl_sampling_params_t *params,
                                   const avl_sampler_history_t *history, int32_t forced_id,
                                   avl_sample_adjustment_t *adjustments) {
    avl_sample_item_t item = {
        .least = float_from(params->min_p),
        .top_p = params->top_p,
        .top_k = params->top_k,
        .forced_id = forced_id,
        .tops = tops_of(sampler, params),
        .adjustments = adjustments,
    };
    if (params->temperature >= TEMPERATURE_LEAST) {
        item.scale = 1 / (float)params->temperature;
        item.share = uniform(params->seed, (uint64_t)history->token_count);
    }
    if (forced_id < 0)
        item.adjustment_count = list_adjustments(sampler, params, history, adjustments);
    return item;
}

avl_status_t avl_sampler_take(avl_sampler_t *sampler, const avl_sampling_params_t *params,
                              const avl_sample_result_t *result, avl_sampler_token_t *token_p) {
    int32_t tops = tops_of(sampler, params);
    if (result->outcome == AVL_SAMPLE_STRANGE)
        return refuse_strange(result->token_id, result->logit);
    if (result->outcome == AVL_SAMPLE_NOTHING)
        return refuse_all();
    if (tops >= 0) {
        double base = base_of(result->best, result->sum);
        sampler->logprobs[0] = logprob_of(result->token_id, result->logit, base);
        for (int32_t i = 0; i < tops; i++)
            sampler->logprobs[1 + i] = logprob_of(result->top_ids[i], result->top_logits[i], base);
    }
    *token_p = (avl_sampler_token_t){
        .token_id = result->token_id, .logprob_count = tops + 1, .logprobs = sampler->logprobs};
    return AVL_OK;
}
