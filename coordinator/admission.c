#include "coordinator/admission.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

/* Earlier deadlines go first, but nobody waits behind later comers of the same tenant for longer
 * than this. */
#define DUE_NS (60 * AVL_NS_PER_S)
/* Estimates are means: a request is refused when the mean and this share more are too long. */
#define MARGIN 0.25
#define RETRY_NS (AVL_NS_PER_S) /* when nothing is known */
#define RETRY_MIN_NS (AVL_NS_PER_S / 20)
#define RETRY_MAX_NS (60 * AVL_NS_PER_S)

struct avl_admission {
    avl_admission_config_t config;
    avl_groups_t *groups;
    pthread_mutex_t lock; /* all below */
    avl_queue_t *queue;
    avl_estimate_t estimate;
    size_t in;           /* tickets */
    size_t out;          /* those that are out, the sums of their work and of out_ns */
    int64_t out_work_ns; /* modulo 2^64, as is the next one */
    uint64_t out_since_ns;
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
    pthread_mutex_destroy(&admission->lock);
    free(admission);
}

/* ---- estimates; the lock is held ---- */

/* Everything but what goes ahead in the queue. */
static avl_backlog_t backlog_locked(avl_admission_t *admission, int64_t now_ns) {
    avl_groups_view_t view;
    avl_groups_view(admission->groups, &view);
    /* Each has worked for so long already; whoever is over its estimate has a quarter of it left:
     * it was too low. */
    int64_t elapsed_ns = (int64_t)((uint64_t)now_ns * admission->out - admission->out_since_ns);
    /* What a group has beyond those it decodes side by side is not at work yet. */
    if (view.sequences_max > 0 && admission->out > (size_t)view.sequences_max)
        elapsed_ns = (int64_t)((double)elapsed_ns * view.sequences_max / (double)admission->out);
    int64_t left_ns = admission->out_work_ns - elapsed_ns;
    if (left_ns < admission->out_work_ns / 4)
        left_ns = admission->out_work_ns / 4;
    return (avl_backlog_t){
        .parallel = view.sequences_max, .running = admission->out, .running_left_ns = left_ns};
}

static int64_t wait_locked(avl_admission_t *admission, const avl_ticket_t *ticket, int64_t now_ns) {
    avl_backlog_t backlog = backlog_locked(admission, now_ns);
    avl_queue_ahead_t ahead = avl_queue_ahead(admission->queue, &ticket->entry);
    backlog.ahead = ahead.count;
    backlog.ahead_ns = ahead.work_ns;
    return avl_estimate_wait_ns(&backlog);
}

/* Its priority is not known yet: what is at work counts, and what its own tenant has waiting and
 * in preparation. */
static int64_t wait_at_door_locked(avl_admission_t *admission, const avl_ticket_t *ticket,
                                   int64_t now_ns) {
    avl_backlog_t backlog = backlog_locked(admission, now_ns);
    avl_queue_ahead_t ahead = avl_queue_ahead(admission->queue, &ticket->entry);
    size_t known = admission->out + avl_queue_count(admission->queue);
    size_t preparing = admission->in > known ? admission->in - known : 0;
    size_t own = avl_tenant_places(ticket->entry.tenant);
    preparing = preparing < own ? preparing : own;
    backlog.ahead = ahead.count + preparing;
    backlog.ahead_ns =
        ahead.work_ns + (int64_t)preparing * avl_estimate_mean_work_ns(&admission->estimate);
    return avl_estimate_wait_ns(&backlog);
}

static double seconds(int64_t ns) {
    return (double)ns / 1e9;
}

/* Whether `wait_ns` and `work_ns` end in time. */
static avl_status_t check_deadline(const avl_ticket_t *ticket, int64_t wait_ns, int64_t work_ns,
                                   int64_t now_ns) {
    if (ticket->deadline_ns == AVL_DEADLINE_NONE)
        return AVL_OK;
    double left_ns = (double)(ticket->deadline_ns - now_ns);
    if ((double)work_ns * (1 + MARGIN) > left_ns && work_ns > 0)
        return avl_fail(AVL_ERR_DEADLINE,
                        "the answer takes about %.3f s, and the deadline is in %.3f s",
                        seconds(work_ns), left_ns / 1e9);
    if (((double)wait_ns + (double)work_ns) * (1 + MARGIN) > left_ns && wait_ns > 0)
        return avl_fail(AVL_ERR_EXHAUSTED,
                        "requests before this one take about %.3f s, its answer %.3f s, and the "
                        "deadline is in %.3f s: try later",
                        seconds(wait_ns), seconds(work_ns), left_ns / 1e9);
    return AVL_OK;
}

static avl_status_t check_wait(const avl_admission_t *admission, int64_t wait_ns) {
    if (wait_ns <= admission->config.wait_max_ns)
        return AVL_OK;
    return avl_fail(AVL_ERR_EXHAUSTED,
                    "requests before this one take about %.3f s, and none waits for more than "
                    "%.3f s: try later",
                    seconds(wait_ns), seconds(admission->config.wait_max_ns));
}

int64_t avl_admission_retry_ns(avl_admission_t *admission, int64_t now_ns) {
    pthread_mutex_lock(&admission->lock);
    avl_backlog_t backlog = backlog_locked(admission, now_ns);
    int64_t mean_ns = avl_estimate_mean_work_ns(&admission->estimate);
    backlog.ahead = admission->in - admission->out;
    backlog.ahead_ns = (int64_t)backlog.ahead * mean_ns;
    int64_t wait_ns = avl_estimate_wait_ns(&backlog);
    pthread_mutex_unlock(&admission->lock);
    if (mean_ns == 0)
        return RETRY_NS;
    /* Half of the queue: who comes back when it is empty has let others pass. */
    wait_ns /= 2;
    return wait_ns < RETRY_MIN_NS ? RETRY_MIN_NS : wait_ns > RETRY_MAX_NS ? RETRY_MAX_NS : wait_ns;
}

void avl_admission_token(avl_admission_t *admission, int64_t interval_ns) {
    pthread_mutex_lock(&admission->lock);
    avl_estimate_token(&admission->estimate, interval_ns);
    pthread_mutex_unlock(&admission->lock);
}

void avl_admission_answer(avl_admission_t *admission, const avl_ticket_t *ticket, int64_t encode_ns,
                          int64_t prefill_ns, int32_t tokens, int64_t now_ns) {
    pthread_mutex_lock(&admission->lock);
    if (ticket->out && !ticket->entry.resumed) /* else part of the time is another group's */
        avl_estimate_answer(&admission->estimate, &ticket->demand, encode_ns, prefill_ns, tokens,
                            now_ns - ticket->out_ns);
    pthread_mutex_unlock(&admission->lock);
}

/* ---- the ways of a ticket ---- */

avl_status_t avl_admission_enter(avl_admission_t *admission, uint64_t id, const char *tenant,
                                 int64_t arrival_ns, int64_t deadline_ns, avl_ticket_t *ticket) {
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
        int64_t wait_ns = wait_at_door_locked(admission, ticket, arrival_ns);
        status = check_deadline(ticket, wait_ns, 0, arrival_ns);
        if (status == AVL_OK)
            status = check_wait(admission, wait_ns);
        if (status != AVL_OK)
            avl_queue_leave(admission->queue, entry->tenant);
    }
    if (status == AVL_OK) {
        admission->in++;
        ticket->in = true;
    }
    pthread_mutex_unlock(&admission->lock);
    return status;
}

avl_status_t avl_admission_queue(avl_admission_t *admission, avl_ticket_t *ticket, int32_t priority,
                                 int64_t now_ns) {
    pthread_mutex_lock(&admission->lock);
    const avl_demand_t *demand = &ticket->demand;
    avl_queue_entry_t *entry = &ticket->entry;
    entry->priority = priority;
    entry->work_ns = avl_estimate_work_ns(&admission->estimate, demand);
    int64_t answers = demand->answers > 1 ? demand->answers : 1;
    entry->cost =
        (int64_t)demand->rows + answers * avl_estimate_tokens(&admission->estimate, demand);
    avl_status_t status = AVL_OK;
    if (admission->out > 0 || avl_queue_count(admission->queue) > 0) {
        int64_t wait_ns = wait_locked(admission, ticket, now_ns);
        status = check_deadline(ticket, wait_ns, entry->work_ns, now_ns);
        if (status == AVL_OK)
            status = check_wait(admission, wait_ns);
    }
    if (status == AVL_OK)
        status = avl_queue_add(admission->queue, entry);
    ticket->queued_ns = now_ns;
    pthread_mutex_unlock(&admission->lock);
    return status;
}

/* It was let in, but has waited for longer than was estimated: its answer would come too late, and
 * make others late. */
static bool hopeless_locked(const avl_admission_t *admission, const avl_ticket_t *ticket,
                            int64_t now_ns) {
    const avl_queue_entry_t *entry = &ticket->entry;
    return ticket->deadline_ns != AVL_DEADLINE_NONE && !entry->resumed && admission->out > 0 &&
           entry->work_ns > ticket->deadline_ns - now_ns;
}

avl_status_t avl_admission_next(avl_admission_t *admission, int64_t now_ns, uint64_t *id_p,
                                uint64_t *generation_p) {
    pthread_mutex_lock(&admission->lock);
    avl_queue_entry_t *entry = avl_queue_first(admission->queue);
    avl_ticket_t *ticket = entry != NULL ? entry->owner : NULL;
    avl_status_t status = AVL_ERR_NOT_FOUND;
    if (ticket != NULL && hopeless_locked(admission, ticket, now_ns)) {
        avl_queue_remove(admission->queue, entry);
        status = AVL_ERR_DEADLINE;
    } else if (ticket != NULL) {
        status = avl_groups_reserve(admission->groups, &ticket->need, &ticket->generation);
    }
    if (status == AVL_OK) {
        avl_queue_take(admission->queue, entry);
        ticket->charged = true;
        ticket->out = true;
        ticket->out_ns = now_ns;
        admission->out++;
        admission->out_work_ns += entry->work_ns;
        admission->out_since_ns += (uint64_t)now_ns;
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
    admission->out_work_ns -= ticket->entry.work_ns;
    admission->out_since_ns -= (uint64_t)ticket->out_ns;
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

void avl_admission_leave(avl_admission_t *admission, avl_ticket_t *ticket, int64_t tokens) {
    pthread_mutex_lock(&admission->lock);
    if (ticket->in) {
        ticket->in = false;
        admission->in--;
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
