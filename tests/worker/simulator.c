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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/worker/engine_double.h"
#include "tests/worker/simulator_clients.h"
#include "worker/sampler.h"
#include "worker/scheduler.h"

static int64_t now_ns;
static bool trace;

/* The linker sends avl_clock_now_ns here (-Wl,--wrap). */
int64_t __wrap_avl_clock_now_ns(void);
int64_t __wrap_avl_clock_now_ns(void) {
    return now_ns;
}

/* ---- the world ---- */

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
    client_t *holders[REQUESTS_MAX]; /* of sequences */
    bool admission_failed;           /* in this step */
    bool submitting;
    int32_t deaths;
    int64_t preemptions;
    double worst_share; /* of the bound on steps */
} world_t;

static client_t *find(world_t *world, uint64_t id, int32_t choice) {
    simulator_expect(id >= 1 && id <= (uint64_t)world->client_count && choice >= 0 &&
                         choice < world->clients[id - 1].choice_count,
                     "an event for unknown request %llu, answer %d", (unsigned long long)id,
                     choice);
    return &world->clients[id - 1 + (uint64_t)choice];
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
    simulator_expect(client->token_count < tokens_most(world, client),
                     "request %llu: too many tokens", (unsigned long long)client->id);
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
    simulator_expect(
        avl_sampler_draw(world->sampler, logits, &client->sampling, &history, &expected) == AVL_OK,
        "no token can be drawn");
    simulator_expect(event->token_id == expected.token_id,
                     "request %llu: token %d is %d; expected %d", (unsigned long long)client->id,
                     client->token_count, event->token_id, expected.token_id);
    simulator_expect(event->logprob_count == expected.logprob_count &&
                         memcmp(event->logprobs, expected.logprobs,
                                (size_t)expected.logprob_count * sizeof *expected.logprobs) == 0,
                     "request %llu: other logprobs", (unsigned long long)client->id);
    client->tokens[client->token_count++] = event->token_id;
    client->told = engine_double_token(client->told, event->token_id);
    client->token_step = simulator_step;
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
        simulator_expect(count > 0 && stops(client, client->tokens[count - 1]),
                         "request %llu: stop without a token that ends it", id);
        break;
    case AVL_FINISH_LENGTH:
        simulator_expect(count == tokens_most(world, client), "request %llu: %d tokens of %d", id,
                         count, tokens_most(world, client));
        break;
    case AVL_FINISH_CANCELLED:
        simulator_expect(client->cancelled, "request %llu: nobody cancelled it", id);
        break;
    case AVL_FINISH_ERROR:
        if (event->status == AVL_ERR_DEADLINE)
            simulator_expect(now_ns >= client->deadline_ns,
                             "request %llu: its deadline has not come", id);
        else if (!world->submitting)
            simulator_expect(world->admission_failed && event->status == AVL_ERR_EXHAUSTED,
                             "request %llu ends with %s: %s", id, avl_status_name(event->status),
                             event->detail);
        else if (!client->hostile)
            simulator_expect(event->status == AVL_ERR_EXHAUSTED,
                             "request %llu is refused with %s: %s", id,
                             avl_status_name(event->status), event->detail);
        break;
    default:
        simulator_expect(false, "request %llu ends for no reason", id);
    }
    simulator_expect(client->hostile || event->completion_tokens >= count,
                     "request %llu: %d tokens reported, %d came", id, event->completion_tokens,
                     count);
    if (event->finish_reason == AVL_FINISH_STOP || event->finish_reason == AVL_FINISH_LENGTH)
        simulator_expect(event->completion_tokens == count && !client->hostile,
                         "request %llu: %d tokens reported, %d came", id, event->completion_tokens,
                         count);
}

static void take_event(void *context, const avl_event_t *event) {
    world_t *world = context;
    client_t *client = find(world, event->request_id, event->choice);
    if (trace)
        printf("step %llu: request %llu: event %d, token %d, reason %d %s\n",
               (unsigned long long)simulator_step, (unsigned long long)client->id, (int)event->kind,
               event->token_id, (int)event->finish_reason, event->detail);
    simulator_expect(!client->ended, "request %llu: an event after its end",
                     (unsigned long long)client->id);
    switch (event->kind) {
    case AVL_EVENT_PROGRESS:
        simulator_expect(event->done >= 0 && event->done <= event->total, "progress %d of %d",
                         event->done, event->total);
        return;
    case AVL_EVENT_TOKEN:
        take_token(world, client, event);
        return;
    case AVL_EVENT_FINISHED:
        check_end(world, client, event);
        client->ended = true;
        client->end_step = simulator_step;
        return;
    }
    simulator_expect(false, "an event of kind %d", (int)event->kind);
}

/* ---- arrivals ---- */

static bool admits(void *context) {
    world_t *world = context;
    world->admission_failed = simulator_one_in(world->refuse_every);
    return !world->admission_failed;
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
    avl_request_t *request = simulator_make_request(client);
    for (int32_t i = 0; i < client->choice_count; i++) {
        client[i].admitted = false;
        client[i].due_ns = avl_scheduler_due_ns(request);
    }
    avl_scheduler_submit(world->scheduler, request);
    world->submitting = false;
    simulator_expect(client->ended || !client->hostile, "request %llu should have been refused",
                     (unsigned long long)client->id);
}

/* Further answers to the same request. */
static void add_answers(world_t *world, client_t *client) {
    int32_t count = simulator_between(2, 5), most = 1 + REQUESTS_MAX - world->client_count;
    client->choice_count = count < most ? count : most;
    for (int32_t i = 1; i < client->choice_count; i++) {
        client_t *other = &world->clients[world->client_count++];
        *other = *client;
        other->id = (uint64_t)world->client_count;
        other->choice = i;
        other->sampling.seed = simulator_draw();
        other->prompt = malloc((size_t)client->rows * sizeof *other->prompt);
        simulator_expect(other->prompt != NULL, "no memory");
        memcpy(other->prompt, client->prompt, (size_t)client->rows * sizeof *other->prompt);
    }
}

static void arrive(world_t *world) {
    client_t *client = &world->clients[world->client_count++];
    client->id = (uint64_t)world->client_count;
    simulator_make_prompt(client, world->limits.context_rows);
    if (world->client_count > 1 && simulator_one_in(2))
        simulator_ask_again(client, &world->clients[simulator_between(0, world->client_count - 2)]);
    client->tenant = simulator_one_in(4);
    simulator_make_parameters(client);
    client->arrival_ns = now_ns;
    client->deadline_ns = AVL_DEADLINE_NONE;
    if (simulator_one_in(world->deadline_every))
        client->deadline_ns = now_ns + simulator_between(1, 1000) * AVL_NS_PER_MS;
    if (simulator_one_in(20))
        simulator_spoil(client, now_ns);
    client->told = simulator_told_by_prompt(client);
    client->submit_step = (int64_t)simulator_step;
    client->choice_count = 1;
    if (simulator_one_in(3) && !client->hostile)
        add_answers(world, client);
    for (int32_t i = 0; i < client->choice_count; i++)
        add_bounds(world, client + i);
    submit(world, client);
}

static void cancel_one(world_t *world) {
    if (world->client_count == 0)
        return;
    client_t *client = &world->clients[simulator_between(0, world->client_count - 1)];
    client_t *first = client - client->choice;
    int32_t choice = simulator_one_in(2) ? -1 : client->choice;
    for (int32_t i = 0; i < first->choice_count; i++)
        first[i].cancelled |= (choice < 0 || i == choice) && !first[i].ended;
    avl_scheduler_cancel(world->scheduler, first->id, choice);
    for (int32_t i = 0; i < first->choice_count; i++)
        simulator_expect(first[i].ended || (choice >= 0 && i != choice),
                         "request %llu lives on after its cancel", (unsigned long long)first[i].id);
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
        .fail = simulator_give_up,
        .admits = admits,
        .context = world,
    };
    world->engine = engine_double_create(&options);
    avl_event_sink_t sink = {.context = world, .take = take_event};
    simulator_expect(
        avl_scheduler_create(world->engine, world->queue_max, &sink, &world->scheduler) == AVL_OK,
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
        client->token_step != simulator_step || !simulator_one_in(2))
        return;
    if (client->ended && client->end_step != simulator_step)
        return;
    client->ended = false;
    if (simulator_one_in(2)) /* the end alone, or the token as well */
        return;
    client->token_count--;
    client->told = simulator_told_by_prompt(client);
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
        client->bound += client->ended ? 0 : work;
        bool lives = false;
        for (int32_t j = 0; j <= client->choice; j++)
            lives |= !client[-j].ended;
        if (lives && client->choice + 1 == client->choice_count) /* the last of a request */
            submit(world, client - client->choice);
    }
}

/* ---- steps ---- */

/* Whoever is released and has not ended has given way to another; it does its work again. */
static void note_preemptions(world_t *world, const avl_plan_t *plan) {
    for (int32_t i = 0; i < plan->release_count; i++) {
        const avl_sequence_t *sequence = avl_engine_sequence(world->engine, plan->releases[i]);
        if (sequence == NULL) /* its admission failed */
            continue;
        client_t *client = world->holders[plan->releases[i]];
        if (client->ended || !client->admitted)
            continue;
        simulator_expect(world->growth_share < 1,
                         "request %llu gives way, and the worst case is reserved",
                         (unsigned long long)client->id);
        for (int32_t j = 0; j < world->client_count; j++) {
            client_t *other = &world->clients[j];
            other->bound += work_of(world, client);
            simulator_expect(other->ended || !other->admitted || comes_before(other, client) ||
                                 other == client,
                             "request %llu gives way to %llu", (unsigned long long)client->id,
                             (unsigned long long)other->id);
        }
        client->admitted = false;
        world->preemptions++;
    }
}

/* Whether another answer to the same request is in, which this one waits for. */
static bool is_read_for(const client_t *client) {
    const client_t *first = client - client->choice;
    for (int32_t i = 0; i < first->choice_count; i++)
        if (first[i].admitted && (!first[i].ended || first[i].end_step + 1 >= simulator_step))
            return true;
    return false;
}

static void check_admissions(world_t *world, const avl_plan_t *plan) {
    for (int32_t i = 0; i < plan->admission_count; i++) {
        /* Of several answers, the first that is not there. */
        client_t *admitted = find(world, plan->admissions[i].request_id, 0);
        while ((admitted->ended || admitted->admitted) &&
               admitted->choice + 1 < admitted->choice_count)
            admitted++;
        world->holders[plan->admissions[i].sequence] = admitted;
        simulator_expect(!admitted->ended && !admitted->admitted, "request %llu is admitted again",
                         (unsigned long long)admitted->id);
        if (is_read_for(admitted)) { /* it has taken its place before */
            admitted->admitted = true;
            continue;
        }
        admitted->admitted = true;
        for (int32_t j = 0; j < world->client_count; j++) {
            const client_t *other = &world->clients[j];
            if (other->ended || other->admitted || is_read_for(other))
                continue;
            simulator_expect(comes_before(admitted, other), "request %llu is admitted before %llu",
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
    simulator_expect(counts.pages_reserved >= 0 && counts.pages_reserved <= pages.total,
                     "%lld pages of %lld are reserved", (long long)counts.pages_reserved,
                     (long long)pages.total);
    simulator_expect(counts.pages_reserved + counts.pages_kept <= pages.total,
                     "%lld pages are reserved, and kept prompts have %lld of %lld",
                     (long long)counts.pages_reserved, (long long)counts.pages_kept,
                     (long long)pages.total);
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
    simulator_expect(owned == pages.taken, "sequences hold %lld pages; %lld are taken",
                     (long long)owned, (long long)pages.taken);
}

static void check_bounds(world_t *world) {
    for (int32_t i = 0; i < world->client_count; i++) {
        const client_t *client = &world->clients[i];
        int64_t steps =
            (int64_t)(client->ended ? client->end_step : simulator_step) - client->submit_step;
        if (client->hostile)
            continue;
        simulator_expect(
            steps <= client->bound, "request %llu: not ended after %lld steps (bound %lld)",
            (unsigned long long)client->id, (long long)steps, (long long)client->bound);
        double share = (double)steps / (double)client->bound;
        world->worst_share = share > world->worst_share ? share : world->worst_share;
    }
}

static void step(world_t *world) {
    simulator_step++;
    world->admission_failed = false;
    const avl_plan_t *plan = avl_scheduler_plan(world->scheduler);
    if (avl_plan_is_empty(plan)) {
        simulator_expect(avl_scheduler_is_idle(world->scheduler),
                         "an empty plan, and there is work");
        return;
    }
    avl_scheduler_counts_t counts = avl_scheduler_counts(world->scheduler);
    int64_t reserved = counts.pages_reserved + counts.pages_kept;
    simulator_expect(reserved <= world->page_count, "the plan reserves %lld pages of %lld",
                     (long long)reserved, (long long)world->page_count);
    note_preemptions(world, plan);
    check_admissions(world, plan);
    avl_step_result_t result;
    simulator_expect(avl_engine_execute(world->engine, plan, &result) == AVL_OK, "execute failed");
    simulator_expect(engine_double_step_pages(world->engine) <= reserved,
                     "the step took %lld pages; %lld were reserved",
                     (long long)engine_double_step_pages(world->engine), (long long)reserved);
    avl_scheduler_complete(world->scheduler, &result);
    check_pages(world);
}

static void configure(world_t *world) {
    world->config.model.text.layer_count = simulator_between(1, 3);
    world->config.model.text.vocab_rows = VOCAB;
    world->config.model.vision.image_side = SIDE;
    world->config.model.vision.patches_per_side = 3;
    world->config.model.feature_drop_class = true;
    world->config.generation.eos_ids[0] = EOS;
    world->config.generation.eos_count = 1;
    world->limits.batch_rows =
        simulator_one_in(3) ? simulator_between(1, 8) : simulator_between(8, 128);
    world->limits.sequences_max = simulator_between(1, 10);
    world->limits.context_rows = simulator_between(16, 160);
    world->limits.kept_max = simulator_one_in(4) ? 0 : simulator_between(1, 8);
    int64_t sequence = (int64_t)world->config.model.text.layer_count *
                       (world->limits.context_rows / AVL_PAGE_ROWS + 2);
    world->page_count =
        sequence * simulator_between(1, simulator_one_in(2) ? 2 : world->limits.sequences_max);
    if (simulator_one_in(8)) /* too few for some */
        world->page_count = world->page_count / 2 + 1;
    world->growth_share = simulator_between(0, 4) * .25;
    world->queue_max = simulator_one_in(4) ? simulator_between(1, 6) : REQUESTS_MAX;
    world->pictures_max = simulator_between(1, 4);
    world->clients_wanted = simulator_between(1, REQUESTS_MAX);
    world->death_every = simulator_one_in(2) ? simulator_between(10, 200) : 1 << 30;
    world->cancel_every = simulator_one_in(2) ? simulator_between(2, 60) : 1 << 30;
    world->refuse_every = simulator_one_in(4) ? simulator_between(5, 50) : 1 << 30;
    world->deadline_every = simulator_one_in(2) ? simulator_between(1, 8) : 1 << 30;
}

static void live(world_t *world) {
    int32_t arrive_every = simulator_between(1, 6);
    int64_t steps_most = 0;
    for (;;) {
        bool more = world->client_count < world->clients_wanted;
        int32_t burst = more && simulator_one_in(arrive_every) ? simulator_between(1, 4) : 0;
        while (burst-- > 0 && world->client_count < world->clients_wanted)
            arrive(world);
        if (simulator_one_in(world->cancel_every))
            cancel_one(world);
        if (simulator_one_in(world->death_every) && world->deaths < 20)
            die(world);
        step(world);
        check_bounds(world);
        now_ns += simulator_between(0, 20) * AVL_NS_PER_MS;
        if (!more && avl_scheduler_is_idle(world->scheduler))
            break;
        simulator_expect(++steps_most < 1000000, "the run does not end");
    }
}

/* Over all runs. */
static struct totals {
    double worst_share;
    int64_t requests, answers, preemptions, deaths, steps, shared;
} totals;

static void run(uint64_t seed, avl_device_t *device) {
    static world_t world;
    memset(&world, 0, sizeof world);
    simulator_seed = simulator_chance = seed;
    simulator_step = 0;
    now_ns = AVL_NS_PER_S;
    world.device = device;
    configure(&world);
    simulator_expect(avl_sampler_create(VOCAB, &world.sampler) == AVL_OK, "no sampler");
    begin_group(&world);
    live(&world);
    for (int32_t i = 0; i < world.client_count; i++) {
        simulator_expect(world.clients[i].ended, "request %d has no end", i + 1);
        free(world.clients[i].prompt);
    }
    avl_scheduler_counts_t counts = avl_scheduler_counts(world.scheduler);
    simulator_expect(avl_engine_pages(world.engine).taken <= counts.pages_kept,
                     "%lld pages are taken; kept prompts have %lld",
                     (long long)avl_engine_pages(world.engine).taken, (long long)counts.pages_kept);
    totals.shared += counts.prompt_cache.hits;
    simulator_expect(avl_scheduler_counts(world.scheduler).pages_reserved == 0,
                     "pages stay reserved");
    end_group(&world);
    avl_sampler_destroy(world.sampler);
    if (world.worst_share > totals.worst_share)
        totals.worst_share = world.worst_share;
    totals.answers += world.client_count;
    for (int32_t i = 0; i < world.client_count; i++)
        totals.requests += world.clients[i].choice == 0;
    totals.preemptions += world.preemptions;
    totals.deaths += world.deaths;
    totals.steps += (int64_t)simulator_step;
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
    printf("%llu runs from seed %llu: %lld requests, %lld answers, %lld steps, %lld deaths, %lld "
           "gave way, %lld shared a prompt; the longest wait was %.0f %% of its bound\n",
           (unsigned long long)runs, (unsigned long long)first, (long long)totals.requests,
           (long long)totals.answers, (long long)totals.steps, (long long)totals.deaths,
           (long long)totals.preemptions, (long long)totals.shared, 100 * totals.worst_share);
    return 0;
}
