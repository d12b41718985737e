/* tests/cuda/devices.h: the devices that the tests of the CUDA backend run on. */
#ifndef AVL_TESTS_CUDA_DEVICES_H
#define AVL_TESTS_CUDA_DEVICES_H

#include "kernels/device.h"

/* kernels/cuda/device.h, which is C++. */
AVL_MUST_CHECK avl_status_t avl_cuda_device_open(int place, avl_device_t **device_p);

#endif
