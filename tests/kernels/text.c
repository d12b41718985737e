/* tests/kernels/text.c: adaptive text attention against the contract written out in double
 * precision: weights, histories, the row that goes, and rows that are written and moved head by
 * head. */
#include "tests/kernels/fixture.h"

#include "kernels/text.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/reference.h"

enum { SLOTS = 320, ROWS_MAX = 230, HEADS_MAX = 10, BUFFER_EXTRA = 2 };

typedef struct geometry {
    int query_heads, group, offset, kv_heads, width;
} geometry_t;

static const geometry_t geometries[] = {
    {2, 1, 0, 2, 64}, {4, 2, 0, 2, 128}, {3, 4, 2, 2, 32}, {19, 2, 1, 10, 24}, {5, 2, 1, 3, 7},
};

/* A rank with this geometry has SLOTS slots; every slot and head has a position of its own. */
typedef struct problem {
    const geometry_t *geometry;
    avl_dtype_t dtype;
    int64_t row_stride, query_stride;
    tensor_t query, keys, values, scores, weights, totals;
    int32_t positions[SLOTS * HEADS_MAX];
    int32_t slots[SLOTS];
    int32_t holes[2 * HEADS_MAX];
} problem_t;

static void create_problem(const geometry_t *geometry, avl_dtype_t dtype, problem_t *problem) {
    *problem = (problem_t){.geometry = geometry, .dtype = dtype};
    problem->row_stride = (int64_t)geometry->kv_heads * geometry->width + ROW_GAP(6);
    problem->query_stride = (int64_t)geometry->query_heads * geometry->width + ROW_GAP(1);
    problem->query = tensor_random(dtype, 3 * problem->query_stride, 2.0);
    problem->keys = tensor_random(dtype, SLOTS * problem->row_stride, 2.0);
    problem->values = tensor_random(dtype, SLOTS * problem->row_stride, 1.0);
    problem->scores = tensor_random(AVL_DTYPE_F32, (int64_t)SLOTS * geometry->kv_heads, 1.0);
    problem->weights =
        tensor_create(AVL_DTYPE_F32, (int64_t)(geometry->kv_heads + BUFFER_EXTRA) * ROWS_MAX);
    problem->totals = tensor_create(AVL_DTYPE_F32, (int64_t)2 * geometry->query_heads);
    for (int i = 0; i < SLOTS; i++) {
        problem->slots[i] = i * 37 % SLOTS; /* 37 and SLOTS share no factor */
        for (int h = 0; h < geometry->kv_heads; h++)
            problem->positions[avl_row_place(i, h, geometry->kv_heads)] =
                1 + (i * (7 + 2 * h) + h) % 997;
    }
}

static void destroy_problem(problem_t *problem) {
    tensor_t *tensors[] = {&problem->query,  &problem->keys,    &problem->values,
                           &problem->scores, &problem->weights, &problem->totals};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        tensor_check_canaries(tensors[i]);
        tensor_destroy(tensors[i]);
    }
}

static avl_kv_view_t view_of(const problem_t *problem) {
    const geometry_t *geometry = problem->geometry;
    return (avl_kv_view_t){problem->keys.data, problem->values.data, problem->row_stride,
                           geometry->kv_heads, geometry->width,      problem->dtype};
}

static avl_head_map_t heads_of(const problem_t *problem) {
    const geometry_t *geometry = problem->geometry;
    return (avl_head_map_t){geometry->query_heads, geometry->group, geometry->offset};
}

/* ---- attention and weights ---- */

/* Query row 2 over 40 system rows, none visual, and `count` text rows, of which each head sees
 * those from `first` on; then the weights of the text rows. */
static void check_weights(avl_device_t *device, problem_t *problem, int count, int32_t first) {
    const geometry_t *geometry = problem->geometry;
    enum { SYSTEM = 40 };
    int width = geometry->width, kv_heads = geometry->kv_heads;
    float scale = 1.0f / sqrtf((float)width);
    tensor_t output = tensor_create(problem->dtype, 3 * problem->query_stride);
    avl_decode_sequence_t sequence = {
        .query_row = 2,
        .spans = {{problem->slots, SYSTEM}, {NULL, 0}, {problem->slots + SYSTEM, count}},
        .totals = problem->totals.data,
        .text_first = first};
    avl_decode_attention_args_t attend = {.query = problem->query.data,
                                          .query_stride = problem->query_stride,
                                          .kv = view_of(problem),
                                          .heads = heads_of(problem),
                                          .sequences = &sequence,
                                          .sequence_count = 1,
                                          .output = output.data,
                                          .output_stride = problem->query_stride,
                                          .scale = scale,
                                          .text_positions = problem->positions};
    expect_status(avl_decode_attention(device, &attend), AVL_OK, NULL);
    avl_text_row_t row = {.query_row = 2,
                          .rows = problem->slots + SYSTEM,
                          .row_count = count,
                          .own = count - 1,
                          .first_position = first,
                          .totals = problem->totals.data,
                          .weights = problem->weights.data};
    avl_text_weights_args_t weigh = {.query = problem->query.data,
                                     .query_stride = problem->query_stride,
                                     .kv = view_of(problem),
                                     .heads = heads_of(problem),
                                     .positions = problem->positions,
                                     .rows = &row,
                                     .count = 1,
                                     .first_head = 1,
                                     .scale = scale};
    for (int64_t i = 0; i < problem->weights.count; i++)
        tensor_set(&problem->weights, i, -7.0);
    expect_status(avl_text_weights(device, &weigh), AVL_OK, NULL);
    static double sums[HEADS_MAX][ROWS_MAX], weights[SLOTS], expected[256];
    memset(sums, 0, sizeof sums);
    for (int head = 0; head < geometry->query_heads; head++) {
        int kv_head = (head + geometry->offset) / geometry->group, seen = 0;
        int32_t slots[SLOTS], places[SLOTS];
        for (int i = 0; i < SYSTEM + count; i++) {
            int32_t slot = problem->slots[i];
            if (i >= SYSTEM && problem->positions[avl_row_place(slot, kv_head, kv_heads)] < first)
                continue;
            places[seen] = i - SYSTEM;
            slots[seen++] = slot;
        }
        reference_attend(&problem->query, 2 * problem->query_stride + (int64_t)head * width,
                         &problem->keys, &problem->values, problem->row_stride,
                         (int64_t)kv_head * width, width, slots, seen, (double)scale, weights,
                         expected);
        for (int i = 0; i < seen; i++) {
            if (places[i] >= 0)
                sums[kv_head][places[i]] += weights[i];
        }
        double absolute = problem->dtype == AVL_DTYPE_F32 ? 2e-5 : 1e-3;
        double relative = problem->dtype == AVL_DTYPE_F32 ? 0 : 0x1p-7;
        for (int d = 0; d < width; d++) {
            int64_t index = 2 * problem->query_stride + (int64_t)head * width + d;
            check_close(tensor_get(&output, index), expected[d], absolute, relative,
                        "attention with hidden text", index);
        }
    }
    for (int h = 0; h < kv_heads + BUFFER_EXTRA; h++) {
        for (int i = 0; i < count; i++) {
            bool own = h >= 1 && h <= kv_heads; /* the buffer's other heads stay as they were */
            check_close(tensor_get(&problem->weights, (int64_t)h * count + i),
                        own ? sums[h - 1][i] : -7.0, own ? 1e-5 * geometry->group : 0, 0,
                        "text weight", i);
        }
    }
    tensor_check_canaries(&output);
    tensor_destroy(&output);
}

static void check_all_weights(avl_device_t *device, void *context) {
    (void)context;
    static problem_t problem;
    for (size_t g = 0; g < sizeof geometries / sizeof *geometries; g++) {
        for (int f = 0; f < 2; f++) {
            create_problem(&geometries[g], f ? AVL_DTYPE_BF16 : AVL_DTYPE_F32, &problem);
            check_weights(device, &problem, 1, 0);
            check_weights(device, &problem, 70, 0);
            check_weights(device, &problem, ROWS_MAX, 500);
            check_weights(device, &problem, ROWS_MAX, 2000); /* whole chunks hidden */
            destroy_problem(&problem);
        }
    }
}

static void weighs_text_rows(void **unused) {
    (void)unused;
    random_seed(11);
    for_each_device(check_all_weights, NULL);
}

/* ---- histories ---- */

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

static double reference_quantile(const double *weights, int count, int left_out, double quantile) {
    double sorted[ROWS_MAX];
    int n = 0;
    for (int i = 0; i < count; i++) {
        if (i != left_out)
            sorted[n++] = weights[i];
    }
    if (n == 0)
        return 0;
    qsort(sorted, (size_t)n, sizeof *sorted, by_size);
    double rank = quantile * (n - 1);
    int low = (int)floor(rank + 1e-7);
    return sorted[low] + (low + 1 < n ? (rank - low) * (sorted[low + 1] - sorted[low]) : 0);
}

/* One item for one head; `scores` are the head's, in the order of the item's rows. */
static void reference_update(const avl_text_row_t *row, const double *weights, int own,
                             double *scores) {
    double taken_off = 0;
    if (row->quantile >= 0)
        taken_off = reference_quantile(weights, row->row_count, row->quantile_of_own ? -1 : own,
                                       (double)row->quantile);
    for (int i = 0; i < row->row_count; i++)
        scores[i] = i == own ? weights[i] : scores[i] + weights[i] - taken_off;
}

static int reference_hole(const problem_t *problem, const avl_text_row_t *row, int head) {
    int kv_heads = problem->geometry->kv_heads, hole = -1;
    for (int i = 0; i < row->row_count; i++) {
        int64_t place = avl_row_place(row->rows[i], head, kv_heads);
        if (problem->positions[place] >= row->recent_position)
            continue;
        int64_t best = hole < 0 ? 0 : avl_row_place(row->rows[hole], head, kv_heads);
        double score = tensor_get(&problem->scores, place);
        if (hole < 0 || score < tensor_get(&problem->scores, best) ||
            (!(score > tensor_get(&problem->scores, best)) &&
             problem->positions[place] > problem->positions[best]))
            hole = i;
    }
    return hole;
}

typedef struct update_case {
    int count; /* rows of the first item */
    int items; /* of one sequence, a row more each */
    float quantile;
    int quantile_of_own;
    bool in_hole; /* else the last row is its own */
    bool coarse;  /* weights and scores with many equals */
    int32_t recent;
} update_case_t;

static const update_case_t update_cases[] = {
    {1, 1, .4f, 1, false, false, 0},         {2, 1, .5f, 1, false, false, 998},
    {ROWS_MAX, 1, .4f, 1, true, false, 500}, {ROWS_MAX, 1, .25f, 1, true, true, 700},
    {50, 1, -1, 0, true, true, 998},         {1, 60, .4f, 0, false, false, 0},
    {9, 30, .5f, 0, false, true, 0},         {130, 1, 0, 1, true, false, 300},
    {130, 1, 1, 1, true, false, 300},
};

static void fill_weights(problem_t *problem, bool coarse) {
    for (int64_t i = 0; i < problem->weights.count; i++)
        tensor_set(&problem->weights, i,
                   coarse ? random_below(4) * .125 : random_below(1 << 20) * 0x1p-20);
    for (int64_t i = 0; coarse && i < problem->scores.count; i++)
        tensor_set(&problem->scores, i, random_below(3) * .5);
}

static void check_update(avl_device_t *device, problem_t *problem, const update_case_t *data) {
    enum { ITEMS_MAX = 60 };
    int kv_heads = problem->geometry->kv_heads;
    avl_text_row_t rows[ITEMS_MAX];
    fill_weights(problem, data->coarse);
    for (int h = 0; h < kv_heads; h++)
        problem->holes[h] = random_below(data->count);
    int64_t most = (int64_t)(kv_heads + BUFFER_EXTRA) * (data->count + data->items - 1);
    tensor_t weights = tensor_create(AVL_DTYPE_F32, most * data->items);
    for (int64_t i = 0; i < weights.count; i++)
        tensor_set(&weights, i, tensor_get(&problem->weights, i % problem->weights.count));
    for (int i = 0; i < data->items; i++)
        rows[i] = (avl_text_row_t){.rows = problem->slots,
                                   .row_count = data->count + i,
                                   .own = data->in_hole ? -1 : data->count + i - 1,
                                   .weights = (float *)weights.data + most * i,
                                   .holes = problem->holes,
                                   .follows = i > 0,
                                   .quantile = data->quantile,
                                   .quantile_of_own = data->quantile_of_own,
                                   .recent_position = data->recent};
    avl_text_update_args_t args = {.scores = problem->scores.data,
                                   .positions = problem->positions,
                                   .kv_heads = kv_heads,
                                   .rows = rows,
                                   .count = data->items,
                                   .first_head = 2,
                                   .share = .5f};
    tensor_t before = tensor_copy(&problem->scores);
    int32_t holes[HEADS_MAX];
    memcpy(holes, problem->holes, sizeof holes);
    expect_status(avl_text_update(device, &args), AVL_OK, NULL);
    for (int h = 0; h < kv_heads; h++) {
        double scores[ROWS_MAX], shares[ROWS_MAX];
        int last = data->count + data->items - 1;
        for (int i = 0; i < last; i++)
            scores[i] = tensor_get(&before, avl_row_place(problem->slots[i], h, kv_heads));
        for (int k = 0; k < data->items; k++) {
            for (int i = 0; i < rows[k].row_count; i++)
                shares[i] =
                    .5 * tensor_get(&weights, most * k + (int64_t)(2 + h) * rows[k].row_count + i);
            reference_update(&rows[k], shares, rows[k].own >= 0 ? rows[k].own : holes[h], scores);
        }
        for (int i = 0; i < last; i++)
            check_close(tensor_get(&problem->scores, avl_row_place(problem->slots[i], h, kv_heads)),
                        scores[i], 1e-6 * data->items, 1e-6, "history", i);
        if (data->recent == 0)
            continue;
        int hole = reference_hole(problem, &rows[0], h);
        assert_int_equal(problem->holes[h], hole);
        assert_int_equal(problem->holes[kv_heads + h], problem->slots[hole]);
    }
    /* The slots beyond the rows are nobody's. */
    for (int i = data->count + data->items - 1; i < SLOTS; i++) {
        for (int h = 0; h < kv_heads; h++) {
            int64_t place = avl_row_place(problem->slots[i], h, kv_heads);
            assert_true(tensor_get(&problem->scores, place) == tensor_get(&before, place));
        }
    }
    tensor_check_canaries(&weights);
    tensor_destroy(&weights);
    tensor_destroy(&before);
}

static void check_all_updates(avl_device_t *device, void *context) {
    (void)context;
    static problem_t problem;
    for (size_t g = 1; g < sizeof geometries / sizeof *geometries; g += 2) {
        create_problem(&geometries[g], AVL_DTYPE_F32, &problem);
        for (size_t i = 0; i < sizeof update_cases / sizeof *update_cases; i++)
            check_update(device, &problem, &update_cases[i]);
        destroy_problem(&problem);
    }
}

static void keeps_histories(void **unused) {
    (void)unused;
    random_seed(12);
    for_each_device(check_all_updates, NULL);
}

/* Several sequences at once are each what they are alone; a NaN goes first and harms nobody else.
 */
static void check_company(avl_device_t *device, void *context) {
    (void)context;
    static problem_t problem;
    create_problem(&geometries[1], AVL_DTYPE_F32, &problem);
    enum { SEQUENCES = 40, ROWS = 7, HEADS = 2 };
    tensor_t weights = tensor_create(AVL_DTYPE_F32, SEQUENCES * ROWS * HEADS);
    for (int64_t i = 0; i < weights.count; i++)
        tensor_set(&weights, i, random_below(1 << 20) * 0x1p-20);
    int32_t holes[SEQUENCES][2 * HEADS], alone[2 * HEADS];
    avl_text_row_t rows[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++)
        rows[s] = (avl_text_row_t){.rows = problem.slots + s * ROWS,
                                   .row_count = ROWS,
                                   .own = ROWS - 1,
                                   .weights = (float *)weights.data + s * ROWS * HEADS,
                                   .holes = holes[s],
                                   .quantile = .4f,
                                   .quantile_of_own = 1,
                                   .recent_position = 2000};
    tensor_set(&problem.scores, avl_row_place(rows[3].rows[4], 1, HEADS), NAN);
    tensor_t before = tensor_copy(&problem.scores);
    avl_text_update_args_t args = {.scores = problem.scores.data,
                                   .positions = problem.positions,
                                   .kv_heads = HEADS,
                                   .rows = rows,
                                   .count = SEQUENCES,
                                   .share = 1};
    expect_status(avl_text_update(device, &args), AVL_OK, NULL);
    tensor_t together = tensor_copy(&problem.scores);
    memcpy(problem.scores.data, before.data, (size_t)before.count * sizeof(float));
    for (int s = 0; s < SEQUENCES; s++) {
        avl_text_row_t row = rows[s];
        row.holes = alone;
        args.rows = &row;
        args.count = 1;
        expect_status(avl_text_update(device, &args), AVL_OK, NULL);
        assert_memory_equal(alone, holes[s], sizeof alone);
    }
    tensor_check_same(&together, &problem.scores, "histories one by one");
    assert_int_equal(holes[3][1], 4);
    tensor_destroy(&before);
    tensor_destroy(&together);
    tensor_destroy(&weights);
    destroy_problem(&problem);
}

static void is_independent_of_company(void **unused) {
    (void)unused;
    random_seed(13);
    for_each_device(check_company, NULL);
}

/* ---- rows head by head ---- */

static void check_rows(avl_device_t *device, void *context) {
    (void)context;
    enum { HEADS = 3, WIDTH = 8, ROW = HEADS * WIDTH, ROWS = 40 };
    for (int f = 0; f < 2; f++) {
        avl_dtype_t dtype = f ? AVL_DTYPE_BF16 : AVL_DTYPE_F32;
        tensor_t key = tensor_random(dtype, ROWS * ROW, 1.0);
        tensor_t value = tensor_random(dtype, ROWS * ROW, 1.0);
        tensor_t keys = tensor_create(dtype, SLOTS * ROW);
        tensor_t values = tensor_create(dtype, SLOTS * ROW);
        int32_t slots[ROWS], redirects[5 + ROWS * HEADS] = {0}, positions[ROWS];
        int32_t *noted = calloc(SLOTS * HEADS_MAX, sizeof *noted);
        assert_non_null(noted);
        for (int i = 0; i < ROWS; i++) { /* every third row goes to one slot */
            slots[i] = i % 3 == 0 ? 200 + i : -1 - (5 + HEADS * i);
            positions[i] = 1000 + i;
            for (int h = 0; h < HEADS; h++)
                redirects[5 + HEADS * i + h] = (i + h * 50) % 150;
        }
        avl_kv_write_args_t write = {.key = key.data,
                                     .value = value.data,
                                     .source_stride = ROW,
                                     .slots = slots,
                                     .rows = ROWS,
                                     .keys = keys.data,
                                     .values = values.data,
                                     .row_width = ROW,
                                     .dtype = dtype,
                                     .kv_heads = HEADS,
                                     .redirects = redirects,
                                     .positions = positions,
                                     .row_positions = noted};
        expect_status(avl_kv_write(device, &write), AVL_OK, NULL);
        for (int i = 0; i < ROWS; i++) {
            for (int h = 0; h < HEADS; h++) {
                int32_t slot = slots[i] >= 0 ? slots[i] : redirects[5 + HEADS * i + h];
                assert_int_equal(noted[avl_row_place(slot, h, HEADS)], 1000 + i);
                for (int d = h * WIDTH; d < (h + 1) * WIDTH; d++) {
                    assert_true(tensor_get(&keys, (int64_t)slot * ROW + d) ==
                                tensor_get(&key, i * ROW + d));
                    assert_true(tensor_get(&values, (int64_t)slot * ROW + d) ==
                                tensor_get(&value, i * ROW + d));
                }
            }
        }
        /* A compaction in which each head keeps other rows. */
        int32_t sources[30 * 7] = {0}, targets[30 * 7] = {0}; /* as many as 7 heads would have */
        tensor_t before = tensor_copy(&keys);
        for (int i = 0; i < 30 * HEADS; i++) {
            targets[i] = i / HEADS;
            sources[i] = i / HEADS * (1 + i % HEADS);
        }
        avl_kv_move_args_t move = {keys.data, values.data, sources, targets, 30, ROW, dtype, HEADS};
        expect_status(avl_kv_move(device, &move), AVL_OK, NULL);
        for (int i = 0; i < 30; i++) {
            for (int d = 0; d < ROW; d++)
                assert_true(tensor_get(&keys, i * ROW + d) ==
                            tensor_get(&before, (int64_t)i * (1 + d / WIDTH) * ROW + d));
        }
        write.kv_heads = 5;
        expect_status(avl_kv_write(device, &write), AVL_ERR_SHAPE, "in 5 heads");
        write.kv_heads = HEADS;
        write.row_positions = NULL;
        expect_status(avl_kv_write(device, &write), AVL_ERR_SHAPE, "nowhere to note");
        move.heads = 7;
        expect_status(avl_kv_move(device, &move), AVL_ERR_SHAPE, "in 7 heads");
        tensor_check_canaries(&keys);
        tensor_check_canaries(&values);
        tensor_destroy(&before);
        tensor_destroy(&key);
        tensor_destroy(&value);
        tensor_destroy(&keys);
        tensor_destroy(&values);
        free(noted);
    }
}

static void writes_and_moves_heads(void **unused) {
    (void)unused;
    random_seed(14);
    for_each_device(check_rows, NULL);
}

/* ---- what of a prompt stays ---- */

typedef struct keep_case {
    int heads, count, keep, recent;
} keep_case_t;

static const keep_case_t keep_cases[] = {{3, 40, 25, 10},  {1, 1, 1, 0},     {2, 9, 0, 0},
                                         {40, 30, 11, 11}, {2, 300, 299, 1}, {3, 300, 290, 0},
                                         {5, 64, 64, 20},  {2, 17, 17, 17},  {2, 33, 5, 2}};

static void check_keep(avl_device_t *device, const keep_case_t *data, int kind) {
    int heads = data->heads, older = data->count - data->recent, heavy = data->keep - data->recent;
    int64_t places = (int64_t)SLOTS * heads;
    size_t number = sizeof(float);
    tensor_t scores = tensor_random(AVL_DTYPE_F32, places, 1.0);
    tensor_t positions = tensor_create(AVL_DTYPE_F32, places); /* i32: the same size */
    tensor_t sources = tensor_create(AVL_DTYPE_F32, (int64_t)data->keep * heads);
    tensor_t targets = tensor_create(AVL_DTYPE_F32, (int64_t)data->keep * heads);
    tensor_t scratch = tensor_create(AVL_DTYPE_F32, (int64_t)2 * data->count * heads);
    float *score = scores.data;
    int32_t *position = positions.data, rows[SLOTS], kept[SLOTS];
    for (int64_t i = 0; i < places; i++) {
        position[i] = (int32_t)(i * 3 + 1);
        if (kind == 1)
            score[i] = (float)random_below(3);
        if (kind == 2 && random_below(3) == 0)
            score[i] = NAN;
    }
    for (int i = 0; i < SLOTS; i++)
        rows[i] = i * 37 % SLOTS;
    tensor_t scores_before = tensor_copy(&scores), positions_before = tensor_copy(&positions);
    avl_text_keep_args_t args = {.rows = rows,
                                 .count = data->count,
                                 .keep = data->keep,
                                 .recent = data->recent,
                                 .scores = score,
                                 .positions = position,
                                 .kv_heads = heads,
                                 .sources = sources.data,
                                 .targets = targets.data,
                                 .scratch = scratch.data};
    expect_status(avl_text_keep(device, &args), AVL_OK, NULL);
    for (int h = 0; h < heads; h++) {
        float *merits = calloc(SLOTS, sizeof *merits);
        assert_non_null(merits);
        for (int i = 0; i < older; i++)
            merits[i] = (float)tensor_get(&scores_before, avl_row_place(rows[i], h, heads));
        reference_topk(merits, older, heavy, kept);
        free(merits);
        for (int i = heavy; i < data->keep; i++)
            kept[i] = older + i - heavy;
        for (int i = 0; i < SLOTS; i++) {
            int64_t place = avl_row_place(rows[i], h, heads);
            int64_t from = i < data->keep ? avl_row_place(rows[kept[i]], h, heads) : place;
            assert_memory_equal(score + place, (float *)scores_before.data + from, number);
            assert_int_equal(position[place], ((int32_t *)positions_before.data)[from]);
        }
        for (int i = 0; i < data->keep; i++) {
            assert_int_equal(((int32_t *)sources.data)[i * heads + h], rows[kept[i]]);
            assert_int_equal(((int32_t *)targets.data)[i * heads + h], rows[i]);
        }
    }
    tensor_t *tensors[] = {&scores,  &positions,     &sources,         &targets,
                           &scratch, &scores_before, &positions_before};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        tensor_check_canaries(tensors[i]);
        tensor_destroy(tensors[i]);
    }
}

static void check_all_keeps(avl_device_t *device, void *context) {
    (void)context;
    for (size_t i = 0; i < sizeof keep_cases / sizeof *keep_cases; i++)
        for (int kind = 0; kind < 3; kind++)
            check_keep(device, &keep_cases[i], kind);
}

static void keeps_the_best_of_every_head(void **unused) {
    (void)unused;
    random_seed(15);
    for_each_device(check_all_keeps, NULL);
    avl_device_t *device = open_best(1);
    int32_t rows[4] = {0}, lists[64] = {0};
    float scores[64] = {0};
    avl_text_keep_args_t args = {.rows = rows,
                                 .count = 4,
                                 .keep = 5,
                                 .scores = scores,
                                 .positions = lists,
                                 .kv_heads = 1,
                                 .sources = lists,
                                 .targets = lists,
                                 .scratch = lists};
    expect_status(avl_text_keep(device, &args), AVL_ERR_SHAPE, "5 of 4 rows");
    args.keep = 2;
    args.recent = 3;
    expect_status(avl_text_keep(device, &args), AVL_ERR_SHAPE, "the newest 3");
    args.recent = 1;
    args.kv_heads = -1;
    expect_status(avl_text_keep(device, &args), AVL_ERR_SHAPE, "-1 KV heads");
    args.kv_heads = 1;
    args.scratch = NULL;
    expect_status(avl_text_keep(device, &args), AVL_ERR_SHAPE, "scratch is NULL");
    avl_device_close(device);
}

static void refuses_bad_arguments(void **unused) {
    (void)unused;
    static problem_t problem;
    avl_device_t *device = open_best(1);
    create_problem(&geometries[0], AVL_DTYPE_F32, &problem);
    avl_text_row_t good = {.rows = problem.slots,
                           .row_count = 3,
                           .own = 2,
                           .totals = problem.totals.data,
                           .weights = problem.weights.data},
                   row = good;
    avl_text_weights_args_t weigh = {.query = problem.query.data,
                                     .query_stride = problem.query_stride,
                                     .kv = view_of(&problem),
                                     .heads = heads_of(&problem),
                                     .rows = &row,
                                     .count = 1};
    avl_text_update_args_t update = {.scores = problem.scores.data,
                                     .positions = problem.positions,
                                     .kv_heads = 2,
                                     .rows = &row,
                                     .count = 1};
    expect_status(avl_text_weights(device, &weigh), AVL_OK, NULL);
    expect_status(avl_text_update(device, &update), AVL_OK, NULL);
    row.own = 3;
    expect_status(avl_text_weights(device, &weigh), AVL_ERR_SHAPE, "its own is 3");
    expect_status(avl_text_update(device, &update), AVL_ERR_SHAPE, "its own is 3");
    row = good;
    row.first_position = 4;
    expect_status(avl_text_weights(device, &weigh), AVL_ERR_SHAPE, "no positions are given");
    row = good;
    row.own = -1;
    expect_status(avl_text_update(device, &update), AVL_ERR_SHAPE, "no holes");
    row = good;
    row.quantile = 2;
    expect_status(avl_text_update(device, &update), AVL_ERR_SHAPE, "quantile 2");
    row = good;
    update.count = -1;
    expect_status(avl_text_update(device, &update), AVL_ERR_SHAPE, "rows");
    update.count = weigh.count = 0;
    expect_status(avl_text_weights(device, &weigh), AVL_OK, NULL);
    expect_status(avl_text_update(device, &update), AVL_OK, NULL);
    destroy_problem(&problem);
    avl_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weighs_text_rows),
        cmocka_unit_test(keeps_histories),
        cmocka_unit_test(is_independent_of_company),
        cmocka_unit_test(writes_and_moves_heads),
        cmocka_unit_test(keeps_the_best_of_every_head),
        cmocka_unit_test(refuses_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
