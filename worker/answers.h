/* worker/answers.h: several answers to one request (n > 1), whose prompt is read once.
 *
 * Every answer is a job of its own, with its seed, its replay, its place in the queue, its end. One
 * of them, the reader, reads the prompt; the others take an index and the pages of their answers
 * when it is admitted, as far as there are any, and begin in the step after it has been read: with
 * its pages, its visual store and core, and its first logits (worker/sequence_share.c). Who finds
 * no room then begins later in the same way, as long as one of the others runs.
 *
 * Pages. Those of the prompt that nobody writes to are reserved once for all, while one of its
 * jobs holds them; a job reserves what comes on top. When a job gives way its own pages are free;
 * the shared ones are when the last one leaves.
 *
 * A reader that leaves before it has read sends the others back to the queue, where the next one
 * reads; so does the last one that has the prompt, when others have not begun.
 *
 * Where attention evicts rows of the prompt while it answers, nothing can be shared: each answer
 * reads the prompt for itself.
 *
 * Private to the scheduler. */
#ifndef AVL_WORKER_ANSWERS_H
#define AVL_WORKER_ANSWERS_H

#include "worker/job.h"
#include "worker/prompt_cache.h"

typedef struct avl_answers {
    avl_request_t *request;
    avl_job_t **jobs; /* [request->choice_count]; NULL: has ended */
    int32_t living;
    avl_job_t *reader; /* who reads the prompt now, or NULL */
    int32_t source;    /* sequence of a job that holds the prompt; -1: nobody has read it */
    float *logits;     /* [vocab_rows] after the prompt */
    int32_t sharers;
    int64_t pages; /* reserved for all of them */
    /* The reader's, for all: */
    avl_reuse_report_t reuse;
    int64_t first_step_ns, encode_ns;
} avl_answers_t;

/* A job for every choice of the request, which must have some and has passed avl_request_check; it
 * goes with the last job. Errors: AVL_ERR_MEMORY; the request is the caller's then. */
AVL_MUST_CHECK avl_status_t avl_answers_create(avl_request_t *request, const avl_config_t *config,
                                               const avl_engine_limits_t *limits,
                                               avl_answers_t **answers_p);
/* The job is being destroyed, and all this with the last one. */
void avl_answers_remove(avl_answers_t *answers, avl_job_t *job);

/* Whether what one of them has read serves the others. */
bool avl_answers_can_share(const avl_job_t *job);
/* Whether the job waits for another one that reads the prompt. */
bool avl_answers_being_read(const avl_job_t *job);
/* What the job can begin with; sequence -1: nothing. */
avl_prompt_match_t avl_answers_match(const avl_job_t *job);
/* The reader has the prompt, and after it these logits: the others may begin. Nothing happens when
 * somebody had it before, or nobody waits. Returns the pages that are now shared: the job
 * reserves so many less. */
int64_t avl_answers_read(avl_answers_t *answers, avl_job_t *job, const float *logits,
                         int32_t vocab_rows);
/* The job begins with the prompt that was read. */
void avl_answers_share(avl_job_t *job);
/* The job leaves its sequence. Returns the shared pages that are free with it; *recall_p:
 * who forks has nobody to fork from. */
int64_t avl_answers_leave(avl_job_t *job, bool *recall_p);

#endif
