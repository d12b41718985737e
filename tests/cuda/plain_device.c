/* tests/cuda/plain_device.c: the device of tests/worker/rig.c as it is on a GPU, without a mirror:
 * weights, caches and lists are in device memory that the host cannot touch, and nothing happens on
 * the stream before somebody waits. */
#include <stdatomic.h>

#include "kernels/device.h"
#include "tests/cuda/devices.h"
#ifdef AVL_CUDA_SHIM
#include "tests/cuda/shim/shim.h"
#endif

enum { GPUS = 8 };

avl_status_t avl_test_open_device(int threads, const char *isa, avl_device_t **device_p);

#ifdef AVL_CUDA_SHIM
avl_status_t avl_test_open_device(int threads, const char *isa, avl_device_t **device_p) {
    static atomic_int opened; /* each rank, a thread, gets a GPU of its own */
    (void)threads;
    (void)isa;
    avl_shim_configure(&(avl_shim_options_t){
        .order = AVL_SHIM_DESCENDING, .deferred = 1, .guarded = 1, .devices = GPUS});
    return avl_cuda_device_open(atomic_fetch_add(&opened, 1) % GPUS, device_p);
}
#else
avl_status_t avl_test_open_device(int threads, const char *isa, avl_device_t **device_p) {
    (void)threads;
    (void)isa;
    return avl_cuda_device_open(0, device_p);
}
#endif
