/* tests/client/ask.c: avl ask against services that behave well and badly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
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

static void text_is_streamed(void **state) {
    (void)state;
    fake_server_behave(server,
                       &(fake_behaviour_t){.tokens = 3, .text = "b\xc3\xa4r ", .progress = true});
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "ask", "what is it?");
    program_expect(&result, 0);
    assert_string_equal(result.output, "b\xc3\xa4r b\xc3\xa4r b\xc3\xa4r \n");
    assert_string_equal(result.errors, ""); /* no terminal, no progress */
    program_free(&result);
}

static void json_has_every_key(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 3, .text = "\"\xc3\xa4\n"});
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "ask", "--json", "what is it?");
    program_expect(&result, 0);
    assert_string_equal(result.errors, "");
    json_t *object = json_loads(result.output, 0, NULL);
    assert_non_null(object);
    const char *text = NULL, *reason = NULL, *bytes = NULL;
    json_t *ids = NULL;
    int seed = 0, prompt = 0, visual = 0, completion = 0, interval = 0, seen = 0, stored = 0;
    double store = 0, compute = 0, computed = 0;
    double queue = 0, preprocess = 0, encode = 0, prefill = 0, decode = 0, total = 0;
    assert_int_equal(
        json_unpack(
            object,
            "{s:s, s:o, s:s, s:i, s:{s:i, s:i, s:i !},"
            " s:{s:f, s:f, s:i, s:i, s:i, s:f, s:s !}, s:{s:f, s:f, s:f, s:f, s:f, s:f !} !}",
            "text", &text, "token_ids", &ids, "finish_reason", &reason, "seed", &seed, "usage",
            "prompt_tokens", &prompt, "visual_tokens", &visual, "completion_tokens", &completion,
            "attention", "visual_store_ratio", &store, "visual_compute_ratio", &compute,
            "visual_update_interval", &interval, "visual_rows_seen", &seen, "visual_rows_stored",
            &stored, "visual_rows_computed_per_step", &computed, "kv_bytes_returned", &bytes,
            "timings", "queue_seconds", &queue, "preprocess_seconds", &preprocess, "encode_seconds",
            &encode, "prefill_seconds", &prefill, "decode_seconds_per_token", &decode,
            "total_seconds", &total),
        0);
    assert_string_equal(text, "\"\xc3\xa4\n\"\xc3\xa4\n\"\xc3\xa4\n");
    assert_int_equal(json_array_size(ids), 3);
    assert_int_equal(json_integer_value(json_array_get(ids, 2)), 2);
    assert_string_equal(reason, "length");
    assert_int_equal(seed, 7);
    assert_int_equal(prompt, 207);
    assert_int_equal(visual, 196);
    assert_int_equal(completion, 3);
    assert_int_equal(interval, 3);
    assert_int_equal(seen, 196);
    assert_int_equal(stored, 98);
    assert_true(store == 0.5 && compute == 0.25 && computed == 65.5);
    assert_string_equal(bytes, "18446744073709551615"); /* beyond JSON's integers */
    assert_true(queue == 0.001 && preprocess == 0.002 && encode == 0.003);
    assert_true(prefill == 0.004 && decode == 0.005 && total == 0.006);
    json_decref(object);
    program_free(&result);
}

static void options_reach_the_service(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    char *first = program_file("\0png", 4), *second = program_file("jpeg", 4);
    program_setting_t setting = here();
    program_result_t result = PROGRAM(
        &setting, "ask", "-i", first, "--image", second, "--max-tokens", "9", "--temperature",
        "0.5", "--top-p", "0.9", "--top-k", "40", "--min-p", "0.1", "--repetition-penalty", "1.5",
        "--presence-penalty", "-2", "--frequency-penalty", "0.25", "--min-tokens", "3", "--stop",
        "\n\n", "--stop", "END", "--seed", "18446744073709551615", "--visual-store", "0.4",
        "--visual-compute", "0.2", "--visual-interval", "5", "--visual-core", "step", "--preset",
        "lean", "--visual-selection", "question", "--selection-seed", "8", "--prefill-keep", "0.5",
        "--prefill-layer", "3", "--text-keep", "0.75", "--text-keep-min", "12", "--text-policy",
        "h2o", "--protect-prompt", "no", "--system", "be brief", "--ignore-eos", "--timeout", "30",
        "what?");
    program_expect(&result, 0);
    program_free(&result);
    assert_int_equal(fake_server_counts(server).with_deadline, 1);
    Avl__V1__GenerateRequest *request = fake_server_take_request(server);
    assert_non_null(request);
    assert_int_equal(request->input_case, AVL__V1__GENERATE_REQUEST__INPUT_CONVERSATION);
    assert_int_equal(request->conversation->n_messages, 2);
    const Avl__V1__Message *system = request->conversation->messages[0];
    const Avl__V1__Message *user = request->conversation->messages[1];
    assert_int_equal(system->role, AVL__V1__ROLE__ROLE_SYSTEM);
    assert_string_equal(system->content[0]->text, "be brief");
    assert_int_equal(user->role, AVL__V1__ROLE__ROLE_USER);
    assert_int_equal(user->n_content, 3);
    assert_int_equal(user->content[0]->image->data.len, 4);
    assert_memory_equal(user->content[0]->image->data.data, "\0png", 4);
    assert_memory_equal(user->content[1]->image->data.data, "jpeg", 4);
    assert_string_equal(user->content[2]->text, "what?");
    assert_int_equal(request->max_tokens, 9);
    assert_true(request->ignore_eos);
    assert_false(request->progress);
    assert_true(request->sampling->temperature == 0.5 && request->sampling->top_p == 0.9);
    assert_int_equal(request->sampling->top_k, 40);
    assert_true(request->sampling->min_p == 0.1 && request->sampling->repetition_penalty == 1.5);
    assert_true(request->sampling->presence_penalty == -2);
    assert_true(request->sampling->frequency_penalty == 0.25);
    assert_int_equal(request->sampling->min_tokens, 3);
    assert_int_equal(request->sampling->n_stop, 2);
    assert_string_equal(request->sampling->stop[0], "\n\n");
    assert_string_equal(request->sampling->stop[1], "END");
    assert_true(request->sampling->seed == UINT64_MAX);
    assert_true(request->attention->visual_store_ratio == 0.4);
    assert_true(request->attention->visual_compute_ratio == 0.2);
    assert_int_equal(request->attention->visual_update_interval, 5);
    assert_int_equal(request->attention->visual_core, AVL__V1__VISUAL_CORE__VISUAL_CORE_STEP);
    assert_string_equal(request->attention->preset, "lean");
    assert_int_equal(request->attention->visual_selection,
                     AVL__V1__VISUAL_SELECTION__VISUAL_SELECTION_QUESTION);
    assert_int_equal(request->attention->selection_seed, 8);
    assert_true(request->attention->prefill_keep_ratio == 0.5);
    assert_int_equal(request->attention->prefill_layer, 3);
    assert_true(request->attention->text_keep_ratio == 0.75);
    assert_int_equal(request->attention->text_keep_min, 12);
    assert_int_equal(request->attention->text_policy, AVL__V1__TEXT_POLICY__TEXT_POLICY_H2O);
    assert_true(request->attention->_protect_prompt_case != 0);
    assert_false(request->attention->protect_prompt);
    assert_false(request->attention->dense);
    avl__v1__generate_request__free_unpacked(request, NULL);
    remove(first);
    remove(second);
    free(first);
    free(second);
}

static void what_is_not_given_is_absent(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    char *picture = program_file("png", 3);
    program_setting_t setting = {.input = "<image>\nwhat?\n"};
    program_result_t result = PROGRAM(&setting, "ask", "--server", fake_server_address(server),
                                      "--raw-prompt", "--dense", "-i", picture, "-");
    program_expect(&result, 0);
    program_free(&result);
    assert_int_equal(fake_server_counts(server).with_deadline, 0);
    Avl__V1__GenerateRequest *request = fake_server_take_request(server);
    assert_non_null(request);
    assert_int_equal(request->input_case, AVL__V1__GENERATE_REQUEST__INPUT_RAW_PROMPT);
    assert_string_equal(request->raw_prompt->text, "<image>\nwhat?\n"); /* as it stands */
    assert_int_equal(request->raw_prompt->n_images, 1);
    assert_int_equal(request->max_tokens, 0);
    assert_int_equal(request->sampling->_temperature_case, 0);
    assert_int_equal(request->sampling->_top_p_case, 0);
    assert_int_equal(request->sampling->_top_k_case, 0);
    assert_int_equal(request->sampling->_seed_case, 0);
    assert_int_equal(request->attention->_visual_store_ratio_case, 0);
    assert_int_equal(request->attention->_visual_compute_ratio_case, 0);
    assert_int_equal(request->attention->_visual_update_interval_case, 0);
    assert_true(request->attention->dense);
    avl__v1__generate_request__free_unpacked(request, NULL);
    remove(picture);
    free(picture);
}

static void the_question_may_come_from_standard_input(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    program_setting_t setting = here();
    setting.input = "two\nlines\n";
    program_result_t result = PROGRAM(&setting, "ask", "-");
    program_expect(&result, 0);
    program_free(&result);
    Avl__V1__GenerateRequest *request = fake_server_take_request(server);
    assert_non_null(request);
    assert_string_equal(request->conversation->messages[0]->content[0]->text, "two\nlines");
    avl__v1__generate_request__free_unpacked(request, NULL);
}

static void a_nul_in_the_question_is_refused(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    char *file = program_file("a\0b", 3);
    char command[512];
    snprintf(command, sizeof command, AVL_BINARY_DIR "/bin/avl ask -s %s - < %s 2>&1",
             fake_server_address(server), file);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    char line[256] = "";
    assert_non_null(fgets(line, sizeof line, pipe));
    program_expect_text(line, "contains a NUL byte");
    assert_int_not_equal(pclose(pipe), 0);
    assert_int_equal(fake_server_counts(server).requests, 0);
    remove(file);
    free(file);
}

/* A picture of several megabytes travels whole. */
static void a_large_picture_is_sent(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    size_t byte_count = (size_t)20 << 20;
    char *bytes = malloc(byte_count);
    assert_non_null(bytes);
    for (size_t i = 0; i < byte_count; i++)
        bytes[i] = (char)(i * 31 >> 7);
    char *picture = program_file(bytes, byte_count);
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "ask", "-i", picture, "what?");
    program_expect(&result, 0);
    program_free(&result);
    Avl__V1__GenerateRequest *request = fake_server_take_request(server);
    assert_non_null(request);
    const Avl__V1__Image *image = request->conversation->messages[0]->content[0]->image;
    assert_int_equal(image->data.len, byte_count);
    assert_memory_equal(image->data.data, bytes, byte_count);
    avl__v1__generate_request__free_unpacked(request, NULL);
    remove(picture);
    free(picture);
    free(bytes);
}

/* Beyond what any message can hold: refused here, before the memory is full. */
static void an_endless_picture_is_refused(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1});
    char *sparse = program_file("", 0);
    assert_int_equal(truncate(sparse, ((off_t)1 << 30) + 1), 0);
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "ask", "-i", sparse, "what?");
    program_expect(&result, 1);
    program_expect_text(result.errors, "TOO_LARGE");
    program_free(&result);
    assert_int_equal(fake_server_counts(server).requests, 0);
    remove(sparse);
    free(sparse);
}

static void the_service_s_refusal_is_told(void **state) {
    (void)state;
    static const struct {
        int code;
        const char *text, *expected;
    } cases[] = {
        {3, "visual_store_ratio: 2 is not in (0, 1]", "INVALID: visual_store_ratio: 2 is not in"},
        {8, "the queue is full", "EXHAUSTED: the queue is full"},
        {4, "too late", "DEADLINE: too late"},
        {14, "draining", "UNAVAILABLE: draining"},
        {12, "n > 1", "UNSUPPORTED: n > 1"},
        {13, "", "INTERNAL: the server gave status 13 and no text"},
        {1, "shut down", "CANCELLED: shut down"},
        {99, "strange", "INTERNAL: strange"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_server_behave(server, &(fake_behaviour_t){.tokens = i % 2 == 0 ? 0 : 2,
                                                       .ending = FAKE_STATUS,
                                                       .status = cases[i].code,
                                                       .status_text = cases[i].text});
        program_setting_t setting = here();
        program_result_t result = PROGRAM(&setting, "ask", "--json", "what?");
        program_expect(&result, 1);
        program_expect_text(result.errors, cases[i].expected);
        assert_string_equal(result.output, ""); /* JSON whole or not at all */
        program_free(&result);
    }
}

static void a_service_that_breaks_its_promise_is_told(void **state) {
    (void)state;
    static const struct {
        fake_ending_t ending;
        bool json;
        const char *expected;
    } cases[] = {
        {FAKE_UNFINISHED, false, "ended the answer without finishing it"},
        {FAKE_FINISHED_TWICE, false, "went on after the end of the answer"},
        {FAKE_GARBAGE, false, "a message that is no GenerateResponse"},
        {FAKE_HUGE, false, "larger than max"},
        {FAKE_FINISHED_NAN, true, "does not fit JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .ending = cases[i].ending});
        program_setting_t setting = here();
        program_result_t result = PROGRAM(&setting, "ask", cases[i].json ? "--json" : "what?",
                                          cases[i].json ? "what?" : NULL);
        program_expect(&result, 1);
        program_expect_text(result.errors, cases[i].expected);
        program_free(&result);
    }
}

static void text_that_is_no_utf8_does_not_become_json(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .text = "\xff\xfe"});
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "ask", "--json", "what?");
    program_expect(&result, 1);
    program_expect_text(result.errors, "does not fit JSON");
    assert_string_equal(result.output, "");
    program_free(&result);
}

static void missing_parts_count_as_zero(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 0, .ending = FAKE_FINISHED_BARE});
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "ask", "--json", "what?");
    program_expect(&result, 0);
    program_expect_text(result.output, "\"text\":\"\",\"token_ids\":[]");
    program_expect_text(result.output, "\"prompt_tokens\":0");
    program_free(&result);
}

static void the_timeout_ends_a_silent_service(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 2, .ending = FAKE_STALL});
    program_setting_t setting = here();
    program_result_t result = PROGRAM(&setting, "ask", "--timeout", "0.3", "what?");
    program_expect(&result, 1);
    program_expect_text(result.errors, "DEADLINE: no complete answer within the time given");
    assert_string_equal(result.output, "w w \n");
    program_free(&result);
}

static void an_interrupt_cancels_the_request(void **state) {
    (void)state;
    for (int endless = 0; endless < 2; endless++) {
        fake_server_behave(server,
                           &(fake_behaviour_t){.tokens = 1,
                                               .token_delay_ms = 1,
                                               .ending = endless ? FAKE_ENDLESS : FAKE_STALL});
        program_setting_t setting = here();
        setting.stop_on = "w ";
        program_result_t result = PROGRAM(&setting, "ask", "what?");
        program_expect(&result, 130);
        program_expect_text(result.errors, "CANCELLED: interrupted");
        program_free(&result);
        /* The service hears of it. */
        int64_t until_ns = avl_clock_now_ns() + 20 * AVL_NS_PER_S;
        while (fake_server_counts(server).cancelled == 0 && avl_clock_now_ns() < until_ns)
            avl_clock_sleep_ns(AVL_NS_PER_MS);
        assert_int_equal(fake_server_counts(server).cancelled, 1);
    }
}

static void a_closed_output_ends_an_endless_answer(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.token_delay_ms = 1, .ending = FAKE_ENDLESS});
    program_setting_t setting = here();
    setting.close_output = true;
    program_result_t result = PROGRAM(&setting, "ask", "what?");
    program_expect(&result, 1);
    program_expect_text(result.errors, "standard output: Broken pipe");
    program_free(&result);
}

static void a_full_disk_is_told(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 2});
    for (int json = 0; json < 2; json++) {
        program_setting_t setting = here();
        setting.output = "/dev/full";
        program_result_t result =
            PROGRAM(&setting, "ask", json ? "--json" : "what?", json ? "what?" : NULL);
        program_expect(&result, 1);
        program_expect_text(result.errors, "standard output: No space left");
        program_free(&result);
    }
}

static void nobody_at_the_address_is_told(void **state) {
    (void)state;
    static const char *const addresses[] = {"127.0.0.1:1", "unix:/no/such/socket", "[::1]:1",
                                            "no-such-host.invalid:50051"};
    program_setting_t setting = {0};
    for (size_t i = 0; i < sizeof addresses / sizeof addresses[0]; i++) {
        program_result_t result = PROGRAM(&setting, "ask", "--server", addresses[i], "what?");
        program_expect(&result, 1);
        program_expect_text(result.errors, "UNAVAILABLE: ");
        program_expect_text(result.errors, addresses[i]);
        assert_null(strstr(result.errors, "\nE")); /* gRPC's own log lines */
        program_free(&result);
    }
}

/* A program on the port that is no gRPC server: accepts, says something, and closes. */
typedef struct stranger {
    int listener;
    const char *words;
} stranger_t;

static void *be_strange(void *argument) {
    stranger_t *stranger = argument;
    for (;;) {
        int connection = accept(stranger->listener, NULL, NULL);
        if (connection < 0)
            return NULL;
        if (stranger->words == NULL)
            continue; /* says nothing, as a program that hangs; the test's end closes it */
        ssize_t sent = send(connection, stranger->words, strlen(stranger->words), MSG_NOSIGNAL);
        (void)sent; /* whether the client still listens does not matter */
        close(connection);
    }
}

static void a_port_of_another_kind_is_told(void **state) {
    (void)state;
    static const char *const words[] = {NULL, "", "HTTP/1.1 400 Bad Request\r\n\r\n",
                                        "\x16\x03\x01\xff\xff random bytes \x01\x02"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        stranger_t stranger = {.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0),
                               .words = words[i]};
        struct sockaddr_in address = {.sin_family = AF_INET,
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t address_bytes = sizeof address;
        assert_int_equal(bind(stranger.listener, (struct sockaddr *)&address, address_bytes), 0);
        assert_int_equal(listen(stranger.listener, 8), 0);
        assert_int_equal(
            getsockname(stranger.listener, (struct sockaddr *)&address, &address_bytes), 0);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, be_strange, &stranger), 0);
        char name[32];
        snprintf(name, sizeof name, "127.0.0.1:%d", ntohs(address.sin_port));
        program_setting_t setting = {0};
        program_result_t result = PROGRAM(&setting, "ask", "--server", name, "what?");
        program_expect(&result, 1);
        program_expect_text(result.errors, "UNAVAILABLE");
        program_free(&result);
        shutdown(stranger.listener, SHUT_RDWR);
        pthread_join(thread, NULL);
        close(stranger.listener);
    }
}

static void *stop_when_asked(void *argument) {
    fake_server_t *doomed = argument;
    while (fake_server_counts(doomed).requests == 0)
        avl_clock_sleep_ns(AVL_NS_PER_MS);
    fake_server_stop(doomed);
    return NULL;
}

static void a_service_that_vanishes_is_told(void **state) {
    (void)state;
    fake_server_t *doomed = fake_server_start();
    char address[64];
    snprintf(address, sizeof address, "%s", fake_server_address(doomed));
    fake_server_behave(doomed, &(fake_behaviour_t){.tokens = 1, .ending = FAKE_STALL});
    program_setting_t setting = {.server = address};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stop_when_asked, doomed), 0);
    program_result_t result = PROGRAM(&setting, "ask", "what?");
    program_expect(&result, 1);
    assert_true(strstr(result.errors, "UNAVAILABLE") != NULL ||
                strstr(result.errors, "CANCELLED") != NULL);
    program_free(&result);
    pthread_join(thread, NULL);
}

static void a_terminal_sees_progress_and_a_summary(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 2, .progress = true});
    program_setting_t setting = here();
    setting.terminal = true;
    program_result_t result = PROGRAM(&setting, "ask", "what?");
    program_expect(&result, 0);
    program_expect_text(result.output, "loading the model");
    program_expect_text(result.output, "[############............] 50/100 %");
    program_expect_text(result.output, "reading the prompt");
    program_expect_text(result.output, "\r\033[Kw w ");
    program_expect_text(result.output, "207 prompt tokens, 196 of them visual; 2 tokens");
    program_expect_text(result.output, "196 seen, 98 stored, 65.5 computed a step");
    program_free(&result);
}

static void a_narrow_terminal_gets_short_lines(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .progress = true});
    program_setting_t setting = here();
    setting.terminal = true;
    setting.columns = 20;
    program_result_t result = PROGRAM(&setting, "ask", "what?");
    program_expect(&result, 0);
    program_expect_text(result.output, "\r\033[Kloading the model  \r\033[K"); /* 19 cells */
    program_free(&result);
}

static void a_dumb_terminal_gets_no_progress(void **state) {
    (void)state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .progress = true});
    program_setting_t setting = here();
    setting.terminal = true;
    setting.kind = "dumb";
    program_result_t result = PROGRAM(&setting, "ask", "what?");
    program_expect(&result, 0);
    assert_string_equal(result.output, "w \r\n");
    program_free(&result);
}

static void a_terminal_cannot_be_steered(void **state) {
    (void)state;
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"\x1b]0;title\x07", "^[]0;title^G"},
        {"a\x9b"
         "31mb",
         "a\xef\xbf\xbd"
         "31mb"}, /* a C1 control as a bare byte */
        {"a\xc2\x9b"
         "31mb",
         "a31mb"}, /* and as UTF-8 */
        {"\x08\x7f", "^H^?"},
        {"x\xc3", "x\xef\xbf\xbd"}, /* half a character */
        {"\xc3\xa4 \xe4\xbd\xa0 \xf0\x9f\x98\x80", "\xc3\xa4 \xe4\xbd\xa0 \xf0\x9f\x98\x80"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        program_setting_t setting = here();
        setting.terminal = true;
        fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .text = cases[i].text});
        program_result_t result = PROGRAM(&setting, "ask", "what?");
        program_expect(&result, 0);
        program_expect_text(result.output, cases[i].expected);
        program_free(&result);
        /* The same in the text of an error. */
        fake_server_behave(
            server,
            &(fake_behaviour_t){.ending = FAKE_STATUS, .status = 3, .status_text = "\x1b[31mred"});
        result = PROGRAM(&setting, "ask", "what?");
        program_expect(&result, 1);
        program_expect_text(result.output, "INVALID: ^[[31mred");
        program_free(&result);
        /* A file gets the bytes as they are. */
        fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .text = cases[i].text});
        setting.terminal = false;
        result = PROGRAM(&setting, "ask", "what?");
        program_expect(&result, 0);
        program_expect_text(result.output, cases[i].text);
        program_free(&result);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_streamed),
        cmocka_unit_test(json_has_every_key),
        cmocka_unit_test(options_reach_the_service),
        cmocka_unit_test(what_is_not_given_is_absent),
        cmocka_unit_test(the_question_may_come_from_standard_input),
        cmocka_unit_test(a_nul_in_the_question_is_refused),
        cmocka_unit_test(a_large_picture_is_sent),
        cmocka_unit_test(an_endless_picture_is_refused),
        cmocka_unit_test(the_service_s_refusal_is_told),
        cmocka_unit_test(a_service_that_breaks_its_promise_is_told),
        cmocka_unit_test(text_that_is_no_utf8_does_not_become_json),
        cmocka_unit_test(missing_parts_count_as_zero),
        cmocka_unit_test(the_timeout_ends_a_silent_service),
        cmocka_unit_test(an_interrupt_cancels_the_request),
        cmocka_unit_test(a_closed_output_ends_an_endless_answer),
        cmocka_unit_test(a_full_disk_is_told),
        cmocka_unit_test(nobody_at_the_address_is_told),
        cmocka_unit_test(a_port_of_another_kind_is_told),
        cmocka_unit_test(a_service_that_vanishes_is_told),
        cmocka_unit_test(a_terminal_sees_progress_and_a_summary),
        cmocka_unit_test(a_narrow_terminal_gets_short_lines),
        cmocka_unit_test(a_dumb_terminal_gets_no_progress),
        cmocka_unit_test(a_terminal_cannot_be_steered),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
