#include "tests/kernels/fixture.h"

#include "kernels/elementwise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/reference.h"

static const int widths[] = {1, 2, 7, 16, 31, 64, 97, 130, 521};
enum { WIDTH_COUNT = sizeof widths / sizeof widths[0] };
static const avl_dtype_t formats[] = {AVL_DTYPE_F32, AVL_DTYPE_BF16};

static void check_norm_case(avl_device_t *device, int rows, int width, avl_dtype_t dtype,
                            int with_bias, double scale) {
    int stride = width + 3;
    tensor_t input = tensor_random(AVL_DTYPE_F32, rows * stride, scale);
    for (int64_t i = 0; i < input.count; i += 41)
        tensor_set(&input, i, 1e4 * scale);
    tensor_t weight = tensor_random(AVL_DTYPE_F32, width, 2.0);
    tensor_t bias = tensor_random(AVL_DTYPE_F32, width, 1.0);
    tensor_t output = tensor_create(dtype, rows * width);
    avl_norm_args_t args = {input.data,  stride, weight.data, with_bias ? bias.data : NULL,
                            output.data, rows,   width,       1e-5f,
                            dtype};
    expect_status(avl_norm(device, &args), AVL_OK, NULL);
    for (int t = 0; t < rows; t++) {
        double mean = 0, squares = 0;
        for (int j = 0; with_bias && j < width; j++)
            mean += tensor_get(&input, t * stride + j) / width;
        for (int j = 0; j < width; j++)
            squares += pow(tensor_get(&input, t * stride + j) - mean, 2) / width;
        for (int j = 0; j < width; j++) {
            double expected = (tensor_get(&input, t * stride + j) - mean) /
                                  sqrt(squares + (double)args.epsilon) * tensor_get(&weight, j) +
                              (with_bias ? tensor_get(&bias, j) : 0);
            check_close(tensor_get(&output, t * width + j), expected, 2e-4,
                        format_relative(dtype) * 2, "norm", t * width + j);
        }
    }
    tensor_check_canaries(&output);
    tensor_destroy(&input);
    tensor_destroy(&weight);
    tensor_destroy(&bias);
    tensor_destroy(&output);
}

static void check_norm_in_place(avl_device_t *device) {
    tensor_t data = tensor_random(AVL_DTYPE_F32, 5 * 70, 1.0);
    tensor_t weight = tensor_random(AVL_DTYPE_F32, 70, 1.0);
    tensor_t output = tensor_create(AVL_DTYPE_F32, 5 * 70);
    avl_norm_args_t args = {data.data, 70, weight.data, NULL,         output.data,
                            5,         70, 1e-6f,       AVL_DTYPE_F32};
    expect_status(avl_norm(device, &args), AVL_OK, NULL);
    args.output = data.data;
    expect_status(avl_norm(device, &args), AVL_OK, NULL);
    tensor_check_same(&output, &data, "norm in place");
    args.output_dtype = AVL_DTYPE_BF16;
    expect_status(avl_norm(device, &args), AVL_ERR_SHAPE, "in place");
    args.input_stride = 69;
    expect_status(avl_norm(device, &args), AVL_ERR_SHAPE, "69 apart");
    tensor_destroy(&data);
    tensor_destroy(&weight);
    tensor_destroy(&output);
}

static void check_norm(avl_device_t *device, void *context) {
    (void)context;
    for (int w = 0; w < WIDTH_COUNT; w++) {
        for (int f = 0; f < 4; f++)
            check_norm_case(device, w == WIDTH_COUNT - 1 ? 200 : 3, widths[w], formats[f % 2],
                            f / 2, f == 0 ? 1e-3 : 1.0);
    }
    check_norm_in_place(device);
}

static void norms(void **unused) {
    (void)unused;
    random_seed(7);
    for_each_device(check_norm, NULL);
}

static void check_activation(avl_device_t *device, void *context) {
    (void)context;
    static const double special[] = {0,    -0.0,  1e-30, -1e-30, 1e4, -1e4,
                                     88.0, -88.0, 6.1,   -6.1,   3e3, -3e3};
    for (int a = AVL_ACTIVATION_NONE; a <= AVL_ACTIVATION_RELU; a++) {
        for (int f = 0; f < 2; f++) {
            for (int w = 0; w < WIDTH_COUNT; w++) {
                int count = w == WIDTH_COUNT - 1 ? 40000 : widths[w];
                tensor_t data = tensor_random(formats[f], count, 9.0);
                for (int i = 0; i < (int)(sizeof special / sizeof special[0]) && i < count; i++)
                    tensor_set(&data, i, special[i]);
                tensor_t before = tensor_copy(&data);
                avl_activation_args_t args = {data.data, count, formats[f], (avl_activation_t)a};
                expect_status(avl_activation(device, &args), AVL_OK, NULL);
                for (int i = 0; i < count; i++)
                    check_close(tensor_get(&data, i),
                                reference_activate(tensor_get(&before, i), (avl_activation_t)a),
                                1e-6, format_relative(formats[f]) * 4, "activation", i);
                tensor_check_canaries(&data);
                for (int i = 0; i < count; i++)
                    tensor_set(&data, i, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY);
                expect_status(avl_activation(device, &args), AVL_OK, NULL);
                assert_true(isnan(tensor_get(&data, 0)));
                tensor_check_canaries(&data);
                tensor_destroy(&data);
                tensor_destroy(&before);
            }
        }
    }
}

static void activations(void **unused) {
    (void)unused;
    for_each_device(check_activation, NULL);
}

static void check_gated(avl_device_t *device, void *context) {
    (void)context;
    for (int w = 0; w < WIDTH_COUNT; w++) {
        for (int f = 0; f < 2; f++) {
            int width = widths[w], rows = 4;
            tensor_t gate_up = tensor_random(formats[f], rows * 2 * width, 4.0);
            tensor_t output = tensor_create(formats[f], rows * width);
            avl_gated_args_t args = {gate_up.data, output.data, rows,
                                     width,        formats[f],  AVL_ACTIVATION_SILU};
            expect_status(avl_gated(device, &args), AVL_OK, NULL);
            for (int i = 0; i < rows * width; i++) {
                int t = i / width, j = i % width;
                double expected = reference_activate(tensor_get(&gate_up, t * 2 * width + j),
                                                     AVL_ACTIVATION_SILU) *
                                  tensor_get(&gate_up, t * 2 * width + width + j);
                check_close(tensor_get(&output, i), expected, 1e-6, format_relative(formats[f]) * 4,
                            "gated", i);
            }
            tensor_check_canaries(&output);
            tensor_destroy(&gate_up);
            tensor_destroy(&output);
        }
    }
}

static void gated(void **unused) {
    (void)unused;
    for_each_device(check_gated, NULL);
}

static void check_add(avl_device_t *device, void *context) {
    (void)context;
    for (int w = 0; w < WIDTH_COUNT; w++) {
        for (int v = 0; v < 4; v++) {
            int width = widths[w], rows = w == WIDTH_COUNT - 1 ? 100 : 3;
            tensor_t target = tensor_random(AVL_DTYPE_F32, rows * width, 1.0);
            tensor_t before = tensor_copy(&target);
            tensor_t addend = tensor_random(AVL_DTYPE_F32, rows * width, 1.0);
            tensor_t bias = tensor_random(AVL_DTYPE_F32, width, 1.0);
            avl_add_args_t args = {target.data, v & 1 ? addend.data : NULL,
                                   v & 2 ? bias.data : NULL, v & 2 ? width : 0, rows * width};
            expect_status(avl_add(device, &args), AVL_OK, NULL);
            for (int i = 0; i < rows * width; i++)
                check_close(tensor_get(&target, i),
                            tensor_get(&before, i) + (v & 1 ? tensor_get(&addend, i) : 0) +
                                (v & 2 ? tensor_get(&bias, i % width) : 0),
                            1e-6, 0, "add", i);
            tensor_check_canaries(&target);
            args.bias = bias.data;
            args.width = rows * width + 1;
            expect_status(avl_add(device, &args), AVL_ERR_SHAPE, "bias's width");
            tensor_destroy(&target);
            tensor_destroy(&before);
            tensor_destroy(&addend);
            tensor_destroy(&bias);
        }
    }
}

static void add(void **unused) {
    (void)unused;
    for_each_device(check_add, NULL);
}

static void check_embed(avl_device_t *device, void *context) {
    (void)context;
    static const int32_t ids[] = {10, 29, 9, 30, -1, 17, INT32_MAX, INT32_MIN, 0};
    enum { ROWS = sizeof ids / sizeof ids[0], FIRST = 10, TABLE = 20, WIDTH = 67 };
    for (int f = 0; f < 2; f++) {
        tensor_t table = tensor_random(formats[f], TABLE * (WIDTH + 1), 1.0);
        tensor_t output = tensor_random(AVL_DTYPE_F32, ROWS * WIDTH, 1.0);
        avl_embed_args_t args = {ids,         table.data, WIDTH + 1, FIRST,     TABLE,
                                 output.data, ROWS,       WIDTH,     formats[f]};
        expect_status(avl_embed(device, &args), AVL_OK, NULL);
        for (int t = 0; t < ROWS; t++) {
            for (int j = 0; j < WIDTH; j++) {
                int known = ids[t] >= FIRST && ids[t] < FIRST + TABLE;
                double expected =
                    known ? tensor_get(&table, (ids[t] - FIRST) * (WIDTH + 1) + j) : 0.0;
                assert_true(tensor_get(&output, t * WIDTH + j) == expected);
            }
        }
        tensor_check_canaries(&output);
        args.first_row = -1;
        expect_status(avl_embed(device, &args), AVL_ERR_SHAPE, "first_row");
        tensor_destroy(&table);
        tensor_destroy(&output);
    }
}

static void embed(void **unused) {
    (void)unused;
    for_each_device(check_embed, NULL);
}

static void check_patches(avl_device_t *device, void *context) {
    (void)context;
    for (int f = 0; f < 2; f++) {
        enum { TILES = 2, SIDE = 17, PATCH = 5, GRID = SIDE / PATCH };
        uint8_t pixels[TILES * 3 * SIDE * SIDE];
        for (size_t i = 0; i < sizeof pixels; i++)
            pixels[i] = (uint8_t)random_next();
        tensor_t output = tensor_create(formats[f], TILES * GRID * GRID * 3 * PATCH * PATCH);
        avl_patches_args_t args = {.pixels = pixels,
                                   .output = output.data,
                                   .tiles = TILES,
                                   .side = SIDE,
                                   .patch = PATCH,
                                   .scale = {0.01f, 0.02f, 0.03f},
                                   .shift = {-1.0f, 0.5f, 2.0f},
                                   .dtype = formats[f]};
        expect_status(avl_patches(device, &args), AVL_OK, NULL);
        int64_t i = 0;
        for (int row = 0; row < TILES * GRID * GRID; row++) {
            int tile = row / (GRID * GRID), y0 = row / GRID % GRID * PATCH, x0 = row % GRID * PATCH;
            for (int c = 0; c < 3; c++) {
                for (int p = 0; p < PATCH * PATCH; p++, i++) {
                    int y = y0 + p / PATCH, x = x0 + p % PATCH;
                    double byte = pixels[((tile * 3 + c) * SIDE + y) * SIDE + x];
                    check_close(tensor_get(&output, i),
                                byte * (double)args.scale[c] + (double)args.shift[c], 1e-6,
                                format_relative(formats[f]), "patches", i);
                }
            }
        }
        tensor_check_canaries(&output);
        args.patch = 0;
        expect_status(avl_patches(device, &args), AVL_ERR_SHAPE, "patches of 0");
        args.patch = SIDE + 1; /* nothing fits */
        expect_status(avl_patches(device, &args), AVL_OK, NULL);
        tensor_destroy(&output);
    }
}

static void patches(void **unused) {
    (void)unused;
    for_each_device(check_patches, NULL);
}

static void check_copy_rows(avl_device_t *device, void *context) {
    (void)context;
    enum { ROWS = 5, WIDTH = 19 };
    static const int32_t sources[ROWS] = {4, -1, 2, 2, 0}, targets[ROWS] = {1, 0, -1, 3, 4};
    tensor_t input = tensor_random(AVL_DTYPE_F32, ROWS * (WIDTH + 2), 1.0);
    for (int v = 0; v < 4; v++) {
        tensor_t output = tensor_create(AVL_DTYPE_F32, ROWS * (WIDTH + 1));
        avl_copy_rows_args_t args = {input.data,  WIDTH + 2, v & 1 ? sources : NULL,
                                     output.data, WIDTH + 1, v & 2 ? targets : NULL,
                                     ROWS,        WIDTH};
        expect_status(avl_copy_rows(device, &args), AVL_OK, NULL);
        tensor_t expected = tensor_create(AVL_DTYPE_F32, ROWS * (WIDTH + 1));
        for (int i = 0; i < ROWS; i++) {
            int from = v & 1 ? sources[i] : i, to = v & 2 ? targets[i] : i;
            for (int j = 0; from >= 0 && to >= 0 && j < WIDTH; j++)
                tensor_set(&expected, to * (WIDTH + 1) + j,
                           tensor_get(&input, from * (WIDTH + 2) + j));
        }
        tensor_check_same(&expected, &output, "copy_rows");
        tensor_check_canaries(&output);
        args.rows = -3;
        expect_status(avl_copy_rows(device, &args), AVL_ERR_SHAPE, "-3 rows");
        tensor_destroy(&output);
        tensor_destroy(&expected);
    }
    tensor_destroy(&input);
}

static void copies_rows(void **unused) {
    (void)unused;
    for_each_device(check_copy_rows, NULL);
}

static void check_rope(avl_device_t *device, void *context) {
    (void)context;
    static const int head_widths[] = {2, 6, 32, 64, 80, 96, 128};
    for (size_t w = 0; w < sizeof head_widths / sizeof head_widths[0]; w++) {
        for (int f = 0; f < 2; f++) {
            int width = head_widths[w], half = width / 2, heads = 3, rows = 9;
            int stride = heads * width + 5;
            tensor_t data = tensor_random(formats[f], rows * stride, 3.0);
            tensor_t before = tensor_copy(&data);
            tensor_t cosines = tensor_random(AVL_DTYPE_F32, rows * half, 1.0);
            tensor_t sines = tensor_random(AVL_DTYPE_F32, rows * half, 1.0);
            avl_rope_args_t args = {data.data, stride,       rows,       heads,
                                    width,     cosines.data, sines.data, formats[f]};
            expect_status(avl_rope(device, &args), AVL_OK, NULL);
            for (int i = 0; i < rows * stride; i++) {
                int t = i / stride, column = i % stride, j = column % width;
                double expected = tensor_get(&before, i);
                if (column < heads * width) {
                    double c = tensor_get(&cosines, t * half + j % half);
                    double s = tensor_get(&sines, t * half + j % half);
                    expected = j < half ? expected * c - tensor_get(&before, i + half) * s
                                        : expected * c + tensor_get(&before, i - half) * s;
                }
                check_close(tensor_get(&data, i), expected, 2e-6, format_relative(formats[f]),
                            "rope", i);
            }
            tensor_check_canaries(&data);
            args.head_width = 3;
            expect_status(avl_rope(device, &args), AVL_ERR_SHAPE, "even");
            tensor_destroy(&data);
            tensor_destroy(&before);
            tensor_destroy(&cosines);
            tensor_destroy(&sines);
        }
    }
}

static void rope(void **unused) {
    (void)unused;
    for_each_device(check_rope, NULL);
}

static void check_round(avl_device_t *device, void *context) {
    enum { COUNT = 40007 };
    (void)context;
    tensor_t input = tensor_random(AVL_DTYPE_F32, COUNT, 3.0);
    tensor_t output = tensor_create(AVL_DTYPE_BF16, COUNT), expected = tensor_copy(&output);
    for (int64_t i = 0; i < COUNT; i++)
        tensor_set(&expected, i, tensor_get(&input, i));
    avl_round_args_t args = {input.data, output.data, COUNT, AVL_DTYPE_BF16};
    expect_status(avl_round(device, &args), AVL_OK, NULL);
    tensor_check_same(&output, &expected, "round");
    tensor_check_canaries(&output);
    args.dtype = AVL_DTYPE_F32;
    expect_status(avl_round(device, &args), AVL_ERR_SHAPE, "number format");
    tensor_destroy(&input);
    tensor_destroy(&output);
    tensor_destroy(&expected);
}

static void rounds(void **unused) {
    (void)unused;
    for_each_device(check_round, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounds),  cmocka_unit_test(norms),       cmocka_unit_test(activations),
        cmocka_unit_test(gated),   cmocka_unit_test(add),         cmocka_unit_test(embed),
        cmocka_unit_test(patches), cmocka_unit_test(copies_rows), cmocka_unit_test(rope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
