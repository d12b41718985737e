/* tests/worker/attend.c: A-VL over the paged cache against the algorithm written out in double
 * precision over plain arrays, with random queries, keys and values: outputs of every row, and the
 * rows kept and computed, in every layer, on every rank. */

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/attend.h"
#include "worker/visual_store.h"

#define LAYERS 2
#define QUERY_HEADS 6
#define KV_HEADS 3
#define WIDTH 8
#define ROWS_MAX 128
#define RANKS_MAX 6

/* What is run. */
typedef struct script {
    int ranks;
    const char *kinds; /* of the prompt's rows: 't' text, 'v' visual */
    int decode_steps;
    double store, compute;
    int interval;
    int window;
    int chunk_rows; /* 0: the prompt at once */
} script_t;

/* What came out of one layer; of all heads. */
typedef struct trace {
    float outputs[LAYERS][ROWS_MAX][QUERY_HEADS][WIDTH];
    /* After each row from the last prompt row on: positions kept and computed. */
    int32_t store[LAYERS][ROWS_MAX], store_count;
    int32_t core[LAYERS][ROWS_MAX][ROWS_MAX], core_count;
    int64_t computed_rows;
    avl_pages_counts_t pages;
} trace_t;

static float random_value(int layer, int row, int head, int column, int what) {
    uint32_t x =
        (uint32_t)(((layer * 131 + row) * 131 + head) * 131 + column) * 5u + (uint32_t)what;
    for (int i = 0; i < 3; i++) {
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= x >> 15;
        x *= 0x846ca68bu;
    }
    return ((float)(x >> 8) / 16777216.0f - 0.5f) * (what == 0 ? 6.0f : 2.0f);
}

/* ---- the reference ---- */

typedef struct reference {
    const script_t *script;
    int prompt_rows, visual_count, stored, computed;
    int32_t visual[ROWS_MAX];
    int32_t store[LAYERS][ROWS_MAX];
    int32_t core[LAYERS][ROWS_MAX];
    int64_t computed_rows;
} reference_t;

static bool is_visual(const script_t *script, int row) {
    return row < (int)strlen(script->kinds) && script->kinds[row] == 'v';
}

/* Attention of `row` over the listed rows; adds each row's weights, over heads, to `weights`. */
static void reference_attend(const script_t *script, int layer, int row, const int32_t *rows,
                             int count, double *weights, float output[QUERY_HEADS][WIDTH]) {
    memset(weights, 0, (size_t)count * sizeof *weights);
    for (int head = 0; head < QUERY_HEADS; head++) {
        double scores[ROWS_MAX], most = -INFINITY, sum = 0, result[WIDTH] = {0};
        for (int i = 0; i < count; i++) {
            scores[i] = -INFINITY;
            if (script->window > 0 && rows[i] <= row - script->window)
                continue;
            double dot = 0;
            for (int column = 0; column < WIDTH; column++)
                dot += (double)random_value(layer, row, head, column, 0) *
                       (double)random_value(layer, rows[i], head / (QUERY_HEADS / KV_HEADS), column,
                                            1);
            scores[i] = dot / sqrt(WIDTH);
            most = scores[i] > most ? scores[i] : most;
        }
        for (int i = 0; i < count; i++)
            sum += exp(scores[i] - most);
        for (int i = 0; i < count; i++) {
            double weight = exp(scores[i] - most) / sum;
            weights[i] += weight;
            for (int column = 0; column < WIDTH; column++)
                result[column] +=
                    weight * (double)random_value(layer, rows[i], head / (QUERY_HEADS / KV_HEADS),
                                                  column, 2);
        }
        for (int column = 0; column < WIDTH; column++)
            output[head][column] = (float)result[column];
    }
}

/* The `keep` best of `rows` by weight, the lower first on a tie, in ascending order. */
static void best_rows(const int32_t *rows, const double *weights, int count, int keep,
                      int32_t *kept) {
    bool taken[ROWS_MAX] = {false};
    for (int i = 0; i < keep; i++) {
        int best = -1;
        for (int j = 0; j < count; j++) {
            if (!taken[j] && (best < 0 || weights[j] > weights[best]))
                best = j;
        }
        taken[best] = true;
    }
    for (int i = 0, next = 0; i < count; i++) {
        if (taken[i])
            kept[next++] = rows[i];
    }
}

/* The rows that a decode step reads: all text up to `row`, and the given visual ones (first in the
 * list). */
static int gather(const script_t *script, int row, const int32_t *visual, int visual_count,
                  int32_t *rows) {
    int count = visual_count;
    memcpy(rows, visual, (size_t)visual_count * sizeof *rows);
    for (int i = 0; i <= row; i++) {
        if (!is_visual(script, i))
            rows[count++] = i;
    }
    return count;
}

static void reference_prompt(reference_t *reference, int layer, trace_t *trace) {
    const script_t *script = reference->script;
    double weights[ROWS_MAX], visual[ROWS_MAX], kept[ROWS_MAX];
    int32_t rows[ROWS_MAX];
    for (int row = 0; row < reference->prompt_rows; row++) {
        rows[row] = row;
        reference_attend(script, layer, row, rows, row + 1, weights, trace->outputs[layer][row]);
    }
    for (int i = 0; i < reference->visual_count; i++)
        visual[i] = weights[reference->visual[i]];
    best_rows(reference->visual, visual, reference->visual_count, reference->stored,
              reference->store[layer]);
    for (int i = 0; i < reference->stored; i++)
        kept[i] = weights[reference->store[layer][i]];
    best_rows(reference->store[layer], kept, reference->stored, reference->computed,
              reference->core[layer]);
}

static void reference_decode(reference_t *reference, int layer, int step, trace_t *trace) {
    const script_t *script = reference->script;
    int row = reference->prompt_rows + step - 1;
    bool update = step % script->interval == 0;
    int visual_count = update ? reference->stored : reference->computed;
    const int32_t *visual = update ? reference->store[layer] : reference->core[layer];
    int32_t rows[ROWS_MAX];
    double weights[ROWS_MAX];
    int count = gather(script, row, visual, visual_count, rows);
    reference_attend(script, layer, row, rows, count, weights, trace->outputs[layer][row]);
    for (int i = 0; i < visual_count; i++)
        reference->computed_rows += script->window == 0 || visual[i] > row - script->window;
    if (update)
        best_rows(reference->store[layer], weights, reference->stored, reference->computed,
                  reference->core[layer]);
}

static void run_reference(const script_t *script, trace_t *trace) {
    reference_t reference = {.script = script, .prompt_rows = (int)strlen(script->kinds)};
    for (int i = 0; i < reference.prompt_rows; i++) {
        if (is_visual(script, i))
            reference.visual[reference.visual_count++] = i;
    }
    reference.stored = avl_ratio_rows(script->store, reference.visual_count);
    reference.computed = avl_ratio_rows(script->compute, reference.visual_count);
    trace->store_count = reference.stored;
    trace->core_count = reference.computed;
    for (int layer = 0; layer < LAYERS; layer++) {
        reference_prompt(&reference, layer, trace);
        memcpy(trace->store[layer], reference.store[layer], sizeof trace->store[layer]);
        memcpy(trace->core[layer][0], reference.core[layer], sizeof reference.core[layer]);
        for (int step = 1; step <= script->decode_steps; step++) {
            reference_decode(&reference, layer, step, trace);
            memcpy(trace->core[layer][step], reference.core[layer], sizeof reference.core[layer]);
        }
    }
    trace->computed_rows = reference.computed_rows;
}

/* ---- the ranks ---- */

typedef struct rank {
    const script_t *script;
    avl_group_t *group;
    avl_shards_t shards;
    avl_device_t *device;
    avl_pages_t *pages;
    avl_attend_t *attend;
    avl_sequence_t *sequence;
    trace_t *trace;
    pthread_t thread;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
} rank_t;

static avl_shards_t shards_of(int rank, int ranks) {
    avl_model_config_t config = {0};
    config.text = (avl_text_config_t){.query_heads = QUERY_HEADS,
                                      .kv_heads = KV_HEADS,
                                      .head_width = WIDTH,
                                      .hidden_width = QUERY_HEADS * WIDTH,
                                      .mlp_width = 64,
                                      .layer_count = LAYERS,
                                      .vocab_rows = 64};
    config.vision = (avl_vision_config_t){.heads = 4, .hidden_width = 32, .mlp_width = 64};
    avl_shards_t shards;
    assert_int_equal(avl_shards_plan(&config, rank, ranks, &shards), AVL_OK);
    return shards;
}

static void fill_rows(float *target, int layer, int first_position, int rows, int first_head,
                      int heads, int what) {
    for (int row = 0; row < rows; row++) {
        for (int head = 0; head < heads; head++) {
            for (int column = 0; column < WIDTH; column++)
                *target++ =
                    random_value(layer, first_position + row, first_head + head, column, what);
        }
    }
}

/* One step of all layers with `rows` rows from `first_position` on. */
static avl_status_t run_step(rank_t *rank, int first_position, int rows, bool decode) {
    static _Thread_local float query[ROWS_MAX * QUERY_HEADS * WIDTH],
        key[ROWS_MAX * KV_HEADS * WIDTH], value[ROWS_MAX * KV_HEADS * WIDTH],
        output[ROWS_MAX * QUERY_HEADS * WIDTH];
    const avl_shard_t *queries = &rank->shards.query_heads, *kv = &rank->shards.kv_heads;
    avl_run_t run = {.sequence = rank->sequence,
                     .decode = decode,
                     .row_count = rows,
                     .first_position = first_position};
    avl_attend_begin(rank->attend, &run, 1, rows);
    for (int layer = 0; layer < LAYERS; layer++) {
        fill_rows(query, layer, first_position, rows, queries->first, queries->count, 0);
        fill_rows(key, layer, first_position, rows, kv->first, kv->count, 1);
        fill_rows(value, layer, first_position, rows, kv->first, kv->count, 2);
        avl_attention_call_t call = {.layer = layer,
                                     .query = query,
                                     .key = key,
                                     .value = value,
                                     .query_stride = queries->count * WIDTH,
                                     .kv_stride = kv->count * WIDTH,
                                     .output = output};
        AVL_TRY(avl_attend_layer(rank->attend, &call));
        /* Each rank writes its own heads of the shared trace. */
        for (int row = 0; row < rows; row++)
            memcpy(rank->trace->outputs[layer][first_position + row][queries->first],
                   output + row * queries->count * WIDTH,
                   (size_t)queries->count * WIDTH * sizeof(float));
    }
    rank->sequence->rows_done += rows;
    rank->sequence->decode_steps += decode;
    return AVL_OK;
}

/* Every rank compares its lists with those of rank 0 through the group: bit-identical, always. */
static avl_status_t compare_lists(rank_t *rank) {
    for (int layer = 0; layer < LAYERS; layer++) {
        const avl_sequence_layer_t *lists = &rank->sequence->layers[layer];
        int32_t expected[ROWS_MAX] = {0}, own[ROWS_MAX] = {0};
        for (int32_t i = 0; i < lists->core.count; i++)
            own[i] = lists->core.host[i];
        memcpy(expected, own, sizeof own);
        AVL_TRY(avl_group_broadcast(rank->group, expected, sizeof expected));
        if (memcmp(own, expected, sizeof own) != 0)
            return avl_fail(AVL_ERR_INTERNAL, "rank %d, layer %d: another core than rank 0",
                            avl_group_rank(rank->group), layer);
    }
    return AVL_OK;
}

static void keep_lists(rank_t *rank, int step) {
    if (avl_group_rank(rank->group) != 0 || !rank->sequence->shape.selects)
        return;
    trace_t *trace = rank->trace;
    for (int layer = 0; layer < LAYERS; layer++) {
        const avl_sequence_layer_t *lists = &rank->sequence->layers[layer];
        trace->store_count = lists->visual.slots.count;
        trace->core_count = lists->core.count;
        memcpy(trace->store[layer], lists->store_positions,
               (size_t)trace->store_count * sizeof(int32_t));
        for (int32_t i = 0; i < trace->core_count; i++)
            trace->core[layer][step][i] = lists->store_positions[lists->core_indices[i]];
    }
}

static avl_status_t run_script(rank_t *rank) {
    const script_t *script = rank->script;
    int prompt_rows = (int)strlen(script->kinds);
    int chunk = script->chunk_rows > 0 ? script->chunk_rows : prompt_rows;
    for (int first = 0; first < prompt_rows; first += chunk)
        AVL_TRY(run_step(rank, first, prompt_rows - first < chunk ? prompt_rows - first : chunk,
                         false));
    keep_lists(rank, 0);
    AVL_TRY(compare_lists(rank));
    for (int step = 1; step <= script->decode_steps; step++) {
        AVL_TRY(run_step(rank, prompt_rows + step - 1, 1, true));
        keep_lists(rank, step);
        AVL_TRY(compare_lists(rank));
    }
    return AVL_OK;
}

static avl_status_t open_rank(rank_t *rank) {
    const script_t *script = rank->script;
    int32_t prompt_rows = (int32_t)strlen(script->kinds), ids[ROWS_MAX];
    for (int i = 0; i < prompt_rows; i++)
        ids[i] = is_visual(script, i) ? -1 : 1;
    avl_attention_params_t params = AVL_ATTENTION(script->store, script->compute, script->interval);
    AVL_TRY(avl_attention_params_check(&params));
    avl_sequence_shape_t shape =
        avl_sequence_shape(ids, prompt_rows, prompt_rows + script->decode_steps, &params);
    avl_sequence_price_t price = avl_sequence_price(&shape, LAYERS, script->chunk_rows == 0);
    AVL_TRY(avl_device_open_cpu(1, NULL, &rank->device));
    /* Exactly what the price says: a page more taken would be missed. */
    AVL_TRY(avl_pages_create(rank->device, rank->shards.kv_heads.count, WIDTH, AVL_DTYPE_F32,
                             price.prefill_pages, &rank->pages));
    avl_attend_options_t options = {.device = rank->device,
                                    .group = rank->group,
                                    .pages = rank->pages,
                                    .head_map = rank->shards.head_map,
                                    .head_width = WIDTH,
                                    .layer_count = LAYERS,
                                    .window = script->window,
                                    .rows_max = ROWS_MAX,
                                    .runs_max = 1,
                                    .scores_max = ROWS_MAX};
    AVL_TRY(avl_attend_create(&options, &rank->attend));
    return avl_sequence_create(rank->device, 0, &shape, LAYERS, ids, &rank->sequence);
}

static void *rank_main(void *argument) {
    rank_t *rank = argument;
    rank->status = open_rank(rank);
    if (rank->status == AVL_OK)
        rank->status = run_script(rank);
    if (rank->status != AVL_OK)
        snprintf(rank->detail, sizeof rank->detail, "%s", avl_status_detail());
    return NULL;
}

static void close_rank(rank_t *rank) {
    if (avl_group_rank(rank->group) == 0) {
        rank->trace->computed_rows = rank->sequence->computed_rows;
        rank->trace->pages = avl_pages_counts(rank->pages);
        assert_int_equal(avl_pages_owned(rank->pages, 0), rank->trace->pages.taken);
    }
    avl_sequence_destroy(rank->sequence, rank->pages);
    assert_int_equal(avl_pages_counts(rank->pages).taken, 0);
    avl_attend_destroy(rank->attend);
    avl_pages_destroy(rank->pages);
    avl_device_close(rank->device);
    avl_group_close(rank->group);
}

static void run_ranks(const script_t *script, trace_t *trace) {
    avl_group_t *groups[RANKS_MAX];
    rank_t ranks[RANKS_MAX] = {0};
    if (script->ranks == 1)
        assert_int_equal(avl_group_open_single(&groups[0]), AVL_OK);
    else
        assert_int_equal(avl_group_open_loopback(script->ranks, groups), AVL_OK);
    for (int i = 0; i < script->ranks; i++) {
        ranks[i] = (rank_t){.script = script, .group = groups[i], .trace = trace};
        ranks[i].shards = shards_of(i, script->ranks);
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < script->ranks; i++)
        assert_int_equal(pthread_join(ranks[i].thread, NULL), 0);
    for (int i = 0; i < script->ranks; i++) {
        if (ranks[i].status != AVL_OK)
            fail_msg("rank %d: %s", i, ranks[i].detail);
    }
    for (int i = 0; i < script->ranks; i++)
        close_rank(&ranks[i]);
}

/* ---- the tests ---- */

static void compare(const script_t *script, const trace_t *got, const trace_t *expected) {
    int prompt_rows = (int)strlen(script->kinds), rows = prompt_rows + script->decode_steps;
    const float *a = &got->outputs[0][0][0][0], *b = &expected->outputs[0][0][0][0];
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int i = 0; i < rows * QUERY_HEADS * WIDTH; i++) {
            int at = layer * ROWS_MAX * QUERY_HEADS * WIDTH + i;
            if (!(fabsf(a[at] - b[at]) <= 2e-5f))
                fail_msg("%s, ranks %d, chunks %d: layer %d, row %d: %g, expected %g",
                         script->kinds, script->ranks, script->chunk_rows, layer,
                         i / (QUERY_HEADS * WIDTH), (double)a[at], (double)b[at]);
        }
        if (got->store_count == 0)
            continue;
        assert_int_equal(got->store_count, expected->store_count);
        assert_int_equal(got->core_count, expected->core_count);
        assert_memory_equal(got->store[layer], expected->store[layer],
                            (size_t)got->store_count * sizeof(int32_t));
        for (int step = 0; step <= script->decode_steps; step++)
            assert_memory_equal(got->core[layer][step], expected->core[layer][step],
                                (size_t)got->core_count * sizeof(int32_t));
    }
    assert_int_equal(got->computed_rows, expected->computed_rows);
}

static const char *const prompts[] = {
    /* one picture; two with text between; a picture first; a picture last; none */
    "tttttvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvttttttt",
    "ttvvvvvvvvvvvvvvvvvvvvtttvvvvvvvvvvvvvvvvvvvvvvvtt",
    "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvttttttttttttttttttttt",
    "tttttttttttttttttttvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv",
    "ttttttttttttttttttttt",
};

static void check(script_t script) {
    trace_t *got = calloc(1, sizeof *got), *expected = calloc(1, sizeof *expected);
    assert_true(got != NULL && expected != NULL);
    run_reference(&script, expected);
    run_ranks(&script, got);
    compare(&script, got, expected);
    free(got);
    free(expected);
}

static void test_against_reference(void **state) {
    (void)state;
    static const struct {
        double store, compute;
        int interval;
    } settings[] = {{.5, .3, 3}, {.3, .15, 1}, {.1, .02, 4}, {1, .25, 2}, {.5, .5, 3}, {1, 1, 2}};
    static const int chunks[] = {0, 11};
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        for (size_t j = 0; j < sizeof settings / sizeof *settings; j++) {
            for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
                check((script_t){ranks, prompts[i], 14, settings[j].store, settings[j].compute,
                                 settings[j].interval, 0, chunks[(i + j + (size_t)ranks) % 2]});
        }
    }
}

static void test_sliding_window(void **state) {
    (void)state;
    static const int windows[] = {1, 8, 20, 45, 100};
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        for (size_t j = 0; j < sizeof windows / sizeof *windows; j++) {
            check((script_t){1, prompts[i], 14, .5, .3, 3, windows[j], 0});
            check((script_t){3, prompts[i], 14, .3, .2, 2, windows[j], 17});
            check((script_t){2, prompts[i], 14, 1, 1, 2, windows[j], 0});
        }
    }
}

static void expect_same_bits(script_t left, script_t right) {
    trace_t *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
    assert_true(a != NULL && b != NULL);
    run_ranks(&left, a);
    run_ranks(&right, b);
    assert_memory_equal(a->outputs, b->outputs, sizeof a->outputs);
    free(a);
    free(b);
}

/* store = compute = 1 is dense attention, to the bit; so is an interval of 1 with everything
 * stored, where every step reads the whole store. And where core and store are one, the interval
 * does not matter. */
static void test_dense_bit_for_bit(void **state) {
    (void)state;
    script_t dense = {2, prompts[0], 14, 1, 1, 1, 0, 0}, other = dense;
    other.interval = 3;
    expect_same_bits(dense, other);
    other = dense;
    other.compute = .4;
    expect_same_bits(dense, other);
    script_t left = {2, prompts[1], 14, .5, .5, 3, 0, 0}, right = left;
    right.interval = 1;
    expect_same_bits(left, right);
    right.compute = .2;
    expect_same_bits(left, right);
}

static void test_pages_follow_the_price(void **state) {
    (void)state;
    script_t script = {1, prompts[0], 14, .5, .3, 3, 0, 0};
    trace_t *trace = calloc(1, sizeof *trace);
    assert_non_null(trace);
    run_ranks(&script, trace);
    /* 38 visual rows, 19 kept; 12 + 14 text rows: 2 pages each in each layer; at most one layer
     * with 3 visual ones. */
    assert_int_equal(trace->pages.taken, LAYERS * (2 + 2));
    assert_int_equal(trace->pages.total, LAYERS * (2 + 2) + 1);
    script.chunk_rows = 20;
    run_ranks(&script, trace);
    assert_int_equal(trace->pages.taken, LAYERS * (2 + 2));
    assert_int_equal(trace->pages.total, LAYERS * (2 + 3));
    free(trace);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_sliding_window),
        cmocka_unit_test(test_dense_bit_for_bit),
        cmocka_unit_test(test_pages_follow_the_price),
    };
    return cmocka_run_group_tests_name("worker attend", tests, NULL, NULL);
}
