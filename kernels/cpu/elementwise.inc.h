/* kernels/cpu/elementwise.inc.h: one row, or one range, of every element-wise operation, and the
 * largest of a row. */

static void norm_row(const avl_norm_args_t *args, int64_t row) {
    const float *input = args->input + row * args->input_stride;
    int64_t width = args->width, first = row * width;
    float mean = 0.0f;
    if (args->bias != NULL) {
        avl_vf_t sum = {0};
        for (int64_t j = 0; j < width; j += AVL_LANES)
            sum += avl_v_load_any(input, j, width - j, AVL_DTYPE_F32);
        mean = avl_v_sum(sum) / (float)width;
    }
    avl_vf_t squares = {0};
    for (int64_t j = 0; j < width; j += AVL_LANES) {
        avl_vf_t value = avl_v_load_any(input, j, width - j, AVL_DTYPE_F32) - mean;
        if (width - j >= AVL_LANES) {
            squares += value * value;
        } else { /* the lanes behind the end hold -mean */
            float lanes[AVL_LANES] = {0};
            avl_v_store_part(lanes, value, width - j);
            value = avl_v_load(lanes);
            squares += value * value;
        }
    }
    float inverse = 1.0f / sqrtf(avl_v_sum(squares) / (float)width + args->epsilon);
    for (int64_t j = 0; j < width; j += AVL_LANES) {
        int64_t count = width - j;
        avl_vf_t value = (avl_v_load_any(input, j, count, AVL_DTYPE_F32) - mean) * inverse;
        value *= avl_v_load_any(args->weight, j, count, AVL_DTYPE_F32);
        if (args->bias != NULL)
            value += avl_v_load_any(args->bias, j, count, AVL_DTYPE_F32);
        avl_v_store_any(args->output, first + j, value, count, args->output_dtype);
    }
}

static void rope_row(const avl_rope_args_t *args, int64_t row) {
    int64_t half = args->head_width / 2;
    const float *cosines = args->cosines + row * half, *sines = args->sines + row * half;
    for (int head = 0; head < args->heads; head++) {
        int64_t low = row * args->row_stride + (int64_t)head * args->head_width, high = low + half;
        for (int64_t j = 0; j < half; j += AVL_LANES) {
            int64_t count = half - j;
            avl_vf_t x = avl_v_load_any(args->data, low + j, count, args->dtype);
            avl_vf_t y = avl_v_load_any(args->data, high + j, count, args->dtype);
            avl_vf_t c = avl_v_load_any(cosines, j, count, AVL_DTYPE_F32);
            avl_vf_t s = avl_v_load_any(sines, j, count, AVL_DTYPE_F32);
            avl_v_store_any(args->data, low + j, x * c - y * s, count, args->dtype);
            avl_v_store_any(args->data, high + j, y * c + x * s, count, args->dtype);
        }
    }
}

static void activation_range(const avl_activation_args_t *args, int64_t first, int64_t count) {
    for (int64_t j = 0; j < count; j += AVL_LANES) {
        avl_vf_t value = avl_v_load_any(args->data, first + j, count - j, args->dtype);
        value = avl_v_activate(value, args->activation);
        avl_v_store_any(args->data, first + j, value, count - j, args->dtype);
    }
}

static void gated_row(const avl_gated_args_t *args, int64_t row) {
    int64_t width = args->width, gate = row * 2 * width, up = gate + width;
    for (int64_t j = 0; j < width; j += AVL_LANES) {
        int64_t count = width - j;
        avl_vf_t value = avl_v_load_any(args->gate_up, gate + j, count, args->dtype);
        value = avl_v_activate(value, args->activation);
        value *= avl_v_load_any(args->gate_up, up + j, count, args->dtype);
        avl_v_store_any(args->output, row * width + j, value, count, args->dtype);
    }
}

/* With a bias the range is whole rows. */
static void add_range(const avl_add_args_t *args, int64_t first, int64_t count) {
    int64_t width = args->bias != NULL ? args->width : count;
    for (int64_t row = 0; row < count; row += width) {
        for (int64_t j = 0; j < width; j += AVL_LANES) {
            int64_t index = first + row + j, rest = width - j;
            avl_vf_t value = avl_v_load_any(args->target, index, rest, AVL_DTYPE_F32);
            if (args->addend != NULL)
                value += avl_v_load_any(args->addend, index, rest, AVL_DTYPE_F32);
            if (args->bias != NULL)
                value += avl_v_load_any(args->bias, j, rest, AVL_DTYPE_F32);
            avl_v_store_any(args->target, index, value, rest, AVL_DTYPE_F32);
        }
    }
}

static void embed_row(const avl_embed_args_t *args, int64_t row) {
    float *output = args->output + row * args->width;
    int64_t entry = args->token_ids[row] - args->first_row;
    if (entry < 0 || entry >= args->table_rows) {
        memset(output, 0, (size_t)args->width * sizeof(float));
        return;
    }
    for (int64_t j = 0; j < args->width; j += AVL_LANES) {
        int64_t count = args->width - j;
        avl_vf_t value =
            avl_v_load_any(args->table, entry * args->table_stride + j, count, args->dtype);
        avl_v_store_any(output, j, value, count, AVL_DTYPE_F32);
    }
}

/* The largest value first, then the first place that holds it: both passes are free of dependent
 * branches. */
static void argmax_row(const avl_argmax_args_t *args, int64_t row) {
    const float *logits = args->logits + row * args->stride;
    avl_vf_t best = avl_v_set(-INFINITY);
    int64_t j = 0;
    for (; j + AVL_LANES <= args->width; j += AVL_LANES)
        best = avl_v_max(avl_v_load(logits + j), best); /* a NaN keeps what was there */
    float largest = avl_v_largest(best);
    for (; j < args->width; j++)
        largest = logits[j] > largest ? logits[j] : largest;
    int64_t index = 0;
    while (index < args->width && logits[index] != largest)
        index++;
    if (index == args->width) /* nothing but NaN */
        index = 0;
    args->indices[row] = (int32_t)index;
    args->values[row] = logits[index];
}
