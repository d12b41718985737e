/* base/log.h: one line a fact on standard error, readable or JSON.
 *
 * Text:  2026-01-31T12:00:00.123Z info  coordinator: message
 * JSON:  {"time":"2026-01-31T12:00:00.123Z","level":"info","program":"coordinator","message":"..."}
 *
 * Threads: any thread may log; a line is written by one write(2), so lines never mix. */
#ifndef AVL_BASE_LOG_H
#define AVL_BASE_LOG_H

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

void avl_log_write(avl_log_level_t level, const char *format, ...) AVL_PRINTF(2, 3);

#define avl_log_debug(...) avl_log_write(AVL_LOG_DEBUG, __VA_ARGS__)
#define avl_log_info(...) avl_log_write(AVL_LOG_INFO, __VA_ARGS__)
#define avl_log_warn(...) avl_log_write(AVL_LOG_WARN, __VA_ARGS__)
#define avl_log_error(...) avl_log_write(AVL_LOG_ERROR, __VA_ARGS__)

#endif
