/* worker/encoder_cache.h: the leader's book of the encoder cache: which rows of the feature memory
 * hold which picture.
 *
 * The memory itself is the engine's, on every rank: f32 [rows, hidden]. A picture's features are
 * one span of rows; every picture of a prompt that is being read has one here, whether or not it is
 * known from before: the cache is the feature memory. Ranks keep no book: the plan says where each
 * picture of an admission is and which pictures are encoded, so that all of them do the same.
 *
 *   state      means                                             leaves by
 *   taken      has rows; not encoded yet                           planned
 *   ready      encoded in a step that was planned                  eviction, when nobody uses it
 *
 * A picture is used from the admission of a request that holds it until that request's prompt is
 * read; what nobody uses goes in the order of last use. Equal digests are equal pictures, also
 * within a request. A picture with a digest of zeros is never found again.
 *
 * Threads: one. */
#ifndef AVL_WORKER_ENCODER_CACHE_H
#define AVL_WORKER_ENCODER_CACHE_H

#include "worker/plan.h"

typedef struct avl_encoder_cache avl_encoder_cache_t;

typedef struct avl_cache_counts {
    int64_t bytes_max, bytes; /* on one rank */
    int64_t entries;
    int64_t hits, misses, evictions; /* since the start */
} avl_cache_counts_t;

/* `rows` of `row_bytes` each. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_encoder_cache_create(int32_t rows, int64_t row_bytes,
                                                     avl_encoder_cache_t **cache_p);
void avl_encoder_cache_destroy(avl_encoder_cache_t *cache);

/* Gives every picture a place, places[i], and begins its use; *hits_p counts those that were there
 * before. Returns false, and changes no use, when what others use leaves no room now. A request
 * whose pictures have no more rows than the cache fits when nobody else uses any. */
bool avl_encoder_cache_take(avl_encoder_cache_t *cache, const avl_request_image_t *images,
                            int32_t image_count, avl_plan_place_t *places, int32_t *hits_p);
/* Ends the use that take began; what was never encoded is forgotten. */
void avl_encoder_cache_give(avl_encoder_cache_t *cache, const avl_plan_place_t *places,
                            int32_t place_count);

/* Whether the picture at this row is encoded, or is planned to be. */
bool avl_encoder_cache_is_ready(const avl_encoder_cache_t *cache, int32_t feature_row);
/* A plan encodes it; or did not, after all. */
void avl_encoder_cache_set_ready(avl_encoder_cache_t *cache, int32_t feature_row, bool ready);

avl_cache_counts_t avl_encoder_cache_counts(const avl_encoder_cache_t *cache);

#endif
