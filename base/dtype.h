/* base/dtype.h: the number formats of weights, activations and caches, and conversions between
 * them. */
#ifndef AVL_BASE_DTYPE_H
#define AVL_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum avl_dtype {
    AVL_DTYPE_F32,
    AVL_DTYPE_F16,  /* IEEE binary16 */
    AVL_DTYPE_BF16, /* the upper half of a binary32 */
} avl_dtype_t;

static inline size_t avl_dtype_bytes(avl_dtype_t dtype) {
    return dtype == AVL_DTYPE_F32 ? 4 : 2;
}

static inline const char *avl_dtype_name(avl_dtype_t dtype) {
    return dtype == AVL_DTYPE_F32 ? "f32" : dtype == AVL_DTYPE_F16 ? "f16" : "bf16";
}

static inline float avl_bf16_to_f32(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* Round to nearest, ties to even; a NaN stays a (quiet) NaN. */
static inline uint16_t avl_f32_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (uint16_t)(bits >> 16);
}

static inline float avl_f16_to_f32(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t exponent = (value >> 10) & 0x1fu;
    uint32_t fraction = value & 0x3ffu;
    uint32_t bits;
    if (exponent == 0x1fu) {
        bits = sign | 0x7f800000u | (fraction << 13);
    } else if (exponent != 0) {
        bits = sign | ((exponent + 112u) << 23) | (fraction << 13);
    } else {
        float magnitude = (float)fraction * 0x1p-24f; /* subnormals are exact in binary32 */
        memcpy(&bits, &magnitude, sizeof bits);
        bits |= sign;
    }
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* Round to nearest, ties to even; beyond the range infinity, and a NaN stays a (quiet) NaN. */
static inline uint16_t avl_f32_to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x47800000u) /* 2^16 */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* 2^-14: a subnormal is a whole number of 2^-24 */
        float scaled;
        memcpy(&scaled, &magnitude, sizeof scaled);
        scaled = scaled * 0x1p24f + 0x1p23f; /* the sum rounds */
        memcpy(&magnitude, &scaled, sizeof magnitude);
        return (uint16_t)(sign | (magnitude - 0x4b000000u));
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (magnitude - 0x38000000u) >> 13);
}

#endif
