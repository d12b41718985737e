#include "worker/spread.h"

#include "worker/sampler.h"

void avl_spread_even(int32_t count, int32_t keep, int32_t *indices) {
    for (int32_t i = 0; i < keep; i++)
        indices[i] = (int32_t)((2 * (int64_t)i + 1) * count / (2 * (int64_t)keep));
}

/* Row by row: each is taken with the share that is still wanted of those that are left. */
void avl_spread_chance(uint64_t seed, int32_t layer, int32_t step, avl_spread_purpose_t purpose,
                       int32_t count, int32_t keep, int32_t *indices) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    int32_t taken = 0;
    for (int32_t i = 0; i < count && taken < keep; i++) {
        const uint32_t counter[4] = {(uint32_t)i, (uint32_t)layer, (uint32_t)step,
                                     (uint32_t)purpose};
        uint32_t words[4];
        avl_philox(counter, key, words);
        if ((uint64_t)words[0] * (uint64_t)(count - i) < (uint64_t)(keep - taken) << 32)
            indices[taken++] = i;
    }
}
