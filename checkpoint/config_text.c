/* checkpoint/config_text.c: text_config as LlamaConfig and MistralConfig of `transformers`
 * understand it. */
#include <string.h>

#include "checkpoint/config_read.h"

/* Defaults of configuration_llama.py and configuration_mistral.py, which have not changed since
 * these classes exist. */
typedef struct text_defaults {
    const char *model_type;
    int mlp_width;
    int kv_heads; /* 0: as many as query heads */
    int positions_max;
    int sliding_window; /* 0: the class has none */
    bool biases;        /* the class knows attention_bias and mlp_bias */
} text_defaults_t;

static const text_defaults_t known_types[] = {
    {.model_type = "llama", .mlp_width = 11008, .positions_max = 2048, .biases = true},
    {.model_type = "mistral",
     .mlp_width = 14336,
     .kv_heads = 8,
     .positions_max = 4096 * 32,
     .sliding_window = 4096},
};

/* NULL for a name that is none of them. */
static const text_defaults_t *find_defaults(const char *model_type) {
    for (size_t i = 0; i < sizeof known_types / sizeof known_types[0]; i++) {
        if (strcmp(model_type, known_types[i].model_type) == 0)
            return &known_types[i];
    }
    return NULL;
}

/* head_dim, kv heads, and that they fit together. */
static avl_status_t read_heads(const avl_json_node_t *text, const text_defaults_t *defaults,
                               avl_text_config_t *config) {
    AVL_TRY(avl_json_get_int(text, "num_attention_heads", 1, AVL_CONFIG_HEADS_MAX, 32,
                             &config->query_heads));
    /* A null means "as many as query heads" for both classes; only an absent key has Mistral's 8.
     */
    avl_json_node_t kv_heads = avl_json_member(text, "num_key_value_heads");
    int fallback = defaults->kv_heads > 0 && !avl_json_is_null(&kv_heads) ? defaults->kv_heads
                                                                          : config->query_heads;
    AVL_TRY(avl_json_get_int(text, "num_key_value_heads", 1, AVL_CONFIG_HEADS_MAX, fallback,
                             &config->kv_heads));
    if (config->query_heads % config->kv_heads != 0) {
        return avl_json_fail(&kv_heads, AVL_ERR_DATA, "%d does not divide the %d query heads",
                             config->kv_heads, config->query_heads);
    }
    avl_json_node_t head_width = avl_json_member(text, "head_dim");
    if (!avl_json_present(&head_width) && config->hidden_width % config->query_heads != 0) {
        avl_json_node_t heads = avl_json_member(text, "num_attention_heads");
        return avl_json_fail(&heads, AVL_ERR_DATA, "%d does not divide hidden_size %d",
                             config->query_heads, config->hidden_width);
    }
    AVL_TRY(avl_json_get_int(text, "head_dim", 1, AVL_CONFIG_EXTENT_MAX,
                             config->hidden_width / config->query_heads, &config->head_width));
    if (config->head_width % 2 != 0) {
        return avl_json_fail(&head_width, AVL_ERR_DATA,
                             "heads of odd width %d cannot be rotated in pairs",
                             config->head_width);
    }
    if (config->head_width > AVL_CONFIG_EXTENT_MAX / config->query_heads) {
        return avl_json_fail(&head_width, AVL_ERR_DATA, "%d heads of %d exceed %d columns",
                             config->query_heads, config->head_width, AVL_CONFIG_EXTENT_MAX);
    }
    return AVL_OK;
}

static avl_status_t read_rope_type(const avl_json_node_t *scaling, avl_rope_scaling_t *type_p) {
    static const struct {
        const char *name;
        avl_rope_scaling_t type;
    } types[] = {
        {"default", AVL_ROPE_DEFAULT},
        {"linear", AVL_ROPE_LINEAR},
        {"dynamic", AVL_ROPE_DYNAMIC},
        {"llama3", AVL_ROPE_LLAMA3},
    };
    const char *old_name = NULL;
    const char *name = NULL;
    AVL_TRY(avl_json_get_string(scaling, "type", NULL, &old_name));
    AVL_TRY(avl_json_get_string(scaling, "rope_type", old_name, &name));
    if (old_name != NULL && strcmp(old_name, name) != 0) {
        return avl_json_fail(scaling, AVL_ERR_DATA,
                             "type \"%.64s\" contradicts rope_type \"%.64s\"", old_name, name);
    }
    if (name == NULL) /* a dictionary that only says rope_theta */
        name = "default";
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(name, types[i].name) == 0) {
            *type_p = types[i].type;
            return AVL_OK;
        }
    }
    return avl_json_fail(scaling, AVL_ERR_UNSUPPORTED,
                         "rope type \"%.64s\" is none of default, linear, dynamic and llama3",
                         name);
}

/* The keys that the scaling's type needs; `transformers` fails without them, too. */
static avl_status_t read_rope_factors(const avl_json_node_t *scaling, avl_rope_config_t *rope) {
    if (rope->scaling == AVL_ROPE_DEFAULT)
        return AVL_OK;
    avl_json_node_t factor = avl_json_member(scaling, "factor");
    AVL_TRY(avl_json_double(&factor, 0x1p-20, 0x1p20, &rope->factor));
    if (rope->scaling != AVL_ROPE_LLAMA3)
        return AVL_OK;
    avl_json_node_t low = avl_json_member(scaling, "low_freq_factor");
    AVL_TRY(avl_json_double(&low, 0x1p-20, 0x1p20, &rope->low_freq_factor));
    avl_json_node_t high = avl_json_member(scaling, "high_freq_factor");
    AVL_TRY(avl_json_double(&high, 0x1p-20, 0x1p20, &rope->high_freq_factor));
    if (rope->high_freq_factor <= rope->low_freq_factor) {
        return avl_json_fail(&high, AVL_ERR_DATA, "%.9g is not above low_freq_factor %.9g",
                             rope->high_freq_factor, rope->low_freq_factor);
    }
    avl_json_node_t original = avl_json_member(scaling, "original_max_position_embeddings");
    int64_t positions = 0;
    AVL_TRY(avl_json_int(&original, 1, AVL_CONFIG_EXTENT_MAX, &positions));
    rope->original_max_position_embeddings = (int)positions;
    return AVL_OK;
}

/* rope_scaling beside rope_theta, or both in rope_parameters as transformers 5 writes them. */
static avl_status_t read_rope(const avl_json_node_t *text, avl_text_config_t *config) {
    avl_rope_config_t rope = {.factor = 1.0,
                              .low_freq_factor = 1.0,
                              .high_freq_factor = 4.0,
                              .original_max_position_embeddings = config->positions_max};
    avl_json_node_t parameters = avl_json_member(text, "rope_parameters");
    avl_json_node_t scaling = avl_json_member(text, "rope_scaling");
    if (avl_json_present(&parameters))
        scaling = parameters;
    AVL_TRY(avl_json_expect_object(&scaling));
    AVL_TRY(read_rope_type(&scaling, &rope.scaling));
    AVL_TRY(read_rope_factors(&scaling, &rope));
    AVL_TRY(avl_json_get_double(text, "rope_theta", 0x1p-20, 0x1p60, 10000.0, &rope.theta));
    AVL_TRY(avl_json_get_double(&scaling, "rope_theta", 0x1p-20, 0x1p60, rope.theta, &rope.theta));
    const avl_json_node_t *places[] = {text, &scaling};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        double rotated = 1.0;
        AVL_TRY(avl_json_get_double(places[i], "partial_rotary_factor", 0.0, 1.0, 1.0, &rotated));
        if (rotated != 1.0) {
            avl_json_node_t node = avl_json_member(places[i], "partial_rotary_factor");
            return avl_json_fail(&node, AVL_ERR_UNSUPPORTED,
                                 "heads are rotated as a whole, not %.9g of them", rotated);
        }
    }
    config->rope = rope;
    return AVL_OK;
}

static avl_status_t read_window(const avl_json_node_t *text, const text_defaults_t *defaults,
                                avl_text_config_t *config) {
    avl_json_node_t window = avl_json_member(text, "sliding_window");
    /* LlamaConfig has no such key and ignores one. For MistralConfig a null is a value: no window.
     */
    if (defaults->sliding_window == 0 || avl_json_is_null(&window))
        return AVL_OK;
    return avl_json_get_int(text, "sliding_window", 1, AVL_CONFIG_EXTENT_MAX,
                            defaults->sliding_window, &config->sliding_window);
}

/* Tied when either place says so: LlavaConfig once left it to text_config, and now has a key of its
 * own that passes text_config's on. */
static avl_status_t read_tied(const avl_json_node_t *root, const avl_json_node_t *text,
                              avl_text_config_t *config) {
    bool tied_above = false;
    bool tied = false;
    AVL_TRY(avl_json_get_bool(root, "tie_word_embeddings", false, &tied_above));
    AVL_TRY(avl_json_get_bool(text, "tie_word_embeddings", false, &tied));
    config->tied_head = tied || tied_above;
    return AVL_OK;
}

avl_status_t avl_config_read_text(const avl_json_node_t *root, avl_text_config_t *text_p) {
    avl_json_node_t text = avl_json_member(root, "text_config");
    AVL_TRY(avl_json_expect_object(&text));
    const char *model_type = NULL;
    AVL_TRY(avl_json_get_string(&text, "model_type", "llama", &model_type));
    const text_defaults_t *defaults = find_defaults(model_type);
    if (defaults == NULL) {
        avl_json_node_t node = avl_json_member(&text, "model_type");
        return avl_json_fail(&node, AVL_ERR_UNSUPPORTED,
                             "text model \"%.64s\" is none of llama and mistral", model_type);
    }
    avl_text_config_t config = {0};
    AVL_TRY(avl_json_get_int(&text, "hidden_size", 1, AVL_CONFIG_EXTENT_MAX, 4096,
                             &config.hidden_width));
    AVL_TRY(avl_json_get_int(&text, "intermediate_size", 1, AVL_CONFIG_EXTENT_MAX,
                             defaults->mlp_width, &config.mlp_width));
    AVL_TRY(avl_json_get_int(&text, "num_hidden_layers", 1, AVL_CONFIG_LAYERS_MAX, 32,
                             &config.layer_count));
    AVL_TRY(
        avl_json_get_int(&text, "vocab_size", 1, AVL_CONFIG_EXTENT_MAX, 32000, &config.vocab_rows));
    AVL_TRY(avl_json_get_int(&text, "max_position_embeddings", 1, AVL_CONFIG_EXTENT_MAX,
                             defaults->positions_max, &config.positions_max));
    double epsilon = 0.0;
    AVL_TRY(avl_json_get_double(&text, "rms_norm_eps", 0.0, 1.0, 1e-6, &epsilon));
    config.rms_norm_epsilon = (float)epsilon;
    AVL_TRY(read_heads(&text, defaults, &config));
    AVL_TRY(read_rope(&text, &config));
    AVL_TRY(read_window(&text, defaults, &config));
    if (defaults->biases) {
        AVL_TRY(avl_json_get_bool(&text, "attention_bias", false, &config.attention_bias));
        AVL_TRY(avl_json_get_bool(&text, "mlp_bias", false, &config.mlp_bias));
    }
    AVL_TRY(avl_config_read_activation(&text, "hidden_act", "silu", &config.activation));
    AVL_TRY(read_tied(root, &text, &config));
    *text_p = config;
    return AVL_OK;
}
