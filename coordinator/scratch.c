#include "coordinator/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

#define PREFIX "avl-"
#define LOCK "owner"
#define BASE_LENGTH_MAX 32
#define FILES_OPEN_MAX 16
#define PATH_BYTES 320 /* of one entry in one base */

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    if (place->level > 0 && !(place->level == 1 && strcmp(path + place->base, LOCK) == 0))
        (void)remove(path); /* what cannot be removed is left: a later start tries again */
    return 0;
}

static void clear(const char *path) {
    nftw(path, remove_entry, FILES_OPEN_MAX, FTW_DEPTH | FTW_PHYS);
}

static void remove_all(const char *path) {
    char lock_path[PATH_BYTES + sizeof LOCK];
    clear(path);
    snprintf(lock_path, sizeof lock_path, "%s/%s", path, LOCK);
    unlink(lock_path); /* last: without it nobody would look at the rest again */
    rmdir(path);
}

/* Removes `path` when its owner is gone. */
static void remove_stale(const char *path) {
    char lock_path[PATH_BYTES + sizeof LOCK];
    snprintf(lock_path, sizeof lock_path, "%s/%s", path, LOCK);
    int fd = open(lock_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return;
    struct stat status;
    if (fstat(fd, &status) == 0 && status.st_uid == geteuid() &&
        flock(fd, LOCK_EX | LOCK_NB) == 0) {
        avl_log_debug("removing %s, whose owner is gone", path);
        remove_all(path);
    }
    close(fd);
}

static void sweep(const char *base) {
    DIR *directory = opendir(base);
    if (directory == NULL)
        return;
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        char path[PATH_BYTES];
        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) == 0 &&
            (size_t)snprintf(path, sizeof path, "%s/%s", base, entry->d_name) < sizeof path)
            remove_stale(path);
    }
    closedir(directory);
}

/* False when another process swept the directory away before the lock was ours. */
static bool take_lock(const char *path, int *fd_p) {
    char lock_path[PATH_BYTES + sizeof LOCK];
    snprintf(lock_path, sizeof lock_path, "%s/%s", path, LOCK);
    int fd = open(lock_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    struct stat named;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || stat(lock_path, &named) != 0) {
        close(fd);
        return false;
    }
    *fd_p = fd;
    return true;
}

avl_status_t avl_scratch_create(const char *base, avl_scratch_t *scratch_p) {
    avl_scratch_t scratch = {.lock_fd = -1};
    if (base[0] != '/' || strlen(base) > BASE_LENGTH_MAX)
        return avl_fail(AVL_ERR_INVALID, "%s is no absolute path of at most %d characters", base,
                        BASE_LENGTH_MAX);
    sweep(base);
    for (int tries = 0; tries < 8; tries++) {
        snprintf(scratch.path, sizeof scratch.path, "%s/" PREFIX "XXXXXX", base);
        if (mkdtemp(scratch.path) == NULL)
            return avl_fail(AVL_ERR_IO, "cannot make a directory in %s: %s", base, strerror(errno));
        if (take_lock(scratch.path, &scratch.lock_fd)) {
            *scratch_p = scratch;
            return AVL_OK;
        }
        remove_all(scratch.path);
    }
    return avl_fail(AVL_ERR_IO, "cannot lock a directory in %s: %s", base, strerror(errno));
}

void avl_scratch_clear(const avl_scratch_t *scratch) {
    if (scratch->path[0] != '\0')
        clear(scratch->path);
}

void avl_scratch_destroy(avl_scratch_t *scratch) {
    if (scratch->path[0] == '\0')
        return;
    remove_all(scratch->path);
    close(scratch->lock_fd);
    scratch->path[0] = '\0';
}
