/* kernels/cpu/linear.inc.h: matrix products as tiles of dot products.
 *
 * Both operands lie with K contiguous, so nothing is packed: a tile of inputs times weights is
 * accumulated in registers, one vector of partial sums for every output, and every output is summed
 * in the same order whatever tile it falls into. That makes a row's result independent of the rows
 * beside it, and it streams the weights once per AVL_LINEAR_ROW_BLOCK rows. */

#if AVL_LANES == 16 /* 32 registers */
enum { TILE_ROWS = 4, TILE_COLUMNS = 6 };
#else /* 16 registers */
enum { TILE_ROWS = 2, TILE_COLUMNS = 4 };
#endif

/* sums[i][j] = input row i . weight row j, for a rows x columns tile whose sizes are constants of
 * the caller. */
AVL_INLINE void dot_tile_f32(const float *input, int64_t input_stride, const float *weight,
                             int64_t weight_stride, int64_t depth, float *sums, int64_t sums_stride,
                             const int rows, const int columns) {
    avl_vf_t sum[TILE_ROWS][TILE_COLUMNS] = {{{0}}};
    int64_t k = 0;
    for (; k + AVL_LANES <= depth; k += AVL_LANES) {
        avl_vf_t w[TILE_COLUMNS];
        for (int j = 0; j < columns; j++)
            w[j] = avl_v_load(weight + j * weight_stride + k);
        for (int i = 0; i < rows; i++) {
            avl_vf_t x = avl_v_load(input + i * input_stride + k);
            for (int j = 0; j < columns; j++)
                sum[i][j] += x * w[j];
        }
    }
    if (k < depth) {
        for (int i = 0; i < rows; i++) {
            avl_vf_t x = avl_v_load_part(input + i * input_stride + k, depth - k);
            for (int j = 0; j < columns; j++)
                sum[i][j] += x * avl_v_load_part(weight + j * weight_stride + k, depth - k);
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++)
            sums[i * sums_stride + j] = avl_v_sum(sum[i][j]);
    }
}

AVL_INLINE void dot_tile_bf16(const uint16_t *input, int64_t input_stride, const uint16_t *weight,
                              int64_t weight_stride, int64_t depth, float *sums,
                              int64_t sums_stride, const int rows, const int columns) {
    avl_vf_t sum[TILE_ROWS][TILE_COLUMNS] = {{{0}}};
    int64_t k = 0;
    for (; k + 2 * AVL_LANES <= depth; k += 2 * AVL_LANES) {
        avl_vu_t w[TILE_COLUMNS];
        for (int j = 0; j < columns; j++)
            w[j] = avl_v_load_pairs(weight + j * weight_stride + k);
        for (int i = 0; i < rows; i++) {
            avl_vu_t x = avl_v_load_pairs(input + i * input_stride + k);
            for (int j = 0; j < columns; j++)
                sum[i][j] = avl_v_dot_pairs(sum[i][j], x, w[j]);
        }
    }
    if (k < depth) {
        for (int i = 0; i < rows; i++) {
            avl_vu_t x = avl_v_load_pairs_part(input + i * input_stride + k, depth - k);
            for (int j = 0; j < columns; j++) {
                avl_vu_t w = avl_v_load_pairs_part(weight + j * weight_stride + k, depth - k);
                sum[i][j] = avl_v_dot_pairs(sum[i][j], x, w);
            }
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++)
            sums[i * sums_stride + j] = avl_v_sum(sum[i][j]);
    }
}

AVL_INLINE void dot_tile(const avl_linear_args_t *args, int64_t row, int64_t column, float *sums,
                         int64_t sums_stride, const int rows, const int columns) {
    int64_t input = row * args->input_stride, weight = column * args->weight_stride;
    if (args->dtype == AVL_DTYPE_F32) {
        dot_tile_f32((const float *)args->input + input, args->input_stride,
                     (const float *)args->weight + weight, args->weight_stride, args->in_width,
                     sums, sums_stride, rows, columns);
    } else {
        dot_tile_bf16((const uint16_t *)args->input + input, args->input_stride,
                      (const uint16_t *)args->weight + weight, args->weight_stride, args->in_width,
                      sums, sums_stride, rows, columns);
    }
}

/* All rows of the block against one strip of weight rows, which stay in the cache meanwhile. */
AVL_INLINE void dot_strip(const avl_linear_args_t *args, int64_t row, int64_t rows, int64_t column,
                          float *sums, int64_t sums_stride, const int columns) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        dot_tile(args, row + i, column, sums + i * sums_stride, sums_stride, TILE_ROWS, columns);
#if AVL_LANES == 16
    if (i + 2 <= rows) {
        dot_tile(args, row + i, column, sums + i * sums_stride, sums_stride, 2, columns);
        i += 2;
    }
#endif
    if (i < rows)
        dot_tile(args, row + i, column, sums + i * sums_stride, sums_stride, 1, columns);
}

static void linear_finish(const avl_linear_args_t *args, int64_t row, int64_t rows, int64_t column,
                          int64_t columns, const float *sums, int64_t sums_stride) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t target = (row + i) * args->output_stride + column;
        for (int64_t j = 0; j < columns; j += AVL_LANES) {
            int64_t count = columns - j;
            avl_vf_t value = avl_v_load_any(sums + i * sums_stride, j, count, AVL_DTYPE_F32);
            if (args->bias != NULL)
                value += avl_v_load_any(args->bias + column, j, count, AVL_DTYPE_F32);
            value = avl_v_activate(value, args->activation);
            avl_v_store_any(args->output, target + j, value, count, args->output_dtype);
        }
    }
}

static void linear_block(const avl_linear_args_t *args, int64_t row, int64_t rows, int64_t column,
                         int64_t columns) {
    float sums[AVL_LINEAR_ROW_BLOCK * AVL_LINEAR_COLUMN_BLOCK];
    int64_t j = 0;
    for (; j + TILE_COLUMNS <= columns; j += TILE_COLUMNS)
        dot_strip(args, row, rows, column + j, sums + j, AVL_LINEAR_COLUMN_BLOCK, TILE_COLUMNS);
    for (; j < columns; j++)
        dot_strip(args, row, rows, column + j, sums + j, AVL_LINEAR_COLUMN_BLOCK, 1);
    linear_finish(args, row, rows, column, columns, sums, AVL_LINEAR_COLUMN_BLOCK);
}
