/* client/options.h: the options that commands share, and numbers on the command line. Whatever is
 * wrong with an argument ends the program with AVL_EXIT_USAGE and a sentence, as argp does. */
#ifndef AVL_CLIENT_OPTIONS_H
#define AVL_CLIENT_OPTIONS_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/inference.pb-c.h"

#define AVL_REQUEST_STOPS_MAX 16 /* as many as a service takes */

/* How every question of this command is asked. */
typedef struct avl_request_options {
    const char *system; /* NULL: none */
    uint32_t max_tokens;
    uint32_t answers; /* 0: one */
    bool raw_prompt, ignore_eos;
    Avl__V1__SamplingParameters
        sampling; /* its `stop` is the one below, of the first of all copies */
    char *stop[AVL_REQUEST_STOPS_MAX];
    Avl__V1__AttentionParameters attention;
} avl_request_options_t;

void avl_request_options_init(avl_request_options_t *options);

/* An argp child; its input is an avl_request_options_t. Takes -t and long options. */
extern const struct argp avl_request_argp;

/* An argp child; its input is a const char * that becomes the service's address: the option's, the
 * environment's AVL_SERVER, or AVL_DEFAULT_SERVER. Takes -s. */
extern const struct argp avl_server_argp;

double avl_option_number(struct argp_state *state, const char *name, const char *text);
/* A number with least <= number <= most. */
double avl_option_number_in(struct argp_state *state, const char *name, const char *text,
                            double least, double most);
uint64_t avl_option_count(struct argp_state *state, const char *name, const char *text,
                          uint64_t least, uint64_t most);

#endif
