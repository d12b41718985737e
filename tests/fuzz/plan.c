/* tests/fuzz/plan.c: arbitrary bytes as a step plan. */
#include <stdlib.h>
#include <string.h>

#include "worker/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const avl_plan_limits_t limits = {.sequences_max = 8,
                                      .indices_max = 12,
                                      .pictures_max = 4,
                                      .context_rows = 512,
                                      .feature_rows = 512,
                                      .bytes_max = 1 << 20};
    avl_plan_t plan;
    if (avl_plan_create(&limits, &plan) != AVL_OK)
        return 0;
    uint8_t *copy = aligned_alloc(8, (bytes + 8) & ~(size_t)7);
    if (copy != NULL) {
        memcpy(copy, data, bytes);
        if (avl_plan_decode(copy, bytes, &limits, &plan) == AVL_OK) {
            /* What was accepted can be written again, and is then the same but for the padding. */
            size_t again = avl_plan_bytes(&plan);
            uint8_t *target = malloc(again);
            if (again != bytes)
                abort();
            if (target != NULL)
                avl_plan_encode(&plan, target);
            free(target);
        }
    }
    free(copy);
    avl_plan_destroy(&plan);
    return 0;
}
