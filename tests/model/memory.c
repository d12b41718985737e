/* What a rank says it holds, and that loading reports its progress. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/model/dense_run.h"

static void check(avl_status_t status) {
    if (status != AVL_OK)
        fail_msg("%s: %s", avl_status_name(status), avl_status_detail());
}

typedef struct progress {
    int calls;
    double last;
} progress_t;

static void note_progress(void *context, double share) {
    progress_t *progress = context;
    assert_true(share >= progress->last && share <= 1.0);
    progress->calls++;
    progress->last = share;
}

static avl_model_memory_t load(avl_dtype_t dtype, progress_t *progress) {
    avl_dense_source_t source;
    avl_group_t *group;
    avl_device_t *device;
    avl_model_t *model;
    avl_model_options_t options = {.dtype = dtype,
                                   .rows_max = 16,
                                   .tiles_max = 1,
                                   .logit_rows_max = 1,
                                   .progress = note_progress,
                                   .progress_context = progress};
    check(avl_dense_open(AVL_SOURCE_DIR "/models/avl-tiny", &source));
    check(avl_group_open_single(&group));
    check(avl_device_open_cpu(1, NULL, &device));
    check(avl_model_create(&source.config, source.weights, device, group, &options, &model));
    avl_model_memory_t memory = avl_model_memory(model);
    assert_true(memory.mapped_bytes <= avl_weights_bytes(source.weights));
    avl_model_destroy(model);
    avl_device_close(device);
    avl_group_close(group);
    avl_dense_close(&source);
    return memory;
}

static void test_in_place(void **state) {
    (void)state;
    progress_t progress = {0};
    avl_model_memory_t memory = load(AVL_DTYPE_BF16, &progress);
    assert_true(progress.calls > 50);
    assert_true(progress.last == 1.0);
    assert_true(memory.activation_bytes > 0);
    assert_int_equal(memory.kv_duplicate_bytes, 0);
    /* bf16 matrices stay in the file; only norms, biases and position embeddings are copied. */
    assert_true(memory.mapped_bytes > 20 * memory.weight_bytes);
}

static void test_converted(void **state) {
    (void)state;
    progress_t progress = {0};
    avl_model_memory_t mapped = load(AVL_DTYPE_BF16, &(progress_t){0});
    avl_model_memory_t memory = load(AVL_DTYPE_F32, &progress);
    assert_int_equal(memory.mapped_bytes, 0);
    assert_int_equal(memory.weight_bytes, 2 * mapped.mapped_bytes + mapped.weight_bytes);
}

/* Grouped heads. At 4 ranks the 6 query heads go 2, 2, 1, 1: the last two ranks both read the third
 * KV head. */
typedef struct rank_memory {
    const avl_dense_source_t *source;
    avl_group_t *group;
    avl_status_t status;
    avl_model_memory_t memory;
} rank_memory_t;

static void *load_rank(void *context) {
    rank_memory_t *rank = context;
    avl_device_t *device;
    avl_model_t *model;
    avl_model_options_t options = {
        .dtype = AVL_DTYPE_BF16, .rows_max = 1, .tiles_max = 1, .logit_rows_max = 1};
    rank->status = avl_device_open_cpu(1, NULL, &device);
    if (rank->status == AVL_OK) {
        rank->status = avl_model_create(&rank->source->config, rank->source->weights, device,
                                        rank->group, &options, &model);
        if (rank->status == AVL_OK) {
            rank->memory = avl_model_memory(model);
            avl_model_destroy(model);
        }
        avl_device_close(device);
    }
    avl_group_close(rank->group);
    return NULL;
}

static void test_shared_heads(void **state) {
    (void)state;
    avl_dense_source_t source;
    avl_group_t *groups[4];
    rank_memory_t ranks[4];
    pthread_t threads[4];
    check(avl_dense_open(AVL_SOURCE_DIR "/tests/data/models/llava-gqa", &source));
    const avl_text_config_t *text = &source.config.model.text;
    assert_int_equal(text->query_heads, 6);
    assert_int_equal(text->kv_heads, 3);
    check(avl_group_open_loopback(4, groups));
    for (int rank = 0; rank < 4; rank++) {
        ranks[rank] = (rank_memory_t){.source = &source, .group = groups[rank]};
        assert_int_equal(pthread_create(&threads[rank], NULL, load_rank, &ranks[rank]), 0);
    }
    for (int rank = 0; rank < 4; rank++) {
        pthread_join(threads[rank], NULL);
        assert_int_equal(ranks[rank].status, AVL_OK);
        /* Keys and values: in every layer a head's rows of bf16 numbers. */
        assert_int_equal(
            ranks[rank].memory.kv_duplicate_bytes,
            rank < 2 ? 0 : 2 * text->head_width * text->hidden_width * 2 * text->layer_count);
    }
    avl_dense_close(&source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_converted),
        cmocka_unit_test(test_shared_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
