/* worker/settings.h: avl-worker's command line and what follows from it. */
#ifndef AVL_WORKER_SETTINGS_H
#define AVL_WORKER_SETTINGS_H

#include "base/log.h"
#include "worker/engine.h"

/* How the GPUs of a group exchange: `auto` takes NCCL where it is possible. */
typedef enum avl_exchange {
    AVL_EXCHANGE_AUTO,
    AVL_EXCHANGE_NCCL,
    AVL_EXCHANGE_HOST,
} avl_exchange_t;

typedef struct avl_worker_settings {
    const char *model;
    const char *link_address;
    const char *device; /* "auto", "cpu", "cuda" */
    const char *dtype;  /* "auto", "f32", "bf16" */
    avl_exchange_t exchange;
    int threads;                 /* 0: this rank's share of the cores */
    int64_t memory_bytes;        /* 0: a share of what is available */
    int64_t encoder_cache_bytes; /* 0: a share of what is left */
    int32_t batch_rows;          /* 0: chosen by the context */
    int32_t sequences_max;
    int32_t kept_prompts;
    int32_t context_rows; /* 0: the model's */
    int32_t drain_seconds;
    avl_log_level_t log_level;
    int log_json;
} avl_worker_settings_t;

/* Reads the command line; argp prints help and usage errors, and leaves the process for them. */
void avl_worker_settings_parse(int argc, char **argv, avl_worker_settings_t *settings_p);

/* Errors: AVL_ERR_INVALID for an unknown name. */
AVL_MUST_CHECK avl_status_t avl_exchange_parse(const char *name, avl_exchange_t *exchange_p);
/* Whether an MPI launcher with more than one rank started this process. */
bool avl_worker_has_launcher(void);
/* CPU threads of one of `local_ranks` ranks of this host, out of the `usable` that the process may
 * use. */
int avl_worker_threads(int usable, int local_ranks);
/* The limits that the settings give for this model. */
avl_engine_limits_t avl_worker_limits(const avl_worker_settings_t *settings,
                                      const avl_config_t *config);
/* Errors: AVL_ERR_INVALID for an unknown name; AVL_ERR_UNSUPPORTED for one that weights cannot be
 * computed in. */
AVL_MUST_CHECK avl_status_t avl_worker_dtype(const char *name, const avl_config_t *config,
                                             const avl_device_t *device, avl_dtype_t *dtype_p);
/* This rank's budget: the option, or half of the host's available memory divided by its ranks, nine
 * tenths of a GPU divided by the ranks that share it. */
int64_t avl_worker_memory(const avl_worker_settings_t *settings, const avl_device_t *device,
                          int local_ranks);

#endif
