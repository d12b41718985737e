#include "tests/client/program.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

#define RUN_NS (60 * AVL_NS_PER_S)
#define ARGUMENTS_MAX 320
#define VARIABLES_MAX 500

typedef struct stream {
    int fd; /* -1: ended */
    char *text;
    size_t bytes, capacity;
} stream_t;

static void make_pipe(int ends[2]) {
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
}

/* Reads what is there. */
static void drain(stream_t *stream) {
    assert_int_equal(avl_grow(stream->bytes + 65537, 1, "output", &stream->text, &stream->capacity),
                     AVL_OK);
    ssize_t got = read(stream->fd, stream->text + stream->bytes, 65536);
    if (got < 0 && errno == EINTR)
        return;
    if (got <= 0) { /* a terminal whose other side is gone says EIO */
        close(stream->fd);
        stream->fd = -1;
        got = 0;
    }
    stream->bytes += (size_t)got;
    stream->text[stream->bytes] = '\0';
}

/* What the child needs, made before it exists: after fork() in a program with threads, only system
 * calls are safe. */
typedef struct command {
    char *argv[ARGUMENTS_MAX + 2];
    char *environment[VARIABLES_MAX + 3];
    char server[256], terminal[64];
} command_t;

static void fill_command(const program_setting_t *setting, const char *const *arguments,
                         command_t *command) {
    static char name[] = "avl";
    size_t count = 0;
    command->argv[count++] = name;
    for (; arguments[count - 1] != NULL; count++) {
        assert_true(count <= ARGUMENTS_MAX);
        command->argv[count] = (char *)(uintptr_t)arguments[count - 1];
    }
    command->argv[count] = NULL;
    count = 0;
    for (char **variable = environ; *variable != NULL; variable++) {
        assert_true(count < VARIABLES_MAX);
        if (strncmp(*variable, "TERM=", 5) != 0 && strncmp(*variable, "AVL_SERVER=", 11) != 0)
            command->environment[count++] = *variable;
    }
    snprintf(command->terminal, sizeof command->terminal, "TERM=%s",
             setting->kind != NULL ? setting->kind : "xterm");
    command->environment[count++] = command->terminal;
    if (setting->server != NULL) {
        snprintf(command->server, sizeof command->server, "AVL_SERVER=%s", setting->server);
        command->environment[count++] = command->server;
    }
    command->environment[count] = NULL;
}

/* In the child: becomes avl. */
static void become(const program_setting_t *setting, const command_t *command, int input,
                   int output, int errors) {
    static const char path[] = AVL_BINARY_DIR "/bin/avl";
    signal(SIGINT, SIG_DFL);
    if (setting->output != NULL)
        output = open(setting->output, O_WRONLY | O_CREAT, 0600);
    if (dup2(input, STDIN_FILENO) >= 0 && dup2(output, STDOUT_FILENO) >= 0 &&
        dup2(errors, STDERR_FILENO) >= 0)
        execve(path, command->argv, command->environment);
    _exit(127);
}

static int input_file(const char *text) {
    FILE *file = tmpfile();
    assert_non_null(file);
    if (text != NULL)
        fputs(text, file);
    rewind(file);
    int fd = fcntl(fileno(file), F_DUPFD_CLOEXEC, 3);
    assert_true(fd >= 0);
    fclose(file);
    return fd;
}

static bool said(const stream_t *stream, const char *text) {
    return stream->text != NULL && strstr(stream->text, text) != NULL;
}

program_result_t program_run(const program_setting_t *setting, const char *const *arguments) {
    int output[2], errors[2], input = input_file(setting->input);
    if (setting->terminal) {
        struct winsize size = {.ws_row = 24, .ws_col = 200};
        if (setting->columns > 0)
            size.ws_col = (unsigned short)setting->columns;
        assert_int_equal(openpty(&output[0], &output[1], NULL, NULL, &size), 0);
        fcntl(output[0], F_SETFD, FD_CLOEXEC);
        fcntl(output[1], F_SETFD, FD_CLOEXEC);
        errors[0] = -1;
        errors[1] = output[1];
    } else {
        make_pipe(output);
        make_pipe(errors);
    }
    command_t *command = calloc(1, sizeof *command);
    assert_non_null(command);
    fill_command(setting, arguments, command);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        become(setting, command, input, output[1], errors[1]);
    free(command);
    close(input);
    close(output[1]);
    if (!setting->terminal)
        close(errors[1]);
    stream_t streams[2] = {{.fd = output[0]}, {.fd = errors[0]}};
    if (setting->close_output) {
        close(output[0]);
        streams[0].fd = -1;
    }
    int64_t start_ns = avl_clock_now_ns();
    bool stopped = false;
    while (streams[0].fd >= 0 || streams[1].fd >= 0) {
        struct pollfd fds[2] = {{.fd = streams[0].fd, .events = POLLIN},
                                {.fd = streams[1].fd, .events = POLLIN}};
        int64_t elapsed_ns = avl_clock_now_ns() - start_ns;
        if (setting->stop_on != NULL && !stopped &&
            (said(&streams[0], setting->stop_on) || said(&streams[1], setting->stop_on))) {
            stopped = true;
            kill(child, SIGINT);
        }
        if (elapsed_ns > RUN_NS) {
            kill(child, SIGKILL);
            fail_msg("avl %s has not ended", arguments[0]);
        }
        poll(fds, 2, 20);
        for (int i = 0; i < 2; i++) {
            if (fds[i].revents != 0)
                drain(&streams[i]);
        }
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    program_result_t result = {.exit_status = WIFEXITED(status) ? WEXITSTATUS(status)
                                                                : 128 + WTERMSIG(status)};
    for (int i = 0; i < 2; i++) {
        if (streams[i].text == NULL)
            streams[i].text = calloc(1, 1);
    }
    result.output = streams[0].text;
    result.errors = streams[1].text;
    return result;
}

void program_free(program_result_t *result) {
    free(result->output);
    free(result->errors);
}

char *program_file(const void *bytes, size_t byte_count) {
    char *path = strdup("/tmp/avl-client-test-XXXXXX");
    assert_non_null(path);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, byte_count), byte_count);
    close(fd);
    return path;
}

void program_expect(const program_result_t *result, int exit_status) {
    if (result->exit_status != exit_status)
        fail_msg("exit status %d, not %d\noutput: %s\nerrors: %s", result->exit_status, exit_status,
                 result->output, result->errors);
}

void program_expect_text(const char *whole, const char *text) {
    if (strstr(whole, text) == NULL)
        fail_msg("\"%s\" is not in: %s", text, whole);
}
