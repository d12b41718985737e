#include "kernels/cpu/check.h"

#include <inttypes.h>

#include "kernels/cpu/attention.h"
#include "kernels/diversity.h"
#include "kernels/lists.h"
#include "kernels/select.h"
#include "kernels/text.h"

/* No element is larger than 8 bytes and no address space larger than 2^48. */
static const int64_t element_count_max = INT64_C(1) << 45;

/* Beyond so many rows their likenesses have no 32-bit index. */
static const int64_t diversity_rows_max = 1 << 15;

avl_status_t avl_check_matrix(const char *operation, const char *name, const void *memory,
                              int64_t rows, int64_t stride, int64_t width) {
    AVL_CHECK_SHAPE(rows >= 0 && width >= 0,
                    "%s: %s has %" PRId64 " rows of width %" PRId64 ": sizes must not be negative",
                    operation, name, rows, width);
    if (rows == 0 || width == 0)
        return AVL_OK;
    AVL_CHECK_SHAPE(memory != NULL, "%s: %s is NULL but has %" PRId64 " rows of width %" PRId64,
                    operation, name, rows, width);
    AVL_CHECK_SHAPE(stride >= width,
                    "%s: the rows of %s are %" PRId64 " elements wide but only %" PRId64 " apart",
                    operation, name, width, stride);
    int64_t count = 0;
    AVL_CHECK_SHAPE(!__builtin_mul_overflow(rows, stride, &count) && count <= element_count_max,
                    "%s: %s spans %" PRId64 " rows of %" PRId64
                    " elements: more than memory can hold",
                    operation, name, rows, stride);
    return AVL_OK;
}

avl_status_t avl_check_array(const char *operation, const char *name, const void *memory,
                             int64_t count) {
    AVL_CHECK_SHAPE(count >= 0, "%s: %s has a negative length, %" PRId64, operation, name, count);
    AVL_CHECK_SHAPE(count == 0 || memory != NULL, "%s: %s is NULL but has %" PRId64 " elements",
                    operation, name, count);
    AVL_CHECK_SHAPE(count <= element_count_max,
                    "%s: %s has %" PRId64 " elements: more than memory can hold", operation, name,
                    count);
    return AVL_OK;
}

avl_status_t avl_check_dtype(const char *operation, const char *name, avl_dtype_t dtype) {
    AVL_CHECK_SHAPE(dtype == AVL_DTYPE_F32 || dtype == AVL_DTYPE_BF16,
                    "%s: %s is of number format %d; only f32 (%d) and bf16 (%d) are computed with",
                    operation, name, (int)dtype, (int)AVL_DTYPE_F32, (int)AVL_DTYPE_BF16);
    return AVL_OK;
}

avl_status_t avl_check_indices(const char *operation, const char *name, const int32_t *indices,
                               int64_t count, int32_t lowest) {
    AVL_TRY(avl_check_array(operation, name, indices, count));
    int32_t smallest = lowest;
    for (int64_t i = 0; i < count; i++)
        smallest = indices[i] < smallest ? indices[i] : smallest;
    AVL_CHECK_SHAPE(smallest >= lowest, "%s: %s holds %" PRId32 ", below %" PRId32, operation, name,
                    smallest, lowest);
    return AVL_OK;
}

avl_status_t avl_check_activation(const char *operation, avl_activation_t activation) {
    AVL_CHECK_SHAPE((int)activation >= AVL_ACTIVATION_NONE && activation <= AVL_ACTIVATION_RELU,
                    "%s: no activation function has the number %d", operation, (int)activation);
    return AVL_OK;
}

avl_status_t avl_check_heads(const char *operation, const avl_kv_view_t *kv,
                             const avl_head_map_t *heads) {
    AVL_TRY(avl_check_dtype(operation, "the cache", kv->dtype));
    AVL_CHECK_SHAPE(kv->kv_heads >= 0 && kv->head_width > 0 && kv->head_width <= 1 << 14,
                    "%s: %d KV heads of width %d", operation, kv->kv_heads, kv->head_width);
    AVL_CHECK_SHAPE(heads->query_heads >= 0 && heads->query_heads <= 1 << 20 && heads->group > 0,
                    "%s: %d query heads in groups of %d", operation, heads->query_heads,
                    heads->group);
    AVL_CHECK_SHAPE(heads->query_head_offset >= 0 && heads->query_head_offset < heads->group,
                    "%s: the first query head is number %d of its group of %d", operation,
                    heads->query_head_offset, heads->group);
    if (heads->query_heads == 0)
        return AVL_OK;
    int64_t last = ((int64_t)heads->query_heads - 1 + heads->query_head_offset) / heads->group;
    AVL_CHECK_SHAPE(last < kv->kv_heads, "%s: query head %d reads KV head %" PRId64 " of %d",
                    operation, heads->query_heads - 1, last, kv->kv_heads);
    int64_t row_width = (int64_t)kv->kv_heads * kv->head_width;
    AVL_TRY(avl_check_matrix(operation, "keys", kv->keys, 1, kv->row_stride, row_width));
    return avl_check_matrix(operation, "values", kv->values, 1, kv->row_stride, row_width);
}

avl_status_t avl_check_visual_keep(const avl_decode_sequence_t *sequence, int index) {
    int32_t keep = sequence->visual_keep, rows = sequence->spans[AVL_SPAN_VISUAL].row_count;
    AVL_CHECK_SHAPE(keep >= 0 && keep <= rows,
                    "decode_attention: sequence %d keeps %" PRId32 " of %" PRId32 " visual rows",
                    index, keep, rows);
    AVL_CHECK_SHAPE(keep == 0 || sequence->visual_weights == NULL,
                    "decode_attention: sequence %d wants weights of visual rows that differ from "
                    "head to head",
                    index);
    AVL_CHECK_SHAPE(keep > 0 || sequence->visual_places == NULL,
                    "decode_attention: sequence %d wants places of visual rows and keeps all",
                    index);
    return AVL_OK;
}

avl_status_t avl_check_kv_heads(const avl_kv_write_args_t *args) {
    if (args->redirects == NULL && args->positions == NULL)
        return AVL_OK;
    AVL_CHECK_SHAPE(args->kv_heads > 0 && args->row_width % args->kv_heads == 0,
                    "kv_write: rows of %" PRId64 " elements in %d heads", args->row_width,
                    args->kv_heads);
    AVL_CHECK_SHAPE(args->positions == NULL || args->row_positions != NULL,
                    "kv_write: positions of rows, and nowhere to note them");
    return AVL_OK;
}

avl_status_t avl_check_choose(const avl_choose_args_t *args) {
    AVL_TRY(avl_check_array("choose", "items", args->items, args->item_count));
    for (int i = 0; i < args->item_count; i++) {
        const avl_choose_item_t *item = &args->items[i];
        AVL_TRY(avl_check_array("choose", "scores", item->scores, item->count));
        AVL_CHECK_SHAPE(item->keep >= 0 && item->keep <= item->count,
                        "choose: keep %" PRId32 " of %" PRId32 " scores of list %d", item->keep,
                        item->count, i);
        AVL_CHECK_SHAPE((item->rows == NULL) == (item->list == NULL),
                        "choose: list %d has rows and nowhere to put them, or the other way", i);
    }
    return AVL_OK;
}

avl_status_t avl_check_text_keep(const avl_text_keep_args_t *args) {
    AVL_CHECK_SHAPE(args->count >= 0 && args->keep >= 0 && args->keep <= args->count &&
                        args->recent >= 0 && args->recent <= args->keep,
                    "text_keep: %" PRId32 " of %" PRId32 " rows, the newest %" PRId32 " of them",
                    args->keep, args->count, args->recent);
    AVL_CHECK_SHAPE(args->kv_heads >= 0, "text_keep: %d KV heads", args->kv_heads);
    AVL_TRY(avl_check_array("text_keep", "rows", args->rows, args->count));
    AVL_TRY(avl_check_array("text_keep", "scores", args->scores, args->count));
    AVL_TRY(avl_check_array("text_keep", "positions", args->positions, args->count));
    AVL_TRY(avl_check_array("text_keep", "sources", args->sources, args->keep));
    AVL_TRY(avl_check_array("text_keep", "targets", args->targets, args->keep));
    return avl_check_array("text_keep", "scratch", args->scratch, args->count);
}

avl_status_t avl_check_publish(const avl_publish_args_t *args) {
    AVL_TRY(avl_check_array("publish", "items", args->items, args->item_count));
    for (int64_t i = 0; i < args->item_count; i++) {
        const avl_publish_item_t *item = &args->items[i];
        AVL_TRY(avl_check_array("publish", "target", item->target, item->count));
        AVL_TRY(avl_check_array("publish", "source", item->source, item->count));
    }
    return AVL_OK;
}

avl_status_t avl_check_diversity(const avl_diversity_args_t *args) {
    AVL_TRY(avl_check_matrix("diversity", "features", args->features, args->rows, args->width,
                             args->width));
    AVL_CHECK_SHAPE(args->rows <= diversity_rows_max,
                    "diversity: %" PRId64 " rows; at most %" PRId64, args->rows,
                    diversity_rows_max);
    AVL_TRY(avl_check_array("diversity", "distances", args->distances, args->rows));
    AVL_CHECK_SHAPE(args->rows == 0 || args->scratch != NULL, "diversity: scratch is NULL");
    return AVL_OK;
}

avl_status_t avl_check_weigh(const avl_weigh_args_t *args) {
    AVL_TRY(avl_check_array("weigh", "target", args->target, args->count));
    AVL_TRY(avl_check_array("weigh", "scores", args->scores, args->count));
    return avl_check_array("weigh", "factors", args->factors, args->count);
}
