#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

static avl_status_t read_descriptor(int descriptor, const char *path, size_t bytes_max,
                                    char **bytes_p, size_t *byte_count_p) {
    struct stat file;
    if (fstat(descriptor, &file) != 0)
        return avl_fail(AVL_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(file.st_mode))
        return avl_fail(AVL_ERR_IO, "%s: not a regular file", path);
    if ((uint64_t)file.st_size > bytes_max) {
        return avl_fail(AVL_ERR_DATA, "%s: %lld bytes, more than the %zu that are allowed", path,
                        (long long)file.st_size, bytes_max);
    }
    size_t byte_count = (size_t)file.st_size;
    char *bytes = NULL;
    AVL_TRY(avl_alloc(byte_count + 1, 1, path, &bytes));
    size_t done = 0;
    while (done < byte_count) {
        ssize_t got = read(descriptor, bytes + done, byte_count - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            int error = errno;
            free(bytes);
            return avl_fail(AVL_ERR_IO, "%s: %s", path, strerror(error));
        }
        if (got == 0)
            break; /* it shrank while being read: the parser sees what is there */
        done += (size_t)got;
    }
    *bytes_p = bytes;
    *byte_count_p = done;
    return AVL_OK;
}

avl_status_t avl_file_read(const char *directory, const char *name, size_t bytes_max,
                           char **bytes_p, size_t *byte_count_p) {
    char *path = NULL;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        return avl_fail(AVL_ERR_MEMORY, "no memory for the path of %s", name);
    avl_status_t status;
    /* O_NONBLOCK: a named pipe without a writer must not hang open(); regular files ignore it. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        int error = errno;
        status = avl_fail(error == ENOENT || error == ENOTDIR ? AVL_ERR_NOT_FOUND : AVL_ERR_IO,
                          "%s: %s", path, strerror(error));
    } else {
        status = read_descriptor(descriptor, path, bytes_max, bytes_p, byte_count_p);
        close(descriptor);
    }
    free(path);
    return status;
}
