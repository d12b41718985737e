/* tests/cuda/driver.c: stands where NVIDIA's driver would be (libcuda.so.1), so that the worker
 * goes on to load its CUDA library. Nothing calls it. */
int avl_test_driver(void);

int avl_test_driver(void) {
    return 0;
}
