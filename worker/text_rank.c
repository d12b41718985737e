#include "worker/text_rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/text.h"
#include "worker/visual_store.h"

/* Weights of this many rows for every run are ranked in one go. */
#define ROWS_PER_RUN 256

struct avl_text_rank {
    avl_attend_options_t options;
    int buffer_heads; /* of `weights`: those of the model when ranks share some, else this rank's */
    int32_t items_max;
    int64_t weights_max;
    float *weights;      /* device [weights_max] */
    float *host_weights; /* the same memory when the device is the host */
    float *totals;       /* device [runs_max + items_max, Hq, 2] */
    int32_t *holes;      /* device [indices_max, layer_count, 2, Hk] */
    avl_text_store_memory_t eviction;
    avl_text_row_t *items;           /* [items_max] */
    avl_decode_sequence_t *scorings; /* [items_max]: of those that are prompt rows */
};

static int kv_heads_of(const avl_attend_options_t *options) {
    return avl_head_map_kv_heads(&options->head_map);
}

static int buffer_heads_of(const avl_attend_options_t *options) {
    return options->kv_heads_shared ? options->kv_heads_all : kv_heads_of(options);
}

static int64_t weights_max_of(const avl_attend_options_t *options) {
    int64_t rows = (int64_t)ROWS_PER_RUN * options->runs_max;
    return buffer_heads_of(options) * (rows > options->context_rows ? rows : options->context_rows);
}

static int64_t totals_count(const avl_attend_options_t *options) {
    return (int64_t)4 * options->runs_max * options->head_map.query_heads;
}

static int64_t hole_count(const avl_attend_options_t *options) {
    return (int64_t)2 * options->indices_max * options->layer_count * kv_heads_of(options);
}

int64_t avl_text_rank_bytes(const avl_attend_options_t *options) {
    int heads = kv_heads_of(options);
    int64_t numbers = weights_max_of(options) + totals_count(options) + hole_count(options) +
                      2 * avl_text_store_entries(options->context_rows, heads);
    return numbers * (int64_t)sizeof(float);
}

/* `host_p` gets the same memory on a host, else NULL or memory of its own. */
static avl_status_t allocate(const avl_attend_options_t *options, int64_t count, bool mirrored,
                             void *device_p, void *host_p) {
    void *memory;
    AVL_TRY(options->device->ops->allocate(options->device, (size_t)count * sizeof(float),
                                           "ranks of text rows", &memory));
    memcpy(device_p, &memory, sizeof memory);
    if (!mirrored)
        return AVL_OK;
    if (!options->device->is_host)
        return avl_alloc_aligned((size_t)count, sizeof(float), "ranks of text rows", host_p);
    memcpy(host_p, &memory, sizeof memory);
    return AVL_OK;
}

avl_status_t avl_text_rank_create(const avl_attend_options_t *options, avl_text_rank_t **rank_p) {
    avl_text_rank_t *rank;
    AVL_TRY(avl_alloc(1, sizeof *rank, "ranks of text rows", &rank));
    rank->options = *options;
    rank->buffer_heads = buffer_heads_of(options);
    rank->items_max = options->runs_max; /* as many as attention is prepared for */
    rank->weights_max = weights_max_of(options);
    int64_t moves = avl_text_store_entries(options->context_rows, kv_heads_of(options));
    size_t items = (size_t)rank->items_max;
    avl_status_t status;
    AVL_TRY_GOTO(status,
                 allocate(options, rank->weights_max, true, &rank->weights, &rank->host_weights),
                 err_destroy);
    AVL_TRY_GOTO(status, allocate(options, moves, false, &rank->eviction.moves, NULL), err_destroy);
    AVL_TRY_GOTO(status, allocate(options, moves, false, &rank->eviction.scratch, NULL),
                 err_destroy);
    AVL_TRY_GOTO(status, allocate(options, totals_count(options), false, &rank->totals, NULL),
                 err_destroy);
    AVL_TRY_GOTO(status, allocate(options, hole_count(options), false, &rank->holes, NULL),
                 err_destroy);
    AVL_TRY_GOTO(status, avl_alloc_aligned(items, sizeof *rank->items, "text rows", &rank->items),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 avl_alloc_aligned(items, sizeof *rank->scorings, "text rows", &rank->scorings),
                 err_destroy);
    *rank_p = rank;
    return AVL_OK;
err_destroy:
    avl_text_rank_destroy(rank);
    return status;
}

void avl_text_rank_destroy(avl_text_rank_t *rank) {
    if (rank == NULL)
        return;
    avl_device_t *device = rank->options.device;
    if (!device->is_host)
        free(rank->host_weights);
    void *const memory[] = {rank->weights, rank->eviction.moves, rank->eviction.scratch,
                            rank->totals, rank->holes};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) {
        if (memory[i] != NULL)
            device->ops->release(device, memory[i]);
    }
    free(rank->items);
    free(rank->scorings);
    free(rank);
}

/* ---- holes ---- */

/* Rows of text that may be evicted, before the sequence's row at `position`, an answer's. */
static int32_t seen_before(const avl_sequence_t *sequence, int32_t position) {
    return position - sequence->shape.visual_rows - sequence->shape.exempt_rows;
}

bool avl_text_rank_has_hole(const avl_sequence_t *sequence, int layer) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t held = avl_text_store_held(shape, seen_before(sequence, sequence->rows_done));
    return sequence->layers[layer].text.slots.count - shape->exempt_rows > held;
}

static int32_t *holes_of(const avl_text_rank_t *rank, const avl_sequence_t *sequence, int layer) {
    int64_t place = (int64_t)sequence->index * rank->options.layer_count + layer;
    return rank->holes + 2 * place * kv_heads_of(&rank->options);
}

int32_t avl_text_rank_hole_slot(const avl_text_rank_t *rank, const avl_sequence_t *sequence,
                                int layer) {
    int64_t slots = holes_of(rank, sequence, layer) - rank->holes + kv_heads_of(&rank->options);
    return (int32_t)(-1 - slots);
}

const int32_t *avl_text_rank_holes(const avl_text_rank_t *rank) {
    return rank->holes;
}

float *avl_text_rank_totals(const avl_text_rank_t *rank, int index) {
    return rank->totals + (int64_t)2 * index * rank->options.head_map.query_heads;
}

/* ---- ranking ---- */

typedef struct pass {
    avl_text_rank_t *rank;
    const avl_attention_call_t *call;
    int layer;
    avl_status_t own;
    int32_t count, scoring_count;
    int64_t floats;
} pass_t;

static bool sums_on_host(const avl_attend_options_t *options) {
    return avl_group_gpus_name(options->group) == NULL;
}

/* The rows' weights, into the buffer. */
static avl_status_t weigh(const pass_t *pass) {
    avl_text_rank_t *rank = pass->rank;
    const avl_attend_options_t *options = &rank->options;
    avl_device_t *device = options->device;
    size_t bytes = (size_t)pass->floats * sizeof(float);
    float scale = (float)(1.0 / sqrt(options->head_width));
    if (pass->scoring_count > 0)
        AVL_TRY(avl_decode_attention(device, &(avl_decode_attention_args_t){
                                                 .query = pass->call->query,
                                                 .query_stride = pass->call->query_stride,
                                                 .kv = avl_pages_view(options->pages),
                                                 .heads = options->head_map,
                                                 .sequences = rank->scorings,
                                                 .sequence_count = pass->scoring_count,
                                                 .scale = scale,
                                             }));
    if (options->kv_heads_shared) {
        /* Heads of other ranks count nothing here. */
        memset(rank->host_weights, 0, bytes);
        if (!device->is_host)
            AVL_TRY(device->ops->upload(device, rank->weights, rank->host_weights, bytes));
    }
    AVL_TRY(avl_text_weights(
        device, &(avl_text_weights_args_t){
                    .query = pass->call->query,
                    .query_stride = pass->call->query_stride,
                    .kv = avl_pages_view(options->pages),
                    .heads = options->head_map,
                    .positions = avl_pages_positions(options->pages),
                    .rows = rank->items,
                    .count = pass->count,
                    .first_head = options->kv_heads_shared ? options->kv_head_first : 0,
                    .scale = scale,
                }));
    if (options->kv_heads_shared && sums_on_host(options) && !device->is_host)
        AVL_TRY(device->ops->download(device, rank->host_weights, rank->weights, bytes));
    return AVL_OK;
}

static avl_status_t update(const pass_t *pass) {
    avl_text_rank_t *rank = pass->rank;
    const avl_attend_options_t *options = &rank->options;
    avl_device_t *device = options->device;
    bool sent = options->kv_heads_shared && sums_on_host(options) && !device->is_host;
    if (sent)
        AVL_TRY(device->ops->upload(device, rank->weights, rank->host_weights,
                                    (size_t)pass->floats * sizeof(float)));
    AVL_TRY(avl_text_update(device,
                            &(avl_text_update_args_t){
                                .scores = avl_pages_scores(options->pages),
                                .positions = avl_pages_positions(options->pages),
                                .kv_heads = kv_heads_of(options),
                                .rows = rank->items,
                                .count = pass->count,
                                .first_head = options->kv_heads_shared ? options->kv_head_first : 0,
                                .share = 1.0f / (float)options->head_map.group,
                            }));
    /* The host's copy is used again. */
    return sent ? device->ops->synchronize(device) : AVL_OK;
}

/* Ranks the items at hand. Returns only the collective's own failure. */
static avl_status_t flush(pass_t *pass) {
    avl_text_rank_t *rank = pass->rank;
    if (pass->count == 0)
        return AVL_OK;
    if (pass->own == AVL_OK)
        pass->own = weigh(pass);
    avl_group_t *group = rank->options.group;
    if (rank->options.kv_heads_shared)
        AVL_TRY(sums_on_host(&rank->options)
                    ? avl_group_all_reduce(group, rank->host_weights, pass->floats)
                    : avl_group_gpus_merge(group, rank->weights, pass->floats));
    if (pass->own == AVL_OK)
        pass->own = update(pass);
    pass->count = pass->scoring_count = 0;
    pass->floats = 0;
    return AVL_OK;
}

/* Room for an item of `rows` rows. */
static avl_status_t make_room(pass_t *pass, int32_t rows) {
    const avl_text_rank_t *rank = pass->rank;
    if (pass->count < rank->items_max &&
        pass->floats + (int64_t)rank->buffer_heads * rows <= rank->weights_max)
        return AVL_OK;
    return flush(pass);
}

static avl_text_row_t *add_item(pass_t *pass, const avl_sequence_t *sequence, int32_t query_row,
                                int32_t rows) {
    avl_text_rank_t *rank = pass->rank;
    const avl_sequence_shape_t *shape = &sequence->shape;
    const avl_attention_params_t *params = &shape->attention;
    avl_text_row_t *item = &rank->items[pass->count++];
    *item = (avl_text_row_t){
        .query_row = query_row,
        .rows = sequence->layers[pass->layer].text.slots.device + shape->exempt_rows,
        .row_count = rows,
        .own = rows - 1,
        .weights = rank->weights + pass->floats,
        .holes = holes_of(rank, sequence, pass->layer),
        .quantile =
            params->text_policy == AVL_TEXT_H2O ? -1.0f : (float)(1.0 - params->text_keep_ratio),
    };
    pass->floats += (int64_t)rank->buffer_heads * rows;
    return item;
}

static int32_t visible_first(const avl_text_rank_t *rank, int32_t position) {
    int32_t window = rank->options.window;
    return window > 0 && position >= window ? position - window + 1 : 0;
}

static avl_status_t add_decode(pass_t *pass, const avl_run_t *run, int index, int32_t position) {
    const avl_sequence_t *sequence = run->sequence;
    int32_t before = seen_before(sequence, position);
    int32_t rows = avl_text_store_held(&sequence->shape, before) + 1;
    AVL_TRY(make_room(pass, rows));
    avl_text_row_t *item = add_item(pass, sequence, run->first_row, rows);
    item->own = sequence->layers[pass->layer].filled_hole ? -1 : rows - 1;
    item->first_position = visible_first(pass->rank, position);
    item->totals = avl_text_rank_totals(pass->rank, index);
    item->quantile_of_own = 1;
    if (rows > avl_text_store_held(&sequence->shape, before + 1))
        item->recent_position = avl_text_store_recent(sequence, before + 1);
    return AVL_OK;
}

/* What the prompt row at `position`, text row `index` of its sequence, looks back at. */
static void fill_spans(const avl_text_rank_t *rank, const avl_sequence_t *sequence, int layer,
                       int32_t position, int32_t index, avl_row_span_t *spans) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    const avl_row_list_t *text = &sequence->layers[layer].text.slots;
    const avl_row_list_t *visual = &sequence->layers[layer].visual.slots;
    int32_t first = visible_first(rank, position);
    int32_t hidden = avl_visual_store_hidden(sequence->text_positions, index, first);
    int32_t from = hidden < shape->exempt_rows ? hidden : shape->exempt_rows;
    spans[AVL_SPAN_SYSTEM] = (avl_row_span_t){text->device + from, shape->exempt_rows - from};
    from = hidden > shape->exempt_rows ? hidden : shape->exempt_rows;
    spans[AVL_SPAN_TEXT] = (avl_row_span_t){text->device + from, index + 1 - from};
    const int32_t *positions = avl_sequence_visual_positions(sequence, layer);
    int32_t end = avl_visual_store_hidden(positions, visual->count, position);
    hidden = avl_visual_store_hidden(positions, end, first);
    spans[AVL_SPAN_VISUAL] = (avl_row_span_t){visual->device + hidden, end - hidden};
}

static avl_status_t add_prompt(pass_t *pass, const avl_run_t *run, const int32_t *positions) {
    avl_text_rank_t *rank = pass->rank;
    const avl_sequence_t *sequence = run->sequence;
    const avl_sequence_shape_t *shape = &sequence->shape;
    bool follows = false;
    for (int32_t i = 0; i < run->row_count; i++) {
        int32_t position = positions[run->first_row + i];
        if (avl_sequence_is_visual(sequence, position))
            continue;
        int32_t index =
            avl_visual_store_hidden(sequence->text_positions, shape->text_rows, position);
        int32_t rows = index + 1 - shape->exempt_rows;
        if (rows < 1)
            continue;
        AVL_TRY(make_room(pass, rows));
        avl_text_row_t *item = add_item(pass, sequence, run->first_row + i, rows);
        item->first_position = visible_first(rank, position);
        item->totals = avl_text_rank_totals(rank, rank->options.runs_max + pass->count - 1);
        item->follows = follows && pass->count > 1;
        follows = true;
        avl_decode_sequence_t *scoring = &rank->scorings[pass->scoring_count++];
        *scoring = (avl_decode_sequence_t){
            .query_row = run->first_row + i,
            .totals = avl_text_rank_totals(rank, rank->options.runs_max + pass->count - 1)};
        if (pass->own == AVL_OK)
            fill_spans(rank, sequence, pass->layer, position, index, scoring->spans);
    }
    return AVL_OK;
}

avl_status_t avl_text_rank_run(avl_text_rank_t *rank, const avl_attention_call_t *call, int layer,
                               const avl_run_t *runs, int run_count, const int32_t *positions,
                               avl_status_t *own_p) {
    pass_t pass = {.rank = rank, .call = call, .layer = layer, .own = *own_p};
    for (int i = 0; i < run_count; i++) {
        const avl_run_t *run = &runs[i];
        const avl_sequence_shape_t *shape = &run->sequence->shape;
        if (!shape->evicts_text)
            continue;
        if (run->decode)
            AVL_TRY(add_decode(&pass, run, i, positions[run->first_row]));
        else if (avl_text_store_evicts_prompt(shape))
            AVL_TRY(add_prompt(&pass, run, positions));
    }
    AVL_TRY(flush(&pass));
    *own_p = pass.own;
    return AVL_OK;
}

avl_status_t avl_text_rank_evict(avl_text_rank_t *rank, int layer, const avl_run_t *runs,
                                 int run_count) {
    for (int i = 0; i < run_count; i++) {
        avl_sequence_t *sequence = runs[i].sequence;
        if (!runs[i].decode && avl_text_store_evicts_prompt(&sequence->shape) &&
            avl_run_ends_prompt(&runs[i]))
            AVL_TRY(avl_text_store_evict(sequence, rank->options.pages, layer, &rank->eviction));
    }
    return AVL_OK;
}
