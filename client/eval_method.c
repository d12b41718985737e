#include "client/eval_method.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Options are the fields of AttentionParameters by their names, found in the message's descriptor:
 * what the service learns, this program can measure without learning it too. */

const char avl_eval_method_help[] =
    "A SPEC is NAME[:STORE/COMPUTE[/INTERVAL]][+OPTION=VALUE]... NAME is dense, a-vl, a way of "
    "selecting visual rows (random, uniform, question, ...) or a preset of the service; OPTION is "
    "a field of AttentionParameters in the service's protocol, for example "
    "a-vl:.5/.3/3+text_keep_ratio=.6. What is not said is as in the preset a-vl, or in the preset "
    "that is named, whatever the service's defaults are. A SPEC without numbers is taken once with "
    "each of --budgets. fastv[:KEEP] is the prefill filter alone (--budgets: once with each STORE "
    "as KEEP), h2o[:KEEP] eviction of text by sums of weights alone; KEEP is .5 if not said.";

static const ProtobufCMessageDescriptor *parameters(void) {
    return &avl__v1__attention_parameters__descriptor;
}

static void *at(Avl__V1__AttentionParameters *attention, unsigned offset) {
    return (char *)attention + offset;
}

static bool read_number(const char *text, double *number_p) {
    char *end = NULL;
    errno = 0;
    double number = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !isfinite(number))
        return false;
    *number_p = number;
    return true;
}

/* A whole number of at most `most`; a double holds all that anybody writes here. */
static bool read_count(const char *text, double most, uint64_t *count_p) {
    char *end = NULL;
    errno = 0;
    unsigned long long count = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || (double)count > most)
        return false;
    *count_p = count;
    return true;
}

/* "h2o" for TEXT_POLICY_H2O: without what the names of the enumeration begin with, which its zero
 * shows; in lower case, with - or _. */
static bool read_enum(const ProtobufCEnumDescriptor *kind, const char *text, int *value_p) {
    const ProtobufCEnumValue *zero = protobuf_c_enum_descriptor_get_value(kind, 0);
    const char *tail = zero != NULL ? strstr(zero->name, "UNSPECIFIED") : NULL;
    size_t head = tail != NULL ? (size_t)(tail - zero->name) : 0;
    for (unsigned i = 0; i < kind->n_values; i++) {
        const char *name = kind->values[i].name + head;
        size_t j = 0;
        while (name[j] != '\0' &&
               (toupper((unsigned char)text[j]) == name[j] || (text[j] == '-' && name[j] == '_')))
            j++;
        if (name[j] == '\0' && text[j] == '\0' && kind->values[i].value != 0) {
            *value_p = kind->values[i].value;
            return true;
        }
    }
    return false;
}

/* Sets a field from text; false when the text does not fit its type. */
static bool set_field(avl_eval_method_t *method, const ProtobufCFieldDescriptor *field,
                      const char *text) {
    void *value = at(&method->attention, field->offset);
    double number = 0;
    uint64_t count = 0;
    int choice = 0;
    switch (field->type) {
    case PROTOBUF_C_TYPE_DOUBLE:
        if (!read_number(text, &number))
            return false;
        memcpy(value, &number, sizeof number);
        break;
    case PROTOBUF_C_TYPE_UINT32: {
        if (!read_count(text, UINT32_MAX, &count))
            return false;
        uint32_t narrow = (uint32_t)count;
        memcpy(value, &narrow, sizeof narrow);
        break;
    }
    case PROTOBUF_C_TYPE_UINT64:
        if (!read_count(text, (double)UINT64_MAX, &count))
            return false;
        memcpy(value, &count, sizeof count);
        break;
    case PROTOBUF_C_TYPE_BOOL: {
        protobuf_c_boolean yes = strcmp(text, "true") == 0;
        if (!yes && strcmp(text, "false") != 0)
            return false;
        memcpy(value, &yes, sizeof yes);
        break;
    }
    case PROTOBUF_C_TYPE_ENUM:
        if (!read_enum(field->descriptor, text, &choice))
            return false;
        memcpy(value, &choice, sizeof choice);
        break;
    default:
        return false;
    }
    if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        memcpy(at(&method->attention, field->quantifier_offset), &field->id, sizeof field->id);
    return true;
}

static avl_status_t set_option(avl_eval_method_t *method, const char *spec, char *option) {
    char *value = strchr(option, '=');
    if (value == NULL)
        return avl_fail(AVL_ERR_INVALID, "method \"%s\": \"%s\" is not OPTION=VALUE", spec, option);
    *value++ = '\0';
    for (char *byte = option; *byte != '\0'; byte++)
        *byte = *byte == '-' ? '_' : *byte;
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field_by_name(parameters(), option);
    if (field == NULL || strcmp(option, "dense") == 0 || field->type == PROTOBUF_C_TYPE_STRING)
        return avl_fail(AVL_ERR_INVALID, "method \"%s\": there is no option \"%s\"", spec, option);
    if (!set_field(method, field, value))
        return avl_fail(AVL_ERR_INVALID, "method \"%s\": %s cannot be \"%s\"", spec, option, value);
    return AVL_OK;
}

/* The field by its name, which is there. */
static bool set(avl_eval_method_t *method, const char *name, const char *text) {
    return set_field(method, protobuf_c_message_descriptor_get_field_by_name(parameters(), name),
                     text);
}

/* STORE/COMPUTE[/INTERVAL] */
static avl_status_t set_budget(avl_eval_method_t *method, const char *spec, char *budget) {
    static const char *const fields[] = {"visual_store_ratio", "visual_compute_ratio",
                                         "visual_update_interval"};
    size_t count = 0;
    for (char *part; (part = strsep(&budget, "/")) != NULL; count++) {
        if (count == 3 || !set(method, fields[count], part))
            return avl_fail(AVL_ERR_INVALID,
                            "method \"%s\": the budget is not STORE/COMPUTE or "
                            "STORE/COMPUTE/INTERVAL",
                            spec);
    }
    if (count < 2)
        return avl_fail(AVL_ERR_INVALID,
                        "method \"%s\": the budget is not STORE/COMPUTE or STORE/COMPUTE/INTERVAL",
                        spec);
    return AVL_OK;
}

/* Methods that attend to every visual row they have, and keep a share of something: NAME[:KEEP]. */
typedef struct keeper {
    const char *name, *field;
    bool of_rows; /* visual ones, so that a budget's store is such a share */
} keeper_t;

static const keeper_t *keeper_of(const char *name) {
    static const keeper_t keepers[] = {{"fastv", "prefill_keep_ratio", true},
                                       {"h2o", "text_keep_ratio", false}};
    for (size_t i = 0; i < sizeof keepers / sizeof *keepers; i++) {
        if (strcmp(keepers[i].name, name) == 0)
            return &keepers[i];
    }
    return NULL;
}

static avl_status_t set_keep(avl_eval_method_t *method, const char *spec, const keeper_t *keeper,
                             const char *keep) {
    bool done = set(method, "visual_store_ratio", "1") && set(method, "visual_compute_ratio", "1");
    if (!keeper->of_rows)
        done = done && set(method, "text_policy", "h2o");
    if (!done || !set(method, keeper->field, keep != NULL ? keep : "0.5"))
        return avl_fail(AVL_ERR_INVALID, "method \"%s\": \"%s\" is not the share that stays", spec,
                        keep);
    return AVL_OK;
}

static avl_status_t set_head(avl_eval_method_t *method, const char *spec, char *head) {
    if (strcmp(head, "dense") == 0) {
        method->attention.dense = method->dense = true;
    } else if (keeper_of(head) != NULL ||
               set(method, "visual_selection", strcmp(head, "a-vl") == 0 ? "last-row" : head)) {
        /* The preset keeps the operator's defaults out, which the name does not tell. */
        snprintf(method->preset, sizeof method->preset, "a-vl");
    } else if (head[0] != '\0') {
        snprintf(method->preset, sizeof method->preset, "%s", head);
    } else {
        return avl_fail(AVL_ERR_INVALID, "method \"%s\": it has no name", spec);
    }
    return AVL_OK;
}

/* `spec` as it was typed names the method; here it is cut up. */
static avl_status_t read_spec(const char *spec, const char *budget, avl_eval_method_t *method) {
    char text[AVL_EVAL_NAME_BYTES], numbers[AVL_EVAL_NAME_BYTES];
    char *rest = text, *options = NULL;
    *method = (avl_eval_method_t){0};
    avl__v1__attention_parameters__init(&method->attention);
    if (snprintf(text, sizeof text, "%s", spec) >= (int)sizeof text)
        return avl_fail(AVL_ERR_INVALID, "method \"%.40s...\" is longer than %zu bytes", spec,
                        sizeof text - 1);
    char *head = strsep(&rest, "+");
    options = rest;
    char *own = strchr(head, ':');
    if (own != NULL)
        *own++ = '\0';
    AVL_TRY(set_head(method, spec, head));
    if (method->dense && (own != NULL || options != NULL))
        return avl_fail(AVL_ERR_INVALID, "method \"%s\": dense has neither budget nor options",
                        spec);
    if (own == NULL && !method->dense && budget != NULL) {
        snprintf(numbers, sizeof numbers, "%s", budget);
        own = numbers;
    }
    const char *with = options != NULL ? spec + (options - text) - 1 : "";
    snprintf(method->family, sizeof method->family, "%s%s", head, with);
    if (snprintf(method->name, sizeof method->name, "%s%s%s%s", head, own != NULL ? ":" : "",
                 own != NULL ? own : "", with) >= (int)sizeof method->name)
        return avl_fail(AVL_ERR_INVALID, "method \"%s\" with its budget is too long", spec);
    if (keeper_of(head) != NULL)
        AVL_TRY(set_keep(method, spec, keeper_of(head), own));
    else if (own != NULL)
        AVL_TRY(set_budget(method, spec, own));
    for (char *option; (option = strsep(&options, "+")) != NULL;)
        AVL_TRY(set_option(method, spec, option));
    return AVL_OK;
}

typedef struct methods {
    avl_eval_method_t *list;
    size_t count, capacity;
} methods_t;

static avl_status_t add(methods_t *methods, const char *spec, const char *budget) {
    AVL_TRY(avl_grow(methods->count + 1, sizeof *methods->list, "methods", &methods->list,
                     &methods->capacity));
    avl_eval_method_t *method = &methods->list[methods->count];
    AVL_TRY(read_spec(spec, budget, method));
    for (size_t i = 0; i < methods->count; i++) {
        if (strcmp(methods->list[i].name, method->name) == 0)
            return avl_fail(AVL_ERR_INVALID, "method \"%s\" is there twice", method->name);
    }
    if (++methods->count > AVL_EVAL_METHODS_MAX)
        return avl_fail(AVL_ERR_INVALID, "more than %d methods", AVL_EVAL_METHODS_MAX);
    return AVL_OK;
}

/* Whether `budget` begins with the store of an earlier one in `budgets`. */
static bool store_was_there(const char *budgets, const char *budget, size_t place) {
    size_t bytes = strcspn(budget, "/");
    for (const char *other = budgets; other < budgets + place; other += strcspn(other, ",") + 1) {
        if (strcspn(other, "/,") == bytes && strncmp(other, budget, bytes) == 0)
            return true;
    }
    return false;
}

/* One specification with each budget, or as it is. */
static avl_status_t add_all(methods_t *methods, const char *spec, const char *budgets) {
    char name[AVL_EVAL_NAME_BYTES];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(spec, ":+"), spec);
    const keeper_t *keeper = keeper_of(name);
    bool fixed = strchr(spec, ':') != NULL || strcmp(spec, "dense") == 0 || budgets == NULL ||
                 (keeper != NULL && !keeper->of_rows);
    if (fixed)
        return add(methods, spec, NULL);
    char *text = NULL;
    AVL_TRY(avl_copy_string(budgets, &text));
    avl_status_t status = AVL_OK;
    char *rest = text;
    for (char *budget; status == AVL_OK && (budget = strsep(&rest, ",")) != NULL;) {
        if (keeper != NULL && store_was_there(budgets, budget, (size_t)(budget - text)))
            continue;
        budget[keeper != NULL ? strcspn(budget, "/") : strlen(budget)] = '\0';
        status = add(methods, spec, budget);
    }
    free(text);
    return status;
}

avl_status_t avl_eval_methods_read(const char *specs, const char *budgets,
                                   avl_eval_method_t **methods_p, size_t *count_p) {
    methods_t methods = {0};
    char *text = NULL;
    AVL_TRY(avl_copy_string(specs, &text));
    avl_status_t status = AVL_OK;
    char *rest = text;
    for (char *spec; status == AVL_OK && (spec = strsep(&rest, ",")) != NULL;)
        status = add_all(&methods, spec, budgets);
    free(text);
    if (status != AVL_OK) {
        free(methods.list);
        return status;
    }
    *methods_p = methods.list;
    *count_p = methods.count;
    return AVL_OK;
}
