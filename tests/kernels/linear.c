#include "tests/kernels/fixture.h"

#include <math.h>
#include <string.h>

#include "kernels/linear.h"
#include "tests/kernels/reference.h"

typedef struct shape {
    int64_t rows, in_width, out_width;
} shape_t;

/* Odd sizes, sizes around the tiles and blocks, and empty ones; the last have enough work for
 * several threads. */
static const shape_t shapes[] = {{1, 1, 1},      {1, 64, 7},     {2, 31, 5},      {3, 33, 13},
                                 {5, 97, 49},    {7, 1, 3},      {4, 0, 9},       {0, 5, 5},
                                 {6, 8, 0},      {17, 127, 53},  {47, 64, 48},    {49, 65, 96},
                                 {1, 601, 499},  {16, 257, 128}, {33, 256, 101},  {64, 64, 64},
                                 {131, 161, 99}, {97, 300, 50},  {128, 256, 256}, {193, 301, 333}};

typedef struct problem {
    avl_linear_args_t args;
    tensor_t input, weight, bias, output;
} problem_t;

static problem_t create_problem(const shape_t *shape, avl_dtype_t dtype, avl_dtype_t output_dtype,
                                avl_activation_t activation, int with_bias) {
    problem_t problem;
    int64_t input_stride = shape->in_width + ROW_GAP(3),
            weight_stride = shape->in_width + ROW_GAP(5);
    int64_t output_stride = shape->out_width + ROW_GAP(2);
    problem.input = tensor_random(dtype, shape->rows * input_stride, 1.0);
    problem.weight = tensor_random(dtype, shape->out_width * weight_stride, 1.0);
    problem.bias = tensor_random(AVL_DTYPE_F32, shape->out_width, 1.0);
    problem.output = tensor_create(output_dtype, shape->rows * output_stride);
    problem.args = (avl_linear_args_t){
        .input = problem.input.data,
        .input_stride = input_stride,
        .weight = problem.weight.data,
        .weight_stride = weight_stride,
        .bias = with_bias ? problem.bias.data : NULL,
        .output = problem.output.data,
        .output_stride = output_stride,
        .rows = shape->rows,
        .in_width = shape->in_width,
        .out_width = shape->out_width,
        .dtype = dtype,
        .output_dtype = output_dtype,
        .activation = activation,
    };
    return problem;
}

static void destroy_problem(problem_t *problem) {
    tensor_destroy(&problem->input);
    tensor_destroy(&problem->weight);
    tensor_destroy(&problem->bias);
    tensor_destroy(&problem->output);
}

static void check_problem(const problem_t *problem, double scale) {
    const avl_linear_args_t *args = &problem->args;
    double absolute = 1e-5 * sqrt((double)args->in_width + 1) * scale;
    for (int64_t t = 0; t < args->rows; t++) {
        for (int64_t n = 0; n < args->out_width; n++) {
            double sum = reference_dot(&problem->input, t * args->input_stride, &problem->weight,
                                       n * args->weight_stride, args->in_width);
            if (args->bias != NULL)
                sum += tensor_get(&problem->bias, n);
            check_close(tensor_get(&problem->output, t * args->output_stride + n),
                        reference_activate(sum, args->activation), absolute,
                        format_relative(args->output_dtype), "linear", t * args->out_width + n);
        }
        for (int64_t n = args->out_width; n < args->output_stride; n++) /* between the rows */
            assert_true(tensor_get(&problem->output, t * args->output_stride + n) == 0.0);
    }
    tensor_check_canaries(&problem->output);
}

static void check_all_shapes(avl_device_t *device, void *context) {
    (void)context;
    static const avl_dtype_t formats[][2] = {{AVL_DTYPE_F32, AVL_DTYPE_F32},
                                             {AVL_DTYPE_BF16, AVL_DTYPE_F32},
                                             {AVL_DTYPE_BF16, AVL_DTYPE_BF16}};
    int variant = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int f = 0; f < 3; f++, variant++) {
            problem_t problem = create_problem(
                &shapes[i], formats[f][0], formats[f][1],
                (avl_activation_t)(variant % (AVL_ACTIVATION_RELU + 1)), variant % 2);
            expect_status(avl_linear(device, &problem.args), AVL_OK, NULL);
            check_problem(&problem, 1.0);
            destroy_problem(&problem);
        }
    }
}

static void agrees_with_the_reference(void **unused) {
    (void)unused;
    random_seed(1);
    for_each_device(check_all_shapes, NULL);
}

/* The same problem on 1, 2 and 3 threads. */
static void is_independent_of_threads(void **unused) {
    (void)unused;
    static const shape_t wide[] = {{1, 512, 700}, {31, 300, 333}, {150, 256, 300}};
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++) {
        for (int f = 0; f < 2; f++) {
            avl_dtype_t dtype = f == 0 ? AVL_DTYPE_F32 : AVL_DTYPE_BF16;
            problem_t problem = create_problem(&wide[i], dtype, dtype, AVL_ACTIVATION_SILU, 1);
            tensor_t first = {0};
            for (int threads = 1; threads <= 3; threads++) {
                avl_device_t *device = open_best(threads);
                expect_status(avl_linear(device, &problem.args), AVL_OK, NULL);
                if (threads == 1)
                    first = tensor_copy(&problem.output);
                tensor_check_same(&first, &problem.output, "linear on several threads");
                avl_device_close(device);
            }
            tensor_destroy(&first);
            destroy_problem(&problem);
        }
    }
}

/* Every part of a batch gives the same bits as the whole, when both go the same way. */
typedef struct split {
    shape_t shape;
    int64_t part_rows;
    avl_linear_way_t way;
} split_t;

static void check_parts(avl_device_t *device, void *context) {
    const split_t *split = context;
    for (int f = 0; f < 2; f++) {
        avl_dtype_t dtype = f == 0 ? AVL_DTYPE_F32 : AVL_DTYPE_BF16;
        problem_t problem =
            create_problem(&split->shape, dtype, AVL_DTYPE_F32, AVL_ACTIVATION_GELU, 1);
        problem.args.way = split->way;
        expect_status(avl_linear(device, &problem.args), AVL_OK, NULL);
        tensor_t whole = tensor_copy(&problem.output);
        int64_t readable = split->way == AVL_LINEAR_MANY ? AVL_LINEAR_MANY_ROWS : split->part_rows;
        for (int64_t row = 0;
             row + split->part_rows <= split->shape.rows && row + readable <= split->shape.rows;
             row += split->part_rows) {
            avl_linear_args_t part = problem.args;
            part.rows = split->part_rows;
            part.input = (const char *)part.input +
                         (size_t)(row * part.input_stride) * avl_dtype_bytes(dtype);
            part.output = (float *)problem.output.data + row * part.output_stride;
            expect_status(avl_linear(device, &part), AVL_OK, NULL);
        }
        tensor_check_same(&whole, &problem.output, "linear in parts");
        tensor_destroy(&whole);
        destroy_problem(&problem);
    }
}

static void rows_do_not_know_each_other(void **unused) {
    (void)unused;
    split_t splits[] = {
        {{15, 200, 77}, 1, AVL_LINEAR_BY_ROWS},     {{111, 200, 77}, 37, AVL_LINEAR_BY_ROWS},
        {{290, 256, 300}, 145, AVL_LINEAR_BY_ROWS}, {{200, 256, 300}, 7, AVL_LINEAR_FEW},
        {{291, 256, 300}, 1, AVL_LINEAR_MANY},      {{300, 300, 257}, 50, AVL_LINEAR_MANY},
        {{150, 100, 60}, 9, AVL_LINEAR_MANY}};
    for (size_t i = 0; i < sizeof splits / sizeof splits[0]; i++)
        for_each_device(check_parts, &splits[i]);
}

static void check_outliers(avl_device_t *device, void *context) {
    (void)context;
    shape_t shape = {70, 130, 50};
    for (int f = 0; f < 2; f++) {
        avl_dtype_t dtype = f == 0 ? AVL_DTYPE_F32 : AVL_DTYPE_BF16;
        problem_t problem = create_problem(&shape, dtype, AVL_DTYPE_F32, AVL_ACTIVATION_NONE, 1);
        for (int64_t i = 0; i < problem.input.count; i += 11)
            tensor_set(&problem.input, i, i % 2 ? 1e4 : -1e4);
        expect_status(avl_linear(device, &problem.args), AVL_OK, NULL);
        check_problem(&problem, 1e4);
        /* Whatever the numbers are, nothing is written elsewhere. */
        for (int64_t i = 0; i < problem.weight.count; i += 7)
            tensor_set(&problem.weight, i, i % 2 ? NAN : INFINITY);
        expect_status(avl_linear(device, &problem.args), AVL_OK, NULL);
        tensor_check_canaries(&problem.output);
        destroy_problem(&problem);
    }
}

static void survives_outliers(void **unused) {
    (void)unused;
    for_each_device(check_outliers, NULL);
}

static void refuses_bad_arguments(void **unused) {
    (void)unused;
    avl_device_t *device = open_best(1);
    shape_t shape = {3, 8, 5};
    problem_t problem =
        create_problem(&shape, AVL_DTYPE_F32, AVL_DTYPE_F32, AVL_ACTIVATION_NONE, 1);
    avl_linear_args_t bad = problem.args;
    bad.input = NULL;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "input is NULL");
    bad = problem.args;
    bad.weight_stride = 7;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "weight");
    bad = problem.args;
    bad.output_stride = 4;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "output");
    bad = problem.args;
    bad.rows = -1;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "negative");
    bad = problem.args;
    bad.rows = INT64_MAX / 2;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "more than memory");
    bad = problem.args;
    bad.dtype = (avl_dtype_t)77;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "number format");
    bad = problem.args;
    bad.output_dtype = AVL_DTYPE_BF16;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "it can be f32 or");
    bad = problem.args;
    bad.activation = (avl_activation_t)77;
    expect_status(avl_linear(device, &bad), AVL_ERR_SHAPE, "77");
    destroy_problem(&problem);
    avl_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_reference),   cmocka_unit_test(is_independent_of_threads),
        cmocka_unit_test(rows_do_not_know_each_other), cmocka_unit_test(survives_outliers),
        cmocka_unit_test(refuses_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
