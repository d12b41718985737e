#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "coordinator/process.h"

static void wait_end(avl_process_t *process, char *text, size_t text_bytes) {
    for (int i = 0; i < 2000 && !avl_process_ended(process, text, text_bytes); i++)
        avl_clock_sleep_ns(5 * AVL_NS_PER_MS);
    assert_int_equal(process->pid, 0);
}

static void run(const char *script, const char *expected) {
    const char *const argv[] = {"/bin/sh", "-c", script, NULL};
    const char *const environment[] = {"AVL_TEST=one", "PATH=/bin:/usr/bin", NULL};
    avl_process_t process = {0, -1};
    char text[100] = "";
    assert_int_equal(avl_process_start(argv, environment, SIGKILL, &process), AVL_OK);
    wait_end(&process, text, sizeof text);
    assert_string_equal(text, expected);
}

static void test_ends(void **state) {
    (void)state;
    run("exit 3", "exit status 3");
    run("kill -9 $$", "killed by signal 9 (Killed)");
    run("[ \"$AVL_TEST\" = one ] && [ \"$PATH\" = /bin:/usr/bin ]", "exit status 0");
    run("cat > /dev/null", "exit status 0"); /* standard input is empty */
    run("[ \"$(ps -o pgid= -p $$ | tr -d ' ')\" = $$ ]", "exit status 0"); /* a group of its own */
    assert_int_equal(dup2(STDERR_FILENO, 40), 40);
    run("[ -e /proc/$$/fd/2 ] && [ ! -e /proc/$$/fd/40 ]",
        "exit status 0"); /* nothing else is inherited */
    close(40);
}

static void test_no_program(void **state) {
    (void)state;
    const char *const argv[] = {"/nonexistent/program", NULL};
    avl_process_t process = {0, -1};
    assert_int_equal(avl_process_start(argv, NULL, SIGKILL, &process), AVL_ERR_IO);
    assert_string_equal(avl_status_detail(),
                        "cannot execute /nonexistent/program: No such file or directory");
    const char *const directory[] = {"/tmp", NULL};
    assert_int_equal(avl_process_start(directory, NULL, SIGKILL, &process), AVL_ERR_IO);
    assert_int_equal(process.pid, 0);
}

static void test_signal_reaches_the_group(void **state) {
    (void)state;
    const char *const argv[] = {"/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait", NULL};
    avl_process_t process = {0, -1};
    char text[100];
    assert_int_equal(avl_process_start(argv, NULL, SIGKILL, &process), AVL_OK);
    pid_t group = process.pid;
    avl_process_signal(&process, SIGTERM);
    wait_end(&process, text, sizeof text);
    assert_string_equal(text, "killed by signal 15 (Terminated)");
    for (int i = 0; i < 2000 && kill(-group, 0) == 0; i++)
        avl_clock_sleep_ns(5 * AVL_NS_PER_MS);
    assert_int_equal(kill(-group, 0), -1);
}

/* A child whose parent is killed gets the death signal. */
static void test_death_signal(void **state) {
    (void)state;
    int report[2];
    assert_int_equal(pipe(report), 0);
    pid_t parent = fork();
    if (parent == 0) {
        const char *const argv[] = {"/bin/sleep", "1000", NULL};
        avl_process_t process = {0, -1};
        if (avl_process_start(argv, NULL, SIGKILL, &process) != AVL_OK)
            _exit(1);
        if (write(report[1], &process.pid, sizeof process.pid) != sizeof process.pid)
            _exit(1);
        pause();
        _exit(0);
    }
    pid_t child = 0;
    assert_int_equal(read(report[0], &child, sizeof child), sizeof child);
    assert_int_equal(kill(child, 0), 0);
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    char path[64], line[256];
    bool gone = false;
    for (int i = 0; i < 2000 && !gone; i++) { /* its new parent may leave it a zombie */
        snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
        FILE *file = fopen(path, "r");
        size_t got = file != NULL ? fread(line, 1, sizeof line - 1, file) : 0;
        if (file != NULL)
            fclose(file);
        line[got] = '\0';
        gone = got == 0 || strstr(line, ") Z") != NULL || strstr(line, ") X") != NULL;
        avl_clock_sleep_ns(5 * AVL_NS_PER_MS);
    }
    assert_true(gone);
    close(report[0]);
    close(report[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_no_program),
        cmocka_unit_test(test_signal_reaches_the_group),
        cmocka_unit_test(test_death_signal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
