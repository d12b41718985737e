#include "tests/kernels/reference.h"

#include <math.h>
#include <stdlib.h>

double reference_activate(double x, avl_activation_t activation) {
    switch (activation) {
    case AVL_ACTIVATION_GELU:
        return x / 2 * erfc(-x / sqrt(2.0));
    case AVL_ACTIVATION_GELU_TANH:
        return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case AVL_ACTIVATION_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    case AVL_ACTIVATION_SILU:
        return x / (1 + exp(-x));
    case AVL_ACTIVATION_RELU:
        return x > 0 ? x : 0;
    case AVL_ACTIVATION_NONE:
        break;
    }
    return x;
}

double reference_dot(const tensor_t *a, int64_t a_first, const tensor_t *b, int64_t b_first,
                     int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += tensor_get(a, a_first + i) * tensor_get(b, b_first + i);
    return sum;
}

void reference_attend(const tensor_t *query, int64_t query_first, const tensor_t *keys,
                      const tensor_t *values, int64_t row_stride, int64_t head_first, int width,
                      const int32_t *slots, int64_t count, double scale, double *weights,
                      double *output) {
    double largest = -INFINITY, sum = 0;
    for (int64_t i = 0; i < count; i++) {
        weights[i] = scale * reference_dot(query, query_first, keys,
                                           slots[i] * row_stride + head_first, width);
        largest = fmax(largest, weights[i]);
    }
    for (int64_t i = 0; i < count; i++) {
        weights[i] = exp(weights[i] - largest);
        sum += weights[i];
    }
    for (int d = 0; d < width; d++)
        output[d] = 0;
    for (int64_t i = 0; i < count; i++) {
        weights[i] /= sum;
        for (int d = 0; d < width; d++)
            output[d] += weights[i] * tensor_get(values, slots[i] * row_stride + head_first + d);
    }
}

static int is_better(const float *scores, int a, int b) {
    int a_nan = isnan(scores[a]) != 0, b_nan = isnan(scores[b]) != 0;
    if (a_nan != b_nan)
        return b_nan;
    if (!a_nan && scores[a] != scores[b])
        return scores[a] > scores[b];
    return a < b;
}

void reference_topk(const float *scores, int count, int keep, int32_t *indices) {
    int taken = 0;
    for (int i = 0; i < count; i++) {
        int better = 0;
        for (int j = 0; j < count; j++)
            better += is_better(scores, j, i);
        if (better < keep)
            indices[taken++] = i;
    }
}
