/* Resampling after Pillow's (libImaging/Resample.c and, for nearest, Geometry.c), whose arithmetic
 * it repeats: weights in double, normalised, rounded half away from zero to 22 fractional bits;
 * integer sums; results rounded and clipped to 8 bits after each pass. Any change of the order of
 * operations in make_axis() changes pixels. */
#include "inputs/resample.h"

#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "inputs/resample_kernel.h"

static atomic_bool portable_only;

void avl_resample_set_portable(int portable) {
    atomic_store(&portable_only, portable != 0);
}

static bool has_avx2(void) {
#if defined(__x86_64__)
    return !atomic_load(&portable_only) && __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

/* Filters: the weight at a distance of x, in units of the larger of an input and an output pixel.
 */

static double box_weight(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double bilinear_weight(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double hamming_weight(double x) {
    x = fabs(x);
    if (x == 0.0)
        return 1.0;
    if (x >= 1.0)
        return 0.0;
    x = x * M_PI;
    return sin(x) / x * (0.54 + 0.46 * cos(x));
}

static double bicubic_weight(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double sinc(double x) {
    if (x == 0.0)
        return 1.0;
    x = x * M_PI;
    return sin(x) / x;
}

static double lanczos_weight(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

typedef struct filter {
    double (*weight)(double x);
    double support; /* the weight is 0 beyond this distance */
} filter_t;

static const filter_t filters[] = {
    [AVL_RESAMPLE_LANCZOS] = {lanczos_weight, 3.0},
    [AVL_RESAMPLE_BILINEAR] = {bilinear_weight, 1.0},
    [AVL_RESAMPLE_BICUBIC] = {bicubic_weight, 2.0},
    [AVL_RESAMPLE_BOX] = {box_weight, 0.5},
    [AVL_RESAMPLE_HAMMING] = {hamming_weight, 1.0},
};

static void axis_free(avl_resample_axis_t *axis) {
    free(axis->starts);
    free(axis->taps);
    free(axis->weights);
    free(axis->split);
}

/* `exact` has room for one output's weights. */
static void weigh_output(const filter_t *filter, int input, double scale, int output, double *exact,
                         avl_resample_axis_t *axis, int slot) {
    double filter_scale = scale < 1.0 ? 1.0 : scale;
    double support = filter->support * filter_scale;
    double step = 1.0 / filter_scale;
    double centre = (output + 0.5) * scale;
    int first = (int)(centre - support + 0.5);
    if (first < 0)
        first = 0;
    int end = (int)(centre + support + 0.5);
    if (end > input)
        end = input;
    int taps = end - first;
    double total = 0.0;
    for (int t = 0; t < taps; t++) {
        exact[t] = filter->weight((t + first - centre + 0.5) * step);
        total += exact[t];
    }
    int32_t *weights = axis->weights + (size_t)slot * (size_t)axis->stride;
    for (int t = 0; t < taps; t++) {
        double weight = (total != 0.0 ? exact[t] / total : exact[t]) * (1 << AVL_RESAMPLE_BITS);
        weights[t] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    axis->starts[slot] = first;
    axis->taps[slot] = taps;
}

/* Outputs start .. start + count of resizing `input` pixels to `output`. On failure nothing is
 * left. */
static avl_status_t make_axis(const filter_t *filter, int input, int output, int start, int count,
                              bool split, avl_resample_axis_t *axis_p) {
    double scale = (double)input / output;
    double support = filter->support * (scale < 1.0 ? 1.0 : scale);
    double taps_max = ceil(support) * 2 + 1;
    avl_resample_axis_t axis = {.count = count, .stride = ((int)taps_max + 3) / 4 * 4};
    size_t outputs = (size_t)count, stride = (size_t)axis.stride;
    double *exact = NULL;
    avl_status_t status;
    AVL_TRY_GOTO(status, avl_alloc(stride, sizeof *exact, "resampling weights", &exact), err_axis);
    AVL_TRY_GOTO(status, avl_alloc(outputs, sizeof(int), "resampling bounds", &axis.starts),
                 err_axis);
    AVL_TRY_GOTO(status, avl_alloc(outputs, sizeof(int), "resampling bounds", &axis.taps),
                 err_axis);
    AVL_TRY_GOTO(status,
                 avl_alloc(outputs, stride * sizeof(int32_t), "resampling weights", &axis.weights),
                 err_axis);
    for (int i = 0; i < count; i++)
        weigh_output(filter, input, scale, start + i, exact, &axis, i);
#if defined(__x86_64__)
    if (split) {
        AVL_TRY_GOTO(status,
                     avl_alloc_aligned(outputs, stride * 8 * sizeof(int16_t), "resampling weights",
                                       &axis.split),
                     err_axis);
        avl_resample_split_avx2(&axis);
    }
#else
    (void)split;
#endif
    free(exact);
    *axis_p = axis;
    return AVL_OK;
err_axis:
    free(exact);
    axis_free(&axis);
    return status;
}

static uint8_t clip(int32_t sum) {
    int32_t value = sum >> AVL_RESAMPLE_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void rows_portable(const avl_resample_axis_t *axis, const uint8_t *const *rows,
                          uint8_t *const *outputs, int row_count) {
    for (int r = 0; r < row_count; r++) {
        uint8_t *output = outputs[r];
        for (int i = 0; i < axis->count; i++, output += 3) {
            const uint8_t *pixel = rows[r] + (size_t)axis->starts[i] * 3;
            const int32_t *weights = axis->weights + (size_t)i * (size_t)axis->stride;
            int32_t half = 1 << (AVL_RESAMPLE_BITS - 1), red = half, green = half, blue = half;
            for (int t = 0; t < axis->taps[i]; t++, pixel += 3) {
                red += pixel[0] * weights[t];
                green += pixel[1] * weights[t];
                blue += pixel[2] * weights[t];
            }
            output[0] = clip(red);
            output[1] = clip(green);
            output[2] = clip(blue);
        }
    }
}

static void column_portable(const int32_t *weights, int taps, const uint8_t *rows,
                            size_t stride_bytes, size_t row_bytes, uint8_t *output) {
    for (size_t x = 0; x < row_bytes; x++) {
        int32_t sum = 1 << (AVL_RESAMPLE_BITS - 1);
        for (int t = 0; t < taps; t++)
            sum += rows[(size_t)t * stride_bytes + x] * weights[t];
        output[x] = clip(sum);
    }
}

/* Row y of the field. It is the picture's own where that is the whole row and what follows it may
 * be read; else it is put together in `scratch`, which has room for the row and the slack. */
static const uint8_t *field_row(const avl_resample_source_t *source, int y, uint8_t *scratch) {
    const avl_image_t *image = source->image;
    size_t picture_bytes = (size_t)image->width * 3, field_width = (size_t)source->field_width;
    int image_y = y - source->top;
    bool inside = image_y >= 0 && image_y < image->height;
    if (inside && image->width == source->field_width) {
        const uint8_t *row = image->rgb + (size_t)image_y * picture_bytes;
        size_t behind = (size_t)(image->height - 1 - image_y) * picture_bytes;
        if (behind >= AVL_RESAMPLE_SLACK_BYTES)
            return row;
        return memcpy(scratch, row, picture_bytes);
    }
    size_t left = (size_t)source->left;
    for (size_t x = 0; x < (inside ? left : field_width); x++)
        memcpy(scratch + 3 * x, source->colour, 3);
    if (inside) {
        memcpy(scratch + 3 * left, image->rgb + (size_t)image_y * picture_bytes, picture_bytes);
        for (size_t x = left + (size_t)image->width; x < field_width; x++)
            memcpy(scratch + 3 * x, source->colour, 3);
    }
    return scratch;
}

/* One resizing. The first pass writes rows first_row .. first_row + row_count of the field, cut to
 * the window's columns, into `middle`; the second reads them. A pass that would change nothing
 * copies, as Pillow's does. */
typedef struct resizing {
    const avl_resample_source_t *source;
    const avl_resample_window_t *window;
    bool horizontal, vertical;
    avl_resample_axis_t columns, rows;
    int first_row, row_count;
    size_t stride_bytes; /* of middle */
    uint8_t *middle;
    uint8_t *scratch[2];
    uint8_t *output_row;
} resizing_t;

static void first_pass(const resizing_t *job) {
    avl_resample_rows_fn rows_fn = rows_portable;
#if defined(__x86_64__)
    if (job->columns.split)
        rows_fn = avl_resample_rows_avx2;
#endif
    for (int y = 0; y < job->row_count; y += 2) {
        int count = job->row_count - y < 2 ? 1 : 2;
        const uint8_t *rows[2];
        uint8_t *outputs[2];
        for (int r = 0; r < count; r++) {
            rows[r] = field_row(job->source, job->first_row + y + r, job->scratch[r]);
            outputs[r] = job->middle + (size_t)(y + r) * job->stride_bytes;
        }
        if (job->horizontal) {
            rows_fn(&job->columns, rows, outputs, count);
            continue;
        }
        for (int r = 0; r < count; r++)
            memcpy(outputs[r], rows[r] + (size_t)job->window->left * 3,
                   (size_t)job->window->width * 3);
    }
}

static void second_pass(const resizing_t *job, uint8_t *rgb) {
    avl_resample_column_fn column_fn = column_portable;
#if defined(__x86_64__)
    if (has_avx2())
        column_fn = avl_resample_column_avx2;
#endif
    size_t row_bytes = (size_t)job->window->width * 3;
    for (int y = 0; y < job->window->height; y++, rgb += row_bytes) {
        if (!job->vertical) {
            memcpy(rgb, job->middle + (size_t)y * job->stride_bytes, row_bytes);
            continue;
        }
        const uint8_t *rows =
            job->middle + (size_t)(job->rows.starts[y] - job->first_row) * job->stride_bytes;
        column_fn(job->rows.weights + (size_t)y * (size_t)job->rows.stride, job->rows.taps[y], rows,
                  job->stride_bytes, row_bytes, job->output_row);
        memcpy(rgb, job->output_row, row_bytes);
    }
}

static avl_status_t plan(resizing_t *job, const filter_t *filter, int width, int height) {
    const avl_resample_source_t *source = job->source;
    const avl_resample_window_t *window = job->window;
    job->horizontal = width != source->field_width;
    job->vertical = height != source->field_height;
    if (job->horizontal)
        AVL_TRY(make_axis(filter, source->field_width, width, window->left, window->width,
                          has_avx2(), &job->columns));
    job->first_row = window->top;
    job->row_count = window->height;
    if (job->vertical) {
        AVL_TRY(make_axis(filter, source->field_height, height, window->top, window->height, false,
                          &job->rows));
        int last = window->height - 1; /* starts and ends never go back */
        job->first_row = job->rows.starts[0];
        job->row_count = job->rows.starts[last] + job->rows.taps[last] - job->first_row;
    }
    size_t slack = AVL_RESAMPLE_SLACK_BYTES;
    job->stride_bytes = ((size_t)window->width * 3 + slack) / 32 * 32;
    AVL_TRY(avl_alloc_aligned((size_t)job->row_count, job->stride_bytes, "a resized picture's rows",
                              &job->middle));
    AVL_TRY(avl_alloc_aligned(1, job->stride_bytes, "a row of pixels", &job->output_row));
    for (int r = 0; r < 2; r++)
        AVL_TRY(avl_alloc(1, (size_t)source->field_width * 3 + slack, "a row of pixels",
                          &job->scratch[r]));
    return AVL_OK;
}

static avl_status_t resize_filtered(const filter_t *filter, const avl_resample_source_t *source,
                                    int width, int height, const avl_resample_window_t *window,
                                    uint8_t *rgb) {
    resizing_t job = {.source = source, .window = window};
    avl_status_t status = plan(&job, filter, width, height);
    if (status == AVL_OK) {
        first_pass(&job);
        second_pass(&job, rgb);
    }
    axis_free(&job.columns);
    axis_free(&job.rows);
    free(job.middle);
    free(job.output_row);
    free(job.scratch[0]);
    free(job.scratch[1]);
    return status;
}

/* Where outputs start .. start + count look: the place is accumulated by addition, rounding and
 * all, as Pillow does. */
static void nearest_places(int input, int output, int start, int count, int *places) {
    double scale = (double)input / output;
    double place = scale * 0.5;
    for (int i = 0; i < start + count; i++, place += scale) {
        if (i >= start) /* -1: past the end by rounding; Pillow leaves black */
            places[i - start] = place < input ? (int)place : -1;
    }
}

static avl_status_t resize_nearest(const avl_resample_source_t *source, int width, int height,
                                   const avl_resample_window_t *window, uint8_t *rgb) {
    int *columns = NULL, *rows = NULL;
    uint8_t *scratch = NULL;
    avl_status_t status;
    AVL_TRY_GOTO(status, avl_alloc((size_t)window->width, sizeof(int), "columns", &columns), out);
    AVL_TRY_GOTO(status, avl_alloc((size_t)window->height, sizeof(int), "rows", &rows), out);
    AVL_TRY_GOTO(
        status,
        avl_alloc((size_t)source->field_width + AVL_RESAMPLE_SLACK_BYTES, 3, "a row", &scratch),
        out);
    nearest_places(source->field_width, width, window->left, window->width, columns);
    nearest_places(source->field_height, height, window->top, window->height, rows);
    for (int y = 0; y < window->height; y++) {
        const uint8_t *row = rows[y] < 0 ? NULL : field_row(source, rows[y], scratch);
        for (int x = 0; x < window->width; x++, rgb += 3) {
            if (!row || columns[x] < 0)
                memset(rgb, 0, 3);
            else
                memcpy(rgb, row + (size_t)columns[x] * 3, 3);
        }
    }
out:
    free(columns);
    free(rows);
    free(scratch);
    return status;
}

avl_status_t avl_resample_rgb(avl_resample_t filter, const avl_resample_source_t *source, int width,
                              int height, const avl_resample_window_t *window, uint8_t *rgb) {
    const avl_image_t *image = source->image;
    if (image->width < 1 || image->height < 1 || width < 1 || height < 1)
        return avl_fail(AVL_ERR_INVALID, "a picture of %d x %d pixels cannot become one of %d x %d",
                        image->width, image->height, width, height);
    if (source->left < 0 || source->top < 0 || image->width > source->field_width - source->left ||
        image->height > source->field_height - source->top)
        return avl_fail(AVL_ERR_INVALID, "a picture of %d x %d pixels at %d, %d leaves its field",
                        image->width, image->height, source->left, source->top);
    if (window->left < 0 || window->top < 0 || window->width < 1 || window->height < 1 ||
        window->width > width - window->left || window->height > height - window->top)
        return avl_fail(AVL_ERR_INVALID, "window of %d x %d pixels at %d, %d outside %d x %d",
                        window->width, window->height, window->left, window->top, width, height);
    switch (filter) {
    case AVL_RESAMPLE_NEAREST:
        return resize_nearest(source, width, height, window, rgb);
    case AVL_RESAMPLE_LANCZOS:
    case AVL_RESAMPLE_BILINEAR:
    case AVL_RESAMPLE_BICUBIC:
    case AVL_RESAMPLE_BOX:
    case AVL_RESAMPLE_HAMMING:
        return resize_filtered(&filters[filter], source, width, height, window, rgb);
    }
    return avl_fail(AVL_ERR_INVALID, "resampling filter %d is unknown", (int)filter);
}
