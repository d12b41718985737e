/* tests/client/eval_parts.c: the parts of avl eval by themselves: task files, scores, statistics,
 * names of methods. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/eval_method.h"
#include "client/eval_score.h"
#include "client/eval_stats.h"
#include "client/eval_tasks.h"
#include "tests/client/program.h"

/* ---- task files ---- */

static avl_status_t read_tasks(const char *text, size_t limit, avl_eval_tasks_t *tasks) {
    char *path = program_file(text, strlen(text));
    avl_status_t status = avl_eval_tasks_read(path, limit, tasks);
    remove(path);
    free(path);
    return status;
}

static void expect_fault(const char *text, const char *words) {
    avl_eval_tasks_t tasks;
    avl_status_t status = read_tasks(text, 0, &tasks);
    avl_eval_tasks_free(&tasks);
    if (status == AVL_OK || strstr(avl_status_detail(), words) == NULL)
        fail_msg("%s: expected \"%s\", got %s: %s", text, words, avl_status_name(status),
                 avl_status_detail());
}

static void lines_become_items(void **state) {
    (void)state;
    char *picture = program_file("x", 1);
    const char *name = strrchr(picture, '/') + 1;
    char text[2048];
    snprintf(text, sizeof text,
             "{\"id\": \"a\", \"task\": \"t\", \"images\": [\"%s\"], \"question\": \"Q?\","
             " \"answer\": \"A\"}\n"
             "\n  \r\n"
             "{\"id\": \"b\", \"turns\": [{\"role\": \"user\", \"text\": \"1\", \"images\":"
             " [\"%s\", \"%s\"]}, {\"role\": \"assistant\", \"text\": \"2\"}, {\"role\": \"user\","
             " \"text\": \"3\"}], \"system\": \"S\", \"answer\": [\"x\", \"y\"], \"score\":"
             " \"items\", \"ignore_case\": true, \"max_tokens\": 7, \"meta\": {\"k\": 1}}\n"
             "{\"id\": \"c\", \"task\": \"t\", \"question\": \"R?\", \"score\": \"contains\"}",
             name, picture, name);
    avl_eval_tasks_t tasks;
    assert_int_equal(read_tasks(text, 0, &tasks), AVL_OK);
    assert_int_equal(tasks.item_count, 3);
    assert_int_equal(tasks.name_count, 2);
    assert_string_equal(tasks.names[0], "t");
    assert_string_equal(tasks.names[1], "all");
    const avl_eval_item_t *item = &tasks.items[0];
    assert_string_equal(item->turns[0].text, "Q?");
    assert_string_equal(item->turns[0].images[0], picture); /* beside the task file */
    assert_string_equal(item->answers[0], "A");
    assert_int_equal(item->score, AVL_EVAL_EXACT);
    item = &tasks.items[1];
    assert_int_equal(item->line, 4);
    assert_int_equal(item->task, 1);
    assert_int_equal(item->turn_count, 3);
    assert_int_equal(item->turns[0].image_count, 2);
    assert_true(item->turns[1].assistant && !item->turns[2].assistant);
    assert_string_equal(item->system, "S");
    assert_int_equal(item->answer_count, 2);
    assert_int_equal(item->score, AVL_EVAL_ITEMS);
    assert_true(item->ignore_case);
    assert_int_equal(item->max_tokens, 7);
    assert_int_equal(tasks.items[2].answer_count, 0);
    assert_int_equal(tasks.items[2].score, AVL_EVAL_CONTAINS);
    avl_eval_tasks_free(&tasks);
    assert_int_equal(read_tasks(text, 1, &tasks), AVL_OK); /* one of each task */
    assert_int_equal(tasks.item_count, 2);
    assert_string_equal(tasks.items[1].id, "b");
    avl_eval_tasks_free(&tasks);
    remove(picture);
    free(picture);
}

static void faults_name_line_and_field(void **state) {
    (void)state;
#define GOOD "{\"id\": \"1\", \"question\": \"Q\"}\n"
    expect_fault("", "no question in it");
    expect_fault("\n\n", "no question in it");
    expect_fault(GOOD "{\"id\": }", ":2: column ");
    expect_fault(GOOD "\n[]", ":3: is not an object");
    expect_fault(GOOD "{\"question\": \"Q\"}", ":2: id: is missing");
    expect_fault(GOOD "{\"id\": 5, \"question\": \"Q\"}", ":2: id: is not a text");
    expect_fault(GOOD "{\"id\": \"\", \"question\": \"Q\"}", ":2: id: is empty");
    expect_fault(GOOD GOOD, ":2: id: \"1\" was there in line 1");
    expect_fault("{\"id\": \"1\", \"id\": \"2\", \"question\": \"Q\"}", "duplicate object key");
    expect_fault("{\"id\": \"1\"}", ":1: question: is missing");
    expect_fault("{\"id\": \"1\", \"question\": \"\"}", ":1: question: is empty");
    expect_fault("{\"id\": \"1\", \"question\": \"a\\u0000b\"}", ":1: column ");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"anwser\": \"A\"}",
                 ":1: \"anwser\" is no known key");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"answer\": 5}", ":1: answer: is neither");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"answer\": []}", ":1: answer: is an empty");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"score\": \"f1\"}",
                 ":1: score: \"f1\" is none; there are exact, items and contains");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"max_tokens\": 0}", ":1: max_tokens: is");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"ignore_case\": 1}", ":1: ignore_case:");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"images\": \"a\"}", ":1: images: is not");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"images\": [7]}", ":1: images[0]: is not");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"images\": [\"no-such-file\"]}",
                 ":1: images[0]: /tmp/no-such-file: No such file");
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"images\": [\"/tmp\"]}",
                 ":1: images[0]: /tmp: is not a regular file");
    char *empty = program_file("", 0), text[256];
    snprintf(text, sizeof text, "{\"id\": \"1\", \"question\": \"Q\", \"images\": [\"%s\"]}",
             empty);
    expect_fault(text, ": is empty");
    remove(empty);
    free(empty);
    expect_fault("{\"id\": \"1\", \"question\": \"Q\", \"turns\": []}", ":1: turns: question and");
    expect_fault("{\"id\": \"1\", \"turns\": []}", ":1: turns: is not a list of turns");
    expect_fault("{\"id\": \"1\", \"turns\": [7]}", ":1: turns[0]: is not an object");
    expect_fault("{\"id\": \"1\", \"turns\": [{\"role\": \"assistant\", \"text\": \"a\"}]}",
                 ":1: turns[0].role: turns alternate");
    expect_fault("{\"id\": \"1\", \"turns\": [{\"role\": \"me\", \"text\": \"a\"}]}",
                 ":1: turns[0].role: is neither");
    expect_fault("{\"id\": \"1\", \"turns\": [{\"role\": \"user\"}]}", ":1: turns[0].text: is");
    expect_fault("{\"id\": \"1\", \"turns\": [{\"role\": \"user\", \"text\": \"a\", \"img\": 1}]}",
                 ":1: turns[0].\"img\" is no known key");
    char many[64 * 40] = "";
    for (int i = 0; i < 33; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many),
                 "{\"id\": \"%d\", \"task\": \"t%d\", \"question\": \"Q\"}\n", i, i);
    expect_fault(many, ":33: task: is the 33rd");
    avl_eval_tasks_t tasks;
    assert_int_equal(avl_eval_tasks_read("/no/such/file", 0, &tasks), AVL_ERR_NOT_FOUND);
    avl_eval_tasks_free(&tasks);
}

/* ---- scores ---- */

static double score(avl_eval_score_kind_t kind, bool ignore_case, const char *text,
                    const char *answer) {
    avl_eval_item_t item = {
        .score = kind, .ignore_case = ignore_case, .answers = &answer, .answer_count = 1};
    double value = -1;
    assert_int_equal(avl_eval_score(&item, text, &value), AVL_OK);
    return value;
}

static void expect_score(double got, double expected) {
    if (!(fabs(got - expected) < 1e-12))
        fail_msg("%g, not %g", got, expected);
}

static void answers_are_scored(void **state) {
    (void)state;
    expect_score(score(AVL_EVAL_EXACT, false, " a red ring. \n", "a red ring"), 1);
    expect_score(score(AVL_EVAL_EXACT, false, "a red ring", "a red ring ."), 1);
    expect_score(score(AVL_EVAL_EXACT, false, "a red ring..", "a red ring"), 0);
    expect_score(score(AVL_EVAL_EXACT, false, "A red ring", "a red ring"), 0);
    expect_score(score(AVL_EVAL_EXACT, true, "GROSS", "gro\xc3\x9f"), 1);
    expect_score(score(AVL_EVAL_EXACT, true, "GROSS\xc3\x84", "gross\xc3\xa4"), 1);
    expect_score(score(AVL_EVAL_EXACT, true, "\xff", "\xff"), 1); /* no UTF-8: as it is */
    expect_score(score(AVL_EVAL_EXACT, false, "", "."), 1);
    expect_score(score(AVL_EVAL_CONTAINS, false, "It says STOP here.", "STOP"), 1);
    expect_score(score(AVL_EVAL_CONTAINS, false, "It says stop", "STOP"), 0);
    expect_score(score(AVL_EVAL_CONTAINS, true, "It says stop", "STOP."), 1);
    const char *list = "three objects: a, b, c.";
    expect_score(score(AVL_EVAL_ITEMS, false, "c, a,b", list), 1);
    expect_score(score(AVL_EVAL_ITEMS, false, "two objects: a, b", list), 4. / 5);
    expect_score(score(AVL_EVAL_ITEMS, false, "a, a, a", list), 1. / 3);
    expect_score(score(AVL_EVAL_ITEMS, false, "a, a", "a, a, b"), 4. / 5);
    expect_score(score(AVL_EVAL_ITEMS, false, "x", list), 0);
    expect_score(score(AVL_EVAL_ITEMS, false, "", list), 0);
    expect_score(score(AVL_EVAL_ITEMS, false, " , ,", ""), 1);
    const char *two[] = {"left", "to the left"};
    avl_eval_item_t item = {.answers = two, .answer_count = 2};
    double value = -1;
    assert_int_equal(avl_eval_score(&item, "to the left.", &value), AVL_OK);
    expect_score(value, 1);
}

/* NAN: the item does not count. */
static double after(avl_eval_score_kind_t kind, const char *text, const char *first,
                    const char *answer) {
    avl_eval_item_t item = {.score = kind, .answers = &answer, .answer_count = 1};
    double value = -1;
    bool counts = false;
    assert_int_equal(avl_eval_score_after_first(&item, text, first, &counts, &value), AVL_OK);
    return counts ? value : (double)NAN;
}

static void the_first_token_can_be_left_out(void **state) {
    (void)state;
    expect_score(after(AVL_EVAL_EXACT, "red ring", "red", "red ring."), 1);
    expect_score(after(AVL_EVAL_EXACT, "red star", "red", "red ring"), 0);
    assert_true(isnan(after(AVL_EVAL_EXACT, "red", "red", "red"))); /* nothing follows */
    assert_true(isnan(after(AVL_EVAL_EXACT, "red", " red.", "red")));
    assert_true(isnan(after(AVL_EVAL_EXACT, "blue ring", "blue", "red ring"))); /* wrong already */
    assert_true(isnan(after(AVL_EVAL_EXACT, "x", "", "red ring")));
    assert_true(isnan(after(AVL_EVAL_CONTAINS, "STOP it", "STOP", "STOP")));
    expect_score(after(AVL_EVAL_CONTAINS, "it says STOP", "it", "STOP"), 1);
    expect_score(after(AVL_EVAL_ITEMS, "a, b, c", "a", "a, b, c"), 1);
    expect_score(after(AVL_EVAL_ITEMS, "a, x, y", "a", "a, b, c"), 0);
    expect_score(after(AVL_EVAL_ITEMS, "z, b, c", "z", "a, b, c"), 4. / 5);
    expect_score(after(AVL_EVAL_ITEMS, "a", "a", "a"), 1);
}

/* ---- statistics ---- */

static void expect_near(double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%.9g, not %.9g", got, expected);
}

static void shares_have_wilsons_interval(void **state) {
    (void)state;
    avl_eval_samples_t samples = {0};
    avl_eval_mean_t mean;
    assert_int_equal(avl_eval_mean(&samples, false, &mean), AVL_OK);
    assert_int_equal(mean.count, 0);
    for (int i = 0; i < 50; i++)
        assert_int_equal(avl_eval_sample(&samples, i < 47, 1), AVL_OK);
    assert_int_equal(avl_eval_mean(&samples, false, &mean), AVL_OK);
    expect_near(mean.mean, .94, 1e-12);
    expect_near(mean.low, 0.837829, 1e-5); /* roots of (p - x)^2 = z^2 x (1 - x) / n */
    expect_near(mean.high, 0.979385, 1e-5);
    avl_eval_samples_free(&samples);
}

/* The bootstrap's interval of many samples is that of the normal distribution, nearly. */
static void other_means_are_bootstrapped(void **state) {
    (void)state;
    avl_eval_samples_t samples = {0};
    avl_eval_mean_t mean, again;
    double sum = 0, square = 0;
    const int count = 400;
    for (int i = 0; i < count; i++) {
        double value = (i * 37 % 101) / 100.;
        sum += value;
        square += value * value;
        assert_int_equal(avl_eval_sample(&samples, value, 1), AVL_OK);
    }
    assert_int_equal(avl_eval_mean(&samples, false, &mean), AVL_OK);
    assert_int_equal(avl_eval_mean(&samples, false, &again), AVL_OK);
    assert_memory_equal(&mean, &again, sizeof mean); /* from a fixed seed */
    expect_near(mean.mean, sum / count, 1e-12);
    double deviation = sqrt((square / count - mean.mean * mean.mean) / count);
    expect_near(mean.low, mean.mean - 1.96 * deviation, .15 * deviation);
    expect_near(mean.high, mean.mean + 1.96 * deviation, .15 * deviation);
    avl_eval_samples_free(&samples);
    /* Weighted: a ratio of sums. Equal differences have no spread. */
    assert_int_equal(avl_eval_sample(&samples, 1, 4), AVL_OK);
    assert_int_equal(avl_eval_sample(&samples, 3, 4), AVL_OK);
    assert_int_equal(avl_eval_mean(&samples, true, &mean), AVL_OK);
    expect_near(mean.mean, .5, 1e-12);
    expect_near(mean.low, .25, 1e-12);
    expect_near(mean.high, .75, 1e-12);
    avl_eval_samples_free(&samples);
    for (int i = 0; i < 9; i++)
        assert_int_equal(avl_eval_sample(&samples, 0, 1), AVL_OK);
    assert_int_equal(avl_eval_mean(&samples, true, &mean), AVL_OK);
    assert_true(mean.mean == 0 && mean.low == 0 && mean.high == 0);
    avl_eval_samples_free(&samples);
}

static void samples_without_weight_are_none(void **state) {
    (void)state;
    avl_eval_samples_t samples = {0};
    avl_eval_mean_t mean;
    for (int i = 0; i < 9; i++)
        assert_int_equal(avl_eval_sample(&samples, 0, 0), AVL_OK);
    assert_int_equal(avl_eval_mean(&samples, true, &mean), AVL_OK);
    assert_int_equal(mean.count, 0); /* not a mean of 0 */
    assert_int_equal(avl_eval_sample(&samples, 6, 2), AVL_OK);
    assert_int_equal(avl_eval_sample(&samples, 8, 2), AVL_OK);
    assert_int_equal(avl_eval_mean(&samples, true, &mean), AVL_OK);
    assert_int_equal(mean.count, 2);
    expect_near(mean.mean, 3.5, 1e-12);
    expect_near(mean.low, 3, 1e-12); /* no resample without any weight, which would be 0 */
    avl_eval_samples_free(&samples);
}

/* A step that tells the `told` likeliest of `count` tokens; token `own` first. */
static avl_eval_step_t step_of(const double *shares, int count, int told, int own) {
    avl_eval_step_t step = {.count = 1 + told, .ids = {own}};
    step.logprobs[0] = (float)log(shares[own]);
    bool used[32] = {false};
    for (int i = 0; i < told; i++) {
        int best = -1;
        for (int j = 0; j < count; j++)
            best = !used[j] && (best < 0 || shares[j] > shares[best]) ? j : best;
        used[best] = true;
        step.ids[1 + i] = best;
        step.logprobs[1 + i] = (float)log(shares[best]);
    }
    return step;
}

static void divergence_is_a_lower_bound(void **state) {
    (void)state;
    static const double p[] = {.5, .25, .125, .0625, .0625}, q[] = {.1, .6, .1, .1, .1};
    double whole = 0;
    for (int i = 0; i < 5; i++)
        whole += p[i] * log(p[i] / q[i]);
    double before = 0;
    for (int told = 1; told <= 5; told++) {
        avl_eval_step_t from = step_of(p, 5, told, 0), to = step_of(q, 5, told, 0);
        double part = avl_eval_divergence(&from, &to);
        assert_true(part >= before - 1e-6 && part <= whole + 1e-6);
        before = part;
        assert_true(avl_eval_divergence(&from, &from) == 0);
    }
    expect_near(before, whole, 1e-6);
    /* The token's own entry counts once, also where it is not among the best. */
    avl_eval_step_t from = step_of(p, 5, 2, 4), to = step_of(q, 5, 2, 4);
    double expected =
        .25 * log(.25 / .6) + .5 * log(.5 / .1) + .0625 * log(.0625 / .1) + .1875 * log(.1875 / .2);
    expect_near(avl_eval_divergence(&from, &to), expected, 1e-6);
}

/* ---- methods ---- */

static void expect_method_fault(const char *specs, const char *budgets, const char *words) {
    avl_eval_method_t *methods = NULL;
    size_t count = 0;
    assert_int_equal(avl_eval_methods_read(specs, budgets, &methods, &count), AVL_ERR_INVALID);
    if (strstr(avl_status_detail(), words) == NULL)
        fail_msg("%s: expected \"%s\", got: %s", specs, words, avl_status_detail());
}

/* Every method says all that it is: a preset comes in place of the service's defaults. */
static void defaults_have_no_part(void **state) {
    (void)state;
    avl_eval_method_t *methods = NULL;
    size_t count = 0;
    assert_int_equal(
        avl_eval_methods_read("a-vl:.5/.3,random,fastv,h2o,lean,dense", NULL, &methods, &count),
        AVL_OK);
    assert_int_equal(count, 6);
    for (int i = 0; i < 4; i++)
        assert_string_equal(methods[i].preset, "a-vl");
    assert_string_equal(methods[4].preset, "lean");
    assert_string_equal(methods[5].preset, ""); /* dense excludes all else */
    free(methods);
}

static void expect_keeper(const avl_eval_method_t *method, const char *name, double prefill,
                          double text) {
    const Avl__V1__AttentionParameters *attention = &method->attention;
    assert_string_equal(method->name, name);
    assert_true(attention->_visual_store_ratio_case != 0 && attention->visual_store_ratio == 1);
    assert_true(attention->_visual_compute_ratio_case != 0 && attention->visual_compute_ratio == 1);
    assert_true((attention->_prefill_keep_ratio_case != 0) == (prefill > 0));
    assert_true(attention->prefill_keep_ratio == prefill);
    assert_true((attention->_text_keep_ratio_case != 0) == (text > 0));
    assert_true(attention->text_keep_ratio == text);
    assert_true((attention->text_policy == AVL__V1__TEXT_POLICY__TEXT_POLICY_H2O) == (text > 0));
}

static void other_methods_keep_one_share(void **state) {
    (void)state;
    avl_eval_method_t *methods = NULL;
    size_t count = 0;
    assert_int_equal(avl_eval_methods_read("fastv,h2o,fastv:.7+prefill_layer=3,h2o:.25",
                                           ".5/.3/3,.5/.2/3,.3/.15", &methods, &count),
                     AVL_OK);
    assert_int_equal(count, 5);
    expect_keeper(&methods[0], "fastv:.5", .5, 0); /* once with each store */
    expect_keeper(&methods[1], "fastv:.3", .3, 0);
    expect_keeper(&methods[2], "h2o", 0, .5); /* of text: no budget of visual rows is its */
    expect_keeper(&methods[3], "fastv:.7+prefill_layer=3", .7, 0);
    assert_int_equal(methods[3].attention.prefill_layer, 3);
    assert_string_equal(methods[3].family, "fastv+prefill_layer=3");
    expect_keeper(&methods[4], "h2o:.25", 0, .25);
    free(methods);
    expect_method_fault("fastv:.5/.3", NULL, "\"fastv:.5/.3\": \".5/.3\" is not the share");
    expect_method_fault("h2o:", NULL, "\"\" is not the share that stays");
}

static void methods_have_names(void **state) {
    (void)state;
    avl_eval_method_t *methods = NULL;
    size_t count = 0;
    assert_int_equal(avl_eval_methods_read("dense,a-vl,random:.2/.1/4,lean+text_keep_ratio=.5+"
                                           "text-policy=h2o+protect_prompt=false+selection_seed=7",
                                           ".5/.3/3,.3/.15", &methods, &count),
                     AVL_OK);
    assert_int_equal(count, 6);
    assert_true(methods[0].dense && methods[0].attention.dense);
    assert_string_equal(methods[1].name, "a-vl:.5/.3/3");
    assert_string_equal(methods[1].family, "a-vl");
    const Avl__V1__AttentionParameters *attention = &methods[1].attention;
    assert_true(attention->_visual_store_ratio_case != 0 && attention->visual_store_ratio == .5);
    assert_true(attention->visual_compute_ratio == .3);
    assert_true(attention->visual_update_interval == 3 &&
                attention->_visual_update_interval_case != 0);
    assert_int_equal(attention->visual_selection,
                     AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_LAST_ROW);
    assert_string_equal(methods[2].name, "a-vl:.3/.15");
    assert_true(methods[2].attention._visual_update_interval_case == 0);
    assert_string_equal(methods[3].name, "random:.2/.1/4");
    assert_int_equal(methods[3].attention.visual_selection,
                     AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_RANDOM);
    attention = &methods[5].attention;
    assert_string_equal(methods[5].preset, "lean");
    assert_string_equal(methods[5].name, "lean:.3/.15+text_keep_ratio=.5+text-policy=h2o+"
                                         "protect_prompt=false+selection_seed=7");
    assert_string_equal(methods[5].family, "lean+text_keep_ratio=.5+text-policy=h2o+"
                                           "protect_prompt=false+selection_seed=7");
    assert_true(attention->text_keep_ratio == .5);
    assert_int_equal(attention->text_policy, AVL__V1__TEXT_POLICY__TEXT_POLICY_H2O);
    assert_true(attention->_protect_prompt_case != 0 && !attention->protect_prompt);
    assert_true(attention->_selection_seed_case != 0 && attention->selection_seed == 7);
    free(methods);
    expect_method_fault("dense:1/1", NULL, "\"dense:1/1\": dense has neither");
    expect_method_fault("dense+x=1", NULL, "dense has neither");
    expect_method_fault("a-vl:.5", NULL, "the budget is not STORE/COMPUTE");
    expect_method_fault("a-vl:.5/x", NULL, "the budget is not STORE/COMPUTE");
    expect_method_fault("a-vl:.5/.3/3/4", NULL, "the budget is not STORE/COMPUTE");
    expect_method_fault("a-vl", "1/nan", "the budget is not STORE/COMPUTE");
    expect_method_fault("a-vl+speed", NULL, "\"speed\" is not OPTION=VALUE");
    expect_method_fault("a-vl+speed=2", NULL, "there is no option \"speed\"");
    expect_method_fault("a-vl+preset=x", NULL, "there is no option \"preset\"");
    expect_method_fault("a-vl+text_policy=unspecified", NULL, "text_policy cannot be");
    expect_method_fault("a-vl+prefill_layer=-1", NULL, "prefill_layer cannot be \"-1\"");
    expect_method_fault("a-vl+protect_prompt=maybe", NULL, "protect_prompt cannot be");
    expect_method_fault("a-vl,a-vl", NULL, "\"a-vl\" is there twice");
    expect_method_fault("a-vl,,dense", NULL, "it has no name");
    char longest[300];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    expect_method_fault(longest, NULL, "is longer than");
    longest[120] = '\0';
    expect_method_fault(longest, "0.50000000/0.30000000", "too long");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_become_items),
        cmocka_unit_test(faults_name_line_and_field),
        cmocka_unit_test(answers_are_scored),
        cmocka_unit_test(the_first_token_can_be_left_out),
        cmocka_unit_test(shares_have_wilsons_interval),
        cmocka_unit_test(other_means_are_bootstrapped),
        cmocka_unit_test(samples_without_weight_are_none),
        cmocka_unit_test(divergence_is_a_lower_bound),
        cmocka_unit_test(defaults_have_no_part),
        cmocka_unit_test(other_methods_keep_one_share),
        cmocka_unit_test(methods_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
