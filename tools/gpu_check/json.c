/* tools/gpu_check/json.c: reads JSON (jansson.h beside it). */
#include "tools/gpu_check/jansson.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 256 };

typedef struct reader {
    const char *begin, *at, *end;
    const char *problem;
    size_t flags;
} reader_t;

static json_t *read_value(reader_t *reader, int depth);

static json_t *refuse(reader_t *reader, const char *problem, json_t *value) {
    if (reader->problem == NULL)
        reader->problem = problem;
    json_decref(value);
    return NULL;
}

static void skip_space(reader_t *reader) {
    while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) != NULL && *reader->at)
        reader->at++;
}

static int take(reader_t *reader, char wanted) {
    skip_space(reader);
    if (reader->at >= reader->end || *reader->at != wanted)
        return 0;
    reader->at++;
    return 1;
}

static json_t *make(json_type type) {
    json_t *value = calloc(1, sizeof *value);
    if (value == NULL)
        abort();
    value->type = type;
    return value;
}

static int read_hex(reader_t *reader, unsigned *code_p) {
    unsigned code = 0;
    for (int i = 0; i < 4; i++, reader->at++) {
        if (reader->at >= reader->end || !isxdigit((unsigned char)*reader->at))
            return 0;
        char digit = *reader->at;
        code = code * 16 +
               (unsigned)(digit <= '9' ? digit - '0' : tolower((unsigned char)digit) - 'a' + 10);
    }
    *code_p = code;
    return 1;
}

static char *put_utf8(char *out, unsigned code) {
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
        *out++ = (char)(0x80 | (code & 63));
    } else if (code < 0x10000) {
        *out++ = (char)(0xe0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 63));
        *out++ = (char)(0x80 | (code & 63));
    } else {
        *out++ = (char)(0xf0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 63));
        *out++ = (char)(0x80 | (code >> 6 & 63));
        *out++ = (char)(0x80 | (code & 63));
    }
    return out;
}

static int read_escape(reader_t *reader, char **out_p) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char name = *reader->at++;
    const char *place = name ? strchr(names, name) : NULL;
    if (place != NULL) {
        *(*out_p)++ = values[place - names];
        return 1;
    }
    unsigned code = 0, low = 0;
    if (name != 'u' || !read_hex(reader, &code))
        return 0;
    if (code >= 0xd800 && code < 0xdc00) {
        if (reader->end - reader->at < 6 || reader->at[0] != '\\' || reader->at[1] != 'u')
            return 0;
        reader->at += 2;
        if (!read_hex(reader, &low) || low < 0xdc00 || low > 0xdfff)
            return 0;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *out_p = put_utf8(*out_p, code);
    return 1;
}

/* Behind the opening quote. An escape never becomes longer. */
static char *read_string(reader_t *reader, size_t *length_p) {
    char *text = malloc((size_t)(reader->end - reader->at) + 1), *out = text;
    if (text == NULL)
        abort();
    while (reader->at < reader->end && *reader->at != '"') {
        if (*reader->at != '\\') {
            *out++ = *reader->at++;
            continue;
        }
        reader->at++;
        if (reader->at >= reader->end || !read_escape(reader, &out))
            break;
    }
    if (reader->at >= reader->end || *reader->at != '"') {
        free(text);
        return NULL;
    }
    reader->at++;
    *out = '\0';
    *length_p = (size_t)(out - text);
    char *exact = realloc(text, *length_p + 1);
    return exact != NULL ? exact : text;
}

static json_t *read_number(reader_t *reader) {
    char number[64];
    size_t length = 0;
    int is_real = 0;
    while (reader->at < reader->end && length < sizeof number - 1 &&
           (isdigit((unsigned char)*reader->at) || (*reader->at && strchr("+-.eE", *reader->at)))) {
        is_real |= strchr(".eE", *reader->at) != NULL;
        number[length++] = *reader->at++;
    }
    number[length] = '\0';
    char *end = number;
    json_t *value = make(is_real ? JSON_REAL : JSON_INTEGER);
    if (is_real)
        value->real = strtod(number, &end);
    else
        value->integer = strtoll(number, &end, 10);
    return length > 0 && *end == '\0' ? value : refuse(reader, "not a number", value);
}

static json_t *read_word(reader_t *reader) {
    static const struct {
        const char *text;
        json_type type;
    } words[] = {{"true", JSON_TRUE}, {"false", JSON_FALSE}, {"null", JSON_NULL}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i].text);
        if ((size_t)(reader->end - reader->at) >= length &&
            memcmp(reader->at, words[i].text, length) == 0) {
            reader->at += length;
            return make(words[i].type);
        }
    }
    return refuse(reader, "unknown word", NULL);
}

static void append(json_t *container, json_t *value) {
    if (container->last != NULL)
        container->last->next = value;
    else
        container->first = value;
    container->last = value;
    container->count++;
}

static json_t *read_container(reader_t *reader, json_type type, int depth) {
    json_t *container = make(type);
    char closing = type == JSON_OBJECT ? '}' : ']';
    if (take(reader, closing))
        return container;
    do {
        char *key = NULL;
        size_t length = 0;
        if (type == JSON_OBJECT) {
            if (!take(reader, '"') || (key = read_string(reader, &length)) == NULL)
                return refuse(reader, "a key expected", container);
            if ((reader->flags & JSON_REJECT_DUPLICATES) && json_object_get(container, key)) {
                free(key);
                return refuse(reader, "a key twice", container);
            }
        }
        json_t *value =
            type == JSON_ARRAY || take(reader, ':') ? read_value(reader, depth + 1) : NULL;
        if (value == NULL) {
            free(key);
            return refuse(reader, "a value expected", container);
        }
        value->key = key;
        append(container, value);
    } while (take(reader, ','));
    return take(reader, closing) ? container : refuse(reader, "an end expected", container);
}

static json_t *read_value(reader_t *reader, int depth) {
    skip_space(reader);
    if (reader->at >= reader->end || depth > DEPTH_MAX)
        return refuse(reader, "a value expected", NULL);
    if (take(reader, '{'))
        return read_container(reader, JSON_OBJECT, depth);
    if (take(reader, '['))
        return read_container(reader, JSON_ARRAY, depth);
    if (take(reader, '"')) {
        json_t *value = make(JSON_STRING);
        value->text = read_string(reader, &value->length);
        return value->text != NULL ? value : refuse(reader, "an endless string", value);
    }
    if (*reader->at == '-' || isdigit((unsigned char)*reader->at))
        return read_number(reader);
    return read_word(reader);
}

json_t *json_loadb(const char *text, size_t bytes, size_t flags, json_error_t *error) {
    reader_t reader = {.begin = text, .at = text, .end = text + bytes, .flags = flags};
    json_t *value = read_value(&reader, 0);
    skip_space(&reader);
    if (value != NULL && reader.at != reader.end)
        value = refuse(&reader, "something behind the value", value);
    if (value == NULL) {
        *error = (json_error_t){.line = 1};
        for (const char *at = text; at < reader.at; at++) {
            error->line += *at == '\n';
            error->column = *at == '\n' ? 0 : error->column + 1;
        }
        snprintf(error->text, sizeof error->text, "%s", reader.problem);
    }
    return value;
}

json_t *json_load_file(const char *path, size_t flags, json_error_t *error) {
    *error = (json_error_t){.text = "cannot be read"};
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return NULL;
    json_t *value = NULL;
    fseek(file, 0, SEEK_END);
    long bytes = ftell(file);
    rewind(file);
    char *text = bytes >= 0 ? malloc((size_t)bytes + 1) : NULL;
    if (text != NULL && fread(text, 1, (size_t)bytes, file) == (size_t)bytes)
        value = json_loadb(text, (size_t)bytes, flags, error);
    free(text);
    fclose(file);
    return value;
}

void json_decref(json_t *value) {
    if (value == NULL)
        return;
    for (json_t *child = value->first, *next; child != NULL; child = next) {
        next = child->next;
        json_decref(child);
    }
    free(value->key);
    free(value->text);
    free(value);
}

json_t *json_object_get(const json_t *object, const char *key) {
    if (!json_is_object(object))
        return NULL;
    for (json_t *child = object->first; child != NULL; child = child->next)
        if (strcmp(child->key, key) == 0)
            return child;
    return NULL;
}

json_t *json_array_get(const json_t *array, size_t index) {
    if (!json_is_array(array) || index >= array->count)
        return NULL;
    json_t *child = array->first;
    while (index-- > 0)
        child = child->next;
    return child;
}

char *json_dumps(const json_t *value, size_t flags) {
    (void)flags;
    char number[64];
    switch (value->type) {
    case JSON_STRING:
        return strdup(value->text);
    case JSON_INTEGER:
        snprintf(number, sizeof number, "%lld", value->integer);
        return strdup(number);
    case JSON_REAL:
        snprintf(number, sizeof number, "%g", value->real);
        return strdup(number);
    case JSON_TRUE:
    case JSON_FALSE:
        return strdup(value->type == JSON_TRUE ? "true" : "false");
    default:
        return strdup("...");
    }
}
