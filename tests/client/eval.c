/* tests/client/eval.c: avl eval against a service whose answers and log probabilities are known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/client/fake_server.h"
#include "tests/client/program.h"

static fake_server_t *server;
static char *tasks; /* five questions, of which the second has no answer */

static int begin(void **state) {
    (void)state;
    static const char text[] =
        "{\"id\": \"a\", \"task\": \"one\", \"question\": \"Q1\", \"answer\": \"w w w\"}\n"
        "{\"id\": \"b\", \"task\": \"one\", \"question\": \"Q2\"}\n"
        "{\"id\": \"c\", \"task\": \"one\", \"question\": \"Q3\", \"answer\": \"other\"}\n"
        "{\"id\": \"d\", \"task\": \"two\", \"question\": \"Q4\", \"answer\": \"w w w\","
        " \"score\": \"items\", \"max_tokens\": 9}\n"
        "{\"id\": \"e\", \"task\": \"two\", \"turns\": [{\"role\": \"user\", \"text\": \"1\"},"
        " {\"role\": \"assistant\", \"text\": \"2\"}, {\"role\": \"user\", \"text\": \"3\"}],"
        " \"answer\": \"w\", \"score\": \"contains\", \"system\": \"S\"}\n";
    server = fake_server_start();
    tasks = program_file(text, sizeof text - 1);
    return 0;
}

static int end(void **state) {
    (void)state;
    fake_server_stop(server);
    remove(tasks);
    free(tasks);
    return 0;
}

static program_setting_t here(void) {
    return (program_setting_t){.server = fake_server_address(server)};
}

/* Runs `avl eval --json - ARGUMENTS` and parses what it prints. */
static json_t *evaluate(int exit_status, const char *const *arguments) {
    const char *all[32] = {"eval", "--tasks", tasks, "--json", "-"};
    for (size_t i = 0; arguments[i] != NULL; i++)
        all[i + 5] = arguments[i];
    program_setting_t setting = here();
    program_result_t result = program_run(&setting, all);
    program_expect(&result, exit_status);
    json_error_t error;
    json_t *object = json_loads(result.output, 0, &error);
    if (object == NULL)
        fail_msg("%s: %s", error.text, result.output);
    program_free(&result);
    return object;
}

#define EVALUATE(exit_status, ...) evaluate((exit_status), (const char *const[]){__VA_ARGS__, NULL})

static json_t *cell(const json_t *report, size_t method, size_t task) {
    json_t *of_method = json_array_get(json_object_get(report, "methods"), method);
    json_t *found = json_array_get(json_object_get(of_method, "tasks"), task);
    assert_non_null(found);
    return found;
}

static void expect(const json_t *object, const char *key, double value) {
    const json_t *found = json_object_get(object, key);
    if (json_is_object(found))
        found = json_object_get(found, "mean");
    if (!json_is_number(found) || !(fabs(json_number_value(found) - value) < 1e-6))
        fail_msg("%s is %g, not %g", key, json_number_value(found), value);
}

static void every_figure_is_there(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3});
    json_t *report = EVALUATE(0, "--methods", "a-vl:.5/.25/3,dense", "-c", "3");
    assert_int_equal(fake_server_counts(server).requests, 3 * (1 + 2 * 5));
    assert_true(fake_server_counts(server).together_most <= 3);
    assert_int_equal(fake_server_counts(server).with_deadline, 3 * (1 + 2 * 5));
    const json_t *methods = json_object_get(report, "methods");
    assert_int_equal(json_array_size(methods), 3);
    assert_string_equal(json_string_value(json_object_get(json_array_get(methods, 2), "method")),
                        "dense, again");
    for (size_t method = 0; method < 3; method++) {
        const json_t *one = cell(report, method, 0), *two = cell(report, method, 1);
        expect(one, "questions", 3);
        expect(one, "answered", 3);
        expect(one, "score", .5); /* of two, one has no expected answer */
        expect(one, "score_minus_dense", 0);
        expect(one, "score_after_first", 1); /* "other" does not begin with "w" */
        expect(one, "same_as_dense", 1);
        expect(one, "tokens_before_first_other", 1);
        assert_true(json_is_null(json_object_get(one, "first_other_token")));
        expect(one, "answer_tokens", 3);
        expect(one, "visual_rows_stored", 98);
        expect(one, "visual_rows_computed", 65.5);
        expect(one, "kv_bytes", 4096);
        expect(one, "seconds_per_token", .005);
        expect(two, "score", 1);
    }
    const json_t *dense = cell(report, 0, 0), *other = cell(report, 1, 0);
    expect(dense, "forced_agreement", 1);
    expect(dense, "forced_kl", 0);
    expect(cell(report, 2, 0), "forced_kl", 0);
    assert_true(json_is_null(json_object_get(dense, "captured_mass"))); /* it has all of it */
    expect(other, "captured_mass", .75);
    expect(other, "stored_mass", .875);
    /* Token 1 of 0, 1, 2 is where the service without dense attention would say another one. */
    expect(other, "forced_agreement", 2. / 3);
    expect(other, "forced_agreement_after_first", 1. / 2);
    double divergence = .5 * log(.7 / .2);
    expect(other, "forced_kl", divergence / 3);
    expect(other, "forced_kl_after_first", divergence / 2);
    json_decref(report);
}

/* What the service is asked: greedy, with the seed of the question; then the dense tokens. */
static void requests_are_as_the_file_says(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3});
    json_decref(EVALUATE(0, "--methods", "balanced", "-c", "1", "--no-mass"));
    Avl__V1__GenerateRequest *request = fake_server_take_request(server); /* the last one */
    assert_non_null(request);
    const Avl__V1__Conversation *talk = request->conversation;
    assert_int_equal(talk->n_messages, 4);
    assert_int_equal(talk->messages[0]->role, AVL__V1__ROLE__ROLE_SYSTEM);
    assert_string_equal(talk->messages[0]->content[0]->text, "S");
    assert_int_equal(talk->messages[2]->role, AVL__V1__ROLE__ROLE_ASSISTANT);
    assert_string_equal(talk->messages[3]->content[0]->text, "3");
    assert_string_equal(request->attention->preset, "balanced");
    assert_false(request->attention->measure_captured_mass);
    assert_int_equal(request->n_forced_token_ids, 3);
    assert_int_equal(request->forced_token_ids[2], 2);
    assert_int_equal(request->sampling->logprobs, 20);
    assert_true(request->sampling->_temperature_case != 0 && request->sampling->temperature == 0);
    uint64_t seed = request->sampling->seed;
    assert_true(seed != 0);
    avl__v1__generate_request__free_unpacked(request, NULL);

    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3});
    json_decref(EVALUATE(0, "--methods", "dense", "--scores-only", "--max-tokens", "33"));
    assert_int_equal(fake_server_counts(server).requests, 12);
    request = fake_server_take_request(server);
    assert_non_null(request);
    assert_true(request->attention->dense);
    assert_int_equal(request->n_forced_token_ids, 0);
    assert_int_equal(request->max_tokens, 33);
    assert_true(request->sampling->_logprobs_case == 0);
    assert_int_equal(request->sampling->seed, seed);
    avl__v1__generate_request__free_unpacked(request, NULL);
}

static void table_answers_and_plots_are_written(void **state) {
    (void)state;
    char folder[] = "/tmp/avl-client-test-XXXXXX", path[128];
    assert_non_null(mkdtemp(folder));
    char plots[64], answers[64], json[64];
    snprintf(plots, sizeof plots, "%s/plots", folder);
    snprintf(answers, sizeof answers, "%s/answers", folder);
    snprintf(json, sizeof json, "%s/json", folder);
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3});
    program_setting_t setting = here();
    program_result_t result =
        PROGRAM(&setting, "eval", "--tasks", tasks, "--methods", "a-vl,random,uniform", "--budgets",
                ".5/.3,.3/.15", "--plots", plots, "--answers", answers, "--json", json);
    program_expect(&result, 0);
    assert_string_equal(result.errors, "");
    program_expect_text(result.output, "one: 3 questions, score: exact, 196.0 visual rows");
    program_expect_text(result.output, "two: 2 questions, score: mixed");
    program_expect_text(result.output, "\nuniform:.3/.15 ");
    program_free(&result);
    static const char *const files[] = {"quality-by-bytes.png", "quality-by-rows.png"};
    for (int i = 0; i < 2; i++) {
        unsigned char magic[4] = {0};
        snprintf(path, sizeof path, "%s/%s", plots, files[i]);
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        assert_int_equal(fread(magic, 1, 4, file), 4);
        assert_memory_equal(magic, "\x89PNG", 4);
        fclose(file);
        remove(path);
    }
    json_t *report = json_load_file(json, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(report, "methods")), 7);
    json_decref(report);
    FILE *file = fopen(answers, "r");
    assert_non_null(file);
    char line[1024];
    int lines = 0;
    for (; fgets(line, sizeof line, file) != NULL; lines++) {
        json_t *answer = json_loads(line, 0, NULL);
        assert_string_equal(json_string_value(json_object_get(answer, "text")), "w w w ");
        json_decref(answer);
    }
    assert_int_equal(lines, 7 * 5);
    fclose(file);
    remove(answers);
    remove(json);
    rmdir(plots);
    rmdir(folder);
}

/* A service without room is asked again; what fails for another reason is counted. */
static void refusals_are_repeated(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .refuse_every = 3});
    json_t *report = EVALUATE(0, "--methods", "a-vl", "-c", "4");
    expect(cell(report, 1, 0), "answered", 3);
    expect(report, "failed", 0);
    expect(cell(report, 1, 0), "answer_tokens", 3); /* of the attempt that counts */
    assert_true(fake_server_counts(server).requests > 20);
    json_decref(report);
}

static void failures_end_the_run_or_are_told(void **state) {
    (void)state;
    program_setting_t setting = here();
    fake_server_behave(
        server, &(fake_behaviour_t){.ending = FAKE_STATUS, .status = 3, .status_text = "too odd"});
    program_result_t result = PROGRAM(&setting, "eval", "--tasks", tasks, "-c", "1");
    program_expect(&result, 1);
    program_expect_text(result.errors, "INVALID: item \"a\" (line 1), method dense: too odd");
    program_free(&result);
    assert_int_equal(fake_server_counts(server).requests, 1); /* more of it would say no more */

    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .ending = FAKE_UNFINISHED});
    result = PROGRAM(&setting, "eval", "--tasks", tasks, "--limit", "1", "--methods", "dense");
    program_expect(&result, 1);
    program_expect_text(result.errors, "4 requests failed, first: item");
    program_expect_text(result.output, "0 of 1 answered");
    program_free(&result);
    result = PROGRAM(&setting, "eval", "--tasks", tasks, "--methods", "dense"); /* hopeless */
    program_expect(&result, 1);
    program_expect_text(result.errors, "method dense, again: the server ended the answer without");
    assert_string_equal(result.output, "");
    program_free(&result);

    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .one_more = true});
    result = PROGRAM(&setting, "eval", "--tasks", tasks, "--limit", "1", "--methods", "a-vl");
    program_expect(&result, 1);
    program_expect_text(result.errors, "2 requests failed, first: item");
    program_expect_text(result.errors, "3 tokens were forced, and 4 came back");
    program_free(&result);
    assert_int_equal(fake_server_counts(server).requests, 8); /* no comparison without dense */

    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .ending = FAKE_GARBAGE});
    result = PROGRAM(&setting, "eval", "--tasks", tasks, "--methods", "dense");
    program_expect(&result, 1);
    program_expect_text(result.errors, "no GenerateResponse");
    program_free(&result);

    fake_server_behave(server, &(fake_behaviour_t){.tokens = 2, .ending = FAKE_FINISHED_BARE});
    json_t *report = EVALUATE(0, "--methods", "dense");
    expect(cell(report, 0, 0), "visual_rows", 0);
    json_decref(report);

    result = PROGRAM(&setting, "eval", "--server", "127.0.0.1:1", "--tasks", tasks);
    program_expect(&result, 1);
    program_expect_text(result.errors, "no service answers at 127.0.0.1:1");
    program_free(&result);
}

/* Of an answer of one token nothing is after the first. */
static void nothing_is_after_the_only_token(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    json_t *report = EVALUATE(0, "--methods", "a-vl");
    expect(cell(report, 1, 0), "forced_agreement", 1);
    assert_true(json_is_null(json_object_get(cell(report, 1, 0), "forced_agreement_after_first")));
    assert_true(json_is_null(json_object_get(cell(report, 1, 0), "forced_kl_after_first")));
    json_decref(report);
}

/* Behind a prefill filter the service refuses to measure mass. */
static void a_filter_is_compared_without_mass(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .checks_attention = true});
    json_t *report = EVALUATE(0, "--methods", "a-vl,a-vl+prefill_keep_ratio=.5");
    expect(cell(report, 1, 0), "captured_mass", .75);
    expect(cell(report, 2, 0), "forced_agreement", 2. / 3);
    assert_true(json_is_null(json_object_get(cell(report, 2, 0), "captured_mass")));
    json_decref(report);
}

/* A mistake in the last method costs nothing, and a later one nothing of what is there. */
static void refusals_lose_no_measurements(void **state) {
    (void)state;
    program_setting_t setting = here();
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .checks_attention = true});
    program_result_t result =
        PROGRAM(&setting, "eval", "--tasks", tasks, "-c", "1", "--methods", "a-vl,no-such");
    program_expect(&result, 1);
    program_expect_text(result.errors, "method no-such: preset is unknown");
    assert_string_equal(result.output, "");
    program_free(&result);
    assert_int_equal(fake_server_counts(server).requests, 3);

    /* Two trials, five dense answers, five comparisons, and the second answer of a-vl. */
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .invalid_at = 14});
    json_t *report = EVALUATE(1, "--methods", "a-vl", "-c", "1");
    expect(cell(report, 0, 0), "answered", 3);
    expect(cell(report, 0, 0), "forced_agreement", 1);
    expect(cell(report, 1, 0), "answered", 1);
    expect(report, "failed", 1);
    assert_string_equal(json_string_value(json_object_get(report, "failure")),
                        "item \"b\" (line 2), method a-vl: too odd");
    json_decref(report);
}

static void used_wrongly_it_says_so(void **state) {
    (void)state;
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "eval");
    program_expect(&result, 2);
    program_expect_text(result.errors, "--tasks is missing");
    program_free(&result);
    result = PROGRAM(&setting, "eval", "--tasks", tasks, "--methods", "a-vl+x=1");
    program_expect(&result, 2);
    program_expect_text(result.errors, "--methods: method \"a-vl+x=1\": there is no option \"x\"");
    program_free(&result);
    result = PROGRAM(&setting, "eval", "--tasks", tasks, "-c", "0");
    program_expect(&result, 2);
    program_free(&result);
    result = PROGRAM(&setting, "eval", "--tasks", "/no/such/file");
    program_expect(&result, 1);
    program_expect_text(result.errors, "NOT_FOUND: /no/such/file: No such file");
    program_free(&result);
    result = PROGRAM(&setting, "eval", "--help");
    program_expect(&result, 0);
    program_expect_text(result.output, "A SPEC is NAME");
    program_free(&result);
}

static void an_interrupt_tells_what_was_measured(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .first_delay_ms = 100});
    program_setting_t setting = here();
    setting.terminal = true;
    setting.stop_on = "8/33 requests, ";
    program_result_t result = PROGRAM(&setting, "eval", "--tasks", tasks, "-c", "1");
    program_expect(&result, 130);
    program_expect_text(result.output, "evaluating");
    program_expect_text(result.output, "of 2 answered");
    program_expect_text(result.output, "CANCELLED: interrupted");
    program_free(&result);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_figure_is_there),
        cmocka_unit_test(requests_are_as_the_file_says),
        cmocka_unit_test(table_answers_and_plots_are_written),
        cmocka_unit_test(refusals_are_repeated),
        cmocka_unit_test(failures_end_the_run_or_are_told),
        cmocka_unit_test(nothing_is_after_the_only_token),
        cmocka_unit_test(a_filter_is_compared_without_mass),
        cmocka_unit_test(refusals_lose_no_measurements),
        cmocka_unit_test(used_wrongly_it_says_so),
        cmocka_unit_test(an_interrupt_tells_what_was_measured),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
