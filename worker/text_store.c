#include "worker/text_store.h"

#include <float.h>
#include <math.h>
#include <string.h>

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

int64_t avl_text_store_move_entries(int32_t context_rows, int kv_heads) {
    return 2 * (int64_t)context_rows * kv_heads;
}

int64_t avl_text_store_host_entries(int32_t context_rows, int kv_heads) {
    /* Scores and positions of whole pages, the kept rows, and the ranked ones with their scores. */
    return 2 * ((int64_t)context_rows + 2 * AVL_PAGE_ROWS) * kv_heads + 3 * (int64_t)context_rows;
}

/* ---- eviction from the prompt ---- */

/* Scores of one layer's evictable rows, and what comes of them. */
typedef struct eviction {
    avl_sequence_t *sequence;
    avl_pages_t *pages;
    avl_segment_rows_t *text;
    int first_page; /* of the segment's, with the first of these rows */
    int kv_heads;
    int32_t exempt, seen, held;
    float *scores;         /* [pages from first_page on][Hk][AVL_PAGE_ROWS] */
    int32_t *positions;    /* the same */
    int32_t *kept;         /* [held] */
    struct ranked *ranked; /* [seen] */
} eviction_t;

typedef struct ranked {
    float score;
    int32_t index;
} ranked_t;

static size_t page_numbers(const eviction_t *eviction) {
    return (size_t)eviction->kv_heads * AVL_PAGE_ROWS;
}

/* Where row `index` of those stands in the copies. */
static size_t copy_place(const eviction_t *eviction, int32_t index, int head) {
    int32_t row = eviction->exempt + index;
    size_t page = (size_t)(row / AVL_PAGE_ROWS - eviction->first_page);
    return (page * (size_t)eviction->kv_heads + (size_t)head) * AVL_PAGE_ROWS +
           (size_t)(row % AVL_PAGE_ROWS);
}

/* Brings whole pages of scores here, or of scores and positions back. */
static avl_status_t copy_pages(const eviction_t *eviction, int page_count, bool back) {
    avl_device_t *device = eviction->sequence->device;
    size_t numbers = page_numbers(eviction), bytes = numbers * sizeof(float);
    for (int i = 0; i < page_count; i++) {
        size_t from = (size_t)i * numbers;
        size_t at = (size_t)eviction->text->pages[eviction->first_page + i] * numbers;
        float *scores = avl_pages_scores(eviction->pages) + at;
        int32_t *positions = avl_pages_positions(eviction->pages) + at;
        if (back) {
            AVL_TRY(device->ops->upload(device, scores, eviction->scores + from, bytes));
            AVL_TRY(device->ops->upload(device, positions, eviction->positions + from, bytes));
        } else {
            AVL_TRY(device->ops->download(device, eviction->scores + from, scores, bytes));
            AVL_TRY(device->ops->download(device, eviction->positions + from, positions, bytes));
        }
    }
    return AVL_OK;
}

/* The order of merit: the larger score, then the earlier row; a NaN is worst. */
static bool goes_before(const ranked_t *a, const ranked_t *b) {
    bool a_is_number = a->score == a->score, b_is_number = b->score == b->score;
    if (a_is_number != b_is_number)
        return a_is_number;
    if (a_is_number && a->score != b->score)
        return a->score > b->score;
    return a->index < b->index;
}

/* Brings the worst of a heap to its top, given that only the one at `place` may be out of place. */
static void sink(ranked_t *heap, int32_t count, int32_t place) {
    for (;;) {
        int32_t worst = place;
        for (int32_t child = 2 * place + 1; child <= 2 * place + 2 && child < count; child++) {
            if (goes_before(&heap[worst], &heap[child]))
                worst = child;
        }
        if (worst == place)
            return;
        ranked_t moved = heap[place];
        heap[place] = heap[worst];
        heap[worst] = moved;
        place = worst;
    }
}

/* The newest rows and the best of the others, ascending. */
static void choose_kept(eviction_t *eviction, int head) {
    int32_t recent = avl_text_store_budget(&eviction->sequence->shape, eviction->seen) / 2;
    int32_t older = eviction->seen - recent, heavy = eviction->held - recent;
    /* The best so far, the worst of them on top: no memory is asked for, as qsort would. */
    ranked_t *best = eviction->ranked;
    for (int32_t i = 0; i < older; i++) {
        ranked_t row = {eviction->scores[copy_place(eviction, i, head)], i};
        if (i < heavy) {
            best[i] = row;
            for (int32_t j = heavy / 2; i == heavy - 1 && j-- > 0;)
                sink(best, heavy, j);
        } else if (goes_before(&row, &best[0])) {
            best[0] = row;
            sink(best, heavy, 0);
        }
    }
    int32_t *taken = eviction->kept, count = 0;
    memset(taken, 0, (size_t)eviction->seen * sizeof *taken);
    for (int32_t i = 0; i < heavy; i++)
        taken[best[i].index] = 1;
    for (int32_t i = 0; i < eviction->seen; i++) {
        if (taken[i] || i >= older)
            eviction->kept[count++] = i;
    }
}

/* Fills the lists [held, Hk] of sources and targets, and moves scores and positions in the copies.
 */
static void plan_moves(eviction_t *eviction, int32_t *sources, int32_t *targets) {
    const int32_t *slots = eviction->text->slots.host + eviction->exempt;
    for (int head = 0; head < eviction->kv_heads; head++) {
        choose_kept(eviction, head);
        for (int32_t i = 0; i < eviction->held; i++) {
            size_t entry = (size_t)i * (size_t)eviction->kv_heads + (size_t)head;
            size_t to = copy_place(eviction, i, head);
            size_t from = copy_place(eviction, eviction->kept[i], head);
            sources[entry] = slots[eviction->kept[i]];
            targets[entry] = slots[i];
            eviction->scores[to] = eviction->scores[from];
            eviction->positions[to] = eviction->positions[from];
        }
    }
}

static avl_status_t move_rows(eviction_t *eviction, avl_row_list_t lists) {
    avl_device_t *device = eviction->sequence->device;
    size_t entries = (size_t)eviction->held * (size_t)eviction->kv_heads;
    int page_count = eviction->text->page_count - eviction->first_page;
    AVL_TRY(copy_pages(eviction, page_count, false));
    plan_moves(eviction, lists.host, lists.host + entries);
    if (!device->is_host)
        AVL_TRY(device->ops->upload(device, lists.device, lists.host,
                                    2 * entries * sizeof *lists.host));
    avl_kv_view_t view = avl_pages_view(eviction->pages);
    AVL_TRY(avl_kv_move(device, &(avl_kv_move_args_t){.keys = avl_pages_keys(eviction->pages),
                                                      .values = avl_pages_values(eviction->pages),
                                                      .sources = lists.device,
                                                      .targets = lists.device + entries,
                                                      .rows = eviction->held,
                                                      .row_width = view.row_stride,
                                                      .dtype = view.dtype,
                                                      .heads = eviction->kv_heads}));
    AVL_TRY(copy_pages(eviction, page_count, true));
    /* The memory is used again. */
    return device->ops->synchronize(device);
}

avl_status_t avl_text_store_evict(avl_sequence_t *sequence, avl_pages_t *pages, int layer,
                                  const avl_text_store_memory_t *memory) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    avl_segment_rows_t *text = &sequence->layers[layer].text;
    eviction_t eviction = {.sequence = sequence,
                           .pages = pages,
                           .text = text,
                           .first_page = shape->exempt_rows / AVL_PAGE_ROWS,
                           .kv_heads = avl_pages_view(pages).kv_heads,
                           .exempt = shape->exempt_rows,
                           .seen = shape->text_rows - shape->exempt_rows};
    eviction.held = avl_text_store_held(shape, eviction.seen);
    AVL_ASSERT(text->slots.count == shape->text_rows);
    if (eviction.held == eviction.seen)
        return AVL_OK;
    size_t numbers = (size_t)(text->page_count - eviction.first_page) * page_numbers(&eviction);
    eviction.scores = (float *)(void *)memory->host;
    eviction.positions = (int32_t *)(void *)(eviction.scores + numbers);
    eviction.kept = eviction.positions + numbers;
    eviction.ranked = (ranked_t *)(void *)(eviction.kept + eviction.seen);
    AVL_TRY(move_rows(&eviction, memory->moves));
    avl_sequence_cut_text(sequence, pages, layer, eviction.exempt + eviction.held);
    return AVL_OK;
}
