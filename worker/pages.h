/* worker/pages.h: the pool of key and value pages of one rank.
 *
 * Two tensors [slots, Hk, D], allocated once; a page is AVL_PAGE_ROWS consecutive slots. A page
 * belongs to one sequence, one layer and one segment, so that evicted rows give their memory back
 * at once and layers may differ in what they hold.
 *
 * Every rank runs the same takes and gives in the same order (they follow from the step plan), so
 * page numbers agree over ranks without travelling. The pool refuses nothing on its own: the
 * leader's scheduler admits only what fits (worker/scheduler.h), and a dry pool is its bug.
 *
 * A page that was filled and is only read may be shared: it is free when everyone who had it has
 * given it back. Nobody writes to a shared page.
 *
 * Invariants, asserted: a page is free, has one owner who alone gives it back, or is shared and is
 * given back as often as it was taken and shared. */
#ifndef AVL_WORKER_PAGES_H
#define AVL_WORKER_PAGES_H

#include <stdbool.h>

#include "kernels/attention.h"

typedef struct avl_pages avl_pages_t;

typedef enum avl_page_segment {
    AVL_SEGMENT_TEXT,
    AVL_SEGMENT_VISUAL,
} avl_page_segment_t;

typedef struct avl_page_owner {
    int32_t sequence;
    int32_t layer;
    avl_page_segment_t segment;
} avl_page_owner_t;

typedef struct avl_pages_counts {
    int64_t total;
    int64_t taken;
    int64_t taken_most; /* since the start */
} avl_pages_counts_t;

/* Bytes of one page: keys and values of AVL_PAGE_ROWS rows, and the numbers beside them. */
int64_t avl_pages_page_bytes(int kv_heads, int head_width, avl_dtype_t dtype);

/* Errors: AVL_ERR_MEMORY; AVL_ERR_TOO_LARGE for more slots than an i32 can name. */
AVL_MUST_CHECK avl_status_t avl_pages_create(avl_device_t *device, int kv_heads, int head_width,
                                             avl_dtype_t dtype, int64_t page_count,
                                             avl_pages_t **pages_p);
void avl_pages_destroy(avl_pages_t *pages);

/* A free page, or -1 when there is none. */
int32_t avl_pages_take(avl_pages_t *pages, avl_page_owner_t owner);
void avl_pages_give(avl_pages_t *pages, int32_t page, avl_page_owner_t owner);

/* One more holder of a taken page. */
void avl_pages_share(avl_pages_t *pages, int32_t page);
/* Whether somebody else holds it as well. */
bool avl_pages_is_shared(const avl_pages_t *pages, int32_t page);

avl_kv_view_t avl_pages_view(const avl_pages_t *pages);
/* The tensors for writing. */
void *avl_pages_keys(avl_pages_t *pages);
void *avl_pages_values(avl_pages_t *pages);
/* Numbers beside every slot and KV head, at avl_row_place: where the row stands, and how much it
 * has been looked at. Of sequences that evict text alone (worker/text_store.h). */
float *avl_pages_scores(avl_pages_t *pages);
int32_t *avl_pages_positions(avl_pages_t *pages);
avl_pages_counts_t avl_pages_counts(const avl_pages_t *pages);
/* Pages that `sequence` owns and never shared: for tests and reports. */
int64_t avl_pages_owned(const avl_pages_t *pages, int32_t sequence);

#endif
