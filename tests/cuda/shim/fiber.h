/* tests/cuda/shim/fiber.h: switching between stacks of one host thread. */
#ifndef AVL_TESTS_CUDA_SHIM_FIBER_H
#define AVL_TESTS_CUDA_SHIM_FIBER_H

#include <stddef.h>

/* A place to go on from: a fiber's, or the host's own stack's. */
struct avl_fiber_point {
    void *stack_pointer;
    void *context; /* where no switch of ours exists: a ucontext_t */
    void *fake_stack;
    const void *stack_bottom;
    size_t stack_bytes;
};

struct avl_fiber {
    avl_fiber_point point;
    unsigned char *stack; /* begins with a page that nobody may touch */
    size_t mapped_bytes;
};

/* Returns 0 when there is no memory. */
int avl_fiber_create(avl_fiber *fiber);
void avl_fiber_destroy(avl_fiber *fiber);
/* The next switch to the fiber calls main, which must not return. */
void avl_fiber_prepare(avl_fiber *fiber, void (*main)(void));
/* Returns when somebody switches back to `from`. `host`: the point of the stack that is no fiber's,
 * which learns its borders at the first switch away from it. */
void avl_fiber_switch(avl_fiber_point *from, avl_fiber_point *to, avl_fiber_point *host);
/* The first thing a fiber's main does. */
void avl_fiber_arrived(avl_fiber_point *host);

#endif
