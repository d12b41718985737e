#include "coordinator/requests.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/attention.h"
#include "coordinator/live_request.h"
#include "coordinator/request_messages.h"
#include "proto/texts.h"

/* Two can be chance, where ranks are killed from outside while replays go on. */
#define STRIKES_MAX 3
#define TICK_NS (AVL_NS_PER_S / 10) /* how late a deadline may be noticed here */

/* ---- the table ---- */

static void live_ref(avl_live_request_t *live) {
    atomic_fetch_add(&live->references, 1);
}

void avl_live_request_unref(avl_live_request_t *live) {
    if (live == NULL || atomic_fetch_sub(&live->references, 1) != 1)
        return;
    avl_prepared_free(&live->prepared);
    avl_call_unref(live->call);
    pthread_mutex_destroy(&live->lock);
    free(live);
}

static avl_live_request_t *table_find(avl_requests_t *requests, uint64_t id) {
    pthread_mutex_lock(&requests->lock);
    avl_live_request_t *live = requests->buckets[id % AVL_REQUESTS_BUCKETS];
    while (live != NULL && live->id != id)
        live = live->next;
    if (live != NULL)
        live_ref(live);
    pthread_mutex_unlock(&requests->lock);
    return live;
}

static void table_remove(avl_requests_t *requests, avl_live_request_t *live) {
    pthread_mutex_lock(&requests->lock);
    avl_live_request_t **link_p = &requests->buckets[live->id % AVL_REQUESTS_BUCKETS];
    while (*link_p != NULL && *link_p != live)
        link_p = &(*link_p)->next;
    bool found = *link_p == live;
    if (found) {
        *link_p = live->next;
        requests->count--;
    }
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
        for (size_t b = 0; b < AVL_REQUESTS_BUCKETS; b++) {
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
void avl_live_done_locked(avl_live_request_t *live) {
    if (live->state == STATE_DONE)
        return;
    if (live->state == STATE_RUNNING)
        avl_groups_cancel(live->requests->groups, live->generation, live->id, -1);
    avl_admission_leave(live->requests->config.admission, &live->ticket,
                        live->prepared.row_count + (int64_t)live->sent_count);
    live->state = STATE_DONE;
    avl_request_record_phase(&live->record, AVL_REQUEST_OVER);
    for (size_t i = 0; i < live->prepared.image_count; i++) { /* the large part, at once */
        free(live->prepared.images[i].pixels);
        live->prepared.images[i].pixels = NULL;
    }
    table_remove(live->requests, live);
}

void avl_live_fail_locked(avl_live_request_t *live, avl_status_t status, const char *detail) {
    if (live->state == STATE_DONE)
        return;
    avl_rpc_code_t code = avl_rpc_code(status);
    avl_request_record_failed(&live->record, live->prepared.name, code, detail);
    avl_live_done_locked(live);
    if (code == AVL_RPC_RESOURCE_EXHAUSTED)
        avl_call_set_retry(live->call, avl_requests_retry_ns(live->requests));
    avl_call_finish(live->call, code, detail);
}

/* A client that does not read is let go of; it must not gather memory here. */
void avl_live_send_locked(avl_live_request_t *live, const Avl__V1__GenerateResponse *response) {
    avl_status_t status = avl_call_send(live->call, &response->base);
    if (status == AVL_OK || status == AVL_ERR_CANCELLED) /* the close is on its way */
        return;
    char detail[AVL_STATUS_DETAIL_BYTES];
    snprintf(detail, sizeof detail, "%s", avl_status_detail());
    avl_request_record_failed(&live->record, live->prepared.name, avl_rpc_code(status), detail);
    avl_live_done_locked(live);
    avl_call_abort(live->call, avl_rpc_code(status), detail);
}

void avl_live_progress_locked(avl_live_request_t *live, Avl__V1__Stage stage, uint32_t done,
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
    avl_live_send_locked(live, &response);
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
        Avl__Worker__V1__Attention attention;
        avl_attention_submit(&prepared->attention, &attention);
        submit.attention = &attention;
        avl_submit_sampling_fill(&live->prepared.sampling, &submit);
        submit.max_tokens = live->max_tokens;
        submit.ignore_eos = prepared->ignore_eos;
        submit.priority = prepared->priority;
        submit.time_left_ns = time_left_ns;
        submit.n_forced_ids = (size_t)prepared->forced_count;
        submit.forced_ids = prepared->forced_ids;
        status = avl_submit_choices_fill(prepared, &submit);
        if (status == AVL_OK)
            status = avl_groups_submit(live->requests->groups, live->generation, &submit);
        avl_submit_choices_free(&submit);
    }
    free(list);
    free(images);
    return status;
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
    if (prepared->forced_count > room)
        return avl_fail(
            AVL_ERR_TOO_LARGE,
            "the prompt has %d tokens (%d of pictures) and forced_token_ids %d; the context holds "
            "%d",
            prepared->row_count, prepared->visual_rows, prepared->forced_count, context_rows);
    live->max_tokens =
        prepared->max_tokens > 0 && prepared->max_tokens < room ? prepared->max_tokens : room;
    return AVL_OK;
}

static void end_late_locked(avl_live_request_t *live, int64_t now_ns) {
    char text[128];
    snprintf(text, sizeof text, "the deadline passed after %.3f s and %zu tokens",
             (double)(now_ns - live->arrival_ns) / 1e9, live->sent_count);
    avl_live_fail_locked(live, AVL_ERR_DEADLINE, text);
}

/* Goes back to the queue's head. */
static void return_locked(avl_live_request_t *live, bool suspect) {
    live->state = STATE_WAITING;
    if (avl_admission_return(live->requests->config.admission, &live->ticket, suspect) != AVL_OK)
        avl_live_fail_locked(live, AVL_ERR_MEMORY, avl_status_detail());
}

/* Gives a waiting request to the group that has a place for it; false when the group is gone. */
static bool submit_locked(avl_live_request_t *live, uint64_t generation) {
    avl_requests_t *requests = live->requests;
    if (live->state != STATE_WAITING)
        return true;
    int64_t now_ns = avl_clock_now_ns();
    int64_t left_ns = live->deadline_ns == AVL_DEADLINE_NONE ? 0 : live->deadline_ns - now_ns;
    if (live->deadline_ns != AVL_DEADLINE_NONE && left_ns <= 0) {
        end_late_locked(live, now_ns);
        return true;
    }
    int32_t context_rows = avl_groups_context(requests->groups, generation);
    avl_status_t status = AVL_OK;
    if (live->max_tokens == 0 && context_rows > 0)
        status = resolve_max_tokens_locked(live, context_rows);
    live->ticket.need.rows = live->prepared.row_count + live->max_tokens;
    live->generation = generation;
    if (status == AVL_OK)
        status = send_submit_locked(live, left_ns);
    if (status == AVL_ERR_UNAVAILABLE) {
        return_locked(live, false);
        return false;
    }
    if (status != AVL_OK) {
        avl_live_fail_locked(live, status, avl_status_detail());
        return true;
    }
    const avl_log_field_t fields[] = {AVL_LOG_INTEGER("request", live->id),
                                      AVL_LOG_INTEGER("group", generation)};
    avl_log_with(AVL_LOG_DEBUG, fields, 2, "request goes to a worker group");
    live->state = STATE_RUNNING;
    if (live->submitted_ns == 0)
        live->submitted_ns = now_ns;
    avl_live_progress_locked(live, AVL__V1__STAGE__STAGE_QUEUED, 0, 0);
    return true;
}

/* No group's context holds it, or none has room for its pictures. */
static void refuse_rows_locked(avl_live_request_t *live) {
    avl_groups_view_t view;
    avl_groups_view(live->requests->groups, &view);
    if (view.ready > 0 && live->ticket.need.picture_bytes > view.best.picture_bytes_max) {
        avl_status_t status = avl_fail(
            AVL_ERR_TOO_LARGE,
            "the pictures have %lld bytes when they are prepared; a worker group has room "
            "for %lld",
            (long long)live->ticket.need.picture_bytes, (long long)view.best.picture_bytes_max);
        avl_live_fail_locked(live, status, avl_status_detail());
    } else if (live->max_tokens > 0 ||
               resolve_max_tokens_locked(live, view.best.context_rows_max) == AVL_OK)
        avl_live_fail_locked(live, AVL_ERR_UNAVAILABLE,
                             "no worker group has a context for this request");
    else
        avl_live_fail_locked(live, AVL_ERR_TOO_LARGE, avl_status_detail());
}

/* Gives out whatever the groups have room for, in the queue's order. No request's lock is held. */
static void dispatch(avl_requests_t *requests) {
    for (bool going = true; going;) {
        uint64_t id = 0, generation = 0;
        avl_status_t status =
            avl_admission_next(requests->config.admission, avl_clock_now_ns(), &id, &generation);
        if (status != AVL_OK && status != AVL_ERR_TOO_LARGE && status != AVL_ERR_DEADLINE)
            return;
        avl_live_request_t *live = table_find(requests, id);
        if (live == NULL) /* it has just ended, and given its place back */
            continue;
        pthread_mutex_lock(&live->lock);
        if (status == AVL_OK)
            going = submit_locked(live, generation);
        else if (status == AVL_ERR_TOO_LARGE)
            refuse_rows_locked(live);
        else
            avl_live_fail_locked(live, status, AVL_TEXT_GIVEN_UP ": the deadline cannot be met");
        pthread_mutex_unlock(&live->lock);
        avl_live_request_unref(live);
    }
}

/* While no group is ready: those who wait hear how far it is, or that none will come. */
static void tell_waiting(avl_requests_t *requests, const avl_groups_view_t *view) {
    size_t count;
    char text[AVL_STATUS_DETAIL_BYTES];
    snprintf(text, sizeof text, "the worker group cannot be started: %s", view->reason);
    avl_live_request_t **list = snapshot(requests, &count);
    for (size_t i = 0; i < count; i++) {
        avl_live_request_t *live = list[i];
        pthread_mutex_lock(&live->lock);
        int32_t permille = (int32_t)(view->loading_share * 1000);
        if (live->state == STATE_WAITING && view->hopeless) {
            avl_live_fail_locked(live, AVL_ERR_UNAVAILABLE, text);
        } else if (live->state == STATE_WAITING && live->loading_permille != permille) {
            live->loading_permille = permille;
            avl_live_progress_locked(live, AVL__V1__STAGE__STAGE_LOADING, (uint32_t)permille, 1000);
        }
        pthread_mutex_unlock(&live->lock);
    }
    snapshot_free(list, count);
}

static void look_at_groups(avl_requests_t *requests) {
    avl_groups_view_t view;
    avl_groups_view(requests->groups, &view);
    if (view.ready == 0)
        tell_waiting(requests, &view);
    else
        dispatch(requests);
}

/* ---- a request's life, from the API's side ---- */

/* Into the table, unless the service drains. */
static avl_status_t table_add(avl_requests_t *requests, avl_live_request_t *live) {
    pthread_mutex_lock(&requests->lock);
    avl_status_t status = AVL_OK;
    if (requests->draining) {
        status = avl_fail(AVL_ERR_UNAVAILABLE, "the service is shutting down");
    } else {
        avl_request_record_begin(&live->record, requests->config.metrics, live->id,
                                 live->arrival_ns);
        live->next = requests->buckets[live->id % AVL_REQUESTS_BUCKETS];
        requests->buckets[live->id % AVL_REQUESTS_BUCKETS] = live;
        requests->count++;
        pthread_cond_broadcast(&requests->changed);
    }
    pthread_mutex_unlock(&requests->lock);
    return status;
}

static avl_status_t let_in(avl_requests_t *requests, const avl_asked_t *asked,
                           avl_live_request_t *live) {
    avl_admission_t *admission = requests->config.admission;
    pthread_mutex_lock(&requests->lock);
    live->id = ++requests->next_id;
    pthread_mutex_unlock(&requests->lock);
    AVL_TRY(avl_admission_enter(admission, live->id, live->tenant, live->arrival_ns,
                                live->deadline_ns, asked, &live->ticket));
    avl_status_t status = table_add(requests, live);
    if (status != AVL_OK)
        avl_admission_leave(admission, &live->ticket, 0);
    return status;
}

avl_status_t avl_requests_admit(avl_requests_t *requests, avl_call_t *call, const char *tenant,
                                const avl_asked_t *asked, avl_live_request_t **request_p) {
    avl_groups_view_t view;
    avl_groups_view(requests->groups, &view);
    if (view.hopeless)
        return avl_fail(AVL_ERR_UNAVAILABLE, "the worker group cannot be started: %s", view.reason);
    avl_live_request_t *live = NULL;
    AVL_TRY(avl_alloc(1, sizeof *live, "a request", &live));
    live->requests = requests;
    live->call = call;
    snprintf(live->tenant, sizeof live->tenant, "%s", tenant);
    live->loading_permille = -1;
    live->arrival_ns = avl_clock_now_ns();
    live->deadline_ns = avl_call_deadline_ns(call);
    if (requests->config.timeout_ns != AVL_DEADLINE_NONE &&
        live->deadline_ns > live->arrival_ns + requests->config.timeout_ns)
        live->deadline_ns = live->arrival_ns + requests->config.timeout_ns;
    pthread_mutex_init(&live->lock, NULL);
    atomic_init(&live->references, 3); /* the table's, the call's, the caller's */
    avl_call_ref(call);
    avl_status_t status = let_in(requests, asked, live);
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

int64_t avl_requests_retry_ns(avl_requests_t *requests) {
    return avl_admission_retry_ns(requests->config.admission, avl_clock_now_ns());
}

const char *avl_live_request_tenant(const avl_live_request_t *live) {
    return live->tenant;
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
    avl_live_progress_locked(live, stage, done, total);
    pthread_mutex_unlock(&live->lock);
}

/* What the queue and the estimates need to know. */
static void fill_ticket_locked(avl_live_request_t *live, const avl_groups_view_t *view) {
    const avl_prepared_t *prepared = &live->prepared;
    avl_demand_t *demand = &live->ticket.demand;
    int32_t context = view->best.context_rows_max;
    int32_t room = context > prepared->row_count ? context - prepared->row_count : 1;
    demand->rows = prepared->row_count;
    demand->tokens_max =
        prepared->max_tokens > 0 && prepared->max_tokens < room ? prepared->max_tokens : room;
    demand->all_tokens = prepared->ignore_eos || prepared->forced_count > 0;
    demand->answers = live->ticket.need.answers = prepared->choice_count;
    live->ticket.need.picture_bytes = 0;
    for (size_t i = 0; i < prepared->image_count; i++) {
        demand->tiles += prepared->images[i].layout.tile_count;
        live->ticket.need.picture_bytes += (int64_t)prepared->images[i].pixel_bytes;
    }
    live->ticket.need.rows = prepared->row_count + 1;
    if (prepared->image_count > 0)
        memcpy(&live->ticket.need.picture, prepared->images[0].digest,
               sizeof live->ticket.need.picture);
}

/* Whoever prepared the request did not say how many answers: one. */
static avl_status_t make_choices_locked(avl_live_request_t *live) {
    avl_prepared_t *prepared = &live->prepared;
    if (prepared->choices == NULL) {
        AVL_TRY(avl_choices_create(live->requests->config.tokenizer, NULL, 0,
                                   prepared->sampling.seed, 1, &prepared->choices));
        prepared->choice_count = 1;
    }
    live->choices_left = prepared->choice_count;
    return AVL_OK;
}

static void begin_locked(avl_live_request_t *live) {
    avl_requests_t *requests = live->requests;
    avl_groups_view_t view;
    avl_groups_view(requests->groups, &view);
    live->state = STATE_WAITING;
    live->waiting_ns = avl_clock_now_ns();
    if (live->prepared.image_count > 0)
        live->record.stage_ns[AVL_STAGE_PREPROCESS] = live->prepared.preprocess_ns;
    fill_ticket_locked(live, &view);
    if (view.ready == 0 && !view.hopeless) {
        live->loading_permille = (int32_t)(view.loading_share * 1000);
        avl_live_progress_locked(live, AVL__V1__STAGE__STAGE_LOADING,
                                 (uint32_t)live->loading_permille, 1000);
    }
    if (live->state != STATE_WAITING)
        return;
    avl_status_t status = avl_admission_queue(requests->config.admission, &live->ticket,
                                              live->prepared.priority, live->waiting_ns);
    if (status != AVL_OK)
        avl_live_fail_locked(live, status, avl_status_detail());
}

void avl_live_request_begin(avl_live_request_t *live, avl_prepared_t *prepared) {
    avl_requests_t *requests = live->requests;
    pthread_mutex_lock(&live->lock);
    if (live->state == STATE_PREPARING) {
        live->prepared = *prepared;
        memset(prepared, 0, sizeof *prepared);
        if (make_choices_locked(live) == AVL_OK)
            begin_locked(live);
        else
            avl_live_fail_locked(live, AVL_ERR_MEMORY, avl_status_detail());
    } else {
        avl_prepared_free(prepared);
    }
    pthread_mutex_unlock(&live->lock);
    look_at_groups(requests);
}

void avl_live_request_fail(avl_live_request_t *live, avl_status_t status, const char *detail) {
    char copy[AVL_STATUS_DETAIL_BYTES]; /* it may be this thread's own status text */
    snprintf(copy, sizeof copy, "%s", detail);
    pthread_mutex_lock(&live->lock);
    avl_live_fail_locked(live, status, copy);
    pthread_mutex_unlock(&live->lock);
}

void avl_live_request_closed(avl_live_request_t *live) {
    pthread_mutex_lock(&live->lock);
    bool late = avl_call_late(live->call);
    avl_request_record_failed(&live->record, live->prepared.name,
                              late ? AVL_RPC_DEADLINE_EXCEEDED : AVL_RPC_CANCELLED,
                              late ? "its deadline passed" : "it was cancelled by its client");
    avl_requests_t *requests = live->requests;
    avl_live_done_locked(live);
    pthread_mutex_unlock(&live->lock);
    avl_live_request_unref(live);
    dispatch(requests); /* its place is free */
}

/* ---- events ---- */

/* Returns true when there may be room for others now. */
static bool on_event(avl_requests_t *requests, uint64_t generation,
                     const Avl__Worker__V1__Event *event) {
    avl_live_request_t *live = table_find(requests, event->request_id);
    if (live == NULL) { /* cancelled a moment ago; or never ours */
        const avl_log_field_t field = AVL_LOG_INTEGER("request", event->request_id);
        avl_log_with(AVL_LOG_DEBUG, &field, 1, "an event for a request that is not known");
        return false;
    }
    pthread_mutex_lock(&live->lock);
    int strikes = live->strikes, answers = live->choices_left;
    if (live->state == STATE_RUNNING && live->generation == generation)
        avl_live_event_locked(live, event);
    bool room = live->state == STATE_DONE || live->choices_left < answers ||
                (strikes > 0 && live->strikes == 0);
    pthread_mutex_unlock(&live->lock);
    avl_live_request_unref(live);
    return room;
}

void avl_requests_group_events(avl_requests_t *requests, uint64_t generation,
                               const Avl__Worker__V1__Events *events) {
    bool room = false;
    if (events->work != NULL) {
        const avl_work_t work = {events->work->steps,       events->work->ns,
                                 events->work->decode_rows, events->work->prompt_rows,
                                 events->work->tiles,       events->work->encode_ns};
        avl_admission_work(requests->config.admission, &work);
    }
    for (size_t i = 0; i < events->n_events; i++)
        room = on_event(requests, generation, events->events[i]) || room;
    if (room)
        dispatch(requests);
}

void avl_requests_group_changed(avl_requests_t *requests) {
    look_at_groups(requests);
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
            avl_live_answer_without_report_locked(live);
            if (live->state == STATE_DONE) {
                /* all of it was there, but for the group's report */
            } else if (live->strikes >= STRIKES_MAX) {
                avl_live_fail_locked(
                    live, AVL_ERR_INTERNAL,
                    "the worker group died three times while it worked on this request");
            } else {
                avl_request_record_resumed(&live->record, live->prepared.name);
                return_locked(live, live->strikes > 1);
                resumed++;
            }
        }
        pthread_mutex_unlock(&live->lock);
    }
    snapshot_free(list, count);
    if (resumed > 0)
        avl_log_warn("%zu request%s will be resumed", resumed, resumed == 1 ? "" : "s");
    dispatch(requests); /* to another group, if there is one */
}

/* ---- time ---- */

static void end_overdue(avl_requests_t *requests) {
    size_t count;
    avl_live_request_t **list = snapshot(requests, &count);
    int64_t now_ns = avl_clock_now_ns();
    for (size_t i = 0; i < count; i++) {
        avl_live_request_t *live = list[i];
        pthread_mutex_lock(&live->lock);
        if (live->deadline_ns <= now_ns)
            end_late_locked(live, now_ns);
        else if (live->state == STATE_WAITING &&
                 avl_admission_overdue(requests->config.admission, &live->ticket, now_ns))
            avl_live_fail_locked(live, AVL_ERR_EXHAUSTED,
                                 "the request has waited for as long as any may: try later");
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
        look_at_groups(requests); /* what groups tell of their pages makes room as well */
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

void avl_requests_set_groups(avl_requests_t *requests, avl_groups_t *groups) {
    requests->groups = groups;
    avl_admission_set_groups(requests->config.admission, groups);
}

void avl_requests_stop(avl_requests_t *requests) {
    if (requests == NULL)
        return;
    pthread_mutex_lock(&requests->lock);
    bool first = !requests->stopping;
    requests->stopping = true;
    pthread_cond_broadcast(&requests->changed);
    pthread_mutex_unlock(&requests->lock);
    if (first)
        pthread_join(requests->ticker, NULL);
}

void avl_requests_destroy(avl_requests_t *requests) {
    if (requests == NULL)
        return;
    avl_requests_stop(requests);
    AVL_ASSERT(requests->count == 0);
    pthread_cond_destroy(&requests->changed);
    pthread_mutex_destroy(&requests->lock);
    free(requests);
}
