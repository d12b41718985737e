/* inputs/resample.h: Pillow's Image.resize for 8-bit RGB, bit for bit.
 *
 * Two passes, horizontal and then vertical, each with weights rounded to 22 fractional bits and a
 * result rounded to 8 bits; for AVL_RESAMPLE_NEAREST, one look-up. Only a window of the resized
 * picture is computed: the centre of a very long picture costs no more than that of a square one.
 */
#ifndef AVL_INPUTS_RESAMPLE_H
#define AVL_INPUTS_RESAMPLE_H

#include <stdint.h>

#include "base/status.h"
#include "checkpoint/config.h"
#include "inputs/image.h"

/* A picture on a larger field of one colour. The field is never made: its rows come into being as
 * they are read. */
typedef struct avl_resample_source {
    const avl_image_t *image;
    int left, top; /* of the picture on the field */
    int field_width,
        field_height;  /* of the whole field; the picture's own extents when there is no border */
    uint8_t colour[3]; /* of the border */
} avl_resample_source_t;

typedef struct avl_resample_window {
    int left, top, width, height; /* in pixels of the resized field */
} avl_resample_window_t;

/* The window `window` of the field resized to `width` x `height`.
 *
 * rgb: [window.height, window.width, 3], written whole.
 * Errors: AVL_ERR_INVALID (no pixels, window outside), AVL_ERR_MEMORY. Threads: any number at once.
 */
AVL_MUST_CHECK avl_status_t avl_resample_rgb(avl_resample_t filter,
                                             const avl_resample_source_t *source, int width,
                                             int height, const avl_resample_window_t *window,
                                             uint8_t *rgb);

/* For tests: use the portable loops even where faster ones exist. */
void avl_resample_set_portable(int portable);

#endif
