#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

static _Thread_local char detail[AVL_STATUS_DETAIL_BYTES];

/* Texts quote what clients and files contain, and cut it anywhere; but they travel in messages that
 * must be UTF-8. */
static void record(char *text) {
    size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes;) {
        size_t character = avl_utf8_character((const unsigned char *)text + at, bytes - at);
        if (character == 0)
            text[at] = '?';
        at += character > 0 ? character : 1;
    }
    memcpy(detail, text, bytes + 1);
}

avl_status_t avl_fail(avl_status_t status, const char *format, ...) {
    /* Through a second buffer, because an argument may be the recorded text itself. */
    char text[AVL_STATUS_DETAIL_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    record(text);
    return status;
}

avl_status_t avl_fail_in(avl_status_t status, const char *format, ...) {
    char text[AVL_STATUS_DETAIL_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    size_t context_bytes = strlen(text);
    snprintf(text + context_bytes, sizeof text - context_bytes, ": %s", detail);
    record(text);
    return status;
}

const char *avl_status_detail(void) {
    return detail;
}

const char *avl_status_name(avl_status_t status) {
    switch (status) {
    case AVL_OK:
        return "OK";
    case AVL_ERR_INVALID:
        return "INVALID";
    case AVL_ERR_NOT_FOUND:
        return "NOT_FOUND";
    case AVL_ERR_UNSUPPORTED:
        return "UNSUPPORTED";
    case AVL_ERR_TOO_LARGE:
        return "TOO_LARGE";
    case AVL_ERR_EXHAUSTED:
        return "EXHAUSTED";
    case AVL_ERR_DEADLINE:
        return "DEADLINE";
    case AVL_ERR_CANCELLED:
        return "CANCELLED";
    case AVL_ERR_UNAVAILABLE:
        return "UNAVAILABLE";
    case AVL_ERR_IO:
        return "IO";
    case AVL_ERR_DATA:
        return "DATA";
    case AVL_ERR_MEMORY:
        return "MEMORY";
    case AVL_ERR_SHAPE:
        return "SHAPE";
    case AVL_ERR_DEVICE:
        return "DEVICE";
    case AVL_ERR_COMM:
        return "COMM";
    case AVL_ERR_TIMEOUT:
        return "TIMEOUT";
    case AVL_ERR_PEER:
        return "PEER";
    case AVL_ERR_INTERNAL:
        return "INTERNAL";
    }
    return "UNKNOWN";
}

void avl_assert_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}
