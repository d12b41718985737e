#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

#define LINE_BYTES 2048
#define FIELDS_BYTES 1024 /* of a line: fields are kept when a message is cut */

static const char *log_program = "avl";
static avl_log_level_t log_least = AVL_LOG_INFO;
static int log_json;
static avl_log_field_t log_tags[AVL_LOG_TAGS_MAX];
static size_t log_tag_count;
static const char *const level_names[] = {"debug", "info", "warn", "error"};

void avl_log_begin(const char *program, avl_log_level_t least, int json) {
    log_program = program;
    log_least = least;
    log_json = json;
    log_tag_count = 0;
}

void avl_log_tag(const char *name, int64_t value) {
    if (log_tag_count < AVL_LOG_TAGS_MAX)
        log_tags[log_tag_count++] = (avl_log_field_t)AVL_LOG_INTEGER(name, value);
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
 * UTF-8 would make a JSON line unreadable. `quoted`: it stands between quotes. Returns the bytes
 * taken from `text`. */
static size_t escape(const unsigned char *text, size_t bytes, bool quoted, char escaped[8]) {
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
        snprintf(escaped, 8, "%s%.*s", quoted && (text[0] == '"' || text[0] == '\\') ? "\\" : "",
                 (int)character, (const char *)text);
    return character;
}

static size_t append_escaped(char *line, size_t used, size_t capacity, const char *text,
                             bool quoted) {
    size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes && used + 8 < capacity;) {
        char escaped[8];
        at += escape((const unsigned char *)text + at, bytes - at, quoted, escaped);
        size_t escaped_bytes = strlen(escaped);
        memcpy(line + used, escaped, escaped_bytes);
        used += escaped_bytes;
    }
    return used;
}

/* Whether a readable line shows the text as it is: a word. */
static bool is_word(const char *text) {
    return text[0] != '\0' && strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                           "0123456789_-.:/+@%") == strlen(text);
}

/* One field into `text`; returns its bytes, 0 when it is left out. */
static size_t format_field(const avl_log_field_t *field, char *text, size_t text_bytes) {
    size_t used = (size_t)snprintf(text, text_bytes, log_json ? ",\"%s\":" : " %s=", field->name);
    if (used + 16 >= text_bytes)
        return 0;
    switch (field->kind) {
    case AVL_LOG_FIELD_INTEGER:
        return used +
               (size_t)snprintf(text + used, text_bytes - used, "%lld", (long long)field->integer);
    case AVL_LOG_FIELD_SECONDS:
        return used + (size_t)snprintf(text + used, text_bytes - used, "%.6f",
                                       (double)field->integer / 1e9);
    case AVL_LOG_FIELD_TEXT:
        break;
    }
    if (field->text == NULL)
        return 0;
    bool quoted = log_json || !is_word(field->text);
    if (quoted)
        text[used++] = '"';
    used = append_escaped(text, used, text_bytes - 1, field->text, quoted);
    if (quoted)
        text[used++] = '"';
    return used;
}

static size_t append_fields(char *line, size_t used, size_t capacity, const avl_log_field_t *fields,
                            size_t count) {
    for (size_t i = 0; i < count; i++) {
        char text[512];
        size_t bytes = format_field(&fields[i], text, sizeof text);
        if (bytes >= sizeof text || used + bytes > capacity)
            break;
        memcpy(line + used, text, bytes);
        used += bytes;
    }
    return used;
}

static size_t format_time(char *when, size_t when_bytes) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(when, when_bytes, "%Y-%m-%dT%H:%M:%S", &utc);
    return used +
           (size_t)snprintf(when + used, when_bytes - used, ".%03ldZ", now.tv_nsec / 1000000);
}

static void write_line(avl_log_level_t level, const avl_log_field_t *fields, size_t field_count,
                       const char *message) {
    char extra[FIELDS_BYTES];
    size_t extra_bytes = 0;
    if (!log_json && log_tag_count + field_count > 0)
        extra[extra_bytes++] = ' '; /* two blanks set the fields apart */
    extra_bytes = append_fields(extra, extra_bytes, sizeof extra, log_tags, log_tag_count);
    extra_bytes = append_fields(extra, extra_bytes, sizeof extra, fields, field_count);

    char line[LINE_BYTES], when[40];
    format_time(when, sizeof when);
    size_t used = (size_t)snprintf(
        line, sizeof line,
        log_json ? "{\"time\":\"%s\",\"level\":\"%s\",\"program\":\"%s\",\"message\":\""
                 : "%s %-5s %s: ",
        when, level_names[level], log_program);
    used = append_escaped(line, used, sizeof line - extra_bytes - 4, message, log_json);
    if (log_json)
        line[used++] = '"';
    memcpy(line + used, extra, extra_bytes);
    used += extra_bytes;
    if (log_json)
        line[used++] = '}';
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* nowhere left to report it */
}

void avl_log_write(avl_log_level_t level, const char *format, ...) {
    if (level < log_least)
        return;
    char message[LINE_BYTES / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    write_line(level, NULL, 0, message);
}

void avl_log_with(avl_log_level_t level, const avl_log_field_t *fields, size_t field_count,
                  const char *format, ...) {
    if (level < log_least)
        return;
    char message[LINE_BYTES / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    write_line(level, fields, field_count, message);
}
