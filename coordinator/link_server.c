#include "coordinator/link_server.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/grpc_server.h"

#define TOKEN_BYTES_MAX 128

struct avl_link_server {
    avl_link_observer_t observer;
    avl_method_t attach;
    avl_server_t *server;
    pthread_mutex_t lock;
    uint64_t generation; /* expected or attached */
    char token[TOKEN_BYTES_MAX];
    avl_call_t *call; /* of the attached leader: a reference is held */
};

/* Takes as long whatever the difference. */
static bool token_equals(const char *expected, const char *given) {
    size_t length = strlen(expected);
    if (length == 0 || strlen(given) != length)
        return false;
    unsigned char difference = 0;
    for (size_t i = 0; i < length; i++)
        difference |= (unsigned char)(expected[i] ^ given[i]);
    return difference == 0;
}

static void refuse(avl_call_t *call, avl_rpc_code_t code, const char *text) {
    avl_log_warn("a worker link is refused: %s", text);
    avl_call_finish(call, code, text);
}

static void on_hello(avl_link_server_t *server, avl_call_t *call,
                     const Avl__Worker__V1__Hello *hello) {
    char text[256];
    if (strcmp(hello->version, AVL_VERSION) != 0) {
        snprintf(text, sizeof text,
                 "the worker is of version %.40s, the coordinator of " AVL_VERSION, hello->version);
        refuse(call, AVL_RPC_PERMISSION_DENIED, text);
        return;
    }
    pthread_mutex_lock(&server->lock);
    bool known = token_equals(server->token, hello->group_token);
    bool taken = server->call != NULL;
    if (known && !taken) {
        avl_call_ref(call);
        server->call = call;
        server->token[0] = '\0'; /* good for one link */
    }
    uint64_t generation = server->generation;
    pthread_mutex_unlock(&server->lock);
    if (!known || taken) {
        refuse(call, AVL_RPC_PERMISSION_DENIED,
               taken ? "a worker group is already attached"
                     : "the group token is not the one expected");
        return;
    }
    avl_call_set_user(call, server); /* marks it as attached */
    Avl__Worker__V1__Accepted accepted;
    avl__worker__v1__accepted__init(&accepted);
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ACCEPTED;
    message.accepted = &accepted;
    if (avl_call_send(call, &message.base) != AVL_OK)
        avl_log_warn("cannot greet the worker group: %s", avl_status_detail());
    server->observer.attached(server->observer.context, generation, hello);
}

static void on_message(void *context, avl_call_t *call, avl_payload_t *payload) {
    avl_link_server_t *server = context;
    if (payload == NULL) {
        avl_call_finish(call, AVL_RPC_OK, "");
        return;
    }
    const uint8_t *bytes = NULL;
    size_t byte_count = 0;
    Avl__Worker__V1__WorkerMessage *message = NULL;
    if (avl_payload_read(payload, &bytes, &byte_count) == AVL_OK)
        message = avl__worker__v1__worker_message__unpack(NULL, byte_count, bytes);
    avl_payload_free(payload);
    bool attached = avl_call_user(call) != NULL;
    bool hello =
        message != NULL && message->message_case == AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_HELLO;
    if (message == NULL) {
        avl_log_warn("a worker link carried a malformed message");
        avl_call_abort(call, AVL_RPC_INVALID_ARGUMENT, "malformed message");
        return;
    }
    if (hello && !attached)
        on_hello(server, call, message->hello);
    else if (attached && !hello)
        server->observer.message(server->observer.context, server->generation, message);
    else
        refuse(call, AVL_RPC_INVALID_ARGUMENT,
               attached ? "a second hello" : "the first message must be hello");
    avl__worker__v1__worker_message__free_unpacked(message, NULL);
}

static void on_begin(void *context, avl_call_t *call, avl_payload_t *payload) {
    (void)context;
    (void)call;
    avl_payload_free(payload);
}

static void on_close(void *context, avl_call_t *call, bool cancelled) {
    avl_link_server_t *server = context;
    (void)cancelled;
    pthread_mutex_lock(&server->lock);
    bool attached = server->call == call;
    uint64_t generation = server->generation;
    if (attached)
        server->call = NULL;
    pthread_mutex_unlock(&server->lock);
    if (attached) {
        avl_call_set_user(call, NULL);
        server->observer.detached(server->observer.context, generation);
        avl_call_unref(call);
    }
}

avl_status_t avl_link_server_create(const char *address, const avl_link_observer_t *observer,
                                    avl_link_server_t **server_p) {
    avl_link_server_t *server = NULL;
    AVL_TRY(avl_alloc(1, sizeof *server, "the link server", &server));
    server->observer = *observer;
    server->attach = (avl_method_t){.path = "/avl.worker.v1.WorkerLink/Attach",
                                    .client_streams = true,
                                    .context = server,
                                    .begin = on_begin,
                                    .message = on_message,
                                    .close = on_close};
    pthread_mutex_init(&server->lock, NULL);
    avl_server_config_t config = {
        .address = address,
        .methods = &server->attach,
        .method_count = 1,
        .threads = 1, /* keeps the order of the wire */
        .message_bytes_max = -1,
        .send_queue_bytes_max = SIZE_MAX, /* bounded by the number of requests */
        .keepalive_ms = 10000,
        .keepalive_timeout_ms = 10000,
    };
    avl_status_t status = avl_server_create(&config, &server->server);
    if (status != AVL_OK) {
        pthread_mutex_destroy(&server->lock);
        free(server);
        return status;
    }
    *server_p = server;
    return AVL_OK;
}

void avl_link_server_expect(avl_link_server_t *server, uint64_t generation, const char *token) {
    pthread_mutex_lock(&server->lock);
    AVL_ASSERT(server->call == NULL || token == NULL);
    if (token != NULL)
        server->generation = generation;
    snprintf(server->token, sizeof server->token, "%s", token != NULL ? token : "");
    pthread_mutex_unlock(&server->lock);
}

avl_status_t avl_link_server_send(avl_link_server_t *server, uint64_t generation,
                                  const Avl__Worker__V1__CoordinatorMessage *message) {
    pthread_mutex_lock(&server->lock);
    avl_status_t status = AVL_OK;
    if (server->call == NULL || server->generation != generation)
        status = avl_fail(AVL_ERR_UNAVAILABLE, "the worker group is gone");
    else
        status = avl_call_send(server->call, &message->base);
    pthread_mutex_unlock(&server->lock);
    return status;
}

void avl_link_server_drop(avl_link_server_t *server, uint64_t generation, const char *reason) {
    pthread_mutex_lock(&server->lock);
    avl_call_t *call = server->generation == generation ? server->call : NULL;
    if (call != NULL)
        avl_call_ref(call);
    pthread_mutex_unlock(&server->lock);
    if (call != NULL) {
        avl_call_abort(call, AVL_RPC_UNAVAILABLE, reason);
        avl_call_unref(call);
    }
}

void avl_link_server_destroy(avl_link_server_t *server) {
    if (server == NULL)
        return;
    avl_server_stop(server->server, 0);
    avl_server_destroy(server->server);
    pthread_mutex_destroy(&server->lock);
    free(server);
}
