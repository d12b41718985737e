/* tests/cuda/mirror.h: a device for tests that hold their tensors in host memory: before every
 * operation it copies what the arguments reach to the device inside, each array to an allocation of
 * its exact extent and with the alignment it had, and copies the results back behind it. So the
 * programs of tests/kernels, and whole models, run unchanged on a GPU and on the execution shim. */
#ifndef AVL_TESTS_CUDA_MIRROR_H
#define AVL_TESTS_CUDA_MIRROR_H

#include "kernels/device.h"

/* Takes `inner` over. `is_host`: what the device claims to be; with 1 it allocates host memory, as
 * a model needs that uses its weights in place. */
AVL_MUST_CHECK avl_status_t avl_mirror_open(avl_device_t *inner, int is_host,
                                            avl_device_t **device_p);

#endif
