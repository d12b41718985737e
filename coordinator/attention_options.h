/* coordinator/attention_options.h: the command line's share in attention parameters: what requests
 * get that do not say. */
#ifndef AVL_COORDINATOR_ATTENTION_OPTIONS_H
#define AVL_COORDINATOR_ATTENTION_OPTIONS_H

#include <argp.h>

#include "coordinator/attention.h"

typedef struct avl_attention_options {
    Avl__V1__AttentionParameters given;
    avl_attention_params_t params; /* set when everything has been read */
} avl_attention_options_t;

void avl_attention_options_init(avl_attention_options_t *options);
/* An argp child; its input is an avl_attention_options_t. */
extern const struct argp avl_attention_argp;

#endif
