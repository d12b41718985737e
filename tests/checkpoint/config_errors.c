/* Every way in which a configuration can be impossible, with the words that its error must hold. */
#include "checkpoint/config.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/checkpoint/expect.h"
#include "tests/support/safetensors_writer.h"

#define PREPROCESSOR_336 "{\"size\": 336, \"crop_size\": 336}"

typedef struct error_case {
    const char *text; /* of the file or part under test */
    avl_status_t status;
    const char *first, *second; /* words of the error */
} error_case_t;

#define EACH(cases) (cases), sizeof(cases) / sizeof((cases)[0])

static char *directory;

static int make_directory(void **state) {
    (void)state;
    directory = avl_test_make_directory();
    avl_test_write_text(directory, "config.json", "{\"model_type\": \"llava\"}");
    avl_test_write_text(directory, "preprocessor_config.json", PREPROCESSOR_336);
    return 0;
}

static int remove_directory(void **state) {
    (void)state;
    avl_test_remove_directory(directory);
    free(directory);
    return 0;
}

/* `format` turns a case's text into the file `name`. */
static void refuse(const char *name, const char *format, const error_case_t *cases, size_t count) {
    avl_config_t config;
    expect_ok(avl_config_load(directory, &config)); /* so that the case alone is at fault */
    for (size_t i = 0; i < count; i++) {
        char text[2048];
        const char *hole = strchr(format, '@');
        assert_non_null(hole);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(hole - format), format, cases[i].text,
                 hole + 1);
        avl_test_write_text(directory, name, text);
        memset(&config, 0x5a, sizeof config);
        avl_config_t before;
        memcpy(&before, &config, sizeof before);
        expect_failure(avl_config_load(directory, &config), cases[i].status, directory, name,
                       cases[i].first, cases[i].second);
        assert_memory_equal(&config, &before, sizeof config);
    }
}

static void refuses_text_models(void **state) {
    (void)state;
    static const error_case_t cases[] = {
        {"7", AVL_ERR_DATA, "key text_config", "an object"},
        {"{\"model_type\": \"qwen2\"}", AVL_ERR_UNSUPPORTED, "text_config.model_type", "qwen2"},
        {"{\"model_type\": 5}", AVL_ERR_DATA, "text_config.model_type", "found 5"},
        {"{\"hidden_size\": 0}", AVL_ERR_DATA, "text_config.hidden_size", "0 is outside"},
        {"{\"hidden_size\": -4096}", AVL_ERR_DATA, "hidden_size", "-4096"},
        {"{\"hidden_size\": 4096.0}", AVL_ERR_DATA, "hidden_size", "4096.0"},
        {"{\"hidden_size\": \"4096\"}", AVL_ERR_DATA, "hidden_size", "\"4096\""},
        {"{\"hidden_size\": true}", AVL_ERR_DATA, "hidden_size", "true"},
        {"{\"hidden_size\": 9223372036854775807}", AVL_ERR_DATA, "hidden_size",
         "9223372036854775807"},
        {"{\"hidden_size\": 4097}", AVL_ERR_DATA, "num_attention_heads", "4097"},
        {"{\"num_attention_heads\": 0}", AVL_ERR_DATA, "num_attention_heads", "0 is outside"},
        {"{\"num_key_value_heads\": 5}", AVL_ERR_DATA, "num_key_value_heads", "5 does not divide"},
        {"{\"num_key_value_heads\": 64}", AVL_ERR_DATA, "num_key_value_heads", "64"},
        {"{\"head_dim\": 33}", AVL_ERR_DATA, "head_dim", "odd width 33"},
        {"{\"head_dim\": 65536}", AVL_ERR_DATA, "head_dim", "exceed"},
        {"{\"num_hidden_layers\": 5000}", AVL_ERR_DATA, "num_hidden_layers", "5000"},
        {"{\"vocab_size\": 2000000}", AVL_ERR_DATA, "vocab_size", "2000000"},
        {"{\"max_position_embeddings\": 0}", AVL_ERR_DATA, "max_position_embeddings", "0"},
        {"{\"rms_norm_eps\": -1e-6}", AVL_ERR_DATA, "rms_norm_eps", "-1e-06"},
        {"{\"rms_norm_eps\": \"x\"}", AVL_ERR_DATA, "rms_norm_eps", "a number"},
        {"{\"hidden_act\": \"mish\"}", AVL_ERR_UNSUPPORTED, "hidden_act", "mish"},
        {"{\"attention_bias\": 1}", AVL_ERR_DATA, "attention_bias", "found 1"},
        {"{\"tie_word_embeddings\": \"no\"}", AVL_ERR_DATA, "text_config.tie_word_embeddings",
         "no"},
        {"{\"model_type\": \"mistral\", \"sliding_window\": 0}", AVL_ERR_DATA, "sliding_window",
         "0"},
        {"{\"model_type\": \"mistral\", \"sliding_window\": -1}", AVL_ERR_DATA, "sliding_window",
         "-1"},
        {"{\"dtype\": \"int8\"}", AVL_ERR_UNSUPPORTED, "text_config.dtype", "int8"},
    };
    refuse("config.json", "{\"model_type\": \"llava\", \"text_config\": @}", EACH(cases));
}

static void refuses_rope(void **state) {
    (void)state;
    static const error_case_t cases[] = {
        {"[]", AVL_ERR_DATA, "text_config.rope_scaling", "an object"},
        {"{\"type\": \"yarn\", \"factor\": 4}", AVL_ERR_UNSUPPORTED, "rope_scaling", "yarn"},
        {"{\"rope_type\": \"longrope\"}", AVL_ERR_UNSUPPORTED, "rope_scaling", "longrope"},
        {"{\"type\": \"su\", \"factor\": 4}", AVL_ERR_UNSUPPORTED, "rope_scaling", "su"},
        {"{\"type\": \"linear\", \"rope_type\": \"dynamic\", \"factor\": 4}", AVL_ERR_DATA,
         "linear", "dynamic"},
        {"{\"type\": \"linear\"}", AVL_ERR_DATA, "rope_scaling.factor", "nothing"},
        {"{\"type\": \"linear\", \"factor\": 0}", AVL_ERR_DATA, "rope_scaling.factor", "0"},
        {"{\"type\": \"dynamic\", \"factor\": -2}", AVL_ERR_DATA, "rope_scaling.factor", "-2"},
        {"{\"type\": 3}", AVL_ERR_DATA, "rope_scaling.type", "found 3"},
        {"{\"rope_type\": \"llama3\", \"factor\": 8}", AVL_ERR_DATA, "low_freq_factor", "nothing"},
        {"{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4,"
         " \"high_freq_factor\": 4, \"original_max_position_embeddings\": 8192}",
         AVL_ERR_DATA, "high_freq_factor", "4 is not above"},
        {"{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
         " \"high_freq_factor\": 4}",
         AVL_ERR_DATA, "original_max_position_embeddings", "nothing"},
        {"{\"rope_theta\": 0}", AVL_ERR_DATA, "rope_scaling.rope_theta", "0"},
        {"{\"partial_rotary_factor\": 0.5}", AVL_ERR_UNSUPPORTED, "partial_rotary_factor", "0.5"},
    };
    refuse("config.json", "{\"model_type\": \"llava\", \"text_config\": {\"rope_scaling\": @}}",
           EACH(cases));
}

static void refuses_vision_towers(void **state) {
    (void)state;
    static const error_case_t cases[] = {
        {"\"x\"", AVL_ERR_DATA, "key vision_config", "an object"},
        {"{\"model_type\": \"siglip_vision_model\"}", AVL_ERR_UNSUPPORTED,
         "vision_config.model_type", "siglip"},
        {"{\"num_channels\": 1}", AVL_ERR_UNSUPPORTED, "vision_config.num_channels", "not 1"},
        {"{\"num_attention_heads\": 7}", AVL_ERR_DATA, "vision_config.num_attention_heads", "768"},
        {"{\"patch_size\": 15}", AVL_ERR_DATA, "vision_config.patch_size", "224"},
        {"{\"patch_size\": 448}", AVL_ERR_DATA, "vision_config.patch_size", "224"},
        {"{\"image_size\": [224, 224]}", AVL_ERR_DATA, "vision_config.image_size", "array of 2"},
        {"{\"image_size\": 99999}", AVL_ERR_DATA, "vision_config.image_size", "99999"},
        {"{\"image_size\": 16384, \"patch_size\": 1}", AVL_ERR_DATA, "vision_config.patch_size",
         "16384 x 16384"},
        {"{\"layer_norm_eps\": 2}", AVL_ERR_DATA, "vision_config.layer_norm_eps", "2"},
        {"{\"hidden_act\": \"x\"}", AVL_ERR_UNSUPPORTED, "vision_config.hidden_act", "\"x\""},
    };
    refuse("config.json", "{\"model_type\": \"llava\", \"vision_config\": @}", EACH(cases));
}

static void refuses_models(void **state) {
    (void)state;
    static const error_case_t cases[] = {
        {"[1]", AVL_ERR_DATA, "array of 1", "an object"},
        {"null", AVL_ERR_DATA, "model_type", "nothing"},
        {"{}", AVL_ERR_DATA, "key model_type", "nothing"},
        {"{\"model_type\": \"qwen2_vl\"}", AVL_ERR_UNSUPPORTED, "model_type", "qwen2_vl"},
        {"{\"model_type\": \"llava\", \"mm_vision_tower\": \"openai/clip\"}", AVL_ERR_UNSUPPORTED,
         "mm_vision_tower", "original LLaVA"},
        {"{\"model_type\": \"llava\", \"image_token_index\": -1}", AVL_ERR_DATA,
         "image_token_index", "-1"},
        {"{\"model_type\": \"llava\", \"image_token_index\": 5, \"image_token_id\": 6}",
         AVL_ERR_DATA, "image_token_id", "6 contradicts"},
        {"{\"model_type\": \"llava\", \"vision_feature_layer\": 25}", AVL_ERR_DATA,
         "vision_feature_layer", "25 is outside -25..24"},
        {"{\"model_type\": \"llava\", \"vision_feature_layer\": -26}", AVL_ERR_DATA,
         "vision_feature_layer", "-26"},
        {"{\"model_type\": \"llava\", \"vision_feature_layer\": []}", AVL_ERR_DATA,
         "vision_feature_layer", "empty"},
        {"{\"model_type\": \"llava\", \"vision_feature_layer\": [1, 99]}", AVL_ERR_DATA,
         "vision_feature_layer[1]", "99"},
        {"{\"model_type\": \"llava\", \"vision_feature_layer\": [1,2,3,4,5,6,7,8,9]}",
         AVL_ERR_UNSUPPORTED, "vision_feature_layer", "9 layers"},
        {"{\"model_type\": \"llava\", \"vision_feature_select_strategy\": \"cls\"}", AVL_ERR_DATA,
         "vision_feature_select_strategy", "cls"},
        {"{\"model_type\": \"llava_next\", \"vision_feature_select_strategy\": \"full\"}",
         AVL_ERR_UNSUPPORTED, "vision_feature_select_strategy", "default"},
        {"{\"model_type\": \"llava\", \"torch_dtype\": \"float64\"}", AVL_ERR_UNSUPPORTED,
         "torch_dtype", "float64"},
        {"{\"model_type\": \"llava\", \"projector_hidden_act\": 1}", AVL_ERR_DATA,
         "projector_hidden_act", "found 1"},
        {"{\"model_type\": \"llava\", \"model_type\": \"llava\"}", AVL_ERR_DATA,
         ":1:", "duplicate"},
        {"{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": []}", AVL_ERR_DATA,
         "image_grid_pinpoints", "empty"},
        {"{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": 5}", AVL_ERR_DATA,
         "image_grid_pinpoints", "array"},
        {"{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": [[336]]}", AVL_ERR_DATA,
         "image_grid_pinpoints[0]", "pair"},
        {"{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": [[336, 336], [336, 500]]}",
         AVL_ERR_DATA, "image_grid_pinpoints[1][1]", "500"},
        {"{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": [[0, 336]]}", AVL_ERR_DATA,
         "image_grid_pinpoints[0][0]", "0 is outside"},
        {"{\"model_type\": \"llava_next\", \"vision_config\": {}}", AVL_ERR_DATA,
         "image_grid_pinpoints", "224"},
    };
    refuse("config.json", "@", EACH(cases));
}

static void refuses_too_many_pinpoints(void **state) {
    (void)state;
    char text[2048] = "{\"model_type\": \"llava_next\", \"image_grid_pinpoints\": [";
    for (int i = 0; i < AVL_GRID_PINPOINTS_MAX + 1; i++)
        strcat(text, i > 0 ? ",[336,336]" : "[336,336]");
    strcat(text, "]}");
    const error_case_t cases[] = {{text, AVL_ERR_UNSUPPORTED, "image_grid_pinpoints", "65 grids"}};
    refuse("config.json", "@", EACH(cases));
}

static void refuses_preprocessors(void **state) {
    (void)state;
    static const error_case_t cases[] = {
        {"[]", AVL_ERR_DATA, "array of 0", "an object"},
        {"{\"image_processor_type\": \"SiglipImageProcessor\"}", AVL_ERR_UNSUPPORTED, "Siglip",
         "llava"},
        {"{\"image_processor_type\": \"LlavaNextImageProcessor\"}", AVL_ERR_UNSUPPORTED,
         "LlavaNext", "llava"},
        {"{\"image_processor_type\": \"CLIPImageProcessorSlow\"}", AVL_ERR_UNSUPPORTED, "Slow",
         "llava"},
        {"{}", AVL_ERR_DATA, "224 x 224", "squares of 336"},
        {"{\"crop_size\": 336, \"size\": 0}", AVL_ERR_DATA, "key size", "0 is outside"},
        {"{\"crop_size\": 336, \"size\": {}}", AVL_ERR_DATA, "key size", "shortest_edge"},
        {"{\"crop_size\": 336, \"size\": {\"height\": 336}}", AVL_ERR_DATA, "key size", "width"},
        {"{\"crop_size\": 336, \"size\": {\"shortest_edge\": \"336\"}}", AVL_ERR_DATA,
         "size.shortest_edge", "\"336\""},
        {"{\"crop_size\": 336, \"size\": [336]}", AVL_ERR_DATA, "key size", "pair"},
        {"{\"crop_size\": {\"shortest_edge\": 336}}", AVL_ERR_DATA, "key crop_size", "height"},
        {"{\"crop_size\": {\"height\": 336, \"width\": 335}}", AVL_ERR_DATA, "336 x 335", "336"},
        {"{\"crop_size\": 336, \"resample\": 6}", AVL_ERR_DATA, "key resample", "6"},
        {"{\"crop_size\": 336, \"resample\": \"bicubic\"}", AVL_ERR_DATA, "key resample",
         "bicubic"},
        {"{\"crop_size\": 336, \"rescale_factor\": 0}", AVL_ERR_DATA, "key rescale_factor", "0"},
        {"{\"crop_size\": 336, \"image_mean\": [0.5]}", AVL_ERR_DATA, "key image_mean", "1 values"},
        {"{\"crop_size\": 336, \"image_mean\": [0.5, 0.5, \"a\"]}", AVL_ERR_DATA, "image_mean[2]",
         "number"},
        {"{\"crop_size\": 336, \"image_std\": [1, 0, 1]}", AVL_ERR_DATA, "image_std[1]", "0"},
        {"{\"crop_size\": 336, \"do_resize\": \"yes\"}", AVL_ERR_DATA, "key do_resize", "yes"},
        {"{\"do_center_crop\": false, \"size\": 336}", AVL_ERR_DATA, "do_center_crop", "336"},
        {"{\"do_center_crop\": false, \"do_resize\": false}", AVL_ERR_DATA, "do_center_crop",
         "336"},
        {"{\"crop_size\": 336,}", AVL_ERR_DATA, "preprocessor_config.json:1:", "string"},
    };
    refuse("preprocessor_config.json", "@", EACH(cases));
}

static void refuses_preprocessors_of_llava_next(void **state) {
    (void)state;
    avl_test_write_text(directory, "config.json", "{\"model_type\": \"llava_next\"}");
    static const error_case_t cases[] = {
        {"{\"image_processor_type\": \"CLIPImageProcessor\"}", AVL_ERR_UNSUPPORTED, "CLIP",
         "llava_next"},
        {"{\"size\": 336, \"do_center_crop\": false}", AVL_ERR_DATA, "key crop_size", "224 x 224"},
        {"{\"size\": 336, \"crop_size\": 336, \"image_grid_pinpoints\": [[337, 336]]}",
         AVL_ERR_DATA, "image_grid_pinpoints[0][0]", "337"},
    };
    refuse("preprocessor_config.json", "@", EACH(cases));
}

static void refuses_processors(void **state) {
    (void)state;
    static const error_case_t cases[] = {
        {"5", AVL_ERR_DATA, "found 5", "an object"},
        {"{\"patch_size\": 16}", AVL_ERR_DATA, "key patch_size", "16 contradicts"},
        {"{\"vision_feature_select_strategy\": \"full\"}", AVL_ERR_DATA,
         "vision_feature_select_strategy", "contradicts"},
        {"{\"image_processor\": []}", AVL_ERR_DATA, "key image_processor", "an object"},
        {"{\"image_processor\": {\"size\": -1}}", AVL_ERR_DATA, "image_processor.size", "-1"},
        {"{", AVL_ERR_DATA, "processor_config.json:1:", "string"},
    };
    refuse("processor_config.json", "@", EACH(cases));
}

static void refuses_generations(void **state) {
    (void)state;
    static const error_case_t cases[] = {
        {"[2]", AVL_ERR_DATA, "array of 1", "an object"},
        {"{\"eos_token_id\": -1}", AVL_ERR_DATA, "eos_token_id", "-1"},
        {"{\"eos_token_id\": \"</s>\"}", AVL_ERR_DATA, "eos_token_id", "</s>"},
        {"{\"eos_token_id\": []}", AVL_ERR_DATA, "eos_token_id", "0 ids"},
        {"{\"eos_token_id\": [1, null]}", AVL_ERR_DATA, "eos_token_id[1]", "null"},
        {"{\"eos_token_id\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}", AVL_ERR_DATA, "eos_token_id",
         "17 ids"},
        {"{\"bos_token_id\": 3000000000}", AVL_ERR_DATA, "bos_token_id", "3000000000"},
        {"{\"temperature\": -0.1}", AVL_ERR_DATA, "temperature", "-0.1"},
        {"{\"top_p\": 1.5}", AVL_ERR_DATA, "top_p", "1.5"},
        {"{\"top_k\": -1}", AVL_ERR_DATA, "top_k", "-1"},
        {"{\"do_sample\": 0}", AVL_ERR_DATA, "do_sample", "found 0"},
        {"{\"temperature\": NaN}", AVL_ERR_DATA, "generation_config.json:1:", "token"},
    };
    refuse("generation_config.json", "@", EACH(cases));
}

static void says_what_is_missing(void **state) {
    (void)state;
    avl_config_t config;
    char path[4096];
    expect_failure(avl_config_load("/nonexistent/model", &config), AVL_ERR_NOT_FOUND,
                   "/nonexistent/model");
    snprintf(path, sizeof path, "%s/config.json", directory);
    expect_failure(avl_config_load(path, &config), AVL_ERR_NOT_FOUND, path, "not a directory");
    snprintf(path, sizeof path, "%s/preprocessor_config.json", directory);
    assert_int_equal(remove(path), 0);
    expect_failure(avl_config_load(directory, &config), AVL_ERR_NOT_FOUND,
                   "preprocessor_config.json");
    snprintf(path, sizeof path, "%s/config.json", directory);
    assert_int_equal(remove(path), 0);
    expect_failure(avl_config_load(directory, &config), AVL_ERR_NOT_FOUND, "/config.json");
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_directory, remove_directory)
    const struct CMUnitTest tests[] = {
        TEST(refuses_text_models),
        TEST(refuses_rope),
        TEST(refuses_vision_towers),
        TEST(refuses_models),
        TEST(refuses_too_many_pinpoints),
        TEST(refuses_preprocessors),
        TEST(refuses_preprocessors_of_llava_next),
        TEST(refuses_processors),
        TEST(refuses_generations),
        TEST(says_what_is_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
