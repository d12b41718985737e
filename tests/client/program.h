/* tests/client/program.h: runs the program `avl` as a person or a script does. */
#ifndef AVL_TESTS_CLIENT_PROGRAM_H
#define AVL_TESTS_CLIENT_PROGRAM_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

typedef struct program_setting {
    bool terminal;       /* standard output and error are one terminal: all is in `output` */
    int columns;         /* of the terminal; 0: 200 */
    const char *kind;    /* TERM of the environment; NULL: xterm */
    const char *input;   /* standard input; NULL: empty */
    const char *stop_on; /* send SIGINT when the program has said this; NULL: never */
    bool close_output;   /* nobody reads standard output */
    const char *output;  /* a file for standard output, such as /dev/full */
    const char *server;  /* AVL_SERVER of the environment */
} program_setting_t;

typedef struct program_result {
    int exit_status; /* of the program; 128 + signal when one ended it */
    char *output, *errors;
} program_result_t;

/* Runs avl with `arguments` (NULL-terminated, without "avl") to its end; a run of more than a
 * minute fails the test. Free the result with program_free. */
program_result_t program_run(const program_setting_t *setting, const char *const *arguments);
void program_free(program_result_t *result);

/* program_run with arguments as they come. */
#define PROGRAM(setting, ...) program_run((setting), (const char *const[]){__VA_ARGS__, NULL})

/* A file in the temporary folder with these bytes; unlink() and free() the path. */
char *program_file(const void *bytes, size_t byte_count);

/* Fails the test, with all that the program said, unless the exit status is this. */
void program_expect(const program_result_t *result, int exit_status);
/* Fails unless `text` is contained in `whole`. */
void program_expect_text(const char *whole, const char *text);

#endif
