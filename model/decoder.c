/* model/decoder.c: the language model (modeling_llama.py, modeling_mistral.py).
 *
 * Each layer adds two sums over the ranks to the f32 stream: attention's output projection and the
 * MLP's. The last layer's MLP runs only for the rows whose logits are wanted: nothing else of its
 * output is read. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/select.h"
#include "model/network.h"
#include "model/rope.h"

#define NAME_BYTES 160
#define TEXT "language_model.model."

static avl_status_t load_norm(avl_loader_t *loader, const char *name, int width, float **norm_p) {
    return avl_loader_floats(loader, name, 1, (const int64_t[]){width}, (avl_shard_t){0, width},
                             norm_p);
}

static avl_status_t load_product(avl_loader_t *loader, const char *prefix, int rows, int columns,
                                 avl_shard_t row_shard, avl_shard_t column_shard, int with_bias,
                                 avl_product_t *product_p) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.weight", prefix);
    AVL_TRY(avl_loader_matrix(loader, name, rows, columns, row_shard, column_shard,
                              &product_p->weight));
    if (!with_bias)
        return AVL_OK;
    snprintf(name, sizeof name, "%s.bias", prefix);
    return avl_loader_floats(loader, name, 1, (const int64_t[]){rows}, row_shard, &product_p->bias);
}

static avl_shard_t head_columns(avl_shard_t heads, int head_width) {
    return (avl_shard_t){heads.first * head_width, heads.count * head_width};
}

static avl_status_t load_layer(avl_model_t *model, avl_loader_t *loader, int index,
                               avl_decoder_layer_t *layer) {
    const avl_text_config_t *text = &model->config.model.text;
    int hidden = text->hidden_width, width = text->head_width;
    int query_width = text->query_heads * width, kv_width = text->kv_heads * width;
    avl_shard_t all = {0, hidden}, columns = model->shards.mlp_columns;
    avl_shard_t query = head_columns(model->shards.query_heads, width);
    avl_shard_t kv = head_columns(model->shards.kv_heads, width);
    int bias = text->attention_bias, mlp_bias = text->mlp_bias;
    char prefix[NAME_BYTES - 16];
#define LAYER_NAME(suffix)                                                                         \
    (snprintf(prefix, sizeof prefix, TEXT "layers.%d." suffix, index), prefix)
    AVL_TRY(
        load_norm(loader, LAYER_NAME("input_layernorm.weight"), hidden, &layer->attention_norm));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.q_proj"), query_width, hidden, query, all,
                         bias, &layer->query));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.k_proj"), kv_width, hidden, kv, all, bias,
                         &layer->key));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.v_proj"), kv_width, hidden, kv, all, bias,
                         &layer->value));
    AVL_TRY(load_product(loader, LAYER_NAME("self_attn.o_proj"), hidden, query_width, all, query,
                         bias, &layer->output));
    AVL_TRY(
        load_norm(loader, LAYER_NAME("post_attention_layernorm.weight"), hidden, &layer->mlp_norm));
    AVL_TRY(load_product(loader, LAYER_NAME("mlp.gate_proj"), text->mlp_width, hidden, columns, all,
                         mlp_bias, &layer->gate));
    AVL_TRY(load_product(loader, LAYER_NAME("mlp.up_proj"), text->mlp_width, hidden, columns, all,
                         mlp_bias, &layer->up));
    return load_product(loader, LAYER_NAME("mlp.down_proj"), hidden, text->mlp_width, all, columns,
                        mlp_bias, &layer->down);
#undef LAYER_NAME
}

avl_status_t avl_decoder_load(avl_model_t *model, avl_loader_t *loader) {
    const avl_text_config_t *text = &model->config.model.text;
    avl_decoder_t *decoder = &model->decoder;
    avl_shard_t all = {0, text->hidden_width}, vocab = model->shards.vocab_rows;
    AVL_TRY(avl_alloc((size_t)text->layer_count, sizeof *decoder->layers, "decoder layers",
                      &decoder->layers));
    AVL_TRY(avl_loader_matrix(loader, TEXT "embed_tokens.weight", text->vocab_rows,
                              text->hidden_width, vocab, all, &decoder->embedding));
    for (int index = 0; index < text->layer_count; index++)
        AVL_TRY(load_layer(model, loader, index, &decoder->layers[index]));
    AVL_TRY(load_norm(loader, TEXT "norm.weight", text->hidden_width, &decoder->final_norm));
    if (text->tied_head) {
        decoder->head = decoder->embedding;
        return AVL_OK;
    }
    return avl_loader_matrix(loader, "language_model.lm_head.weight", text->vocab_rows,
                             text->hidden_width, vocab, all, &decoder->head);
}

void avl_decoder_layout(avl_model_t *model, avl_arena_t *arena) {
    const avl_text_config_t *text = &model->config.model.text;
    const avl_shards_t *shards = &model->shards;
    avl_decoder_t *decoder = &model->decoder;
    int64_t rows = model->options.rows_max, logit_rows = model->options.logit_rows_max;
    int64_t hidden = text->hidden_width, width = text->head_width;
    int64_t bytes = (int64_t)avl_dtype_bytes(model->options.dtype);
    int64_t heads = shards->query_heads.count + 2 * (int64_t)shards->kv_heads.count;
    /* The last layer's MLP and the head run over the logit rows, which may outnumber the step's
     * rows. */
    int64_t most = rows > logit_rows ? rows : logit_rows;
    /* A product of many rows reads whole blocks of them. */
    int64_t block = AVL_LINEAR_MANY_ROWS;
    most = most > block ? most : block;
    decoder->token_ids = avl_arena_take(arena, rows, sizeof(int32_t));
    decoder->logit_rows = avl_arena_take(arena, logit_rows, sizeof(int32_t));
    decoder->cosines = avl_arena_take(arena, rows * (width / 2), sizeof(float));
    decoder->sines = avl_arena_take(arena, rows * (width / 2), sizeof(float));
    decoder->stream = avl_arena_take(arena, rows * hidden, sizeof(float));
    decoder->last = avl_arena_take(arena, logit_rows * hidden, sizeof(float));
    decoder->normed = avl_arena_take(arena, most * hidden, bytes);
    decoder->qkv = avl_arena_take(arena, rows * heads * width, bytes);
    decoder->attended = avl_arena_take(
        arena, (rows > block ? rows : block) * shards->query_heads.count * width, bytes);
    decoder->gate_up = avl_arena_take(arena, most * 2 * shards->mlp_columns.count, bytes);
    decoder->mlp = avl_arena_take(arena, most * shards->mlp_columns.count, bytes);
    decoder->partial = avl_arena_take(arena, most * hidden, sizeof(float));
    /* The rank's vote stands behind them. */
    decoder->logits =
        avl_arena_take(arena, logit_rows * shards->vocab_rows.count + 1, sizeof(float));
    decoder->best = avl_arena_take(arena, 2 * logit_rows, sizeof(float));
    decoder->drawn = avl_arena_take(arena, logit_rows, sizeof *decoder->drawn);
}

/* Host memory for what ranks tell rank 0 of their parts of the vocabulary. */
static avl_status_t prepare_gathering(avl_model_t *model) {
    avl_decoder_t *decoder = &model->decoder;
    size_t rows = (size_t)model->options.logit_rows_max;
    size_t ranks = (size_t)avl_group_ranks(model->group);
    size_t found = rows + 1, logits = rows * (size_t)model->config.model.text.vocab_rows + ranks;
    AVL_TRY(avl_alloc(found, sizeof *decoder->best_found, "best tokens", &decoder->best_found));
    model->memory.host_bytes += found * sizeof *decoder->best_found;
    if (avl_group_rank(model->group) > 0)
        return AVL_OK;
    model->memory.host_bytes += ranks * found * sizeof *decoder->best_gathered;
    AVL_TRY(avl_alloc(ranks * found, sizeof *decoder->best_gathered, "best tokens",
                      &decoder->best_gathered));
    model->memory.host_bytes += logits * sizeof(float);
    return avl_alloc_aligned(logits, sizeof(float), "gathered logits", &decoder->gathered);
}

avl_status_t avl_decoder_prepare(avl_model_t *model) {
    const avl_text_config_t *text = &model->config.model.text;
    avl_decoder_t *decoder = &model->decoder;
    size_t half = (size_t)text->head_width / 2, rows = (size_t)model->options.rows_max;
    int ranks = avl_group_ranks(model->group);
    AVL_TRY(avl_alloc(half, sizeof(float), "rope frequencies", &decoder->frequencies));
    AVL_TRY(avl_alloc_aligned(2 * rows * half, sizeof(float), "rope tables", &decoder->rope_host));
    AVL_TRY(avl_alloc((size_t)ranks, sizeof(size_t), "gather sizes", &decoder->gather_bytes));
    int32_t **const lists[] = {&decoder->survivors, &decoder->positions, &decoder->lengths};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        AVL_TRY(avl_alloc_aligned(rows, sizeof(int32_t), "rows of a step", lists[i]));
    AVL_TRY(avl_alloc_aligned((size_t)model->options.logit_rows_max, sizeof(int32_t),
                              "rows of a step", &decoder->logit_rows_host));
    AVL_TRY(avl_alloc_aligned(2 * (size_t)model->options.logit_rows_max, sizeof(int32_t),
                              "best tokens", &decoder->best_host));
    model->memory.host_bytes +=
        (3 * rows + 3 * (size_t)model->options.logit_rows_max) * sizeof(int32_t);
    model->memory.host_bytes += (2 * rows + 1) * half * sizeof(float);
    return ranks > 1 ? prepare_gathering(model) : AVL_OK;
}

void avl_decoder_release(avl_model_t *model) {
    free(model->decoder.frequencies);
    free(model->decoder.rope_host);
    free(model->decoder.gather_bytes);
    free(model->decoder.survivors);
    free(model->decoder.positions);
    free(model->decoder.lengths);
    free(model->decoder.logit_rows_host);
    free(model->decoder.best_host);
    free(model->decoder.best_found);
    free(model->decoder.best_gathered);
    free(model->decoder.gathered);
}

static avl_status_t check_batch(const avl_model_t *model, const avl_forward_batch_t *batch) {
    const avl_model_options_t *options = &model->options;
    if (batch->rows < 1 || batch->rows > options->rows_max || batch->many_rows < 0 ||
        batch->many_rows > batch->rows || batch->logit_count < 0 ||
        batch->logit_count > options->logit_rows_max || batch->embed_count < 0 ||
        batch->embed_count > batch->rows)
        return avl_fail(AVL_ERR_SHAPE,
                        "step of %d rows (at most %d), %d of them in large blocks, %d with logits "
                        "(at most %d), %d from pictures",
                        batch->rows, options->rows_max, batch->many_rows, batch->logit_count,
                        options->logit_rows_max, batch->embed_count);
    int vocab = model->config.model.text.vocab_rows, pictures = 0;
    for (int row = 0; row < batch->rows; row++) {
        if (batch->token_ids[row] < -1 || batch->token_ids[row] >= vocab)
            return avl_fail(AVL_ERR_INVALID, "row %d: token id %d outside the vocabulary of %d",
                            row, batch->token_ids[row], vocab);
        if (batch->positions[row] < 0)
            return avl_fail(AVL_ERR_INVALID, "row %d: position %d", row, batch->positions[row]);
        pictures += batch->token_ids[row] == -1;
    }
    if (batch->best_count < 0 || batch->best_count > batch->logit_count ||
        (batch->best_count > 0 && batch->best == NULL))
        return avl_fail(AVL_ERR_INVALID, "the best tokens of %d of %d rows", batch->best_count,
                        batch->logit_count);
    if (batch->draw_count < 0 || batch->draw_count > batch->logit_count - batch->best_count ||
        (batch->draw_count > 0 &&
         (batch->draws == NULL || batch->drawn == NULL || model->device->ops->sample == NULL ||
          avl_group_ranks(model->group) > 1)))
        return avl_fail(AVL_ERR_INVALID, "draws from %d of %d rows, at %d ranks on %s",
                        batch->draw_count, batch->logit_count, avl_group_ranks(model->group),
                        model->device->info.name);
    if (pictures != batch->embed_count)
        return avl_fail(AVL_ERR_INVALID, "%d rows await a picture's feature, %d are given",
                        pictures, batch->embed_count);
    for (int index = 0; index < batch->embed_count; index++) {
        int32_t row = batch->embed_rows[index];
        if (row < 0 || row >= batch->rows || batch->token_ids[row] != -1)
            return avl_fail(AVL_ERR_INVALID,
                            "picture row %d: row %d of the step is not free for it", index, row);
    }
    for (int index = 0; index < batch->logit_count; index++)
        if (batch->logit_rows[index] < 0 || batch->logit_rows[index] >= batch->rows)
            return avl_fail(AVL_ERR_INVALID, "logits of row %d of %d", batch->logit_rows[index],
                            batch->rows);
    return AVL_OK;
}

static avl_status_t prepare_step(avl_model_t *model, const avl_forward_batch_t *batch) {
    const avl_text_config_t *text = &model->config.model.text;
    avl_decoder_t *decoder = &model->decoder;
    avl_device_t *device = model->device;
    size_t count = (size_t)batch->rows * (size_t)(text->head_width / 2);
    avl_rope_tables(text, batch->positions, batch->sequence_rows, batch->rows, decoder->frequencies,
                    decoder->rope_host, decoder->rope_host + count);
    size_t bytes = count * sizeof(float);
    AVL_TRY(device->ops->upload(device, decoder->cosines, decoder->rope_host, bytes));
    AVL_TRY(device->ops->upload(device, decoder->sines, decoder->rope_host + count, bytes));
    if (batch->logit_count)
        AVL_TRY(device->ops->upload(device, decoder->logit_rows, batch->logit_rows,
                                    (size_t)batch->logit_count * sizeof(int32_t)));
    AVL_TRY(device->ops->upload(device, decoder->token_ids, batch->token_ids,
                                (size_t)batch->rows * sizeof(int32_t)));
    return avl_embed(device, &(avl_embed_args_t){.token_ids = decoder->token_ids,
                                                 .table = decoder->embedding.data,
                                                 .table_stride = decoder->embedding.stride,
                                                 .first_row = model->shards.vocab_rows.first,
                                                 .table_rows = model->shards.vocab_rows.count,
                                                 .output = decoder->stream,
                                                 .rows = batch->rows,
                                                 .width = text->hidden_width,
                                                 .dtype = model->options.dtype});
}

/* Copies picture rows into the stream, neighbours in one go. */
static avl_status_t place_pictures(avl_model_t *model, const avl_forward_batch_t *batch) {
    int64_t hidden = model->config.model.text.hidden_width;
    for (int first = 0; first < batch->embed_count;) {
        const float *source = batch->embed_features[first];
        int32_t target = batch->embed_rows[first];
        int count = 1;
        while (first + count < batch->embed_count &&
               batch->embed_features[first + count] == source + count * hidden &&
               batch->embed_rows[first + count] == target + count)
            count++;
        AVL_TRY(avl_copy_rows(model->device, &(avl_copy_rows_args_t){
                                                 .input = source,
                                                 .input_stride = hidden,
                                                 .output = model->decoder.stream + target * hidden,
                                                 .output_stride = hidden,
                                                 .rows = count,
                                                 .width = hidden}));
        first += count;
    }
    return AVL_OK;
}

static avl_status_t normalize(avl_model_t *model, const float *stream, const float *weight,
                              int64_t rows) {
    const avl_text_config_t *text = &model->config.model.text;
    return avl_norm(model->device, &(avl_norm_args_t){.input = stream,
                                                      .input_stride = text->hidden_width,
                                                      .weight = weight,
                                                      .output = model->decoder.normed,
                                                      .rows = rows,
                                                      .width = text->hidden_width,
                                                      .epsilon = text->rms_norm_epsilon,
                                                      .output_dtype = model->options.dtype});
}

/* One product for all rows of the step, each the way it is to go. */
static avl_status_t multiply(const avl_model_t *model, const avl_product_t *product, int with_bias,
                             avl_linear_args_t args) {
    int64_t few = args.rows - model->decoder.many_rows;
    args.way = AVL_LINEAR_MANY;
    args.rows = model->decoder.many_rows;
    AVL_TRY(avl_model_product(model, product, with_bias, args));
    int64_t input = args.rows * args.input_stride, output = args.rows * args.output_stride;
    args.input = (const char *)args.input + input * (int64_t)avl_dtype_bytes(model->options.dtype);
    args.output = (char *)args.output + output * (int64_t)avl_dtype_bytes(args.output_dtype);
    args.rows = few;
    args.way = AVL_LINEAR_FEW;
    return avl_model_product(model, product, with_bias, args);
}

/* The normed rows through one product to `columns` of rows that are `stride` apart. */
static avl_status_t project(avl_model_t *model, const avl_product_t *product, void *output,
                            int64_t stride, int64_t rows, int64_t columns) {
    int64_t hidden = model->config.model.text.hidden_width;
    return multiply(model, product, 1,
                    (avl_linear_args_t){.input = model->decoder.normed,
                                        .input_stride = hidden,
                                        .output = output,
                                        .output_stride = stride,
                                        .rows = rows,
                                        .in_width = hidden,
                                        .out_width = columns,
                                        .output_dtype = model->options.dtype});
}

/* This rank's heads: their part of the output projection, into `partial`. *asked_p: the hook was
 * called. */
static avl_status_t attention_part(avl_model_t *model, int index, int64_t rows,
                                   const avl_attention_hook_t *hook, bool *asked_p) {
    avl_decoder_t *decoder = &model->decoder;
    const avl_decoder_layer_t *layer = &decoder->layers[index];
    int64_t width = model->config.model.text.head_width;
    int64_t hidden = model->config.model.text.hidden_width;
    int query_heads = model->shards.query_heads.count, kv_heads = model->shards.kv_heads.count;
    int64_t query_width = query_heads * width, kv_width = kv_heads * width;
    int64_t stride = query_width + 2 * kv_width;
    int64_t bytes = (int64_t)avl_dtype_bytes(model->options.dtype);
    char *query = decoder->qkv;
    char *key = query + query_width * bytes, *value = key + kv_width * bytes;
    AVL_TRY(normalize(model, decoder->stream, layer->attention_norm, rows));
    AVL_TRY(project(model, &layer->query, query, stride, rows, query_width));
    AVL_TRY(project(model, &layer->key, key, stride, rows, kv_width));
    AVL_TRY(project(model, &layer->value, value, stride, rows, kv_width));
    /* Query and key heads lie side by side: one turn for both. */
    AVL_TRY(avl_rope(model->device, &(avl_rope_args_t){.data = query,
                                                       .row_stride = stride,
                                                       .rows = rows,
                                                       .heads = query_heads + kv_heads,
                                                       .head_width = (int)width,
                                                       .cosines = decoder->cosines,
                                                       .sines = decoder->sines,
                                                       .dtype = model->options.dtype}));
    *asked_p = true;
    AVL_TRY(hook->attend(hook->context, &(avl_attention_call_t){.layer = index,
                                                                .query = query,
                                                                .key = key,
                                                                .value = value,
                                                                .query_stride = stride,
                                                                .kv_stride = stride,
                                                                .output = decoder->attended}));
    return multiply(model, &layer->output, 0,
                    (avl_linear_args_t){.input = decoder->attended,
                                        .input_stride = query_width,
                                        .output = decoder->partial,
                                        .output_stride = hidden,
                                        .rows = rows,
                                        .in_width = query_width,
                                        .out_width = hidden,
                                        .output_dtype = AVL_DTYPE_F32});
}

static avl_status_t mlp_part(avl_model_t *model, const avl_decoder_layer_t *layer,
                             const float *stream, int64_t rows) {
    avl_decoder_t *decoder = &model->decoder;
    int64_t columns = model->shards.mlp_columns.count;
    int64_t hidden = model->config.model.text.hidden_width;
    char *up = (char *)decoder->gate_up + columns * (int64_t)avl_dtype_bytes(model->options.dtype);
    AVL_TRY(normalize(model, stream, layer->mlp_norm, rows));
    AVL_TRY(project(model, &layer->gate, decoder->gate_up, 2 * columns, rows, columns));
    AVL_TRY(project(model, &layer->up, up, 2 * columns, rows, columns));
    if (columns > 0)
        AVL_TRY(avl_gated(model->device,
                          &(avl_gated_args_t){.gate_up = decoder->gate_up,
                                              .output = decoder->mlp,
                                              .rows = rows,
                                              .width = columns,
                                              .dtype = model->options.dtype,
                                              .activation = model->config.model.text.activation}));
    return multiply(model, &layer->down, 0,
                    (avl_linear_args_t){.input = decoder->mlp,
                                        .input_stride = columns,
                                        .output = decoder->partial,
                                        .output_stride = hidden,
                                        .rows = rows,
                                        .in_width = columns,
                                        .out_width = hidden,
                                        .output_dtype = AVL_DTYPE_F32});
}

static avl_status_t head_part(avl_model_t *model, int64_t rows) {
    avl_decoder_t *decoder = &model->decoder;
    int64_t hidden = model->config.model.text.hidden_width;
    int64_t vocab = model->shards.vocab_rows.count;
    AVL_TRY(normalize(model, decoder->last, decoder->final_norm, rows));
    avl_product_t head = {.weight = decoder->head};
    return multiply(model, &head, 0,
                    (avl_linear_args_t){.input = decoder->normed,
                                        .input_stride = hidden,
                                        .output = decoder->logits,
                                        .output_stride = vocab,
                                        .rows = rows,
                                        .in_width = hidden,
                                        .out_width = vocab,
                                        .output_dtype = AVL_DTYPE_F32});
}

/* What a rank's block of logits ends with: how the step went there. As wide as a logit. */
typedef int32_t vote_t;

/* Blocks [rank][row][rows of that rank's vocabulary], each with a vote behind it, to
 * [row][vocabulary]. Without every rank's part the logits mean nothing. */
static avl_status_t interleave(const avl_model_t *model, int rows, float *logits) {
    const float *block = model->decoder.gathered;
    int64_t vocab = model->config.model.text.vocab_rows;
    int ranks = avl_group_ranks(model->group);
    for (int rank = 0; rank < ranks; rank++) {
        int64_t first, last;
        avl_group_slice(vocab, rank, ranks, &first, &last);
        size_t bytes = (size_t)(last - first) * sizeof(float);
        for (int row = 0; row < rows; row++, block += last - first)
            if (bytes)
                memcpy(logits + row * vocab + first, block, bytes);
        vote_t vote;
        memcpy(&vote, block++, sizeof vote);
        if (vote != AVL_OK)
            return avl_fail(AVL_ERR_PEER, "rank %d failed in this step with %s", rank,
                            avl_status_name((avl_status_t)vote));
    }
    return AVL_OK;
}

static avl_status_t collect_logits(avl_model_t *model, int rows, float *logits,
                                   avl_status_t *status_p) {
    avl_decoder_t *decoder = &model->decoder;
    avl_device_t *device = model->device;
    int64_t vocab = model->config.model.text.vocab_rows;
    int ranks = avl_group_ranks(model->group), rank = avl_group_rank(model->group);
    size_t row_bytes = (size_t)rows * sizeof(float);
    if (ranks == 1) {
        if (*status_p == AVL_OK)
            *status_p =
                device->ops->download(device, logits, decoder->logits, row_bytes * (size_t)vocab);
        return AVL_OK;
    }
    vote_t vote;
    for (int peer = 0; peer < ranks; peer++) {
        int64_t first, last;
        avl_group_slice(vocab, peer, ranks, &first, &last);
        decoder->gather_bytes[peer] = row_bytes * (size_t)(last - first) + sizeof vote;
    }
    size_t own_bytes = decoder->gather_bytes[rank] - sizeof vote;
    float *own = decoder->logits;
    if (!device->is_host) {
        own = model->exchange;
        if (*status_p == AVL_OK)
            *status_p = device->ops->download(device, own, decoder->logits, own_bytes);
    }
    vote = (vote_t)*status_p;
    memcpy((char *)own + own_bytes, &vote, sizeof vote);
    AVL_TRY(avl_group_gather(model->group, own, decoder->gather_bytes, decoder->gathered));
    if (rank == 0 && *status_p == AVL_OK)
        *status_p = interleave(model, rows, logits);
    return AVL_OK;
}

/* Embeddings of the whole vocabulary, summed over the ranks that hold its parts, and the pictures'
 * rows. */
static avl_status_t begin_stream(avl_model_t *model, const avl_forward_batch_t *batch,
                                 avl_status_t *status_p) {
    int64_t hidden = model->config.model.text.hidden_width;
    *status_p = prepare_step(model, batch);
    AVL_TRY(avl_model_all_reduce(model, model->decoder.stream, batch->rows * hidden, status_p));
    if (*status_p == AVL_OK)
        *status_p = place_pictures(model, batch);
    return AVL_OK;
}

/* What of the step's host arrays changes when rows leave. */
static void keep_rows(avl_decoder_t *decoder, const avl_forward_batch_t *batch, int rows) {
    size_t bytes = (size_t)rows * sizeof(int32_t);
    memcpy(decoder->positions, batch->positions, bytes);
    if (batch->sequence_rows != NULL)
        memcpy(decoder->lengths, batch->sequence_rows, bytes);
    if (batch->logit_count > 0)
        memcpy(decoder->logit_rows_host, batch->logit_rows,
               (size_t)batch->logit_count * sizeof(int32_t));
}

/* Leaves the rows that `survivors` names. */
static avl_status_t drop_rows(avl_model_t *model, const avl_forward_batch_t *batch, int count) {
    const avl_text_config_t *text = &model->config.model.text;
    avl_decoder_t *decoder = &model->decoder;
    avl_device_t *device = model->device;
    int64_t hidden = text->hidden_width;
    /* What was sent from these arrays may not have been read yet. */
    AVL_TRY(device->ops->synchronize(device));
    int logit = 0;
    int64_t many = 0;
    for (int row = 0; row < count; row++) {
        int32_t source = decoder->survivors[row];
        decoder->positions[row] = decoder->positions[source];
        decoder->lengths[row] = decoder->lengths[source];
        many += source < decoder->many_rows;
    }
    for (; logit < batch->logit_count; logit++) {
        int32_t row = 0;
        while (row < count && decoder->survivors[row] != decoder->logit_rows_host[logit])
            row++;
        if (row == count)
            return avl_fail(AVL_ERR_INTERNAL, "row %d of the step gives logits and was dropped",
                            decoder->logit_rows_host[logit]);
        decoder->logit_rows_host[logit] = row;
    }
    decoder->many_rows = many;
    size_t tables = (size_t)count * (size_t)(text->head_width / 2);
    avl_rope_tables(text, decoder->positions,
                    batch->sequence_rows != NULL ? decoder->lengths : NULL, count,
                    decoder->frequencies, decoder->rope_host, decoder->rope_host + tables);
    AVL_TRY(
        device->ops->upload(device, decoder->cosines, decoder->rope_host, tables * sizeof(float)));
    AVL_TRY(device->ops->upload(device, decoder->sines, decoder->rope_host + tables,
                                tables * sizeof(float)));
    if (batch->logit_count > 0)
        AVL_TRY(device->ops->upload(device, decoder->logit_rows, decoder->logit_rows_host,
                                    (size_t)batch->logit_count * sizeof(int32_t)));
    /* The token ids have been read, and what partial held is in the stream. */
    AVL_TRY(device->ops->upload(device, decoder->token_ids, decoder->survivors,
                                (size_t)count * sizeof(int32_t)));
    AVL_TRY(avl_copy_rows(device, &(avl_copy_rows_args_t){.input = decoder->stream,
                                                          .input_stride = hidden,
                                                          .source_rows = decoder->token_ids,
                                                          .output = decoder->partial,
                                                          .output_stride = hidden,
                                                          .rows = count,
                                                          .width = hidden}));
    return avl_copy_rows(device, &(avl_copy_rows_args_t){.input = decoder->partial,
                                                         .input_stride = hidden,
                                                         .output = decoder->stream,
                                                         .output_stride = hidden,
                                                         .rows = count,
                                                         .width = hidden});
}

/* Asks the hook which rows go on. */
static void shrink(avl_model_t *model, const avl_forward_batch_t *batch,
                   const avl_attention_hook_t *hook, int layer, int64_t *rows_p,
                   avl_status_t *status_p) {
    if (hook->survivors == NULL)
        return;
    int count = (int)*rows_p;
    avl_status_t asked = hook->survivors(hook->context, layer, model->decoder.survivors, &count);
    if (*status_p == AVL_OK)
        *status_p = asked;
    if (count < *rows_p && *status_p == AVL_OK)
        *status_p = drop_rows(model, batch, count);
    *rows_p = count;
}

avl_status_t avl_model_forward(avl_model_t *model, const avl_forward_batch_t *batch,
                               const avl_attention_hook_t *hook, float *logits) {
    AVL_TRY(check_batch(model, batch));
    avl_decoder_t *decoder = &model->decoder;
    int layer_count = model->config.model.text.layer_count;
    int64_t hidden = model->config.model.text.hidden_width, rows = batch->rows;
    float *stream = decoder->stream;
    avl_status_t status;
    decoder->many_rows = batch->many_rows;
    keep_rows(decoder, batch, batch->rows);
    AVL_TRY(begin_stream(model, batch, &status));
    for (int index = 0; index < layer_count; index++) {
        const avl_decoder_layer_t *layer = &decoder->layers[index];
        bool asked = false;
        if (status == AVL_OK)
            status = attention_part(model, index, rows, hook, &asked);
        if (!asked && hook->join != NULL)
            AVL_TRY(hook->join(hook->context, index));
        AVL_TRY(avl_model_reduce_add(model, stream, decoder->partial, layer->output.bias, rows,
                                     hidden, &status));
        if (index < layer_count - 1)
            shrink(model, batch, hook, index, &rows, &status);
        if (index == layer_count - 1) {
            rows = batch->logit_count;
            if (rows == 0)
                return status;
            stream = decoder->last;
            decoder->many_rows = 0; /* single rows of many sequences */
            if (status == AVL_OK)
                status = avl_copy_rows(model->device,
                                       &(avl_copy_rows_args_t){.input = decoder->stream,
                                                               .input_stride = hidden,
                                                               .source_rows = decoder->logit_rows,
                                                               .output = stream,
                                                               .output_stride = hidden,
                                                               .rows = rows,
                                                               .width = hidden});
        }
        if (status == AVL_OK)
            status = mlp_part(model, layer, stream, rows);
        AVL_TRY(avl_model_reduce_add(model, stream, decoder->partial, layer->down.bias, rows,
                                     hidden, &status));
    }
    if (status == AVL_OK)
        status = head_part(model, rows);
    /* In this order: the vote that goes with the others' logits is put behind those. */
    int whole = batch->logit_count - batch->best_count - batch->draw_count;
    if (batch->best_count > 0)
        AVL_TRY(avl_model_collect_best(model, batch, &status));
    if (batch->draw_count > 0 && status == AVL_OK)
        status = avl_model_collect_drawn(model, batch);
    if (whole > 0)
        AVL_TRY(collect_logits(model, whole, logits, &status));
    return status;
}
