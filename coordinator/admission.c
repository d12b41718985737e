#include "coordinator/admission.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

/* Earlier deadlines go first, but nobody waits behind later comers of the same tenant for longer
 * than this. */
#define DUE_NS (60 * AVL_NS_PER_S)
/* Share by which a forecast may fall short; kept so that PROMISES_KEPT of the promises are. */
#define MARGIN_FIRST 0.25
/* Besides, of what is to be waited: a long queue wins nothing for those in it, and what slows the
 * service down (a flood of requests takes processors, too) makes all of it late. */
#define MARGIN_WAIT 1.0
#define MARGIN_LEAST 0.05
#define MARGIN_MOST 2.0
#define MARGIN_STEP 0.05
#define PROMISES_KEPT 0.995
/* Promises break together, when the machine has less to give than before: that counts once. */
#define MARGIN_PAUSE_NS (AVL_NS_PER_S / 10)
/* What a forecast does not know: the way to the client and back. */
#define SLACK_NS (20 * AVL_NS_PER_MS)
/* For so long at most one that can wait is held back for the sake of others. */
#define HOLD_NS (30 * AVL_NS_PER_S)
#define RETRY_NS (AVL_NS_PER_S) /* when nothing is known */
#define RETRY_MIN_NS (AVL_NS_PER_S / 20)
#define RETRY_MAX_NS (60 * AVL_NS_PER_S)

typedef struct tickets {
    avl_ticket_t *first, *last;
} tickets_t;

struct avl_admission {
    avl_admission_config_t config;
    avl_groups_t *groups;
    pthread_mutex_t lock; /* all below */
    avl_queue_t *queue;
    avl_estimate_t estimate;
    avl_pace_t pace;
    double margin;
    int64_t margin_grown_ns;
    size_t in; /* tickets */
    size_t out;
    size_t urgent, urgent_out; /* promised, and unable to wait */
    tickets_t preparing;
    tickets_t going; /* those that are out, in the order of going out */
    /* The last forecast: */
    avl_forecast_t forecast;
    avl_forecast_item_t *items;
    avl_ticket_t **tickets; /* whose they are */
    size_t item_capacity, ticket_capacity;
    int64_t horizon_ns;          /* when all of it will be done */
    const avl_ticket_t *suspect; /* the one that is queued or out */
    avl_ticket_t *first_held;
};

avl_status_t avl_admission_create(const avl_admission_config_t *config,
                                  avl_admission_t **admission_p) {
    avl_admission_t *admission = NULL;
    AVL_TRY(avl_alloc(1, sizeof *admission, "the admission", &admission));
    avl_status_t status = avl_queue_create(config->requests_max, config->weights,
                                           config->weight_count, &admission->queue);
    if (status != AVL_OK) {
        free(admission);
        return status;
    }
    admission->config = *config;
    admission->margin = MARGIN_FIRST;
    pthread_mutex_init(&admission->lock, NULL);
    *admission_p = admission;
    return AVL_OK;
}

void avl_admission_set_groups(avl_admission_t *admission, avl_groups_t *groups) {
    admission->groups = groups;
}

void avl_admission_destroy(avl_admission_t *admission) {
    if (admission == NULL)
        return;
    avl_queue_destroy(admission->queue);
    avl_forecast_destroy(&admission->forecast);
    free(admission->items);
    free(admission->tickets);
    pthread_mutex_destroy(&admission->lock);
    free(admission);
}

/* ---- forecasts; the lock is held ---- */

static double seconds(double ns) {
    return ns / 1e9;
}

static bool foretells(const avl_admission_t *admission) {
    return avl_pace_is_known(&admission->pace) && avl_estimate_is_known(&admission->estimate);
}

static int32_t answers_of(const avl_demand_t *demand) {
    return demand->answers > 1 ? demand->answers : 1;
}

static avl_forecast_item_t whole_item(const avl_admission_t *admission,
                                      const avl_demand_t *demand) {
    return (avl_forecast_item_t){
        .tiles = demand->tiles,
        .rows = avl_estimate_rows_most(&admission->estimate, demand),
        .tokens = avl_estimate_tokens_most(&admission->estimate, demand),
        .answers = answers_of(demand),
    };
}

/* Of one that is at work: what is left. Who is over the estimate has a quarter of it left: it was
 * too low. */
static avl_forecast_item_t rest_item(const avl_admission_t *admission, const avl_ticket_t *ticket) {
    avl_forecast_item_t item = whole_item(admission, &ticket->demand);
    int64_t done = ticket->tokens / item.answers, quarter = 1 + item.tokens / 4;
    int64_t most = ticket->demand.tokens_max - done;
    item.tiles = ticket->tiles_left;
    item.rows = ticket->rows_left;
    item.tokens = item.tokens - done > quarter ? item.tokens - done : quarter;
    item.tokens = item.tokens < most ? item.tokens : most > 1 ? most : 1;
    return item;
}

static void add_item(avl_admission_t *admission, size_t *count_p, avl_ticket_t *ticket,
                     avl_forecast_item_t item) {
    admission->tickets[*count_p] = ticket;
    admission->items[(*count_p)++] = item;
}

/* Those in preparation whose priority is at least `least` and below `below`. */
static void add_preparing(avl_admission_t *admission, int64_t least, int64_t below,
                          size_t *count_p) {
    for (avl_ticket_t *one = admission->preparing.first; one != NULL; one = one->next)
        if (one->entry.priority >= least && one->entry.priority < below)
            add_item(admission, count_p, one, whole_item(admission, &one->expected));
}

/* Who has a part in a forecast, besides all that are at work or wait. */
typedef struct cast {
    avl_ticket_t *newcomer;     /* has its place among those that wait; or NULL */
    const avl_demand_t *demand; /* the newcomer's, whose own need not be known yet */
    bool door;                  /* those in preparation, too, before the others of their priority */
    const avl_ticket_t *without; /* waits, and is left out; or NULL */
    const avl_ticket_t *only; /* of those that can wait this one alone has a part; or NULL: all */
} cast_t;

static bool plays(const cast_t *cast, const avl_ticket_t *ticket) {
    bool idle = cast->only != NULL && ticket != cast->only && ticket->patient;
    return ticket != cast->without && (!idle || ticket->entry.resumed);
}

/* All that is to be done, in order. */
static avl_status_t list_items(avl_admission_t *admission, const cast_t *cast, size_t *count_p) {
    avl_ticket_t *newcomer = cast->newcomer;
    avl_queue_entry_t *const *order = NULL;
    size_t waiting = 0, count = 0;
    AVL_TRY(avl_queue_order(admission->queue, newcomer != NULL ? &newcomer->entry : NULL, &order,
                            &waiting));
    size_t most = admission->in + 1; /* `newcomer` may not be in yet */
    AVL_TRY(avl_grow(most, sizeof *admission->items, "a forecast", &admission->items,
                     &admission->item_capacity));
    AVL_TRY(avl_grow(most, sizeof *admission->tickets, "a forecast", &admission->tickets,
                     &admission->ticket_capacity));
    for (int began = 1; began >= 0; began--)
        for (avl_ticket_t *out = admission->going.first; out != NULL; out = out->next)
            if ((out->tokens > 0) == began)
                add_item(admission, &count, out, rest_item(admission, out));
    for (avl_ticket_t *held = admission->first_held; held != NULL; held = held->next_held)
        add_item(admission, &count, held, whole_item(admission, &held->demand));
    int64_t below = INT64_MAX;
    for (size_t i = 0; i < waiting; i++) {
        avl_ticket_t *ticket = order[i]->owner;
        if (!plays(cast, ticket))
            continue;
        if (cast->door && !order[i]->resumed && order[i]->priority < below) {
            add_preparing(admission, order[i]->priority, below, &count);
            below = order[i]->priority;
        }
        const avl_demand_t *its = ticket == newcomer ? cast->demand : &ticket->demand;
        add_item(admission, &count, ticket, whole_item(admission, its));
    }
    if (cast->door)
        add_preparing(admission, INT64_MIN, below, &count);
    *count_p = count;
    return AVL_OK;
}

static avl_status_t play(avl_admission_t *admission, const avl_groups_view_t *view,
                         const cast_t *cast, int64_t now_ns, size_t *count_p) {
    size_t count = 0;
    double last_ns = 0;
    AVL_TRY(list_items(admission, cast, &count));
    AVL_TRY(avl_forecast_play(&admission->forecast, &admission->pace, view->ready, view->parallel,
                              admission->items, count));
    for (size_t i = 0; i < count; i++)
        last_ns = admission->items[i].end_ns > last_ns ? admission->items[i].end_ns : last_ns;
    admission->horizon_ns = now_ns + (int64_t)(last_ns < 1e18 ? last_ns : 1e18);
    *count_p = count;
    return AVL_OK;
}

static double left_ns(const avl_ticket_t *ticket, int64_t now_ns) {
    return (double)(ticket->deadline_ns - now_ns);
}

/* Whether an end that is forecast is too late, or too close to it to be promised. */
static bool is_late(const avl_admission_t *admission, const avl_ticket_t *ticket, double begin_ns,
                    double end_ns, int64_t now_ns) {
    return ticket->deadline_ns != AVL_DEADLINE_NONE &&
           end_ns * (1 + admission->margin) + begin_ns * MARGIN_WAIT + SLACK_NS >
               left_ns(ticket, now_ns);
}

/* The newcomer's own deadline, and the longest wait. */
static avl_status_t check_own(const avl_admission_t *admission, const avl_ticket_t *ticket,
                              const avl_demand_t *demand, const avl_forecast_item_t *item,
                              int64_t now_ns) {
    double left = left_ns(ticket, now_ns);
    double alone_ns = avl_pace_prompt_ns(&admission->pace, item->tiles, item->rows) +
                      (double)avl_estimate_tokens(&admission->estimate, demand) *
                          avl_pace_step_ns(&admission->pace, 1);
    if (ticket->deadline_ns != AVL_DEADLINE_NONE && alone_ns > left)
        return avl_fail(AVL_ERR_DEADLINE,
                        "the answer takes about %.3f s, and the deadline is in %.3f s",
                        seconds(alone_ns), seconds(left));
    if (is_late(admission, ticket, item->begin_ns, item->end_ns, now_ns))
        return avl_fail(AVL_ERR_EXHAUSTED,
                        "with the requests before this one the answer takes about %.3f s, and the "
                        "deadline is in %.3f s: try later",
                        seconds(item->end_ns), seconds(left));
    if (admission->config.wait_max_ns != AVL_DEADLINE_NONE &&
        item->begin_ns > (double)admission->config.wait_max_ns)
        return avl_fail(AVL_ERR_EXHAUSTED,
                        "requests before this one take about %.3f s, and none waits for more than "
                        "%.3f s: try later",
                        seconds(item->begin_ns), seconds((double)admission->config.wait_max_ns));
    return AVL_OK;
}

static bool is_in_danger(const avl_admission_t *admission, const avl_ticket_t *ticket,
                         int64_t now_ns) {
    return ticket->promised && is_late(admission, ticket, ticket->begin_ns, ticket->end_ns, now_ns);
}

/* The others' promises, after a forecast of `count` items with the newcomer; `without`: the same
 * without it. Who was promised nothing, or would be late without the newcomer, is no reason against
 * it. */
static avl_status_t check_others(avl_admission_t *admission, const avl_groups_view_t *view,
                                 const avl_ticket_t *newcomer, const cast_t *without, size_t count,
                                 int64_t now_ns) {
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        avl_ticket_t *ticket = admission->tickets[i];
        if (ticket == newcomer)
            continue;
        ticket->begin_ns = admission->items[i].begin_ns;
        ticket->end_ns = admission->items[i].end_ns;
        any = any || is_in_danger(admission, ticket, now_ns);
    }
    if (!any)
        return AVL_OK;
    AVL_TRY(play(admission, view, without, now_ns, &count));
    for (size_t i = 0; i < count; i++) {
        const avl_ticket_t *ticket = admission->tickets[i];
        double without_ns = admission->items[i].end_ns;
        if (is_in_danger(admission, ticket, now_ns) && without_ns <= left_ns(ticket, now_ns) &&
            ticket->end_ns > without_ns * 1.001)
            return avl_fail(AVL_ERR_EXHAUSTED,
                            "requests that were taken before would miss their deadlines: try "
                            "later");
    }
    return AVL_OK;
}

/* Whether its own deadline leaves it the time to be held back. */
static bool can_wait(const avl_admission_t *admission, const avl_ticket_t *ticket,
                     const avl_forecast_item_t *item, int64_t now_ns) {
    return !is_late(admission, ticket, item->begin_ns + HOLD_NS, item->end_ns + HOLD_NS, now_ns);
}

/* Whether the first in the queue should wait: its going out would make others late. Only while all
 * that cannot wait are at work; who waits behind it must not wait for it. */
static bool holds_back(avl_admission_t *admission, const avl_ticket_t *ticket, int64_t now_ns) {
    avl_groups_view_t view;
    size_t count = 0;
    if (!ticket->patient || ticket->entry.resumed || now_ns - ticket->queued_ns >= HOLD_NS ||
        admission->urgent_out == 0 || admission->urgent > admission->urgent_out ||
        !foretells(admission))
        return false;
    avl_groups_view(admission->groups, &view);
    const cast_t with = {.only = ticket}, without = {.only = ticket, .without = ticket};
    return view.ready > 0 && play(admission, &view, &with, now_ns, &count) == AVL_OK &&
           check_others(admission, &view, ticket, &without, count, now_ns) == AVL_ERR_EXHAUSTED;
}

/* Whether the newcomer may be let in. */
static avl_status_t check_promises(avl_admission_t *admission, avl_ticket_t *newcomer,
                                   const avl_demand_t *demand, bool door, int64_t now_ns) {
    avl_groups_view_t view;
    size_t count = 0, place = 0;
    avl_groups_view(admission->groups, &view);
    if (view.ready == 0 || !foretells(admission))
        return AVL_OK;
    const cast_t with = {.newcomer = newcomer, .demand = demand, .door = door},
                 without = {.door = door};
    AVL_TRY(play(admission, &view, &with, now_ns, &count));
    while (admission->tickets[place] != newcomer)
        place++;
    AVL_TRY(check_own(admission, newcomer, demand, &admission->items[place], now_ns));
    newcomer->patient = can_wait(admission, newcomer, &admission->items[place], now_ns);
    if (!newcomer->patient)
        AVL_TRY(check_others(admission, &view, newcomer, &without, count, now_ns));
    newcomer->promised = newcomer->deadline_ns != AVL_DEADLINE_NONE;
    return AVL_OK;
}

int64_t avl_admission_retry_ns(avl_admission_t *admission, int64_t now_ns) {
    pthread_mutex_lock(&admission->lock);
    int64_t wait_ns = admission->horizon_ns - now_ns;
    bool known = foretells(admission);
    pthread_mutex_unlock(&admission->lock);
    if (!known)
        return RETRY_NS;
    /* Half of what is to be done: who comes back when all of it is has let others pass. */
    wait_ns /= 2;
    return wait_ns < RETRY_MIN_NS ? RETRY_MIN_NS : wait_ns > RETRY_MAX_NS ? RETRY_MAX_NS : wait_ns;
}

void avl_admission_work(avl_admission_t *admission, const avl_work_t *work) {
    pthread_mutex_lock(&admission->lock);
    avl_pace_add(&admission->pace, work);
    pthread_mutex_unlock(&admission->lock);
}

void avl_admission_read(avl_admission_t *admission, avl_ticket_t *ticket, int64_t rows_left) {
    pthread_mutex_lock(&admission->lock);
    ticket->tiles_left = 0;
    if (rows_left < ticket->rows_left)
        ticket->rows_left = rows_left > 0 ? rows_left : 0;
    pthread_mutex_unlock(&admission->lock);
}

void avl_admission_token(avl_admission_t *admission, avl_ticket_t *ticket) {
    pthread_mutex_lock(&admission->lock);
    ticket->tiles_left = ticket->rows_left = 0;
    ticket->tokens++;
    pthread_mutex_unlock(&admission->lock);
}

void avl_admission_choice_over(avl_admission_t *admission, avl_ticket_t *ticket, int64_t tokens) {
    static const avl_groups_need_t one = {.answers = 1};
    pthread_mutex_lock(&admission->lock);
    if (ticket->in && ticket->need.answers > 1) {
        if (ticket->out)
            avl_groups_release(admission->groups, ticket->generation, &one);
        ticket->need.answers--;
        ticket->demand.answers = ticket->need.answers;
        ticket->tokens -= tokens < ticket->tokens ? tokens : ticket->tokens;
    }
    pthread_mutex_unlock(&admission->lock);
}

void avl_admission_answer(avl_admission_t *admission, avl_ticket_t *ticket, int64_t rows_reused,
                          int32_t tokens) {
    pthread_mutex_lock(&admission->lock);
    ticket->answered = true;
    avl_estimate_answer(&admission->estimate, &ticket->demand, rows_reused, tokens);
    pthread_mutex_unlock(&admission->lock);
}

/* ---- the ways of a ticket ---- */

static void append(tickets_t *list, avl_ticket_t *ticket) {
    ticket->next = NULL;
    ticket->previous = list->last;
    *(list->last != NULL ? &list->last->next : &list->first) = ticket;
    list->last = ticket;
}

static void take_out(tickets_t *list, avl_ticket_t *ticket) {
    *(ticket->previous != NULL ? &ticket->previous->next : &list->first) = ticket->next;
    *(ticket->next != NULL ? &ticket->next->previous : &list->last) = ticket->previous;
    ticket->next = ticket->previous = NULL;
}

static void end_preparation_locked(avl_admission_t *admission, avl_ticket_t *ticket) {
    if (ticket->preparing)
        take_out(&admission->preparing, ticket);
    ticket->preparing = false;
}

/* As far as the call says it, and otherwise like the others. A long answer is not sure to be as
 * long as that: the context may end it. */
static avl_demand_t demand_at_door(const avl_admission_t *admission, const avl_asked_t *asked) {
    avl_groups_view_t view;
    avl_groups_view(admission->groups, &view);
    avl_demand_t demand = avl_estimate_demand(&admission->estimate);
    if (asked->tokens_max > 0)
        demand.tokens_max = asked->tokens_max;
    demand.all_tokens = asked->all_tokens && asked->tokens_max <= view.best.context_rows_max / 2;
    demand.answers = asked->answers;
    return demand;
}

avl_status_t avl_admission_enter(avl_admission_t *admission, uint64_t id, const char *tenant,
                                 int64_t arrival_ns, int64_t deadline_ns, const avl_asked_t *asked,
                                 avl_ticket_t *ticket) {
    memset(ticket, 0, sizeof *ticket);
    ticket->id = id;
    ticket->arrival_ns = arrival_ns;
    ticket->deadline_ns = deadline_ns;
    pthread_mutex_lock(&admission->lock);
    avl_queue_entry_t *entry = &ticket->entry;
    avl_status_t status = avl_queue_enter(admission->queue, tenant, &entry->tenant);
    if (status == AVL_OK) {
        entry->owner = ticket;
        entry->arrival = id;
        entry->due_ns = deadline_ns < arrival_ns + DUE_NS ? deadline_ns : arrival_ns + DUE_NS;
        entry->priority = asked->priority;
        ticket->expected = demand_at_door(admission, asked);
        avl_demand_t least = ticket->expected;
        least.rows = least.tiles = 0; /* it need not be like the others */
        if (admission->in > 0)
            status = check_promises(admission, ticket, &least, true, arrival_ns);
        ticket->promised = false;
        if (status != AVL_OK)
            avl_queue_leave(admission->queue, entry->tenant);
    }
    if (status == AVL_OK) {
        admission->in++;
        ticket->in = ticket->preparing = true;
        append(&admission->preparing, ticket);
    }
    pthread_mutex_unlock(&admission->lock);
    return status;
}

avl_status_t avl_admission_queue(avl_admission_t *admission, avl_ticket_t *ticket, int32_t priority,
                                 int64_t now_ns) {
    pthread_mutex_lock(&admission->lock);
    const avl_demand_t *demand = &ticket->demand;
    avl_queue_entry_t *entry = &ticket->entry;
    end_preparation_locked(admission, ticket);
    entry->priority = priority;
    entry->cost = (int64_t)demand->rows +
                  (int64_t)answers_of(demand) * avl_estimate_tokens(&admission->estimate, demand);
    avl_status_t status = AVL_OK;
    if (admission->out > 0 || avl_queue_count(admission->queue) > 0)
        status = check_promises(admission, ticket, demand, false, now_ns);
    if (status == AVL_OK)
        status = avl_queue_add(admission->queue, entry);
    if (status == AVL_OK && ticket->promised && !ticket->patient) {
        ticket->urgent = true;
        admission->urgent++;
    }
    ticket->queued_ns = now_ns;
    pthread_mutex_unlock(&admission->lock);
    return status;
}

/* It was let in, but has waited for longer than was foretold: its answer would come too late even
 * if nothing else were at work, and make others late. */
static bool hopeless_locked(const avl_admission_t *admission, const avl_ticket_t *ticket,
                            int64_t now_ns) {
    const avl_demand_t *demand = &ticket->demand;
    if (ticket->deadline_ns == AVL_DEADLINE_NONE || ticket->entry.resumed || admission->out == 0 ||
        !foretells(admission))
        return false;
    double alone_ns = (double)avl_estimate_tokens(&admission->estimate, demand) *
                      avl_pace_step_ns(&admission->pace, 1);
    return alone_ns > left_ns(ticket, now_ns);
}

static void go_out_locked(avl_admission_t *admission, avl_ticket_t *ticket) {
    ticket->out = ticket->charged = true;
    ticket->tiles_left = ticket->demand.tiles;
    ticket->rows_left = avl_estimate_rows_most(&admission->estimate, &ticket->demand);
    ticket->tokens = 0;
    append(&admission->going, ticket);
    admission->out++;
    admission->urgent_out += ticket->urgent;
}

avl_status_t avl_admission_next(avl_admission_t *admission, int64_t now_ns, uint64_t *id_p,
                                uint64_t *generation_p) {
    pthread_mutex_lock(&admission->lock);
    avl_queue_entry_t *entry = avl_queue_first(admission->queue);
    avl_ticket_t *ticket = entry != NULL ? entry->owner : NULL;
    avl_status_t status = AVL_ERR_NOT_FOUND;
    if (ticket != NULL && hopeless_locked(admission, ticket, now_ns)) {
        avl_queue_remove(admission->queue, entry);
        ticket->broken = ticket->promised;
        status = AVL_ERR_DEADLINE;
    } else if (ticket != NULL && holds_back(admission, ticket, now_ns)) {
        status = AVL_ERR_EXHAUSTED;
    } else if (ticket != NULL) {
        status = avl_groups_reserve(admission->groups, &ticket->need, &ticket->generation);
    }
    if (status == AVL_OK) {
        avl_queue_take(admission->queue, entry);
        go_out_locked(admission, ticket);
        *generation_p = ticket->generation;
    } else if (status == AVL_ERR_TOO_LARGE) {
        avl_queue_remove(admission->queue, entry);
    }
    if (ticket != NULL)
        *id_p = ticket->id;
    pthread_mutex_unlock(&admission->lock);
    return status;
}

static void come_back_locked(avl_admission_t *admission, avl_ticket_t *ticket) {
    if (!ticket->out)
        return;
    ticket->out = false;
    admission->out--;
    admission->urgent_out -= ticket->urgent;
    take_out(&admission->going, ticket);
    avl_groups_release(admission->groups, ticket->generation, &ticket->need);
}

/* The next suspect may go, when there is none. */
static avl_status_t free_suspect_locked(avl_admission_t *admission) {
    avl_ticket_t *ticket = admission->first_held;
    if (admission->suspect != NULL || ticket == NULL)
        return AVL_OK;
    AVL_TRY(avl_queue_add(admission->queue, &ticket->entry));
    admission->first_held = ticket->next_held;
    ticket->held = false;
    admission->suspect = ticket;
    return AVL_OK;
}

static void hold_locked(avl_admission_t *admission, avl_ticket_t *ticket) {
    avl_ticket_t **link_p = &admission->first_held;
    while (*link_p != NULL && (*link_p)->id < ticket->id)
        link_p = &(*link_p)->next_held;
    ticket->next_held = *link_p;
    *link_p = ticket;
    ticket->held = true;
}

avl_status_t avl_admission_return(avl_admission_t *admission, avl_ticket_t *ticket, bool suspect) {
    pthread_mutex_lock(&admission->lock);
    come_back_locked(admission, ticket);
    ticket->entry.resumed = true;
    ticket->suspect = ticket->suspect || suspect;
    avl_status_t status = AVL_OK;
    if (admission->suspect == ticket)
        admission->suspect = NULL;
    if (!ticket->suspect)
        status = avl_queue_add(admission->queue, &ticket->entry);
    else
        hold_locked(admission, ticket);
    if (status == AVL_OK)
        status = free_suspect_locked(admission);
    pthread_mutex_unlock(&admission->lock);
    return status;
}

/* No memory to let a suspect go: the next end of a request, or the next suspect's, tries again. */
static void no_suspect_locked(avl_admission_t *admission, avl_ticket_t *ticket) {
    ticket->suspect = false;
    if (admission->suspect == ticket)
        admission->suspect = NULL;
    avl_status_t ignored = free_suspect_locked(admission);
    (void)ignored;
}

void avl_admission_clear(avl_admission_t *admission, avl_ticket_t *ticket) {
    pthread_mutex_lock(&admission->lock);
    if (ticket->suspect)
        no_suspect_locked(admission, ticket);
    pthread_mutex_unlock(&admission->lock);
}

/* A margin that is too small breaks promises, and one that is too large refuses what could be done.
 * One broken promise weighs as much as those that may be kept for it. */
static void account_locked(avl_admission_t *admission, const avl_ticket_t *ticket) {
    if (!ticket->promised || ticket->entry.resumed)
        return;
    int64_t now_ns = avl_clock_now_ns();
    bool late = ticket->broken || (!ticket->answered && now_ns >= ticket->deadline_ns - SLACK_NS);
    if (late && now_ns - admission->margin_grown_ns >= MARGIN_PAUSE_NS) {
        admission->margin += MARGIN_STEP;
        admission->margin_grown_ns = now_ns;
    } else if (ticket->answered) {
        admission->margin -= MARGIN_STEP * (1 - PROMISES_KEPT);
    }
    if (admission->margin < MARGIN_LEAST)
        admission->margin = MARGIN_LEAST;
    if (admission->margin > MARGIN_MOST)
        admission->margin = MARGIN_MOST;
}

double avl_admission_margin(avl_admission_t *admission) {
    pthread_mutex_lock(&admission->lock);
    double margin = admission->margin;
    pthread_mutex_unlock(&admission->lock);
    return margin;
}

void avl_admission_leave(avl_admission_t *admission, avl_ticket_t *ticket, int64_t tokens) {
    pthread_mutex_lock(&admission->lock);
    if (ticket->in) {
        account_locked(admission, ticket);
        ticket->in = false;
        admission->in--;
        end_preparation_locked(admission, ticket);
        come_back_locked(admission, ticket);
        avl_queue_remove(admission->queue, &ticket->entry);
        if (ticket->held) {
            avl_ticket_t **link_p = &admission->first_held;
            while (*link_p != ticket)
                link_p = &(*link_p)->next_held;
            *link_p = ticket->next_held;
            ticket->held = false;
        }
        no_suspect_locked(admission, ticket);
        admission->urgent -= ticket->urgent;
        if (ticket->charged)
            avl_queue_charge(admission->queue, ticket->entry.tenant, tokens - ticket->entry.cost);
        avl_queue_leave(admission->queue, ticket->entry.tenant);
    }
    pthread_mutex_unlock(&admission->lock);
}

bool avl_admission_overdue(avl_admission_t *admission, const avl_ticket_t *ticket, int64_t now_ns) {
    if (admission->config.wait_max_ns == AVL_DEADLINE_NONE)
        return false;
    pthread_mutex_lock(&admission->lock);
    bool overdue = ticket->entry.queued && !ticket->charged &&
                   now_ns - ticket->queued_ns > admission->config.wait_max_ns;
    pthread_mutex_unlock(&admission->lock);
    return overdue;
}
