#include "coordinator/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"

#define HELD_MAX 256

extern char **environ;

/* environ and the additions, which win over entries of the same name. */
static avl_status_t environment_create(const char *const *additions, const char ***entries_p) {
    size_t count = 0, added = 0, kept = 0;
    while (environ[count] != NULL)
        count++;
    while (additions != NULL && additions[added] != NULL)
        added++;
    const char **entries = NULL;
    AVL_TRY(avl_alloc(count + added + 1, sizeof *entries, "an environment", &entries));
    for (size_t i = 0; i < count; i++) {
        bool replaced = false;
        for (size_t a = 0; a < added; a++) {
            size_t name_bytes = strcspn(additions[a], "=") + 1;
            replaced = replaced || strncmp(environ[i], additions[a], name_bytes) == 0;
        }
        if (!replaced)
            entries[kept++] = environ[i];
    }
    for (size_t a = 0; a < added; a++)
        entries[kept++] = additions[a];
    *entries_p = entries;
    return AVL_OK;
}

/* Between fork and exec: async-signal-safe calls alone, since other threads may have held any lock.
 */
static void become(const char *const *argv, const char *const *environment, int death_signal,
                   pid_t parent, int report_fd) {
    union {
        const char *const *constant;
        char *const *variable;
    } arguments = {.constant = argv}, entries = {.constant = environment}; /* execvpe only reads */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
    int null = open("/dev/null", O_RDONLY);
    bool ready =
        null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(STDERR_FILENO, STDOUT_FILENO) >= 0 &&
        close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) == 0 && prctl(PR_SET_PDEATHSIG, death_signal) == 0;
    if (ready && getppid() != parent) /* it died before the line above */
        _exit(127);
    /* execvpe alone would hand a file that is no program to a shell. */
    if (ready && strchr(argv[0], '/') != NULL)
        execve(argv[0], arguments.variable, entries.variable);
    else if (ready)
        execvpe(argv[0], arguments.variable, entries.variable);
    int error = errno;
    ssize_t written = write(report_fd, &error, sizeof error);
    (void)written;
    _exit(127);
}

/* Children that somebody holds: any other child is an orphan that came here. The lock is held from
 * fork to registration, and while orphans are swept up. */
static pthread_mutex_t held_lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t held[HELD_MAX];

/* Puts `to` where `from` stands; false when that is nowhere. */
static bool replace_held(pid_t from, pid_t to) {
    for (size_t i = 0; i < HELD_MAX; i++) {
        if (held[i] != from)
            continue;
        held[i] = to;
        return true;
    }
    return false;
}

static avl_status_t start(const char *const *argv, const char *const *environment, int death_signal,
                          avl_process_t *process_p) {
    const char **entries = NULL;
    AVL_TRY(environment_create(environment, &entries));
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0) {
        free(entries);
        return avl_fail(AVL_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* no handler runs in the child */
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become(argv, entries, death_signal, parent, report[1]);
    int fork_error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(report[1]);
    free(entries);
    if (pid < 0) {
        close(report[0]);
        return avl_fail(AVL_ERR_IO, "cannot start %s: %s", argv[0], strerror(fork_error));
    }
    int error = 0;
    ssize_t got;
    do
        got = read(report[0], &error, sizeof error);
    while (got < 0 && errno == EINTR);
    close(report[0]);
    if (got == sizeof error) {
        waitpid(pid, NULL, 0);
        return avl_fail(AVL_ERR_IO, "cannot execute %s: %s", argv[0], strerror(error));
    }
    setpgid(pid, pid); /* the child does it too; whoever comes first */
    process_p->pid = pid;
    process_p->fd = pidfd_open(pid, 0); /* without one, the caller looks now and then */
    return AVL_OK;
}

avl_status_t avl_process_start(const char *const *argv, const char *const *environment,
                               int death_signal, avl_process_t *process_p) {
    pthread_mutex_lock(&held_lock);
    avl_status_t status = AVL_OK;
    if (!replace_held(0, -1))
        status = avl_fail(AVL_ERR_EXHAUSTED, "cannot start %s: %d processes run already", argv[0],
                          HELD_MAX);
    if (status == AVL_OK) {
        status = start(argv, environment, death_signal, process_p);
        replace_held(-1, status == AVL_OK ? process_p->pid : 0);
    }
    pthread_mutex_unlock(&held_lock);
    return status;
}

void avl_process_signal(const avl_process_t *process, int signal_number) {
    if (process->pid > 0)
        kill(-process->pid, signal_number);
}

int avl_process_ended(avl_process_t *process, char *text, size_t text_bytes) {
    int status;
    if (process->pid <= 0 || waitpid(process->pid, &status, WNOHANG) != process->pid)
        return 0;
    if (WIFSIGNALED(status))
        snprintf(text, text_bytes, "killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(text, text_bytes, "exit status %d", WEXITSTATUS(status));
    kill(-process->pid, SIGKILL); /* what it left in its group */
    pthread_mutex_lock(&held_lock);
    replace_held(process->pid, 0);
    pthread_mutex_unlock(&held_lock);
    if (process->fd >= 0)
        close(process->fd);
    process->pid = 0;
    process->fd = -1;
    return 1;
}

/* The parent of `pid`, or -1. */
static pid_t parent_of(const char *pid) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return -1;
    size_t got = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[got] = '\0';
    const char *name_end = strrchr(line, ')'); /* a name may hold anything */
    int parent = -1;
    if (name_end == NULL || sscanf(name_end + 1, " %*c %d", &parent) != 1)
        return -1;
    return parent;
}

void avl_process_sweep(void) {
    DIR *directory = opendir("/proc");
    if (directory == NULL)
        return;
    pid_t self = getpid();
    pthread_mutex_lock(&held_lock);
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        long pid = strtol(entry->d_name, NULL, 10);
        if (pid <= 1 || parent_of(entry->d_name) != self || replace_held((pid_t)pid, (pid_t)pid))
            continue;
        kill((pid_t)pid, SIGKILL);
        waitpid((pid_t)pid, NULL, 0);
    }
    pthread_mutex_unlock(&held_lock);
    closedir(directory);
}
