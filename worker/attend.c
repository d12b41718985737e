#include "worker/attend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/diversity.h"
#include "kernels/elementwise.h"
#include "kernels/lists.h"
#include "worker/mass.h"
#include "worker/text_rank.h"
#include "worker/visual_store.h"

struct avl_attend {
    avl_attend_options_t options;
    float scale;
    avl_selection_t *selection;
    avl_text_rank_t *text_rank;
    avl_mass_t *mass;
    avl_run_t *runs; /* [runs_max] */
    int run_count;
    int32_t rows;
    bool evicts_text;          /* some run's sequence does */
    bool positions_sent;       /* to device_positions */
    int32_t *positions;        /* [rows_max] of the step's rows */
    int32_t *device_positions; /* the same memory when the device is the host */
    int32_t
        *slots; /* [layer_count, rows_max]: one line a layer, because an upload may be read late */
    int32_t *device_slots;            /* the same memory when the device is the host */
    avl_attention_sequence_t *chunks; /* [runs_max] */
    avl_decode_sequence_t *decodes;   /* [runs_max] */
    avl_decode_sequence_t *scorings;  /* [runs_max] */
    avl_selection_item_t *items;      /* [runs_max] */
    const avl_run_t **item_runs;      /* [runs_max] */
    float *row_scores;                /* device: one row's weights over visual rows */
    avl_publish_item_t *pieces;       /* [3 * runs_max + 2] of lists that grew in this layer */
    int piece_count;
    int item_count;
    avl_choose_item_t *choices; /* [runs_max * most choices of a run] */
};

/* A run's choices in a layer, at most: its store in every layer, or store and survivors. */
static size_t choices_max(const avl_attend_options_t *options) {
    return (size_t)options->runs_max *
           (size_t)(options->layer_count < 2 ? 2 : options->layer_count);
}

int64_t avl_attend_bytes(const avl_attend_options_t *options) {
    return avl_selection_bytes(options->scores_max) + avl_text_rank_bytes(options) +
           avl_mass_bytes(options) + options->sequence_scores_max * (int64_t)sizeof(float) +
           (int64_t)(options->layer_count + 1) * options->rows_max * (int64_t)sizeof(int32_t) +
           (int64_t)(choices_max(options) * sizeof(avl_choose_item_t));
}

avl_status_t avl_attend_create(const avl_attend_options_t *options, avl_attend_t **attend_p) {
    avl_attend_t *attend;
    AVL_TRY(avl_alloc(1, sizeof *attend, "attention state", &attend));
    attend->options = *options;
    attend->scale = (float)(1.0 / sqrt(options->head_width));
    size_t slots = (size_t)options->layer_count * (size_t)options->rows_max;
    size_t rows = (size_t)options->rows_max;
    size_t runs = (size_t)options->runs_max;
    const struct {
        size_t count, item_bytes;
        void *memory_p;
    } arrays[] = {
        {slots, sizeof *attend->slots, &attend->slots},
        {rows, sizeof *attend->positions, &attend->positions},
        {runs, sizeof *attend->runs, &attend->runs},
        {runs, sizeof *attend->chunks, &attend->chunks},
        {runs, sizeof *attend->decodes, &attend->decodes},
        {runs, sizeof *attend->scorings, &attend->scorings},
        {runs, sizeof *attend->items, &attend->items},
        {runs, sizeof *attend->item_runs, &attend->item_runs},
        {3 * runs + 2, sizeof *attend->pieces, &attend->pieces},
        {choices_max(options), sizeof *attend->choices, &attend->choices},
    };
    avl_status_t status;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        AVL_TRY_GOTO(status,
                     avl_alloc_aligned(arrays[i].count, arrays[i].item_bytes, "attention state",
                                       arrays[i].memory_p),
                     err_destroy);
    attend->device_slots = attend->slots;
    void *memory;
    AVL_TRY_GOTO(status,
                 options->device->ops->allocate(
                     options->device, (size_t)options->sequence_scores_max * sizeof(float),
                     "attention scores of a row", &memory),
                 err_destroy);
    attend->row_scores = memory;
    attend->device_positions = attend->positions;
    if (!options->device->is_host) {
        AVL_TRY_GOTO(status,
                     options->device->ops->allocate(options->device, slots * sizeof(int32_t),
                                                    "slots of a step", &memory),
                     err_destroy);
        attend->device_slots = memory;
        AVL_TRY_GOTO(status,
                     options->device->ops->allocate(options->device, rows * sizeof(int32_t),
                                                    "positions of a step", &memory),
                     err_destroy);
        attend->device_positions = memory;
    }
    AVL_TRY_GOTO(status, avl_text_rank_create(options, &attend->text_rank), err_destroy);
    AVL_TRY_GOTO(status, avl_mass_create(options, &attend->mass), err_destroy);
    AVL_TRY_GOTO(status,
                 avl_selection_create(options->device, options->group, options->scores_max,
                                      options->runs_max, &attend->selection),
                 err_destroy);
    *attend_p = attend;
    return AVL_OK;
err_destroy:
    avl_attend_destroy(attend);
    return status;
}

void avl_attend_destroy(avl_attend_t *attend) {
    if (attend == NULL)
        return;
    avl_selection_destroy(attend->selection);
    avl_text_rank_destroy(attend->text_rank);
    avl_mass_destroy(attend->mass);
    if (attend->device_slots != NULL && attend->device_slots != attend->slots)
        attend->options.device->ops->release(attend->options.device, attend->device_slots);
    if (attend->row_scores != NULL)
        attend->options.device->ops->release(attend->options.device, attend->row_scores);
    if (attend->device_positions != NULL && attend->device_positions != attend->positions)
        attend->options.device->ops->release(attend->options.device, attend->device_positions);
    free(attend->slots);
    free(attend->positions);
    free(attend->runs);
    free(attend->chunks);
    free(attend->decodes);
    free(attend->scorings);
    free(attend->items);
    free(attend->item_runs);
    free(attend->pieces);
    free(attend->choices);
    free(attend);
}

void avl_attend_begin(avl_attend_t *attend, const avl_run_t *runs, int run_count, int32_t rows) {
    AVL_ASSERT(run_count <= attend->options.runs_max && rows <= attend->options.rows_max);
    memcpy(attend->runs, runs, (size_t)run_count * sizeof *runs);
    attend->run_count = run_count;
    attend->rows = rows;
    attend->evicts_text = attend->positions_sent = false;
    for (int i = 0; i < run_count; i++) {
        avl_run_t *run = &attend->runs[i];
        run->end_position = run->first_position + run->row_count;
        attend->evicts_text |= run->sequence->shape.evicts_text;
        for (int32_t row = 0; row < run->row_count; row++)
            attend->positions[run->first_row + row] = run->first_position + row;
    }
}

/* List entries from `first` on, for the device. */
static void add_piece(avl_attend_t *attend, const avl_row_list_t *list, int32_t first) {
    if (!attend->options.device->is_host && first < list->count)
        attend->pieces[attend->piece_count++] = (avl_publish_item_t){
            .target = list->device + first,
            .source = list->host + first,
            .count = list->count - first,
        };
}

/* Gives the run's rows their slots. */
static avl_status_t place_run(avl_attend_t *attend, const avl_run_t *run, int layer_index,
                              int32_t *slots) {
    avl_sequence_t *sequence = run->sequence;
    avl_sequence_layer_t *layer = &sequence->layers[layer_index];
    int32_t text = layer->text.slots.count, visual = layer->visual.slots.count;
    int32_t order = layer->order.count;
    const int32_t *positions = attend->positions + run->first_row;
    layer->filled_hole =
        run->decode && sequence->shape.evicts_text && avl_text_rank_has_hole(sequence, layer_index);
    if (layer->filled_hole) {
        slots[0] = avl_text_rank_hole_slot(attend->text_rank, sequence, layer_index);
        return AVL_OK;
    }
    for (int32_t i = 0; i < run->row_count; i++) {
        slots[i] = avl_sequence_append(sequence, attend->options.pages, layer_index, positions[i]);
        if (slots[i] < 0)
            return avl_fail(AVL_ERR_INTERNAL,
                            "the page pool (%lld pages) ran dry at request %llu, layer %d, row %d",
                            (long long)avl_pages_counts(attend->options.pages).total,
                            (unsigned long long)sequence->request_id, layer_index, positions[i]);
    }
    add_piece(attend, &layer->text.slots, text);
    if (run->decode)
        return AVL_OK;
    add_piece(attend, &layer->visual.slots, visual);
    add_piece(attend, &layer->order, order);
    return AVL_OK;
}

static avl_status_t write_rows(avl_attend_t *attend, const avl_attention_call_t *call) {
    const avl_attend_options_t *options = &attend->options;
    size_t line = (size_t)call->layer * (size_t)options->rows_max;
    int32_t *slots = attend->slots + line;
    attend->piece_count = 0;
    for (int i = 0; i < attend->run_count; i++)
        AVL_TRY(
            place_run(attend, &attend->runs[i], call->layer, slots + attend->runs[i].first_row));
    avl_row_list_t step = {slots, attend->device_slots + line, attend->rows};
    add_piece(attend, &step, 0);
    avl_row_list_t positions = {attend->positions, attend->device_positions, attend->rows};
    if (attend->evicts_text && !attend->positions_sent)
        add_piece(attend, &positions, 0);
    attend->positions_sent = attend->evicts_text;
    AVL_TRY(avl_publish(options->device, &(avl_publish_args_t){.items = attend->pieces,
                                                               .item_count = attend->piece_count}));
    avl_kv_view_t view = avl_pages_view(options->pages);
    /* Where rows stand matters to sequences that evict text alone. */
    bool notes = attend->evicts_text;
    return avl_kv_write(options->device,
                        &(avl_kv_write_args_t){
                            .key = call->key,
                            .value = call->value,
                            .source_stride = call->kv_stride,
                            .slots = attend->device_slots + line,
                            .rows = attend->rows,
                            .keys = avl_pages_keys(options->pages),
                            .values = avl_pages_values(options->pages),
                            .row_width = view.row_stride,
                            .dtype = view.dtype,
                            .kv_heads = view.kv_heads,
                            .redirects = notes ? avl_text_rank_holes(attend->text_rank) : NULL,
                            .positions = notes ? attend->device_positions : NULL,
                            .row_positions = avl_pages_positions(options->pages),
                        });
}

static avl_status_t attend_chunks(avl_attend_t *attend, const avl_attention_call_t *call) {
    const avl_attend_options_t *options = &attend->options;
    int count = 0;
    for (int i = 0; i < attend->run_count; i++) {
        const avl_run_t *run = &attend->runs[i];
        if (run->decode)
            continue;
        const avl_row_list_t *order = &run->sequence->layers[call->layer].order;
        attend->chunks[count++] = (avl_attention_sequence_t){
            .first_query = run->first_row,
            .query_count = run->row_count,
            .row_count = order->count,
            .rows = order->device,
        };
    }
    if (count == 0)
        return AVL_OK;
    int64_t width = (int64_t)options->head_map.query_heads * options->head_width;
    return avl_attention(options->device, &(avl_attention_args_t){
                                              .query = call->query,
                                              .query_stride = call->query_stride,
                                              .kv = avl_pages_view(options->pages),
                                              .heads = options->head_map,
                                              .sequences = attend->chunks,
                                              .sequence_count = count,
                                              .output = call->output,
                                              .output_stride = width,
                                              .scale = attend->scale,
                                              .window = options->window,
                                              .causal = 1,
                                          });
}

static avl_status_t attend_singles(avl_attend_t *attend, const avl_attention_call_t *call,
                                   const avl_decode_sequence_t *sequences, int count,
                                   void *output) {
    const avl_attend_options_t *options = &attend->options;
    if (count == 0)
        return AVL_OK;
    int64_t width = (int64_t)options->head_map.query_heads * options->head_width;
    return avl_decode_attention(options->device,
                                &(avl_decode_attention_args_t){
                                    .query = call->query,
                                    .query_stride = call->query_stride,
                                    .kv = avl_pages_view(options->pages),
                                    .heads = options->head_map,
                                    .sequences = sequences,
                                    .sequence_count = count,
                                    .output = output,
                                    .output_stride = width,
                                    .scale = attend->scale,
                                    .text_positions = avl_pages_positions(options->pages),
                                });
}

/* The first position that a query at `position` sees. */
static int32_t visible_first(const avl_attend_t *attend, int32_t position) {
    int32_t window = attend->options.window;
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* The row's system and text spans: the two parts of the text list without what the window hides.
 * Behind the exempt rows an answer's row finds rows of each head's own: `*text_first_p`, before
 * which they are hidden one by one. */
static void fill_text_spans(const avl_attend_t *attend, const avl_run_t *run, int layer,
                            int32_t position, avl_row_span_t *spans, int32_t *text_first_p) {
    const avl_sequence_t *sequence = run->sequence;
    const avl_row_list_t *text = &sequence->layers[layer].text.slots;
    bool ordered = !sequence->shape.evicts_text || !run->decode;
    int32_t exempt = ordered ? sequence->shape.system_rows : sequence->shape.exempt_rows;
    int32_t visible = visible_first(attend, position);
    int32_t hidden =
        avl_visual_store_hidden(sequence->text_positions, ordered ? text->count : exempt, visible);
    int32_t first = hidden < exempt ? hidden : exempt;
    spans[AVL_SPAN_SYSTEM] = (avl_row_span_t){text->device + first, exempt - first};
    first = hidden > exempt ? hidden : exempt;
    spans[AVL_SPAN_TEXT] = (avl_row_span_t){text->device + first, text->count - first};
    *text_first_p = ordered ? 0 : visible;
}

/* Lays out for whom scores choose in this layer: prompts that end, and decode rows that update. */
static avl_status_t begin_selection(avl_attend_t *attend, int layer) {
    attend->item_count = 0;
    for (int i = 0; i < attend->run_count; i++) {
        const avl_run_t *run = &attend->runs[i];
        const avl_sequence_shape_t *shape = &run->sequence->shape;
        int32_t first = visible_first(attend, run->end_position - 1);
        bool filters = shape->filter_layers == layer + 1;
        if (!avl_visual_store_ranks(shape))
            continue;
        if (run->decode && !avl_visual_store_reselects(shape, run->sequence->decode_steps + 1))
            continue;
        if (!run->decode && (!avl_run_ends_prompt(run) || (!shape->selects && !filters)))
            continue;
        if (!run->decode && avl_sequence_selects_once(shape) &&
            layer + 1 < attend->options.layer_count)
            continue;
        attend->item_runs[attend->item_count] = run;
        attend->items[attend->item_count++] = (avl_selection_item_t){
            .count = run->decode ? shape->store_rows : avl_sequence_visual_rows(shape, layer),
            .unseen = avl_visual_store_hidden_rows(run->sequence, layer, first, NULL),
        };
    }
    return avl_selection_begin(attend->selection, attend->items, attend->item_count);
}

/* Under a sliding window the host must know which stored rows are hidden. */
static avl_status_t settle_hidden(avl_attend_t *attend, int layer) {
    for (int i = 0; i < attend->run_count; i++) {
        const avl_run_t *run = &attend->runs[i];
        bool splits = false;
        if (!run->decode || !run->sequence->shape.selects)
            continue;
        (void)avl_visual_store_hidden_rows(run->sequence, layer,
                                           visible_first(attend, run->first_position), &splits);
        if (splits)
            AVL_TRY(avl_visual_store_settle(run->sequence, layer, 1));
    }
    return AVL_OK;
}

static float *weights_of(const avl_attend_t *attend, const avl_run_t *run) {
    for (int i = 0; i < attend->item_count; i++) {
        if (attend->item_runs[i] == run)
            return attend->items[i].weights;
    }
    return NULL;
}

/* What the run's decode row attends to, run `index` of the step. Where each KV head chooses its
 * core, the visual span is the store. */
static avl_decode_sequence_t decode_of(const avl_attend_t *attend, const avl_run_t *run, int index,
                                       int layer) {
    avl_sequence_t *sequence = run->sequence;
    const avl_sequence_shape_t *shape = &sequence->shape;
    avl_decode_sequence_t decode = {.query_row = run->first_row};
    int32_t hidden;
    fill_text_spans(attend, run, layer, run->first_position, decode.spans, &decode.text_first);
    decode.totals = shape->evicts_text ? avl_text_rank_totals(attend->text_rank, index) : NULL;
    avl_row_span_t *visual = &decode.spans[AVL_SPAN_VISUAL];
    *visual = avl_visual_store_span(sequence, layer, sequence->decode_steps + 1,
                                    visible_first(attend, run->first_position), &hidden);
    decode.visual_weights = weights_of(attend, run);
    if (shape->core_in_step && shape->core_rows == 0)
        visual->row_count = 0;
    else if (shape->core_in_step && shape->core_rows < visual->row_count)
        decode.visual_keep = shape->core_rows;
    sequence->computed_halves += visual->row_count + avl_decode_visual_rows(&decode);
    return decode;
}

static avl_status_t attend_decodes(avl_attend_t *attend, const avl_attention_call_t *call) {
    int count = 0;
    for (int i = 0; i < attend->run_count; i++) {
        if (attend->runs[i].decode)
            attend->decodes[count++] = decode_of(attend, &attend->runs[i], i, call->layer);
    }
    return attend_singles(attend, call, attend->decodes, count, call->output);
}

/* Where the requests that ask for it would look if they read all visual rows. */
static avl_status_t measure_mass(avl_attend_t *attend, const avl_attention_call_t *call) {
    for (int i = 0; i < attend->run_count; i++) {
        const avl_run_t *run = &attend->runs[i];
        avl_sequence_t *sequence = run->sequence;
        if (!run->decode || !sequence->shape.measures)
            continue;
        const avl_row_list_t *visual = &sequence->layers[call->layer].visual.slots;
        AVL_TRY(avl_visual_store_settle(sequence, call->layer, 1));
        int32_t visible = visible_first(attend, run->first_position);
        int32_t hidden =
            avl_visual_store_hidden(sequence->visual_positions, visual->count, visible);
        avl_decode_sequence_t all = {.query_row = run->first_row};
        fill_text_spans(attend, run, call->layer, run->first_position, all.spans, &all.text_first);
        all.spans[AVL_SPAN_VISUAL] =
            (avl_row_span_t){visual->device + hidden, visual->count - hidden};
        AVL_TRY(avl_mass_add(attend->mass, call, sequence, &all, hidden, visible));
    }
    return AVL_OK;
}

/* What prompt row `position` needs to tell its weights over the visual rows, all of which are
 * before it but those of its own picture. The first `unseen` ones it does not read. */
static avl_decode_sequence_t scoring_of(const avl_attend_t *attend, const avl_run_t *run, int layer,
                                        int32_t position, int32_t unseen, float *weights) {
    avl_sequence_t *sequence = run->sequence;
    const avl_row_list_t *visual = &sequence->layers[layer].visual.slots;
    /* Rows behind the last picture stay together at the end of their run. */
    avl_decode_sequence_t scoring = {.query_row = run->first_row + run->row_count -
                                                  (run->end_position - position)};
    fill_text_spans(attend, run, layer, position, scoring.spans, &scoring.text_first);
    /* Text behind the row is there already. */
    int32_t later = sequence->layers[layer].text.slots.count -
                    avl_visual_store_hidden(sequence->text_positions,
                                            sequence->layers[layer].text.slots.count, position + 1);
    scoring.spans[AVL_SPAN_TEXT].row_count -= later;
    scoring.spans[AVL_SPAN_VISUAL] =
        (avl_row_span_t){visual->device + unseen, visual->count - unseen};
    scoring.visual_weights = weights;
    return scoring;
}

/* Whether the run's scores are of one layer alone. */
static bool scores_alone(const avl_run_t *run) {
    return !run->decode && !avl_sequence_selects_once(&run->sequence->shape);
}

/* Adds up the weights of the run's scoring rows but the prompt's last one: row by row in the order
 * of the prompt, however it is cut into chunks. */
static avl_status_t sum_scores(avl_attend_t *attend, const avl_attention_call_t *call,
                               const avl_run_t *run) {
    const avl_sequence_shape_t *shape = &run->sequence->shape;
    float *sums = run->sequence->layers[call->layer].scores;
    int32_t end = run->first_position + run->row_count;
    int32_t first =
        run->first_position > shape->scored_from ? run->first_position : shape->scored_from;
    for (int32_t position = first; position < end && position < shape->prompt_rows - 1;
         position++) {
        int32_t unseen = avl_visual_store_hidden(
            run->sequence->visual_positions, shape->visual_rows, visible_first(attend, position));
        bool begins = position == shape->scored_from;
        float *weights = begins ? sums : attend->row_scores;
        avl_decode_sequence_t scoring =
            scoring_of(attend, run, call->layer, position, unseen, weights + unseen);
        AVL_TRY(attend_singles(attend, call, &scoring, 1, NULL));
        /* What this row does not see, later ones do not either. */
        if (!begins)
            AVL_TRY(avl_add(attend->options.device,
                            &(avl_add_args_t){.target = sums + unseen,
                                              .addend = attend->row_scores + unseen,
                                              .count = shape->visual_rows - unseen}));
    }
    return AVL_OK;
}

/* Adds row_scores from `unseen` on to the merits, times the distances of their rows: a span of
 * features at a time, a picture's mostly. */
static avl_status_t add_merits(avl_attend_t *attend, const avl_sequence_t *sequence, int layer,
                               int32_t unseen) {
    const int32_t *features = sequence->feature_rows;
    for (int32_t first = unseen, end; first < sequence->shape.visual_rows; first = end) {
        for (end = first + 1; end < sequence->shape.visual_rows; end++) {
            if (features[end] != features[end - 1] + 1)
                break;
        }
        AVL_TRY(
            avl_weigh(attend->options.device,
                      &(avl_weigh_args_t){.target = sequence->merits + first,
                                          .scores = attend->row_scores + first,
                                          .factors = attend->options.distances + features[first],
                                          .count = end - first,
                                          .adds = layer > 0}));
    }
    return AVL_OK;
}

/* Where one store serves all layers: the scoring rows' weights into the merits, which the last
 * layer's selection gets. Layer by layer, however the prompt was cut into chunks. */
static avl_status_t weigh_prompt(avl_attend_t *attend, const avl_attention_call_t *call,
                                 const avl_run_t *run) {
    avl_sequence_t *sequence = run->sequence;
    const avl_sequence_shape_t *shape = &sequence->shape;
    avl_device_t *device = attend->options.device;
    int32_t last = shape->prompt_rows - 1;
    int32_t unseen = avl_visual_store_hidden(sequence->visual_positions, shape->visual_rows,
                                             visible_first(attend, last));
    avl_decode_sequence_t scoring =
        scoring_of(attend, run, call->layer, last, unseen, attend->row_scores + unseen);
    AVL_TRY(attend_singles(attend, call, &scoring, 1, NULL));
    if (avl_sequence_sums_scores(shape))
        AVL_TRY(avl_add(device,
                        &(avl_add_args_t){.target = attend->row_scores + unseen,
                                          .addend = sequence->layers[call->layer].scores + unseen,
                                          .count = shape->visual_rows - unseen}));
    AVL_TRY(add_merits(attend, sequence, call->layer, unseen));
    float *weights = weights_of(attend, run);
    if (weights == NULL)
        return AVL_OK;
    return avl_copy_rows(device,
                         &(avl_copy_rows_args_t){.input = sequence->merits + unseen,
                                                 .input_stride = shape->visual_rows - unseen,
                                                 .output = weights,
                                                 .output_stride = shape->visual_rows - unseen,
                                                 .rows = 1,
                                                 .width = shape->visual_rows - unseen});
}

/* The pass after prompt attention: the weights of the scoring rows over every visual row. */
static avl_status_t score_prompts(avl_attend_t *attend, const avl_attention_call_t *call) {
    for (int i = 0; i < attend->run_count; i++) {
        const avl_run_t *run = &attend->runs[i];
        if (!run->decode && avl_sequence_sums_scores(&run->sequence->shape))
            AVL_TRY(sum_scores(attend, call, run));
        if (avl_run_ends_prompt(run) && avl_sequence_selects_once(&run->sequence->shape))
            AVL_TRY(weigh_prompt(attend, call, run));
    }
    int count = 0;
    for (int i = 0; i < attend->item_count; i++) {
        const avl_run_t *run = attend->item_runs[i];
        if (scores_alone(run))
            attend->scorings[count++] =
                scoring_of(attend, run, call->layer, run->sequence->shape.prompt_rows - 1,
                           attend->items[i].unseen, attend->items[i].weights);
    }
    AVL_TRY(attend_singles(attend, call, attend->scorings, count, NULL));
    for (int i = 0; i < attend->item_count; i++) {
        const avl_run_t *run = attend->item_runs[i];
        const avl_selection_item_t *item = &attend->items[i];
        if (scores_alone(run) && avl_sequence_sums_scores(&run->sequence->shape))
            AVL_TRY(avl_add(attend->options.device,
                            &(avl_add_args_t){.target = item->weights,
                                              .addend = run->sequence->layers[call->layer].scores +
                                                        item->unseen,
                                              .count = item->count - item->unseen}));
    }
    return AVL_OK;
}

/* The choices that need no scores. */
static avl_status_t spread_rows(avl_attend_t *attend, int layer) {
    for (int i = 0; i < attend->run_count; i++) {
        const avl_run_t *run = &attend->runs[i];
        avl_sequence_t *sequence = run->sequence;
        if (!sequence->shape.selects || avl_visual_store_ranks(&sequence->shape))
            continue;
        int32_t step = sequence->decode_steps + 1;
        if (avl_run_ends_prompt(run))
            AVL_TRY(avl_visual_store_spread(sequence, attend->options.pages, layer));
        else if (run->decode && avl_visual_store_reselects(&sequence->shape, step))
            AVL_TRY(avl_visual_store_respread(sequence, layer, step));
    }
    return AVL_OK;
}

/* The layers whose rows a run chooses in this one: all of them by the last. */
static int first_chosen(const avl_run_t *run, int layer) {
    return !run->decode && avl_sequence_selects_once(&run->sequence->shape) ? 0 : layer;
}

/* Stores, later cores, and what goes on behind the prefill filter. */
static int list_stores(avl_attend_t *attend, int layer) {
    int count = 0;
    for (int i = 0; i < attend->item_count; i++) {
        const avl_selection_item_t *item = &attend->items[i];
        avl_sequence_t *sequence = attend->item_runs[i]->sequence;
        int first = first_chosen(attend->item_runs[i], layer);
        if (attend->item_runs[i]->decode) {
            attend->choices[count++] =
                avl_visual_store_core_choice(sequence, layer, item->scores, false);
            continue;
        }
        if (sequence->shape.filter_layers == layer + 1)
            attend->choices[count++] = avl_visual_store_filter_choice(sequence, item->scores);
        for (int j = first; sequence->shape.selects && j <= layer; j++)
            attend->choices[count++] =
                avl_visual_store_choice(sequence, j, item->scores, j == first ? item->best : NULL);
    }
    return count;
}

static int list_first_cores(avl_attend_t *attend, int layer) {
    int count = 0;
    for (int i = 0; i < attend->item_count; i++) {
        const avl_run_t *run = attend->item_runs[i];
        const avl_sequence_shape_t *shape = &run->sequence->shape;
        if (run->decode || !shape->selects || shape->core_in_step)
            continue;
        for (int j = first_chosen(run, layer); j <= layer; j++)
            attend->choices[count++] =
                avl_visual_store_core_choice(run->sequence, j, attend->items[i].best, true);
    }
    return count;
}

/* Joins the collectives of a selection whatever `own` says. */
static avl_status_t select_rows(avl_attend_t *attend, int layer, avl_status_t own) {
    if (attend->item_count == 0)
        return own;
    avl_device_t *device = attend->options.device;
    AVL_TRY(avl_selection_sum(attend->selection, attend->items, attend->item_count, own));
    AVL_TRY(avl_choose(device, &(avl_choose_args_t){.items = attend->choices,
                                                    .item_count = list_stores(attend, layer)}));
    for (int i = 0; i < attend->item_count; i++) {
        const avl_run_t *run = attend->item_runs[i];
        const avl_sequence_shape_t *shape = &run->sequence->shape;
        if (!run->decode && shape->filter_layers == layer + 1)
            AVL_TRY(avl_visual_store_filter(run->sequence));
        for (int j = first_chosen(run, layer); !run->decode && shape->selects && j <= layer; j++)
            AVL_TRY(avl_visual_store_keep(run->sequence, attend->options.pages, j));
    }
    return avl_choose(device, &(avl_choose_args_t){.items = attend->choices,
                                                   .item_count = list_first_cores(attend, layer)});
}

static avl_status_t attend_rows(avl_attend_t *attend, const avl_attention_call_t *call) {
    AVL_TRY(write_rows(attend, call));
    AVL_TRY(attend_chunks(attend, call));
    AVL_TRY(attend_decodes(attend, call));
    AVL_TRY(measure_mass(attend, call));
    return score_prompts(attend, call);
}

static avl_status_t rank_text(avl_attend_t *attend, const avl_attention_call_t *call, int layer,
                              avl_status_t *own_p) {
    if (!attend->evicts_text)
        return AVL_OK;
    return avl_text_rank_run(attend->text_rank, call, layer, attend->runs, attend->run_count,
                             attend->positions, own_p);
}

avl_status_t avl_attend_layer(void *context, const avl_attention_call_t *call) {
    avl_attend_t *attend = context;
    avl_status_t status = settle_hidden(attend, call->layer);
    /* Follows from the plan alone, and so does whether it fails. */
    AVL_TRY(begin_selection(attend, call->layer));
    if (status == AVL_OK)
        status = attend_rows(attend, call);
    /* Ranking text looks at all visual rows. */
    AVL_TRY(rank_text(attend, call, call->layer, &status));
    if (status == AVL_OK)
        status = spread_rows(attend, call->layer);
    AVL_TRY(select_rows(attend, call->layer, status));
    return avl_text_rank_evict(attend->text_rank, call->layer, attend->runs, attend->run_count);
}

/* Whether the step's row goes on to layer `filter_layers`. On a rank that could not select any rows
 * do, as many as there are. */
static bool survives(const avl_sequence_t *sequence, int32_t position) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    if (!avl_sequence_is_visual(sequence, position))
        return true;
    const int32_t *rows = sequence->filtered ? sequence->survivors : sequence->visual_positions;
    int32_t place = avl_visual_store_hidden(rows, shape->survivor_rows, position);
    return place < shape->survivor_rows && rows[place] == position;
}

avl_status_t avl_attend_survivors(void *context, int layer, int32_t *rows, int *count_p) {
    avl_attend_t *attend = context;
    bool filters = false;
    for (int i = 0; i < attend->run_count; i++)
        filters |=
            !attend->runs[i].decode && attend->runs[i].sequence->shape.filter_layers == layer + 1;
    *count_p = attend->rows;
    if (!filters)
        return AVL_OK;
    /* The positions that were sent may not have been read yet. */
    avl_device_t *device = attend->options.device;
    avl_status_t status = device->ops->synchronize(device);
    /* Runs stand in the step in another order than in the plan: by their first rows. */
    int32_t count = 0, next = 0;
    while (next < attend->rows) {
        avl_run_t *run = attend->runs;
        while (run->first_row != next || run->row_count == 0 || run->moved)
            run++;
        bool drops = !run->decode && run->sequence->shape.filter_layers == layer + 1;
        int32_t end = next + run->row_count, first = count;
        for (; next < end; next++) {
            if (drops && !survives(run->sequence, attend->positions[next]))
                continue;
            rows[count] = next;
            attend->positions[count++] = attend->positions[next];
        }
        run->first_row = first;
        run->row_count = count - first;
        run->moved = true;
    }
    for (int i = 0; i < attend->run_count; i++)
        attend->runs[i].moved = false;
    attend->rows = *count_p = count;
    attend->positions_sent = false;
    return status;
}

avl_status_t avl_attend_join(void *context, int layer) {
    avl_attend_t *attend = context;
    AVL_TRY(begin_selection(attend, layer));
    avl_status_t own = AVL_ERR_INTERNAL;
    AVL_TRY(rank_text(attend, NULL, layer, &own));
    if (attend->item_count == 0)
        return AVL_OK;
    avl_status_t status =
        avl_selection_sum(attend->selection, attend->items, attend->item_count, own);
    return status == AVL_ERR_INTERNAL ? AVL_OK : status;
}
