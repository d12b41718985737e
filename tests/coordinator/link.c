/* worker/link.c and coordinator/link_server.c, face to face. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "coordinator/link_server.h"
#include "worker/link.h"

#define EVENTS 20000

typedef struct peer {
    avl_link_server_t *server;
    char directory[32], address[64];
    pthread_mutex_t lock; /* all below */
    int attached, detached, pongs, loadings, readies, failures;
    uint64_t generation, last_pong, progress;
    int64_t events, next_id; /* token events come in order */
    size_t messages;         /* that carried them */
    bool ordered;
    Avl__Worker__V1__ResultReason reason;
    int status;
    char detail[64];
} peer_t;

static void on_attached(void *context, uint64_t generation, const Avl__Worker__V1__Hello *hello) {
    peer_t *peer = context;
    pthread_mutex_lock(&peer->lock);
    peer->attached += hello->process_id == getpid();
    peer->generation = generation;
    pthread_mutex_unlock(&peer->lock);
}

static void on_events(peer_t *peer, const Avl__Worker__V1__Events *events) {
    peer->messages++;
    for (size_t i = 0; i < events->n_events; i++) {
        const Avl__Worker__V1__Event *event = events->events[i];
        if (event->kind == AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_FINISHED) {
            peer->reason = event->result->finish_reason;
            peer->status = event->result->status;
            snprintf(peer->detail, sizeof peer->detail, "%s", event->result->detail);
            continue;
        }
        peer->events++;
        peer->ordered = peer->ordered && event->token_id == (int32_t)peer->next_id;
        peer->next_id++;
    }
}

static void on_message(void *context, uint64_t generation,
                       const Avl__Worker__V1__WorkerMessage *message) {
    peer_t *peer = context;
    pthread_mutex_lock(&peer->lock);
    assert_true(generation == peer->generation);
    switch (message->message_case) {
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_LOADING:
        peer->loadings++;
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_READY:
        peer->readies +=
            message->ready->context_rows_max == 512 && strcmp(message->ready->device, "test") == 0;
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_FAILED:
        peer->failures++;
        snprintf(peer->detail, sizeof peer->detail, "%s", message->failed->detail);
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_PONG:
        peer->pongs++;
        peer->last_pong = message->pong->number;
        peer->progress = message->pong->progress;
        break;
    case AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_EVENTS:
        on_events(peer, message->events);
        break;
    default:
        break;
    }
    pthread_mutex_unlock(&peer->lock);
}

static void on_detached(void *context, uint64_t generation) {
    peer_t *peer = context;
    (void)generation;
    pthread_mutex_lock(&peer->lock);
    peer->detached++;
    pthread_mutex_unlock(&peer->lock);
}

static int setup(void **state) {
    peer_t *peer = calloc(1, sizeof *peer);
    pthread_mutex_init(&peer->lock, NULL);
    peer->ordered = true;
    snprintf(peer->directory, sizeof peer->directory, "/tmp/avl-link-XXXXXX");
    if (mkdtemp(peer->directory) == NULL)
        return -1;
    snprintf(peer->address, sizeof peer->address, "unix:%s/link", peer->directory);
    avl_link_observer_t observer = {peer, on_attached, on_message, on_detached};
    if (avl_link_server_create(peer->address, &observer, &peer->server) != AVL_OK)
        return -1;
    avl_link_server_expect(peer->server, 7, "secret");
    *state = peer;
    return 0;
}

static int teardown(void **state) {
    peer_t *peer = *state;
    avl_link_server_destroy(peer->server);
    rmdir(peer->directory);
    pthread_mutex_destroy(&peer->lock);
    free(peer);
    return 0;
}

static int64_t read_number(peer_t *peer, const int64_t *wide, const int *narrow) {
    pthread_mutex_lock(&peer->lock);
    int64_t value = wide != NULL ? *wide : *narrow;
    pthread_mutex_unlock(&peer->lock);
    return value;
}

static void wait_number(peer_t *peer, const int64_t *wide, const int *narrow, int64_t value) {
    for (int i = 0; i < 4000 && read_number(peer, wide, narrow) != value; i++)
        avl_clock_sleep_ns(5 * AVL_NS_PER_MS);
    assert_int_equal(read_number(peer, wide, narrow), value);
}

static void send_message(peer_t *peer, Avl__Worker__V1__CoordinatorMessage *message) {
    assert_int_equal(avl_link_server_send(peer->server, 7, message), AVL_OK);
}

static void send_cancel(peer_t *peer, uint64_t id) {
    Avl__Worker__V1__Cancel cancel;
    avl__worker__v1__cancel__init(&cancel);
    cancel.request_id = id;
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL;
    message.cancel = &cancel;
    send_message(peer, &message);
}

static void test_refusals(void **state) {
    peer_t *peer = *state;
    avl_link_t *link = NULL;
    assert_int_equal(avl_link_open(peer->address, "guess", 5 * AVL_NS_PER_S, &link),
                     AVL_ERR_UNAVAILABLE);
    assert_non_null(strstr(avl_status_detail(), "the group token is not the one expected"));
    assert_int_equal(avl_link_open(peer->address, "", 5 * AVL_NS_PER_S, &link),
                     AVL_ERR_UNAVAILABLE);
    assert_int_equal(
        avl_link_open("unix:/tmp/avl-nobody-listens", "secret", AVL_NS_PER_S / 5, &link),
        AVL_ERR_UNAVAILABLE);
    assert_non_null(strstr(avl_status_detail(), "no answer in time"));
    assert_null(link);
    assert_int_equal(peer->attached, 0);
    /* A secret is good for one link. */
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &link), AVL_OK);
    avl_link_t *second = NULL;
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &second),
                     AVL_ERR_UNAVAILABLE);
    avl_link_close(link);
    wait_number(peer, NULL, &peer->detached, 1);
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &second),
                     AVL_ERR_UNAVAILABLE);
}

static void check_request(const avl_request_t *request) {
    assert_int_equal(request->id, 42);
    assert_int_equal(request->row_count, 5);
    assert_int_equal(request->token_ids[1], -1);
    assert_int_equal(request->image_count, 1);
    assert_int_equal(request->images[0].first_row, 1);
    assert_int_equal(request->images[0].pixel_bytes, 8 << 20);
    assert_int_equal(request->images[0].pixels[(8 << 20) - 1], 0xab);
    assert_int_equal(request->images[0].layout.tile_count, 3);
    assert_int_equal(request->images[0].layout.crop_columns, 11);
    assert_int_equal(request->images[0].layout.prompt_rows, 3);
    assert_true(request->attention.visual_store_ratio == 0.5);
    assert_int_equal(request->attention.visual_selection, AVL_VISUAL_RANDOM);
    assert_int_equal(request->attention.selection_seed, 77);
    assert_int_equal(request->attention.text_keep_min, 9);
    assert_true(request->attention.protect_prompt);
    assert_true(request->sampling.temperature == 0.25);
    assert_true(request->sampling.seed == UINT64_MAX);
    assert_int_equal(request->max_tokens, 9);
    assert_true(request->ignore_eos);
    assert_int_equal(request->replay_count, 2);
    assert_int_equal(request->replay_ids[1], 600);
    assert_int_equal(request->forced_count, 2);
    assert_int_equal(request->forced_ids[1], 600);
    int64_t left_ns = request->deadline_ns - avl_clock_now_ns();
    assert_true(left_ns > 0 && left_ns <= 100 * AVL_NS_PER_S);
}

static void test_submit(void **state) {
    peer_t *peer = *state;
    avl_link_t *link = NULL;
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &link), AVL_OK);
    int32_t ids[] = {1, -1, -1, -1, 9}, replay[] = {500, 600};
    Avl__Worker__V1__SubmitImage image, *images[] = {&image};
    avl__worker__v1__submit_image__init(&image);
    image.first_row = 1;
    image.tile_count = image.prompt_rows = 3;
    image.crop_columns = 11;
    image.pixels.len = 8 << 20; /* beyond gRPC's default limit */
    image.pixels.data = malloc(image.pixels.len);
    memset(image.pixels.data, 0xab, image.pixels.len);
    Avl__Worker__V1__Submit submit;
    avl__worker__v1__submit__init(&submit);
    submit.request_id = 42;
    submit.n_token_ids = 5;
    submit.token_ids = ids;
    submit.n_images = 1;
    submit.images = images;
    Avl__Worker__V1__Attention attention;
    avl__worker__v1__attention__init(&attention);
    attention.visual_store_ratio = 0.5;
    attention.visual_selection = AVL_VISUAL_RANDOM;
    attention.selection_seed = 77;
    attention.text_keep_min = 9;
    attention.protect_prompt = true;
    submit.attention = &attention;
    submit.temperature = 0.25;
    submit.seed = UINT64_MAX;
    submit.max_tokens = 9;
    submit.ignore_eos = true;
    submit.n_replay_ids = 2;
    submit.replay_ids = replay;
    submit.n_forced_ids = 2;
    submit.forced_ids = replay;
    submit.time_left_ns = 100 * AVL_NS_PER_S;
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_SUBMIT;
    message.submit = &submit;
    send_message(peer, &message);
    send_cancel(peer, 42);
    send_message(peer, &message); /* one that nobody takes */
    avl_command_t command;
    avl_link_poll(link, 20 * AVL_NS_PER_S, &command);
    assert_int_equal(command.kind, AVL_COMMAND_SUBMIT);
    check_request(command.request);
    avl_request_destroy(command.request);
    avl_link_poll(link, 20 * AVL_NS_PER_S, &command);
    assert_int_equal(command.kind, AVL_COMMAND_CANCEL);
    assert_int_equal(command.request_id, 42);
    free(image.pixels.data);
    avl_link_close(link);
}

/* A worker that does not take its commands gets them all in the end: they wait at the coordinator.
 */
static void test_many_commands(void **state) {
    peer_t *peer = *state;
    avl_link_t *link = NULL;
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &link), AVL_OK);
    for (uint64_t i = 0; i < 3000; i++)
        send_cancel(peer, i);
    for (uint64_t i = 0; i < 3000; i++) {
        avl_command_t command;
        avl_link_poll(link, 20 * AVL_NS_PER_S, &command);
        assert_int_equal(command.kind, AVL_COMMAND_CANCEL);
        assert_true(command.request_id == i);
    }
    avl_command_t command;
    avl_link_poll(link, 0, &command);
    assert_int_equal(command.kind, AVL_COMMAND_NONE);
    avl_link_close(link);
}

static void test_events(void **state) {
    peer_t *peer = *state;
    avl_link_t *link = NULL;
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &link), AVL_OK);
    avl_link_loading(link, 0.5);
    avl_capacity_t capacity = {1, "test", "f32", 512, 4, 100, 1, 1 << 20, ""};
    avl_link_ready(link, &capacity);
    avl_event_t event;
    memset(&event, 0, sizeof event);
    event.kind = AVL_EVENT_TOKEN;
    for (int32_t i = 0; i < EVENTS; i++) {
        event.token_id = i;
        avl_link_send(link, &event);
    }
    event.kind = AVL_EVENT_FINISHED;
    event.finish_reason = AVL_FINISH_ERROR;
    event.status = AVL_ERR_EXHAUSTED;
    snprintf(event.detail, sizeof event.detail, "no pages");
    avl_link_send(link, &event);
    avl_link_failed(link, AVL_ERR_DEVICE, "last words");
    avl_link_close(link); /* nothing of it is lost */
    wait_number(peer, NULL, &peer->detached, 1);
    assert_int_equal(peer->events, EVENTS);
    assert_true(peer->ordered);
    assert_true(peer->messages < EVENTS);
    assert_int_equal(peer->loadings, 1);
    assert_int_equal(peer->readies, 1);
    assert_int_equal(peer->failures, 1);
    assert_int_equal(peer->reason, AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_ERROR);
    assert_int_equal(peer->status, AVL_ERR_EXHAUSTED);
}

static void send_ping(peer_t *peer, uint64_t number) {
    Avl__Worker__V1__Ping ping;
    avl__worker__v1__ping__init(&ping);
    ping.number = number;
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_PING;
    message.ping = &ping;
    send_message(peer, &message);
}

static uint64_t ask_progress(peer_t *peer, uint64_t number) {
    int pongs = read_number(peer, NULL, &peer->pongs);
    send_ping(peer, number);
    wait_number(peer, NULL, &peer->pongs, pongs + 1);
    pthread_mutex_lock(&peer->lock);
    assert_int_equal(peer->last_pong, number);
    uint64_t progress = peer->progress;
    pthread_mutex_unlock(&peer->lock);
    return progress;
}

static uint64_t read_count(void *context) {
    return atomic_load((atomic_uint_fast64_t *)context);
}

/* Pongs come at once; what they tell grows with polls and with the step's own count, and stands
 * still with them. */
static void test_pings(void **state) {
    peer_t *peer = *state;
    avl_link_t *link = NULL;
    atomic_uint_fast64_t count = 0;
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &link), AVL_OK);
    avl_link_watch(link, read_count, &count);
    uint64_t first = ask_progress(peer, 5);
    assert_int_equal(ask_progress(peer, 6), first);
    atomic_store(&count, 3);
    assert_int_equal(ask_progress(peer, 7), first + 3);
    avl_command_t command;
    avl_link_poll(link, 0, &command);
    assert_int_equal(command.kind, AVL_COMMAND_NONE);
    assert_int_equal(ask_progress(peer, 8), first + 4);
    avl_link_close(link);
}

static void test_lost(void **state) {
    peer_t *peer = *state;
    avl_link_t *link = NULL;
    assert_int_equal(avl_link_open(peer->address, "secret", 5 * AVL_NS_PER_S, &link), AVL_OK);
    avl_link_server_drop(peer->server, 7, "enough");
    avl_command_t command;
    for (int i = 0; i < 3; i++) { /* at every further poll */
        avl_link_poll(link, 20 * AVL_NS_PER_S, &command);
        assert_int_equal(command.kind, AVL_COMMAND_LOST);
        assert_int_equal(command.status, AVL_ERR_UNAVAILABLE);
    }
    avl_event_t event;
    memset(&event, 0, sizeof event);
    avl_link_send(link, &event); /* goes nowhere */
    wait_number(peer, NULL, &peer->detached, 1);
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    assert_int_equal(avl_link_server_send(peer->server, 7, &message), AVL_ERR_UNAVAILABLE);
    avl_link_close(link);
}

/* The next generation gets in with its own secret alone. */
static void test_generations(void **state) {
    peer_t *peer = *state;
    avl_link_t *link = NULL;
    for (uint64_t generation = 8; generation < 12; generation++) {
        char secret[16];
        snprintf(secret, sizeof secret, "s%d", (int)generation);
        avl_link_server_expect(peer->server, generation, secret);
        assert_int_equal(avl_link_open(peer->address, secret, 5 * AVL_NS_PER_S, &link), AVL_OK);
        wait_number(peer, NULL, &peer->attached, (int)generation - 7);
        assert_int_equal(peer->generation, generation);
        avl_link_close(link);
        wait_number(peer, NULL, &peer->detached, (int)generation - 7);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_submit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_commands, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_generations, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
