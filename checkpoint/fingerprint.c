#include "checkpoint/fingerprint.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"

#define SUFFIX ".safetensors"
#define SAMPLE_BYTES ((size_t)1 << 16)
#define SAMPLES 64
#define HEADER_BYTES_MOST ((off_t)1 << 20) /* of it so much; the samples have the rest */

/* Those that change what a worker computes or when an answer ends. */
static const char *const config_files[] = {"config.json", "generation_config.json",
                                           "preprocessor_config.json"};

static uint64_t add(uint64_t hash, const void *data, size_t bytes) {
    const uint8_t *at = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static avl_status_t failed(const char *path) {
    return avl_fail(AVL_ERR_IO, "%s: %s", path, strerror(errno));
}

static avl_status_t add_range(FILE *file, const char *path, off_t begin, off_t end, uint8_t *buffer,
                              uint64_t *hash_p) {
    if (fseeko(file, begin, SEEK_SET) != 0)
        return failed(path);
    while (begin < end) {
        size_t most = end - begin < (off_t)SAMPLE_BYTES ? (size_t)(end - begin) : SAMPLE_BYTES;
        size_t got = fread(buffer, 1, most, file);
        if (got == 0)
            return ferror(file) ? failed(path)
                                : avl_fail(AVL_ERR_IO, "%s: it became shorter", path);
        *hash_p = add(*hash_p, buffer, got);
        begin += (off_t)got;
    }
    return AVL_OK;
}

static avl_status_t add_samples(FILE *file, const char *path, bool whole, uint8_t *buffer,
                                uint64_t *hash_p) {
    struct stat state;
    if (fstat(fileno(file), &state) != 0)
        return failed(path);
    off_t size = state.st_size;
    *hash_p = add(*hash_p, &size, sizeof size);
    off_t first = whole || size < HEADER_BYTES_MOST ? size : HEADER_BYTES_MOST;
    AVL_TRY(add_range(file, path, 0, first, buffer, hash_p));
    for (int i = 0; i < SAMPLES && first < size; i++) {
        off_t begin = first + (size - first) / SAMPLES * i;
        off_t end = begin + (off_t)SAMPLE_BYTES < size ? begin + (off_t)SAMPLE_BYTES : size;
        AVL_TRY(add_range(file, path, begin, end, buffer, hash_p));
    }
    return AVL_OK;
}

/* A file that is not there counts as such. */
static avl_status_t add_file(const char *directory, const char *name, bool whole, uint8_t *buffer,
                             uint64_t *hash_p) {
    char path[PATH_MAX];
    *hash_p = add(*hash_p, name, strlen(name) + 1);
    if ((size_t)snprintf(path, sizeof path, "%s/%s", directory, name) >= sizeof path)
        return avl_fail(AVL_ERR_IO, "%s/%s: the path is too long", directory, name);
    FILE *file = fopen(path, "rbe");
    if (file == NULL)
        return errno == ENOENT ? AVL_OK : failed(path);
    avl_status_t status = add_samples(file, path, whole, buffer, hash_p);
    fclose(file);
    return status;
}

static int is_weights(const struct dirent *entry) {
    size_t bytes = strlen(entry->d_name), suffix = sizeof SUFFIX - 1;
    return bytes > suffix && strcmp(entry->d_name + bytes - suffix, SUFFIX) == 0;
}

/* By bytes: the same everywhere. */
static int by_name(const struct dirent **left, const struct dirent **right) {
    return strcmp((*left)->d_name, (*right)->d_name);
}

avl_status_t avl_fingerprint(const char *directory, char text[AVL_FINGERPRINT_BYTES]) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    uint8_t *buffer = NULL;
    struct dirent **entries = NULL;
    int count = scandir(directory, &entries, is_weights, by_name);
    if (count < 0)
        return failed(directory);
    avl_status_t status = avl_alloc(SAMPLE_BYTES, 1, "a sample of weights", &buffer);
    for (size_t i = 0; i < sizeof config_files / sizeof *config_files && status == AVL_OK; i++)
        status = add_file(directory, config_files[i], true, buffer, &hash);
    for (int i = 0; i < count; i++) {
        if (status == AVL_OK)
            status = add_file(directory, entries[i]->d_name, false, buffer, &hash);
        free(entries[i]);
    }
    free(entries);
    free(buffer);
    if (status == AVL_OK && count == 0)
        status = avl_fail(AVL_ERR_NOT_FOUND, "%s holds no " SUFFIX " file", directory);
    if (status == AVL_OK)
        snprintf(text, AVL_FINGERPRINT_BYTES, "%016" PRIx64, hash);
    return status;
}
