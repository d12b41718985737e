/* tests/cuda/large.c: what only the CUDA backend does differently by size: selection by many
 * blocks, lists of sequences that do not fit a launch's parameters, groups of sequences, compaction
 * in pieces, a library product in blocks of rows. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/select.h"
#include "tests/kernels/reference.h"

typedef struct scored {
    float score;
    int32_t index;
} scored_t;

/* By merit: larger first, NaN last, equal by index. */
static int compare_merit(const void *a_void, const void *b_void) {
    const scored_t *a = a_void, *b = b_void;
    int a_nan = isnan(a->score) != 0, b_nan = isnan(b->score) != 0;
    if (a_nan != b_nan)
        return a_nan - b_nan;
    if (!a_nan && a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

static int compare_index(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

static void check_select(avl_device_t *device, void *context) {
    (void)context;
    static const int counts[] = {8192, 8193, 40000};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        int count = counts[c];
        for (int kind = 0; kind < 3; kind++) {
            float *scores = malloc((size_t)count * sizeof *scores);
            scored_t *sorted = malloc((size_t)count * sizeof *sorted);
            int32_t *expected = malloc((size_t)count * sizeof *expected);
            int32_t *got = malloc((size_t)count * sizeof *got);
            assert_true(scores != NULL && sorted != NULL && expected != NULL && got != NULL);
            for (int i = 0; i < count; i++) {
                scores[i] = (float)random_below(1 << 20) * 0x1p-20f - 0.25f;
                if (kind == 1)
                    scores[i] = (float)random_below(3);
                if (kind == 2 && random_below(3) == 0)
                    scores[i] = random_below(2) ? NAN : -0.0f;
                sorted[i] = (scored_t){scores[i], i};
            }
            qsort(sorted, (size_t)count, sizeof *sorted, compare_merit);
            int keeps[] = {count / 3, count};
            for (int k = 0; k < 2; k++) {
                for (int i = 0; i < keeps[k]; i++)
                    expected[i] = sorted[i].index;
                qsort(expected, (size_t)keeps[k], sizeof *expected, compare_index);
                avl_topk_args_t args = {scores, count, keeps[k], got};
                expect_status(avl_topk(device, &args), AVL_OK, NULL);
                assert_memory_equal(got, expected, (size_t)keeps[k] * sizeof *got);
            }
            free(scores);
            free(sorted);
            free(expected);
            free(got);
        }
    }
}

static void selects_among_many(void **unused) {
    (void)unused;
    random_seed(11);
    for_each_device(check_select, NULL);
}

enum { SLOTS = 600, WIDTH = 64, HEADS = 2, STRIDE = HEADS * WIDTH };

/* Whether every KV head of every other sequence chooses all its rows, that changes no bit. */
static void check_choice_of_all(avl_device_t *device, const avl_decode_attention_args_t *args,
                                avl_decode_sequence_t *sequences, const tensor_t *expected) {
    tensor_t output = tensor_create(expected->dtype, expected->count);
    avl_decode_attention_args_t chosen = *args;
    chosen.output = output.data;
    for (int s = 0; s < args->sequence_count; s += 2)
        sequences[s].visual_keep = sequences[s].spans[AVL_SPAN_VISUAL].row_count;
    expect_status(avl_decode_attention(device, &chosen), AVL_OK, NULL);
    tensor_check_same(expected, &output, "a choice of all rows");
    tensor_destroy(&output);
}

/* 70 sequences: more than a launch carries, in one launch all the same. */
static void check_batch(avl_device_t *device, void *context) {
    (void)context;
    enum { SEQUENCES = 70 };
    tensor_t query = tensor_random(AVL_DTYPE_BF16, SEQUENCES * STRIDE, 2.0);
    tensor_t keys = tensor_random(AVL_DTYPE_BF16, SLOTS * STRIDE, 2.0);
    tensor_t values = tensor_random(AVL_DTYPE_BF16, SLOTS * STRIDE, 1.0);
    tensor_t output = tensor_create(AVL_DTYPE_BF16, SEQUENCES * STRIDE);
    tensor_t prompt_output = tensor_create(AVL_DTYPE_BF16, SEQUENCES * STRIDE);
    tensor_t weights = tensor_create(AVL_DTYPE_F32, SEQUENCES * SLOTS);
    int32_t slots[SLOTS];
    for (int i = 0; i < SLOTS; i++)
        slots[i] = i * 7 % SLOTS;
    avl_decode_sequence_t decodes[SEQUENCES];
    avl_attention_sequence_t prompts[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++) {
        int visual = s * 8 + 1;
        decodes[s] = (avl_decode_sequence_t){
            .query_row = s,
            .spans = {{slots, 3}, {slots + 3, visual}, {slots + 3 + visual, s % 5}},
            .visual_weights = s % 2 ? (float *)weights.data + s * SLOTS : NULL};
        prompts[s] = (avl_attention_sequence_t){s, 1, 3 + visual + s % 5, slots, 0};
    }
    avl_kv_view_t kv = {keys.data, values.data, STRIDE, HEADS, WIDTH, AVL_DTYPE_BF16};
    avl_decode_attention_args_t decode = {query.data, STRIDE,      kv,     {HEADS, 1, 0}, decodes,
                                          SEQUENCES,  output.data, STRIDE, 0.125f,        NULL};
    expect_status(avl_decode_attention(device, &decode), AVL_OK, NULL);
    avl_attention_args_t prompt = {
        query.data, STRIDE, kv, {HEADS, 1, 0}, prompts, SEQUENCES, prompt_output.data, STRIDE,
        0.125f,     0,      1};
    expect_status(avl_attention(device, &prompt), AVL_OK, NULL);
    for (int s = 0; s < SEQUENCES; s++) {
        double row_weights[SLOTS], expected[WIDTH], sums[SLOTS] = {0};
        int count = prompts[s].row_count;
        for (int head = 0; head < HEADS; head++) {
            reference_attend(&query, s * STRIDE + head * WIDTH, &keys, &values, STRIDE,
                             head * WIDTH, WIDTH, slots, count, 0.125, row_weights, expected);
            for (int d = 0; d < WIDTH; d++) {
                int64_t index = s * STRIDE + head * WIDTH + d;
                check_close(tensor_get(&output, index), expected[d], 1e-3, 0x1p-7, "decode", index);
                check_close(tensor_get(&prompt_output, index), expected[d], 1e-3, 0x1p-7, "prompt",
                            index);
            }
            for (int i = 0; i < count; i++)
                sums[i] += row_weights[i];
        }
        for (int i = 0; s % 2 && i < decodes[s].spans[1].row_count; i++)
            check_close(tensor_get(&weights, s * SLOTS + i), sums[3 + i], 2e-5, 0, "weight", i);
    }
    tensor_check_canaries(&output);
    tensor_check_canaries(&weights);
    check_choice_of_all(device, &decode, decodes, &output);
    tensor_destroy(&query);
    tensor_destroy(&keys);
    tensor_destroy(&values);
    tensor_destroy(&output);
    tensor_destroy(&prompt_output);
    tensor_destroy(&weights);
}

static void serves_a_large_batch(void **unused) {
    (void)unused;
    random_seed(12);
    for_each_device(check_batch, NULL);
}

/* More heads than there are counters for nine sequences: eight go first. */
static void goes_in_groups(void **unused) {
    (void)unused;
    enum { SEQUENCES = 9, MANY = 2048, NARROW = 2, ROWS = 3 };
    random_seed(13);
    avl_device_t *device = open_best(1);
    static const int32_t slots[ROWS] = {2, 0, 1};
    const int64_t row = (int64_t)MANY * NARROW;
    tensor_t query = tensor_random(AVL_DTYPE_F32, SEQUENCES * row, 2.0);
    tensor_t keys = tensor_random(AVL_DTYPE_F32, ROWS * row, 2.0);
    tensor_t values = tensor_random(AVL_DTYPE_F32, ROWS * row, 1.0);
    tensor_t output = tensor_create(AVL_DTYPE_F32, SEQUENCES * row);
    avl_decode_sequence_t sequences[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++)
        sequences[s] = (avl_decode_sequence_t){
            .query_row = s, .spans = {{NULL, 0}, {slots, 1}, {slots + 1, ROWS - 1}}};
    avl_decode_attention_args_t args = {
        .query = query.data,
        .query_stride = row,
        .kv = {keys.data, values.data, row, MANY, NARROW, AVL_DTYPE_F32},
        .heads = {MANY, 1, 0},
        .sequences = sequences,
        .sequence_count = SEQUENCES,
        .output = output.data,
        .output_stride = row,
        .scale = 0.5f};
    expect_status(avl_decode_attention(device, &args), AVL_OK, NULL);
    for (int64_t head = 0; head < (int64_t)SEQUENCES * MANY; head += 37) {
        double weights[ROWS], expected[NARROW];
        reference_attend(&query, head * NARROW, &keys, &values, row, head % MANY * NARROW, NARROW,
                         slots, ROWS, 0.5, weights, expected);
        for (int d = 0; d < NARROW; d++)
            check_close(tensor_get(&output, head * NARROW + d), expected[d], 2e-5, 0, "decode",
                        head);
    }
    tensor_check_canaries(&output);
    tensor_destroy(&query);
    tensor_destroy(&keys);
    tensor_destroy(&values);
    tensor_destroy(&output);
    avl_device_close(device);
}

/* Every second row of 5,000 to the front: 20 MB of keys and values, in pieces of at most 16 MB. */
static void check_move(avl_device_t *device, void *context) {
    (void)context;
    enum { ROWS = 5000, KEPT = ROWS / 2, ROW = 2048 };
    tensor_t keys = tensor_create(AVL_DTYPE_BF16, (int64_t)ROWS * ROW);
    tensor_t values = tensor_create(AVL_DTYPE_BF16, (int64_t)ROWS * ROW);
    uint16_t *key = keys.data, *value = values.data;
    for (int64_t i = 0; i < keys.count; i++) {
        key[i] = (uint16_t)(i / ROW);
        value[i] = (uint16_t)(i / ROW + i % ROW);
    }
    int32_t sources[KEPT], targets[KEPT];
    for (int i = 0; i < KEPT; i++) {
        sources[i] = 2 * i;
        targets[i] = i;
    }
    avl_kv_move_args_t args = {keys.data, values.data, sources,        targets,
                               KEPT,      ROW,         AVL_DTYPE_BF16, 0};
    expect_status(avl_kv_move(device, &args), AVL_OK, NULL);
    for (int64_t i = 0; i < (int64_t)KEPT * ROW; i++) {
        assert_int_equal(key[i], (uint16_t)(i / ROW * 2));
        assert_int_equal(value[i], (uint16_t)(i / ROW * 2 + i % ROW));
    }
    tensor_check_canaries(&keys);
    tensor_check_canaries(&values);
    tensor_destroy(&keys);
    tensor_destroy(&values);
}

static void compacts_in_pieces(void **unused) {
    (void)unused;
    for_each_device(check_move, NULL);
}

/* A bf16 output with a bias has its f32 sums in scratch memory, a block of rows at a time. */
static void check_tall(avl_device_t *device, int64_t rows, int has_bias, avl_linear_way_t way) {
    enum { IN = 8, OUT = 4096 };
    tensor_t input = tensor_random(AVL_DTYPE_BF16, rows * IN, 1.0);
    tensor_t weight = tensor_random(AVL_DTYPE_BF16, OUT * IN, 1.0);
    tensor_t bias = tensor_random(AVL_DTYPE_F32, OUT, 1.0);
    tensor_t output = tensor_create(AVL_DTYPE_BF16, rows * OUT);
    avl_linear_args_t args = {
        .input = input.data,
        .input_stride = IN,
        .weight = weight.data,
        .weight_stride = IN,
        .bias = has_bias ? bias.data : NULL,
        .output = output.data,
        .output_stride = OUT,
        .rows = rows,
        .in_width = IN,
        .out_width = OUT,
        .dtype = AVL_DTYPE_BF16,
        .output_dtype = AVL_DTYPE_BF16,
        .activation = has_bias ? AVL_ACTIVATION_QUICK_GELU : AVL_ACTIVATION_NONE,
        .way = way,
    };
    expect_status(avl_linear(device, &args), AVL_OK, NULL);
    for (int64_t i = 0; i < output.count; i += 997) {
        int64_t t = i / OUT, n = i % OUT;
        double sum = reference_dot(&input, t * IN, &weight, n * IN, IN);
        if (has_bias)
            sum += tensor_get(&bias, n);
        check_close(tensor_get(&output, i), reference_activate(sum, args.activation), 1e-4,
                    format_relative(AVL_DTYPE_BF16), "linear", i);
    }
    tensor_check_canaries(&output);
    tensor_destroy(&input);
    tensor_destroy(&weight);
    tensor_destroy(&bias);
    tensor_destroy(&output);
}

static void multiplies_in_blocks(void **unused) {
    (void)unused;
    random_seed(14);
    avl_device_t *device = open_best(1);
    check_tall(device, 2200, 1, AVL_LINEAR_BY_ROWS);
    avl_device_close(device);
}

/* An algorithm that the library names for few rows may need more memory for many than there is. */
static void multiplies_many_rows_the_way_of_few(void **unused) {
    (void)unused;
    random_seed(15);
    avl_device_t *device = open_best(1);
    check_tall(device, 20, 0, AVL_LINEAR_FEW);
    check_tall(device, 1100, 0, AVL_LINEAR_FEW);
    check_tall(device, 21, 0, AVL_LINEAR_FEW);
    avl_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selects_among_many),
        cmocka_unit_test(serves_a_large_batch),
        cmocka_unit_test(goes_in_groups),
        cmocka_unit_test(compacts_in_pieces),
        cmocka_unit_test(multiplies_in_blocks),
        cmocka_unit_test(multiplies_many_rows_the_way_of_few),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
