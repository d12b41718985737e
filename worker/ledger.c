#include "worker/ledger.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"

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

/* Line names are the same everywhere, and pointers mean nothing elsewhere: numbers travel. */
typedef struct ledger_numbers {
    int64_t budget_bytes, mapped_bytes;
    int64_t line_bytes[AVL_LEDGER_LINES_MAX];
} ledger_numbers_t;

avl_status_t avl_ledger_gather(const avl_ledger_t *ledger, avl_group_t *group,
                               avl_ledger_t **ledgers_p) {
    size_t ranks = (size_t)avl_group_ranks(group);
    ledger_numbers_t *numbers = NULL;
    avl_ledger_t *ledgers = NULL;
    avl_status_t status = avl_alloc(ranks, sizeof *numbers, "ledgers of ranks", &numbers);
    if (status == AVL_OK)
        status = avl_alloc(ranks, sizeof *ledgers, "ledgers of ranks", &ledgers);
    AVL_TRY_GOTO(status, avl_group_agree(group, status), err_free);
    ledger_numbers_t *own = &numbers[avl_group_rank(group)];
    own->budget_bytes = ledger->budget_bytes;
    own->mapped_bytes = ledger->mapped_bytes;
    for (int i = 0; i < ledger->line_count; i++)
        own->line_bytes[i] = ledger->lines[i].bytes;
    AVL_TRY_GOTO(status, avl_group_all_gather(group, numbers, sizeof *numbers), err_free);
    for (size_t rank = 0; rank < ranks; rank++) {
        ledgers[rank] = *ledger;
        ledgers[rank].budget_bytes = numbers[rank].budget_bytes;
        ledgers[rank].mapped_bytes = numbers[rank].mapped_bytes;
        for (int i = 0; i < ledger->line_count; i++)
            ledgers[rank].lines[i].bytes = numbers[rank].line_bytes[i];
    }
    free(numbers);
    *ledgers_p = ledgers;
    return AVL_OK;
err_free:
    free(numbers);
    free(ledgers);
    return status;
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
