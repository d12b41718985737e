/* tests/cuda/shim/engine.h: what the parts of the shim know of each other. */
#ifndef AVL_TESTS_CUDA_SHIM_ENGINE_H
#define AVL_TESTS_CUDA_SHIM_ENGINE_H

#include "tests/cuda/shim/cuda_runtime.h"
#include "tests/cuda/shim/ptx_shim.h"

avl_shim_options_t *avl_shim_options(void);
/* Keeps the first text until it is cleared. */
void avl_shim_record(const char *text);
const char *avl_shim_finding(void);
void avl_shim_clear_finding(void);

/* Who is told of what threads do, by their numbers in the block (races.cpp); nullptr: nobody. */
typedef struct avl_shim_watcher {
    void (*begin_grid)(void);
    void (*begin_block)(void);
    void (*pass_barrier)(void);
    void (*sync_warp)(int thread); /* of any of its lanes */
    void (*pass_fence)(int thread);
    void (*see)(int thread, uintptr_t address, size_t bytes, avl_shim_access_t kind, int is_shared);
} avl_shim_watcher_t;
extern const avl_shim_watcher_t *avl_shim_watch;
int avl_shim_is_in_kernel(void);

#endif
