/* Attention parameters as requests give them: what is taken, what is refused and in which words,
 * and what reaches a worker. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/attention.h"

#define CASE(name) AVL__V1__ATTENTION_PARAMETERS___##name
#define REFUSED AVL_ERR_INVALID

static const avl_attention_params_t defaults = AVL_ATTENTION(0.5, 0.3, 3);

static void test_ratios(void **state) {
    (void)state;
    /* A negative number here: the field is absent. */
    static const struct {
        bool dense;
        double store, compute, interval;
        avl_attention_params_t choice; /* store 0: refused */
        const char *text;
    } rows[] = {
        {false, -1, -1, -1, AVL_ATTENTION(0.5, 0.3, 3), ""},
        {false, 0.2, -1, -1, AVL_ATTENTION(0.2, 0.2, 3), ""},
        {false, 0.8, 0.8, 7, AVL_ATTENTION(0.8, 0.8, 7), ""},
        {true, -1, -1, -1, AVL_ATTENTION(1, 1, 1), ""},
        {true, 0.5, -1, -1, AVL_ATTENTION(0, 0, 0), "attention.dense excludes"},
        {true, -1, -1, 1, AVL_ATTENTION(0, 0, 0), "attention.dense excludes"},
        {false, 0, -1, -1, AVL_ATTENTION(0, 0, 0), "attention.visual_store_ratio is 0; allowed"},
        {false, 1.5, -1, -1, AVL_ATTENTION(0, 0, 0),
         "attention.visual_store_ratio is 1.5; allowed"},
        {false, -1, 0.6, -1, AVL_ATTENTION(0, 0, 0),
         "attention.visual_compute_ratio is 0.6; allowed: more than 0, at most visual_store_ratio "
         "(0.5)"},
        {false, -1, 0, -1, AVL_ATTENTION(0, 0, 0), "attention.visual_compute_ratio is 0; allowed"},
        {false, -1, -1, 0, AVL_ATTENTION(0, 0, 0),
         "attention.visual_update_interval is 0; allowed"},
        {false, -1, -1, 4294967295.0, AVL_ATTENTION(0, 0, 0),
         "attention.visual_update_interval is 4294967295; allowed"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Avl__V1__AttentionParameters given;
        avl__v1__attention_parameters__init(&given);
        given.dense = rows[i].dense;
        if (rows[i].store >= 0)
            given._visual_store_ratio_case = CASE(VISUAL_STORE_RATIO_VISUAL_STORE_RATIO);
        given.visual_store_ratio = rows[i].store;
        if (rows[i].compute >= 0)
            given._visual_compute_ratio_case = CASE(VISUAL_COMPUTE_RATIO_VISUAL_COMPUTE_RATIO);
        given.visual_compute_ratio = rows[i].compute;
        if (rows[i].interval >= 0) {
            given._visual_update_interval_case =
                CASE(VISUAL_UPDATE_INTERVAL_VISUAL_UPDATE_INTERVAL);
            given.visual_update_interval = (uint32_t)rows[i].interval;
        }
        avl_attention_params_t choice;
        avl_status_t status = avl_attention_read(&given, &defaults, 9, &choice);
        if (rows[i].choice.visual_store_ratio == 0) {
            assert_int_equal(status, AVL_ERR_INVALID);
            assert_non_null(strstr(avl_status_detail(), rows[i].text));
        } else {
            assert_int_equal(status, AVL_OK);
            assert_true(choice.visual_store_ratio == rows[i].choice.visual_store_ratio);
            assert_true(choice.visual_compute_ratio == rows[i].choice.visual_compute_ratio);
            assert_int_equal(choice.visual_update_interval, rows[i].choice.visual_update_interval);
        }
    }
    Avl__V1__AttentionParameters given;
    avl__v1__attention_parameters__init(&given);
    given._visual_store_ratio_case = CASE(VISUAL_STORE_RATIO_VISUAL_STORE_RATIO);
    given.visual_store_ratio = NAN;
    avl_attention_params_t choice;
    assert_int_equal(avl_attention_read(&given, &defaults, 9, &choice), AVL_ERR_INVALID);
}

/* Sets what `text` says: "store=0.5 text-keep=0.6 ...". */
static void give(Avl__V1__AttentionParameters *given, const char *text) {
    avl__v1__attention_parameters__init(given);
    static char words[256];
    snprintf(words, sizeof words, "%s", text);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) {
        char *value = strchr(word, '=') + 1;
        value[-1] = '\0';
        double number = strtod(value, NULL);
        if (strcmp(word, "dense") == 0)
            given->dense = number != 0;
        else if (strcmp(word, "preset") == 0)
            given->preset = value;
        else if (strcmp(word, "selection") == 0)
            given->visual_selection = (Avl__V1__VisualSelection)number;
        else if (strcmp(word, "core") == 0)
            given->visual_core = (Avl__V1__VisualCore)number;
        else if (strcmp(word, "measure") == 0)
            given->measure_captured_mass = number != 0;
        else if (strcmp(word, "policy") == 0)
            given->text_policy = (Avl__V1__TextPolicy)number;
#define GIVE(name, field, CASE_NAME)                                                               \
    else if (strcmp(word, name) == 0) given->field = number,                                       \
                                      given->_##field##_case = CASE(CASE_NAME##_##CASE_NAME);
        GIVE("store", visual_store_ratio, VISUAL_STORE_RATIO)
        GIVE("compute", visual_compute_ratio, VISUAL_COMPUTE_RATIO)
        GIVE("interval", visual_update_interval, VISUAL_UPDATE_INTERVAL)
        GIVE("seed", selection_seed, SELECTION_SEED)
        GIVE("keep", prefill_keep_ratio, PREFILL_KEEP_RATIO)
        GIVE("layer", prefill_layer, PREFILL_LAYER)
        GIVE("text", text_keep_ratio, TEXT_KEEP_RATIO)
        GIVE("min", text_keep_min, TEXT_KEEP_MIN)
        GIVE("protect", protect_prompt, PROTECT_PROMPT)
        else fail_msg("%s is no field", word);
    }
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *given, *text;
        avl_status_t status;
    } rows[] = {
        {"dense=1 preset=a-vl", "attention.dense excludes every other field", REFUSED},
        {"dense=1 selection=2", "attention.dense excludes every other field", REFUSED},
        {"dense=1 protect=1", "attention.dense excludes every other field", REFUSED},
        {"dense=1 text=1", "attention.dense excludes every other field", REFUSED},
        {"preset=fast",
         "attention.preset \"fast\" is unknown; there are dense, a-vl, "
         "quality, balanced, lean",
         REFUSED},
        {"selection=6", "attention.visual_selection is 6, which is unknown", REFUSED},
        {"selection=-1", "attention.visual_selection is -1, which is unknown", REFUSED},
        {"policy=3 text=0.5", "attention.text_policy is 3, which is unknown", REFUSED},
        {"keep=0.5 selection=5", "attention.visual_selection is coverage; the prefill", REFUSED},
        {"seed=1", "attention.selection_seed is for visual_selection random alone", REFUSED},
        {"seed=1 selection=4", "attention.selection_seed is for", REFUSED},
        {"keep=0", "attention.prefill_keep_ratio is 0; allowed: more than 0, at most 1", REFUSED},
        {"keep=1.1", "attention.prefill_keep_ratio is 1.1; allowed", REFUSED},
        {"keep=nan", "attention.prefill_keep_ratio is", REFUSED},
        {"layer=2", "attention.prefill_layer needs prefill_keep_ratio", REFUSED},
        {"keep=0.5 layer=0", "attention.prefill_layer is 0; allowed: 1 to", REFUSED},
        {"keep=0.3 store=0.4", "attention.visual_store_ratio is 0.4, which is more than", REFUSED},
        {"keep=0.3 compute=0.4", "attention.visual_compute_ratio is 0.4; allowed", REFUSED},
        {"text=0", "attention.text_keep_ratio is 0; allowed: more than 0, at most 1", REFUSED},
        {"text=2", "attention.text_keep_ratio is 2; allowed", REFUSED},
        {"min=3", "attention.text_keep_min needs text_keep_ratio", REFUSED},
        {"policy=1", "attention.text_policy needs text_keep_ratio", REFUSED},
        {"protect=1", "attention.protect_prompt needs text_keep_ratio", REFUSED},
        {"text=0.5 min=0", "attention.text_keep_min is 0; allowed: 1 to", REFUSED},
        {"keep=0.5 selection=2", "attention.visual_selection is question; the prefill", REFUSED},
        {"keep=0.5 preset=lean", "attention.visual_selection is coverage; the prefill", REFUSED},
        {"keep=0.6 measure=1", "attention.measure_captured_mass goes without", REFUSED},
        {"preset=lean core=2 interval=2", "attention.visual_update_interval is 2; visual_core",
         REFUSED},
        {"keep=0.5 store=1 compute=0.5", "attention.visual_store_ratio is 1, which", REFUSED},
        {"core=3", "attention.visual_core is 3, which is unknown", REFUSED},
        {"core=-1", "attention.visual_core is -1, which is unknown", REFUSED},
        {"core=2 interval=1", "attention.visual_update_interval is 1; visual_core step", REFUSED},
        {"dense=1 core=2", "attention.dense excludes every other field", REFUSED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Avl__V1__AttentionParameters given;
        give(&given, rows[i].given);
        avl_attention_params_t params;
        avl_status_t status = avl_attention_read(&given, &defaults, 9, &params);
        if (status != rows[i].status || strstr(avl_status_detail(), rows[i].text) == NULL)
            fail_msg("%s: %s, \"%s\"; expected \"%s\"", rows[i].given, avl_status_name(status),
                     avl_status_detail(), rows[i].text);
    }
}

/* What has no effect leaves no trace: parameters with the same effect are equal. */
static void test_settled(void **state) {
    (void)state;
    static const struct {
        const char *given;
        avl_attention_params_t params;
    } rows[] = {
        {"preset=a-vl", AVL_ATTENTION(0.5, 0.3, 3)},
        {"preset=dense", AVL_ATTENTION(1, 1, 1)},
        {"preset=dense store=0.2 interval=2", AVL_ATTENTION(0.2, 0.2, 2)},
        {"selection=1", AVL_ATTENTION(0.5, 0.3, 3)},
        {"preset=lean store=1 compute=1", AVL_ATTENTION(1, 1, 3)},
        {"store=1 compute=1 selection=3 seed=5", AVL_ATTENTION(1, 1, 3)},
        {"store=1 compute=1 selection=5", AVL_ATTENTION(1, 1, 3)},
        {"keep=1 layer=7", AVL_ATTENTION(0.5, 0.3, 3)},
        {"store=1 compute=1 core=2", AVL_ATTENTION(1, 1, 3)},
        {"core=1", AVL_ATTENTION(0.5, 0.3, 3)},
        {"text=1 min=7 policy=2 protect=0", AVL_ATTENTION(0.5, 0.3, 3)},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Avl__V1__AttentionParameters given;
        give(&given, rows[i].given);
        avl_attention_params_t params, expected = rows[i].params;
        if (avl_attention_read(&given, &defaults, 9, &params) != AVL_OK)
            fail_msg("%s: %s", rows[i].given, avl_status_detail());
        if (params.visual_store_ratio != expected.visual_store_ratio ||
            params.visual_compute_ratio != expected.visual_compute_ratio ||
            params.visual_update_interval != expected.visual_update_interval ||
            !avl_attention_params_same_prompt(&params, &expected))
            fail_msg("%s: not settled", rows[i].given);
    }
}

/* Operators' defaults that a request's values cannot stand beside give way. */
static void test_defaults_give_way(void **state) {
    (void)state;
    avl_attention_params_t operators = {
        .visual_store_ratio = 0.4,
        .visual_compute_ratio = 0.4,
        .visual_update_interval = 2,
        .prefill_keep_ratio = 0.5,
        .prefill_layer = 3,
        .text_keep_ratio = 0.6,
        .text_keep_min = 8,
        .protect_prompt = true,
    };
    assert_int_equal(avl_attention_params_check(&operators), AVL_OK);
    Avl__V1__AttentionParameters given;
    avl_attention_params_t params;
    give(&given, "dense=1");
    assert_int_equal(avl_attention_read(&given, &operators, 9, &params), AVL_OK);
    assert_true(
        avl_attention_params_same_prompt(&params, &(avl_attention_params_t)AVL_ATTENTION(1, 1, 1)));
    give(&given, "preset=a-vl");
    assert_int_equal(avl_attention_read(&given, &operators, 9, &params), AVL_OK);
    assert_true(params.visual_store_ratio == 0.5 && params.prefill_keep_ratio == 0);
    /* The filter, and what it excludes. */
    static const char *const excluding[] = {"selection=2", "selection=3", "selection=4",
                                            "selection=5", "measure=1"};
    for (size_t i = 0; i < sizeof excluding / sizeof *excluding; i++) {
        give(&given, excluding[i]);
        if (avl_attention_read(&given, &operators, 9, &params) != AVL_OK)
            fail_msg("%s: %s", excluding[i], avl_status_detail());
        assert_true(params.prefill_keep_ratio == 0 && params.prefill_layer == 0 &&
                    params.visual_store_ratio == 0.4 && params.text_keep_ratio == 0.6);
    }
    static const char *const suiting[] = {"selection=1", "interval=5"};
    for (size_t i = 0; i < sizeof suiting / sizeof *suiting; i++) {
        give(&given, suiting[i]);
        assert_int_equal(avl_attention_read(&given, &operators, 9, &params), AVL_OK);
        assert_true(params.prefill_keep_ratio == 0.5 && params.prefill_layer == 3);
    }
    give(&given, "layer=2 selection=2"); /* who names its layer wants the filter */
    assert_int_equal(avl_attention_read(&given, &operators, 9, &params), AVL_ERR_INVALID);
    avl_attention_params_t others = defaults;
    others.visual_selection = AVL_VISUAL_QUESTION;
    others.measure_captured_mass = true;
    give(&given, "keep=0.7 preset=lean"); /* who names a preset names its selection */
    assert_int_equal(avl_attention_read(&given, &others, 9, &params), AVL_ERR_INVALID);
    give(&given, "keep=0.7");
    assert_int_equal(avl_attention_read(&given, &others, 9, &params), AVL_OK);
    assert_true(params.prefill_keep_ratio == 0.7 &&
                params.visual_selection == AVL_VISUAL_LAST_ROW && !params.measure_captured_mass);
    give(&given, "keep=1 text=1");
    assert_int_equal(avl_attention_read(&given, &operators, 9, &params), AVL_OK);
    assert_true(params.visual_store_ratio == 0.4 && params.prefill_layer == 0 &&
                params.text_keep_min == 0 && !params.protect_prompt);
}

/* What the names stand for: clients rely on it. */
static void test_presets(void **state) {
    (void)state;
    static const struct {
        const char *given;
        double store, compute;
        bool coverage; /* with cores within steps */
    } rows[] = {{"preset=dense", 1, 1, false},
                {"preset=a-vl", 0.5, 0.3, false},
                {"preset=quality", 0.5, 0.1, true},
                {"preset=balanced", 0.3, 0.1, true},
                {"preset=lean", 0.1, 0.05, true}};
    assert_int_equal(avl_attention_preset_count, sizeof rows / sizeof *rows);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Avl__V1__AttentionParameters given;
        avl_attention_params_t params;
        give(&given, rows[i].given);
        assert_int_equal(avl_attention_read(&given, &defaults, 9, &params), AVL_OK);
        assert_true(params.visual_store_ratio == rows[i].store &&
                    params.visual_compute_ratio == rows[i].compute);
        assert_int_equal(params.visual_selection,
                         rows[i].coverage ? AVL_VISUAL_COVERAGE : AVL_VISUAL_LAST_ROW);
        assert_int_equal(params.visual_core, rows[i].coverage ? AVL_CORE_STEP : AVL_CORE_INTERVAL);
    }
}

/* A core in every step, and the interval that means nothing to it. */
static void test_core(void **state) {
    (void)state;
    avl_attention_params_t operators = AVL_ATTENTION(0.3, 0.1, 5), params;
    operators.visual_core = AVL_CORE_STEP;
    static const struct {
        const char *given;
        avl_visual_core_t core;
        int32_t interval;
    } rows[] = {
        {"store=0.4", AVL_CORE_STEP, 5},       {"interval=4", AVL_CORE_INTERVAL, 4},
        {"core=1", AVL_CORE_INTERVAL, 5},      {"core=1 interval=2", AVL_CORE_INTERVAL, 2},
        {"preset=a-vl", AVL_CORE_INTERVAL, 3}, {"preset=a-vl core=2", AVL_CORE_STEP, 3},
        {"preset=lean", AVL_CORE_STEP, 3},     {"preset=lean interval=2", AVL_CORE_INTERVAL, 2},
        {"keep=0.5 core=2", AVL_CORE_STEP, 5}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Avl__V1__AttentionParameters given, message;
        give(&given, rows[i].given);
        if (avl_attention_read(&given, &operators, 9, &params) != AVL_OK)
            fail_msg("%s: %s", rows[i].given, avl_status_detail());
        assert_int_equal(params.visual_core, rows[i].core);
        assert_int_equal(params.visual_update_interval, rows[i].interval);
        /* What is reported can be asked for. */
        avl_attention_write(&params, &message);
        assert_int_equal(message._visual_update_interval_case == 0, rows[i].core == AVL_CORE_STEP);
        assert_int_equal(avl_attention_read(&message, &defaults, 9, &operators), AVL_OK);
        assert_true(avl_attention_params_same_prompt(&params, &operators));
        operators = (avl_attention_params_t)AVL_ATTENTION(0.3, 0.1, 5);
        operators.visual_core = AVL_CORE_STEP;
    }
    params.visual_core = (avl_visual_core_t)2;
    assert_int_equal(avl_attention_params_check(&params), AVL_ERR_INVALID);
    assert_non_null(strstr(avl_status_detail(), "attention.visual_core is 2, which is unknown"));
}

static void test_there_and_back(void **state) {
    (void)state;
    const avl_attention_params_t all = {
        .visual_store_ratio = 0.4,
        .visual_compute_ratio = 0.2,
        .visual_update_interval = 7,
        .visual_core = AVL_CORE_STEP,
        .visual_selection = AVL_VISUAL_RANDOM,
        .selection_seed = UINT64_MAX,
        .prefill_keep_ratio = 0.5,
        .prefill_layer = 3,
        .text_keep_ratio = 0.6,
        .text_keep_min = 8,
        .text_policy = AVL_TEXT_H2O,
        .protect_prompt = true,
    };
    Avl__V1__AttentionParameters message;
    avl_attention_write(&all, &message);
    assert_int_equal(message.visual_selection, AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_RANDOM);
    assert_true(message._selection_seed_case != 0 && message.selection_seed == UINT64_MAX);
    assert_true(message.prefill_layer == 3);
    assert_int_equal(message.text_policy, AVL__V1__TEXT_POLICY__TEXT_POLICY_H2O);
    Avl__Worker__V1__Attention submit;
    avl_attention_submit(&all, &submit);
    assert_int_equal(submit.visual_core, AVL_CORE_STEP);
    assert_true(submit.visual_selection == AVL_VISUAL_RANDOM && submit.text_keep_min == 8 &&
                submit.selection_seed == UINT64_MAX && submit.protect_prompt);
    for (size_t i = 0; i < avl_attention_preset_count; i++) {
        avl_attention_params_t params;
        avl_attention_write(&avl_attention_presets[i].params, &message);
        assert_int_equal(avl_attention_read(&message, &defaults, 9, &params), AVL_OK);
        assert_true(params.visual_store_ratio ==
                    avl_attention_presets[i].params.visual_store_ratio);
        assert_true(avl_attention_params_same_prompt(&params, &avl_attention_presets[i].params));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ratios),         cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_settled),        cmocka_unit_test(test_defaults_give_way),
        cmocka_unit_test(test_presets),        cmocka_unit_test(test_core),
        cmocka_unit_test(test_there_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
