#include "tests/support/safetensors_writer.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE *create(const char *path) {
    FILE *file = fopen(path, "wb");
    if (file == NULL)
        fail_msg("%s: %s", path, strerror(errno));
    return file;
}

static void put(FILE *file, const char *path, const void *bytes, size_t count) {
    if (count > 0 && fwrite(bytes, 1, count, file) != count)
        fail_msg("%s: %s", path, strerror(errno));
}

static void put_zeros(FILE *file, const char *path, size_t count) {
    static const char zeros[4096];
    for (; count > sizeof zeros; count -= sizeof zeros)
        put(file, path, zeros, sizeof zeros);
    put(file, path, zeros, count);
}

static void put_length(FILE *file, const char *path, uint64_t length) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(length >> (8 * i));
    put(file, path, bytes, sizeof bytes);
}

static void finish(FILE *file, const char *path) {
    if (fclose(file) != 0)
        fail_msg("%s: %s", path, strerror(errno));
}

void avl_test_write_safetensors(const char *path, const avl_test_tensor_t *tensors, size_t count) {
    char *header = NULL;
    size_t header_bytes = 0;
    FILE *text = open_memstream(&header, &header_bytes);
    assert_non_null(text);
    size_t offset = 0;
    fputc('{', text);
    for (size_t i = 0; i < count; i++) {
        const avl_test_tensor_t *tensor = &tensors[i];
        fprintf(text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i > 0 ? "," : "", tensor->name,
                tensor->dtype);
        for (int axis = 0; axis < tensor->axis_count; axis++)
            fprintf(text, "%s%lld", axis > 0 ? "," : "", (long long)tensor->shape[axis]);
        fprintf(text, "],\"data_offsets\":[%zu,%zu]}", offset, offset + tensor->bytes);
        offset += tensor->bytes;
    }
    fputc('}', text);
    /* Padded with spaces so that the data starts at a multiple of 8, as the format's own writer
     * does. */
    while (ftell(text) % 8 != 0)
        fputc(' ', text);
    assert_int_equal(fclose(text), 0);

    FILE *file = create(path);
    put_length(file, path, header_bytes);
    put(file, path, header, header_bytes);
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].data != NULL)
            put(file, path, tensors[i].data, tensors[i].bytes);
        else
            put_zeros(file, path, tensors[i].bytes);
    }
    finish(file, path);
    free(header);
}

void avl_test_write_safetensors_raw(const char *path, uint64_t header_bytes, const char *header,
                                    size_t data_bytes) {
    FILE *file = create(path);
    put_length(file, path, header_bytes);
    put(file, path, header, strlen(header));
    put_zeros(file, path, data_bytes);
    finish(file, path);
}

void avl_test_write_text(const char *directory, const char *name, const char *text) {
    char *path = NULL;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        fail_msg("no memory");
    FILE *file = create(path);
    put(file, path, text, strlen(text));
    finish(file, path);
    free(path);
}

char *avl_test_make_directory(void) {
    const char *parent = getenv("TMPDIR");
    char *path = NULL;
    if (asprintf(&path, "%s/avl-test-XXXXXX", parent != NULL ? parent : "/tmp") < 0)
        fail_msg("no memory");
    if (mkdtemp(path) == NULL)
        fail_msg("%s: %s", path, strerror(errno));
    return path;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

void avl_test_remove_directory(const char *directory) {
    if (nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
        fail_msg("%s: %s", directory, strerror(errno));
}
