#include "checkpoint/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/checkpoint/expect.h"
#include "tests/support/safetensors_writer.h"

static char *directory;
static char path_text[4096];

static int make_directory(void **state) {
    (void)state;
    directory = avl_test_make_directory();
    return 0;
}

static int remove_directory(void **state) {
    (void)state;
    avl_test_remove_directory(directory);
    free(directory);
    return 0;
}

static const char *path(const char *name) {
    snprintf(path_text, sizeof path_text, "%s/%s", directory, name);
    return path_text;
}

static const float numbers[6] = {1, 2, 3, 4, 5, 6};

/* A 2 x 3 tensor of numbers. */
static avl_test_tensor_t matrix(const char *name) {
    return (avl_test_tensor_t){.name = name,
                               .dtype = "F32",
                               .axis_count = 2,
                               .shape = {2, 3},
                               .data = numbers,
                               .bytes = sizeof numbers};
}

static void expect_matrix(const avl_weights_t *weights, const char *name) {
    avl_tensor_view_t view;
    assert_true(avl_weights_has(weights, name));
    expect_ok(avl_weights_view(weights, name, 2, (int64_t[]){2, 3}, &view));
    assert_int_equal(view.dtype, AVL_DTYPE_F32);
    assert_int_equal(view.axis_count, 2);
    assert_int_equal(view.shape[0], 2);
    assert_int_equal(view.shape[1], 3);
    assert_int_equal(view.bytes, sizeof numbers);
    assert_int_equal((uintptr_t)view.data % sizeof(float), 0);
    assert_memory_equal(view.data, numbers, sizeof numbers);
}

static void the_shipped_model(void **state) {
    (void)state;
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(AVL_SOURCE_DIR "/models/avl-tiny", &weights));
    avl_tensor_view_t view;
    expect_ok(avl_weights_view(weights, "language_model.model.layers.5.mlp.down_proj.weight", 2,
                               (int64_t[]){192, 512}, &view));
    assert_int_equal(view.dtype, AVL_DTYPE_BF16);
    assert_int_equal(view.bytes, 192 * 512 * 2);
    expect_ok(avl_weights_view(weights,
                               "vision_tower.vision_model.embeddings.patch_embedding.weight", 4,
                               (int64_t[]){128, 3, 12, 12}, &view));
    assert_true(avl_weights_has(weights, "multi_modal_projector.linear_1.bias"));
    assert_false(avl_weights_has(weights, "image_newline"));
    assert_int_equal(avl_weights_bytes(weights), 8715904);
    avl_weights_close(weights);
}

/* Every layout answers to the names of the oldest. */
static void layouts(void **state) {
    (void)state;
    static const char *const asked[] = {
        "language_model.model.layers.0.mlp.up_proj.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "multi_modal_projector.linear_1.weight",
        "image_newline",
    };
    enum { COUNT = sizeof asked / sizeof asked[0] };
    static const char *const stored[][COUNT] = {
        {"language_model.model.layers.0.mlp.up_proj.weight",
         "language_model.model.embed_tokens.weight", "language_model.lm_head.weight",
         "vision_tower.vision_model.pre_layrnorm.weight", "multi_modal_projector.linear_1.weight",
         "image_newline"},
        {"model.language_model.layers.0.mlp.up_proj.weight",
         "model.language_model.embed_tokens.weight", "lm_head.weight",
         "model.vision_tower.vision_model.pre_layrnorm.weight",
         "model.multi_modal_projector.linear_1.weight", "model.image_newline"},
        {"model.language_model.layers.0.mlp.up_proj.weight",
         "model.language_model.embed_tokens.weight", "lm_head.weight",
         "model.vision_tower.pre_layrnorm.weight", "model.multi_modal_projector.linear_1.weight",
         "model.image_newline"},
        {"language_model.layers.0.mlp.up_proj.weight", "language_model.embed_tokens.weight",
         "lm_head.weight", "vision_tower.vision_model.pre_layrnorm.weight",
         "multi_modal_projector.linear_1.weight", "image_newline"},
    };
    for (size_t layout = 0; layout < sizeof stored / sizeof stored[0]; layout++) {
        avl_test_tensor_t tensors[COUNT];
        for (size_t i = 0; i < COUNT; i++)
            tensors[i] = matrix(stored[layout][i]);
        avl_test_write_safetensors(path("model.safetensors"), tensors, COUNT);
        avl_weights_t *weights = NULL;
        expect_ok(avl_weights_open(directory, &weights));
        for (size_t i = 0; i < COUNT; i++)
            expect_matrix(weights, asked[i]);
        assert_int_equal(avl_weights_bytes(weights), COUNT * sizeof numbers);
        avl_weights_close(weights);
    }
}

static void a_tied_head_is_absent(void **state) {
    (void)state;
    avl_test_tensor_t tensor = matrix("model.language_model.embed_tokens.weight");
    avl_test_write_safetensors(path("model.safetensors"), &tensor, 1);
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(directory, &weights));
    assert_false(avl_weights_has(weights, "language_model.lm_head.weight"));
    expect_matrix(weights, "language_model.model.embed_tokens.weight");
    avl_weights_close(weights);
}

static void shards(void **state) {
    (void)state;
    avl_test_tensor_t first[] = {matrix("a"), matrix("language_model.model.norm.weight")};
    avl_test_tensor_t second[] = {matrix("b"), matrix("unmentioned")};
    avl_test_write_safetensors(path("model-00001-of-00002.safetensors"), first, 2);
    avl_test_write_safetensors(path("elsewhere"), second, 2);
    /* As in a cache of downloads: the shard is a link. */
    assert_int_equal(symlink("elsewhere", path("model-00002-of-00002.safetensors")), 0);
    avl_test_write_text(
        directory, "model.safetensors.index.json",
        "{\"metadata\": {\"total_size\": 72}, \"weight_map\": {"
        "\"a\": \"model-00001-of-00002.safetensors\","
        "\"b\": \"model-00002-of-00002.safetensors\","
        "\"language_model.model.norm.weight\": \"model-00001-of-00002.safetensors\"}}");
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(directory, &weights));
    expect_matrix(weights, "a");
    expect_matrix(weights, "b");
    expect_matrix(weights, "language_model.model.norm.weight");
    expect_matrix(weights, "unmentioned");
    assert_int_equal(avl_weights_bytes(weights), 4 * sizeof numbers);
    avl_weights_close(weights);
}

static void dtypes_and_shapes(void **state) {
    (void)state;
    static const unsigned char bytes[64] = {1, 2, 3};
    const avl_test_tensor_t tensors[] = {
        {"half", "F16", 1, {4}, bytes, 8},         {"brain", "BF16", 2, {2, 2}, bytes, 8},
        {"scalar", "F32", 0, {0}, bytes, 4},       {"empty", "F32", 2, {0, 5}, bytes, 0},
        {"ids", "I64", 1, {2}, bytes, 16},         {"flags", "BOOL", 1, {3}, bytes, 3},
        {"unaligned", "F32", 1, {2}, bytes, 8},    {"double", "F64", 1, {1}, bytes, 8},
        {"eight", "F8_E4M3", 2, {2, 2}, bytes, 4}, {"four", "F4", 1, {4}, bytes, 2},
        {"odd", "BF16", 1, {1}, bytes, 2},
    };
    avl_test_write_safetensors(path("model.safetensors"), tensors,
                               sizeof tensors / sizeof tensors[0]);
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(directory, &weights));
    avl_tensor_view_t view;
    expect_ok(avl_weights_view(weights, "half", 1, (int64_t[]){4}, &view));
    assert_int_equal(view.dtype, AVL_DTYPE_F16);
    expect_ok(avl_weights_view(weights, "brain", 2, (int64_t[]){2, 2}, &view));
    assert_int_equal(view.dtype, AVL_DTYPE_BF16);
    expect_ok(avl_weights_view(weights, "scalar", 0, (int64_t[]){0}, &view));
    assert_int_equal(view.bytes, 4);
    expect_ok(avl_weights_view(weights, "empty", 2, (int64_t[]){0, 5}, &view));
    assert_int_equal(view.bytes, 0);
    /* Three bytes of flags push it off its boundary; the view is of an aligned copy. */
    expect_ok(avl_weights_view(weights, "unaligned", 1, (int64_t[]){2}, &view));
    assert_int_equal((uintptr_t)view.data % 4, 0);
    assert_memory_equal(view.data, bytes, 8);
    expect_ok(avl_weights_view(weights, "odd", 1, (int64_t[]){1}, &view));
    assert_int_equal((uintptr_t)view.data % 2, 0);
    assert_memory_equal(view.data, bytes, 2);
    static const char *const others[] = {"ids", "flags", "double", "eight", "four"};
    static const char *const names[] = {"I64", "BOOL", "F64", "F8_E4M3", "F4"};
    static const int64_t extents[][2] = {{2}, {3}, {1}, {2, 2}, {4}};
    for (size_t i = 0; i < 5; i++) {
        assert_true(avl_weights_has(weights, others[i]));
        expect_failure(avl_weights_view(weights, others[i], i == 3 ? 2 : 1, extents[i], &view),
                       AVL_ERR_DATA, others[i], names[i], "model.safetensors");
    }
    avl_weights_close(weights);
}

static void views_need_the_exact_shape(void **state) {
    (void)state;
    avl_test_tensor_t tensors[] = {
        matrix("m"),
        {"five", "F32", 4, {1, 1, 1, 1}, NULL, 4},
    };
    avl_test_write_safetensors(path("model.safetensors"), tensors, 2);
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(directory, &weights));
    avl_tensor_view_t view = {.bytes = 77};
    expect_failure(avl_weights_view(weights, "m", 2, (int64_t[]){3, 2}, &view), AVL_ERR_DATA,
                   "tensor m", "[2, 3]", "[3, 2]");
    expect_failure(avl_weights_view(weights, "m", 1, (int64_t[]){6}, &view), AVL_ERR_DATA, "[2, 3]",
                   "[6]");
    expect_failure(avl_weights_view(weights, "m", 3, (int64_t[]){1, 2, 3}, &view), AVL_ERR_DATA,
                   "[1, 2, 3]");
    expect_failure(avl_weights_view(weights, "n", 1, (int64_t[]){6}, &view), AVL_ERR_DATA,
                   "lack tensor n");
    assert_int_equal(view.bytes, 77);
    avl_weights_close(weights);
    avl_test_write_safetensors_raw(
        path("model.safetensors"), 70,
        "{\"deep\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}     ", 4);
    expect_ok(avl_weights_open(directory, &weights));
    expect_failure(avl_weights_view(weights, "deep", 4, (int64_t[]){1, 1, 1, 1}, &view),
                   AVL_ERR_DATA, "deep", "more than 4 axes");
    avl_weights_close(weights);
}

static void finds_each_of_many(void **state) {
    (void)state;
    enum { MANY = 1000 };
    static char names[MANY][16];
    static avl_test_tensor_t tensors[MANY];
    static float values[MANY];
    for (int i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof names[i], "t%d", (i * 7919) % MANY);
        values[i] = (float)i;
        tensors[i] = (avl_test_tensor_t){names[i], "F32", 1, {1}, &values[i], sizeof(float)};
    }
    avl_test_write_safetensors(path("model.safetensors"), tensors, MANY);
    avl_weights_t *weights = NULL;
    expect_ok(avl_weights_open(directory, &weights));
    for (int i = 0; i < MANY; i++) {
        avl_tensor_view_t view;
        expect_ok(avl_weights_view(weights, names[i], 1, (int64_t[]){1}, &view));
        assert_memory_equal(view.data, &values[i], sizeof(float));
    }
    assert_false(avl_weights_has(weights, "t1000"));
    assert_false(avl_weights_has(weights, ""));
    avl_weights_close(weights);
}

static void closing_nothing(void **state) {
    (void)state;
    avl_weights_close(NULL);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_directory, remove_directory)
    const struct CMUnitTest tests[] = {
        TEST(the_shipped_model),     TEST(layouts),
        TEST(a_tied_head_is_absent), TEST(shards),
        TEST(dtypes_and_shapes),     TEST(views_need_the_exact_shape),
        TEST(finds_each_of_many),    cmocka_unit_test(closing_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
