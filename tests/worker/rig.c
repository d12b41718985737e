#include "tests/worker/rig.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "inputs/preprocess.h"

typedef struct rank {
    rig_t *rig;
    int index;
    pthread_t thread;
    avl_device_t *device;
    avl_weights_t *weights;
    avl_group_t *group;
    avl_model_t *model;
    avl_engine_t *engine;
    avl_loop_t *loop;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
} rank_t;

struct rig {
    rig_options_t options;
    char model_path[512];
    avl_config_t config;
    rank_t ranks[RIG_RANKS_MAX];
    avl_scheduler_t *scheduler;
    rig_result_t *results; /* [RIG_RESULTS_MAX] */
    int result_count;
};

static void require(avl_status_t status, const char *what) {
    if (status != AVL_OK)
        fail_msg("%s: %s: %s", what, avl_status_name(status), avl_status_detail());
}

static avl_status_t watch_peers(void *context, int64_t waited_ns) {
    rank_t *rank = context;
    return avl_group_watch_gpus(rank->group, waited_ns);
}

/* As a worker does it where ranks have GPUs. */
static avl_status_t join_gpus(rank_t *rank) {
    if (rank->device->stream == NULL || rank->rig->options.ranks == 1)
        return AVL_OK;
    avl_group_gpu_t gpu = {.stream = rank->device->stream};
    memcpy(gpu.id, rank->device->gpu_id, sizeof gpu.id);
    rank->device->watch = watch_peers;
    rank->device->watch_context = rank;
    return avl_group_join_gpus(rank->group, &gpu);
}

static avl_status_t open_rank(rank_t *rank) {
    const rig_options_t *options = &rank->rig->options;
    const avl_config_t *config = &rank->rig->config;
    AVL_TRY(avl_device_open_cpu(options->threads > 0 ? options->threads : 1, NULL, &rank->device));
    AVL_TRY(join_gpus(rank));
    AVL_TRY(avl_weights_open(rank->rig->model_path, &rank->weights));
    avl_model_options_t model = avl_engine_model_options(config, &options->limits, options->dtype);
    AVL_TRY(
        avl_model_create(config, rank->weights, rank->device, rank->group, &model, &rank->model));
    avl_engine_options_t engine = {
        .config = config,
        .device = rank->device,
        .group = rank->group,
        .model = rank->model,
        .dtype = options->dtype,
        .limits = options->limits,
        .memory_bytes = INT64_C(1) << 30,
        .page_count = options->page_count,
        .encoder_cache_bytes = options->encoder_cache_bytes,
    };
    AVL_TRY(avl_engine_create(&engine, &rank->engine));
    return avl_loop_create(rank->engine, &rank->loop);
}

static void close_rank(rank_t *rank) {
    avl_loop_destroy(rank->loop);
    avl_engine_destroy(rank->engine);
    avl_model_destroy(rank->model);
    avl_weights_close(rank->weights);
    avl_group_leave_gpus(rank->group);
    if (rank->device != NULL)
        avl_device_close(rank->device);
}

static void keep_status(rank_t *rank, avl_status_t status) {
    rank->status = status;
    if (status != AVL_OK)
        snprintf(rank->detail, sizeof rank->detail, "%s", avl_status_detail());
}

static void *follow(void *argument) {
    rank_t *rank = argument;
    avl_status_t status = open_rank(rank);
    if (status == AVL_OK)
        status = avl_loop_follow(rank->loop);
    keep_status(rank, status);
    return NULL;
}

static void take_event(void *context, const avl_event_t *event) {
    rig_result_t *result = rig_result(context, rig_answer_id(event->request_id, event->choice));
    assert_false(result->finished);
    switch (event->kind) {
    case AVL_EVENT_PROGRESS:
        assert_in_range(event->done, 0, event->total);
        result->progress_events++;
        break;
    case AVL_EVENT_TOKEN:
        assert_in_range(result->token_count, 0, RIG_TOKENS_MAX - 1);
        if (event->logprob_count > 0)
            result->logprobs[result->token_count] = event->logprobs[0].logprob;
        result->tokens[result->token_count++] = event->token_id;
        break;
    case AVL_EVENT_FINISHED:
        result->finished = true;
        result->end = *event;
        break;
    }
}

rig_t *rig_open(const rig_options_t *options) {
    rig_t *rig = calloc(1, sizeof *rig);
    assert_non_null(rig);
    rig->options = *options;
    rig->results = calloc(RIG_RESULTS_MAX, sizeof *rig->results);
    assert_non_null(rig->results);
    const char *root = options->model[0] == '/' ? "" : AVL_SOURCE_DIR "/";
    snprintf(rig->model_path, sizeof rig->model_path, "%s%s", root, options->model);
    require(avl_config_load(rig->model_path, &rig->config), options->model);
    avl_engine_limits_t *limits = &rig->options.limits;
    if (limits->batch_rows == 0)
        limits->batch_rows = 512;
    if (limits->sequences_max == 0)
        limits->sequences_max = 8;
    if (limits->context_rows == 0) {
        limits->context_rows = avl_engine_context_most(&rig->config.model);
        if (limits->context_rows > 1024)
            limits->context_rows = 1024;
    }
    avl_group_t *groups[RIG_RANKS_MAX];
    if (options->ranks == 1)
        require(avl_group_open_single(&groups[0]), "group");
    else
        require(avl_group_open_loopback(options->ranks, groups), "group");
    for (int i = 0; i < options->ranks; i++) {
        rig->ranks[i] = (rank_t){.rig = rig, .index = i, .group = groups[i]};
        avl_group_set_timeout(groups[i], 60 * AVL_NS_PER_S);
    }
    for (int i = 1; i < options->ranks; i++)
        assert_int_equal(pthread_create(&rig->ranks[i].thread, NULL, follow, &rig->ranks[i]), 0);
    require(open_rank(&rig->ranks[0]), "leader");
    avl_event_sink_t sink = {.context = rig, .take = take_event};
    require(avl_scheduler_create(rig->ranks[0].engine,
                                 options->queue_max > 0 ? options->queue_max : 1024, &sink,
                                 &rig->scheduler),
            "scheduler");
    return rig;
}

void rig_close(rig_t *rig) {
    require(avl_loop_stop(rig->ranks[0].loop), "stop");
    for (int i = 1; i < rig->options.ranks; i++)
        assert_int_equal(pthread_join(rig->ranks[i].thread, NULL), 0);
    assert_true(avl_scheduler_is_idle(rig->scheduler));
    assert_int_equal(avl_scheduler_counts(rig->scheduler).pages_reserved, 0);
    int64_t kept = avl_scheduler_counts(rig->scheduler).pages_kept;
    avl_pages_counts_t first = avl_engine_pages(rig->ranks[0].engine);
    for (int i = 0; i < rig->options.ranks; i++) {
        rank_t *rank = &rig->ranks[i];
        if (rank->status != AVL_OK)
            fail_msg("rank %d: %s: %s", i, avl_status_name(rank->status), rank->detail);
        avl_pages_counts_t counts = avl_engine_pages(rank->engine);
        assert_in_range(counts.taken, 0, kept); /* kept prompts may share pages */
        assert_int_equal(counts.taken_most, first.taken_most);
    }
    avl_scheduler_destroy(rig->scheduler);
    for (int i = 0; i < rig->options.ranks; i++)
        close_rank(&rig->ranks[i]);
    for (int i = 0; i < rig->options.ranks; i++)
        avl_group_close(rig->ranks[i].group);
    free(rig->results);
    free(rig);
}

const avl_config_t *rig_config(const rig_t *rig) {
    return &rig->config;
}

avl_scheduler_t *rig_scheduler(rig_t *rig) {
    return rig->scheduler;
}

avl_engine_t *rig_engine(rig_t *rig, int rank) {
    return rig->ranks[rank].engine;
}

bool rig_step(rig_t *rig) {
    bool worked;
    require(avl_loop_lead(rig->ranks[0].loop, rig->scheduler, &worked), "step");
    avl_pages_counts_t pages = avl_engine_pages(rig->ranks[0].engine);
    /* What is taken beyond the reservations belongs to sequences that finished in this step. */
    if (avl_scheduler_counts(rig->scheduler).active == 0)
        assert_int_equal(avl_scheduler_counts(rig->scheduler).pages_reserved, 0);
    assert_in_range(pages.taken, 0, pages.total);
    return worked;
}

void rig_run(rig_t *rig) {
    while (rig_step(rig)) {
    }
    assert_true(avl_scheduler_is_idle(rig->scheduler));
}

uint64_t rig_answer_id(uint64_t request_id, int32_t choice) {
    return request_id | (uint64_t)choice << 32;
}

rig_result_t *rig_result(rig_t *rig, uint64_t request_id) {
    for (int i = 0; i < rig->result_count; i++) {
        if (rig->results[i].request_id == request_id)
            return &rig->results[i];
    }
    assert_in_range(rig->result_count, 0, RIG_RESULTS_MAX - 1);
    rig_result_t *result = &rig->results[rig->result_count++];
    result->request_id = request_id;
    return result;
}

const rig_result_t *rig_answer(rig_t *rig, avl_request_t *request) {
    uint64_t id = request->id;
    avl_scheduler_submit(rig->scheduler, request);
    rig_run(rig);
    rig_result_t *result = rig_result(rig, id);
    assert_true(result->finished);
    return result;
}

/* ---- reference cases ---- */

static avl_pixels_t read_picture(const avl_config_t *config, const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("%s: cannot be opened", path);
    static uint8_t bytes[1 << 22];
    size_t count = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    assert_in_range(count, 1, sizeof bytes - 1);
    avl_image_t image;
    require(avl_image_decode(bytes, count, AVL_IMAGE_PIXELS_MAX_DEFAULT, &image), path);
    avl_pixels_t pixels;
    require(avl_preprocess(config, &image, &pixels), path);
    avl_image_free(&image);
    return pixels;
}

static void load_images(const avl_config_t *config, rig_case_t *data) {
    const json_t *names = json_object_get(data->json, "images");
    data->image_count = names != NULL ? (int32_t)json_array_size(names) : 1;
    data->images = calloc((size_t)data->image_count + 1, sizeof *data->images);
    assert_non_null(data->images);
    for (int32_t i = 0; i < data->image_count; i++) {
        char path[640];
        snprintf(path, sizeof path, "%s/%s", data->directory,
                 names != NULL ? json_string_value(json_array_get(names, (size_t)i)) : "image.png");
        avl_pixels_t pixels = read_picture(config, path);
        data->images[i] = (avl_request_image_t){
            .layout = pixels.layout, .pixels = pixels.bytes, .pixel_bytes = pixels.byte_count};
    }
}

rig_case_t rig_case_load(const avl_config_t *config, const char *directory) {
    rig_case_t data = {0};
    char path[640];
    json_error_t error;
    snprintf(data.directory, sizeof data.directory, "%s/%s", AVL_SOURCE_DIR, directory);
    snprintf(path, sizeof path, "%s/case.json", data.directory);
    data.json = json_load_file(path, 0, &error);
    if (data.json == NULL)
        fail_msg("%s: %s", path, error.text);
    load_images(config, &data);
    const json_t *ids = json_object_get(data.json, "prompt_ids");
    size_t count = json_array_size(ids), rows = count;
    for (int32_t i = 0; i < data.image_count; i++)
        rows += (size_t)data.images[i].layout.prompt_rows;
    data.token_ids = calloc(rows, sizeof *data.token_ids);
    assert_non_null(data.token_ids);
    int32_t image = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t id = (int32_t)json_integer_value(json_array_get(ids, i));
        if (id != config->model.image_token_id) {
            data.token_ids[data.row_count++] = id;
            continue;
        }
        assert_in_range(image, 0, data.image_count - 1);
        data.images[image].first_row = data.row_count;
        for (int32_t j = 0; j < data.images[image].layout.prompt_rows; j++)
            data.token_ids[data.row_count++] = -1;
        image++;
    }
    assert_int_equal(image, data.image_count);
    return data;
}

static void set_choice(avl_request_choice_t *choice, int32_t index, uint64_t seed) {
    *choice = (avl_request_choice_t){.index = index, .seed = seed, .replay_ids = malloc(1)};
    assert_non_null(choice->replay_ids);
}

void rig_set_choices(avl_request_t *request, const uint64_t *seeds, int32_t count) {
    request->choices = calloc((size_t)count, sizeof *request->choices);
    assert_non_null(request->choices);
    request->choice_count = count;
    for (int32_t i = 0; i < count; i++)
        set_choice(&request->choices[i], i, seeds[i]);
}

void rig_case_release(rig_case_t *data) {
    json_decref(data->json);
    for (int32_t i = 0; i < data->image_count; i++)
        free(data->images[i].pixels);
    free(data->images);
    free(data->token_ids);
    *data = (rig_case_t){0};
}

static void *copied(const void *source, size_t bytes) {
    void *copy = malloc(bytes + 1);
    assert_non_null(copy);
    memcpy(copy, source, bytes);
    return copy;
}

avl_request_t *rig_text_request(const int32_t *ids, int32_t count, uint64_t id,
                                int32_t max_tokens) {
    avl_request_t *request = calloc(1, sizeof *request);
    assert_non_null(request);
    *request = (avl_request_t){
        .id = id,
        .token_ids = copied(ids, (size_t)count * sizeof *ids),
        .row_count = count,
        .attention = {.visual_store_ratio = 1,
                      .visual_compute_ratio = 1,
                      .visual_update_interval = 1},
        .sampling = {.temperature = 0, .top_p = 1},
        .max_tokens = max_tokens,
        .deadline_ns = AVL_DEADLINE_NONE,
        .arrival_ns = avl_clock_now_ns(),
    };
    return request;
}

avl_request_t *rig_request(const rig_case_t *data, uint64_t id, int32_t max_tokens) {
    avl_request_t *request = rig_text_request(data->token_ids, data->row_count, id, max_tokens);
    size_t bytes = (size_t)data->image_count * sizeof *data->images;
    request->images = copied(data->images, bytes);
    request->image_count = data->image_count;
    for (int32_t i = 0; i < data->image_count; i++)
        request->images[i].pixels = copied(data->images[i].pixels, data->images[i].pixel_bytes);
    return request;
}

void rig_set_attention(avl_request_t *request, double store, double compute, int32_t interval) {
    request->attention = (avl_attention_params_t){
        .visual_store_ratio = store,
        .visual_compute_ratio = compute,
        .visual_update_interval = interval,
    };
}

void rig_set_text(avl_request_t *request, double keep, int32_t keep_min) {
    request->attention.text_keep_ratio = keep;
    request->attention.text_keep_min = keep_min;
}

void rig_set_replay(avl_request_t *request, const int32_t *ids, int32_t count) {
    request->replay_ids = copied(ids, (size_t)count * sizeof *ids);
    request->replay_count = count;
}

void rig_expect_tokens(const rig_result_t *result, const int32_t *ids, int32_t count,
                       const char *what) {
    for (int32_t i = 0; i < count && i < result->token_count; i++) {
        if (result->tokens[i] != ids[i])
            fail_msg("%s: token %d is %d, expected %d", what, i, result->tokens[i], ids[i]);
    }
    if (result->token_count != count)
        fail_msg("%s: %d tokens, expected %d (%s: %s)", what, result->token_count, count,
                 avl_status_name(result->end.status), result->end.detail);
}
