/* coordinator/options.h: the command line of avl-coordinator. */
#ifndef AVL_COORDINATOR_OPTIONS_H
#define AVL_COORDINATOR_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "coordinator/attention_options.h"
#include "coordinator/queue.h"
#include "coordinator/validate.h"

#define AVL_TENANT_WEIGHTS_MAX 256

typedef struct avl_options {
    const char *model;
    const char *listen;
    const char *metrics_listen; /* NULL: no metrics over HTTP */
    int ranks;
    int replicas;
    const char *join_address; /* NULL: groups may not join */
    const char *join_secret_file;
    const char *device;
    const char *dtype;
    const char *exchange;
    /* passed on to workers as typed; NULL: not given */
    const char *threads;
    const char *memory;
    const char *encoder_cache;
    const char *kept_prompts;
    const char *sequences;
    const char *context;
    const char *worker_program; /* NULL: avl-worker beside this program */
    const char *launcher;
    int preprocess_threads;
    int preprocess_queue;       /* 0: as many as requests may wait, and some calls besides */
    int64_t request_timeout_ns; /* AVL_DEADLINE_NONE: none */
    int64_t drain_timeout_ns;
    int64_t worker_timeout_ns;
    int64_t load_timeout_ns;
    int64_t message_bytes_max;
    int64_t image_pixels_max;
    int images_max;
    int choices_max;
    int64_t request_pixels_max;
    int prompt_tokens_max, answer_tokens_max; /* 0: the context decides */
    int queue_max;
    int64_t queue_timeout_ns; /* AVL_DEADLINE_NONE: none */
    avl_tenant_weight_t tenant_weights[AVL_TENANT_WEIGHTS_MAX];
    size_t tenant_weight_count;
    avl_attention_options_t attention;
    avl_log_level_t log_level;
    const char *log_level_name;
    bool log_json;
} avl_options_t;

/* Prints help, version or what is wrong, and leaves the program then. */
void avl_options_parse(int argc, char **argv, avl_options_t *options_p);

#endif
