#include "worker/sequence.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/linear.h"
#include "worker/text_store.h"

static int32_t pages_of(int32_t rows) {
    return (rows + AVL_PAGE_ROWS - 1) / AVL_PAGE_ROWS;
}

/* Text rows ever cached. */
static int32_t text_rows_max(const avl_sequence_shape_t *shape) {
    return shape->rows_max - shape->visual_rows;
}

/* Those that are cached at once. */
static int32_t text_capacity(const avl_sequence_shape_t *shape) {
    int32_t slots = avl_text_store_slots(shape, text_rows_max(shape));
    return slots > shape->text_rows ? slots : shape->text_rows;
}

avl_sequence_shape_t avl_sequence_shape(const int32_t *token_ids, int32_t prompt_rows,
                                        int32_t rows_max, const avl_attention_params_t *params) {
    avl_sequence_shape_t shape = {
        .rows_max = rows_max, .prompt_rows = prompt_rows, .attention = *params};
    /* What has no effect must not look as if it had one. */
    avl_attention_params_settle(&shape.attention);
    const avl_attention_params_t *attention = &shape.attention;
    int32_t first_visual = -1, last_visual = -1;
    for (int32_t i = 0; i < prompt_rows; i++) {
        if (token_ids[i] >= 0)
            continue;
        if (first_visual < 0)
            first_visual = i;
        last_visual = i;
        shape.visual_rows++;
    }
    shape.text_rows = prompt_rows - shape.visual_rows;
    shape.system_rows = first_visual < 0 ? 0 : first_visual;
    shape.store_rows = avl_ratio_rows(attention->visual_store_ratio, shape.visual_rows);
    shape.core_rows = avl_ratio_rows(attention->visual_compute_ratio, shape.visual_rows);
    shape.scored_from = prompt_rows - 1;
    bool asks = attention->visual_selection == AVL_VISUAL_QUESTION ||
                attention->visual_selection == AVL_VISUAL_COVERAGE;
    if (asks && last_visual + 1 < prompt_rows)
        shape.scored_from = last_visual + 1 > prompt_rows - AVL_SCORING_ROWS_MAX
                                ? last_visual + 1
                                : prompt_rows - AVL_SCORING_ROWS_MAX;
    bool each_step = attention->visual_core == AVL_CORE_STEP;
    shape.core_in_step = each_step && shape.core_rows < shape.store_rows;
    shape.update_interval = each_step ? 1 : attention->visual_update_interval;
    shape.long_prompt = prompt_rows >= AVL_LINEAR_MANY_ROWS;
    shape.selects = shape.core_rows < shape.visual_rows;
    shape.measures = attention->measure_captured_mass && shape.selects;
    shape.held_rows = shape.measures ? shape.visual_rows : shape.store_rows;
    double filter = attention->prefill_keep_ratio;
    shape.survivor_rows =
        filter > 0 ? avl_ratio_rows(filter, shape.visual_rows) : shape.visual_rows;
    if (shape.survivor_rows < shape.visual_rows)
        shape.filter_layers = attention->prefill_layer;
    shape.evicts_text =
        shape.visual_rows > 0 && attention->text_keep_ratio > 0 && attention->text_keep_ratio < 1;
    shape.exempt_rows =
        shape.evicts_text && attention->protect_prompt ? shape.text_rows : shape.system_rows;
    return shape;
}

bool avl_sequence_sums_scores(const avl_sequence_shape_t *shape) {
    return shape->selects && shape->scored_from < shape->prompt_rows - 1;
}

bool avl_sequence_selects_once(const avl_sequence_shape_t *shape) {
    return shape->selects && shape->attention.visual_selection == AVL_VISUAL_COVERAGE;
}

static size_t merit_entries(const avl_sequence_shape_t *shape) {
    return avl_sequence_selects_once(shape) ? (size_t)shape->visual_rows : 0;
}

static size_t survivor_entries(const avl_sequence_shape_t *shape) {
    return shape->filter_layers > 0 ? (size_t)shape->survivor_rows : 0;
}

static size_t score_entries(const avl_sequence_shape_t *shape) {
    return avl_sequence_sums_scores(shape) ? (size_t)shape->visual_rows : 0;
}

int32_t avl_sequence_visual_rows(const avl_sequence_shape_t *shape, int layer) {
    return shape->filter_layers > 0 && layer >= shape->filter_layers ? shape->survivor_rows
                                                                     : shape->visual_rows;
}

int32_t avl_sequence_held_rows(const avl_sequence_shape_t *shape, int layer) {
    return shape->selects ? shape->held_rows : avl_sequence_visual_rows(shape, layer);
}

/* Of the visual rows that are held when the prompt is read, over all layers. */
static int64_t visual_pages(const avl_sequence_shape_t *shape, int layer_count) {
    int64_t pages = 0;
    for (int i = 0; i < layer_count; i++)
        pages += pages_of(avl_sequence_held_rows(shape, i));
    return pages;
}

int64_t avl_sequence_pages(const avl_sequence_shape_t *shape, int layer_count, int32_t text_rows) {
    return layer_count * (int64_t)pages_of(avl_text_store_slots(shape, text_rows)) +
           visual_pages(shape, layer_count);
}

avl_sequence_price_t avl_sequence_price(const avl_sequence_shape_t *shape, int layer_count,
                                        bool whole) {
    int64_t most = pages_of(text_capacity(shape));
    int64_t text = pages_of(avl_text_store_slots(shape, text_rows_max(shape)));
    int64_t full = pages_of(shape->visual_rows), kept = pages_of(shape->held_rows);
    avl_sequence_price_t price = {.decode_pages =
                                      layer_count * text + visual_pages(shape, layer_count)};
    price.prefill_pages = whole && !avl_sequence_selects_once(shape)
                              ? price.decode_pages + (full - kept) + (most - text)
                              : layer_count * (most + full);
    return price;
}

enum { LAYER_LISTS = 7 };

/* A layer's lists, and the most that each will hold. */
static void layer_lists(avl_sequence_layer_t *layer, const avl_sequence_shape_t *shape,
                        avl_row_list_t *lists[LAYER_LISTS], int32_t capacities[LAYER_LISTS]) {
    avl_row_list_t *const own[] = {&layer->text.slots, &layer->visual.slots, &layer->order,
                                   &layer->core,       &layer->store,        &layer->first_core,
                                   &layer->later_core};
    int32_t core = avl_sequence_core_rows(shape);
    const int32_t most[] = {text_capacity(shape),
                            shape->visual_rows,
                            shape->prompt_rows,
                            core,
                            shape->store_rows,
                            core,
                            core};
    memcpy(lists, own, sizeof own);
    memcpy(capacities, most, sizeof most);
}

/* On host and device: the lists of all layers and the sums of scores; merits and survivors. */
static size_t list_entries(const avl_sequence_shape_t *shape, int layer_count) {
    avl_sequence_layer_t layer;
    avl_row_list_t *lists[LAYER_LISTS];
    int32_t capacities[LAYER_LISTS];
    size_t entries = score_entries(shape);
    layer_lists(&layer, shape, lists, capacities);
    for (int i = 0; i < LAYER_LISTS; i++)
        entries += (size_t)capacities[i];
    return (size_t)layer_count * entries + merit_entries(shape) + survivor_entries(shape);
}

/* What stands before the lists, in whole cache lines. */
static size_t head_bytes(int layer_count) {
    size_t bytes = sizeof(avl_sequence_t) + (size_t)layer_count * sizeof(avl_sequence_layer_t);
    return (bytes + AVL_ALIGNMENT_BYTES - 1) / AVL_ALIGNMENT_BYTES * AVL_ALIGNMENT_BYTES;
}

int64_t avl_sequence_list_bytes(int32_t rows_max, int layer_count) {
    /* At worst every row is visual and stored: seven lists of rows_max with their scores, less one
     * for text, and the page tables; merits, survivors and three arrays once. */
    int64_t rows = 7 * (int64_t)rows_max + 2 * (int64_t)pages_of(rows_max) + 2;
    int64_t bytes = (rows * layer_count + 5 * (int64_t)rows_max) * (int64_t)sizeof(int32_t);
    return (int64_t)head_bytes(layer_count) +
           (bytes + AVL_ALIGNMENT_BYTES - 1) / AVL_ALIGNMENT_BYTES * AVL_ALIGNMENT_BYTES;
}

int64_t avl_sequence_device_bytes(int32_t rows_max, int layer_count) {
    int64_t bytes = (7 * (int64_t)layer_count + 2) * rows_max * (int64_t)sizeof(int32_t);
    return (bytes + AVL_ALIGNMENT_BYTES - 1) / AVL_ALIGNMENT_BYTES * AVL_ALIGNMENT_BYTES;
}

static void carve(avl_sequence_t *sequence) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t *host = sequence->block;
    int32_t *device = sequence->device_block != NULL ? sequence->device_block : host;
    /* What is fetched together (avl_visual_store_settle) stands together: stores and first cores of
     * all layers, then later cores. */
    static const int ends[] = {4, 6, LAYER_LISTS};
    for (int part = 0, from = 0; part < 3; from = ends[part++]) {
        for (int32_t i = 0; i < sequence->layer_count; i++) {
            avl_row_list_t *lists[LAYER_LISTS];
            int32_t capacities[LAYER_LISTS];
            layer_lists(&sequence->layers[i], shape, lists, capacities);
            for (int j = from; j < ends[part]; j++) {
                lists[j]->host = host;
                lists[j]->device = device;
                host += capacities[j];
                device += capacities[j];
            }
        }
    }
    for (int32_t i = 0; i < sequence->layer_count && score_entries(shape) > 0; i++) {
        sequence->layers[i].scores = (float *)(void *)device;
        host += score_entries(shape);
        device += score_entries(shape);
    }
    if (merit_entries(shape) > 0)
        sequence->merits = (float *)(void *)device;
    sequence->survivors = host + merit_entries(shape);
    sequence->device_survivors = device + merit_entries(shape);
    host = sequence->survivors + survivor_entries(shape);
    for (int32_t i = 0; i < sequence->layer_count; i++) {
        avl_sequence_layer_t *layer = &sequence->layers[i];
        layer->text.segment = AVL_SEGMENT_TEXT;
        layer->visual.segment = AVL_SEGMENT_VISUAL;
        layer->text.pages = host;
        layer->visual.pages = layer->text.pages + pages_of(text_capacity(shape));
        host = layer->visual.pages + pages_of(shape->visual_rows);
    }
    sequence->token_ids = host;
    sequence->text_positions = sequence->token_ids + shape->prompt_rows;
    sequence->visual_positions = sequence->text_positions + text_rows_max(shape);
    sequence->feature_rows = sequence->visual_positions + shape->visual_rows;
}

static void fill_positions(avl_sequence_t *sequence) {
    int32_t text = 0, visual = 0;
    for (int32_t i = 0; i < sequence->shape.rows_max; i++) {
        if (avl_sequence_is_visual(sequence, i))
            sequence->visual_positions[visual++] = i;
        else
            sequence->text_positions[text++] = i;
    }
}

static size_t device_bytes(const avl_sequence_shape_t *shape, int layer_count) {
    return list_entries(shape, layer_count) * sizeof(int32_t);
}

static size_t host_bytes(const avl_sequence_shape_t *shape, int layer_count) {
    size_t tables = (size_t)(pages_of(text_capacity(shape)) + pages_of(shape->visual_rows));
    size_t entries = list_entries(shape, layer_count) + (size_t)layer_count * tables +
                     (size_t)shape->prompt_rows + (size_t)shape->rows_max +
                     (size_t)shape->visual_rows;
    return head_bytes(layer_count) + entries * sizeof(int32_t);
}

avl_status_t avl_sequence_create_in(const avl_sequence_memory_t *memory, avl_device_t *device,
                                    int32_t index, const avl_sequence_shape_t *shape,
                                    int layer_count, const int32_t *token_ids,
                                    avl_sequence_t **sequence_p) {
    size_t host = host_bytes(shape, layer_count), lists = device_bytes(shape, layer_count);
    if (host > memory->host_bytes || (!device->is_host && lists > memory->device_bytes))
        return avl_fail(AVL_ERR_INTERNAL,
                        "a sequence of %d rows needs %zu bytes and %zu of the device; there are "
                        "%zu and %zu",
                        shape->rows_max, host, lists, memory->host_bytes, memory->device_bytes);
    memset(memory->host, 0, host);
    avl_sequence_t *sequence = memory->host;
    sequence->index = index;
    sequence->shape = *shape;
    sequence->layer_count = layer_count;
    sequence->device = device;
    sequence->is_guest = true;
    sequence->layers = (avl_sequence_layer_t *)(sequence + 1);
    sequence->block = (int32_t *)(void *)((char *)memory->host + head_bytes(layer_count));
    sequence->device_block = device->is_host ? NULL : memory->device;
    carve(sequence);
    memcpy(sequence->token_ids, token_ids, (size_t)shape->prompt_rows * sizeof *token_ids);
    fill_positions(sequence);
    *sequence_p = sequence;
    return AVL_OK;
}

avl_status_t avl_sequence_create(avl_device_t *device, int32_t index,
                                 const avl_sequence_shape_t *shape, int layer_count,
                                 const int32_t *token_ids, avl_sequence_t **sequence_p) {
    avl_sequence_memory_t memory = {.host_bytes = host_bytes(shape, layer_count),
                                    .device_bytes = device_bytes(shape, layer_count)};
    avl_status_t status =
        avl_alloc_aligned(memory.host_bytes, 1, "row lists of a sequence", &memory.host);
    if (status == AVL_OK && !device->is_host)
        status = device->ops->allocate(device, memory.device_bytes, "row lists of a sequence",
                                       &memory.device);
    if (status == AVL_OK)
        status = avl_sequence_create_in(&memory, device, index, shape, layer_count, token_ids,
                                        sequence_p);
    if (status != AVL_OK) {
        free(memory.host);
        return status;
    }
    (*sequence_p)->is_guest = false;
    return AVL_OK;
}

static avl_page_owner_t owner_of(const avl_sequence_t *sequence, int layer,
                                 avl_page_segment_t segment) {
    return (avl_page_owner_t){.sequence = sequence->index, .layer = layer, .segment = segment};
}

static void give_pages(avl_sequence_t *sequence, avl_pages_t *pages, int layer,
                       avl_segment_rows_t *rows, int32_t keep) {
    /* The last first, so that a later sequence gets pages in ascending order again. */
    while (rows->page_count > keep)
        avl_pages_give(pages, rows->pages[--rows->page_count],
                       owner_of(sequence, layer, rows->segment));
}

void avl_sequence_destroy(avl_sequence_t *sequence, avl_pages_t *pages) {
    if (sequence == NULL)
        return;
    for (int32_t i = sequence->layer_count - 1; i >= 0; i--) {
        give_pages(sequence, pages, i, &sequence->layers[i].visual, 0);
        give_pages(sequence, pages, i, &sequence->layers[i].text, 0);
    }
    if (sequence->is_guest)
        return;
    if (sequence->device_block != NULL)
        sequence->device->ops->release(sequence->device, sequence->device_block);
    free(sequence); /* all of it is one piece */
}

bool avl_sequence_is_visual(const avl_sequence_t *sequence, int32_t position) {
    return position < sequence->shape.prompt_rows && sequence->token_ids[position] < 0;
}

const int32_t *avl_sequence_visual_positions(const avl_sequence_t *sequence, int layer) {
    bool all = avl_sequence_visual_rows(&sequence->shape, layer) == sequence->shape.visual_rows;
    return all ? sequence->visual_positions : sequence->survivors;
}

int32_t avl_sequence_append(avl_sequence_t *sequence, avl_pages_t *pages, int layer_index,
                            int32_t position) {
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    bool visual = avl_sequence_is_visual(sequence, position);
    avl_segment_rows_t *rows = visual ? &layer->visual : &layer->text;
    AVL_ASSERT(position < sequence->shape.rows_max);
    AVL_ASSERT(rows->slots.count <
               (visual ? sequence->shape.visual_rows : text_capacity(&sequence->shape)));
    int32_t place = rows->slots.count % AVL_PAGE_ROWS;
    if (place == 0) {
        int32_t page = avl_pages_take(pages, owner_of(sequence, layer_index, rows->segment));
        if (page < 0)
            return -1;
        rows->pages[rows->page_count++] = page;
    }
    int32_t slot = rows->pages[rows->page_count - 1] * AVL_PAGE_ROWS + place;
    rows->slots.host[rows->slots.count++] = slot;
    if (position < sequence->shape.prompt_rows)
        layer->order.host[layer->order.count++] = slot;
    return slot;
}

const avl_row_list_t *avl_sequence_store(const avl_sequence_t *sequence, int layer) {
    return sequence->shape.held_rows > sequence->shape.store_rows
               ? &sequence->layers[layer].order
               : &sequence->layers[layer].visual.slots;
}

void avl_sequence_cut_visual(avl_sequence_t *sequence, avl_pages_t *pages, int layer_index,
                             int32_t count) {
    avl_segment_rows_t *visual = &sequence->layers[layer_index].visual;
    AVL_ASSERT(count <= visual->slots.count);
    int32_t before = visual->page_count;
    visual->slots.count = count;
    give_pages(sequence, pages, layer_index, visual, pages_of(count));
    sequence->returned_pages += before - visual->page_count;
}

void avl_sequence_cut_text(avl_sequence_t *sequence, avl_pages_t *pages, int layer_index,
                           int32_t count) {
    avl_segment_rows_t *text = &sequence->layers[layer_index].text;
    AVL_ASSERT(count <= text->slots.count);
    int32_t before = text->page_count;
    text->slots.count = count;
    give_pages(sequence, pages, layer_index, text, pages_of(count));
    sequence->returned_pages += before - text->page_count;
}

void avl_sequence_retire(avl_sequence_t *sequence, avl_pages_t *pages) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    AVL_ASSERT(sequence->rows_done >= shape->prompt_rows);
    int32_t kept = shape->evicts_text ? shape->exempt_rows : shape->text_rows;
    for (int32_t i = sequence->layer_count - 1; i >= 0; i--) {
        avl_segment_rows_t *text = &sequence->layers[i].text;
        text->slots.count = kept;
        give_pages(sequence, pages, i, text, pages_of(kept));
    }
    sequence->rows_done = shape->prompt_rows;
    sequence->decode_steps = 0;
}

avl_status_t avl_sequence_own_visual(avl_sequence_t *sequence, avl_pages_t *pages, int layer_index,
                                     int32_t count) {
    avl_segment_rows_t *visual = &sequence->layers[layer_index].visual;
    avl_page_owner_t owner = owner_of(sequence, layer_index, AVL_SEGMENT_VISUAL);
    bool replaced = false;
    for (int32_t i = 0; i < pages_of(count); i++) {
        if (!avl_pages_is_shared(pages, visual->pages[i]))
            continue;
        int32_t page = avl_pages_take(pages, owner);
        if (page < 0)
            return avl_fail(AVL_ERR_INTERNAL, "the page pool (%lld pages) ran dry at request %llu",
                            (long long)avl_pages_counts(pages).total,
                            (unsigned long long)sequence->request_id);
        avl_pages_give(pages, visual->pages[i], owner);
        visual->pages[i] = page;
        for (int32_t j = 0; j < AVL_PAGE_ROWS && i * AVL_PAGE_ROWS + j < visual->slots.count; j++)
            visual->slots.host[i * AVL_PAGE_ROWS + j] = page * AVL_PAGE_ROWS + j;
        replaced = true;
    }
    return replaced ? avl_sequence_publish(sequence, &visual->slots, 0) : AVL_OK;
}

avl_status_t avl_sequence_publish(const avl_sequence_t *sequence, const avl_row_list_t *list,
                                  int32_t first) {
    if (sequence->device->is_host || first >= list->count)
        return AVL_OK;
    return sequence->device->ops->upload(sequence->device, list->device + first, list->host + first,
                                         (size_t)(list->count - first) * sizeof(int32_t));
}

avl_status_t avl_sequence_list(const avl_sequence_t *sequence, avl_row_list_t *list,
                               const avl_row_list_t *from, const int32_t *places, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        AVL_ASSERT(places[i] < from->count);
        list->host[i] = from->host[places[i]];
    }
    list->count = count;
    return avl_sequence_publish(sequence, list, 0);
}
