/* inputs/image_codec.h: what the picture formats share; private to inputs/image*.c.
 *
 * A codec reads the header, calls avl_image_claim() before it decodes a pixel, and then writes rows
 * of 8-bit RGB. With `header_only` it stops after the claim, which then allocates nothing. On
 * failure the codec leaves nothing behind: the caller releases image->rgb. */
#ifndef AVL_INPUTS_IMAGE_CODEC_H
#define AVL_INPUTS_IMAGE_CODEC_H

#include <stdbool.h>

#include "inputs/image.h"

/* Largest width or height. JPEG itself ends at 65500 and WebP at 16383; the bound keeps row
 * buffers, which grow with one extent alone, from being the way around pixels_max. */
#define AVL_IMAGE_EXTENT_MAX 65535

typedef struct avl_image_job {
    const uint8_t *file;
    size_t file_bytes;
    int64_t pixels_max;
    bool header_only;
    avl_image_t image; /* rgb is NULL until the claim */
} avl_image_job_t;

/* Checks the extents and, unless only the header is wanted, allocates the pixels (zeroed). */
AVL_MUST_CHECK avl_status_t avl_image_claim(avl_image_job_t *job, const char *format, int64_t width,
                                            int64_t height);

AVL_MUST_CHECK avl_status_t avl_image_decode_jpeg(avl_image_job_t *job);
AVL_MUST_CHECK avl_status_t avl_image_decode_png(avl_image_job_t *job);
AVL_MUST_CHECK avl_status_t avl_image_decode_webp(avl_image_job_t *job);

#endif
