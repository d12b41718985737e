#include "coordinator/pace.h"

#include <math.h>
#include <stddef.h>

#define STEPS_LEAST 16  /* told, before anything is foretold */
#define RATE (1.0 / 16) /* share of an error that one report mends */
#define RATIO_MOST 4.0  /* a report that took so much longer was disturbed: it counts as so much */

static int bucket_of(double sequences) {
    int bucket = sequences > 1 ? (int)(2 * log2(sequences)) : 0;
    return bucket < AVL_PACE_BUCKETS ? bucket : AVL_PACE_BUCKETS - 1;
}

double avl_pace_step_ns(const avl_pace_t *pace, double sequences) {
    const struct avl_pace_bucket *below = NULL, *above = NULL;
    if (sequences <= 0)
        return 0;
    for (int i = 0; i < AVL_PACE_BUCKETS && above == NULL; i++) {
        const struct avl_pace_bucket *bucket = &pace->decode[i];
        if (bucket->ns <= 0)
            continue;
        if (bucket->sequences <= sequences)
            below = bucket;
        else
            above = bucket;
    }
    if (below == NULL)
        return above != NULL ? above->ns : 0;
    if (above == NULL)
        return below->ns * sequences / below->sequences;
    double share = (sequences - below->sequences) / (above->sequences - below->sequences);
    return below->ns + share * (above->ns - below->ns);
}

double avl_pace_prompt_ns(const avl_pace_t *pace, int64_t tiles, int64_t rows) {
    return (double)tiles * pace->tile_ns + (double)rows * pace->row_ns;
}

bool avl_pace_is_known(const avl_pace_t *pace) {
    bool any = false;
    for (int i = 0; i < AVL_PACE_BUCKETS; i++)
        any = any || pace->decode[i].ns > 0;
    return any && pace->row_ns > 0 && pace->steps >= STEPS_LEAST;
}

static void add_decode(avl_pace_t *pace, double sequences, double step_ns, double weight) {
    struct avl_pace_bucket *bucket = &pace->decode[bucket_of(sequences)];
    if (bucket->ns <= 0) {
        *bucket = (struct avl_pace_bucket){sequences, step_ns};
        return;
    }
    bucket->sequences += weight * (sequences - bucket->sequences);
    bucket->ns += weight * (step_ns - bucket->ns);
}

void avl_pace_add(avl_pace_t *pace, const avl_work_t *work) {
    if (work->steps <= 0 || work->ns <= 0 || work->decode_rows < 0 || work->prompt_rows < 0)
        return;
    pace->steps += work->steps;
    if (work->tiles > 0 && work->encode_ns > 0) {
        double tile_ns = (double)work->encode_ns / (double)work->tiles;
        pace->tile_ns += (pace->tile_ns > 0 ? RATE : 1) * (tile_ns - pace->tile_ns);
    }
    double steps = (double)work->steps, rows = (double)work->prompt_rows;
    double ns = (double)(work->ns - (work->encode_ns > 0 ? work->encode_ns : 0));
    double sequences = (double)work->decode_rows / steps;
    double decode_ns = steps * avl_pace_step_ns(pace, sequences), prompt_ns = rows * pace->row_ns;
    if (ns <= 0 || (work->decode_rows == 0 && work->prompt_rows == 0))
        return;
    if (work->prompt_rows > 0 && prompt_ns <= 0) { /* the first */
        double rest_ns = ns > 1.25 * decode_ns ? ns - decode_ns : ns / 5;
        pace->row_ns = rest_ns / rows;
        return;
    }
    if (work->decode_rows > 0 && decode_ns <= 0) {
        double rest_ns = ns > 1.25 * prompt_ns ? ns - prompt_ns : ns / 5;
        add_decode(pace, sequences, rest_ns / steps, 1);
        return;
    }
    double ratio = ns / (decode_ns + prompt_ns), share = decode_ns / (decode_ns + prompt_ns);
    ratio = ratio < RATIO_MOST ? ratio : RATIO_MOST;
    if (work->decode_rows > 0)
        add_decode(pace, sequences, decode_ns / steps * (1 + (ratio - 1) * share), RATE);
    pace->row_ns *= 1 + RATE * (ratio - 1) * (1 - share);
}
