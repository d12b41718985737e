/* tests/worker/simulator.c: the scheduler against random arrivals, cancels, deadlines, failing
 * admissions and deaths of its group, from a seed. The engine is a double with real page books
 * (tests/worker/engine_double.h), the clock is the simulator's (the linker wraps it).
 *
 *     test_worker_simulator RUNS [FIRST_SEED]
 *
 * A run that fails prints its seed and the step; `test_worker_simulator 1 SEED` repeats it, with
 * AVL_SIMULATOR_TRACE=1 every event is printed.
 *
 * Invariants, after every step:
 *   pages     taken <= reserved + kept <= total, during the step as well; when idle those of kept
 *             prompts alone
 *   plans     within every limit; never empty while there is work
 *   order     who is admitted comes first in the documented order of those that wait; who gives
 *             way when pages run out comes last of those that run
 *   events    exactly one end for every request, none after it; each token is the one that follows
 *             from the tokens before it, also after deaths and preemptions
 *   ends      each for a reason that the simulator gave it
 *   progress  every request ends within a bound of steps (work_ahead below) */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/worker/engine_double.h"
#include "worker/sampler.h"
#include "worker/scheduler.h"

#define REQUESTS_MAX 64
#define TOKENS_MAX 96
#define VOCAB 13
#define PAGES_MAX 8192
#define EOS 3
#define SIDE 2         /* of a picture's tile, pixels */
#define PICTURE_ROWS 9 /* of the prompt */

static uint64_t seed_now;
static uint64_t step_now;
static int64_t now_ns;
static bool trace;

/* The linker sends avl_clock_now_ns here (-Wl,--wrap). */
int64_t __wrap_avl_clock_now_ns(void);
int64_t __wrap_avl_clock_now_ns(void) {
    return now_ns;
}

__attribute__((noreturn)) static void give_up(const char *text) {
    fprintf(stderr, "simulator: seed %llu, step %llu: %s\n", (unsigned long long)seed_now,
            (unsigned long long)step_now, text);
    exit(1);
}

__attribute__((format(printf, 2, 3))) static void expect(bool holds, const char *format, ...) {
    if (holds)
        return;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    give_up(text);
}

/* ---- chance ---- */

static uint64_t chance_state;

static uint64_t draw(void) {
    uint64_t value = chance_state += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

static int32_t between(int32_t least, int32_t most) {
    return least + (int32_t)(draw() % (uint64_t)(most - least + 1));
}

static bool one_in(int32_t count) {
    return between(1, count) == 1;
}

/* ---- the world ---- */

typedef struct client {
    uint64_t id;
    int32_t *prompt;
    int32_t rows, picture_count;
    bool tenant;
    int32_t picture_rows[4];
    uint8_t pixels[4][3 * SIDE * SIDE];
    avl_picture_digest_t digests[4];
    avl_attention_params_t attention;
    avl_sampling_params_t sampling;
    int32_t max_tokens, stop_count, stop_ids[3], priority;
    bool ignore_eos;
    int64_t deadline_ns, arrival_ns, due_ns;
    bool hostile;   /* must be refused */
    bool cancelled; /* the simulator asked for it */
    bool admitted, ended;
    uint64_t told;
    int32_t tokens[TOKENS_MAX];
    int32_t token_count;
    uint64_t token_step, end_step;
    int64_t submit_step, bound;
    int32_t reported; /* tokens at the end */
} client_t;

typedef struct world {
    avl_config_t config;
    avl_device_t *device;
    avl_engine_limits_t limits;
    int64_t page_count;
    double growth_share;
    int32_t queue_max, pictures_max;
    int32_t death_every, cancel_every, refuse_every, deadline_every;
    avl_engine_t *engine;
    avl_scheduler_t *scheduler;
    avl_sampler_t *sampler;
    client_t clients[REQUESTS_MAX];
    int32_t client_count, clients_wanted;
    bool admission_failed; /* in this step */
    bool submitting;
    int32_t deaths;
    int64_t preemptions;
    double worst_share; /* of the bound on steps */
} world_t;

static client_t *find(world_t *world, uint64_t id) {
    expect(id >= 1 && id <= (uint64_t)world->client_count, "an event for unknown request %llu",
           (unsigned long long)id);
    return &world->clients[id - 1];
}

static uint64_t told_by_prompt(const client_t *client) {
    uint64_t told = engine_double_start();
    int32_t visual = 0;
    for (int32_t i = 0; i < client->rows; i++) {
        told = engine_double_token(told, client->prompt[i]);
        if (client->prompt[i] >= 0)
            continue;
        const uint8_t *pixels = client->pixels[visual / PICTURE_ROWS];
        told ^= engine_double_feature(pixels, sizeof client->pixels[0], visual % PICTURE_ROWS);
        visual++;
    }
    return told;
}

static int32_t tokens_most(const world_t *world, const client_t *client) {
    int32_t room = world->limits.context_rows - client->rows;
    return client->max_tokens < room ? client->max_tokens : room;
}

/* ---- events ---- */

static void take_token(world_t *world, client_t *client, const avl_event_t *event) {
    float logits[VOCAB];
    int32_t banned[8], banned_count = 0;
    avl_sampler_token_t expected;
    expect(client->token_count < tokens_most(world, client), "request %llu: too many tokens",
           (unsigned long long)client->id);
    engine_double_logits(client->told, logits, VOCAB);
    if (client->token_count < client->sampling.min_tokens) {
        banned[banned_count++] = EOS;
        for (int32_t i = 0; i < client->stop_count; i++)
            banned[banned_count++] = client->stop_ids[i];
    }
    avl_sampler_history_t history = {.prompt_ids = client->prompt,
                                     .prompt_rows = client->rows,
                                     .token_ids = client->tokens,
                                     .token_count = client->token_count,
                                     .banned_ids = banned,
                                     .banned_count = banned_count};
    expect(avl_sampler_draw(world->sampler, logits, &client->sampling, &history, &expected) ==
               AVL_OK,
           "no token can be drawn");
    expect(event->token_id == expected.token_id, "request %llu: token %d is %d; expected %d",
           (unsigned long long)client->id, client->token_count, event->token_id, expected.token_id);
    expect(event->logprob_count == expected.logprob_count &&
               memcmp(event->logprobs, expected.logprobs,
                      (size_t)expected.logprob_count * sizeof *expected.logprobs) == 0,
           "request %llu: other logprobs", (unsigned long long)client->id);
    client->tokens[client->token_count++] = event->token_id;
    client->told = engine_double_token(client->told, event->token_id);
    client->token_step = step_now;
}

static bool stops(const client_t *client, int32_t token_id) {
    for (int32_t i = 0; i < client->stop_count; i++) {
        if (client->stop_ids[i] == token_id)
            return true;
    }
    return token_id == EOS && !client->ignore_eos;
}

static void check_end(const world_t *world, const client_t *client, const avl_event_t *event) {
    unsigned long long id = client->id;
    int32_t count = client->token_count;
    switch (event->finish_reason) {
    case AVL_FINISH_STOP:
        expect(count > 0 && stops(client, client->tokens[count - 1]),
               "request %llu: stop without a token that ends it", id);
        break;
    case AVL_FINISH_LENGTH:
        expect(count == tokens_most(world, client), "request %llu: %d tokens of %d", id, count,
               tokens_most(world, client));
        break;
    case AVL_FINISH_CANCELLED:
        expect(client->cancelled, "request %llu: nobody cancelled it", id);
        break;
    case AVL_FINISH_ERROR:
        if (event->status == AVL_ERR_DEADLINE)
            expect(now_ns >= client->deadline_ns, "request %llu: its deadline has not come", id);
        else if (!world->submitting)
            expect(world->admission_failed && event->status == AVL_ERR_EXHAUSTED,
                   "request %llu ends with %s: %s", id, avl_status_name(event->status),
                   event->detail);
        else if (!client->hostile)
            expect(event->status == AVL_ERR_EXHAUSTED, "request %llu is refused with %s: %s", id,
                   avl_status_name(event->status), event->detail);
        break;
    default:
        expect(false, "request %llu ends for no reason", id);
    }
    expect(client->hostile || event->completion_tokens >= count,
           "request %llu: %d tokens reported, %d came", id, event->completion_tokens, count);
    if (event->finish_reason == AVL_FINISH_STOP || event->finish_reason == AVL_FINISH_LENGTH)
        expect(event->completion_tokens == count && !client->hostile,
               "request %llu: %d tokens reported, %d came", id, event->completion_tokens, count);
}

static void take_event(void *context, const avl_event_t *event) {
    world_t *world = context;
    client_t *client = find(world, event->request_id);
    if (trace)
        printf("step %llu: request %llu: event %d, token %d, reason %d %s\n",
               (unsigned long long)step_now, (unsigned long long)client->id, (int)event->kind,
               event->token_id, (int)event->finish_reason, event->detail);
    expect(!client->ended, "request %llu: an event after its end", (unsigned long long)client->id);
    switch (event->kind) {
    case AVL_EVENT_PROGRESS:
        expect(event->done >= 0 && event->done <= event->total, "progress %d of %d", event->done,
               event->total);
        return;
    case AVL_EVENT_TOKEN:
        take_token(world, client, event);
        return;
    case AVL_EVENT_FINISHED:
        check_end(world, client, event);
        client->ended = true;
        client->end_step = step_now;
        return;
    }
    expect(false, "an event of kind %d", (int)event->kind);
}

/* ---- arrivals ---- */

static bool admits(void *context) {
    world_t *world = context;
    world->admission_failed = one_in(world->refuse_every);
    return !world->admission_failed;
}

static avl_request_t *make_request(const client_t *client) {
    avl_request_t *request = calloc(1, sizeof *request);
    expect(request != NULL, "no memory");
    size_t rows = (size_t)client->rows, pictures = (size_t)client->picture_count;
    size_t tokens = (size_t)client->token_count;
    request->id = client->id;
    request->token_ids = malloc((rows + 1) * sizeof(int32_t));
    request->images = calloc(pictures + 1, sizeof *request->images);
    request->replay_ids = malloc((tokens + 1) * sizeof(int32_t));
    request->stop_ids = malloc(sizeof client->stop_ids);
    expect(request->stop_ids != NULL, "no memory");
    memcpy(request->stop_ids, client->stop_ids, sizeof client->stop_ids);
    request->stop_count = client->stop_count;
    request->priority = client->priority;
    expect(request->token_ids != NULL && request->images != NULL && request->replay_ids != NULL,
           "no memory");
    memcpy(request->token_ids, client->prompt, rows * sizeof(int32_t));
    memcpy(request->replay_ids, client->tokens, tokens * sizeof(int32_t));
    request->row_count = client->rows;
    request->tenant[0] = client->tenant ? 't' : '\0';
    request->replay_count = client->token_count;
    request->image_count = client->picture_count;
    for (int32_t i = 0; i < client->picture_count; i++) {
        avl_request_image_t *image = &request->images[i];
        image->layout = (avl_image_layout_t){.image_width = 5 + i,
                                             .image_height = 7,
                                             .tile_count = 1,
                                             .base_rows = PICTURE_ROWS,
                                             .prompt_rows = PICTURE_ROWS};
        image->digest = client->digests[i];
        image->first_row = client->picture_rows[i];
        image->pixel_bytes = sizeof client->pixels[i];
        image->pixels = malloc(image->pixel_bytes);
        expect(image->pixels != NULL, "no memory");
        memcpy(image->pixels, client->pixels[i], image->pixel_bytes);
    }
    request->attention = client->attention;
    request->sampling = client->sampling;
    request->max_tokens = client->max_tokens;
    request->ignore_eos = client->ignore_eos;
    request->deadline_ns = client->deadline_ns;
    request->arrival_ns = client->arrival_ns;
    return request;
}

static void make_prompt(world_t *world, client_t *client) {
    int32_t rows = 0, capacity = world->limits.context_rows + 4 * PICTURE_ROWS + 8;
    client->prompt = malloc((size_t)capacity * sizeof(int32_t));
    expect(client->prompt != NULL, "no memory");
    client->picture_count = one_in(2) ? between(1, 4) : 0;
    int32_t text = between(1, one_in(4) ? world->limits.context_rows / 2 : 12);
    for (int32_t i = 0; i < client->picture_count; i++) {
        int32_t part = between(0, text);
        for (int32_t j = 0; j < part; j++)
            client->prompt[rows++] = between(0, VOCAB - 1);
        text -= part;
        if (rows + PICTURE_ROWS + text >= world->limits.context_rows) {
            client->picture_count = i;
            break;
        }
        client->picture_rows[i] = rows;
        for (int32_t j = 0; j < PICTURE_ROWS; j++)
            client->prompt[rows++] = -1;
        /* Half of all pictures are a few that come again and again. */
        uint8_t name = one_in(2) ? (uint8_t)between(1, 6) : 0;
        for (size_t j = 0; j < sizeof client->pixels[i]; j++)
            client->pixels[i][j] = name != 0 ? (uint8_t)(name + j) : (uint8_t)draw();
        memset(&client->digests[i], name, sizeof client->digests[i]);
    }
    while (text-- > 0 || rows == 0)
        client->prompt[rows++] = between(0, VOCAB - 1);
    client->rows = rows;
}

/* A prompt that an earlier client had, or one that begins like it. */
static void ask_again(client_t *client, const client_t *other) {
    if (other->hostile)
        return;
    int32_t *prompt = malloc(((size_t)other->rows + 1) * sizeof *prompt);
    expect(prompt != NULL, "no memory");
    memcpy(prompt, other->prompt, (size_t)other->rows * sizeof *prompt);
    free(client->prompt);
    client->prompt = prompt;
    client->rows = other->rows;
    client->picture_count = other->picture_count;
    memcpy(client->picture_rows, other->picture_rows, sizeof other->picture_rows);
    memcpy(client->pixels, other->pixels, sizeof other->pixels);
    memcpy(client->digests, other->digests, sizeof other->digests);
    if (one_in(2) && prompt[client->rows - 1] >= 0)
        prompt[client->rows - 1] = (prompt[client->rows - 1] + 1) % VOCAB;
}

static void make_parameters(client_t *client) {
    static const avl_attention_params_t attentions[] = {
        AVL_ATTENTION(1, 1, 1), AVL_ATTENTION(.5, .3, 3), AVL_ATTENTION(.3, .1, 2),
        AVL_ATTENTION(.05, .02, 5), AVL_ATTENTION(1, .25, 4)};
    client->attention = attentions[between(0, 4)];
    client->sampling = (avl_sampling_params_t){.top_p = 1};
    if (one_in(2))
        client->sampling = (avl_sampling_params_t){.temperature = .5 + between(0, 3),
                                                   .top_p = one_in(2) ? 1 : .8,
                                                   .top_k = one_in(2) ? 0 : 5,
                                                   .seed = draw()};
    if (one_in(3)) {
        client->sampling.min_p = between(0, 9) * .1;
        client->sampling.repetition_penalty = between(2, 20) * .1;
        client->sampling.presence_penalty = between(-5, 5) * .1;
        client->sampling.frequency_penalty = between(-5, 5) * .1;
        client->sampling.min_tokens = between(0, 20);
        client->sampling.logprob_count = between(0, 4);
        client->stop_count = between(0, 3);
        for (int32_t i = 0; i < client->stop_count; i++)
            client->stop_ids[i] = between(0, VOCAB - 1);
    }
    if (one_in(3))
        client->priority = between(-2, 2);
    client->max_tokens = between(1, one_in(3) ? TOKENS_MAX : 12);
    client->ignore_eos = one_in(2);
}

static void spoil(client_t *client) {
    client->hostile = true;
    switch (between(0, 6)) {
    case 5:
        client->priority = AVL_PRIORITY_MOST + 1;
        break;
    case 6:
        client->stop_count = 1;
        client->stop_ids[0] = VOCAB;
        break;
    case 0:
        client->prompt[between(0, client->rows - 1)] = VOCAB;
        break;
    case 1:
        client->max_tokens = 0;
        break;
    case 2:
        client->sampling.top_p = 0;
        break;
    case 3:
        client->attention.visual_store_ratio = 2;
        break;
    case 4:
        client->deadline_ns = now_ns;
        break;
    }
}

/* Steps that a request needs when nobody else is there. */
static int64_t work_of(const world_t *world, const client_t *client) {
    return 2 + client->picture_count + client->rows / world->limits.batch_rows +
           tokens_most(world, client);
}

/* Steps within which a new request must end: everything that is unfinished, one after the other. A
 * request that comes later adds its own work to those that wait. */
static void add_bounds(world_t *world, client_t *added) {
    int64_t work = work_of(world, added);
    for (int32_t i = 0; i < world->client_count; i++) {
        client_t *client = &world->clients[i];
        if (client->ended || client == added)
            continue;
        added->bound += work_of(world, client);
        client->bound += work;
    }
    added->bound += 2 * work;
}

/* The documented order. */
static bool comes_before(const client_t *a, const client_t *b) {
    if (a->due_ns != b->due_ns)
        return a->due_ns < b->due_ns;
    return a->arrival_ns != b->arrival_ns ? a->arrival_ns < b->arrival_ns : a->id < b->id;
}

static void submit(world_t *world, client_t *client) {
    world->submitting = true;
    client->admitted = false;
    avl_request_t *request = make_request(client);
    client->due_ns = avl_scheduler_due_ns(request);
    avl_scheduler_submit(world->scheduler, request);
    world->submitting = false;
    expect(client->ended || !client->hostile, "request %llu should have been refused",
           (unsigned long long)client->id);
}

static void arrive(world_t *world) {
    client_t *client = &world->clients[world->client_count++];
    client->id = (uint64_t)world->client_count;
    make_prompt(world, client);
    if (world->client_count > 1 && one_in(2))
        ask_again(client, &world->clients[between(0, world->client_count - 2)]);
    client->tenant = one_in(4);
    make_parameters(client);
    client->arrival_ns = now_ns;
    client->deadline_ns = AVL_DEADLINE_NONE;
    if (one_in(world->deadline_every))
        client->deadline_ns = now_ns + between(1, 1000) * AVL_NS_PER_MS;
    if (one_in(20))
        spoil(client);
    client->told = told_by_prompt(client);
    client->submit_step = (int64_t)step_now;
    add_bounds(world, client);
    submit(world, client);
}

static void cancel_one(world_t *world) {
    if (world->client_count == 0)
        return;
    client_t *client = &world->clients[between(0, world->client_count - 1)];
    client->cancelled = client->cancelled || !client->ended;
    avl_scheduler_cancel(world->scheduler, client->id);
    expect(client->ended, "request %llu lives on after its cancel", (unsigned long long)client->id);
}

/* ---- life and death of the group ---- */

static void begin_group(world_t *world) {
    engine_double_options_t options = {
        .config = &world->config,
        .device = world->device,
        .limits = world->limits,
        .page_count = world->page_count,
        .pictures_max = world->pictures_max,
        .plan_bytes = 4 * (size_t)(world->limits.context_rows + 8) + 3 * SIDE * SIDE +
                      avl_plan_admission_bytes(0, 0) + 8,
        .fail = give_up,
        .admits = admits,
        .context = world,
    };
    world->engine = engine_double_create(&options);
    avl_event_sink_t sink = {.context = world, .take = take_event};
    expect(avl_scheduler_create(world->engine, world->queue_max, &sink, &world->scheduler) ==
               AVL_OK,
           "no scheduler: %s", avl_status_detail());
    avl_scheduler_set_growth_share(world->scheduler, world->growth_share);
}

static void end_group(world_t *world) {
    avl_scheduler_destroy(world->scheduler);
    avl_engine_destroy(world->engine);
}

/* What came in the last step may have been lost on the way. */
static void forget(client_t *client) {
    if (client->hostile || client->cancelled || client->token_count == 0 ||
        client->token_step != step_now || !one_in(2))
        return;
    if (client->ended && client->end_step != step_now)
        return;
    client->ended = false;
    if (one_in(2)) /* the end alone, or the token as well */
        return;
    client->token_count--;
    client->told = told_by_prompt(client);
    for (int32_t i = 0; i < client->token_count; i++)
        client->told = engine_double_token(client->told, client->tokens[i]);
}

static void die(world_t *world) {
    end_group(world);
    world->deaths++;
    begin_group(world);
    int64_t work = 0;
    for (int32_t i = 0; i < world->client_count; i++)
        forget(&world->clients[i]);
    for (int32_t i = 0; i < world->client_count; i++)
        work += world->clients[i].ended ? 0 : work_of(world, &world->clients[i]);
    for (int32_t i = 0; i < world->client_count; i++) {
        client_t *client = &world->clients[i];
        if (client->ended)
            continue;
        client->bound += work;
        submit(world, client);
    }
}

/* ---- steps ---- */

/* Whoever is released and has not ended has given way to another; it does its work again. */
static void note_preemptions(world_t *world, const avl_plan_t *plan) {
    for (int32_t i = 0; i < plan->release_count; i++) {
        const avl_sequence_t *sequence = avl_engine_sequence(world->engine, plan->releases[i]);
        if (sequence == NULL) /* its admission failed */
            continue;
        client_t *client = find(world, sequence->request_id);
        if (client->ended || !client->admitted)
            continue;
        expect(world->growth_share < 1, "request %llu gives way, and the worst case is reserved",
               (unsigned long long)client->id);
        for (int32_t j = 0; j < world->client_count; j++) {
            client_t *other = &world->clients[j];
            other->bound += work_of(world, client);
            expect(other->ended || !other->admitted || comes_before(other, client) ||
                       other == client,
                   "request %llu gives way to %llu", (unsigned long long)client->id,
                   (unsigned long long)other->id);
        }
        client->admitted = false;
        world->preemptions++;
    }
}

static void check_admissions(world_t *world, const avl_plan_t *plan) {
    for (int32_t i = 0; i < plan->admission_count; i++) {
        client_t *admitted = find(world, plan->admissions[i].request_id);
        expect(!admitted->ended && !admitted->admitted, "request %llu is admitted again",
               (unsigned long long)admitted->id);
        admitted->admitted = true;
        for (int32_t j = 0; j < world->client_count; j++) {
            const client_t *other = &world->clients[j];
            if (other->ended || other->admitted)
                continue;
            expect(comes_before(admitted, other), "request %llu is admitted before %llu",
                   (unsigned long long)admitted->id, (unsigned long long)other->id);
        }
    }
}

/* Several sequences may hold a page: it counts once. */
static int64_t mark_pages(const avl_segment_rows_t *rows, bool *held) {
    int64_t count = 0;
    for (int32_t i = 0; i < rows->page_count; i++) {
        count += !held[rows->pages[i]];
        held[rows->pages[i]] = true;
    }
    return count;
}

static void check_pages(const world_t *world) {
    avl_scheduler_counts_t counts = avl_scheduler_counts(world->scheduler);
    avl_pages_counts_t pages = avl_engine_pages(world->engine);
    expect(counts.pages_reserved >= 0 && counts.pages_reserved <= pages.total,
           "%lld pages of %lld are reserved", (long long)counts.pages_reserved,
           (long long)pages.total);
    expect(counts.pages_reserved + counts.pages_kept <= pages.total,
           "%lld pages are reserved, and kept prompts have %lld of %lld",
           (long long)counts.pages_reserved, (long long)counts.pages_kept, (long long)pages.total);
    static bool held[PAGES_MAX];
    memset(held, 0, sizeof held);
    int64_t owned = 0;
    for (int32_t i = 0; i < world->limits.sequences_max + world->limits.kept_max; i++) {
        const avl_sequence_t *sequence = avl_engine_sequence(world->engine, i);
        for (int layer = 0; sequence != NULL && layer < sequence->layer_count; layer++) {
            owned += mark_pages(&sequence->layers[layer].text, held);
            owned += mark_pages(&sequence->layers[layer].visual, held);
        }
    }
    expect(owned == pages.taken, "sequences hold %lld pages; %lld are taken", (long long)owned,
           (long long)pages.taken);
}

static void check_bounds(world_t *world) {
    for (int32_t i = 0; i < world->client_count; i++) {
        const client_t *client = &world->clients[i];
        int64_t steps =
            (int64_t)(client->ended ? client->end_step : step_now) - client->submit_step;
        if (client->hostile)
            continue;
        expect(steps <= client->bound, "request %llu: not ended after %lld steps (bound %lld)",
               (unsigned long long)client->id, (long long)steps, (long long)client->bound);
        double share = (double)steps / (double)client->bound;
        world->worst_share = share > world->worst_share ? share : world->worst_share;
    }
}

static void step(world_t *world) {
    step_now++;
    world->admission_failed = false;
    const avl_plan_t *plan = avl_scheduler_plan(world->scheduler);
    if (avl_plan_is_empty(plan)) {
        expect(avl_scheduler_is_idle(world->scheduler), "an empty plan, and there is work");
        return;
    }
    avl_scheduler_counts_t counts = avl_scheduler_counts(world->scheduler);
    int64_t reserved = counts.pages_reserved + counts.pages_kept;
    expect(reserved <= world->page_count, "the plan reserves %lld pages of %lld",
           (long long)reserved, (long long)world->page_count);
    note_preemptions(world, plan);
    check_admissions(world, plan);
    avl_step_result_t result;
    expect(avl_engine_execute(world->engine, plan, &result) == AVL_OK, "execute failed");
    expect(engine_double_step_pages(world->engine) <= reserved,
           "the step took %lld pages; %lld were reserved",
           (long long)engine_double_step_pages(world->engine), (long long)reserved);
    avl_scheduler_complete(world->scheduler, &result);
    check_pages(world);
}

static void configure(world_t *world) {
    world->config.model.text.layer_count = between(1, 3);
    world->config.model.text.vocab_rows = VOCAB;
    world->config.model.vision.image_side = SIDE;
    world->config.model.vision.patches_per_side = 3;
    world->config.model.feature_drop_class = true;
    world->config.generation.eos_ids[0] = EOS;
    world->config.generation.eos_count = 1;
    world->limits.batch_rows = one_in(3) ? between(1, 8) : between(8, 128);
    world->limits.sequences_max = between(1, 10);
    world->limits.context_rows = between(16, 160);
    world->limits.kept_max = one_in(4) ? 0 : between(1, 8);
    int64_t sequence = (int64_t)world->config.model.text.layer_count *
                       (world->limits.context_rows / AVL_PAGE_ROWS + 2);
    world->page_count = sequence * between(1, one_in(2) ? 2 : world->limits.sequences_max);
    if (one_in(8)) /* too few for some */
        world->page_count = world->page_count / 2 + 1;
    world->growth_share = between(0, 4) * .25;
    world->queue_max = one_in(4) ? between(1, 6) : REQUESTS_MAX;
    world->pictures_max = between(1, 4);
    world->clients_wanted = between(1, REQUESTS_MAX);
    world->death_every = one_in(2) ? between(10, 200) : 1 << 30;
    world->cancel_every = one_in(2) ? between(2, 60) : 1 << 30;
    world->refuse_every = one_in(4) ? between(5, 50) : 1 << 30;
    world->deadline_every = one_in(2) ? between(1, 8) : 1 << 30;
}

static void live(world_t *world) {
    int32_t arrive_every = between(1, 6);
    int64_t steps_most = 0;
    for (;;) {
        bool more = world->client_count < world->clients_wanted;
        int32_t burst = more && one_in(arrive_every) ? between(1, 4) : 0;
        while (burst-- > 0 && world->client_count < world->clients_wanted)
            arrive(world);
        if (one_in(world->cancel_every))
            cancel_one(world);
        if (one_in(world->death_every) && world->deaths < 20)
            die(world);
        step(world);
        check_bounds(world);
        now_ns += between(0, 20) * AVL_NS_PER_MS;
        if (!more && avl_scheduler_is_idle(world->scheduler))
            break;
        expect(++steps_most < 1000000, "the run does not end");
    }
}

/* Over all runs. */
static struct totals {
    double worst_share;
    int64_t requests, preemptions, deaths, steps, shared;
} totals;

static void run(uint64_t seed, avl_device_t *device) {
    static world_t world;
    memset(&world, 0, sizeof world);
    seed_now = chance_state = seed;
    step_now = 0;
    now_ns = AVL_NS_PER_S;
    world.device = device;
    configure(&world);
    expect(avl_sampler_create(VOCAB, &world.sampler) == AVL_OK, "no sampler");
    begin_group(&world);
    live(&world);
    for (int32_t i = 0; i < world.client_count; i++) {
        expect(world.clients[i].ended, "request %d has no end", i + 1);
        free(world.clients[i].prompt);
    }
    avl_scheduler_counts_t counts = avl_scheduler_counts(world.scheduler);
    expect(avl_engine_pages(world.engine).taken <= counts.pages_kept,
           "%lld pages are taken; kept prompts have %lld",
           (long long)avl_engine_pages(world.engine).taken, (long long)counts.pages_kept);
    totals.shared += counts.prompt_cache.hits;
    expect(avl_scheduler_counts(world.scheduler).pages_reserved == 0, "pages stay reserved");
    end_group(&world);
    avl_sampler_destroy(world.sampler);
    if (world.worst_share > totals.worst_share)
        totals.worst_share = world.worst_share;
    totals.requests += world.client_count;
    totals.preemptions += world.preemptions;
    totals.deaths += world.deaths;
    totals.steps += (int64_t)step_now;
}

int main(int argc, char **argv) {
    uint64_t runs = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    trace = getenv("AVL_SIMULATOR_TRACE") != NULL;
    avl_device_t *device;
    if (avl_device_open_cpu(1, NULL, &device) != AVL_OK) {
        fprintf(stderr, "no device: %s\n", avl_status_detail());
        return 1;
    }
    for (uint64_t i = 0; i < runs; i++)
        run(first + i, device);
    avl_device_close(device);
    printf("%llu runs from seed %llu: %lld requests, %lld steps, %lld deaths, %lld requests gave "
           "way, %lld shared a prompt; the longest wait was %.0f %% of its bound\n",
           (unsigned long long)runs, (unsigned long long)first, (long long)totals.requests,
           (long long)totals.steps, (long long)totals.deaths, (long long)totals.preemptions,
           (long long)totals.shared, 100 * totals.worst_share);
    return 0;
}
