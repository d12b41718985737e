#include "client/eval_report.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "client/eval_score.h"
#include "client/json.h"
#include "client/terminal.h"

static const char *const score_names[] = {
    [AVL_EVAL_EXACT] = "exact", [AVL_EVAL_ITEMS] = "items", [AVL_EVAL_CONTAINS] = "contains"};

/* How a task's items are scored: the one way, or "mixed". */
static const char *score_of(const avl_eval_run_t *run, size_t task) {
    const char *name = NULL;
    for (size_t i = 0; i < run->tasks->item_count; i++) {
        const avl_eval_item_t *item = &run->tasks->items[i];
        if (item->task != task || item->answer_count == 0)
            continue;
        if (name != NULL && name != score_names[item->score])
            return "mixed";
        name = score_names[item->score];
    }
    return name != NULL ? name : "none";
}

/* ---- the table ---- */

static void print_head(FILE *stream, const avl_eval_setting_t *setting, const avl_eval_run_t *run) {
    fputs("model      ", stream);
    avl_terminal_write(stream, setting->info->model);
    fprintf(stream, ", %u rank%s, ", setting->info->ranks, setting->info->ranks == 1 ? "" : "s");
    avl_terminal_write(stream, setting->info->device);
    fputs(", ", stream);
    avl_terminal_write(stream, setting->info->dtype);
    fputs("\nquestions  ", stream);
    avl_terminal_write(stream, setting->tasks_path);
    fprintf(stream, ", %zu in %zu task%s, %zu at once, %.1f s\n", run->tasks->item_count,
            run->tasks->name_count, run->tasks->name_count == 1 ? "" : "s", run->concurrency,
            setting->duration_s);
    if (run->failed > 0) {
        fprintf(stream, "failed     %llu requests, first: %s: ", (unsigned long long)run->failed,
                avl_status_name(run->first_failure));
        avl_terminal_write(stream, run->first_detail);
        fputc('\n', stream);
    }
}

static void print_percent(FILE *stream, const avl_eval_mean_t *mean, bool interval) {
    if (mean->count == 0)
        fputs(interval ? "      -                " : "      -", stream);
    else if (interval)
        fprintf(stream, " %6.2f [%6.2f,%6.2f]", 100 * mean->mean, 100 * mean->low,
                100 * mean->high);
    else
        fprintf(stream, " %6.2f", 100 * mean->mean);
}

static void print_difference(FILE *stream, const avl_eval_mean_t *mean) {
    if (mean->count == 0)
        fputs("       -               ", stream);
    else
        fprintf(stream, " %+7.2f [%+6.2f,%+6.2f]", 100 * mean->mean, 100 * mean->low,
                100 * mean->high);
}

static void print_row(FILE *stream, const char *name, int width, const avl_eval_cell_t *cell,
                      bool with_mass) {
    fprintf(stream, "%-*s", width, name);
    print_percent(stream, &cell->score, true);
    print_difference(stream, &cell->score_difference);
    print_percent(stream, &cell->after, false);
    print_percent(stream, &cell->same, false);
    print_percent(stream, &cell->agreed_after, false);
    if (cell->divergence_after.count > 0)
        fprintf(stream, " %8.2g", cell->divergence_after.mean);
    else
        fputs("        -", stream);
    if (with_mass)
        print_percent(stream, &cell->mass, false);
    fprintf(stream, " %7.1f %7.1f %8.1f %7.2f %8.1f\n", cell->rows_stored, cell->rows_computed,
            cell->kv_bytes / 1024, 1e3 * cell->token_s, 1e3 * cell->first_token_s);
}

static void print_task(FILE *stream, const avl_eval_run_t *run, const avl_eval_cell_t *cells,
                       size_t task) {
    size_t tasks = run->tasks->name_count;
    const avl_eval_cell_t *dense = &cells[task];
    int width = 6;
    bool with_mass = false;
    for (size_t i = 0; i < run->method_count; i++) {
        int bytes = (int)strlen(run->methods[i].name);
        width = bytes > width ? bytes : width;
        with_mass = with_mass || cells[i * tasks + task].mass.count > 0;
    }
    fputc('\n', stream);
    avl_terminal_write(stream, run->tasks->names[task]);
    fprintf(stream, ": %zu questions, score: %s, %.1f visual rows, %.1f tokens\n", dense->items,
            score_of(run, task), dense->rows_seen, dense->tokens);
    fprintf(stream, "%-*s %6s %-15s %7s %-15s %6s %6s %6s %8s%s %7s %7s %8s %7s %8s\n", width,
            "method", "score", "95 %", "-dense", "95 %", "after1", "same", "forced", "KL",
            with_mass ? "   mass" : "", "stored", "comp.", "KV KiB", "ms/tok", "TTFT ms");
    for (size_t i = 0; i < run->method_count; i++) {
        print_row(stream, run->methods[i].name, width, &cells[i * tasks + task], with_mass);
        if (cells[i * tasks + task].answered < dense->items)
            fprintf(stream, "%*s %zu of %zu answered\n", width, "",
                    cells[i * tasks + task].answered, dense->items);
    }
}

avl_status_t avl_eval_print_table(FILE *stream, const avl_eval_setting_t *setting,
                                  const avl_eval_run_t *run, const avl_eval_cell_t *cells) {
    print_head(stream, setting, run);
    for (size_t i = 0; i < run->tasks->name_count; i++)
        print_task(stream, run, cells, i);
    if (fflush(stream) != 0 || ferror(stream))
        return avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
    return AVL_OK;
}

/* ---- JSON ---- */

/* null when nothing was measured. */
static json_t *mean_json(const avl_eval_mean_t *mean) {
    if (mean->count == 0)
        return json_null();
    return json_pack("{s:I, s:f, s:f, s:f}", "count", (json_int_t)mean->count, "mean", mean->mean,
                     "low", mean->low, "high", mean->high);
}

static json_t *cell_json(const avl_eval_run_t *run, const avl_eval_cell_t *cell, size_t task) {
    return json_pack(
        "{s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o,"
        " s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
        "task", run->tasks->names[task], "questions", (json_int_t)cell->items, "answered",
        (json_int_t)cell->answered, "score", mean_json(&cell->score), "score_minus_dense",
        mean_json(&cell->score_difference), "score_after_first", mean_json(&cell->after),
        "score_after_first_minus_dense", mean_json(&cell->after_difference), "same_as_dense",
        mean_json(&cell->same), "tokens_before_first_other", mean_json(&cell->kept),
        "first_other_token", cell->first_other >= 0 ? json_real(cell->first_other) : json_null(),
        "forced_agreement", mean_json(&cell->agreed), "forced_agreement_after_first",
        mean_json(&cell->agreed_after), "forced_kl", mean_json(&cell->divergence),
        "forced_kl_after_first", mean_json(&cell->divergence_after), "captured_mass",
        mean_json(&cell->mass), "stored_mass", mean_json(&cell->stored_mass), "prompt_tokens",
        cell->prompt_tokens, "cached_prompt_tokens", cell->cached_tokens, "answer_tokens",
        cell->tokens, "visual_rows", cell->rows_seen, "visual_rows_stored", cell->rows_stored,
        "visual_rows_computed", cell->rows_computed, "kv_bytes", cell->kv_bytes,
        "first_token_seconds", cell->first_token_s, "seconds_per_token", cell->token_s,
        "request_seconds", cell->total_s);
}

static json_t *method_json(const avl_eval_run_t *run, const avl_eval_cell_t *cells, size_t method) {
    size_t tasks = run->tasks->name_count;
    json_t *list = json_array();
    for (size_t i = 0; i < tasks; i++)
        json_array_append_new(list, cell_json(run, &cells[method * tasks + i], i));
    const avl_eval_method_t *from = &run->methods[method];
    json_t *in_force = run->in_force != NULL ? run->in_force[method] : NULL;
    return json_pack("{s:s, s:s, s:O?, s:o}", "method", from->name, "family", from->family,
                     "parameters", in_force, "tasks", list);
}

static json_t *report_json(const avl_eval_setting_t *setting, const avl_eval_run_t *run,
                           const avl_eval_cell_t *cells) {
    const Avl__V1__GetModelInfoResponse *info = setting->info;
    json_t *methods = json_array(), *tasks = json_array();
    for (size_t i = 0; i < run->method_count; i++)
        json_array_append_new(methods, method_json(run, cells, i));
    for (size_t i = 0; i < run->tasks->name_count; i++)
        json_array_append_new(tasks,
                              json_pack("{s:s, s:s, s:I}", "task", run->tasks->names[i], "score",
                                        score_of(run, i), "questions", (json_int_t)cells[i].items));
    return json_pack("{s:s, s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:b, s:s?, s:I, s:o,"
                     " s:o}",
                     "backend", "avl", "version", AVL_VERSION, "model_id", info->model, "ranks",
                     (json_int_t)info->ranks, "device", info->device, "dtype", info->dtype,
                     "server", setting->server, "questions_file", setting->tasks_path,
                     "concurrency", (json_int_t)run->concurrency, "max_tokens",
                     (json_int_t)run->max_tokens, "duration", setting->duration_s, "interrupted",
                     setting->interrupted, "failure", setting->failure, "failed",
                     (json_int_t)run->failed, "tasks", tasks, "methods", methods);
}

static avl_status_t io_failed(const char *path) {
    return avl_fail(AVL_ERR_IO, "%s: %s", path, strerror(errno));
}

/* "-" is standard output. */
static avl_status_t open_output(const char *path, FILE **stream_p) {
    *stream_p = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    return *stream_p != NULL ? AVL_OK : io_failed(path);
}

static avl_status_t close_output(const char *path, FILE *stream) {
    bool failed = fflush(stream) != 0 || ferror(stream) != 0;
    if (stream != stdout)
        failed = fclose(stream) != 0 || failed;
    return failed ? io_failed(path) : AVL_OK;
}

/* Takes the object; NULL: it could not be made. */
static avl_status_t write_object(FILE *stream, json_t *object, size_t flags) {
    char *text = object != NULL ? json_dumps(object, JSON_REAL_PRECISION(9) | flags) : NULL;
    json_decref(object);
    if (text == NULL) /* names or numbers from the service that are none */
        return avl_fail(AVL_ERR_INTERNAL, "the results do not fit JSON");
    avl_terminal_write(stream, text);
    fputc('\n', stream);
    free(text);
    return AVL_OK;
}

avl_status_t avl_eval_write_json(const char *path, const avl_eval_setting_t *setting,
                                 const avl_eval_run_t *run, const avl_eval_cell_t *cells) {
    FILE *stream = NULL;
    AVL_TRY(open_output(path, &stream));
    avl_status_t status = write_object(stream, report_json(setting, run, cells), JSON_INDENT(1));
    avl_status_t closed = close_output(path, stream);
    return status != AVL_OK ? status : closed;
}

static json_t *answer_json(const avl_eval_run_t *run, size_t method, size_t item, double score) {
    const avl_eval_item_t *asked = &run->tasks->items[item];
    const avl_eval_record_t *record = avl_eval_record(run, method, item);
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:f, s:I, s:o, s:o}", "id", asked->id, "task",
        run->tasks->names[asked->task], "method", run->methods[method].name, "text",
        record->text != NULL ? record->text : "", "score",
        asked->answer_count > 0 ? json_real(score) : json_null(), "tokens",
        (json_int_t)record->id_count, "visual_rows", (json_int_t)record->rows_seen,
        "visual_rows_stored", (json_int_t)record->rows_stored, "visual_rows_computed",
        record->rows_computed, "kv_bytes", (json_int_t)record->kv_bytes, "forced_agreement",
        record->compared ? json_real((double)record->agreed / record->positions) : json_null(),
        "forced_kl",
        record->compared ? json_real(record->divergence / record->positions) : json_null());
}

avl_status_t avl_eval_write_answers(const char *path, const avl_eval_run_t *run) {
    FILE *stream = NULL;
    AVL_TRY(open_output(path, &stream));
    avl_status_t status = AVL_OK;
    for (size_t i = 0; i < run->method_count * run->tasks->item_count && status == AVL_OK; i++) {
        size_t method = i / run->tasks->item_count, item = i % run->tasks->item_count;
        const avl_eval_record_t *record = avl_eval_record(run, method, item);
        double score = 0;
        if (!record->answered)
            continue;
        status = avl_eval_score(&run->tasks->items[item], record->text != NULL ? record->text : "",
                                &score);
        if (status == AVL_OK)
            status = write_object(stream, answer_json(run, method, item, score), JSON_COMPACT);
    }
    avl_status_t closed = close_output(path, stream);
    return status != AVL_OK ? status : closed;
}
