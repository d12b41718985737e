#include "coordinator/health.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "coordinator/wire.h"
#include "proto/health.pb-c.h"

#define WATCHES_MAX 1024

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status_t;
#define STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

typedef struct watch {
    struct watch *next;
    avl_call_t *call; /* a reference is held */
} watch_t;

struct avl_health {
    pthread_mutex_t lock;
    bool serving, ended;
    watch_t *watches; /* of known services */
    size_t watch_count;
};

/* False: no such service. Refuses malformed requests itself, with *refused_p set. */
static bool read_service(avl_call_t *call, avl_payload_t *payload, bool *refused_p) {
    const uint8_t *bytes = NULL;
    size_t byte_count = 0;
    ProtobufCMessage *message = NULL;
    avl_status_t status = AVL_OK;
    if (payload != NULL)
        status = avl_payload_read(payload, &bytes, &byte_count);
    if (status == AVL_OK)
        status = avl_wire_unpack(&grpc__health__v1__health_check_request__descriptor, bytes,
                                 byte_count, &message);
    *refused_p = status != AVL_OK;
    if (*refused_p) {
        avl_call_finish(call, avl_rpc_code(status), avl_status_detail());
        return false;
    }
    const char *service = ((Grpc__Health__V1__HealthCheckRequest *)message)->service;
    bool known = service[0] == '\0' || strcmp(service, "avl.v1.Inference") == 0;
    protobuf_c_message_free_unpacked(message, NULL);
    return known;
}

static void answer(avl_call_t *call, serving_status_t status) {
    Grpc__Health__V1__HealthCheckResponse response;
    grpc__health__v1__health_check_response__init(&response);
    response.status = status;
    if (avl_call_send(call, &response.base) == AVL_ERR_EXHAUSTED)
        avl_call_abort(call, AVL_RPC_RESOURCE_EXHAUSTED, avl_status_detail());
}

static void on_check(void *context, avl_call_t *call, avl_payload_t *payload) {
    avl_health_t *health = context;
    bool refused;
    bool known = read_service(call, payload, &refused);
    avl_payload_free(payload);
    if (refused)
        return;
    if (!known) {
        avl_call_finish(call, AVL_RPC_NOT_FOUND,
                        "unknown service: known are \"\" and avl.v1.Inference");
        return;
    }
    pthread_mutex_lock(&health->lock);
    bool serving = health->serving;
    pthread_mutex_unlock(&health->lock);
    answer(call, serving ? STATUS(SERVING) : STATUS(NOT_SERVING));
    avl_call_finish(call, AVL_RPC_OK, "");
}

/* A watch of an unknown service stays open, as the protocol asks; that service never comes. */
static void on_watch(void *context, avl_call_t *call, avl_payload_t *payload) {
    avl_health_t *health = context;
    bool refused;
    bool known = read_service(call, payload, &refused);
    avl_payload_free(payload);
    if (refused)
        return;
    watch_t *watch = NULL;
    if (avl_alloc(1, sizeof *watch, "a watch", &watch) != AVL_OK) {
        avl_call_finish(call, AVL_RPC_RESOURCE_EXHAUSTED, avl_status_detail());
        return;
    }
    pthread_mutex_lock(&health->lock);
    if (health->ended || health->watch_count >= WATCHES_MAX) {
        avl_call_finish(call, health->ended ? AVL_RPC_UNAVAILABLE : AVL_RPC_RESOURCE_EXHAUSTED,
                        health->ended ? "the service is shutting down" : "too many watches");
        free(watch);
    } else {
        avl_call_ref(call);
        watch->call = call;
        watch->next = health->watches;
        health->watches = watch;
        health->watch_count++;
        avl_call_set_user(call, known ? health : NULL); /* marks who hears of changes */
        answer(call, !known            ? STATUS(SERVICE_UNKNOWN)
                     : health->serving ? STATUS(SERVING)
                                       : STATUS(NOT_SERVING));
    }
    pthread_mutex_unlock(&health->lock);
}

static void on_watch_closed(void *context, avl_call_t *call, bool cancelled) {
    avl_health_t *health = context;
    (void)cancelled;
    pthread_mutex_lock(&health->lock);
    watch_t **link_p = &health->watches;
    while (*link_p != NULL && (*link_p)->call != call)
        link_p = &(*link_p)->next;
    watch_t *watch = *link_p;
    if (watch != NULL) {
        *link_p = watch->next;
        health->watch_count--;
    }
    pthread_mutex_unlock(&health->lock);
    if (watch != NULL) {
        avl_call_unref(watch->call);
        free(watch);
    }
}

avl_status_t avl_health_create(avl_health_t **health_p) {
    avl_health_t *health = NULL;
    AVL_TRY(avl_alloc(1, sizeof *health, "the health service", &health));
    pthread_mutex_init(&health->lock, NULL);
    *health_p = health;
    return AVL_OK;
}

void avl_health_methods(avl_health_t *health, avl_method_t methods[AVL_HEALTH_METHODS]) {
    methods[0] = (avl_method_t){
        .path = "/grpc.health.v1.Health/Check", .context = health, .begin = on_check};
    methods[1] = (avl_method_t){.path = "/grpc.health.v1.Health/Watch",
                                .context = health,
                                .begin = on_watch,
                                .close = on_watch_closed};
}

void avl_health_set(avl_health_t *health, bool serving) {
    pthread_mutex_lock(&health->lock);
    bool change = !health->ended && health->serving != serving;
    if (change)
        health->serving = serving;
    for (watch_t *watch = health->watches; change && watch != NULL; watch = watch->next)
        if (avl_call_user(watch->call) != NULL)
            answer(watch->call, serving ? STATUS(SERVING) : STATUS(NOT_SERVING));
    pthread_mutex_unlock(&health->lock);
}

bool avl_health_serving(avl_health_t *health) {
    pthread_mutex_lock(&health->lock);
    bool serving = health->serving;
    pthread_mutex_unlock(&health->lock);
    return serving;
}

void avl_health_end(avl_health_t *health) {
    avl_health_set(health, false);
    pthread_mutex_lock(&health->lock);
    health->ended = true;
    for (watch_t *watch = health->watches; watch != NULL; watch = watch->next)
        avl_call_finish(watch->call, AVL_RPC_UNAVAILABLE, "the service is shutting down");
    pthread_mutex_unlock(&health->lock);
}

void avl_health_destroy(avl_health_t *health) {
    if (health == NULL)
        return;
    AVL_ASSERT(health->watches == NULL);
    pthread_mutex_destroy(&health->lock);
    free(health);
}
