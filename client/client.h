/* client/client.h: the commands of the program `avl`. Each parses its own arguments (argv[0] is its
 * name) and returns the process's exit status: 0 done, 1 failed, 2 used wrongly, 130 interrupted.
 */
#ifndef AVL_CLIENT_CLIENT_H
#define AVL_CLIENT_CLIENT_H

#define AVL_EXIT_FAILED 1
#define AVL_EXIT_USAGE 2
#define AVL_EXIT_INTERRUPTED 130

/* Where the service is when --server is not given: the environment's AVL_SERVER, or this. */
#define AVL_DEFAULT_SERVER "127.0.0.1:50051"

int avl_command_ask(int argc, char **argv);
int avl_command_bench(int argc, char **argv);
int avl_command_eval(int argc, char **argv);
int avl_command_info(int argc, char **argv);
int avl_command_top(int argc, char **argv);

#endif
