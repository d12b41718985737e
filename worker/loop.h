/* worker/loop.h: how step plans reach the ranks.
 *
 * The leader calls lead once per step; every other rank sits in follow until the leader says stop.
 * Wire: wake, the size (u64), the bytes. The buffer for that has its full size from the start
 * (avl_plan_limits_t.bytes_max), so that receiving cannot fail for want of memory. */
#ifndef AVL_WORKER_LOOP_H
#define AVL_WORKER_LOOP_H

#include "worker/engine.h"
#include "worker/scheduler.h"

typedef struct avl_loop avl_loop_t;

/* Collective: ends in an agreement. Errors: AVL_ERR_MEMORY, AVL_ERR_PEER. */
AVL_MUST_CHECK avl_status_t avl_loop_create(avl_engine_t *engine, avl_loop_t **loop_p);
void avl_loop_destroy(avl_loop_t *loop);

/* Leader: one step, if there is anything to do. *worked_p: there was. Errors end the group. */
AVL_MUST_CHECK avl_status_t avl_loop_lead(avl_loop_t *loop, avl_scheduler_t *scheduler,
                                          bool *worked_p);
/* Leader: asks every rank for its time in collectives; *times_p: [ranks], until the next call. Once
 * a second or so: it costs three small collectives of its own. */
AVL_MUST_CHECK avl_status_t avl_loop_tell(avl_loop_t *loop, const avl_group_times_t **times_p);
/* Leader: lets the others leave. */
AVL_MUST_CHECK avl_status_t avl_loop_stop(avl_loop_t *loop);
/* Everyone else: executes plans until the leader stops. Errors end the group. */
AVL_MUST_CHECK avl_status_t avl_loop_follow(avl_loop_t *loop);

#endif
