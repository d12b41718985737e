/* kernels/cpu/vector.h: vectors of f32 as wide as the compiler's target has them.
 *
 * Included by the instruction-set files alone, each compiled with its own flags. The compilers'
 * vector types say almost everything; intrinsics appear only where those do not reach the
 * instruction. */
#ifndef AVL_KERNELS_CPU_VECTOR_H
#define AVL_KERNELS_CPU_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/activation.h"
#include "base/dtype.h"

#define AVL_INLINE static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__)
#define AVL_LANES 16
#elif defined(__AVX2__)
#define AVL_LANES 8
#else
#define AVL_LANES 4
#endif

typedef float avl_vf_t __attribute__((vector_size(AVL_LANES * 4)));
typedef int32_t avl_vi_t __attribute__((vector_size(AVL_LANES * 4)));
typedef uint32_t avl_vu_t __attribute__((vector_size(AVL_LANES * 4)));
typedef uint16_t avl_vh_t __attribute__((vector_size(AVL_LANES * 2)));
typedef float avl_v4f_t __attribute__((vector_size(16)));

AVL_INLINE avl_vf_t avl_v_set(float value) {
    return value + (avl_vf_t){0};
}

AVL_INLINE avl_vf_t avl_v_load(const float *memory) {
    avl_vf_t value;
    memcpy(&value, memory, sizeof value);
    return value;
}

/* Every lane the bits of *memory, which need not be a number. */
AVL_INLINE avl_vf_t avl_v_broadcast(const float *memory) {
    uint32_t bits;
    memcpy(&bits, memory, sizeof bits);
    return (avl_vf_t)(bits + (avl_vu_t){0});
}

AVL_INLINE void avl_v_store(float *memory, avl_vf_t value) {
    memcpy(memory, &value, sizeof value);
}

/* The first `count` < AVL_LANES elements; zeros behind them. Reads nothing else. */
AVL_INLINE avl_vf_t avl_v_load_part(const float *memory, int64_t count) {
#if defined(__AVX512F__)
    return (avl_vf_t)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), memory);
#else
    avl_vf_t value = {0};
    memcpy(&value, memory, (size_t)count * sizeof(float));
    return value;
#endif
}

AVL_INLINE void avl_v_store_part(float *memory, avl_vf_t value, int64_t count) {
    memcpy(memory, &value, (size_t)count * sizeof(float));
}

AVL_INLINE avl_vf_t avl_v_from_bf16(avl_vh_t half) {
#if defined(__AVX512F__) /* gcc 12 widens in two halves otherwise */
    return (avl_vf_t)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#elif defined(__AVX2__)
    return (avl_vf_t)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)half), 16);
#else
    return (avl_vf_t)(__builtin_convertvector(half, avl_vu_t) << 16);
#endif
}

/* As avl_f32_to_bf16. */
AVL_INLINE avl_vh_t avl_v_to_bf16(avl_vf_t value) {
    avl_vu_t bits = (avl_vu_t)value;
    avl_vu_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    avl_vu_t quiet = (bits >> 16) | 0x40u;
    avl_vu_t is_nan = (avl_vu_t)((bits & 0x7fffffffu) > 0x7f800000u);
    return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), avl_vh_t);
}

AVL_INLINE avl_vf_t avl_v_load_bf16(const uint16_t *memory) {
    avl_vh_t half;
    memcpy(&half, memory, sizeof half);
    return avl_v_from_bf16(half);
}

AVL_INLINE avl_vf_t avl_v_load_bf16_part(const uint16_t *memory, int64_t count) {
    avl_vh_t half = {0};
    memcpy(&half, memory, (size_t)count * sizeof(uint16_t));
    return avl_v_from_bf16(half);
}

AVL_INLINE void avl_v_store_bf16(uint16_t *memory, avl_vf_t value) {
    avl_vh_t half = avl_v_to_bf16(value);
    memcpy(memory, &half, sizeof half);
}

AVL_INLINE void avl_v_store_bf16_part(uint16_t *memory, avl_vf_t value, int64_t count) {
    avl_vh_t half = avl_v_to_bf16(value);
    memcpy(memory, &half, (size_t)count * sizeof(uint16_t));
}

/* Either format, any count: what the element-wise loops use. */
AVL_INLINE avl_vf_t avl_v_load_any(const void *memory, int64_t index, int64_t count,
                                   avl_dtype_t dtype) {
    if (dtype == AVL_DTYPE_F32) {
        const float *source = (const float *)memory + index;
        return count >= AVL_LANES ? avl_v_load(source) : avl_v_load_part(source, count);
    }
    const uint16_t *source = (const uint16_t *)memory + index;
    return count >= AVL_LANES ? avl_v_load_bf16(source) : avl_v_load_bf16_part(source, count);
}

AVL_INLINE void avl_v_store_any(void *memory, int64_t index, avl_vf_t value, int64_t count,
                                avl_dtype_t dtype) {
    if (dtype == AVL_DTYPE_F32) {
        float *target = (float *)memory + index;
        if (count >= AVL_LANES)
            avl_v_store(target, value);
        else
            avl_v_store_part(target, value, count);
    } else {
        uint16_t *target = (uint16_t *)memory + index;
        if (count >= AVL_LANES)
            avl_v_store_bf16(target, value);
        else
            avl_v_store_bf16_part(target, value, count);
    }
}

/* Pairs of bf16, two in each 32-bit lane. */
AVL_INLINE avl_vu_t avl_v_load_pairs(const uint16_t *memory) {
    avl_vu_t value;
    memcpy(&value, memory, sizeof value);
    return value;
}

/* The first `count` < 2 AVL_LANES elements; zeros behind them. */
AVL_INLINE avl_vu_t avl_v_load_pairs_part(const uint16_t *memory, int64_t count) {
#if defined(__AVX512BW__)
    return (avl_vu_t)_mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), memory);
#else
    avl_vu_t value = {0};
    memcpy(&value, memory, (size_t)count * sizeof(uint16_t));
    return value;
#endif
}

/* sum + a.low * b.low + a.high * b.high in every lane. */
AVL_INLINE avl_vf_t avl_v_dot_pairs(avl_vf_t sum, avl_vu_t a, avl_vu_t b) {
#if defined(__AVX512BF16__)
    return (avl_vf_t)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (avl_vf_t)(a << 16) * (avl_vf_t)(b << 16);
    sum += (avl_vf_t)(a & 0xffff0000u) * (avl_vf_t)(b & 0xffff0000u);
    return sum;
#endif
}

AVL_INLINE avl_vf_t avl_v_select(avl_vi_t mask, avl_vf_t yes, avl_vf_t no) {
    return (avl_vf_t)((mask & (avl_vi_t)yes) | (~mask & (avl_vi_t)no));
}

/* A bit for every lane of a comparison's result, the first lane's lowest. */
AVL_INLINE uint32_t avl_v_bits(avl_vi_t mask) {
#if defined(__AVX512DQ__)
    return (uint32_t)_mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__)
    return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
    uint32_t bits = 0;
    for (int i = 0; i < AVL_LANES; i++)
        bits |= (uint32_t)(mask[i] & 1) << i;
    return bits;
#endif
}

AVL_INLINE int32_t avl_v_count(avl_vi_t value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)value);
#else
    int32_t sum = 0;
    for (int i = 0; i < AVL_LANES; i++)
        sum += value[i];
    return sum;
#endif
}

/* The second when either is a NaN, on every instruction set. */
AVL_INLINE avl_vf_t avl_v_max(avl_vf_t a, avl_vf_t b) {
#if defined(__AVX512F__)
    return (avl_vf_t)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (avl_vf_t)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (avl_vf_t)_mm_max_ps((__m128)a, (__m128)b);
#else
    return avl_v_select((avl_vi_t)(a > b), a, b);
#endif
}

AVL_INLINE avl_vf_t avl_v_min(avl_vf_t a, avl_vf_t b) {
    return -avl_v_max(-a, -b);
}

#if AVL_LANES >= 8
typedef float avl_v8f_t __attribute__((vector_size(32)));

AVL_INLINE float avl_v8_sum(avl_v8f_t value) {
    avl_v4f_t half = __builtin_shufflevector(value, value, 0, 1, 2, 3) +
                     __builtin_shufflevector(value, value, 4, 5, 6, 7);
    half += __builtin_shufflevector(half, half, 2, 3, 0, 1);
    return half[0] + half[1];
}
#endif

AVL_INLINE float avl_v_sum(avl_vf_t value) {
#if AVL_LANES == 16
    return avl_v8_sum(__builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15));
#elif AVL_LANES == 8
    return avl_v8_sum(value);
#else
    value += __builtin_shufflevector(value, value, 2, 3, 0, 1);
    return value[0] + value[1];
#endif
}

AVL_INLINE float avl_v_largest(avl_vf_t value) {
    float largest = value[0];
    for (int i = 1; i < AVL_LANES; i++)
        largest = value[i] > largest ? value[i] : largest;
    return largest;
}

/* Shuffles inside every group of four lanes: the halves of two vectors, interleaved by one lane or
 * by two. */
#if AVL_LANES == 16
#define AVL_GROUPS(a, b, c, d)                                                                     \
    a, b, c, d, (a) + 4, (b) + 4, (c) + 4, (d) + 4, (a) + 8, (b) + 8, (c) + 8, (d) + 8, (a) + 12,  \
        (b) + 12, (c) + 12, (d) + 12
#elif AVL_LANES == 8
#define AVL_GROUPS(a, b, c, d) a, b, c, d, (a) + 4, (b) + 4, (c) + 4, (d) + 4
#else
#define AVL_GROUPS(a, b, c, d) a, b, c, d
#endif
#define AVL_INTERLEAVE(x, y, a, b, c, d) __builtin_shufflevector(x, y, AVL_GROUPS(a, b, c, d))

/* Writes `rows` (four rows of AVL_LANES columns) transposed: column i to target + i * stride, four
 * elements each. */
AVL_INLINE void avl_v_store_transposed(float *target, int64_t stride, const avl_vf_t rows[4]) {
    enum { SECOND = AVL_LANES };
    avl_vf_t low0 = AVL_INTERLEAVE(rows[0], rows[1], 0, SECOND, 1, SECOND + 1);
    avl_vf_t high0 = AVL_INTERLEAVE(rows[0], rows[1], 2, SECOND + 2, 3, SECOND + 3);
    avl_vf_t low1 = AVL_INTERLEAVE(rows[2], rows[3], 0, SECOND, 1, SECOND + 1);
    avl_vf_t high1 = AVL_INTERLEAVE(rows[2], rows[3], 2, SECOND + 2, 3, SECOND + 3);
    avl_vf_t columns[4] = {AVL_INTERLEAVE(low0, low1, 0, 1, SECOND, SECOND + 1),
                           AVL_INTERLEAVE(low0, low1, 2, 3, SECOND + 2, SECOND + 3),
                           AVL_INTERLEAVE(high0, high1, 0, 1, SECOND, SECOND + 1),
                           AVL_INTERLEAVE(high0, high1, 2, 3, SECOND + 2, SECOND + 3)};
    for (int i = 0; i < 4; i++) {
        avl_v4f_t groups[AVL_LANES / 4];
        memcpy(groups, &columns[i], sizeof groups);
        for (int group = 0; group < AVL_LANES / 4; group++)
            memcpy(target + (group * 4 + i) * stride, &groups[group], sizeof groups[group]);
    }
}

/* e^x within 2 units in the last place; 0 below -87.3 and infinity above 88.7; NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln(2)/2; e^r by its Taylor polynomial, whose first neglected term is
 * below 2^-26. */
AVL_INLINE avl_vf_t avl_v_exp(avl_vf_t x) {
    avl_vi_t tiny = (avl_vi_t)(x < -87.3f);
    avl_vi_t huge = (avl_vi_t)(x > 88.7f);
    avl_vf_t clamped = avl_v_select(tiny | huge, avl_v_set(0.0f), x);
    /* Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the significand. */
    avl_vf_t shifted = clamped * 1.44269504f + 12582912.0f;
    avl_vf_t n = shifted - 12582912.0f;
    avl_vf_t r =
        clamped -
        n * 0.693359375f; /* ln 2 in two parts: the first is short, so n times it is exact */
    r = r + n * 2.12194440e-4f;
    avl_vf_t p = r * (1.0f / 5040) + (1.0f / 720);
    p = p * r + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    avl_vu_t power = ((avl_vu_t)shifted << 23) + 0x3f800000u;
    avl_vf_t result = p * (avl_vf_t)power;
    result = avl_v_select(tiny, avl_v_set(0.0f), result);
    return avl_v_select(huge, avl_v_set(INFINITY), result);
}

/* 1 / (1 + e^-x) */
AVL_INLINE avl_vf_t avl_v_sigmoid(avl_vf_t x) {
    return 1.0f / (1.0f + avl_v_exp(-x));
}

/* log erfc(t) on [0, 4.3] as a polynomial: least squares over Chebyshev nodes, |error| < 4e-7. */
AVL_INLINE avl_vf_t avl_v_log_erfc(avl_vf_t t) {
    static const float coefficients[] = {-2.45238639e-7f, 5.92681394e-6f,  -6.08089666e-5f,
                                         3.30601307e-4f,  -8.39485241e-4f, -1.15069395e-3f,
                                         2.03802717e-2f,  -1.03429959e-1f, -6.36443842e-1f,
                                         -1.12839752f,    3.17189598e-7f};
    avl_vf_t value = avl_v_set(coefficients[0]);
    for (int i = 1; i < (int)(sizeof coefficients / sizeof coefficients[0]); i++)
        value = value * t + coefficients[i];
    return value;
}

AVL_INLINE avl_vf_t avl_v_gelu(avl_vf_t x) {
    avl_vi_t negative = (avl_vi_t)(x < 0.0f);
    avl_vf_t t = avl_v_select(negative, -x, x) * 0.707106781f;
    avl_vi_t far = (avl_vi_t)(t > 4.3f);
    avl_vf_t tail = 0.5f * avl_v_exp(avl_v_log_erfc(avl_v_select(far, avl_v_set(4.3f), t)));
    tail = avl_v_select(far, avl_v_set(0.0f), tail); /* the normal distribution beyond |x| */
    return x * avl_v_select(negative, tail, 1.0f - tail);
}

AVL_INLINE avl_vf_t avl_v_activate(avl_vf_t x, avl_activation_t activation) {
    switch (activation) {
    case AVL_ACTIVATION_GELU:
        return avl_v_gelu(x);
    case AVL_ACTIVATION_GELU_TANH: /* (1 + tanh u) / 2 is the sigmoid of 2u */
        return x * avl_v_sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
    case AVL_ACTIVATION_QUICK_GELU:
        return x * avl_v_sigmoid(1.702f * x);
    case AVL_ACTIVATION_SILU:
        return x * avl_v_sigmoid(x);
    case AVL_ACTIVATION_RELU:
        return avl_v_select((avl_vi_t)(x < 0.0f), avl_v_set(0.0f), x);
    case AVL_ACTIVATION_NONE:
        break;
    }
    return x;
}

#endif
