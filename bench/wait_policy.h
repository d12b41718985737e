/* bench/wait_policy.h: threads wait as the worker's do. */
#ifndef AVL_BENCH_WAIT_POLICY_H
#define AVL_BENCH_WAIT_POLICY_H

/* First thing in main. OpenMP reads its environment before main, so the program starts again with
 * OMP_WAIT_POLICY=passive unless the variable is set: threads that spin measure something else,
 * above all beside other processes. */
void avl_bench_wait_passively(char **argv);

#endif
