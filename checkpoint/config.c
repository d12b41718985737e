#include "checkpoint/config.h"

#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoint/config_read.h"

/* A configuration is a few kilobytes; a chat template beside it some tens. */
#define CONFIG_BYTES_MAX ((size_t)16 << 20)

/* The files of a directory; those that do not exist are zeros. */
typedef struct config_files {
    avl_json_document_t config, generation, preprocessor, processor;
} config_files_t;

avl_status_t avl_config_read_activation(const avl_json_node_t *object, const char *key,
                                        const char *fallback, avl_activation_t *activation_p) {
    static const struct {
        const char *name;
        avl_activation_t activation;
    } names[] = {
        {"gelu", AVL_ACTIVATION_GELU},
        {"gelu_python", AVL_ACTIVATION_GELU},
        {"gelu_new", AVL_ACTIVATION_GELU_TANH},
        {"gelu_fast", AVL_ACTIVATION_GELU_TANH},
        {"gelu_pytorch_tanh", AVL_ACTIVATION_GELU_TANH},
        {"quick_gelu", AVL_ACTIVATION_QUICK_GELU},
        {"silu", AVL_ACTIVATION_SILU},
        {"swish", AVL_ACTIVATION_SILU},
        {"relu", AVL_ACTIVATION_RELU},
        {"linear", AVL_ACTIVATION_NONE},
    };
    const char *name = NULL;
    AVL_TRY(avl_json_get_string(object, key, fallback, &name));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i].name) == 0) {
            *activation_p = names[i].activation;
            return AVL_OK;
        }
    }
    avl_json_node_t node = avl_json_member(object, key);
    return avl_json_fail(&node, AVL_ERR_UNSUPPORTED, "activation \"%.64s\" is not known", name);
}

static avl_status_t read_family(const avl_json_node_t *root, avl_family_t *family_p) {
    avl_json_node_t node = avl_json_member(root, "model_type");
    const char *name = NULL;
    AVL_TRY(avl_json_string(&node, &name));
    if (strcmp(name, "llava") == 0) {
        *family_p = AVL_FAMILY_LLAVA;
    } else if (strcmp(name, "llava_next") == 0) {
        *family_p = AVL_FAMILY_LLAVA_NEXT;
    } else {
        return avl_json_fail(&node, AVL_ERR_UNSUPPORTED,
                             "model type \"%.64s\" is none of llava and llava_next", name);
    }
    /* The original LLaVA code calls its models "llava", too, and lays out keys and tensors in its
     * own way. */
    avl_json_node_t original = avl_json_member(root, "mm_vision_tower");
    if (avl_json_present(&original)) {
        return avl_json_fail(&original, AVL_ERR_UNSUPPORTED,
                             "a directory in the original LLaVA layout; convert it to that of "
                             "Hugging Face transformers");
    }
    return AVL_OK;
}

/* Index -1 is the last of layer_count + 1 hidden states, the first of which is the embeddings. */
static avl_status_t read_feature_layer(const avl_json_node_t *node, int layer_count, int *layer_p) {
    int64_t layer = 0;
    AVL_TRY(avl_json_int(node, -layer_count - 1, layer_count, &layer));
    *layer_p = (int)(layer < 0 ? layer + layer_count + 1 : layer);
    return AVL_OK;
}

static avl_status_t read_feature_layers(const avl_json_node_t *root, avl_model_config_t *model) {
    avl_json_node_t node = avl_json_member(root, "vision_feature_layer");
    int layer_count = model->vision.layer_count;
    model->feature_layer_count = 1;
    if (!avl_json_present(&node)) {
        model->feature_layers[0] = layer_count - 1; /* -2 */
        return AVL_OK;
    }
    if (!json_is_array(node.value))
        return read_feature_layer(&node, layer_count, &model->feature_layers[0]);
    size_t count = avl_json_count(&node);
    if (count < 1)
        return avl_json_fail(&node, AVL_ERR_DATA, "an empty list selects no layer");
    if (count > AVL_FEATURE_LAYERS_MAX) {
        return avl_json_fail(&node, AVL_ERR_UNSUPPORTED, "%zu layers are more than %d", count,
                             AVL_FEATURE_LAYERS_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        avl_json_node_t element = avl_json_element(&node, i);
        AVL_TRY(read_feature_layer(&element, layer_count, &model->feature_layers[i]));
    }
    model->feature_layer_count = (int)count;
    return AVL_OK;
}

static avl_status_t read_strategy(const avl_json_node_t *object, bool fallback,
                                  bool *drop_class_p) {
    avl_json_node_t node = avl_json_member(object, "vision_feature_select_strategy");
    if (!avl_json_present(&node)) {
        *drop_class_p = fallback;
        return AVL_OK;
    }
    const char *name = NULL;
    AVL_TRY(avl_json_string(&node, &name));
    if (strcmp(name, "default") != 0 && strcmp(name, "full") != 0)
        return avl_json_fail(&node, AVL_ERR_DATA, "\"%.64s\" is neither default nor full", name);
    *drop_class_p = strcmp(name, "default") == 0;
    return AVL_OK;
}

/* "torch_dtype", which newer files call "dtype". *found_p tells whether there is one. */
static avl_status_t read_dtype(const avl_json_node_t *object, bool *found_p, avl_dtype_t *dtype_p) {
    static const char *const keys[] = {"dtype", "torch_dtype"};
    static const struct {
        const char *name;
        avl_dtype_t dtype;
    } names[] = {
        {"float32", AVL_DTYPE_F32}, {"float16", AVL_DTYPE_F16}, {"bfloat16", AVL_DTYPE_BF16}};
    *found_p = false;
    for (size_t k = 0; k < sizeof keys / sizeof keys[0] && !*found_p; k++) {
        avl_json_node_t node = avl_json_member(object, keys[k]);
        if (!avl_json_present(&node))
            continue;
        const char *name = NULL;
        AVL_TRY(avl_json_string(&node, &name));
        const char *bare = strncmp(name, "torch.", 6) == 0 ? name + 6 : name;
        for (size_t i = 0; i < sizeof names / sizeof names[0] && !*found_p; i++) {
            if (strcmp(bare, names[i].name) == 0) {
                *dtype_p = names[i].dtype;
                *found_p = true;
            }
        }
        if (!*found_p) {
            return avl_json_fail(&node, AVL_ERR_UNSUPPORTED,
                                 "\"%.64s\" is none of float32, float16 and bfloat16", name);
        }
    }
    return AVL_OK;
}

static avl_status_t read_weights_dtype(const avl_json_node_t *root, avl_dtype_t *dtype_p) {
    avl_json_node_t text = avl_json_member(root, "text_config");
    bool found = false;
    *dtype_p = AVL_DTYPE_F32;
    AVL_TRY(read_dtype(root, &found, dtype_p));
    return found ? AVL_OK : read_dtype(&text, &found, dtype_p);
}

static avl_status_t read_image_token(const avl_json_node_t *root, int *id_p) {
    avl_json_node_t index = avl_json_member(root, "image_token_index");
    avl_json_node_t id = avl_json_member(root, "image_token_id");
    int old_value = 0;
    AVL_TRY(avl_json_get_int(root, "image_token_index", 0, INT_MAX, 32000, &old_value));
    AVL_TRY(avl_json_get_int(root, "image_token_id", 0, INT_MAX, old_value, id_p));
    if (avl_json_present(&index) && avl_json_present(&id) && old_value != *id_p) {
        return avl_json_fail(&id, AVL_ERR_DATA, "%d contradicts image_token_index %d", *id_p,
                             old_value);
    }
    return AVL_OK;
}

/* What LlavaNextConfig has without a list. */
static const avl_config_pinpoints_t default_pinpoints = {
    .count = 5,
    .items = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}},
};

static avl_status_t read_model_pinpoints(const avl_json_node_t *root, avl_model_config_t *model) {
    avl_config_pinpoints_t pinpoints = {0};
    AVL_TRY(
        avl_config_read_pinpoints(root, model->vision.image_side, &default_pinpoints, &pinpoints));
    for (int i = 0; i < pinpoints.count; i++) {
        /* The list of the class is made for towers of 336; another tower needs its own. */
        if (pinpoints.items[i].height % model->vision.image_side != 0 ||
            pinpoints.items[i].width % model->vision.image_side != 0) {
            avl_json_node_t node = avl_json_member(root, "image_grid_pinpoints");
            return avl_json_fail(&node, AVL_ERR_DATA,
                                 "missing, and the default (%d, %d) is no multiple of the vision "
                                 "tower's %d pixels",
                                 pinpoints.items[i].height, pinpoints.items[i].width,
                                 model->vision.image_side);
        }
    }
    model->grid_pinpoint_count = pinpoints.count;
    memcpy(model->grid_pinpoints, pinpoints.items, sizeof model->grid_pinpoints);
    return AVL_OK;
}

static avl_status_t read_model(const avl_json_node_t *root, avl_model_config_t *model_p) {
    avl_model_config_t model = {0};
    AVL_TRY(avl_json_expect_object(root));
    AVL_TRY(read_family(root, &model.family));
    AVL_TRY(avl_config_read_text(root, &model.text));
    AVL_TRY(avl_config_read_vision(root, &model.vision));
    AVL_TRY(avl_config_read_activation(root, "projector_hidden_act", "gelu",
                                       &model.projector_activation));
    AVL_TRY(avl_json_get_bool(root, "multimodal_projector_bias", true, &model.projector_bias));
    AVL_TRY(read_image_token(root, &model.image_token_id));
    AVL_TRY(read_feature_layers(root, &model));
    AVL_TRY(read_strategy(root, true, &model.feature_drop_class));
    AVL_TRY(read_weights_dtype(root, &model.weights_dtype));
    if (model.family == AVL_FAMILY_LLAVA_NEXT) {
        AVL_TRY(read_model_pinpoints(root, &model));
        if (!model.feature_drop_class) {
            avl_json_node_t node = avl_json_member(root, "vision_feature_select_strategy");
            return avl_json_fail(&node, AVL_ERR_UNSUPPORTED,
                                 "llava_next arranges tiles in a grid, where a class token has no "
                                 "place; only \"default\" works");
        }
    }
    *model_p = model;
    return AVL_OK;
}

/* processor_config.json repeats what the placeholders' number depends on. */
static avl_status_t check_processor(const avl_json_node_t *processor,
                                    const avl_model_config_t *model) {
    AVL_TRY(avl_json_expect_object(processor));
    int patch_side = 0;
    AVL_TRY(avl_json_get_int(processor, "patch_size", 1, AVL_CONFIG_SIDE_MAX,
                             model->vision.patch_side, &patch_side));
    if (patch_side != model->vision.patch_side) {
        avl_json_node_t node = avl_json_member(processor, "patch_size");
        return avl_json_fail(&node, AVL_ERR_DATA, "%d contradicts the %d of config.json",
                             patch_side, model->vision.patch_side);
    }
    bool drop_class = false;
    AVL_TRY(read_strategy(processor, model->feature_drop_class, &drop_class));
    if (drop_class != model->feature_drop_class) {
        avl_json_node_t node = avl_json_member(processor, "vision_feature_select_strategy");
        return avl_json_fail(&node, AVL_ERR_DATA, "contradicts config.json");
    }
    return AVL_OK;
}

static avl_status_t read_parts(const config_files_t *files, avl_config_t *config) {
    avl_json_node_t root = avl_json_root(&files->config);
    AVL_TRY(read_model(&root, &config->model));
    avl_json_node_t generation = avl_json_root(&files->generation);
    AVL_TRY(avl_config_read_generation(files->generation.root != NULL ? &generation : NULL, &root,
                                       &config->generation));
    /* transformers 5 keeps the image processor inside processor_config.json, and prefers it there.
     */
    avl_json_node_t processor = avl_json_root(&files->processor);
    if (files->processor.root != NULL)
        AVL_TRY(check_processor(&processor, &config->model));
    avl_json_node_t image = avl_json_member(&processor, "image_processor");
    if (!avl_json_present(&image))
        image = avl_json_root(&files->preprocessor);
    AVL_TRY(avl_json_expect_object(&image));
    return avl_config_read_preprocessor(&image, &config->model, &config->preprocessor);
}

/* Leaves the document as zeros when the file does not exist. */
static avl_status_t open_optional(const char *directory, const char *name,
                                  avl_json_document_t *document_p) {
    avl_status_t status = avl_json_open(directory, name, CONFIG_BYTES_MAX, document_p);
    return status == AVL_ERR_NOT_FOUND ? AVL_OK : status;
}

static avl_status_t open_files(const char *directory, config_files_t *files) {
    AVL_TRY(avl_json_open(directory, "config.json", CONFIG_BYTES_MAX, &files->config));
    AVL_TRY(open_optional(directory, "generation_config.json", &files->generation));
    AVL_TRY(open_optional(directory, "processor_config.json", &files->processor));
    avl_json_node_t processor = avl_json_root(&files->processor);
    avl_json_node_t image = avl_json_member(&processor, "image_processor");
    if (avl_json_present(&image))
        return open_optional(directory, "preprocessor_config.json", &files->preprocessor);
    return avl_json_open(directory, "preprocessor_config.json", CONFIG_BYTES_MAX,
                         &files->preprocessor);
}

avl_status_t avl_config_load(const char *directory, avl_config_t *config_p) {
    struct stat place;
    if (stat(directory, &place) == 0 && !S_ISDIR(place.st_mode))
        return avl_fail(AVL_ERR_NOT_FOUND, "%s: not a directory", directory);
    config_files_t files = {0};
    avl_config_t config = {0};
    avl_status_t status = open_files(directory, &files);
    if (status == AVL_OK)
        status = read_parts(&files, &config);
    if (status == AVL_OK)
        *config_p = config;
    avl_json_close(&files.config);
    avl_json_close(&files.generation);
    avl_json_close(&files.preprocessor);
    avl_json_close(&files.processor);
    return status;
}
