/* Finds the format by the first bytes, bounds the extents, owns the pixels. The formats are in
 * image_jpeg.c, image_png.c and image_webp.c. Refuses every other format: fewer decoders, fewer
 * doors. */
#include "inputs/image.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "inputs/image_codec.h"

avl_status_t avl_image_claim(avl_image_job_t *job, const char *format, int64_t width,
                             int64_t height) {
    if (width <= 0 || height <= 0)
        return avl_fail(AVL_ERR_INVALID, "%s picture of %lld x %lld pixels is empty", format,
                        (long long)width, (long long)height);
    if (width > AVL_IMAGE_EXTENT_MAX || height > AVL_IMAGE_EXTENT_MAX)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "%s picture of %lld x %lld pixels: no side may exceed %d", format,
                        (long long)width, (long long)height, AVL_IMAGE_EXTENT_MAX);
    if (width * height > job->pixels_max)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "%s picture of %lld x %lld pixels: at most %lld pixels are accepted",
                        format, (long long)width, (long long)height, (long long)job->pixels_max);
    if (!job->header_only)
        AVL_TRY(avl_alloc((size_t)width * (size_t)height, 3, "a picture", &job->image.rgb));
    job->image.width = (int)width;
    job->image.height = (int)height;
    return AVL_OK;
}

static avl_status_t run(avl_image_job_t *job) {
    static const uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    const uint8_t *file = job->file;
    if (!file || job->file_bytes == 0)
        return avl_fail(AVL_ERR_INVALID, "the picture's file is empty");
    if (job->file_bytes >= 3 && file[0] == 0xff && file[1] == 0xd8 && file[2] == 0xff)
        return avl_image_decode_jpeg(job);
    if (job->file_bytes >= sizeof png && memcmp(file, png, sizeof png) == 0)
        return avl_image_decode_png(job);
    if (job->file_bytes >= 12 && memcmp(file, "RIFF", 4) == 0 && memcmp(file + 8, "WEBP", 4) == 0)
        return avl_image_decode_webp(job);
    char start[3 * 8 + 1] = "";
    for (size_t i = 0; i < 8 && i < job->file_bytes; i++) {
        static const char digits[] = "0123456789abcdef";
        start[3 * i] = digits[file[i] >> 4];
        start[3 * i + 1] = digits[file[i] & 15];
        start[3 * i + 2] = ' ';
        start[3 * i + 3] = '\0';
    }
    return avl_fail(AVL_ERR_INVALID,
                    "%zu bytes starting with %sare no picture that is known (JPEG, PNG, WebP)",
                    job->file_bytes, start);
}

avl_status_t avl_image_decode(const void *file, size_t file_bytes, int64_t pixels_max,
                              avl_image_t *image_p) {
    avl_image_job_t job = {.file = file, .file_bytes = file_bytes, .pixels_max = pixels_max};
    avl_status_t status = run(&job);
    if (status != AVL_OK) {
        avl_image_free(&job.image);
        return status;
    }
    *image_p = job.image;
    return AVL_OK;
}

avl_status_t avl_image_probe(const void *file, size_t file_bytes, int *width_p, int *height_p) {
    avl_image_job_t job = {
        .file = file, .file_bytes = file_bytes, .pixels_max = INT64_MAX, .header_only = true};
    AVL_TRY(run(&job));
    *width_p = job.image.width;
    *height_p = job.image.height;
    return AVL_OK;
}

void avl_image_free(avl_image_t *image) {
    free(image->rgb);
    *image = (avl_image_t){0};
}
