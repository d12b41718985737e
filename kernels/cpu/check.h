/* kernels/cpu/check.h: the checks that every operation makes before it computes. */
#ifndef AVL_KERNELS_CPU_CHECK_H
#define AVL_KERNELS_CPU_CHECK_H

#include "base/activation.h"
#include "base/dtype.h"
#include "base/status.h"

struct avl_choose_args;
struct avl_text_keep_args;
struct avl_publish_args;
struct avl_diversity_args;
struct avl_weigh_args;

#define AVL_CHECK_SHAPE(condition, ...)                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return avl_fail(AVL_ERR_SHAPE, __VA_ARGS__);                                           \
    } while (0)

/* A matrix of `rows` x `width` elements whose rows are `stride` apart: sizes that are not negative,
 * a stride that holds a row, a pointer where there is something to point at, and an extent that
 * pointer arithmetic can express. */
AVL_MUST_CHECK avl_status_t avl_check_matrix(const char *operation, const char *name,
                                             const void *memory, int64_t rows, int64_t stride,
                                             int64_t width);
/* `count` elements in one piece. */
AVL_MUST_CHECK avl_status_t avl_check_array(const char *operation, const char *name,
                                            const void *memory, int64_t count);
/* f32 or bf16, the two formats that are computed with. */
AVL_MUST_CHECK avl_status_t avl_check_dtype(const char *operation, const char *name,
                                            avl_dtype_t dtype);
AVL_MUST_CHECK avl_status_t avl_check_activation(const char *operation,
                                                 avl_activation_t activation);
/* Row numbers: none below `lowest`. */
AVL_MUST_CHECK avl_status_t avl_check_indices(const char *operation, const char *name,
                                              const int32_t *indices, int64_t count,
                                              int32_t lowest);
AVL_MUST_CHECK avl_status_t avl_check_text_keep(const struct avl_text_keep_args *args);
AVL_MUST_CHECK avl_status_t avl_check_choose(const struct avl_choose_args *args);
AVL_MUST_CHECK avl_status_t avl_check_publish(const struct avl_publish_args *args);
AVL_MUST_CHECK avl_status_t avl_check_diversity(const struct avl_diversity_args *args);
AVL_MUST_CHECK avl_status_t avl_check_weigh(const struct avl_weigh_args *args);

#endif
