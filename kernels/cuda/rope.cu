#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

/* One thread a pair (x[j], x[j + D/2]). */
template <typename T> __global__ void rope_kernel(avl_rope_args_t args) {
    int64_t half = args.head_width / 2, row_pairs = args.heads * half;
    int64_t pairs = args.rows * row_pairs, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < pairs; i += step) {
        int64_t row = i / row_pairs, head = i % row_pairs / half, j = i % half;
        T *low = (T *)args.data + row * args.row_stride + head * args.head_width + j;
        float x = avl_load(low, 0), y = avl_load(low, half);
        float c = args.cosines[row * half + j], s = args.sines[row * half + j];
        avl_store(low, 0, x * c - y * s);
        avl_store(low, half, y * c + x * s);
    }
}

avl_status_t avl_cuda_rope(avl_device_t *device, const avl_rope_args_t *args) {
    AVL_CHECK_SHAPE(args->heads >= 0 && args->head_width >= 0 && args->head_width % 2 == 0,
                    "rope: %d heads of width %d: the width must be even and neither negative",
                    args->heads, args->head_width);
    int64_t width = (int64_t)args->heads * args->head_width;
    AVL_TRY(avl_check_matrix("rope", "data", args->data, args->rows, args->row_stride, width));
    AVL_TRY(avl_cuda_check_dtype("rope", "data", args->dtype));
    if (args->rows == 0 || width == 0)
        return AVL_OK;
    AVL_TRY(avl_check_array("rope", "cosines", args->cosines, args->rows * args->head_width / 2));
    AVL_TRY(avl_check_array("rope", "sines", args->sines, args->rows * args->head_width / 2));
    auto *kernel = AVL_CUDA_BY_DTYPE(rope_kernel, args->dtype);
    AVL_LAUNCH(kernel, avl_cuda_blocks(args->rows * width / 2), AVL_CUDA_THREADS, 0,
               avl_cuda_of(device)->stream, *args);
    return avl_cuda_launched("rope");
}
