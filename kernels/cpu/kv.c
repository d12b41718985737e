/* kernels/cpu/kv.c: rows into the cache, and about inside it. */
#include <inttypes.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

static void write_row(void *context, int64_t row, int thread) {
    const avl_kv_write_args_t *args = context;
    (void)thread;
    size_t element = avl_dtype_bytes(args->dtype);
    size_t bytes = (size_t)args->row_width * element;
    size_t source = (size_t)(row * args->source_stride) * element;
    int32_t slot = args->slots[row];
    if (slot >= 0) {
        size_t target = (size_t)slot * bytes;
        memcpy((char *)args->keys + target, (const char *)args->key + source, bytes);
        memcpy((char *)args->values + target, (const char *)args->value + source, bytes);
    }
    if (slot >= 0 && args->positions == NULL)
        return;
    size_t part = slot < 0 ? bytes / (size_t)args->kv_heads : 0;
    for (int head = 0; head < args->kv_heads; head++) {
        int64_t to = slot >= 0 ? slot : args->redirects[(int64_t)-1 - slot + head];
        size_t target = (size_t)to * bytes + (size_t)head * part;
        size_t from = source + (size_t)head * part;
        memcpy((char *)args->keys + target, (const char *)args->key + from, part);
        memcpy((char *)args->values + target, (const char *)args->value + from, part);
        if (args->positions != NULL)
            args->row_positions[avl_row_place(to, head, args->kv_heads)] = args->positions[row];
    }
}

avl_status_t avl_cpu_kv_write(avl_device_t *device, const avl_kv_write_args_t *args) {
    AVL_TRY(avl_check_matrix("kv_write", "key", args->key, args->rows, args->source_stride,
                             args->row_width));
    AVL_TRY(avl_check_matrix("kv_write", "value", args->value, args->rows, args->source_stride,
                             args->row_width));
    AVL_TRY(avl_check_dtype("kv_write", "the cache", args->dtype));
    if (args->rows == 0 || args->row_width == 0)
        return AVL_OK;
    AVL_TRY(avl_check_array("kv_write", "keys", args->keys, args->row_width));
    AVL_TRY(avl_check_array("kv_write", "values", args->values, args->row_width));
    AVL_TRY(avl_check_indices("kv_write", "slots", args->slots, args->rows,
                              args->redirects != NULL ? INT32_MIN : 0));
    AVL_TRY(avl_check_kv_heads(args));
    avl_kv_write_args_t copy = *args;
    avl_cpu_parallel(avl_cpu_device(device), args->rows, args->rows * args->row_width, write_row,
                     &copy);
    return AVL_OK;
}

/* The order of the rows is part of the contract, so one thread moves the keys and one the values.
 */
static void move_rows(void *context, int64_t item, int thread) {
    const avl_kv_move_args_t *args = context;
    (void)thread;
    char *memory = item == 0 ? args->keys : args->values;
    size_t bytes = (size_t)args->row_width * avl_dtype_bytes(args->dtype);
    int64_t heads = args->heads > 0 ? args->heads : 1;
    size_t part = bytes / (size_t)heads;
    for (int64_t i = 0; i < args->rows * heads; i++) {
        if (args->sources[i] != args->targets[i]) {
            size_t within = (size_t)(i % heads) * part;
            memcpy(memory + (size_t)args->targets[i] * bytes + within,
                   memory + (size_t)args->sources[i] * bytes + within, part);
        }
    }
}

avl_status_t avl_cpu_kv_move(avl_device_t *device, const avl_kv_move_args_t *args) {
    AVL_TRY(avl_check_matrix("kv_move", "keys", args->keys, args->rows, args->row_width,
                             args->row_width));
    AVL_TRY(avl_check_matrix("kv_move", "values", args->values, args->rows, args->row_width,
                             args->row_width));
    AVL_TRY(avl_check_dtype("kv_move", "the cache", args->dtype));
    if (args->rows == 0 || args->row_width == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(args->heads >= 0 && (args->heads == 0 || args->row_width % args->heads == 0),
                    "kv_move: rows of %" PRId64 " elements in %d heads", args->row_width,
                    args->heads);
    int64_t entries = args->rows * (args->heads > 0 ? args->heads : 1);
    AVL_TRY(avl_check_indices("kv_move", "sources", args->sources, entries, 0));
    AVL_TRY(avl_check_indices("kv_move", "targets", args->targets, entries, 0));
    avl_kv_move_args_t copy = *args;
    avl_cpu_parallel(avl_cpu_device(device), 2, args->rows * args->row_width, move_rows, &copy);
    return AVL_OK;
}
