/* tests/cuda/shim/stream.h: what a stream of the shim is to those that enqueue on it, the stand-in
 * for NCCL included, which is a library of its own. */
#ifndef AVL_TESTS_CUDA_SHIM_STREAM_H
#define AVL_TESTS_CUDA_SHIM_STREAM_H

#include <stdint.h>

/* Work on a stream: run, then deleted. */
struct avl_shim_task {
    avl_shim_task *next = nullptr;
    void (*run)(avl_shim_task *self) = nullptr;
    void (*destroy)(avl_shim_task *self) = nullptr;
    /* Whether it can run; nullptr: always. */
    int (*is_ready)(avl_shim_task *self) = nullptr;
};

struct avl_shim_stream {
    avl_shim_stream *next;
    avl_shim_task *first, *last;
    uint64_t enqueued, done;
    void (*enqueue)(avl_shim_stream *stream, avl_shim_task *task);
};

#endif
