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

/* Calls with `list` NULL write indices alone. */
static void take_best(const avl_choose_item_t *item) {
    int32_t ties = 0, taken = 0;
    if (item->keep == 0)
        return;
    uint32_t limit = threshold(item->scores, item->count, item->keep, &ties);
    for (int32_t i = 0; i < item->count && taken < item->keep; i++) {
        uint32_t key = merit(item->scores[i]);
        if (key < limit || (key == limit && ties == 0))
            continue;
        ties -= key == limit;
        if (item->indices != NULL)
            item->indices[taken] = i;
        if (item->list != NULL)
            item->list[taken] = item->rows[i];
        if (item->best != NULL)
            item->best[taken] = item->scores[i];
        taken++;
    }
}

avl_status_t avl_cpu_topk(avl_device_t *device, const avl_topk_args_t *args) {
    (void)device;
    AVL_TRY(avl_check_array("topk", "scores", args->scores, args->count));
    AVL_CHECK_SHAPE(args->keep >= 0 && args->keep <= args->count,
                    "topk: keep %" PRId32 " of %" PRId32 " scores", args->keep, args->count);
    AVL_TRY(avl_check_array("topk", "indices", args->indices, args->keep));
    take_best(&(avl_choose_item_t){.scores = args->scores,
                                   .count = args->count,
                                   .keep = args->keep,
                                   .indices = args->indices});
    return AVL_OK;
}

static void choose_item(void *context, int64_t index, int thread) {
    const avl_choose_args_t *args = context;
    (void)thread;
    take_best(&args->items[index]);
}

avl_status_t avl_cpu_choose(avl_device_t *device, const avl_choose_args_t *args) {
    AVL_TRY(avl_check_choose(args));
    int64_t work = 0; /* every list is gone through four times, and its histograms as well */
    for (int i = 0; i < args->item_count; i++)
        work += 4 * (int64_t)args->items[i].count + (3 << DIGIT_BITS_MAX);
    avl_choose_args_t own = *args;
    avl_cpu_parallel(avl_cpu_device(device), args->item_count, work, choose_item, &own);
    return AVL_OK;
}
