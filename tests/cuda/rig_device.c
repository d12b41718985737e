/* tests/cuda/rig_device.c: the device of tests/worker/rig.c when that is compiled for the CUDA
 * backend: weights and caches stay in host memory, as the model wants them, and every operation
 * runs on the CUDA device. */
#include "kernels/device.h"
#include "tests/cuda/devices.h"
#include "tests/cuda/mirror.h"

avl_status_t avl_test_open_device(int threads, const char *isa, avl_device_t **device_p);

avl_status_t avl_test_open_device(int threads, const char *isa, avl_device_t **device_p) {
    (void)threads;
    (void)isa;
    avl_device_t *inner = NULL;
    AVL_TRY(avl_cuda_device_open(0, &inner));
    avl_status_t status = avl_mirror_open(inner, 1, device_p);
    if (status != AVL_OK)
        avl_device_close(inner);
    return status;
}
