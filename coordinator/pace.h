/* coordinator/pace.h: how fast groups work, learned from what they report with their steps.
 *
 * A step takes a time that depends on how many sequences decode in it, and more for prompt rows and
 * for tiles of pictures. Reports seldom show one of these alone, so whatever a report took longer
 * or shorter than was foretold is put down to its parts, each by its share (a multiplicative form
 * of normalised least mean squares): the sum follows the truth within some reports, the parts as
 * soon as they come in other mixtures.
 *
 * What decodes side by side is kept in half octaves, between which lines are drawn; more sequences
 * than were ever seen are taken to need time in proportion, fewer as much as the fewest seen: both
 * err to the safe side.
 *
 * Not locked: its user guards it. Starts as zeros. */
#ifndef AVL_COORDINATOR_PACE_H
#define AVL_COORDINATOR_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define AVL_PACE_BUCKETS 26 /* 4096 sequences and more */

typedef struct avl_pace {
    struct avl_pace_bucket {
        double sequences, ns; /* of a step; 0: never seen */
    } decode[AVL_PACE_BUCKETS];
    double row_ns, tile_ns; /* 0: never seen */
    int64_t steps;          /* told */
} avl_pace_t;

/* Some steps of a group, together. */
typedef struct avl_work {
    int64_t steps, ns;
    int64_t decode_rows, prompt_rows, tiles;
    int64_t encode_ns; /* of `ns`: for the tiles */
} avl_work_t;

void avl_pace_add(avl_pace_t *pace, const avl_work_t *work);
/* Whether enough was told to foretell anything. */
bool avl_pace_is_known(const avl_pace_t *pace);
/* A step in which so many sequences decode, and nothing else is done. */
double avl_pace_step_ns(const avl_pace_t *pace, double sequences);
/* What reading a prompt adds. */
double avl_pace_prompt_ns(const avl_pace_t *pace, int64_t tiles, int64_t rows);

#endif
