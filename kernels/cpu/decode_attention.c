/* kernels/cpu/decode_attention.c: a decode step's attention: where heads choose rows, the logits of
 * all and the choices; then chunks of rows in parallel, merges, and the exported weights.
 *
 * Chunks stand at fixed places of a sequence's rows and are merged in their order, so a result
 * depends on the sequence's spans alone. Sequences go in groups whose scratch memory stays below a
 * bound. */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"
#include <inttypes.h>
#include <string.h>

enum { WEIGHTS_PER_ITEM = 256, CHOICE_WORK = 8 /* multiply-adds a logit */ };

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
    AVL_TRY(avl_check_visual_keep(sequence, index));
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

static int sequence_chunks(const avl_decode_sequence_t *sequence) {
    return (int)avl_ceil_div(avl_decode_rows(sequence), AVL_DECODE_ROW_CHUNK);
}

static int64_t partial_floats(const avl_decode_attention_args_t *args,
                              const avl_decode_sequence_t *sequence) {
    return (int64_t)args->heads.query_heads * sequence_chunks(sequence) * (args->kv.head_width + 2);
}

static int64_t visual_floats(const avl_decode_attention_args_t *args,
                             const avl_decode_sequence_t *sequence) {
    if (sequence->visual_weights == NULL && sequence->visual_keep == 0)
        return 0;
    return (int64_t)args->heads.query_heads * sequence->spans[AVL_SPAN_VISUAL].row_count;
}

/* As floats, whose size they have. */
static int64_t place_floats(const avl_decode_attention_args_t *args,
                            const avl_decode_sequence_t *sequence) {
    return sequence->visual_places != NULL ? 0 : (int64_t)args->kv.kv_heads * sequence->visual_keep;
}

/* The passes, in their order: logits of the rows that heads choose from, their choices, chunks of
 * the rows attended to, merges of chunks, and exported weights. */
typedef enum pass { SCORE, CHOOSE, CHUNK, MERGE, WEIGHT, PASSES } pass_t;

/* One sequence of a group: where its items begin in the passes. */
typedef struct place {
    avl_decode_item_t item; /* the parts that all items of the sequence share */
    int64_t first_items[PASSES];
} place_t;

typedef struct decode_run {
    avl_cpu_device_t *cpu;
    const avl_decode_attention_args_t *args;
    place_t *places;
    int place_count;
    int64_t head_blocks;
    int64_t items[PASSES], work[PASSES];
} decode_run_t;

/* The sequence's part of the item `*index_p` of a pass, which then counts within it. */
static avl_decode_item_t find_item(const decode_run_t *run, pass_t pass, int64_t *index_p) {
    int place = 0;
    while (place + 1 < run->place_count && run->places[place + 1].first_items[pass] <= *index_p)
        place++;
    *index_p -= run->places[place].first_items[pass];
    return run->places[place].item;
}

/* Item `index` of those that a sequence's `rows` rows and all KV heads are divided into. */
static void lay_out_chunk(const decode_run_t *run, int64_t index, int64_t rows,
                          avl_decode_item_t *item) {
    item->chunk = (int)(index / run->head_blocks);
    item->first_row = item->chunk * AVL_DECODE_ROW_CHUNK;
    item->row_count = (int)avl_min64(AVL_DECODE_ROW_CHUNK, rows - item->first_row);
    item->first_kv_head = (int)(index % run->head_blocks) * AVL_DECODE_HEAD_BLOCK;
    item->kv_head_count =
        (int)avl_min64(AVL_DECODE_HEAD_BLOCK, run->args->kv.kv_heads - item->first_kv_head);
}

static void score_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    avl_decode_item_t item = find_item(run, SCORE, &index);
    lay_out_chunk(run, index, item.sequence->spans[AVL_SPAN_VISUAL].row_count, &item);
    run->cpu->kernels->decode_score(&item, run->cpu->thread_scratch[thread].memory);
}

static void choose_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    avl_decode_item_t item = find_item(run, CHOOSE, &index);
    run->cpu->kernels->decode_choose(&item, (int)index, run->cpu->thread_scratch[thread].memory);
}

static void chunk_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    avl_decode_item_t item = find_item(run, CHUNK, &index);
    lay_out_chunk(run, index, avl_decode_rows(item.sequence), &item);
    run->cpu->kernels->decode_chunk(&item, run->cpu->thread_scratch[thread].memory);
}

static void merge_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    (void)thread;
    avl_decode_item_t item = find_item(run, MERGE, &index);
    run->cpu->kernels->decode_merge(&item, (int)index);
}

static void weight_item(void *context, int64_t index, int thread) {
    const decode_run_t *run = context;
    (void)thread;
    avl_decode_item_t item = find_item(run, WEIGHT, &index);
    int first = (int)index * WEIGHTS_PER_ITEM;
    int visual = item.sequence->spans[AVL_SPAN_VISUAL].row_count;
    run->cpu->kernels->decode_weights(&item, first,
                                      (int)avl_min64(WEIGHTS_PER_ITEM, visual - first));
}

/* Adds a sequence to every pass that it takes part in. */
static void plan_sequence(decode_run_t *run, const avl_decode_sequence_t *sequence) {
    place_t *place = &run->places[run->place_count++];
    *place = (place_t){.item = {.args = run->args,
                                .sequence = sequence,
                                .chunk_count = sequence_chunks(sequence)}};
    int64_t heads = run->args->heads.query_heads, width = run->args->kv.head_width;
    int64_t visual = sequence->spans[AVL_SPAN_VISUAL].row_count;
    int64_t items[PASSES] = {
        [CHUNK] = run->head_blocks * place->item.chunk_count,
        [MERGE] = heads,
    };
    int64_t work[PASSES] = {
        [CHUNK] = avl_decode_rows(sequence) * heads * width,
        [MERGE] = items[CHUNK] * width,
    };
    if (sequence->visual_keep > 0) {
        items[SCORE] = run->head_blocks * avl_ceil_div(visual, AVL_DECODE_ROW_CHUNK);
        items[CHOOSE] = run->args->kv.kv_heads;
        work[SCORE] = visual * heads * width;
        work[CHOOSE] = CHOICE_WORK * visual * heads;
    }
    if (sequence->visual_weights != NULL) {
        items[WEIGHT] = avl_ceil_div(visual, WEIGHTS_PER_ITEM);
        work[WEIGHT] = visual * heads;
    }
    for (int pass = 0; pass < PASSES; pass++) {
        place->first_items[pass] = run->items[pass];
        run->items[pass] += items[pass];
        run->work[pass] += work[pass];
    }
}

/* Adds sequences from `first` on while their scratch fits; at least one. Returns the scratch they
 * need, in floats. */
static int64_t plan_group(decode_run_t *run, int first) {
    int64_t floats = 0;
    run->place_count = 0;
    memset(run->items, 0, sizeof run->items);
    memset(run->work, 0, sizeof run->work);
    for (int i = first; i < run->args->sequence_count; i++) {
        const avl_decode_sequence_t *sequence = &run->args->sequences[i];
        int64_t more = partial_floats(run->args, sequence) + visual_floats(run->args, sequence) +
                       place_floats(run->args, sequence);
        if (run->place_count > 0 && floats + more > group_floats_max)
            break;
        plan_sequence(run, sequence);
        floats += more;
    }
    return floats;
}

static avl_status_t run_group(decode_run_t *run, int64_t floats) {
    static avl_cpu_task_t *const tasks[PASSES] = {
        [SCORE] = score_item, [CHOOSE] = choose_item, [CHUNK] = chunk_item,
        [MERGE] = merge_item, [WEIGHT] = weight_item,
    };
    avl_scratch_t *scratch = &run->cpu->shared_scratch;
    AVL_TRY(avl_scratch_reserve(scratch, (size_t)floats * sizeof(float),
                                "decode attention's partial sums"));
    float *next = scratch->memory;
    for (int i = 0; i < run->place_count; i++) {
        avl_decode_item_t *item = &run->places[i].item;
        const avl_decode_sequence_t *sequence = item->sequence;
        item->partials = next;
        next += partial_floats(run->args, sequence);
        item->visual_logits = visual_floats(run->args, sequence) > 0 ? next : NULL;
        next += visual_floats(run->args, sequence);
        if (sequence->visual_keep > 0)
            item->places =
                sequence->visual_places != NULL ? sequence->visual_places : (int32_t *)next;
        next += place_floats(run->args, sequence);
    }
    for (int pass = 0; pass < PASSES; pass++)
        avl_cpu_parallel(run->cpu, run->items[pass], run->work[pass], tasks[pass], run);
    return AVL_OK;
}

/* A block of KV heads has at most `group` query heads for each. */
static int block_heads(int query_heads, int group) {
    return (int)avl_min64(query_heads, (int64_t)group * AVL_DECODE_HEAD_BLOCK);
}

/* A thread's scratch for a choice: weights and exponentials. */
static size_t choice_bytes(int64_t rows) {
    return 2 * (size_t)rows * sizeof(float);
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
    int64_t chosen_from = 0;
    for (int i = 0; i < args->sequence_count; i++) {
        AVL_TRY(check_sequence(args, i));
        if (args->sequences[i].visual_keep > 0)
            chosen_from =
                avl_max64(chosen_from, args->sequences[i].spans[AVL_SPAN_VISUAL].row_count);
    }
    int heads = block_heads(args->heads.query_heads, args->heads.group);
    AVL_TRY(avl_scratch_reserve_threads(cpu, avl_decode_scratch_bytes(heads)));
    AVL_TRY(avl_scratch_reserve_threads(cpu, choice_bytes(chosen_from)));
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
    avl_head_map_t heads = {demand->query_heads, demand->group, demand->group - 1};
    int64_t one =
        demand->query_heads * (chunks * (demand->head_width + 2) + demand->decode_rows_max) +
        avl_head_map_kv_heads(&heads) * demand->decode_rows_max;
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
        /* as much as text_update needs to look for a quantile among a sequence's text rows */
        AVL_TRY(avl_scratch_reserve_threads(cpu, choice_bytes(demand->decode_rows_max)));
        AVL_TRY(reserve_places(cpu, demand->decode_sequences_max));
        AVL_TRY(avl_scratch_reserve(&cpu->shared_scratch,
                                    (size_t)group_floats(demand) * sizeof(float),
                                    "decode attention's partial sums"));
    }
    avl_scratch_account(cpu);
    return AVL_OK;
}
