/* worker/job.h: what the scheduler knows of one request, and the queue of those that wait.
 *
 * Private to the scheduler (worker/scheduler.h, which says what the order and the pages mean). */
#ifndef AVL_WORKER_JOB_H
#define AVL_WORKER_JOB_H

#include "worker/engine.h"

struct avl_answers;

typedef struct avl_job {
    avl_request_t *request;
    struct avl_answers *answers;    /* several answers to the request (worker/answers.h); or NULL */
    int32_t choice;                 /* which of them */
    avl_sampling_params_t sampling; /* the request's, with the answer's own seed */
    struct avl_job *next, *previous; /* in the queue */
    int64_t due_ns;
    avl_stage_t stage;
    int32_t sequence; /* -1: none */
    bool whole;       /* the prompt is read in one step */
    int layer_count;
    avl_sequence_shape_t shape;
    avl_sequence_price_t price;
    int64_t pages_reserved;    /* for what it holds now, the next step included */
    int64_t pages_shared;      /* of its prompt: reserved once for all its answers, not here */
    bool forks;                /* has an index; begins when another one has read the prompt */
    bool shares;               /* holds those pages */
    bool forked;               /* began with them: another one has read the prompt */
    avl_plan_place_t *places;  /* [image_count] of its pictures' features */
    int32_t first_image;       /* pictures before this one are in rows that were taken over */
    const float *first_logits; /* of a prompt that was taken over whole, in this step; or NULL */
    bool uses_features;        /* from admission until the prompt is read */
    avl_reuse_report_t reuse;
    int32_t rows_done;    /* prompt rows */
    int32_t tokens_max;   /* new tokens, the context considered */
    int32_t *token_ids;   /* [tokens_max] the answer; all of it is there when it is forced */
    int32_t tokens_known; /* the first so many are the client's already: they are replayed */
    int32_t tokens_done;
    int64_t first_step_ns, first_token_ns, last_token_ns, encode_ns;
    /* What the current plan does for it: */
    bool planned;      /* it has a run */
    int32_t plan_rows; /* prompt rows of that */
} avl_job_t;

/* In order; the first goes first. */
typedef struct avl_job_queue {
    avl_job_t *first, *last;
    int32_t count;
    int64_t deadline_ns; /* no job's deadline is earlier */
} avl_job_queue_t;

/* One answer to the request, which must have passed avl_request_check; `choice` NULL: the only
 * one. Takes the request over on success. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_job_create(avl_request_t *request,
                                           const avl_request_choice_t *choice,
                                           const avl_config_t *config,
                                           const avl_engine_limits_t *limits, avl_job_t **job_p);
/* The request goes with the last of its answers. */
void avl_job_destroy(avl_job_t *job);

bool avl_job_goes_before(const avl_job_t *a, const avl_job_t *b);
void avl_job_queue_enter(avl_job_queue_t *queue, avl_job_t *job);
void avl_job_queue_leave(avl_job_queue_t *queue, avl_job_t *job);

/* Pages of the prompt that answers can share: once it is read nobody writes to them. */
int64_t avl_job_prompt_pages(const avl_job_t *job);
/* All of these count without pages_shared. What it must hold to run: its prompt, and then at least
 * the tokens that it had already. */
int64_t avl_job_pages_to_begin(const avl_job_t *job);
/* What a decoding sequence holds after its next row, and after all known ones. */
int64_t avl_job_pages_to_decode(const avl_job_t *job);
/* What it may come to need beyond `pages`. */
int64_t avl_job_growth(const avl_job_t *job, int64_t pages);

/* What attention did for it, read from its sequence; zeros when it never ran. */
avl_attention_report_t avl_job_attention(const avl_job_t *job, const avl_engine_t *engine);
avl_request_timings_t avl_job_timings(const avl_job_t *job);
/* Whether its answer ends with this token. */
bool avl_job_ends(const avl_job_t *job, const avl_generation_config_t *generation,
                  int32_t token_id);
/* The tokens that may not come yet: at most AVL_EOS_IDS_MAX + AVL_STOP_IDS_MAX. Returns how many.
 */
int32_t avl_job_banned(const avl_job_t *job, const avl_generation_config_t *generation,
                       int32_t *banned);

#endif
