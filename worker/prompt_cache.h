/* worker/prompt_cache.h: the leader's book of prompts whose keys and values are there to be used
 * again.
 *
 * A prompt enters when it has been read. While its request runs, and afterwards for as long as
 * nobody needs its pages, a request of the same tenant that begins alike takes over rows instead of
 * computing them:
 *
 *   all of it   the same tokens and pictures, the same numbers of stored and computed visual rows,
 *               chosen in the same way: the state after the prompt, selections and first logits
 *               included
 *   a prefix    as long as tokens and pictures are the same, and no visual row of it was evicted.
 *               What a question selects depends on the question, so a request that evicts leaves
 *               others the text before its first picture alone; a dense one leaves everything.
 *               Not with dynamic rope scaling, where keys depend on the whole prompt's length, nor
 *               between long and short prompts, whose products have other last bits
 *               (long_prompt in worker/sequence.h).
 *
 * Kept prompts hold pages beyond what requests in flight have reserved, and go, the one that was
 * not used for the longest time first, as soon as a request needs those: the scheduler asks for the
 * next to go. Each holds a sequence index of the engine's.
 *
 * Threads: one. */
#ifndef AVL_WORKER_PROMPT_CACHE_H
#define AVL_WORKER_PROMPT_CACHE_H

#include "worker/encoder_cache.h"
#include "worker/job.h"

typedef struct avl_prompt_cache avl_prompt_cache_t;

typedef struct avl_prompt_match {
    int32_t sequence;    /* -1: nothing fits */
    int32_t rows;        /* taken over from it */
    const float *logits; /* after the whole prompt; NULL when that is not the same */
} avl_prompt_match_t;

/* Sequences have indices below `indices_max`; `kept_max` prompts outlive their requests. Errors:
 * AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_prompt_cache_create(const avl_config_t *config, int32_t indices_max,
                                                    int32_t kept_max, avl_prompt_cache_t **cache_p);
void avl_prompt_cache_destroy(avl_prompt_cache_t *cache);
/* Leader's memory at most: keys and logits. */
int64_t avl_prompt_cache_bytes(const avl_config_t *config, int32_t indices_max,
                               int32_t context_rows);

/* What the job can begin with, the most rows first. Counts nothing. */
avl_prompt_match_t avl_prompt_cache_find(const avl_prompt_cache_t *cache, const avl_job_t *job);
/* The prompt is used in step `step`, the last of its uses: it is not evicted in that step. */
void avl_prompt_cache_use(avl_prompt_cache_t *cache, int32_t sequence, uint64_t step);
bool avl_prompt_cache_is_used(const avl_prompt_cache_t *cache, int32_t sequence, uint64_t step);

/* The job's prompt has been read, and these are the logits of its last row. Nothing happens when an
 * equal one is there, or memory is short. */
void avl_prompt_cache_add(avl_prompt_cache_t *cache, const avl_job_t *job, const float *logits);
/* The job ends. Returns whether its prompt is to be kept; the scheduler says so, or that the
 * sequence is gone. */
bool avl_prompt_cache_has(const avl_prompt_cache_t *cache, int32_t sequence);
void avl_prompt_cache_keep(avl_prompt_cache_t *cache, int32_t sequence, int64_t pages);
void avl_prompt_cache_drop(avl_prompt_cache_t *cache, int32_t sequence);

/* Forgets the next kept prompt that is not used in step `step` (UINT64_MAX: that may be in use) and
 * returns its sequence; -1: none. */
int32_t avl_prompt_cache_evict(avl_prompt_cache_t *cache, uint64_t step);
bool avl_prompt_cache_is_kept(const avl_prompt_cache_t *cache, int32_t sequence);
int32_t avl_prompt_cache_kept(const avl_prompt_cache_t *cache);
int64_t avl_prompt_cache_pages(const avl_prompt_cache_t *cache);

/* An admission found something, or nothing. */
void avl_prompt_cache_count(avl_prompt_cache_t *cache, bool hit);
/* Without bytes. */
avl_cache_counts_t avl_prompt_cache_counts(const avl_prompt_cache_t *cache);

#endif
