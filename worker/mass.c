#include "worker/mass.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "worker/visual_store.h"

struct avl_mass {
    avl_attend_options_t options;
    int kv_heads;
    float *weights;  /* device [Hk, visual rows] */
    int32_t *places; /* device [Hk, core rows], in the store */
    /* The same memory when the device is the host. */
    float *host_weights;
    int32_t *host_places;
};

static int64_t numbers_max(const avl_attend_options_t *options) {
    return avl_head_map_kv_heads(&options->head_map) * options->sequence_scores_max;
}

int64_t avl_mass_bytes(const avl_attend_options_t *options) {
    return numbers_max(options) * (int64_t)(sizeof(float) + sizeof(int32_t));
}

/* Device memory for numbers of four bytes, and host memory when that is another. */
static avl_status_t allocate(const avl_attend_options_t *options, void **numbers_p, void **host_p) {
    avl_device_t *device = options->device;
    size_t count = (size_t)numbers_max(options);
    AVL_TRY(device->ops->allocate(device, count * sizeof(int32_t), "captured mass", numbers_p));
    *host_p = *numbers_p;
    if (device->is_host)
        return AVL_OK;
    avl_status_t status = avl_alloc(count, sizeof(int32_t), "captured mass", host_p);
    if (status != AVL_OK)
        device->ops->release(device, *numbers_p);
    return status;
}

avl_status_t avl_mass_create(const avl_attend_options_t *options, avl_mass_t **mass_p) {
    avl_mass_t *mass;
    AVL_TRY(avl_alloc(1, sizeof *mass, "captured mass", &mass));
    mass->options = *options;
    mass->kv_heads = avl_head_map_kv_heads(&options->head_map);
    void *numbers, *host;
    avl_status_t status;
    AVL_TRY_GOTO(status, allocate(options, &numbers, &host), err_destroy);
    mass->weights = numbers;
    mass->host_weights = host;
    AVL_TRY_GOTO(status, allocate(options, &numbers, &host), err_destroy);
    mass->places = numbers;
    mass->host_places = host;
    *mass_p = mass;
    return AVL_OK;
err_destroy:
    avl_mass_destroy(mass);
    return status;
}

void avl_mass_destroy(avl_mass_t *mass) {
    if (mass == NULL)
        return;
    avl_device_t *device = mass->options.device;
    if (!device->is_host) {
        free(mass->host_weights);
        free(mass->host_places);
    }
    if (mass->weights != NULL)
        device->ops->release(device, mass->weights);
    if (mass->places != NULL)
        device->ops->release(device, mass->places);
    free(mass);
}

static avl_status_t look(const avl_mass_t *mass, const avl_attention_call_t *call,
                         const avl_decode_sequence_t *sequence) {
    const avl_attend_options_t *options = &mass->options;
    return avl_decode_attention(options->device,
                                &(avl_decode_attention_args_t){
                                    .query = call->query,
                                    .query_stride = call->query_stride,
                                    .kv = avl_pages_view(options->pages),
                                    .heads = options->head_map,
                                    .sequences = sequence,
                                    .sequence_count = 1,
                                    .scale = (float)(1.0 / sqrt(options->head_width)),
                                    .text_positions = avl_pages_positions(options->pages),
                                });
}

static avl_status_t fetch(const avl_mass_t *mass, void *target, const void *source, int64_t count) {
    avl_device_t *device = mass->options.device;
    return device->is_host || count == 0
               ? AVL_OK
               : device->ops->download(device, target, source, (size_t)count * sizeof(int32_t));
}

/* The `keep` places in the store that each head chose, in host_places. */
static avl_status_t find_places(avl_mass_t *mass, const avl_attention_call_t *call,
                                int64_t query_row, avl_row_span_t store, int32_t skipped,
                                int32_t keep) {
    int64_t count = (int64_t)mass->kv_heads * keep;
    if (count == 0)
        return AVL_OK;
    AVL_TRY(look(mass, call,
                 &(avl_decode_sequence_t){.query_row = query_row,
                                          .spans[AVL_SPAN_VISUAL] = store,
                                          .visual_keep = keep,
                                          .visual_places = mass->places}));
    AVL_TRY(fetch(mass, mass->host_places, mass->places, count));
    for (int64_t i = 0; i < count; i++)
        mass->host_places[i] += skipped;
    return AVL_OK;
}

avl_status_t avl_mass_add(avl_mass_t *mass, const avl_attention_call_t *call,
                          avl_sequence_t *sequence, const avl_decode_sequence_t *all,
                          int32_t hidden, int32_t visible_first) {
    const avl_sequence_shape_t *shape = &sequence->shape;
    int32_t step = sequence->decode_steps + 1, skipped, keep = shape->core_rows;
    const int32_t *core = avl_sequence_core(&sequence->layers[call->layer])->host;
    int64_t rows = all->spans[AVL_SPAN_VISUAL].row_count;
    if (shape->core_in_step) {
        avl_row_span_t store =
            avl_visual_store_span(sequence, call->layer, step, visible_first, &skipped);
        keep = keep < store.row_count ? keep : store.row_count;
        AVL_TRY(find_places(mass, call, all->query_row, store, skipped, keep));
        core = mass->host_places;
    } else if (avl_visual_store_updates(shape, step)) {
        core = NULL;
    }
    avl_decode_sequence_t weighing = *all;
    weighing.visual_weights = mass->weights;
    weighing.weights_by_head = 1;
    AVL_TRY(look(mass, call, &weighing));
    AVL_TRY(fetch(mass, mass->host_weights, mass->weights, mass->kv_heads * rows));
    for (int head = 0; head < mass->kv_heads; head++)
        avl_visual_store_weigh(sequence, call->layer, hidden, mass->host_weights + head * rows,
                               shape->core_in_step ? core + (int64_t)head * keep : core, keep);
    return AVL_OK;
}
