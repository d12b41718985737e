#include "client/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

#include "base/clock.h"

#define BAR_CELLS 24
#define REDRAW_NS (50 * AVL_NS_PER_MS)
#define LINE_BYTES 256

void avl_progress_begin(avl_progress_t *progress) {
    memset(progress, 0, sizeof *progress);
    const char *terminal = getenv("TERM");
    progress->enabled =
        isatty(STDERR_FILENO) != 0 && (terminal == NULL || strcmp(terminal, "dumb") != 0);
}

/* Cells of the line that can be written without its wrapping, which \r could not undo. */
static int line_cells(void) {
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
        return 79;
    int cells = size.ws_col - 1;
    return cells < LINE_BYTES ? cells : LINE_BYTES - 1;
}

void avl_progress_show(avl_progress_t *progress, const char *label, uint64_t done, uint64_t total,
                       const char *unit) {
    if (!progress->enabled)
        return;
    int64_t now_ns = avl_clock_now_ns();
    bool same = progress->shown && strcmp(progress->label, label) == 0;
    if (same && now_ns - progress->last_ns < REDRAW_NS && done != total)
        return;
    progress->last_ns = now_ns;
    progress->shown = true;
    snprintf(progress->label, sizeof progress->label, "%s", label);
    char line[LINE_BYTES];
    if (total == 0) {
        snprintf(line, sizeof line, "%s ...", label);
    } else {
        if (done > total)
            done = total;
        char bar[BAR_CELLS + 1];
        size_t filled = (size_t)((double)BAR_CELLS * (double)done / (double)total);
        memset(bar, '.', BAR_CELLS);
        memset(bar, '#', filled < BAR_CELLS ? filled : BAR_CELLS);
        bar[BAR_CELLS] = '\0';
        snprintf(line, sizeof line, "%-18s [%s] %llu/%llu %s", label, bar, (unsigned long long)done,
                 (unsigned long long)total, unit);
    }
    fprintf(stderr, "\r\033[K%.*s", line_cells(), line);
    fflush(stderr);
}

void avl_progress_clear(avl_progress_t *progress) {
    if (!progress->shown)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    progress->shown = false;
}

void avl_terminal_write(FILE *stream, const char *text) {
    if (!isatty(fileno(stream))) {
        fputs(text, stream);
        return;
    }
    size_t left = strlen(text);
    while (left > 0) {
        utf8proc_int32_t character;
        utf8proc_ssize_t bytes =
            utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)left, &character);
        if (bytes <= 0) {
            fputs("\xef\xbf\xbd", stream);
            bytes = 1;
        } else if ((character < 0x20 && character != '\n' && character != '\t') ||
                   character == 0x7f) {
            fprintf(stream, "^%c", (int)character ^ 0x40);
        } else if (character < 0x80 || character >= 0xa0) { /* the rest, some terminals obey */
            fwrite(text, 1, (size_t)bytes, stream);
        }
        text += bytes;
        left -= (size_t)bytes;
    }
}

void avl_terminal_report(const char *program, avl_status_t status, const char *detail) {
    fprintf(stderr, "%s: %s: ", program, avl_status_name(status));
    avl_terminal_write(stderr, detail);
    fputc('\n', stderr);
}
