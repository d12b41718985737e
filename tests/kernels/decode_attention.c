#include "tests/kernels/fixture.h"

#include "kernels/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/reference.h"

enum { SLOTS = 1400, SEQUENCES = 5 };

typedef struct geometry {
    int query_heads, group, offset, kv_heads, width;
} geometry_t;

static const geometry_t geometries[] = {
    {2, 1, 0, 2, 64}, {4, 2, 0, 2, 128},  {3, 4, 2, 2, 32}, {2, 1, 0, 3, 80}, {3, 3, 0, 1, 96},
    {1, 7, 6, 1, 16}, {19, 2, 1, 10, 24}, {5, 2, 1, 3, 7},  {8, 8, 0, 1, 64}, {4, 4, 0, 1, 128},
};

/* Rows of system, visual and text; whether the visual weights are wanted, or else how many visual
 * rows each KV head keeps; what text is hidden. */
typedef struct lengths {
    int rows[AVL_SPAN_COUNT];
    int exported, keep, text_first;
} lengths_t;

static const lengths_t mixes[SEQUENCES] = {
    {{5, 601, 33}, 1, 120, 0},       {{0, 0, 1}, 1, 0, 0},
    {{3, 17, 0}, 0, 17, 0},          {{300, 256, 700}, 1, 1, 0},
    {{0, 79, 90}, 1, 33, SLOTS / 2},
};

/* What is asked for of the visual rows. */
typedef enum form {
    PLAIN,
    WEIGHTS_BY_HEAD, /* sums over the query heads of each KV head */
    CHOSEN_ROWS,     /* each KV head reads its best; of every other sequence it says which */
    FORMS,
} form_t;

typedef struct problem {
    form_t form;
    avl_decode_attention_args_t args;
    avl_decode_sequence_t sequences[SEQUENCES];
    int32_t *slots[SEQUENCES];
    int32_t *places[SEQUENCES]; /* [Hk, keep] */
    int32_t *positions;         /* [SLOTS, Hk] at avl_row_place */
    tensor_t weights[SEQUENCES];
    tensor_t query, keys, values, output;
} problem_t;

static int chooses(const problem_t *problem, int s) {
    return problem->form == CHOSEN_ROWS && mixes[s].keep > 0;
}

/* Some rows of the last sequence that chooses are there twice. */
static void ask_for_choice(problem_t *problem, int s, int kv_heads) {
    avl_decode_sequence_t *sequence = &problem->sequences[s];
    int visual = mixes[s].rows[AVL_SPAN_VISUAL];
    int32_t *rows = problem->slots[s] + mixes[s].rows[AVL_SPAN_SYSTEM];
    sequence->visual_weights = NULL;
    sequence->visual_keep = mixes[s].keep;
    problem->places[s] = malloc((size_t)(kv_heads * mixes[s].keep) * sizeof(int32_t));
    assert_non_null(problem->places[s]);
    if (s % 2 == 0)
        sequence->visual_places = problem->places[s];
    for (int i = visual / 2; s == SEQUENCES - 1 && i < visual; i++)
        rows[i] = rows[i - visual / 2];
}

/* Where text rows stand: anywhere, head by head. */
static int32_t *make_positions(int kv_heads) {
    int32_t *positions = malloc(sizeof *positions * (SLOTS + AVL_PAGE_ROWS) * (size_t)kv_heads);
    assert_non_null(positions);
    for (int i = 0; i < (SLOTS + AVL_PAGE_ROWS) * kv_heads; i++)
        positions[i] = random_below(SLOTS);
    return positions;
}

static problem_t create_problem(const geometry_t *geometry, avl_dtype_t dtype, form_t form) {
    problem_t problem = {.form = form};
    int64_t row_stride = (int64_t)geometry->kv_heads * geometry->width + ROW_GAP(6);
    int64_t query_stride = (int64_t)geometry->query_heads * geometry->width + ROW_GAP(1);
    for (int s = 0; s < SEQUENCES; s++) {
        problem.slots[s] = malloc(SLOTS * sizeof *problem.slots[s]);
        assert_non_null(problem.slots[s]);
        avl_decode_sequence_t *sequence = &problem.sequences[s];
        sequence->query_row = SEQUENCES - s; /* row 0 belongs to nobody */
        int32_t *next = problem.slots[s];
        for (int i = 0; i < SLOTS; i++)
            next[i] = (int32_t)((i * 37 + s) % SLOTS); /* 37 and SLOTS share no factor */
        for (int span = 0; span < AVL_SPAN_COUNT; span++) {
            sequence->spans[span] = (avl_row_span_t){next, mixes[s].rows[span]};
            next += mixes[s].rows[span];
        }
        problem.weights[s] =
            tensor_create(AVL_DTYPE_F32, (int64_t)mixes[s].rows[AVL_SPAN_VISUAL] *
                                             (form == WEIGHTS_BY_HEAD ? geometry->kv_heads : 1));
        sequence->visual_weights = mixes[s].exported ? problem.weights[s].data : NULL;
        sequence->weights_by_head = form == WEIGHTS_BY_HEAD;
        sequence->text_first = mixes[s].text_first;
        if (chooses(&problem, s))
            ask_for_choice(&problem, s, geometry->kv_heads);
    }
    problem.positions = make_positions(geometry->kv_heads);
    problem.query = tensor_random(dtype, (SEQUENCES + 1) * query_stride, 2.0);
    problem.keys = tensor_random(dtype, SLOTS * row_stride, 2.0);
    problem.values = tensor_random(dtype, SLOTS * row_stride, 1.0);
    problem.output = tensor_create(dtype, (SEQUENCES + 1) * query_stride);
    problem.args = (avl_decode_attention_args_t){
        .query = problem.query.data,
        .query_stride = query_stride,
        .kv = {problem.keys.data, problem.values.data, row_stride, geometry->kv_heads,
               geometry->width, dtype},
        .heads = {geometry->query_heads, geometry->group, geometry->offset},
        .sequence_count = SEQUENCES,
        .output = problem.output.data,
        .output_stride = query_stride,
        .scale = 1.0f / sqrtf((float)geometry->width),
        .text_positions = problem.positions,
    };
    return problem;
}

static avl_status_t run(avl_device_t *device, problem_t *problem) {
    problem->args.sequences = problem->sequences;
    return avl_decode_attention(device, &problem->args);
}

static void destroy_problem(problem_t *problem) {
    for (int s = 0; s < SEQUENCES; s++) {
        free(problem->slots[s]);
        free(problem->places[s]);
        tensor_destroy(&problem->weights[s]);
    }
    free(problem->positions);
    tensor_destroy(&problem->query);
    tensor_destroy(&problem->keys);
    tensor_destroy(&problem->values);
    tensor_destroy(&problem->output);
}

/* The slots that a KV head reads, one span after the other. Returns how many. */
static int list_slots(const problem_t *problem, int s, int kv_head, int32_t *slots) {
    const int *rows = mixes[s].rows;
    const int32_t *all = problem->slots[s], *text = all + rows[0] + rows[1];
    const int32_t *places =
        chooses(problem, s) ? problem->places[s] + kv_head * mixes[s].keep : NULL;
    int count = 0;
    for (int i = 0; i < rows[0]; i++)
        slots[count++] = all[i];
    for (int i = 0; i < (places != NULL ? mixes[s].keep : rows[1]); i++)
        slots[count++] = all[rows[0] + (places != NULL ? places[i] : i)];
    for (int i = 0; i < rows[2]; i++) {
        int64_t place = avl_row_place(text[i], kv_head, problem->args.kv.kv_heads);
        if (problem->positions[place] >= mixes[s].text_first)
            slots[count++] = text[i];
    }
    return count;
}

static void attend(const problem_t *problem, int s, int head, const int32_t *slots, int count,
                   double *weights, double *output) {
    const avl_decode_attention_args_t *args = &problem->args;
    int width = args->kv.head_width;
    int kv_head = (head + args->heads.query_head_offset) / args->heads.group;
    reference_attend(&problem->query,
                     problem->sequences[s].query_row * args->query_stride + (int64_t)head * width,
                     &problem->keys, &problem->values, args->kv.row_stride,
                     (int64_t)kv_head * width, width, slots, count, (double)args->scale, weights,
                     output);
}

/* Ascending places, none of them worse than one that was left; of rows that are there twice the
 * first come first. */
static void check_places(const problem_t *problem, int s) {
    const avl_head_map_t *heads = &problem->args.heads;
    int keep = mixes[s].keep, visual = mixes[s].rows[AVL_SPAN_VISUAL];
    const int32_t *rows = problem->slots[s] + mixes[s].rows[AVL_SPAN_SYSTEM];
    for (int kv_head = 0; kv_head < problem->args.kv.kv_heads; kv_head++) {
        const int32_t *places = problem->places[s] + kv_head * keep;
        double weights[SLOTS], sums[SLOTS] = {0}, output[256], least = INFINITY, most = 0;
        for (int head = 0; head < heads->query_heads; head++) {
            if ((head + heads->query_head_offset) / heads->group != kv_head)
                continue;
            attend(problem, s, head, rows, visual, weights, output);
            for (int i = 0; i < visual; i++)
                sums[i] += weights[i];
        }
        int next = 0, chosen[SLOTS] = {0};
        for (int i = 0; i < visual; i++) {
            chosen[i] = next < keep && places[next] == i;
            next += chosen[i];
            least = chosen[i] && sums[i] < least ? sums[i] : least;
            most = !chosen[i] && sums[i] > most ? sums[i] : most;
            for (int j = 0; s == SEQUENCES - 1 && chosen[i] && j < i; j++)
                assert_true(chosen[j] || rows[j] != rows[i]);
        }
        assert_int_equal(next, keep);
        assert_true(most <= least + 1e-5 * heads->group);
    }
}

static void check_sequence(const problem_t *problem, int s, int with_output) {
    const avl_decode_attention_args_t *args = &problem->args;
    const int *rows = mixes[s].rows;
    int width = args->kv.head_width, by_head = problem->form == WEIGHTS_BY_HEAD;
    static double weights[SLOTS], sums[10][SLOTS], expected[256];
    memset(sums, 0, sizeof sums);
    for (int head = 0; head < args->heads.query_heads; head++) {
        int kv_head = (head + args->heads.query_head_offset) / args->heads.group;
        int32_t slots[SLOTS];
        int count = list_slots(problem, s, kv_head, slots);
        attend(problem, s, head, slots, count, weights, expected);
        for (int i = 0; i < count; i++)
            sums[by_head ? kv_head : 0][i] += weights[i];
        double absolute = args->kv.dtype == AVL_DTYPE_F32 ? 2e-5 : 1e-3;
        double relative = args->kv.dtype == AVL_DTYPE_F32 ? 0 : 0x1p-7;
        for (int d = 0; with_output && d < width; d++) {
            int64_t index =
                problem->sequences[s].query_row * args->output_stride + (int64_t)head * width + d;
            check_close(tensor_get(&problem->output, index), expected[d], absolute, relative,
                        "decode attention", index);
        }
    }
    int visual = rows[AVL_SPAN_VISUAL], wanted = problem->sequences[s].visual_weights != NULL;
    for (int i = 0; i < visual * (by_head ? args->kv.kv_heads : 1); i++) {
        check_close(tensor_get(&problem->weights[s], i),
                    wanted ? sums[i / visual][rows[AVL_SPAN_SYSTEM] + i % visual] : 0.0,
                    1e-5 * args->heads.query_heads, 0, "visual weight", i);
    }
    tensor_check_canaries(&problem->weights[s]);
}

/* What each head chose, by a call of its own where it has not said. */
static void learn_places(avl_device_t *device, problem_t *problem) {
    for (int s = 0; s < SEQUENCES; s++) {
        avl_decode_sequence_t sequence = problem->sequences[s];
        avl_decode_attention_args_t args = problem->args;
        args.output = NULL;
        args.sequences = &sequence;
        args.sequence_count = 1;
        if (!chooses(problem, s))
            continue;
        if (sequence.visual_places == NULL) {
            sequence.visual_places = problem->places[s];
            expect_status(avl_decode_attention(device, &args), AVL_OK, NULL);
        }
        check_places(problem, s);
    }
}

static void check_geometries(avl_device_t *device, void *context) {
    (void)context;
    for (size_t g = 0; g < sizeof geometries / sizeof geometries[0]; g++) {
        for (int f = 0; f < 2 * FORMS; f++) {
            problem_t problem = create_problem(
                &geometries[g], f % 2 ? AVL_DTYPE_BF16 : AVL_DTYPE_F32, (form_t)(f / 2));
            expect_status(run(device, &problem), AVL_OK, NULL);
            learn_places(device, &problem);
            for (int s = 0; s < SEQUENCES; s++)
                check_sequence(&problem, s, 1);
            for (int64_t j = 0; j < problem.args.output_stride; j++)
                assert_true(tensor_get(&problem.output, j) == 0.0);
            tensor_check_canaries(&problem.output);
            destroy_problem(&problem);
        }
    }
}

static void agrees_with_the_reference(void **unused) {
    (void)unused;
    random_seed(5);
    for_each_device(check_geometries, NULL);
}

/* More rows than a block of a GPU holds, each slot several times: of the rows of a slot the first
 * are chosen. */
static void check_many_rows(avl_device_t *device, void *context) {
    enum { ROWS = 7 * SLOTS, KEEP = 2000 };
    static const geometry_t geometry = {2, 2, 0, 1, 8};
    (void)context;
    problem_t problem = create_problem(&geometry, AVL_DTYPE_F32, PLAIN);
    static int32_t rows[ROWS], places[KEEP], slots[SLOTS];
    double weights[2][SLOTS], output[8], least = INFINITY, most = 0;
    for (int i = 0; i < ROWS; i++)
        rows[i] = i % SLOTS;
    avl_decode_sequence_t sequence = {.query_row = 1,
                                      .spans[AVL_SPAN_VISUAL] = {rows, ROWS},
                                      .visual_keep = KEEP,
                                      .visual_places = places};
    problem.args.sequences = &sequence;
    problem.args.sequence_count = 1;
    expect_status(avl_decode_attention(device, &problem.args), AVL_OK, NULL);
    for (int i = 0; i < SLOTS; i++)
        slots[i] = i;
    for (int head = 0; head < 2; head++)
        reference_attend(&problem.query, problem.args.query_stride + (int64_t)head * 8,
                         &problem.keys, &problem.values, problem.args.kv.row_stride, 0, 8, slots,
                         SLOTS, (double)problem.args.scale, weights[head], output);
    int next = 0, left[SLOTS] = {0};
    for (int i = 0; i < ROWS; i++) {
        double sum = weights[0][rows[i]] + weights[1][rows[i]];
        int chosen = next < KEEP && places[next] == i;
        next += chosen;
        assert_true(!chosen || !left[rows[i]]);
        left[rows[i]] |= !chosen;
        least = chosen && sum < least ? sum : least;
        most = !chosen && sum > most ? sum : most;
    }
    assert_int_equal(next, KEEP);
    assert_true(most <= least + 1e-6);
    destroy_problem(&problem);
}

static void chooses_among_many_rows(void **unused) {
    (void)unused;
    random_seed(7);
    for_each_device(check_many_rows, NULL);
}

static void check_weights_alone(avl_device_t *device, void *context) {
    (void)context;
    problem_t problem = create_problem(&geometries[1], AVL_DTYPE_BF16, PLAIN);
    expect_status(run(device, &problem), AVL_OK, NULL);
    tensor_t with_output = tensor_copy(&problem.weights[0]);
    memset(problem.output.data, 0, (size_t)problem.output.count * 2);
    problem.args.output = NULL;
    expect_status(run(device, &problem), AVL_OK, NULL);
    for (int s = 0; s < SEQUENCES; s++)
        check_sequence(&problem, s, 0);
    tensor_check_same(&with_output, &problem.weights[0], "weights without output");
    for (int64_t i = 0; i < problem.output.count; i++)
        assert_true(tensor_get(&problem.output, i) == 0.0);
    tensor_destroy(&with_output);
    destroy_problem(&problem);
}

static void exports_weights_without_output(void **unused) {
    (void)unused;
    for_each_device(check_weights_alone, NULL);
}

static void is_independent_of_threads_and_company(void **unused) {
    (void)unused;
    for (int f = 0; f < 2 * FORMS; f++) {
        problem_t problem =
            create_problem(&geometries[1], f % 2 ? AVL_DTYPE_BF16 : AVL_DTYPE_F32, (form_t)(f / 2));
        tensor_t first = {0}, first_weights = {0};
        for (int threads = 1; threads <= 3; threads++) {
            avl_device_t *device = open_best(threads);
            expect_status(run(device, &problem), AVL_OK, NULL);
            if (threads == 1) {
                first = tensor_copy(&problem.output);
                first_weights = tensor_copy(&problem.weights[3]);
            }
            tensor_check_same(&first, &problem.output, "decode on several threads");
            tensor_check_same(&first_weights, &problem.weights[3], "weights on several threads");
            for (int s = 0; s < SEQUENCES; s++) {
                avl_decode_attention_args_t alone = problem.args;
                alone.sequences = &problem.sequences[s];
                alone.sequence_count = 1;
                expect_status(avl_decode_attention(device, &alone), AVL_OK, NULL);
            }
            tensor_check_same(&first, &problem.output, "decode sequence by sequence");
            tensor_check_same(&first_weights, &problem.weights[3], "weights alone");
            avl_device_close(device);
        }
        tensor_destroy(&first);
        tensor_destroy(&first_weights);
        destroy_problem(&problem);
    }
}

static void check_hostile(avl_device_t *device, void *context) {
    (void)context;
    for (int f = 0; f < 2 * FORMS; f++) {
        problem_t problem =
            create_problem(&geometries[1], f % 2 ? AVL_DTYPE_BF16 : AVL_DTYPE_F32, (form_t)(f / 2));
        for (int64_t i = 0; i < problem.keys.count; i += 29) {
            tensor_set(&problem.keys, i, i % 2 ? 1e4 : -1e4);
            tensor_set(&problem.values, i, i % 3 ? 1e4 : -1e4);
        }
        expect_status(run(device, &problem), AVL_OK, NULL);
        for (int64_t i = 0; i < problem.output.count; i++)
            assert_true(fabs(tensor_get(&problem.output, i)) <= 1.01e4);
        for (int s = 0; s < SEQUENCES; s++) {
            for (int64_t i = 0; i < problem.weights[s].count; i++) {
                double weight = tensor_get(&problem.weights[s], i);
                assert_true(weight >= 0.0 && weight <= 4.0001);
            }
        }
        for (int64_t i = 0; i < problem.keys.count; i += 17)
            tensor_set(&problem.keys, i, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY);
        expect_status(run(device, &problem), AVL_OK, NULL);
        tensor_check_canaries(&problem.output);
        tensor_check_canaries(&problem.weights[0]);
        destroy_problem(&problem);
    }
}

static void survives_hostile_values(void **unused) {
    (void)unused;
    random_seed(6);
    for_each_device(check_hostile, NULL);
}

static void refuses_bad_arguments(void **unused) {
    (void)unused;
    avl_device_t *device = open_best(1);
    problem_t problem = create_problem(&geometries[0], AVL_DTYPE_F32, PLAIN);
    avl_decode_sequence_t good = problem.sequences[1];
    problem.sequences[1].spans[AVL_SPAN_TEXT].row_count = 0;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "sequence 1 has 0 rows");
    problem.sequences[1].spans[AVL_SPAN_TEXT].row_count = -4;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "text rows");
    problem.sequences[1] = good;
    problem.sequences[1].spans[AVL_SPAN_TEXT].rows = NULL;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "text rows is NULL");
    problem.sequences[1] = good;
    problem.sequences[1].query_row = -1;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "query row -1");
    problem.sequences[1] = good;
    problem.sequences[0].visual_keep = 5;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "sequence 0 wants weights of visual rows");
    problem.sequences[0].visual_keep = -1;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "keeps -1 of 601 visual rows");
    problem.sequences[0].visual_keep = 602;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "keeps 602 of 601 visual rows");
    problem.sequences[0].visual_keep = 0;
    problem.sequences[0].visual_places = problem.slots[0];
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "places of visual rows and keeps all");
    problem.sequences[0].visual_places = NULL;
    if (device->is_host) { /* row lists elsewhere cannot be looked into */
        int32_t slot = problem.slots[0][2];
        problem.slots[0][2] = -9;
        expect_status(run(device, &problem), AVL_ERR_SHAPE, "system rows holds -9");
        problem.slots[0][2] = slot;
    }
    problem.args.sequence_count = -1;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "sequences");
    problem.args.sequence_count = 0;
    expect_status(run(device, &problem), AVL_OK, NULL);
    problem.args.sequence_count = SEQUENCES;
    problem.args.heads.group = 0;
    expect_status(run(device, &problem), AVL_ERR_SHAPE, "groups of 0");
    destroy_problem(&problem);
    avl_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_reference),
        cmocka_unit_test(chooses_among_many_rows),
        cmocka_unit_test(exports_weights_without_output),
        cmocka_unit_test(is_independent_of_threads_and_company),
        cmocka_unit_test(survives_hostile_values),
        cmocka_unit_test(refuses_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
