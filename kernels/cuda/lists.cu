/* kernels/cuda/lists.cu: short pieces of host lists, packed into one copy and handed out by one
 * kernel: a decode step adds a row to every list of every sequence in every layer. What is short
 * enough, and a decode step's is, travels in the launch's parameters: a copy of its own would make
 * the GPU change between copying and computing twice a layer. */
#include <inttypes.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/numbers.h"

namespace {

typedef struct piece {
    int32_t *target;
    int64_t first; /* among the values */
    int32_t count;
} piece_t;

constexpr int SMALL_BYTES = 512, LARGE_BYTES = 3968; /* of parameters, which are 4 KB at most */

/* A warp a piece. */
__device__ __forceinline__ void hand_out(const piece_t *pieces, const int32_t *values,
                                         int64_t piece_count) {
    int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / AVL_WARP;
    int64_t step = (int64_t)gridDim.x * blockDim.x / AVL_WARP;
    for (; warp < piece_count; warp += step) {
        piece_t piece = pieces[warp];
        for (int32_t i = (int32_t)threadIdx.x % AVL_WARP; i < piece.count; i += AVL_WARP)
            piece.target[i] = values[piece.first + i];
    }
}

__global__ void publish_kernel(const piece_t *pieces, const int32_t *values, int64_t piece_count) {
    hand_out(pieces, values, piece_count);
}

/* The pieces, and behind them the values. */
template <int BYTES> struct packed_t {
    int64_t piece_count;
    alignas(piece_t) unsigned char bytes[BYTES];
};

template <int BYTES>
__global__ void publish_packed_kernel(const __grid_constant__ packed_t<BYTES> packed) {
    const piece_t *pieces = (const piece_t *)packed.bytes;
    hand_out(pieces, (const int32_t *)(pieces + packed.piece_count), packed.piece_count);
}

template <int BYTES>
static avl_status_t publish_packed(avl_cuda_device_t *cuda, const void *packed, size_t bytes,
                                   int64_t piece_count) {
    packed_t<BYTES> parameters = {};
    parameters.piece_count = piece_count;
    memcpy(parameters.bytes, packed, bytes);
    AVL_LAUNCH(publish_packed_kernel<BYTES>, avl_cuda_blocks(piece_count * AVL_WARP),
               AVL_CUDA_THREADS, 0, cuda->stream, parameters);
    return avl_cuda_launched("publish");
}

static avl_status_t publish_long(avl_cuda_device_t *cuda, const void *packed, size_t bytes,
                                 int64_t piece_count) {
    void *scratch = nullptr;
    AVL_TRY(avl_cuda_scratch(cuda, bytes, "publish", &scratch));
    AVL_TRY(avl_cuda_send(cuda, scratch, packed, bytes, "publish"));
    const piece_t *pieces = (const piece_t *)scratch;
    AVL_LAUNCH(publish_kernel, avl_cuda_blocks(piece_count * AVL_WARP), AVL_CUDA_THREADS, 0,
               cuda->stream, pieces, (const int32_t *)(pieces + piece_count), piece_count);
    return avl_cuda_launched("publish");
}

} // namespace

avl_status_t avl_cuda_publish(avl_device_t *device, const avl_publish_args_t *args) {
    avl_cuda_device_t *cuda = avl_cuda_of(device);
    AVL_TRY(avl_check_publish(args));
    int64_t value_count = 0;
    for (int64_t i = 0; i < args->item_count; i++)
        value_count += args->items[i].count;
    if (value_count == 0)
        return AVL_OK;
    size_t piece_bytes = (size_t)args->item_count * sizeof(piece_t);
    size_t bytes = piece_bytes + (size_t)value_count * sizeof(int32_t);
    void *packed = nullptr;
    AVL_TRY(avl_cuda_pack(cuda, bytes, "publish", &packed));
    piece_t *pieces = (piece_t *)packed;
    int32_t *values = (int32_t *)((char *)packed + piece_bytes);
    memset(pieces, 0, piece_bytes);
    int64_t first = 0;
    for (int64_t i = 0; i < args->item_count; i++) {
        const avl_publish_item_t *item = &args->items[i];
        pieces[i].target = item->target;
        pieces[i].first = first;
        pieces[i].count = item->count;
        if (item->count > 0)
            memcpy(values + first, item->source, (size_t)item->count * sizeof *values);
        first += item->count;
    }
    if (bytes <= SMALL_BYTES)
        return publish_packed<SMALL_BYTES>(cuda, packed, bytes, args->item_count);
    if (bytes <= LARGE_BYTES)
        return publish_packed<LARGE_BYTES>(cuda, packed, bytes, args->item_count);
    return publish_long(cuda, packed, bytes, args->item_count);
}
