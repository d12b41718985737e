#include "worker/loop.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/memory.h"

struct avl_loop {
    avl_engine_t *engine;
    avl_group_t *group;
    const avl_plan_limits_t *limits;
    avl_plan_t plan;
    uint8_t *buffer;          /* [limits->bytes_max] */
    avl_group_times_t *times; /* [ranks] */
    size_t *times_bytes;      /* [ranks] */
};

avl_status_t avl_loop_create(avl_engine_t *engine, avl_loop_t **loop_p) {
    avl_group_t *group = avl_engine_options(engine)->group;
    avl_loop_t *loop = NULL;
    avl_status_t status = avl_alloc(1, sizeof *loop, "step loop", &loop);
    if (status == AVL_OK) {
        loop->engine = engine;
        loop->group = group;
        loop->limits = avl_engine_plan_limits(engine);
        status = avl_plan_create(loop->limits, &loop->plan);
    }
    if (status == AVL_OK)
        status = avl_alloc_aligned(loop->limits->bytes_max, 1, "step plans", &loop->buffer);
    size_t ranks = (size_t)avl_group_ranks(group);
    if (status == AVL_OK)
        status = avl_alloc(ranks, sizeof *loop->times, "times of ranks", &loop->times);
    if (status == AVL_OK)
        status = avl_alloc(ranks, sizeof *loop->times_bytes, "sizes of times", &loop->times_bytes);
    for (size_t rank = 0; status == AVL_OK && rank < ranks; rank++)
        loop->times_bytes[rank] = sizeof *loop->times;
    status = avl_group_agree(group, status);
    if (status != AVL_OK) {
        avl_loop_destroy(loop);
        return status;
    }
    *loop_p = loop;
    return AVL_OK;
}

void avl_loop_destroy(avl_loop_t *loop) {
    if (loop == NULL)
        return;
    avl_plan_destroy(&loop->plan);
    free(loop->buffer);
    free(loop->times);
    free(loop->times_bytes);
    free(loop);
}

static avl_status_t send_plan(avl_loop_t *loop, const avl_plan_t *plan) {
    if (avl_group_ranks(loop->group) == 1)
        return AVL_OK;
    uint64_t bytes = avl_plan_bytes(plan);
    AVL_ASSERT(bytes <= loop->limits->bytes_max);
    avl_plan_encode(plan, loop->buffer);
    AVL_TRY(avl_group_wake(loop->group));
    AVL_TRY(avl_group_broadcast(loop->group, &bytes, sizeof bytes));
    return avl_group_broadcast(loop->group, loop->buffer, (size_t)bytes);
}

static avl_status_t receive_plan(avl_loop_t *loop) {
    uint64_t bytes;
    AVL_TRY(avl_group_wait(loop->group, AVL_DEADLINE_NONE));
    AVL_TRY(avl_group_broadcast(loop->group, &bytes, sizeof bytes));
    if (bytes > loop->limits->bytes_max)
        return avl_fail(AVL_ERR_DATA, "a step plan of %llu bytes; allowed: %zu",
                        (unsigned long long)bytes, loop->limits->bytes_max);
    AVL_TRY(avl_group_broadcast(loop->group, loop->buffer, (size_t)bytes));
    return avl_plan_decode(loop->buffer, (size_t)bytes, loop->limits, &loop->plan);
}

avl_status_t avl_loop_lead(avl_loop_t *loop, avl_scheduler_t *scheduler, bool *worked_p) {
    const avl_plan_t *plan = avl_scheduler_plan(scheduler);
    *worked_p = !avl_plan_is_empty(plan);
    if (!*worked_p)
        return AVL_OK;
    avl_step_result_t result;
    AVL_TRY(send_plan(loop, plan));
    AVL_TRY(avl_engine_execute(loop->engine, plan, &result));
    /* A rank that lacks the memory that its ledger set aside is not sound: the next request would
     * fare no better. A new group serves this one too. */
    if (result.admission == AVL_ERR_MEMORY || result.admission == AVL_ERR_PEER)
        return avl_fail(result.admission, "a request could not be admitted: %s",
                        result.admission_detail);
    avl_scheduler_complete(scheduler, &result);
    return AVL_OK;
}

static avl_status_t gather_times(avl_loop_t *loop) {
    const avl_group_times_t own = avl_group_times(loop->group);
    return avl_group_gather(loop->group, &own, loop->times_bytes, loop->times);
}

avl_status_t avl_loop_tell(avl_loop_t *loop, const avl_group_times_t **times_p) {
    avl_plan_begin(&loop->plan, AVL_PLAN_TELL, 0);
    AVL_TRY(send_plan(loop, &loop->plan));
    AVL_TRY(gather_times(loop));
    *times_p = loop->times;
    return AVL_OK;
}

avl_status_t avl_loop_stop(avl_loop_t *loop) {
    avl_plan_begin(&loop->plan, AVL_PLAN_STOP, 0);
    return send_plan(loop, &loop->plan);
}

avl_status_t avl_loop_follow(avl_loop_t *loop) {
    for (;;) {
        avl_step_result_t result;
        AVL_TRY(receive_plan(loop));
        if (loop->plan.kind == AVL_PLAN_STOP)
            return AVL_OK;
        if (loop->plan.kind == AVL_PLAN_TELL)
            AVL_TRY(gather_times(loop));
        else
            AVL_TRY(avl_engine_execute(loop->engine, &loop->plan, &result));
    }
}
