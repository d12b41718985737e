#include "tests/kernels/fixture.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static void opens_the_cpu(void **unused) {
    (void)unused;
    avl_device_t *device = NULL;
    expect_status(avl_device_open("cpu", 0, 0, &device), AVL_OK, NULL);
    assert_true(device->is_host);
    assert_true(device->info.threads >= 1);
    assert_true(device->info.memory_bytes > 0);
    print_message("device: %s, %d threads, %zu MiB\n", device->info.name, device->info.threads,
                  device->info.memory_bytes >> 20);
    avl_device_close(device);
    avl_device_close(NULL);
    device = NULL;
    expect_status(avl_device_open("auto", 2, 0, &device), AVL_OK, NULL);
    avl_device_close(device);
}

static void refuses_what_it_does_not_have(void **unused) {
    (void)unused;
    avl_device_t *device = NULL;
    expect_status(avl_device_open("tpu", 0, 0, &device), AVL_ERR_INVALID, "\"tpu\"");
    expect_status(avl_device_open(NULL, 0, 0, &device), AVL_ERR_INVALID, "no device named");
    expect_status(avl_device_open_cpu(0, "mmx", &device), AVL_ERR_UNSUPPORTED, "\"mmx\"");
    expect_status(avl_device_open_cpu(-1, NULL, &device), AVL_ERR_UNSUPPORTED, "-1 threads");
    expect_status(avl_device_open_cpu(1 << 20, NULL, &device), AVL_ERR_UNSUPPORTED, "threads");
    assert_null(device);
    /* With the CUDA library and a GPU this opens; without, it says what is missing. */
    if (avl_device_open("cuda", 0, 0, &device) == AVL_OK)
        avl_device_close(device);
    else
        assert_non_null(strstr(avl_status_detail(), "no CUDA device: "));
}

/* Nothing of CUDA is loaded to find out that there is no driver. */
static void looks_for_the_driver_first(void **unused) {
    (void)unused;
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver != NULL) {
        dlclose(driver);
        print_message("this host has a driver\n");
        return;
    }
    avl_device_t *device = NULL;
    expect_status(avl_device_open("cuda", 1, 0, &device), AVL_ERR_UNSUPPORTED,
                  "no NVIDIA driver: libcuda.so.1");
    expect_status(avl_device_open("auto", 1, 0, &device), AVL_OK, NULL);
    assert_true(device->is_host);
    assert_non_null(strstr(device->choice, "no NVIDIA driver"));
    avl_device_close(device);
    assert_null(dlopen("libavl_cuda.so", RTLD_LAZY | RTLD_NOLOAD));
    assert_null(dlopen("libcublasLt.so.12", RTLD_LAZY | RTLD_NOLOAD));
}

static void allocates_and_copies(void **unused) {
    (void)unused;
    avl_device_t *device = open_best(3);
    static const size_t sizes[] = {0,   1,      255,           256,
                                   257, 100000, (2 << 20) + 1, ((size_t)70 << 20) + 3};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *memory = NULL;
        void *allocated = NULL;
        expect_status(device->ops->allocate(device, sizes[i], "a tensor", &allocated), AVL_OK,
                      NULL);
        memory = allocated;
        assert_int_equal((uintptr_t)memory % 256, 0);
        for (size_t j = 0; j < sizes[i]; j += sizes[i] < 1 << 22 ? 1 : 4093)
            assert_int_equal(memory[j], 0);
        if (sizes[i] > 1) {
            char back[8] = "";
            expect_status(device->ops->upload(device, memory + sizes[i] - 8, "letters", 8), AVL_OK,
                          NULL);
            expect_status(device->ops->synchronize(device), AVL_OK, NULL);
            expect_status(device->ops->download(device, back, memory + sizes[i] - 8, 8), AVL_OK,
                          NULL);
            assert_string_equal(back, "letters");
        }
        memset(memory, 0x5a, sizes[i]); /* what comes next may get the same memory */
        device->ops->release(device, allocated);
    }
    void *memory = NULL;
    expect_status(device->ops->allocate(device, SIZE_MAX, "the whole world", &memory),
                  AVL_ERR_MEMORY, "the whole world");
    assert_null(memory);
    expect_status(device->ops->upload(device, NULL, "x", 1), AVL_ERR_SHAPE, "to NULL");
    expect_status(device->ops->upload(device, NULL, NULL, 0), AVL_OK, NULL);
    avl_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_the_cpu),
        cmocka_unit_test(refuses_what_it_does_not_have),
        cmocka_unit_test(looks_for_the_driver_first),
        cmocka_unit_test(allocates_and_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
