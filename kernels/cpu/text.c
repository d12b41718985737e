/* kernels/cpu/text.c: adaptive text attention: weights of rows, and the histories that they make.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

static avl_status_t check_row(const char *operation, const avl_text_row_t *row, int index) {
    AVL_CHECK_SHAPE(row->row_count >= 1 && row->own >= -1 && row->own < row->row_count,
                    "%s: item %d has %" PRId32 " rows, and its own is %" PRId32, operation, index,
                    row->row_count, row->own);
    AVL_TRY(avl_check_array(operation, "weights", row->weights, row->row_count));
    return avl_check_indices(operation, "rows", row->rows, row->row_count, 0);
}

/* ---- weights ---- */

typedef struct weights_run {
    const avl_cpu_kernels_t *kernels;
    const avl_text_weights_args_t *args;
} weights_run_t;

static void weights_item(void *context, int64_t item, int thread) {
    const weights_run_t *run = context;
    (void)thread;
    int heads = run->args->kv.kv_heads;
    run->kernels->text_weights(run->args, &run->args->rows[item / heads], (int)(item % heads));
}

avl_status_t avl_cpu_text_weights(avl_device_t *device, const avl_text_weights_args_t *args) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    AVL_TRY(avl_check_heads("text_weights", &args->kv, &args->heads));
    AVL_TRY(avl_check_array("text_weights", "rows", args->rows, args->count));
    AVL_CHECK_SHAPE(args->first_head >= 0, "text_weights: the buffer's first head is %d",
                    args->first_head);
    int64_t work = 0, width = (int64_t)args->heads.query_heads * args->kv.head_width;
    for (int i = 0; i < args->count; i++) {
        const avl_text_row_t *row = &args->rows[i];
        AVL_TRY(check_row("text_weights", row, i));
        AVL_CHECK_SHAPE(row->first_position <= 0 || args->positions != NULL,
                        "text_weights: item %d hides rows before position %" PRId32
                        " and no positions are given",
                        i, row->first_position);
        AVL_CHECK_SHAPE(row->query_row >= 0 && row->query_row <= INT32_MAX,
                        "text_weights: item %d has query row %" PRId64, i, row->query_row);
        AVL_TRY(avl_check_array("text_weights", "totals", row->totals, 1));
        AVL_TRY(avl_check_matrix("text_weights", "query", args->query, row->query_row + 1,
                                 args->query_stride, width));
        work += row->row_count * width;
    }
    if (args->heads.query_heads == 0)
        return AVL_OK;
    weights_run_t run = {cpu->kernels, args};
    avl_cpu_parallel(cpu, (int64_t)args->count * args->kv.kv_heads, work, weights_item, &run);
    return AVL_OK;
}

/* ---- histories ---- */

static void swap(float *a, float *b) {
    float value = *a;
    *a = *b;
    *b = value;
}

/* Puts the value of rank `place` in its place, no larger ones before it, no smaller ones behind. */
static void settle(float *values, int32_t count, int32_t place) {
    int32_t low = 0, high = count - 1;
    while (low < high) {
        int32_t middle = low + (high - low) / 2, i = low, j = high;
        if (values[middle] < values[low])
            swap(&values[middle], &values[low]);
        if (values[high] < values[low])
            swap(&values[high], &values[low]);
        if (values[high] < values[middle])
            swap(&values[high], &values[middle]);
        float pivot = values[middle];
        while (i <= j) {
            while (values[i] < pivot)
                i++;
            while (pivot < values[j])
                j--;
            if (i <= j)
                swap(&values[i++], &values[j--]);
        }
        if (place <= j)
            high = j;
        else if (place >= i)
            low = i;
        else
            return;
    }
}

/* Of `count` >= 1 values, whose order is lost. */
static float quantile_of(float *values, int32_t count, float quantile) {
    float rank = quantile * (float)(count - 1), lower = floorf(rank);
    int32_t place = (int32_t)lower;
    place = place < count - 1 ? place : count - 1;
    settle(values, count, place);
    float value = values[place], next = value;
    if (place + 1 < count) {
        next = values[place + 1];
        for (int32_t i = place + 2; i < count; i++)
            next = values[i] < next ? values[i] : next;
    }
    return value + (rank - lower) * (next - value);
}

typedef struct update_run {
    avl_cpu_device_t *cpu;
    const avl_text_update_args_t *args;
    int first, count; /* one sequence's items */
} update_run_t;

/* Whether score a goes before score b; a NaN goes first. */
static int goes_before(float a, float b) {
    return a < b || (a != a && b == b);
}

static void name_hole(const avl_text_update_args_t *args, const avl_text_row_t *row, int head) {
    int32_t hole = -1, hole_position = 0;
    float least = 0.0f;
    for (int32_t j = 0; j < row->row_count; j++) {
        int64_t place = avl_row_place(row->rows[j], head, args->kv_heads);
        int32_t position = args->positions[place];
        float score = args->scores[place];
        if (position >= row->recent_position)
            continue;
        if (hole >= 0 &&
            (goes_before(least, score) || (!goes_before(score, least) && position < hole_position)))
            continue;
        hole = j;
        hole_position = position;
        least = score;
    }
    hole = hole < 0 ? 0 : hole; /* the caller's mistake: nothing may go */
    row->holes[head] = hole;
    row->holes[args->kv_heads + head] = row->rows[hole];
}

static void update_row(const avl_text_update_args_t *args, const avl_text_row_t *row, int head,
                       float *scratch) {
    const float *weights = row->weights + (int64_t)(args->first_head + head) * row->row_count;
    int32_t own = row->own >= 0 ? row->own : row->holes[head], count = 0;
    float taken_off = 0.0f;
    if (row->quantile >= 0.0f) {
        for (int32_t j = 0; j < row->row_count; j++) {
            float weight = args->share * weights[j];
            if (j != own || row->quantile_of_own)
                scratch[count++] = weight == weight ? weight : 0.0f; /* sorting wants numbers */
        }
        if (count > 0)
            taken_off = quantile_of(scratch, count, row->quantile);
    }
    for (int32_t j = 0; j < row->row_count; j++) {
        float weight = args->share * weights[j];
        float *score = args->scores + avl_row_place(row->rows[j], head, args->kv_heads);
        *score = j == own ? weight : *score + (weight - taken_off);
    }
    if (row->recent_position > 0)
        name_hole(args, row, head);
}

static void update_item(void *context, int64_t item, int thread) {
    const update_run_t *run = context;
    const avl_text_update_args_t *args = run->args;
    int head = (int)(item % args->kv_heads), first = 0;
    /* The item's sequence is the (item / heads)-th. */
    for (int64_t sequence = -1; first < args->count; first++) {
        sequence += first == 0 || !args->rows[first].follows;
        if (sequence == item / args->kv_heads)
            break;
    }
    for (int i = first; i < args->count && (i == first || args->rows[i].follows); i++)
        update_row(args, &args->rows[i], head, run->cpu->thread_scratch[thread].memory);
}

avl_status_t avl_cpu_text_update(avl_device_t *device, const avl_text_update_args_t *args) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    AVL_TRY(avl_check_array("text_update", "rows", args->rows, args->count));
    AVL_CHECK_SHAPE(args->kv_heads >= 0 && args->first_head >= 0,
                    "text_update: %d KV heads from %d on", args->kv_heads, args->first_head);
    int64_t sequences = 0, work = 0;
    int32_t rows_most = 0;
    for (int i = 0; i < args->count; i++) {
        const avl_text_row_t *row = &args->rows[i];
        AVL_TRY(check_row("text_update", row, i));
        AVL_CHECK_SHAPE(row->holes != NULL || (row->own >= 0 && row->recent_position <= 0),
                        "text_update: item %d has no holes", i);
        AVL_CHECK_SHAPE(row->quantile <= 1.0f, "text_update: item %d takes quantile %g", i,
                        (double)row->quantile);
        sequences += i == 0 || !row->follows;
        rows_most = row->row_count > rows_most ? row->row_count : rows_most;
        work += (int64_t)16 * row->row_count * args->kv_heads;
    }
    AVL_TRY(avl_check_array("text_update", "scores", args->scores, args->count));
    AVL_TRY(avl_check_array("text_update", "positions", args->positions, args->count));
    AVL_TRY(avl_scratch_reserve_threads(cpu, (size_t)rows_most * sizeof(float)));
    update_run_t run = {.cpu = cpu, .args = args};
    avl_cpu_parallel(cpu, sequences * args->kv_heads, work, update_item, &run);
    return AVL_OK;
}

/* One head's rows. Its scores and what comes of them are a part of the scratch memory of its own.
 */
static avl_status_t keep_rows(avl_device_t *device, const avl_text_keep_args_t *args, int head) {
    int32_t older = args->count - args->recent, heavy = args->keep - args->recent;
    float *scores = (float *)args->scratch + (int64_t)2 * args->count * head;
    int32_t *kept = (int32_t *)(void *)(scores + args->count);
    for (int32_t i = 0; i < older; i++)
        scores[i] = args->scores[avl_row_place(args->rows[i], head, args->kv_heads)];
    AVL_TRY(avl_cpu_topk(
        device,
        &(avl_topk_args_t){.scores = scores, .count = older, .keep = heavy, .indices = kept}));
    for (int32_t i = 0; i < args->keep; i++) {
        int32_t source = args->rows[i < heavy ? kept[i] : older + i - heavy];
        int64_t to = avl_row_place(args->rows[i], head, args->kv_heads);
        int64_t from = avl_row_place(source, head, args->kv_heads);
        args->scores[to] = args->scores[from];
        args->positions[to] = args->positions[from];
        args->sources[(int64_t)i * args->kv_heads + head] = source;
        args->targets[(int64_t)i * args->kv_heads + head] = args->rows[i];
    }
    return AVL_OK;
}

avl_status_t avl_cpu_text_keep(avl_device_t *device, const avl_text_keep_args_t *args) {
    AVL_TRY(avl_check_text_keep(args));
    AVL_TRY(avl_check_indices("text_keep", "rows", args->rows, args->count, 0));
    /* A prompt's rows once in a request's life: no other thread is woken for them. */
    for (int head = 0; head < args->kv_heads; head++)
        AVL_TRY(keep_rows(device, args, head));
    return AVL_OK;
}
