/* checkpoint/config.h: a Hugging Face model directory's JSON files as typed, validated data.
 *
 * Reads config.json, generation_config.json and preprocessor_config.json (and what newer
 * directories put into processor_config.json). Whatever a file omits has the default of the
 * configuration class in `transformers` that the model_type names (LlavaConfig, LlavaNextConfig,
 * CLIPVisionConfig, LlamaConfig, MistralConfig, CLIPImageProcessor, LlavaNextImageProcessor).
 * Unknown keys are ignored; a known key with an impossible value is an error that names file, key
 * and value. */
#ifndef AVL_CHECKPOINT_CONFIG_H
#define AVL_CHECKPOINT_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/activation.h"
#include "base/dtype.h"
#include "base/status.h"

#define AVL_FEATURE_LAYERS_MAX 8
#define AVL_GRID_PINPOINTS_MAX 64
#define AVL_EOS_IDS_MAX 16

typedef enum avl_family {
    AVL_FAMILY_LLAVA,      /* model_type "llava": one square picture */
    AVL_FAMILY_LLAVA_NEXT, /* model_type "llava_next": anyres tiles, unpadding, image_newline */
} avl_family_t;

typedef enum avl_rope_scaling {
    AVL_ROPE_DEFAULT,
    AVL_ROPE_LINEAR,
    AVL_ROPE_DYNAMIC, /* NTK base grows with the sequence */
    AVL_ROPE_LLAMA3,
} avl_rope_scaling_t;

typedef struct avl_rope_config {
    avl_rope_scaling_t scaling;
    double theta;
    double factor;
    double low_freq_factor;               /* llama3 */
    double high_freq_factor;              /* llama3 */
    int original_max_position_embeddings; /* llama3 */
} avl_rope_config_t;

typedef struct avl_text_config { /* the decoder: LLaMA, Vicuna, Mistral */
    int hidden_width;
    int mlp_width; /* intermediate_size */
    int layer_count;
    int query_heads;
    int kv_heads;
    int head_width; /* head_dim, or hidden_width / query_heads */
    int vocab_rows;
    int positions_max; /* max_position_embeddings */
    float rms_norm_epsilon;
    avl_rope_config_t rope;
    int sliding_window; /* rows a query sees, itself included; 0: all */
    bool attention_bias;
    bool mlp_bias;
    avl_activation_t activation;
    bool tied_head; /* lm_head is embed_tokens; checked against the tensors that exist */
} avl_text_config_t;

typedef struct avl_vision_config { /* CLIP vision tower */
    int hidden_width;
    int mlp_width;
    int layer_count;
    int heads;
    int image_side; /* pixels */
    int patch_side; /* pixels */
    float layer_norm_epsilon;
    avl_activation_t activation;
    int patches_per_side; /* image_side / patch_side */
} avl_vision_config_t;

typedef struct avl_model_config {
    avl_family_t family;
    avl_text_config_t text;
    avl_vision_config_t vision;
    avl_activation_t projector_activation;
    bool projector_bias;
    int image_token_id; /* image_token_index or image_token_id */
    /* vision_feature_layer, resolved: hidden states after this many layers (0: the embeddings).
     * More than one are concatenated along the width, in this order. */
    int feature_layers[AVL_FEATURE_LAYERS_MAX];
    int feature_layer_count;
    bool feature_drop_class; /* vision_feature_select_strategy "default": without the class token */
    /* llava_next: possible (height, width) in pixels, in the file's order (ties depend on it) */
    struct {
        int height, width;
    } grid_pinpoints[AVL_GRID_PINPOINTS_MAX];
    int grid_pinpoint_count;
    avl_dtype_t weights_dtype; /* torch_dtype / dtype; f32 when absent */
} avl_model_config_t;

typedef struct avl_generation_config {
    int eos_ids[AVL_EOS_IDS_MAX]; /* generation_config.json, else config.json's text part */
    int eos_count;
    int bos_id;  /* -1: none */
    int pad_id;  /* -1: none */
    bool sample; /* do_sample */
    float temperature;
    float top_p;
    int top_k;
} avl_generation_config_t;

typedef enum avl_resample {
    AVL_RESAMPLE_NEAREST = 0, /* PIL's numbers */
    AVL_RESAMPLE_LANCZOS = 1,
    AVL_RESAMPLE_BILINEAR = 2,
    AVL_RESAMPLE_BICUBIC = 3,
    AVL_RESAMPLE_BOX = 4,
    AVL_RESAMPLE_HAMMING = 5,
} avl_resample_t;

typedef struct avl_preprocessor_config {
    bool resize, center_crop, rescale, normalize;
    int resize_shortest_edge; /* 0 when resize_height and resize_width are given instead */
    int resize_height, resize_width;
    int crop_height, crop_width;
    avl_resample_t resample;
    double rescale_factor;
    float mean[3], std[3];
    bool pad; /* llava 4.50+: do_pad to a square with the mean colour; llava_next: pad to the grid
                 (always) */
    /* llava_next: the image processor's own list (it wins over the model's when they differ: the
     * processor makes the tiles); equal to avl_model_config_t.grid_pinpoints when the file omits it
     */
    struct {
        int height, width;
    } grid_pinpoints[AVL_GRID_PINPOINTS_MAX];
    int grid_pinpoint_count;
} avl_preprocessor_config_t;

typedef struct avl_config {
    avl_model_config_t model;
    avl_generation_config_t generation;
    avl_preprocessor_config_t preprocessor;
} avl_config_t;

/* Reads and validates the JSON files of `directory`. All sizes in a config that was accepted are
 * positive and small enough that no product of three of them overflows int64. Errors:
 * AVL_ERR_NOT_FOUND (no such directory or file), AVL_ERR_IO, AVL_ERR_DATA (malformed, impossible,
 * contradictory), AVL_ERR_UNSUPPORTED (model_type, rope type, activation ... that avl does not
 * know). */
AVL_MUST_CHECK avl_status_t avl_config_load(const char *directory, avl_config_t *config_p);

#endif
