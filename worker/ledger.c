#include "worker/ledger.h"

#include "base/log.h"

#define MIB (1024.0 * 1024.0)

void avl_ledger_add(avl_ledger_t *ledger, const char *name, int64_t bytes) {
    AVL_ASSERT(ledger->line_count < AVL_LEDGER_LINES_MAX);
    ledger->lines[ledger->line_count++] = (avl_ledger_line_t){.name = name, .bytes = bytes};
}

int64_t avl_ledger_used(const avl_ledger_t *ledger) {
    int64_t used = 0;
    for (int i = 0; i < ledger->line_count; i++)
        used += ledger->lines[i].bytes;
    return used;
}

avl_status_t avl_ledger_pages(const avl_ledger_t *ledger, int64_t page_bytes, int64_t pages_least,
                              int64_t pages_most, int64_t *pages_p) {
    int64_t used = avl_ledger_used(ledger);
    int64_t left = ledger->budget_bytes > used ? ledger->budget_bytes - used : 0;
    int64_t pages = left / page_bytes;
    if (pages < pages_least)
        return avl_fail(AVL_ERR_EXHAUSTED,
                        "memory: of %.1f MiB, %.1f MiB are taken by weights and buffers; the rest "
                        "makes %lld pages of %lld bytes, and one sequence needs %lld",
                        (double)ledger->budget_bytes / MIB, (double)used / MIB, (long long)pages,
                        (long long)page_bytes, (long long)pages_least);
    *pages_p = pages < pages_most ? pages : pages_most;
    return AVL_OK;
}

void avl_ledger_log(const avl_ledger_t *ledger, int rank, int ranks) {
    avl_log_info("memory of rank %d of %d, MiB (budget %.1f):", rank, ranks,
                 (double)ledger->budget_bytes / MIB);
    for (int i = 0; i < ledger->line_count; i++)
        avl_log_info("  %-22s %10.1f", ledger->lines[i].name, (double)ledger->lines[i].bytes / MIB);
    avl_log_info("  %-22s %10.1f", "sum", (double)avl_ledger_used(ledger) / MIB);
    if (ledger->mapped_bytes > 0)
        avl_log_info("  %-22s %10.1f, in place in the mapped checkpoint", "weights besides",
                     (double)ledger->mapped_bytes / MIB);
    if (ledger->duplicate_weight_bytes + ledger->duplicate_page_bytes > 0)
        avl_log_info("  held by more than one rank, for KV heads that both read: %.3f of weights, "
                     "%.1f of KV pages, over all ranks",
                     (double)ledger->duplicate_weight_bytes / MIB,
                     (double)ledger->duplicate_page_bytes / MIB);
}
