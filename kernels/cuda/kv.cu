/* kernels/cuda/kv.cu: rows into the cache, and about inside it. A row is copied in the largest
 * units that its address, stride and width allow. */
#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

namespace {

constexpr int GRID_Z_MAX = 65535;

/* target[target_rows ? target_rows[i] : i] = source[source_rows ? source_rows[i] : i], keys and
 * values (blockIdx.y), all sizes in units. */
typedef struct row_copy {
    const void *sources[2];
    void *targets[2];
    const int32_t *source_rows, *target_rows;
    int64_t source_stride, target_stride, rows, width;
} row_copy_t;

template <typename T> __global__ void row_copy_kernel(row_copy_t copy) {
    const T *sources = (const T *)copy.sources[blockIdx.y];
    T *targets = (T *)copy.targets[blockIdx.y];
    for (int64_t i = blockIdx.x; i < copy.rows; i += gridDim.x) {
        int64_t source = copy.source_rows != nullptr ? copy.source_rows[i] : i;
        int64_t target = copy.target_rows != nullptr ? copy.target_rows[i] : i;
        for (int64_t j = threadIdx.x; j < copy.width; j += blockDim.x)
            targets[target * copy.target_stride + j] = sources[source * copy.source_stride + j];
    }
}

/* The same head by head, blockIdx.z being the head: the lists are [rows, heads], of which a target
 * below 0 in a list of one entry a row (`redirects` given) stands for one of each head. Where the
 * rows stand is noted by the way. */
typedef struct head_copy {
    row_copy_t copy; /* width: of a head */
    int heads, list_heads;
    const int32_t *redirects, *positions;
    int32_t *row_positions;
} head_copy_t;

__device__ __forceinline__ int64_t listed(const int32_t *list, const head_copy_t &copy, int64_t row,
                                          int head) {
    if (list == nullptr)
        return row;
    int64_t slot = copy.list_heads > 1 ? list[row * copy.list_heads + head] : list[row];
    return slot < 0 ? copy.redirects[-1 - slot + head] : slot;
}

template <typename T> __global__ void head_copy_kernel(head_copy_t heads) {
    const row_copy_t &copy = heads.copy;
    const T *sources = (const T *)copy.sources[blockIdx.y];
    T *targets = (T *)copy.targets[blockIdx.y];
    int head = (int)blockIdx.z;
    for (int64_t i = blockIdx.x; i < copy.rows; i += gridDim.x) {
        int64_t source = listed(copy.source_rows, heads, i, head) * copy.source_stride;
        int64_t slot = listed(copy.target_rows, heads, i, head);
        int64_t target = slot * copy.target_stride;
        for (int64_t j = threadIdx.x; j < copy.width; j += blockDim.x)
            targets[target + head * copy.width + j] = sources[source + head * copy.width + j];
        if (heads.positions != nullptr && blockIdx.y == 0 && threadIdx.x == 0)
            heads.row_positions[avl_cuda_row_place(slot, head, heads.heads)] = heads.positions[i];
    }
}

/* `copy.copy` in bytes. */
static avl_status_t launch_head_copy(avl_cuda_device_t *cuda, head_copy_t heads,
                                     const char *operation) {
    row_copy_t *copy = &heads.copy;
    uint64_t bits = (uintptr_t)copy->sources[0] | (uintptr_t)copy->sources[1] |
                    (uintptr_t)copy->targets[0] | (uintptr_t)copy->targets[1] |
                    (uint64_t)copy->source_stride | (uint64_t)copy->target_stride |
                    (uint64_t)copy->width;
    auto *kernel = head_copy_kernel<uint16_t>;
    int unit = 2;
    if (avl_cuda_divides(bits, 16)) {
        kernel = head_copy_kernel<uint4>;
        unit = 16;
    } else if (avl_cuda_divides(bits, 4)) {
        kernel = head_copy_kernel<uint32_t>;
        unit = 4;
    }
    copy->source_stride /= unit;
    copy->target_stride /= unit;
    copy->width /= unit;
    int64_t threads =
        avl_cuda_min(avl_cuda_ceil_div(copy->width, AVL_WARP) * AVL_WARP, AVL_CUDA_THREADS);
    dim3 grid((unsigned)avl_cuda_min(copy->rows, INT32_MAX), 2, (unsigned)heads.heads);
    AVL_LAUNCH(kernel, grid, (unsigned)threads, 0, cuda->stream, heads);
    return avl_cuda_launched(operation);
}

/* `copy` in bytes. */
static avl_status_t launch_copy(avl_cuda_device_t *cuda, row_copy_t copy, const char *operation) {
    uint64_t bits = (uintptr_t)copy.sources[0] | (uintptr_t)copy.sources[1] |
                    (uintptr_t)copy.targets[0] | (uintptr_t)copy.targets[1] |
                    (uint64_t)copy.source_stride | (uint64_t)copy.target_stride |
                    (uint64_t)copy.width;
    auto *kernel = row_copy_kernel<uint16_t>;
    int unit = 2;
    if (avl_cuda_divides(bits, 16)) {
        kernel = row_copy_kernel<uint4>;
        unit = 16;
    } else if (avl_cuda_divides(bits, 4)) {
        kernel = row_copy_kernel<uint32_t>;
        unit = 4;
    }
    copy.source_stride /= unit;
    copy.target_stride /= unit;
    copy.width /= unit;
    int64_t threads =
        avl_cuda_min(avl_cuda_ceil_div(copy.width, AVL_WARP) * AVL_WARP, AVL_CUDA_THREADS);
    dim3 grid((unsigned)avl_cuda_min(copy.rows, INT32_MAX), 2);
    AVL_LAUNCH(kernel, grid, (unsigned)threads, 0, cuda->stream, copy);
    return avl_cuda_launched(operation);
}

} // namespace

avl_status_t avl_cuda_kv_write(avl_device_t *device, const avl_kv_write_args_t *args) {
    AVL_TRY(avl_check_matrix("kv_write", "key", args->key, args->rows, args->source_stride,
                             args->row_width));
    AVL_TRY(avl_check_matrix("kv_write", "value", args->value, args->rows, args->source_stride,
                             args->row_width));
    AVL_TRY(avl_cuda_check_dtype("kv_write", "the cache", args->dtype));
    if (args->rows == 0 || args->row_width == 0)
        return AVL_OK;
    AVL_TRY(avl_check_array("kv_write", "keys", args->keys, args->row_width));
    AVL_TRY(avl_check_array("kv_write", "values", args->values, args->row_width));
    AVL_TRY(avl_check_array("kv_write", "slots", args->slots, args->rows));
    int64_t element = (int64_t)avl_dtype_bytes(args->dtype);
    row_copy_t copy = {{args->key, args->value},
                       {args->keys, args->values},
                       nullptr,
                       args->slots,
                       args->source_stride * element,
                       args->row_width * element,
                       args->rows,
                       args->row_width * element};
    AVL_TRY(avl_check_kv_heads(args));
    if (args->redirects == nullptr && args->positions == nullptr)
        return launch_copy(avl_cuda_of(device), copy, "kv_write");
    AVL_CHECK_SHAPE(args->kv_heads <= GRID_Z_MAX, "kv_write: %d KV heads", args->kv_heads);
    copy.width /= args->kv_heads;
    head_copy_t heads = {
        copy, args->kv_heads, 1, args->redirects, args->positions, args->row_positions};
    return launch_head_copy(avl_cuda_of(device), heads, "kv_write");
}

/* Rows of scratch memory, keys and values together: large enough to keep the GPU busy. */
static const int64_t staging_bytes = INT64_C(16) << 20;

/* In parallel, a target could be overwritten before another thread has read it as a source. So the
 * rows go in pieces, in order: all of a piece is read into scratch memory, then all of it is
 * written. In a compaction a target was the source of the same or an earlier index, so nothing that
 * a later piece reads has been overwritten. */
avl_status_t avl_cuda_kv_move(avl_device_t *device, const avl_kv_move_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(avl_check_matrix("kv_move", "keys", args->keys, args->rows, args->row_width,
                             args->row_width));
    AVL_TRY(avl_check_matrix("kv_move", "values", args->values, args->rows, args->row_width,
                             args->row_width));
    AVL_TRY(avl_cuda_check_dtype("kv_move", "the cache", args->dtype));
    if (args->rows == 0 || args->row_width == 0)
        return AVL_OK;
    int list_heads = args->heads > 0 ? args->heads : 1;
    AVL_CHECK_SHAPE(
        args->heads >= 0 && args->heads <= GRID_Z_MAX && args->row_width % list_heads == 0,
        "kv_move: rows of %" PRId64 " elements in %d heads", args->row_width, args->heads);
    AVL_TRY(avl_check_array("kv_move", "sources", args->sources, args->rows));
    AVL_TRY(avl_check_array("kv_move", "targets", args->targets, args->rows));
    int64_t row_bytes = args->row_width * (int64_t)avl_dtype_bytes(args->dtype);
    int64_t staged_bytes = avl_cuda_ceil_div(row_bytes, 16) * 16;
    int64_t piece_rows = staging_bytes / (2 * staged_bytes);
    piece_rows = piece_rows < 1 ? 1 : avl_cuda_min(piece_rows, args->rows);
    void *scratch = nullptr;
    AVL_TRY(avl_cuda_scratch(cuda, (size_t)(2 * piece_rows * staged_bytes),
                             "kv_move: rows on their way", &scratch));
    void *staged[2] = {scratch, (char *)scratch + piece_rows * staged_bytes};
    for (int64_t first = 0; first < args->rows; first += piece_rows) {
        int64_t rows = avl_cuda_min(piece_rows, args->rows - first);
        row_copy_t gather = {{args->keys, args->values},
                             {staged[0], staged[1]},
                             args->sources + first * list_heads,
                             nullptr,
                             row_bytes,
                             staged_bytes,
                             rows,
                             row_bytes};
        row_copy_t scatter = {{staged[0], staged[1]},
                              {args->keys, args->values},
                              nullptr,
                              args->targets + first * list_heads,
                              staged_bytes,
                              row_bytes,
                              rows,
                              row_bytes};
        if (list_heads == 1) {
            AVL_TRY(launch_copy(cuda, gather, "kv_move"));
            AVL_TRY(launch_copy(cuda, scatter, "kv_move"));
            continue;
        }
        gather.width = scatter.width = row_bytes / list_heads;
        head_copy_t gather_heads = {gather, list_heads, list_heads, nullptr, nullptr, nullptr};
        head_copy_t scatter_heads = {scatter, list_heads, list_heads, nullptr, nullptr, nullptr};
        AVL_TRY(launch_head_copy(cuda, gather_heads, "kv_move"));
        AVL_TRY(launch_head_copy(cuda, scatter_heads, "kv_move"));
    }
    return AVL_OK;
}
