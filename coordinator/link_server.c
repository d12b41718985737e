#include "coordinator/link_server.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/grpc_server.h"

#define LINKS_MAX 256
#define MESSAGE_BYTES_MAX (16 << 20) /* of events and statistics; pictures go the other way */

/* A leader that is expected or attached. */
typedef struct link {
    uint64_t generation; /* 0: free */
    char token[AVL_JOIN_SECRET_BYTES_MAX + 1];
    avl_call_t *call; /* of the attached leader: a reference is held */
} link_t;

typedef struct door {
    avl_link_server_t *links;
    const char *secret; /* NULL: leaders come by tokens */
    avl_method_t attach;
    avl_server_t *server; /* NULL: closed */
} door_t;

struct avl_link_server {
    avl_link_observer_t observer;
    door_t started, joining;
    char secret[AVL_JOIN_SECRET_BYTES_MAX + 1];
    pthread_mutex_t lock; /* all below */
    uint64_t last_generation;
    link_t links[LINKS_MAX];
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

static link_t *find_locked(avl_link_server_t *server, uint64_t generation) {
    for (size_t i = 0; i < LINKS_MAX; i++)
        if (server->links[i].generation == generation)
            return &server->links[i];
    return NULL;
}

static link_t *find_by_token_locked(avl_link_server_t *server, const char *token) {
    link_t *found = NULL;
    for (size_t i = 0; i < LINKS_MAX; i++) {
        link_t *link = &server->links[i];
        if (link->generation != 0 && link->call == NULL && token_equals(link->token, token))
            found = link;
    }
    return found;
}

static void refuse(avl_call_t *call, avl_rpc_code_t code, const char *text) {
    avl_log_warn("a worker link is refused: %s", text);
    avl_call_finish(call, code, text);
}

/* The link that the caller's secret opens, or NULL with a reason. */
static link_t *admit(const door_t *door, avl_call_t *call, const char *token, const char **why_p) {
    avl_link_server_t *server = door->links;
    link_t *link = NULL;
    *why_p = "the group token is not the one expected";
    pthread_mutex_lock(&server->lock);
    if (door->secret == NULL) {
        link = find_by_token_locked(server, token);
    } else if (token_equals(door->secret, token)) {
        link = find_locked(server, 0);
        *why_p = "there are too many worker groups";
        if (link != NULL)
            link->generation = ++server->last_generation;
    }
    if (link != NULL) {
        avl_call_ref(call);
        link->call = call;
        link->token[0] = '\0'; /* good for one link */
    }
    pthread_mutex_unlock(&server->lock);
    return link;
}

static void on_hello(const door_t *door, avl_call_t *call, const Avl__Worker__V1__Hello *hello) {
    avl_link_server_t *server = door->links;
    char text[256];
    if (strcmp(hello->version, AVL_VERSION) != 0) {
        snprintf(text, sizeof text,
                 "the worker is of version %.40s, the coordinator of " AVL_VERSION, hello->version);
        refuse(call, AVL_RPC_PERMISSION_DENIED, text);
        return;
    }
    const char *why = NULL;
    link_t *link = admit(door, call, hello->group_token, &why);
    if (link == NULL) {
        refuse(call, AVL_RPC_PERMISSION_DENIED, why);
        return;
    }
    avl_call_set_user(call, link); /* marks it as attached */
    Avl__Worker__V1__Accepted accepted;
    avl__worker__v1__accepted__init(&accepted);
    Avl__Worker__V1__CoordinatorMessage message;
    avl__worker__v1__coordinator_message__init(&message);
    message.message_case = AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ACCEPTED;
    message.accepted = &accepted;
    if (avl_call_send(call, &message.base) != AVL_OK)
        avl_log_warn("cannot greet the worker group: %s", avl_status_detail());
    server->observer.attached(server->observer.context, link->generation, hello);
}

static void on_message(void *context, avl_call_t *call, avl_payload_t *payload) {
    const door_t *door = context;
    avl_link_server_t *server = door->links;
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
    const link_t *link = avl_call_user(call);
    bool hello =
        message != NULL && message->message_case == AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_HELLO;
    if (message == NULL) {
        avl_log_warn("a worker link carried a malformed message");
        avl_call_abort(call, AVL_RPC_INVALID_ARGUMENT, "malformed message");
        return;
    }
    if (hello && link == NULL)
        on_hello(door, call, message->hello);
    else if (link != NULL && !hello)
        server->observer.message(server->observer.context, link->generation, message);
    else
        refuse(call, AVL_RPC_INVALID_ARGUMENT,
               link != NULL ? "a second hello" : "the first message must be hello");
    avl__worker__v1__worker_message__free_unpacked(message, NULL);
}

static void on_begin(void *context, avl_call_t *call, avl_payload_t *payload) {
    (void)context;
    (void)call;
    avl_payload_free(payload);
}

static void on_close(void *context, avl_call_t *call, bool cancelled) {
    avl_link_server_t *server = ((const door_t *)context)->links;
    (void)cancelled;
    link_t *link = avl_call_user(call);
    if (link == NULL)
        return;
    avl_call_set_user(call, NULL);
    pthread_mutex_lock(&server->lock);
    uint64_t generation = link->generation;
    *link = (link_t){0};
    pthread_mutex_unlock(&server->lock);
    server->observer.detached(server->observer.context, generation);
    avl_call_unref(call);
}

static avl_status_t open_door(avl_link_server_t *links, door_t *door, const char *address) {
    door->links = links;
    door->attach = (avl_method_t){.path = "/avl.worker.v1.WorkerLink/Attach",
                                  .client_streams = true,
                                  .context = door,
                                  .begin = on_begin,
                                  .message = on_message,
                                  .close = on_close};
    avl_server_config_t config = {
        .address = address,
        .methods = &door->attach,
        .method_count = 1,
        .threads = 1, /* keeps the order of the wire */
        .message_bytes_max = MESSAGE_BYTES_MAX,
        .send_queue_bytes_max = SIZE_MAX, /* bounded by the number of requests */
        .keepalive_ms = 10000,
        .keepalive_timeout_ms = 10000,
    };
    return avl_server_create(&config, &door->server);
}

avl_status_t avl_link_server_create(const char *address, const avl_link_observer_t *observer,
                                    avl_link_server_t **server_p) {
    avl_link_server_t *server = NULL;
    AVL_TRY(avl_alloc(1, sizeof *server, "the link server", &server));
    server->observer = *observer;
    pthread_mutex_init(&server->lock, NULL);
    avl_status_t status = open_door(server, &server->started, address);
    if (status != AVL_OK) {
        pthread_mutex_destroy(&server->lock);
        free(server);
        return status;
    }
    *server_p = server;
    return AVL_OK;
}

avl_status_t avl_link_server_open(avl_link_server_t *server, const char *address,
                                  const char *secret) {
    size_t length = strlen(secret);
    AVL_ASSERT(server->joining.server == NULL);
    if (length < AVL_JOIN_SECRET_BYTES_MIN || length > AVL_JOIN_SECRET_BYTES_MAX)
        return avl_fail(AVL_ERR_INVALID, "the secret for joining has %zu bytes; it needs %d to %d",
                        length, AVL_JOIN_SECRET_BYTES_MIN, AVL_JOIN_SECRET_BYTES_MAX);
    snprintf(server->secret, sizeof server->secret, "%s", secret);
    server->joining.secret = server->secret;
    return open_door(server, &server->joining, address);
}

const char *avl_link_server_join_address(const avl_link_server_t *server) {
    return avl_server_address(server->joining.server);
}

uint64_t avl_link_server_next_generation(avl_link_server_t *server) {
    pthread_mutex_lock(&server->lock);
    uint64_t generation = ++server->last_generation;
    pthread_mutex_unlock(&server->lock);
    return generation;
}

void avl_link_server_expect(avl_link_server_t *server, uint64_t generation, const char *token) {
    pthread_mutex_lock(&server->lock);
    link_t *link = find_locked(server, generation);
    if (link == NULL && token != NULL) {
        link = find_locked(server, 0);
        AVL_ASSERT(link != NULL); /* far more than groups that are started */
        link->generation = generation;
    }
    if (link != NULL && link->call == NULL) {
        snprintf(link->token, sizeof link->token, "%s", token != NULL ? token : "");
        link->generation = token != NULL ? generation : 0;
    }
    pthread_mutex_unlock(&server->lock);
}

avl_status_t avl_link_server_send(avl_link_server_t *server, uint64_t generation,
                                  const Avl__Worker__V1__CoordinatorMessage *message) {
    pthread_mutex_lock(&server->lock);
    const link_t *link = find_locked(server, generation);
    avl_call_t *call = generation != 0 && link != NULL ? link->call : NULL;
    if (call != NULL)
        avl_call_ref(call);
    pthread_mutex_unlock(&server->lock);
    if (call == NULL)
        return avl_fail(AVL_ERR_UNAVAILABLE, "the worker group is gone");
    avl_status_t status = avl_call_send(call, &message->base);
    avl_call_unref(call);
    return status == AVL_ERR_CANCELLED ? avl_fail(AVL_ERR_UNAVAILABLE, "the worker group is gone")
                                       : status;
}

void avl_link_server_drop(avl_link_server_t *server, uint64_t generation, const char *reason) {
    pthread_mutex_lock(&server->lock);
    const link_t *link = find_locked(server, generation);
    avl_call_t *call = generation != 0 && link != NULL ? link->call : NULL;
    if (call != NULL)
        avl_call_ref(call);
    pthread_mutex_unlock(&server->lock);
    if (call != NULL) {
        avl_call_abort(call, AVL_RPC_UNAVAILABLE, reason);
        avl_call_unref(call);
    }
}

static void close_door(door_t *door) {
    if (door->server == NULL)
        return;
    avl_server_stop(door->server, 0);
    avl_server_destroy(door->server);
}

void avl_link_server_destroy(avl_link_server_t *server) {
    if (server == NULL)
        return;
    close_door(&server->joining);
    close_door(&server->started);
    pthread_mutex_destroy(&server->lock);
    free(server);
}
