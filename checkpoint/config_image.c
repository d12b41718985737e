/* checkpoint/config_image.c: the vision tower (CLIPVisionConfig) and the image processor
 * (CLIPImageProcessor, LlavaImageProcessor, LlavaNextImageProcessor) of `transformers`. */
#include <string.h>

#include "checkpoint/config_read.h"

avl_status_t avl_config_read_vision(const avl_json_node_t *root, avl_vision_config_t *vision_p) {
    avl_json_node_t vision = avl_json_member(root, "vision_config");
    AVL_TRY(avl_json_expect_object(&vision));
    /* LlavaConfig makes a ViT-L/14 at 336 when the whole part is missing; a part that exists has
     * the defaults of CLIPVisionConfig, a ViT-B/32 at 224. */
    bool given = avl_json_present(&vision);
    const char *model_type = NULL;
    AVL_TRY(avl_json_get_string(&vision, "model_type", "clip_vision_model", &model_type));
    if (strcmp(model_type, "clip_vision_model") != 0) {
        avl_json_node_t node = avl_json_member(&vision, "model_type");
        return avl_json_fail(&node, AVL_ERR_UNSUPPORTED,
                             "vision tower \"%.64s\" is not clip_vision_model", model_type);
    }
    avl_vision_config_t config = {0};
    int channels = 0;
    double epsilon = 0.0;
    AVL_TRY(avl_json_get_int(&vision, "hidden_size", 1, AVL_CONFIG_EXTENT_MAX, given ? 768 : 1024,
                             &config.hidden_width));
    AVL_TRY(avl_json_get_int(&vision, "intermediate_size", 1, AVL_CONFIG_EXTENT_MAX,
                             given ? 3072 : 4096, &config.mlp_width));
    AVL_TRY(avl_json_get_int(&vision, "num_hidden_layers", 1, AVL_CONFIG_LAYERS_MAX,
                             given ? 12 : 24, &config.layer_count));
    AVL_TRY(avl_json_get_int(&vision, "num_attention_heads", 1, AVL_CONFIG_HEADS_MAX,
                             given ? 12 : 16, &config.heads));
    AVL_TRY(avl_json_get_int(&vision, "image_size", 1, AVL_CONFIG_SIDE_MAX, given ? 224 : 336,
                             &config.image_side));
    AVL_TRY(avl_json_get_int(&vision, "patch_size", 1, AVL_CONFIG_SIDE_MAX, given ? 32 : 14,
                             &config.patch_side));
    AVL_TRY(avl_json_get_int(&vision, "num_channels", 1, AVL_CONFIG_EXTENT_MAX, 3, &channels));
    AVL_TRY(avl_json_get_double(&vision, "layer_norm_eps", 0.0, 1.0, 1e-5, &epsilon));
    AVL_TRY(avl_config_read_activation(&vision, "hidden_act", "quick_gelu", &config.activation));
    config.layer_norm_epsilon = (float)epsilon;
    if (channels != 3) {
        avl_json_node_t node = avl_json_member(&vision, "num_channels");
        return avl_json_fail(&node, AVL_ERR_UNSUPPORTED, "pictures have 3 channels, not %d",
                             channels);
    }
    if (config.hidden_width % config.heads != 0) {
        avl_json_node_t node = avl_json_member(&vision, "num_attention_heads");
        return avl_json_fail(&node, AVL_ERR_DATA, "%d does not divide hidden_size %d", config.heads,
                             config.hidden_width);
    }
    if (config.image_side % config.patch_side != 0) {
        avl_json_node_t node = avl_json_member(&vision, "patch_size");
        return avl_json_fail(&node, AVL_ERR_DATA, "%d does not divide image_size %d",
                             config.patch_side, config.image_side);
    }
    config.patches_per_side = config.image_side / config.patch_side;
    /* One attention over all patches and the class token: their number is an extent like any other.
     */
    if (config.patches_per_side * config.patches_per_side >= AVL_CONFIG_EXTENT_MAX) {
        avl_json_node_t node = avl_json_member(&vision, "patch_size");
        return avl_json_fail(&node, AVL_ERR_DATA, "%d x %d patches are too many",
                             config.patches_per_side, config.patches_per_side);
    }
    *vision_p = config;
    return AVL_OK;
}

avl_status_t avl_config_read_pinpoints(const avl_json_node_t *object, int image_side,
                                       const avl_config_pinpoints_t *fallback,
                                       avl_config_pinpoints_t *pinpoints_p) {
    avl_json_node_t list = avl_json_member(object, "image_grid_pinpoints");
    AVL_TRY(avl_json_expect_array(&list));
    if (!avl_json_present(&list)) {
        *pinpoints_p = *fallback;
        return AVL_OK;
    }
    size_t count = avl_json_count(&list);
    if (count < 1)
        return avl_json_fail(&list, AVL_ERR_DATA, "an empty list leaves no grid to choose");
    if (count > AVL_GRID_PINPOINTS_MAX) {
        return avl_json_fail(&list, AVL_ERR_UNSUPPORTED, "%zu grids are more than %d", count,
                             AVL_GRID_PINPOINTS_MAX);
    }
    avl_config_pinpoints_t pinpoints = {.count = (int)count};
    for (size_t i = 0; i < count; i++) {
        avl_json_node_t pair = avl_json_element(&list, i);
        if (!json_is_array(pair.value) || avl_json_count(&pair) != 2)
            return avl_json_fail(&pair, AVL_ERR_DATA, "not a pair of height and width");
        int64_t extents[2] = {0};
        for (size_t axis = 0; axis < 2; axis++) {
            avl_json_node_t extent = avl_json_element(&pair, axis);
            AVL_TRY(avl_json_int(&extent, 1, AVL_CONFIG_SIDE_MAX, &extents[axis]));
            if (extents[axis] % image_side != 0) {
                return avl_json_fail(&extent, AVL_ERR_DATA,
                                     "%lld is no multiple of the vision tower's %d pixels",
                                     (long long)extents[axis], image_side);
            }
        }
        pinpoints.items[i].height = (int)extents[0];
        pinpoints.items[i].width = (int)extents[1];
    }
    *pinpoints_p = pinpoints;
    return AVL_OK;
}

/* Base names; older directories say ...FeatureExtractor, newer ones add Fast or Pil. */
static avl_status_t check_processor_type(const avl_json_node_t *processor, avl_family_t family) {
    static const struct {
        const char *name;
        avl_family_t family;
    } types[] = {
        {"CLIPImageProcessor", AVL_FAMILY_LLAVA},
        {"CLIPFeatureExtractor", AVL_FAMILY_LLAVA},
        {"LlavaImageProcessor", AVL_FAMILY_LLAVA},
        {"LlavaNextImageProcessor", AVL_FAMILY_LLAVA_NEXT},
    };
    const char *old_name = NULL;
    const char *name = NULL;
    AVL_TRY(avl_json_get_string(processor, "feature_extractor_type", NULL, &old_name));
    AVL_TRY(avl_json_get_string(processor, "image_processor_type", old_name, &name));
    if (name == NULL)
        return AVL_OK;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        size_t bytes = strlen(types[i].name);
        const char *rest = name + bytes;
        if (strncmp(name, types[i].name, bytes) == 0 && types[i].family == family &&
            (rest[0] == '\0' || strcmp(rest, "Fast") == 0 || strcmp(rest, "Pil") == 0))
            return AVL_OK;
    }
    return avl_json_fail(processor, AVL_ERR_UNSUPPORTED,
                         "image processor \"%.64s\" does not go with model_type %s", name,
                         family == AVL_FAMILY_LLAVA ? "llava" : "llava_next");
}

static avl_status_t read_extent(const avl_json_node_t *node, int *value_p) {
    int64_t value = 0;
    AVL_TRY(avl_json_int(node, 1, AVL_CONFIG_SIDE_MAX, &value));
    *value_p = (int)value;
    return AVL_OK;
}

/* A size as get_size_dict reads it: an integer, [height, width], or an object. *shortest_p stays 0
 * unless the size is a shortest edge; an integer is one when `square` is false. "longest_edge"
 * beside it is ignored, as resize does. */
static avl_status_t read_size(const avl_json_node_t *node, bool square, int *shortest_p,
                              int *height_p, int *width_p) {
    int height = 0;
    int width = 0;
    int shortest = 0;
    if (json_is_object(node->value)) {
        avl_json_node_t edge = avl_json_member(node, "shortest_edge");
        avl_json_node_t tall = avl_json_member(node, "height");
        avl_json_node_t wide = avl_json_member(node, "width");
        if (avl_json_present(&edge) && !square) {
            AVL_TRY(read_extent(&edge, &shortest));
        } else if (avl_json_present(&tall) && avl_json_present(&wide)) {
            AVL_TRY(read_extent(&tall, &height));
            AVL_TRY(read_extent(&wide, &width));
        } else {
            return avl_json_fail(node, AVL_ERR_DATA, "needs %sheight and width",
                                 square ? "" : "shortest_edge, or ");
        }
    } else if (json_is_array(node->value)) {
        if (avl_json_count(node) != 2)
            return avl_json_fail(node, AVL_ERR_DATA, "not a pair of height and width");
        avl_json_node_t tall = avl_json_element(node, 0);
        avl_json_node_t wide = avl_json_element(node, 1);
        AVL_TRY(read_extent(&tall, &height));
        AVL_TRY(read_extent(&wide, &width));
    } else if (square) {
        AVL_TRY(read_extent(node, &height));
        width = height;
    } else {
        AVL_TRY(read_extent(node, &shortest));
    }
    *shortest_p = shortest;
    *height_p = height;
    *width_p = width;
    return AVL_OK;
}

/* image_mean or image_std: three numbers, or one for all channels. */
static avl_status_t read_channels(const avl_json_node_t *processor, const char *key, double least,
                                  const float fallback[3], float channels_p[3]) {
    avl_json_node_t node = avl_json_member(processor, key);
    float channels[3];
    memcpy(channels, fallback, sizeof channels);
    if (avl_json_present(&node)) {
        bool list = json_is_array(node.value);
        if (list && avl_json_count(&node) != 3) {
            return avl_json_fail(&node, AVL_ERR_DATA, "%zu values for 3 channels",
                                 avl_json_count(&node));
        }
        for (size_t i = 0; i < 3; i++) {
            avl_json_node_t channel = list ? avl_json_element(&node, i) : node;
            double value = 0.0;
            AVL_TRY(avl_json_double(&channel, least, 1e6, &value));
            channels[i] = (float)value;
        }
    }
    memcpy(channels_p, channels, sizeof channels);
    return AVL_OK;
}

/* The tower takes squares of image_side only (CLIPVisionEmbeddings refuses others), so the steps
 * must end in one. */
static avl_status_t check_result(const avl_json_node_t *processor, const avl_model_config_t *model,
                                 const avl_preprocessor_config_t *config) {
    int side = model->vision.image_side;
    int height = config->center_crop ? config->crop_height : config->resize_height;
    int width = config->center_crop ? config->crop_width : config->resize_width;
    if (!config->center_crop && !config->resize)
        height = width = 0;
    /* Padded to a square first, the shortest edge is both. */
    if (!config->center_crop && config->resize && config->resize_shortest_edge > 0 &&
        (config->pad || model->family == AVL_FAMILY_LLAVA_NEXT))
        height = width = config->resize_shortest_edge;
    if (height == 0) {
        return avl_json_fail(processor, AVL_ERR_DATA,
                             "without do_center_crop pictures keep their shape, but the vision "
                             "tower takes squares of %d",
                             side);
    }
    if (height != side || width != side) {
        return avl_json_fail(processor, AVL_ERR_DATA,
                             "makes pictures of %d x %d, but the vision tower takes squares of %d",
                             height, width, side);
    }
    /* The grid is cut into tiles of crop_size even where do_center_crop is off. */
    if (model->family == AVL_FAMILY_LLAVA_NEXT &&
        (config->crop_height != side || config->crop_width != side)) {
        avl_json_node_t crop = avl_json_member(processor, "crop_size");
        return avl_json_fail(&crop, AVL_ERR_DATA,
                             "tiles of %d x %d, but the vision tower takes squares of %d",
                             config->crop_height, config->crop_width, side);
    }
    return AVL_OK;
}

avl_status_t avl_config_read_preprocessor(const avl_json_node_t *processor,
                                          const avl_model_config_t *model,
                                          avl_preprocessor_config_t *preprocessor_p) {
    /* OPENAI_CLIP_MEAN and OPENAI_CLIP_STD of image_utils.py. */
    static const float clip_mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
    static const float clip_std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
    bool next = model->family == AVL_FAMILY_LLAVA_NEXT;
    AVL_TRY(check_processor_type(processor, model->family));
    avl_preprocessor_config_t config = {
        .resize_shortest_edge = 224, .crop_height = 224, .crop_width = 224};
    AVL_TRY(avl_json_get_bool(processor, "do_resize", true, &config.resize));
    AVL_TRY(avl_json_get_bool(processor, "do_center_crop", true, &config.center_crop));
    AVL_TRY(avl_json_get_bool(processor, "do_rescale", true, &config.rescale));
    AVL_TRY(avl_json_get_bool(processor, "do_normalize", true, &config.normalize));
    AVL_TRY(avl_json_get_bool(processor, "do_pad", next, &config.pad));
    config.pad = config.pad || next; /* there the key is about batches; grids are always padded */
    avl_json_node_t size = avl_json_member(processor, "size");
    if (avl_json_present(&size)) {
        AVL_TRY(read_size(&size, false, &config.resize_shortest_edge, &config.resize_height,
                          &config.resize_width));
    }
    avl_json_node_t crop = avl_json_member(processor, "crop_size");
    if (avl_json_present(&crop)) {
        int none = 0;
        AVL_TRY(read_size(&crop, true, &none, &config.crop_height, &config.crop_width));
    }
    int resample = AVL_RESAMPLE_BICUBIC;
    AVL_TRY(avl_json_get_int(processor, "resample", AVL_RESAMPLE_NEAREST, AVL_RESAMPLE_HAMMING,
                             AVL_RESAMPLE_BICUBIC, &resample));
    config.resample = (avl_resample_t)resample;
    AVL_TRY(avl_json_get_double(processor, "rescale_factor", 1e-9, 1e9, 1.0 / 255.0,
                                &config.rescale_factor));
    AVL_TRY(read_channels(processor, "image_mean", -1e6, clip_mean, config.mean));
    AVL_TRY(read_channels(processor, "image_std", 1e-6, clip_std, config.std));
    AVL_TRY(check_result(processor, model, &config));
    if (next) {
        avl_config_pinpoints_t models = {.count = model->grid_pinpoint_count};
        memcpy(models.items, model->grid_pinpoints, sizeof models.items);
        avl_config_pinpoints_t pinpoints = {0};
        AVL_TRY(
            avl_config_read_pinpoints(processor, model->vision.image_side, &models, &pinpoints));
        config.grid_pinpoint_count = pinpoints.count;
        memcpy(config.grid_pinpoints, pinpoints.items, sizeof config.grid_pinpoints);
    }
    *preprocessor_p = config;
    return AVL_OK;
}
