/* client/terminal.h: what a person sees: one progress line on standard error, and model text made
 * safe for a terminal. */
#ifndef AVL_CLIENT_TERMINAL_H
#define AVL_CLIENT_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* A progress line that rewrites itself; silent when standard error is not a terminal. */
typedef struct avl_progress {
    bool enabled;
    bool shown;
    int64_t last_ns;
    char label[64];
} avl_progress_t;

void avl_progress_begin(avl_progress_t *progress);
/* "label  [#####.....]  done/total unit"; total 0 shows the label alone. A new label is drawn at
 * once, the rest at most 20 times a second. */
void avl_progress_show(avl_progress_t *progress, const char *label, uint32_t done, uint32_t total,
                       const char *unit);
/* Removes the line. */
void avl_progress_clear(avl_progress_t *progress);

/* Writes text to `stream`. On a terminal, control characters other than newline and tab become
 * visible ("^["), so that a model cannot steer the terminal; elsewhere the bytes stay as they are.
 */
void avl_terminal_write(FILE *stream, const char *text);

#endif
