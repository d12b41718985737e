/* worker/sequence_share.c: a new sequence that begins with rows of another one. */
#include <string.h>

#include "worker/text_store.h"

/* Without eviction of text, which begins with the answer or leaves no state that lasts. */
static avl_attention_params_t of_prompt(const avl_attention_params_t *attention) {
    avl_attention_params_t params = *attention;
    params.text_keep_ratio = 0;
    avl_attention_params_settle(&params);
    return params;
}

bool avl_sequence_shape_same_prompt(const avl_sequence_shape_t *a, const avl_sequence_shape_t *b) {
    avl_attention_params_t params_a = of_prompt(&a->attention);
    avl_attention_params_t params_b = of_prompt(&b->attention);
    return !avl_text_store_evicts_prompt(a) && !avl_text_store_evicts_prompt(b) &&
           a->prompt_rows == b->prompt_rows && a->visual_rows == b->visual_rows &&
           a->store_rows == b->store_rows && a->core_rows == b->core_rows &&
           avl_attention_params_same_prompt(&params_a, &params_b);
}

static bool is_whole(const avl_sequence_t *sequence, const avl_sequence_t *source, int32_t rows) {
    const avl_sequence_shape_t *own = &sequence->shape, *other = &source->shape;
    return rows == own->prompt_rows && avl_sequence_shape_same_prompt(own, other);
}

/* What stands behind the first picture has been evicted, or has to be looked at by the rows behind
 * it, to be ranked; or it comes to later layers without the visual rows that the last row drops. */
static bool shares_system_alone(const avl_sequence_shape_t *shape) {
    return avl_text_store_evicts_prompt(shape) || shape->filter_layers > 0;
}

int32_t avl_sequence_shape_prefix(const avl_sequence_shape_t *own,
                                  const avl_sequence_shape_t *other, int32_t rows) {
    if (own->long_prompt != other->long_prompt)
        return 0;
    /* Whose pictures are weighed has them all encoded, so that their features are there. */
    if ((shares_system_alone(own) || avl_sequence_selects_once(own)) && rows > own->system_rows)
        rows = own->system_rows;
    if ((shares_system_alone(other) || other->store_rows < other->visual_rows) &&
        rows > other->system_rows)
        rows = other->system_rows;
    /* The rows that rank the visual ones are computed, the last one for its logits, too. */
    return rows < own->scored_from ? rows : own->scored_from;
}

static int32_t count_visual(const avl_sequence_t *sequence, int32_t rows) {
    int32_t count = 0;
    for (int32_t i = 0; i < rows; i++)
        count += avl_sequence_is_visual(sequence, i);
    return count;
}

bool avl_sequence_can_share(const avl_sequence_t *sequence, const avl_sequence_t *source,
                            int32_t rows) {
    const avl_sequence_shape_t *own = &sequence->shape, *other = &source->shape;
    if (rows < 1 || rows > own->prompt_rows || rows > other->prompt_rows ||
        sequence->rows_done != 0 || source->rows_done < other->prompt_rows ||
        memcmp(sequence->token_ids, source->token_ids,
               (size_t)rows * sizeof *sequence->token_ids) != 0)
        return false;
    if (is_whole(sequence, source, rows))
        return true;
    return rows <= avl_sequence_shape_prefix(own, other, rows);
}

static avl_status_t copy_rows(const avl_sequence_t *sequence, avl_pages_t *pages,
                              const avl_row_list_t *sources, const avl_row_list_t *targets,
                              int32_t first, int32_t count) {
    avl_kv_view_t view = avl_pages_view(pages);
    return avl_kv_move(sequence->device, &(avl_kv_move_args_t){
                                             .keys = avl_pages_keys(pages),
                                             .values = avl_pages_values(pages),
                                             .sources = sources->device + first,
                                             .targets = targets->device + first,
                                             .rows = count,
                                             .row_width = view.row_stride,
                                             .dtype = view.dtype,
                                         });
}

/* The first `count` rows of a segment; `grows`: more will be written behind them. */
static avl_status_t share_segment(avl_sequence_t *sequence, avl_pages_t *pages, int layer,
                                  avl_segment_rows_t *target, const avl_segment_rows_t *source,
                                  int32_t count, bool grows) {
    int32_t rest = grows ? count % AVL_PAGE_ROWS : 0;
    int32_t shared = (count - rest + AVL_PAGE_ROWS - 1) / AVL_PAGE_ROWS;
    AVL_ASSERT(source->slots.count >= count);
    for (int32_t i = 0; i < shared; i++) {
        avl_pages_share(pages, source->pages[i]);
        target->pages[target->page_count++] = source->pages[i];
    }
    memcpy(target->slots.host, source->slots.host,
           (size_t)(count - rest) * sizeof *target->slots.host);
    target->slots.count = count;
    if (rest > 0) {
        avl_page_owner_t owner = {sequence->index, layer, target->segment};
        int32_t page = avl_pages_take(pages, owner);
        target->slots.count = count - rest; /* what is held, should the pool be dry */
        if (page < 0)
            return avl_fail(
                AVL_ERR_INTERNAL, "the page pool (%lld pages) ran dry where request %llu begins",
                (long long)avl_pages_counts(pages).total, (unsigned long long)sequence->request_id);
        target->pages[target->page_count++] = page;
        for (int32_t i = 0; i < rest; i++)
            target->slots.host[target->slots.count++] = page * AVL_PAGE_ROWS + i;
    }
    AVL_TRY(avl_sequence_publish(sequence, &target->slots, 0));
    return rest > 0 ? copy_rows(sequence, pages, &source->slots, &target->slots, count - rest, rest)
                    : AVL_OK;
}

/* The rest of the prompt will look back at all of them, in the order of positions. */
static avl_status_t list_order(avl_sequence_t *sequence, avl_sequence_layer_t *layer,
                               int32_t rows) {
    int32_t text = 0, visual = 0;
    for (int32_t i = 0; i < rows; i++)
        layer->order.host[i] = avl_sequence_is_visual(sequence, i)
                                   ? layer->visual.slots.host[visual++]
                                   : layer->text.slots.host[text++];
    layer->order.count = rows;
    return avl_sequence_publish(sequence, &layer->order, 0);
}

/* The store and its first core. */
static avl_status_t take_store(avl_sequence_t *sequence, avl_sequence_layer_t *layer,
                               const avl_sequence_layer_t *source) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t core_rows = avl_sequence_core_rows(shape);
    if (!shape->selects)
        return AVL_OK;
    layer->store.count = shape->store_rows;
    memcpy(layer->store.host, source->store.host,
           (size_t)shape->store_rows * sizeof *layer->store.host);
    layer->first_core.count = core_rows;
    memcpy(layer->first_core.host, source->first_core.host,
           (size_t)core_rows * sizeof *layer->first_core.host);
    layer->selected = true;
    if (shape->held_rows > shape->store_rows)
        AVL_TRY(avl_sequence_list(sequence, &layer->order, &layer->visual.slots, layer->store.host,
                                  shape->store_rows));
    const avl_row_list_t *store = avl_sequence_store(sequence, (int)(layer - sequence->layers));
    return avl_sequence_list(sequence, &layer->core, store, layer->first_core.host, core_rows);
}

avl_status_t avl_sequence_share(avl_sequence_t *sequence, avl_pages_t *pages,
                                const avl_sequence_t *source, int32_t rows) {
    if (!avl_sequence_can_share(sequence, source, rows))
        return avl_fail(AVL_ERR_INTERNAL, "request %llu cannot begin with %d rows of sequence %d",
                        (unsigned long long)sequence->request_id, rows, source->index);
    bool whole = is_whole(sequence, source, rows);
    int32_t visual = count_visual(sequence, rows), text = rows - visual;
    for (int32_t i = 0; i < sequence->layer_count; i++) {
        avl_sequence_layer_t *layer = &sequence->layers[i];
        const avl_sequence_layer_t *other = &source->layers[i];
        AVL_TRY(share_segment(sequence, pages, i, &layer->text, &other->text, text, true));
        AVL_TRY(share_segment(sequence, pages, i, &layer->visual, &other->visual,
                              whole ? avl_sequence_held_rows(&sequence->shape, i) : visual,
                              visual < sequence->shape.visual_rows));
        AVL_TRY(whole ? take_store(sequence, layer, other) : list_order(sequence, layer, rows));
    }
    if (whole && source->filtered) {
        memcpy(sequence->survivors, source->survivors,
               (size_t)sequence->shape.survivor_rows * sizeof *sequence->survivors);
        sequence->filtered = true;
    }
    sequence->rows_done = rows;
    sequence->visual_done = visual;
    return AVL_OK;
}
