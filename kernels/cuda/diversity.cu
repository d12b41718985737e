/* kernels/cuda/diversity.cu: the likeness of rows is a product of the library's; the order of rows
 * is one block's work, a step a row, for every step needs the one before it. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

namespace {

constexpr int ORDER_THREADS_MAX = 1024;

/* The square of what rounding leaves of a row that is the mean, beside the row's own. */
constexpr float NOTHING_LEFT = 1e-12f;

typedef struct diversity {
    const float *features;
    float *distances;
    int64_t rows, width;
    avl_diversity_parts_t parts;
} diversity_t;

/* In double precision, so that the mean of equal numbers is that number. */
__global__ void mean_kernel(diversity_t run) {
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; j < run.width; j += step) {
        double sum = 0.0;
        for (int64_t i = 0; i < run.rows; i++)
            sum += (double)run.features[i * run.width + j];
        run.parts.means[j] = (float)(sum / (double)run.rows);
    }
}

__global__ void unit_kernel(diversity_t run) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    float *scratch = (float *)avl_shared_take(&cursor, AVL_WARP * sizeof(float));
    for (int64_t i = blockIdx.x; i < run.rows; i += gridDim.x) {
        const float *features = run.features + i * run.width;
        float *unit = run.parts.units + i * run.parts.row;
        float before = 0.0f, left = 0.0f;
        for (int64_t j = threadIdx.x; j < run.width; j += blockDim.x) {
            float rest = features[j] - run.parts.means[j];
            before += features[j] * features[j];
            left += rest * rest;
        }
        before = avl_block_sum(before, scratch);
        left = avl_block_sum(left, scratch);
        int is_row = isfinite(left) && left > NOTHING_LEFT * before;
        float scale = is_row ? 1.0f / sqrtf(left) : 0.0f;
        for (int64_t j = threadIdx.x; j < run.parts.row; j += blockDim.x)
            unit[j] = is_row && j < run.width ? (features[j] - run.parts.means[j]) * scale : 0.0f;
    }
}

/* nearest[i]: how much row i is like all. */
__global__ void sum_kernel(diversity_t run) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    float *scratch = (float *)avl_shared_take(&cursor, AVL_WARP * sizeof(float));
    for (int64_t i = blockIdx.x; i < run.rows; i += gridDim.x) {
        float sum = 0.0f;
        for (int64_t j = threadIdx.x; j < run.rows; j += blockDim.x)
            sum += run.parts.likeness[i * run.parts.line + j];
        sum = avl_block_sum(sum, scratch);
        if (threadIdx.x == 0)
            run.parts.nearest[i] = sum;
    }
}

/* nearest[j] is row j's distance to the nearest one that came, -1 once it came itself. A thread has
 * its rows to itself, so nothing but the pick travels. */
__global__ void __launch_bounds__(ORDER_THREADS_MAX) order_kernel(diversity_t run) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    float *values = (float *)avl_shared_take(&cursor, AVL_WARP * sizeof(float));
    int *indices = (int *)avl_shared_take(&cursor, AVL_WARP * sizeof(int));
    int rows = (int)run.rows, first = (int)threadIdx.x, step = (int)blockDim.x, index = -1;
    float value = 0.0f;
    for (int j = first; j < rows; j += step) {
        avl_take_better(-run.parts.nearest[j], j, &value, &index);
        run.parts.nearest[j] = 2.0f;
    }
    int pick = avl_block_best(value, index, values, indices);
    for (int count = 0; count < rows; count++) {
        const float *likeness = run.parts.likeness + pick * run.parts.line;
        if (pick % step == first) {
            run.distances[pick] = run.parts.nearest[pick];
            run.parts.nearest[pick] = -1.0f;
        }
        index = -1;
        for (int j = first; j < rows; j += step) {
            float distance = likeness[j] < 1.0f ? 1.0f - likeness[j] : 0.0f;
            float nearest = fminf(distance, run.parts.nearest[j]);
            run.parts.nearest[j] = nearest;
            if (nearest >= 0.0f)
                avl_take_better(nearest, j, &value, &index);
        }
        pick = avl_block_best(value, index, values, indices);
    }
}

__global__ void weigh_kernel(avl_weigh_args_t args) {
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += step)
        args.target[i] = (args.adds ? args.target[i] : 0.0f) + args.scores[i] * args.factors[i];
}

static avl_status_t measure_likeness(avl_device_t *device, const diversity_t *run) {
    cudaStream_t stream = avl_cuda_of(device)->stream;
    unsigned blocks = (unsigned)run->rows;
    size_t shared = avl_shared_part(AVL_WARP * sizeof(float));
    AVL_LAUNCH(mean_kernel, avl_cuda_blocks(run->width), AVL_CUDA_THREADS, 0, stream, *run);
    AVL_TRY(avl_cuda_launched("diversity: means"));
    AVL_LAUNCH(unit_kernel, blocks, AVL_CUDA_THREADS, shared, stream, *run);
    AVL_TRY(avl_cuda_launched("diversity: unit rows"));
    avl_linear_args_t product = {};
    product.input = product.weight = run->parts.units;
    product.input_stride = product.weight_stride = product.in_width = run->parts.row;
    product.output = run->parts.likeness;
    product.output_stride = run->parts.line;
    product.rows = product.out_width = run->rows;
    product.dtype = product.output_dtype = AVL_DTYPE_F32;
    AVL_TRY(avl_cuda_linear(device, &product));
    AVL_LAUNCH(sum_kernel, blocks, AVL_CUDA_THREADS, shared, stream, *run);
    return avl_cuda_launched("diversity: sums");
}

} // namespace

avl_status_t avl_cuda_diversity(avl_device_t *device, const avl_diversity_args_t *args) {
    AVL_TRY(avl_check_diversity(args));
    if (args->rows == 0)
        return AVL_OK;
    diversity_t run = {};
    run.features = args->features;
    run.distances = args->distances;
    run.rows = args->rows;
    run.width = args->width;
    run.parts = avl_diversity_lay_out(args);
    AVL_TRY(measure_likeness(device, &run));
    int64_t threads =
        avl_cuda_min(avl_cuda_ceil_div(run.rows, AVL_WARP) * AVL_WARP, ORDER_THREADS_MAX);
    AVL_LAUNCH(order_kernel, 1u, (unsigned)threads,
               avl_shared_part(AVL_WARP * sizeof(float)) + avl_shared_part(AVL_WARP * sizeof(int)),
               avl_cuda_of(device)->stream, run);
    return avl_cuda_launched("diversity: order");
}

avl_status_t avl_cuda_weigh(avl_device_t *device, const avl_weigh_args_t *args) {
    AVL_TRY(avl_check_weigh(args));
    if (args->count == 0)
        return AVL_OK;
    AVL_LAUNCH(weigh_kernel, avl_cuda_blocks(args->count), AVL_CUDA_THREADS, 0,
               avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("weigh");
}
