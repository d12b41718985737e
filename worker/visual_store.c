#include "worker/visual_store.h"

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

avl_choose_item_t avl_visual_store_choice(avl_sequence_t *sequence, int layer_index,
                                          const float *scores, float *best) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    AVL_ASSERT(!layer->selected);
    layer->store_is_ahead = !sequence->device->is_host;
    return (avl_choose_item_t){
        .scores = scores,
        .count = layer->visual.slots.count,
        .keep = sequence->shape.store_rows,
        .indices = layer->store.device,
        .rows = layer->visual.slots.device,
        .list = layer->order.device, /* has no further use in this layer */
        .best = best,
    };
}

/* The rows that the device's list `order` names are the store: moves them to the front, unless all
 * are held. */
avl_status_t avl_visual_store_keep(avl_sequence_t *sequence, avl_pages_t *pages, int layer_index) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t count = shape->store_rows;
    AVL_ASSERT(!layer->selected);
    layer->store.count = layer->order.count = count;
    layer->selected = true;
    if (shape->held_rows > count || count == layer->visual.slots.count)
        return AVL_OK;
    /* Rows that came from another sequence stay where they are for that one. */
    AVL_TRY(avl_sequence_own_visual(sequence, pages, layer_index, count));
    avl_kv_view_t view = avl_pages_view(pages);
    AVL_TRY(avl_kv_move(sequence->device, &(avl_kv_move_args_t){
                                              .keys = avl_pages_keys(pages),
                                              .values = avl_pages_values(pages),
                                              .sources = layer->order.device,
                                              .targets = layer->visual.slots.device,
                                              .rows = count,
                                              .row_width = view.row_stride,
                                              .dtype = view.dtype,
                                          }));
    avl_sequence_cut_visual(sequence, pages, layer_index, count);
    return AVL_OK;
}

/* The list of the first core's places, or of a later one's, which is in force from now on. */
static avl_row_list_t *begin_core(avl_sequence_t *sequence, avl_sequence_layer_t *layer,
                                  bool is_first) {
    avl_row_list_t *places = is_first ? &layer->first_core : &layer->later_core;
    layer->core_is_later = !is_first;
    layer->core.count = places->count = sequence->shape.core_rows;
    return places;
}

avl_choose_item_t avl_visual_store_core_choice(avl_sequence_t *sequence, int layer_index,
                                               const float *scores, bool is_first) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    AVL_ASSERT(layer->selected && !sequence->shape.core_in_step);
    avl_row_list_t *places = begin_core(sequence, layer, is_first);
    layer->core_is_ahead = !is_first && !sequence->device->is_host;
    return (avl_choose_item_t){
        .scores = scores,
        .count = layer->store.count,
        .keep = places->count,
        .indices = places->device,
        .rows = avl_sequence_store(sequence, layer_index)->device,
        .list = layer->core.device,
    };
}

static avl_status_t fetch(const avl_sequence_t *sequence, int32_t *host, const int32_t *device,
                          int64_t count) {
    return host == device ? AVL_OK
                          : sequence->device->ops->download(sequence->device, host, device,
                                                            (size_t)count * sizeof *host);
}

/* `count` ascending places below `limit`. */
static avl_status_t check_places(const avl_sequence_t *sequence, const char *what,
                                 const int32_t *places, int32_t count, int32_t limit) {
    for (int32_t i = 0, least = 0; i < count; i++) {
        if (places[i] < least || places[i] >= limit)
            return avl_fail(
                AVL_ERR_INTERNAL, "request %llu, %s: row %d is number %d; allowed: %d to %d",
                (unsigned long long)sequence->request_id, what, i, places[i], least, limit - 1);
        least = places[i] + 1;
    }
    return AVL_OK;
}

avl_choose_item_t avl_visual_store_filter_choice(avl_sequence_t *sequence, const float *scores) {
    AVL_ASSERT(!sequence->filtered);
    return (avl_choose_item_t){
        .scores = scores,
        .count = sequence->shape.visual_rows,
        .keep = sequence->shape.survivor_rows,
        .indices = sequence->device_survivors,
    };
}

avl_status_t avl_visual_store_filter(avl_sequence_t *sequence) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t *survivors = sequence->survivors;
    AVL_TRY(fetch(sequence, survivors, sequence->device_survivors, shape->survivor_rows));
    AVL_TRY(check_places(sequence, "behind the prefill filter", survivors, shape->survivor_rows,
                         shape->visual_rows));
    for (int32_t i = 0; i < shape->survivor_rows; i++)
        survivors[i] = sequence->visual_positions[survivors[i]];
    sequence->filtered = true;
    return AVL_OK;
}

/* All of a step's choices are made in all layers, or were: what is not ahead comes again as it is.
 */
avl_status_t avl_visual_store_settle(avl_sequence_t *sequence, int first, int count) {
    avl_sequence_layer_t *layers = sequence->layers + first, *last = layers + count - 1;
    bool stores = false, cores = false;
    for (avl_sequence_layer_t *layer = layers; layer <= last; layer++) {
        stores |= layer->store_is_ahead;
        cores |= layer->core_is_ahead;
    }
    const int32_t *stores_end = last->first_core.host + last->first_core.count;
    if (stores)
        AVL_TRY(fetch(sequence, layers->store.host, layers->store.device,
                      stores_end - layers->store.host));
    if (cores)
        AVL_TRY(fetch(sequence, layers->later_core.host, layers->later_core.device,
                      last->later_core.host + last->later_core.count - layers->later_core.host));
    for (avl_sequence_layer_t *layer = layers; layer <= last; layer++) {
        const avl_row_list_t *store = &layer->store;
        int32_t rows = avl_sequence_visual_rows(&sequence->shape, (int)(layer - sequence->layers));
        if (stores) {
            AVL_TRY(check_places(sequence, "store", store->host, store->count, rows));
            AVL_TRY(check_places(sequence, "first core", layer->first_core.host,
                                 layer->first_core.count, store->count));
        }
        if (cores)
            AVL_TRY(check_places(sequence, "core", layer->later_core.host, layer->later_core.count,
                                 store->count));
        layer->store_is_ahead = layer->core_is_ahead = false;
    }
    return AVL_OK;
}

/* The core as it is after `step` (0: the prompt). */
static avl_status_t spread_core(avl_sequence_t *sequence, int layer_index, int32_t step) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    avl_row_list_t *places = begin_core(sequence, layer, step == 0);
    if (shape->attention.visual_selection == AVL_VISUAL_RANDOM)
        avl_spread_chance(shape->attention.selection_seed, layer_index, step, AVL_SPREAD_CORE,
                          shape->store_rows, shape->core_rows, places->host);
    else
        avl_spread_even(shape->store_rows, shape->core_rows, places->host);
    return avl_sequence_list(sequence, &layer->core, avl_sequence_store(sequence, layer_index),
                             places->host, places->count);
}

avl_status_t avl_visual_store_spread(avl_sequence_t *sequence, avl_pages_t *pages,
                                     int layer_index) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    int32_t *kept = layer->store.host;
    if (shape->attention.visual_selection == AVL_VISUAL_RANDOM)
        avl_spread_chance(shape->attention.selection_seed, layer_index, 0, AVL_SPREAD_STORE,
                          shape->visual_rows, shape->store_rows, kept);
    else
        avl_spread_even(shape->visual_rows, shape->store_rows, kept);
    AVL_TRY(
        avl_sequence_list(sequence, &layer->order, &layer->visual.slots, kept, shape->store_rows));
    AVL_TRY(avl_visual_store_keep(sequence, pages, layer_index));
    return shape->core_in_step ? AVL_OK : spread_core(sequence, layer_index, 0);
}

avl_status_t avl_visual_store_respread(avl_sequence_t *sequence, int layer_index, int32_t step) {
    AVL_ASSERT(sequence->layers[layer_index].selected);
    return spread_core(sequence, layer_index, step);
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

/* The list's places before `first`, of which none or all needs no look at the list. */
static int32_t hidden_places(const avl_row_list_t *places, int32_t first, int32_t limit) {
    if (first == 0 || first == limit)
        return first == 0 ? 0 : places->count;
    return avl_visual_store_hidden(places->host, places->count, first);
}

int32_t avl_visual_store_hidden_rows(const avl_sequence_t *sequence, int layer_index,
                                     int32_t visible_first, bool *splits_p) {
    const avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    int32_t rows = avl_sequence_visual_rows(&sequence->shape, layer_index);
    int32_t hidden = avl_visual_store_hidden(avl_sequence_visual_positions(sequence, layer_index),
                                             rows, visible_first);
    if (splits_p != NULL)
        *splits_p = hidden > 0 && hidden < rows;
    return layer->selected ? hidden_places(&layer->store, hidden, rows) : hidden;
}

avl_row_span_t avl_visual_store_span(const avl_sequence_t *sequence, int layer_index, int32_t step,
                                     int32_t visible_first, int32_t *skipped_p) {
    const avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    const avl_row_list_t *list =
        layer->selected ? avl_sequence_store(sequence, layer_index) : &layer->visual.slots;
    int32_t hidden = avl_visual_store_hidden_rows(sequence, layer_index, visible_first, NULL);
    if (shape->selects && !avl_visual_store_updates(shape, step)) {
        /* The core is a subset of the store in the same order, so its hidden rows come first, too.
         */
        hidden = hidden_places(avl_sequence_core(layer), hidden, list->count);
        list = &layer->core;
    }
    *skipped_p = hidden;
    return (avl_row_span_t){.rows = list->device + hidden, .row_count = list->count - hidden};
}

void avl_visual_store_weigh(avl_sequence_t *sequence, int layer_index, int32_t hidden,
                            const float *weights, const int32_t *core, int32_t core_rows) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    const int32_t *store = sequence->layers[layer_index].store.host;
    avl_visual_mass_t *mass = &sequence->step_mass;
    int32_t stored = 0, computed = 0;
    for (int32_t i = 0; i < shape->visual_rows; i++) {
        double weight = i < hidden ? 0 : (double)weights[i - hidden];
        mass->all += weight;
        if (stored == shape->store_rows || store[stored] != i)
            continue;
        mass->stored += weight;
        bool in_core = core != NULL && computed < core_rows && core[computed] == stored;
        if (in_core || core == NULL)
            mass->computed += weight;
        computed += in_core;
        stored++;
    }
}
