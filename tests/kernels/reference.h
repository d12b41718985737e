/* tests/kernels/reference.h: every operation once more in double precision, written from the
 * contracts in kernels/, as plainly as possible. */
#ifndef AVL_TESTS_KERNELS_REFERENCE_H
#define AVL_TESTS_KERNELS_REFERENCE_H

#include "base/activation.h"
#include "kernels/attention.h"
#include "tests/kernels/fixture.h"

double reference_activate(double x, avl_activation_t activation);
double reference_dot(const tensor_t *a, int64_t a_first, const tensor_t *b, int64_t b_first,
                     int64_t count);

/* Attention of one query head to a list of slots. `logits` and `output` are written: [count] and
 * [D]; the logits become the softmax weights. */
void reference_attend(const tensor_t *query, int64_t query_first, const tensor_t *keys,
                      const tensor_t *values, int64_t row_stride, int64_t head_first, int width,
                      const int32_t *slots, int64_t count, double scale, double *weights,
                      double *output);

/* The order of merit of avl_topk, and the selection by it: indices [keep], ascending. */
void reference_topk(const float *scores, int count, int keep, int32_t *indices);

#endif
