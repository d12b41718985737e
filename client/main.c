/* client/main.c: avl COMMAND ... */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "client/client.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"ask", avl_command_ask, "ask a question about pictures and stream the answer"},
    {"bench", avl_command_bench, "put a service under load and report latencies"},
    {"eval", avl_command_eval, "measure answers with less attention against dense attention"},
    {"info", avl_command_info, "show the model behind a service and what it accepts"},
    {"top", avl_command_top, "watch what a service is doing"},
};

static void print_usage(FILE *stream) {
    fputs("Usage: avl COMMAND [OPTION...]\n\nCommands:\n", stream);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        fprintf(stream, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fputs("\n`avl COMMAND --help` tells a command's options.\n", stream);
}

int main(int argc, char **argv) {
    avl_log_begin("avl", AVL_LOG_WARN, 0);
    if (argc < 2) {
        print_usage(stderr);
        return AVL_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("avl " AVL_VERSION);
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "avl: unknown command \"%s\"\n", argv[1]);
    print_usage(stderr);
    return AVL_EXIT_USAGE;
}
