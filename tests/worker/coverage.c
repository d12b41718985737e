/* tests/worker/coverage.c: what is known of pictures' rows, and requests that choose by it: several
 * pictures, chunks and ranks, one store for all layers. */
#include "worker/coverage.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "kernels/diversity.h"
#include "tests/worker/rig.h"

/* ---- what is known ---- */

#define WIDTH 12
#define FEATURES 60
#define FIRST 5 /* of two pictures, the one behind the other */
#define FIRST_ROWS 7
#define SECOND_ROWS 20
#define VISUAL (FIRST_ROWS + SECOND_ROWS)
#define PROMPT (VISUAL + 3)

typedef struct known {
    avl_device_t *device;
    avl_group_t *group;
    avl_coverage_t *coverage;
    avl_sequence_t *sequence;
    avl_pages_t *pages;
    float features[FEATURES][WIDTH];
} known_t;

static known_t open_known(void) {
    known_t known = {0};
    assert_int_equal(avl_device_open_cpu(1, NULL, &known.device), AVL_OK);
    assert_int_equal(avl_group_open_single(&known.group), AVL_OK);
    assert_int_equal(avl_pages_create(known.device, 1, 4, AVL_DTYPE_F32, 8, &known.pages), AVL_OK);
    assert_int_equal(
        avl_coverage_create(known.device, FEATURES, WIDTH, SECOND_ROWS, &known.coverage), AVL_OK);
    int32_t ids[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        ids[i] = i == 0 || i > VISUAL ? 5 : -1;
    avl_attention_params_t params = AVL_ATTENTION(.5, .25, 2);
    params.visual_selection = AVL_VISUAL_COVERAGE;
    avl_sequence_shape_t shape = avl_sequence_shape(ids, PROMPT, PROMPT + 4, &params);
    assert_int_equal(avl_sequence_create(known.device, 0, &shape, 2, ids, &known.sequence), AVL_OK);
    for (int i = 0; i < VISUAL; i++)
        known.sequence->feature_rows[i] = FIRST + i;
    for (int i = 0; i < FEATURES * WIDTH; i++)
        known.features[i / WIDTH][i % WIDTH] = (float)((i * 7919 + i / 5 * 31) % 101) - 50;
    avl_coverage_encoded(known.coverage, FIRST, FIRST_ROWS);
    avl_coverage_encoded(known.coverage, FIRST + FIRST_ROWS, SECOND_ROWS);
    return known;
}

static void close_known(known_t *known) {
    avl_sequence_destroy(known->sequence, known->pages);
    avl_coverage_destroy(known->coverage);
    avl_pages_destroy(known->pages);
    avl_group_close(known->group);
    avl_device_close(known->device);
}

static avl_status_t measure(known_t *known, int32_t first, int32_t rows) {
    avl_run_t run = {.sequence = known->sequence, .first_position = first, .row_count = rows};
    return avl_coverage_measure(known->coverage, known->group, known->features[0], &run, 1);
}

/* The distances there are those of this picture alone. */
static void expect_distances(const known_t *known, int first, int rows) {
    float expected[SECOND_ROWS];
    void *scratch = malloc(avl_diversity_scratch_bytes(rows, WIDTH));
    assert_non_null(scratch);
    assert_int_equal(
        avl_diversity(known->device, &(avl_diversity_args_t){.features = known->features[first],
                                                             .rows = rows,
                                                             .width = WIDTH,
                                                             .distances = expected,
                                                             .scratch = scratch}),
        AVL_OK);
    assert_memory_equal(avl_coverage_distances(known->coverage) + first, expected,
                        (size_t)rows * sizeof *expected);
    free(scratch);
}

static void test_distances(void **state) {
    (void)state;
    known_t known = open_known();
    const float *distances = avl_coverage_distances(known.coverage);
    assert_int_equal(measure(&known, 0, PROMPT - 1), AVL_OK); /* not the end */
    assert_true(distances[FIRST] == 0 && distances[FIRST + 1] == 0);
    assert_int_equal(measure(&known, PROMPT - 1, 1), AVL_OK);
    expect_distances(&known, FIRST, FIRST_ROWS);
    expect_distances(&known, FIRST + FIRST_ROWS, SECOND_ROWS);
    assert_true(distances[FIRST - 1] == 0 && distances[FIRST + VISUAL] == 0);
    /* They stay until another picture is encoded there. */
    float before[FEATURES];
    memcpy(before, distances, sizeof before);
    for (int i = 0; i < WIDTH; i++)
        known.features[FIRST + FIRST_ROWS][i] += 40;
    assert_int_equal(measure(&known, 0, PROMPT), AVL_OK);
    assert_memory_equal(distances, before, sizeof before);
    avl_coverage_encoded(known.coverage, FIRST + FIRST_ROWS, SECOND_ROWS);
    assert_int_equal(measure(&known, 0, PROMPT), AVL_OK);
    assert_memory_not_equal(distances, before, sizeof before);
    expect_distances(&known, FIRST + FIRST_ROWS, SECOND_ROWS);
    close_known(&known);
}

/* Features that are not those of whole pictures. */
static void test_misfits(void **state) {
    (void)state;
    known_t known = open_known();
    for (int i = 0; i < VISUAL; i++)
        known.sequence->feature_rows[i] = FIRST + 1 + i;
    assert_int_equal(measure(&known, 0, PROMPT), AVL_ERR_INTERNAL);
    assert_non_null(strstr(avl_status_detail(), "a picture of 0 rows at features 6"));
    for (int i = 0; i < VISUAL; i++)
        known.sequence->feature_rows[i] = FIRST + FIRST_ROWS + i;
    avl_coverage_encoded(known.coverage, FIRST + FIRST_ROWS, VISUAL + 1);
    assert_int_equal(measure(&known, 0, PROMPT), AVL_ERR_INTERNAL);
    assert_non_null(strstr(avl_status_detail(), "where 27 are left"));
    close_known(&known);
}

/* ---- requests ---- */

#define TOKENS 10
#define STORE_MAX 4096

/* Of a request; an argument says otherwise, for devices that serve one. */
static int ranks_most = 3;

typedef struct outcome {
    int32_t store[STORE_MAX], store_count, core[STORE_MAX], core_count;
    rig_result_t result;
} outcome_t;

/* The store when the answer's first token is there: the same in every layer. */
static void take_store(rig_t *rig, int32_t prompt_rows, outcome_t *outcome) {
    const avl_sequence_t *sequence;
    assert_int_equal(avl_engine_inspect(rig_engine(rig, 0), 0, &sequence), AVL_OK);
    assert_true(sequence != NULL && sequence->rows_done >= prompt_rows);
    outcome->store_count = sequence->shape.store_rows;
    outcome->core_count = sequence->shape.core_rows;
    size_t store = (size_t)outcome->store_count * sizeof *outcome->store;
    size_t core = (size_t)outcome->core_count * sizeof *outcome->core;
    memcpy(outcome->store, sequence->layers[0].store.host, store);
    memcpy(outcome->core, sequence->layers[0].first_core.host, core);
    for (int32_t i = 0; i < sequence->layer_count; i++) {
        const avl_sequence_layer_t *layer = &sequence->layers[i];
        assert_int_equal(layer->visual.slots.count, outcome->store_count);
        assert_memory_equal(layer->store.host, outcome->store, store);
        assert_memory_equal(layer->first_core.host, outcome->core, core);
    }
}

static void answer(const char *model, const char *place, int ranks, int32_t batch_rows,
                   outcome_t *outcome) {
    rig_t *rig = rig_open(&(rig_options_t){
        .model = model, .ranks = ranks, .limits = {.batch_rows = batch_rows, .kept_max = 0}});
    rig_case_t data = rig_case_load(rig_config(rig), place);
    assert_true(data.image_count >= 2 && data.row_count < STORE_MAX);
    avl_request_t *request = rig_request(&data, 1, TOKENS);
    rig_set_attention(request, .4, .2, 3);
    request->attention.visual_selection = AVL_VISUAL_COVERAGE;
    request->ignore_eos = true;
    avl_scheduler_submit(rig_scheduler(rig), request);
    while (rig_result(rig, 1)->token_count == 0)
        assert_true(rig_step(rig));
    take_store(rig, data.row_count, outcome);
    rig_run(rig);
    outcome->result = *rig_result(rig, 1);
    assert_int_equal(outcome->result.end.finish_reason, AVL_FINISH_LENGTH);
    assert_int_equal(outcome->result.end.attention.visual_rows_stored, outcome->store_count);
    rig_case_release(&data);
    rig_close(rig);
}

static void test_several_pictures(void **state) {
    (void)state;
    static const char *const places[][2] = {
        {"tests/data/models/next-gqa", "tests/data/cases/next-gqa/02"},
        {"tests/data/models/llava-mha", "tests/data/cases/llava-mha/02"},
    };
    static const struct {
        int ranks;
        int32_t batch_rows;
    } ways[] = {{1, 13}, {2, 512}, {3, 29}};
    outcome_t *whole = calloc(1, sizeof *whole), *other = calloc(1, sizeof *other);
    assert_true(whole != NULL && other != NULL);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        answer(places[i][0], places[i][1], 1, 4096, whole);
        assert_true(whole->store_count > whole->core_count && whole->core_count > 0);
        for (size_t j = 0; j < sizeof ways / sizeof *ways; j++) {
            if (ways[j].ranks > ranks_most)
                continue;
            answer(places[i][0], places[i][1], ways[j].ranks, ways[j].batch_rows, other);
            assert_int_equal(other->store_count, whole->store_count);
            assert_memory_equal(other->store, whole->store, sizeof whole->store);
            assert_memory_equal(other->core, whole->core, sizeof whole->core);
            rig_expect_tokens(&other->result, whole->result.tokens, whole->result.token_count,
                              places[i][1]);
        }
    }
    free(whole);
    free(other);
}

int main(int argc, char **argv) {
    ranks_most = argc > 1 ? atoi(argv[1]) : ranks_most;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distances),
        cmocka_unit_test(test_misfits),
        cmocka_unit_test(test_several_pictures),
    };
    return cmocka_run_group_tests_name("coverage", tests, NULL, NULL);
}
