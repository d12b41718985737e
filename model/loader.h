/* model/loader.h: slices of checkpoint tensors in the form the kernels take. Included by model/
 * alone.
 *
 * On a host device a slice whose dtype is the model's is used in place in the checkpoint's mapping;
 * otherwise it is converted into device memory that the loader's owner list keeps. Every value is
 * checked to be finite, on all threads of the device. */
#ifndef AVL_MODEL_LOADER_H
#define AVL_MODEL_LOADER_H

#include "model/model.h"

typedef struct avl_matrix {
    const void *data; /* dtype of the model */
    int64_t stride;   /* elements from row to row */
} avl_matrix_t;

typedef struct avl_loader {
    const avl_weights_t *weights;
    avl_device_t *device;
    avl_dtype_t dtype;
    void (*progress)(void *context, double share);
    void *progress_context;
    size_t seen_bytes;
    avl_model_memory_t *memory;
    void ***owned_p; /* growing list of device memory, released by the model */
    size_t *owned_count_p;
    size_t owned_capacity;
} avl_loader_t;

/* Rows and columns of the matrix `name` [rows, columns], as the model's dtype. A shard without rows
 * or columns gives a pointer that nobody reads. Errors: AVL_ERR_DATA (missing, wrong shape, not
 * finite), AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_loader_matrix(avl_loader_t *loader, const char *name, int64_t rows,
                                              int64_t columns, avl_shard_t row_shard,
                                              avl_shard_t column_shard, avl_matrix_t *matrix_p);
/* A convolution's weight [out, channels, side, side] as a matrix [out, channels * side * side]. */
AVL_MUST_CHECK avl_status_t avl_loader_convolution(avl_loader_t *loader, const char *name,
                                                   int64_t out, int64_t channels, int64_t side,
                                                   avl_matrix_t *matrix_p);
/* Elements [first, first + count) of a tensor [shape...] as f32, always owned. */
AVL_MUST_CHECK avl_status_t avl_loader_floats(avl_loader_t *loader, const char *name,
                                              int axis_count, const int64_t *shape,
                                              avl_shard_t elements, float **floats_p);

#endif
