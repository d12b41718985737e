/* kernels/cpu/matmul.h: products of fixed size by oneDNN, called from each of our threads for
 * itself.
 *
 * The library packs the weights of every call, which pays from some hundred rows on. It is given
 * one size of block alone: a primitive (whose code is generated when it is created) then serves
 * every number of rows and columns, and a row's result cannot depend on how many rows there are,
 * nor on the number of threads. */
#ifndef AVL_KERNELS_CPU_MATMUL_H
#define AVL_KERNELS_CPU_MATMUL_H

#include "kernels/linear.h"

enum {
    AVL_MATMUL_ROWS = AVL_LINEAR_MANY_ROWS,
    AVL_MATMUL_COLUMNS = 256,
    AVL_MATMUL_DEPTH_MIN = 256
};

typedef struct avl_matmul avl_matmul_t;
typedef struct avl_matmul_plan avl_matmul_plan_t;

/* For so many threads. Errors: AVL_ERR_MEMORY, AVL_ERR_DEVICE. */
AVL_MUST_CHECK avl_status_t avl_matmul_create(int threads, avl_matmul_t **matmul_p);
void avl_matmul_destroy(avl_matmul_t *matmul);

/* The plan for a block of such a product, from a bounded cache or made now. It is valid until the
 * next call. *plan_p is NULL when the library has nothing fast for this machine. Errors:
 * AVL_ERR_MEMORY, AVL_ERR_DEVICE. */
AVL_MUST_CHECK avl_status_t avl_matmul_plan(avl_matmul_t *matmul, const avl_linear_args_t *args,
                                            const avl_matmul_plan_t **plan_p);
/* Bytes of scratch memory that avl_matmul_run needs, the sums included. */
size_t avl_matmul_scratch_bytes(const avl_matmul_plan_t *plan);

/* The library's own threads are switched off for the calling thread, and those it starts, between
 * these two. */
int avl_matmul_begin(void);
void avl_matmul_end(int threads_before);

/* Sums of rows [row, row + AVL_MATMUL_ROWS) and columns [column, column + AVL_MATMUL_COLUMNS), left
 * at the beginning of the scratch memory as f32 [AVL_MATMUL_ROWS, AVL_MATMUL_COLUMNS]. Several
 * threads at once, each with its own number and scratch memory. Errors: AVL_ERR_DEVICE. */
AVL_MUST_CHECK avl_status_t avl_matmul_run(const avl_matmul_plan_t *plan,
                                           const avl_linear_args_t *args, int64_t row,
                                           int64_t column, int thread, void *scratch);

#endif
