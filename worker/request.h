/* worker/request.h: a request and its events as the leader of a worker group sees them: numbers
 * only, no text.
 *
 * The link (worker/link.h) makes requests out of the coordinator's messages and turns events back
 * into messages; the scheduler sits between. Both meet in bounded queues. */
#ifndef AVL_WORKER_REQUEST_H
#define AVL_WORKER_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/attention.h"
#include "base/status.h"
#include "checkpoint/image_layout.h"

#define AVL_PRIORITY_MOST 100
#define AVL_STOP_IDS_MAX 64
#define AVL_LOGPROBS_MAX 21 /* of one token: its own and those of 20 others */

typedef struct avl_sampling_params {
    double temperature; /* 0: greedy */
    double top_p;       /* 1: off */
    int32_t top_k;      /* 0: off */
    uint64_t
        seed; /* draws are a function of (seed, index of the token), so a replay draws the same */
    double min_p;              /* share of the best token's probability; 0: off */
    double repetition_penalty; /* of tokens in the prompt or the answer; 0 or 1: off */
    double presence_penalty;   /* of tokens in the answer; 0: off */
    double frequency_penalty;  /* the same, for every time; 0: off */
    int32_t min_tokens;        /* no end before the answer has so many */
    int32_t logprob_count;     /* 0: none; 1: the token's own; more: the best tokens' besides */
} avl_sampling_params_t;

/* By the model's logits as they are: before penalties, temperature and filters. */
typedef struct avl_token_logprob {
    int32_t token_id;
    float logprob;
} avl_token_logprob_t;
#define AVL_PICTURE_DIGEST_BYTES 32
#define AVL_TENANT_BYTES_MAX 64

/* A picture's identity (proto/worker.proto, SubmitImage): all zeros for one that is not to be
 * recognised. */
typedef struct avl_picture_digest {
    uint8_t bytes[AVL_PICTURE_DIGEST_BYTES];
} avl_picture_digest_t;

typedef struct avl_request_image {
    avl_image_layout_t layout;
    avl_picture_digest_t digest;
    int32_t first_row; /* of the prompt */
    uint8_t *pixels;   /* [layout.tile_count, 3, side, side] */
    size_t pixel_bytes;
} avl_request_image_t;

/* One of several answers to the same prompt. */
typedef struct avl_request_choice {
    int32_t index; /* the coordinator's name for it; ascending in a request */
    uint64_t seed; /* instead of the request's */
    int32_t *replay_ids;
    int32_t replay_count;
} avl_request_choice_t;
#define AVL_CHOICES_MAX 256

typedef struct avl_request {
    uint64_t id; /* the coordinator's; unique while the link lives */
    char tenant[AVL_TENANT_BYTES_MAX + 1];
    int32_t *token_ids; /* [row_count]; picture rows hold -1 */
    int32_t row_count;
    avl_request_image_t *images;
    int32_t image_count;
    avl_attention_params_t attention;
    avl_sampling_params_t sampling;
    int32_t *stop_ids; /* tokens that end the answer like the end of sequence */
    int32_t stop_count;
    int32_t max_tokens; /* new tokens at most, replayed ones included: >= 1 */
    bool ignore_eos;
    int32_t priority;    /* -AVL_PRIORITY_MOST to AVL_PRIORITY_MOST; the larger goes first */
    int64_t deadline_ns; /* on this host's avl_clock; AVL_DEADLINE_NONE */
    int64_t arrival_ns;
    /* Tokens that were already sent before a group was lost: taken as if drawn, so that the state
     * evolves as before; they make no events. */
    int32_t *replay_ids;
    int32_t replay_count;
    /* The whole answer, when the caller chose it: taken as if drawn, and told like drawn tokens. */
    int32_t *forced_ids;
    int32_t forced_count; /* 0: the model's own answer */
    /* Several answers (worker/answers.h), each with an end of its own; none: one, of index 0, with
     * the seed and the replay above. */
    avl_request_choice_t *choices;
    int32_t choice_count;
} avl_request_t;

/* Releases the request and everything it owns. */
void avl_request_destroy(avl_request_t *request);

/* Everything that model and context say about a request. Errors: AVL_ERR_INVALID (parameters, token
 * ids, pictures that do not fit their rows), AVL_ERR_TOO_LARGE (a prompt that leaves no row for an
 * answer). */
AVL_MUST_CHECK avl_status_t avl_request_check(const avl_request_t *request,
                                              const avl_config_t *config, int32_t context_rows);
/* floor(ratio * count), exact for decimal ratios: a product that is whole up to rounding does not
 * lose a row. */
int32_t avl_ratio_rows(double ratio, int32_t count);

typedef enum avl_finish_reason {
    AVL_FINISH_NONE,
    AVL_FINISH_STOP,   /* an end-of-sequence or stop token, reported and counted like any other */
    AVL_FINISH_LENGTH, /* max_tokens, or the context is full */
    AVL_FINISH_CANCELLED,
    AVL_FINISH_ERROR, /* status and detail say why */
} avl_finish_reason_t;

/* What attention did for one request, over its life. */
typedef struct avl_attention_report {
    int32_t visual_rows_seen;     /* N */
    int32_t visual_rows_stored;   /* m, per layer */
    int64_t visual_rows_computed; /* sum over decode steps of the rows computed, mean over layers */
    int32_t decode_steps;
    int64_t kv_bytes_returned; /* of all ranks: pages given back by eviction, in bytes */
    /* When measured, of what decode steps would look at with all visual rows (avl_visual_mass_t):
     * shares of the visual mass on what was computed and on the store; of all mass, the visual. */
    double captured_mass, stored_mass, visual_mass;
    int64_t kv_bytes_held;    /* of all ranks: pages at the end */
    int32_t text_rows_seen;   /* that may be evicted; 0 without text eviction */
    int32_t text_rows_stored; /* of these, in each layer and KV head */
} avl_attention_report_t;

/* What was there from earlier requests. */
typedef struct avl_reuse_report {
    int32_t pictures;    /* features in the encoder cache */
    int32_t prompt_rows; /* keys and values */
} avl_reuse_report_t;

typedef struct avl_request_timings {
    int64_t queue_ns;   /* in the leader: arrival to the first step */
    int64_t encode_ns;  /* vision tower */
    int64_t prefill_ns; /* prompt, first token included, encoding excluded */
    int64_t decode_ns;  /* all further tokens */
} avl_request_timings_t;

typedef enum avl_event_kind {
    AVL_EVENT_PROGRESS, /* encode and prefill advance */
    AVL_EVENT_TOKEN,
    AVL_EVENT_FINISHED, /* last event of an answer; exactly one */
} avl_event_kind_t;

typedef enum avl_stage {
    AVL_STAGE_QUEUED,
    AVL_STAGE_ENCODE,  /* done, total: pictures */
    AVL_STAGE_PREFILL, /* done, total: prompt rows */
    AVL_STAGE_DECODE,
} avl_stage_t;

typedef struct avl_event {
    avl_event_kind_t kind;
    uint64_t request_id;
    int32_t choice;    /* index of the answer; progress of the prompt tells that of who reads it */
    avl_stage_t stage; /* progress */
    int32_t done, total;
    int32_t token_id; /* token */
    int32_t logprob_count;
    const avl_token_logprob_t *logprobs; /* its own first, then the best in order; the sampler's */
    /* finished: */
    avl_finish_reason_t finish_reason;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
    int32_t completion_tokens; /* replayed and end-of-sequence ones included */
    avl_attention_report_t attention;
    avl_reuse_report_t reuse;
    avl_request_timings_t timings;
} avl_event_t;

#endif
