#include "worker/text_store.h"

#include <float.h>
#include <math.h>

#include "kernels/text.h"

/* Ratio and product are each rounded once, so a product that ends in a half on paper is at most a
 * few units in the last place away from it. */
static int32_t round_half_even(double value) {
    double whole = floor(value), rest = value - whole;
    if (fabs(rest - 0.5) <= 4 * DBL_EPSILON * value)
        return (int32_t)(fmod(whole, 2) == 0 ? whole : whole + 1);
    return (int32_t)(rest < 0.5 ? whole : whole + 1);
}

int32_t avl_text_store_budget(const avl_sequence_shape_t *shape, int32_t seen) {
    int32_t budget = round_half_even(shape->attention.text_keep_ratio * seen);
    return budget > shape->attention.text_keep_min ? budget : shape->attention.text_keep_min;
}

int32_t avl_text_store_held(const avl_sequence_shape_t *shape, int32_t seen) {
    int32_t budget = avl_text_store_budget(shape, seen);
    return seen < budget ? seen : budget;
}

int32_t avl_text_store_slots(const avl_sequence_shape_t *shape, int32_t text_rows) {
    if (!shape->evicts_text || text_rows <= shape->exempt_rows)
        return text_rows;
    int32_t seen = text_rows - shape->exempt_rows;
    if (text_rows == shape->text_rows)
        return shape->exempt_rows + avl_text_store_held(shape, seen);
    /* The newest row stands beside all that were held before it. */
    return shape->exempt_rows + avl_text_store_held(shape, seen - 1) + 1;
}

bool avl_text_store_evicts_prompt(const avl_sequence_shape_t *shape) {
    return shape->evicts_text && shape->exempt_rows < shape->text_rows;
}

int32_t avl_text_store_recent(const avl_sequence_t *sequence, int32_t seen) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t recent = avl_text_store_budget(shape, seen) / 2;
    return recent == 0 ? INT32_MAX : sequence->text_positions[shape->exempt_rows + seen - recent];
}

int64_t avl_text_store_entries(int32_t context_rows, int kv_heads) {
    return 2 * (int64_t)context_rows * kv_heads;
}

avl_status_t avl_text_store_evict(avl_sequence_t *sequence, avl_pages_t *pages, int layer,
                                  const avl_text_store_memory_t *memory) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    avl_segment_rows_t *text = &sequence->layers[layer].text;
    int32_t seen = shape->text_rows - shape->exempt_rows;
    int32_t held = avl_text_store_held(shape, seen);
    avl_kv_view_t view = avl_pages_view(pages);
    AVL_ASSERT(text->slots.count == shape->text_rows);
    if (held == seen)
        return AVL_OK;
    int32_t *targets = memory->moves + (int64_t)held * view.kv_heads;
    AVL_TRY(avl_text_keep(sequence->device, &(avl_text_keep_args_t){
                                                .rows = text->slots.device + shape->exempt_rows,
                                                .count = seen,
                                                .keep = held,
                                                .recent = avl_text_store_budget(shape, seen) / 2,
                                                .scores = avl_pages_scores(pages),
                                                .positions = avl_pages_positions(pages),
                                                .kv_heads = view.kv_heads,
                                                .sources = memory->moves,
                                                .targets = targets,
                                                .scratch = memory->scratch,
                                            }));
    AVL_TRY(avl_kv_move(sequence->device, &(avl_kv_move_args_t){.keys = avl_pages_keys(pages),
                                                                .values = avl_pages_values(pages),
                                                                .sources = memory->moves,
                                                                .targets = targets,
                                                                .rows = held,
                                                                .row_width = view.row_stride,
                                                                .dtype = view.dtype,
                                                                .heads = view.kv_heads}));
    avl_sequence_cut_text(sequence, pages, layer, shape->exempt_rows + held);
    return AVL_OK;
}
