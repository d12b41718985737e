#include "tests/support/npy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define HEADER_BYTES_MAX 65536
#define COUNT_MAX (INT64_C(1) << 28)

static avl_status_t parse_shape(const char *path, const char *header, avl_npy_t *array) {
    const char *cursor = strstr(header, "'shape':");
    cursor = cursor ? strchr(cursor, '(') : NULL;
    if (!cursor)
        return avl_fail(AVL_ERR_DATA, "%s: no shape", path);
    array->count = 1;
    for (cursor++; *cursor != ')';) {
        char *end;
        errno = 0;
        long long extent = strtoll(cursor, &end, 10);
        if (end == cursor || errno || extent < 0 || array->axis_count == AVL_NPY_AXES_MAX ||
            (extent > 0 && array->count > COUNT_MAX / extent))
            return avl_fail(AVL_ERR_DATA, "%s: bad shape", path);
        array->shape[array->axis_count++] = extent;
        array->count *= extent;
        cursor = end + strspn(end, ", ");
    }
    return AVL_OK;
}

static avl_status_t parse_header(const char *path, const char *header, avl_npy_t *array) {
    const char *type = strstr(header, "'descr': '<");
    if (!type)
        return avl_fail(AVL_ERR_DATA, "%s: not little-endian numbers", path);
    snprintf(array->type, sizeof array->type, "%.2s", type + strlen("'descr': '<"));
    if (strcmp(array->type, "f4") && strcmp(array->type, "i4") && strcmp(array->type, "i8"))
        return avl_fail(AVL_ERR_DATA, "%s: element type %s", path, array->type);
    if (!strstr(header, "'fortran_order': False"))
        return avl_fail(AVL_ERR_DATA, "%s: not in C order", path);
    return parse_shape(path, header, array);
}

static avl_status_t read_array(const char *path, FILE *file, avl_npy_t *array) {
    unsigned char lead[12];
    if (fread(lead, 1, 10, file) != 10 || memcmp(lead, "\x93NUMPY", 6) != 0)
        return avl_fail(AVL_ERR_DATA, "%s: not an npy file", path);
    size_t header_bytes = (size_t)lead[8] | (size_t)lead[9] << 8;
    if (lead[6] > 1) {
        if (lead[6] > 3 || fread(lead + 10, 1, 2, file) != 2)
            return avl_fail(AVL_ERR_DATA, "%s: npy version %d", path, lead[6]);
        header_bytes |= (size_t)lead[10] << 16 | (size_t)lead[11] << 24;
    }
    if (header_bytes > HEADER_BYTES_MAX)
        return avl_fail(AVL_ERR_DATA, "%s: header of %zu bytes", path, header_bytes);
    char *header;
    AVL_TRY(avl_alloc(header_bytes + 1, 1, "npy header", &header));
    avl_status_t status = fread(header, 1, header_bytes, file) == header_bytes
                              ? parse_header(path, header, array)
                              : avl_fail(AVL_ERR_DATA, "%s: cut short", path);
    free(header);
    AVL_TRY(status);
    size_t item_bytes = (size_t)(array->type[1] - '0');
    AVL_TRY(avl_alloc((size_t)array->count, item_bytes, "npy data", &array->data));
    if (fread(array->data, item_bytes, (size_t)array->count, file) == (size_t)array->count)
        return AVL_OK;
    free(array->data);
    return avl_fail(AVL_ERR_DATA, "%s: cut short", path);
}

avl_status_t avl_npy_read(const char *path, avl_npy_t *array_p) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return avl_fail(errno == ENOENT ? AVL_ERR_NOT_FOUND : AVL_ERR_IO, "%s: %s", path,
                        strerror(errno));
    avl_npy_t array = {0};
    avl_status_t status = read_array(path, file, &array);
    fclose(file);
    if (status == AVL_OK)
        *array_p = array;
    return status;
}
