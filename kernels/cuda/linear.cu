/* kernels/cuda/linear.cu: cuBLASLt where it takes the layout, with the bias and ReLU in its
 * epilogue where it offers them in our formats (f32 outputs); a plain tiled product of our own for
 * what is left, rows that are not aligned.
 *
 * cuBLASLt's GELU is an approximation of unstated accuracy and there is none of the others, so
 * those are a pass of ours over f32 sums. A bf16 output with a bias goes through f32 sums as well:
 * the epilogue would want the bias in bf16, and two roundings where the contract promises one. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

namespace {

constexpr int TILE = 16;

/* Scratch for the f32 sums of a block of rows. */
static const int64_t sums_bytes_max = INT64_C(32) << 20;

/* output[t, n] = act(sums[t, n] + bias[n]); sums may be the output itself, or NULL for zeros. */
typedef struct finish {
    const float *sums;
    int64_t sums_stride;
    avl_linear_args_t args;
} finish_t;

template <typename T> __global__ void finish_kernel(finish_t finish) {
    const avl_linear_args_t &args = finish.args;
    int64_t count = args.rows * args.out_width, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        int64_t row = i / args.out_width, column = i % args.out_width;
        float value =
            finish.sums != nullptr ? finish.sums[row * finish.sums_stride + column] : 0.0f;
        if (args.bias != nullptr)
            value += args.bias[column];
        avl_store((T *)args.output, row * args.output_stride + column,
                  avl_activate(value, args.activation));
    }
}

static avl_status_t launch_finish(avl_cuda_device_t *cuda, const finish_t *finish) {
    const avl_linear_args_t *args = &finish->args;
    auto *kernel = AVL_CUDA_BY_DTYPE(finish_kernel, args->output_dtype);
    AVL_LAUNCH(kernel, avl_cuda_blocks(args->rows * args->out_width), AVL_CUDA_THREADS, 0,
               cuda->stream, *finish);
    return avl_cuda_launched("linear: bias and activation");
}

/* 16 x 16 outputs a block, K in steps of 16 through shared memory; one more column keeps the
 * transposed accesses apart. */
template <typename T, typename O>
__global__ void __launch_bounds__(TILE *TILE) product_kernel(avl_linear_args_t args) {
    AVL_SHARED_BYTES(shared);
    unsigned char *cursor = shared;
    float(*inputs)[TILE + 1] =
        (float(*)[TILE + 1]) avl_shared_take(&cursor, TILE * (TILE + 1) * sizeof(float));
    float(*weights)[TILE + 1] =
        (float(*)[TILE + 1]) avl_shared_take(&cursor, TILE * (TILE + 1) * sizeof(float));
    int x = (int)threadIdx.x % TILE, y = (int)threadIdx.x / TILE;
    int64_t column = (int64_t)blockIdx.x * TILE;
    for (int64_t row = (int64_t)blockIdx.y * TILE; row < args.rows;
         row += (int64_t)gridDim.y * TILE) {
        float sum = 0.0f;
        for (int64_t k = 0; k < args.in_width; k += TILE) {
            int has_k = k + x < args.in_width;
            inputs[y][x] =
                has_k && row + y < args.rows
                    ? avl_load((const T *)args.input, (row + y) * args.input_stride + k + x)
                    : 0.0f;
            weights[y][x] =
                has_k && column + y < args.out_width
                    ? avl_load((const T *)args.weight, (column + y) * args.weight_stride + k + x)
                    : 0.0f;
            __syncthreads();
            for (int i = 0; i < TILE; i++)
                sum += inputs[y][i] * weights[x][i];
            __syncthreads();
        }
        if (row + y < args.rows && column + x < args.out_width) {
            if (args.bias != nullptr)
                sum += args.bias[column + x];
            avl_store((O *)args.output, (row + y) * args.output_stride + column + x,
                      avl_activate(sum, args.activation));
        }
    }
}

static avl_status_t launch_product(avl_cuda_device_t *cuda, const avl_linear_args_t *args) {
    auto *kernel = product_kernel<float, float>;
    if (args->dtype == AVL_DTYPE_F16)
        kernel = args->output_dtype == AVL_DTYPE_F32 ? product_kernel<avl_f16_t, float>
                                                     : product_kernel<avl_f16_t, avl_f16_t>;
    else if (args->dtype == AVL_DTYPE_BF16)
        kernel = args->output_dtype == AVL_DTYPE_F32 ? product_kernel<uint16_t, float>
                                                     : product_kernel<uint16_t, uint16_t>;
    int64_t columns = avl_cuda_ceil_div(args->out_width, TILE);
    AVL_CHECK_SHAPE(columns <= INT32_MAX, "linear: %lld output columns",
                    (long long)args->out_width);
    dim3 grid((unsigned)columns,
              (unsigned)avl_cuda_min(avl_cuda_ceil_div(args->rows, TILE), 65535));
    AVL_LAUNCH(kernel, grid, TILE * TILE, 2 * avl_shared_part(TILE * (TILE + 1) * sizeof(float)),
               cuda->stream, *args);
    return avl_cuda_launched("linear");
}

/* By the library, else by our own kernel. */
static avl_status_t run_product(avl_cuda_device_t *cuda, const avl_linear_args_t *args) {
    int done = 0;
    AVL_TRY(avl_cuda_blas_product(cuda->blas, args, &done));
    return done ? AVL_OK : launch_product(cuda, args);
}

/* Sums in f32, to the output itself when it is f32, then the finishing pass. */
static avl_status_t run_in_two_steps(avl_cuda_device_t *cuda, const avl_linear_args_t *args) {
    int has_sums = args->output_dtype == AVL_DTYPE_F32;
    int64_t sums_stride =
        has_sums ? args->output_stride : avl_cuda_ceil_div(args->out_width, 4) * 4;
    int64_t row_bytes = sums_stride * (int64_t)sizeof(float);
    int64_t block_rows = has_sums ? args->rows : sums_bytes_max / row_bytes;
    block_rows = block_rows < 1 ? 1 : avl_cuda_min(block_rows, args->rows);
    void *scratch = nullptr;
    if (!has_sums)
        AVL_TRY(avl_cuda_scratch(cuda, (size_t)(block_rows * row_bytes), "linear: sums", &scratch));
    size_t in = avl_dtype_bytes(args->dtype), out = avl_dtype_bytes(args->output_dtype);
    for (int64_t row = 0; row < args->rows; row += block_rows) {
        finish_t finish = {nullptr, sums_stride, *args};
        finish.args.rows = avl_cuda_min(block_rows, args->rows - row);
        finish.args.input = (const char *)args->input + (size_t)(row * args->input_stride) * in;
        finish.args.output = (char *)args->output + (size_t)(row * args->output_stride) * out;
        avl_linear_args_t product = finish.args;
        product.bias = nullptr;
        product.activation = AVL_ACTIVATION_NONE;
        product.output_dtype = AVL_DTYPE_F32;
        product.output = has_sums ? finish.args.output : scratch;
        product.output_stride = sums_stride;
        finish.sums = (const float *)product.output;
        int done = 0;
        AVL_TRY(avl_cuda_blas_product(cuda->blas, &product, &done));
        AVL_TRY(done ? launch_finish(cuda, &finish) : launch_product(cuda, &finish.args));
    }
    return AVL_OK;
}

static avl_status_t check_linear(const avl_linear_args_t *args) {
    AVL_TRY(avl_cuda_check_dtype("linear", "input", args->dtype));
    AVL_CHECK_SHAPE(args->output_dtype == AVL_DTYPE_F32 || args->output_dtype == args->dtype,
                    "linear: the output is %s; it can be f32 or the input's %s",
                    avl_dtype_name(args->output_dtype), avl_dtype_name(args->dtype));
    AVL_TRY(avl_check_activation("linear", args->activation));
    AVL_TRY(avl_check_matrix("linear", "input", args->input, args->rows, args->input_stride,
                             args->in_width));
    AVL_TRY(avl_check_matrix("linear", "weight", args->weight, args->out_width, args->weight_stride,
                             args->in_width));
    return avl_check_matrix("linear", "output", args->output, args->rows, args->output_stride,
                            args->out_width);
}

} // namespace

avl_status_t avl_cuda_linear(avl_device_t *device, const avl_linear_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(check_linear(args));
    if (args->rows == 0 || args->out_width == 0)
        return AVL_OK;
    if (args->in_width == 0) {
        finish_t finish = {nullptr, 0, *args};
        return launch_finish(cuda, &finish);
    }
    int is_plain = args->bias == nullptr && args->activation == AVL_ACTIVATION_NONE;
    /* The library's epilogue reads a bias in vectors. */
    int is_fused =
        args->output_dtype == AVL_DTYPE_F32 && avl_cuda_divides((uintptr_t)args->bias, 16) &&
        (args->activation == AVL_ACTIVATION_NONE || args->activation == AVL_ACTIVATION_RELU);
    return is_plain || is_fused ? run_product(cuda, args) : run_in_two_steps(cuda, args);
}
