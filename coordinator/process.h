/* coordinator/process.h: child processes that cannot outlive their parent. */
#ifndef AVL_COORDINATOR_PROCESS_H
#define AVL_COORDINATOR_PROCESS_H

#include <stddef.h>
#include <sys/types.h>

#include "base/status.h"

typedef struct avl_process {
    pid_t pid; /* of the child and of its process group; 0: none */
    int fd;    /* a pidfd: readable when the child has ended; -1: none */
} avl_process_t;

/* Starts argv[0] (a path, or a name to look up in PATH) in a process group of its own, with
 * standard input empty and standard output joined to standard error; no other file is inherited.
 * `environment` holds further NAME=VALUE entries. The kernel sends it `death_signal` when the
 * calling *thread* ends, so that thread must last as long as the child. Errors: AVL_ERR_IO with the
 * cause, also when the program cannot be executed. */
AVL_MUST_CHECK avl_status_t avl_process_start(const char *const *argv,
                                              const char *const *environment, int death_signal,
                                              avl_process_t *process_p);
/* To the whole process group. */
void avl_process_signal(const avl_process_t *process, int signal_number);
/* Reaps the child if it has ended: then 1, *process is cleared and `text` says how ("exit status
 * 3", "killed by signal 9 (Killed)"). Otherwise 0. */
int avl_process_ended(avl_process_t *process, char *text, size_t text_bytes);
/* Kills and reaps every child of this process that no avl_process_t holds: with
 * PR_SET_CHILD_SUBREAPER, what killed children left. */
void avl_process_sweep(void);

#endif
