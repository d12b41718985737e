/* tools/gpu_check/run.c: runs the tests of one program, and stands in for what the fixture names
 * but a GPU machine may lack. */
#include "tools/gpu_check/cmocka.h"

#include "kernels/device.h"

static jmp_buf out;

void check_fail(const char *file, int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("%s:%d: ", file, line);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    longjmp(out, 1);
}

int check_run(const struct CMUnitTest *tests, size_t count) {
    volatile int failed = 0;
    for (volatile size_t i = 0; i < count; i++) {
        void *state = NULL;
        int is_bad = setjmp(out);
        if (!is_bad)
            tests[i].run(&state);
        failed += is_bad;
        printf("%s %s\n", is_bad ? "FAILED" : "ok", tests[i].name);
        fflush(stdout);
    }
    return failed;
}

/* The CPU's device needs oneDNN. */
avl_status_t avl_device_open_cpu(int threads, const char *isa, avl_device_t **device_p) {
    (void)threads;
    (void)isa;
    (void)device_p;
    return avl_fail(AVL_ERR_UNSUPPORTED, "no CPU device here");
}

void avl_device_close(avl_device_t *device) {
    if (device != NULL)
        device->ops->close(device);
}
