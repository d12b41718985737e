/* checkpoint/config_read.h: the parts that config.c puts together. Inside this folder only.
 *
 * Every function reads one part out of open documents, applies the defaults of the configuration
 * class that the part names, and checks what the part alone can show. What two parts must agree on
 * is checked in config.c. */
#ifndef AVL_CHECKPOINT_CONFIG_READ_H
#define AVL_CHECKPOINT_CONFIG_READ_H

#include "checkpoint/config.h"
#include "checkpoint/json.h"

/* No extent of an accepted configuration is larger, so that a product of three fits int64. */
#define AVL_CONFIG_EXTENT_MAX (1 << 20)
#define AVL_CONFIG_LAYERS_MAX 4096
#define AVL_CONFIG_HEADS_MAX 4096
/* Pixels on a side of what the vision tower sees, or of a grid. */
#define AVL_CONFIG_SIDE_MAX (1 << 14)

typedef struct avl_config_pinpoints {
    int count;
    struct {
        int height, width;
    } items[AVL_GRID_PINPOINTS_MAX];
} avl_config_pinpoints_t;

/* `root` is config.json. */
AVL_MUST_CHECK avl_status_t avl_config_read_text(const avl_json_node_t *root,
                                                 avl_text_config_t *text_p);
AVL_MUST_CHECK avl_status_t avl_config_read_vision(const avl_json_node_t *root,
                                                   avl_vision_config_t *vision_p);
/* A name of ACT2FN in `transformers`. Errors: AVL_ERR_UNSUPPORTED for one that avl does not
 * compute. */
AVL_MUST_CHECK avl_status_t avl_config_read_activation(const avl_json_node_t *object,
                                                       const char *key, const char *fallback,
                                                       avl_activation_t *activation_p);
/* "image_grid_pinpoints" of `object`: (height, width) pairs, multiples of `image_side`; `fallback`
 * when absent. */
AVL_MUST_CHECK avl_status_t avl_config_read_pinpoints(const avl_json_node_t *object, int image_side,
                                                      const avl_config_pinpoints_t *fallback,
                                                      avl_config_pinpoints_t *pinpoints_p);
/* `processor` is the image processor's object. */
AVL_MUST_CHECK avl_status_t avl_config_read_preprocessor(const avl_json_node_t *processor,
                                                         const avl_model_config_t *model,
                                                         avl_preprocessor_config_t *preprocessor_p);
/* `generation` is generation_config.json, or NULL when there is none; `root` is config.json. */
AVL_MUST_CHECK avl_status_t avl_config_read_generation(const avl_json_node_t *generation,
                                                       const avl_json_node_t *root,
                                                       avl_generation_config_t *generation_p);

#endif
