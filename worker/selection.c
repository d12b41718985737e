#include "worker/selection.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* What travels between ranks. */
typedef struct candidate {
    float score;
    int32_t index; /* in the laid-out scores of all items; -1: none */
} candidate_t;

struct avl_selection {
    avl_device_t *device;
    avl_group_t *group;
    int64_t scores_max;
    int items_max;
    float *weights;      /* device: laid-out scores */
    float *host_weights; /* the same memory when the device is the host */
    float
        *device_scores; /* device scratch of avl_selection_best; NULL when the device is the host */
    int32_t *device_indices;
    candidate_t *candidates; /* [ranks, most of a rank] */
    float *merged_scores;
    int32_t *merged_indices;
    int32_t *picked; /* [scores_max] results of all items */
    float *picked_scores;
};

static int64_t candidates_max(int64_t scores_max, int ranks) {
    /* Slices differ by one at most, so the gathered area is at most one entry a rank longer than
     * the scores. */
    return scores_max + ranks;
}

int64_t avl_selection_bytes(int64_t scores_max) {
    return scores_max * (int64_t)(6 * sizeof(float) + sizeof(candidate_t));
}

avl_status_t avl_selection_create(avl_device_t *device, avl_group_t *group, int64_t scores_max,
                                  int items_max, avl_selection_t **selection_p) {
    avl_selection_t *selection;
    AVL_TRY(avl_alloc(1, sizeof *selection, "selection", &selection));
    selection->device = device;
    selection->group = group;
    selection->scores_max = scores_max;
    selection->items_max = items_max;
    size_t count = (size_t)scores_max;
    size_t most = (size_t)candidates_max(scores_max, avl_group_ranks(group));
    const struct {
        size_t count, item_bytes;
        void *memory_p;
    } arrays[] = {
        {most, sizeof(candidate_t), &selection->candidates},
        {most, sizeof(float), &selection->merged_scores},
        {most, sizeof(int32_t), &selection->merged_indices},
        {count, sizeof(int32_t), &selection->picked},
        {count, sizeof(float), &selection->picked_scores},
    };
    avl_status_t status;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        AVL_TRY_GOTO(status,
                     avl_alloc_aligned(arrays[i].count, arrays[i].item_bytes, "row selection",
                                       arrays[i].memory_p),
                     err_destroy);
    void *memory;
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, count * sizeof(float), "attention scores", &memory),
                 err_destroy);
    selection->weights = memory;
    selection->host_weights = memory;
    if (!device->is_host) {
        selection->host_weights = NULL;
        AVL_TRY_GOTO(status,
                     avl_alloc(count, sizeof(float), "row selection", &selection->host_weights),
                     err_destroy);
        AVL_TRY_GOTO(status,
                     device->ops->allocate(device, most * sizeof(float), "row selection", &memory),
                     err_destroy);
        selection->device_scores = memory;
        AVL_TRY_GOTO(
            status, device->ops->allocate(device, most * sizeof(int32_t), "row selection", &memory),
            err_destroy);
        selection->device_indices = memory;
    }
    *selection_p = selection;
    return AVL_OK;
err_destroy:
    avl_selection_destroy(selection);
    return status;
}

void avl_selection_destroy(avl_selection_t *selection) {
    if (selection == NULL)
        return;
    const avl_device_ops_t *ops = selection->device->ops;
    if (selection->host_weights != selection->weights)
        free(selection->host_weights);
    if (selection->weights != NULL)
        ops->release(selection->device, selection->weights);
    if (selection->device_scores != NULL)
        ops->release(selection->device, selection->device_scores);
    if (selection->device_indices != NULL)
        ops->release(selection->device, selection->device_indices);
    free(selection->candidates);
    free(selection->merged_scores);
    free(selection->merged_indices);
    free(selection->picked);
    free(selection->picked_scores);
    free(selection);
}

avl_status_t avl_selection_best(avl_selection_t *selection, const float *scores, int32_t count,
                                int32_t keep, int32_t *indices) {
    if (keep == 0)
        return AVL_OK;
    avl_device_t *device = selection->device;
    if (device->is_host)
        return avl_topk(
            device,
            &(avl_topk_args_t){.scores = scores, .count = count, .keep = keep, .indices = indices});
    AVL_TRY(device->ops->upload(device, selection->device_scores, scores,
                                (size_t)count * sizeof *scores));
    AVL_TRY(avl_topk(device, &(avl_topk_args_t){.scores = selection->device_scores,
                                                .count = count,
                                                .keep = keep,
                                                .indices = selection->device_indices}));
    return device->ops->download(device, indices, selection->device_indices,
                                 (size_t)keep * sizeof *indices);
}

avl_status_t avl_selection_begin(avl_selection_t *selection, avl_selection_item_t *items,
                                 int item_count) {
    int64_t total = 0;
    for (int i = 0; i < item_count; i++) {
        items[i].weights = selection->weights + total + items[i].unseen;
        items[i].best = selection->device_scores != NULL ? selection->device_scores + total : NULL;
        total += items[i].count;
    }
    if (item_count > selection->items_max || total > selection->scores_max)
        return avl_fail(
            AVL_ERR_INTERNAL, "a selection of %lld scores in %d lists; made for %lld in %d",
            (long long)total, item_count, (long long)selection->scores_max, selection->items_max);
    return AVL_OK;
}

/* How many candidates of the item at [start, start + count) a rank offers: what its slice has of
 * it, `keep` at most. */
static int32_t offered(const avl_selection_item_t *item, int64_t start, int64_t total, int rank,
                       int ranks, int64_t *from_p) {
    int64_t first, last;
    avl_group_slice(total, rank, ranks, &first, &last);
    int64_t from = first > start ? first : start;
    int64_t to = last < start + item->count ? last : start + item->count;
    *from_p = from;
    if (to <= from)
        return 0;
    return to - from < item->keep ? (int32_t)(to - from) : item->keep;
}

/* Candidates that the rank offers for all items. */
static int64_t offered_in_all(const avl_selection_item_t *items, int item_count, int64_t total,
                              int rank, int ranks) {
    int64_t start = 0, from, sum = 0;
    for (int i = 0; i < item_count; start += items[i++].count)
        sum += offered(&items[i], start, total, rank, ranks, &from);
    return sum;
}

/* Writes this rank's candidates to `own`. */
static avl_status_t offer(avl_selection_t *selection, const avl_selection_item_t *items,
                          int item_count, int64_t total, candidate_t *own) {
    int rank = avl_group_rank(selection->group), ranks = avl_group_ranks(selection->group);
    int64_t start = 0;
    for (int i = 0; i < item_count; start += items[i++].count) {
        int64_t from, first, last;
        int32_t keep = offered(&items[i], start, total, rank, ranks, &from);
        avl_group_slice(total, rank, ranks, &first, &last);
        int64_t to = last < start + items[i].count ? last : start + items[i].count;
        if (keep == 0)
            continue;
        AVL_TRY(avl_selection_best(selection, selection->host_weights + from, (int32_t)(to - from),
                                   keep, selection->merged_indices));
        for (int32_t j = 0; j < keep; j++, own++) {
            own->index = (int32_t)from + selection->merged_indices[j];
            own->score = selection->host_weights[own->index];
        }
    }
    return AVL_OK;
}

/* Puts the candidates of one item into merged_scores and merged_indices, ascending in index: ranks'
 * slices ascend, and so do the candidates of each. Returns how many. `done[r]` candidates of rank r
 * belong to earlier items. */
static int32_t collect(avl_selection_t *selection, const avl_selection_item_t *items, int which,
                       int64_t start, int64_t total, int64_t stride) {
    int ranks = avl_group_ranks(selection->group);
    int32_t count = 0;
    for (int rank = 0; rank < ranks; rank++) {
        int64_t from;
        int64_t earlier = offered_in_all(items, which, total, rank, ranks);
        int32_t own = offered(&items[which], start, total, rank, ranks, &from);
        const candidate_t *candidate = selection->candidates + rank * stride + earlier;
        for (int32_t j = 0; j < own; j++, count++) {
            selection->merged_scores[count] = candidate[j].score;
            selection->merged_indices[count] = candidate[j].index - (int32_t)start;
        }
    }
    return count;
}

/* Stands in for offer: candidates that every rank can take, and none of them good. */
static void offer_nothing(const avl_selection_t *selection, const avl_selection_item_t *items,
                          int item_count, int64_t total, candidate_t *own) {
    int rank = avl_group_rank(selection->group), ranks = avl_group_ranks(selection->group);
    int64_t start = 0, from;
    for (int i = 0; i < item_count; start += items[i++].count) {
        int32_t keep = offered(&items[i], start, total, rank, ranks, &from);
        for (int32_t j = 0; j < keep; j++, own++)
            *own = (candidate_t){.index = (int32_t)from + j, .score = -INFINITY};
    }
}

static avl_status_t run_ranks(avl_selection_t *selection, avl_selection_item_t *items,
                              int item_count, int64_t total, avl_status_t own_status) {
    avl_group_t *group = selection->group;
    int rank = avl_group_rank(group), ranks = avl_group_ranks(group);
    AVL_TRY(avl_group_reduce_scatter(group, selection->host_weights, total));
    int64_t stride = 0;
    for (int r = 0; r < ranks; r++) {
        int64_t own = offered_in_all(items, item_count, total, r, ranks);
        stride = own > stride ? own : stride;
    }
    candidate_t *own = selection->candidates + rank * stride;
    if (own_status == AVL_OK)
        own_status = offer(selection, items, item_count, total, own);
    if (own_status != AVL_OK)
        offer_nothing(selection, items, item_count, total, own);
    AVL_TRY(avl_group_all_gather(group, selection->candidates,
                                 (size_t)stride * sizeof *selection->candidates));
    AVL_TRY(own_status);
    int64_t start = 0;
    for (int i = 0; i < item_count; start += items[i++].count) {
        avl_selection_item_t *item = &items[i];
        int32_t count = collect(selection, items, i, start, total, stride);
        AVL_TRY(avl_selection_best(selection, selection->merged_scores, count, item->keep,
                                   item->indices));
        for (int32_t j = 0; j < item->keep; j++) {
            int32_t merged = item->indices[j];
            item->indices[j] = selection->merged_indices[merged];
            item->scores[j] = selection->merged_scores[merged];
        }
    }
    return AVL_OK;
}

static avl_status_t run_alone(avl_selection_t *selection, avl_selection_item_t *items,
                              int item_count) {
    const float *scores = selection->host_weights;
    for (int i = 0; i < item_count; scores += items[i++].count) {
        avl_selection_item_t *item = &items[i];
        AVL_TRY(avl_selection_best(selection, scores, item->count, item->keep, item->indices));
        for (int32_t j = 0; j < item->keep; j++)
            item->scores[j] = scores[item->indices[j]];
    }
    return AVL_OK;
}

avl_status_t avl_selection_run(avl_selection_t *selection, avl_selection_item_t *items,
                               int item_count, avl_status_t own) {
    int64_t total = 0, kept = 0;
    for (int i = 0; i < item_count; i++) {
        items[i].indices = selection->picked + kept;
        items[i].scores = selection->picked_scores + kept;
        kept += items[i].keep;
        total += items[i].count;
    }
    if (total == 0)
        return own;
    avl_device_t *device = selection->device;
    if (!device->is_host && own == AVL_OK)
        own = device->ops->download(device, selection->host_weights, selection->weights,
                                    (size_t)total * sizeof(float));
    float *scores = selection->host_weights;
    for (int i = 0; i < item_count; scores += items[i++].count)
        memset(scores, 0, (size_t)items[i].unseen * sizeof *scores);
    if (avl_group_ranks(selection->group) > 1)
        return run_ranks(selection, items, item_count, total, own);
    AVL_TRY(own);
    return run_alone(selection, items, item_count);
}
