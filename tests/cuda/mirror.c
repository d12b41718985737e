#include "tests/cuda/mirror.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/attention.h"
#include "kernels/diversity.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/lists.h"
#include "kernels/sample.h"
#include "kernels/select.h"
#include "kernels/text.h"

enum { REGIONS_MAX = 2048, ALIGNMENT = 16 };

/* Beyond this the arguments are nonsense that the operation will refuse. */
static const int64_t region_bytes_max = INT64_C(1) << 30;

typedef struct region {
    char *host;
    size_t bytes;
    void *block; /* device memory; the copy begins at the host's place within ALIGNMENT */
    char *copy;
    int is_output;
} region_t;

typedef struct mirror {
    avl_device_t device;
    avl_device_t *inner;
    region_t regions[REGIONS_MAX];
    int region_count;
    void *nothing; /* device memory that stands for empty arrays */
    avl_status_t status;
} mirror_t;

static mirror_t *mirror_of(avl_device_t *device) {
    return (mirror_t *)device;
}

/* ---- regions ---- */

enum { INPUT = 0, OUTPUT = 1 };

/* The copy of `count` elements at `host`; host itself when there is nothing to copy. */
static void *map(mirror_t *mirror, const void *host, int64_t count, size_t element, int is_output) {
    int64_t bytes = 0;
    if (host != NULL && count <= 0) /* nothing to read; yet no kernel is given a host address */
        return mirror->nothing;
    if (host == NULL || __builtin_mul_overflow(count, (int64_t)element, &bytes) ||
        bytes > region_bytes_max)
        return (void *)(uintptr_t)host;
    char *memory = (char *)(uintptr_t)host;
    for (int i = 0; i < mirror->region_count; i++) {
        region_t *known = &mirror->regions[i];
        if (memory >= known->host && memory + bytes <= known->host + known->bytes) {
            known->is_output |= is_output;
            return known->copy + (memory - known->host);
        }
    }
    AVL_ASSERT(mirror->region_count < REGIONS_MAX);
    region_t region = {.host = memory, .bytes = (size_t)bytes, .is_output = is_output};
    size_t shift = (uintptr_t)host % ALIGNMENT;
    const avl_device_ops_t *ops = mirror->inner->ops;
    if (mirror->status == AVL_OK)
        mirror->status =
            ops->allocate(mirror->inner, region.bytes + shift, "a copy", &region.block);
    if (mirror->status != AVL_OK)
        return memory;
    region.copy = (char *)region.block + shift;
    mirror->status = ops->upload(mirror->inner, region.copy, host, region.bytes);
    mirror->regions[mirror->region_count++] = region;
    return region.copy;
}

/* Elements from the first to the last of `rows` rows that are `stride` apart; 0 for nonsense. */
static int64_t extent(int64_t rows, int64_t stride, int64_t width) {
    int64_t before = 0;
    if (rows <= 0 || width <= 0 || stride < width ||
        __builtin_mul_overflow(rows - 1, stride, &before) || before > region_bytes_max)
        return 0;
    return before + width;
}

static int64_t largest(const int32_t *indices, int64_t count) {
    int64_t most = -1;
    for (int64_t i = 0; indices != NULL && i < count; i++)
        most = indices[i] > most ? indices[i] : most;
    return most;
}

/* Numbers beside slots up to `last_slot`, one for every KV head: whole pages of them. */
static int64_t places(int64_t last_slot, int kv_heads) {
    return (last_slot / AVL_PAGE_ROWS + 1) * AVL_PAGE_ROWS * kv_heads;
}

/* Entries of the redirects that the slots name. */
static int64_t redirect_count(const avl_kv_write_args_t *args) {
    int64_t count = 0;
    for (int64_t i = 0; args->redirects != NULL && i < args->rows; i++) {
        int64_t end = (int64_t)-1 - args->slots[i] + args->kv_heads;
        count = args->slots[i] < 0 && end > count ? end : count;
    }
    return count;
}

/* Brings the results back, gives the copies up, and says how the operation went. */
static avl_status_t finish(mirror_t *mirror, avl_status_t status) {
    const avl_device_ops_t *ops = mirror->inner->ops;
    if (status == AVL_OK)
        status = mirror->status;
    if (status == AVL_OK)
        status = ops->synchronize(mirror->inner);
    for (int i = 0; i < mirror->region_count; i++) {
        region_t *region = &mirror->regions[i];
        if (status == AVL_OK && region->is_output)
            status = ops->download(mirror->inner, region->host, region->copy, region->bytes);
        ops->release(mirror->inner, region->block);
    }
    mirror->region_count = 0;
    mirror->status = AVL_OK;
    return status;
}

/* ---- operations ---- */

static avl_status_t linear(avl_device_t *device, const avl_linear_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_linear_args_t copy = *args;
    size_t in = avl_dtype_bytes(args->dtype), out = avl_dtype_bytes(args->output_dtype);
    copy.input =
        map(mirror, args->input, extent(args->rows, args->input_stride, args->in_width), in, INPUT);
    copy.weight = map(mirror, args->weight,
                      extent(args->out_width, args->weight_stride, args->in_width), in, INPUT);
    copy.bias = map(mirror, args->bias, args->out_width, sizeof(float), INPUT);
    copy.output = map(mirror, args->output,
                      extent(args->rows, args->output_stride, args->out_width), out, OUTPUT);
    return finish(mirror, mirror->inner->ops->linear(mirror->inner, &copy));
}

static avl_status_t norm(avl_device_t *device, const avl_norm_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_norm_args_t copy = *args;
    copy.input = map(mirror, args->input, extent(args->rows, args->input_stride, args->width),
                     sizeof(float), INPUT);
    copy.weight = map(mirror, args->weight, args->width, sizeof(float), INPUT);
    copy.bias = map(mirror, args->bias, args->width, sizeof(float), INPUT);
    copy.output = map(mirror, args->output, extent(args->rows, args->width, args->width),
                      avl_dtype_bytes(args->output_dtype), OUTPUT);
    return finish(mirror, mirror->inner->ops->norm(mirror->inner, &copy));
}

static avl_status_t rope(avl_device_t *device, const avl_rope_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_rope_args_t copy = *args;
    int64_t half = args->head_width / 2;
    copy.data = map(mirror, args->data,
                    extent(args->rows, args->row_stride, (int64_t)args->heads * args->head_width),
                    avl_dtype_bytes(args->dtype), OUTPUT);
    copy.cosines = map(mirror, args->cosines, extent(args->rows, half, half), sizeof(float), INPUT);
    copy.sines = map(mirror, args->sines, extent(args->rows, half, half), sizeof(float), INPUT);
    return finish(mirror, mirror->inner->ops->rope(mirror->inner, &copy));
}

static avl_status_t activation(avl_device_t *device, const avl_activation_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_activation_args_t copy = *args;
    copy.data = map(mirror, args->data, args->count, avl_dtype_bytes(args->dtype), OUTPUT);
    return finish(mirror, mirror->inner->ops->activation(mirror->inner, &copy));
}

static avl_status_t gated(avl_device_t *device, const avl_gated_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_gated_args_t copy = *args;
    size_t element = avl_dtype_bytes(args->dtype);
    int64_t count = extent(args->rows, args->width, args->width);
    copy.gate_up = map(mirror, args->gate_up, 2 * count, element, INPUT);
    copy.output = map(mirror, args->output, count, element, OUTPUT);
    return finish(mirror, mirror->inner->ops->gated(mirror->inner, &copy));
}

static avl_status_t add(avl_device_t *device, const avl_add_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_add_args_t copy = *args;
    copy.target = map(mirror, args->target, args->count, sizeof(float), OUTPUT);
    copy.addend = map(mirror, args->addend, args->count, sizeof(float), INPUT);
    copy.bias =
        map(mirror, args->bias, args->width > args->count ? 0 : args->width, sizeof(float), INPUT);
    return finish(mirror, mirror->inner->ops->add(mirror->inner, &copy));
}

static avl_status_t embed(avl_device_t *device, const avl_embed_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_embed_args_t copy = *args;
    copy.token_ids = map(mirror, args->token_ids, args->rows, sizeof(int32_t), INPUT);
    copy.table = map(mirror, args->table, extent(args->table_rows, args->table_stride, args->width),
                     avl_dtype_bytes(args->dtype), INPUT);
    copy.output = map(mirror, args->output, extent(args->rows, args->width, args->width),
                      sizeof(float), OUTPUT);
    return finish(mirror, mirror->inner->ops->embed(mirror->inner, &copy));
}

static avl_status_t patches(avl_device_t *device, const avl_patches_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_patches_args_t copy = *args;
    int64_t grid = args->patch > 0 ? args->side / args->patch : 0;
    copy.pixels =
        map(mirror, args->pixels, (int64_t)args->tiles * 3 * args->side * args->side, 1, INPUT);
    copy.output = map(mirror, args->output,
                      args->tiles * grid * grid * 3 * (int64_t)args->patch * args->patch,
                      avl_dtype_bytes(args->dtype), OUTPUT);
    return finish(mirror, mirror->inner->ops->patches(mirror->inner, &copy));
}

static avl_status_t copy_rows(avl_device_t *device, const avl_copy_rows_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_copy_rows_args_t copy = *args;
    int64_t in =
        args->source_rows != NULL ? largest(args->source_rows, args->rows) + 1 : args->rows;
    int64_t out =
        args->target_rows != NULL ? largest(args->target_rows, args->rows) + 1 : args->rows;
    copy.source_rows = map(mirror, args->source_rows, args->rows, sizeof(int32_t), INPUT);
    copy.target_rows = map(mirror, args->target_rows, args->rows, sizeof(int32_t), INPUT);
    copy.input =
        map(mirror, args->input, extent(in, args->input_stride, args->width), sizeof(float), INPUT);
    copy.output = map(mirror, args->output, extent(out, args->output_stride, args->width),
                      sizeof(float), OUTPUT);
    return finish(mirror, mirror->inner->ops->copy_rows(mirror->inner, &copy));
}

static void map_cache(mirror_t *mirror, avl_kv_view_t *kv, int64_t last_slot) {
    int64_t count = extent(last_slot + 1, kv->row_stride, (int64_t)kv->kv_heads * kv->head_width);
    kv->keys = map(mirror, kv->keys, count, avl_dtype_bytes(kv->dtype), INPUT);
    kv->values = map(mirror, kv->values, count, avl_dtype_bytes(kv->dtype), INPUT);
}

static avl_status_t attention(avl_device_t *device, const avl_attention_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_attention_args_t copy = *args;
    avl_attention_sequence_t *sequences = NULL;
    int64_t last_slot = -1, last_query = -1, count = args->sequence_count;
    AVL_TRY(avl_alloc(count > 0 ? (size_t)count : 0, sizeof *sequences, "sequences", &sequences));
    for (int i = 0; i < args->sequence_count; i++) {
        avl_attention_sequence_t *s = &sequences[i];
        *s = args->sequences[i];
        if (s->query_count == 0) {
            s->rows = NULL;
            continue;
        }
        int64_t last =
            s->rows != NULL ? largest(s->rows, s->row_count) : s->first_row + s->row_count - 1;
        last_slot = last > last_slot ? last : last_slot;
        int64_t query = s->first_query + s->query_count - 1;
        last_query = query > last_query ? query : last_query;
        s->rows = map(mirror, s->rows, s->row_count, sizeof(int32_t), INPUT);
    }
    map_cache(mirror, &copy.kv, last_slot);
    size_t element = avl_dtype_bytes(args->kv.dtype);
    int64_t width = (int64_t)args->heads.query_heads * args->kv.head_width;
    copy.query =
        map(mirror, args->query, extent(last_query + 1, args->query_stride, width), element, INPUT);
    copy.output = map(mirror, args->output, extent(last_query + 1, args->output_stride, width),
                      element, OUTPUT);
    copy.sequences = args->sequences != NULL ? sequences : NULL;
    avl_status_t status = mirror->inner->ops->attention(mirror->inner, &copy);
    memset(sequences, 0xff, count > 0 ? (size_t)count * sizeof *sequences : 0);
    free(sequences); /* the operation may not keep them */
    return finish(mirror, status);
}

static avl_status_t decode_attention(avl_device_t *device,
                                     const avl_decode_attention_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_decode_attention_args_t copy = *args;
    avl_decode_sequence_t *sequences = NULL;
    int64_t last_slot = -1, last_query = -1, count = args->sequence_count;
    AVL_TRY(avl_alloc(count > 0 ? (size_t)count : 0, sizeof *sequences, "sequences", &sequences));
    for (int i = 0; i < args->sequence_count; i++) {
        avl_decode_sequence_t *s = &sequences[i];
        *s = args->sequences[i];
        last_query = s->query_row > last_query ? s->query_row : last_query;
        for (int span = 0; span < AVL_SPAN_COUNT; span++) {
            avl_row_span_t *rows = &s->spans[span];
            int64_t last = largest(rows->rows, rows->row_count);
            last_slot = last > last_slot ? last : last_slot;
            rows->rows = map(mirror, rows->rows, rows->row_count, sizeof(int32_t), INPUT);
        }
        s->visual_places =
            map(mirror, s->visual_places, (int64_t)args->kv.kv_heads * s->visual_keep,
                sizeof(int32_t), OUTPUT);
        s->totals =
            map(mirror, s->totals, (int64_t)2 * args->heads.query_heads, sizeof(float), OUTPUT);
        s->visual_weights = map(mirror, s->visual_weights,
                                (int64_t)s->spans[AVL_SPAN_VISUAL].row_count *
                                    (s->weights_by_head ? args->kv.kv_heads : 1),
                                sizeof(float), OUTPUT);
    }
    map_cache(mirror, &copy.kv, last_slot);
    copy.text_positions =
        map(mirror, args->text_positions, places(last_slot, args->kv.kv_heads), 4, INPUT);
    size_t element = avl_dtype_bytes(args->kv.dtype);
    int64_t width = (int64_t)args->heads.query_heads * args->kv.head_width;
    copy.query =
        map(mirror, args->query, extent(last_query + 1, args->query_stride, width), element, INPUT);
    copy.output = map(mirror, args->output, extent(last_query + 1, args->output_stride, width),
                      element, OUTPUT);
    copy.sequences = args->sequences != NULL ? sequences : NULL;
    avl_status_t status = mirror->inner->ops->decode_attention(mirror->inner, &copy);
    memset(sequences, 0xff, count > 0 ? (size_t)count * sizeof *sequences : 0);
    free(sequences);
    return finish(mirror, status);
}

static avl_status_t kv_write(avl_device_t *device, const avl_kv_write_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_kv_write_args_t copy = *args;
    size_t element = avl_dtype_bytes(args->dtype);
    int64_t source = extent(args->rows, args->source_stride, args->row_width);
    int64_t last = largest(args->slots, args->rows), redirects = redirect_count(args);
    int64_t redirected = largest(args->redirects, redirects);
    last = redirected > last ? redirected : last;
    int64_t target = extent(last + 1, args->row_width, args->row_width);
    copy.redirects = map(mirror, args->redirects, redirects, sizeof(int32_t), INPUT);
    copy.positions = map(mirror, args->positions, args->rows, sizeof(int32_t), INPUT);
    copy.row_positions =
        map(mirror, args->row_positions, places(last, args->kv_heads), sizeof(int32_t), OUTPUT);
    copy.key = map(mirror, args->key, source, element, INPUT);
    copy.value = map(mirror, args->value, source, element, INPUT);
    copy.slots = map(mirror, args->slots, args->rows, sizeof(int32_t), INPUT);
    copy.keys = map(mirror, args->keys, target, element, OUTPUT);
    copy.values = map(mirror, args->values, target, element, OUTPUT);
    return finish(mirror, mirror->inner->ops->kv_write(mirror->inner, &copy));
}

static avl_status_t kv_move(avl_device_t *device, const avl_kv_move_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_kv_move_args_t copy = *args;
    size_t element = avl_dtype_bytes(args->dtype);
    int64_t entries = args->rows * (args->heads > 0 ? args->heads : 1);
    int64_t last = largest(args->sources, entries), to = largest(args->targets, entries);
    int64_t count = extent((last > to ? last : to) + 1, args->row_width, args->row_width);
    copy.sources = map(mirror, args->sources, entries, sizeof(int32_t), INPUT);
    copy.targets = map(mirror, args->targets, entries, sizeof(int32_t), INPUT);
    copy.keys = map(mirror, args->keys, count, element, OUTPUT);
    copy.values = map(mirror, args->values, count, element, OUTPUT);
    return finish(mirror, mirror->inner->ops->kv_move(mirror->inner, &copy));
}

static avl_status_t topk(avl_device_t *device, const avl_topk_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_topk_args_t copy = *args;
    copy.scores = map(mirror, args->scores, args->count, sizeof(float), INPUT);
    copy.indices = map(mirror, args->indices, args->keep, sizeof(int32_t), OUTPUT);
    return finish(mirror, mirror->inner->ops->topk(mirror->inner, &copy));
}

static avl_status_t argmax(avl_device_t *device, const avl_argmax_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_argmax_args_t copy = *args;
    copy.logits = map(mirror, args->logits, extent(args->rows, args->stride, args->width),
                      sizeof(float), INPUT);
    copy.indices = map(mirror, args->indices, args->rows, sizeof(int32_t), OUTPUT);
    copy.values = map(mirror, args->values, args->rows, sizeof(float), OUTPUT);
    return finish(mirror, mirror->inner->ops->argmax(mirror->inner, &copy));
}

static avl_status_t sample(avl_device_t *device, const avl_sample_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_sample_args_t copy = *args;
    copy.logits = map(mirror, args->logits, extent(args->rows, args->stride, args->width),
                      sizeof(float), OUTPUT);
    copy.results = map(mirror, args->results, args->rows, sizeof *args->results, OUTPUT);
    return finish(mirror, mirror->inner->ops->sample(mirror->inner, &copy));
}

/* The text rows' arrays, and the last slot among them; the caller frees the list. */
static avl_status_t map_text_rows(mirror_t *mirror, const avl_text_row_t *given, int count,
                                  int buffer_heads, int query_heads, int kv_heads, int output,
                                  avl_text_row_t **rows_p, int64_t *last_slot_p) {
    avl_text_row_t *rows;
    *last_slot_p = -1;
    AVL_TRY(avl_alloc(count > 0 ? (size_t)count : 0, sizeof *rows, "text rows", &rows));
    for (int i = 0; i < count; i++) {
        avl_text_row_t *row = &rows[i];
        *row = given[i];
        int64_t last = largest(row->rows, row->row_count);
        *last_slot_p = last > *last_slot_p ? last : *last_slot_p;
        row->rows = map(mirror, row->rows, row->row_count, sizeof(int32_t), INPUT);
        row->totals = map(mirror, row->totals, (int64_t)2 * query_heads, sizeof(float), INPUT);
        row->weights = map(mirror, row->weights, (int64_t)buffer_heads * row->row_count,
                           sizeof(float), output);
        row->holes = map(mirror, row->holes, (int64_t)2 * kv_heads, sizeof(int32_t), OUTPUT);
    }
    *rows_p = rows;
    return AVL_OK;
}

static avl_status_t text_weights(avl_device_t *device, const avl_text_weights_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_text_weights_args_t copy = *args;
    avl_text_row_t *rows;
    int64_t last_slot, last_query = -1;
    int heads = args->kv.kv_heads;
    AVL_TRY(map_text_rows(mirror, args->rows, args->count, args->first_head + heads,
                          args->heads.query_heads, heads, OUTPUT, &rows, &last_slot));
    for (int i = 0; i < args->count; i++)
        last_query = rows[i].query_row > last_query ? rows[i].query_row : last_query;
    map_cache(mirror, &copy.kv, last_slot);
    copy.positions = map(mirror, args->positions, places(last_slot, heads), 4, INPUT);
    copy.query = map(mirror, args->query,
                     extent(last_query + 1, args->query_stride,
                            (int64_t)args->heads.query_heads * args->kv.head_width),
                     avl_dtype_bytes(args->kv.dtype), INPUT);
    copy.rows = args->rows != NULL ? rows : NULL;
    avl_status_t status = mirror->inner->ops->text_weights(mirror->inner, &copy);
    memset(rows, 0xff, args->count > 0 ? (size_t)args->count * sizeof *rows : 0);
    free(rows);
    return finish(mirror, status);
}

static avl_status_t text_update(avl_device_t *device, const avl_text_update_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_text_update_args_t copy = *args;
    avl_text_row_t *rows;
    int64_t last_slot;
    AVL_TRY(map_text_rows(mirror, args->rows, args->count, args->first_head + args->kv_heads, 0,
                          args->kv_heads, INPUT, &rows, &last_slot));
    int64_t count = places(last_slot, args->kv_heads);
    copy.scores = map(mirror, args->scores, count, sizeof(float), OUTPUT);
    copy.positions = map(mirror, args->positions, count, sizeof(int32_t), INPUT);
    copy.rows = args->rows != NULL ? rows : NULL;
    avl_status_t status = mirror->inner->ops->text_update(mirror->inner, &copy);
    memset(rows, 0xff, args->count > 0 ? (size_t)args->count * sizeof *rows : 0);
    free(rows);
    return finish(mirror, status);
}

static avl_status_t text_keep(avl_device_t *device, const avl_text_keep_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_text_keep_args_t copy = *args;
    int64_t count = places(largest(args->rows, args->count), args->kv_heads);
    int64_t entries = (int64_t)args->keep * args->kv_heads;
    copy.rows = map(mirror, args->rows, args->count, sizeof(int32_t), INPUT);
    copy.scores = map(mirror, args->scores, count, sizeof(float), OUTPUT);
    copy.positions = map(mirror, args->positions, count, sizeof(int32_t), OUTPUT);
    copy.sources = map(mirror, args->sources, entries, sizeof(int32_t), OUTPUT);
    copy.targets = map(mirror, args->targets, entries, sizeof(int32_t), OUTPUT);
    copy.scratch = map(mirror, args->scratch, (int64_t)args->count * args->kv_heads,
                       2 * sizeof(int32_t), OUTPUT);
    return finish(mirror, mirror->inner->ops->text_keep(mirror->inner, &copy));
}

static avl_status_t diversity(avl_device_t *device, const avl_diversity_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_diversity_args_t copy = *args;
    int64_t count = extent(args->rows, args->width, args->width);
    copy.features = map(mirror, args->features, count, sizeof(float), INPUT);
    copy.distances = map(mirror, args->distances, args->rows, sizeof(float), OUTPUT);
    size_t scratch = count > 0 ? avl_diversity_scratch_bytes(args->rows, args->width) : 0;
    copy.scratch = map(mirror, args->scratch, (int64_t)scratch, 1, INPUT);
    return finish(mirror, mirror->inner->ops->diversity(mirror->inner, &copy));
}

static avl_status_t weigh(avl_device_t *device, const avl_weigh_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_weigh_args_t copy = *args;
    copy.target = map(mirror, args->target, args->count, sizeof(float), OUTPUT);
    copy.scores = map(mirror, args->scores, args->count, sizeof(float), INPUT);
    copy.factors = map(mirror, args->factors, args->count, sizeof(float), INPUT);
    return finish(mirror, mirror->inner->ops->weigh(mirror->inner, &copy));
}

static avl_status_t choose(avl_device_t *device, const avl_choose_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    int count = args->items != NULL && args->item_count > 0 ? args->item_count : 0;
    avl_choose_item_t *items = malloc((size_t)(count + 1) * sizeof *items);
    AVL_ASSERT(items != NULL);
    for (int i = 0; i < count; i++) {
        items[i] = args->items[i];
        items[i].scores = map(mirror, items[i].scores, items[i].count, sizeof(float), INPUT);
        items[i].indices = map(mirror, items[i].indices, items[i].keep, sizeof(int32_t), OUTPUT);
        items[i].rows = map(mirror, items[i].rows, items[i].count, sizeof(int32_t), INPUT);
        items[i].list = map(mirror, items[i].list, items[i].keep, sizeof(int32_t), OUTPUT);
        items[i].best = map(mirror, items[i].best, items[i].keep, sizeof(float), OUTPUT);
    }
    avl_choose_args_t copy = {args->items != NULL ? items : NULL, args->item_count};
    avl_status_t status = mirror->inner->ops->choose(mirror->inner, &copy);
    memset(items, 0xff, (size_t)count * sizeof *items);
    free(items);
    return finish(mirror, status);
}

static avl_status_t round_numbers(avl_device_t *device, const avl_round_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    avl_round_args_t copy = *args;
    copy.input = map(mirror, args->input, args->count, sizeof(float), INPUT);
    copy.output = map(mirror, args->output, args->count, sizeof(uint16_t), OUTPUT);
    return finish(mirror, mirror->inner->ops->round(mirror->inner, &copy));
}

static avl_status_t publish(avl_device_t *device, const avl_publish_args_t *args) {
    mirror_t *mirror = mirror_of(device);
    int64_t count = args->items != NULL && args->item_count > 0 ? args->item_count : 0;
    avl_publish_item_t *items = malloc((size_t)(count + 1) * sizeof *items);
    AVL_ASSERT(items != NULL);
    for (int64_t i = 0; i < count; i++) {
        items[i] = args->items[i];
        items[i].target = map(mirror, items[i].target, items[i].count, sizeof(int32_t), OUTPUT);
    }
    avl_publish_args_t copy = {args->items != NULL ? items : NULL, args->item_count};
    avl_status_t status = mirror->inner->ops->publish(mirror->inner, &copy);
    memset(items, 0xff, (size_t)count * sizeof *items);
    free(items);
    return finish(mirror, status);
}

/* ---- memory ---- */

static void close_mirror(avl_device_t *device) {
    avl_device_t *inner = mirror_of(device)->inner;
    inner->ops->release(inner, mirror_of(device)->nothing);
    avl_device_close(inner);
    free(device);
}

static avl_status_t allocate(avl_device_t *device, size_t bytes, const char *what,
                             void **memory_p) {
    (void)device;
    return avl_alloc_aligned(bytes, 1, what, memory_p);
}

static void release(avl_device_t *device, void *memory) {
    (void)device;
    free(memory);
}

static avl_status_t copy_bytes(avl_device_t *device, void *target, const void *source,
                               size_t bytes) {
    (void)device;
    if (bytes > 0)
        memmove(target, source, bytes);
    return AVL_OK;
}

static avl_status_t synchronize(avl_device_t *device) {
    return mirror_of(device)->inner->ops->synchronize(mirror_of(device)->inner);
}

static const avl_device_ops_t mirror_ops = {
    .close = close_mirror,
    .allocate = allocate,
    .release = release,
    .upload = copy_bytes,
    .download = copy_bytes,
    .synchronize = synchronize,
    .linear = linear,
    .norm = norm,
    .rope = rope,
    .activation = activation,
    .gated = gated,
    .add = add,
    .embed = embed,
    .patches = patches,
    .copy_rows = copy_rows,
    .attention = attention,
    .decode_attention = decode_attention,
    .kv_write = kv_write,
    .kv_move = kv_move,
    .topk = topk,
    .argmax = argmax,
    .sample = sample,
    .text_weights = text_weights,
    .text_update = text_update,
    .text_keep = text_keep,
    .diversity = diversity,
    .weigh = weigh,
    .choose = choose,
    .publish = publish,
    .round = round_numbers,
};

avl_status_t avl_mirror_open(avl_device_t *inner, int is_host, avl_device_t **device_p) {
    mirror_t *mirror = NULL;
    AVL_TRY(avl_alloc(1, sizeof *mirror, "the mirror", &mirror));
    mirror->device = (avl_device_t){.ops = &mirror_ops, .info = inner->info, .is_host = is_host};
    mirror->inner = inner;
    avl_status_t status = inner->ops->allocate(inner, ALIGNMENT, "nothing", &mirror->nothing);
    if (status != AVL_OK) {
        free(mirror);
        return status;
    }
    *device_p = &mirror->device;
    return AVL_OK;
}
