#include "model/loader.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* A rectangle of a tensor that is `columns` wide, and where its values go; target NULL only checks.
 */
typedef struct rectangle {
    const void *source;
    avl_dtype_t source_dtype;
    int64_t source_stride;
    void *target;
    avl_dtype_t target_dtype;
    int64_t rows, columns;
} rectangle_t;

#define NOT_FOUND INT64_MAX

static float value_at(const void *row, avl_dtype_t dtype, int64_t column) {
    if (dtype == AVL_DTYPE_F32) {
        float value;
        memcpy(&value, (const char *)row + column * 4, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, (const char *)row + column * 2, sizeof bits);
    return dtype == AVL_DTYPE_F16 ? avl_f16_to_f32(bits) : avl_bf16_to_f32(bits);
}

/* Whether all exponents of a row leave room for a number. Without early exits, so that it
 * vectorises. */
static int row_is_finite(const void *row, avl_dtype_t dtype, int64_t columns) {
    uint32_t bad = 0;
    if (dtype == AVL_DTYPE_F32) {
        for (int64_t column = 0; column < columns; column++) {
            uint32_t bits;
            memcpy(&bits, (const char *)row + column * 4, sizeof bits);
            bad |= (bits & 0x7f800000u) == 0x7f800000u;
        }
        return !bad;
    }
    uint16_t mask = dtype == AVL_DTYPE_F16 ? 0x7c00u : 0x7f80u;
    for (int64_t column = 0; column < columns; column++) {
        uint16_t bits;
        memcpy(&bits, (const char *)row + column * 2, sizeof bits);
        bad |= (uint32_t)((bits & mask) == mask);
    }
    return !bad;
}

static void convert_row(const rectangle_t *part, int64_t row) {
    const char *source = (const char *)part->source +
                         row * part->source_stride * (int64_t)avl_dtype_bytes(part->source_dtype);
    if (part->target_dtype == AVL_DTYPE_F32) {
        float *target = (float *)part->target + row * part->columns;
        for (int64_t column = 0; column < part->columns; column++)
            target[column] = value_at(source, part->source_dtype, column);
        return;
    }
    uint16_t *target = (uint16_t *)part->target + row * part->columns;
    if (part->source_dtype == part->target_dtype) {
        memcpy(target, source, (size_t)part->columns * 2);
        return;
    }
    if (part->target_dtype == AVL_DTYPE_F16) {
        for (int64_t column = 0; column < part->columns; column++)
            target[column] = avl_f32_to_f16(value_at(source, part->source_dtype, column));
        return;
    }
    for (int64_t column = 0; column < part->columns; column++)
        target[column] = avl_f32_to_bf16(value_at(source, part->source_dtype, column));
}

/* Checks and converts; the index (row * columns + column) of the first value that is not finite, or
 * NOT_FOUND. A finite number beyond the target's largest one becomes infinite by rounding: that is
 * found as well. */
static int64_t take_rectangle(const rectangle_t *part, int threads) {
    int64_t bad_row = NOT_FOUND;
    int64_t target_bytes = (int64_t)avl_dtype_bytes(part->target_dtype) * part->columns;
#ifdef AVL_LOAD_ON_ONE_THREAD
    (void)threads;
#else
#pragma omp parallel for num_threads(threads) reduction(min : bad_row)
#endif
    for (int64_t row = 0; row < part->rows; row++) {
        const char *source =
            (const char *)part->source +
            row * part->source_stride * (int64_t)avl_dtype_bytes(part->source_dtype);
        int finite = row_is_finite(source, part->source_dtype, part->columns);
        if (finite && part->target) {
            convert_row(part, row);
            finite = row_is_finite((const char *)part->target + row * target_bytes,
                                   part->target_dtype, part->columns);
        }
        if (!finite && row < bad_row)
            bad_row = row;
    }
    if (bad_row == NOT_FOUND)
        return NOT_FOUND;
    const char *source =
        (const char *)part->source +
        bad_row * part->source_stride * (int64_t)avl_dtype_bytes(part->source_dtype);
    int64_t column = 0;
    while (column < part->columns - 1 && isfinite(value_at(source, part->source_dtype, column)))
        column++;
    return bad_row * part->columns + column;
}

static avl_status_t allocate(avl_loader_t *loader, size_t bytes, const char *name,
                             void **memory_p) {
    AVL_TRY(avl_grow(*loader->owned_count_p + 1, sizeof **loader->owned_p, "list of weights",
                     loader->owned_p, &loader->owned_capacity));
    void *memory;
    AVL_TRY(loader->device->ops->allocate(loader->device, bytes ? bytes : 1, name, &memory));
    (*loader->owned_p)[(*loader->owned_count_p)++] = memory;
    loader->memory->weight_bytes += bytes;
    *memory_p = memory;
    return AVL_OK;
}

static void report_progress(avl_loader_t *loader, size_t bytes) {
    loader->seen_bytes += bytes;
    size_t all_bytes = avl_weights_bytes(loader->weights);
    if (loader->progress && all_bytes)
        loader->progress(loader->progress_context, (double)loader->seen_bytes / (double)all_bytes);
}

static avl_status_t not_finite(const char *name, int64_t row, int64_t column, float value) {
    return avl_fail(AVL_ERR_DATA, "tensor %s: value [%lld, %lld] is %s", name, (long long)row,
                    (long long)column,
                    isnan(value)   ? "not a number"
                    : isinf(value) ? "infinite"
                                   : "too large for the model's number format");
}

/* Host memory through which weights go to a device that the host cannot write to. */
#define STAGING_BYTES ((int64_t)16 << 20)

/* As take_rectangle, with the target in the device's memory: blocks of rows are converted in host
 * memory and sent. */
static avl_status_t send_rectangle(avl_loader_t *loader, const rectangle_t *part, int threads,
                                   void *target, int64_t *bad_p) {
    int64_t row_bytes = part->columns * (int64_t)avl_dtype_bytes(part->target_dtype);
    int64_t block_rows = row_bytes > 0 && row_bytes < STAGING_BYTES ? STAGING_BYTES / row_bytes : 1;
    block_rows = block_rows < part->rows ? block_rows : part->rows;
    void *staging = NULL;
    int64_t bad = NOT_FOUND;
    AVL_TRY(avl_alloc((size_t)block_rows, (size_t)row_bytes, "weights on their way", &staging));
    avl_status_t status = AVL_OK;
    for (int64_t row = 0; row < part->rows && bad == NOT_FOUND; row += block_rows) {
        rectangle_t block = *part;
        block.source = (const char *)part->source +
                       row * part->source_stride * (int64_t)avl_dtype_bytes(part->source_dtype);
        block.target = staging;
        block.rows = block_rows < part->rows - row ? block_rows : part->rows - row;
        bad = take_rectangle(&block, threads);
        if (bad != NOT_FOUND) {
            bad += row * part->columns;
            break;
        }
        AVL_TRY_GOTO(status,
                     loader->device->ops->upload(loader->device, (char *)target + row * row_bytes,
                                                 staging, (size_t)(block.rows * row_bytes)),
                     out);
        AVL_TRY_GOTO(status, loader->device->ops->synchronize(loader->device), out);
    }
    *bad_p = bad;
out:
    free(staging);
    return status;
}

/* Checks and converts to part->target, which is memory of the device. */
static avl_status_t place_rectangle(avl_loader_t *loader, const rectangle_t *part, int threads,
                                    int64_t *bad_p) {
    if (!loader->device->is_host)
        return send_rectangle(loader, part, threads, part->target, bad_p);
    *bad_p = take_rectangle(part, threads);
    return AVL_OK;
}

/* The part of `view`, seen as [*, columns], that the shards name. */
static avl_status_t take_matrix(avl_loader_t *loader, const char *name,
                                const avl_tensor_view_t *view, int64_t columns,
                                avl_shard_t row_shard, avl_shard_t column_shard,
                                avl_matrix_t *matrix_p) {
    size_t source_bytes = avl_dtype_bytes(view->dtype);
    rectangle_t part = {
        .source = (const char *)view->data +
                  (row_shard.first * columns + column_shard.first) * (int64_t)source_bytes,
        .source_dtype = view->dtype,
        .source_stride = columns,
        .target_dtype = loader->dtype,
        .rows = row_shard.count,
        .columns = column_shard.count,
    };
    size_t bytes = (size_t)part.rows * (size_t)part.columns * avl_dtype_bytes(loader->dtype);
    int in_place = loader->device->is_host && view->dtype == loader->dtype &&
                   (uintptr_t)part.source % source_bytes == 0;
    if (in_place)
        loader->memory->mapped_bytes += bytes;
    else
        AVL_TRY(allocate(loader, bytes, name, &part.target));
    /* Waking a thread for less takes longer than the work. */
    int threads = part.rows * part.columns < 65536 ? 1 : loader->device->info.threads;
    int64_t bad = NOT_FOUND;
    AVL_TRY(place_rectangle(loader, &part, threads, &bad));
    if (bad != NOT_FOUND) {
        int64_t row = bad / part.columns, column = bad % part.columns;
        return not_finite(
            name, row_shard.first + row, column_shard.first + column,
            value_at((const char *)part.source + row * columns * (int64_t)source_bytes, view->dtype,
                     column));
    }
    matrix_p->data = in_place ? part.source : part.target;
    matrix_p->stride = in_place ? columns : part.columns;
    report_progress(loader, view->bytes);
    return AVL_OK;
}

avl_status_t avl_loader_matrix(avl_loader_t *loader, const char *name, int64_t rows,
                               int64_t columns, avl_shard_t row_shard, avl_shard_t column_shard,
                               avl_matrix_t *matrix_p) {
    avl_tensor_view_t view;
    AVL_TRY(avl_weights_view(loader->weights, name, 2, (const int64_t[]){rows, columns}, &view));
    return take_matrix(loader, name, &view, columns, row_shard, column_shard, matrix_p);
}

avl_status_t avl_loader_convolution(avl_loader_t *loader, const char *name, int64_t out,
                                    int64_t channels, int64_t side, avl_matrix_t *matrix_p) {
    avl_tensor_view_t view;
    int64_t columns = channels * side * side;
    AVL_TRY(avl_weights_view(loader->weights, name, 4, (const int64_t[]){out, channels, side, side},
                             &view));
    return take_matrix(loader, name, &view, columns, (avl_shard_t){0, (int)out},
                       (avl_shard_t){0, (int)columns}, matrix_p);
}

avl_status_t avl_loader_floats(avl_loader_t *loader, const char *name, int axis_count,
                               const int64_t *shape, avl_shard_t elements, float **floats_p) {
    avl_tensor_view_t view;
    AVL_TRY(avl_weights_view(loader->weights, name, axis_count, shape, &view));
    int64_t width = shape[axis_count - 1];
    rectangle_t part = {
        .source = (const char *)view.data + elements.first * (int64_t)avl_dtype_bytes(view.dtype),
        .source_dtype = view.dtype,
        .source_stride = elements.count,
        .target_dtype = AVL_DTYPE_F32,
        .rows = 1,
        .columns = elements.count,
    };
    AVL_TRY(allocate(loader, (size_t)elements.count * sizeof(float), name, &part.target));
    int64_t bad = NOT_FOUND;
    AVL_TRY(place_rectangle(loader, &part, 1, &bad));
    if (bad != NOT_FOUND) {
        int64_t index = elements.first + bad;
        return not_finite(name, axis_count > 1 ? index / width : 0, index % width,
                          value_at(part.source, part.source_dtype, bad));
    }
    *floats_p = part.target;
    report_progress(loader, view.bytes);
    return AVL_OK;
}
