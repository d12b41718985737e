#include "worker/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "kernels/diversity.h"
#include "worker/attend.h"
#include "worker/coverage.h"
#include "worker/prompt_cache.h"
#include "worker/visual_store.h"

/* Pictures of one step: enough for small ones to share a step; pixels of at most this many tiles,
 * or of one picture, travel. */
#define PICTURES_STEP_MAX 32
#define TILES_STEP_MAX 8
/* Unless the operator says otherwise, the encoder cache gets this share of what weights and buffers
 * leave: beyond some hundred pictures a larger one hits hardly more often. */
#define ENCODER_CACHE_SHARE 16
#define ENCODER_CACHE_BYTES_MAX (INT64_C(4) << 30)

struct avl_engine {
    avl_engine_options_t options;
    avl_plan_limits_t plan_limits;
    avl_ledger_t ledger;
    avl_ledger_t *ledgers; /* [ranks] */
    avl_pages_t *pages;
    avl_attend_t *attend;
    avl_sequence_t **sequences; /* [indices_max]; NULL: free */
    char *sequence_memory;      /* [indices_max] of sequence_bytes */
    char *sequence_device;      /* [indices_max] of sequence_device_bytes; NULL on the host */
    size_t sequence_bytes, sequence_device_bytes;
    avl_run_t *runs; /* [sequences_max] of the step */
    int32_t feature_rows;
    float *features;       /* device f32 [feature_rows, hidden]: the encoder cache */
    bool *feature_written; /* [feature_rows] */
    avl_coverage_t *coverage;
    uint8_t *pixels;        /* device: one picture; NULL when the device is the host */
    size_t pixel_bytes_max; /* of one picture */
    int64_t page_bytes_all;
    float *logits;              /* leader: [sequences_max, vocab_rows] */
    avl_best_token_t *best;     /* [sequences_max] */
    avl_sample_result_t *drawn; /* [sequences_max] */
    int64_t encode_ns[PICTURES_STEP_MAX];
    /* The batch of the step: [rows_max] each, logit_rows [sequences_max] */
    int32_t *token_ids, *positions, *sequence_rows, *embed_rows, *logit_rows;
    const float **embed_features;
    float *masses; /* [sequences_max, 3] */
};

/* What the parts of an engine need, from the options alone. */
typedef struct engine_sizes {
    int32_t rows_max;
    int32_t feature_rows_least;
    size_t pixel_bytes_max;
    int64_t picture_rows;
    avl_plan_limits_t plan;
    avl_attend_options_t attend;
} engine_sizes_t;

avl_model_options_t avl_engine_model_options(const avl_config_t *config,
                                             const avl_engine_limits_t *limits, avl_dtype_t dtype) {
    return (avl_model_options_t){
        .dtype = dtype,
        .rows_max = limits->batch_rows + limits->sequences_max,
        .tiles_max = avl_engine_picture_tiles(config),
        .logit_rows_max = limits->sequences_max,
    };
}

/* Whether a rank holds a KV head that another one holds as well; the same answer on all. */
static bool shares_kv_heads(const avl_engine_options_t *options) {
    int ranks = avl_group_ranks(options->group), held = 0;
    for (int rank = 0; rank < ranks; rank++) {
        avl_shards_t shards;
        if (avl_shards_plan(&options->config->model, rank, ranks, &shards) == AVL_OK)
            held += shards.kv_heads.count;
    }
    return held > options->config->model.text.kv_heads;
}

static engine_sizes_t plan_sizes(const avl_engine_options_t *options) {
    const avl_config_t *config = options->config;
    const avl_engine_limits_t *limits = &options->limits;
    const avl_shards_t *shards = avl_model_shards(options->model);
    size_t side = (size_t)config->model.vision.image_side;
    int picture_tiles = avl_engine_picture_tiles(config);
    size_t tile_bytes = 3 * side * side;
    engine_sizes_t sizes = {
        .rows_max = limits->batch_rows + limits->sequences_max,
        /* The pictures of one sequence of any size, and those of others beside it. */
        .feature_rows_least = limits->context_rows + limits->batch_rows,
        .pixel_bytes_max = tile_bytes * (size_t)picture_tiles,
        .picture_rows = avl_coverage_picture_rows(config, picture_tiles, limits->context_rows),
    };
    size_t tiles = (size_t)(picture_tiles > TILES_STEP_MAX ? picture_tiles : TILES_STEP_MAX);
    sizes.plan = (avl_plan_limits_t){
        .sequences_max = limits->sequences_max,
        .indices_max = limits->sequences_max + limits->kept_max,
        .pictures_max = PICTURES_STEP_MAX,
        .context_rows = limits->context_rows,
        /* Prompts and places of pictures of at least one sequence, and of as many as a step
         * can read. */
        .bytes_max =
            avl_plan_frame_bytes(limits->sequences_max, limits->sequences_max + limits->kept_max,
                                 PICTURES_STEP_MAX) +
            12 * (size_t)(limits->context_rows + 2 * limits->batch_rows) + tiles * tile_bytes,
    };
    sizes.plan.bytes_max = (sizes.plan.bytes_max + 7) & ~(size_t)7;
    sizes.attend = (avl_attend_options_t){
        .device = options->device,
        .group = options->group,
        .head_map = shards->head_map,
        .kv_head_first = shards->kv_heads.first,
        .kv_heads_all = config->model.text.kv_heads,
        .kv_heads_shared = shares_kv_heads(options),
        .head_width = config->model.text.head_width,
        .layer_count = config->model.text.layer_count,
        .window = config->model.text.sliding_window,
        .rows_max = sizes.rows_max,
        .runs_max = limits->sequences_max,
        .indices_max = limits->sequences_max + limits->kept_max,
        .context_rows = limits->context_rows,
        .scores_max = (int64_t)limits->sequences_max * limits->context_rows,
        .sequence_scores_max = limits->context_rows,
    };
    return sizes;
}

static void fill_ledger(avl_ledger_t *ledger, const avl_engine_options_t *options,
                        const engine_sizes_t *sizes) {
    const avl_text_config_t *text = &options->config->model.text;
    const avl_engine_limits_t *limits = &options->limits;
    avl_model_memory_t model = avl_model_memory(options->model);
    int64_t pixels = options->device->is_host ? 0 : (int64_t)sizes->pixel_bytes_max;
    int leads = avl_group_rank(options->group) == 0;
    ledger->budget_bytes = options->memory_bytes;
    ledger->mapped_bytes = (int64_t)model.mapped_bytes;
    avl_ledger_add(ledger, "weights", (int64_t)model.weight_bytes);
    avl_ledger_add(
        ledger, "activations",
        (int64_t)(model.activation_bytes + (options->device->is_host ? model.host_bytes : 0)));
    avl_ledger_add(ledger, "kernels' workspace", (int64_t)options->device->workspace_bytes);
    avl_ledger_add(ledger, "communication", avl_group_memory_bytes(options->group));
    avl_ledger_add(ledger, "attention state", avl_attend_bytes(&sizes->attend));
    avl_ledger_add(ledger, "row lists",
                   (limits->sequences_max + limits->kept_max) *
                       (options->device->is_host
                            ? avl_sequence_list_bytes(limits->context_rows, text->layer_count)
                            : avl_sequence_device_bytes(limits->context_rows, text->layer_count)));
    avl_ledger_add(ledger, "step plans and logits",
                   (int64_t)sizes->plan.bytes_max +
                       (leads ? 4 * (int64_t)limits->sequences_max * text->vocab_rows : 0) +
                       (leads && limits->kept_max > 0
                            ? avl_prompt_cache_bytes(options->config, sizes->plan.indices_max,
                                                     limits->context_rows)
                            : 0) +
                       pixels);
    avl_ledger_add(ledger, "likeness of features",
                   avl_coverage_scratch_bytes(sizes->picture_rows, text->hidden_width));
    avl_ledger_add(
        ledger, "pictures at hand",
        leads && options->device->is_host ? avl_engine_picture_bytes(options->config, limits) : 0);
}

int64_t avl_engine_feature_row_bytes(const avl_engine_t *engine) {
    return 4 * (int64_t)engine->options.config->model.text.hidden_width + 1 +
           avl_coverage_row_bytes();
}

/* How large the encoder cache is: all ranks take the least that one of them wants. Collective. */
static avl_status_t settle_features(avl_engine_t *engine, engine_sizes_t *sizes) {
    const avl_engine_options_t *options = &engine->options;
    int64_t row_bytes = avl_engine_feature_row_bytes(engine);
    int64_t left = engine->ledger.budget_bytes - avl_ledger_used(&engine->ledger);
    int64_t bytes = options->encoder_cache_bytes;
    if (bytes == 0)
        bytes = left / ENCODER_CACHE_SHARE < ENCODER_CACHE_BYTES_MAX ? left / ENCODER_CACHE_SHARE
                                                                     : ENCODER_CACHE_BYTES_MAX;
    int64_t rows = bytes / row_bytes, *wishes;
    rows = rows > sizes->feature_rows_least ? rows : sizes->feature_rows_least;
    rows = rows < INT32_MAX ? rows : INT32_MAX;
    size_t ranks = (size_t)avl_group_ranks(options->group);
    avl_status_t status = avl_alloc(ranks, sizeof *wishes, "cache sizes of ranks", &wishes);
    AVL_TRY(avl_group_agree(options->group, status));
    wishes[avl_group_rank(options->group)] = rows;
    status = avl_group_all_gather(options->group, wishes, sizeof *wishes);
    for (size_t i = 0; i < ranks && status == AVL_OK; i++)
        rows = wishes[i] < rows ? wishes[i] : rows;
    free(wishes);
    engine->feature_rows = sizes->plan.feature_rows = (int32_t)rows;
    avl_ledger_add(&engine->ledger, "encoder cache", rows * row_bytes);
    return status;
}

/* KV heads of this rank that another one holds as well. */
static int duplicate_kv_heads(const avl_engine_options_t *options) {
    const avl_shard_t *own = &avl_model_shards(options->model)->kv_heads;
    int rank = avl_group_rank(options->group), ranks = avl_group_ranks(options->group), count = 0;
    for (int head = own->first; head < own->first + own->count; head++) {
        bool elsewhere = false;
        for (int other = 0; other < ranks && !elsewhere; other++) {
            avl_shards_t shards;
            if (other == rank ||
                avl_shards_plan(&options->config->model, other, ranks, &shards) != AVL_OK)
                continue;
            elsewhere = head >= shards.kv_heads.first &&
                        head < shards.kv_heads.first + shards.kv_heads.count;
        }
        count += elsewhere;
    }
    return count;
}

typedef struct rank_pages {
    int64_t pages, page_bytes;
    int64_t duplicate_page_bytes; /* of a page */
    int64_t duplicate_weight_bytes;
} rank_pages_t;

/* How many pages this rank would have: all ranks take the least. Collective. */
static avl_status_t settle_pages(avl_engine_t *engine, int64_t page_bytes, int64_t *pages_p) {
    const avl_engine_options_t *options = &engine->options;
    const avl_engine_limits_t *limits = &options->limits;
    int layers = options->config->model.text.layer_count;
    int64_t pages_sequence =
        layers * ((int64_t)(limits->context_rows + AVL_PAGE_ROWS - 1) / AVL_PAGE_ROWS + 1);
    int64_t pages = options->page_count;
    avl_status_t status = AVL_OK;
    if (pages == 0)
        status = avl_ledger_pages(&engine->ledger, page_bytes, 2 * layers,
                                  pages_sequence * limits->sequences_max, &pages);
    AVL_TRY(avl_group_agree(options->group, status));
    int ranks = avl_group_ranks(options->group);
    rank_pages_t *offers;
    avl_status_t allocated = avl_alloc((size_t)ranks, sizeof *offers, "pages of ranks", &offers);
    AVL_TRY(avl_group_agree(options->group, allocated));
    offers[avl_group_rank(options->group)] = (rank_pages_t){
        .pages = pages,
        .page_bytes = page_bytes,
        .duplicate_page_bytes = page_bytes / avl_model_shards(options->model)->kv_heads.count *
                                duplicate_kv_heads(options),
        .duplicate_weight_bytes = (int64_t)avl_model_memory(options->model).kv_duplicate_bytes,
    };
    status = avl_group_all_gather(options->group, offers, sizeof *offers);
    for (int i = 0; i < ranks && status == AVL_OK; i++) {
        pages = offers[i].pages < pages ? offers[i].pages : pages;
        engine->page_bytes_all += offers[i].page_bytes;
        engine->ledger.duplicate_page_bytes += offers[i].duplicate_page_bytes;
        engine->ledger.duplicate_weight_bytes += offers[i].duplicate_weight_bytes;
    }
    engine->ledger.duplicate_page_bytes *= pages;
    free(offers);
    *pages_p = pages;
    return status;
}

static avl_status_t allocate_device(avl_engine_t *engine) {
    avl_device_t *device = engine->options.device;
    int hidden = engine->options.config->model.text.hidden_width;
    void *memory;
    AVL_TRY(device->ops->allocate(device, 4 * (size_t)engine->feature_rows * (size_t)hidden,
                                  "picture features", &memory));
    engine->features = memory;
    if (!device->is_host) {
        AVL_TRY(device->ops->allocate(device, engine->pixel_bytes_max, "pixels", &memory));
        engine->pixels = memory;
    }
    return AVL_OK;
}

static avl_status_t allocate_sequences(avl_engine_t *engine, size_t count) {
    const avl_engine_options_t *options = &engine->options;
    int32_t rows = options->limits.context_rows;
    int layers = options->config->model.text.layer_count;
    engine->sequence_bytes = (size_t)avl_sequence_list_bytes(rows, layers);
    engine->sequence_device_bytes = (size_t)avl_sequence_device_bytes(rows, layers);
    AVL_TRY(
        avl_alloc_aligned(count, engine->sequence_bytes, "row lists", &engine->sequence_memory));
    if (options->device->is_host)
        return AVL_OK;
    void *memory;
    AVL_TRY(options->device->ops->allocate(options->device, count * engine->sequence_device_bytes,
                                           "row lists", &memory));
    engine->sequence_device = memory;
    return AVL_OK;
}

static avl_status_t allocate(avl_engine_t *engine, const engine_sizes_t *sizes,
                             int64_t page_count) {
    const avl_engine_options_t *options = &engine->options;
    const avl_text_config_t *text = &options->config->model.text;
    size_t sequences = (size_t)options->limits.sequences_max, rows = (size_t)sizes->rows_max;
    bool leads = avl_group_rank(options->group) == 0;
    const struct {
        size_t count, item_bytes;
        void *memory_p;
    } arrays[] = {
        {(size_t)sizes->plan.indices_max, sizeof *engine->sequences, &engine->sequences},
        {sequences, sizeof *engine->runs, &engine->runs},
        {sequences, sizeof *engine->logit_rows, &engine->logit_rows},
        {rows, sizeof *engine->token_ids, &engine->token_ids},
        {rows, sizeof *engine->positions, &engine->positions},
        {rows, sizeof *engine->sequence_rows, &engine->sequence_rows},
        {rows, sizeof *engine->embed_rows, &engine->embed_rows},
        {rows, sizeof *engine->embed_features, &engine->embed_features},
        {3 * sequences, sizeof *engine->masses, &engine->masses},
        {sequences, sizeof *engine->best, &engine->best},
        {sequences, sizeof *engine->drawn, &engine->drawn},
        {(size_t)engine->feature_rows, sizeof *engine->feature_written, &engine->feature_written},
        {leads ? sequences * (size_t)text->vocab_rows : 1, sizeof *engine->logits, &engine->logits},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        AVL_TRY(
            avl_alloc_aligned(arrays[i].count, arrays[i].item_bytes, "engine", arrays[i].memory_p));
    AVL_TRY(allocate_device(engine));
    AVL_TRY(avl_coverage_create(options->device, engine->feature_rows, text->hidden_width,
                                sizes->picture_rows, &engine->coverage));
    AVL_TRY(allocate_sequences(engine, (size_t)sizes->plan.indices_max));
    AVL_TRY(avl_pages_create(options->device, avl_model_shards(options->model)->kv_heads.count,
                             text->head_width, options->dtype, page_count, &engine->pages));
    avl_attend_options_t attend = sizes->attend;
    attend.pages = engine->pages;
    attend.distances = avl_coverage_distances(engine->coverage);
    return avl_attend_create(&attend, &engine->attend);
}

/* The attention of a full step over the longest context, and the likeness of a picture's rows. */
static avl_status_t prepare_kernels(const avl_engine_options_t *options,
                                    const engine_sizes_t *sizes) {
    AVL_TRY(avl_diversity_prepare(options->device, sizes->picture_rows,
                                  options->config->model.text.hidden_width));
    const avl_head_map_t *heads = &avl_model_shards(options->model)->head_map;
    return avl_attention_prepare(
        options->device,
        &(avl_attention_demand_t){.head_width = options->config->model.text.head_width,
                                  .query_heads = heads->query_heads,
                                  .group = heads->group,
                                  .decode_rows_max = options->limits.context_rows,
                                  .decode_sequences_max = options->limits.sequences_max});
}

avl_status_t avl_engine_create(const avl_engine_options_t *options, avl_engine_t **engine_p) {
    engine_sizes_t sizes = plan_sizes(options);
    const avl_shards_t *shards = avl_model_shards(options->model);
    avl_engine_t *engine = NULL;
    avl_status_t status = avl_engine_limits_check(options->config, &options->limits);
    if (status == AVL_OK)
        status = avl_alloc(1, sizeof *engine, "engine", &engine);
    if (status == AVL_OK)
        status = prepare_kernels(options, &sizes);
    AVL_TRY_GOTO(status, avl_group_agree(options->group, status), err_destroy);
    engine->options = *options;
    engine->pixel_bytes_max = sizes.pixel_bytes_max;
    fill_ledger(&engine->ledger, options, &sizes);
    AVL_TRY_GOTO(status, settle_features(engine, &sizes), err_destroy);
    engine->plan_limits = sizes.plan;
    int64_t page_bytes = avl_pages_page_bytes(
        shards->kv_heads.count, options->config->model.text.head_width, options->dtype);
    int64_t pages;
    AVL_TRY_GOTO(status, settle_pages(engine, page_bytes, &pages), err_destroy);
    avl_ledger_add(&engine->ledger, "KV pages", pages * page_bytes);
    AVL_TRY_GOTO(status, avl_ledger_gather(&engine->ledger, options->group, &engine->ledgers),
                 err_destroy);
    status = allocate(engine, &sizes, pages);
    AVL_TRY_GOTO(status, avl_group_agree(options->group, status), err_destroy);
    *engine_p = engine;
    return AVL_OK;
err_destroy:
    avl_engine_destroy(engine);
    return status;
}

void avl_engine_destroy(avl_engine_t *engine) {
    if (engine == NULL)
        return;
    avl_device_t *device = engine->options.device;
    for (int32_t i = 0; engine->sequences != NULL && i < engine->plan_limits.indices_max; i++)
        avl_sequence_destroy(engine->sequences[i], engine->pages);
    avl_attend_destroy(engine->attend);
    avl_coverage_destroy(engine->coverage);
    avl_pages_destroy(engine->pages);
    if (engine->features != NULL)
        device->ops->release(device, engine->features);
    if (engine->pixels != NULL)
        device->ops->release(device, engine->pixels);
    if (engine->sequence_device != NULL)
        device->ops->release(device, engine->sequence_device);
    free(engine->sequence_memory);
    free(engine->ledgers);
    free(engine->sequences);
    free(engine->runs);
    free(engine->logit_rows);
    free(engine->token_ids);
    free(engine->positions);
    free(engine->sequence_rows);
    free(engine->embed_rows);
    free(engine->embed_features);
    free(engine->feature_written);
    free(engine->masses);
    free(engine->logits);
    free(engine->best);
    free(engine->drawn);
    free(engine);
}

static avl_status_t misfit(const avl_plan_t *plan, const char *what, int32_t sequence) {
    return avl_fail(AVL_ERR_INTERNAL, "step %llu: %s (sequence %d)", (unsigned long long)plan->step,
                    what, sequence);
}

static void release_sequence(avl_engine_t *engine, int32_t index) {
    avl_sequence_destroy(engine->sequences[index], engine->pages);
    engine->sequences[index] = NULL;
}

static avl_status_t release_all(avl_engine_t *engine, const avl_plan_t *plan) {
    for (int32_t i = 0; i < plan->retirement_count; i++) {
        avl_sequence_t *sequence = engine->sequences[plan->retirements[i]];
        if (sequence == NULL || sequence->rows_done < sequence->shape.prompt_rows)
            return misfit(plan, "retirement of a sequence whose prompt is not read",
                          plan->retirements[i]);
        avl_sequence_retire(sequence, engine->pages);
    }
    for (int32_t i = 0; i < plan->release_count; i++) {
        if (engine->sequences[plan->releases[i]] == NULL)
            return misfit(plan, "release of a sequence that does not exist", plan->releases[i]);
        release_sequence(engine, plan->releases[i]);
    }
    return AVL_OK;
}

static avl_status_t admit(avl_engine_t *engine, const avl_plan_admission_t *admission) {
    const avl_text_config_t *text = &engine->options.config->model.text;
    for (int32_t i = 0; i < admission->prompt_rows; i++) {
        if (admission->token_ids[i] < -1 || admission->token_ids[i] >= text->vocab_rows)
            return avl_fail(AVL_ERR_INVALID, "token %d of the prompt is %d; allowed: below %d", i,
                            admission->token_ids[i], text->vocab_rows);
    }
    avl_sequence_shape_t shape = avl_sequence_shape(admission->token_ids, admission->prompt_rows,
                                                    admission->rows_max, &admission->attention);
    int64_t rows = 0;
    for (int32_t i = 0; i < admission->place_count; i++)
        rows += admission->places[i].rows;
    if (rows != shape.visual_rows)
        return avl_fail(AVL_ERR_INTERNAL, "%d pictures of %lld rows for %d visual rows",
                        admission->place_count, (long long)rows, shape.visual_rows);
    avl_sequence_t *sequence;
    size_t index = (size_t)admission->sequence;
    const avl_sequence_memory_t memory = {
        .host = engine->sequence_memory + index * engine->sequence_bytes,
        .host_bytes = engine->sequence_bytes,
        .device = engine->sequence_device != NULL
                      ? engine->sequence_device + index * engine->sequence_device_bytes
                      : NULL,
        .device_bytes = engine->sequence_device_bytes,
    };
    AVL_TRY(avl_sequence_create_in(&memory, engine->options.device, admission->sequence, &shape,
                                   text->layer_count, admission->token_ids, &sequence));
    sequence->request_id = admission->request_id;
    int32_t *feature_rows = sequence->feature_rows;
    for (int32_t i = 0; i < admission->place_count; i++)
        for (int32_t j = 0; j < admission->places[i].rows; j++)
            *feature_rows++ = admission->places[i].feature_row + j;
    engine->sequences[admission->sequence] = sequence;
    if (admission->source < 0)
        return AVL_OK;
    avl_sequence_t *source = engine->sequences[admission->source];
    if (source == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "rows of sequence %d, which does not exist",
                        admission->source);
    AVL_TRY(avl_visual_store_settle(source, 0, source->layer_count));
    return avl_sequence_share(sequence, engine->pages, source, admission->source_rows);
}

/* Admits all or none, on all ranks or none. Returns only what ends the group; *admission_p says how
 * it went. */
static avl_status_t admit_all(avl_engine_t *engine, const avl_plan_t *plan,
                              avl_status_t *admission_p) {
    *admission_p = AVL_OK;
    if (plan->admission_count == 0)
        return AVL_OK;
    avl_status_t own = AVL_OK;
    int32_t done = 0;
    for (; done < plan->admission_count && own == AVL_OK; done++) {
        if (engine->sequences[plan->admissions[done].sequence] != NULL)
            return misfit(plan, "admission to an index in use", plan->admissions[done].sequence);
        own = admit(engine, &plan->admissions[done]);
    }
    avl_status_t agreed = avl_group_agree(engine->options.group, own);
    if (agreed == AVL_ERR_COMM || agreed == AVL_ERR_TIMEOUT)
        return agreed;
    if (agreed != AVL_OK) {
        for (int32_t i = done; i-- > 0;)
            release_sequence(engine, plan->admissions[i].sequence);
    }
    *admission_p = agreed;
    return AVL_OK;
}

static avl_status_t encode(avl_engine_t *engine, const avl_plan_t *plan,
                           const avl_plan_picture_t *picture) {
    const avl_model_config_t *config = &engine->options.config->model;
    avl_device_t *device = engine->options.device;
    if (engine->sequences[picture->sequence] == NULL)
        return misfit(plan, "picture for a sequence that does not exist", picture->sequence);
    size_t side = (size_t)config->vision.image_side;
    if (picture->layout.tile_count < 1 || picture->pixel_bytes > engine->pixel_bytes_max ||
        picture->pixel_bytes != (size_t)picture->layout.tile_count * 3 * side * side)
        return misfit(plan, "picture with a wrong number of pixels", picture->sequence);
    const uint8_t *pixels = picture->pixels;
    if (!device->is_host) {
        AVL_TRY(device->ops->upload(device, engine->pixels, pixels, picture->pixel_bytes));
        pixels = engine->pixels;
    }
    float *features = engine->features + (int64_t)picture->feature_row * config->text.hidden_width;
    AVL_TRY(avl_model_encode(engine->options.model, pixels, &picture->layout, features));
    for (int32_t i = 0; i < picture->layout.prompt_rows; i++)
        engine->feature_written[picture->feature_row + i] = true;
    avl_coverage_encoded(engine->coverage, picture->feature_row, picture->layout.prompt_rows);
    return device->ops->synchronize(device);
}

static avl_status_t encode_all(avl_engine_t *engine, const avl_plan_t *plan) {
    avl_status_t own = AVL_OK;
    for (int32_t i = 0; i < plan->picture_count; i++) {
        int64_t start_ns = avl_clock_now_ns();
        avl_status_t status = encode(engine, plan, &plan->pictures[i]);
        if (status == AVL_ERR_COMM || status == AVL_ERR_TIMEOUT)
            return status;
        own = own == AVL_OK ? status : own;
        engine->encode_ns[i] = avl_clock_now_ns() - start_ns;
    }
    return plan->picture_count > 0 ? avl_group_agree(engine->options.group, own) : AVL_OK;
}

/* Checks a run against its sequence and fills in what attention needs to know of it. */
static avl_status_t make_run(avl_engine_t *engine, const avl_plan_t *plan,
                             const avl_plan_run_t *planned, int32_t first_row, avl_run_t *run) {
    avl_sequence_t *sequence = engine->sequences[planned->sequence];
    if (sequence == NULL)
        return misfit(plan, "run of a sequence that does not exist", planned->sequence);
    if (sequence->planned_step == plan->step)
        return misfit(plan, "two runs of one sequence", planned->sequence);
    sequence->planned_step = plan->step;
    const avl_sequence_shape_t *shape = &sequence->shape;
    bool decode = planned->row_count == 0;
    int32_t rows = decode ? 1 : planned->row_count;
    if (first_row > engine->options.limits.batch_rows + engine->options.limits.sequences_max - rows)
        return misfit(plan, "more rows than a step holds", planned->sequence);
    if (decode &&
        (sequence->rows_done < shape->prompt_rows || sequence->rows_done >= shape->rows_max))
        return misfit(plan, "decode row out of place", planned->sequence);
    if (decode && planned->token_id >= engine->options.config->model.text.vocab_rows)
        return misfit(plan, "decode row with an unknown token", planned->sequence);
    if (planned->logits == AVL_PLAN_DRAW && (plan->draws == NULL || !avl_engine_draws(engine)))
        return misfit(plan, "a draw where nothing can be drawn", planned->sequence);
    if (!decode && planned->row_count > shape->prompt_rows - sequence->rows_done)
        return misfit(plan, "more prompt rows than there are", planned->sequence);
    for (int32_t i = sequence->visual_done; !decode && i < shape->visual_rows; i++)
        if (!engine->feature_written[sequence->feature_rows[i]])
            return misfit(plan, "prompt before its pictures are encoded", planned->sequence);
    *run = (avl_run_t){
        .sequence = sequence,
        .decode = decode,
        .first_row = first_row,
        .row_count = rows,
        .first_position = sequence->rows_done,
    };
    return AVL_OK;
}

/* Adds a run's rows to the batch. */
static void add_rows(avl_engine_t *engine, const avl_plan_run_t *planned, const avl_run_t *run,
                     avl_forward_batch_t *batch) {
    const avl_sequence_t *sequence = run->sequence;
    int64_t hidden = engine->options.config->model.text.hidden_width;
    int32_t visual = sequence->visual_done;
    for (int32_t i = 0; i < run->row_count; i++) {
        int32_t row = run->first_row + i, position = run->first_position + i;
        engine->positions[row] = position;
        /* All prompt rows count as one call, however they are cut into chunks: dynamic rope scaling
         * looks at its length. */
        engine->sequence_rows[row] = run->decode ? position + 1 : sequence->shape.prompt_rows;
        engine->token_ids[row] = run->decode ? planned->token_id : sequence->token_ids[position];
        if (!avl_sequence_is_visual(sequence, position))
            continue;
        engine->embed_rows[batch->embed_count] = row;
        engine->embed_features[batch->embed_count++] =
            engine->features + sequence->feature_rows[visual++] * hidden;
    }
    batch->rows += run->row_count;
}

static bool goes_with_many(const avl_engine_t *engine, const avl_plan_run_t *planned) {
    const avl_sequence_t *sequence = engine->sequences[planned->sequence];
    return sequence != NULL && planned->row_count > 0 && sequence->shape.long_prompt;
}

/* Lays out the rows of the step: those of long prompts first, then the others. */
static avl_status_t lay_out_rows(avl_engine_t *engine, const avl_plan_t *plan,
                                 avl_forward_batch_t *batch) {
    for (int many = 1; many >= 0; many--) {
        for (int32_t i = 0; i < plan->run_count; i++) {
            if (goes_with_many(engine, &plan->runs[i]) != many)
                continue;
            AVL_TRY(make_run(engine, plan, &plan->runs[i], batch->rows, &engine->runs[i]));
            add_rows(engine, &plan->runs[i], &engine->runs[i], batch);
        }
        if (many)
            batch->many_rows = batch->rows;
    }
    /* The logits in the order of the plan, the best tokens alone behind them, then the draws. */
    int counts[AVL_PLAN_DRAW + 1] = {0};
    for (int wish = AVL_PLAN_LOGITS; wish <= AVL_PLAN_DRAW; wish++)
        for (int32_t i = 0; i < plan->run_count; i++)
            if (plan->runs[i].logits == wish) {
                engine->logit_rows[batch->logit_count++] =
                    engine->runs[i].first_row + engine->runs[i].row_count - 1;
                counts[wish]++;
            }
    batch->best_count = counts[AVL_PLAN_BEST];
    batch->draw_count = counts[AVL_PLAN_DRAW];
    return AVL_OK;
}

static void advance(const avl_run_t *run) {
    avl_sequence_t *sequence = run->sequence;
    for (int32_t i = 0; i < run->row_count; i++)
        sequence->visual_done += avl_sequence_is_visual(sequence, run->first_position + i);
    sequence->rows_done += run->row_count;
    sequence->decode_steps += run->decode;
}

/* Sums what was measured in this step over ranks. Collective where something was. */
static avl_status_t sum_masses(avl_engine_t *engine, int run_count) {
    int64_t count = 0;
    for (int i = 0; i < run_count; i++) {
        const avl_run_t *run = &engine->runs[i];
        if (!run->decode || !run->sequence->shape.measures)
            continue;
        const avl_visual_mass_t *mass = &run->sequence->step_mass;
        engine->masses[count++] = (float)mass->computed;
        engine->masses[count++] = (float)mass->stored;
        engine->masses[count++] = (float)mass->all;
    }
    if (count == 0)
        return AVL_OK;
    AVL_TRY(avl_group_all_reduce(engine->options.group, engine->masses, count));
    const float *next = engine->masses;
    for (int i = 0; i < run_count; i++) {
        avl_sequence_t *sequence = engine->runs[i].sequence;
        if (!engine->runs[i].decode || !sequence->shape.measures)
            continue;
        sequence->mass.computed += (double)*next++;
        sequence->mass.stored += (double)*next++;
        sequence->mass.all += (double)*next++;
        sequence->step_mass = (avl_visual_mass_t){0};
    }
    return AVL_OK;
}

static avl_status_t run_all(avl_engine_t *engine, const avl_plan_t *plan) {
    avl_device_t *device = engine->options.device;
    if (plan->run_count == 0) /* lists of sequences that begin with another's may be on their way */
        return plan->admission_count > 0 ? device->ops->synchronize(device) : AVL_OK;
    avl_forward_batch_t batch = {
        .token_ids = engine->token_ids,
        .positions = engine->positions,
        .sequence_rows = engine->sequence_rows,
        .embed_features = engine->embed_features,
        .embed_rows = engine->embed_rows,
        .logit_rows = engine->logit_rows,
        .best = engine->best,
        .draws = plan->draws,
        .drawn = engine->drawn,
    };
    AVL_TRY(lay_out_rows(engine, plan, &batch));
    AVL_TRY(avl_coverage_measure(engine->coverage, engine->options.group, engine->features,
                                 engine->runs, plan->run_count));
    avl_attend_begin(engine->attend, engine->runs, plan->run_count, batch.rows);
    avl_attention_hook_t hook = {.context = engine->attend,
                                 .attend = avl_attend_layer,
                                 .join = avl_attend_join,
                                 .survivors = avl_attend_survivors};
    AVL_TRY(avl_model_forward(engine->options.model, &batch, &hook, engine->logits));
    AVL_TRY(sum_masses(engine, plan->run_count));
    for (int32_t i = 0; i < plan->run_count; i++)
        advance(&engine->runs[i]);
    return engine->options.device->ops->synchronize(engine->options.device);
}

avl_status_t avl_engine_execute(avl_engine_t *engine, const avl_plan_t *plan,
                                avl_step_result_t *result_p) {
    avl_step_result_t result = {
        .logits = engine->logits,
        .best = engine->best,
        .drawn = engine->drawn,
        .encode_ns = engine->encode_ns,
    };
    AVL_TRY(release_all(engine, plan));
    AVL_TRY(admit_all(engine, plan, &result.admission));
    if (result.admission == AVL_OK) {
        AVL_TRY(encode_all(engine, plan));
        AVL_TRY(run_all(engine, plan));
    } else {
        snprintf(result.admission_detail, sizeof result.admission_detail, "%s",
                 avl_status_detail());
    }
    *result_p = result;
    return AVL_OK;
}

const avl_engine_options_t *avl_engine_options(const avl_engine_t *engine) {
    return &engine->options;
}

const avl_plan_limits_t *avl_engine_plan_limits(const avl_engine_t *engine) {
    return &engine->plan_limits;
}

const avl_ledger_t *avl_engine_ledger(const avl_engine_t *engine) {
    return &engine->ledger;
}

const avl_ledger_t *avl_engine_ledgers(const avl_engine_t *engine) {
    return engine->ledgers;
}

bool avl_engine_finds_best(const avl_engine_t *engine) {
    return !engine->options.device->is_host || avl_group_ranks(engine->options.group) > 1;
}

bool avl_engine_draws(const avl_engine_t *engine) {
    const avl_device_t *device = engine->options.device;
    return device->ops->sample != NULL && !device->is_host &&
           avl_group_ranks(engine->options.group) == 1;
}

int32_t avl_engine_feature_rows(const avl_engine_t *engine) {
    return engine->feature_rows;
}

int64_t avl_engine_page_bytes(const avl_engine_t *engine) {
    return engine->page_bytes_all;
}

avl_pages_counts_t avl_engine_pages(const avl_engine_t *engine) {
    return avl_pages_counts(engine->pages);
}

const avl_sequence_t *avl_engine_sequence(const avl_engine_t *engine, int32_t sequence) {
    return engine->sequences[sequence];
}

avl_status_t avl_engine_inspect(avl_engine_t *engine, int32_t index,
                                const avl_sequence_t **sequence_p) {
    avl_sequence_t *sequence = engine->sequences[index];
    if (sequence != NULL)
        AVL_TRY(avl_visual_store_settle(sequence, 0, sequence->layer_count));
    *sequence_p = sequence;
    return AVL_OK;
}
