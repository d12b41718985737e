/* worker/spread.h: rows chosen without scores: at even distances, or by chance. Functions of their
 * arguments alone, so every rank chooses the same. Indices come ascending. */
#ifndef AVL_WORKER_SPREAD_H
#define AVL_WORKER_SPREAD_H

#include <stdint.h>

/* The middles of `keep` equal parts of [0, count); keep <= count. */
void avl_spread_even(int32_t count, int32_t keep, int32_t *indices);

typedef enum avl_spread_purpose { /* which draw: each has its own numbers */
                                  AVL_SPREAD_STORE = 1,
                                  AVL_SPREAD_CORE = 2,
} avl_spread_purpose_t;

/* `keep` of [0, count), every set of that size as likely as another. */
void avl_spread_chance(uint64_t seed, int32_t layer, int32_t step, avl_spread_purpose_t purpose,
                       int32_t count, int32_t keep, int32_t *indices);

#endif
