/* tests/cuda/devices.c: the CUDA device in place of the CPU's for the programs of tests/kernels. On
 * the execution shim there is one for each order of threads and blocks, and one whose stream does
 * nothing before somebody waits. */
#include "tests/cuda/devices.h"

#include "tests/cuda/mirror.h"
#include "tests/kernels/fixture.h"

#ifdef AVL_CUDA_SHIM
#include "tests/cuda/shim/shim.h"

static const avl_shim_options_t modes[] = {
    {.order = AVL_SHIM_ASCENDING, .devices = 1},
    {.order = AVL_SHIM_DESCENDING, .devices = 1, .deferred = 1},
    {.order = AVL_SHIM_RANDOM, .seed = 7, .devices = 1},
};
#ifdef AVL_SHIM_ONE_MODE /* what is looked for shows in any */
enum { MODE_COUNT = 1 };
#else
enum { MODE_COUNT = sizeof modes / sizeof modes[0] };
#endif

static void use_mode(int mode) {
    avl_shim_configure(&modes[mode]);
}
#else
enum { MODE_COUNT = 1 };

static void use_mode(int mode) {
    (void)mode;
}
#endif

static avl_device_t *open_mirror(void) {
    avl_device_t *inner = NULL, *device = NULL;
    expect_status(avl_cuda_device_open(0, &inner), AVL_OK, NULL);
    expect_status(avl_mirror_open(inner, 0, &device), AVL_OK, NULL);
    return device;
}

void for_each_device(void (*check)(avl_device_t *device, void *context), void *context) {
    for (int mode = 0; mode < MODE_COUNT; mode++) {
        use_mode(mode);
        avl_device_t *device = open_mirror();
        check(device, context);
        avl_device_close(device);
    }
}

avl_device_t *open_best(int threads) {
    use_mode((threads - 1) % MODE_COUNT); /* results may not depend on the order either */
    return open_mirror();
}
