/* tests/cuda/shim_library.c: how the execution shim behaves inside a worker. The environment says,
 * because the worker knows nothing of it: AVL_SHIM_DEVICES is how many GPUs there are, 1 unless
 * given. The stream does nothing before somebody waits, and the host that touches device memory
 * dies of it, as on a GPU. */
#include <stdlib.h>

#include "tests/cuda/shim/shim.h"

/* When the library is loaded: settings belong to the thread that loads it, which is the one that
 * runs the steps. */
__attribute__((constructor)) static void configure(void) {
    const char *devices = getenv("AVL_SHIM_DEVICES");
    avl_shim_configure(&(avl_shim_options_t){
        .order = AVL_SHIM_DESCENDING,
        .deferred = 1,
        .guarded = 1,
        .devices = devices != NULL ? atoi(devices) : 1,
    });
}
