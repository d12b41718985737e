#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CANARY_BYTES = 256, CANARY = 0xa5 };

/* Bytes that a tensor stands away from a 16-byte boundary. */
static size_t misalignment(size_t element) {
#ifdef AVL_TEST_ALIGNED
    (void)element;
    return 0;
#else
    return element;
#endif
}

static uint64_t state = 1;

void random_seed(uint64_t seed) {
    state = seed * 2 + 1;
}

uint64_t random_next(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(0x2545f4914f6cdd1d);
}

int random_below(int bound) {
    return (int)((random_next() >> 33) % (uint64_t)bound);
}

tensor_t tensor_create(avl_dtype_t dtype, int64_t count) {
    size_t element = avl_dtype_bytes(dtype), bytes = (size_t)count * element;
    tensor_t tensor = {.dtype = dtype, .count = count};
    tensor.block = malloc(2 * CANARY_BYTES + bytes);
    assert_non_null(tensor.block);
    memset(tensor.block, CANARY, 2 * CANARY_BYTES + bytes);
    tensor.data = tensor.block + CANARY_BYTES - misalignment(element);
    memset(tensor.data, 0, bytes);
    return tensor;
}

tensor_t tensor_random(avl_dtype_t dtype, int64_t count, double scale) {
    tensor_t tensor = tensor_create(dtype, count);
    for (int64_t i = 0; i < count; i++)
        tensor_set(&tensor, i, ((double)(random_next() >> 11) * 0x1p-52 - 1.0) * scale);
    return tensor;
}

tensor_t tensor_copy(const tensor_t *tensor) {
    tensor_t copy = tensor_create(tensor->dtype, tensor->count);
    memcpy(copy.data, tensor->data, (size_t)tensor->count * avl_dtype_bytes(tensor->dtype));
    return copy;
}

double tensor_get(const tensor_t *tensor, int64_t index) {
    if (tensor->dtype == AVL_DTYPE_F32)
        return (double)((const float *)tensor->data)[index];
    uint16_t bits = ((const uint16_t *)tensor->data)[index];
    return (double)(tensor->dtype == AVL_DTYPE_F16 ? avl_f16_to_f32(bits) : avl_bf16_to_f32(bits));
}

void tensor_set(tensor_t *tensor, int64_t index, double value) {
    if (tensor->dtype == AVL_DTYPE_F32)
        ((float *)tensor->data)[index] = (float)value;
    else
        ((uint16_t *)tensor->data)[index] = tensor->dtype == AVL_DTYPE_F16
                                                ? avl_f32_to_f16((float)value)
                                                : avl_f32_to_bf16((float)value);
}

void tensor_check_canaries(const tensor_t *tensor) {
    size_t element = avl_dtype_bytes(tensor->dtype), bytes = (size_t)tensor->count * element;
    size_t before = CANARY_BYTES - misalignment(element);
    for (size_t i = 0; i < before; i++)
        assert_int_equal(tensor->block[i], CANARY);
    for (size_t i = before + bytes; i < 2 * CANARY_BYTES + bytes; i++)
        assert_int_equal(tensor->block[i], CANARY);
}

void tensor_check_same(const tensor_t *a, const tensor_t *b, const char *what) {
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->dtype, b->dtype);
    for (int64_t i = 0; i < a->count; i++) {
        size_t element = avl_dtype_bytes(a->dtype);
        if (memcmp((char *)a->data + (size_t)i * element, (char *)b->data + (size_t)i * element,
                   element) != 0)
            fail_msg("%s: element %lld is %.9g in one and %.9g in the other", what, (long long)i,
                     tensor_get(a, i), tensor_get(b, i));
    }
}

void tensor_destroy(tensor_t *tensor) {
    free(tensor->block);
    *tensor = (tensor_t){0};
}

void check_close(double got, double expected, double absolute, double relative, const char *what,
                 int64_t index) {
    if (!(fabs(got - expected) <= absolute + relative * fabs(expected)))
        fail_msg("%s: element %lld is %.9g, expected %.9g (off by %.3g)", what, (long long)index,
                 got, expected, fabs(got - expected));
}

double format_relative(avl_dtype_t dtype) {
    return dtype == AVL_DTYPE_F32 ? 0x1p-22 : 0x1p-8;
}

void for_each_device(void (*check)(avl_device_t *device, void *context), void *context) {
    static const char *const sets[] = {"portable", "avx2", "avx512", "avx512bf16"};
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        for (int threads = 1; threads <= 3; threads++) {
            avl_device_t *device = NULL;
            avl_status_t status = avl_device_open_cpu(threads, sets[i], &device);
            if (status == AVL_ERR_UNSUPPORTED) {
                print_message("skipped: %s\n", avl_status_detail());
                break;
            }
            assert_int_equal(status, AVL_OK);
            check(device, context);
            avl_device_close(device);
        }
    }
}

avl_device_t *open_best(int threads) {
    avl_device_t *device = NULL;
    expect_status(avl_device_open_cpu(threads, NULL, &device), AVL_OK, NULL);
    return device;
}

void expect_status(avl_status_t got, avl_status_t expected, const char *text) {
    if (got != expected)
        fail_msg("status %s (%s), expected %s", avl_status_name(got),
                 got == AVL_OK ? "" : avl_status_detail(), avl_status_name(expected));
    if (text != NULL && strstr(avl_status_detail(), text) == NULL)
        fail_msg("the text \"%s\" does not say \"%s\"", avl_status_detail(), text);
}
