/* What a model does not accept: every rank returns, the one at fault says why, nobody hangs. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/model/dense_run.h"
#include "tests/support/safetensors_writer.h"

#define MODEL AVL_SOURCE_DIR "/models/avl-tiny"

enum { HIDDEN = 192, VOCAB_ROWS = 960 }; /* its widths */
#define RANKS_MAX 8
#define Q_PROJ "language_model.model.layers.3.self_attn.q_proj.weight"

static void check(avl_status_t status) {
    if (status != AVL_OK)
        fail_msg("%s: %s", avl_status_name(status), avl_status_detail());
}

typedef struct creation {
    const avl_dense_source_t *source;
    avl_group_t *group;
    int rows_max;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
} creation_t;

static void *create(void *context) {
    creation_t *self = context;
    avl_device_t *device;
    avl_model_t *model = NULL;
    avl_model_options_t options = {
        .dtype = AVL_DTYPE_F32, .rows_max = self->rows_max, .tiles_max = 1, .logit_rows_max = 1};
    self->status = avl_device_open_cpu(1, NULL, &device);
    if (self->status == AVL_OK) {
        self->status = avl_model_create(&self->source->config, self->source->weights, device,
                                        self->group, &options, &model);
        snprintf(self->detail, sizeof self->detail, "%s", avl_status_detail());
        avl_model_destroy(model);
        avl_device_close(device);
    }
    avl_group_close(self->group);
    return NULL;
}

/* Creates the model on `ranks` threads; rank `broken` has rows_max 0 (-1: none). */
static void create_on_ranks(const avl_dense_source_t *source, int ranks, int broken,
                            creation_t *results) {
    avl_group_t *groups[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    check(avl_group_open_loopback(ranks, groups));
    for (int rank = 0; rank < ranks; rank++) {
        results[rank] = (creation_t){
            .source = source, .group = groups[rank], .rows_max = rank == broken ? 0 : 8};
        assert_int_equal(pthread_create(&threads[rank], NULL, create, &results[rank]), 0);
    }
    for (int rank = 0; rank < ranks; rank++)
        pthread_join(threads[rank], NULL);
}

/* A copy of the shipped model whose weights can be changed. Offsets are found by the tensor's name
 * in the header. */
typedef struct copy {
    char *directory;
    char path[600];
    unsigned char *bytes;
    size_t count;
} copy_t;

static unsigned char *read_all(const char *path, size_t *count_p) {
    struct stat found;
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &found), 0);
    unsigned char *bytes = malloc((size_t)found.st_size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, (size_t)found.st_size, file), (size_t)found.st_size);
    bytes[found.st_size] = 0;
    *count_p = (size_t)found.st_size;
    fclose(file);
    return bytes;
}

static copy_t copy_model(void) {
    const char *const names[] = {"config.json", "generation_config.json",
                                 "preprocessor_config.json"};
    copy_t copy = {.directory = avl_test_make_directory()};
    for (size_t index = 0; index < sizeof names / sizeof names[0]; index++) {
        char path[600];
        size_t count;
        snprintf(path, sizeof path, MODEL "/%s", names[index]);
        unsigned char *text = read_all(path, &count);
        avl_test_write_text(copy.directory, names[index], (const char *)text);
        free(text);
    }
    copy.bytes = read_all(MODEL "/model.safetensors", &copy.count);
    snprintf(copy.path, sizeof copy.path, "%s/model.safetensors", copy.directory);
    return copy;
}

static void write_copy(const copy_t *copy) {
    FILE *file = fopen(copy->path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(copy->bytes, 1, copy->count, file), copy->count);
    assert_int_equal(fclose(file), 0);
}

static void remove_copy(copy_t *copy) {
    avl_test_remove_directory(copy->directory);
    free(copy->directory);
    free(copy->bytes);
}

/* The header's text of a tensor, from its name on. */
static char *find_header(copy_t *copy, const char *name) {
    char quoted[200];
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    char *found = memmem(copy->bytes, copy->count, quoted, strlen(quoted));
    assert_non_null(found);
    return found;
}

static uint16_t *find_values(copy_t *copy, const char *name) {
    uint64_t header_bytes;
    memcpy(&header_bytes, copy->bytes, sizeof header_bytes);
    const char *offsets = strstr(find_header(copy, name), "\"data_offsets\"");
    assert_non_null(offsets);
    size_t first = strtoul(strchr(offsets, '[') + 1, NULL, 10);
    return (uint16_t *)(void *)(copy->bytes + 8 + header_bytes + first);
}

/* The ranks whose bit is set in `at_fault` say `text`; the others name the lowest of them. */
static void expect_refusal(const char *directory, int ranks, unsigned at_fault, const char *text) {
    avl_dense_source_t source;
    creation_t results[RANKS_MAX];
    check(avl_dense_open(directory, &source));
    create_on_ranks(&source, ranks, -1, results);
    for (int rank = 0; rank < ranks; rank++) {
        avl_status_t expected = at_fault >> rank & 1 ? AVL_ERR_DATA : AVL_ERR_PEER;
        if (results[rank].status != expected)
            fail_msg("rank %d: %s: %s", rank, avl_status_name(results[rank].status),
                     results[rank].detail);
        if (expected == AVL_ERR_DATA && !strstr(results[rank].detail, text))
            fail_msg("rank %d says: %s", rank, results[rank].detail);
    }
    avl_dense_close(&source);
}

static void test_more_ranks_than_heads(void **state) {
    (void)state;
    avl_dense_source_t source;
    creation_t results[RANKS_MAX];
    check(avl_dense_open(MODEL, &source));
    create_on_ranks(&source, 7, -1, results);
    for (int rank = 0; rank < 7; rank++) {
        assert_int_equal(results[rank].status, AVL_ERR_UNSUPPORTED);
        assert_non_null(strstr(results[rank].detail, "7 ranks"));
    }
    avl_dense_close(&source);
}

/* Row 100 of the query projection belongs to query head 3, which is rank 1's of two: only that one
 * sees it. */
static void test_not_finite(void **state) {
    (void)state;
    copy_t copy = copy_model();
    uint16_t *value = find_values(&copy, Q_PROJ) + 100 * HIDDEN + 7, sound = *value;
    *value = 0x7fc0;
    write_copy(&copy);
    expect_refusal(copy.directory, 1, 1, Q_PROJ ": value [100, 7] is not a number");
    expect_refusal(copy.directory, 2, 2, Q_PROJ ": value [100, 7] is not a number");
    *value = 0xff80;
    write_copy(&copy);
    expect_refusal(copy.directory, 3, 2, Q_PROJ ": value [100, 7] is infinite");
    *value = sound;
    find_values(&copy, "language_model.model.norm.weight")[191] = 0x7f81;
    write_copy(&copy);
    expect_refusal(copy.directory, 2, 3, "norm.weight: value [0, 191] is not a number");
    remove_copy(&copy);
}

static void test_wrong_shape(void **state) {
    (void)state;
    copy_t copy = copy_model();
    char *shape = strstr(find_header(&copy, Q_PROJ), "[192,192]");
    assert_non_null(shape);
    memcpy(shape, "[96,384]", 8);
    shape[8] = ' ';
    write_copy(&copy);
    expect_refusal(copy.directory, 2, 3, Q_PROJ);
    remove_copy(&copy);
}

static void test_missing_tensor(void **state) {
    (void)state;
    copy_t copy = copy_model();
    memcpy(find_header(&copy, Q_PROJ) + 1, "another", 7);
    write_copy(&copy);
    expect_refusal(copy.directory, 3, 7, Q_PROJ);
    remove_copy(&copy);
}

/* One rank's own trouble: it says so, the others name it. */
static void test_one_rank_fails(void **state) {
    (void)state;
    avl_dense_source_t source;
    creation_t results[RANKS_MAX];
    check(avl_dense_open(MODEL, &source));
    create_on_ranks(&source, 4, 2, results);
    for (int rank = 0; rank < 4; rank++)
        assert_int_equal(results[rank].status, rank == 2 ? AVL_ERR_INVALID : AVL_ERR_PEER);
    assert_non_null(strstr(results[0].detail, "rank 2"));
    avl_dense_close(&source);
}

/* A step on two ranks, one of whose hooks fails: both come back, and the next step works. */
typedef struct step {
    const avl_dense_source_t *source;
    avl_group_t *group;
    avl_status_t first, second;
} step_t;

typedef struct failing_hook {
    int armed;
    int width;
} failing_hook_t;

static avl_status_t attend(void *context, const avl_attention_call_t *call) {
    failing_hook_t *hook = context;
    if (hook->armed && call->layer == 2)
        return avl_fail(AVL_ERR_EXHAUSTED, "no pages");
    memset(call->output, 0, (size_t)hook->width * sizeof(float));
    return AVL_OK;
}

static avl_status_t run_steps(step_t *step, avl_device_t *device, avl_model_t **model_p) {
    avl_model_options_t options = {
        .dtype = AVL_DTYPE_F32, .rows_max = 1, .tiles_max = 1, .logit_rows_max = 1};
    AVL_TRY(avl_model_create(&step->source->config, step->source->weights, device, step->group,
                             &options, model_p));
    const avl_shards_t *shards = avl_model_shards(*model_p);
    failing_hook_t state = {.armed = avl_group_rank(step->group) == 1,
                            .width = shards->query_heads.count *
                                     step->source->config.model.text.head_width};
    avl_attention_hook_t hook = {.context = &state, .attend = attend};
    int32_t token = 5, position = 0, row = 0;
    avl_forward_batch_t batch = {.rows = 1,
                                 .token_ids = &token,
                                 .positions = &position,
                                 .logit_rows = &row,
                                 .logit_count = 1};
    float logits[VOCAB_ROWS];
    step->first = avl_model_forward(*model_p, &batch, &hook, logits);
    state.armed = 0;
    step->second = avl_model_forward(*model_p, &batch, &hook, logits);
    return AVL_OK;
}

static void *run_failing_step(void *context) {
    step_t *step = context;
    avl_device_t *device;
    avl_model_t *model = NULL;
    step->first = step->second = AVL_ERR_INTERNAL;
    if (avl_device_open_cpu(1, NULL, &device) == AVL_OK) {
        if (run_steps(step, device, &model) != AVL_OK)
            step->first = AVL_ERR_INTERNAL;
        avl_model_destroy(model);
        avl_device_close(device);
    }
    avl_group_close(step->group);
    return NULL;
}

static void test_failing_hook(void **state) {
    (void)state;
    avl_dense_source_t source;
    avl_group_t *groups[2];
    pthread_t threads[2];
    step_t steps[2];
    check(avl_dense_open(MODEL, &source));
    check(avl_group_open_loopback(2, groups));
    for (int rank = 0; rank < 2; rank++) {
        steps[rank] = (step_t){.source = &source, .group = groups[rank]};
        assert_int_equal(pthread_create(&threads[rank], NULL, run_failing_step, &steps[rank]), 0);
    }
    for (int rank = 0; rank < 2; rank++)
        pthread_join(threads[rank], NULL);
    /* Its numbers lack the other's part: no token may come of them. */
    assert_int_equal(steps[0].first, AVL_ERR_PEER);
    assert_int_equal(steps[1].first, AVL_ERR_EXHAUSTED);
    assert_int_equal(steps[0].second, AVL_OK);
    assert_int_equal(steps[1].second, AVL_OK);
    avl_dense_close(&source);
}

static void expect_batch(avl_model_t *model, avl_forward_batch_t batch, avl_status_t expected) {
    failing_hook_t state = {0};
    avl_attention_hook_t hook = {.context = &state, .attend = attend};
    float logits[VOCAB_ROWS];
    assert_int_equal(avl_model_forward(model, &batch, &hook, logits), expected);
}

static void test_bad_batches(void **state) {
    (void)state;
    avl_dense_source_t source;
    avl_group_t *group;
    avl_device_t *device;
    avl_model_t *model;
    avl_model_options_t options = {
        .dtype = AVL_DTYPE_F32, .rows_max = 2, .tiles_max = 1, .logit_rows_max = 1};
    check(avl_dense_open(MODEL, &source));
    check(avl_group_open_single(&group));
    check(avl_device_open_cpu(1, NULL, &device));
    check(avl_model_create(&source.config, source.weights, device, group, &options, &model));
    assert_int_equal(source.config.model.text.vocab_rows, VOCAB_ROWS);
    assert_int_equal(source.config.model.text.hidden_width, HIDDEN);
    int32_t ids[3] = {5, 6, 7}, positions[3] = {0, 1, 2}, rows[3] = {1, 0, 0};
    float row[HIDDEN] = {0};
    const float *features[1] = {row};
    avl_forward_batch_t good = {
        .rows = 2, .token_ids = ids, .positions = positions, .logit_rows = rows, .logit_count = 1};
    avl_forward_batch_t batch = good;
    expect_batch(model, batch, AVL_OK);
    batch.rows = 3;
    expect_batch(model, batch, AVL_ERR_SHAPE);
    batch = good;
    batch.logit_count = 2;
    expect_batch(model, batch, AVL_ERR_SHAPE);
    rows[0] = 2;
    expect_batch(model, good, AVL_ERR_INVALID);
    rows[0] = 1;
    ids[1] = VOCAB_ROWS;
    expect_batch(model, good, AVL_ERR_INVALID);
    ids[1] = -2;
    expect_batch(model, good, AVL_ERR_INVALID);
    ids[1] = -1; /* a picture's row without its feature */
    expect_batch(model, good, AVL_ERR_INVALID);
    batch = good;
    batch.embed_features = features;
    batch.embed_rows = rows + 1; /* the feature is for another row */
    batch.embed_count = 1;
    expect_batch(model, batch, AVL_ERR_INVALID);
    batch.embed_rows = rows;
    expect_batch(model, batch, AVL_OK);
    positions[0] = -1;
    expect_batch(model, batch, AVL_ERR_INVALID);
    avl_model_destroy(model);
    avl_device_close(device);
    avl_group_close(group);
    avl_dense_close(&source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_more_ranks_than_heads), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_wrong_shape),           cmocka_unit_test(test_missing_tensor),
        cmocka_unit_test(test_one_rank_fails),        cmocka_unit_test(test_failing_hook),
        cmocka_unit_test(test_bad_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
