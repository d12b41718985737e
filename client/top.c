/* client/top.c: avl top: what a service is doing, now and once more every second. */
#include <argp.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/status.h"
#include "client/client.h"
#include "client/options.h"
#include "client/rpc.h"
#include "client/terminal.h"
#include "client/top_view.h"

#define CALL_TIMEOUT_NS (5 * AVL_NS_PER_S)

typedef struct top_options {
    const char *server;
    double interval_seconds;
    bool once;
} top_options_t;

static volatile sig_atomic_t asked_to_end;

static void on_signal(int number) {
    (void)number;
    asked_to_end = 1;
}

static const struct argp_option option_list[] = {
    {"interval", 'i', "SECONDS", 0, "time between two looks, 0.1 to 3600; default 1", 0},
    {"once", '1', NULL, 0,
     "look at one interval, print that and end; so it is when standard output is no terminal", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state) {
    top_options_t *options = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->server;
        return 0;
    case 'i':
        options->interval_seconds = avl_option_number_in(state, "--interval", text, 0.1, 3600);
        return 0;
    case '1':
        options->once = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "takes no argument, but got \"%s\"", text);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&avl_server_argp, 0, NULL, 0}, {0}};

static const struct argp top_argp = {
    .options = option_list,
    .parser = parse_option,
    .children = children,
    .doc = "Shows what a service is doing: requests, tokens, latencies of the last interval, "
           "groups and their memory.\vKeys: q ends.",
};

/* ---- one look ---- */

static avl_status_t take_stats(void *context, const uint8_t *bytes, size_t byte_count) {
    Avl__V1__GetStatsResponse **stats_p = context;
    if (*stats_p != NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server answered twice");
    *stats_p = avl__v1__get_stats_response__unpack(NULL, byte_count, bytes);
    if (*stats_p == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server sent a message that is no GetStatsResponse");
    return AVL_OK;
}

static void stats_free(Avl__V1__GetStatsResponse *stats) {
    if (stats != NULL)
        avl__v1__get_stats_response__free_unpacked(stats, NULL);
}

static avl_status_t look(avl_rpc_t *rpc, Avl__V1__GetStatsResponse **stats_p) {
    avl_rpc_request_t *request = NULL;
    AVL_TRY(avl_rpc_request_create(NULL, 0, &request));
    Avl__V1__GetStatsResponse *stats = NULL;
    avl_status_t status = avl_rpc_call(rpc, "/avl.v1.Inference/GetStats", request, CALL_TIMEOUT_NS,
                                       &asked_to_end, take_stats, &stats);
    avl_rpc_request_destroy(request);
    if (status == AVL_OK && stats == NULL)
        status = avl_fail(AVL_ERR_INTERNAL, "the server sent no GetStatsResponse");
    if (status != AVL_OK) {
        stats_free(stats);
        return status;
    }
    *stats_p = stats;
    return AVL_OK;
}

/* ---- the screen ---- */

typedef struct screen {
    bool keys; /* standard input is a terminal: keys come one by one */
    struct termios before;
} screen_t;

static void screen_begin(screen_t *screen) {
    memset(screen, 0, sizeof *screen);
    screen->keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &screen->before) == 0;
    if (screen->keys) {
        struct termios raw = screen->before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\033[?1049h\033[?25l", stdout); /* a screen of its own, without a cursor */
}

static void screen_end(screen_t *screen) {
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    if (screen->keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &screen->before);
}

/* Draws lines over the old ones, cut to the screen's size. */
static void screen_draw(const char *text) {
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0 || size.ws_col == 0)
        size = (struct winsize){.ws_row = 24, .ws_col = 80};
    fputs("\033[H", stdout);
    for (int row = 0; row < size.ws_row - 1 && *text != '\0'; row++) {
        size_t bytes = strcspn(text, "\n");
        int shown = bytes < size.ws_col ? (int)bytes : size.ws_col;
        printf("%.*s\033[K\n", shown, text);
        text += bytes + (text[bytes] == '\n');
    }
    fputs("\033[J", stdout);
    fflush(stdout);
}

/* Waits until `until_ns`; true when the person wants to leave. */
static bool wait_for_key(screen_t *screen, int64_t until_ns) {
    for (;;) {
        int64_t left_ns = until_ns - avl_clock_now_ns();
        if (asked_to_end)
            return true;
        if (left_ns <= 0)
            return false;
        struct pollfd fd = {STDIN_FILENO, POLLIN, 0};
        if (poll(&fd, screen->keys ? 1 : 0, (int)(left_ns / AVL_NS_PER_MS) + 1) <= 0)
            continue;
        char key;
        if (read(STDIN_FILENO, &key, 1) != 1)
            screen->keys = false; /* nobody is there any more; signals still work */
        else if (key == 'q' || key == 'Q')
            return true;
    }
}

static avl_status_t view_text(const char *server, const Avl__V1__GetStatsResponse *before,
                              const Avl__V1__GetStatsResponse *after, double seconds,
                              char **text_p) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    if (stream == NULL)
        return avl_fail(AVL_ERR_MEMORY, "no memory for the view");
    avl_top_view_write(stream, server, before, after, seconds);
    if (fclose(stream) != 0) {
        free(text);
        return avl_fail(AVL_ERR_MEMORY, "no memory for the view");
    }
    *text_p = text;
    return AVL_OK;
}

/* Until the person has seen enough. A service that goes away is waited for. */
static avl_status_t watch(const top_options_t *options, avl_rpc_t *rpc) {
    screen_t screen;
    screen_begin(&screen);
    Avl__V1__GetStatsResponse *before = NULL, *after = NULL;
    int64_t before_ns = 0;
    avl_status_t status = AVL_OK;
    for (bool leave = false; !leave && status == AVL_OK;) {
        int64_t now_ns = avl_clock_now_ns();
        char *text = NULL;
        after = NULL;
        avl_status_t seen = look(rpc, &after);
        if (seen == AVL_OK) {
            status = view_text(options->server, before, after, (double)(now_ns - before_ns) / 1e9,
                               &text);
        } else if (asprintf(&text, "%s\n\ntrying again; q ends\n", avl_status_detail()) < 0) {
            text = NULL;
            status = avl_fail(AVL_ERR_MEMORY, "no memory for the view");
        }
        if (text != NULL && !asked_to_end)
            screen_draw(text);
        free(text);
        stats_free(before);
        before = after;
        before_ns = now_ns;
        leave = wait_for_key(&screen, now_ns + (int64_t)(options->interval_seconds * 1e9));
    }
    stats_free(before);
    screen_end(&screen);
    return status;
}

static avl_status_t report_once(const top_options_t *options, avl_rpc_t *rpc) {
    Avl__V1__GetStatsResponse *before = NULL, *after = NULL;
    AVL_TRY(look(rpc, &before));
    int64_t before_ns = avl_clock_now_ns();
    int64_t until_ns = before_ns + (int64_t)(options->interval_seconds * 1e9);
    while (!asked_to_end && avl_clock_now_ns() < until_ns)
        avl_clock_sleep_ns(AVL_NS_PER_S / 20);
    avl_status_t status = look(rpc, &after);
    char *text = NULL;
    if (status == AVL_OK)
        status = view_text(options->server, before, after,
                           (double)(avl_clock_now_ns() - before_ns) / 1e9, &text);
    if (status == AVL_OK) {
        fputs(text, stdout);
        if (fflush(stdout) != 0 || ferror(stdout))
            status = avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
    }
    free(text);
    stats_free(before);
    stats_free(after);
    return status;
}

int avl_command_top(int argc, char **argv) {
    top_options_t options = {.interval_seconds = 1};
    argp_err_exit_status = AVL_EXIT_USAGE;
    char name[] = "avl top";
    argv[0] = name;
    argp_parse(&top_argp, argc, argv, 0, NULL, &options);
    const char *terminal = getenv("TERM");
    bool plain = options.once || !isatty(STDOUT_FILENO) ||
                 (terminal != NULL && strcmp(terminal, "dumb") == 0);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    avl_rpc_t *rpc = NULL;
    avl_status_t status = avl_rpc_open(options.server, 1, &rpc);
    if (status == AVL_OK)
        status = plain ? report_once(&options, rpc) : watch(&options, rpc);
    avl_rpc_close(rpc);
    if (plain && asked_to_end)
        return AVL_EXIT_INTERRUPTED;
    if (status != AVL_OK) {
        avl_terminal_report("avl top", status, avl_status_detail());
        return AVL_EXIT_FAILED;
    }
    return 0;
}
