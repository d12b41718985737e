/* model/shards.c: which heads, columns and rows a rank holds. */
#include "model/model.h"

/* MLP columns are dealt in bundles of this many where that leaves the ranks even to a few percent,
 * so that the slices of mapped weights start on vector boundaries. */
#define COLUMN_BUNDLE 16
#define BUNDLES_PER_RANK_LEAST 8

static avl_shard_t deal(int64_t count, int rank, int ranks) {
    int64_t first, last;
    avl_group_slice(count, rank, ranks, &first, &last);
    return (avl_shard_t){(int)first, (int)(last - first)};
}

static avl_shard_t deal_columns(int count, int rank, int ranks) {
    if (count % COLUMN_BUNDLE != 0 || count / COLUMN_BUNDLE < BUNDLES_PER_RANK_LEAST * ranks)
        return deal(count, rank, ranks);
    avl_shard_t bundles = deal(count / COLUMN_BUNDLE, rank, ranks);
    return (avl_shard_t){bundles.first * COLUMN_BUNDLE, bundles.count * COLUMN_BUNDLE};
}

avl_status_t avl_shards_plan(const avl_model_config_t *config, int rank, int ranks,
                             avl_shards_t *shards_p) {
    const avl_text_config_t *text = &config->text;
    if (ranks > text->query_heads)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "%d ranks, but the model has only %d query heads to deal out", ranks,
                        text->query_heads);
    if (ranks < 1 || rank < 0 || rank >= ranks)
        return avl_fail(AVL_ERR_INVALID, "rank %d of %d", rank, ranks);
    if (text->kv_heads < 1 || text->query_heads % text->kv_heads != 0)
        return avl_fail(AVL_ERR_UNSUPPORTED, "%d query heads do not share %d KV heads evenly",
                        text->query_heads, text->kv_heads);
    int group = text->query_heads / text->kv_heads;
    avl_shard_t query = deal(text->query_heads, rank, ranks);
    int kv_first = query.first / group, kv_last = (query.first + query.count - 1) / group;
    *shards_p = (avl_shards_t){
        .query_heads = query,
        .kv_heads = {kv_first, kv_last - kv_first + 1},
        .head_map = {.query_heads = query.count,
                     .group = group,
                     .query_head_offset = query.first % group},
        .mlp_columns = deal_columns(text->mlp_width, rank, ranks),
        .vocab_rows = deal(text->vocab_rows, rank, ranks),
        .vision_heads = deal(config->vision.heads, rank, ranks),
        .vision_mlp_columns = deal_columns(config->vision.mlp_width, rank, ranks),
    };
    return AVL_OK;
}
