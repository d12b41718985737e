/* checkpoint/json.h: a JSON file of a model directory, read with errors that say where.
 *
 * A thin layer over jansson. Syntax errors name file, line and column; a value of the wrong type or
 * outside its bounds is named by file, key path ("text_config.rope_scaling.factor") and value.
 * Refused as malformed: NaN and Infinity, the same key twice in an object, numbers beyond int64 or
 * double, invalid UTF-8, nesting beyond jansson's 2048 levels.
 *
 * A node is a place in a document, perhaps an empty one: the member of an absent object is absent,
 * so that a chain of lookups needs one check at its end. A JSON null counts as absent, as it does
 * for the keyword arguments of the configuration classes in `transformers`; avl_json_is_null tells
 * the two apart for the few keys where it matters. A node points to its parent, which must live as
 * long as the node: keep both on the stack.
 *
 * Threads: a document is read-only once open. */
#ifndef AVL_CHECKPOINT_JSON_H
#define AVL_CHECKPOINT_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/status.h"

typedef struct avl_json_document {
    char *path; /* of the file; for messages */
    json_t *root;
} avl_json_document_t;

typedef struct avl_json_node {
    const avl_json_document_t *document;
    const struct avl_json_node *parent; /* NULL at the root */
    const char *key;                    /* NULL for an element of an array */
    size_t index;
    json_t *value; /* NULL when absent; borrowed from the document */
} avl_json_node_t;

/* Reads `directory`/`name`, which must be a regular file of at most `bytes_max` bytes.
 * Errors: AVL_ERR_NOT_FOUND, AVL_ERR_IO, AVL_ERR_DATA (malformed, too long), AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_json_open(const char *directory, const char *name, size_t bytes_max,
                                          avl_json_document_t *document_p);
/* Parses `bytes` bytes of text that came from `path`. Errors: AVL_ERR_DATA, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_json_parse(const char *path, const char *text, size_t bytes,
                                           avl_json_document_t *document_p);
/* Also closes a document that is all zeros. */
void avl_json_close(avl_json_document_t *document);

avl_json_node_t avl_json_root(const avl_json_document_t *document);
/* The parent must be an object or absent: check with avl_json_expect_object first. */
avl_json_node_t avl_json_member(const avl_json_node_t *parent, const char *key);
avl_json_node_t avl_json_element(const avl_json_node_t *parent, size_t index);
/* Present and not null. */
bool avl_json_present(const avl_json_node_t *node);
/* Present as a null. */
bool avl_json_is_null(const avl_json_node_t *node);
/* Elements of an array, members of an object, 0 otherwise. */
size_t avl_json_count(const avl_json_node_t *node);

/* Records "FILE: key PATH: explanation" and returns `status`. */
avl_status_t avl_json_fail(const avl_json_node_t *node, avl_status_t status, const char *format,
                           ...) AVL_PRINTF(3, 4);

/* Accept an absent node, too. Errors: AVL_ERR_DATA. */
AVL_MUST_CHECK avl_status_t avl_json_expect_object(const avl_json_node_t *node);
AVL_MUST_CHECK avl_status_t avl_json_expect_array(const avl_json_node_t *node);

/* Typed values. The value must be present. Errors: AVL_ERR_DATA for an absent one, another type
 * (4096.0 is no integer, true is no number), or one outside [least, most]. */
AVL_MUST_CHECK avl_status_t avl_json_int(const avl_json_node_t *node, int64_t least, int64_t most,
                                         int64_t *value_p);
AVL_MUST_CHECK avl_status_t avl_json_double(const avl_json_node_t *node, double least, double most,
                                            double *value_p);
AVL_MUST_CHECK avl_status_t avl_json_bool(const avl_json_node_t *node, bool *value_p);
/* The text belongs to the document. */
AVL_MUST_CHECK avl_status_t avl_json_string(const avl_json_node_t *node, const char **value_p);

/* The same for the member `key` of `object`, with `fallback` for an absent one. */
AVL_MUST_CHECK avl_status_t avl_json_get_int(const avl_json_node_t *object, const char *key,
                                             int least, int most, int fallback, int *value_p);
AVL_MUST_CHECK avl_status_t avl_json_get_double(const avl_json_node_t *object, const char *key,
                                                double least, double most, double fallback,
                                                double *value_p);
AVL_MUST_CHECK avl_status_t avl_json_get_bool(const avl_json_node_t *object, const char *key,
                                              bool fallback, bool *value_p);
AVL_MUST_CHECK avl_status_t avl_json_get_string(const avl_json_node_t *object, const char *key,
                                                const char *fallback, const char **value_p);

#endif
