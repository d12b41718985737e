#include "tests/worker/attend_rig.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/sampler.h"
#include "worker/visual_store.h"

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

/* Where the row's features are: pictures lie apart, and not in the order of the prompt. */
static int32_t feature_row(const char *kinds, int row) {
    int before = 0, first = row;
    while (first > 0 && kinds[first - 1] == 'v')
        first--;
    for (int i = 0; i < first; i++)
        before += kinds[i] == 'v';
    return (before > 0 ? 3 : ROWS_MAX) + row - first;
}

/* How much a row differs from the others of its picture: any numbers from 0 to 2. */
static float distance_of(int32_t feature) {
    return feature % 9 == 4 ? 0 : random_value(LAYERS, feature, 0, 0, 1) + 1;
}

/* ---- the reference ---- */

typedef struct reference {
    const script_t *script;
    int prompt_rows, visual_count, stored, computed;
    int32_t visual[ROWS_MAX];
    int32_t store[LAYERS][ROWS_MAX];
    int32_t core[LAYERS][ROWS_MAX];
    int64_t computed_halves;
    avl_visual_mass_t mass;
    /* Text eviction: */
    int exempt_end;                /* rows from here on are ranked */
    double seen[LAYERS][ROWS_MAX]; /* the scoring rows' weights over visual rows */
    bool gone[LAYERS][KV_HEADS][ROWS_MAX];
    double scores[LAYERS][KV_HEADS][ROWS_MAX];
} reference_t;

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

static int rank_of_head(const script_t *script, int head) {
    int rank = 0;
    while (head >= shards_of(rank, script->ranks).query_heads.first +
                       shards_of(rank, script->ranks).query_heads.count)
        rank++;
    return rank;
}

/* Each KV head of a rank, within every decode step. */
static bool chooses_in_step(const reference_t *reference) {
    return reference->script->core == AVL_CORE_STEP && reference->computed < reference->stored;
}

static bool is_visual(const script_t *script, int row) {
    return row < (int)strlen(script->kinds) && script->kinds[row] == 'v';
}

/* One head's softmax over the listed rows that it sees, but for those that are gone. */
static void reference_weigh(const script_t *script, int layer, int row, int head,
                            const int32_t *rows, int count, const bool *gone, double *weights) {
    double scores[ROWS_MAX], most = -INFINITY, sum = 0;
    for (int i = 0; i < count; i++) {
        scores[i] = -INFINITY;
        if ((script->window > 0 && rows[i] <= row - script->window) || gone[rows[i]])
            continue;
        double dot = 0;
        for (int column = 0; column < WIDTH; column++)
            dot += (double)random_value(layer, row, head, column, 0) *
                   (double)random_value(layer, rows[i], head / (QUERY_HEADS / KV_HEADS), column, 1);
        scores[i] = dot / sqrt(WIDTH);
        most = scores[i] > most ? scores[i] : most;
    }
    for (int i = 0; i < count; i++) {
        weights[i] = most > -INFINITY ? exp(scores[i] - most) : 0;
        sum += weights[i];
    }
    for (int i = 0; i < count; i++)
        weights[i] /= sum > 0 ? sum : 1;
}

/* Attention of `row` over the listed rows, but for those that are gone for a KV head or passed over
 * by a query head (NULL: none); adds each row's weights, over heads, to `weights`, and over those
 * of one KV head to by_head[.][row]. */
static void reference_attend(const script_t *script, int layer, int row, const int32_t *rows,
                             int count, bool gone[KV_HEADS][ROWS_MAX],
                             bool passed[QUERY_HEADS][ROWS_MAX], double *weights,
                             double by_head[KV_HEADS][ROWS_MAX], float output[QUERY_HEADS][WIDTH]) {
    memset(weights, 0, (size_t)count * sizeof *weights);
    memset(by_head, 0, KV_HEADS * sizeof *by_head);
    for (int head = 0; head < QUERY_HEADS; head++) {
        double own[ROWS_MAX], result[WIDTH] = {0};
        bool without[ROWS_MAX];
        for (int i = 0; i < ROWS_MAX; i++)
            without[i] =
                gone[head / (QUERY_HEADS / KV_HEADS)][i] || (passed != NULL && passed[head][i]);
        reference_weigh(script, layer, row, head, rows, count, without, own);
        for (int i = 0; i < count; i++) {
            weights[i] += own[i];
            by_head[head / (QUERY_HEADS / KV_HEADS)][rows[i]] += own[i];
            for (int column = 0; column < WIDTH; column++)
                result[column] +=
                    own[i] * (double)random_value(layer, rows[i], head / (QUERY_HEADS / KV_HEADS),
                                                  column, 2);
        }
        for (int column = 0; column < WIDTH; column++)
            output[head][column] = (float)result[column];
    }
}

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

static double quantile(const double *values, int count, double share) {
    double sorted[ROWS_MAX];
    if (count == 0)
        return 0;
    memcpy(sorted, values, (size_t)count * sizeof *values);
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    double rank = share * (count - 1);
    int low = (int)floor(rank + 1e-7);
    return sorted[low] + (low + 1 < count ? (rank - low) * (sorted[low + 1] - sorted[low]) : 0);
}

/* One row's weights into the histories: those of the text rows up to it that a head holds. */
static void reference_rank(reference_t *reference, int layer, int row,
                           double by_head[KV_HEADS][ROWS_MAX]) {
    const script_t *script = reference->script;
    bool prompt = row < reference->prompt_rows;
    for (int head = 0; head < KV_HEADS; head++) {
        double values[ROWS_MAX], *scores = reference->scores[layer][head];
        int count = 0;
        for (int i = reference->exempt_end; i < row + !prompt; i++) {
            if (!is_visual(script, i) && !reference->gone[layer][head][i])
                values[count++] = by_head[head][i] / (QUERY_HEADS / KV_HEADS);
        }
        double off = script->text.h2o ? 0 : quantile(values, count, 1 - script->text.keep);
        for (int i = reference->exempt_end; i < row; i++)
            scores[i] += by_head[head][i] / (QUERY_HEADS / KV_HEADS) - off;
        scores[row] = by_head[head][row] / (QUERY_HEADS / KV_HEADS);
    }
}

/* Leaves each head the newest rows and the best of the others. */
static void reference_evict(reference_t *reference, int layer, int row) {
    const script_t *script = reference->script;
    int seen = 0;
    for (int i = reference->exempt_end; i <= row; i++)
        seen += !is_visual(script, i);
    int budget = (int)nearbyint(script->text.keep * seen);
    budget = budget > script->text.keep_min ? budget : script->text.keep_min;
    for (int head = 0; head < KV_HEADS; head++) {
        bool *gone = reference->gone[layer][head];
        int held[ROWS_MAX], count = 0;
        for (int i = reference->exempt_end; i <= row; i++) {
            if (!is_visual(script, i) && !gone[i])
                held[count++] = i;
        }
        for (; count > budget; count--) {
            int worst = 0;
            for (int i = 1; i < count - budget / 2; i++) {
                if (reference->scores[layer][head][held[i]] <=
                    reference->scores[layer][head][held[worst]])
                    worst = i;
            }
            gone[held[worst]] = true;
            memmove(&held[worst], &held[worst + 1], (size_t)(count - 1 - worst) * sizeof *held);
        }
    }
}

static bool ranks_row(const reference_t *reference, int row) {
    return reference->script->text.keep > 0 && reference->visual_count > 0 &&
           row >= reference->exempt_end && !is_visual(reference->script, row);
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

/* `keep` places at even distances of `count`: the middles of equal parts. */
static void even_places(int count, int keep, int32_t *places) {
    for (int i = 0; i < keep; i++)
        places[i] = (int32_t)floor((i + 0.5) * count / keep + 1e-9);
}

/* Row by row, each with the share of rows still wanted among those left. */
static void chance_places(uint64_t seed, int layer, int step, int purpose, int count, int keep,
                          int32_t *places) {
    for (int i = 0, taken = 0; i < count; i++) {
        uint32_t words[4], key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
        uint32_t counter[4] = {(uint32_t)i, (uint32_t)layer, (uint32_t)step, (uint32_t)purpose};
        avl_philox(counter, key, words);
        if (words[0] / 4294967296.0 < (double)(keep - taken) / (count - i))
            places[taken++] = i;
    }
}

static void take_places(const int32_t *rows, const int32_t *places, int count, int32_t *taken) {
    for (int i = 0; i < count; i++)
        taken[i] = rows[places[i]];
}

/* The store of a prompt with these weights over its visual rows, of the scoring rows together. */
static void reference_store(const reference_t *reference, int layer, const double *weights,
                            int32_t *store) {
    const script_t *script = reference->script;
    int32_t places[ROWS_MAX];
    int count = reference->visual_count, keep = reference->stored;
    if (script->selection == AVL_VISUAL_RANDOM) {
        chance_places(script->seed, layer, 0, 1, count, keep, places);
        take_places(reference->visual, places, keep, store);
    } else if (script->selection == AVL_VISUAL_UNIFORM) {
        even_places(count, keep, places);
        take_places(reference->visual, places, keep, store);
    } else {
        best_rows(reference->visual, weights, count, keep, store);
    }
}

/* The core after `step`, 0: the prompt. */
static void reference_core(const reference_t *reference, int layer, int step, const int32_t *store,
                           const double *weights, int32_t *core) {
    const script_t *script = reference->script;
    int32_t places[ROWS_MAX];
    int count = reference->stored, keep = reference->computed;
    if (script->selection == AVL_VISUAL_RANDOM)
        chance_places(script->seed, layer, step, 2, count, keep, places);
    else if (script->selection == AVL_VISUAL_UNIFORM)
        even_places(count, keep, places);
    else
        best_rows(store, weights, count, keep, core);
    if (script->selection == AVL_VISUAL_RANDOM || script->selection == AVL_VISUAL_UNIFORM)
        take_places(store, places, keep, core);
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

static bool scores_visual(const reference_t *reference, int row) {
    int last = reference->prompt_rows - 1, seen = reference->visual_count;
    if (row == last || (reference->script->selection != AVL_VISUAL_QUESTION &&
                        reference->script->selection != AVL_VISUAL_COVERAGE))
        return row == last;
    return (seen == 0 || row > reference->visual[seen - 1]) && last - row < AVL_SCORING_ROWS_MAX;
}

static void reference_prompt(reference_t *reference, int layer, trace_t *trace) {
    const script_t *script = reference->script;
    double weights[ROWS_MAX], *visual = reference->seen[layer], by_head[KV_HEADS][ROWS_MAX];
    int32_t rows[ROWS_MAX];
    for (int row = 0; row < reference->prompt_rows; row++) {
        rows[row] = row;
        reference_attend(script, layer, row, rows, row + 1, reference->gone[layer], NULL, weights,
                         by_head, trace->outputs[layer][row]);
        if (ranks_row(reference, row))
            reference_rank(reference, layer, row, by_head);
        if (!scores_visual(reference, row))
            continue;
        for (int i = 0; i < reference->visual_count; i++) {
            int last = reference->prompt_rows - 1;
            bool sees = script->window == 0 || reference->visual[i] > last - script->window;
            visual[i] += sees ? weights[reference->visual[i]] : 0;
        }
    }
    if (ranks_row(reference, reference->exempt_end))
        reference_evict(reference, layer, reference->prompt_rows - 1);
}

/* With coverage what all layers have seen counts in each, times how much rows differ. */
static void reference_merits(reference_t *reference) {
    for (int i = 0; i < reference->visual_count; i++) {
        double sum = 0;
        for (int layer = 0; layer < LAYERS; layer++)
            sum += reference->seen[layer][i];
        int32_t feature = feature_row(reference->script->kinds, reference->visual[i]);
        for (int layer = 0; layer < LAYERS; layer++)
            reference->seen[layer][i] = sum * (double)distance_of(feature);
    }
}

static void reference_choose(reference_t *reference, int layer) {
    const double *visual = reference->seen[layer];
    double kept[ROWS_MAX];
    reference_store(reference, layer, visual, reference->store[layer]);
    for (int i = 0; i < reference->stored; i++) {
        for (int j = 0; j < reference->visual_count; j++) {
            if (reference->visual[j] == reference->store[layer][i])
                kept[i] = visual[j];
        }
    }
    reference_core(reference, layer, 0, reference->store[layer], kept, reference->core[layer]);
}

/* The rows of the store that each query head passes over, because its KV head's core on its rank is
 * of others; the same for all heads where the core is chosen between steps. */
static void reference_pass(const reference_t *reference, int layer, int row, const int32_t *core,
                           int core_count, bool passed[QUERY_HEADS][ROWS_MAX]) {
    const int32_t *store = reference->store[layer];
    static const bool none[ROWS_MAX];
    memset(passed, 0, QUERY_HEADS * sizeof *passed);
    for (int head = 0; head < QUERY_HEADS; head++) {
        int32_t chosen[ROWS_MAX];
        int kept = core_count, seen = 0;
        if (chooses_in_step(reference)) {
            double sums[ROWS_MAX] = {0}, own[ROWS_MAX];
            for (int other = 0; other < QUERY_HEADS; other++) {
                if (other / (QUERY_HEADS / KV_HEADS) != head / (QUERY_HEADS / KV_HEADS) ||
                    rank_of_head(reference->script, other) != rank_of_head(reference->script, head))
                    continue;
                reference_weigh(reference->script, layer, row, other, store, reference->stored,
                                none, own);
                for (int i = 0; i < reference->stored; i++)
                    sums[i] += own[i];
            }
            for (int i = 0; i < reference->stored; i++)
                seen += sums[i] > 0;
            kept = reference->computed < seen ? reference->computed : seen;
            best_rows(store, sums, reference->stored, kept, chosen);
            core = chosen;
        }
        for (int i = 0; i < reference->stored; i++)
            passed[head][store[i]] = true;
        for (int i = 0; i < kept; i++)
            passed[head][core[i]] = false;
    }
}

/* What `row` would look at if it read all visual rows. */
static void reference_mass(reference_t *reference, int layer, int row,
                           bool passed[QUERY_HEADS][ROWS_MAX]) {
    int32_t rows[ROWS_MAX];
    int count = gather(reference->script, row, reference->visual, reference->visual_count, rows);
    for (int head = 0; head < QUERY_HEADS; head++) {
        double weights[ROWS_MAX];
        reference_weigh(reference->script, layer, row, head, rows, count,
                        reference->gone[layer][head / (QUERY_HEADS / KV_HEADS)], weights);
        for (int i = 0; i < reference->visual_count; i++) {
            bool stored = false;
            for (int j = 0; j < reference->stored; j++)
                stored |= reference->store[layer][j] == rows[i];
            reference->mass.all += weights[i];
            reference->mass.stored += stored ? weights[i] : 0;
            reference->mass.computed += stored && !passed[head][rows[i]] ? weights[i] : 0;
        }
    }
}

static void reference_decode(reference_t *reference, int layer, int step, trace_t *trace) {
    const script_t *script = reference->script;
    int row = reference->prompt_rows + step - 1, seen = 0;
    bool in_step = chooses_in_step(reference);
    bool update = script->core == AVL_CORE_STEP || step % script->interval == 0;
    int visual_count = update ? reference->stored : reference->computed;
    const int32_t *visual = update ? reference->store[layer] : reference->core[layer];
    int32_t rows[ROWS_MAX];
    double weights[ROWS_MAX], by_head[KV_HEADS][ROWS_MAX];
    bool passed[QUERY_HEADS][ROWS_MAX];
    reference_pass(reference, layer, row, visual, visual_count, passed);
    int count = gather(script, row, reference->store[layer], reference->stored, rows);
    reference_attend(script, layer, row, rows, count, reference->gone[layer], passed, weights,
                     by_head, trace->outputs[layer][row]);
    reference_mass(reference, layer, row, passed);
    if (ranks_row(reference, row)) {
        reference_rank(reference, layer, row, by_head);
        reference_evict(reference, layer, row);
    }
    for (int i = 0; i < visual_count; i++)
        seen += script->window == 0 || visual[i] > row - script->window;
    int kept = in_step && reference->computed < seen ? reference->computed : seen;
    reference->computed_halves += in_step && kept == 0 ? 0 : seen + kept;
    if (update && !in_step)
        reference_core(reference, layer, step, reference->store[layer], weights,
                       reference->core[layer]);
}

static void run_reference(const script_t *script, trace_t *trace) {
    reference_t reference = {.script = script, .prompt_rows = (int)strlen(script->kinds)};
    for (int i = 0; i < reference.prompt_rows; i++) {
        if (is_visual(script, i))
            reference.visual[reference.visual_count++] = i;
    }
    /* The first row behind the first picture, or behind the prompt. */
    int first = (int)strcspn(script->kinds, "v");
    reference.exempt_end = script->text.protect ? reference.prompt_rows
                                                : first + (int)strspn(script->kinds + first, "v");
    reference.stored = avl_ratio_rows(script->store, reference.visual_count);
    reference.computed = avl_ratio_rows(script->compute, reference.visual_count);
    trace->store_count = reference.stored;
    trace->core_count = chooses_in_step(&reference) ? 0 : reference.computed;
    for (int layer = 0; layer < LAYERS; layer++)
        reference_prompt(&reference, layer, trace);
    if (script->selection == AVL_VISUAL_COVERAGE)
        reference_merits(&reference);
    for (int layer = 0; layer < LAYERS; layer++) {
        reference_choose(&reference, layer);
        memcpy(trace->store[layer], reference.store[layer], sizeof trace->store[layer]);
        memcpy(trace->core[layer][0], reference.core[layer], sizeof reference.core[layer]);
        for (int step = 1; step <= script->decode_steps; step++) {
            reference_decode(&reference, layer, step, trace);
            memcpy(trace->core[layer][step], reference.core[layer], sizeof reference.core[layer]);
        }
    }
    trace->computed_halves = reference.computed_halves;
    trace->mass = reference.mass;
    for (int row = reference.exempt_end; row < reference.prompt_rows + script->decode_steps;
         row++) {
        for (int i = 0; ranks_row(&reference, row) && i < LAYERS * KV_HEADS; i++)
            trace->held[i / KV_HEADS][i % KV_HEADS][row] =
                !reference.gone[i / KV_HEADS][i % KV_HEADS][row];
    }
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
    float distances[2 * ROWS_MAX];
    trace_t *trace;
    pthread_t thread;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
} rank_t;

static bool shares_kv_heads(int ranks) {
    int held = 0;
    for (int rank = 0; rank < ranks; rank++)
        held += shards_of(rank, ranks).kv_heads.count;
    return held > KV_HEADS;
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
        trace->store_count = avl_sequence_store(rank->sequence, layer)->count;
        trace->core_count = lists->core.count;
        const int32_t *positions = avl_sequence_visual_positions(rank->sequence, layer);
        for (int32_t i = 0; i < trace->store_count; i++)
            trace->store[layer][i] = positions[lists->store.host[i]];
        for (int32_t i = 0; i < trace->core_count; i++)
            trace->core[layer][step][i] = trace->store[layer][avl_sequence_core(lists)->host[i]];
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
    params.visual_core = script->core;
    params.visual_selection = script->selection;
    params.selection_seed = script->seed;
    params.measure_captured_mass = script->measures;
    params.text_keep_ratio = script->text.keep;
    params.text_keep_min = script->text.keep_min;
    params.text_policy = script->text.h2o ? AVL_TEXT_H2O : AVL_TEXT_A_VL;
    params.protect_prompt = script->text.protect;
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
                                    .kv_head_first = rank->shards.kv_heads.first,
                                    .kv_heads_all = KV_HEADS,
                                    .kv_heads_shared = shares_kv_heads(script->ranks),
                                    .head_width = WIDTH,
                                    .layer_count = LAYERS,
                                    .window = script->window,
                                    .rows_max = ROWS_MAX,
                                    .runs_max = 1,
                                    .indices_max = 1,
                                    .context_rows = ROWS_MAX,
                                    .scores_max = ROWS_MAX,
                                    .sequence_scores_max = ROWS_MAX,
                                    .distances = rank->distances};
    AVL_TRY(avl_attend_create(&options, &rank->attend));
    AVL_TRY(avl_sequence_create(rank->device, 0, &shape, LAYERS, ids, &rank->sequence));
    for (int32_t i = 0; i < 2 * ROWS_MAX; i++)
        rank->distances[i] = distance_of(i);
    for (int32_t i = 0; i < shape.visual_rows; i++)
        rank->sequence->feature_rows[i] =
            feature_row(script->kinds, rank->sequence->visual_positions[i]);
    return AVL_OK;
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

/* The text rows that this rank's heads have in the slots behind the exempt ones. */
static void note_held(rank_t *rank) {
    const avl_sequence_shape_t *shape = &rank->sequence->shape;
    const avl_shard_t *kv = &rank->shards.kv_heads;
    for (int layer = 0; shape->evicts_text && layer < LAYERS; layer++) {
        const avl_row_list_t *text = &rank->sequence->layers[layer].text.slots;
        for (int head = 0; head < kv->count; head++) {
            for (int32_t i = shape->exempt_rows; i < text->count; i++) {
                int64_t place = avl_row_place(text->host[i], head, kv->count);
                bool *held =
                    &rank->trace
                         ->held[layer][kv->first + head][avl_pages_positions(rank->pages)[place]];
                /* A head that two ranks have is noted by both. */
                assert_true(!*held || shares_kv_heads(rank->script->ranks));
                *held = true;
            }
        }
    }
}

static void close_rank(rank_t *rank) {
    rank->trace->mass.computed += rank->sequence->step_mass.computed;
    rank->trace->mass.stored += rank->sequence->step_mass.stored;
    rank->trace->mass.all += rank->sequence->step_mass.all;
    note_held(rank);
    if (avl_group_rank(rank->group) == 0) {
        rank->trace->computed_halves = rank->sequence->computed_halves;
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

void attend_run(const script_t *script, trace_t *trace) {
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
    assert_int_equal(got->computed_halves, expected->computed_halves);
    if (!script->measures || got->store_count == 0)
        return;
    assert_true(fabs(got->mass.computed - expected->mass.computed) < 1e-3);
    assert_true(fabs(got->mass.stored - expected->mass.stored) < 1e-3);
    assert_true(fabs(got->mass.all - expected->mass.all) < 1e-3);
    assert_true(got->mass.all > 1 || script->window > 0);
}

/* Every head holds what it should, and shows at most one row more, in its hole. */
static void compare_held(const script_t *script, const trace_t *got, const trace_t *expected) {
    for (int i = 0; i < LAYERS * KV_HEADS; i++) {
        const bool *held = expected->held[i / KV_HEADS][i % KV_HEADS];
        const bool *shown = got->held[i / KV_HEADS][i % KV_HEADS];
        int more = 0;
        for (int row = 0; row < ROWS_MAX; row++) {
            if (held[row] && !shown[row])
                fail_msg("%s, ranks %d: layer %d, KV head %d: row %d is gone", script->kinds,
                         script->ranks, i / KV_HEADS, i % KV_HEADS, row);
            more += shown[row] && !held[row];
        }
        assert_in_range(more, 0, 1);
    }
}

const char *const attend_prompts[ATTEND_PROMPTS] = {
    "tttttvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvttttttt",
    "ttvvvvvvvvvvvvvvvvvvvvtttvvvvvvvvvvvvvvvvvvvvvvvtt",
    "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvttttttttttttttttttttt",
    "tttttttttttttttttttvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv",
    "ttttttttttttttttttttt",
};

void attend_check(script_t script) {
    trace_t *got = calloc(1, sizeof *got), *expected = calloc(1, sizeof *expected);
    assert_true(got != NULL && expected != NULL);
    run_reference(&script, expected);
    attend_run(&script, got);
    compare(&script, got, expected);
    if (script.text.keep > 0 && strchr(script.kinds, 'v') != NULL)
        compare_held(&script, got, expected);
    free(got);
    free(expected);
}

void attend_expect_same_bits(script_t left, script_t right) {
    trace_t *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
    assert_true(a != NULL && b != NULL);
    attend_run(&left, a);
    attend_run(&right, b);
    assert_memory_equal(a->outputs, b->outputs, sizeof a->outputs);
    free(a);
    free(b);
}
