#include "tests/worker/engine_double.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define PICTURES_MAX 64

struct avl_engine {
    engine_double_options_t own;
    avl_engine_options_t options;
    avl_plan_limits_t plan_limits;
    avl_plan_t plan; /* as it came over the wire */
    uint8_t *wire;
    avl_pages_t *pages;
    avl_sequence_t **sequences;
    uint64_t *told;     /* [indices_max] prompt rows and tokens read */
    uint64_t *told_at;  /* [indices_max, context_rows + 1] after so many prompt rows */
    uint64_t *features; /* [feature_rows] what was encoded there */
    float *logits;
    avl_best_token_t *best;
    int64_t encode_ns[PICTURES_MAX];
    int32_t feature_rows;
    int64_t step_pages;
    uint64_t step;
};

__attribute__((format(printf, 2, 3), noreturn)) static void fail(const avl_engine_t *engine,
                                                                 const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    engine->own.fail(text);
    abort();
}

static uint64_t mix(uint64_t value) {
    value += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

uint64_t engine_double_start(void) {
    return UINT64_C(0x243f6a8885a308d3);
}

uint64_t engine_double_token(uint64_t told, int32_t token_id) {
    return mix(told ^ (uint64_t)(uint32_t)token_id);
}

uint64_t engine_double_feature(const uint8_t *pixels, size_t bytes, int32_t row) {
    uint64_t content = mix(bytes << 8);
    for (size_t i = 0; i < bytes; i++)
        content = mix(content ^ pixels[i]);
    return mix(content + (uint64_t)row) | 1; /* never 0: nothing was encoded */
}

void engine_double_logits(uint64_t told, float *logits, int32_t vocab_rows) {
    for (int32_t i = 0; i < vocab_rows; i++)
        logits[i] = (float)(mix(told + (uint64_t)i) >> 40) * 0x1p-22f; /* 0 to 4 */
}

avl_engine_t *engine_double_create(const engine_double_options_t *options) {
    const avl_engine_limits_t *limits = &options->limits;
    size_t sequences = (size_t)limits->sequences_max, rows = (size_t)limits->context_rows + 1;
    int32_t indices_max = limits->sequences_max + limits->kept_max;
    avl_engine_t *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        abort();
    engine->own = *options;
    engine->options = (avl_engine_options_t){.config = options->config,
                                             .device = options->device,
                                             .dtype = AVL_DTYPE_F32,
                                             .limits = *limits,
                                             .page_count = options->page_count};
    engine->feature_rows = limits->context_rows + limits->batch_rows;
    engine->plan_limits = (avl_plan_limits_t){
        .sequences_max = limits->sequences_max,
        .indices_max = indices_max,
        .pictures_max = options->pictures_max,
        .context_rows = limits->context_rows,
        .feature_rows = engine->feature_rows,
        .bytes_max =
            (avl_plan_frame_bytes(limits->sequences_max, indices_max, options->pictures_max) +
             options->plan_bytes + 7) &
            ~(size_t)7,
    };
    engine->sequences = calloc((size_t)indices_max, sizeof(avl_sequence_t *));
    engine->told = calloc((size_t)indices_max, sizeof *engine->told);
    engine->told_at = calloc((size_t)indices_max * rows, sizeof *engine->told_at);
    engine->features = calloc((size_t)engine->feature_rows, sizeof *engine->features);
    engine->logits =
        calloc(sequences * (size_t)options->config->model.text.vocab_rows, sizeof *engine->logits);
    engine->best = calloc(sequences, sizeof *engine->best);
    if (options->pictures_max > PICTURES_MAX || engine->sequences == NULL || engine->told == NULL ||
        engine->told_at == NULL || engine->features == NULL || engine->logits == NULL ||
        engine->best == NULL ||
        avl_alloc_aligned(engine->plan_limits.bytes_max, 1, "plans", &engine->wire) != AVL_OK ||
        avl_plan_create(&engine->plan_limits, &engine->plan) != AVL_OK ||
        avl_pages_create(options->device, 1, 1, AVL_DTYPE_F32, options->page_count,
                         &engine->pages) != AVL_OK)
        abort();
    return engine;
}

void avl_engine_destroy(avl_engine_t *engine) {
    if (engine == NULL)
        return;
    for (int32_t i = 0; i < engine->plan_limits.indices_max; i++)
        avl_sequence_destroy(engine->sequences[i], engine->pages);
    avl_pages_destroy(engine->pages);
    avl_plan_destroy(&engine->plan);
    free(engine->wire);
    free(engine->sequences);
    free(engine->told);
    free(engine->told_at);
    free(engine->features);
    free(engine->logits);
    free(engine->best);
    free(engine);
}

static void release(avl_engine_t *engine, int32_t index) {
    if (engine->sequences[index] == NULL)
        fail(engine, "release of sequence %d, which does not exist", index);
    avl_sequence_destroy(engine->sequences[index], engine->pages);
    engine->sequences[index] = NULL;
    int64_t owned = avl_pages_owned(engine->pages, index);
    if (owned != 0)
        fail(engine, "sequence %d was released and owns %lld pages", index, (long long)owned);
}

static uint64_t *told_at(const avl_engine_t *engine, int32_t index, int32_t rows) {
    size_t line = (size_t)engine->own.limits.context_rows + 1;
    return engine->told_at + (size_t)index * line + (size_t)rows;
}

static void retire(avl_engine_t *engine, int32_t index) {
    avl_sequence_t *sequence = engine->sequences[index];
    if (sequence == NULL || sequence->rows_done < sequence->shape.prompt_rows)
        fail(engine, "retirement of sequence %d, whose prompt is not read", index);
    avl_sequence_retire(sequence, engine->pages);
}

static void admit(avl_engine_t *engine, const avl_plan_admission_t *admission) {
    int32_t index = admission->sequence;
    if (engine->sequences[index] != NULL)
        fail(engine, "admission to sequence %d, which is in use", index);
    avl_sequence_shape_t shape = avl_sequence_shape(admission->token_ids, admission->prompt_rows,
                                                    admission->rows_max, &admission->attention);
    if (avl_sequence_create(engine->own.device, index, &shape,
                            engine->own.config->model.text.layer_count, admission->token_ids,
                            &engine->sequences[index]) != AVL_OK)
        abort();
    engine->sequences[index]->request_id = admission->request_id;
    int32_t *feature_rows = engine->sequences[index]->feature_rows, rows = 0;
    for (int32_t i = 0; i < admission->place_count; i++)
        for (int32_t j = 0; j < admission->places[i].rows && rows < shape.visual_rows; j++)
            feature_rows[rows++] = admission->places[i].feature_row + j;
    if (rows != shape.visual_rows)
        fail(engine, "sequence %d: places for %d visual rows of %d", index, rows,
             shape.visual_rows);
    engine->told[index] = *told_at(engine, index, 0) = engine_double_start();
    if (admission->source < 0)
        return;
    const avl_sequence_t *source = engine->sequences[admission->source];
    if (source == NULL || avl_sequence_share(engine->sequences[index], engine->pages, source,
                                             admission->source_rows) != AVL_OK)
        fail(engine, "sequence %d cannot share %d rows of %d: %s", index, admission->source_rows,
             admission->source, source != NULL ? avl_status_detail() : "it does not exist");
    memcpy(told_at(engine, index, 0), told_at(engine, admission->source, 0),
           ((size_t)admission->source_rows + 1) * sizeof *engine->told_at);
    engine->told[index] = *told_at(engine, index, admission->source_rows);
}

static void encode(avl_engine_t *engine, const avl_plan_picture_t *picture) {
    if (engine->sequences[picture->sequence] == NULL)
        fail(engine, "picture for sequence %d, which does not exist", picture->sequence);
    for (int32_t i = 0; i < picture->layout.prompt_rows; i++)
        engine->features[picture->feature_row + i] =
            engine_double_feature(picture->pixels, picture->pixel_bytes, i);
}

static void check_run(avl_engine_t *engine, const avl_plan_run_t *run) {
    avl_sequence_t *sequence = engine->sequences[run->sequence];
    if (sequence == NULL)
        fail(engine, "run of sequence %d, which does not exist", run->sequence);
    const avl_sequence_shape_t *shape = &sequence->shape;
    if (sequence->planned_step == engine->step)
        fail(engine, "two runs of sequence %d", run->sequence);
    sequence->planned_step = engine->step;
    if (run->row_count == 0 &&
        (sequence->rows_done < shape->prompt_rows || sequence->rows_done >= shape->rows_max))
        fail(engine, "sequence %d: decode row %d; the prompt has %d, %d are allowed", run->sequence,
             sequence->rows_done, shape->prompt_rows, shape->rows_max);
    if (run->row_count > 0 && run->row_count > shape->prompt_rows - sequence->rows_done)
        fail(engine, "sequence %d: %d prompt rows after %d of %d", run->sequence, run->row_count,
             sequence->rows_done, shape->prompt_rows);
    for (int32_t i = sequence->visual_done; run->row_count > 0 && i < shape->visual_rows; i++)
        if (engine->features[sequence->feature_rows[i]] == 0)
            fail(engine, "sequence %d: its prompt comes before its pictures", run->sequence);
}

static int32_t rows_of(const avl_plan_run_t *run) {
    return run->row_count == 0 ? 1 : run->row_count;
}

/* One layer of one run: slots first, as attention writes them. */
static void append(avl_engine_t *engine, const avl_plan_run_t *run, int layer) {
    avl_sequence_t *sequence = engine->sequences[run->sequence];
    for (int32_t i = 0; i < rows_of(run); i++) {
        if (avl_sequence_append(sequence, engine->pages, layer, sequence->rows_done + i) < 0)
            fail(engine, "the pool of %lld pages ran dry at sequence %d, layer %d, row %d",
                 (long long)engine->own.page_count, run->sequence, layer, sequence->rows_done + i);
    }
    int64_t taken = avl_pages_counts(engine->pages).taken;
    engine->step_pages = taken > engine->step_pages ? taken : engine->step_pages;
}

static bool ends_prompt(const avl_engine_t *engine, const avl_plan_run_t *run) {
    const avl_sequence_t *sequence = engine->sequences[run->sequence];
    return run->row_count > 0 &&
           sequence->rows_done + run->row_count == sequence->shape.prompt_rows;
}

/* As avl_visual_store_keep, with the first rows for the best. */
static void keep_store(avl_engine_t *engine, avl_sequence_t *sequence, int index) {
    avl_sequence_layer_t *layer = &sequence->layers[index];
    const avl_sequence_shape_t *shape = &sequence->shape;
    if (shape->store_rows < shape->visual_rows) {
        if (avl_sequence_own_visual(sequence, engine->pages, index, shape->store_rows) != AVL_OK)
            fail(engine, "the pool ran dry where request %llu keeps its store",
                 (unsigned long long)sequence->request_id);
        int64_t taken = avl_pages_counts(engine->pages).taken;
        engine->step_pages = taken > engine->step_pages ? taken : engine->step_pages;
        avl_sequence_cut_visual(sequence, engine->pages, index, shape->store_rows);
    }
    layer->store.count = shape->store_rows;
    for (int32_t i = 0; i < shape->store_rows; i++)
        layer->store.host[i] = i;
    layer->core.count = layer->first_core.count = avl_sequence_core_rows(shape);
    for (int32_t i = 0; i < layer->first_core.count; i++)
        layer->first_core.host[i] = i;
    layer->selected = true;
}

static void run_layers(avl_engine_t *engine, const avl_plan_t *plan) {
    for (int layer = 0; layer < engine->own.config->model.text.layer_count; layer++) {
        for (int32_t i = 0; i < plan->run_count; i++)
            append(engine, &plan->runs[i], layer);
        for (int32_t i = 0; i < plan->run_count; i++) {
            avl_sequence_t *sequence = engine->sequences[plan->runs[i].sequence];
            if (ends_prompt(engine, &plan->runs[i]) && sequence->shape.selects &&
                !avl_sequence_selects_once(&sequence->shape))
                keep_store(engine, sequence, layer);
        }
    }
    for (int32_t i = 0; i < plan->run_count; i++) {
        avl_sequence_t *sequence = engine->sequences[plan->runs[i].sequence];
        if (!ends_prompt(engine, &plan->runs[i]) || !avl_sequence_selects_once(&sequence->shape))
            continue;
        for (int layer = 0; layer < sequence->layer_count; layer++)
            keep_store(engine, sequence, layer);
    }
}

/* Who chooses by a picture's features finds them where they were read, all of them. */
static void check_features(const avl_engine_t *engine, int32_t index) {
    const avl_sequence_t *sequence = engine->sequences[index];
    for (int32_t i = 0; i < sequence->shape.visual_rows; i++) {
        int32_t row = sequence->visual_positions[i];
        uint64_t told = engine_double_token(*told_at(engine, index, row), -1);
        if ((told ^ engine->features[sequence->feature_rows[i]]) !=
            *told_at(engine, index, row + 1))
            fail(engine, "sequence %d: the features of row %d have gone", index, row);
    }
}

/* Reads the run's tokens and answers. */
static void answer(avl_engine_t *engine, const avl_plan_run_t *run, float **logits_p,
                   avl_best_token_t **best_p) {
    int32_t index = run->sequence, vocab_rows = engine->own.config->model.text.vocab_rows;
    avl_sequence_t *sequence = engine->sequences[index];
    for (int32_t i = 0; i < run->row_count; i++) {
        int32_t id = sequence->token_ids[sequence->rows_done + i];
        engine->told[index] = engine_double_token(engine->told[index], id);
        if (id < 0)
            engine->told[index] ^=
                engine->features[sequence->feature_rows[sequence->visual_done++]];
        *told_at(engine, index, sequence->rows_done + i + 1) = engine->told[index];
    }
    if (ends_prompt(engine, run) && avl_sequence_selects_once(&sequence->shape))
        check_features(engine, index);
    if (run->row_count == 0)
        engine->told[index] = engine_double_token(engine->told[index], run->token_id);
    sequence->rows_done += rows_of(run);
    sequence->decode_steps += run->row_count == 0;
    if (run->logits == AVL_PLAN_NOTHING)
        return;
    float *logits = *logits_p; /* behind the last ones there is room for this run's */
    engine_double_logits(engine->told[index], logits, vocab_rows);
    if (run->logits == AVL_PLAN_LOGITS) {
        *logits_p += vocab_rows;
        return;
    }
    int32_t best = 0;
    for (int32_t i = 1; i < vocab_rows; i++)
        best = logits[i] > logits[best] ? i : best;
    *(*best_p)++ = (avl_best_token_t){.token_id = best, .logit = logits[best]};
}

static void check_rows(const avl_engine_t *engine, const avl_plan_t *plan) {
    int32_t prompt = 0;
    for (int32_t i = 0; i < plan->run_count; i++)
        prompt += plan->runs[i].row_count;
    if (prompt > engine->own.limits.batch_rows)
        fail(engine, "%d prompt rows in a step; allowed: %d", prompt,
             engine->own.limits.batch_rows);
}

avl_status_t avl_engine_execute(avl_engine_t *engine, const avl_plan_t *planned,
                                avl_step_result_t *result_p) {
    avl_plan_t *plan = &engine->plan;
    size_t bytes = avl_plan_bytes(planned);
    if (bytes > engine->plan_limits.bytes_max)
        fail(engine, "a plan of %zu bytes; allowed: %zu", bytes, engine->plan_limits.bytes_max);
    avl_plan_encode(planned, engine->wire);
    if (avl_plan_decode(engine->wire, bytes, &engine->plan_limits, plan) != AVL_OK)
        fail(engine, "the plan cannot be read: %s", avl_status_detail());
    if (plan->step != engine->step + 1)
        fail(engine, "step %llu follows %llu", (unsigned long long)plan->step,
             (unsigned long long)engine->step);
    engine->step = plan->step;
    engine->step_pages = 0;
    *result_p = (avl_step_result_t){
        .logits = engine->logits, .best = engine->best, .encode_ns = engine->encode_ns};
    for (int32_t i = 0; i < plan->retirement_count; i++)
        retire(engine, plan->retirements[i]);
    for (int32_t i = 0; i < plan->release_count; i++)
        release(engine, plan->releases[i]);
    if (plan->admission_count > 0 && engine->own.admits != NULL &&
        !engine->own.admits(engine->own.context)) {
        result_p->admission = AVL_ERR_MEMORY;
        snprintf(result_p->admission_detail, sizeof result_p->admission_detail, "no memory");
        return AVL_OK;
    }
    for (int32_t i = 0; i < plan->admission_count; i++)
        admit(engine, &plan->admissions[i]);
    for (int32_t i = 0; i < plan->picture_count; i++)
        encode(engine, &plan->pictures[i]);
    for (int32_t i = 0; i < plan->run_count; i++)
        check_run(engine, &plan->runs[i]);
    check_rows(engine, plan);
    run_layers(engine, plan);
    float *logits = engine->logits;
    avl_best_token_t *best = engine->best;
    for (int32_t i = 0; i < plan->run_count; i++)
        answer(engine, &plan->runs[i], &logits, &best);
    return AVL_OK;
}

int64_t engine_double_step_pages(const avl_engine_t *engine) {
    return engine->step_pages;
}

const avl_engine_options_t *avl_engine_options(const avl_engine_t *engine) {
    return &engine->options;
}

const avl_plan_limits_t *avl_engine_plan_limits(const avl_engine_t *engine) {
    return &engine->plan_limits;
}

bool avl_engine_finds_best(const avl_engine_t *engine) {
    (void)engine;
    return true;
}

bool avl_engine_draws(const avl_engine_t *engine) {
    (void)engine;
    return false; /* plans here go over the wire */
}

int32_t avl_engine_feature_rows(const avl_engine_t *engine) {
    return engine->feature_rows;
}

int64_t avl_engine_feature_row_bytes(const avl_engine_t *engine) {
    (void)engine;
    return 1;
}

int64_t avl_engine_page_bytes(const avl_engine_t *engine) {
    (void)engine;
    return avl_pages_page_bytes(1, 1, AVL_DTYPE_F32);
}

avl_pages_counts_t avl_engine_pages(const avl_engine_t *engine) {
    return avl_pages_counts(engine->pages);
}

const avl_sequence_t *avl_engine_sequence(const avl_engine_t *engine, int32_t sequence) {
    return engine->sequences[sequence];
}
