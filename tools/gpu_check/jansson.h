/* tools/gpu_check/jansson.h: the few functions of jansson that checkpoint/ and the tests use, for
 * machines that have a GPU but not the library. Trees are read only, and linear to search: for
 * configurations, headers of weights and reference cases. */
#ifndef AVL_TOOLS_GPU_CHECK_JANSSON_H
#define AVL_TOOLS_GPU_CHECK_JANSSON_H

#include <stddef.h>
#include <stdint.h>

typedef enum json_type {
    JSON_OBJECT,
    JSON_ARRAY,
    JSON_STRING,
    JSON_INTEGER,
    JSON_REAL,
    JSON_TRUE,
    JSON_FALSE,
    JSON_NULL,
} json_type;

typedef long long json_int_t;

typedef struct json_t {
    json_type type;
    char *key;  /* of a member of an object */
    char *text; /* of a string */
    size_t length;
    json_int_t integer;
    double real;
    struct json_t *first, *last, *next;
    size_t count;
} json_t;

enum json_error_code { json_error_unknown, json_error_out_of_memory, json_error_invalid_syntax };

typedef struct json_error_t {
    int line, column;
    char text[160];
} json_error_t;

#define JSON_REJECT_DUPLICATES 1
#define JSON_DECODE_ANY 4
#define JSON_ENCODE_ANY 0x200
#define JSON_COMPACT 0x20
#define JSON_ENSURE_ASCII 0x40
#define JSON_REAL_PRECISION(digits) 0

json_t *json_loadb(const char *text, size_t bytes, size_t flags, json_error_t *error);
json_t *json_load_file(const char *path, size_t flags, json_error_t *error);
void json_decref(json_t *value);
json_t *json_object_get(const json_t *object, const char *key);
json_t *json_array_get(const json_t *array, size_t index);
/* Only scalars; containers are shown as "...". free() it. */
char *json_dumps(const json_t *value, size_t flags);

static inline enum json_error_code json_error_code(const json_error_t *error) {
    (void)error;
    return json_error_invalid_syntax;
}

#define json_typeof(value) ((value)->type)
#define JSON_IS(name, expected)                                                                    \
    static inline int name(const json_t *value) {                                                  \
        return value != NULL && value->type == (expected);                                         \
    }
JSON_IS(json_is_object, JSON_OBJECT)
JSON_IS(json_is_array, JSON_ARRAY)
JSON_IS(json_is_string, JSON_STRING)
JSON_IS(json_is_integer, JSON_INTEGER)
JSON_IS(json_is_true, JSON_TRUE)
JSON_IS(json_is_null, JSON_NULL)
#undef JSON_IS
static inline int json_is_boolean(const json_t *value) {
    return value != NULL && (value->type == JSON_TRUE || value->type == JSON_FALSE);
}
static inline int json_is_number(const json_t *value) {
    return value != NULL && (value->type == JSON_INTEGER || value->type == JSON_REAL);
}

static inline size_t json_object_size(const json_t *value) {
    return json_is_object(value) ? value->count : 0;
}
static inline size_t json_array_size(const json_t *value) {
    return json_is_array(value) ? value->count : 0;
}
static inline const char *json_string_value(const json_t *value) {
    return json_is_string(value) ? value->text : NULL;
}
static inline size_t json_string_length(const json_t *value) {
    return json_is_string(value) ? value->length : 0;
}
static inline json_int_t json_integer_value(const json_t *value) {
    return json_is_integer(value) ? value->integer : 0;
}
static inline double json_number_value(const json_t *value) {
    return json_is_integer(value) ? (double)value->integer
                                  : (json_is_number(value) ? value->real : 0.0);
}
static inline json_t *json_first(const json_t *value) {
    return value != NULL ? value->first : NULL;
}

#define json_object_foreach(object, name, value)                                                   \
    for ((value) = json_first(object); (value) != NULL && ((name) = (value)->key, 1);              \
         (value) = (value)->next)

#endif
