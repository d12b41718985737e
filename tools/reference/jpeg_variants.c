/* Writes the JPEG kinds that Pillow cannot write: for tools/reference/images.py, which compiles and
 * runs it.
 *
 *   jpeg_variants KIND WIDTH HEIGHT <raw samples >file.jpg
 *
 * KIND: 440, 411, 410 (RGB samples; chroma sampling), rgb (no colour transform), arithmetic,
 * restart, ycck, cmyk (four samples a pixel, Adobe's marker), cmyk-plain (without the marker). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    const char *kind = argv[1];
    int width = atoi(argv[2]), height = atoi(argv[3]);
    int ink = strcmp(kind, "ycck") == 0 || strncmp(kind, "cmyk", 4) == 0;
    size_t row_bytes = (size_t)width * (ink ? 4 : 3);
    unsigned char *row = malloc(row_bytes);
    struct jpeg_compress_struct info;
    struct jpeg_error_mgr errors;
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    jpeg_stdio_dest(&info, stdout);
    info.image_width = (JDIMENSION)width;
    info.image_height = (JDIMENSION)height;
    info.input_components = ink ? 4 : 3;
    info.in_color_space = ink ? JCS_CMYK : JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, 80, TRUE);
    if (strcmp(kind, "440") == 0 || strcmp(kind, "411") == 0 || strcmp(kind, "410") == 0) {
        info.comp_info[0].h_samp_factor = kind[1] == '4' ? 1 : 4;
        info.comp_info[0].v_samp_factor = kind[2] == '0' ? 2 : 1;
    } else if (strcmp(kind, "rgb") == 0) {
        jpeg_set_colorspace(&info, JCS_RGB);
    } else if (strcmp(kind, "arithmetic") == 0) {
        info.arith_code = TRUE;
    } else if (strcmp(kind, "restart") == 0) {
        info.restart_interval = 3;
    } else if (strcmp(kind, "ycck") == 0) {
        jpeg_set_colorspace(&info, JCS_YCCK);
    } else if (strcmp(kind, "cmyk-plain") == 0) {
        info.write_Adobe_marker = FALSE;
    }
    jpeg_start_compress(&info, TRUE);
    for (int y = 0; y < height && fread(row, 1, row_bytes, stdin) == row_bytes; y++)
        jpeg_write_scanlines(&info, &row, 1);
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    free(row);
    return 0;
}
