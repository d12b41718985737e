/* The request table with a call and a worker group that this file plays. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "coordinator/requests.h"

#define CALLS 8

/* ---- what coordinator/grpc_server.c would be ---- */

struct avl_call {
    int references;
    int64_t deadline_ns; /* 0: none */
    int64_t retry_ns;
    void *user;
    avl_status_t send_status; /* what the next sends return */
    int32_t ids[64];
    size_t id_count;
    char text[4096];
    int progress[16];
    size_t progress_count;
    bool answered, ended, aborted;
    avl_rpc_code_t code;
    char reason[512];
    uint32_t completion_tokens;
    int ends; /* `finished` of answers */
    uint32_t prompt_tokens, choice_tokens[8];
    uint64_t seeds[8];
};

static pthread_mutex_t play_lock = PTHREAD_MUTEX_INITIALIZER;

void avl_call_ref(avl_call_t *call) {
    pthread_mutex_lock(&play_lock);
    call->references++;
    pthread_mutex_unlock(&play_lock);
}

void avl_call_unref(avl_call_t *call) {
    pthread_mutex_lock(&play_lock);
    call->references--;
    pthread_mutex_unlock(&play_lock);
}

bool avl_call_late(const avl_call_t *call) {
    (void)call;
    return false;
}

int64_t avl_call_deadline_ns(const avl_call_t *call) {
    return call->deadline_ns != 0 ? call->deadline_ns : AVL_DEADLINE_NONE;
}

void avl_call_set_retry(avl_call_t *call, int64_t after_ns) {
    assert_true(after_ns > 0);
    call->retry_ns = after_ns;
}

void avl_call_set_user(avl_call_t *call, void *user) {
    call->user = user;
}

void *avl_call_user(const avl_call_t *call) {
    return call->user;
}

avl_status_t avl_call_send(avl_call_t *call, const ProtobufCMessage *message) {
    const Avl__V1__GenerateResponse *response = (const Avl__V1__GenerateResponse *)message;
    if (call->send_status != AVL_OK)
        return avl_fail(call->send_status, "the client does not read");
    assert_false(call->ended);
    if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_DELTA) {
        for (size_t i = 0; i < response->delta->n_token_ids; i++)
            call->ids[call->id_count++] = response->delta->token_ids[i];
        strncat(call->text, response->delta->text, sizeof call->text - strlen(call->text) - 1);
    } else if (response->event_case == AVL__V1__GENERATE_RESPONSE__EVENT_PROGRESS) {
        call->progress[call->progress_count++] = response->progress->stage;
    } else {
        const Avl__V1__Finished *finished = response->finished;
        call->answered = true;
        call->ends++;
        call->completion_tokens = finished->usage->completion_tokens;
        call->prompt_tokens += finished->usage->prompt_tokens;
        call->choice_tokens[finished->choice] = finished->usage->completion_tokens;
        call->seeds[finished->choice] = finished->seed;
    }
    return AVL_OK;
}

void avl_call_finish(avl_call_t *call, avl_rpc_code_t code, const char *text) {
    pthread_mutex_lock(&play_lock);
    assert_false(call->ended);
    call->ended = true;
    call->code = code;
    snprintf(call->reason, sizeof call->reason, "%s", text);
    pthread_mutex_unlock(&play_lock);
}

void avl_call_abort(avl_call_t *call, avl_rpc_code_t code, const char *text) {
    call->aborted = true;
    avl_call_finish(call, code, text);
}

avl_rpc_code_t avl_rpc_code(avl_status_t status) {
    return (avl_rpc_code_t)(100 + status); /* the real table has its own test */
}

const char *avl_rpc_code_name(avl_rpc_code_t code) {
    (void)code;
    return "CODE";
}

/* ---- what coordinator/groups.c would be: one group ---- */

typedef struct group {
    avl_worker_group_view_t view;
    int32_t room, places;
    avl_status_t submit_status;
    uint64_t ids[32]; /* submitted, in order */
    size_t submit_count;
    size_t choice_count;
    uint64_t choice_seeds[8];
    size_t choice_replays[8];
    int32_t choices[8];
    int32_t max_tokens, replay[64]; /* of the last one */
    size_t replay_count;
    uint64_t cancelled[32];
    int32_t cancelled_choice; /* of the last one */
    size_t cancel_count;
} group_t;

struct avl_groups {
    group_t group;
};

void avl_groups_view(avl_groups_t *groups, avl_groups_view_t *view_p) {
    const group_t *group = &groups->group;
    pthread_mutex_lock(&play_lock);
    memset(view_p, 0, sizeof *view_p);
    view_p->count = 1;
    view_p->ready = group->view.state == AVL_WORKER_GROUP_READY;
    view_p->hopeless = group->view.hopeless;
    view_p->sequences_max = view_p->parallel = view_p->ready ? group->room : 0;
    view_p->best = group->view;
    memcpy(view_p->reason, group->view.reason, sizeof view_p->reason);
    pthread_mutex_unlock(&play_lock);
}

static int32_t places_of(const avl_groups_need_t *need) {
    return need->answers > 1 ? need->answers : 1;
}

avl_status_t avl_groups_reserve(avl_groups_t *groups, const avl_groups_need_t *need,
                                uint64_t *generation_p) {
    group_t *group = &groups->group;
    pthread_mutex_lock(&play_lock);
    avl_status_t status = AVL_OK;
    if (group->view.state != AVL_WORKER_GROUP_READY)
        status = AVL_ERR_UNAVAILABLE;
    else if (need->rows > group->view.context_rows_max)
        status = AVL_ERR_TOO_LARGE;
    else if (group->places > 0 && group->places + places_of(need) > group->room)
        status = AVL_ERR_EXHAUSTED;
    if (status == AVL_OK) {
        group->places += places_of(need);
        *generation_p = group->view.generation;
    }
    pthread_mutex_unlock(&play_lock);
    return status;
}

void avl_groups_release(avl_groups_t *groups, uint64_t generation, const avl_groups_need_t *need) {
    pthread_mutex_lock(&play_lock);
    if (generation == groups->group.view.generation) {
        groups->group.places -= places_of(need);
        assert_true(groups->group.places >= 0);
    }
    pthread_mutex_unlock(&play_lock);
}

int32_t avl_groups_context(avl_groups_t *groups, uint64_t generation) {
    assert_true(generation == groups->group.view.generation);
    return groups->group.view.context_rows_max;
}

avl_status_t avl_groups_submit(avl_groups_t *groups, uint64_t generation,
                               Avl__Worker__V1__Submit *submit) {
    group_t *group = &groups->group;
    assert_true(generation == group->view.generation);
    if (group->submit_status != AVL_OK)
        return group->submit_status;
    group->ids[group->submit_count++] = submit->request_id;
    group->max_tokens = submit->max_tokens;
    group->choice_count = submit->n_choices;
    for (size_t i = 0; i < submit->n_choices; i++) {
        group->choices[i] = submit->choices[i]->index;
        group->choice_seeds[i] = submit->choices[i]->seed;
        group->choice_replays[i] = submit->choices[i]->n_replay_ids;
    }
    group->replay_count = submit->n_replay_ids;
    for (size_t i = 0; i < submit->n_replay_ids; i++)
        group->replay[i] = submit->replay_ids[i];
    return AVL_OK;
}

void avl_groups_cancel(avl_groups_t *groups, uint64_t generation, uint64_t request_id,
                       int32_t choice) {
    groups->group.cancelled_choice = choice;
    group_t *group = &groups->group;
    assert_true(generation == group->view.generation);
    group->cancelled[group->cancel_count++] = request_id;
}

/* ---- the stage ---- */

typedef struct stage {
    avl_tokenizer_t *tokenizer;
    avl_service_metrics_t metrics;
    avl_admission_t *admission;
    avl_requests_t *requests;
    avl_groups_t groups;
    avl_call_t calls[CALLS];
    avl_live_request_t *live[CALLS];
} stage_t;

static int setup_with_timeout(void **state, int64_t timeout_ns) {
    stage_t *stage = calloc(1, sizeof *stage);
    if (avl_tokenizer_open(AVL_SOURCE_DIR "/models/avl-tiny", &stage->tokenizer) != AVL_OK)
        return -1;
    avl_service_metrics_init(&stage->metrics);
    const avl_admission_config_t admission = {4, AVL_DEADLINE_NONE, NULL, 0};
    if (avl_admission_create(&admission, &stage->admission) != AVL_OK)
        return -1;
    avl_requests_config_t config = {stage->tokenizer, stage->admission, timeout_ns,
                                    &stage->metrics};
    if (avl_requests_create(&config, &stage->requests) != AVL_OK)
        return -1;
    stage->groups.group.view.state = AVL_WORKER_GROUP_READY;
    stage->groups.group.view.ever_ready = true;
    stage->groups.group.view.generation = 1;
    stage->groups.group.view.context_rows_max = 100;
    stage->groups.group.room = 20;
    avl_requests_set_groups(stage->requests, &stage->groups);
    *state = stage;
    return 0;
}

static int setup(void **state) {
    return setup_with_timeout(state, AVL_DEADLINE_NONE);
}

static int setup_hasty(void **state) {
    return setup_with_timeout(state, AVL_NS_PER_S / 5);
}

static int teardown(void **state) {
    stage_t *stage = *state;
    for (int i = 0; i < CALLS; i++)
        if (stage->calls[i].user != NULL)
            avl_live_request_closed(stage->calls[i].user);
    avl_requests_destroy(stage->requests);
    avl_admission_destroy(stage->admission);
    for (int i = 0; i < CALLS; i++)
        assert_int_equal(stage->calls[i].references, 0);
    avl_tokenizer_close(stage->tokenizer);
    free(stage);
    return 0;
}

static avl_status_t admit(stage_t *stage, int i) {
    static const avl_asked_t nothing;
    AVL_TRY(avl_requests_admit(stage->requests, &stage->calls[i], "", &nothing, &stage->live[i]));
    avl_live_request_unref(stage->live[i]); /* the call's reference is enough here */
    return AVL_OK;
}

static void begin_with_priority(stage_t *stage, int i, int32_t rows, int32_t max_tokens,
                                int32_t priority) {
    avl_prepared_t prepared;
    memset(&prepared, 0, sizeof prepared);
    prepared.priority = priority;
    assert_int_equal(
        avl_alloc((size_t)rows, sizeof *prepared.token_ids, "ids", &prepared.token_ids), AVL_OK);
    assert_int_equal(avl_alloc(1, sizeof *prepared.images, "images", &prepared.images), AVL_OK);
    assert_int_equal(avl_alloc(10, 1, "pixels", &prepared.images[0].pixels), AVL_OK);
    prepared.image_count = 1;
    prepared.row_count = rows;
    prepared.max_tokens = max_tokens;
    prepared.attention = (avl_attention_params_t)AVL_ATTENTION(0.5, 0.3, 3);
    avl_live_request_begin(stage->live[i], &prepared);
}

static void begin(stage_t *stage, int i, int32_t rows, int32_t max_tokens) {
    begin_with_priority(stage, i, rows, max_tokens, 0);
}

static void ask(stage_t *stage, int i) {
    assert_int_equal(admit(stage, i), AVL_OK);
    begin(stage, i, 10, 0);
}

static void choice_event(stage_t *stage, uint64_t generation, uint64_t id, int32_t choice,
                         int32_t token) {
    Avl__Worker__V1__Event one, *list[] = {&one};
    avl__worker__v1__event__init(&one);
    one.request_id = id;
    one.choice = choice;
    one.kind = AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_TOKEN;
    one.token_id = token;
    Avl__Worker__V1__Events events;
    avl__worker__v1__events__init(&events);
    events.n_events = 1;
    events.events = list;
    avl_requests_group_events(stage->requests, generation, &events);
}

static void event(stage_t *stage, uint64_t generation, uint64_t id, int32_t token) {
    choice_event(stage, generation, id, 0, token);
}

static void choice_finish(stage_t *stage, uint64_t generation, uint64_t id, int32_t choice,
                          Avl__Worker__V1__ResultReason reason, avl_status_t status) {
    char detail[] = "its words";
    Avl__Worker__V1__Result result;
    avl__worker__v1__result__init(&result);
    result.finish_reason = reason;
    result.status = status;
    result.detail = detail;
    Avl__Worker__V1__Event one, *list[] = {&one};
    avl__worker__v1__event__init(&one);
    one.request_id = id;
    one.choice = choice;
    one.kind = AVL__WORKER__V1__EVENT_KIND__EVENT_KIND_FINISHED;
    one.result = &result;
    Avl__Worker__V1__Events events;
    avl__worker__v1__events__init(&events);
    events.n_events = 1;
    events.events = list;
    avl_requests_group_events(stage->requests, generation, &events);
}

static void finish(stage_t *stage, uint64_t generation, uint64_t id,
                   Avl__Worker__V1__ResultReason reason, avl_status_t status) {
    choice_finish(stage, generation, id, 0, reason, status);
}

/* The group dies, and the next one is ready. */
static void replace_group(stage_t *stage) {
    uint64_t generation = stage->groups.group.view.generation;
    pthread_mutex_lock(&play_lock);
    stage->groups.group.view.state = AVL_WORKER_GROUP_ENDING;
    pthread_mutex_unlock(&play_lock);
    avl_requests_group_lost(stage->requests, generation);
    pthread_mutex_lock(&play_lock);
    stage->groups.group.view.generation++;
    stage->groups.group.places = 0;
    stage->groups.group.view.state = AVL_WORKER_GROUP_READY;
    pthread_mutex_unlock(&play_lock);
    avl_requests_group_changed(stage->requests);
}

#define STOP AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_STOP
#define ERROR AVL__WORKER__V1__RESULT_REASON__RESULT_REASON_ERROR

/* ---- tests ---- */

#define PIECE(text) avl_tokenizer_find(stage->tokenizer, text)

static void test_answer(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    assert_int_equal(stage->groups.group.submit_count, 1);
    assert_int_equal(stage->groups.group.max_tokens, 90); /* what the context leaves */
    event(stage, 1, 1, PIECE("▁five"));
    event(stage, 1, 1, PIECE("▁objects"));
    event(stage, 1, 77, 5); /* nobody's */
    finish(stage, 1, 1, STOP, AVL_OK);
    avl_call_t *call = &stage->calls[0];
    assert_true(call->answered && call->ended && call->code == AVL_RPC_OK);
    assert_int_equal(call->id_count, 2);
    assert_string_equal(call->text, "five objects");
    assert_int_equal(call->completion_tokens, 2);
    assert_int_equal(stage->groups.group.cancel_count, 0);
    assert_int_equal(avl_requests_count(stage->requests), 0);
    event(stage, 1, 1, 300); /* too late: nothing happens */
    assert_int_equal(call->id_count, 2);
}

static void test_resumption(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    event(stage, 1, 1, 412);
    event(stage, 1, 1, 391);
    replace_group(stage);
    assert_int_equal(stage->groups.group.submit_count, 2);
    assert_int_equal(stage->groups.group.replay_count, 2);
    assert_int_equal(stage->groups.group.replay[0], 412);
    assert_int_equal(stage->groups.group.replay[1], 391);
    assert_int_equal(stage->groups.group.max_tokens, 90);
    event(stage, 1, 1, 999); /* from the dead */
    event(stage, 2, 1, 300);
    finish(stage, 1, 1, ERROR, AVL_ERR_DEVICE); /* from the dead */
    finish(stage, 2, 1, STOP, AVL_OK);
    assert_int_equal(stage->calls[0].id_count, 3);
    assert_int_equal(stage->calls[0].ids[2], 300);
    assert_int_equal(stage->calls[0].code, AVL_RPC_OK);
}

static void test_progress_keeps_alive(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    for (int i = 0; i < 6; i++) {
        event(stage, stage->groups.group.view.generation, 1, 300 + i);
        replace_group(stage);
    }
    assert_false(stage->calls[0].ended);
    assert_int_equal(stage->groups.group.replay_count, 6);
}

static void test_three_deaths_without_progress(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    event(stage, 1, 1, 300);
    replace_group(stage);
    replace_group(stage);
    assert_false(stage->calls[0].ended);
    replace_group(stage);
    assert_true(stage->calls[0].ended);
    assert_int_equal(stage->calls[0].code, avl_rpc_code(AVL_ERR_INTERNAL));
    assert_int_equal(stage->groups.group.cancel_count, 0);
}

/* One request kills every group it runs in: the others survive it. */
static void test_the_guilty_one_is_found(void **state) {
    stage_t *stage = *state;
    group_t *group = &stage->groups.group;
    for (int i = 0; i < 3; i++)
        ask(stage, i);
    assert_int_equal(group->submit_count, 3);
    replace_group(stage); /* it may be chance: all together, the oldest first */
    assert_int_equal(group->submit_count, 6);
    for (uint64_t i = 0; i < 3; i++)
        assert_int_equal(group->ids[3 + i], 1 + i);
    event(stage, 2, 3, 300); /* 3 advances */
    replace_group(stage);    /* 1 and 2 have seen two: one at a time, beside 3 */
    assert_int_equal(group->submit_count, 8);
    assert_true((group->ids[6] == 3 && group->ids[7] == 1) ||
                (group->ids[6] == 1 && group->ids[7] == 3));
    ask(stage, 3); /* a new one need not wait */
    assert_int_equal(group->submit_count, 9);
    event(stage, 3, 4, 300);
    event(stage, 3, 3, 300);
    event(stage, 3, 1, 300); /* 1 is innocent: 2 has its turn */
    assert_int_equal(group->submit_count, 10);
    assert_int_equal(group->ids[9], 2);
    replace_group(stage); /* and kills for the third time */
    assert_true(stage->calls[1].ended);
    assert_int_equal(stage->calls[1].code, avl_rpc_code(AVL_ERR_INTERNAL));
    assert_int_equal(group->submit_count, 13); /* the others go on, together */
    for (uint64_t i = 1; i <= 4; i++)
        if (i != 2)
            finish(stage, 4, i, STOP, AVL_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(stage->calls[i].code,
                         i == 1 ? avl_rpc_code(AVL_ERR_INTERNAL) : AVL_RPC_OK);
    assert_int_equal(avl_requests_count(stage->requests), 0);
}

/* Asks for three answers, which end before "objects". */
static void ask_for_three(stage_t *stage, int i) {
    char stop[] = "objects", *stops[] = {stop};
    avl_prepared_t prepared;
    memset(&prepared, 0, sizeof prepared);
    assert_int_equal(admit(stage, i), AVL_OK);
    assert_int_equal(avl_alloc(10, sizeof *prepared.token_ids, "ids", &prepared.token_ids), AVL_OK);
    prepared.row_count = 10;
    prepared.choice_count = 3;
    assert_int_equal(avl_choices_create(stage->tokenizer, stops, 1, 5, 3, &prepared.choices),
                     AVL_OK);
    avl_live_request_begin(stage->live[i], &prepared);
}

static void test_several_answers(void **state) {
    stage_t *stage = *state;
    group_t *group = &stage->groups.group;
    avl_call_t *call = &stage->calls[0];
    ask_for_three(stage, 0);
    assert_int_equal(group->choice_count, 3);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(group->choices[i], i);
        assert_int_equal(group->choice_seeds[i], avl_choice_seed(5, i));
        choice_event(stage, 1, 1, i, 300 + i);
    }
    assert_int_equal(group->places, 3);
    choice_finish(stage, 1, 1, 1, STOP, AVL_OK);
    assert_false(call->ended);
    assert_int_equal(group->places, 2); /* each gives its own back */
    choice_event(stage, 1, 1, 1, 300);  /* after its end: nothing happens */
    choice_event(stage, 1, 1, 2, PIECE("▁five"));
    replace_group(stage); /* the two that are left go on, each from where it was */
    assert_int_equal(group->choice_count, 2);
    assert_int_equal(group->places, 2);
    assert_int_equal(group->choices[0], 0);
    assert_int_equal(group->choices[1], 2);
    assert_int_equal(group->choice_replays[0], 1);
    assert_int_equal(group->choice_replays[1], 2);
    choice_event(stage, 2, 1, 2, PIECE("▁objects"));
    assert_int_equal(group->cancel_count, 1);
    assert_int_equal(group->cancelled_choice, 2);
    replace_group(stage); /* before the group could say that it has ended */
    assert_int_equal(call->ends, 2);
    assert_int_equal(group->choice_count, 1);
    assert_int_equal(group->choices[0], 0);
    choice_event(stage, 3, 1, 0, 301);
    choice_finish(stage, 3, 1, 0, STOP, AVL_OK);
    assert_true(call->ended && call->code == AVL_RPC_OK);
    assert_int_equal(call->ends, 3);
    assert_int_equal(call->prompt_tokens, 10); /* counted once */
    const uint32_t tokens[] = {2, 1, 3};
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(call->choice_tokens[i], tokens[i]);
        assert_int_equal(call->seeds[i], avl_choice_seed(5, i));
    }
    assert_int_equal(avl_requests_count(stage->requests), 0);
    assert_int_equal(group->places, 0);
}

/* One that fails takes the others along; so does one that was never asked for. */
static void test_an_answer_fails(void **state) {
    stage_t *stage = *state;
    ask_for_three(stage, 0);
    choice_event(stage, 1, 1, 0, 300);
    choice_finish(stage, 1, 1, 2, ERROR, AVL_ERR_EXHAUSTED);
    assert_int_equal(stage->calls[0].code, avl_rpc_code(AVL_ERR_EXHAUSTED));
    assert_int_equal(stage->groups.group.cancel_count, 1);
    assert_int_equal(stage->groups.group.cancelled_choice, -1);
    ask_for_three(stage, 1);
    choice_event(stage, 1, 2, 3, 300);
    assert_int_equal(stage->calls[1].code, avl_rpc_code(AVL_ERR_INTERNAL));
}

static void test_seeds(void **state) {
    (void)state;
    assert_int_equal(avl_choice_seed(0, 0), 0);
    assert_int_equal(avl_choice_seed(UINT64_MAX, 0), UINT64_MAX);
    /* The first numbers of splitmix64 from 0, without their last 11 bits. */
    assert_int_equal(avl_choice_seed(0, 1), UINT64_C(0xe220a8397b1dcdaf) >> 11);
    assert_int_equal(avl_choice_seed(0, 2), UINT64_C(0x6e789e6aa1b965f4) >> 11);
}

static void test_cancel(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    avl_live_request_closed(stage->calls[0].user);
    stage->calls[0].user = NULL;
    assert_int_equal(stage->groups.group.cancel_count, 1);
    assert_int_equal(stage->groups.group.cancelled[0], 1);
    assert_int_equal(avl_requests_count(stage->requests), 0);
    assert_int_equal(admit(stage, 1), AVL_OK); /* cancelled while it is prepared */
    assert_true(avl_live_request_wanted(stage->live[1]));
    avl_live_request_fail(stage->live[1], AVL_ERR_CANCELLED, "over");
    assert_false(avl_live_request_wanted(stage->live[1]));
    begin(stage, 1, 10, 0);
    assert_int_equal(stage->groups.group.submit_count, 1);
    assert_int_equal(stage->groups.group.cancel_count, 1);
}

static void test_client_does_not_read(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    stage->calls[0].send_status = AVL_ERR_EXHAUSTED;
    event(stage, 1, 1, 300);
    assert_true(stage->calls[0].aborted);
    assert_int_equal(stage->groups.group.cancel_count, 1);
    assert_int_equal(avl_requests_count(stage->requests), 0);
}

static void test_refusals(void **state) {
    stage_t *stage = *state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(admit(stage, i), AVL_OK);
    assert_int_equal(admit(stage, 4), AVL_ERR_EXHAUSTED);
    assert_int_equal(stage->calls[4].references, 0);
    begin(stage, 0, 100, 0); /* no row for the answer */
    assert_int_equal(stage->calls[0].code, avl_rpc_code(AVL_ERR_TOO_LARGE));
    begin(stage, 1, 99, 50);
    assert_int_equal(stage->groups.group.max_tokens, 1);
    event(stage, 1, 2, 300);
    event(stage, 1, 2, 300); /* one more than asked for */
    assert_int_equal(stage->calls[1].code, avl_rpc_code(AVL_ERR_INTERNAL));
    begin(stage, 2, 10, 5);
    assert_int_equal(stage->groups.group.max_tokens, 5);
    event(stage, 1, 3, 1 << 30);
    assert_int_equal(stage->calls[2].code, avl_rpc_code(AVL_ERR_INTERNAL));
    begin(stage, 3, 10, 5);
    finish(stage, 1, 4, ERROR, AVL_ERR_EXHAUSTED);
    assert_int_equal(stage->calls[3].code, avl_rpc_code(AVL_ERR_EXHAUSTED));
    assert_string_equal(stage->calls[3].reason, "its words");
    avl_requests_drain(stage->requests);
    assert_int_equal(admit(stage, 5), AVL_ERR_UNAVAILABLE);
}

static void test_without_a_group(void **state) {
    stage_t *stage = *state;
    stage->groups.group.view.state = AVL_WORKER_GROUP_LOADING;
    assert_int_equal(admit(stage, 0), AVL_OK);
    avl_live_request_want_progress(stage->live[0]);
    begin(stage, 0, 10, 0);
    assert_int_equal(stage->groups.group.submit_count, 0);
    assert_int_equal(stage->calls[0].progress[0], AVL__V1__STAGE__STAGE_LOADING);
    pthread_mutex_lock(&play_lock);
    stage->groups.group.view.hopeless = true;
    snprintf(stage->groups.group.view.reason, sizeof stage->groups.group.view.reason,
             "it never worked");
    pthread_mutex_unlock(&play_lock);
    avl_requests_group_changed(stage->requests);
    assert_int_equal(stage->calls[0].code, avl_rpc_code(AVL_ERR_UNAVAILABLE));
    assert_non_null(strstr(stage->calls[0].reason, "it never worked"));
    assert_int_equal(admit(stage, 1), AVL_ERR_UNAVAILABLE);
    assert_non_null(strstr(avl_status_detail(), "it never worked"));
}

/* What there is no room for waits, by priority, and fills what ends. */
static void test_room(void **state) {
    stage_t *stage = *state;
    stage->groups.group.room = 1;
    for (int i = 0; i < 3; i++)
        assert_int_equal(admit(stage, i), AVL_OK);
    begin(stage, 0, 10, 0);
    begin(stage, 1, 10, 0);
    begin_with_priority(stage, 2, 10, 0, 7);
    assert_int_equal(stage->groups.group.submit_count, 1);
    finish(stage, 1, 1, STOP, AVL_OK);
    assert_int_equal(stage->groups.group.submit_count, 2);
    assert_int_equal(stage->groups.group.ids[1], 3);
    avl_live_request_closed(stage->calls[2].user); /* so does a cancellation */
    stage->calls[2].user = NULL;
    assert_int_equal(stage->groups.group.submit_count, 3);
    assert_int_equal(stage->groups.group.ids[2], 2);
    /* Lost ones go first, and before new ones of higher priority. */
    event(stage, 1, 2, 300);
    ask(stage, 3);
    replace_group(stage);
    assert_int_equal(stage->groups.group.ids[3], 2);
    assert_int_equal(stage->groups.group.replay_count, 1);
}

/* The group's link breaks at the moment of submission. */
static void test_group_gone(void **state) {
    stage_t *stage = *state;
    stage->groups.group.submit_status = AVL_ERR_UNAVAILABLE;
    ask(stage, 0);
    assert_false(stage->calls[0].ended);
    assert_int_equal(stage->groups.group.places, 0);
    stage->groups.group.submit_status = AVL_OK;
    avl_requests_group_changed(stage->requests);
    assert_int_equal(stage->groups.group.submit_count, 1);
    finish(stage, 1, 1, STOP, AVL_OK);
    assert_int_equal(stage->calls[0].code, AVL_RPC_OK);
}

/* The group tells of steps of so many milliseconds for each sequence. */
static void tell_work(stage_t *stage, int64_t sequences, int64_t step_ms) {
    Avl__Worker__V1__Work work;
    avl__worker__v1__work__init(&work);
    work.steps = 10;
    work.ns = 10 * step_ms * AVL_NS_PER_MS;
    work.decode_rows = 10 * sequences;
    Avl__Worker__V1__Events events;
    avl__worker__v1__events__init(&events);
    events.work = &work;
    for (int i = 0; i < 20; i++)
        avl_requests_group_events(stage->requests, 1, &events);
    work.steps = 1;
    work.ns = (step_ms + 1) * AVL_NS_PER_MS;
    work.decode_rows = sequences;
    work.prompt_rows = 10;
    avl_requests_group_events(stage->requests, 1, &events);
}

/* Answers of so many tokens each, one after the other. */
static void tell_answers(stage_t *stage, int tokens) {
    for (int i = 0; i < AVL_ESTIMATE_ANSWERS; i++) {
        ask(stage, 0);
        uint64_t id = stage->groups.group.ids[stage->groups.group.submit_count - 1];
        for (int j = 0; j < tokens; j++)
            event(stage, 1, id, 300);
        finish(stage, 1, id, STOP, AVL_OK);
        avl_live_request_closed(stage->calls[0].user);
        memset(&stage->calls[0], 0, sizeof stage->calls[0]);
    }
}

static void ask_within(stage_t *stage, int i, int64_t milliseconds) {
    stage->calls[i].deadline_ns = avl_clock_now_ns() + milliseconds * AVL_NS_PER_MS;
    avl_status_t status = admit(stage, i);
    if (status == AVL_OK) {
        begin(stage, i, 10, 0);
        return;
    }
    stage->calls[i].ended = true; /* refused at the door */
    stage->calls[i].code = avl_rpc_code(status);
    snprintf(stage->calls[i].reason, sizeof stage->calls[i].reason, "%s", avl_status_detail());
}

/* Once answers are known to take their time, what cannot be promised is refused. */
static void test_deadlines(void **state) {
    stage_t *stage = *state;
    const avl_rpc_code_t late = avl_rpc_code(AVL_ERR_DEADLINE),
                         full = avl_rpc_code(AVL_ERR_EXHAUSTED);
    tell_answers(stage, 10);
    tell_work(stage, 1, 1000); /* ten seconds an answer */
    stage->groups.group.room = 1;
    ask_within(stage, 1, 500); /* alone, it is given the benefit of the doubt */
    assert_false(stage->calls[1].ended);
    ask_within(stage, 2, 5000); /* it alone takes longer */
    assert_int_equal(stage->calls[2].code, late);
    assert_non_null(strstr(stage->calls[2].reason, "the answer takes about"));
    ask_within(stage, 3, 14000); /* behind the other one it does */
    assert_int_equal(stage->calls[3].code, full);
    assert_non_null(strstr(stage->calls[3].reason, "the deadline is in"));
    ask_within(stage, 4, 55000);
    assert_false(stage->calls[4].ended);
    /* The one that came alone and will be late is no reason to refuse; the one that was promised
     * its answer is, when a newcomer with an earlier deadline would go before it. */
    ask_within(stage, 5, 41000);
    assert_int_equal(stage->calls[5].code, full);
    assert_non_null(strstr(stage->calls[5].reason, "would miss their deadlines"));
    assert_true(avl_requests_retry_ns(stage->requests) > AVL_NS_PER_S);
    /* It goes faster: there is room again. */
    tell_work(stage, 1, 10);
    tell_work(stage, 1, 10);
    tell_work(stage, 1, 10);
    ask_within(stage, 6, 41000);
    assert_false(stage->calls[6].ended);
}

static bool ended(avl_call_t *call) {
    pthread_mutex_lock(&play_lock);
    bool value = call->ended;
    pthread_mutex_unlock(&play_lock);
    return value;
}

static void test_timeout(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    assert_int_equal(admit(stage, 1), AVL_OK); /* still in preparation */
    for (int i = 0; i < 4000 && !(ended(&stage->calls[0]) && ended(&stage->calls[1])); i++)
        avl_clock_sleep_ns(5 * AVL_NS_PER_MS);
    assert_int_equal(avl_requests_wait(stage->requests, avl_clock_now_ns() + 20 * AVL_NS_PER_S), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(stage->calls[i].code, avl_rpc_code(AVL_ERR_DEADLINE));
        assert_non_null(strstr(stage->calls[i].reason, "the deadline passed"));
    }
    assert_int_equal(stage->groups.group.cancel_count, 1);
}

static void test_fail_all(void **state) {
    stage_t *stage = *state;
    ask(stage, 0);
    ask(stage, 1);
    assert_int_equal(avl_requests_wait(stage->requests, avl_clock_now_ns()), 2);
    avl_requests_fail_all(stage->requests, AVL_ERR_UNAVAILABLE, "closing");
    assert_int_equal(avl_requests_count(stage->requests), 0);
    assert_int_equal(stage->groups.group.cancel_count, 2);
    assert_string_equal(stage->calls[1].reason, "closing");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_resumption, setup, teardown),
        cmocka_unit_test_setup_teardown(test_progress_keeps_alive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_three_deaths_without_progress, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_guilty_one_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(test_several_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_answer_fails, setup, teardown),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_does_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_a_group, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timeout, setup_hasty, teardown),
        cmocka_unit_test_setup_teardown(test_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_group_gone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadlines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fail_all, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
