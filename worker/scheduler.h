/* worker/scheduler.h: the leader's queue and step plans: which request gets what in the next step.
 *
 *   state      holds                        next
 *   queued     a place in the queue         admitted in order, when the pages of its prompt and a
 *                                           part of its answer's are free (submit, admit_next)
 *   encoding   sequence, pages, features    pictures go first, a few a step (plan_pictures)
 *   prefill    the same                     prompt rows, up to batch_rows a step over all requests
 *                                           (plan_prefill)
 *   decoding   sequence, pages              one row a step (plan_decodes)
 *   finished   nothing                      the final event went out (finish)
 *
 * Continuous batching: a step holds one row of every decoding sequence and prompt rows of the
 * oldest others. A prompt that fits into one step is read in one, so that its full-size visual
 * cache exists for one layer at a time, and it is priced so; a longer one is read in chunks and
 * holds full pages of all layers until its last row.
 *
 * Order. Every request has a due time, fixed at its arrival: its deadline, or AVL_PATIENCE_NS after
 * its arrival when that is earlier, less AVL_PATIENCE_NS for each level of priority. The earliest
 * goes first, the older of equals. So a priority goes before a lower one unless that has waited for
 * AVL_PATIENCE_NS longer, close deadlines go before distant ones, and nobody starves: what comes
 * more than (difference of priorities + 1) * AVL_PATIENCE_NS later goes behind. Nobody is overtaken
 * in the queue by a smaller request.
 *
 * Pages. Answers end long before max_tokens mostly, so a request is admitted when its prompt fits
 * and the growth share of what all running answers may still need; from then on it takes pages as
 * its answer grows. When none is left for a decode row, the running request that is due last gives
 * way: its pages are free at once, it goes back into the queue with its old due time, and its
 * tokens are replayed as forced steps when it runs again. The client sees a pause; no token is
 * lost, sent again, or drawn differently. The first in order never gives way to another and fits
 * into the pool alone (submit refuses what does not), so the oldest always advances. The engine
 * never lacks a page.
 *
 * Several answers to one request are jobs of their own, which begin with one reading of the prompt
 * (worker/answers.h). Those that wait for it do not keep others in the queue waiting.
 *
 * The scheduler never blocks. Threads: one. */
#ifndef AVL_WORKER_SCHEDULER_H
#define AVL_WORKER_SCHEDULER_H

#include "worker/encoder_cache.h"
#include "worker/engine.h"

#define AVL_PATIENCE_NS (INT64_C(30) * 1000000000)
#define AVL_GROWTH_SHARE 0.25

typedef struct avl_scheduler avl_scheduler_t;

/* Takes events. They come out of submit, cancel, plan and complete. */
typedef struct avl_event_sink {
    void *context;
    void (*take)(void *context, const avl_event_t *event);
} avl_event_sink_t;

/* `queue_max`: requests that wait at most. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_scheduler_create(avl_engine_t *engine, int32_t queue_max,
                                                 const avl_event_sink_t *sink,
                                                 avl_scheduler_t **scheduler_p);
/* Drops what is left without events. */
void avl_scheduler_destroy(avl_scheduler_t *scheduler);

/* The share of what answers may still need in pages that must be free for an admission, 0 to 1.
 * AVL_GROWTH_SHARE unless set; 1 reserves the worst case, and nothing ever gives way. */
void avl_scheduler_set_growth_share(avl_scheduler_t *scheduler, double share);
/* The time by which a request is ordered. */
int64_t avl_scheduler_due_ns(const avl_request_t *request);

/* Takes the request over. One that can never run is finished at once, with AVL_FINISH_ERROR:
 *   AVL_ERR_INVALID      parameters, token ids, pictures that do not fit their rows
 *   AVL_ERR_TOO_LARGE    a prompt that leaves the context no row for an answer
 *   AVL_ERR_EXHAUSTED    more pages than the pool has; a full queue
 *   AVL_ERR_UNAVAILABLE  draining
 *   AVL_ERR_DEADLINE     already passed */
void avl_scheduler_submit(avl_scheduler_t *scheduler, avl_request_t *request);
/* Finishes that answer to the request, or all of them (`choice` -1), with AVL_FINISH_CANCELLED; an
 * unknown one is no error (it may have finished meanwhile). */
void avl_scheduler_cancel(avl_scheduler_t *scheduler, uint64_t request_id, int32_t choice);
/* Refuses new requests from now on. */
void avl_scheduler_drain(avl_scheduler_t *scheduler);
/* Nothing queued, in flight, or to be released. */
bool avl_scheduler_is_idle(const avl_scheduler_t *scheduler);

/* Forms the next step, after ending what has passed its deadline. The plan points into requests and
 * stays valid until complete. An empty plan: nothing to do now. */
const avl_plan_t *avl_scheduler_plan(avl_scheduler_t *scheduler);
/* Takes the results of that plan: draws tokens, sends events, finishes requests. */
void avl_scheduler_complete(avl_scheduler_t *scheduler, const avl_step_result_t *result);

/* What steps did, and how long they took. */
typedef struct avl_step_work {
    int64_t steps, ns;
    int64_t decode_rows, prompt_rows, tiles;
    int64_t encode_ns;
} avl_step_work_t;
/* Of the step that was completed last; its `ns` is the caller's to fill in. */
avl_step_work_t avl_scheduler_work(const avl_scheduler_t *scheduler);

/* Sums over the requests that have ended. */
typedef struct avl_request_totals {
    int64_t prompt_rows, prompt_rows_reused;
    int64_t visual_rows_seen, visual_rows_stored, visual_rows_computed;
    int64_t decode_rows;
    int64_t pages_evicted;
} avl_request_totals_t;

/* For reports and tests. */
typedef struct avl_scheduler_counts {
    int32_t queued, active;
    int64_t pages_reserved; /* for requests in flight */
    int64_t pages_kept;     /* for kept prompts */
    int64_t steps;
    avl_cache_counts_t encoder_cache, prompt_cache;
    avl_request_totals_t totals;
    int64_t preemptions;     /* requests that gave way */
    int64_t rows_recomputed; /* cached rows, of all of these, that went with that */
} avl_scheduler_counts_t;
avl_scheduler_counts_t avl_scheduler_counts(const avl_scheduler_t *scheduler);

#endif
