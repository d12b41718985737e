#include "checkpoint/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

/* Enough for the deepest path of any known file; a longer one is cut. */
#define PATH_TEXT_BYTES 192
/* What an error shows of a value. */
#define VALUE_TEXT_BYTES 64

avl_status_t avl_json_open(const char *directory, const char *name, size_t bytes_max,
                           avl_json_document_t *document_p) {
    char *path = NULL;
    char *text = NULL;
    size_t bytes = 0;
    AVL_TRY(avl_file_read(directory, name, bytes_max, &text, &bytes));
    avl_status_t status = AVL_OK;
    if (asprintf(&path, "%s/%s", directory, name) < 0) {
        path = NULL;
        status = avl_fail(AVL_ERR_MEMORY, "no memory for the path of %s", name);
    }
    if (status == AVL_OK)
        status = avl_json_parse(path, text, bytes, document_p);
    free(path);
    free(text);
    return status;
}

avl_status_t avl_json_parse(const char *path, const char *text, size_t bytes,
                            avl_json_document_t *document_p) {
    json_error_t error;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (root == NULL) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return avl_fail(AVL_ERR_MEMORY, "%s: no memory for its JSON", path);
        return avl_fail(AVL_ERR_DATA, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    }
    char *copy = NULL;
    avl_status_t status = avl_copy_string(path, &copy);
    if (status != AVL_OK) {
        json_decref(root);
        return status;
    }
    *document_p = (avl_json_document_t){.path = copy, .root = root};
    return AVL_OK;
}

void avl_json_close(avl_json_document_t *document) {
    json_decref(document->root);
    free(document->path);
    *document = (avl_json_document_t){0};
}

avl_json_node_t avl_json_root(const avl_json_document_t *document) {
    return (avl_json_node_t){.document = document, .value = document->root};
}

avl_json_node_t avl_json_member(const avl_json_node_t *parent, const char *key) {
    return (avl_json_node_t){
        .document = parent->document,
        .parent = parent,
        .key = key,
        .value = json_object_get(parent->value, key), /* NULL for what is no object */
    };
}

avl_json_node_t avl_json_element(const avl_json_node_t *parent, size_t index) {
    return (avl_json_node_t){
        .document = parent->document,
        .parent = parent,
        .index = index,
        .value = json_array_get(parent->value, index),
    };
}

bool avl_json_present(const avl_json_node_t *node) {
    return node->value != NULL && !json_is_null(node->value);
}

bool avl_json_is_null(const avl_json_node_t *node) {
    return json_is_null(node->value);
}

size_t avl_json_count(const avl_json_node_t *node) {
    return json_is_array(node->value) ? json_array_size(node->value)
                                      : json_object_size(node->value);
}

/* Appends the path of `node` to `text`, the root's end first. */
static void write_path(const avl_json_node_t *node, char *text, size_t text_bytes) {
    if (node->parent == NULL)
        return;
    write_path(node->parent, text, text_bytes);
    size_t used = strlen(text);
    if (node->key != NULL)
        snprintf(text + used, text_bytes - used, "%s%s", used > 0 ? "." : "", node->key);
    else
        snprintf(text + used, text_bytes - used, "[%zu]", node->index);
}

/* The start of the value as JSON; "nothing" for an absent one. */
static void write_value(const avl_json_node_t *node, char *text, size_t text_bytes) {
    if (node->value == NULL) {
        snprintf(text, text_bytes, "nothing");
        return;
    }
    if (json_is_object(node->value) || json_is_array(node->value)) {
        /* Not printed: it may be a hundred megabytes. */
        snprintf(text, text_bytes, "an %s of %zu", json_is_object(node->value) ? "object" : "array",
                 avl_json_count(node));
        return;
    }
    char *dump = json_dumps(node->value, JSON_ENCODE_ANY);
    if (dump == NULL)
        snprintf(text, text_bytes, "a value that does not print");
    else
        snprintf(text, text_bytes, strlen(dump) < text_bytes ? "%s" : "%.56s...", dump);
    free(dump);
}

avl_status_t avl_json_fail(const avl_json_node_t *node, avl_status_t status, const char *format,
                           ...) {
    char path[PATH_TEXT_BYTES] = "";
    write_path(node, path, sizeof path);
    char text[AVL_STATUS_DETAIL_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (path[0] == '\0')
        return avl_fail(status, "%s: %s", node->document->path, text);
    return avl_fail(status, "%s: key %s: %s", node->document->path, path, text);
}

static avl_status_t fail_type(const avl_json_node_t *node, const char *wanted) {
    char value[VALUE_TEXT_BYTES];
    write_value(node, value, sizeof value);
    return avl_json_fail(node, AVL_ERR_DATA, "found %s where %s is needed", value, wanted);
}

avl_status_t avl_json_expect_object(const avl_json_node_t *node) {
    return !avl_json_present(node) || json_is_object(node->value) ? AVL_OK
                                                                  : fail_type(node, "an object");
}

avl_status_t avl_json_expect_array(const avl_json_node_t *node) {
    return !avl_json_present(node) || json_is_array(node->value) ? AVL_OK
                                                                 : fail_type(node, "an array");
}

avl_status_t avl_json_int(const avl_json_node_t *node, int64_t least, int64_t most,
                          int64_t *value_p) {
    if (!json_is_integer(node->value))
        return fail_type(node, "an integer");
    int64_t value = json_integer_value(node->value);
    if (value < least || value > most) {
        return avl_json_fail(node, AVL_ERR_DATA, "%lld is outside %lld..%lld", (long long)value,
                             (long long)least, (long long)most);
    }
    *value_p = value;
    return AVL_OK;
}

avl_status_t avl_json_double(const avl_json_node_t *node, double least, double most,
                             double *value_p) {
    if (!json_is_number(node->value))
        return fail_type(node, "a number");
    double value = json_number_value(node->value);
    if (!(value >= least && value <= most)) {
        return avl_json_fail(node, AVL_ERR_DATA, "%.9g is outside %.9g..%.9g", value, least, most);
    }
    *value_p = value;
    return AVL_OK;
}

avl_status_t avl_json_bool(const avl_json_node_t *node, bool *value_p) {
    if (!json_is_boolean(node->value))
        return fail_type(node, "true or false");
    *value_p = json_is_true(node->value);
    return AVL_OK;
}

avl_status_t avl_json_string(const avl_json_node_t *node, const char **value_p) {
    if (!json_is_string(node->value))
        return fail_type(node, "a string");
    *value_p = json_string_value(node->value);
    return AVL_OK;
}

avl_status_t avl_json_get_int(const avl_json_node_t *object, const char *key, int least, int most,
                              int fallback, int *value_p) {
    avl_json_node_t node = avl_json_member(object, key);
    int64_t value = fallback;
    if (avl_json_present(&node))
        AVL_TRY(avl_json_int(&node, least, most, &value));
    *value_p = (int)value;
    return AVL_OK;
}

avl_status_t avl_json_get_double(const avl_json_node_t *object, const char *key, double least,
                                 double most, double fallback, double *value_p) {
    avl_json_node_t node = avl_json_member(object, key);
    double value = fallback;
    if (avl_json_present(&node))
        AVL_TRY(avl_json_double(&node, least, most, &value));
    *value_p = value;
    return AVL_OK;
}

avl_status_t avl_json_get_bool(const avl_json_node_t *object, const char *key, bool fallback,
                               bool *value_p) {
    avl_json_node_t node = avl_json_member(object, key);
    bool value = fallback;
    if (avl_json_present(&node))
        AVL_TRY(avl_json_bool(&node, &value));
    *value_p = value;
    return AVL_OK;
}

avl_status_t avl_json_get_string(const avl_json_node_t *object, const char *key,
                                 const char *fallback, const char **value_p) {
    avl_json_node_t node = avl_json_member(object, key);
    const char *value = fallback;
    if (avl_json_present(&node))
        AVL_TRY(avl_json_string(&node, &value));
    *value_p = value;
    return AVL_OK;
}
