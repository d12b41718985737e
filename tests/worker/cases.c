/* tests/worker/cases.c: whole requests against reference data: the same tokens at every number of
 * ranks, dense and with A-VL, and the same rows chosen.
 *
 *   cases shipped RANKS...   models/cases with the shipped model
 *   cases parity RANKS...    tests/data/cases with the tiny random models */
#include "tests/worker/rig.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/npy.h"

static int ranks[8], rank_counts;
static uint64_t next_id = 1;

static int32_t read_ids(const json_t *list, int32_t *ids) {
    int32_t count = (int32_t)json_array_size(list);
    assert_in_range(count, 0, RIG_TOKENS_MAX);
    for (int32_t i = 0; i < count; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    return count;
}

static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

/* ---- the shipped model ---- */

static void expect_setting(rig_t *rig, const rig_case_t *data, const char *name,
                           const json_t *setting, int32_t max_tokens) {
    avl_request_t *request = rig_request(data, next_id++, max_tokens);
    rig_set_attention(request, number(setting, "store"), number(setting, "compute"),
                      (int32_t)number(setting, "interval"));
    int32_t ids[RIG_TOKENS_MAX];
    int32_t count = read_ids(json_object_get(setting, "token_ids"), ids);
    const rig_result_t *result = rig_answer(rig, request);
    char what[600];
    snprintf(what, sizeof what, "%s, %s", data->directory, name);
    assert_int_equal(result->end.status, AVL_OK);
    /* The reference's list ends in the end-of-sequence token, unless a small budget never gets to
     * it. */
    bool stops = ids[count - 1] == rig_config(rig)->generation.eos_ids[0];
    assert_true(stops || (count == max_tokens && number(setting, "store") < 1));
    assert_int_equal(result->end.finish_reason, stops ? AVL_FINISH_STOP : AVL_FINISH_LENGTH);
    rig_expect_tokens(result, ids, count, what);
    assert_int_equal(result->end.completion_tokens, count);
}

static int by_size(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return a < b ? 1 : a > b ? -1 : 0;
}

static int32_t store_position(const avl_sequence_t *sequence, int layer, int32_t place) {
    const int32_t *positions = avl_sequence_visual_positions(sequence, layer);
    return positions[sequence->layers[layer].store.host[place]];
}

/* The rows kept in a layer catch as much of the reference's attention as the best ones can, but for
 * what a pixel that rounds the other way may change. */
static void expect_mass(const avl_sequence_t *sequence, int layer, int32_t first_row,
                        const float *importance, int rows, const char *what) {
    float sorted[1024];
    double best = 0, kept = 0;
    int32_t count = sequence->layers[layer].visual.slots.count;
    assert_in_range(rows, 1, 1024);
    memcpy(sorted, importance, (size_t)rows * sizeof *sorted);
    qsort(sorted, (size_t)rows, sizeof *sorted, by_size);
    for (int32_t i = 0; i < count; i++) {
        best += (double)sorted[i];
        kept += (double)importance[store_position(sequence, layer, i) - first_row];
    }
    if (!(fabs(kept - best) <= 1e-3 * best))
        fail_msg("%s: layer %d: %d rows hold %g of the attention, the best ones %g", what, layer,
                 count, kept, best);
}

static void expect_importance(rig_t *rig, const rig_case_t *data) {
    char path[600];
    avl_npy_t importance;
    snprintf(path, sizeof path, "%s/importance.npy", data->directory);
    assert_int_equal(avl_npy_read(path, &importance), AVL_OK);
    avl_request_t *request = rig_request(data, next_id++, 3);
    rig_set_attention(request, .3, .15, 3);
    avl_scheduler_submit(rig_scheduler(rig), request);
    assert_true(rig_step(rig));
    const avl_sequence_t *sequence = NULL;
    assert_int_equal(avl_engine_inspect(rig_engine(rig, 0), 0, &sequence), AVL_OK);
    assert_non_null(sequence);
    assert_int_equal(importance.shape[0], sequence->layer_count);
    int rows = (int)importance.shape[1];
    assert_int_equal(rows, sequence->shape.visual_rows);
    for (int layer = 0; layer < sequence->layer_count; layer++)
        expect_mass(sequence, layer, data->images[0].first_row,
                    (const float *)importance.data + layer * rows, rows, data->directory);
    free(importance.data);
    rig_run(rig);
}

static void check_shipped(int rank_count) {
    rig_t *rig = rig_open(&(rig_options_t){.model = "models/avl-tiny", .ranks = rank_count});
    static const char *const names[] = {"00", "01", "02", "03", "04", "05"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char directory[64];
        snprintf(directory, sizeof directory, "models/cases/%s", names[i]);
        rig_case_t data = rig_case_load(rig_config(rig), directory);
        json_t *settings = json_object_get(data.json, "settings"), *setting;
        const char *name;
        json_object_foreach(settings, name, setting)
            expect_setting(rig, &data, name, setting, (int32_t)number(data.json, "max_tokens"));
        expect_importance(rig, &data);
        rig_case_release(&data);
    }
    rig_close(rig);
}

static void test_shipped(void **state) {
    (void)state;
    for (int i = 0; i < rank_counts; i++)
        check_shipped(ranks[i]);
}

/* ---- the tiny random models ---- */

static void expect_rows(const json_t *expected, const int32_t *positions, int32_t count,
                        const char *what, int layer) {
    if ((int32_t)json_array_size(expected) != count)
        fail_msg("%s: layer %d keeps %d rows, expected %zu", what, layer, count,
                 json_array_size(expected));
    for (int32_t i = 0; i < count; i++) {
        int32_t row = (int32_t)json_integer_value(json_array_get(expected, (size_t)i));
        if (positions[i] != row)
            fail_msg("%s: layer %d, kept row %d is %d, expected %d", what, layer, i, positions[i],
                     row);
    }
}

static void expect_secondary(const avl_sequence_t *sequence, const json_t *entry,
                             const char *what) {
    const json_t *layers = json_object_get(entry, "secondary");
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const avl_sequence_layer_t *layer = &sequence->layers[i];
        int32_t positions[1024];
        assert_in_range(layer->store.count, 0, 1024);
        for (int32_t n = 0; n < layer->store.count; n++)
            positions[n] = store_position(sequence, (int)i, n);
        if (json_array_size(json_array_get(layers, i)) > 0)
            expect_rows(json_array_get(layers, i), positions, layer->visual.slots.count, what,
                        (int)i);
    }
}

/* The core after the prompt (step 0) or after decode step `step`. */
static void expect_core(const avl_sequence_t *sequence, const json_t *entry, int step,
                        const char *what) {
    const json_t *cores = json_object_get(entry, "cores");
    for (size_t i = 0; i < json_array_size(cores); i++) {
        const json_t *core = json_array_get(cores, i), *rows = json_object_get(core, "rows");
        if ((int)number(core, "step") != step)
            continue;
        for (size_t j = 0; j < json_array_size(rows); j++) {
            const avl_sequence_layer_t *layer = &sequence->layers[j];
            int32_t positions[1024];
            for (int32_t n = 0; n < layer->core.count; n++)
                positions[n] = store_position(sequence, (int)j, avl_sequence_core(layer)->host[n]);
            expect_rows(json_array_get(rows, j), positions, layer->core.count, what, (int)j);
        }
    }
}

static void expect_entry(rig_t *rig, const rig_case_t *data, const json_t *entry) {
    int32_t ids[RIG_TOKENS_MAX];
    int32_t count = read_ids(json_object_get(entry, "greedy_ids"), ids);
    uint64_t id = next_id++;
    avl_request_t *request = rig_request(data, id, count);
    char what[640];
    snprintf(what, sizeof what, "%s", data->directory);
    bool avl = json_object_get(entry, "store") != NULL;
    if (avl) {
        rig_set_attention(request, number(entry, "store"), number(entry, "compute"),
                          (int32_t)number(entry, "interval"));
        snprintf(what, sizeof what, "%s, %g/%g/%g", data->directory, number(entry, "store"),
                 number(entry, "compute"), number(entry, "interval"));
    }
    bool text = json_object_get(entry, "text_keep") != NULL;
    if (text) {
        size_t length = strlen(what);
        rig_set_text(request, number(entry, "text_keep"), (int32_t)number(entry, "text_keep_min"));
        snprintf(what + length, sizeof what - length, ", text %g, %g", number(entry, "text_keep"),
                 number(entry, "text_keep_min"));
    }
    if (json_object_get(entry, "prefill_keep") != NULL) {
        size_t length = strlen(what);
        request->attention.prefill_keep_ratio = number(entry, "prefill_keep");
        request->attention.prefill_layer = (int32_t)number(entry, "prefill_layer");
        snprintf(what + length, sizeof what - length, ", filter %g after layer %g",
                 number(entry, "prefill_keep"), number(entry, "prefill_layer"));
    }
    avl_scheduler_submit(rig_scheduler(rig), request);
    while (rig_step(rig)) {
        const avl_sequence_t *sequence = NULL;
        assert_int_equal(avl_engine_inspect(rig_engine(rig, 0), 0, &sequence), AVL_OK);
        if (sequence == NULL || !avl || json_object_get(entry, "secondary") == NULL ||
            sequence->rows_done < data->row_count)
            continue;
        if (sequence->decode_steps == 0)
            expect_secondary(sequence, entry, what);
        expect_core(sequence, entry, sequence->decode_steps, what);
    }
    const rig_result_t *result = rig_result(rig, id);
    rig_expect_tokens(result, ids, count, what);
    if (avl && json_object_get(entry, "visual_rows") != NULL) {
        assert_int_equal(result->end.attention.visual_rows_seen, (int)number(entry, "visual_rows"));
        assert_int_equal(result->end.attention.visual_rows_stored,
                         (int)number(entry, "stored_rows"));
    }
}

static void check_model(const char *model, int rank_count) {
    char path[600], directory[600];
    snprintf(path, sizeof path, "tests/data/models/%s", model);
    rig_t *rig = rig_open(&(rig_options_t){.model = path, .ranks = rank_count});
    for (int number_of_case = 1; number_of_case < 100; number_of_case++) {
        snprintf(directory, sizeof directory, "%s/tests/data/cases/%s/%02d/case.json",
                 AVL_SOURCE_DIR, model, number_of_case);
        FILE *file = fopen(directory, "r");
        if (file == NULL) {
            assert_true(number_of_case > 1);
            break;
        }
        fclose(file);
        snprintf(directory, sizeof directory, "tests/data/cases/%s/%02d", model, number_of_case);
        rig_case_t data = rig_case_load(rig_config(rig), directory);
        expect_entry(rig, &data, data.json);
        const json_t *entries = json_object_get(data.json, "avl");
        for (size_t i = 0; i < json_array_size(entries); i++)
            expect_entry(rig, &data, json_array_get(entries, i));
        entries = json_object_get(data.json, "avl_more");
        for (size_t i = 0; i < json_array_size(entries); i++) {
            const json_t *entry = json_array_get(entries, i);
            /* A filter under a sliding window is refused. */
            if (json_object_get(entry, "prefill_keep") == NULL ||
                rig_config(rig)->model.text.sliding_window == 0)
                expect_entry(rig, &data, entry);
        }
        rig_case_release(&data);
    }
    rig_close(rig);
}

static void test_parity(void **state) {
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/tests/data/models", AVL_SOURCE_DIR);
    DIR *directory = opendir(path);
    assert_non_null(directory);
    int models = 0;
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/tests/data/models/%s", AVL_SOURCE_DIR, entry->d_name);
        avl_config_t config;
        assert_int_equal(avl_config_load(path, &config), AVL_OK);
        for (int i = 0; i < rank_counts; i++) {
            if (ranks[i] <= config.model.text.query_heads)
                check_model(entry->d_name, ranks[i]);
        }
        models++;
    }
    closedir(directory);
    assert_true(models >= 7);
}

int main(int argc, char **argv) {
    for (int i = 2; i < argc; i++)
        ranks[rank_counts++] = atoi(argv[i]);
    const struct CMUnitTest shipped[] = {cmocka_unit_test(test_shipped)};
    const struct CMUnitTest parity[] = {cmocka_unit_test(test_parity)};
    if (argc > 2 && strcmp(argv[1], "shipped") == 0)
        return cmocka_run_group_tests_name("worker cases, shipped", shipped, NULL, NULL);
    if (argc > 2 && strcmp(argv[1], "parity") == 0)
        return cmocka_run_group_tests_name("worker cases, parity", parity, NULL, NULL);
    fprintf(stderr, "usage: %s shipped|parity RANKS...\n", argv[0]);
    return 2;
}
