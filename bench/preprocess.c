/* Pictures per second and core: decoding, resizing, and all of preprocessing, for pictures of one
 * megapixel.
 *
 *   bench_preprocess [--save DIRECTORY] [--seconds S]
 *
 * The pictures are made here: gradients, edges and noise, encoded as cameras and browsers do (JPEG
 * 4:2:0 at quality 85, PNG level 6, WebP at quality 80). --save keeps them, so that
 * tools/reference/bench_preprocess.py can time Pillow on the very same files. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <png.h>
#include <webp/encode.h>

#include "base/clock.h"
#include "inputs/preprocess.h"
#include "inputs/resample.h"

#define WIDTH 1152
#define HEIGHT 864 /* 0.995 megapixels, 4 : 3 */

typedef struct file {
    const char *name;
    uint8_t *bytes;
    size_t byte_count;
} file_t;

static uint8_t level(double value) {
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static uint8_t *make_scene(void) {
    uint8_t *rgb = malloc((size_t)WIDTH * HEIGHT * 3), *pixel = rgb;
    uint64_t random = 88172645463325252u;
    for (int y = 0; y < HEIGHT && rgb; y++) {
        for (int x = 0; x < WIDTH; x++, pixel += 3) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            double noise = (double)(random >> 60) - 7.5;
            double light =
                110 + 70 * sin(x / 91.0) * cos(y / 67.0) + ((x / 150 + y / 110) % 2) * 40;
            pixel[0] = level(light + noise + 20);
            pixel[1] = level(light + noise + 40 * sin(y / 31.0));
            pixel[2] = level(200 - light + noise);
        }
    }
    return rgb;
}

static file_t encode_jpeg(uint8_t *rgb) {
    file_t file = {.name = "jpeg"};
    struct jpeg_compress_struct info;
    struct jpeg_error_mgr errors;
    unsigned long byte_count = 0;
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, &file.bytes, &byte_count);
    info.image_width = WIDTH;
    info.image_height = HEIGHT;
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, 85, TRUE);
    jpeg_start_compress(&info, TRUE);
    for (size_t y = 0; y < HEIGHT; y++) {
        JSAMPROW row = rgb + y * WIDTH * 3;
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    file.byte_count = byte_count;
    return file;
}

static file_t encode_png(const uint8_t *rgb) {
    file_t file = {.name = "png"};
    png_image image = {
        .version = PNG_IMAGE_VERSION, .width = WIDTH, .height = HEIGHT, .format = PNG_FORMAT_RGB};
    png_alloc_size_t byte_count = PNG_IMAGE_PNG_SIZE_MAX(image);
    file.bytes = malloc(byte_count);
    if (!file.bytes || !png_image_write_to_memory(&image, file.bytes, &byte_count, 0, rgb, 0, NULL))
        return (file_t){0};
    file.byte_count = byte_count;
    return file;
}

static file_t encode_webp(const uint8_t *rgb) {
    file_t file = {.name = "webp"};
    file.byte_count = WebPEncodeRGB(rgb, WIDTH, HEIGHT, WIDTH * 3, 80, &file.bytes);
    return file;
}

static avl_config_t clip_336(void) {
    return (avl_config_t){
        .model = {.family = AVL_FAMILY_LLAVA,
                  .vision = {.image_side = 336, .patch_side = 14, .patches_per_side = 24},
                  .feature_drop_class = true},
        .preprocessor = {.resize = true,
                         .center_crop = true,
                         .resize_shortest_edge = 336,
                         .crop_height = 336,
                         .crop_width = 336,
                         .resample = AVL_RESAMPLE_BICUBIC}};
}

static avl_config_t next_336(void) {
    static const int grids[][2] = {{1, 2}, {2, 1}, {2, 2}, {3, 1}, {1, 3}};
    avl_config_t config = clip_336();
    config.model.family = AVL_FAMILY_LLAVA_NEXT;
    config.preprocessor.pad = true;
    for (int i = 0; i < 5; i++) {
        config.preprocessor.grid_pinpoints[i].height = grids[i][0] * 336;
        config.preprocessor.grid_pinpoints[i].width = grids[i][1] * 336;
    }
    config.preprocessor.grid_pinpoint_count = 5;
    return config;
}

/* One thing to time; returns false when it failed. */
typedef struct work {
    const file_t *file;         /* NULL: no decoding */
    const avl_image_t *image;   /* used where there is no file */
    const avl_config_t *config; /* NULL: no preprocessing */
    int resize;                 /* resize to this square instead */
} work_t;

static bool resize(const avl_image_t *image, int side) {
    avl_resample_source_t source = {
        .image = image, .field_width = image->width, .field_height = image->height};
    avl_resample_window_t window = {.width = side, .height = side};
    uint8_t *rgb = malloc((size_t)side * (size_t)side * 3);
    bool done =
        rgb && avl_resample_rgb(AVL_RESAMPLE_BICUBIC, &source, side, side, &window, rgb) == AVL_OK;
    free(rgb);
    return done;
}

static bool run(const work_t *work) {
    avl_image_t decoded = {0};
    const avl_image_t *image = work->image;
    if (work->file) {
        if (avl_image_decode(work->file->bytes, work->file->byte_count,
                             AVL_IMAGE_PIXELS_MAX_DEFAULT, &decoded) != AVL_OK)
            return false;
        image = &decoded;
    }
    bool done = true;
    if (work->resize)
        done = resize(image, work->resize);
    if (work->config) {
        avl_pixels_t pixels;
        done = avl_preprocess(work->config, image, &pixels) == AVL_OK;
        if (done)
            avl_pixels_free(&pixels);
    }
    avl_image_free(&decoded);
    return done;
}

static int time_work(const char *name, const work_t *work, double seconds) {
    int64_t begin_ns = 0, now_ns = 0, end_ns = 0;
    int count = -2; /* two to warm up */
    do {
        if (count == 0) {
            begin_ns = avl_clock_now_ns();
            end_ns = begin_ns + (int64_t)(seconds * 1e9);
        }
        if (!run(work)) {
            fprintf(stderr, "%s: %s\n", name, avl_status_detail());
            return 1;
        }
        count++;
        now_ns = avl_clock_now_ns();
    } while (count < 1 || now_ns < end_ns);
    double each_ms = (double)(now_ns - begin_ns) / 1e6 / count;
    printf("%-28s %8.2f ms %8.1f /s\n", name, each_ms, 1000 / each_ms);
    return 0;
}

static int save(const char *directory, const file_t *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s/scene.%s", directory, file->name);
    FILE *stream = fopen(path, "wb");
    if (!stream || fwrite(file->bytes, 1, file->byte_count, stream) != file->byte_count) {
        perror(path);
        if (stream)
            fclose(stream);
        return 1;
    }
    return fclose(stream) != 0;
}

static int bench(const file_t *files, int file_count, const avl_image_t *image, double seconds) {
    avl_config_t clip = clip_336(), next = next_336();
    int failed = 0;
    printf("%d x %d, one thread\n", WIDTH, HEIGHT);
    for (int i = 0; i < file_count; i++) {
        char name[64];
        const struct {
            const char *what;
            const avl_config_t *config;
        } kinds[] = {{"decode", NULL}, {"to clip 336", &clip}, {"to next 336", &next}};
        for (int k = 0; k < 3; k++) {
            work_t work = {.file = &files[i], .config = kinds[k].config};
            snprintf(name, sizeof name, "%s (%zu kB) %s", files[i].name, files[i].byte_count / 1000,
                     kinds[k].what);
            failed |= time_work(name, &work, seconds);
        }
    }
    const work_t small = {.image = image, .resize = 336}, large = {.image = image, .resize = 672};
    const work_t steps = {.image = image, .config = &clip},
                 grid = {.image = image, .config = &next};
    failed |= time_work("resize to 336 x 336", &small, seconds);
    failed |= time_work("resize to 672 x 672", &large, seconds);
    failed |= time_work("clip 336 without decoding", &steps, seconds);
    failed |= time_work("next 336 without decoding", &grid, seconds);
    avl_resample_set_portable(1);
    failed |= time_work("resize to 336, portable", &small, seconds);
    avl_resample_set_portable(0);
    return failed;
}

int main(int argc, char **argv) {
    const char *directory = NULL;
    double seconds = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--save") == 0)
            directory = argv[i + 1];
        else if (strcmp(argv[i], "--seconds") == 0)
            seconds = atof(argv[i + 1]);
    }
    uint8_t *rgb = make_scene();
    if (!rgb)
        return 1;
    avl_image_t image = {.width = WIDTH, .height = HEIGHT, .rgb = rgb};
    file_t files[] = {encode_jpeg(rgb), encode_png(rgb), encode_webp(rgb)};
    int failed = 0;
    for (int i = 0; i < 3; i++) {
        if (files[i].byte_count == 0)
            return 1;
        if (directory)
            failed |= save(directory, &files[i]);
    }
    failed |= bench(files, 3, &image, seconds);
    free(files[0].bytes);
    free(files[1].bytes);
    WebPFree(files[2].bytes);
    free(rgb);
    return failed;
}
