/* inputs/image.h: a picture's file bytes as 8-bit RGB, converted as Pillow's
 * Image.open(...).convert("RGB") does.
 *
 * JPEG (libjpeg-turbo; grey, YCbCr, CMYK and YCCK), PNG (libpng; grey, palette, alpha, 16 bit,
 * interlaced), WebP (libwebp). The format is found by the bytes, never by a name. Extents are read
 * and checked before pixels are decoded, so that a small file cannot claim a large picture's
 * memory. Only the first frame of an animation counts. EXIF orientation is not applied: the
 * reference processors do not apply it either. */
#ifndef AVL_INPUTS_IMAGE_H
#define AVL_INPUTS_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* 64 megapixels unless the caller says otherwise. */
#define AVL_IMAGE_PIXELS_MAX_DEFAULT INT64_C(67108864)

typedef struct avl_image {
    int width, height;
    uint8_t *rgb; /* [height, width, 3] */
} avl_image_t;

/* Errors: AVL_ERR_INVALID (empty, unknown format, corrupt or truncated: the library's own words),
 * AVL_ERR_TOO_LARGE (more than pixels_max), AVL_ERR_UNSUPPORTED, AVL_ERR_MEMORY. *image_p is set
 * only on success; avl_image_free releases it. */
AVL_MUST_CHECK avl_status_t avl_image_decode(const void *file, size_t file_bytes,
                                             int64_t pixels_max, avl_image_t *image_p);
/* Extents alone, from the header. Same errors. */
AVL_MUST_CHECK avl_status_t avl_image_probe(const void *file, size_t file_bytes, int *width_p,
                                            int *height_p);
void avl_image_free(avl_image_t *image);

#endif
