/* tests/cuda/shim/matrix.cpp: the warp matrix instructions, element by element, from the layouts in
 * the PTX ISA manual: in every fragment, lane i holds row i / 4 (and 8 rows below) and columns
 * 2 (i % 4) and the next. */
#include "base/dtype.h"
#include "tests/cuda/shim/engine.h"

enum { LANES = 32 };

uint16_t avl_bf16_round(float value) {
    return avl_f32_to_bf16(value);
}

uint32_t avl_bf16_pack(float low, float high) {
    return (uint32_t)avl_f32_to_bf16(high) << 16 | avl_f32_to_bf16(low);
}

uint16_t avl_f16_round(float value) {
    return avl_f32_to_f16(value);
}

float avl_f16_value(uint16_t bits) {
    return avl_f16_to_f32(bits);
}

uint32_t avl_f16_pack(float low, float high) {
    return (uint32_t)avl_f32_to_f16(high) << 16 | avl_f32_to_f16(low);
}

struct product_t {
    float *sums;
    const uint32_t *a, *b;
};

typedef float value_t(uint16_t bits);

static float half_of(value_t *value, uint32_t pair, int upper) {
    return value((uint16_t)(upper ? pair >> 16 : pair));
}

template <value_t VALUE> static void finish_product(void *const *payloads, unsigned mask) {
    if (mask != 0xffffffffu)
        avl_shim_stop("a warp matrix product without all lanes");
    float a[16][16], b[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        const product_t *own = (const product_t *)payloads[lane];
        int row = lane / 4, column = lane % 4 * 2;
        for (int part = 0; part < 4; part++)
            for (int upper = 0; upper < 2; upper++)
                a[row + part % 2 * 8][column + part / 2 * 8 + upper] =
                    half_of(VALUE, own->a[part], upper);
        for (int part = 0; part < 2; part++)
            for (int upper = 0; upper < 2; upper++)
                b[column + part * 8 + upper][row] = half_of(VALUE, own->b[part], upper);
    }
    for (int lane = 0; lane < LANES; lane++) {
        const product_t *own = (const product_t *)payloads[lane];
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = own->sums[i];
            for (int k = 0; k < 16; k++)
                sum += a[row][k] * b[k][column];
            own->sums[i] = sum;
        }
    }
}

void avl_mma_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    product_t own = {sums, a, b};
    avl_shim_warp("mma.sync bf16", 0xffffffffu, &own, finish_product<avl_bf16_to_f32>);
}

void avl_mma_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    product_t own = {sums, a, b};
    avl_shim_warp("mma.sync f16", 0xffffffffu, &own, finish_product<avl_f16_to_f32>);
}

struct matrices_t {
    uint32_t *parts;
    const uint16_t *row;
};

static uint16_t element_of(void *const *payloads, int matrix, int row, int column) {
    return ((const matrices_t *)payloads[matrix * 8 + row])->row[column];
}

template <int TRANSPOSED> static void finish_matrices(void *const *payloads, unsigned) {
    for (int lane = 0; lane < LANES; lane++) {
        for (int matrix = 0; matrix < 4; matrix++) {
            uint32_t word = 0;
            for (int upper = 0; upper < 2; upper++) {
                int row = lane / 4, column = lane % 4 * 2 + upper;
                uint16_t element = TRANSPOSED ? element_of(payloads, matrix, column, row)
                                              : element_of(payloads, matrix, row, column);
                word |= (uint32_t)element << (16 * upper);
            }
            ((matrices_t *)payloads[lane])->parts[matrix] = word;
        }
    }
}

static void check_row(const void *row) {
    if ((uintptr_t)row % 16 != 0)
        avl_shim_stop("a matrix row at %p is not aligned to 16 bytes", row);
    avl_shim_note(row, 16, AVL_SHIM_READ);
}

void avl_load_matrices(uint32_t (&parts)[4], const void *row) {
    check_row(row);
    matrices_t own = {parts, (const uint16_t *)row};
    avl_shim_warp("ldmatrix", 0xffffffffu, &own, finish_matrices<0>);
}

void avl_load_matrices_transposed(uint32_t (&parts)[4], const void *row) {
    check_row(row);
    matrices_t own = {parts, (const uint16_t *)row};
    avl_shim_warp("ldmatrix.trans", 0xffffffffu, &own, finish_matrices<1>);
}
