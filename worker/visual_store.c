#include "worker/visual_store.h"

#include <string.h>

bool avl_visual_store_updates(const avl_sequence_shape_t *shape, int32_t step) {
    return step % shape->update_interval == 0;
}

bool avl_visual_store_reselects(const avl_sequence_shape_t *shape, int32_t step) {
    return shape->selects && shape->core_rows < shape->store_rows &&
           avl_visual_store_updates(shape, step);
}

/* Makes the store's rows of places core_indices[0..core_rows) the core list. */
static avl_status_t list_core(avl_sequence_t *sequence, avl_sequence_layer_t *layer) {
    layer->core.count = sequence->shape.core_rows;
    for (int32_t i = 0; i < layer->core.count; i++) {
        AVL_ASSERT(layer->core_indices[i] < layer->visual.slots.count);
        layer->core.host[i] = layer->visual.slots.host[layer->core_indices[i]];
    }
    return avl_sequence_publish(sequence, &layer->core, 0);
}

/* Moves the chosen rows to the front. The list `order` has no further use in this layer and serves
 * as the list of sources. */
static avl_status_t move_rows(avl_sequence_t *sequence, avl_pages_t *pages,
                              avl_sequence_layer_t *layer, const avl_selection_item_t *chosen) {
    const avl_row_list_t *targets = &layer->visual.slots;
    avl_row_list_t *sources = &layer->order;
    for (int32_t i = 0; i < chosen->keep; i++)
        sources->host[i] = targets->host[chosen->indices[i]];
    sources->count = chosen->keep;
    AVL_TRY(avl_sequence_publish(sequence, sources, 0));
    /* Rows that came from another sequence stay where they are for that one. */
    if (!avl_sequence_own_visual(sequence, pages, (int)(layer - sequence->layers), chosen->keep))
        return avl_fail(AVL_ERR_INTERNAL, "the page pool (%lld pages) ran dry at request %llu",
                        (long long)avl_pages_counts(pages).total,
                        (unsigned long long)sequence->request_id);
    AVL_TRY(avl_sequence_publish(sequence, targets, 0));
    avl_kv_view_t view = avl_pages_view(pages);
    return avl_kv_move(sequence->device, &(avl_kv_move_args_t){
                                             .keys = avl_pages_keys(pages),
                                             .values = avl_pages_values(pages),
                                             .sources = sources->device,
                                             .targets = targets->device,
                                             .rows = chosen->keep,
                                             .row_width = view.row_stride,
                                             .dtype = view.dtype,
                                         });
}

avl_status_t avl_visual_store_keep(avl_sequence_t *sequence, avl_pages_t *pages,
                                   avl_selection_t *selection, int layer_index,
                                   const avl_selection_item_t *chosen) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    AVL_ASSERT(!layer->selected && chosen->keep == shape->store_rows);
    for (int32_t i = 0; i < chosen->keep; i++)
        layer->store_positions[i] = sequence->visual_positions[chosen->indices[i]];
    if (shape->store_rows < shape->visual_rows) {
        AVL_TRY(move_rows(sequence, pages, layer, chosen));
        avl_sequence_cut_visual(sequence, pages, layer_index, shape->store_rows);
    }
    layer->selected = true;
    AVL_TRY(avl_selection_best(selection, chosen->scores, shape->store_rows, shape->core_rows,
                               layer->core_indices));
    memcpy(layer->first_core, layer->core_indices,
           (size_t)shape->core_rows * sizeof *layer->first_core);
    return list_core(sequence, layer);
}

avl_status_t avl_visual_store_reselect(avl_sequence_t *sequence, int layer_index,
                                       const avl_selection_item_t *chosen) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    AVL_ASSERT(layer->selected && chosen->keep == sequence->shape.core_rows);
    memcpy(layer->core_indices, chosen->indices, (size_t)chosen->keep * sizeof *chosen->indices);
    return list_core(sequence, layer);
}

int32_t avl_visual_store_hidden(const int32_t *positions, int32_t count, int32_t first) {
    int32_t low = 0, high = count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (positions[middle] < first)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

avl_row_span_t avl_visual_store_span(const avl_sequence_t *sequence, int layer_index, int32_t step,
                                     int32_t visible_first, int32_t *skipped_p) {
    const avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    const avl_row_list_t *store = &layer->visual.slots;
    const int32_t *positions =
        layer->selected ? layer->store_positions : sequence->visual_positions;
    int32_t hidden = avl_visual_store_hidden(positions, store->count, visible_first);
    const avl_row_list_t *list = store;
    if (shape->selects && !avl_visual_store_updates(shape, step)) {
        /* The core is a subset of the store in the same order, so its hidden rows come first, too.
         */
        list = &layer->core;
        hidden = avl_visual_store_hidden(layer->core_indices, list->count, hidden);
    }
    *skipped_p = hidden;
    return (avl_row_span_t){.rows = list->device + hidden, .row_count = list->count - hidden};
}
