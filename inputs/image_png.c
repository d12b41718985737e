/* PNG by libpng. Alpha and tRNS are dropped, not composited; gamma and colour profiles are ignored;
 * 16-bit colour keeps its high byte, and 16-bit grey is clipped at 255, as Pillow's conversions do.
 * Ancillary chunks are skipped unread, so that their size and content cannot matter. Of an
 * animation the default picture is read.
 *
 * Unlike Pillow, a wrong checksum of picture data is an error. What follows the last row is not
 * read. */
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "inputs/image_codec.h"

typedef struct png_reader {
    png_structp png;
    png_infop info;
    const uint8_t *file;
    size_t file_bytes, offset_bytes;
    avl_status_t status;
} png_reader_t;

static void on_error(png_structp png, png_const_charp text) {
    png_reader_t *reader = png_get_error_ptr(png);
    if (reader->status == AVL_OK)
        reader->status = avl_fail(AVL_ERR_INVALID, "PNG: %s", text);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
    (void)png;
    (void)text; /* a library does not write to standard error */
}

static void on_read(png_structp png, png_bytep bytes, size_t byte_count) {
    png_reader_t *reader = png_get_io_ptr(png);
    if (byte_count > reader->file_bytes - reader->offset_bytes) {
        reader->status = avl_fail(AVL_ERR_INVALID, "PNG: the file ends early, after %zu bytes",
                                  reader->file_bytes);
        png_longjmp(png, 1);
    }
    memcpy(bytes, reader->file + reader->offset_bytes, byte_count);
    reader->offset_bytes += byte_count;
}

/* The row holds 8-bit indices in its first `width` bytes. Backwards, because each grows to three
 * bytes in place. A colour beyond the palette's end is the grey of its index, as in Pillow's fresh
 * palettes. */
static void expand_palette(png_reader_t *reader, const avl_image_t *image) {
    png_colorp colours = NULL;
    int colour_count = 0;
    png_get_PLTE(reader->png, reader->info, &colours, &colour_count);
    uint8_t table[256][3];
    for (int i = 0; i < 256; i++) {
        bool known = i < colour_count;
        table[i][0] = known ? colours[i].red : (uint8_t)i;
        table[i][1] = known ? colours[i].green : (uint8_t)i;
        table[i][2] = known ? colours[i].blue : (uint8_t)i;
    }
    size_t width = (size_t)image->width;
    for (size_t y = 0; y < (size_t)image->height; y++) {
        uint8_t *row = image->rgb + y * width * 3;
        for (size_t x = width; x-- > 0;)
            memcpy(row + 3 * x, table[row[x]], 3);
    }
}

/* The row holds big-endian 16-bit grey in its first 2 * `width` bytes. */
static void clip_grey16(const avl_image_t *image) {
    size_t width = (size_t)image->width;
    for (size_t y = 0; y < (size_t)image->height; y++) {
        uint8_t *row = image->rgb + y * width * 3;
        for (size_t x = width; x-- > 0;) {
            uint8_t grey = row[2 * x] ? 255 : row[2 * x + 1];
            memset(row + 3 * x, grey, 3);
        }
    }
}

static void set_transforms(png_reader_t *reader, int bits, int colour) {
    if (colour == PNG_COLOR_TYPE_PALETTE) {
        png_set_packing(reader->png);
        return;
    }
    if (colour == PNG_COLOR_TYPE_GRAY && bits == 16)
        return;
    if (bits == 16)
        png_set_strip_16(reader->png);
    if (colour == PNG_COLOR_TYPE_GRAY && bits < 8)
        png_set_expand_gray_1_2_4_to_8(reader->png);
    if (!(colour & PNG_COLOR_MASK_COLOR))
        png_set_gray_to_rgb(reader->png);
    if (colour & PNG_COLOR_MASK_ALPHA)
        png_set_strip_alpha(reader->png);
}

/* May leave by longjmp; holds nothing of its own. */
static void read_picture(png_reader_t *reader, avl_image_job_t *job) {
    png_structp png = reader->png;
    png_set_read_fn(png, reader, on_read);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX); /* ours follow */
    png_read_info(png, reader->info);
    int bits = png_get_bit_depth(png, reader->info);
    int colour = png_get_color_type(png, reader->info);
    reader->status = avl_image_claim(job, "PNG", png_get_image_width(png, reader->info),
                                     png_get_image_height(png, reader->info));
    if (reader->status != AVL_OK || job->header_only)
        return;
    set_transforms(reader, bits, colour);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, reader->info);
    size_t row_bytes = (size_t)job->image.width * 3;
    if (png_get_rowbytes(png, reader->info) > row_bytes) {
        reader->status =
            avl_fail(AVL_ERR_INTERNAL, "PNG: %d-bit colour type %d is not unpacked", bits, colour);
        return;
    }
    for (int pass = 0; pass < passes; pass++)
        for (size_t y = 0; y < (size_t)job->image.height; y++)
            png_read_row(png, job->image.rgb + y * row_bytes, NULL);
    if (colour == PNG_COLOR_TYPE_PALETTE)
        expand_palette(reader, &job->image);
    else if (colour == PNG_COLOR_TYPE_GRAY && bits == 16)
        clip_grey16(&job->image);
}

avl_status_t avl_image_decode_png(avl_image_job_t *job) {
    png_reader_t reader = {.file = job->file, .file_bytes = job->file_bytes};
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_error, on_warning);
    if (!reader.png)
        return avl_fail(AVL_ERR_MEMORY, "PNG: no memory for a decoder");
    reader.info = png_create_info_struct(reader.png);
    if (!reader.info) {
        png_destroy_read_struct(&reader.png, NULL, NULL);
        return avl_fail(AVL_ERR_MEMORY, "PNG: no memory for a decoder");
    }
    if (!setjmp(png_jmpbuf(reader.png)))
        read_picture(&reader, job);
    png_destroy_read_struct(&reader.png, &reader.info, NULL);
    return reader.status;
}
