/* tools/gpu_check/picture.c: stands in for the decoders of pictures, whose libraries a GPU machine
 * may lack. gpu-check has unpacked the reference cases' PNGs (Python has zlib): "AVLRGB", width and
 * height as 32-bit words, then the rows. */
#include "inputs/image.h"

#include <stdlib.h>
#include <string.h>

static const char magic[] = "AVLRGB";
enum { HEADER_BYTES = 14 };

avl_status_t avl_image_probe(const void *file, size_t file_bytes, int *width_p, int *height_p) {
    int32_t extents[2];
    if (file_bytes < HEADER_BYTES || memcmp(file, magic, sizeof magic - 1) != 0)
        return avl_fail(AVL_ERR_INVALID, "not a picture that gpu-check has unpacked");
    memcpy(extents, (const char *)file + 6, sizeof extents);
    if (extents[0] < 1 || extents[1] < 1 || extents[0] > 1 << 14 || extents[1] > 1 << 14)
        return avl_fail(AVL_ERR_INVALID, "a picture of %d x %d", extents[0], extents[1]);
    *width_p = extents[0];
    *height_p = extents[1];
    return AVL_OK;
}

avl_status_t avl_image_decode(const void *file, size_t file_bytes, int64_t pixels_max,
                              avl_image_t *image_p) {
    (void)pixels_max;
    avl_image_t image = {0};
    AVL_TRY(avl_image_probe(file, file_bytes, &image.width, &image.height));
    size_t bytes = (size_t)image.width * (size_t)image.height * 3;
    if (file_bytes != HEADER_BYTES + bytes)
        return avl_fail(AVL_ERR_INVALID, "a picture of %zu bytes; expected %zu", file_bytes,
                        HEADER_BYTES + bytes);
    image.rgb = malloc(bytes);
    if (image.rgb == NULL)
        return avl_fail(AVL_ERR_MEMORY, "no memory for a picture");
    memcpy(image.rgb, (const char *)file + HEADER_BYTES, bytes);
    *image_p = image;
    return AVL_OK;
}

void avl_image_free(avl_image_t *image) {
    free(image->rgb);
    *image = (avl_image_t){0};
}
