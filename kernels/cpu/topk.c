/* kernels/cpu/topk.c: selection in linear time: the key of the keep-th best score is found digit by
 * digit from histograms, then one pass in ascending order takes what lies above it and the first of
 * those that equal it. */
#include <inttypes.h>
#include <string.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

enum { DIGIT_BITS_MAX = 11 };

/* Unsigned integers in the order of merit: NaN below everything, both zeros equal. */
static inline uint32_t merit(float score) {
    if (score != score)
        return 0;
    uint32_t bits;
    score += 0.0f; /* -0 becomes +0 */
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The keep-th largest key; *ties_p: how many keys that equal it are to be taken. */
static uint32_t threshold(const float *scores, int32_t count, int32_t keep, int32_t *ties_p) {
    static const int digit_bits[] = {11, 11, 10};
    uint32_t found = 0, found_mask = 0;
    int32_t wanted = keep;
    int shift = 32;
    for (int digit = 0; digit < 3; digit++) {
        int32_t histogram[1 << DIGIT_BITS_MAX] = {0};
        shift -= digit_bits[digit];
        uint32_t mask = (1u << digit_bits[digit]) - 1;
        for (int32_t i = 0; i < count; i++) {
            uint32_t key = merit(scores[i]);
            if ((key & found_mask) == found)
                histogram[(key >> shift) & mask]++;
        }
        uint32_t value = mask;
        while (histogram[value] < wanted) {
            wanted -= histogram[value];
            value--;
        }
        found |= value << shift;
        found_mask |= mask << shift;
    }
    *ties_p = wanted;
    return found;
}

avl_status_t avl_cpu_topk(avl_device_t *device, const avl_topk_args_t *args) {
    (void)device;
    AVL_TRY(avl_check_array("topk", "scores", args->scores, args->count));
    AVL_CHECK_SHAPE(args->keep >= 0 && args->keep <= args->count,
                    "topk: keep %" PRId32 " of %" PRId32 " scores", args->keep, args->count);
    AVL_TRY(avl_check_array("topk", "indices", args->indices, args->keep));
    if (args->keep == 0)
        return AVL_OK;
    int32_t ties = 0, taken = 0;
    uint32_t limit = threshold(args->scores, args->count, args->keep, &ties);
    for (int32_t i = 0; i < args->count && taken < args->keep; i++) {
        uint32_t key = merit(args->scores[i]);
        if (key > limit)
            args->indices[taken++] = i;
        else if (key == limit && ties > 0) {
            args->indices[taken++] = i;
            ties--;
        }
    }
    return AVL_OK;
}
