#include "coordinator/stop_text.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct avl_stop_text {
    char *texts[AVL_STOP_TEXTS_MAX];
    size_t bytes[AVL_STOP_TEXTS_MAX];
    size_t count;
    char *held; /* not shown yet; NUL-terminated */
    size_t held_bytes, held_capacity;
    char *shown;
    size_t shown_capacity;
    bool found;
};

avl_status_t avl_stop_text_create(char *const *texts, size_t count, avl_stop_text_t **stop_p) {
    if (count > AVL_STOP_TEXTS_MAX)
        return avl_fail(AVL_ERR_INVALID, "sampling.stop has %zu texts; at most %d are allowed",
                        count, AVL_STOP_TEXTS_MAX);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = strlen(texts[i]);
        if (bytes < 1 || bytes > AVL_STOP_TEXT_BYTES_MAX)
            return avl_fail(AVL_ERR_INVALID, "sampling.stop[%zu] has %zu bytes; allowed: 1 to %d",
                            i, bytes, AVL_STOP_TEXT_BYTES_MAX);
    }
    if (count == 0) {
        *stop_p = NULL;
        return AVL_OK;
    }
    avl_stop_text_t *stop;
    AVL_TRY(avl_alloc(1, sizeof *stop, "stop texts", &stop));
    for (; stop->count < count; stop->count++) {
        avl_status_t status = avl_copy_string(texts[stop->count], &stop->texts[stop->count]);
        if (status != AVL_OK) {
            avl_stop_text_destroy(stop);
            return status;
        }
        stop->bytes[stop->count] = strlen(texts[stop->count]);
    }
    *stop_p = stop;
    return AVL_OK;
}

void avl_stop_text_destroy(avl_stop_text_t *stop) {
    if (stop == NULL)
        return;
    for (size_t i = 0; i < stop->count; i++)
        free(stop->texts[i]);
    free(stop->held);
    free(stop->shown);
    free(stop);
}

/* Moves the first `bytes` of what is held to what is shown. */
static avl_status_t show(avl_stop_text_t *stop, size_t bytes, const char **out_p) {
    AVL_TRY(avl_grow(bytes + 1, 1, "text", &stop->shown, &stop->shown_capacity));
    memcpy(stop->shown, stop->held, bytes);
    stop->shown[bytes] = '\0';
    memmove(stop->held, stop->held + bytes, stop->held_bytes - bytes + 1);
    stop->held_bytes -= bytes;
    *out_p = stop->shown;
    return AVL_OK;
}

/* Whether a stop text ends at `end`, and where the longest of them begins. */
static bool ends_at(const avl_stop_text_t *stop, size_t end, size_t *begin_p) {
    bool found = false;
    for (size_t i = 0; i < stop->count; i++) {
        size_t bytes = stop->bytes[i];
        if (bytes > end || memcmp(stop->held + end - bytes, stop->texts[i], bytes) != 0)
            continue;
        if (!found || end - bytes < *begin_p)
            *begin_p = end - bytes;
        found = true;
    }
    return found;
}

/* Where the longest beginning of a stop text starts that the held text ends with. */
static size_t unsettled(const avl_stop_text_t *stop) {
    size_t first = stop->held_bytes;
    for (size_t i = 0; i < stop->count; i++) {
        size_t most = stop->bytes[i] - 1;
        for (size_t bytes = most < stop->held_bytes ? most : stop->held_bytes; bytes > 0; bytes--) {
            size_t begin = stop->held_bytes - bytes;
            if (memcmp(stop->held + begin, stop->texts[i], bytes) == 0) {
                first = begin < first ? begin : first;
                break;
            }
        }
    }
    return first;
}

avl_status_t avl_stop_text_add(avl_stop_text_t *stop, const char *text, const char **out_p,
                               bool *found_p) {
    size_t bytes = stop->found ? 0 : strlen(text), before = stop->held_bytes, begin = 0;
    AVL_TRY(avl_grow(before + bytes + 1, 1, "text", &stop->held, &stop->held_capacity));
    memcpy(stop->held + before, text, bytes);
    stop->held_bytes += bytes;
    stop->held[stop->held_bytes] = '\0';
    for (size_t end = before + 1; end <= stop->held_bytes && !stop->found; end++) {
        if (!ends_at(stop, end, &begin))
            continue;
        stop->found = true;
        stop->held_bytes = begin;
        stop->held[begin] = '\0';
    }
    *found_p = stop->found;
    return show(stop, stop->found ? stop->held_bytes : unsettled(stop), out_p);
}

const char *avl_stop_text_finish(avl_stop_text_t *stop) {
    stop->held_bytes = 0;
    return stop->held != NULL ? stop->held : "";
}
