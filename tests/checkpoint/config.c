/* What directories of the families say and omit. The expected defaults are those of the
 * configuration classes. */
#include "checkpoint/config.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/checkpoint/expect.h"
#include "tests/support/safetensors_writer.h"

#define PREPROCESSOR_336                                                                           \
    "{\"size\": {\"shortest_edge\": 336}, \"crop_size\": {\"height\": 336, \"width\": 336}}"
#define PREPROCESSOR_224 "{}"

static char *directory;

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

static void write_files(const char *config, const char *preprocessor) {
    avl_test_write_text(directory, "config.json", config);
    avl_test_write_text(directory, "preprocessor_config.json", preprocessor);
}

static avl_config_t load(const char *config_text, const char *preprocessor) {
    avl_config_t config = {0};
    write_files(config_text, preprocessor);
    expect_ok(avl_config_load(directory, &config));
    return config;
}

static void the_shipped_model(void **state) {
    (void)state;
    avl_config_t config;
    expect_ok(avl_config_load(AVL_SOURCE_DIR "/models/avl-tiny", &config));
    const avl_model_config_t *model = &config.model;
    assert_int_equal(model->family, AVL_FAMILY_LLAVA);
    assert_int_equal(model->text.hidden_width, 192);
    assert_int_equal(model->text.mlp_width, 512);
    assert_int_equal(model->text.layer_count, 6);
    assert_int_equal(model->text.query_heads, 6);
    assert_int_equal(model->text.kv_heads, 6);
    assert_int_equal(model->text.head_width, 32);
    assert_int_equal(model->text.vocab_rows, 960);
    assert_int_equal(model->text.positions_max, 2048);
    assert_true(model->text.rms_norm_epsilon == 1e-5f);
    assert_int_equal(model->text.rope.scaling, AVL_ROPE_DEFAULT);
    assert_true(model->text.rope.theta == 1e6);
    assert_int_equal(model->text.sliding_window, 0);
    assert_false(model->text.tied_head);
    assert_int_equal(model->vision.hidden_width, 128);
    assert_int_equal(model->vision.heads, 4);
    assert_int_equal(model->vision.patches_per_side, 14);
    assert_int_equal(model->vision.activation, AVL_ACTIVATION_QUICK_GELU);
    assert_int_equal(model->projector_activation, AVL_ACTIVATION_GELU);
    assert_true(model->projector_bias);
    assert_int_equal(model->image_token_id, 913);
    assert_int_equal(model->feature_layer_count, 1);
    assert_int_equal(model->feature_layers[0], 5);
    assert_true(model->feature_drop_class);
    assert_int_equal(model->weights_dtype, AVL_DTYPE_BF16);
    assert_int_equal(config.generation.eos_count, 1);
    assert_int_equal(config.generation.eos_ids[0], 2);
    assert_int_equal(config.generation.bos_id, 1);
    assert_int_equal(config.generation.pad_id, 914);
    assert_false(config.generation.sample);
    assert_int_equal(config.preprocessor.resize_shortest_edge, 168);
    assert_int_equal(config.preprocessor.crop_height, 168);
    assert_int_equal(config.preprocessor.crop_width, 168);
    assert_int_equal(config.preprocessor.resample, AVL_RESAMPLE_BICUBIC);
    assert_true(config.preprocessor.rescale_factor == 0.00392156862745098);
    assert_true(config.preprocessor.mean[2] == 0.40821073f);
    assert_true(config.preprocessor.std[0] == 0.26862954f);
    assert_false(config.preprocessor.pad);
}

/* As llava-1.5-7b was published: half of the text part is left to LlamaConfig. */
static void a_partial_llama(void **state) {
    (void)state;
    avl_config_t config = load(
        "{\"architectures\": [\"LlavaForConditionalGeneration\"], \"ignore_index\": -100,"
        " \"image_token_index\": 32000, \"model_type\": \"llava\", \"pad_token_id\": 32001,"
        " \"projector_hidden_act\": \"gelu\", \"text_config\": {\"_name_or_path\": "
        "\"lmsys/vicuna\","
        " \"architectures\": [\"LlamaForCausalLM\"], \"max_position_embeddings\": 4096,"
        " \"model_type\": \"llama\", \"rms_norm_eps\": 1e-05, \"torch_dtype\": \"float16\","
        " \"vocab_size\": 32064}, \"tie_word_embeddings\": false, \"torch_dtype\": \"float16\","
        " \"vision_config\": {\"hidden_size\": 1024, \"image_size\": 336, \"intermediate_size\": "
        "4096,"
        " \"model_type\": \"clip_vision_model\", \"num_attention_heads\": 16,"
        " \"num_hidden_layers\": 24, \"patch_size\": 14, \"projection_dim\": 768,"
        " \"vocab_size\": 32000}, \"vision_feature_layer\": -2,"
        " \"vision_feature_select_strategy\": \"default\", \"vocab_size\": 32064}",
        PREPROCESSOR_336);
    assert_int_equal(config.model.text.hidden_width, 4096);
    assert_int_equal(config.model.text.mlp_width, 11008);
    assert_int_equal(config.model.text.layer_count, 32);
    assert_int_equal(config.model.text.query_heads, 32);
    assert_int_equal(config.model.text.kv_heads, 32);
    assert_int_equal(config.model.text.head_width, 128);
    assert_int_equal(config.model.text.vocab_rows, 32064);
    assert_int_equal(config.model.text.positions_max, 4096);
    assert_true(config.model.text.rms_norm_epsilon == 1e-5f);
    assert_true(config.model.text.rope.theta == 10000.0);
    assert_int_equal(config.model.text.activation, AVL_ACTIVATION_SILU);
    assert_int_equal(config.model.vision.patches_per_side, 24);
    assert_true(config.model.vision.layer_norm_epsilon == 1e-5f);
    assert_int_equal(config.model.feature_layers[0], 23);
    assert_int_equal(config.model.weights_dtype, AVL_DTYPE_F16);
    assert_int_equal(config.generation.eos_count, 1);
    assert_int_equal(config.generation.eos_ids[0], 2);
    assert_int_equal(config.generation.bos_id, 1);
    assert_int_equal(config.generation.pad_id, 32001);
}

static void nothing_but_a_model_type(void **state) {
    (void)state;
    avl_config_t config = load("{\"model_type\": \"llava\"}", PREPROCESSOR_336);
    assert_int_equal(config.model.text.vocab_rows, 32000);
    assert_int_equal(config.model.text.positions_max, 2048);
    assert_true(config.model.text.rms_norm_epsilon == 1e-6f);
    assert_int_equal(config.model.vision.hidden_width, 1024); /* ViT-L/14 at 336 */
    assert_int_equal(config.model.vision.mlp_width, 4096);
    assert_int_equal(config.model.vision.layer_count, 24);
    assert_int_equal(config.model.vision.heads, 16);
    assert_int_equal(config.model.vision.image_side, 336);
    assert_int_equal(config.model.vision.patch_side, 14);
    assert_int_equal(config.model.image_token_id, 32000);
    assert_int_equal(config.model.weights_dtype, AVL_DTYPE_F32);
    assert_int_equal(config.generation.top_k, 50);
    assert_true(config.generation.temperature == 1.0f && config.generation.top_p == 1.0f);

    config = load("{\"model_type\": \"llava\", \"vision_config\": {}, \"text_config\": null}",
                  PREPROCESSOR_224);
    assert_int_equal(config.model.vision.hidden_width, 768); /* ViT-B/32 at 224 */
    assert_int_equal(config.model.vision.mlp_width, 3072);
    assert_int_equal(config.model.vision.layer_count, 12);
    assert_int_equal(config.model.vision.heads, 12);
    assert_int_equal(config.model.vision.image_side, 224);
    assert_int_equal(config.model.vision.patch_side, 32);
    assert_int_equal(config.model.feature_layers[0], 11);
    assert_int_equal(config.preprocessor.resize_shortest_edge, 224);
    assert_int_equal(config.preprocessor.crop_height, 224);
}

static void a_mistral_inside_llava_next(void **state) {
    (void)state;
    avl_config_t config =
        load("{\"model_type\": \"llava_next\", \"text_config\": {\"model_type\": \"mistral\"}}",
             PREPROCESSOR_336);
    const avl_text_config_t *text = &config.model.text;
    assert_int_equal(config.model.family, AVL_FAMILY_LLAVA_NEXT);
    assert_int_equal(text->mlp_width, 14336);
    assert_int_equal(text->kv_heads, 8);
    assert_int_equal(text->positions_max, 131072);
    assert_int_equal(text->sliding_window, 4096);
    assert_int_equal(config.model.grid_pinpoint_count, 5);
    assert_int_equal(config.model.grid_pinpoints[0].height, 336);
    assert_int_equal(config.model.grid_pinpoints[0].width, 672);
    assert_int_equal(config.model.grid_pinpoints[4].width, 1008);
    assert_int_equal(config.preprocessor.grid_pinpoint_count, 5);
    assert_true(config.preprocessor.pad);

    config = load("{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": [[336, 672]],"
                  " \"text_config\": {\"model_type\": \"mistral\", \"sliding_window\": null,"
                  " \"num_key_value_heads\": null, \"attention_bias\": true, \"head_dim\": 64}}",
                  "{\"size\": 336, \"crop_size\": 336, \"do_pad\": false}");
    assert_int_equal(text->sliding_window, 0);
    assert_int_equal(text->kv_heads, 32);
    assert_int_equal(text->head_width, 64);
    assert_false(text->attention_bias); /* MistralConfig knows none */
    assert_int_equal(config.preprocessor.grid_pinpoint_count, 1);
    assert_int_equal(config.preprocessor.grid_pinpoints[0].width, 672);
    assert_true(config.preprocessor.pad);

    config = load("{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": [[336, 672]]}",
                  "{\"size\": 336, \"crop_size\": 336,"
                  " \"image_grid_pinpoints\": [[672, 336], [336, 336]],"
                  " \"image_processor_type\": \"LlavaNextImageProcessorFast\"}");
    assert_int_equal(config.model.grid_pinpoint_count, 1);
    assert_int_equal(config.preprocessor.grid_pinpoint_count, 2);
    assert_int_equal(config.preprocessor.grid_pinpoints[0].height, 672);
}

static avl_text_config_t load_text(const char *text_config) {
    char text[1024];
    snprintf(text, sizeof text, "{\"model_type\": \"llava\", \"text_config\": %s}", text_config);
    return load(text, PREPROCESSOR_336).model.text;
}

static void rope_in_every_spelling(void **state) {
    (void)state;
    avl_text_config_t text = load_text("{\"rope_theta\": 5e5, \"max_position_embeddings\": 4096,"
                                       " \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}");
    assert_int_equal(text.rope.scaling, AVL_ROPE_LINEAR);
    assert_true(text.rope.factor == 2.0 && text.rope.theta == 5e5);
    assert_int_equal(text.rope.original_max_position_embeddings, 4096);
    text = load_text("{\"rope_scaling\": {\"rope_type\": \"dynamic\", \"type\": \"dynamic\","
                     " \"factor\": 1.5}}");
    assert_int_equal(text.rope.scaling, AVL_ROPE_DYNAMIC);
    assert_true(text.rope.factor == 1.5 && text.rope.theta == 10000.0);
    text = load_text("{\"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 500000.0,"
                     " \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
                     " \"original_max_position_embeddings\": 8192}}");
    assert_int_equal(text.rope.scaling, AVL_ROPE_LLAMA3);
    assert_true(text.rope.theta == 5e5 && text.rope.factor == 8.0);
    assert_true(text.rope.low_freq_factor == 1.0 && text.rope.high_freq_factor == 4.0);
    assert_int_equal(text.rope.original_max_position_embeddings, 8192);
    text = load_text("{\"rope_parameters\": {\"rope_theta\": 1e6}, \"rope_scaling\": null}");
    assert_int_equal(text.rope.scaling, AVL_ROPE_DEFAULT);
    assert_true(text.rope.theta == 1e6);
    text = load_text("{\"sliding_window\": 16, \"attention_bias\": true, \"mlp_bias\": true}");
    assert_int_equal(text.sliding_window, 0); /* LlamaConfig knows none */
    assert_true(text.attention_bias && text.mlp_bias);
}

static void newer_keys(void **state) {
    (void)state;
    avl_config_t config =
        load("{\"model_type\": \"llava\", \"image_token_id\": 128256, \"dtype\": \"bfloat16\","
             " \"multimodal_projector_bias\": false, \"vision_feature_layer\": [-13, -2, 0],"
             " \"vision_feature_select_strategy\": \"full\","
             " \"text_config\": {\"tie_word_embeddings\": true}}",
             PREPROCESSOR_336);
    assert_int_equal(config.model.image_token_id, 128256);
    assert_int_equal(config.model.weights_dtype, AVL_DTYPE_BF16);
    assert_false(config.model.projector_bias);
    assert_false(config.model.feature_drop_class);
    assert_int_equal(config.model.feature_layer_count, 3);
    assert_int_equal(config.model.feature_layers[0], 12);
    assert_int_equal(config.model.feature_layers[1], 23);
    assert_int_equal(config.model.feature_layers[2], 0);
    assert_true(config.model.text.tied_head);
    config = load("{\"model_type\": \"llava\", \"tie_word_embeddings\": true,"
                  " \"vision_feature_layer\": 24, \"text_config\": {\"dtype\": \"torch.float16\"}}",
                  PREPROCESSOR_336);
    assert_true(config.model.text.tied_head);
    assert_int_equal(config.model.feature_layers[0], 24);
    assert_int_equal(config.model.weights_dtype, AVL_DTYPE_F16);
}

static void activations(void **state) {
    (void)state;
    static const struct {
        const char *name;
        avl_activation_t activation;
    } cases[] = {
        {"gelu", AVL_ACTIVATION_GELU},          {"gelu_pytorch_tanh", AVL_ACTIVATION_GELU_TANH},
        {"gelu_new", AVL_ACTIVATION_GELU_TANH}, {"quick_gelu", AVL_ACTIVATION_QUICK_GELU},
        {"silu", AVL_ACTIVATION_SILU},          {"swish", AVL_ACTIVATION_SILU},
        {"relu", AVL_ACTIVATION_RELU},          {"linear", AVL_ACTIVATION_NONE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[128];
        snprintf(text, sizeof text, "{\"model_type\": \"llava\", \"projector_hidden_act\": \"%s\"}",
                 cases[i].name);
        assert_int_equal(load(text, PREPROCESSOR_336).model.projector_activation,
                         cases[i].activation);
    }
}

static void preprocessors(void **state) {
    (void)state;
    const char *model = "{\"model_type\": \"llava\"}";
    avl_preprocessor_config_t got =
        load(model, "{\"size\": {\"height\": 336, \"width\": 336}, \"do_center_crop\": false,"
                    " \"image_mean\": 0.5, \"image_std\": [1, 2, 3], \"resample\": 2,"
                    " \"do_rescale\": false, \"do_normalize\": false, \"rescale_factor\": 0.5,"
                    " \"feature_extractor_type\": \"CLIPFeatureExtractor\"}")
            .preprocessor;
    assert_int_equal(got.resize_shortest_edge, 0);
    assert_int_equal(got.resize_height, 336);
    assert_int_equal(got.resize_width, 336);
    assert_false(got.center_crop || got.rescale || got.normalize);
    assert_true(got.resize);
    assert_int_equal(got.resample, AVL_RESAMPLE_BILINEAR);
    assert_true(got.mean[0] == 0.5f && got.mean[2] == 0.5f && got.std[1] == 2.0f);
    assert_true(got.rescale_factor == 0.5);
    got = load(model, "{\"size\": 400, \"crop_size\": [336, 336], \"do_pad\": true,"
                      " \"image_processor_type\": \"LlavaImageProcessor\", \"resample\": null}")
              .preprocessor;
    assert_int_equal(got.resize_shortest_edge, 400);
    assert_int_equal(got.crop_height, 336);
    assert_true(got.pad);
    assert_int_equal(got.resample, AVL_RESAMPLE_BICUBIC);
    assert_true(got.rescale_factor == 1.0 / 255.0);
    got = load(model, "{\"size\": {\"shortest_edge\": 336}, \"do_center_crop\": false,"
                      " \"do_pad\": true}")
              .preprocessor;
    assert_int_equal(got.resize_shortest_edge, 336);
}

static void the_processor_file_of_transformers_5(void **state) {
    (void)state;
    avl_test_write_text(directory, "processor_config.json",
                        "{\"patch_size\": 14, \"vision_feature_select_strategy\": \"default\","
                        " \"image_processor\": {\"size\": {\"shortest_edge\": 336},"
                        " \"crop_size\": {\"height\": 336, \"width\": 336}, \"resample\": 2,"
                        " \"image_processor_type\": \"LlavaImageProcessorFast\"}}");
    avl_config_t config = load("{\"model_type\": \"llava\"}", "{\"size\": 7}");
    assert_int_equal(config.preprocessor.resize_shortest_edge, 336);
    assert_int_equal(config.preprocessor.resample, AVL_RESAMPLE_BILINEAR);
    char path[4096];
    snprintf(path, sizeof path, "%s/preprocessor_config.json", directory);
    assert_int_equal(remove(path), 0);
    expect_ok(avl_config_load(directory, &config));
    assert_int_equal(config.preprocessor.crop_width, 336);
}

static void generation_files(void **state) {
    (void)state;
    const char *model = "{\"model_type\": \"llava\", \"text_config\": {\"eos_token_id\": 9,"
                        " \"bos_token_id\": null, \"pad_token_id\": -1}}";
    avl_generation_config_t got = load(model, PREPROCESSOR_336).generation;
    assert_int_equal(got.eos_ids[0], 9);
    assert_int_equal(got.bos_id, -1);
    assert_int_equal(got.pad_id, -1);
    avl_test_write_text(directory, "generation_config.json",
                        "{\"eos_token_id\": [128001, 128008, 128009], \"bos_token_id\": 128000,"
                        " \"do_sample\": true, \"temperature\": 0.2, \"top_p\": 0.9, \"top_k\": 0,"
                        " \"pad_token_id\": 0}");
    got = load(model, PREPROCESSOR_336).generation;
    assert_int_equal(got.eos_count, 3);
    assert_int_equal(got.eos_ids[2], 128009);
    assert_int_equal(got.bos_id, 128000);
    assert_int_equal(got.pad_id, 0);
    assert_true(got.sample && got.temperature == 0.2f && got.top_p == 0.9f);
    assert_int_equal(got.top_k, 0);
    avl_test_write_text(directory, "generation_config.json", "{\"top_k\": null}");
    got = load("{\"model_type\": \"llava\", \"text_config\": {\"eos_token_id\": null}}",
               PREPROCESSOR_336)
              .generation;
    assert_int_equal(got.eos_count, 0);
    assert_int_equal(got.top_k, 50);
}

/* In the order of tools/reference/config.py. */
static void write_values(const avl_config_t *config, char *text, size_t bytes) {
    const avl_text_config_t *t = &config->model.text;
    const avl_vision_config_t *v = &config->model.vision;
    size_t used = (size_t)snprintf(
        text, bytes, "%d %d %d %d %d %d %d %d %.9g %d %.9g %.9g %d %d %d %d", t->hidden_width,
        t->mlp_width, t->layer_count, t->query_heads, t->kv_heads, t->head_width, t->vocab_rows,
        t->positions_max, (double)t->rms_norm_epsilon, (int)t->rope.scaling, t->rope.theta,
        t->rope.factor, t->sliding_window, t->attention_bias, t->mlp_bias, t->tied_head);
    snprintf(text + used, bytes - used, " %d %d %d %d %d %d %.9g %d %d %d %d %d %d\n",
             v->hidden_width, v->mlp_width, v->layer_count, v->heads, v->image_side, v->patch_side,
             (double)v->layer_norm_epsilon, config->model.image_token_id,
             config->model.feature_layers[0], config->model.feature_drop_class,
             config->generation.eos_ids[0], config->generation.bos_id, config->generation.pad_id);
}

/* The side of the case's pictures: the 21st value. */
static int side_of(const char *values) {
    for (int i = 0; i < 20; i++)
        values = strchr(values, ' ') + 1;
    return atoi(values);
}

static void equals_transformers(void **state) {
    (void)state;
    FILE *table = fopen(AVL_SOURCE_DIR "/tests/checkpoint/data/config.txt", "r");
    assert_non_null(table);
    char text[2048];
    char want[512];
    int cases = 0;
    while (fgets(text, sizeof text, table) != NULL) {
        assert_non_null(fgets(want, sizeof want, table));
        char preprocessor[64];
        int side = side_of(want);
        snprintf(preprocessor, sizeof preprocessor, "{\"size\": %d, \"crop_size\": %d}", side,
                 side);
        avl_config_t config = load(text, preprocessor);
        char got[512];
        write_values(&config, got, sizeof got);
        if (strcmp(got, want) != 0)
            fail_msg("%sgives %snot   %s", text, got, want);
        cases++;
    }
    fclose(table);
    assert_int_equal(cases, 200);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_directory, remove_directory)
    const struct CMUnitTest tests[] = {
        TEST(the_shipped_model),
        TEST(a_partial_llama),
        TEST(nothing_but_a_model_type),
        TEST(a_mistral_inside_llava_next),
        TEST(rope_in_every_spelling),
        TEST(newer_keys),
        TEST(activations),
        TEST(preprocessors),
        TEST(the_processor_file_of_transformers_5),
        TEST(generation_files),
        TEST(equals_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
