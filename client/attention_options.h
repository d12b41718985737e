/* client/attention_options.h: attention parameters on the command line, as a message, and back as
 * words. */
#ifndef AVL_CLIENT_ATTENTION_OPTIONS_H
#define AVL_CLIENT_ATTENTION_OPTIONS_H

#include <argp.h>
#include <jansson.h>

#include "proto/inference.pb-c.h"

/* An argp child; its input is an Avl__V1__AttentionParameters. Takes long options. */
extern const struct argp avl_attention_argp;

/* What is given, one line for a person: "store 0.5, compute 0.3, interval 3". */
void avl_attention_print(const Avl__V1__AttentionParameters *attention);
/* What is given, by the names of the fields. NULL when memory is short. */
json_t *avl_attention_json(const Avl__V1__AttentionParameters *attention);

#endif
