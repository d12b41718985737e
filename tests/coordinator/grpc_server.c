/* The server machinery against a client of the same core: ends of calls, bounds, stops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include "base/clock.h"
#include "coordinator/grpc_server.h"
#include "proto/inference.pb-c.h"

#define QUEUE_BYTES 65536
#define MESSAGE_BYTES 1024

static atomic_int begun, closed, cancelled, accepted;
static _Atomic(avl_call_t *) held;

/* ---- handlers ---- */

static avl_status_t send_text(avl_call_t *call) {
    static char text[MESSAGE_BYTES + 1];
    memset(text, 'x', MESSAGE_BYTES);
    Avl__V1__Delta delta;
    avl__v1__delta__init(&delta);
    delta.text = text;
    return avl_call_send(call, &delta.base);
}

/* Sends until the queue refuses, then gives the client up. */
static void on_flood(void *context, avl_call_t *call, avl_payload_t *payload) {
    (void)context;
    avl_payload_free(payload);
    avl_status_t status = AVL_OK;
    for (int i = 0; i < 100000 && status == AVL_OK; i++) {
        status = send_text(call);
        atomic_fetch_add(&accepted, status == AVL_OK);
    }
    if (status == AVL_ERR_EXHAUSTED)
        avl_call_abort(call, AVL_RPC_RESOURCE_EXHAUSTED, avl_status_detail());
    atomic_fetch_add(&begun, 1);
}

/* Answers with three messages, and a status that rides with the last. */
static void on_three(void *context, avl_call_t *call, avl_payload_t *payload) {
    (void)context;
    avl_payload_free(payload);
    for (int i = 0; i < 3; i++)
        assert_int_equal(send_text(call), AVL_OK);
    avl_call_finish(call, AVL_RPC_NOT_FOUND, "three and no more");
    avl_call_finish(call, AVL_RPC_OK, "a second end is ignored");
    assert_int_equal(send_text(call), AVL_ERR_CANCELLED);
}

/* Never answers; keeps the call for the test. */
static void on_hold(void *context, avl_call_t *call, avl_payload_t *payload) {
    (void)context;
    avl_payload_free(payload);
    avl_call_ref(call);
    atomic_store(&held, call);
    atomic_fetch_add(&begun, 1);
}

static void on_close(void *context, avl_call_t *call, bool was_cancelled) {
    (void)context;
    (void)call;
    atomic_fetch_add(&cancelled, was_cancelled);
    atomic_fetch_add(&closed, 1);
}

static const avl_method_t methods[] = {
    {.path = "/test.Test/Flood", .begin = on_flood, .close = on_close},
    {.path = "/test.Test/Three", .begin = on_three, .close = on_close},
    {.path = "/test.Test/Hold", .begin = on_hold, .close = on_close},
};

/* ---- a client that waits for everything ---- */

typedef struct client {
    grpc_completion_queue *queue;
    grpc_channel *channel;
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice details;
} client_t;

static void wait_for(void *tag, client_t *client) {
    grpc_event event =
        grpc_completion_queue_pluck(client->queue, tag, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    assert_int_equal(event.type, GRPC_OP_COMPLETE);
}

static void client_begin(client_t *client, const char *address, const char *method,
                         int64_t timeout_ms) {
    memset(client, 0, sizeof *client);
    grpc_init();
    client->queue = grpc_completion_queue_create_for_pluck(NULL);
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    client->channel = grpc_channel_create(address, credentials, NULL);
    grpc_channel_credentials_release(credentials);
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_REALTIME);
    if (timeout_ms > 0)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_REALTIME),
                                gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    client->call =
        grpc_channel_create_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, client->queue,
                                 grpc_slice_from_static_string(method), NULL, deadline, NULL);
    grpc_byte_buffer *empty = grpc_raw_byte_buffer_create(NULL, 0);
    grpc_op ops[4];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = empty;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    assert_int_equal(grpc_call_start_batch(client->call, ops, 3, client, NULL), GRPC_CALL_OK);
    wait_for(client, client);
    grpc_byte_buffer_destroy(empty);
}

/* Reads to the end; returns the number of messages. */
static int client_end(client_t *client) {
    int count = 0;
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_INITIAL_METADATA;
    op.data.recv_initial_metadata.recv_initial_metadata = &client->initial;
    assert_int_equal(grpc_call_start_batch(client->call, &op, 1, client, NULL), GRPC_CALL_OK);
    wait_for(client, client);
    for (grpc_byte_buffer *message = NULL;; count++) {
        memset(&op, 0, sizeof op);
        op.op = GRPC_OP_RECV_MESSAGE;
        op.data.recv_message.recv_message = &message;
        assert_int_equal(grpc_call_start_batch(client->call, &op, 1, client, NULL), GRPC_CALL_OK);
        wait_for(client, client);
        if (message == NULL)
            break;
        assert_int_equal(grpc_byte_buffer_length(message), MESSAGE_BYTES + 3);
        grpc_byte_buffer_destroy(message);
    }
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    op.data.recv_status_on_client.status = &client->code;
    op.data.recv_status_on_client.status_details = &client->details;
    op.data.recv_status_on_client.trailing_metadata = &client->trailing;
    assert_int_equal(grpc_call_start_batch(client->call, &op, 1, client, NULL), GRPC_CALL_OK);
    wait_for(client, client);
    return count;
}

static void client_free(client_t *client) {
    grpc_slice_unref(client->details);
    grpc_metadata_array_destroy(&client->initial);
    grpc_metadata_array_destroy(&client->trailing);
    grpc_call_unref(client->call);
    grpc_channel_destroy(client->channel);
    grpc_completion_queue_shutdown(client->queue);
    grpc_event event;
    do
        event = grpc_completion_queue_pluck(client->queue, client,
                                            gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    while (event.type != GRPC_QUEUE_SHUTDOWN);
    grpc_completion_queue_destroy(client->queue);
    grpc_shutdown();
}

static bool details_are(const client_t *client, const char *part) {
    char text[1024];
    snprintf(text, sizeof text, "%.*s", (int)GRPC_SLICE_LENGTH(client->details),
             (const char *)GRPC_SLICE_START_PTR(client->details));
    return strstr(text, part) != NULL;
}

/* ---- tests ---- */

static avl_server_config_t config_for(const char *address) {
    return (avl_server_config_t){.address = address,
                                 .methods = methods,
                                 .method_count = sizeof methods / sizeof methods[0],
                                 .threads = 2,
                                 .message_bytes_max = 4096,
                                 .send_queue_bytes_max = QUEUE_BYTES,
                                 .keepalive_ms = 20000,
                                 .keepalive_timeout_ms = 10000};
}

static int setup(void **state) {
    atomic_store(&begun, 0);
    atomic_store(&closed, 0);
    atomic_store(&cancelled, 0);
    atomic_store(&accepted, 0);
    avl_server_config_t config = config_for("127.0.0.1:0");
    avl_server_t *server = NULL;
    if (avl_server_create(&config, &server) != AVL_OK)
        return -1;
    *state = server;
    return 0;
}

static int teardown(void **state) {
    avl_server_stop(*state, AVL_NS_PER_S);
    avl_server_destroy(*state);
    return 0;
}

static void wait_count(atomic_int *counter, int count) {
    for (int i = 0; i < 4000 && atomic_load(counter) < count; i++)
        avl_clock_sleep_ns(5 * AVL_NS_PER_MS);
    assert_int_equal(atomic_load(counter), count);
}

static void test_three(void **state) {
    client_t client;
    client_begin(&client, avl_server_address(*state), "/test.Test/Three", 0);
    assert_int_equal(client_end(&client), 3);
    assert_int_equal(client.code, GRPC_STATUS_NOT_FOUND);
    assert_true(details_are(&client, "three and no more"));
    client_free(&client);
    wait_count(&closed, 1);
    assert_int_equal(atomic_load(&cancelled), 0);
}

/* A client that does not read costs at most the queue and what HTTP/2 has on the way. */
static void test_client_does_not_read(void **state) {
    client_t client;
    client_begin(&client, avl_server_address(*state), "/test.Test/Flood", 0);
    wait_count(&begun, 1);
    /* HTTP/2's window grows with what passes; the handler would send ten times as much. */
    assert_in_range(atomic_load(&accepted), QUEUE_BYTES / MESSAGE_BYTES / 2, 10000);
    int received = client_end(&client);
    assert_true(received <= atomic_load(&accepted));
    assert_int_equal(client.code, GRPC_STATUS_RESOURCE_EXHAUSTED);
    assert_true(details_are(&client, "does not read"));
    client_free(&client);
    wait_count(&closed, 1);
}

static void test_deadline_and_cancel(void **state) {
    client_t client;
    client_begin(&client, avl_server_address(*state), "/test.Test/Hold", 2000);
    wait_count(&begun, 1);
    int64_t left_ns = avl_call_deadline_ns(atomic_load(&held)) - avl_clock_now_ns();
    assert_true(left_ns > 0 &&
                left_ns < 3000 * AVL_NS_PER_MS); /* timeouts are rounded on the wire */
    wait_count(&closed, 1);
    assert_int_equal(atomic_load(&cancelled), 1);
    assert_int_equal(send_text(atomic_load(&held)), AVL_ERR_CANCELLED);
    avl_call_unref(atomic_load(&held));
    client_end(&client);
    assert_int_equal(client.code, GRPC_STATUS_DEADLINE_EXCEEDED);
    client_free(&client);

    client_begin(&client, avl_server_address(*state), "/test.Test/Hold", 0);
    wait_count(&begun, 2);
    assert_true(avl_call_deadline_ns(atomic_load(&held)) == AVL_DEADLINE_NONE);
    grpc_call_cancel(client.call, NULL);
    wait_count(&closed, 2);
    assert_int_equal(atomic_load(&cancelled), 2);
    avl_call_unref(atomic_load(&held));
    client_end(&client);
    client_free(&client);
}

/* Stopping does not wait for ever for a call that does not end, and each call is closed once. */
static void test_stop_with_open_call(void **state) {
    (void)state;
    avl_server_config_t config = config_for("127.0.0.1:0");
    avl_server_t *server = NULL;
    assert_int_equal(avl_server_create(&config, &server), AVL_OK);
    client_t client;
    client_begin(&client, avl_server_address(server), "/test.Test/Hold", 0);
    wait_count(&begun, 1);
    avl_server_stop(server, 50 * AVL_NS_PER_MS);
    wait_count(&closed, 1);
    assert_int_equal(atomic_load(&cancelled), 1);
    avl_call_unref(atomic_load(&held));
    avl_server_destroy(server);
    client_end(&client);
    assert_int_not_equal(client.code, GRPC_STATUS_OK);
    client_free(&client);
}

static void test_unknown_method(void **state) {
    client_t client;
    client_begin(&client, avl_server_address(*state), "/test.Test/Missing", 0);
    assert_int_equal(client_end(&client), 0);
    assert_int_equal(client.code, GRPC_STATUS_UNIMPLEMENTED);
    assert_true(details_are(&client, "unknown method /test.Test/Missing"));
    client_free(&client);
}

static void test_addresses(void **state) {
    avl_server_t *other = NULL;
    avl_server_config_t config = config_for(avl_server_address(*state));
    assert_int_equal(avl_server_create(&config, &other), AVL_ERR_IO);
    assert_non_null(strstr(avl_status_detail(), "Address already in use"));
    static const char *const bad[] = {
        "", "nothing", ":50051", "host:", "host:12x", "127.0.0.1:99999", "unix:"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        config = config_for(bad[i]);
        assert_int_not_equal(avl_server_create(&config, &other), AVL_OK);
        assert_non_null(strstr(avl_status_detail(), "cannot listen on"));
    }
    assert_null(other);
}

static void test_codes(void **state) {
    (void)state;
    assert_int_equal(avl_rpc_code(AVL_OK), AVL_RPC_OK);
    assert_int_equal(avl_rpc_code(AVL_ERR_INVALID), AVL_RPC_INVALID_ARGUMENT);
    assert_int_equal(avl_rpc_code(AVL_ERR_TOO_LARGE), AVL_RPC_INVALID_ARGUMENT);
    assert_int_equal(avl_rpc_code(AVL_ERR_EXHAUSTED), AVL_RPC_RESOURCE_EXHAUSTED);
    assert_int_equal(avl_rpc_code(AVL_ERR_DEADLINE), AVL_RPC_DEADLINE_EXCEEDED);
    assert_int_equal(avl_rpc_code(AVL_ERR_UNAVAILABLE), AVL_RPC_UNAVAILABLE);
    assert_int_equal(avl_rpc_code(AVL_ERR_UNSUPPORTED), AVL_RPC_UNIMPLEMENTED);
    assert_int_equal(avl_rpc_code(AVL_ERR_COMM), AVL_RPC_INTERNAL);
    assert_int_equal(avl_rpc_code((avl_status_t)12345), AVL_RPC_INTERNAL);
    assert_string_equal(avl_rpc_code_name(AVL_RPC_INVALID_ARGUMENT), "INVALID_ARGUMENT");
    assert_string_equal(avl_rpc_code_name((avl_rpc_code_t)99), "UNKNOWN");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_three, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_does_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline_and_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_with_open_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unknown_method, setup, teardown),
        cmocka_unit_test_setup_teardown(test_addresses, setup, teardown),
        cmocka_unit_test(test_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
