#include "client/terminal.h"

#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define BAR_CELLS 24
#define REDRAW_NS (50 * AVL_NS_PER_MS)

void avl_progress_begin(avl_progress_t *progress) {
    memset(progress, 0, sizeof *progress);
    progress->enabled = isatty(STDERR_FILENO) != 0;
}

void avl_progress_show(avl_progress_t *progress, const char *label, uint32_t done, uint32_t total,
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
    if (total == 0) {
        fprintf(stderr, "\r\033[K%s ...", label);
    } else {
        if (done > total)
            done = total;
        char bar[BAR_CELLS + 1];
        uint32_t filled = (uint32_t)((uint64_t)BAR_CELLS * done / total);
        memset(bar, '.', BAR_CELLS);
        memset(bar, '#', filled);
        bar[BAR_CELLS] = '\0';
        fprintf(stderr, "\r\033[K%-18s [%s] %u/%u %s", label, bar, done, total, unit);
    }
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
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if ((*c < 0x20 && *c != '\n' && *c != '\t') || *c == 0x7f)
            fprintf(stream, "^%c", *c ^ 0x40);
        else if (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0)
            c++; /* the C1 controls, which some terminals obey */
        else
            fputc(*c, stream);
    }
}
