#include "coordinator/requests.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/request_messages.h"
#include "coordinator/request_record.h"

#define BUCKETS 256
#define STRIKES_MAX 2
#define TICK_NS (AVL_NS_PER_S / 10) /* how late a deadline may be noticed here */

typedef enum state {
    STATE_PREPARING,
    STATE_WAITING,
    STATE_RUNNING,
    STATE_DONE,
} state_t;

struct avl_live_request {
    avl_requests_t *requests;
    uint64_t id;
    atomic_int references;
    avl_call_t *call; /* a reference is held */
    int64_t arrival_ns, deadline_ns;
    avl_live_request_t *next; /* in its bucket; the table's lock */

    pthread_mutex_t lock; /* all below */
    state_t state;
    bool progress;
    avl_prepared_t prepared;
    avl_request_record_t record;
    int32_t max_tokens; /* resolved at submission */
    uint64_t generation;
    int32_t *sent_ids;
    size_t sent_count, sent_capacity;
    int32_t loading_permille; /* last told */
    int strikes;              /* group deaths since the last token */
    avl_detokenizer_t *detokenizer;
    bool stopped; /* by a stop text: the group is told to end it, and its report is waited for */
    int64_t waiting_ns, submitted_ns; /* first times */
};

struct avl_requests {
    avl_requests_config_t config;
    avl_worker_group_t *group;
    pthread_t ticker;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t changed;
    avl_live_request_t *buckets[BUCKETS];
    size_t count;
    uint64_t next_id;
    uint64_t suspect_id; /* the one request with strikes that a group has; 0: none */
    bool draining, stopping;
};

/* ---- the table ---- */

static void live_ref(avl_live_request_t *live) {
    atomic_fetch_add(&live->references, 1);
}

void avl_live_request_unref(avl_live_request_t *live) {
    if (live == NULL || atomic_fetch_sub(&live->references, 1) != 1)
        return;
    avl_prepared_free(&live->prepared);
    free(live->sent_ids);
    avl_detokenizer_destroy(live->detokenizer);
    avl_call_unref(live->call);
    pthread_mutex_destroy(&live->lock);
    free(live);
}

static avl_live_request_t *table_find(avl_requests_t *requests, uint64_t id) {
    pthread_mutex_lock(&requests->lock);
    avl_live_request_t *live = requests->buckets[id % BUCKETS];
    while (live != NULL && live->id != id)
        live = live->next;
    if (live != NULL)
        live_ref(live);
    pthread_mutex_unlock(&requests->lock);
    return live;
}

static void table_remove(avl_requests_t *requests, avl_live_request_t *live) {
    pthread_mutex_lock(&requests->lock);
    avl_live_request_t **link_p = &requests->buckets[live->id % BUCKETS];
    while (*link_p != NULL && *link_p != live)
        link_p = &(*link_p)->next;
    bool found = *link_p == live;
    if (found) {
        *link_p = live->next;
        requests->count--;
    }
    if (requests->suspect_id == live->id)
        requests->suspect_id = 0;
    pthread_cond_broadcast(&requests->changed);
    pthread_mutex_unlock(&requests->lock);
    if (found)
        avl_live_request_unref(live);
}

static int by_id(const void *left, const void *right) {
    uint64_t a = (*(avl_live_request_t *const *)left)->id,
             b = (*(avl_live_request_t *const *)right)->id;
    return a < b ? -1 : a > b;
}

/* All live requests, oldest first, each with a reference; snapshot_free releases them. */
static avl_live_request_t **snapshot(avl_requests_t *requests, size_t *count_p) {
    avl_live_request_t **list = NULL;
    size_t count = 0;
    pthread_mutex_lock(&requests->lock);
    if (avl_alloc(requests->count, sizeof *list, "a list of requests", &list) == AVL_OK) {
        for (size_t b = 0; b < BUCKETS; b++) {
            for (avl_live_request_t *live = requests->buckets[b]; live != NULL; live = live->next) {
                live_ref(live);
                list[count++] = live;
            }
        }
    } else {
        avl_log_error("%s", avl_status_detail());
    }
    pthread_mutex_unlock(&requests->lock);
    if (count > 1)
        qsort(list, count, sizeof *list, by_id);
    *count_p = count;
    return list;
}

static void snapshot_free(avl_live_request_t **list, size_t count) {
    for (size_t i = 0; i < count; i++)
        avl_live_request_unref(list[i]);
    free(list);
}

/* ---- endings; the request's lock is held ---- */

/* The one way out. */
static void done_locked(avl_live_request_t *live) {
    if (live->state == STATE_DONE)
        return;
    if (live->state == STATE_RUNNING)
        avl_worker_group_cancel(live->requests->group, live->generation, live->id);
    live->state = STATE_DONE;
    avl_request_record_phase(&live->record, AVL_REQUEST_OVER);
    for (size_t i = 0; i < live->prepared.image_count; i++) { /* the large part, at once */
        free(live->prepared.images[i].pixels);
        live->prepared.images[i].pixels = NULL;
    }
    table_remove(live->requests, live);
}

static void fail_locked(avl_live_request_t *live, avl_status_t status, const char *detail) {
    if (live->state == STATE_DONE)
        return;
    avl_rpc_code_t code = avl_rpc_code(status);
    avl_request_record_failed(&live->record, live->prepared.name, code, detail);
    done_locked(live);
    avl_call_finish(live->call, code, detail);
}

/* A client that does not read is let go of; it must not gather memory here. */
static void send_locked(avl_live_request_t *live, const Avl__V1__GenerateResponse *response) {
    avl_status_t status = avl_call_send(live->call, &response->base);
    if (status == AVL_OK || status == AVL_ERR_CANCELLED) /* the close is on its way */
        return;
    char detail[AVL_STATUS_DETAIL_BYTES];
    snprintf(detail, sizeof detail, "%s", avl_status_detail());
    avl_request_record_failed(&live->record, live->prepared.name, avl_rpc_code(status), detail);
    done_locked(live);
    avl_call_abort(live->call, avl_rpc_code(status), detail);
}

static void send_progress_locked(avl_live_request_t *live, Avl__V1__Stage stage, uint32_t done,
                                 uint32_t total) {
    if (!live->progress || live->state == STATE_DONE)
        return;
    Avl__V1__Progress progress;
    avl__v1__progress__init(&progress);
    progress.stage = stage;
    progress.done = done;
    progress.total = total;
    Avl__V1__GenerateResponse response;
    avl__v1__generate_response__init(&response);
    response.event_case = AVL__V1__GENERATE_RESPONSE__EVENT_PROGRESS;
    response.progress = &progress;
    send_locked(live, &response);
}

/* `token` may be NULL. */
static void send_delta_locked(avl_live_request_t *live, const char *text,
                              const Avl__Worker__V1__Event *token) {
    avl_delta_message_t message;
    avl_delta_message_fill(text, token, &message);
    send_locked(live, &message.response);
}

/* ---- submission ---- */

static avl_status_t send_submit_locked(avl_live_request_t *live, int64_t time_left_ns) {
    avl_prepared_t *prepared = &live->prepared;
    Avl__Worker__V1__SubmitImage *images = NULL, **list = NULL;
    AVL_TRY(avl_alloc(prepared->image_count, sizeof *images, "pictures", &images));
    avl_status_t status = avl_alloc(prepared->image_count, sizeof *list, "pictures", &list);
    if (status == AVL_OK) {
        avl_submit_images_fill(prepared, images, list);
        Avl__Worker__V1__Submit submit;
        avl__worker__v1__submit__init(&submit);
        submit.request_id = live->id;
        submit.tenant = prepared->tenant;
        submit.n_token_ids = (size_t)prepared->row_count;
        submit.token_ids = prepared->token_ids;
        submit.n_images = prepared->image_count;
        submit.images = list;
        submit.visual_store_ratio = prepared->attention.visual_store_ratio;
        submit.visual_compute_ratio = prepared->attention.visual_compute_ratio;
        submit.visual_update_interval = prepared->attention.visual_update_interval;
        avl_submit_sampling_fill(&live->prepared.sampling, &submit);
        submit.max_tokens = live->max_tokens;
        submit.ignore_eos = prepared->ignore_eos;
        submit.time_left_ns = time_left_ns;
        submit.n_replay_ids = live->sent_count;
        submit.replay_ids = live->sent_ids;
        status = avl_worker_group_submit(live->requests->group, &submit, &live->generation);
    }
    free(list);
    free(images);
    return status;
}

/* Whether this request may go now: of those with strikes only one at a time does. */
static bool take_turn(avl_live_request_t *live) {
    if (live->strikes == 0)
        return true;
    avl_requests_t *requests = live->requests;
    pthread_mutex_lock(&requests->lock);
    bool free_turn = requests->suspect_id == 0 || requests->suspect_id == live->id;
    if (free_turn)
        requests->suspect_id = live->id;
    pthread_mutex_unlock(&requests->lock);
    return free_turn;
}

/* The turn passes on; true when others may wait for it. */
static bool give_turn(avl_live_request_t *live) {
    avl_requests_t *requests = live->requests;
    pthread_mutex_lock(&requests->lock);
    bool had = requests->suspect_id == live->id;
    if (had)
        requests->suspect_id = 0;
    pthread_mutex_unlock(&requests->lock);
    return had;
}

/* How many tokens the request may get, now that the context is known. */
static avl_status_t resolve_max_tokens_locked(avl_live_request_t *live, int32_t context_rows) {
    const avl_prepared_t *prepared = &live->prepared;
    int32_t room = context_rows - prepared->row_count;
    if (room < 1)
        return avl_fail(
            AVL_ERR_TOO_LARGE,
            "the prompt has %d tokens (%d of pictures); the context holds %d, one of them for "
            "the answer",
            prepared->row_count, prepared->visual_rows, context_rows);
    live->max_tokens =
        prepared->max_tokens > 0 && prepared->max_tokens < room ? prepared->max_tokens : room;
    return AVL_OK;
}

/* Gives a waiting request to the group if there is one. */
static void submit_locked(avl_live_request_t *live) {
    avl_requests_t *requests = live->requests;
    if (live->state != STATE_WAITING)
        return;
    avl_worker_group_view_t view;
    avl_worker_group_view(requests->group, &view);
    if (view.hopeless) {
        char text[AVL_STATUS_DETAIL_BYTES];
        snprintf(text, sizeof text, "the worker group cannot be started: %s", view.reason);
        fail_locked(live, AVL_ERR_UNAVAILABLE, text);
        return;
    }
    if (view.state != AVL_WORKER_GROUP_READY) {
        send_progress_locked(live, AVL__V1__STAGE__STAGE_LOADING,
                             (uint32_t)(view.loading_share * 1000), 1000);
        return;
    }
    int64_t now_ns = avl_clock_now_ns();
    int64_t left_ns = live->deadline_ns == AVL_DEADLINE_NONE ? 0 : live->deadline_ns - now_ns;
    if (live->deadline_ns != AVL_DEADLINE_NONE && left_ns <= 0)
        return; /* the ticker ends it */
    if (resolve_max_tokens_locked(live, view.context_rows_max) != AVL_OK) {
        fail_locked(live, AVL_ERR_TOO_LARGE, avl_status_detail());
        return;
    }
    if (!take_turn(live))
        return;
    avl_status_t status = send_submit_locked(live, left_ns);
    if (status == AVL_OK) {
        live->state = STATE_RUNNING;
        if (live->submitted_ns == 0)
            live->submitted_ns = now_ns;
        send_progress_locked(live, AVL__V1__STAGE__STAGE_QUEUED, 0, 0);
    } else if (status != AVL_ERR_UNAVAILABLE) { /* else the next group takes it */
        fail_locked(live, status, avl_status_detail());
    }
}

static void submit_waiting(avl_requests_t *requests) {
    size_t count;
    avl_live_request_t **list = snapshot(requests, &count);
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&list[i]->lock);
        submit_locked(list[i]);
        pthread_mutex_unlock(&list[i]->lock);
    }
    snapshot_free(list, count);
}

/* ---- a request's life, from the API's side ---- */

avl_status_t avl_requests_admit(avl_requests_t *requests, avl_call_t *call,
                                avl_live_request_t **request_p) {
    avl_worker_group_view_t view;
    avl_worker_group_view(requests->group, &view);
    if (view.hopeless)
        return avl_fail(AVL_ERR_UNAVAILABLE, "the worker group cannot be started: %s", view.reason);
    avl_live_request_t *live = NULL;
    AVL_TRY(avl_alloc(1, sizeof *live, "a request", &live));
    avl_status_t status = avl_detokenizer_create(requests->config.tokenizer, &live->detokenizer);
    if (status != AVL_OK) {
        free(live);
        return status;
    }
    live->requests = requests;
    live->call = call;
    live->loading_permille = -1;
    live->arrival_ns = avl_clock_now_ns();
    live->deadline_ns = avl_call_deadline_ns(call);
    if (requests->config.timeout_ns != AVL_DEADLINE_NONE &&
        live->deadline_ns > live->arrival_ns + requests->config.timeout_ns)
        live->deadline_ns = live->arrival_ns + requests->config.timeout_ns;
    pthread_mutex_init(&live->lock, NULL);
    atomic_init(&live->references, 3); /* the table's, the call's, the caller's */

    pthread_mutex_lock(&requests->lock);
    if (requests->draining) {
        status = avl_fail(AVL_ERR_UNAVAILABLE, "the service is shutting down");
    } else if (requests->count >= requests->config.live_max) {
        status = avl_fail(AVL_ERR_EXHAUSTED,
                          "%zu requests are in progress, the most this service takes: try later",
                          requests->count);
    } else {
        live->id = ++requests->next_id;
        avl_request_record_begin(&live->record, requests->config.metrics, live->id,
                                 live->arrival_ns);
        live->next = requests->buckets[live->id % BUCKETS];
        requests->buckets[live->id % BUCKETS] = live;
        requests->count++;
        pthread_cond_broadcast(&requests->changed);
    }
    pthread_mutex_unlock(&requests->lock);
    avl_call_ref(call);
    if (status != AVL_OK) {
        char detail[AVL_STATUS_DETAIL_BYTES];
        snprintf(detail, sizeof detail, "%s", avl_status_detail());
        atomic_store(&live->references, 1);
        avl_live_request_unref(live);
        return avl_fail(status, "%s", detail);
    }
    avl_call_set_user(call, live);
    *request_p = live;
    return AVL_OK;
}

bool avl_live_request_wanted(avl_live_request_t *live) {
    pthread_mutex_lock(&live->lock);
    bool wanted = live->state != STATE_DONE;
    pthread_mutex_unlock(&live->lock);
    return wanted;
}

void avl_live_request_named(avl_live_request_t *live, const char *name) {
    pthread_mutex_lock(&live->lock);
    snprintf(live->prepared.name, sizeof live->prepared.name, "%s", name);
    pthread_mutex_unlock(&live->lock);
}

void avl_live_request_want_progress(avl_live_request_t *live) {
    pthread_mutex_lock(&live->lock);
    live->progress = true;
    pthread_mutex_unlock(&live->lock);
}

void avl_live_request_progress(avl_live_request_t *live, Avl__V1__Stage stage, uint32_t done,
                               uint32_t total) {
    pthread_mutex_lock(&live->lock);
    send_progress_locked(live, stage, done, total);
    pthread_mutex_unlock(&live->lock);
}

void avl_live_request_begin(avl_live_request_t *live, avl_prepared_t *prepared) {
    pthread_mutex_lock(&live->lock);
    if (live->state == STATE_PREPARING) {
        live->prepared = *prepared;
        memset(prepared, 0, sizeof *prepared);
        live->state = STATE_WAITING;
        live->waiting_ns = avl_clock_now_ns();
        if (live->prepared.image_count > 0)
            live->record.stage_ns[AVL_STAGE_PREPROCESS] = live->prepared.preprocess_ns;
        submit_locked(live);
    } else {
        avl_prepared_free(prepared);
    }
    pthread_mutex_unlock(&live->lock);
}

void avl_live_request_fail(avl_live_request_t *live, avl_status_t status, const char *detail) {
    char copy[AVL_STATUS_DETAIL_BYTES]; /* it may be this thread's own status text */
    snprintf(copy, sizeof copy, "%s", detail);
    pthread_mutex_lock(&live->lock);
    fail_locked(live, status, copy);
    pthread_mutex_unlock(&live->lock);
}

void avl_live_request_closed(avl_live_request_t *live) {
    pthread_mutex_lock(&live->lock);
    bool late = avl_call_late(live->call);
    avl_request_record_failed(&live->record, live->prepared.name,
                              late ? AVL_RPC_DEADLINE_EXCEEDED : AVL_RPC_CANCELLED,
                              late ? "its deadline passed" : "it was cancelled by its client");
    bool suspect = live->strikes > 0;
    avl_requests_t *requests = live->requests;
    done_locked(live);
    pthread_mutex_unlock(&live->lock);
    avl_live_request_unref(live);
    if (suspect) /* its turn is free */
        submit_waiting(requests);
}

/* ---- events ---- */

/* What the client may see of `text`, which follows from the tokens so far. */
static avl_status_t pass_stop_texts(avl_live_request_t *live, const char **text_p) {
    if (live->prepared.stop == NULL)
        return AVL_OK;
    return avl_stop_text_add(live->prepared.stop, *text_p, text_p, &live->stopped);
}

static void on_token_locked(avl_live_request_t *live, const Avl__Worker__V1__Event *event) {
    int32_t id = event->token_id;
    if (live->stopped) /* on its way when the group was told to end it */
        return;
    if (id < 0 || id >= avl_tokenizer_id_limit(live->requests->config.tokenizer)) {
        char text[96];
        snprintf(text, sizeof text, "the worker group sent token %d, which is none", id);
        fail_locked(live, AVL_ERR_INTERNAL, text);
        return;
    }
    if (live->sent_count >= (size_t)live->max_tokens) {
        fail_locked(live, AVL_ERR_INTERNAL,
                    "the worker group sent more tokens than were asked for");
        return;
    }
    const char *text = "";
    avl_status_t status = avl_grow(live->sent_count + 1, sizeof *live->sent_ids, "tokens",
                                   &live->sent_ids, &live->sent_capacity);
    if (status == AVL_OK)
        status = avl_detokenizer_add(live->detokenizer, id, &text);
    if (status == AVL_OK)
        status = pass_stop_texts(live, &text);
    if (status != AVL_OK) {
        fail_locked(live, status, avl_status_detail());
        return;
    }
    live->sent_ids[live->sent_count++] = id;
    live->strikes = 0;
    avl_request_record_phase(&live->record, AVL_REQUEST_RUNNING);
    avl_request_record_token(&live->record);
    send_delta_locked(live, text, event);
    if (live->stopped && live->state == STATE_RUNNING)
        avl_worker_group_cancel(live->requests->group, live->generation, live->id);
}

static double seconds(int64_t ns) {
    return (double)(ns > 0 ? ns : 0) / 1e9;
}

static void send_finished_locked(avl_live_request_t *live, const Avl__Worker__V1__Result *result) {
    const avl_prepared_t *prepared = &live->prepared;
    Avl__V1__Usage usage;
    avl__v1__usage__init(&usage);
    usage.prompt_tokens = (uint32_t)prepared->row_count;
    usage.visual_tokens = (uint32_t)prepared->visual_rows;
    usage.completion_tokens = (uint32_t)live->sent_count;
    usage.cached_tokens = (uint32_t)result->prompt_rows_reused;
    usage.encoder_cache_hits = (uint32_t)result->encoder_cache_hits;
    Avl__V1__AttentionReport attention;
    avl__v1__attention_report__init(&attention);
    attention.visual_store_ratio = prepared->attention.visual_store_ratio;
    attention.visual_compute_ratio = prepared->attention.visual_compute_ratio;
    attention.visual_update_interval = (uint32_t)prepared->attention.visual_update_interval;
    attention.visual_rows_seen = (uint32_t)result->visual_rows_seen;
    attention.visual_rows_stored = (uint32_t)result->visual_rows_stored;
    if (result->decode_steps > 0)
        attention.visual_rows_computed_per_step =
            (double)result->visual_rows_computed / result->decode_steps;
    attention.kv_bytes_returned = (uint64_t)result->kv_bytes_returned;
    Avl__V1__Timings timings;
    avl__v1__timings__init(&timings);
    const int64_t *stage_ns = live->record.stage_ns;
    timings.queue_seconds = seconds(stage_ns[AVL_STAGE_QUEUE]);
    timings.preprocess_seconds = seconds(prepared->preprocess_ns);
    timings.encode_seconds = seconds(stage_ns[AVL_STAGE_ENCODE]);
    timings.prefill_seconds = seconds(stage_ns[AVL_STAGE_PREFILL]);
    if (live->sent_count > 1)
        timings.decode_seconds_per_token =
            seconds(result->decode_ns) / (double)(live->sent_count - 1);
    timings.total_seconds = seconds(avl_clock_now_ns() - live->arrival_ns);
    Avl__V1__Finished finished;
    avl__v1__finished__init(&finished);
    finished.finish_reason =
        live->stopped || result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_STOP
            ? AVL__V1__FINISH_REASON__FINISH_REASON_STOP
            : AVL__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    finished.usage = &usage;
    finished.attention = &attention;
    finished.timings = &timings;
    finished.seed = prepared->sampling.seed;
    Avl__V1__GenerateResponse response;
    avl__v1__generate_response__init(&response);
    response.event_case = AVL__V1__GENERATE_RESPONSE__EVENT_FINISHED;
    response.finished = &finished;
    send_locked(live, &response);
}

/* The last of the text. */
static void send_rest_locked(avl_live_request_t *live) {
    const char *text = "";
    if (live->stopped)
        return;
    avl_status_t status = avl_detokenizer_finish(live->detokenizer, &text);
    if (status == AVL_OK)
        status = pass_stop_texts(live, &text);
    if (status != AVL_OK) {
        fail_locked(live, status, avl_status_detail());
        return;
    }
    if (text[0] != '\0')
        send_delta_locked(live, text, NULL);
    text = live->stopped || live->prepared.stop == NULL ? ""
                                                        : avl_stop_text_finish(live->prepared.stop);
    if (text[0] != '\0' && live->state != STATE_DONE)
        send_delta_locked(live, text, NULL);
}

static void answer_locked(avl_live_request_t *live, const Avl__Worker__V1__Result *result) {
    send_rest_locked(live);
    if (live->state != STATE_DONE)
        send_finished_locked(live, result);
    if (live->state == STATE_DONE)
        return;
    avl_request_record_answered(&live->record, live->prepared.name, result, live->stopped,
                                live->prepared.row_count, live->prepared.visual_rows);
    done_locked(live);
    avl_call_finish(live->call, AVL_RPC_OK, "");
}

static void on_finished_locked(avl_live_request_t *live, const Avl__Worker__V1__Result *result) {
    live->state = STATE_WAITING; /* the group has let go of it: nothing to cancel there */
    avl_request_record_result(&live->record, result, live->prepared.image_count > 0,
                              live->submitted_ns - live->waiting_ns);
    if (live->stopped ||
        result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_STOP ||
        result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_LENGTH) {
        answer_locked(live, result);
        return;
    }
    avl_status_t status = (avl_status_t)result->status;
    if (result->finish_reason == AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_CANCELLED)
        status = live->deadline_ns <= avl_clock_now_ns() ? AVL_ERR_DEADLINE : AVL_ERR_CANCELLED;
    else if (status == AVL_OK)
        status = AVL_ERR_INTERNAL;
    fail_locked(live, status, result->detail[0] != '\0' ? result->detail : avl_status_name(status));
}

static void on_progress_locked(avl_live_request_t *live, const Avl__Worker__V1__Event *event) {
    Avl__V1__Stage stage = AVL__V1__STAGE__STAGE_QUEUED;
    if (event->stage == AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_ENCODE)
        stage = AVL__V1__STAGE__STAGE_ENCODE;
    else if (event->stage == AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_PREFILL)
        stage = AVL__V1__STAGE__STAGE_PREFILL;
    else if (event->stage == AVL__WORKER__V1__EVENT_STAGE__EVENT_STAGE_DECODE)
        stage = AVL__V1__STAGE__STAGE_DECODE;
    if (stage != AVL__V1__STAGE__STAGE_QUEUED)
        avl_request_record_phase(&live->record, AVL_REQUEST_RUNNING);
    send_progress_locked(live, stage, (uint32_t)event->done, (uint32_t)event->total);
}

static void answer_without_report_locked(avl_live_request_t *live) {
    Avl__Worker__V1__Result result;
    avl__worker__v1__result__init(&result);
    answer_locked(live, &result);
}

/* Returns true when requests that wait for a turn may look again. */
static bool on_event(avl_requests_t *requests, uint64_t generation,
                     const Avl__Worker__V1__Event *event) {
    avl_live_request_t *live = table_find(requests, event->request_id);
    if (live == NULL) { /* cancelled a moment ago; or never ours */
        const avl_log_field_t field = AVL_LOG_INTEGER("request", event->request_id);
        avl_log_with(AVL_LOG_DEBUG, &field, 1, "an event for a request that is not known");
        return false;
    }
    pthread_mutex_lock(&live->lock);
    int strikes = live->strikes;
    if (live->state == STATE_RUNNING && live->generation == generation) {
        if (event->kind == AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_TOKEN)
            on_token_locked(live, event);
        else if (event->kind == AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_FINISHED &&
                 event->result != NULL)
            on_finished_locked(live, event->result);
        else if (event->kind == AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_PROGRESS)
            on_progress_locked(live, event);
    }
    bool turn = strikes > 0 && (live->strikes == 0 || live->state == STATE_DONE);
    pthread_mutex_unlock(&live->lock);
    if (turn)
        give_turn(live); /* an ended request has given it already */
    avl_live_request_unref(live);
    return turn;
}

void avl_requests_group_events(avl_requests_t *requests, uint64_t generation,
                               const Avl__Worker__V1__Events *events) {
    bool turn = false;
    for (size_t i = 0; i < events->n_events; i++)
        turn = on_event(requests, generation, events->events[i]) || turn;
    if (turn)
        submit_waiting(requests);
}

void avl_requests_group_changed(avl_requests_t *requests) {
    submit_waiting(requests);
}

void avl_requests_group_lost(avl_requests_t *requests, uint64_t generation) {
    size_t count, resumed = 0;
    avl_live_request_t **list = snapshot(requests, &count);
    for (size_t i = 0; i < count; i++) {
        avl_live_request_t *live = list[i];
        pthread_mutex_lock(&live->lock);
        if (live->state == STATE_RUNNING && live->generation == generation) {
            live->state = STATE_WAITING;
            live->strikes++;
            give_turn(live);
            if (live->stopped) { /* it is whole, but for the group's report */
                answer_without_report_locked(live);
            } else if (live->strikes >= STRIKES_MAX) {
                fail_locked(live, AVL_ERR_INTERNAL,
                            "the worker group died twice while it worked on this request");
            } else {
                avl_request_record_resumed(&live->record, live->prepared.name);
                resumed++;
            }
        }
        pthread_mutex_unlock(&live->lock);
    }
    snapshot_free(list, count);
    if (resumed > 0)
        avl_log_warn("%zu request%s will be resumed", resumed, resumed == 1 ? "" : "s");
}

/* ---- time ---- */

static void end_overdue(avl_requests_t *requests) {
    size_t count;
    avl_live_request_t **list = snapshot(requests, &count);
    int64_t now_ns = avl_clock_now_ns();
    for (size_t i = 0; i < count; i++) {
        avl_live_request_t *live = list[i];
        if (live->deadline_ns > now_ns)
            continue;
        pthread_mutex_lock(&live->lock);
        char text[128];
        snprintf(text, sizeof text, "the deadline passed after %.3f s and %zu tokens",
                 seconds(now_ns - live->arrival_ns), live->sent_count);
        fail_locked(live, AVL_ERR_DEADLINE, text);
        pthread_mutex_unlock(&live->lock);
    }
    snapshot_free(list, count);
}

static void *tick(void *context) {
    avl_requests_t *requests = context;
    pthread_mutex_lock(&requests->lock);
    while (!requests->stopping) {
        if (requests->count == 0) {
            pthread_cond_wait(&requests->changed, &requests->lock);
            continue;
        }
        struct timespec limit = avl_clock_after(TICK_NS);
        while (!requests->stopping &&
               pthread_cond_timedwait(&requests->changed, &requests->lock, &limit) == 0)
            ;
        pthread_mutex_unlock(&requests->lock);
        end_overdue(requests);
        submit_waiting(requests); /* whoever waits for a turn that nobody passed on */
        pthread_mutex_lock(&requests->lock);
    }
    pthread_mutex_unlock(&requests->lock);
    return NULL;
}

void avl_requests_drain(avl_requests_t *requests) {
    pthread_mutex_lock(&requests->lock);
    requests->draining = true;
    pthread_mutex_unlock(&requests->lock);
}

size_t avl_requests_wait(avl_requests_t *requests, int64_t deadline_ns) {
    pthread_mutex_lock(&requests->lock);
    int64_t left_ns;
    while (requests->count > 0 && (left_ns = deadline_ns - avl_clock_now_ns()) > 0) {
        struct timespec limit = avl_clock_after(left_ns < AVL_NS_PER_S ? left_ns : AVL_NS_PER_S);
        pthread_cond_timedwait(&requests->changed, &requests->lock, &limit);
    }
    size_t count = requests->count;
    pthread_mutex_unlock(&requests->lock);
    return count;
}

void avl_requests_fail_all(avl_requests_t *requests, avl_status_t status, const char *detail) {
    size_t count;
    avl_live_request_t **list = snapshot(requests, &count);
    for (size_t i = 0; i < count; i++)
        avl_live_request_fail(list[i], status, detail);
    snapshot_free(list, count);
}

size_t avl_requests_count(avl_requests_t *requests) {
    pthread_mutex_lock(&requests->lock);
    size_t count = requests->count;
    pthread_mutex_unlock(&requests->lock);
    return count;
}

/* ---- life ---- */

avl_status_t avl_requests_create(const avl_requests_config_t *config, avl_requests_t **requests_p) {
    avl_requests_t *requests = NULL;
    AVL_TRY(avl_alloc(1, sizeof *requests, "the request table", &requests));
    requests->config = *config;
    pthread_mutex_init(&requests->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&requests->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&requests->ticker, NULL, tick, requests);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        pthread_cond_destroy(&requests->changed);
        pthread_mutex_destroy(&requests->lock);
        free(requests);
        return avl_fail(AVL_ERR_EXHAUSTED, "cannot start a thread: %s", strerror(error));
    }
    *requests_p = requests;
    return AVL_OK;
}

void avl_requests_set_group(avl_requests_t *requests, avl_worker_group_t *group) {
    requests->group = group;
}

void avl_requests_destroy(avl_requests_t *requests) {
    if (requests == NULL)
        return;
    pthread_mutex_lock(&requests->lock);
    requests->stopping = true;
    pthread_cond_broadcast(&requests->changed);
    pthread_mutex_unlock(&requests->lock);
    pthread_join(requests->ticker, NULL);
    AVL_ASSERT(requests->count == 0);
    pthread_cond_destroy(&requests->changed);
    pthread_mutex_destroy(&requests->lock);
    free(requests);
}
