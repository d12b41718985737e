/* worker/ledger.h: the memory of one rank, budgeted together at start and printed.
 *
 * Everything that serving needs is a line here before the first request comes; the page pool gets
 * what remains. */
#ifndef AVL_WORKER_LEDGER_H
#define AVL_WORKER_LEDGER_H

#include <stdint.h>

#include "base/status.h"
#include "comm/group.h"

#define AVL_LEDGER_LINES_MAX 16

typedef struct avl_ledger_line {
    const char *name; /* kept, not copied */
    int64_t bytes;
} avl_ledger_line_t;

typedef struct avl_ledger {
    int64_t budget_bytes;
    int64_t mapped_bytes; /* of the checkpoint's mapping, used in place: shared with the page cache,
                             outside the budget */
    /* Over all ranks: what more than one of them holds, because they read the same KV heads. */
    int64_t duplicate_weight_bytes, duplicate_page_bytes;
    avl_ledger_line_t lines[AVL_LEDGER_LINES_MAX];
    int line_count;
} avl_ledger_t;

void avl_ledger_add(avl_ledger_t *ledger, const char *name, int64_t bytes);
int64_t avl_ledger_used(const avl_ledger_t *ledger);
/* Pages that the rest of the budget pays for, `pages_most` at most.
 * Errors: AVL_ERR_EXHAUSTED with the numbers, when it is less than `pages_least`. */
AVL_MUST_CHECK avl_status_t avl_ledger_pages(const avl_ledger_t *ledger, int64_t page_bytes,
                                             int64_t pages_least, int64_t pages_most,
                                             int64_t *pages_p);
/* Every rank's ledger, on every rank: [ranks], to be freed. The ranks must have added the same
 * lines in the same order. Collective. Errors: AVL_ERR_MEMORY, those of the group. */
AVL_MUST_CHECK avl_status_t avl_ledger_gather(const avl_ledger_t *ledger, avl_group_t *group,
                                              avl_ledger_t **ledgers_p);
/* Logs the table. */
void avl_ledger_log(const avl_ledger_t *ledger, int rank, int ranks);

#endif
