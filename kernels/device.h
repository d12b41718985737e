/* kernels/device.h: where tensors live and what computes on them.
 *
 * A device is the CPU or one GPU. It carries a table of operations, one header each; the model and
 * the worker call those and never ask which device it is. Pointers in the argument structs are
 * device memory unless a comment says "host". Operations enqueue on the device's one stream and
 * return; they run in the order of the calls. On the CPU they have run when the call returns.
 *
 * Errors of every operation: AVL_ERR_SHAPE (arguments outside the contract; nothing enqueued),
 * AVL_ERR_DEVICE. Zero rows are legal everywhere and do nothing.
 *
 * Shape letters: T rows (tokens) of a step, B sequences, H width of the residual stream, Hq and Hk
 * query and KV heads of this rank, D head width, N output width, K input width, V vocabulary rows.
 * "row" of a cache = one token's K or V of one layer. */
#ifndef AVL_KERNELS_DEVICE_H
#define AVL_KERNELS_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

typedef struct avl_device avl_device_t;

typedef struct avl_device_info {
    char name[64];          /* "cpu: AVX-512 with bf16" */
    size_t memory_bytes;    /* available to this process when the device was opened or measured */
    int threads;            /* CPU: worker threads */
    avl_dtype_t fast_dtype; /* what --dtype auto takes for 16-bit checkpoints */
    int has_f16;            /* computes in f16 as well as in f32 and bf16 */
    int gpu_count;          /* GPUs that this process sees; 0 on the CPU */
} avl_device_info_t;

struct avl_linear_args;
struct avl_norm_args;
struct avl_rope_args;
struct avl_activation_args;
struct avl_gated_args;
struct avl_add_args;
struct avl_embed_args;
struct avl_patches_args;
struct avl_copy_rows_args;
struct avl_attention_args;
struct avl_decode_attention_args;
struct avl_kv_write_args;
struct avl_kv_move_args;
struct avl_topk_args;
struct avl_argmax_args;
struct avl_sample_args;
struct avl_choose_args;
struct avl_publish_args;
struct avl_round_args;
struct avl_attention_demand;
struct avl_text_weights_args;
struct avl_text_update_args;
struct avl_text_keep_args;
struct avl_diversity_args;
struct avl_weigh_args;

typedef struct avl_device_ops {
    void (*close)(avl_device_t *device);
    /* Zeroed memory, aligned to 256 bytes. Errors: AVL_ERR_MEMORY naming `what`. */
    avl_status_t (*allocate)(avl_device_t *device, size_t bytes, const char *what, void **memory_p);
    void (*release)(avl_device_t *device, void *memory);
    /* Host to device and back. `upload` may read `source` until the next synchronize; `download`
     * returns when the bytes are there. */
    avl_status_t (*upload)(avl_device_t *device, void *target, const void *source, size_t bytes);
    avl_status_t (*download)(avl_device_t *device, void *target, const void *source, size_t bytes);
    avl_status_t (*synchronize)(avl_device_t *device);
    /* Asks anew for info.memory_bytes. NULL: it stays. */
    avl_status_t (*measure)(avl_device_t *device);

    avl_status_t (*linear)(avl_device_t *, const struct avl_linear_args *);
    avl_status_t (*norm)(avl_device_t *, const struct avl_norm_args *);
    avl_status_t (*rope)(avl_device_t *, const struct avl_rope_args *);
    avl_status_t (*activation)(avl_device_t *, const struct avl_activation_args *);
    avl_status_t (*gated)(avl_device_t *, const struct avl_gated_args *);
    avl_status_t (*add)(avl_device_t *, const struct avl_add_args *);
    avl_status_t (*embed)(avl_device_t *, const struct avl_embed_args *);
    avl_status_t (*patches)(avl_device_t *, const struct avl_patches_args *);
    avl_status_t (*copy_rows)(avl_device_t *, const struct avl_copy_rows_args *);
    avl_status_t (*attention)(avl_device_t *, const struct avl_attention_args *);
    avl_status_t (*decode_attention)(avl_device_t *, const struct avl_decode_attention_args *);
    avl_status_t (*kv_write)(avl_device_t *, const struct avl_kv_write_args *);
    avl_status_t (*kv_move)(avl_device_t *, const struct avl_kv_move_args *);
    avl_status_t (*topk)(avl_device_t *, const struct avl_topk_args *);
    avl_status_t (*argmax)(avl_device_t *, const struct avl_argmax_args *);
    avl_status_t (*sample)(avl_device_t *, const struct avl_sample_args *); /* NULL on the CPU */
    avl_status_t (*choose)(avl_device_t *, const struct avl_choose_args *);
    avl_status_t (*publish)(avl_device_t *, const struct avl_publish_args *);
    avl_status_t (*round)(avl_device_t *, const struct avl_round_args *);
    avl_status_t (*text_weights)(avl_device_t *, const struct avl_text_weights_args *);
    avl_status_t (*text_update)(avl_device_t *, const struct avl_text_update_args *);
    avl_status_t (*text_keep)(avl_device_t *, const struct avl_text_keep_args *);
    avl_status_t (*diversity)(avl_device_t *, const struct avl_diversity_args *);
    avl_status_t (*weigh)(avl_device_t *, const struct avl_weigh_args *);

    /* What calls will need beside their arguments' memory, set aside before the first of them: no
     * later call within the bounds given here allocates more than a few small things that it frees
     * again. Without these, or beyond the bounds, an operation grows its own memory. NULL: nothing
     * to set aside. Errors: AVL_ERR_MEMORY, AVL_ERR_DEVICE. */
    avl_status_t (*prepare_linear)(avl_device_t *, const struct avl_linear_args *);
    avl_status_t (*prepare_attention)(avl_device_t *, const struct avl_attention_demand *);
} avl_device_ops_t;

/* Called again and again while the host waits for the device, with how long that has been: a
 * failure ends the wait and is what it returns. */
typedef avl_status_t avl_device_watch_t(void *context, int64_t waited_ns);

#define AVL_GPU_ID_BYTES 16

struct avl_device { /* the head of every implementation's own struct */
    const avl_device_ops_t *ops;
    avl_device_info_t info;
    int is_host; /* device memory can be read by the host (CPU) */
    /* A GPU's stream (cudaStream_t) and UUID, for whoever exchanges between GPUs. */
    void *stream;
    uint8_t gpu_id[AVL_GPU_ID_BYTES];
    avl_device_watch_t *watch; /* NULL: waits without end. Set by whoever opened the device */
    void *watch_context;
    /* Device memory that operations keep for themselves, as far as it was set aside. */
    size_t workspace_bytes;
    char choice[160]; /* of "auto": why it is this one */
};

/* The CPU device. `threads` 0: as many as this process may run on; `isa` NULL: the best the machine
 * has, else one of "portable", "avx2", "avx512", "avx512bf16" (tests and comparisons). Errors:
 * AVL_ERR_UNSUPPORTED, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_device_open_cpu(int threads, const char *isa,
                                                avl_device_t **device_p);

/* "cpu", "cuda" or "auto": cuda when there are an NVIDIA driver, our library and a GPU, else cpu;
 * `choice` says why. `place`: of this process among those of this host that deal out its GPUs (a
 * rank's place among the ranks here), which get one each in turn, and again from the first on.
 * Errors: AVL_ERR_INVALID (unknown name), AVL_ERR_UNSUPPORTED (no CUDA here: why), AVL_ERR_DEVICE.
 */
AVL_MUST_CHECK avl_status_t avl_device_open(const char *name, int threads, int place,
                                            avl_device_t **device_p);
void avl_device_close(avl_device_t *device);

#endif
