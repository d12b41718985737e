/* kernels/cpu/decode_attention.c: a decode step's attention: chunks of rows in parallel, then
 * merges, then the exported weights.
 *
 * Chunks stand at fixed places of a sequence's rows and are merged in their order, so a result
 * depends on the sequence's spans alone. Sequences go in groups whose scratch memory stays below a
 * bound. */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"
#include <inttypes.h>

enum { WEIGHTS_PER_ITEM = 256 };

static const int64_t group_floats_max = INT64_C(4) << 20;

static avl_status_t check_sequence(const avl_decode_attention_args_t *args, int index) {
    static const char *const names[] = {"system rows", "visual rows", "text rows"};
    const avl_decode_sequence_t *sequence = &args->sequences[index];
    int64_t rows = 0;
    for (int span = 0; span < AVL_SPAN_COUNT; span++) {
        AVL_TRY(avl_check_indices("decode_attention", names[span], sequence->spans[span].rows,
                                  sequence->spans[span].row_count, 0));
        rows += sequence->spans[span].row_count;
    }
    AVL_TRY(avl_check_visual_stride(sequence, index));
    for (int head = 1; sequence->visual_stride > 0 && head < args->kv.kv_heads; head++) {
        const avl_row_span_t *visual = &sequence->spans[AVL_SPAN_VISUAL];
        AVL_TRY(avl_check_indices("decode_attention", names[AVL_SPAN_VISUAL],
                                  visual->rows + (int64_t)head * sequence->visual_stride,
                                  visual->row_count, 0));
    }
    AVL_CHECK_SHAPE(rows > 0 && rows <= INT32_MAX,
                    "decode_attention: sequence %d has %" PRId64 " rows", index, rows);
    AVL_CHECK_SHAPE(sequence->query_row >= 0 && sequence->query_row <= INT32_MAX,
                    "decode_attention: sequence %d has query row %" PRId64, index,
                    sequence->query_row);
    AVL_CHECK_SHAPE(sequence->text_first <= 0 || args->text_positions != NULL,
                    "decode_attention: sequence %d hides text before position %" PRId32
                    " and no positions are given",
                    index, sequence->text_first);
    int64_t width = (int64_t)args->heads.query_heads * args->kv.head_width;
    AVL_TRY(avl_check_matrix("decode_attention", "query", args->query, sequence->query_row + 1,
                             args->query_stride, width));
    if (args->output == NULL)
        return AVL_OK;
    return avl_check_matrix("decode_attention", "output", args->output, sequence->query_row + 1,
                            args->output_stride, width);
}

static int64_t sequence_rows(const avl_decode_sequence_t *sequence) {
    int64_t rows = 0;
    for (int span = 0; span < AVL_SPAN_COUNT; span++)
        rows += sequence->spans[span].row_count;
    return rows;
}

static int sequence_chunks(const avl_decode_sequence_t *sequence) {
    return (int)avl_ceil_div(sequence_rows(sequence), AVL_DECODE_ROW_CHUNK);
}

static int64_t partial_floats(const avl_decode_attention_args_t *args,
                              const avl_decode_sequence_t *sequence) {
    return (int64_t)args->heads.query_heads * sequence_chunks(sequence) * (args->kv.head_width + 2);
}

static int64_t visual_floats(const avl_decode_attention_args_t *args,
                             const avl_decode_sequence_t *sequence) {
    if (sequence->visual_weights == NULL)
        return 0;
    return (int64_t)args->heads.query_heads * sequence->spans[AVL_SPAN_VISUAL].row_count;
}

/* One sequence of a group: where its items begin in the three passes. */
typedef struct place {
    avl_decode_item_t item; /* the parts that all items of the sequence share */
    int64_t first_chunk_item, first_weight_item;
} place_t;

typedef struct decode_run {
    avl_cpu_device_t *cpu;
    const avl_decode_attention_args_t *args;
    place_t *places;
    int place_count;
    int64_t head_blocks;
    int64_t chunk_items, weight_items;
    int64_t work;
} decode_run_t;

static void chunk_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    int place = 0;
    while (place + 1 < run->place_count && run->places[place + 1].first_chunk_item <= index)
        place++;
    avl_decode_item_t item = run->places[place].item;
    index -= run->places[place].first_chunk_item;
    item.chunk = (int)(index / run->head_blocks);
    item.first_row = item.chunk * AVL_DECODE_ROW_CHUNK;
    item.row_count =
        (int)avl_min64(AVL_DECODE_ROW_CHUNK, sequence_rows(item.sequence) - item.first_row);
    item.first_kv_head = (int)(index % run->head_blocks) * AVL_DECODE_HEAD_BLOCK;
    item.kv_head_count =
        (int)avl_min64(AVL_DECODE_HEAD_BLOCK, run->args->kv.kv_heads - item.first_kv_head);
    run->cpu->kernels->decode_chunk(&item, run->cpu->thread_scratch[thread].memory);
}

static void merge_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    (void)thread;
    int heads = run->args->heads.query_heads;
    run->cpu->kernels->decode_merge(&run->places[index / heads].item, (int)(index % heads));
}

static void weight_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    (void)thread;
    int place = 0;
    while (place + 1 < run->place_count && run->places[place + 1].first_weight_item <= index)
        place++;
    const avl_decode_item_t *item = &run->places[place].item;
    int first = (int)(index - run->places[place].first_weight_item) * WEIGHTS_PER_ITEM;
    int visual = item->sequence->spans[AVL_SPAN_VISUAL].row_count;
    run->cpu->kernels->decode_weights(item, first,
                                      (int)avl_min64(WEIGHTS_PER_ITEM, visual - first));
}

/* Adds sequences from `first` on while their scratch fits; at least one. Returns the scratch they
 * need, in floats. */
static int64_t plan_group(decode_run_t *run, int first) {
    int64_t floats = 0;
    run->place_count = 0;
    run->chunk_items = run->weight_items = run->work = 0;
    for (int i = first; i < run->args->sequence_count; i++) {
        const avl_decode_sequence_t *sequence = &run->args->sequences[i];
        int64_t more = partial_floats(run->args, sequence) + visual_floats(run->args, sequence);
        if (run->place_count > 0 && floats + more > group_floats_max)
            break;
        place_t *place = &run->places[run->place_count++];
        *place = (place_t){.item = {.args = run->args,
                                    .sequence = sequence,
                                    .chunk_count = sequence_chunks(sequence)},
                           .first_chunk_item = run->chunk_items,
                           .first_weight_item = run->weight_items};
        run->chunk_items += run->head_blocks * place->item.chunk_count;
        if (sequence->visual_weights != NULL)
            run->weight_items +=
                avl_ceil_div(sequence->spans[AVL_SPAN_VISUAL].row_count, WEIGHTS_PER_ITEM);
        run->work += sequence_rows(sequence) * run->args->heads.query_heads;
        floats += more;
    }
    run->work *= run->args->kv.head_width;
    return floats;
}

static avl_status_t run_group(decode_run_t *run, int64_t floats) {
    avl_scratch_t *scratch = &run->cpu->shared_scratch;
    AVL_TRY(avl_scratch_reserve(scratch, (size_t)floats * sizeof(float),
                                "decode attention's partial sums"));
    float *next = scratch->memory;
    for (int i = 0; i < run->place_count; i++) {
        avl_decode_item_t *item = &run->places[i].item;
        item->partials = next;
        next += partial_floats(run->args, item->sequence);
        if (item->sequence->visual_weights != NULL)
            item->visual_logits = next;
        next += visual_floats(run->args, item->sequence);
    }
    avl_cpu_parallel(run->cpu, run->chunk_items, run->work, chunk_item, run);
    avl_cpu_parallel(run->cpu, (int64_t)run->place_count * run->args->heads.query_heads,
                     run->chunk_items * run->args->kv.head_width, merge_item, run);
    avl_cpu_parallel(run->cpu, run->weight_items,
                     run->weight_items * WEIGHTS_PER_ITEM * run->args->heads.query_heads,
                     weight_item, run);
    return AVL_OK;
}

/* A block of KV heads has at most `group` query heads for each. */
static int block_heads(int query_heads, int group) {
    return (int)avl_min64(query_heads, (int64_t)group * AVL_DECODE_HEAD_BLOCK);
}

static avl_status_t reserve_places(avl_cpu_device_t *cpu, int sequences) {
    return avl_scratch_reserve(&cpu->place_scratch, (size_t)sequences * sizeof(place_t),
                               "decode attention's sequences");
}

avl_status_t avl_cpu_decode_attention(avl_device_t *device,
                                      const avl_decode_attention_args_t *args) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    AVL_TRY(avl_check_heads("decode_attention", &args->kv, &args->heads));
    AVL_TRY(
        avl_check_array("decode_attention", "sequences", args->sequences, args->sequence_count));
    if (args->heads.query_heads == 0 || args->sequence_count == 0)
        return AVL_OK;
    for (int i = 0; i < args->sequence_count; i++)
        AVL_TRY(check_sequence(args, i));
    int heads = block_heads(args->heads.query_heads, args->heads.group);
    AVL_TRY(avl_scratch_reserve_threads(cpu, avl_decode_scratch_bytes(heads)));
    AVL_TRY(reserve_places(cpu, args->sequence_count));
    decode_run_t run = {.cpu = cpu,
                        .args = args,
                        .places = cpu->place_scratch.memory,
                        .head_blocks = avl_ceil_div(args->kv.kv_heads, AVL_DECODE_HEAD_BLOCK)};
    for (int first = 0; first < args->sequence_count; first += run.place_count) {
        int64_t floats = plan_group(&run, first);
        AVL_TRY(run_group(&run, floats));
    }
    return AVL_OK;
}

/* The largest group is one sequence, or as many as stay below the bound. */
static int64_t group_floats(const avl_attention_demand_t *demand) {
    int64_t chunks = avl_ceil_div(demand->decode_rows_max, AVL_DECODE_ROW_CHUNK);
    int64_t one =
        demand->query_heads * (chunks * (demand->head_width + 2) + demand->decode_rows_max);
    int64_t all = one * demand->decode_sequences_max;
    return avl_max64(one, avl_min64(all, group_floats_max));
}

avl_status_t avl_cpu_prepare_attention(avl_device_t *device, const avl_attention_demand_t *demand) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    size_t thread_bytes = avl_attention_scratch_bytes(demand->head_width);
    size_t decode_bytes = avl_decode_scratch_bytes(block_heads(demand->query_heads, demand->group));
    AVL_TRY(avl_scratch_reserve_threads(cpu, thread_bytes));
    if (demand->decode_rows_max > 0) {
        AVL_TRY(avl_scratch_reserve_threads(cpu, decode_bytes));
        /* text_update looks for a quantile among a sequence's text rows */
        AVL_TRY(avl_scratch_reserve_threads(cpu, (size_t)demand->decode_rows_max * sizeof(float)));
        AVL_TRY(reserve_places(cpu, demand->decode_sequences_max));
        AVL_TRY(avl_scratch_reserve(&cpu->shared_scratch,
                                    (size_t)group_floats(demand) * sizeof(float),
                                    "decode attention's partial sums"));
    }
    avl_scratch_account(cpu);
    return AVL_OK;
}
