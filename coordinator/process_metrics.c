#include "coordinator/process_metrics.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct process_stat {
    double cpu_seconds, start_seconds; /* start: since boot */
    long threads;
    double virtual_bytes, resident_bytes;
} process_stat_t;

static bool read_line(const char *path, char *line, size_t line_bytes) {
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    bool got = fgets(line, (int)line_bytes, file) != NULL;
    fclose(file);
    return got;
}

/* proc(5): the fields after the program's name, which may hold anything. */
static bool read_stat(process_stat_t *stat_p) {
    char line[1024];
    if (!read_line("/proc/self/stat", line, sizeof line))
        return false;
    const char *after_name = strrchr(line, ')');
    unsigned long user, system, virtual_bytes;
    unsigned long long start;
    long threads, pages;
    if (after_name == NULL ||
        sscanf(after_name + 1,
               " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %ld %*d %llu "
               "%lu %ld",
               &user, &system, &threads, &start, &virtual_bytes, &pages) != 6)
        return false;
    double ticks = (double)sysconf(_SC_CLK_TCK);
    *stat_p = (process_stat_t){
        .cpu_seconds = (double)(user + system) / ticks,
        .start_seconds = (double)start / ticks,
        .threads = threads,
        .virtual_bytes = (double)virtual_bytes,
        .resident_bytes = (double)pages * (double)sysconf(_SC_PAGESIZE),
    };
    return true;
}

/* Seconds since 1970 at which the machine was booted. */
static bool read_boot_time(double *seconds_p) {
    FILE *file = fopen("/proc/stat", "re");
    if (file == NULL)
        return false;
    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL)
        found = sscanf(line, "btime %lf", seconds_p) == 1;
    fclose(file);
    return found;
}

static bool count_files(double *count_p) {
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL)
        return false;
    double count = 0;
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL)
        count += entry->d_name[0] != '.';
    closedir(directory);
    *count_p = count - 1; /* the directory itself */
    return true;
}

void avl_process_metrics_write(avl_exposition_t *exposition) {
    process_stat_t stat;
    double boot_seconds, files;
    struct rlimit limit;
    if (read_stat(&stat)) {
        avl_exposition_family(exposition, AVL_FAMILY_COUNTER, "process_cpu_seconds_total",
                              "User and system time of the coordinator.");
        avl_exposition_number(exposition, NULL, 0, stat.cpu_seconds);
        avl_exposition_gauge(exposition, "process_resident_memory_bytes",
                             "Resident memory of the coordinator.", stat.resident_bytes);
        avl_exposition_gauge(exposition, "process_virtual_memory_bytes",
                             "Virtual memory of the coordinator.", stat.virtual_bytes);
        avl_exposition_gauge(exposition, "process_threads", "Threads of the coordinator.",
                             (double)stat.threads);
        if (read_boot_time(&boot_seconds))
            avl_exposition_gauge(exposition, "process_start_time_seconds",
                                 "Start of the coordinator, in seconds since 1970.",
                                 boot_seconds + stat.start_seconds);
    }
    if (count_files(&files))
        avl_exposition_gauge(exposition, "process_open_fds", "Open file descriptors.", files);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        avl_exposition_gauge(exposition, "process_max_fds", "Most open file descriptors.",
                             (double)limit.rlim_cur);
}
