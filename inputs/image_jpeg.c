/* JPEG by libjpeg-turbo, with the settings Pillow leaves at their defaults (accurate integer DCT,
 * fancy upsampling), so that the pixels are Pillow's. The library leaves by longjmp; everything it
 * owns hangs on the decompressor, which one place destroys.
 *
 * Pillow accepts a file whose entropy-coded data are damaged, and shows grey or smeared blocks;
 * here that is an error, because an answer about such a picture would look like any other. Harmless
 * warnings (bytes between markers) pass. */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

#include "inputs/image_codec.h"

/* A progressive file may repeat scans without end, each costing time over the whole picture for a
 * few bytes. Encoders write about ten, whatever the picture's size; so many are always allowed,
 * more only while scans times pixels stay within a budget (a few seconds of the slowest kind of
 * decoding), and never more than anyone could mean. */
#define SCANS_ALWAYS 16
#define SCANS_MAX 100
#define SCANNED_PIXELS_MAX (INT64_C(1) << 29)

typedef struct jpeg_reader {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    avl_status_t status; /* recorded before the jump */
} jpeg_reader_t;

static jpeg_reader_t *reader_of(j_common_ptr info) {
    return info->client_data;
}

static avl_status_t status_of(int message) {
    switch (message) {
    case JERR_OUT_OF_MEMORY:
        return AVL_ERR_MEMORY;
    case JERR_BAD_PRECISION:
    case JERR_SOF_UNSUPPORTED:
    case JERR_ARITH_NOTIMPL:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_NOT_COMPILED:
    case JERR_NOTIMPL:
    case JERR_CCIR601_NOTIMPL:
    case JERR_FRACT_SAMPLE_NOTIMPL:
        return AVL_ERR_UNSUPPORTED;
    default:
        return AVL_ERR_INVALID;
    }
}

static void leave(j_common_ptr info) __attribute__((noreturn));

static void leave(j_common_ptr info) {
    char text[JMSG_LENGTH_MAX];
    jpeg_reader_t *reader = reader_of(info);
    info->err->format_message(info, text);
    reader->status = avl_fail(status_of(info->err->msg_code), "JPEG: %s", text);
    longjmp(reader->escape, 1);
}

static void on_message(j_common_ptr info, int level) {
    if (level >= 0)
        return;
    switch (info->err->msg_code) {
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_MUST_RESYNC:
    case JWRN_NOT_SEQUENTIAL:
    case JWRN_BOGUS_PROGRESSION:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_JPEG_EOF:
        leave(info);
    default:
        info->err->num_warnings++;
    }
}

static void on_output(j_common_ptr info) {
    (void)info; /* a library does not write to standard error */
}

static void on_progress(j_common_ptr info) {
    j_decompress_ptr decoder = (j_decompress_ptr)info;
    int scans = decoder->input_scan_number;
    int64_t pixels = (int64_t)decoder->image_width * decoder->image_height;
    if (scans <= SCANS_ALWAYS || (scans <= SCANS_MAX && scans * pixels <= SCANNED_PIXELS_MAX))
        return;
    jpeg_reader_t *reader = reader_of(info);
    reader->status = avl_fail(AVL_ERR_INVALID, "JPEG: %d scans of %u x %u pixels are too many",
                              scans, decoder->image_width, decoder->image_height);
    longjmp(reader->escape, 1);
}

static void choose_output(jpeg_reader_t *reader) {
    struct jpeg_decompress_struct *info = &reader->info;
    switch (info->num_components) {
    case 1:
    case 3:
        info->out_color_space = JCS_RGB;
        return;
    case 4:
        info->out_color_space = JCS_CMYK;
        return;
    default:
        reader->status =
            avl_fail(AVL_ERR_UNSUPPORTED, "JPEG: %d colour components", info->num_components);
        longjmp(reader->escape, 1);
    }
}

/* x * y / 255, rounded, for x and y of 8 bits. */
static unsigned scaled(unsigned x, unsigned y) {
    unsigned product = x * y + 128;
    return ((product >> 8) + product) >> 8;
}

/* Adobe writes ink inverted, and Pillow takes every CMYK file for one of Adobe's. */
static void cmyk_to_rgb(const uint8_t *cmyk, int width, uint8_t *rgb) {
    for (int x = 0; x < width; x++, cmyk += 4, rgb += 3) {
        unsigned light = cmyk[3];
        for (int c = 0; c < 3; c++)
            rgb[c] = (uint8_t)(light - scaled(255u - cmyk[c], light));
    }
}

static void read_rows(jpeg_reader_t *reader, const avl_image_t *image) {
    struct jpeg_decompress_struct *info = &reader->info;
    size_t row_bytes = (size_t)image->width * 3;
    JSAMPARRAY ink = NULL;
    if (info->out_color_space == JCS_CMYK)
        ink = info->mem->alloc_sarray((j_common_ptr)info, JPOOL_IMAGE, info->output_width * 4, 1);
    while (info->output_scanline < info->output_height) {
        size_t y = info->output_scanline;
        if (ink) {
            jpeg_read_scanlines(info, ink, 1);
            cmyk_to_rgb(ink[0], image->width, image->rgb + y * row_bytes);
            continue;
        }
        JSAMPROW rows[4]; /* more than one: the upsampler makes two at a time */
        JDIMENSION row_count = 0;
        for (; row_count < 4 && y + row_count < info->output_height; row_count++)
            rows[row_count] = image->rgb + (y + row_count) * row_bytes;
        jpeg_read_scanlines(info, rows, row_count);
    }
}

/* May leave by longjmp; holds nothing of its own. */
static void read_picture(jpeg_reader_t *reader, avl_image_job_t *job) {
    struct jpeg_decompress_struct *info = &reader->info;
    jpeg_create_decompress(info);
    reader->progress.progress_monitor = on_progress;
    info->progress = &reader->progress;
    jpeg_mem_src(info, job->file, job->file_bytes);
    jpeg_read_header(info, TRUE);
    reader->status = avl_image_claim(job, "JPEG", info->image_width, info->image_height);
    if (reader->status != AVL_OK || job->header_only)
        return;
    choose_output(reader);
    jpeg_start_decompress(info);
    read_rows(reader, &job->image);
    jpeg_finish_decompress(info);
}

avl_status_t avl_image_decode_jpeg(avl_image_job_t *job) {
    jpeg_reader_t reader;
    memset(&reader, 0, sizeof reader);
    reader.info.err = jpeg_std_error(&reader.errors);
    reader.errors.error_exit = leave;
    reader.errors.emit_message = on_message;
    reader.errors.output_message = on_output;
    reader.info.client_data = &reader;
    if (!setjmp(reader.escape))
        read_picture(&reader, job);
    jpeg_destroy_decompress(&reader.info);
    return reader.status;
}
