/* client/terminal.h: what a person sees: one progress line on standard error, and foreign text made
 * safe for a terminal. */
#ifndef AVL_CLIENT_TERMINAL_H
#define AVL_CLIENT_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

/* A progress line that rewrites itself; silent when standard error is no terminal, or a dumb one.
 */
typedef struct avl_progress {
    bool enabled;
    bool shown;
    int64_t last_ns;
    char label[64];
} avl_progress_t;

void avl_progress_begin(avl_progress_t *progress);
/* "label  [#####.....]  done/total unit"; total 0 shows the label alone. Cut to the terminal's
 * width. A new label is drawn at once, the rest at most 20 times a second. */
void avl_progress_show(avl_progress_t *progress, const char *label, uint64_t done, uint64_t total,
                       const char *unit);
/* Removes the line. */
void avl_progress_clear(avl_progress_t *progress);

/* Writes text to `stream`. On a terminal, control characters other than newline and tab become
 * visible ("^["), C1 controls vanish and bytes that are no UTF-8 become U+FFFD, so that whoever
 * wrote the text cannot steer the terminal; elsewhere the bytes stay as they are. Whether that
 * failed, ferror(stream) tells. */
void avl_terminal_write(FILE *stream, const char *text);

/* Prints "program: STATUS: detail" on standard error, the detail made safe. */
void avl_terminal_report(const char *program, avl_status_t status, const char *detail);

#endif
