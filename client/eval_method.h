/* client/eval_method.h: ways of attending as text: "dense", "a-vl:.5/.3/3". */
#ifndef AVL_CLIENT_EVAL_METHOD_H
#define AVL_CLIENT_EVAL_METHOD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "proto/inference.pb-c.h"

#define AVL_EVAL_METHODS_MAX 128
#define AVL_EVAL_NAME_BYTES 128

typedef struct avl_eval_method {
    char name[AVL_EVAL_NAME_BYTES];   /* as reports call it: "a-vl:.5/.3/3" */
    char family[AVL_EVAL_NAME_BYTES]; /* without the budget: one line of a plot */
    bool dense;
    char preset[AVL_EVAL_NAME_BYTES]; /* for attention.preset; empty: none */
    Avl__V1__AttentionParameters attention;
} avl_eval_method_t;

/* What a specification may be, for --help. */
extern const char avl_eval_method_help[];

/* Reads SPEC,SPEC... Those without a budget are taken once with each of `budgets` ("S/C/K,...";
 * NULL: with their preset's). Every method but dense names a preset, so that the service's defaults
 * have no part in it. Numbers that make no sense are the service's to refuse. The array
 * comes from malloc. Errors: AVL_ERR_INVALID naming the specification, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_eval_methods_read(const char *specs, const char *budgets,
                                                  avl_eval_method_t **methods_p, size_t *count_p);

#endif
