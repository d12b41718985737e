/* kernels/cpu/text.inc.h: softmax weights of listed rows, from what decode attention left of its
 * logits. */

enum { TEXT_ROWS = 64 };

/* Adds the weights of rows [first, first + count) for one query head. */
AVL_INLINE void add_text_weights(const avl_text_weights_args_t *args, const avl_text_row_t *row,
                                 int kv_head, int head, int first, int count,
                                 const avl_dtype_t dtype) {
    const avl_kv_view_t *kv = &args->kv;
    int64_t width = kv->head_width, element = (int64_t)avl_dtype_bytes(dtype);
    const char *query =
        (const char *)args->query + (row->query_row * args->query_stride + head * width) * element;
    const char *keys = (const char *)kv->keys + kv_head * width * element;
    float logits[TEXT_ROWS];
    for (int j = 0; j < TEXT_ROWS; j++)
        logits[j] = -INFINITY;
    for (int j = 0; j < count; j++) {
        int64_t slot = row->rows[first + j];
        if (row->first_position > 0 &&
            args->positions[avl_row_place(slot, kv_head, kv->kv_heads)] < row->first_position)
            continue;
        const char *key = keys + slot * kv->row_stride * element;
        logits[j] =
            args->scale * (dtype == AVL_DTYPE_F32
                               ? dot_f32((const float *)query, (const float *)key, width)
                               : dot_bf16((const uint16_t *)query, (const uint16_t *)key, width));
    }
    float largest = row->totals[2 * head], inverse = 1.0f / row->totals[2 * head + 1];
    float *weights = row->weights + (int64_t)(args->first_head + kv_head) * row->row_count + first;
    for (int j = 0; j < count; j += AVL_LANES) {
        avl_vf_t sum = avl_v_load_any(weights, j, count - j, AVL_DTYPE_F32);
        sum += avl_v_exp(avl_v_load(logits + j) - largest) * inverse;
        avl_v_store_any(weights, j, sum, count - j, AVL_DTYPE_F32);
    }
}

static void text_weights(const avl_text_weights_args_t *args, const avl_text_row_t *row,
                         int kv_head) {
    int end = first_query_head(&args->heads, kv_head + 1);
    memset(row->weights + (int64_t)(args->first_head + kv_head) * row->row_count, 0,
           (size_t)row->row_count * sizeof(float));
    for (int head = first_query_head(&args->heads, kv_head); head < end; head++) {
        for (int first = 0; first < row->row_count; first += TEXT_ROWS) {
            int count = (int)avl_min64(TEXT_ROWS, row->row_count - first);
            if (args->kv.dtype == AVL_DTYPE_F32)
                add_text_weights(args, row, kv_head, head, first, count, AVL_DTYPE_F32);
            else
                add_text_weights(args, row, kv_head, head, first, count, AVL_DTYPE_BF16);
        }
    }
}
