/* kernels/cpu/linear.c: two ways to a product, chosen by its shape and what the caller says of its
 * rows.
 *
 * Our own dot products read the weights where they lie, once for AVL_LINEAR_ROW_BLOCK rows; they
 * are best while reading is what costs. oneDNN packs blocks of weights first and wins by a little
 * from AVL_MATMUL_ROWS rows on (bench/kernels.c has the figures). On each way a row's result is the
 * same whatever other rows there are. */
#include <inttypes.h>
#include <stdatomic.h>

#include "kernels/cpu/check.h"
#include "kernels/cpu/device.h"
#include "kernels/cpu/matmul.h"

typedef struct linear_run {
    avl_cpu_device_t *cpu;
    const avl_linear_args_t *args;
    const avl_matmul_plan_t *plan;
    int64_t row_blocks;
    atomic_int status;
    char detail[AVL_STATUS_DETAIL_BYTES]; /* of the item that failed first */
} linear_run_t;

/* Row blocks vary fastest: the weights of a column block are read from memory once and then from
 * the cache. */
static void linear_item(void *context, int64_t item, int thread) {
    const linear_run_t *run = context;
    const avl_linear_args_t *args = run->args;
    (void)thread;
    int64_t row = item % run->row_blocks * AVL_LINEAR_ROW_BLOCK;
    int64_t column = item / run->row_blocks * AVL_LINEAR_COLUMN_BLOCK;
    run->cpu->kernels->linear(args, row, avl_min64(AVL_LINEAR_ROW_BLOCK, args->rows - row), column,
                              avl_min64(AVL_LINEAR_COLUMN_BLOCK, args->out_width - column));
}

/* The text of a failure belongs to the thread that failed: hand the first one to the caller. */
static void keep_failure(linear_run_t *run, avl_status_t status) {
    int expected = AVL_OK;
    if (atomic_compare_exchange_strong(&run->status, &expected, (int)status)) {
        const char *text = avl_status_detail();
        size_t i = 0;
        for (; text[i] != '\0' && i + 1 < sizeof run->detail; i++)
            run->detail[i] = text[i];
        run->detail[i] = '\0';
    }
}

/* The last blocks are moved back to end with the matrix: they compute some outputs again, but write
 * only their own. A single block of too few rows computes what lies behind them, and drops it. */
static void matmul_item(void *context, int64_t item, int thread) {
    linear_run_t *run = context;
    const avl_linear_args_t *args = run->args;
    int64_t row = item % run->row_blocks * AVL_MATMUL_ROWS;
    int64_t column = item / run->row_blocks * AVL_MATMUL_COLUMNS;
    int64_t first_row = avl_max64(0, avl_min64(row, args->rows - AVL_MATMUL_ROWS));
    int64_t first_column = avl_min64(column, args->out_width - AVL_MATMUL_COLUMNS);
    float *sums = run->cpu->thread_scratch[thread].memory;
    avl_status_t status = avl_matmul_run(run->plan, args, first_row, first_column, thread, sums);
    if (status != AVL_OK) {
        keep_failure(run, status);
        return;
    }
    int64_t end_row = avl_min64(first_row + AVL_MATMUL_ROWS, args->rows);
    run->cpu->kernels->linear_finish(
        args, row, end_row - row, column, first_column + AVL_MATMUL_COLUMNS - column,
        sums + (row - first_row) * AVL_MATMUL_COLUMNS + (column - first_column),
        AVL_MATMUL_COLUMNS);
}

static avl_status_t run_matmul(linear_run_t *run) {
    const avl_linear_args_t *args = run->args;
    AVL_TRY(avl_scratch_reserve_threads(run->cpu, avl_matmul_scratch_bytes(run->plan)));
    run->row_blocks = avl_ceil_div(args->rows, AVL_MATMUL_ROWS);
    int64_t items = run->row_blocks * avl_ceil_div(args->out_width, AVL_MATMUL_COLUMNS);
    int threads_before = avl_matmul_begin();
    avl_cpu_parallel(run->cpu, items, items * AVL_MATMUL_ROWS * AVL_MATMUL_COLUMNS * 16,
                     matmul_item, run);
    avl_matmul_end(threads_before);
    avl_status_t status = (avl_status_t)atomic_load(&run->status);
    return status == AVL_OK ? AVL_OK : avl_fail(status, "linear: %s", run->detail);
}

static int can_matmul(const avl_cpu_kernels_t *kernels, const avl_linear_args_t *args) {
    int has_format =
        args->dtype == AVL_DTYPE_F32 ? kernels->matmul_library_f32 : kernels->matmul_library_bf16;
    return has_format && args->out_width >= AVL_MATMUL_COLUMNS &&
           args->in_width >= AVL_MATMUL_DEPTH_MIN;
}

static int suits_matmul(const avl_cpu_kernels_t *kernels, const avl_linear_args_t *args) {
    int many = args->way == AVL_LINEAR_BY_ROWS ? args->rows >= AVL_MATMUL_ROWS
                                               : args->way == AVL_LINEAR_MANY;
    return many && can_matmul(kernels, args);
}

avl_status_t avl_cpu_prepare_linear(avl_device_t *device, const avl_linear_args_t *args) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    if (!can_matmul(cpu->kernels, args))
        return AVL_OK;
    const avl_matmul_plan_t *plan;
    AVL_TRY(avl_matmul_plan(cpu->matmul, args, &plan));
    if (plan != NULL)
        AVL_TRY(avl_scratch_reserve_threads(cpu, avl_matmul_scratch_bytes(plan)));
    avl_scratch_account(cpu);
    return AVL_OK;
}

static avl_status_t check_linear(const avl_linear_args_t *args) {
    AVL_TRY(avl_check_dtype("linear", "input", args->dtype));
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

avl_status_t avl_cpu_linear(avl_device_t *device, const avl_linear_args_t *args) {
    AVL_TRY(check_linear(args));
    if (args->rows == 0 || args->out_width == 0)
        return AVL_OK;
    linear_run_t run = {.cpu = avl_cpu_device(device), .args = args};
    if (suits_matmul(run.cpu->kernels, args)) {
        AVL_TRY(avl_matmul_plan(run.cpu->matmul, args, &run.plan));
        if (run.plan != NULL)
            return run_matmul(&run);
    }
    run.row_blocks = avl_ceil_div(args->rows, AVL_LINEAR_ROW_BLOCK);
    int64_t items = run.row_blocks * avl_ceil_div(args->out_width, AVL_LINEAR_COLUMN_BLOCK);
    avl_cpu_parallel(run.cpu, items, args->rows * args->out_width * (args->in_width / 16 + 1),
                     linear_item, &run);
    return AVL_OK;
}
