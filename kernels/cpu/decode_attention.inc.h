/* kernels/cpu/decode_attention.inc.h: one query per sequence against a chunk of its rows, and the
 * merge of chunks.
 *
 * A chunk takes a block of KV heads at once: their parts of a row lie side by side, so that a row
 * named by index is one contiguous read and the next rows can be asked for in advance. */

/* Asked for in advance: rows that arrive while as many are being computed. Values are added from
 * several rows at once, so that the sums are not loaded and stored for every one of them. */
enum { PREFETCH_ROWS = 2, VALUE_ROWS = 4, CACHE_LINE_BYTES = 64 };

/* The slots of the item's rows for one KV head. */
static void list_slots(const avl_decode_item_t *item, int kv_head, int64_t *slots) {
    const avl_decode_sequence_t *sequence = item->sequence;
    const int32_t *own = item->places;
    int64_t behind = 0; /* rows of the spans before */
    int r = 0;
    for (int span = 0; span < AVL_SPAN_COUNT; span++) {
        const int32_t *rows = sequence->spans[span].rows;
        int chooses = span == AVL_SPAN_VISUAL && own != NULL;
        int64_t count = chooses ? sequence->visual_keep : sequence->spans[span].row_count;
        const int32_t *places = chooses ? own + kv_head * count : NULL;
        for (int64_t i = item->first_row + r - behind; i < count && r < item->row_count; i++)
            slots[r++] = rows[chooses ? places[i] : i];
        behind += count;
    }
}

/* From one KV head's slots to the next one's: 0 where all heads read the same rows. */
AVL_INLINE int slots_step(const avl_decode_item_t *item) {
    return item->places != NULL ? AVL_DECODE_ROW_CHUNK : 0;
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

/* logits[head - first_head][row], `stride` apart, for rows [begin, end) of the item and all its
 * query heads. */
AVL_INLINE void row_logits(const avl_decode_item_t *item, const int64_t *slots, int begin, int end,
                           float *logits, int64_t stride, const avl_dtype_t dtype) {
    const avl_decode_attention_args_t *args = item->args;
    const avl_kv_view_t *kv = &args->kv;
    int64_t width = kv->head_width, element = (int64_t)avl_dtype_bytes(dtype);
    int first_head = first_query_head(&args->heads, item->first_kv_head);
    const char *query =
        (const char *)args->query + item->sequence->query_row * args->query_stride * element;
    const char *keys = (const char *)kv->keys + item->first_kv_head * width * element;
    int64_t row_bytes = kv->row_stride * element;
    for (int r = begin; r < end; r++) {
        const char *row = keys + slots[r] * row_bytes;
        const char *ahead = keys + slots[next_row(r, end)] * row_bytes;
        int q = first_head;
        for (int h = 0; h < item->kv_head_count; h++) {
            const char *key = row + h * width * element;
            prefetch_bytes(ahead + h * width * element, width * element);
            int last = first_query_head(&args->heads, item->first_kv_head + h + 1);
            for (; q < last; q++) {
                const char *head = query + q * width * element;
                float dot = dtype == AVL_DTYPE_F32
                                ? dot_f32((const float *)head, (const float *)key, width)
                                : dot_bf16((const uint16_t *)head, (const uint16_t *)key, width);
                logits[(int64_t)(q - first_head) * stride + r] = dot * args->scale;
            }
        }
    }
}

static void find_logits(const avl_decode_item_t *item, const int64_t *slots, int begin, int end,
                        float *logits, int64_t stride) {
    if (item->args->kv.dtype == AVL_DTYPE_F32)
        row_logits(item, slots, begin, end, logits, stride, AVL_DTYPE_F32);
    else
        row_logits(item, slots, begin, end, logits, stride, AVL_DTYPE_BF16);
}

static void decode_score(const avl_decode_item_t *item, void *scratch) {
    const avl_row_span_t *visual = &item->sequence->spans[AVL_SPAN_VISUAL];
    int64_t *slots = scratch;
    for (int r = 0; r < item->row_count; r++)
        slots[r] = visual->rows[item->first_row + r];
    int64_t first_head = first_query_head(&item->args->heads, item->first_kv_head);
    find_logits(item, slots, 0, item->row_count,
                item->visual_logits + first_head * visual->row_count + item->first_row,
                visual->row_count);
}

/* weights += softmax of the logits. */
static void add_softmax(const float *logits, int count, float *exponentials, float *weights) {
    float largest = -INFINITY;
    avl_vf_t sum = {0};
    for (int i = 0; i < count; i++)
        largest = logits[i] > largest ? logits[i] : largest;
    for (int i = 0; i < count; i += AVL_LANES) {
        int rest = count - i;
        avl_vf_t logit = rest < AVL_LANES ? avl_v_set(-INFINITY) : avl_v_load(logits + i);
        if (rest < AVL_LANES)
            memcpy(&logit, logits + i, (size_t)rest * sizeof *logits);
        avl_vf_t weight = avl_v_exp(logit - largest);
        avl_v_store_any(exponentials, i, weight, rest, AVL_DTYPE_F32);
        sum += weight;
    }
    float inverse = 1.0f / avl_v_sum(sum);
    for (int i = 0; i < count; i++)
        weights[i] += exponentials[i] * inverse;
}

/* One query head alone orders rows by its logits as by their weights. */
static void decode_choose(const avl_decode_item_t *item, int kv_head, float *scratch) {
    const avl_head_map_t *heads = &item->args->heads;
    int32_t keep = item->sequence->visual_keep;
    int64_t count = item->sequence->spans[AVL_SPAN_VISUAL].row_count;
    int32_t *places = item->places + (int64_t)kv_head * keep;
    int begin = first_query_head(heads, kv_head), end = first_query_head(heads, kv_head + 1);
    const float *scores = scratch;
    if (end - begin == 1) {
        scores = item->visual_logits + begin * count;
    } else {
        memset(scratch, 0, (size_t)count * sizeof *scratch);
        for (int head = begin; head < end; head++)
            add_softmax(item->visual_logits + head * count, (int)count, scratch + count, scratch);
    }
    choose_best(&(avl_choose_item_t){
        .scores = scores, .count = (int32_t)count, .keep = keep, .indices = places});
    for (int head = begin; head < end; head++) {
        float *logits = item->visual_logits + head * count;
        for (int32_t i = 0; i < keep; i++) /* places[i] >= i */
            logits[i] = logits[places[i]];
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
    int64_t text = avl_decode_rows(item->sequence) - item->sequence->spans[AVL_SPAN_TEXT].row_count;
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

/* The chunk's logits: those of chosen rows are there already. */
static void chunk_logits(const avl_decode_item_t *item, const int64_t *slots, float *logits) {
    const avl_decode_sequence_t *sequence = item->sequence;
    const avl_head_map_t *heads = &item->args->heads;
    int64_t system = sequence->spans[AVL_SPAN_SYSTEM].row_count;
    int64_t count = item->row_count, first = item->first_row;
    int64_t begin = 0, end = 0; /* the chosen rows */
    if (item->places != NULL) {
        begin = avl_min64(avl_max64(system - first, 0), count);
        end = avl_min64(avl_max64(system + sequence->visual_keep - first, 0), count);
    }
    find_logits(item, slots, 0, (int)begin, logits, AVL_DECODE_ROW_CHUNK);
    find_logits(item, slots, (int)end, (int)count, logits, AVL_DECODE_ROW_CHUNK);
    if (begin == end)
        return;
    int q = first_query_head(heads, item->first_kv_head);
    int last = first_query_head(heads, item->first_kv_head + item->kv_head_count);
    int64_t visual = sequence->spans[AVL_SPAN_VISUAL].row_count;
    for (; q < last; q++, logits += AVL_DECODE_ROW_CHUNK)
        memcpy(logits + begin, item->visual_logits + q * visual + first + begin - system,
               (size_t)(end - begin) * sizeof *logits);
}

static void decode_chunk(const avl_decode_item_t *item, void *scratch) {
    const avl_decode_attention_args_t *args = item->args;
    int64_t *slots = scratch;
    float *logits = (float *)(slots + AVL_DECODE_ROW_CHUNK * AVL_DECODE_HEAD_BLOCK);
    for (int h = 0; h < (item->places != NULL ? item->kv_head_count : 1); h++)
        list_slots(item, item->first_kv_head + h, slots + h * AVL_DECODE_ROW_CHUNK);
    chunk_logits(item, slots, logits);
    int first_head = first_query_head(&args->heads, item->first_kv_head);
    int end_head = first_query_head(&args->heads, item->first_kv_head + item->kv_head_count);
    for (int q = first_head; q < end_head; q++) {
        float *row = logits + (int64_t)(q - first_head) * AVL_DECODE_ROW_CHUNK;
        if (item->sequence->visual_weights != NULL)
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
