/* tests/client/info.c: avl info. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/client/fake_server.h"
#include "tests/client/program.h"

static void the_model_is_described(void **state) {
    fake_server_t *server = *state;
    fake_server_behave(server, &(fake_behaviour_t){0});
    program_setting_t setting = {.server = fake_server_address(server)};
    program_result_t result = PROGRAM(&setting, "info");
    program_expect(&result, 0);
    program_expect_text(result.output, "model       fake\x1b[31m (llava), avl 1.2.3\n");
    program_expect_text(result.output, "state       ready");
    program_expect_text(result.output, "runs on     cpu, bf16\n");
    program_expect_text(result.output, "context     2048 tokens");
    program_expect_text(result.output, "store 0.5");
    program_free(&result);
    setting.terminal = true;
    result = PROGRAM(&setting, "info");
    program_expect_text(result.output, "fake^[[31m (llava)");
    program_free(&result);
}

static void an_empty_answer_is_told(void **state) {
    fake_server_t *server = *state;
    fake_server_behave(server, &(fake_behaviour_t){.bare_info = true});
    program_setting_t setting = {.server = fake_server_address(server)};
    program_result_t result = PROGRAM(&setting, "info");
    program_expect(&result, 1);
    program_expect_text(result.errors, "INTERNAL: the server sent no GetModelInfoResponse");
    program_free(&result);
}

static void nobody_at_the_address_is_told(void **state) {
    (void)state;
    program_setting_t setting = {0};
    program_result_t result = PROGRAM(&setting, "info", "--server", "unix:/no/such/socket");
    program_expect(&result, 1);
    program_expect_text(result.errors, "no service answers at unix:/no/such/socket");
    program_free(&result);
}

static void a_full_disk_is_told(void **state) {
    fake_server_t *server = *state;
    fake_server_behave(server, &(fake_behaviour_t){0});
    program_setting_t setting = {.server = fake_server_address(server), .output = "/dev/full"};
    program_result_t result = PROGRAM(&setting, "info");
    program_expect(&result, 1);
    program_expect_text(result.errors, "standard output: No space left");
    program_free(&result);
}

static int begin(void **state) {
    *state = fake_server_start();
    return 0;
}

static int end(void **state) {
    fake_server_stop(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_model_is_described),
        cmocka_unit_test(an_empty_answer_is_told),
        cmocka_unit_test(nobody_at_the_address_is_told),
        cmocka_unit_test(a_full_disk_is_told),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
