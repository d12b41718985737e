/* kernels/cpu/diversity.c: the likeness of rows is a matrix product; what follows, rows squared
 * steps of one comparison, is little beside it and runs on the calling thread. */
#include "kernels/diversity.h"

#include <math.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

enum { COLUMNS_PER_ITEM = 64 };

/* The square of what rounding leaves of a row that is the mean, beside the row's own. */
static const double nothing_left = 1e-12;

typedef struct diversity {
    const avl_diversity_args_t *args;
    avl_diversity_parts_t parts;
} diversity_t;

static void mean_item(void *context, int64_t item, int thread) {
    const diversity_t *run = context;
    const avl_diversity_args_t *args = run->args;
    (void)thread;
    int64_t first = item * COLUMNS_PER_ITEM;
    int64_t count = avl_min64(COLUMNS_PER_ITEM, args->width - first);
    double sums[COLUMNS_PER_ITEM] = {0};
    for (int64_t i = 0; i < args->rows; i++) {
        const float *row = args->features + i * args->width + first;
        for (int64_t j = 0; j < count; j++)
            sums[j] += (double)row[j];
    }
    for (int64_t j = 0; j < count; j++)
        run->parts.means[first + j] = (float)(sums[j] / (double)args->rows);
}

static void unit_item(void *context, int64_t item, int thread) {
    const diversity_t *run = context;
    const avl_diversity_args_t *args = run->args;
    (void)thread;
    const float *features = args->features + item * args->width;
    float *unit = run->parts.units + item * run->parts.row;
    double before = 0, left = 0;
    for (int64_t j = 0; j < args->width; j++) {
        double feature = (double)features[j], rest = feature - (double)run->parts.means[j];
        before += feature * feature;
        left += rest * rest;
    }
    int is_row = isfinite((float)left) && left > nothing_left * before;
    double scale = is_row ? 1 / sqrt(left) : 0;
    for (int64_t j = 0; j < args->width; j++)
        unit[j] = is_row ? (float)(((double)features[j] - (double)run->parts.means[j]) * scale) : 0;
    for (int64_t j = args->width; j < run->parts.row; j++)
        unit[j] = 0;
}

static int64_t least_like_all(const diversity_t *run) {
    int64_t pick = 0;
    double least = INFINITY;
    for (int64_t i = 0; i < run->args->rows; i++) {
        double sum = 0;
        for (int64_t j = 0; j < run->args->rows; j++)
            sum += (double)run->parts.likeness[i * run->parts.line + j];
        if (sum < least) {
            least = sum;
            pick = i;
        }
    }
    return pick;
}

/* nearest[j] is row j's distance to the nearest one that came, -1 once it came itself. */
static void order_rows(const diversity_t *run) {
    int64_t rows = run->args->rows, pick = least_like_all(run);
    for (int64_t j = 0; j < rows; j++)
        run->parts.nearest[j] = 2;
    for (int64_t count = 0; count < rows; count++) {
        const float *likeness = run->parts.likeness + pick * run->parts.line;
        run->args->distances[pick] = run->parts.nearest[pick];
        run->parts.nearest[pick] = -1;
        float farthest = -1;
        for (int64_t j = 0; j < rows; j++) {
            float distance = likeness[j] < 1 ? 1 - likeness[j] : 0;
            run->parts.nearest[j] =
                distance < run->parts.nearest[j] ? distance : run->parts.nearest[j];
            if (run->parts.nearest[j] > farthest) {
                farthest = run->parts.nearest[j];
                pick = j;
            }
        }
    }
}

avl_status_t avl_cpu_diversity(avl_device_t *device, const avl_diversity_args_t *args) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    AVL_TRY(avl_check_diversity(args));
    if (args->rows == 0)
        return AVL_OK;
    diversity_t run = {.args = args, .parts = avl_diversity_lay_out(args)};
    avl_cpu_parallel(cpu, avl_ceil_div(args->width, COLUMNS_PER_ITEM), args->rows * args->width,
                     mean_item, &run);
    avl_cpu_parallel(cpu, args->rows, args->rows * args->width, unit_item, &run);
    AVL_TRY(avl_cpu_linear(device, &(avl_linear_args_t){
                                       .input = run.parts.units,
                                       .input_stride = run.parts.row,
                                       .weight = run.parts.units,
                                       .weight_stride = run.parts.row,
                                       .output = run.parts.likeness,
                                       .output_stride = run.parts.line,
                                       .rows = args->rows,
                                       .in_width = run.parts.row,
                                       .out_width = args->rows,
                                       .dtype = AVL_DTYPE_F32,
                                       .output_dtype = AVL_DTYPE_F32,
                                   }));
    order_rows(&run);
    return AVL_OK;
}

avl_status_t avl_cpu_weigh(avl_device_t *device, const avl_weigh_args_t *args) {
    (void)device;
    AVL_TRY(avl_check_weigh(args));
    for (int64_t i = 0; i < args->count; i++)
        args->target[i] = (args->adds ? args->target[i] : 0) + args->scores[i] * args->factors[i];
    return AVL_OK;
}
