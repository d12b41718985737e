/* The two passes in AVX2. The weights have 23 bits and the pixels 8, which no 16-bit multiplication
 * takes at once; split into two halves, two pairs of them go through the multiply-add of 16-bit
 * pairs, which is faster than the 32-bit multiplication and exact. */
#include "inputs/resample_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

/* Per group of four taps: 16 halves, high and then low, in the order in which rows_avx2 lays out
 * pixels: for taps 0 and 1 [R0 R1 G0 G1 B0 B1 - -], for taps 2 and 3 the same. */
void avl_resample_split_avx2(const avl_resample_axis_t *axis) {
    int groups = axis->stride / 4;
    for (int i = 0; i < axis->count; i++) {
        for (int g = 0; g < groups; g++) {
            const int32_t *weights = axis->weights + (size_t)i * (size_t)axis->stride + 4 * g;
            int16_t *split = axis->split + ((size_t)i * (size_t)groups + (size_t)g) * 32;
            for (int t = 0; t < 4; t++) {
                int32_t low = weights[t] & ((1 << AVL_RESAMPLE_LOW_BITS) - 1);
                int32_t high = (weights[t] - low) / (1 << AVL_RESAMPLE_LOW_BITS);
                for (int c = 0; c < 4; c++) { /* the fourth, idle channel too: whatever it holds */
                    split[8 * (t / 2) + 2 * c + t % 2] = (int16_t)high;
                    split[16 + 8 * (t / 2) + 2 * c + t % 2] = (int16_t)low;
                }
            }
        }
    }
}

/* Rounds, clips and stores one pixel; a fourth byte is written beyond it. */
AVX2 static inline void store_pixel(__m256i high, __m256i low, uint8_t *output) {
    __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, AVL_RESAMPLE_LOW_BITS), low);
    __m128i pixel = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    pixel = _mm_add_epi32(pixel, _mm_set1_epi32(1 << (AVL_RESAMPLE_BITS - 1)));
    pixel = _mm_srai_epi32(pixel, AVL_RESAMPLE_BITS);
    pixel = _mm_packs_epi32(pixel, pixel);
    pixel = _mm_packus_epi16(pixel, pixel);
    int32_t bytes = _mm_cvtsi128_si32(pixel);
    __builtin_memcpy(output, &bytes, sizeof bytes);
}

AVX2 static inline __m256i four_pixels(const uint8_t *pixels) {
    const __m256i order =
        _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7,
                         -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)pixels);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
}

AVX2 void avl_resample_rows_avx2(const avl_resample_axis_t *axis, const uint8_t *const *rows,
                                 uint8_t *const *outputs, int row_count) {
    size_t groups_stride = (size_t)axis->stride / 4;
    const uint8_t *row_a = rows[0], *row_b = rows[row_count - 1];
    uint8_t *output_a = outputs[0], *output_b = outputs[row_count - 1];
    for (int i = 0; i < axis->count; i++) {
        const __m256i *split =
            (const __m256i *)(const void *)(axis->split + (size_t)i * groups_stride * 32);
        const uint8_t *a = row_a + (size_t)axis->starts[i] * 3;
        const uint8_t *b = row_b + (size_t)axis->starts[i] * 3;
        int groups = (axis->taps[i] + 3) / 4;
        __m256i high_a = _mm256_setzero_si256(), low_a = high_a, high_b = high_a, low_b = high_a;
        for (int g = 0; g < groups; g++) {
            __m256i high = _mm256_load_si256(split + 2 * g);
            __m256i low = _mm256_load_si256(split + 2 * g + 1);
            __m256i pixels = four_pixels(a + 12 * g);
            high_a = _mm256_add_epi32(high_a, _mm256_madd_epi16(pixels, high));
            low_a = _mm256_add_epi32(low_a, _mm256_madd_epi16(pixels, low));
            pixels = four_pixels(b + 12 * g);
            high_b = _mm256_add_epi32(high_b, _mm256_madd_epi16(pixels, high));
            low_b = _mm256_add_epi32(low_b, _mm256_madd_epi16(pixels, low));
        }
        store_pixel(high_a, low_a, output_a + 3 * (size_t)i);
        store_pixel(high_b, low_b, output_b + 3 * (size_t)i);
    }
}

typedef struct sums {
    __m256i high[4], low[4];
} sums_t;

/* Adds 32 bytes of two rows, weighted by the pair (first, second) in every 32-bit lane. */
AVX2 static inline void add_two_rows(sums_t *sums, __m256i first, __m256i second, __m256i high,
                                     __m256i low) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i left = _mm256_unpacklo_epi8(first, second), right = _mm256_unpackhi_epi8(first, second);
    __m256i pairs[4] = {_mm256_unpacklo_epi8(left, zero), _mm256_unpackhi_epi8(left, zero),
                        _mm256_unpacklo_epi8(right, zero), _mm256_unpackhi_epi8(right, zero)};
    for (int q = 0; q < 4; q++) {
        sums->high[q] = _mm256_add_epi32(sums->high[q], _mm256_madd_epi16(pairs[q], high));
        sums->low[q] = _mm256_add_epi32(sums->low[q], _mm256_madd_epi16(pairs[q], low));
    }
}

AVX2 static inline __m256i rounded(__m256i high, __m256i low) {
    __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, AVL_RESAMPLE_LOW_BITS), low);
    sum = _mm256_add_epi32(sum, _mm256_set1_epi32(1 << (AVL_RESAMPLE_BITS - 1)));
    return _mm256_srai_epi32(sum, AVL_RESAMPLE_BITS);
}

AVX2 void avl_resample_column_avx2(const int32_t *weights, int taps, const uint8_t *rows,
                                   size_t stride_bytes, size_t row_bytes, uint8_t *output) {
    const int32_t low_mask = (1 << AVL_RESAMPLE_LOW_BITS) - 1;
    for (size_t x = 0; x < row_bytes; x += 32) {
        sums_t sums;
        for (int q = 0; q < 4; q++)
            sums.high[q] = sums.low[q] = _mm256_setzero_si256();
        for (int t = 0; t < taps; t += 2) {
            const uint8_t *row = rows + (size_t)t * stride_bytes + x;
            int32_t weight_a = weights[t], weight_b = 0;
            __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)row), second = first;
            if (t + 1 < taps) {
                weight_b = weights[t + 1];
                second = _mm256_loadu_si256((const __m256i *)(const void *)(row + stride_bytes));
            }
            uint32_t low = (uint32_t)(weight_a & low_mask) | (uint32_t)(weight_b & low_mask) << 16;
            uint32_t high = ((uint32_t)(weight_a >> AVL_RESAMPLE_LOW_BITS) & 0xffffu) |
                            (uint32_t)(weight_b >> AVL_RESAMPLE_LOW_BITS) << 16;
            add_two_rows(&sums, first, second, _mm256_set1_epi32((int32_t)high),
                         _mm256_set1_epi32((int32_t)low));
        }
        __m256i left = _mm256_packs_epi32(rounded(sums.high[0], sums.low[0]),
                                          rounded(sums.high[1], sums.low[1]));
        __m256i right = _mm256_packs_epi32(rounded(sums.high[2], sums.low[2]),
                                           rounded(sums.high[3], sums.low[3]));
        _mm256_storeu_si256((__m256i *)(void *)(output + x), _mm256_packus_epi16(left, right));
    }
}
#endif
