#include "worker/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"

typedef struct choice {
    double weight;
    int32_t token_id;
} choice_t;

struct avl_sampler {
    int32_t vocab_rows;
    choice_t *choices; /* [vocab_rows] */
};

avl_status_t avl_sampler_create(int32_t vocab_rows, avl_sampler_t **sampler_p) {
    avl_sampler_t *sampler;
    AVL_TRY(avl_alloc(1, sizeof *sampler, "sampler", &sampler));
    sampler->vocab_rows = vocab_rows;
    avl_status_t status =
        avl_alloc((size_t)vocab_rows, sizeof *sampler->choices, "sampler", &sampler->choices);
    if (status != AVL_OK) {
        free(sampler);
        return status;
    }
    *sampler_p = sampler;
    return AVL_OK;
}

void avl_sampler_destroy(avl_sampler_t *sampler) {
    if (sampler == NULL)
        return;
    free(sampler->choices);
    free(sampler);
}

avl_status_t avl_sampling_params_check(const avl_sampling_params_t *params) {
    if (!(params->temperature >= 0 && params->temperature <= 100))
        return avl_fail(AVL_ERR_INVALID, "temperature is %g; allowed: 0 (greedy) to 100",
                        params->temperature);
    if (!(params->top_p > 0 && params->top_p <= 1))
        return avl_fail(AVL_ERR_INVALID, "top_p is %g; allowed: more than 0, at most 1 (off)",
                        params->top_p);
    if (params->top_k < 0)
        return avl_fail(AVL_ERR_INVALID, "top_k is %d; allowed: at least 0 (off)", params->top_k);
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

/* Uniform in [0, 1), 53 bits. */
static double uniform(uint64_t seed, uint64_t token_index) {
    const uint32_t counter[4] = {(uint32_t)token_index, (uint32_t)(token_index >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    avl_philox(counter, key, words);
    uint64_t bits = ((uint64_t)words[0] << 32 | words[1]) >> 11;
    return (double)bits * 0x1p-53;
}

/* The best token: the lowest id on a tie. */
static avl_status_t best_token(const float *logits, int32_t count, int32_t *token_id_p) {
    int32_t best = 0;
    for (int32_t i = 0; i < count; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return avl_fail(AVL_ERR_INTERNAL,
                            "the model's logit of token %d is %g: the numbers of "
                            "this request left the range of its format",
                            i, (double)logits[i]);
        if (logits[i] > logits[best])
            best = i;
    }
    if (logits[best] == -INFINITY)
        return avl_fail(AVL_ERR_INTERNAL, "the model's logits are all -infinity");
    *token_id_p = best;
    return AVL_OK;
}

/* By weight descending, then by id. */
static int compare_choices(const void *left, const void *right) {
    const choice_t *a = left, *b = right;
    if (a->weight != b->weight)
        return a->weight > b->weight ? -1 : 1;
    return a->token_id < b->token_id ? -1 : a->token_id > b->token_id;
}

/* Leaves the tokens of the smallest set whose probability reaches top_p, and returns how many;
 * `choices` sorted. */
static int32_t nucleus(const choice_t *choices, int32_t count, double top_p) {
    double sum = 0, reached = 0;
    for (int32_t i = 0; i < count; i++)
        sum += choices[i].weight;
    for (int32_t i = 0; i < count; i++) {
        reached += choices[i].weight;
        if (reached >= top_p * sum)
            return i + 1;
    }
    return count;
}

avl_status_t avl_sampler_draw(avl_sampler_t *sampler, const float *logits,
                              const avl_sampling_params_t *params, uint64_t token_index,
                              int32_t *token_id_p) {
    int32_t count = sampler->vocab_rows, best = 0;
    AVL_TRY(best_token(logits, count, &best));
    if (params->temperature <= 0) {
        *token_id_p = best;
        return AVL_OK;
    }
    choice_t *choices = sampler->choices;
    int32_t kept = 0;
    for (int32_t i = 0; i < count; i++) {
        double weight = exp(((double)logits[i] - (double)logits[best]) / params->temperature);
        if (weight > 0) /* what underflows can never be drawn */
            choices[kept++] = (choice_t){.weight = weight, .token_id = i};
    }
    bool cut = params->top_k > 0 && params->top_k < kept;
    if (cut || params->top_p < 1)
        qsort(choices, (size_t)kept, sizeof *choices, compare_choices);
    if (cut)
        kept = params->top_k;
    if (params->top_p < 1)
        kept = nucleus(choices, kept, params->top_p);
    double sum = 0;
    for (int32_t i = 0; i < kept; i++)
        sum += choices[i].weight;
    double target = uniform(params->seed, token_index) * sum, reached = 0;
    int32_t drawn = kept - 1;
    for (int32_t i = 0; i < kept; i++) {
        reached += choices[i].weight;
        if (target < reached) {
            drawn = i;
            break;
        }
    }
    *token_id_p = choices[drawn].token_id;
    return AVL_OK;
}
