/* kernels/cuda/device.h: the CUDA device from inside: one GPU, one stream, scratch memory, and the
 * ring of pinned memory that carries host arrays to the GPU.
 *
 * An operation is a file here, as in kernels/cpu: it checks its arguments, plans the launch on the
 * host and enqueues. Host arrays (lists of sequences) travel inside the launch's parameters when
 * they are short, else through the ring. Nothing waits for the GPU but download, synchronize,
 * release, an upload when the ring is full, and an operation that outgrows the scratch memory. */
#ifndef AVL_KERNELS_CUDA_DEVICE_H
#define AVL_KERNELS_CUDA_DEVICE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cuda_runtime.h>

extern "C" {
#include "kernels/attention.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/check.h"
#include "kernels/device.h"
#include "kernels/diversity.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/lists.h"
#include "kernels/sample.h"
#include "kernels/select.h"
#include "kernels/text.h"
}

/* Threads of a block of the element-wise kernels. */
#define AVL_CUDA_THREADS 256

/* The ring: segments are reused in turn, each guarded by an event. */
#define AVL_CUDA_SEGMENTS 4

typedef struct avl_cuda_blas avl_cuda_blas_t;

typedef struct avl_cuda_device {
    avl_device_t device;
    cudaStream_t stream;
    size_t shared_bytes_max; /* that a block can have */
    avl_cuda_blas_t *blas;

    unsigned char *ring; /* pinned */
    cudaEvent_t ring_events[AVL_CUDA_SEGMENTS];
    int ring_segment;   /* the one being filled */
    size_t ring_filled; /* bytes of it */

    void *scratch;
    size_t scratch_bytes;
    int *counters; /* [AVL_CUDA_COUNTERS], zero between launches */
    void *packed;  /* host memory */
    size_t packed_bytes;
} avl_cuda_device_t;

#define AVL_CUDA_COUNTERS (1 << 14)

static inline avl_cuda_device_t *avl_cuda_of(avl_device_t *device) {
    return (avl_cuda_device_t *)device;
}

/* Opens one of the GPUs this process sees, number `place` counting round. The calling thread is the
 * one that uses it. Errors: AVL_ERR_UNSUPPORTED (none), AVL_ERR_MEMORY, AVL_ERR_DEVICE. */
extern "C" AVL_MUST_CHECK avl_status_t avl_cuda_device_open(int place, avl_device_t **device_p);

/* AVL_ERR_DEVICE with CUDA's own text when `error` is one; `what` was being done. */
AVL_MUST_CHECK avl_status_t avl_cuda_status(cudaError_t error, const char *what);
/* Whether the launch just made was refused. */
AVL_MUST_CHECK avl_status_t avl_cuda_launched(const char *operation);

/* Device memory for the current operation alone: the next call to it may hand out the same. */
AVL_MUST_CHECK avl_status_t avl_cuda_scratch(avl_cuda_device_t *cuda, size_t bytes,
                                             const char *what, void **scratch_p);
/* Host memory in which the current operation puts together what it sends. */
AVL_MUST_CHECK avl_status_t avl_cuda_pack(avl_cuda_device_t *cuda, size_t bytes, const char *what,
                                          void **packed_p);
/* Copies host bytes to device memory in stream order; `source` is free again on return. */
AVL_MUST_CHECK avl_status_t avl_cuda_send(avl_cuda_device_t *cuda, void *target, const void *source,
                                          size_t bytes, const char *what);

static inline int64_t avl_cuda_ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}
static inline int64_t avl_cuda_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}
/* Blocks for `items` threads' worth of work; kernels stride over what is beyond the bound. */
static inline unsigned avl_cuda_blocks(int64_t items) {
    return (unsigned)avl_cuda_min(avl_cuda_ceil_div(items, AVL_CUDA_THREADS), 1 << 16);
}
/* The formats that are computed with here: f16 beside the CPU's. */
static inline avl_status_t avl_cuda_check_dtype(const char *operation, const char *name,
                                                avl_dtype_t dtype) {
    return dtype == AVL_DTYPE_F16 ? AVL_OK : avl_check_dtype(operation, name, dtype);
}
static inline avl_status_t avl_cuda_check_heads(const char *operation, const avl_kv_view_t *kv,
                                                const avl_head_map_t *heads) {
    avl_kv_view_t view = *kv;
    view.dtype = kv->dtype == AVL_DTYPE_F16 ? AVL_DTYPE_BF16 : kv->dtype; /* told apart above */
    return avl_check_heads(operation, &view, heads);
}
/* Whether addresses, strides and widths, all in bytes and or-ed together, are multiples. */
static inline int avl_cuda_divides(uint64_t bits, unsigned unit) {
    return bits % unit == 0;
}

avl_status_t avl_cuda_linear(avl_device_t *device, const avl_linear_args_t *args);
avl_status_t avl_cuda_norm(avl_device_t *device, const avl_norm_args_t *args);
avl_status_t avl_cuda_rope(avl_device_t *device, const avl_rope_args_t *args);
avl_status_t avl_cuda_activation(avl_device_t *device, const avl_activation_args_t *args);
avl_status_t avl_cuda_gated(avl_device_t *device, const avl_gated_args_t *args);
avl_status_t avl_cuda_add(avl_device_t *device, const avl_add_args_t *args);
avl_status_t avl_cuda_embed(avl_device_t *device, const avl_embed_args_t *args);
avl_status_t avl_cuda_patches(avl_device_t *device, const avl_patches_args_t *args);
avl_status_t avl_cuda_copy_rows(avl_device_t *device, const avl_copy_rows_args_t *args);
avl_status_t avl_cuda_attention(avl_device_t *device, const avl_attention_args_t *args);
avl_status_t avl_cuda_decode_attention(avl_device_t *device,
                                       const avl_decode_attention_args_t *args);
avl_status_t avl_cuda_kv_write(avl_device_t *device, const avl_kv_write_args_t *args);
avl_status_t avl_cuda_kv_move(avl_device_t *device, const avl_kv_move_args_t *args);
avl_status_t avl_cuda_topk(avl_device_t *device, const avl_topk_args_t *args);
avl_status_t avl_cuda_argmax(avl_device_t *device, const avl_argmax_args_t *args);
avl_status_t avl_cuda_sample(avl_device_t *device, const avl_sample_args_t *args);
avl_status_t avl_cuda_choose(avl_device_t *device, const avl_choose_args_t *args);
avl_status_t avl_cuda_publish(avl_device_t *device, const avl_publish_args_t *args);
avl_status_t avl_cuda_round(avl_device_t *device, const avl_round_args_t *args);
avl_status_t avl_cuda_prepare_attention(avl_device_t *device, const avl_attention_demand_t *demand);
avl_status_t avl_cuda_text_weights(avl_device_t *device, const avl_text_weights_args_t *args);
avl_status_t avl_cuda_text_update(avl_device_t *device, const avl_text_update_args_t *args);
avl_status_t avl_cuda_text_keep(avl_device_t *device, const avl_text_keep_args_t *args);
avl_status_t avl_cuda_diversity(avl_device_t *device, const avl_diversity_args_t *args);
avl_status_t avl_cuda_weigh(avl_device_t *device, const avl_weigh_args_t *args);

#endif
