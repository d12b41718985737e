/* checkpoint/weights.h: the tensors of a model directory, memory-mapped and validated, used in
 * place.
 *
 * Reads model.safetensors, or the shards that model.safetensors.index.json names. Every header is
 * checked before a byte is used: its length, the JSON, known dtypes, shapes whose product equals
 * the byte range, ranges inside the file that neither overlap nor leave holes, no name twice. A
 * view points into the mapping, so that a rank pays for the pages it touches and nothing else (but
 * for float tensors that an odd header leaves unaligned: they are copied).
 *
 * A file that shrinks while it is mapped is not noticed: touching what is gone raises SIGBUS.
 *
 * Names: asked for in the older layout ("language_model.model.layers.0.self_attn.q_proj.weight",
 * "vision_tower.vision_model...", "multi_modal_projector.linear_1.weight", "image_newline",
 * "language_model.lm_head.weight"); a directory in the newer layout
 * ("model.language_model.layers...", "model.vision_tower...", "model.multi_modal_projector...",
 * "model.image_newline", "lm_head.weight") answers too. */
#ifndef AVL_CHECKPOINT_WEIGHTS_H
#define AVL_CHECKPOINT_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

#define AVL_TENSOR_AXES_MAX 4

typedef struct avl_tensor_view {
    const void *data;  /* row-major; aligned to its element and no more */
    avl_dtype_t dtype; /* f32, f16 or bf16 */
    int axis_count;
    int64_t shape[AVL_TENSOR_AXES_MAX];
    size_t bytes;
} avl_tensor_view_t;

typedef struct avl_weights avl_weights_t;

/* Maps all shards of `directory`. Views stay valid until avl_weights_close.
 * Errors: AVL_ERR_NOT_FOUND (no weights file, missing shard), AVL_ERR_IO, AVL_ERR_DATA,
 * AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_weights_open(const char *directory, avl_weights_t **weights_p);
void avl_weights_close(avl_weights_t *weights);

/* Whether a tensor of that (older-layout) name exists. */
int avl_weights_has(const avl_weights_t *weights, const char *name);

/* The tensor `name`, which must have exactly the shape given (axis_count extents).
 * Errors: AVL_ERR_DATA naming the tensor, when it is missing, has another shape, or has a dtype
 * that is no float. */
AVL_MUST_CHECK avl_status_t avl_weights_view(const avl_weights_t *weights, const char *name,
                                             int axis_count, const int64_t *shape,
                                             avl_tensor_view_t *view_p);

/* Bytes of all tensors, for the ledger and for progress. */
size_t avl_weights_bytes(const avl_weights_t *weights);

#endif
