/* kernels/cpu/kv.c: rows into the cache, and about inside it. */
#include <string.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"

static void write_row(void *context, int64_t row, int thread) {
    const avl_kv_write_args_t *args = context;
    (void)thread;
    size_t element = avl_dtype_bytes(args->dtype);
    size_t bytes = (size_t)args->row_width * element;
    size_t source = (size_t)(row * args->source_stride) * element;
    size_t target = (size_t)args->slots[row] * bytes;
    memcpy((char *)args->keys + target, (const char *)args->key + source, bytes);
    memcpy((char *)args->values + target, (const char *)args->value + source, bytes);
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
    AVL_TRY(avl_check_indices("kv_write", "slots", args->slots, args->rows, 0));
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
    for (int64_t i = 0; i < args->rows; i++) {
        if (args->sources[i] != args->targets[i]) {
            memcpy(memory + (size_t)args->targets[i] * bytes,
                   memory + (size_t)args->sources[i] * bytes, bytes);
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
    AVL_TRY(avl_check_indices("kv_move", "sources", args->sources, args->rows, 0));
    AVL_TRY(avl_check_indices("kv_move", "targets", args->targets, args->rows, 0));
    avl_kv_move_args_t copy = *args;
    avl_cpu_parallel(avl_cpu_device(device), 2, args->rows * args->row_width, move_rows, &copy);
    return AVL_OK;
}
