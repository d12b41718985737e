/* coordinator/admission.h: which requests are let in, when each goes to a group, and to which one.
 *
 * It joins the queue (queue.h), the estimates (estimate.h) and the groups (groups.h). A request
 * holds a ticket from its call to its end; the ticket is
 *
 *   entered    has a place; its prompt is being prepared      avl_admission_queue, _leave
 *   queued     waits for its turn                             avl_admission_next, _leave
 *   out        a group has it                                 avl_admission_return, _leave
 *   held       a suspect: was out when groups died twice, without progress; suspects go out one
 *              at a time, which finds the one that kills groups
 *                                                             avl_admission_clear (of another),
 *                                                             _leave
 *
 * A request that is let in is a promise: it is let in when it and all others that were will still
 * keep their deadlines, by a forecast of everything that is at work and waits (forecast.h) and with
 * a margin. Else it is refused at once: DEADLINE if its own could not be met on an idle service
 * either, else EXHAUSTED. Whoever will be late anyway is no reason to refuse others. A request
 * whose own deadline leaves the time is let in even so, and held back, half a minute at most, while
 * its going out would make others late. The margin grows with every promise that is broken, be it
 * that the request is given up, and shrinks slowly with those that are kept. Without other requests
 * it is taken all the same: the service may have become faster.
 *
 * Threads: any; its lock comes after those of requests, before those of groups. */
#ifndef AVL_COORDINATOR_ADMISSION_H
#define AVL_COORDINATOR_ADMISSION_H

#include "coordinator/door.h"
#include "coordinator/estimate.h"
#include "coordinator/forecast.h"
#include "coordinator/groups.h"
#include "coordinator/queue.h"

typedef struct avl_admission avl_admission_t;

/* Part of a request; zeroed, then avl_admission_enter's. */
typedef struct avl_ticket {
    avl_queue_entry_t entry;
    uint64_t id;
    int64_t arrival_ns, deadline_ns;
    avl_demand_t demand;
    avl_groups_need_t need;
    bool in, preparing, out, charged, suspect, held;
    bool promised, broken, answered; /* broken: given up before its deadline */
    bool patient, urgent;            /* it could be held back; it is promised and could not */
    uint64_t generation;             /* when out */
    int64_t queued_ns;
    /* of its group's work, when out */
    int64_t tiles_left, rows_left;
    int64_t tokens; /* it has got, of all answers that are not over */
    /* Of those in preparation, or of those that are out. */
    struct avl_ticket *next, *previous;
    avl_demand_t expected;   /* while it is in preparation */
    double begin_ns, end_ns; /* by the last forecast, from then */
    struct avl_ticket *next_held;
} avl_ticket_t;

typedef struct avl_admission_config {
    size_t requests_max;
    int64_t wait_max_ns; /* in the queue; AVL_DEADLINE_NONE */
    const avl_tenant_weight_t *weights;
    size_t weight_count;
} avl_admission_config_t;

AVL_MUST_CHECK avl_status_t avl_admission_create(const avl_admission_config_t *config,
                                                 avl_admission_t **admission_p);
/* Before the first request. */
void avl_admission_set_groups(avl_admission_t *admission, avl_groups_t *groups);
void avl_admission_destroy(avl_admission_t *admission);

/* At the door, before anything is known of the request but its tenant and deadline and what it says
 * of itself. Its prompt may be as short as any: it is refused only when it would be with the
 * shortest one. Errors: AVL_ERR_EXHAUSTED, AVL_ERR_DEADLINE, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_admission_enter(avl_admission_t *admission, uint64_t id,
                                                const char *tenant, int64_t arrival_ns,
                                                int64_t deadline_ns, const avl_asked_t *asked,
                                                avl_ticket_t *ticket);
/* Prepared: `ticket`'s demand, need and priority are set. Errors: AVL_ERR_EXHAUSTED,
 * AVL_ERR_DEADLINE, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_admission_queue(avl_admission_t *admission, avl_ticket_t *ticket,
                                                int32_t priority, int64_t now_ns);
/* Whose turn it is, and the group that has a place for it: the ticket is out. Errors:
 * AVL_ERR_UNAVAILABLE (no group is ready), AVL_ERR_EXHAUSTED (none has room, or the first is held
 * back), AVL_ERR_NOT_FOUND (nobody waits); AVL_ERR_TOO_LARGE, AVL_ERR_DEADLINE: the request of
 * *id_p fits no group, or would be too late, and is not queued now. */
AVL_MUST_CHECK avl_status_t avl_admission_next(avl_admission_t *admission, int64_t now_ns,
                                               uint64_t *id_p, uint64_t *generation_p);
/* Its group is lost: it goes to another one before all others; `suspect`: alone of its kind. */
AVL_MUST_CHECK avl_status_t avl_admission_return(avl_admission_t *admission, avl_ticket_t *ticket,
                                                 bool suspect);
/* It makes progress: no suspect any more. */
void avl_admission_clear(avl_admission_t *admission, avl_ticket_t *ticket);
/* Its end, in any state; a second one does nothing. `tokens`: that it had, prompt and answer. */
void avl_admission_leave(avl_admission_t *admission, avl_ticket_t *ticket, int64_t tokens);

/* Whether it has waited for its first turn for longer than the operator allows. */
bool avl_admission_overdue(avl_admission_t *admission, const avl_ticket_t *ticket, int64_t now_ns);
/* Share by which forecasts are now taken to fall short. */
double avl_admission_margin(avl_admission_t *admission);
/* After how long a refused client should try again. */
int64_t avl_admission_retry_ns(avl_admission_t *admission, int64_t now_ns);

/* For the forecasts: what groups did; how far a request is; that it is answered, each answer with
 * so many tokens, of its prompt `rows_reused` having been there. */
void avl_admission_work(avl_admission_t *admission, const avl_work_t *work);
void avl_admission_read(avl_admission_t *admission, avl_ticket_t *ticket, int64_t rows_left);
void avl_admission_token(avl_admission_t *admission, avl_ticket_t *ticket);
/* One of its answers, which got so many tokens, is over, and others are not: its place is free. */
void avl_admission_choice_over(avl_admission_t *admission, avl_ticket_t *ticket, int64_t tokens);
void avl_admission_answer(avl_admission_t *admission, avl_ticket_t *ticket, int64_t rows_reused,
                          int32_t tokens);

#endif
