/* The steps of CLIPImageProcessor, LlavaImageProcessor (do_pad) and LlavaNextImageProcessor of
 * `transformers` 4.46, whose roundings it repeats, in 8 bits until the end as they do with PIL.
 *
 *   llava       [pad to a square with the mean colour] -> resize -> centre crop
 *
 *   llava_next  tile 0: resize to the square -> the llava steps;
 *               tiles 1..: resize to fit the grid, pad with black, cut into squares -> the llava
 *               steps each
 *
 * One rounding is easy to miss: a picture that leaves an odd number of pixels free on the grid is
 * padded by the same number on both sides, so that the grid is one pixel short and its last tiles
 * are resized by one pixel. */
#include "inputs/preprocess.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "inputs/resample.h"

/* Of the square that do_pad makes. The square is never stored, but its rows are walked: about a
 * second at this size. */
#define PADDED_SIDE_MAX 32768

typedef struct extents {
    int width, height;
} extents_t;

/* get_resize_output_image_size */
static avl_status_t resized_extents(const avl_preprocessor_config_t *config, extents_t from,
                                    extents_t *to_p) {
    if (!config->resize) {
        *to_p = from;
        return AVL_OK;
    }
    if (config->resize_shortest_edge == 0) {
        *to_p = (extents_t){.width = config->resize_width, .height = config->resize_height};
        return AVL_OK;
    }
    bool upright = from.width <= from.height;
    int shorter = upright ? from.width : from.height;
    int longer = upright ? from.height : from.width;
    int edge = config->resize_shortest_edge;
    double resized = floor((double)((int64_t)edge * longer) / (double)shorter);
    if (resized > INT_MAX)
        return avl_fail(AVL_ERR_INVALID,
                        "a picture of %d x %d is too long to be resized to %d on its short side",
                        from.width, from.height, edge);
    *to_p = (extents_t){.width = upright ? edge : (int)resized,
                        .height = upright ? (int)resized : edge};
    return AVL_OK;
}

/* center_crop along one axis: `taken` pixels from `start` on come after `before` black ones. */
static void crop_axis(int pixels, int crop, int *start_p, int *before_p, int *taken_p) {
    if (crop <= pixels) {
        *start_p = (pixels - crop) / 2;
        *before_p = 0;
        *taken_p = crop;
    } else {
        *start_p = 0;
        *before_p = (crop - pixels + 1) / 2;
        *taken_p = pixels;
    }
}

/* Interleaved rgb of the window into the planes of a tile of zeros. */
static void write_planes(const uint8_t *rgb, const avl_resample_window_t *window, int left, int top,
                         int side, uint8_t *tile) {
    size_t plane = (size_t)side * (size_t)side;
    for (int y = 0; y < window->height; y++) {
        uint8_t *red = tile + (size_t)(top + y) * (size_t)side + (size_t)left;
        uint8_t *green = red + plane, *blue = green + plane;
        for (int x = 0; x < window->width; x++, rgb += 3) {
            red[x] = rgb[0];
            green[x] = rgb[1];
            blue[x] = rgb[2];
        }
    }
}

/* Resize and centre crop: the field of `source` becomes one tile (planes, zeroed before). */
static avl_status_t finish_tile(const avl_preprocessor_config_t *config, int side,
                                const avl_resample_source_t *source, uint8_t *tile) {
    extents_t resized = {0};
    AVL_TRY(resized_extents(
        config, (extents_t){.width = source->field_width, .height = source->field_height},
        &resized));
    extents_t cropped = resized;
    if (config->center_crop)
        cropped = (extents_t){.width = config->crop_width, .height = config->crop_height};
    if (cropped.width != side || cropped.height != side)
        return avl_fail(
            AVL_ERR_UNSUPPORTED,
            "a picture or tile of %d x %d pixels becomes one of %d x %d, but the vision "
            "tower takes %d x %d",
            source->field_width, source->field_height, cropped.width, cropped.height, side, side);
    avl_resample_window_t window;
    int left, top;
    crop_axis(resized.width, side, &window.left, &left, &window.width);
    crop_axis(resized.height, side, &window.top, &top, &window.height);
    uint8_t *rgb = NULL;
    AVL_TRY(avl_alloc((size_t)window.width * (size_t)window.height, 3, "a resized picture", &rgb));
    avl_status_t status =
        avl_resample_rgb(config->resample, source, resized.width, resized.height, &window, rgb);
    if (status == AVL_OK)
        write_planes(rgb, &window, left, top, side, tile);
    free(rgb);
    return status;
}

static avl_resample_source_t whole(const avl_image_t *image) {
    return (avl_resample_source_t){
        .image = image, .field_width = image->width, .field_height = image->height};
}

/* The whole picture, resized; *resized_p is released by avl_image_free. */
static avl_status_t resize(const avl_preprocessor_config_t *config, const avl_image_t *image,
                           int width, int height, avl_image_t *resized_p) {
    avl_image_t resized = {.width = width, .height = height};
    AVL_TRY(avl_alloc((size_t)width * (size_t)height, 3, "a resized picture", &resized.rgb));
    avl_resample_source_t source = whole(image);
    avl_resample_window_t window = {.width = width, .height = height};
    avl_status_t status =
        avl_resample_rgb(config->resample, &source, width, height, &window, resized.rgb);
    if (status != AVL_OK) {
        avl_image_free(&resized);
        return status;
    }
    *resized_p = resized;
    return AVL_OK;
}

static avl_status_t make_llava(const avl_preprocessor_config_t *config, const avl_image_t *image,
                               avl_pixels_t *pixels) {
    avl_resample_source_t source = whole(image);
    if (config->pad && image->width != image->height) {
        int side = image->width > image->height ? image->width : image->height;
        if (side > PADDED_SIDE_MAX)
            return avl_fail(AVL_ERR_INVALID,
                            "a picture of %d x %d pixels is padded to a square; "
                            "no side may exceed %d",
                            image->width, image->height, PADDED_SIDE_MAX);
        source.field_width = source.field_height = side;
        source.left = (side - image->width) / 2;
        source.top = (side - image->height) / 2;
        /* int(mean * 255); what is a whole number in the file's double must not fall below it in
         * float. */
        for (int c = 0; c < 3; c++) {
            double level = floor((double)config->mean[c] * 255.0 + 2e-5);
            source.colour[c] = (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
        }
    }
    return finish_tile(config, pixels->side, &source, pixels->bytes);
}

/* _get_patch_output_size */
static extents_t fit_grid(const avl_image_t *image, extents_t grid) {
    double scale_width = (double)grid.width / image->width;
    double scale_height = (double)grid.height / image->height;
    extents_t fit = grid;
    if (scale_width < scale_height) {
        double height = ceil(image->height * scale_width);
        fit.height = height < grid.height ? (int)height : grid.height;
    } else {
        double width = ceil(image->width * scale_height);
        fit.width = width < grid.width ? (int)width : grid.width;
    }
    return fit;
}

/* The tile at row `top` and column `left` of the padded grid, cut off where the grid ends, into
 * `cut`. */
static void cut_tile(const avl_image_t *fit, extents_t pad, int top, int left, int side,
                     avl_image_t *cut) {
    int grid_width = fit->width + 2 * pad.width, grid_height = fit->height + 2 * pad.height;
    cut->width = grid_width - left < side ? grid_width - left : side;
    cut->height = grid_height - top < side ? grid_height - top : side;
    size_t row_bytes = (size_t)cut->width * 3;
    for (int y = 0; y < cut->height; y++) {
        uint8_t *row = cut->rgb + (size_t)y * row_bytes;
        memset(row, 0, row_bytes);
        int fit_y = top + y - pad.height;
        int first = left - pad.width, end = first + cut->width; /* columns of fit */
        int start = first < 0 ? 0 : first, stop = end > fit->width ? fit->width : end;
        if (fit_y < 0 || fit_y >= fit->height || start >= stop)
            continue;
        memcpy(row + (size_t)(start - first) * 3,
               fit->rgb + ((size_t)fit_y * (size_t)fit->width + (size_t)start) * 3,
               (size_t)(stop - start) * 3);
    }
}

static avl_status_t make_base_tile(const avl_preprocessor_config_t *config,
                                   const avl_image_t *image, avl_pixels_t *pixels) {
    int edge = config->resize_shortest_edge;
    if (edge == 0)
        edge = config->resize_height < config->resize_width ? config->resize_height
                                                            : config->resize_width;
    avl_image_t base = {0};
    AVL_TRY(resize(config, image, edge, edge, &base));
    avl_resample_source_t source = whole(&base);
    avl_status_t status = finish_tile(config, pixels->side, &source, pixels->bytes);
    avl_image_free(&base);
    return status;
}

static avl_status_t make_llava_next(const avl_preprocessor_config_t *config,
                                    const avl_image_t *image, avl_pixels_t *pixels) {
    int side = pixels->side, columns = pixels->layout.grid_columns;
    size_t tile_bytes = (size_t)side * (size_t)side * 3;
    extents_t grid = {.width = columns * side, .height = pixels->layout.grid_rows * side};
    extents_t extents = fit_grid(image, grid);
    extents_t pad = {.width = (grid.width - extents.width) / 2,
                     .height = (grid.height - extents.height) / 2};
    AVL_TRY(make_base_tile(config, image, pixels));
    avl_image_t fit = {0}, cut = {0};
    avl_status_t status;
    AVL_TRY_GOTO(status, resize(config, image, extents.width, extents.height, &fit), out);
    AVL_TRY_GOTO(status, avl_alloc(tile_bytes, 1, "a tile", &cut.rgb), out);
    for (int i = 1; i < pixels->layout.tile_count; i++) {
        cut_tile(&fit, pad, (i - 1) / columns * side, (i - 1) % columns * side, side, &cut);
        avl_resample_source_t source = whole(&cut);
        AVL_TRY_GOTO(status,
                     finish_tile(config, side, &source, pixels->bytes + (size_t)i * tile_bytes),
                     out);
    }
out:
    avl_image_free(&fit);
    avl_image_free(&cut);
    return status;
}

avl_status_t avl_preprocess(const avl_config_t *config, const avl_image_t *image,
                            avl_pixels_t *pixels_p) {
    avl_pixels_t pixels = {.side = config->model.vision.image_side};
    AVL_TRY(avl_image_layout(config, image->width, image->height, &pixels.layout));
    pixels.byte_count =
        (size_t)pixels.layout.tile_count * 3 * (size_t)pixels.side * (size_t)pixels.side;
    AVL_TRY(avl_alloc(pixels.byte_count, 1, "a picture's tiles", &pixels.bytes));
    avl_status_t status = config->model.family == AVL_FAMILY_LLAVA_NEXT
                              ? make_llava_next(&config->preprocessor, image, &pixels)
                              : make_llava(&config->preprocessor, image, &pixels);
    if (status != AVL_OK) {
        avl_pixels_free(&pixels);
        return status;
    }
    *pixels_p = pixels;
    return AVL_OK;
}

void avl_pixels_free(avl_pixels_t *pixels) {
    free(pixels->bytes);
    *pixels = (avl_pixels_t){0};
}

avl_status_t avl_preprocess_check(const avl_config_t *config) {
    const avl_preprocessor_config_t *steps = &config->preprocessor;
    int side = config->model.vision.image_side;
    bool next = config->model.family == AVL_FAMILY_LLAVA_NEXT;
    int edge = steps->resize_shortest_edge;
    if ((steps->resize || next) && edge == 0 &&
        (steps->resize_height < 1 || steps->resize_width < 1))
        return avl_fail(AVL_ERR_UNSUPPORTED, "the image processor's size is missing");
    extents_t end = {0};
    if (steps->center_crop)
        end = (extents_t){.width = steps->crop_width, .height = steps->crop_height};
    else if (steps->resize && edge == 0)
        end = (extents_t){.width = steps->resize_width, .height = steps->resize_height};
    else if (steps->resize && (steps->pad || next))
        end = (extents_t){.width = edge, .height = edge};
    else
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "the image processor leaves pictures in their own shape, but the vision "
                        "tower takes squares of %d",
                        side);
    if (end.width != side || end.height != side)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "the image processor makes pictures of %d x %d (width x height), but the "
                        "vision tower takes squares of %d",
                        end.width, end.height, side);
    for (int i = 0; next && i < steps->grid_pinpoint_count; i++)
        if (steps->grid_pinpoints[i].height % side || steps->grid_pinpoints[i].width % side)
            return avl_fail(AVL_ERR_UNSUPPORTED,
                            "a grid of %d x %d cannot be cut into squares of %d",
                            steps->grid_pinpoints[i].width, steps->grid_pinpoints[i].height, side);
    return AVL_OK;
}

void avl_preprocess_normalisation(const avl_preprocessor_config_t *config, float scale[3],
                                  float shift[3]) {
    double factor = config->rescale ? config->rescale_factor : 1.0;
    for (int c = 0; c < 3; c++) {
        double std = config->normalize ? (double)config->std[c] : 1.0;
        double mean = config->normalize ? (double)config->mean[c] : 0.0;
        scale[c] = (float)(factor / std);
        shift[c] = (float)(-mean / std);
    }
}
