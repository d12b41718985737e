#include "worker/step_core.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/select.h"
#include "worker/visual_store.h"

struct avl_step_core {
    avl_attend_options_t options;
    int kv_heads;
    int64_t scores_max;
    float *scores;  /* device [scores_max]: [Hk, rows] of every sequence */
    int32_t *lists; /* device [scores_max]: [Hk, keep] */
    /* Of one sequence, for who measures; the same memory when the device is the host. */
    float *host_scores;
    int32_t *host_lists;
    avl_decode_sequence_t *scorings; /* [runs_max] */
    avl_choose_item_t *choices;      /* [runs_max, Hk] */
    int count;                       /* sequences in the group */
    bool done;                       /* it has been chosen for */
    int64_t used;                    /* scores */
};

/* Of one sequence at most. */
static int64_t sequence_scores(const avl_attend_options_t *options) {
    return avl_head_map_kv_heads(&options->head_map) * options->sequence_scores_max;
}

static int64_t scores_max_of(const avl_attend_options_t *options) {
    int64_t one = sequence_scores(options), all = one * options->runs_max;
    int64_t group = all < options->step_scores_max ? all : options->step_scores_max;
    return one > group ? one : group;
}

int64_t avl_step_core_bytes(const avl_attend_options_t *options) {
    return scores_max_of(options) * (int64_t)(sizeof(float) + sizeof(int32_t));
}

static avl_status_t allocate_host(avl_step_core_t *core) {
    const avl_attend_options_t *options = &core->options;
    size_t runs = (size_t)options->runs_max, one = (size_t)sequence_scores(options);
    AVL_TRY(avl_alloc_aligned(runs, sizeof *core->scorings, "cores of a step", &core->scorings));
    AVL_TRY(avl_alloc_aligned(runs * (size_t)core->kv_heads, sizeof *core->choices,
                              "cores of a step", &core->choices));
    core->host_scores = core->scores;
    core->host_lists = core->lists;
    if (options->device->is_host)
        return AVL_OK;
    core->host_scores = NULL;
    core->host_lists = NULL;
    AVL_TRY(avl_alloc_aligned(one, sizeof(float), "cores of a step", &core->host_scores));
    return avl_alloc_aligned(one, sizeof(int32_t), "cores of a step", &core->host_lists);
}

avl_status_t avl_step_core_create(const avl_attend_options_t *options, avl_step_core_t **core_p) {
    avl_step_core_t *core;
    AVL_TRY(avl_alloc(1, sizeof *core, "cores of a step", &core));
    core->options = *options;
    core->kv_heads = avl_head_map_kv_heads(&options->head_map);
    core->scores_max = scores_max_of(options);
    avl_device_t *device = options->device;
    void *memory;
    avl_status_t status;
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, (size_t)core->scores_max * sizeof(float),
                                       "cores of a step: scores", &memory),
                 err_destroy);
    core->scores = memory;
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, (size_t)core->scores_max * sizeof(int32_t),
                                       "cores of a step: rows", &memory),
                 err_destroy);
    core->lists = memory;
    AVL_TRY_GOTO(status, allocate_host(core), err_destroy);
    *core_p = core;
    return AVL_OK;
err_destroy:
    avl_step_core_destroy(core);
    return status;
}

void avl_step_core_destroy(avl_step_core_t *core) {
    if (core == NULL)
        return;
    avl_device_t *device = core->options.device;
    if (!device->is_host) {
        free(core->host_scores);
        free(core->host_lists);
    }
    if (core->scores != NULL)
        device->ops->release(device, core->scores);
    if (core->lists != NULL)
        device->ops->release(device, core->lists);
    free(core->scorings);
    free(core->choices);
    free(core);
}

bool avl_step_core_fits(const avl_step_core_t *core, int32_t rows) {
    return core->done || core->count == 0 ||
           (core->count < core->options.runs_max &&
            core->used + (int64_t)core->kv_heads * rows <= core->scores_max);
}

void avl_step_core_add(avl_step_core_t *core, avl_decode_sequence_t *decode, int32_t keep) {
    if (core->done) {
        core->done = false;
        core->count = 0;
        core->used = 0;
    }
    const avl_row_span_t rows = decode->spans[AVL_SPAN_VISUAL];
    AVL_ASSERT(keep > 0 && keep <= rows.row_count && avl_step_core_fits(core, rows.row_count));
    float *scores = core->scores + core->used;
    int32_t *lists = core->lists + core->used;
    for (int head = 0; head < core->kv_heads; head++)
        core->choices[core->count * core->kv_heads + head] = (avl_choose_item_t){
            .scores = scores + (int64_t)head * rows.row_count,
            .count = rows.row_count,
            .keep = keep,
            .rows = rows.rows,
            .list = lists + (int64_t)head * keep,
        };
    core->scorings[core->count++] = (avl_decode_sequence_t){
        .query_row = decode->query_row,
        .spans[AVL_SPAN_VISUAL] = rows,
        .visual_weights = scores,
        .weights_by_head = 1,
    };
    core->used += (int64_t)core->kv_heads * rows.row_count;
    decode->spans[AVL_SPAN_VISUAL] = (avl_row_span_t){lists, keep};
    decode->visual_stride = keep;
}

/* Weights of visual rows, by KV head. */
static avl_status_t score(const avl_step_core_t *core, const avl_attention_call_t *call,
                          const avl_decode_sequence_t *sequences, int count) {
    const avl_attend_options_t *options = &core->options;
    return avl_decode_attention(options->device,
                                &(avl_decode_attention_args_t){
                                    .query = call->query,
                                    .query_stride = call->query_stride,
                                    .kv = avl_pages_view(options->pages),
                                    .heads = options->head_map,
                                    .sequences = sequences,
                                    .sequence_count = count,
                                    .scale = (float)(1.0 / sqrt(options->head_width)),
                                    .text_positions = avl_pages_positions(options->pages),
                                });
}

avl_status_t avl_step_core_choose(avl_step_core_t *core, const avl_attention_call_t *call) {
    if (core->done || core->count == 0)
        return AVL_OK;
    core->done = true;
    AVL_TRY(score(core, call, core->scorings, core->count));
    return avl_choose(
        core->options.device,
        &(avl_choose_args_t){.items = core->choices, .item_count = core->count * core->kv_heads});
}

static avl_status_t fetch(const avl_step_core_t *core, void *target, const void *source,
                          int64_t count) {
    avl_device_t *device = core->options.device;
    return device->is_host || count == 0
               ? AVL_OK
               : device->ops->download(device, target, source, (size_t)count * sizeof(int32_t));
}

/* Each head's places in the store, of which `rows` are all but the first `skipped`, in host_lists.
 */
static avl_status_t choose_places(avl_step_core_t *core, const avl_attention_call_t *call,
                                  int64_t query_row, avl_row_span_t rows, int32_t skipped,
                                  int32_t keep) {
    if (keep == 0)
        return AVL_OK;
    avl_decode_sequence_t one = {.query_row = query_row, .spans[AVL_SPAN_VISUAL] = rows};
    avl_step_core_add(core, &one, keep);
    for (int head = 0; head < core->kv_heads; head++) {
        avl_choose_item_t *choice = &core->choices[head];
        choice->indices = choice->list;
        choice->list = NULL;
        choice->rows = NULL;
    }
    AVL_TRY(avl_step_core_choose(core, call));
    int64_t places = (int64_t)core->kv_heads * keep;
    AVL_TRY(fetch(core, core->host_lists, core->lists, places));
    for (int64_t i = 0; i < places; i++)
        core->host_lists[i] += skipped;
    return AVL_OK;
}

avl_status_t avl_step_core_weigh(avl_step_core_t *core, const avl_attention_call_t *call,
                                 avl_sequence_t *sequence, const avl_decode_sequence_t *all,
                                 int32_t hidden, int32_t visible_first) {
    int32_t skipped;
    avl_row_span_t store = avl_visual_store_span(sequence, call->layer, sequence->decode_steps + 1,
                                                 visible_first, &skipped);
    int32_t keep = sequence->shape.core_rows;
    keep = keep < store.row_count ? keep : store.row_count;
    AVL_TRY(choose_places(core, call, all->query_row, store, skipped, keep));
    avl_decode_sequence_t weighing = *all;
    int64_t rows = weighing.spans[AVL_SPAN_VISUAL].row_count;
    weighing.visual_weights = core->scores;
    weighing.weights_by_head = 1;
    AVL_TRY(score(core, call, &weighing, 1));
    AVL_TRY(fetch(core, core->host_scores, core->scores, core->kv_heads * rows));
    for (int head = 0; head < core->kv_heads; head++)
        avl_visual_store_weigh(sequence, call->layer, hidden, core->host_scores + head * rows,
                               core->host_lists + (int64_t)head * keep, keep);
    return AVL_OK;
}
