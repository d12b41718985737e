#include "base/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static avl_status_t total_bytes(size_t count, size_t item_bytes, const char *what,
                                size_t *total_p) {
    if (__builtin_mul_overflow(count, item_bytes, total_p) || *total_p > PTRDIFF_MAX) {
        return avl_fail(AVL_ERR_MEMORY, "%s: %zu items of %zu bytes do not fit the address space",
                        what, count, item_bytes);
    }
    return AVL_OK;
}

avl_status_t avl_alloc(size_t count, size_t item_bytes, const char *what, void *memory_p) {
    size_t total = 0;
    AVL_TRY(total_bytes(count, item_bytes, what, &total));
    void *memory = calloc(1, total > 0 ? total : 1);
    if (memory == NULL)
        return avl_fail(AVL_ERR_MEMORY, "%s: no memory for %zu bytes", what, total);
    memcpy(memory_p, &memory, sizeof memory);
    return AVL_OK;
}

avl_status_t avl_alloc_aligned(size_t count, size_t item_bytes, const char *what, void *memory_p) {
    size_t total = 0;
    AVL_TRY(total_bytes(count, item_bytes, what, &total));
    size_t rounded = 0;
    if (__builtin_add_overflow(total, AVL_ALIGNMENT_BYTES - 1, &rounded))
        return avl_fail(AVL_ERR_MEMORY, "%s: %zu bytes do not fit the address space", what, total);
    rounded -= rounded % AVL_ALIGNMENT_BYTES;
    if (rounded == 0)
        rounded = AVL_ALIGNMENT_BYTES;
    void *memory = aligned_alloc(AVL_ALIGNMENT_BYTES, rounded);
    if (memory == NULL)
        return avl_fail(AVL_ERR_MEMORY, "%s: no memory for %zu bytes", what, rounded);
    memset(memory, 0, rounded);
    memcpy(memory_p, &memory, sizeof memory);
    return AVL_OK;
}

avl_status_t avl_grow(size_t needed, size_t item_bytes, const char *what, void *items_p,
                      size_t *capacity_p) {
    if (needed <= *capacity_p)
        return AVL_OK;
    size_t capacity = *capacity_p < 8 ? 8 : *capacity_p;
    while (capacity < needed) {
        if (__builtin_mul_overflow(capacity, 2, &capacity))
            capacity = needed;
    }
    size_t total = 0;
    AVL_TRY(total_bytes(capacity, item_bytes, what, &total));
    void *items = NULL;
    memcpy(&items, items_p, sizeof items);
    items = realloc(items, total);
    if (items == NULL)
        return avl_fail(AVL_ERR_MEMORY, "%s: no memory for %zu bytes", what, total);
    memcpy(items_p, &items, sizeof items);
    *capacity_p = capacity;
    return AVL_OK;
}

avl_status_t avl_copy_string(const char *text, char **copy_p) {
    char *copy = strdup(text);
    if (copy == NULL)
        return avl_fail(AVL_ERR_MEMORY, "no memory for a string of %zu bytes", strlen(text));
    *copy_p = copy;
    return AVL_OK;
}
