#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

#define LINE_BYTES 2048

static const char *log_program = "avl";
static avl_log_level_t log_least = AVL_LOG_INFO;
static int log_json;
static const char *const level_names[] = {"debug", "info", "warn", "error"};

void avl_log_begin(const char *program, avl_log_level_t least, int json) {
    log_program = program;
    log_least = least;
    log_json = json;
}

avl_status_t avl_log_level_parse(const char *name, avl_log_level_t *level_p) {
    for (int level = AVL_LOG_DEBUG; level <= AVL_LOG_ERROR; level++) {
        if (strcmp(name, level_names[level]) == 0) {
            *level_p = (avl_log_level_t)level;
            return AVL_OK;
        }
    }
    return avl_fail(AVL_ERR_INVALID, "unknown log level \"%s\": use debug, info, warn or error",
                    name);
}

/* The character at `text` as it goes into a line: control characters (C1 ones, too, which terminals
 * obey) never reach a terminal raw, since a client's text may end up here, and bytes that are not
 * UTF-8 would make a JSON line unreadable. Returns the bytes taken from `text`. */
static size_t escape(const unsigned char *text, size_t bytes, char escaped[8]) {
    size_t character = avl_utf8_character(text, bytes);
    if (character == 0) {
        snprintf(escaped, 8, log_json ? "\\ufffd" : "\\x%02x", text[0]);
        return 1;
    }
    bool c1 = character == 2 && text[0] == 0xc2 && text[1] < 0xa0;
    if (text[0] == '\n')
        snprintf(escaped, 8, "\\n");
    else if (text[0] < 0x20 || text[0] == 0x7f || c1)
        snprintf(escaped, 8, "\\u%04x", c1 ? text[1] : text[0]);
    else
        snprintf(escaped, 8, "%s%.*s", log_json && (text[0] == '"' || text[0] == '\\') ? "\\" : "",
                 (int)character, (const char *)text);
    return character;
}

static size_t append_escaped(char *line, size_t used, size_t capacity, const char *text) {
    size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes && used + 8 < capacity;) {
        char escaped[8];
        at += escape((const unsigned char *)text + at, bytes - at, escaped);
        size_t escaped_bytes = strlen(escaped);
        memcpy(line + used, escaped, escaped_bytes);
        used += escaped_bytes;
    }
    return used;
}

void avl_log_write(avl_log_level_t level, const char *format, ...) {
    if (level < log_least)
        return;
    char message[LINE_BYTES / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);

    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    char when[40];
    size_t when_bytes = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(when + when_bytes, sizeof when - when_bytes, ".%03ldZ", now.tv_nsec / 1000000);

    char line[LINE_BYTES];
    size_t used = (size_t)snprintf(
        line, sizeof line,
        log_json ? "{\"time\":\"%s\",\"level\":\"%s\",\"program\":\"%s\",\"message\":\""
                 : "%s %-5s %s: ",
        when, level_names[level], log_program);
    used = append_escaped(line, used, sizeof line - 4, message);
    if (log_json) {
        line[used++] = '"';
        line[used++] = '}';
    }
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* nowhere left to report it */
}
