#include "client/eval_tasks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "client/request.h"

#define MAX_TOKENS_MAX 65536
#define TURNS_MAX 256

/* Where a fault is: file and line come before every text. */
typedef struct place {
    const char *path;
    size_t line;
    int folder_bytes; /* of path, with the slash; 0: none */
} place_t;

static avl_status_t fault(const place_t *place, const char *field, const char *text) {
    return avl_fail(AVL_ERR_INVALID, "%s:%zu: %s: %s", place->path, place->line, field, text);
}

/* A text that is not empty; `required` says whether it must be there. */
static avl_status_t read_text(const place_t *place, const json_t *object, const char *field,
                              bool required, const char **text_p) {
    const json_t *value = json_object_get(object, field);
    *text_p = NULL;
    if (value == NULL)
        return required ? fault(place, field, "is missing") : AVL_OK;
    if (!json_is_string(value))
        return fault(place, field, "is not a text");
    if (json_string_length(value) == 0)
        return fault(place, field, "is empty");
    *text_p = json_string_value(value);
    return AVL_OK;
}

static avl_status_t refuse_other_keys(const place_t *place, json_t *object, const char *where,
                                      const char *const *allowed) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        size_t i = 0;
        while (allowed[i] != NULL && strcmp(allowed[i], key) != 0)
            i++;
        if (allowed[i] == NULL)
            return avl_fail(AVL_ERR_INVALID, "%s:%zu: %s\"%s\" is no known key", place->path,
                            place->line, where, key);
    }
    return AVL_OK;
}

static avl_status_t add_image(const place_t *place, const char *where, size_t index,
                              const json_t *value, avl_eval_turn_t *turn) {
    char field[64];
    snprintf(field, sizeof field, "%simages[%zu]", where, index);
    if (!json_is_string(value) || json_string_length(value) == 0)
        return fault(place, field, "is not the name of a file");
    const char *name = json_string_value(value);
    int folder_bytes = name[0] == '/' ? 0 : place->folder_bytes;
    size_t bytes = (size_t)folder_bytes + strlen(name) + 1;
    char *path = NULL;
    AVL_TRY(avl_alloc(bytes, 1, "a picture's name", &path));
    snprintf(path, bytes, "%.*s%s", folder_bytes, place->path, name);
    turn->images[turn->image_count++] = path;
    struct stat info;
    if (stat(path, &info) != 0 || access(path, R_OK) != 0)
        return avl_fail(errno == ENOENT ? AVL_ERR_NOT_FOUND : AVL_ERR_IO, "%s:%zu: %s: %s: %s",
                        place->path, place->line, field, path, strerror(errno));
    if (!S_ISREG(info.st_mode) || info.st_size == 0)
        return avl_fail(AVL_ERR_INVALID, "%s:%zu: %s: %s: %s", place->path, place->line, field,
                        path, S_ISREG(info.st_mode) ? "is empty" : "is not a regular file");
    return AVL_OK;
}

/* The pictures of `object` are those of `turn`. */
static avl_status_t read_images(const place_t *place, const json_t *object, const char *where,
                                avl_eval_turn_t *turn) {
    const json_t *images = json_object_get(object, "images");
    char field[64];
    snprintf(field, sizeof field, "%simages", where);
    if (images == NULL)
        return AVL_OK;
    if (!json_is_array(images))
        return fault(place, field, "is not a list");
    if (json_array_size(images) > AVL_REQUEST_IMAGES_MAX)
        return fault(place, field, "has more pictures than a request may have");
    AVL_TRY(avl_alloc(json_array_size(images), sizeof *turn->images, "pictures", &turn->images));
    for (size_t i = 0; i < json_array_size(images); i++)
        AVL_TRY(add_image(place, where, i, json_array_get(images, i), turn));
    return AVL_OK;
}

static avl_status_t read_turn(const place_t *place, json_t *object, size_t index,
                              avl_eval_turn_t *turn) {
    static const char *const keys[] = {"role", "text", "images", NULL};
    char where[48], field[64];
    snprintf(where, sizeof where, "turns[%zu].", index);
    snprintf(field, sizeof field, "turns[%zu].role", index);
    if (!json_is_object(object))
        return avl_fail(AVL_ERR_INVALID, "%s:%zu: turns[%zu]: is not an object", place->path,
                        place->line, index);
    AVL_TRY(refuse_other_keys(place, object, where, keys));
    const char *role = json_string_value(json_object_get(object, "role"));
    if (role == NULL || (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0))
        return fault(place, field, "is neither \"user\" nor \"assistant\"");
    turn->assistant = role[0] == 'a';
    if (turn->assistant != (index % 2 == 1))
        return fault(place, field, "turns alternate, the user first");
    turn->text = json_string_value(json_object_get(object, "text"));
    snprintf(field, sizeof field, "turns[%zu].text", index);
    if (turn->text == NULL || turn->text[0] == '\0')
        return fault(place, field, "is missing, empty or not a text");
    snprintf(field, sizeof field, "turns[%zu].images", index);
    if (turn->assistant && json_object_get(object, "images") != NULL)
        return fault(place, field, "only user turns bring pictures");
    return read_images(place, object, where, turn);
}

static avl_status_t read_turns(const place_t *place, avl_eval_item_t *item) {
    json_t *turns = json_object_get(item->json, "turns");
    const char *question = NULL;
    AVL_TRY(read_text(place, item->json, "question", turns == NULL, &question));
    if (question != NULL && turns != NULL)
        return fault(place, "turns", "question and turns exclude each other");
    size_t count = turns != NULL ? json_array_size(turns) : 1;
    if (turns != NULL && (count % 2 != 1 || count > TURNS_MAX))
        return fault(place, "turns", "is not a list of turns that begins and ends with the user's");
    AVL_TRY(avl_alloc(count, sizeof *item->turns, "turns", &item->turns));
    item->turn_count = count;
    if (turns == NULL)
        item->turns[0].text = question;
    for (size_t i = 0; i < count && turns != NULL; i++)
        AVL_TRY(read_turn(place, json_array_get(turns, i), i, &item->turns[i]));
    if (json_object_get(item->json, "images") != NULL && item->turns[0].images != NULL)
        return fault(place, "images", "the first turn has pictures of its own");
    return read_images(place, item->json, "", &item->turns[0]);
}

static avl_status_t read_answers(const place_t *place, avl_eval_item_t *item) {
    const json_t *answer = json_object_get(item->json, "answer");
    if (answer == NULL)
        return AVL_OK;
    bool list = json_is_array(answer);
    size_t count = list ? json_array_size(answer) : 1;
    if (count == 0)
        return fault(place, "answer", "is an empty list: leave it out to measure agreement alone");
    AVL_TRY(avl_alloc(count, sizeof *item->answers, "answers", &item->answers));
    for (size_t i = 0; i < count; i++) {
        const json_t *value = list ? json_array_get(answer, i) : answer;
        if (!json_is_string(value))
            return fault(place, "answer", "is neither a text nor a list of texts");
        item->answers[item->answer_count++] = json_string_value(value);
    }
    return AVL_OK;
}

static avl_status_t read_scoring(const place_t *place, avl_eval_item_t *item) {
    static const char *const names[] = {
        [AVL_EVAL_EXACT] = "exact", [AVL_EVAL_ITEMS] = "items", [AVL_EVAL_CONTAINS] = "contains"};
    const char *score = NULL;
    AVL_TRY(read_text(place, item->json, "score", false, &score));
    size_t kind = 0, kinds = sizeof names / sizeof names[0];
    while (score != NULL && kind < kinds && strcmp(names[kind], score) != 0)
        kind++;
    if (kind == kinds)
        return avl_fail(AVL_ERR_INVALID,
                        "%s:%zu: score: \"%s\" is none; there are exact, items and contains",
                        place->path, place->line, score);
    item->score = (avl_eval_score_kind_t)kind;
    const json_t *ignore = json_object_get(item->json, "ignore_case");
    if (ignore != NULL && !json_is_boolean(ignore))
        return fault(place, "ignore_case", "is neither true nor false");
    item->ignore_case = json_is_true(ignore);
    const json_t *tokens = json_object_get(item->json, "max_tokens");
    if (tokens != NULL && (!json_is_integer(tokens) || json_integer_value(tokens) < 1 ||
                           json_integer_value(tokens) > MAX_TOKENS_MAX))
        return fault(place, "max_tokens", "is not a whole number from 1 to 65536");
    item->max_tokens = (uint32_t)json_integer_value(tokens);
    return read_answers(place, item);
}

/* The number of the item's task, which is new or known. */
static avl_status_t read_task(const place_t *place, avl_eval_tasks_t *tasks,
                              avl_eval_item_t *item) {
    const char *name = NULL;
    AVL_TRY(read_text(place, item->json, "task", false, &name));
    if (name == NULL)
        name = "all";
    size_t i = 0;
    while (i < tasks->name_count && strcmp(tasks->names[i], name) != 0)
        i++;
    if (i == AVL_EVAL_TASKS_MAX)
        return fault(place, "task", "is the 33rd; 32 are enough for a table");
    if (i == tasks->name_count)
        tasks->names[tasks->name_count++] = name;
    item->task = i;
    return AVL_OK;
}

static avl_status_t read_item(const place_t *place, avl_eval_tasks_t *tasks,
                              avl_eval_item_t *item) {
    static const char *const keys[] = {"id",    "task",        "images",     "question",
                                       "turns", "system",      "answer",     "score",
                                       "meta",  "ignore_case", "max_tokens", NULL};
    AVL_TRY(refuse_other_keys(place, item->json, "", keys));
    AVL_TRY(read_text(place, item->json, "id", true, &item->id));
    if (json_object_get(tasks->ids, item->id) != NULL)
        return avl_fail(AVL_ERR_INVALID, "%s:%zu: id: \"%s\" was there in line %lld", place->path,
                        place->line, item->id,
                        (long long)json_integer_value(json_object_get(tasks->ids, item->id)));
    if (json_object_set_new(tasks->ids, item->id, json_integer((json_int_t)place->line)) != 0)
        return avl_fail(AVL_ERR_MEMORY, "items: no memory");
    AVL_TRY(read_task(place, tasks, item));
    AVL_TRY(read_text(place, item->json, "system", false, &item->system));
    AVL_TRY(read_turns(place, item));
    return read_scoring(place, item);
}

static avl_status_t read_line(const place_t *place, const char *line, size_t bytes,
                              avl_eval_tasks_t *tasks) {
    if (bytes > AVL_REQUEST_TEXT_BYTES_MAX)
        return avl_fail(AVL_ERR_INVALID, "%s:%zu: the line has %zu bytes", place->path, place->line,
                        bytes);
    json_error_t error;
    json_t *json = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL)
        return avl_fail(AVL_ERR_INVALID, "%s:%zu: column %d: %s", place->path, place->line,
                        error.column, error.text);
    if (!json_is_object(json)) {
        json_decref(json);
        return avl_fail(AVL_ERR_INVALID, "%s:%zu: is not an object", place->path, place->line);
    }
    avl_status_t status = avl_grow(tasks->item_count + 1, sizeof *tasks->items, "items",
                                   &tasks->items, &tasks->item_capacity);
    if (status != AVL_OK) {
        json_decref(json);
        return status;
    }
    avl_eval_item_t *item = &tasks->items[tasks->item_count++];
    *item = (avl_eval_item_t){.json = json, .line = place->line};
    return read_item(place, tasks, item);
}

static void free_item(avl_eval_item_t *item) {
    for (size_t i = 0; i < item->turn_count; i++) {
        for (size_t j = 0; j < item->turns[i].image_count; j++)
            free(item->turns[i].images[j]);
        free(item->turns[i].images);
    }
    free(item->turns);
    free(item->answers);
    json_decref(item->json);
}

/* Of each task only the first `limit` items stay. Names of tasks lie in their first items. */
static void keep_first(avl_eval_tasks_t *tasks, size_t limit) {
    size_t seen[AVL_EVAL_TASKS_MAX] = {0}, kept = 0;
    for (size_t i = 0; i < tasks->item_count; i++) {
        if (seen[tasks->items[i].task]++ < limit)
            tasks->items[kept++] = tasks->items[i];
        else
            free_item(&tasks->items[i]);
    }
    tasks->item_count = kept;
}

static bool is_blank(const char *line) {
    return line[strspn(line, " \t\r\n")] == '\0';
}

avl_status_t avl_eval_tasks_read(const char *path, size_t limit, avl_eval_tasks_t *tasks_p) {
    memset(tasks_p, 0, sizeof *tasks_p);
    const char *slash = strrchr(path, '/');
    place_t place = {.path = path, .folder_bytes = slash != NULL ? (int)(slash + 1 - path) : 0};
    FILE *stream = fopen(path, "r");
    if (stream == NULL)
        return avl_fail(errno == ENOENT ? AVL_ERR_NOT_FOUND : AVL_ERR_IO, "%s: %s", path,
                        strerror(errno));
    avl_status_t status = AVL_OK;
    char *line = NULL;
    size_t capacity = 0;
    tasks_p->ids = json_object();
    if (tasks_p->ids == NULL)
        status = avl_fail(AVL_ERR_MEMORY, "items: no memory");
    errno = 0;
    for (ssize_t bytes; status == AVL_OK && (bytes = getline(&line, &capacity, stream)) > 0;) {
        place.line++;
        if (memchr(line, '\0', (size_t)bytes) != NULL || !is_blank(line))
            status = read_line(&place, line, (size_t)bytes, tasks_p);
    }
    if (status == AVL_OK && ferror(stream))
        status = avl_fail(AVL_ERR_IO, "%s: %s", path, strerror(errno));
    free(line);
    fclose(stream);
    AVL_TRY(status);
    if (tasks_p->item_count == 0)
        return avl_fail(AVL_ERR_INVALID, "%s: no question in it", path);
    if (limit > 0)
        keep_first(tasks_p, limit);
    return AVL_OK;
}

void avl_eval_tasks_free(avl_eval_tasks_t *tasks) {
    for (size_t i = 0; i < tasks->item_count; i++)
        free_item(&tasks->items[i]);
    free(tasks->items);
    json_decref(tasks->ids);
    memset(tasks, 0, sizeof *tasks);
}
