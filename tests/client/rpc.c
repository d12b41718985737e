/* tests/client/rpc.c: many calls at once, ended in every order, on one thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "client/options.h"
#include "client/request.h"
#include "client/rpc.h"
#include "tests/client/fake_server.h"

#define CALLS 100
#define METHOD "/avl.v1.Inference/Generate"

typedef struct seen {
    avl_rpc_call_t *call;
    int messages, ends;
    int cancel_at;  /* messages; 0: never */
    int refuse_at;  /* on_message fails then */
    avl_rpc_t *rpc; /* on_end starts another call over it, once */
    const avl_rpc_request_t *request;
    struct seen *next;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
} seen_t;

static avl_status_t on_message(void *context, const uint8_t *bytes, size_t byte_count) {
    seen_t *seen = context;
    (void)bytes;
    assert_true(byte_count > 0);
    assert_int_equal(seen->ends, 0);
    seen->messages++;
    if (seen->messages == seen->cancel_at)
        avl_rpc_cancel(seen->call, AVL_ERR_CANCELLED, "enough");
    if (seen->messages == seen->refuse_at)
        return avl_fail(AVL_ERR_DATA, "message %d", seen->messages);
    return AVL_OK;
}

static void on_end(void *context, avl_status_t status, const char *detail) {
    seen_t *seen = context;
    seen->ends++;
    seen->status = status;
    snprintf(seen->detail, sizeof seen->detail, "%s", detail);
    if (seen->next != NULL) {
        avl_rpc_handler_t handler = {
            .on_message = on_message, .on_end = on_end, .context = seen->next};
        assert_int_equal(avl_rpc_start(seen->rpc, METHOD, seen->request, AVL_DEADLINE_NONE,
                                       &handler, &seen->next->call),
                         AVL_OK);
    }
}

static avl_rpc_request_t *question(void) {
    avl_request_options_t options;
    avl_request_options_init(&options);
    avl_rpc_request_t *request = NULL;
    assert_int_equal(avl_request_pack(&options, "what?", NULL, 0, "", false, &request), AVL_OK);
    return request;
}

static void start(avl_rpc_t *rpc, const avl_rpc_request_t *request, seen_t *seen) {
    avl_rpc_handler_t handler = {.on_message = on_message, .on_end = on_end, .context = seen};
    assert_int_equal(avl_rpc_start(rpc, METHOD, request, AVL_DEADLINE_NONE, &handler, &seen->call),
                     AVL_OK);
}

static void many_calls_end_in_their_own_ways(void **state) {
    fake_server_t *server = *state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 9, .token_delay_ms = 1});
    avl_rpc_t *rpc = NULL;
    assert_int_equal(avl_rpc_open(fake_server_address(server), 3, &rpc), AVL_OK);
    avl_rpc_request_t *request = question();
    seen_t *seen = calloc(2 * CALLS, sizeof *seen);
    assert_non_null(seen);
    for (int i = 0; i < CALLS; i++) {
        seen[i].cancel_at = i % 4 == 1 ? 1 + i % 9 : 0;
        seen[i].refuse_at = i % 4 == 2 ? 1 + i % 9 : 0;
        seen[i].rpc = rpc;
        seen[i].request = request;
        seen[i].next = i % 4 == 3 ? &seen[CALLS + i] : NULL;
        start(rpc, request, &seen[i]);
        if (i % 20 == 0)
            avl_rpc_cancel(seen[i].call, AVL_ERR_CANCELLED, "at once");
    }
    assert_int_equal(avl_rpc_active(rpc), CALLS);
    while (avl_rpc_active(rpc) > 0)
        avl_rpc_poll(rpc, avl_clock_now_ns() + AVL_NS_PER_S);
    for (int i = 0; i < CALLS; i++) {
        assert_int_equal(seen[i].ends, 1);
        if (i % 20 == 0) {
            assert_int_equal(seen[i].status, AVL_ERR_CANCELLED);
            assert_string_equal(seen[i].detail, "at once");
        } else if (i % 4 == 1) {
            assert_int_equal(seen[i].status, AVL_ERR_CANCELLED);
            assert_int_equal(seen[i].messages, seen[i].cancel_at); /* and none after */
        } else if (i % 4 == 2) {
            assert_int_equal(seen[i].status, AVL_ERR_DATA);
            assert_int_equal(seen[i].messages, seen[i].refuse_at);
            assert_int_equal(strncmp(seen[i].detail, "message ", 8), 0);
        } else {
            assert_int_equal(seen[i].status, AVL_OK);
            assert_int_equal(seen[i].messages, 10);
            assert_string_equal(seen[i].detail, "");
        }
        assert_int_equal(seen[CALLS + i].ends, i % 4 == 3);
    }
    avl_rpc_request_destroy(request);
    avl_rpc_close(rpc);
    free(seen);
}

static void closing_ends_what_is_under_way(void **state) {
    fake_server_t *server = *state;
    fake_server_behave(server, &(fake_behaviour_t){.tokens = 1, .ending = FAKE_STALL});
    avl_rpc_t *rpc = NULL;
    assert_int_equal(avl_rpc_open(fake_server_address(server), 1, &rpc), AVL_OK);
    avl_rpc_request_t *request = question();
    seen_t seen[10] = {0};
    for (int i = 0; i < 10; i++)
        start(rpc, request, &seen[i]);
    avl_rpc_request_destroy(request); /* the calls keep what they need */
    while (seen[9].messages == 0)
        avl_rpc_poll(rpc, avl_clock_now_ns() + AVL_NS_PER_S);
    avl_rpc_close(rpc);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(seen[i].ends, 1);
        assert_int_equal(seen[i].status, AVL_ERR_CANCELLED);
    }
}

static void polling_returns_at_its_time(void **state) {
    fake_server_t *server = *state;
    avl_rpc_t *rpc = NULL;
    assert_int_equal(avl_rpc_open(fake_server_address(server), 1, &rpc), AVL_OK);
    int64_t until_ns = avl_clock_now_ns() + 20 * AVL_NS_PER_MS;
    avl_rpc_poll(rpc, until_ns);
    avl_rpc_poll(rpc, until_ns - AVL_NS_PER_S); /* in the past: at once */
    assert_int_equal(avl_rpc_active(rpc), 0);
    avl_rpc_close(rpc);
}

static void unknown_methods_are_told(void **state) {
    fake_server_t *server = *state;
    avl_rpc_t *rpc = NULL;
    assert_int_equal(avl_rpc_open(fake_server_address(server), 1, &rpc), AVL_OK);
    avl_rpc_request_t *request = question();
    seen_t seen = {0};
    assert_int_equal(avl_rpc_call(rpc, "/avl.v1.Inference/NoSuch", request, 30 * AVL_NS_PER_S, NULL,
                                  on_message, &seen),
                     AVL_ERR_UNSUPPORTED);
    assert_string_equal(avl_status_detail(), "no such method");
    assert_int_equal(seen.messages, 0);
    avl_rpc_request_destroy(request);
    avl_rpc_close(rpc);
}

static void requests_beyond_a_message_are_refused(void **state) {
    (void)state;
    avl_rpc_request_t *request = NULL;
    uint8_t *bytes = malloc(1); /* only its address counts here, and that it is freed */
    assert_int_equal(avl_rpc_request_create(bytes, (size_t)INT32_MAX + 1, &request),
                     AVL_ERR_TOO_LARGE);
    assert_null(request);
    avl_request_options_t options;
    avl_request_options_init(&options);
    avl_picture_t huge[2] = {{.byte_count = (size_t)1 << 30}, {.byte_count = (size_t)1 << 30}};
    assert_int_equal(avl_request_pack(&options, "what?", huge, 2, "", false, &request),
                     AVL_ERR_TOO_LARGE);
    assert_null(request);
}

static void addresses_are_checked(void **state) {
    (void)state;
    static const char *const good[] = {"localhost:1",   "127.0.0.1:65535",   "[::1]:50051",
                                       "a-b.c:80",      "unix:/tmp/s",       "unix:s",
                                       "unix:///tmp/s", "unix-abstract:name"};
    static const char *const bad[] = {"",
                                      ":1",
                                      "h",
                                      "h:",
                                      "h:+1",
                                      "h:1x",
                                      "h:99999999",
                                      "h:-1",
                                      "::1:80",
                                      "[]:80",
                                      "a b:1",
                                      "unix:",
                                      "h:1 ",
                                      "a/b:1",
                                      "unix-abstract:",
                                      "dns:h:1",
                                      "h:99999999999999999999"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_int_equal(avl_rpc_check_address(good[i]), AVL_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(avl_rpc_check_address(bad[i]), AVL_ERR_INVALID);
    avl_rpc_t *rpc = NULL;
    assert_int_equal(avl_rpc_open("nowhere", 1, &rpc), AVL_ERR_INVALID);
    assert_null(rpc);
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
        cmocka_unit_test(many_calls_end_in_their_own_ways),
        cmocka_unit_test(closing_ends_what_is_under_way),
        cmocka_unit_test(polling_returns_at_its_time),
        cmocka_unit_test(unknown_methods_are_told),
        cmocka_unit_test(requests_beyond_a_message_are_refused),
        cmocka_unit_test(addresses_are_checked),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
