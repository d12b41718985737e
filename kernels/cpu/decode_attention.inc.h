/* kernels/cpu/decode_attention.inc.h: one query per sequence against a chunk of its rows, and the
 * merge of chunks.
 *
 * A chunk takes a block of KV heads at once: their parts of a row lie side by side, so that a row
 * named by index is one contiguous read and the next rows can be asked for in advance. */

/* Asked for in advance: rows that arrive while as many are being computed. Values are added from
 * several rows at once, so that the sums are not loaded and stored for every one of them. */
enum { PREFETCH_ROWS = 2, VALUE_ROWS = 4, CACHE_LINE_BYTES = 64 };

static int64_t span_slot(const avl_decode_sequence_t *sequence, int kv_head, int64_t index) {
    int span = 0;
    while (index >= sequence->spans[span].row_count)
        index -= sequence->spans[span++].row_count;
    if (span == AVL_SPAN_VISUAL)
        index += (int64_t)kv_head * sequence->visual_stride;
    return sequence->spans[span].rows[index];
}

/* From one KV head's slots to the next one's: 0 where all heads read the same rows. */
AVL_INLINE int slots_step(const avl_decode_item_t *item) {
    return item->sequence->visual_stride > 0 ? AVL_DECODE_ROW_CHUNK : 0;
}

AVL_INLINE void prefetch_bytes(const char *memory, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += CACHE_LINE_BYTES)
        __builtin_prefetch(memory + i);
}

/* The row to ask for while row `r` is computed: a part for every part computed, so that the
 * requests are spread out. */
AVL_INLINE int next_row(int r, int row_count) {
    return r + PREFETCH_ROWS < row_count ? r + PREFETCH_ROWS : r;
}

/* First query head of this rank that reads KV head `kv_head` or a later one. */
AVL_INLINE int first_query_head(const avl_head_map_t *heads, int kv_head) {
    int64_t head = (int64_t)kv_head * heads->group - heads->query_head_offset;
    return (int)avl_min64(avl_max64(head, 0), heads->query_heads);
}

AVL_INLINE float dot_f32(const float *a, const float *b, int64_t width) {
    avl_vf_t sum = {0};
    int64_t d = 0;
    for (; d + AVL_LANES <= width; d += AVL_LANES)
        sum += avl_v_load(a + d) * avl_v_load(b + d);
    if (d < width)
        sum += avl_v_load_part(a + d, width - d) * avl_v_load_part(b + d, width - d);
    return avl_v_sum(sum);
}

AVL_INLINE float dot_bf16(const uint16_t *a, const uint16_t *b, int64_t width) {
    avl_vf_t sum = {0};
    int64_t d = 0;
    for (; d + 2 * AVL_LANES <= width; d += 2 * AVL_LANES)
        sum = avl_v_dot_pairs(sum, avl_v_load_pairs(a + d), avl_v_load_pairs(b + d));
    if (d < width)
        sum = avl_v_dot_pairs(sum, avl_v_load_pairs_part(a + d, width - d),
                              avl_v_load_pairs_part(b + d, width - d));
    return avl_v_sum(sum);
}

static float *partial_of(const avl_decode_item_t *item, int head, int chunk) {
    int64_t place = (int64_t)head * item->chunk_count + chunk;
    return item->partials + place * (item->args->kv.head_width + 2);
}

/* logits[head - first_head][row] for every row and query head of the item. */
AVL_INLINE void chunk_logits(const avl_decode_item_t *item, const int64_t *slots, float *logits,
                             const avl_dtype_t dtype) {
    const avl_decode_attention_args_t *args = item->args;
    const avl_kv_view_t *kv = &args->kv;
    int64_t width = kv->head_width, element = (int64_t)avl_dtype_bytes(dtype);
    int first_head = first_query_head(&args->heads, item->first_kv_head);
    const char *query =
        (const char *)args->query + item->sequence->query_row * args->query_stride * element;
    const char *keys = (const char *)kv->keys + item->first_kv_head * width * element;
    int64_t row_bytes = kv->row_stride * element;
    int step = slots_step(item);
    for (int r = 0; r < item->row_count; r++) {
        const int64_t *own = slots + r, *ahead = slots + next_row(r, item->row_count);
        int q = first_head;
        for (int h = 0; h < item->kv_head_count; h++, own += step, ahead += step) {
            const char *key = keys + *own * row_bytes + h * width * element;
            prefetch_bytes(keys + *ahead * row_bytes + h * width * element, width * element);
            int end = first_query_head(&args->heads, item->first_kv_head + h + 1);
            for (; q < end; q++) {
                const char *head = query + q * width * element;
                float dot = dtype == AVL_DTYPE_F32
                                ? dot_f32((const float *)head, (const float *)key, width)
                                : dot_bf16((const uint16_t *)head, (const uint16_t *)key, width);
                logits[(int64_t)(q - first_head) * AVL_DECODE_ROW_CHUNK + r] = dot * args->scale;
            }
        }
    }
}

/* Keeps the logits of the chunk's visual rows for decode_weights. */
static void keep_visual_logits(const avl_decode_item_t *item, int head, const float *logits) {
    const avl_row_span_t *spans = item->sequence->spans;
    int64_t visual = spans[AVL_SPAN_SYSTEM].row_count, count = spans[AVL_SPAN_VISUAL].row_count;
    int64_t begin = avl_max64(item->first_row, visual);
    int64_t end = avl_min64(item->first_row + item->row_count, visual + count);
    if (begin < end) {
        memcpy(item->visual_logits + head * count + (begin - visual),
               logits + (begin - item->first_row), (size_t)(end - begin) * sizeof(float));
    }
}

/* Text rows of the chunk that stand before text_first weigh nothing. */
static void hide_text(const avl_decode_item_t *item, int head, const int64_t *slots,
                      float *logits) {
    const avl_decode_attention_args_t *args = item->args;
    int64_t text = (int64_t)item->sequence->spans[AVL_SPAN_SYSTEM].row_count +
                   item->sequence->spans[AVL_SPAN_VISUAL].row_count;
    int kv_head = (head + args->heads.query_head_offset) / args->heads.group;
    for (int r = (int)avl_max64(text - item->first_row, 0); r < item->row_count; r++) {
        if (args->text_positions[avl_row_place(slots[r], kv_head, args->kv.kv_heads)] <
            item->sequence->text_first)
            logits[r] = -INFINITY;
    }
}

/* Logits become weights relative to the chunk's largest; largest and sum go behind the partial's
 * values. */
static void soften_logits(float *logits, int count, float *partial, int64_t width) {
    float largest = -INFINITY;
    for (int r = 0; r < count; r++)
        largest = logits[r] > largest ? logits[r] : largest;
    if (largest == -INFINITY) { /* nothing is seen: the merge passes over it */
        memset(logits, 0, (size_t)count * sizeof *logits);
        partial[width] = -INFINITY;
        partial[width + 1] = 0.0f;
        return;
    }
    avl_vf_t sum = {0};
    for (int r = 0; r < count; r += AVL_LANES) {
        if (count - r < AVL_LANES) {
            for (int i = count; i < r + AVL_LANES; i++)
                logits[i] = -INFINITY;
        }
        avl_vf_t weight = avl_v_exp(avl_v_load(logits + r) - largest);
        avl_v_store(logits + r, weight);
        sum += weight;
    }
    partial[width] = largest;
    partial[width + 1] = avl_v_sum(sum);
}

/* target += sum over i of weights[i] * values row i, for VALUE_ROWS rows or one. */
AVL_INLINE void add_scaled(float *target, const char *const *values, const float *weights,
                           int64_t width, const avl_dtype_t dtype, const int rows) {
    for (int64_t d = 0; d < width; d += AVL_LANES) {
        int64_t count = width - d;
        avl_vf_t sum = avl_v_load_any(target, d, count, AVL_DTYPE_F32);
        for (int i = 0; i < rows; i++)
            sum += avl_v_load_any(values[i], d, count, dtype) * weights[i];
        avl_v_store_any(target, d, sum, count, AVL_DTYPE_F32);
    }
}

/* The values of `rows` rows from `first` on, for all heads of the item. */
AVL_INLINE void values_of_rows(const avl_decode_item_t *item, const int64_t *slots,
                               const float *weights, int first, const avl_dtype_t dtype,
                               const int rows) {
    const avl_decode_attention_args_t *args = item->args;
    const avl_kv_view_t *kv = &args->kv;
    int64_t width = kv->head_width, element = (int64_t)avl_dtype_bytes(dtype);
    const char *base = (const char *)kv->values + item->first_kv_head * width * element;
    const char *values[VALUE_ROWS];
    int64_t row_bytes = kv->row_stride * element;
    int step = slots_step(item);
    int first_head = first_query_head(&args->heads, item->first_kv_head), q = first_head;
    for (int h = 0; h < item->kv_head_count; h++, slots += step, base += width * element) {
        for (int i = 0; i < rows; i++) {
            values[i] = base + slots[first + i] * row_bytes;
            prefetch_bytes(base + slots[next_row(first + i, item->row_count)] * row_bytes,
                           width * element);
        }
        int end = first_query_head(&args->heads, item->first_kv_head + h + 1);
        for (; q < end; q++)
            add_scaled(partial_of(item, q, item->chunk), values,
                       weights + (int64_t)(q - first_head) * AVL_DECODE_ROW_CHUNK + first, width,
                       dtype, rows);
    }
}

AVL_INLINE void chunk_values(const avl_decode_item_t *item, const int64_t *slots,
                             const float *weights, const avl_dtype_t dtype) {
    const avl_head_map_t *heads = &item->args->heads;
    int end_head = first_query_head(heads, item->first_kv_head + item->kv_head_count);
    for (int q = first_query_head(heads, item->first_kv_head); q < end_head; q++) {
        memset(partial_of(item, q, item->chunk), 0,
               (size_t)item->args->kv.head_width * sizeof(float));
    }
    int r = 0;
    for (; r + VALUE_ROWS <= item->row_count; r += VALUE_ROWS)
        values_of_rows(item, slots, weights, r, dtype, VALUE_ROWS);
    for (; r < item->row_count; r++)
        values_of_rows(item, slots, weights, r, dtype, 1);
}

static void decode_chunk(const avl_decode_item_t *item, void *scratch) {
    const avl_decode_attention_args_t *args = item->args;
    int64_t *slots = scratch;
    float *logits = (float *)(slots + AVL_DECODE_ROW_CHUNK * AVL_DECODE_HEAD_BLOCK);
    for (int h = 0; h < (slots_step(item) > 0 ? item->kv_head_count : 1); h++) {
        for (int r = 0; r < item->row_count; r++)
            slots[h * AVL_DECODE_ROW_CHUNK + r] =
                span_slot(item->sequence, item->first_kv_head + h, item->first_row + r);
    }
    if (args->kv.dtype == AVL_DTYPE_F32)
        chunk_logits(item, slots, logits, AVL_DTYPE_F32);
    else
        chunk_logits(item, slots, logits, AVL_DTYPE_BF16);
    int first_head = first_query_head(&args->heads, item->first_kv_head);
    int end_head = first_query_head(&args->heads, item->first_kv_head + item->kv_head_count);
    for (int q = first_head; q < end_head; q++) {
        float *row = logits + (int64_t)(q - first_head) * AVL_DECODE_ROW_CHUNK;
        if (item->visual_logits != NULL)
            keep_visual_logits(item, q, row);
        if (item->sequence->text_first > 0)
            hide_text(item, q, slots, row);
        soften_logits(row, item->row_count, partial_of(item, q, item->chunk), args->kv.head_width);
    }
    if (args->output == NULL)
        return;
    if (args->kv.dtype == AVL_DTYPE_F32)
        chunk_values(item, slots, logits, AVL_DTYPE_F32);
    else
        chunk_values(item, slots, logits, AVL_DTYPE_BF16);
}

static void decode_merge(const avl_decode_item_t *item, int head) {
    const avl_decode_attention_args_t *args = item->args;
    int64_t width = args->kv.head_width;
    float *total = partial_of(item, head, 0);
    for (int chunk = 1; chunk < item->chunk_count; chunk++) {
        const float *part = partial_of(item, head, chunk);
        float largest = part[width] > total[width] ? part[width] : total[width];
        if (largest == -INFINITY)
            continue;
        float old_share = expf(total[width] - largest), new_share = expf(part[width] - largest);
        if (args->output != NULL) {
            for (int64_t d = 0; d < width; d++)
                total[d] = total[d] * old_share + part[d] * new_share;
        }
        total[width] = largest;
        total[width + 1] = total[width + 1] * old_share + part[width + 1] * new_share;
    }
    if (item->sequence->totals != NULL)
        memcpy(item->sequence->totals + (int64_t)2 * head, total + width, 2 * sizeof *total);
    if (args->output == NULL)
        return;
    int64_t to = item->sequence->query_row * args->output_stride + head * width;
    float inverse = 1.0f / total[width + 1];
    for (int64_t d = 0; d < width; d += AVL_LANES) {
        avl_vf_t value = avl_v_load_any(total, d, width - d, AVL_DTYPE_F32) * inverse;
        avl_v_store_any(args->output, to + d, value, width - d, args->kv.dtype);
    }
}

/* Of rows [first, first + count), summed over query heads [begin, end). */
static void sum_weights(const avl_decode_item_t *item, int begin, int end, int first, int count,
                        float *weights) {
    int64_t width = item->args->kv.head_width;
    int64_t visual = item->sequence->spans[AVL_SPAN_VISUAL].row_count;
    for (int j = 0; j < count; j += AVL_LANES) {
        avl_vf_t sum = {0};
        for (int head = begin; head < end; head++) {
            const float *total = partial_of(item, head, 0);
            avl_vf_t logit = avl_v_load_any(item->visual_logits + head * visual + first, j,
                                            count - j, AVL_DTYPE_F32);
            sum += avl_v_exp(logit - total[width]) * (1.0f / total[width + 1]);
        }
        avl_v_store_any(weights + first, j, sum, count - j, AVL_DTYPE_F32);
    }
}

static void decode_weights(const avl_decode_item_t *item, int first, int count) {
    const avl_decode_sequence_t *sequence = item->sequence;
    const avl_head_map_t *heads = &item->args->heads;
    if (!sequence->weights_by_head) {
        sum_weights(item, 0, heads->query_heads, first, count, sequence->visual_weights);
        return;
    }
    for (int h = 0; h < item->args->kv.kv_heads; h++)
        sum_weights(item, first_query_head(heads, h), first_query_head(heads, h + 1), first, count,
                    sequence->visual_weights +
                        (int64_t)h * sequence->spans[AVL_SPAN_VISUAL].row_count);
}
