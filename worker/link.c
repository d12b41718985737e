/* worker/link.c: the leader's gRPC client. One thread serves the completion queue; the step loop's
 * thread queues events and takes commands under one lock. At most one message is on its way; events
 * that gather meanwhile travel in one message. When the step loop does not take its commands,
 * nothing more is received, and HTTP/2's flow control holds the coordinator back. */
#include "worker/link.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "worker/link_parts.h"

#define METHOD "/avl.worker.v1.WorkerLink/Attach"
/* More than wait during one long step: behind a full line pings would wait too, and silence ends
 * the group. */
#define COMMANDS_MAX 2048
#define EVENTS_MAX 65536
#define CLOSE_WAIT_NS (2 * AVL_NS_PER_S) /* for the last words to arrive */

typedef enum tag {
    TAG_SENT = 1,
    TAG_METADATA,
    TAG_RECEIVED,
    TAG_STATUS,
    TAG_HALF_CLOSED,
} tag_t;

/* An event in waiting; only a last one is large. */
typedef struct waiting_event {
    uint64_t request_id;
    int32_t choice;
    avl_event_kind_t kind;
    avl_stage_t stage;
    int32_t done, total;
    int32_t token_id;
    avl_event_t *finished;         /* owned; NULL for the other kinds */
    avl_link_logprobs_t *logprobs; /* owned; NULL without */
} waiting_event_t;

typedef struct outgoing {
    struct outgoing *next;
    grpc_byte_buffer *buffer;
} outgoing_t;

struct avl_link {
    grpc_channel *channel;
    grpc_completion_queue *queue;
    grpc_call *call;
    pthread_t thread;
    bool thread_runs;
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice reason;
    grpc_byte_buffer *received;

    pthread_mutex_t lock; /* all below, and every batch */
    pthread_cond_t changed;
    bool started, accepted, ended; /* ended: the status came, nothing more will */
    bool lost;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
    bool send_active, receive_active, closing;
    grpc_byte_buffer *sending;
    outgoing_t *first, **last_p;
    waiting_event_t *events;
    size_t event_count, event_capacity;
    avl_step_work_t work;    /* of the steps since the last message with events */
    grpc_byte_buffer *stats; /* the latest that wait to be sent; NULL: none */
    avl_command_t commands[COMMANDS_MAX];
    size_t command_first, command_count;
    uint64_t polls;
    uint64_t (*count)(void *context); /* further progress; NULL: none */
    void *count_context;
};

static void *tag_pointer(tag_t tag) {
    return (void *)(uintptr_t)tag;
}

static void lose_locked(avl_link_t *link, avl_status_t status, const char *detail) {
    if (link->lost)
        return;
    link->lost = true;
    link->status = status;
    snprintf(link->detail, sizeof link->detail, "%s", detail);
    pthread_cond_broadcast(&link->changed);
}

/* Starts a batch of one operation. */
static void start_locked(avl_link_t *link, const grpc_op *op, tag_t tag) {
    grpc_call_error error = grpc_call_start_batch(link->call, op, 1, tag_pointer(tag), NULL);
    if (error != GRPC_CALL_OK) {
        char text[80];
        snprintf(text, sizeof text, "gRPC refused operation %d: error %d", (int)op->op, (int)error);
        lose_locked(link, AVL_ERR_INTERNAL, text);
        grpc_call_cancel(link->call, NULL);
    }
}

static void receive_locked(avl_link_t *link) {
    if (link->receive_active || link->ended || link->lost || link->command_count == COMMANDS_MAX)
        return;
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &link->received;
    link->receive_active = true;
    start_locked(link, &op, TAG_RECEIVED);
}

/* ---- out ---- */

static grpc_byte_buffer *pack(const Avl__Worker__V1__WorkerMessage *message) {
    size_t byte_count = avl__worker__v1__worker_message__get_packed_size(message);
    grpc_slice slice = grpc_slice_malloc(byte_count);
    avl__worker__v1__worker_message__pack(message, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

static Avl__Worker__V1__EventKind kind_number(avl_event_kind_t kind) {
    switch (kind) {
    case AVL_EVENT_PROGRESS:
        return AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_PROGRESS;
    case AVL_EVENT_TOKEN:
        return AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_TOKEN;
    case AVL_EVENT_FINISHED:
        return AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_FINISHED;
    }
    return AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_UNSPECIFIED;
}

static Avl__Worker__V1__EventStage stage_number(avl_stage_t stage) {
    switch (stage) {
    case AVL_STAGE_QUEUED:
        return AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_QUEUED;
    case AVL_STAGE_ENCODE:
        return AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_ENCODE;
    case AVL_STAGE_PREFILL:
        return AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_PREFILL;
    case AVL_STAGE_DECODE:
        return AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_DECODE;
    }
    return AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_QUEUED;
}

static Avl__Worker__V1__ResultReason reason_number(avl_finish_reason_t reason) {
    switch (reason) {
    case AVL_FINISH_NONE:
        return AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_NONE;
    case AVL_FINISH_STOP:
        return AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_STOP;
    case AVL_FINISH_LENGTH:
        return AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_LENGTH;
    case AVL_FINISH_CANCELLED:
        return AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_CANCELLED;
    case AVL_FINISH_ERROR:
        return AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_ERROR;
    }
    return AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_NONE;
}

static void result_fill(Avl__Worker__V1__Result *result, avl_event_t *event) {
    avl__worker__v1__result__init(result);
    result->finish_reason = reason_number(event->finish_reason);
    result->status = event->status;
    event->detail[sizeof event->detail - 1] = '\0';
    result->detail = event->detail;
    result->completion_tokens = event->completion_tokens;
    result->visual_rows_seen = event->attention.visual_rows_seen;
    result->visual_rows_stored = event->attention.visual_rows_stored;
    result->visual_rows_computed = event->attention.visual_rows_computed;
    result->decode_steps = event->attention.decode_steps;
    result->kv_bytes_returned = event->attention.kv_bytes_returned;
    result->captured_mass = event->attention.captured_mass;
    result->stored_mass = event->attention.stored_mass;
    result->visual_mass = event->attention.visual_mass;
    result->kv_bytes_held = event->attention.kv_bytes_held;
    result->text_rows_seen = event->attention.text_rows_seen;
    result->text_rows_stored = event->attention.text_rows_stored;
    result->encoder_cache_hits = event->reuse.pictures;
    result->prompt_rows_reused = event->reuse.prompt_rows;
    result->queue_ns = event->timings.queue_ns;
    result->encode_ns = event->timings.encode_ns;
    result->prefill_ns = event->timings.prefill_ns;
    result->decode_ns = event->timings.decode_ns;
}

/* What one event needs on the wire. */
typedef struct wire_event {
    Avl__Worker__V1__Event event;
    Avl__Worker__V1__Result result;
} wire_event_t;

static void free_event(waiting_event_t *event) {
    free(event->finished);
    free(event->logprobs);
}

static void clear_events_locked(avl_link_t *link) {
    for (size_t i = 0; i < link->event_count; i++)
        free_event(&link->events[i]);
    link->event_count = 0;
}

/* All waiting events as one message; NULL when memory is short (the link is lost then). */
static grpc_byte_buffer *pack_events_locked(avl_link_t *link) {
    wire_event_t *wire = NULL;
    Avl__Worker__V1__Event **list = NULL;
    grpc_byte_buffer *buffer = NULL;
    if (avl_alloc(link->event_count, sizeof *wire, "events", &wire) == AVL_OK &&
        avl_alloc(link->event_count, sizeof *list, "events", &list) == AVL_OK) {
        for (size_t i = 0; i < link->event_count; i++) {
            const waiting_event_t *from = &link->events[i];
            Avl__Worker__V1__Event *to = &wire[i].event;
            avl__worker__v1__event__init(to);
            to->request_id = from->request_id;
            to->choice = from->choice;
            to->kind = kind_number(from->kind);
            to->stage = stage_number(from->stage);
            to->done = from->done;
            to->total = from->total;
            to->token_id = from->token_id;
            if (from->logprobs != NULL) {
                to->n_logprob_ids = to->n_logprobs = from->logprobs->count;
                to->logprob_ids = from->logprobs->ids;
                to->logprobs = from->logprobs->values;
            }
            if (from->finished != NULL) {
                result_fill(&wire[i].result, from->finished);
                to->result = &wire[i].result;
            }
            list[i] = to;
        }
        Avl__Worker__V1__Events events;
        avl__worker__v1__events__init(&events);
        events.n_events = link->event_count;
        events.events = list;
        Avl__Worker__V1__Work work;
        if (link->work.steps > 0)
            events.work = avl_link_work_fill(&link->work, &work);
        Avl__Worker__V1__WorkerMessage message;
        avl__worker__v1__worker_message__init(&message);
        message.message_case = AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_EVENTS;
        message.events = &events;
        buffer = pack(&message);
    } else {
        lose_locked(link, AVL_ERR_MEMORY, avl_status_detail());
    }
    free(wire);
    free(list);
    link->work = (avl_step_work_t){0};
    clear_events_locked(link);
    return buffer;
}

static void send_next_locked(avl_link_t *link) {
    if (link->send_active || link->ended || link->lost)
        return;
    grpc_byte_buffer *buffer = NULL;
    if (link->first != NULL) {
        outgoing_t *outgoing = link->first;
        buffer = outgoing->buffer;
        link->first = outgoing->next;
        if (link->first == NULL)
            link->last_p = &link->first;
        free(outgoing);
    } else if (link->stats != NULL) {
        buffer = link->stats;
        link->stats = NULL;
    } else if (link->event_count > 0) {
        buffer = pack_events_locked(link);
    }
    if (buffer == NULL)
        return;
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_MESSAGE;
    op.data.send_message.send_message = buffer;
    link->send_active = true;
    link->sending = buffer;
    start_locked(link, &op, TAG_SENT);
}

static void post_locked(avl_link_t *link, const Avl__Worker__V1__WorkerMessage *message) {
    if (link->lost)
        return;
    outgoing_t *outgoing = NULL;
    if (avl_alloc(1, sizeof *outgoing, "a message", &outgoing) != AVL_OK) {
        lose_locked(link, AVL_ERR_MEMORY, avl_status_detail());
        return;
    }
    outgoing->buffer = pack(message);
    *link->last_p = outgoing;
    link->last_p = &outgoing->next;
    send_next_locked(link);
}

static void post(avl_link_t *link, const Avl__Worker__V1__WorkerMessage *message) {
    pthread_mutex_lock(&link->lock);
    post_locked(link, message);
    pthread_mutex_unlock(&link->lock);
}

static void queue_event_locked(avl_link_t *link, const avl_event_t *event) {
    if (link->event_count == EVENTS_MAX) {
        lose_locked(link, AVL_ERR_EXHAUSTED,
                    "the coordinator does not read: 65536 events wait for it");
        return;
    }
    waiting_event_t waiting = {
        .request_id = event->request_id,
        .choice = event->choice,
        .kind = event->kind,
        .stage = event->stage,
        .done = event->done,
        .total = event->total,
        .token_id = event->token_id,
    };
    avl_status_t status = AVL_OK;
    if (event->kind == AVL_EVENT_FINISHED) {
        status = avl_alloc(1, sizeof *waiting.finished, "an event", &waiting.finished);
        if (status == AVL_OK)
            *waiting.finished = *event;
    } else if (event->logprob_count > 0) {
        status = avl_link_logprobs_copy(event, &waiting.logprobs);
    }
    if (status == AVL_OK)
        status = avl_grow(link->event_count + 1, sizeof *link->events, "events", &link->events,
                          &link->event_capacity);
    if (status != AVL_OK) {
        free_event(&waiting);
        lose_locked(link, status, avl_status_detail());
        return;
    }
    link->events[link->event_count++] = waiting;
    send_next_locked(link);
}

void avl_link_send(avl_link_t *link, const avl_event_t *event) {
    pthread_mutex_lock(&link->lock);
    if (!link->lost)
        queue_event_locked(link, event);
    pthread_mutex_unlock(&link->lock);
}

void avl_link_work(avl_link_t *link, const avl_step_work_t *work) {
    pthread_mutex_lock(&link->lock);
    link->work.steps += work->steps;
    link->work.ns += work->ns;
    link->work.decode_rows += work->decode_rows;
    link->work.prompt_rows += work->prompt_rows;
    link->work.tiles += work->tiles;
    link->work.encode_ns += work->encode_ns;
    pthread_mutex_unlock(&link->lock);
}

void avl_link_loading(avl_link_t *link, double share) {
    Avl__Worker__V1__Loading loading;
    avl__worker__v1__loading__init(&loading);
    loading.share = share;
    Avl__Worker__V1__WorkerMessage message;
    avl__worker__v1__worker_message__init(&message);
    message.message_case = AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_LOADING;
    message.loading = &loading;
    post(link, &message);
}

void avl_link_ready(avl_link_t *link, const avl_capacity_t *capacity) {
    avl_capacity_t copy = *capacity;
    copy.device[sizeof copy.device - 1] = '\0';
    copy.dtype[sizeof copy.dtype - 1] = '\0';
    Avl__Worker__V1__Ready ready;
    avl__worker__v1__ready__init(&ready);
    ready.ranks = copy.ranks;
    ready.device = copy.device;
    ready.dtype = copy.dtype;
    ready.context_rows_max = copy.context_rows_max;
    ready.sequences_max = copy.sequences_max;
    ready.kv_rows = copy.kv_rows;
    ready.load_ns = copy.load_ns;
    ready.picture_bytes_max = copy.picture_bytes_max;
    copy.fingerprint[sizeof copy.fingerprint - 1] = '\0';
    ready.fingerprint = copy.fingerprint;
    Avl__Worker__V1__WorkerMessage message;
    avl__worker__v1__worker_message__init(&message);
    message.message_case = AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_READY;
    message.ready = &ready;
    post(link, &message);
}

void avl_link_stats(avl_link_t *link, const avl_stats_t *stats) {
    avl_link_stats_message_t parts;
    avl_link_stats_fill(stats, &parts);
    Avl__Worker__V1__WorkerMessage message;
    avl__worker__v1__worker_message__init(&message);
    message.message_case = AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_STATS;
    message.stats = &parts.stats;
    grpc_byte_buffer *buffer = pack(&message);
    pthread_mutex_lock(&link->lock);
    if (link->stats != NULL)
        grpc_byte_buffer_destroy(link->stats);
    link->stats = buffer;
    send_next_locked(link);
    pthread_mutex_unlock(&link->lock);
}

void avl_link_failed(avl_link_t *link, avl_status_t status, const char *detail) {
    char text[AVL_STATUS_DETAIL_BYTES];
    snprintf(text, sizeof text, "%s", detail);
    Avl__Worker__V1__Failed failed;
    avl__worker__v1__failed__init(&failed);
    failed.status = status;
    failed.detail = text;
    Avl__Worker__V1__WorkerMessage message;
    avl__worker__v1__worker_message__init(&message);
    message.message_case = AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_FAILED;
    message.failed = &failed;
    post(link, &message);
}

void avl_link_watch(avl_link_t *link, uint64_t (*count)(void *context), void *context) {
    pthread_mutex_lock(&link->lock);
    link->count = count;
    link->count_context = context;
    pthread_mutex_unlock(&link->lock);
}

static void answer_ping_locked(avl_link_t *link, uint64_t number) {
    Avl__Worker__V1__Pong pong;
    avl__worker__v1__pong__init(&pong);
    pong.number = number;
    pong.progress = link->polls + (link->count != NULL ? link->count(link->count_context) : 0);
    Avl__Worker__V1__WorkerMessage message;
    avl__worker__v1__worker_message__init(&message);
    message.message_case = AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_PONG;
    message.pong = &pong;
    post_locked(link, &message);
}

/* ---- in ---- */

static void command_put_locked(avl_link_t *link, const avl_command_t *command) {
    link->commands[(link->command_first + link->command_count) % COMMANDS_MAX] = *command;
    link->command_count++;
    pthread_cond_broadcast(&link->changed);
}

static void take_message(avl_link_t *link, Avl__Worker__V1__CoordinatorMessage *message) {
    avl_command_t command = {.kind = AVL_COMMAND_NONE, .choice = -1};
    avl_status_t status = AVL_OK;
    if (message == NULL) {
        status = avl_fail(AVL_ERR_DATA, "the coordinator sent a malformed message");
    } else if (message->message_case == AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_SUBMIT) {
        command.kind = AVL_COMMAND_SUBMIT;
        status = avl_link_request_take(message->submit, &command.request);
    } else if (message->message_case == AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL) {
        command.kind = AVL_COMMAND_CANCEL;
        command.request_id = message->cancel->request_id;
        command.choice = message->cancel->choice - 1;
    } else if (message->message_case == AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_DRAIN) {
        command.kind = AVL_COMMAND_DRAIN;
    }
    if (command.request != NULL)
        command.request_id = command.request->id;
    pthread_mutex_lock(&link->lock);
    link->receive_active = false;
    if (status != AVL_OK) {
        lose_locked(link, status, avl_status_detail());
        grpc_call_cancel(link->call, NULL);
    } else if (message->message_case == AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_PING) {
        answer_ping_locked(link, message->ping->number);
    } else if (message->message_case == AVL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ACCEPTED) {
        link->accepted = true;
        pthread_cond_broadcast(&link->changed);
    } else if (command.kind != AVL_COMMAND_NONE) {
        command_put_locked(link, &command);
    }
    receive_locked(link);
    pthread_mutex_unlock(&link->lock);
}

static void on_received(avl_link_t *link, bool success) {
    grpc_byte_buffer *buffer = link->received;
    link->received = NULL;
    if (!success || buffer == NULL) { /* the status says why */
        pthread_mutex_lock(&link->lock);
        link->receive_active = false;
        lose_locked(link, AVL_ERR_UNAVAILABLE, "the coordinator ended the link");
        pthread_mutex_unlock(&link->lock);
        if (buffer != NULL)
            grpc_byte_buffer_destroy(buffer);
        return;
    }
    Avl__Worker__V1__CoordinatorMessage *message = NULL;
    grpc_byte_buffer_reader reader;
    if (grpc_byte_buffer_reader_init(&reader, buffer)) {
        grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
        grpc_byte_buffer_destroy(buffer);
        message = avl__worker__v1__coordinator_message__unpack(NULL, GRPC_SLICE_LENGTH(slice),
                                                               GRPC_SLICE_START_PTR(slice));
        grpc_slice_unref(slice);
    } else {
        grpc_byte_buffer_destroy(buffer);
    }
    take_message(link, message);
    if (message != NULL)
        avl__worker__v1__coordinator_message__free_unpacked(message, NULL);
}

static void on_status(avl_link_t *link) {
    char *reason = grpc_slice_to_c_string(link->reason);
    char text[AVL_STATUS_DETAIL_BYTES];
    snprintf(text, sizeof text, "%s (code %d)",
             reason[0] != '\0' ? reason : "the coordinator ended the link", (int)link->code);
    gpr_free(reason);
    pthread_mutex_lock(&link->lock);
    link->ended = true;
    if (link->lost && !link->closing &&
        !link->accepted) /* a refusal's own words are better than "ended" */
        snprintf(link->detail, sizeof link->detail, "%s", text);
    lose_locked(link, AVL_ERR_UNAVAILABLE, text);
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->lock);
}

static void on_event(avl_link_t *link, tag_t tag, bool success) {
    switch (tag) {
    case TAG_SENT:
        pthread_mutex_lock(&link->lock);
        grpc_byte_buffer_destroy(link->sending);
        link->sending = NULL;
        link->send_active = false;
        if (!success)
            lose_locked(link, AVL_ERR_UNAVAILABLE, "the coordinator is gone");
        send_next_locked(link);
        pthread_cond_broadcast(&link->changed);
        pthread_mutex_unlock(&link->lock);
        break;
    case TAG_RECEIVED:
        on_received(link, success);
        break;
    case TAG_STATUS:
        on_status(link);
        break;
    case TAG_HALF_CLOSED:
    case TAG_METADATA:
        break;
    }
}

static void *serve(void *context) {
    avl_link_t *link = context;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(link->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE)
            on_event(link, (tag_t)(uintptr_t)event.tag, event.success != 0);
    }
}

void avl_link_poll(avl_link_t *link, int64_t timeout_ns, avl_command_t *command_p) {
    struct timespec limit;
    clock_gettime(CLOCK_MONOTONIC, &limit);
    if (timeout_ns > 3600 * AVL_NS_PER_S)
        timeout_ns = 3600 * AVL_NS_PER_S;
    int64_t ns = limit.tv_nsec + timeout_ns % AVL_NS_PER_S;
    limit.tv_sec += timeout_ns / AVL_NS_PER_S + ns / AVL_NS_PER_S;
    limit.tv_nsec = ns % AVL_NS_PER_S;
    memset(command_p, 0, sizeof *command_p);
    pthread_mutex_lock(&link->lock);
    link->polls++;
    for (int waited = 0;;) {
        if (link->lost) {
            command_p->kind = AVL_COMMAND_LOST;
            command_p->status = avl_fail(link->status, "%s", link->detail);
            break;
        }
        if (link->command_count > 0) {
            *command_p = link->commands[link->command_first];
            link->command_first = (link->command_first + 1) % COMMANDS_MAX;
            link->command_count--;
            receive_locked(link);
            break;
        }
        if (waited != 0 || timeout_ns <= 0)
            break;
        waited = pthread_cond_timedwait(&link->changed, &link->lock, &limit);
    }
    pthread_mutex_unlock(&link->lock);
}

/* ---- life ---- */

static void start_call_locked(avl_link_t *link) {
    link->started = true;
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    op.data.recv_status_on_client.trailing_metadata = &link->trailing;
    op.data.recv_status_on_client.status = &link->code;
    op.data.recv_status_on_client.status_details = &link->reason;
    start_locked(link, &op, TAG_STATUS);
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_INITIAL_METADATA;
    op.data.recv_initial_metadata.recv_initial_metadata = &link->initial;
    start_locked(link, &op, TAG_METADATA);
    receive_locked(link);
}

/* The first message carries the call's metadata; while nobody listens yet, it waits. */
static void send_hello_locked(avl_link_t *link, const char *group_token) {
    char version[] = AVL_VERSION, token[256];
    snprintf(token, sizeof token, "%s", group_token);
    Avl__Worker__V1__Hello hello;
    avl__worker__v1__hello__init(&hello);
    hello.version = version;
    hello.group_token = token;
    hello.process_id = getpid();
    Avl__Worker__V1__WorkerMessage message;
    avl__worker__v1__worker_message__init(&message);
    message.message_case = AVL__WORKER__V1__WORKER_MESSAGE__MESSAGE_HELLO;
    message.hello = &hello;
    grpc_op ops[2];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].flags =
        GRPC_INITIAL_METADATA_WAIT_FOR_READY | GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    link->sending = pack(&message);
    ops[1].data.send_message.send_message = link->sending;
    link->send_active = true;
    grpc_call_error error = grpc_call_start_batch(link->call, ops, 2, tag_pointer(TAG_SENT), NULL);
    AVL_ASSERT(error == GRPC_CALL_OK);
}

/* Waits until `*flag` or loss, at most `timeout_ns`. */
static void wait_locked(avl_link_t *link, const bool *flag, int64_t timeout_ns) {
    struct timespec limit;
    clock_gettime(CLOCK_MONOTONIC, &limit);
    int64_t ns = limit.tv_nsec + timeout_ns % AVL_NS_PER_S;
    limit.tv_sec += timeout_ns / AVL_NS_PER_S + ns / AVL_NS_PER_S;
    limit.tv_nsec = ns % AVL_NS_PER_S;
    int waited = 0;
    while (!*flag && !link->ended && waited == 0)
        waited = pthread_cond_timedwait(&link->changed, &link->lock, &limit);
}

static avl_link_t *link_allocate(void) {
    avl_link_t *link = NULL;
    if (avl_alloc(1, sizeof *link, "the link", &link) != AVL_OK)
        return NULL;
    link->last_p = &link->first;
    link->reason = grpc_empty_slice();
    grpc_metadata_array_init(&link->initial);
    grpc_metadata_array_init(&link->trailing);
    pthread_mutex_init(&link->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&link->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return link;
}

avl_status_t avl_link_open(const char *address, const char *group_token, int64_t timeout_ns,
                           avl_link_t **link_p) {
    avl_link_t *link = link_allocate();
    if (link == NULL)
        return AVL_ERR_MEMORY;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* for the core's threads too */
    grpc_init();
    link->queue = grpc_completion_queue_create_for_next(NULL);
    link->channel = avl_link_channel_create(address);
    link->call = grpc_channel_create_call(link->channel, NULL, GRPC_PROPAGATE_DEFAULTS, link->queue,
                                          grpc_slice_from_static_string(METHOD), NULL,
                                          gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    int error = pthread_create(&link->thread, NULL, serve, link);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        avl_status_t status =
            avl_fail(AVL_ERR_EXHAUSTED, "cannot start the link's thread: %s", strerror(error));
        avl_link_close(link);
        return status;
    }
    link->thread_runs = true;
    pthread_mutex_lock(&link->lock);
    start_call_locked(link);
    send_hello_locked(link, group_token);
    wait_locked(link, &link->accepted, timeout_ns);
    bool accepted = link->accepted;
    char detail[AVL_STATUS_DETAIL_BYTES];
    snprintf(detail, sizeof detail, "%s", link->ended ? link->detail : "no answer in time");
    pthread_mutex_unlock(&link->lock);
    if (!accepted) {
        avl_link_close(link);
        return avl_fail(AVL_ERR_UNAVAILABLE, "the coordinator at %s: %s", address, detail);
    }
    *link_p = link;
    return AVL_OK;
}

/* Lets what is queued go out, says goodbye, and waits for the coordinator's end, all within bounds.
 */
static void say_goodbye(avl_link_t *link) {
    pthread_mutex_lock(&link->lock);
    link->closing = true;
    int64_t limit_ns = avl_clock_now_ns() + CLOSE_WAIT_NS;
    bool never = false;
    while (link->accepted && !link->lost && avl_clock_now_ns() < limit_ns &&
           (link->send_active || link->first != NULL || link->event_count > 0))
        wait_locked(link, &never, AVL_NS_PER_S / 100);
    if (link->accepted && !link->ended && !link->lost && !link->send_active) {
        grpc_op op;
        memset(&op, 0, sizeof op);
        op.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        start_locked(link, &op, TAG_HALF_CLOSED);
        wait_locked(link, &link->ended, CLOSE_WAIT_NS);
    }
    bool ended = link->ended;
    pthread_mutex_unlock(&link->lock);
    if (!ended)
        grpc_call_cancel(link->call, NULL);
    pthread_mutex_lock(&link->lock);
    while (!link->ended || link->send_active)
        pthread_cond_wait(&link->changed, &link->lock); /* a cancelled call's status always comes */
    pthread_mutex_unlock(&link->lock);
}

void avl_link_close(avl_link_t *link) {
    if (link == NULL)
        return;
    if (link->started)
        say_goodbye(link);
    grpc_call_unref(link->call);
    grpc_channel_destroy(link->channel);
    grpc_completion_queue_shutdown(link->queue);
    if (link->thread_runs)
        pthread_join(link->thread, NULL);
    grpc_completion_queue_destroy(link->queue);
    grpc_slice_unref(link->reason);
    grpc_metadata_array_destroy(&link->initial);
    grpc_metadata_array_destroy(&link->trailing);
    while (link->first != NULL) {
        outgoing_t *outgoing = link->first;
        link->first = outgoing->next;
        grpc_byte_buffer_destroy(outgoing->buffer);
        free(outgoing);
    }
    if (link->stats != NULL)
        grpc_byte_buffer_destroy(link->stats);
    clear_events_locked(link);
    free(link->events);
    for (; link->command_count > 0; link->command_count--) {
        avl_command_t *command = &link->commands[link->command_first];
        link->command_first = (link->command_first + 1) % COMMANDS_MAX;
        if (command->kind == AVL_COMMAND_SUBMIT)
            avl_request_destroy(command->request);
    }
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->lock);
    free(link);
    grpc_shutdown();
}
