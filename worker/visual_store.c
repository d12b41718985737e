#include "worker/visual_store.h"

#include <string.h>

#include "worker/spread.h"

bool avl_visual_store_updates(const avl_sequence_shape_t *shape, int32_t step) {
    return step % shape->update_interval == 0;
}

bool avl_visual_store_reselects(const avl_sequence_shape_t *shape, int32_t step) {
    return shape->selects && !shape->core_in_step && shape->core_rows < shape->store_rows &&
           avl_visual_store_updates(shape, step);
}

bool avl_visual_store_ranks(const avl_sequence_shape_t *shape) {
    return shape->attention.visual_selection != AVL_VISUAL_RANDOM &&
           shape->attention.visual_selection != AVL_VISUAL_UNIFORM;
}

/* Makes the store's rows of places core_indices[0..core_rows) the core list. */
static avl_status_t list_core(avl_sequence_t *sequence, avl_sequence_layer_t *layer) {
    const avl_row_list_t *store = avl_sequence_store(sequence, (int)(layer - sequence->layers));
    layer->core.count = sequence->shape.core_rows;
    for (int32_t i = 0; i < layer->core.count; i++) {
        AVL_ASSERT(layer->core_indices[i] < store->count);
        layer->core.host[i] = store->host[layer->core_indices[i]];
    }
    layer->core_is_ahead = false;
    return avl_sequence_publish(sequence, &layer->core, 0);
}

/* Lists the chosen rows. The list `order` has no further use in this layer. */
static avl_status_t list_kept(avl_sequence_t *sequence, avl_sequence_layer_t *layer,
                              const int32_t *kept) {
    layer->order.count = sequence->shape.store_rows;
    for (int32_t i = 0; i < layer->order.count; i++)
        layer->order.host[i] = layer->visual.slots.host[kept[i]];
    return avl_sequence_publish(sequence, &layer->order, 0);
}

/* Moves the chosen rows, which the device's list `order` names, to the front. */
static avl_status_t move_rows(avl_sequence_t *sequence, avl_pages_t *pages,
                              avl_sequence_layer_t *layer) {
    const avl_row_list_t *targets = &layer->visual.slots;
    const avl_row_list_t *sources = &layer->order;
    int32_t count = sequence->shape.store_rows;
    /* Rows that came from another sequence stay where they are for that one. */
    if (!avl_sequence_own_visual(sequence, pages, (int)(layer - sequence->layers), count))
        return avl_fail(AVL_ERR_INTERNAL, "the page pool (%lld pages) ran dry at request %llu",
                        (long long)avl_pages_counts(pages).total,
                        (unsigned long long)sequence->request_id);
    AVL_TRY(avl_sequence_publish(sequence, targets, 0));
    avl_kv_view_t view = avl_pages_view(pages);
    AVL_TRY(avl_kv_move(sequence->device, &(avl_kv_move_args_t){
                                              .keys = avl_pages_keys(pages),
                                              .values = avl_pages_values(pages),
                                              .sources = sources->device,
                                              .targets = targets->device,
                                              .rows = count,
                                              .row_width = view.row_stride,
                                              .dtype = view.dtype,
                                          }));
    avl_sequence_cut_visual(sequence, pages, (int)(layer - sequence->layers), count);
    return AVL_OK;
}

/* Keeps the visual rows of these indices, which may stand in store_positions. */
static avl_status_t keep_rows(avl_sequence_t *sequence, avl_pages_t *pages, int layer_index,
                              const int32_t *kept) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    const int32_t *positions = avl_sequence_visual_positions(sequence, layer_index);
    AVL_ASSERT(!layer->selected);
    if (shape->held_rows > shape->store_rows) {
        AVL_TRY(list_kept(sequence, layer, kept));
    } else if (shape->store_rows < layer->visual.slots.count) {
        AVL_TRY(list_kept(sequence, layer, kept));
        AVL_TRY(move_rows(sequence, pages, layer));
    }
    for (int32_t i = 0; i < shape->store_rows; i++)
        layer->store_positions[i] = positions[kept[i]];
    layer->selected = true;
    return AVL_OK;
}

/* The rows in core_indices are the core that the prompt leaves. */
static avl_status_t begin_core(avl_sequence_t *sequence, avl_sequence_layer_t *layer) {
    memcpy(layer->first_core, layer->core_indices,
           (size_t)sequence->shape.core_rows * sizeof *layer->first_core);
    return list_core(sequence, layer);
}

avl_status_t avl_visual_store_keep(avl_sequence_t *sequence, avl_pages_t *pages,
                                   avl_selection_t *selection, int layer_index,
                                   const avl_selection_item_t *chosen) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    AVL_ASSERT(chosen->keep == shape->store_rows);
    AVL_TRY(keep_rows(sequence, pages, layer_index, chosen->indices));
    if (shape->core_in_step)
        return AVL_OK;
    AVL_TRY(avl_selection_best(selection, chosen->scores, shape->store_rows, shape->core_rows,
                               layer->core_indices));
    return begin_core(sequence, layer);
}

avl_status_t avl_visual_store_keep_all(avl_sequence_t *sequence, avl_pages_t *pages,
                                       avl_selection_t *selection,
                                       const avl_selection_item_t *chosen) {
    const avl_sequence_layer_t *first = &sequence->layers[0];
    AVL_ASSERT(avl_sequence_selects_once(&sequence->shape));
    AVL_TRY(avl_visual_store_keep(sequence, pages, selection, 0, chosen));
    for (int i = 1; i < sequence->layer_count; i++) {
        AVL_TRY(keep_rows(sequence, pages, i, chosen->indices));
        if (first->core.count == 0)
            continue;
        memcpy(sequence->layers[i].core_indices, first->core_indices,
               (size_t)first->core.count * sizeof *first->core_indices);
        AVL_TRY(begin_core(sequence, &sequence->layers[i]));
    }
    return AVL_OK;
}

avl_choose_item_t avl_visual_store_keep_begin(avl_sequence_t *sequence, int layer_index,
                                              const avl_selection_item_t *chosen) {
    const avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    AVL_ASSERT(!layer->selected && chosen->keep == sequence->shape.store_rows);
    return (avl_choose_item_t){
        .scores = chosen->weights,
        .count = chosen->count,
        .keep = chosen->keep,
        .indices = layer->device_store,
        .rows = layer->visual.slots.device,
        .list = layer->order.device,
        .best = chosen->best,
    };
}

avl_status_t avl_visual_store_keep_core(avl_sequence_t *sequence, avl_pages_t *pages,
                                        int layer_index, const avl_selection_item_t *chosen,
                                        avl_choose_item_t *core_p) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    AVL_ASSERT(shape->held_rows == shape->store_rows);
    layer->order.count = shape->store_rows;
    if (shape->store_rows < layer->visual.slots.count)
        AVL_TRY(move_rows(sequence, pages, layer));
    layer->selected = layer->store_is_ahead = true;
    if (shape->core_in_step)
        return AVL_OK;
    layer->core.count = shape->core_rows;
    layer->core_is_ahead = true;
    *core_p = (avl_choose_item_t){
        .scores = chosen->best,
        .count = shape->store_rows,
        .keep = shape->core_rows,
        .indices = layer->device_first_core,
        .rows = layer->visual.slots.device,
        .list = layer->core.device,
    };
    return AVL_OK;
}

avl_status_t avl_visual_store_filter(avl_sequence_t *sequence, avl_selection_t *selection,
                                     int layer_index, avl_selection_item_t *chosen) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    AVL_ASSERT(!sequence->filtered && chosen->keep == shape->survivor_rows);
    for (int32_t i = 0; i < chosen->keep; i++)
        sequence->survivors[i] = sequence->visual_positions[chosen->indices[i]];
    sequence->filtered = true;
    if (!shape->selects)
        return AVL_OK;
    /* The best of the best are the best of all. */
    int32_t *best = sequence->layers[layer_index].store_positions; /* until they are positions */
    AVL_TRY(avl_selection_best(selection, chosen->scores, chosen->keep, shape->store_rows, best));
    for (int32_t i = 0; i < shape->store_rows; i++) {
        chosen->indices[i] = chosen->indices[best[i]];
        chosen->scores[i] = chosen->scores[best[i]];
    }
    chosen->keep = shape->store_rows;
    return AVL_OK;
}

avl_status_t avl_visual_store_reselect(avl_sequence_t *sequence, int layer_index,
                                       const avl_selection_item_t *chosen) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    AVL_ASSERT(layer->selected && chosen->keep == sequence->shape.core_rows);
    memcpy(layer->core_indices, chosen->indices, (size_t)chosen->keep * sizeof *chosen->indices);
    return list_core(sequence, layer);
}

/* Fetches `count` ascending places below `limit`. */
static avl_status_t fetch_places(const avl_sequence_t *sequence, int layer_index,
                                 const int32_t *source, int32_t count, int32_t limit,
                                 int32_t *places) {
    avl_device_t *device = sequence->device;
    AVL_TRY(device->ops->download(device, places, source, (size_t)count * sizeof *places));
    for (int32_t i = 0, least = 0; i < count; i++) {
        if (places[i] < least || places[i] >= limit)
            return avl_fail(AVL_ERR_INTERNAL,
                            "layer %d: chosen row %d is number %d; allowed: %d to %d", layer_index,
                            i, places[i], least, limit - 1);
        least = places[i] + 1;
    }
    return AVL_OK;
}

static avl_status_t settle_store(avl_sequence_t *sequence, int layer_index) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    const int32_t *positions = avl_sequence_visual_positions(sequence, layer_index);
    AVL_TRY(fetch_places(sequence, layer_index, layer->device_store, shape->store_rows,
                         avl_sequence_visual_rows(shape, layer_index), layer->store_positions));
    for (int32_t i = 0; i < shape->store_rows; i++)
        layer->store_positions[i] = positions[layer->store_positions[i]];
    if (!shape->core_in_step)
        AVL_TRY(fetch_places(sequence, layer_index, layer->device_first_core, shape->core_rows,
                             shape->store_rows, layer->first_core));
    layer->store_is_ahead = false;
    return AVL_OK;
}

avl_status_t avl_visual_store_settle(avl_sequence_t *sequence, int layer_index) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    if (layer->store_is_ahead)
        AVL_TRY(settle_store(sequence, layer_index));
    if (!layer->core_is_ahead)
        return AVL_OK;
    AVL_TRY(sequence->device->ops->download(sequence->device, layer->core.host, layer->core.device,
                                            (size_t)layer->core.count * sizeof *layer->core.host));
    /* A part of the store, in the same order. */
    int32_t place = 0;
    for (int32_t i = 0; i < layer->core.count; i++, place++) {
        while (place < layer->visual.slots.count &&
               layer->visual.slots.host[place] != layer->core.host[i])
            place++;
        if (place == layer->visual.slots.count)
            return avl_fail(AVL_ERR_INTERNAL, "layer %d: core row %d is in slot %d, not a store's",
                            layer_index, i, layer->core.host[i]);
        layer->core_indices[i] = place;
    }
    layer->core_is_ahead = false;
    return AVL_OK;
}

/* The core as it is after `step` (0: the prompt). */
static void spread_core(avl_sequence_t *sequence, int layer_index, int32_t step) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t *core = sequence->layers[layer_index].core_indices;
    if (shape->attention.visual_selection == AVL_VISUAL_RANDOM)
        avl_spread_chance(shape->attention.selection_seed, layer_index, step, AVL_SPREAD_CORE,
                          shape->store_rows, shape->core_rows, core);
    else
        avl_spread_even(shape->store_rows, shape->core_rows, core);
}

avl_status_t avl_visual_store_spread(avl_sequence_t *sequence, avl_pages_t *pages,
                                     int layer_index) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    int32_t *kept = layer->store_positions; /* until they are positions */
    if (shape->attention.visual_selection == AVL_VISUAL_RANDOM)
        avl_spread_chance(shape->attention.selection_seed, layer_index, 0, AVL_SPREAD_STORE,
                          shape->visual_rows, shape->store_rows, kept);
    else
        avl_spread_even(shape->visual_rows, shape->store_rows, kept);
    AVL_TRY(keep_rows(sequence, pages, layer_index, kept));
    if (shape->core_in_step)
        return AVL_OK;
    spread_core(sequence, layer_index, 0);
    return begin_core(sequence, layer);
}

avl_status_t avl_visual_store_respread(avl_sequence_t *sequence, int layer_index, int32_t step) {
    AVL_ASSERT(sequence->layers[layer_index].selected);
    spread_core(sequence, layer_index, step);
    return list_core(sequence, &sequence->layers[layer_index]);
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
    const avl_row_list_t *store =
        layer->selected ? avl_sequence_store(sequence, layer_index) : &layer->visual.slots;
    const int32_t *positions = layer->selected
                                   ? layer->store_positions
                                   : avl_sequence_visual_positions(sequence, layer_index);
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

void avl_visual_store_weigh(avl_sequence_t *sequence, int layer_index, int32_t hidden,
                            const float *weights, const int32_t *core, int32_t core_rows) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    const int32_t *store = sequence->layers[layer_index].store_positions;
    avl_visual_mass_t *mass = &sequence->step_mass;
    int32_t stored = 0, computed = 0;
    for (int32_t i = 0; i < shape->visual_rows; i++) {
        double weight = i < hidden ? 0 : (double)weights[i - hidden];
        mass->all += weight;
        if (stored == shape->store_rows || store[stored] != sequence->visual_positions[i])
            continue;
        mass->stored += weight;
        bool in_core = core != NULL && computed < core_rows && core[computed] == stored;
        if (in_core || core == NULL)
            mass->computed += weight;
        computed += in_core;
        stored++;
    }
}
