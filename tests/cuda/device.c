/* tests/cuda/device.c: opening, memory, and the ring of pinned memory: what fails and what is given
 * back. */
#include "tests/kernels/fixture.h"

#include <stdlib.h>
#include <string.h>

#include "tests/cuda/devices.h"
#include "tests/cuda/shim/shim.h"

static void configure(int deferred, int devices, int fail_allocation) {
    avl_shim_configure(&(avl_shim_options_t){
        .deferred = deferred, .devices = devices, .fail_allocation = fail_allocation});
}

static avl_device_t *open_device(void) {
    avl_device_t *device = NULL;
    expect_status(avl_cuda_device_open(0, &device), AVL_OK, NULL);
    return device;
}

static void describes_itself(void **unused) {
    (void)unused;
    configure(0, 1, 0);
    avl_device_t *device = open_device();
    assert_string_equal(device->info.name, "cuda: execution shim (sm_80)");
    assert_false(device->is_host);
    assert_int_equal(device->info.fast_dtype, AVL_DTYPE_BF16);
    assert_true(device->info.memory_bytes > 0);
    avl_device_close(device);
    assert_int_equal(avl_shim_live_allocations(), 0);
}

/* Ranks of one host get a GPU each, and share when there are more of them. */
static void deals_out_the_gpus(void **unused) {
    (void)unused;
    configure(0, 3, 0);
    for (int place = 0; place < 7; place++) {
        avl_device_t *device = NULL;
        expect_status(avl_cuda_device_open(place, &device), AVL_OK, NULL);
        assert_int_equal(avl_shim_chosen_device(), place % 3);
        assert_int_equal(device->info.gpu_count, 3);
        avl_device_close(device);
    }
    avl_device_t *device = NULL;
    expect_status(avl_cuda_device_open(-1, &device), AVL_ERR_SHAPE, "place -1");
    assert_null(device);
    configure(0, 1, 0);
}

static void says_why_there_is_none(void **unused) {
    (void)unused;
    avl_device_t *device = NULL;
    configure(0, 0, 0);
    expect_status(avl_cuda_device_open(0, &device), AVL_ERR_UNSUPPORTED, "no CUDA-capable device");
    assert_null(device);
    configure(0, 1, 0);
}

/* Whatever allocation fails, opening says so and gives everything back. */
static void survives_failing_allocations(void **unused) {
    (void)unused;
    int failed = 0;
    for (int n = 1;; n++) {
        avl_device_t *device = NULL;
        configure(0, 1, n);
        avl_status_t status = avl_cuda_device_open(0, &device);
        configure(0, 1, 0);
        if (status == AVL_OK) {
            avl_device_close(device);
            break;
        }
        failed++;
        assert_true(status == AVL_ERR_MEMORY || status == AVL_ERR_DEVICE);
        assert_null(device);
        assert_int_equal(avl_shim_live_allocations(), 0);
    }
    assert_true(failed >= 3);
    assert_int_equal(avl_shim_live_allocations(), 0);
}

static void allocates_and_copies(void **unused) {
    (void)unused;
    configure(0, 1, 0);
    avl_device_t *device = open_device();
    static const size_t sizes[] = {0, 1, 255, 256, 257, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *memory = NULL;
        expect_status(device->ops->allocate(device, sizes[i], "a tensor", &memory), AVL_OK, NULL);
        assert_int_equal((uintptr_t)memory % 256, 0);
        unsigned char *back = malloc(sizes[i] + 1);
        assert_non_null(back);
        back[sizes[i]] = 77;
        expect_status(device->ops->download(device, back, memory, sizes[i]), AVL_OK, NULL);
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(back[j], 0);
        assert_int_equal(back[sizes[i]], 77);
        free(back);
        device->ops->release(device, memory);
    }
    void *memory = NULL;
    expect_status(device->ops->allocate(device, SIZE_MAX, "the whole world", &memory),
                  AVL_ERR_MEMORY, "the whole world");
    expect_status(device->ops->allocate(device, (size_t)1 << 55, "the whole world", &memory),
                  AVL_ERR_MEMORY, "the whole world");
    assert_null(memory);
    /* A refused allocation leaves nothing behind that the next call would be blamed for. */
    expect_status(device->ops->synchronize(device), AVL_OK, NULL);
    expect_status(device->ops->upload(device, NULL, "x", 1), AVL_ERR_SHAPE, "to NULL");
    expect_status(device->ops->download(device, NULL, "x", 1), AVL_ERR_SHAPE, "to NULL");
    expect_status(device->ops->upload(device, NULL, NULL, 0), AVL_OK, NULL);
    avl_device_close(device);
    assert_int_equal(avl_shim_live_allocations(), 0);
}

/* Three times round the ring on a stream that does nothing before somebody waits: a segment may not
 * be filled again before its copy has been made, and the caller's memory is free at once. */
static void uploads_more_than_the_ring_holds(void **unused) {
    (void)unused;
    enum { BYTES = (50 << 20) + 12345, PIECE = 999999 };
    configure(1, 1, 0);
    avl_device_t *device = open_device();
    unsigned char *host = malloc(BYTES), *piece = malloc(PIECE);
    assert_non_null(host);
    assert_non_null(piece);
    for (size_t i = 0; i < BYTES; i++)
        host[i] = (unsigned char)(i * 7 + (i >> 11));
    void *memory = NULL;
    expect_status(device->ops->allocate(device, BYTES, "a picture", &memory), AVL_OK, NULL);
    for (size_t first = 0; first < BYTES; first += PIECE) {
        size_t bytes = BYTES - first < PIECE ? BYTES - first : PIECE;
        memcpy(piece, host + first, bytes);
        expect_status(device->ops->upload(device, (char *)memory + first, piece, bytes), AVL_OK,
                      NULL);
        memset(piece, 0xee, bytes);
    }
    unsigned char *back = malloc(BYTES);
    assert_non_null(back);
    expect_status(device->ops->download(device, back, memory, BYTES), AVL_OK, NULL);
    assert_memory_equal(back, host, BYTES);
    free(back);
    free(host);
    free(piece);
    device->ops->release(device, memory);
    avl_device_close(device);
    assert_int_equal(avl_shim_live_allocations(), 0);
    configure(0, 1, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(describes_itself),
        cmocka_unit_test(deals_out_the_gpus),
        cmocka_unit_test(says_why_there_is_none),
        cmocka_unit_test(survives_failing_allocations),
        cmocka_unit_test(allocates_and_copies),
        cmocka_unit_test(uploads_more_than_the_ring_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
