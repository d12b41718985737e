/* kernels/cpu/attention.inc.h: a block of queries of one head against its rows, tile by tile with a
 * running softmax.
 *
 * A tile's keys are gathered transposed and its values as they lie, both as f32, so that the two
 * products are the same plain product with the second operand's rows contiguous. Weights are kept
 * in f32: rounding them to bf16 would cost more accuracy than the contract leaves. */

#if AVL_LANES == 16
enum { PRODUCT_ROWS = 6, PRODUCT_VECTORS = 4 };
#else
enum { PRODUCT_ROWS = 4, PRODUCT_VECTORS = 2 };
#endif

#if defined(__AVX512BF16__)
enum { HAS_PAIRS = 1 };
#else
enum { HAS_PAIRS = 0 };
#endif

typedef struct attention_scratch {
    int64_t padded_width; /* D, rounded up to whole vectors */
    float *query;         /* [queries, padded], or half as many pairs */
    float *sums;          /* [queries, padded] */
    float *scores;        /* [queries, keys] */
    float *keys;          /* [D, keys], or half as many rows of pairs */
    float *values;        /* [keys, padded] */
    float *largest;       /* [queries] */
    float *weight_sums;   /* [queries] */
} attention_scratch_t;

static attention_scratch_t divide_scratch(void *memory, int head_width) {
    attention_scratch_t scratch = {.padded_width = avl_round_up(head_width, AVL_LANES)};
    float *next = memory;
    scratch.query = next;
    next += AVL_ATTENTION_QUERY_BLOCK * scratch.padded_width;
    scratch.sums = next;
    next += AVL_ATTENTION_QUERY_BLOCK * scratch.padded_width;
    scratch.scores = next;
    next += AVL_ATTENTION_QUERY_BLOCK * AVL_ATTENTION_KEY_TILE;
    scratch.keys = next;
    next += AVL_ATTENTION_KEY_TILE * scratch.padded_width;
    scratch.values = next;
    next += AVL_ATTENTION_KEY_TILE * scratch.padded_width;
    scratch.largest = next;
    scratch.weight_sums = next + AVL_ATTENTION_QUERY_BLOCK;
    return scratch;
}

/* result[i][0..vectors) = or += left[i][0..depth) * right[0..depth)[...], PRODUCT_ROWS rows. */
AVL_INLINE void product_tile(const float *left, int64_t left_stride, const float *right,
                             int64_t right_stride, int64_t depth, float *result,
                             int64_t result_stride, const int add, const int pairs,
                             const int vectors) {
    avl_vf_t sum[PRODUCT_ROWS][PRODUCT_VECTORS];
    for (int i = 0; i < PRODUCT_ROWS; i++) {
        for (int j = 0; j < vectors; j++)
            sum[i][j] = add ? avl_v_load(result + i * result_stride + j * AVL_LANES) : avl_v_set(0);
    }
    for (int64_t k = 0; k < depth; k++) {
        avl_vf_t r[PRODUCT_VECTORS];
        for (int j = 0; j < vectors; j++)
            r[j] = avl_v_load(right + k * right_stride + j * AVL_LANES);
        for (int i = 0; i < PRODUCT_ROWS; i++) {
            avl_vf_t l = avl_v_broadcast(left + i * left_stride + k);
            for (int j = 0; j < vectors; j++) {
                sum[i][j] = pairs ? avl_v_dot_pairs(sum[i][j], (avl_vu_t)l, (avl_vu_t)r[j])
                                  : sum[i][j] + l * r[j];
            }
        }
    }
    for (int i = 0; i < PRODUCT_ROWS; i++) {
        for (int j = 0; j < vectors; j++)
            avl_v_store(result + i * result_stride + j * AVL_LANES, sum[i][j]);
    }
}

/* `rows` is a multiple of PRODUCT_ROWS, `columns` of AVL_LANES. */
AVL_INLINE void product(const float *left, int64_t left_stride, const float *right,
                        int64_t right_stride, int64_t depth, float *result, int64_t result_stride,
                        const int add, const int pairs, int64_t rows, int64_t columns) {
    const int64_t step = PRODUCT_VECTORS * AVL_LANES;
    for (int64_t i = 0; i < rows; i += PRODUCT_ROWS) {
        const float *l = left + i * left_stride;
        float *to = result + i * result_stride;
        int64_t j = 0;
        for (; j + step <= columns; j += step)
            product_tile(l, left_stride, right + j, right_stride, depth, to + j, result_stride, add,
                         pairs, PRODUCT_VECTORS);
        for (; j < columns; j += AVL_LANES)
            product_tile(l, left_stride, right + j, right_stride, depth, to + j, result_stride, add,
                         pairs, 1);
    }
}

static int64_t sequence_slot(const avl_attention_sequence_t *sequence, int64_t index) {
    return sequence->rows != NULL ? sequence->rows[index] : sequence->first_row + index;
}

/* Lanes of a row from element `first` on, as the product takes them: values, or pairs. */
AVL_INLINE avl_vf_t load_lanes(const void *memory, int64_t first, int64_t count,
                               const avl_dtype_t dtype, const int pairs) {
    if (!pairs)
        return avl_v_load_any(memory, first, count, dtype);
    const uint16_t *source = (const uint16_t *)memory + first;
    return (avl_vf_t)(count >= 2 * AVL_LANES ? avl_v_load_pairs(source)
                                             : avl_v_load_pairs_part(source, count));
}

/* The scratch memory's keys are padded to whole vectors, and a tile to whole groups of four keys:
 * what is gathered twice there is never looked at. Returns whether all values are finite. */
AVL_INLINE int gather_tile(const avl_attention_args_t *args,
                           const avl_attention_sequence_t *sequence, int kv_head, int64_t first,
                           int64_t count, const attention_scratch_t *scratch,
                           const avl_dtype_t dtype, const int pairs) {
    const avl_kv_view_t *kv = &args->kv;
    const int64_t width = kv->head_width, step = pairs ? 2 * AVL_LANES : AVL_LANES;
    avl_vf_t zeros = {0}; /* until something that is not finite is multiplied by 0 */
    for (int64_t j = 0; j < count; j += 4) {
        int64_t from[4];
        for (int i = 0; i < 4; i++) {
            int64_t row = avl_min64(j + i, count - 1);
            from[i] = sequence_slot(sequence, first + row) * kv->row_stride + kv_head * width;
        }
        for (int64_t d = 0; d < width; d += step) {
            avl_vf_t rows[4];
            for (int i = 0; i < 4; i++)
                rows[i] = load_lanes(kv->keys, from[i] + d, width - d, dtype, pairs);
            avl_v_store_transposed(scratch->keys + d / (pairs + 1) * AVL_ATTENTION_KEY_TILE + j,
                                   AVL_ATTENTION_KEY_TILE, rows);
        }
        for (int i = 0; i < 4; i++) {
            float *value = scratch->values + (j + i) * scratch->padded_width;
            for (int64_t d = 0; d < width; d += AVL_LANES) {
                avl_vf_t lanes = avl_v_load_any(kv->values, from[i] + d, width - d, dtype);
                zeros += lanes * 0.0f;
                avl_v_store(value + d, lanes);
            }
        }
    }
    return avl_v_sum(zeros) == 0.0f;
}

/* Turns scores [first, end) of a row into weights, zeros around them; returns by how much older
 * sums shrink. */
AVL_INLINE float soften_row(float *scores, float scale, int64_t first, int64_t end, float *largest,
                            float *weight_sum) {
    if (scale != 1.0f) {
        for (int j = 0; j < AVL_ATTENTION_KEY_TILE; j += AVL_LANES)
            avl_v_store(scores + j, avl_v_load(scores + j) * scale);
    }
    for (int64_t j = 0; j < first; j++)
        scores[j] = -INFINITY;
    for (int64_t j = end; j < AVL_ATTENTION_KEY_TILE; j++)
        scores[j] = -INFINITY;
    avl_vf_t top = avl_v_set(-INFINITY);
    for (int j = 0; j < AVL_ATTENTION_KEY_TILE; j += AVL_LANES)
        top = avl_v_max(avl_v_load(scores + j), top);
    float before = *largest, now = avl_v_largest(top);
    now = before > now ? before : now;
    avl_vf_t sum = {0};
    for (int j = 0; j < AVL_ATTENTION_KEY_TILE; j += AVL_LANES) {
        avl_vf_t weight = avl_v_exp(avl_v_load(scores + j) - now);
        avl_v_store(scores + j, weight);
        sum += weight;
    }
    float shrink = before == now ? 1.0f : before == -INFINITY ? 0.0f : expf(before - now);
    *weight_sum = *weight_sum * shrink + avl_v_sum(sum);
    *largest = now;
    return shrink;
}

/* The indices that query `i` of the chunk sees. */
AVL_INLINE void visible_range(const avl_attention_args_t *args,
                              const avl_attention_sequence_t *sequence, int i, int64_t *first_p,
                              int64_t *end_p) {
    int64_t place = (int64_t)sequence->row_count - sequence->query_count + i;
    *first_p = args->causal && args->window > 0 ? avl_max64(0, place - args->window + 1) : 0;
    *end_p = args->causal ? place + 1 : sequence->row_count;
}

static void load_queries(const avl_attention_args_t *args, const avl_attention_sequence_t *sequence,
                         int head, int first, int count, int64_t padded_count,
                         const attention_scratch_t *scratch) {
    int64_t width = args->kv.head_width, padded = scratch->padded_width;
    memset(scratch->query, 0, (size_t)(padded_count * padded) * sizeof(float));
    memset(scratch->sums, 0, (size_t)(padded_count * padded) * sizeof(float));
    int pairs = HAS_PAIRS && args->kv.dtype == AVL_DTYPE_BF16;
    int64_t step = pairs ? 2 * AVL_LANES : AVL_LANES;
    for (int i = 0; i < count; i++) {
        int64_t from = (sequence->first_query + first + i) * args->query_stride + head * width;
        for (int64_t d = 0; d < width; d += step) {
            avl_v_store(scratch->query + i * padded + d / (pairs + 1),
                        load_lanes(args->query, from + d, width - d, args->kv.dtype, pairs));
        }
        scratch->largest[i] = -INFINITY;
        scratch->weight_sums[i] = 0.0f;
    }
}

static void soften_tile(const avl_attention_args_t *args, const avl_attention_sequence_t *sequence,
                        int first, int count, int64_t tile, const attention_scratch_t *scratch) {
    for (int i = 0; i < count; i++) {
        int64_t begin = 0, end = 0;
        visible_range(args, sequence, first + i, &begin, &end);
        begin = avl_max64(begin, tile) - tile;
        end = avl_min64(end, tile + AVL_ATTENTION_KEY_TILE) - tile;
        float *scores = scratch->scores + (int64_t)i * AVL_ATTENTION_KEY_TILE;
        if (begin >= end) {
            memset(scores, 0, AVL_ATTENTION_KEY_TILE * sizeof(float));
            continue;
        }
        float shrink = soften_row(scores, args->scale, begin, end, &scratch->largest[i],
                                  &scratch->weight_sums[i]);
        if (shrink == 1.0f)
            continue;
        float *sums = scratch->sums + i * scratch->padded_width;
        for (int64_t d = 0; d < scratch->padded_width; d += AVL_LANES)
            avl_v_store(sums + d, avl_v_load(sums + d) * shrink);
    }
}

/* Adds a tile's values to the sums of the queries that see them, one by one. The plain product
 * takes hidden rows along with a weight of 0, which spoils the sums when such a row holds an
 * infinity. */
static void add_visible_values(const avl_attention_args_t *args,
                               const avl_attention_sequence_t *sequence, int first, int count,
                               int64_t tile, int64_t rows, const attention_scratch_t *scratch) {
    int64_t padded = scratch->padded_width;
    for (int i = 0; i < count; i++) {
        int64_t begin = 0, end = 0;
        visible_range(args, sequence, first + i, &begin, &end);
        begin = avl_max64(begin, tile) - tile;
        end = avl_min64(end, tile + rows) - tile;
        const float *weights = scratch->scores + (int64_t)i * AVL_ATTENTION_KEY_TILE;
        for (int64_t d = 0; d < padded; d += AVL_LANES) {
            avl_vf_t sum = avl_v_load(scratch->sums + i * padded + d);
            for (int64_t j = begin; j < end; j++)
                sum += weights[j] * avl_v_load(scratch->values + j * padded + d);
            avl_v_store(scratch->sums + i * padded + d, sum);
        }
    }
}

/* Gathers a tile and multiplies the queries by its keys. Returns whether all values are finite. */
AVL_INLINE int score_tile(const avl_attention_args_t *args,
                          const avl_attention_sequence_t *sequence, int kv_head, int64_t tile,
                          int64_t rows, int64_t padded_count, const attention_scratch_t *scratch,
                          const avl_dtype_t dtype) {
    const int pairs = HAS_PAIRS && dtype == AVL_DTYPE_BF16;
    int64_t depth = avl_ceil_div(args->kv.head_width, pairs + 1);
    int finite = gather_tile(args, sequence, kv_head, tile, rows, scratch, dtype, pairs);
    product(scratch->query, scratch->padded_width, scratch->keys, AVL_ATTENTION_KEY_TILE, depth,
            scratch->scores, AVL_ATTENTION_KEY_TILE, 0, pairs, padded_count,
            avl_round_up(rows, AVL_LANES));
    return finite;
}

static void attention_block(const avl_attention_args_t *args,
                            const avl_attention_sequence_t *sequence, int head, int first,
                            int count, void *memory) {
    const avl_kv_view_t *kv = &args->kv;
    attention_scratch_t scratch = divide_scratch(memory, kv->head_width);
    int64_t padded = scratch.padded_width;
    int64_t padded_count = avl_round_up(count, PRODUCT_ROWS);
    int kv_head = (head + args->heads.query_head_offset) / args->heads.group;
    load_queries(args, sequence, head, first, count, padded_count, &scratch);
    int64_t begin = 0, end = 0, unused = 0;
    visible_range(args, sequence, first, &begin, &unused);
    visible_range(args, sequence, first + count - 1, &unused, &end);
    /* Tiles stand at fixed places of the row list, so that a query's sums do not depend on its
     * chunk's borders. */
    begin -= begin % AVL_ATTENTION_KEY_TILE;
    for (int64_t tile = begin; tile < end; tile += AVL_ATTENTION_KEY_TILE) {
        int64_t rows = avl_min64(AVL_ATTENTION_KEY_TILE, end - tile);
        int finite = kv->dtype == AVL_DTYPE_F32
                         ? score_tile(args, sequence, kv_head, tile, rows, padded_count, &scratch,
                                      AVL_DTYPE_F32)
                         : score_tile(args, sequence, kv_head, tile, rows, padded_count, &scratch,
                                      AVL_DTYPE_BF16);
        soften_tile(args, sequence, first, count, tile, &scratch);
        if (finite)
            product(scratch.scores, AVL_ATTENTION_KEY_TILE, scratch.values, padded, rows,
                    scratch.sums, padded, 1, 0, padded_count, padded);
        else
            add_visible_values(args, sequence, first, count, tile, rows, &scratch);
    }
    for (int i = 0; i < count; i++) {
        int64_t to = (sequence->first_query + first + i) * args->output_stride +
                     (int64_t)head * kv->head_width;
        float inverse = 1.0f / scratch.weight_sums[i];
        for (int64_t d = 0; d < kv->head_width; d += AVL_LANES) {
            avl_vf_t value = avl_v_load(scratch.sums + i * padded + d) * inverse;
            avl_v_store_any(args->output, to + d, value, kv->head_width - d, kv->dtype);
        }
    }
}
