#include <inttypes.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

static avl_status_t check_sequence(const avl_attention_args_t *args, int index) {
    const avl_attention_sequence_t *sequence = &args->sequences[index];
    AVL_CHECK_SHAPE(sequence->query_count >= 0 && sequence->row_count >= sequence->query_count,
                    "attention: sequence %d has %" PRId32 " queries and %" PRId32
                    " rows: every query's own row is among the rows",
                    index, sequence->query_count, sequence->row_count);
    if (sequence->query_count == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(sequence->first_query >= 0 && sequence->first_query <= INT32_MAX,
                    "attention: sequence %d begins at query row %" PRId64, index,
                    sequence->first_query);
    if (sequence->rows == NULL) {
        AVL_CHECK_SHAPE(sequence->first_row >= 0 && sequence->first_row <= INT32_MAX,
                        "attention: sequence %d begins at slot %" PRId64, index,
                        sequence->first_row);
    } else {
        AVL_TRY(avl_check_indices("attention", "rows", sequence->rows, sequence->row_count, 0));
    }
    int64_t rows = sequence->first_query + sequence->query_count;
    int64_t width = (int64_t)args->heads.query_heads * args->kv.head_width;
    AVL_TRY(avl_check_matrix("attention", "query", args->query, rows, args->query_stride, width));
    return avl_check_matrix("attention", "output", args->output, rows, args->output_stride, width);
}

typedef struct attention_run {
    avl_cpu_device_t *cpu;
    const avl_attention_args_t *args;
    const avl_attention_sequence_t *sequence;
    int64_t blocks;
} attention_run_t;

static void attention_item(void *context, int64_t item, int thread) {
    const attention_run_t *run = context;
    /* The last block sees the most rows: begin with it, so that no thread is left with it alone. */
    int64_t block = run->blocks - 1 - item % run->blocks;
    int first = (int)(block * AVL_ATTENTION_QUERY_BLOCK);
    int count = (int)avl_min64(AVL_ATTENTION_QUERY_BLOCK, run->sequence->query_count - first);
    run->cpu->kernels->attention(run->args, run->sequence, (int)(item / run->blocks), first, count,
                                 run->cpu->thread_scratch[thread].memory);
}

avl_status_t avl_cpu_attention(avl_device_t *device, const avl_attention_args_t *args) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    AVL_TRY(avl_check_heads("attention", &args->kv, &args->heads));
    AVL_CHECK_SHAPE(args->window >= 0, "attention: the window is negative, %d", args->window);
    AVL_TRY(avl_check_array("attention", "sequences", args->sequences, args->sequence_count));
    if (args->heads.query_heads == 0)
        return AVL_OK;
    for (int i = 0; i < args->sequence_count; i++)
        AVL_TRY(check_sequence(args, i));
    AVL_TRY(avl_scratch_reserve_threads(cpu, avl_attention_scratch_bytes(args->kv.head_width)));
    for (int i = 0; i < args->sequence_count; i++) {
        const avl_attention_sequence_t *sequence = &args->sequences[i];
        attention_run_t run = {cpu, args, sequence,
                               avl_ceil_div(sequence->query_count, AVL_ATTENTION_QUERY_BLOCK)};
        int64_t items = run.blocks * args->heads.query_heads;
        int64_t work = items * sequence->row_count * args->kv.head_width;
        avl_cpu_parallel(cpu, items, work, attention_item, &run);
    }
    return AVL_OK;
}
