/* tests/fuzz/safetensors.c: any bytes as model.safetensors. They are refused, or every tensor lies
 * inside them: the sum of all views is read.
 *
 * An input that starts with H is a header up to the first line feed and data behind it; its length
 * field is made here, so that mutations of the text reach beyond the check of the length. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "checkpoint/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* One directory for the whole run; its file is written anew each time. */
static char scratch[64];

static void remove_directory(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", scratch);
    remove(path);
    remove(scratch);
}

static const char *directory(void) {
    if (scratch[0] == '\0') {
        strcpy(scratch, "/tmp/avl-fuzz-XXXXXX");
        AVL_ASSERT(mkdtemp(scratch) != NULL);
        atexit(remove_directory);
    }
    return scratch;
}

/* Reads each tensor that the header names, as whatever shape it claims. */
static size_t read_all(const avl_weights_t *weights, const uint8_t *data, size_t bytes) {
    uint64_t length = 0;
    AVL_ASSERT(bytes >= sizeof length); /* else it would not have opened */
    memcpy(&length, data, sizeof length);
    json_t *header = json_loadb((const char *)data + 8, length, 0, NULL);
    AVL_ASSERT(header != NULL);
    size_t sum = 0;
    const char *name = NULL;
    json_t *entry = NULL;
    json_object_foreach(header, name, entry) {
        const json_t *shape = json_object_get(entry, "shape");
        int64_t extents[AVL_TENSOR_AXES_MAX] = {0};
        size_t axes = json_array_size(shape);
        for (size_t i = 0; i < axes && i < AVL_TENSOR_AXES_MAX; i++)
            extents[i] = json_integer_value(json_array_get(shape, i));
        avl_tensor_view_t view;
        if (axes > AVL_TENSOR_AXES_MAX ||
            avl_weights_view(weights, name, (int)axes, extents, &view) != AVL_OK)
            continue;
        const unsigned char *tensor = view.data;
        AVL_ASSERT(view.bytes <= bytes);
        for (size_t i = 0; i < view.bytes; i++)
            sum += tensor[i];
    }
    json_decref(header);
    return sum;
}

static void write_file(const uint8_t *data, size_t bytes) {
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", directory());
    FILE *file = fopen(path, "wb");
    AVL_ASSERT(file != NULL);
    AVL_ASSERT(bytes == 0 || fwrite(data, 1, bytes, file) == bytes);
    AVL_ASSERT(fclose(file) == 0);
}

/* Opens `data` as a file, and reads every tensor of what is accepted. */
static void try_file(const uint8_t *data, size_t bytes) {
    write_file(data, bytes);
    avl_weights_t *weights = NULL;
    if (avl_weights_open(directory(), &weights) == AVL_OK) {
        /* Compared, so that the reads are not optimised away. */
        AVL_ASSERT(read_all(weights, data, bytes) <= 255 * bytes);
    }
    avl_weights_close(weights);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const uint8_t *end = bytes > 0 && data[0] == 'H' ? memchr(data, '\n', bytes) : NULL;
    if (end == NULL) {
        try_file(data, bytes);
        return 0;
    }
    /* H, header, line feed, data: two bytes go, eight come. */
    uint64_t length = (uint64_t)(end - data) - 1;
    size_t file_bytes = bytes - 2 + sizeof length;
    uint8_t *file = malloc(file_bytes);
    AVL_ASSERT(file != NULL);
    memcpy(file, &length, sizeof length);
    memcpy(file + sizeof length, data + 1, length);
    memcpy(file + sizeof length + length, end + 1, bytes - length - 2);
    try_file(file, file_bytes);
    free(file);
    return 0;
}
