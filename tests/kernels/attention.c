#include "tests/kernels/fixture.h"

#include "kernels/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/reference.h"

enum { SLOTS = 520, SEQUENCES_MAX = 4 };

typedef struct geometry {
    int query_heads, group, offset, kv_heads, width;
} geometry_t;

static const geometry_t geometries[] = {
    {2, 1, 0, 2, 64}, {4, 2, 0, 2, 128}, {3, 4, 2, 2, 32}, {2, 1, 0, 3, 80},
    {3, 3, 0, 1, 96}, {1, 7, 6, 1, 16},  {5, 2, 1, 3, 7},
};

typedef struct problem {
    avl_attention_args_t args;
    avl_attention_sequence_t sequences[SEQUENCES_MAX];
    int32_t *lists[SEQUENCES_MAX];
    tensor_t query, keys, values, output;
} problem_t;

/* Distinct slots in no order. */
static int32_t *random_slots(int count) {
    int32_t *slots = malloc(SLOTS * sizeof *slots);
    assert_non_null(slots);
    for (int i = 0; i < SLOTS; i++)
        slots[i] = i;
    for (int i = 0; i < count; i++) {
        int j = i + random_below(SLOTS - i);
        int32_t swapped = slots[i];
        slots[i] = slots[j];
        slots[j] = swapped;
    }
    return slots;
}

static problem_t create_problem(const geometry_t *geometry, avl_dtype_t dtype, int causal,
                                int window, const int (*counts)[2], int sequences) {
    problem_t problem = {0};
    int64_t row_stride = (int64_t)geometry->kv_heads * geometry->width + ROW_GAP(4);
    int64_t query_stride = (int64_t)geometry->query_heads * geometry->width + ROW_GAP(3);
    int64_t output_stride = query_stride + ROW_GAP(2), rows = 1; /* query row 0 belongs to nobody */
    for (int i = 0; i < sequences; i++) {
        problem.lists[i] = random_slots(counts[i][1]);
        problem.sequences[i] = (avl_attention_sequence_t){
            .first_query = rows,
            .query_count = counts[i][0],
            .row_count = counts[i][1],
            .rows = i % 2 == 0 ? problem.lists[i] : NULL,
            .first_row = 5,
        };
        if (problem.sequences[i].rows == NULL) {
            for (int j = 0; j < counts[i][1]; j++)
                problem.lists[i][j] = 5 + j;
        }
        rows += counts[i][0];
    }
    problem.query = tensor_random(dtype, rows * query_stride, 2.0);
    problem.keys = tensor_random(dtype, SLOTS * row_stride, 2.0);
    problem.values = tensor_random(dtype, SLOTS * row_stride, 1.0);
    problem.output = tensor_create(dtype, rows * output_stride);
    problem.args = (avl_attention_args_t){
        .query = problem.query.data,
        .query_stride = query_stride,
        .kv = {problem.keys.data, problem.values.data, row_stride, geometry->kv_heads,
               geometry->width, dtype},
        .heads = {geometry->query_heads, geometry->group, geometry->offset},
        .sequence_count = sequences,
        .output = problem.output.data,
        .output_stride = output_stride,
        .scale = 1.0f / sqrtf((float)geometry->width),
        .window = window,
        .causal = causal,
    };
    return problem;
}

static avl_status_t run(avl_device_t *device, problem_t *problem) {
    problem->args.sequences = problem->sequences;
    return avl_attention(device, &problem->args);
}

static void destroy_problem(problem_t *problem) {
    for (int i = 0; i < SEQUENCES_MAX; i++)
        free(problem->lists[i]);
    tensor_destroy(&problem->query);
    tensor_destroy(&problem->keys);
    tensor_destroy(&problem->values);
    tensor_destroy(&problem->output);
}

static void check_query(const problem_t *problem, const avl_attention_sequence_t *sequence,
                        const int32_t *slots, int i, int head) {
    const avl_attention_args_t *args = &problem->args;
    double weights[SLOTS], expected[256];
    int place = sequence->row_count - sequence->query_count + i;
    int first = args->causal && args->window > 0 && place - args->window + 1 > 0
                    ? place - args->window + 1
                    : 0;
    int end = args->causal ? place + 1 : sequence->row_count;
    int width = args->kv.head_width;
    int kv_head = (head + args->heads.query_head_offset) / args->heads.group;
    int64_t row = sequence->first_query + i;
    reference_attend(&problem->query, row * args->query_stride + (int64_t)head * width,
                     &problem->keys, &problem->values, args->kv.row_stride,
                     (int64_t)kv_head * width, width, slots + first, end - first,
                     (double)args->scale, weights, expected);
    double absolute = args->kv.dtype == AVL_DTYPE_F32 ? 2e-5 : 1e-3;
    double relative = args->kv.dtype == AVL_DTYPE_F32 ? 0 : 0x1p-7;
    for (int d = 0; d < width; d++) {
        int64_t index = row * args->output_stride + (int64_t)head * width + d;
        check_close(tensor_get(&problem->output, index), expected[d], absolute, relative,
                    "attention", index);
    }
}

static void check_problem(const problem_t *problem) {
    const avl_attention_args_t *args = &problem->args;
    for (int s = 0; s < args->sequence_count; s++) {
        const avl_attention_sequence_t *sequence = &problem->sequences[s];
        int step = sequence->query_count > 64 ? 7 : 1;
        for (int i = 0; i < sequence->query_count; i += step) {
            for (int head = 0; head < args->heads.query_heads; head++)
                check_query(problem, sequence, problem->lists[s], i, head);
        }
    }
    for (int64_t j = 0; j < args->output_stride; j++) /* nobody's row */
        assert_true(tensor_get(&problem->output, j) == 0.0);
    tensor_check_canaries(&problem->output);
}

static void check_geometries(avl_device_t *device, void *context) {
    (void)context;
    static const int counts[][2] = {{1, 1}, {5, 67}, {0, 9}, {37, 131}};
    for (size_t g = 0; g < sizeof geometries / sizeof geometries[0]; g++) {
        for (int f = 0; f < 2; f++) {
            int window = g % 3 == 2 ? 17 : 0, causal = g % 2 == 0;
            problem_t problem = create_problem(&geometries[g], f ? AVL_DTYPE_BF16 : AVL_DTYPE_F32,
                                               causal, window, counts, 4);
            expect_status(run(device, &problem), AVL_OK, NULL);
            check_problem(&problem);
            destroy_problem(&problem);
        }
    }
}

static void agrees_with_the_reference(void **unused) {
    (void)unused;
    random_seed(2);
    for_each_device(check_geometries, NULL);
}

static void check_long_prompt(avl_device_t *device, void *context) {
    (void)context;
    static const int counts[][2] = {{301, 301}, {200, 515}};
    static const int windows[] = {0, 0, 100};
    for (int v = 0; v < 3; v++) {
        problem_t problem = create_problem(&geometries[0], v == 1 ? AVL_DTYPE_BF16 : AVL_DTYPE_F32,
                                           v != 1, windows[v], counts, 2);
        expect_status(run(device, &problem), AVL_OK, NULL);
        check_problem(&problem);
        destroy_problem(&problem);
    }
}

static void long_prompts(void **unused) {
    (void)unused;
    random_seed(3);
    for_each_device(check_long_prompt, NULL);
}

static void is_independent_of_threads_and_company(void **unused) {
    (void)unused;
    static const int counts[][2] = {{150, 301}, {97, 200}, {3, 40}};
    for (int f = 0; f < 2; f++) {
        problem_t problem =
            create_problem(&geometries[1], f ? AVL_DTYPE_BF16 : AVL_DTYPE_F32, 1, 0, counts, 3);
        tensor_t first = {0};
        for (int threads = 1; threads <= 3; threads++) {
            avl_device_t *device = open_best(threads);
            expect_status(run(device, &problem), AVL_OK, NULL);
            if (threads == 1)
                first = tensor_copy(&problem.output);
            tensor_check_same(&first, &problem.output, "attention on several threads");
            for (int s = 0; s < 3; s++) { /* each sequence in a call of its own */
                avl_attention_args_t alone = problem.args;
                alone.sequences = &problem.sequences[s];
                alone.sequence_count = 1;
                expect_status(avl_attention(device, &alone), AVL_OK, NULL);
            }
            tensor_check_same(&first, &problem.output, "attention sequence by sequence");
            avl_device_close(device);
        }
        tensor_destroy(&first);
        destroy_problem(&problem);
    }
}

static void check_hostile(avl_device_t *device, void *context) {
    (void)context;
    static const int counts[][2] = {{20, 100}};
    for (int f = 0; f < 2; f++) {
        avl_dtype_t dtype = f ? AVL_DTYPE_BF16 : AVL_DTYPE_F32;
        problem_t problem = create_problem(&geometries[1], dtype, 1, 0, counts, 1);
        for (int64_t i = 0; i < problem.values.count; i += 13)
            tensor_set(&problem.values, i, i % 2 ? 1e4 : -1e4);
        expect_status(run(device, &problem), AVL_OK, NULL);
        for (int64_t i = 0; i < problem.output.count; i++)
            assert_true(fabs(tensor_get(&problem.output, i)) <= 1.01e4);
        for (int64_t i = 0; i < problem.keys.count; i += 29) /* logits far beyond exp's range */
            tensor_set(&problem.keys, i, i % 2 ? 1e4 : -1e4);
        expect_status(run(device, &problem), AVL_OK, NULL);
        for (int64_t i = 0; i < problem.output.count; i++)
            assert_true(fabs(tensor_get(&problem.output, i)) <= 1.01e4);
        for (int64_t i = 0; i < problem.keys.count; i += 17)
            tensor_set(&problem.keys, i, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY);
        expect_status(run(device, &problem), AVL_OK, NULL);
        tensor_check_canaries(&problem.output);
        destroy_problem(&problem);
    }
}

static void survives_hostile_values(void **unused) {
    (void)unused;
    random_seed(4);
    for_each_device(check_hostile, NULL);
}

/* An infinite or undefined value is the business of the queries that see it. */
static void check_hidden_values(avl_device_t *device, void *context) {
    (void)context;
    static const int counts[][2] = {{130, 200}};
    static const double bad[] = {INFINITY, -INFINITY, NAN};
    for (int v = 0; v < 6; v++) {
        int window = v % 2 == 1 ? 40 : 0, at = 100;
        problem_t problem = create_problem(&geometries[0], v < 3 ? AVL_DTYPE_F32 : AVL_DTYPE_BF16,
                                           1, window, counts, 1);
        const avl_attention_args_t *args = &problem.args;
        for (int j = 0; j < args->kv.head_width * args->kv.kv_heads; j += 5)
            tensor_set(&problem.values, problem.lists[0][at] * args->kv.row_stride + j, bad[v % 3]);
        expect_status(run(device, &problem), AVL_OK, NULL);
        for (int i = 0; i < counts[0][0]; i++) {
            int place = counts[0][1] - counts[0][0] + i;
            int sees = place >= at && (window == 0 || place - window < at);
            for (int head = 0; head < args->heads.query_heads && !sees; head++)
                check_query(&problem, &problem.sequences[0], problem.lists[0], i, head);
            if (sees)
                assert_false(isfinite(tensor_get(&problem.output, (1 + i) * args->output_stride)));
        }
        destroy_problem(&problem);
    }
}

static void hidden_values_do_no_harm(void **unused) {
    (void)unused;
    random_seed(5);
    for_each_device(check_hidden_values, NULL);
}

static void refuses_bad_arguments(void **unused) {
    (void)unused;
    static const int counts[][2] = {{2, 9}};
    avl_device_t *device = open_best(1);
    problem_t problem = create_problem(&geometries[0], AVL_DTYPE_F32, 1, 0, counts, 1);
    if (device->is_host) { /* row lists elsewhere cannot be looked into */
        problem.lists[0][3] = -1;
        expect_status(run(device, &problem), AVL_ERR_SHAPE, "holds -1");
        problem.lists[0][3] = 3;
    }
    problem.sequences[0].row_count = 1;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "2 queries and 1 rows");
    problem.sequences[0].row_count = 9;
    problem.args.window = -1;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "window");
    problem.args.window = 0;
    problem.args.heads.query_head_offset = 1;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "group");
    problem.args.heads.query_head_offset = 0;
    problem.args.heads.query_heads = 3;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "reads KV head 2 of 2");
    problem.args.heads.query_heads = 2;
    problem.args.kv.row_stride = 100;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "keys");
    problem.args.kv.row_stride = 132;
    problem.args.output_stride = 5;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "output");
    problem.args.output_stride = 133;
    problem.args.kv.dtype = (avl_dtype_t)77;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "number format");
    problem.args.kv.dtype = AVL_DTYPE_F32;
    problem.args.kv.values = NULL;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "values is NULL");
    destroy_problem(&problem);
    avl_device_close(device);
}

static void check_cache_rows(avl_device_t *device, void *context) {
    (void)context;
    for (int f = 0; f < 2; f++) {
        avl_dtype_t dtype = f ? AVL_DTYPE_BF16 : AVL_DTYPE_F32;
        enum { ROWS = 300, WIDTH = 131 };
        tensor_t key = tensor_random(dtype, ROWS * (WIDTH + 2), 1.0);
        tensor_t value = tensor_random(dtype, ROWS * (WIDTH + 2), 1.0);
        tensor_t keys = tensor_create(dtype, SLOTS * WIDTH);
        tensor_t values = tensor_create(dtype, SLOTS * WIDTH);
        int32_t *slots = random_slots(ROWS);
        avl_kv_write_args_t write = {.key = key.data,
                                     .value = value.data,
                                     .source_stride = WIDTH + 2,
                                     .slots = slots,
                                     .rows = ROWS,
                                     .keys = keys.data,
                                     .values = values.data,
                                     .row_width = WIDTH,
                                     .dtype = dtype};
        expect_status(avl_kv_write(device, &write), AVL_OK, NULL);
        for (int i = 0; i < ROWS; i++) {
            for (int j = 0; j < WIDTH; j++) {
                assert_true(tensor_get(&keys, slots[i] * WIDTH + j) ==
                            tensor_get(&key, i * (WIDTH + 2) + j));
                assert_true(tensor_get(&values, slots[i] * WIDTH + j) ==
                            tensor_get(&value, i * (WIDTH + 2) + j));
            }
        }
        /* A compaction in place: rows 0, 3, 6, ... to 0, 1, 2, ... */
        tensor_t before = tensor_copy(&values);
        int32_t sources[100], targets[100];
        for (int i = 0; i < 100; i++) {
            sources[i] = 3 * i;
            targets[i] = i;
        }
        avl_kv_move_args_t move = {keys.data, values.data, sources, targets, 100, WIDTH, dtype, 0};
        expect_status(avl_kv_move(device, &move), AVL_OK, NULL);
        for (int i = 0; i < 100; i++) {
            for (int j = 0; j < WIDTH; j++)
                assert_true(tensor_get(&values, i * WIDTH + j) ==
                            tensor_get(&before, 3 * i * WIDTH + j));
        }
        tensor_check_canaries(&keys);
        tensor_check_canaries(&values);
        if (device->is_host) {
            slots[7] = -2;
            expect_status(avl_kv_write(device, &write), AVL_ERR_SHAPE, "slots holds -2");
            targets[9] = -1;
            expect_status(avl_kv_move(device, &move), AVL_ERR_SHAPE, "targets holds -1");
        }
        free(slots);
        tensor_destroy(&before);
        tensor_destroy(&key);
        tensor_destroy(&value);
        tensor_destroy(&keys);
        tensor_destroy(&values);
    }
}

static void writes_and_moves_rows(void **unused) {
    (void)unused;
    for_each_device(check_cache_rows, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_reference),
        cmocka_unit_test(long_prompts),
        cmocka_unit_test(is_independent_of_threads_and_company),
        cmocka_unit_test(survives_hostile_values),
        cmocka_unit_test(hidden_values_do_no_harm),
        cmocka_unit_test(refuses_bad_arguments),
        cmocka_unit_test(writes_and_moves_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
