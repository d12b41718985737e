/* base/log.h: one line a fact on standard error, readable or JSON.
 *
 * Text:  2026-01-31T12:00:00.123Z info  coordinator: message  request=7 name=a1
 * JSON:  {"time":"2026-01-31T12:00:00.123Z","level":"info","program":"coordinator","message":"...",
 *         "request":7,"name":"a1"}
 *
 * Fields are what machines look for: ids, durations, counts. A message need not repeat them.
 * Threads: any thread may log; a line is written by one write(2), so lines never mix. */
#ifndef AVL_BASE_LOG_H
#define AVL_BASE_LOG_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef enum avl_log_level {
    AVL_LOG_DEBUG,
    AVL_LOG_INFO,
    AVL_LOG_WARN,
    AVL_LOG_ERROR,
} avl_log_level_t;

/* Call once at start, before other threads exist. `program` is kept, not copied. */
void avl_log_begin(const char *program, avl_log_level_t least, int json);
/* "debug", "info", "warn", "error". Errors: AVL_ERR_INVALID. */
AVL_MUST_CHECK avl_status_t avl_log_level_parse(const char *name, avl_log_level_t *level_p);

typedef enum avl_log_field_kind {
    AVL_LOG_FIELD_TEXT,
    AVL_LOG_FIELD_INTEGER,
    AVL_LOG_FIELD_SECONDS, /* of nanoseconds */
} avl_log_field_kind_t;

typedef struct avl_log_field {
    const char *name; /* letters, digits and _, other than time, level, program and message */
    avl_log_field_kind_t kind;
    const char *text; /* any bytes; NULL: the field is left out */
    int64_t integer;
} avl_log_field_t;

#define AVL_LOG_TEXT(field_name, value)                                                            \
    { .name = (field_name), .kind = AVL_LOG_FIELD_TEXT, .text = (value) }
#define AVL_LOG_INTEGER(field_name, value)                                                         \
    { .name = (field_name), .kind = AVL_LOG_FIELD_INTEGER, .integer = (int64_t)(value) }
#define AVL_LOG_SECONDS(field_name, duration_ns)                                                   \
    { .name = (field_name), .kind = AVL_LOG_FIELD_SECONDS, .integer = (duration_ns) }

#define AVL_LOG_TAGS_MAX 4
/* An integer field of every line from now on (which group, which rank). Before other threads exist;
 * `name` is kept, not copied. At most AVL_LOG_TAGS_MAX; further ones are ignored. */
void avl_log_tag(const char *name, int64_t value);

void avl_log_write(avl_log_level_t level, const char *format, ...) AVL_PRINTF(2, 3);
/* A line with fields; those that no longer fit are left out, the last ones first. */
void avl_log_with(avl_log_level_t level, const avl_log_field_t *fields, size_t field_count,
                  const char *format, ...) AVL_PRINTF(4, 5);

#define avl_log_debug(...) avl_log_write(AVL_LOG_DEBUG, __VA_ARGS__)
#define avl_log_info(...) avl_log_write(AVL_LOG_INFO, __VA_ARGS__)
#define avl_log_warn(...) avl_log_write(AVL_LOG_WARN, __VA_ARGS__)
#define avl_log_error(...) avl_log_write(AVL_LOG_ERROR, __VA_ARGS__)

#endif
