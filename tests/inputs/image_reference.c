#include "tests/inputs/image_reference.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FOLDER AVL_SOURCE_DIR "/tests/inputs/data/images/"

uint64_t reference_digest(const void *data, size_t data_bytes) {
    const uint8_t *bytes = data;
    uint64_t digest = 0xcbf29ce484222325u;
    for (size_t i = 0; i < data_bytes; i++)
        digest = (digest ^ bytes[i]) * 0x100000001b3u;
    return digest;
}

uint8_t *reference_read(const char *path, size_t *byte_count_p) {
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("%s cannot be opened", path);
    fseek(file, 0, SEEK_END);
    size_t byte_count = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(byte_count + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, byte_count, file), byte_count);
    bytes[byte_count] = 0;
    fclose(file);
    *byte_count_p = byte_count;
    return bytes;
}

uint8_t *reference_file(const char *name, size_t *byte_count_p) {
    char path[512];
    snprintf(path, sizeof path, "%s%s", FOLDER, name);
    return reference_read(path, byte_count_p);
}

avl_image_t reference_image(const char *name) {
    size_t byte_count;
    uint8_t *file = reference_file(name, &byte_count);
    avl_image_t image = {0};
    if (avl_image_decode(file, byte_count, AVL_IMAGE_PIXELS_MAX_DEFAULT, &image) != AVL_OK)
        fail_msg("%s: %s", name, avl_status_detail());
    free(file);
    return image;
}

int reference_lines(const char *word, void (*check)(const char *rest)) {
    size_t byte_count, word_bytes = strlen(word);
    char *text = (char *)reference_file("reference.txt", &byte_count), *next = text;
    int count = 0;
    for (char *line; (line = strsep(&next, "\n"));) {
        if (strncmp(line, word, word_bytes) != 0 || line[word_bytes] != ' ')
            continue;
        check(line + word_bytes + 1);
        count++;
    }
    free(text);
    return count;
}
