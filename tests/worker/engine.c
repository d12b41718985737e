/* tests/worker/engine.c: a row's numbers depend on its own sequence alone; and what fails on one
 * rank ends the step on all of them, at once and without a token.
 *
 * Requests are replayed after a loss and recomputed after giving way, each time in other company,
 * and must go on with the same tokens. So logits are compared bit for bit: a sequence alone, and
 * the same one beside others, in whole and in chunks. The model is wide enough for every way that
 * products can take. */
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "bench/synthetic_model.h"
#include "worker/engine.h"

enum { SEQUENCES_MAX = 200, BATCH_ROWS = 600, CONTEXT_ROWS = 700, STEPS = 4, VOCAB_ROWS = 512 };

typedef struct bench {
    avl_config_t config;
    avl_weights_t *weights;
    avl_device_t *device;
    avl_group_t *group;
    avl_model_t *model;
    avl_engine_t *engine;
    avl_plan_t plan;
    uint64_t step;
    int32_t *prompts[SEQUENCES_MAX]; /* the plan's, until the next step */
} bench_t;

static char directory[] = "/tmp/avl-test-engine-XXXXXX";

static void check(avl_status_t status) {
    if (status != AVL_OK)
        fail_msg("%s: %s", avl_status_name(status), avl_status_detail());
}

static int remove_entry(const char *path, const struct stat *found, int kind, struct FTW *place) {
    (void)found, (void)kind, (void)place;
    return remove(path);
}

static int make_model(void **state) {
    (void)state;
    if (mkdtemp(directory) == NULL)
        return -1;
    avl_synthetic_model_write(directory, &(avl_synthetic_model_t){.hidden_width = 256,
                                                                  .layer_count = 2,
                                                                  .kv_heads = 2,
                                                                  .vocab_rows = VOCAB_ROWS,
                                                                  .vision_width = 64,
                                                                  .vision_layers = 1});
    return 0;
}

static int remove_model(void **state) {
    (void)state;
    return nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void open_bench(bench_t *bench, avl_dtype_t dtype, avl_group_t *group) {
    *bench = (bench_t){.group = group};
    check(avl_config_load(directory, &bench->config));
    check(avl_weights_open(directory, &bench->weights));
    check(avl_device_open_cpu(1, NULL, &bench->device));
    avl_engine_limits_t limits = {
        .batch_rows = BATCH_ROWS, .sequences_max = SEQUENCES_MAX, .context_rows = CONTEXT_ROWS};
    avl_model_options_t model = avl_engine_model_options(&bench->config, &limits, dtype);
    check(avl_model_create(&bench->config, bench->weights, bench->device, bench->group, &model,
                           &bench->model));
    check(avl_engine_create(&(avl_engine_options_t){.config = &bench->config,
                                                    .device = bench->device,
                                                    .group = bench->group,
                                                    .model = bench->model,
                                                    .dtype = dtype,
                                                    .limits = limits,
                                                    .memory_bytes = INT64_C(1) << 30,
                                                    .page_count = 4000},
                            &bench->engine));
    check(avl_plan_create(avl_engine_plan_limits(bench->engine), &bench->plan));
}

static void close_bench(bench_t *bench) {
    avl_plan_destroy(&bench->plan);
    avl_engine_destroy(bench->engine);
    avl_model_destroy(bench->model);
    avl_group_close(bench->group);
    avl_device_close(bench->device);
    avl_weights_close(bench->weights);
}

static void begin(bench_t *bench) {
    avl_plan_begin(&bench->plan, AVL_PLAN_STEP, ++bench->step);
}

/* Text of `rows` tokens that are a function of `salt`. */
static void add_admission(bench_t *bench, int32_t sequence, int32_t rows, uint32_t salt) {
    int32_t *ids = malloc((size_t)rows * sizeof *ids);
    assert_non_null(ids);
    uint32_t random = salt * 2654435761u + 1;
    for (int32_t i = 0; i < rows; i++) {
        random = random * 1664525u + 1013904223u;
        ids[i] = (int32_t)(random >> 16) % VOCAB_ROWS;
    }
    bench->prompts[sequence] = ids;
    bench->plan.admissions[bench->plan.admission_count++] =
        (avl_plan_admission_t){.source = -1,
                               .request_id = (uint64_t)sequence + 1,
                               .sequence = sequence,
                               .prompt_rows = rows,
                               .rows_max = rows + STEPS,
                               .attention = AVL_ATTENTION(1, 1, 1),
                               .token_ids = ids};
}

static void add_run(bench_t *bench, int32_t sequence, int32_t rows, int32_t token_id, int logits) {
    bench->plan.runs[bench->plan.run_count++] = (avl_plan_run_t){
        .sequence = sequence, .row_count = rows, .token_id = token_id, .logits = logits};
}

/* Runs the step; copies the only logits that were asked for. */
static void run(bench_t *bench, float *logits) {
    avl_step_result_t result;
    check(avl_engine_execute(bench->engine, &bench->plan, &result));
    check(result.admission);
    if (logits != NULL)
        memcpy(logits, result.logits, VOCAB_ROWS * sizeof *logits);
    for (int32_t i = 0; i < SEQUENCES_MAX; i++) {
        free(bench->prompts[i]);
        bench->prompts[i] = NULL;
    }
}

/* Who else is there: in every step of the sequence, `prompts` others of `rows` rows each read their
 * prompt, and `decodes` others decode. */
typedef struct company {
    int32_t prompts, rows, decodes;
} company_t;

static void release(bench_t *bench, int32_t first, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        bench->plan.releases[bench->plan.release_count++] = first + i;
}

/* The other prompts of one step. */
static void add_others(bench_t *bench, company_t company, uint32_t salt) {
    for (int32_t i = 0; i < company.prompts; i++) {
        add_admission(bench, 1 + i, company.rows, salt + (uint32_t)i);
        add_run(bench, 1 + i, company.rows, -1, 0);
    }
}

/* logits[0]: after the prompt of sequence 0, which is read in chunks of `chunk` rows; logits[i]:
 * after i decode rows. */
static void follow(bench_t *bench, int32_t rows, int32_t chunk, company_t company,
                   float (*logits)[VOCAB_ROWS]) {
    int32_t decoding = 1 + company.prompts, done = 0;
    begin(bench);
    add_admission(bench, 0, rows, 1);
    for (int32_t i = 0; i < company.decodes; i++) {
        add_admission(bench, decoding + i, 1, 1000 + (uint32_t)i);
        add_run(bench, decoding + i, 1, -1, 0);
    }
    while (done < rows + STEPS) {
        int32_t more = rows - done < chunk ? rows - done : chunk;
        bool decodes = done >= rows, ends = done + more >= rows;
        if (done > 0)
            begin(bench);
        if (done > 0)
            release(bench, 1, company.prompts);
        /* Sequence 0 stands behind the decode rows and before the prompts. */
        for (int32_t i = 0; i < company.decodes && decodes; i++)
            add_run(bench, decoding + i, 0, 7, 0);
        add_run(bench, 0, decodes ? 0 : more, decodes ? 11 + done - rows : -1, ends);
        add_others(bench, company, (uint32_t)(100 + done));
        run(bench, decodes ? logits[done - rows + 1] : ends ? logits[0] : NULL);
        done += decodes ? 1 : more;
    }
    begin(bench);
    release(bench, 0, decoding + company.decodes);
    run(bench, NULL);
}

static void expect_same(bench_t *bench, int32_t rows, int32_t chunk, company_t company) {
    static float alone[STEPS + 1][VOCAB_ROWS], together[STEPS + 1][VOCAB_ROWS];
    follow(bench, rows, rows, (company_t){0}, alone);
    follow(bench, rows, chunk, company, together);
    for (int step = 0; step <= STEPS; step++) {
        for (int i = 0; i < VOCAB_ROWS; i++) {
            if (memcmp(&alone[step][i], &together[step][i], sizeof(float)) != 0)
                fail_msg("a prompt of %d rows in chunks of %d beside %d prompts of %d rows and %d "
                         "decode rows: logit %d after %d decode rows is %.9g, alone %.9g",
                         rows, chunk, company.prompts, company.rows, company.decodes, i, step,
                         (double)together[step][i], (double)alone[step][i]);
        }
    }
}

static void compare(avl_dtype_t dtype) {
    avl_group_t *group;
    bench_t bench;
    check(avl_group_open_single(&group));
    open_bench(&bench, dtype, group);
    /* Chunks that end before, at and behind the borders of blocks; a last chunk of one row. */
    expect_same(&bench, 300, 300, (company_t){0});
    expect_same(&bench, 300, 299, (company_t){0});
    expect_same(&bench, 300, 128, (company_t){0});
    expect_same(&bench, 300, 100, (company_t){0});
    expect_same(&bench, 100, 37, (company_t){0});
    /* A decode row beside prompts, short and long. */
    expect_same(&bench, 20, 20, (company_t){.prompts = 1, .rows = 200});
    expect_same(&bench, 20, 20, (company_t){.prompts = 8, .rows = 60});
    /* Prompts beside prompts and decode rows. */
    expect_same(&bench, 127, 127, (company_t){.prompts = 3, .rows = 150});
    expect_same(&bench, 300, 150, (company_t){.prompts = 2, .rows = 150, .decodes = 5});
    expect_same(&bench, 300, 100, (company_t){.prompts = 5, .rows = 20, .decodes = 3});
    /* So many decode rows that they alone fill a block. */
    expect_same(&bench, 20, 20, (company_t){.decodes = 150});
    expect_same(&bench, 300, 300, (company_t){.decodes = 150});
    assert_int_equal(avl_engine_pages(bench.engine).taken, 0);
    close_bench(&bench);
}

static void test_company_changes_nothing(void **state) {
    (void)state;
    compare(AVL_DTYPE_F32);
    compare(AVL_DTYPE_BF16);
}

/* ---- the best token alone ---- */

/* Two sequences alike: of one the logits, of the other the best of them. */
static void test_best_token(void **state) {
    (void)state;
    avl_group_t *group;
    bench_t bench;
    check(avl_group_open_single(&group));
    open_bench(&bench, AVL_DTYPE_F32, group);
    begin(&bench);
    for (int32_t i = 0; i < 3; i++) {
        add_admission(&bench, i, 20, 5);
        add_run(&bench, i, 20, -1, AVL_PLAN_NOTHING);
    }
    run(&bench, NULL);
    for (int32_t step = 0; step < STEPS; step++) {
        begin(&bench);
        add_run(&bench, 0, 0, 3 + step, AVL_PLAN_BEST);
        add_run(&bench, 1, 0, 3 + step, AVL_PLAN_LOGITS);
        add_run(&bench, 2, 0, 3 + step, AVL_PLAN_BEST);
        avl_step_result_t result;
        check(avl_engine_execute(bench.engine, &bench.plan, &result));
        int32_t best = 0;
        for (int32_t i = 1; i < VOCAB_ROWS; i++)
            best = result.logits[i] > result.logits[best] ? i : best;
        for (int i = 0; i < 2; i++) {
            assert_int_equal(result.best[i].token_id, best);
            assert_memory_equal(&result.best[i].logit, &result.logits[best], sizeof(float));
        }
    }
    begin(&bench);
    release(&bench, 0, 3);
    run(&bench, NULL);
    close_bench(&bench);
}

/* ---- faults ---- */

enum { RANKS = 3, TEXT_BEFORE = 10, PICTURE_ROWS = 576, TEXT_BEHIND = 4, FAULT_STEPS = 3 };

typedef enum fault_operation {
    FAULT_LINEAR,
    FAULT_ATTENTION,
    FAULT_DECODE,
    FAULT_CHOOSE
} operation_t;

/* On rank 1, from the beginning of step `step` on, call number `call` of an operation fails. */
typedef struct fault {
    operation_t operation;
    int step, call;
} fault_t;

typedef struct fault_rank {
    fault_t fault;
    avl_group_t *group;
    pthread_t thread;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
} fault_rank_t;

static _Thread_local const avl_device_ops_t *real_ops;
static _Thread_local fault_t armed = {.call = -1};

static bool fails(operation_t operation) {
    return armed.operation == operation && armed.call >= 0 && armed.call-- == 0;
}

#define FAULTY(name, operation)                                                                    \
    static avl_status_t faulty_##name(avl_device_t *device,                                        \
                                      const struct avl_##name##_args *args) {                      \
        if (fails(operation))                                                                      \
            return avl_fail(AVL_ERR_MEMORY, "no memory for " #name);                               \
        return real_ops->name(device, args);                                                       \
    }
FAULTY(linear, FAULT_LINEAR)
FAULTY(attention, FAULT_ATTENTION)
FAULTY(decode_attention, FAULT_DECODE)
FAULTY(choose, FAULT_CHOOSE)

/* Step 1 reads a prompt with a picture, steps 2 and 3 decode; step 3 chooses the core anew. */
static void plan_step(bench_t *bench, int step, int32_t *ids, const uint8_t *pixels) {
    static const avl_plan_place_t place = {.feature_row = 0, .rows = PICTURE_ROWS};
    int32_t rows = TEXT_BEFORE + PICTURE_ROWS + TEXT_BEHIND;
    size_t side = (size_t)bench->config.model.vision.image_side;
    begin(bench);
    if (step > 1) {
        add_run(bench, 0, 0, 5, 1);
        return;
    }
    for (int32_t i = 0; i < rows; i++)
        ids[i] = i >= TEXT_BEFORE && i < TEXT_BEFORE + PICTURE_ROWS ? -1 : 3 + i % 50;
    bench->plan.admissions[bench->plan.admission_count++] =
        (avl_plan_admission_t){.request_id = 1,
                               .prompt_rows = rows,
                               .rows_max = rows + FAULT_STEPS,
                               .place_count = 1,
                               .places = &place,
                               .source = -1,
                               .attention = AVL_ATTENTION(.5, .3, 2),
                               .token_ids = ids};
    avl_plan_picture_t *picture = &bench->plan.pictures[bench->plan.picture_count++];
    *picture = (avl_plan_picture_t){.pixels = pixels, .pixel_bytes = 3 * side * side};
    check(avl_image_layout(&bench->config, (int)side, (int)side, &picture->layout));
    add_run(bench, 0, rows, -1, 1);
}

static void *run_with_fault(void *context) {
    fault_rank_t *rank = context;
    avl_device_ops_t ops;
    bench_t bench;
    static uint8_t pixels[3 * 336 * 336];
    int32_t ids[TEXT_BEFORE + PICTURE_ROWS + TEXT_BEHIND];
    open_bench(&bench, AVL_DTYPE_F32, rank->group);
    real_ops = bench.device->ops;
    ops = *real_ops;
    ops.linear = faulty_linear;
    ops.attention = faulty_attention;
    ops.decode_attention = faulty_decode_attention;
    ops.choose = faulty_choose;
    bench.device->ops = &ops;
    for (int step = 1; step <= rank->fault.step; step++) {
        avl_step_result_t result;
        plan_step(&bench, step, ids, pixels);
        if (avl_group_rank(rank->group) == 1 && step == rank->fault.step)
            armed = rank->fault;
        rank->status = avl_engine_execute(bench.engine, &bench.plan, &result);
        if (rank->status == AVL_OK && result.admission != AVL_OK)
            rank->status = avl_fail(AVL_ERR_INTERNAL, "admission: %s", result.admission_detail);
        if (rank->status != AVL_OK)
            break;
    }
    if (rank->status != AVL_OK)
        snprintf(rank->detail, sizeof rank->detail, "%s", avl_status_detail());
    armed.call = -1;
    close_bench(&bench);
    return NULL;
}

static void expect_end(fault_t fault, bool encoding) {
    avl_group_t *groups[RANKS];
    fault_rank_t ranks[RANKS];
    check(avl_group_open_loopback(RANKS, groups));
    for (int i = 0; i < RANKS; i++) {
        ranks[i] = (fault_rank_t){.fault = fault, .group = groups[i]};
        avl_group_set_timeout(groups[i], 20 * AVL_NS_PER_S);
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, run_with_fault, &ranks[i]), 0);
    }
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(pthread_join(ranks[i].thread, NULL), 0);
    /* The leader learns it with the logits; the third rank only when pictures end with a vote. */
    const avl_status_t expected[RANKS] = {AVL_ERR_PEER, AVL_ERR_MEMORY,
                                          encoding ? AVL_ERR_PEER : AVL_OK};
    for (int i = 0; i < RANKS; i++) {
        if (ranks[i].status != expected[i])
            fail_msg("operation %d fails in step %d, call %d: rank %d ends with %s (%s), not %s",
                     (int)fault.operation, fault.step, fault.call, i,
                     avl_status_name(ranks[i].status), ranks[i].detail,
                     avl_status_name(expected[i]));
    }
}

static void test_one_rank_fails(void **state) {
    (void)state;
    /* The vision tower has one layer of six products and an attention, the projector two products;
     * a layer of the decoder has seven, and the rows of the prompt go two ways. */
    expect_end((fault_t){FAULT_LINEAR, 1, 2}, true);
    expect_end((fault_t){FAULT_ATTENTION, 1, 0}, false); /* rank 1 has no vision head */
    expect_end((fault_t){FAULT_ATTENTION, 1, 1}, false);
    expect_end((fault_t){FAULT_DECODE, 1, 0}, false);
    expect_end((fault_t){FAULT_DECODE, 1, 1}, false);
    expect_end((fault_t){FAULT_CHOOSE, 1, 0}, false);
    expect_end((fault_t){FAULT_CHOOSE, 1, 3}, false);
    expect_end((fault_t){FAULT_LINEAR, 2, 0}, false);
    expect_end((fault_t){FAULT_LINEAR, 3, 0}, false);
    expect_end((fault_t){FAULT_LINEAR, 3, 9}, false);
    expect_end((fault_t){FAULT_DECODE, 2, 0}, false);
    expect_end((fault_t){FAULT_DECODE, 3, 0}, false);
    expect_end((fault_t){FAULT_DECODE, 3, 1}, false);
    expect_end((fault_t){FAULT_CHOOSE, 3, 0}, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_company_changes_nothing),
        cmocka_unit_test(test_best_token),
        cmocka_unit_test(test_one_rank_fails),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
