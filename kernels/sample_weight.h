/* kernels/sample_weight.h: what a token weighs in a draw (kernels/sample.h): e^((logit - best) *
 * scale) as a whole number of 2^-40.
 *
 * One text for host and GPU, of which every operation is rounded by itself: the same bits on both.
 * Who compiles it as C forbids the contraction of products and sums (-ffp-contract=off). */
#ifndef AVL_KERNELS_SAMPLE_WEIGHT_H
#define AVL_KERNELS_SAMPLE_WEIGHT_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
#define AVL_WEIGHT_INLINE static __device__ __forceinline__
#define AVL_WEIGHT_TIMES(a, b) __fmul_rn(a, b)
#define AVL_WEIGHT_PLUS(a, b) __fadd_rn(a, b)
#else
#define AVL_WEIGHT_INLINE static inline
#define AVL_WEIGHT_TIMES(a, b) ((a) * (b))
#define AVL_WEIGHT_PLUS(a, b) ((a) + (b))
#endif

#define AVL_WEIGHT_ONE (UINT64_C(1) << 40)

/* e^x for x <= 0, to two units in the last place, 1 for 0; 0 below the range of normal numbers.
 * (Cody and Waite's reduction, a Taylor polynomial; in this form compilers do 16 at a time.) */
AVL_WEIGHT_INLINE float avl_weight_exponential(float x) {
    float clamped = x > -87.0f ? x : -87.0f;
    float shifted = AVL_WEIGHT_PLUS(AVL_WEIGHT_TIMES(clamped, 1.44269504f),
                                    12582912.0f); /* rounds to a whole number */
    float whole = AVL_WEIGHT_PLUS(shifted, -12582912.0f);
    float r = AVL_WEIGHT_PLUS(clamped, AVL_WEIGHT_TIMES(whole, -0.693359375f));
    r = AVL_WEIGHT_PLUS(r, AVL_WEIGHT_TIMES(whole, 2.12194440e-4f));
    float p = 1.0f / 720;
    p = AVL_WEIGHT_PLUS(AVL_WEIGHT_TIMES(p, r), 1.0f / 120);
    p = AVL_WEIGHT_PLUS(AVL_WEIGHT_TIMES(p, r), 1.0f / 24);
    p = AVL_WEIGHT_PLUS(AVL_WEIGHT_TIMES(p, r), 1.0f / 6);
    p = AVL_WEIGHT_PLUS(AVL_WEIGHT_TIMES(p, r), 0.5f);
    p = AVL_WEIGHT_PLUS(AVL_WEIGHT_TIMES(p, r), 1.0f);
    p = AVL_WEIGHT_PLUS(AVL_WEIGHT_TIMES(p, r), 1.0f);
    int32_t bits = ((int32_t)whole + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, sizeof power);
    return x > -87.0f ? AVL_WEIGHT_TIMES(p, power) : 0.0f;
}

/* Neither is NaN, and logit <= best < infinity. */
AVL_WEIGHT_INLINE float avl_weight_of(float logit, float best, float scale) {
    return avl_weight_exponential(AVL_WEIGHT_TIMES(AVL_WEIGHT_PLUS(logit, -best), scale));
}

/* Of a weight from 0 to 1; cut off, not rounded. */
AVL_WEIGHT_INLINE uint64_t avl_weight_whole(float weight) {
    return (uint64_t)(int64_t)AVL_WEIGHT_TIMES(weight, (float)AVL_WEIGHT_ONE);
}

/* How much the fewest of `sum` have to reach; sum > 0. */
AVL_WEIGHT_INLINE uint64_t avl_weight_share(uint64_t sum, double top_p) {
    double product = top_p * (double)sum;
    uint64_t whole = (uint64_t)product;
    whole += (double)whole < product;
    return whole < 1 ? 1 : whole < sum ? whole : sum;
}

#endif
