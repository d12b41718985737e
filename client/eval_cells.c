/* client/eval_cells.c: the figures of client/eval_report.h out of the answers. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "client/eval_report.h"
#include "client/eval_score.h"

/* The samples behind one cell. */
typedef struct gathered {
    avl_eval_samples_t score, score_difference, after, after_difference, same, kept;
    avl_eval_samples_t agreed, agreed_after, divergence, divergence_after;
    avl_eval_samples_t mass, stored_mass;
    double first_other_sum;
    size_t others;
} gathered_t;

static void gathered_free(gathered_t *gathered) {
    avl_eval_samples_free(&gathered->score);
    avl_eval_samples_free(&gathered->score_difference);
    avl_eval_samples_free(&gathered->after);
    avl_eval_samples_free(&gathered->after_difference);
    avl_eval_samples_free(&gathered->same);
    avl_eval_samples_free(&gathered->kept);
    avl_eval_samples_free(&gathered->agreed);
    avl_eval_samples_free(&gathered->agreed_after);
    avl_eval_samples_free(&gathered->divergence);
    avl_eval_samples_free(&gathered->divergence_after);
    avl_eval_samples_free(&gathered->mass);
    avl_eval_samples_free(&gathered->stored_mass);
}

/* The text of a record's first token, which the caller frees. */
static avl_status_t first_text(const avl_eval_record_t *record, char **first_p) {
    AVL_TRY(avl_copy_string(record->text != NULL ? record->text : "", first_p));
    (*first_p)[record->first_bytes] = '\0';
    return AVL_OK;
}

static const char *text_of(const avl_eval_record_t *record) {
    return record->text != NULL ? record->text : "";
}

static avl_status_t gather_scores(const avl_eval_item_t *item, const avl_eval_record_t *record,
                                  const avl_eval_record_t *dense, gathered_t *to) {
    double score = 0, dense_score = 0, after = 0, dense_after = 0;
    bool counts = false;
    if (item->answer_count == 0)
        return AVL_OK;
    AVL_TRY(avl_eval_score(item, text_of(record), &score));
    AVL_TRY(avl_eval_sample(&to->score, score, 1));
    if (!dense->answered)
        return AVL_OK;
    AVL_TRY(avl_eval_score(item, text_of(dense), &dense_score));
    AVL_TRY(avl_eval_sample(&to->score_difference, score - dense_score, 1));
    char *first = NULL;
    AVL_TRY(first_text(dense, &first));
    avl_status_t status = avl_eval_score_after_first(item, text_of(record), first, &counts, &after);
    if (status == AVL_OK)
        status = avl_eval_score_after_first(item, text_of(dense), first, &counts, &dense_after);
    free(first);
    AVL_TRY(status);
    if (counts) {
        AVL_TRY(avl_eval_sample(&to->after, after, 1));
        AVL_TRY(avl_eval_sample(&to->after_difference, after - dense_after, 1));
    }
    return AVL_OK;
}

static avl_status_t gather_agreement(const avl_eval_record_t *record,
                                     const avl_eval_record_t *dense, gathered_t *to) {
    if (!dense->answered || dense->id_count == 0)
        return AVL_OK;
    size_t common = 0;
    while (common < record->id_count && common < dense->id_count &&
           record->ids[common] == dense->ids[common])
        common++;
    bool same = common == record->id_count && common == dense->id_count;
    AVL_TRY(avl_eval_sample(&to->same, same, 1));
    AVL_TRY(avl_eval_sample(&to->kept, (double)common, (double)dense->id_count));
    if (!same) {
        to->first_other_sum += (double)common;
        to->others++;
    }
    if (!record->compared)
        return AVL_OK;
    double positions = record->positions;
    AVL_TRY(avl_eval_sample(&to->agreed, record->agreed, positions));
    AVL_TRY(avl_eval_sample(&to->divergence, record->divergence, positions));
    AVL_TRY(avl_eval_sample(&to->agreed_after, record->agreed_after, positions - 1));
    AVL_TRY(avl_eval_sample(&to->divergence_after, record->divergence_after, positions - 1));
    if (!record->mass_told)
        return AVL_OK;
    AVL_TRY(avl_eval_sample(&to->mass, record->mass, 1));
    return avl_eval_sample(&to->stored_mass, record->stored_mass, 1);
}

static void add_sums(const avl_eval_record_t *record, avl_eval_cell_t *cell) {
    cell->prompt_tokens += record->prompt_tokens;
    cell->cached_tokens += record->cached_tokens;
    cell->tokens += (double)record->id_count;
    cell->rows_seen += record->rows_seen;
    cell->rows_stored += record->rows_stored;
    cell->kv_bytes += (double)record->kv_bytes;
    cell->first_token_s += record->first_token_s;
    cell->total_s += record->total_s;
}

static void divide_sums(avl_eval_cell_t *cell) {
    double count = cell->answered > 0 ? (double)cell->answered : 1;
    cell->prompt_tokens /= count;
    cell->cached_tokens /= count;
    cell->tokens /= count;
    cell->rows_seen /= count;
    cell->rows_stored /= count;
    cell->kv_bytes /= count;
    cell->first_token_s /= count;
    cell->total_s /= count;
}

static avl_status_t make_means(const gathered_t *from, avl_eval_cell_t *cell) {
    AVL_TRY(avl_eval_mean(&from->score, false, &cell->score));
    AVL_TRY(avl_eval_mean(&from->score_difference, true, &cell->score_difference));
    AVL_TRY(avl_eval_mean(&from->after, false, &cell->after));
    AVL_TRY(avl_eval_mean(&from->after_difference, true, &cell->after_difference));
    AVL_TRY(avl_eval_mean(&from->same, false, &cell->same));
    AVL_TRY(avl_eval_mean(&from->kept, true, &cell->kept));
    AVL_TRY(avl_eval_mean(&from->agreed, true, &cell->agreed));
    AVL_TRY(avl_eval_mean(&from->agreed_after, true, &cell->agreed_after));
    AVL_TRY(avl_eval_mean(&from->divergence, true, &cell->divergence));
    AVL_TRY(avl_eval_mean(&from->divergence_after, true, &cell->divergence_after));
    AVL_TRY(avl_eval_mean(&from->mass, true, &cell->mass));
    AVL_TRY(avl_eval_mean(&from->stored_mass, true, &cell->stored_mass));
    cell->first_other = from->others > 0 ? from->first_other_sum / (double)from->others : -1;
    return AVL_OK;
}

static avl_status_t make_cell(const avl_eval_run_t *run, size_t method, size_t task,
                              avl_eval_cell_t *cell) {
    gathered_t gathered = {0};
    double token_steps = 0;
    avl_status_t status = AVL_OK;
    for (size_t i = 0; i < run->tasks->item_count && status == AVL_OK; i++) {
        const avl_eval_item_t *item = &run->tasks->items[i];
        const avl_eval_record_t *record = avl_eval_record(run, method, i);
        const avl_eval_record_t *dense = avl_eval_record(run, 0, i);
        if (item->task != task)
            continue;
        cell->items++;
        if (!record->answered)
            continue;
        cell->answered++;
        add_sums(record, cell);
        double steps = record->id_count > 1 ? (double)record->id_count - 1 : 0;
        cell->token_s += record->token_s * steps;
        cell->rows_computed += record->rows_computed * steps;
        token_steps += steps;
        status = gather_scores(item, record, dense, &gathered);
        if (status == AVL_OK)
            status = gather_agreement(record, dense, &gathered);
    }
    divide_sums(cell);
    if (token_steps > 0) { /* an answer of one token has no step of its own */
        cell->token_s /= token_steps;
        cell->rows_computed /= token_steps;
    }
    if (status == AVL_OK)
        status = make_means(&gathered, cell);
    gathered_free(&gathered);
    return status;
}

avl_status_t avl_eval_cells(const avl_eval_run_t *run, avl_eval_cell_t **cells_p) {
    avl_eval_cell_t *cells = NULL;
    size_t tasks = run->tasks->name_count;
    AVL_TRY(avl_alloc(run->method_count * tasks, sizeof *cells, "results", &cells));
    for (size_t i = 0; i < run->method_count * tasks; i++) {
        avl_status_t status = make_cell(run, i / tasks, i % tasks, &cells[i]);
        if (status != AVL_OK) {
            free(cells);
            return status;
        }
    }
    *cells_p = cells;
    return AVL_OK;
}
