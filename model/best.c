/* model/best.c: the best tokens of a step and those that are drawn, found where the logits are. Of
 * each rank's part of the vocabulary only its best travel. */
#include <math.h>
#include <stdbool.h>

#include "kernels/sample.h"
#include "kernels/select.h"
#include "model/network.h"

/* What a rank tells of the best tokens: `count` of these, and its vote in a last one. */
typedef avl_best_token_t found_t;

static bool is_strange(float logit) {
    return isnan(logit) || logit == INFINITY;
}

/* Whether a token of a later part of the vocabulary goes before the best so far: of strange logits
 * the first does, else the largest. */
static bool is_better(const found_t *later, const found_t *best) {
    if (later->token_id < 0 || best->token_id < 0)
        return later->token_id >= 0;
    return !is_strange(best->logit) && (is_strange(later->logit) || later->logit > best->logit);
}

static avl_status_t merge_best(const avl_model_t *model, int count, avl_best_token_t *best) {
    const found_t *found = model->decoder.best_gathered;
    int ranks = avl_group_ranks(model->group);
    for (int i = 0; i < count; i++)
        best[i] = (found_t){.token_id = -1};
    for (int rank = 0; rank < ranks; rank++, found += count + 1) {
        avl_status_t vote = (avl_status_t)found[count].token_id;
        if (vote != AVL_OK)
            return avl_fail(AVL_ERR_PEER, "rank %d failed in this step with %s", rank,
                            avl_status_name(vote));
        for (int i = 0; i < count; i++)
            if (is_better(&found[i], &best[i]))
                best[i] = found[i];
    }
    return AVL_OK;
}

/* The best of the last rows' logits that this rank has, found where they are. */
static avl_status_t find_best(avl_model_t *model, const avl_forward_batch_t *batch,
                              found_t *found) {
    avl_decoder_t *decoder = &model->decoder;
    avl_device_t *device = model->device;
    int64_t vocab = model->shards.vocab_rows.count, count = batch->best_count;
    int64_t first = batch->logit_count - batch->draw_count - count;
    int32_t *tokens = decoder->best;
    float *logits = (float *)decoder->best + count;
    if (vocab == 0) { /* more ranks than rows of the vocabulary */
        for (int64_t i = 0; i < count; i++)
            found[i] = (found_t){.token_id = -1};
        return AVL_OK;
    }
    AVL_TRY(avl_argmax(device, &(avl_argmax_args_t){
                                   .logits = decoder->logits + first * vocab,
                                   .stride = vocab,
                                   .rows = count,
                                   .width = vocab,
                                   .indices = tokens,
                                   .values = logits,
                                   .strict = 1,
                               }));
    const int32_t *host_tokens = decoder->best;
    if (!device->is_host) {
        AVL_TRY(device->ops->download(device, decoder->best_host, decoder->best,
                                      2 * (size_t)count * sizeof(int32_t)));
        host_tokens = decoder->best_host;
    }
    const float *host_logits = (const float *)host_tokens + count;
    for (int64_t i = 0; i < count; i++)
        found[i] = (found_t){.token_id = host_tokens[i] + (int32_t)model->shards.vocab_rows.first,
                             .logit = host_logits[i]};
    return AVL_OK;
}

avl_status_t avl_model_collect_best(avl_model_t *model, const avl_forward_batch_t *batch,
                                    avl_status_t *status_p) {
    avl_decoder_t *decoder = &model->decoder;
    int ranks = avl_group_ranks(model->group), rank = avl_group_rank(model->group);
    int count = batch->best_count;
    if (ranks == 1) {
        if (*status_p == AVL_OK)
            *status_p = find_best(model, batch, batch->best);
        return AVL_OK;
    }
    found_t *own = decoder->best_found;
    if (*status_p == AVL_OK)
        *status_p = find_best(model, batch, own);
    own[count] = (found_t){.token_id = (int32_t)*status_p};
    for (int peer = 0; peer < ranks; peer++)
        decoder->gather_bytes[peer] = (size_t)(count + 1) * sizeof *own;
    AVL_TRY(avl_group_gather(model->group, own, decoder->gather_bytes, decoder->best_gathered));
    if (rank == 0 && *status_p == AVL_OK)
        *status_p = merge_best(model, count, batch->best);
    return AVL_OK;
}

avl_status_t avl_model_collect_drawn(avl_model_t *model, const avl_forward_batch_t *batch) {
    avl_decoder_t *decoder = &model->decoder;
    avl_device_t *device = model->device;
    int64_t vocab = model->config.model.text.vocab_rows, count = batch->draw_count;
    AVL_TRY(avl_sample(device, &(avl_sample_args_t){
                                   .logits = decoder->logits + (batch->logit_count - count) * vocab,
                                   .stride = vocab,
                                   .rows = count,
                                   .width = vocab,
                                   .items = batch->draws,
                                   .results = decoder->drawn,
                               }));
    return device->ops->download(device, batch->drawn, decoder->drawn,
                                 (size_t)count * sizeof *batch->drawn);
}
