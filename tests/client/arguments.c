/* tests/client/arguments.c: what avl says of command lines that it cannot follow: exit status 2, a
 * sentence that names the argument, and nothing on standard output. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/client/program.h"

static const program_setting_t plain = {0};

static void wrong_arguments_are_named(void **state) {
    (void)state;
    static const struct {
        const char *arguments[6];
        const char *text;
    } cases[] = {
        {{"frobnicate"}, "unknown command \"frobnicate\""},
        {{"ask"}, "QUESTION is missing"},
        {{"ask", "one", "two"}, "one QUESTION only"},
        {{"ask", "--no-such", "q"}, "unrecognized option"},
        {{"ask", "--max-tokens", "0", "q"}, "--max-tokens: \"0\""},
        {{"ask", "--max-tokens", "-1", "q"}, "--max-tokens: \"-1\""},
        {{"ask", "--max-tokens", " 5", "q"}, "--max-tokens: \" 5\""},
        {{"ask", "--max-tokens", "5x", "q"}, "--max-tokens: \"5x\""},
        {{"ask", "--max-tokens", "99999999999999999999", "q"}, "is not a whole number"},
        {{"ask", "--temperature", "warm", "q"}, "--temperature: \"warm\" is not a number"},
        {{"ask", "--temperature", "nan", "q"}, "--temperature: \"nan\""},
        {{"ask", "--temperature", "1e999", "q"}, "--temperature: \"1e999\""},
        {{"ask", "--top-p", "", "q"}, "--top-p: \"\""},
        {{"ask", "--top-k", "1.5", "q"}, "--top-k: \"1.5\""},
        {{"ask", "--seed", "18446744073709551616", "q"}, "--seed"},
        {{"ask", "--visual-store", "half", "q"}, "--visual-store: \"half\""},
        {{"ask", "--visual-compute", "inf", "q"}, "--visual-compute: \"inf\""},
        {{"ask", "--visual-interval", "-3", "q"}, "--visual-interval: \"-3\""},
        {{"ask", "--visual-selection", "best", "q"},
         "--visual-selection: \"best\" is not last-row"},
        {{"ask", "--visual-core", "never", "q"},
         "--visual-core: \"never\" is not interval or step"},
        {{"ask", "--text-policy", "fifo", "q"}, "--text-policy: \"fifo\" is not a-vl or h2o"},
        {{"ask", "--protect-prompt", "maybe", "q"}, "--protect-prompt: \"maybe\""},
        {{"ask", "--text-keep-min", "few", "q"}, "--text-keep-min: \"few\""},
        {{"ask", "--timeout", "0", "q"}, "--timeout: \"0\" is not between"},
        {{"ask", "--timeout", "1e9", "q"}, "--timeout: \"1e9\" is not between"},
        {{"ask", "--raw-prompt", "--system", "s", "q"}, "not together with --raw-prompt"},
        {{"ask", "--server", "", "q"}, "neither HOST:PORT nor unix:PATH"},
        {{"ask", "--server", "localhost", "q"}, "neither HOST:PORT nor unix:PATH"},
        {{"ask", "--server", "localhost:", "q"}, "neither HOST:PORT nor unix:PATH"},
        {{"ask", "--server", "localhost:0", "q"}, "neither HOST:PORT nor unix:PATH"},
        {{"ask", "--server", "localhost:65536", "q"}, "neither HOST:PORT nor unix:PATH"},
        {{"ask", "--server", "localhost:5 1", "q"}, "neither HOST:PORT nor unix:PATH"},
        {{"ask", "--server", "http://localhost:50051", "q"}, "\"http://localhost:50051\""},
        {{"ask", "--server", "::1:50051", "q"}, "in brackets"},
        {{"ask", "--server", "unix:", "q"}, "names no socket"},
        {{"info", "extra"}, "takes no argument"},
        {{"info", "--server", "nowhere"}, "neither HOST:PORT nor unix:PATH"},
        {{"bench", "question"}, "takes no argument"},
        {{"bench", "--rate", "1", "--concurrency", "2"}, "two kinds of load"},
        {{"bench", "--rate", "0"}, "--rate: \"0\" is not between"},
        {{"bench", "--rate", "-1"}, "--rate: \"-1\" is not between"},
        {{"bench", "--concurrency", "0"}, "--concurrency: \"0\""},
        {{"bench", "--concurrency", "1000000"}, "--concurrency"},
        {{"bench", "--cancel-rate", "1.1"}, "--cancel-rate: \"1.1\" is not between 0 and 1"},
        {{"bench", "--deadline", "0"}, "--deadline"},
        {{"bench", "--duration", "-1"}, "--duration"},
        {{"bench", "--connections", "65"}, "--connections"},
        {{"bench", "--server", "here"}, "neither HOST:PORT nor unix:PATH"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        program_result_t result = program_run(&plain, cases[i].arguments);
        program_expect(&result, 2);
        program_expect_text(result.errors, cases[i].text);
        assert_string_equal(result.output, "");
        program_free(&result);
    }
}

static void too_many_pictures_are_refused(void **state) {
    (void)state;
    const char *arguments[260] = {"ask", "q"};
    for (size_t i = 2; i < 259; i++)
        arguments[i] = "-i/dev/null";
    program_result_t result = program_run(&plain, arguments);
    program_expect(&result, 2);
    program_expect_text(result.errors, "more than 256 pictures");
    program_free(&result);
}

static void help_and_version_go_to_standard_output(void **state) {
    (void)state;
    static const struct {
        const char *arguments[3];
        const char *text;
    } cases[] = {
        {{"--help"}, "Commands:"},
        {{"help"}, "bench"},
        {{"--version"}, "avl " AVL_VERSION},
        {{"ask", "--help"}, "--visual-store"},
        {{"ask", "--help"}, "--image"},
        {{"info", "--help"}, "--server"},
        {{"bench", "--help"}, "--cancel-rate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        program_result_t result = program_run(&plain, cases[i].arguments);
        program_expect(&result, 0);
        program_expect_text(result.output, cases[i].text);
        assert_string_equal(result.errors, "");
        program_free(&result);
    }
}

static void no_command_is_wrong_use(void **state) {
    (void)state;
    program_result_t result = PROGRAM(&plain, NULL);
    program_expect(&result, 2);
    program_expect_text(result.errors, "Usage: avl");
    program_free(&result);
}

/* Exit status 1: the command line is right, what it names is not. */
static void files_that_cannot_be_sent_are_named(void **state) {
    (void)state;
    char *empty = program_file("", 0);
    char *blank = program_file("\n\r\n", 3);
    const struct {
        const char *arguments[6];
        const char *text;
    } cases[] = {
        {{"ask", "-i", "/no/such/file.png", "q"}, "NOT_FOUND: /no/such/file.png"},
        {{"ask", "-i", "/tmp", "q"}, "/tmp: is a directory"},
        {{"ask", "-i", empty, "q"}, "is empty"},
        {{"bench", "-i", "/no/such/file.png"}, "NOT_FOUND: /no/such/file.png"},
        {{"bench", "--prompts", "/no/such/file"}, "/no/such/file: No such file"},
        {{"bench", "--prompts", blank}, "no question in it"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        program_result_t result = program_run(&plain, cases[i].arguments);
        program_expect(&result, 1);
        program_expect_text(result.errors, cases[i].text);
        assert_string_equal(result.output, "");
        program_free(&result);
    }
    remove(empty);
    remove(blank);
    free(empty);
    free(blank);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_arguments_are_named),
        cmocka_unit_test(too_many_pictures_are_refused),
        cmocka_unit_test(help_and_version_go_to_standard_output),
        cmocka_unit_test(no_command_is_wrong_use),
        cmocka_unit_test(files_that_cannot_be_sent_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
