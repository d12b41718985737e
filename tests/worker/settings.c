/* tests/worker/settings.c: the command line of avl-worker and what follows from it. (Usage errors
 * end the process, so they are tested where processes are: tests/service.) */

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/settings.h"

static avl_config_t load_config(const char *model) {
    avl_config_t config;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", AVL_SOURCE_DIR, model);
    assert_int_equal(avl_config_load(path, &config), AVL_OK);
    return config;
}

static void test_command_line(void **state) {
    (void)state;
    char program[] = "avl-worker", model[] = "--model=DIR", link[] = "--link",
         address[] = "unix:/x", memory[] = "--memory=3G", rows[] = "--batch-rows=77",
         threads[] = "--threads", two[] = "2", level[] = "--log-level=warn";
    char *argv[] = {program, model, link, address, memory, rows, threads, two, level, NULL};
    avl_worker_settings_t settings;
    avl_worker_settings_parse(9, argv, &settings);
    assert_string_equal(settings.model, "DIR");
    assert_string_equal(settings.link_address, "unix:/x");
    assert_string_equal(settings.device, "auto");
    assert_true(settings.memory_bytes == INT64_C(3) << 30);
    assert_int_equal(settings.batch_rows, 77);
    assert_int_equal(settings.threads, 2);
    assert_int_equal(settings.log_level, AVL_LOG_WARN);
    assert_int_equal(settings.sequences_max, 32);
}

static void test_limits(void **state) {
    (void)state;
    avl_config_t config = load_config("models/avl-tiny");
    avl_worker_settings_t settings = {.sequences_max = 3};
    avl_engine_limits_t limits = avl_worker_limits(&settings, &config);
    assert_int_equal(limits.context_rows, 2048);
    assert_int_equal(limits.batch_rows, 2048);
    assert_int_equal(avl_engine_limits_check(&config, &limits), AVL_OK);
    settings.context_rows = 2049;
    settings.batch_rows = 100;
    limits = avl_worker_limits(&settings, &config);
    assert_int_equal(limits.batch_rows, 100);
    assert_int_equal(avl_engine_limits_check(&config, &limits), AVL_ERR_INVALID);
    assert_non_null(strstr(avl_status_detail(), "2 to 2048"));
    /* Scaled rope reaches further than the positions it was trained on. */
    config = load_config("tests/data/models/llava-rope-dynamic");
    assert_int_equal(avl_engine_context_most(&config.model), 32 * 4);
    config = load_config("tests/data/models/llava-rope-llama3");
    assert_int_equal(avl_engine_context_most(&config.model), 256);
}

static void test_dtype_and_memory(void **state) {
    (void)state;
    avl_device_t *device;
    assert_int_equal(avl_device_open_cpu(1, NULL, &device), AVL_OK);
    avl_config_t half = load_config("models/avl-tiny"),
                 full = load_config("tests/data/models/llava-mha");
    avl_dtype_t dtype;
    assert_int_equal(avl_worker_dtype("auto", &half, device, &dtype), AVL_OK);
    assert_int_equal(dtype, device->info.fast_dtype);
    assert_int_equal(avl_worker_dtype("auto", &full, device, &dtype), AVL_OK);
    assert_int_equal(dtype, AVL_DTYPE_F32);
    assert_int_equal(avl_worker_dtype("bf16", &full, device, &dtype), AVL_OK);
    assert_int_equal(dtype, AVL_DTYPE_BF16);
    assert_int_equal(avl_worker_dtype("f16", &full, device, &dtype), AVL_ERR_INVALID);
    assert_int_equal(avl_worker_dtype("f64", &full, device, &dtype), AVL_ERR_INVALID);
    /* A device that computes in f16 takes f16 checkpoints as they are. */
    avl_device_t other = {.info = {.fast_dtype = AVL_DTYPE_BF16, .has_f16 = 1}};
    full.model.weights_dtype = AVL_DTYPE_F16;
    assert_int_equal(avl_worker_dtype("auto", &full, &other, &dtype), AVL_OK);
    assert_int_equal(dtype, AVL_DTYPE_F16);
    assert_int_equal(avl_worker_dtype("auto", &full, device, &dtype), AVL_OK);
    assert_int_equal(dtype, device->info.fast_dtype);
    full.model.weights_dtype = AVL_DTYPE_F32;
    assert_int_equal(avl_worker_dtype("f16", &full, &other, &dtype), AVL_OK);
    assert_int_equal(dtype, AVL_DTYPE_F16);
    avl_worker_settings_t settings = {.memory_bytes = 12345};
    assert_int_equal(avl_worker_memory(&settings, device, 4), 12345);
    settings.memory_bytes = 0;
    int64_t share = avl_worker_memory(&settings, device, 4);
    assert_true(share > 0 && share <= (int64_t)(device->info.memory_bytes / 4));
    avl_device_close(device);
    /* Ranks that have a GPU to themselves, and ranks that share one. */
    avl_device_t gpus = {.info = {.memory_bytes = 1000, .gpu_count = 2}};
    assert_int_equal(avl_worker_memory(&settings, &gpus, 1), 900);
    assert_int_equal(avl_worker_memory(&settings, &gpus, 2), 900);
    assert_int_equal(avl_worker_memory(&settings, &gpus, 3), 450);
    assert_int_equal(avl_worker_memory(&settings, &gpus, 4), 450);
    for (int ranks = 1; ranks <= 5; ranks++) {
        int threads = avl_worker_threads(8, ranks);
        assert_true(threads >= 1 && threads <= 8);
    }
    assert_int_equal(avl_worker_threads(1, 6), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_command_line),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_dtype_and_memory),
    };
    return cmocka_run_group_tests_name("worker settings", tests, NULL, NULL);
}
