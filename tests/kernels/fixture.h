/* tests/kernels/fixture.h: what the tests of the operations share: tensors between canaries, and a
 * device per instruction set and thread count. */
#ifndef AVL_TESTS_KERNELS_FIXTURE_H
#define AVL_TESTS_KERNELS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/device.h"

/* The same tests with f16 in bf16's place, where a device computes with it. */
#ifdef AVL_TEST_F16
#define AVL_DTYPE_BF16 AVL_DTYPE_F16
#endif

/* What the tests put between rows. With AVL_TEST_ALIGNED rows and tensors are aligned to 16 bytes
 * where their width allows it, else to their element only. */
#ifdef AVL_TEST_ALIGNED
#define ROW_GAP(odd) 8
#else
#define ROW_GAP(odd) (odd)
#endif

/* A tensor of any format between two canaries. */
typedef struct tensor {
    avl_dtype_t dtype;
    int64_t count;
    void *data;
    unsigned char *block;
} tensor_t;

tensor_t tensor_create(avl_dtype_t dtype, int64_t count);
/* Uniform in [-scale, scale]. */
tensor_t tensor_random(avl_dtype_t dtype, int64_t count, double scale);
/* A copy in a block of its own. */
tensor_t tensor_copy(const tensor_t *tensor);
double tensor_get(const tensor_t *tensor, int64_t index);
void tensor_set(tensor_t *tensor, int64_t index, double value);
/* Fails the test when a byte before or behind the tensor changed. */
void tensor_check_canaries(const tensor_t *tensor);
/* Fails the test when the bytes differ. */
void tensor_check_same(const tensor_t *a, const tensor_t *b, const char *what);
void tensor_destroy(tensor_t *tensor);

uint64_t random_next(void);
void random_seed(uint64_t seed);
/* Uniform below `bound`. */
int random_below(int bound);

/* |got - expected| <= absolute + relative |expected|, naming the place when not. */
void check_close(double got, double expected, double absolute, double relative, const char *what,
                 int64_t index);
/* What one rounding to a format may add: 0 for f32 beyond `absolute`. */
double format_relative(avl_dtype_t dtype);

/* Calls check(device) on every instruction set of this machine with 1, 2 and 3 threads, and prints
 * the sets it lacks. */
void for_each_device(void (*check)(avl_device_t *device, void *context), void *context);
/* Opens the best set with `threads`. */
avl_device_t *open_best(int threads);

void expect_status(avl_status_t got, avl_status_t expected, const char *text);

#endif
