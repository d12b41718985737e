/* tests/checkpoint/published.c: directories laid out like those of published models
 * (data/published: what they say, and what they leave to defaults), and what they mean. */
#include <math.h>
#include <stdio.h>

#include "checkpoint/config.h"
#include "checkpoint/image_layout.h"
#include "tests/checkpoint/expect.h"

typedef struct published {
    const char *name;
    avl_family_t family;
    int kv_heads, mlp_width, vocab_rows, positions_max;
    double rope_theta;
    int image_token_id, eos_id;
    avl_dtype_t dtype;
    int prompt_rows; /* of a picture of 640 x 480, as the processor of `transformers` counts them */
} published_t;

static const published_t models[] = {
    {"llava-1.5-7b-hf", AVL_FAMILY_LLAVA, 32, 11008, 32064, 4096, 1e4, 32000, 2, AVL_DTYPE_F16,
     576},
    {"llava-1.5-7b-hf-newer", AVL_FAMILY_LLAVA, 32, 11008, 32064, 4096, 1e4, 32000, 2,
     AVL_DTYPE_F16, 576},
    {"llava-v1.6-vicuna-7b-hf", AVL_FAMILY_LLAVA_NEXT, 32, 11008, 32064, 4096, 1e4, 32000, 2,
     AVL_DTYPE_F16, 2340},
    {"llava-v1.6-mistral-7b-hf", AVL_FAMILY_LLAVA_NEXT, 8, 14336, 32064, 32768, 1e6, 32000, 2,
     AVL_DTYPE_BF16, 2340},
    {"llama3-llava-next-8b-hf", AVL_FAMILY_LLAVA_NEXT, 8, 14336, 128320, 8192, 5e5, 128256, 128009,
     AVL_DTYPE_F16, 2340},
};

static void check_preprocessor(const avl_config_t *config) {
    const avl_preprocessor_config_t *steps = &config->preprocessor;
    assert_true(steps->resize && steps->center_crop && steps->rescale && steps->normalize);
    assert_int_equal(steps->resize_shortest_edge, 336);
    assert_int_equal(steps->crop_height, 336);
    assert_int_equal(steps->crop_width, 336);
    assert_int_equal(steps->resample, AVL_RESAMPLE_BICUBIC);
    assert_true(fabs(steps->rescale_factor * 255.0 - 1.0) < 1e-12);
    assert_true(steps->mean[0] == 0.48145466f && steps->std[2] == 0.27577711f);
    assert_int_equal(steps->pad, config->model.family == AVL_FAMILY_LLAVA_NEXT);
    assert_int_equal(steps->grid_pinpoint_count,
                     config->model.family == AVL_FAMILY_LLAVA_NEXT ? 5 : 0);
}

static void check_vision(const avl_model_config_t *model) {
    assert_int_equal(model->vision.hidden_width, 1024);
    assert_int_equal(model->vision.mlp_width, 4096);
    assert_int_equal(model->vision.layer_count, 24);
    assert_int_equal(model->vision.heads, 16);
    assert_int_equal(model->vision.patches_per_side, 24);
    assert_int_equal(model->vision.activation, AVL_ACTIVATION_QUICK_GELU);
    assert_int_equal(model->feature_layer_count, 1);
    assert_int_equal(model->feature_layers[0], 23);
    assert_true(model->feature_drop_class);
    assert_true(model->projector_bias);
    assert_int_equal(model->projector_activation, AVL_ACTIVATION_GELU);
}

static void check_text(const avl_text_config_t *text, const published_t *expected) {
    assert_int_equal(text->hidden_width, 4096);
    assert_int_equal(text->mlp_width, expected->mlp_width);
    assert_int_equal(text->layer_count, 32);
    assert_int_equal(text->query_heads, 32);
    assert_int_equal(text->kv_heads, expected->kv_heads);
    assert_int_equal(text->head_width, 128);
    assert_int_equal(text->vocab_rows, expected->vocab_rows);
    assert_int_equal(text->positions_max, expected->positions_max);
    assert_true(text->rms_norm_epsilon == 1e-5f);
    assert_int_equal(text->rope.scaling, AVL_ROPE_DEFAULT);
    assert_true(text->rope.theta == expected->rope_theta);
    assert_int_equal(text->sliding_window, 0);
    assert_false(text->attention_bias || text->mlp_bias || text->tied_head);
    assert_int_equal(text->activation, AVL_ACTIVATION_SILU);
}

static void check_model(const published_t *expected) {
    char directory[512];
    avl_config_t config;
    snprintf(directory, sizeof directory, AVL_SOURCE_DIR "/tests/checkpoint/data/published/%s",
             expected->name);
    expect_ok(avl_config_load(directory, &config));
    assert_int_equal(config.model.family, expected->family);
    assert_int_equal(config.model.image_token_id, expected->image_token_id);
    assert_int_equal(config.model.weights_dtype, expected->dtype);
    assert_int_equal(config.generation.eos_count, 1);
    assert_int_equal(config.generation.eos_ids[0], expected->eos_id);
    assert_false(config.generation.sample);
    check_text(&config.model.text, expected);
    check_vision(&config.model);
    check_preprocessor(&config);
    avl_image_layout_t layout;
    expect_ok(avl_image_layout(&config, 640, 480, &layout));
    assert_int_equal(layout.prompt_rows, expected->prompt_rows);
}

static void published_models_are_understood(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        check_model(&models[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(published_models_are_understood)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
