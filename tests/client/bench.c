/* tests/client/bench.c: avl bench against a service whose delays are known. Times are only held
 * against each other: sleeping machines make every delay longer, none shorter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "proto/texts.h"
#include "tests/client/fake_server.h"
#include "tests/client/program.h"

static fake_server_t *server;

static program_setting_t here(void) {
    return (program_setting_t){.server = fake_server_address(server)};
}

static int begin(void **state) {
    (void)state;
    server = fake_server_start();
    return 0;
}

static int end(void **state) {
    (void)state;
    fake_server_stop(server);
    return 0;
}

/* Runs `avl bench --json ARGUMENTS` and parses what it prints. */
static json_t *measure(int exit_status, const char *const *arguments) {
    const char *all[32] = {"bench", "--json"};
    for (size_t i = 0; arguments[i] != NULL; i++)
        all[i + 2] = arguments[i];
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

#define MEASURE(exit_status, ...) measure((exit_status), (const char *const[]){__VA_ARGS__, NULL})

static long long count(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value))
        fail_msg("%s is no integer", key);
    return json_integer_value(value);
}

static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value))
        fail_msg("%s is no number", key);
    return json_number_value(value);
}

static void the_closed_loop_measures_every_request(void **state) {
    (void)state;
    fake_server_behave(server,
                       &(fake_behaviour_t){.tokens = 5, .first_delay_ms = 20, .token_delay_ms = 4});
    json_t *report = MEASURE(0, "--concurrency", "3", "--requests", "12");
    fake_counts_t counts = fake_server_counts(server);
    assert_int_equal(counts.requests, 12);
    assert_int_equal(counts.together_most, 3);
    assert_int_equal(counts.cancelled, 0);
    assert_int_equal(count(report, "completed"), 12);
    assert_int_equal(count(report, "failed"), 0);
    assert_int_equal(count(report, "cancelled"), 0);
    assert_int_equal(count(report, "unfinished"), 0);
    assert_int_equal(count(report, "total_output_tokens"), 60);
    assert_int_equal(count(report, "total_input_tokens"), 12 * 207);
    assert_int_equal(count(report, "total_visual_tokens"), 12 * 196);
    assert_int_equal(count(report, "max_concurrency"), 3);
    assert_true(json_is_null(json_object_get(report, "request_rate")));
    assert_true(json_is_null(json_object_get(report, "request_goodput")));
    assert_int_equal(count(report, "ranks"), 2);
    /* A delay of the service is the least that can be seen of it. */
    assert_true(number(report, "median_ttft_ms") >= 19);
    assert_true(number(report, "median_e2el_ms") >= 19 + 4 * 4);
    assert_true(number(report, "mean_tpot_ms") > 0 && number(report, "mean_itl_ms") > 0);
    static const char *const names[] = {"ttft", "tpot", "itl", "e2el"};
    for (size_t i = 0; i < 4; i++) {
        char keys[4][32];
        static const char *const kinds[] = {"median", "p90", "p99", "mean"};
        for (size_t k = 0; k < 4; k++)
            snprintf(keys[k], sizeof keys[k], "%s_%s_ms", kinds[k], names[i]);
        assert_true(number(report, keys[0]) <= number(report, keys[1]));
        assert_true(number(report, keys[1]) <= number(report, keys[2]));
        assert_true(number(report, keys[3]) > 0);
    }
    assert_true(number(report, "mean_ttft_ms") < number(report, "mean_e2el_ms"));
    double duration = number(report, "duration");
    assert_true(duration >= 4 * 0.019);
    double expected = 60 / duration, shown = number(report, "output_throughput");
    assert_true(shown > 0.999 * expected && shown < 1.001 * expected);
    const json_t *visual = json_object_get(report, "visual");
    assert_true(number(visual, "mean_rows_seen") == 196);
    assert_true(number(visual, "mean_rows_stored") == 98);
    assert_true(number(visual, "mean_rows_computed_per_step") == 65.5);
    const json_t *timings = json_object_get(report, "server_timings");
    assert_true(number(timings, "mean_prefill_ms") > 3.99 &&
                number(timings, "mean_prefill_ms") < 4.01);
    json_decref(report);
}

static void the_open_loop_does_not_wait_for_answers(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 2, .first_delay_ms = 300});
    json_t *report = MEASURE(0, "--rate", "1000", "--requests", "20");
    assert_int_equal(count(report, "completed"), 20);
    assert_true(number(report, "request_rate") == 1000);
    /* A closed loop of one would have one under way; 20 arrivals take some 20 ms. */
    assert_true(fake_server_counts(server).together_most > 5);
    json_decref(report);
}

static void failures_are_counted_by_status(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .refuse_every = 4});
    json_t *report = MEASURE(0, "-c", "2", "-n", "40");
    assert_int_equal(count(report, "completed"), 30);
    assert_int_equal(count(report, "failed"), 10);
    assert_int_equal(count(json_object_get(report, "errors"), "EXHAUSTED"), 10);
    assert_int_equal(count(report, "total_output_tokens"), 30);
    json_decref(report);
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 2, .ending = FAKE_UNFINISHED});
    report = MEASURE(1, "-c", "2", "-n", "4");
    assert_int_equal(count(report, "completed"), 0);
    assert_int_equal(count(json_object_get(report, "errors"), "INTERNAL"), 4);
    assert_true(json_is_null(json_object_get(report, "mean_e2el_ms")));
    json_decref(report);
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .ending = FAKE_GARBAGE});
    report = MEASURE(1, "-c", "2", "-n", "4");
    assert_int_equal(count(json_object_get(report, "errors"), "INTERNAL"), 4);
    json_decref(report);
}

/* Whoever was taken and then given up is late, long before the deadline as well. */
static void who_is_given_up_is_late(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int late, refused;
    } rows[] = {{"the answer takes about 9 s", 0, 3}, {AVL_TEXT_GIVEN_UP ": no", 3, 0}};
    for (size_t i = 0; i < 2; i++) {
        fake_server_behave(server, &(fake_behaviour_t){.ending = FAKE_STATUS,
                                                       .status = 4, /* DEADLINE_EXCEEDED */
                                                       .status_text = rows[i].text});
        json_t *report = MEASURE(1, "-n", "3", "--deadline", "100");
        assert_int_equal(count(report, "late"), rows[i].late);
        assert_int_equal(count(report, "refused"), rows[i].refused);
        json_decref(report);
    }
}

static void the_table_says_why_requests_failed(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .refuse_every = 2});
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "bench", "-n", "6", "--deadline", "30");
    program_expect(&result, 0);
    assert_string_equal(result.errors, ""); /* no terminal, no progress */
    program_expect_text(result.output, "2 ranks, cpu, bf16");
    program_expect_text(result.output, "3 completed, 3 failed (3 refused, 0 late) in");
    program_expect_text(result.output, "error      3 EXHAUSTED, first: no room");
    program_expect_text(result.output, "50.0 % of all that ended");
    program_expect_text(result.output, "196.0 rows seen, 98.0 stored, 65.5 computed a step");
    program_expect_text(result.output, "TTFT");
    program_expect_text(result.output, "E2EL");
    program_free(&result);
    assert_int_equal(fake_server_counts(server).with_deadline, 6);
}

static void cancelled_requests_are_counted_apart(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 20, .token_delay_ms = 1});
    json_t *report =
        MEASURE(0, "-c", "4", "-n", "60", "--cancel-rate", "0.5", "--max-tokens", "20");
    long long cancelled = count(report, "cancelled");
    /* Of 60 draws at one half, by the default seed. */
    assert_true(cancelled > 10 && cancelled < 50);
    assert_int_equal(count(report, "completed") + cancelled, 60);
    assert_int_equal(count(report, "failed"), 0);
    json_decref(report);
    /* The same seed gives up the same requests; another one others; 1 all of them. */
    report = MEASURE(0, "-c", "1", "-n", "60", "--cancel-rate", "0.5", "--max-tokens", "20");
    assert_int_equal(count(report, "cancelled"), cancelled);
    json_decref(report);
    report = MEASURE(0, "-c", "4", "-n", "10", "--cancel-rate", "1", "--max-tokens", "20");
    assert_int_equal(count(report, "cancelled"), 10);
    assert_int_equal(count(report, "completed"), 0);
    json_decref(report);
}

static void the_deadline_ends_slow_requests(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .ending = FAKE_STALL});
    json_t *report = MEASURE(1, "-c", "4", "-n", "4", "--deadline", "0.2");
    assert_int_equal(count(report, "failed"), 4);
    assert_int_equal(count(json_object_get(report, "errors"), "DEADLINE"), 4);
    assert_true(number(report, "request_goodput") == 0);
    json_decref(report);
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    report = MEASURE(0, "-n", "4", "--deadline", "50");
    assert_true(number(report, "request_goodput") == number(report, "request_throughput"));
    json_decref(report);
}

static void the_duration_ends_the_run(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .first_delay_ms = 5});
    json_t *report = MEASURE(0, "-c", "2", "--duration", "0.5");
    assert_true(count(report, "completed") >= 2);
    assert_int_equal(count(report, "completed"), fake_server_counts(server).requests);
    assert_true(number(report, "duration") >= 0.45);
    json_decref(report);
}

static void warming_up_does_not_count(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    json_t *report = MEASURE(0, "--warmup", "5", "-n", "7");
    assert_int_equal(count(report, "completed"), 7);
    assert_int_equal(count(report, "total_output_tokens"), 7);
    assert_int_equal(fake_server_counts(server).requests, 12);
    json_decref(report);
}

static void connections_are_really_several(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    json_decref(MEASURE(0, "-n", "9"));
    assert_int_equal(fake_server_counts(server).connections, 1);
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    json_decref(MEASURE(0, "-n", "9", "--connections", "3"));
    assert_int_equal(fake_server_counts(server).connections, 3);
}

static void pictures_and_questions_take_turns(void **state) {
    (void)state;
    char *first = program_file("first", 5), *second = program_file("second", 6);
    char *questions = program_file("one\r\n\ntwo\nthree", 15);
    static const char *const texts[] = {"one", "two", "three"};
    for (int n = 1; n <= 6; n++) {
        char number_text[8];
        snprintf(number_text, sizeof number_text, "%d", n);
        fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
        json_decref(MEASURE(0, "-n", number_text, "-i", first, "-i", second, "--prompts", questions,
                            "--seed", "100", "--ignore-eos", "--max-tokens", "3", "--visual-store",
                            "0.25"));
        Avl__V1__GenerateRequest *request = fake_server_take_request(server);
        assert_non_null(request);
        const Avl__V1__Message *user = request->conversation->messages[0];
        assert_int_equal(user->n_content, 2);
        assert_int_equal(user->content[0]->image->data.len, n % 2 == 1 ? 5 : 6);
        assert_string_equal(user->content[1]->text, texts[(n - 1) % 3]);
        assert_int_equal(request->sampling->seed, 100 + n - 1);
        assert_int_equal(request->max_tokens, 3);
        assert_true(request->ignore_eos);
        assert_true(request->attention->visual_store_ratio == 0.25);
        assert_false(request->progress);
        avl__v1__generate_request__free_unpacked(request, NULL);
    }
    remove(first);
    remove(second);
    remove(questions);
    free(first);
    free(second);
    free(questions);
}

static void an_interrupt_reports_what_was_measured(void **state) {
    (void)state;
    fake_server_behave(
        server, &(fake_behaviour_t){
                    .tokens = 1, .refuse_every = 0, .first_delay_ms = 20, .ending = FAKE_FINISHED});
    program_setting_t setting = here();
    setting.terminal = true;
    setting.stop_on = "benchmark ";
    program_result_t result = PROGRAM(&setting, "bench", "-c", "2", "-n", "100000");
    program_expect(&result, 130);
    program_expect_text(result.output, " unfinished in ");
    program_expect_text(result.output, "CANCELLED: interrupted");
    program_free(&result);
}

static void a_terminal_sees_a_bar(void **state) {
    (void)state;
    fake_server_behave(server,
                       &(fake_behaviour_t){.tokens = 2, .first_delay_ms = 30, .refuse_every = 3});
    program_setting_t setting = here();
    setting.terminal = true;
    program_result_t result = PROGRAM(&setting, "bench", "-c", "2", "-n", "12", "--warmup", "2");
    program_expect(&result, 0);
    program_expect_text(result.output, "\r\033[Kwarming up");
    program_expect_text(result.output,
                        "\r\033[Kbenchmark          [........................] 0/12");
    program_expect_text(result.output, "/12 requests, 2 running, ");
    program_expect_text(result.output,
                        "model      fake^[[31m, 2 ranks"); /* the service's own words */
    program_free(&result);
}

static void *stop_when_busy(void *argument) {
    fake_server_t *doomed = argument;
    while (fake_server_counts(doomed).requests < 10)
        avl_clock_sleep_ns(AVL_NS_PER_MS);
    fake_server_stop(doomed);
    return NULL;
}

/* Its requests fail from then on, and are not repeated as fast as the machine can. */
static void a_service_that_vanishes_fails_its_requests(void **state) {
    (void)state;
    fake_server_t *doomed = fake_server_start();
    char address[64];
    snprintf(address, sizeof address, "%s", fake_server_address(doomed));
    fake_server_behave(doomed, &(fake_behaviour_t){.tokens = 1, .first_delay_ms = 2});
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stop_when_busy, doomed), 0);
    json_t *report = MEASURE(0, "--server", address, "-c", "2", "--duration", "1");
    pthread_join(thread, NULL);
    assert_true(count(report, "completed") >= 8); /* two may have been cut */
    long long failed = count(report, "failed");
    assert_true(failed > 0 && failed <= 2 * 101); /* two places, a pause of 10 ms each */
    json_decref(report);
}

static void nobody_at_the_address_is_told(void **state) {
    (void)state;
    program_setting_t setting = {0};
    program_result_t result = PROGRAM(&setting, "bench", "--server", "127.0.0.1:1");
    program_expect(&result, 1);
    program_expect_text(result.errors, "UNAVAILABLE: no service answers at 127.0.0.1:1");
    assert_string_equal(result.output, "");
    program_free(&result);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_closed_loop_measures_every_request),
        cmocka_unit_test(the_open_loop_does_not_wait_for_answers),
        cmocka_unit_test(failures_are_counted_by_status),
        cmocka_unit_test(who_is_given_up_is_late),
        cmocka_unit_test(the_table_says_why_requests_failed),
        cmocka_unit_test(cancelled_requests_are_counted_apart),
        cmocka_unit_test(the_deadline_ends_slow_requests),
        cmocka_unit_test(the_duration_ends_the_run),
        cmocka_unit_test(warming_up_does_not_count),
        cmocka_unit_test(connections_are_really_several),
        cmocka_unit_test(pictures_and_questions_take_turns),
        cmocka_unit_test(an_interrupt_reports_what_was_measured),
        cmocka_unit_test(a_terminal_sees_a_bar),
        cmocka_unit_test(a_service_that_vanishes_fails_its_requests),
        cmocka_unit_test(nobody_at_the_address_is_told),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
