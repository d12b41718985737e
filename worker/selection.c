#include "worker/selection.h"

#include <stdlib.h>

#include "base/memory.h"

struct avl_selection {
    avl_device_t *device;
    avl_group_t *group;
    int64_t scores_max;
    int items_max;
    float *scores, *best; /* device: laid-out lists */
    float *host_scores;   /* on their way between ranks: the same memory when that is the host's */
    float *zeros;         /* host: nothing else is ever written there */
};

int64_t avl_selection_bytes(int64_t scores_max) {
    return scores_max * 3 * (int64_t)sizeof(float);
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
    void *memory;
    avl_status_t status;
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, count * sizeof(float), "attention scores", &memory),
                 err_destroy);
    selection->scores = selection->host_scores = memory;
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, count * sizeof(float), "attention scores", &memory),
                 err_destroy);
    selection->best = memory;
    AVL_TRY_GOTO(status, avl_alloc(count, sizeof(float), "attention scores", &selection->zeros),
                 err_destroy);
    if (!device->is_host) {
        selection->host_scores = NULL;
        AVL_TRY_GOTO(status,
                     avl_alloc(count, sizeof(float), "attention scores", &selection->host_scores),
                     err_destroy);
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
    if (selection->host_scores != selection->scores)
        free(selection->host_scores);
    if (selection->scores != NULL)
        ops->release(selection->device, selection->scores);
    if (selection->best != NULL)
        ops->release(selection->device, selection->best);
    free(selection->zeros);
    free(selection);
}

avl_status_t avl_selection_begin(avl_selection_t *selection, avl_selection_item_t *items,
                                 int item_count) {
    int64_t total = 0;
    for (int i = 0; i < item_count; i++) {
        items[i].scores = selection->scores + total;
        items[i].weights = items[i].scores + items[i].unseen;
        items[i].best = selection->best + total;
        total += items[i].count;
    }
    if (item_count > selection->items_max || total > selection->scores_max)
        return avl_fail(
            AVL_ERR_INTERNAL, "a selection of %lld scores in %d lists; made for %lld in %d",
            (long long)total, item_count, (long long)selection->scores_max, selection->items_max);
    return AVL_OK;
}

avl_status_t avl_selection_sum(avl_selection_t *selection, const avl_selection_item_t *items,
                               int item_count, avl_status_t own) {
    avl_device_t *device = selection->device;
    int64_t total = 0;
    for (int i = 0; i < item_count; i++) {
        if (own == AVL_OK && items[i].unseen > 0)
            own = device->ops->upload(device, items[i].scores, selection->zeros,
                                      (size_t)items[i].unseen * sizeof(float));
        total += items[i].count;
    }
    if (total == 0 || avl_group_ranks(selection->group) == 1)
        return own;
    if (avl_group_gpus_name(selection->group) != NULL) {
        AVL_TRY(avl_group_gpus_merge(selection->group, selection->scores, total));
        return own;
    }
    size_t bytes = (size_t)total * sizeof(float);
    if (own == AVL_OK && !device->is_host)
        own = device->ops->download(device, selection->host_scores, selection->scores, bytes);
    AVL_TRY(avl_group_all_reduce(selection->group, selection->host_scores, total));
    AVL_TRY(own);
    return device->is_host
               ? AVL_OK
               : device->ops->upload(device, selection->scores, selection->host_scores, bytes);
}
