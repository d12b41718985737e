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

#endif
