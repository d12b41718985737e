#include "kernels/device.h"

#include <dlfcn.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What libavl_cuda.so exports as avl_device_open_cuda. It has no avl_fail of this program's, so it
 * is handed ours to report with. */
typedef avl_status_t report_t(avl_status_t status, const char *format, ...);
typedef avl_status_t open_cuda_t(int threads, int place, report_t *report, avl_device_t **device_p);

static const char cuda_library[] = "libavl_cuda.so";
/* What NVIDIA's driver brings, and nothing else. */
static const char driver_library[] = "libcuda.so.1";

/* Without a driver our library would load cuBLAS, half a gigabyte, only to find no GPU. */
static avl_status_t find_driver(void) {
    void *driver = dlopen(driver_library, RTLD_LAZY | RTLD_LOCAL);
    if (driver == NULL)
        return avl_fail(AVL_ERR_UNSUPPORTED, "no CUDA device: no NVIDIA driver: %s", dlerror());
    dlclose(driver);
    return AVL_OK;
}

/* Next to the program, so that an unpacked directory works as it is; else wherever the loader
 * looks. */
static void *load_cuda(char *reason, size_t reason_bytes) {
    char program[4096];
    ssize_t bytes = readlink("/proc/self/exe", program, sizeof program - 1);
    if (bytes > 0) {
        program[bytes] = '\0';
        char path[sizeof program + sizeof cuda_library + 1];
        snprintf(path, sizeof path, "%s/%s", dirname(program), cuda_library);
        if (access(path, F_OK) == 0) {
            void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (library == NULL)
                snprintf(reason, reason_bytes, "%s", dlerror());
            return library;
        }
    }
    void *library = dlopen(cuda_library, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        snprintf(reason, reason_bytes, "%s", dlerror());
    return library;
}

/* The library stays loaded for the life of the process: its device's functions live in it. */
static avl_status_t open_cuda(int threads, int place, avl_device_t **device_p) {
    char reason[AVL_STATUS_DETAIL_BYTES / 2] = "";
    AVL_TRY(find_driver());
    void *library = load_cuda(reason, sizeof reason);
    if (library == NULL)
        return avl_fail(AVL_ERR_UNSUPPORTED, "no CUDA device: %s", reason);
    void *symbol = dlsym(library, "avl_device_open_cuda");
    if (symbol == NULL) {
        dlclose(library);
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "no CUDA device: %s has no function avl_device_open_cuda", cuda_library);
    }
    open_cuda_t *open = NULL;
    memcpy(&open, &symbol, sizeof open); /* ISO C has no cast from data to function pointers */
    return open(threads, place, avl_fail, device_p);
}

static avl_status_t open_auto(int threads, int place, avl_device_t **device_p) {
    if (open_cuda(threads, place, device_p) == AVL_OK) {
        snprintf((*device_p)->choice, sizeof(*device_p)->choice,
                 "a GPU, an NVIDIA driver and %s are here", cuda_library);
        return AVL_OK;
    }
    char reason[AVL_STATUS_DETAIL_BYTES];
    snprintf(reason, sizeof reason, "%s", avl_status_detail());
    AVL_TRY(avl_device_open_cpu(threads, NULL, device_p));
    snprintf((*device_p)->choice, sizeof(*device_p)->choice, "%s", reason);
    return AVL_OK;
}

avl_status_t avl_device_open(const char *name, int threads, int place, avl_device_t **device_p) {
    if (name == NULL)
        return avl_fail(AVL_ERR_INVALID,
                        "no device named; there are \"cpu\", \"cuda\" and \"auto\"");
    if (strcmp(name, "cpu") == 0)
        return avl_device_open_cpu(threads, NULL, device_p);
    if (strcmp(name, "cuda") == 0)
        return open_cuda(threads, place, device_p);
    if (strcmp(name, "auto") == 0)
        return open_auto(threads, place, device_p);
    return avl_fail(AVL_ERR_INVALID,
                    "no device is named \"%s\"; there are \"cpu\", \"cuda\" and \"auto\"", name);
}

void avl_device_close(avl_device_t *device) {
    if (device != NULL)
        device->ops->close(device);
}
