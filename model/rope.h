/* model/rope.h: the angles of the rotary embedding, per row of a step. Included by model/ alone. */
#ifndef AVL_MODEL_ROPE_H
#define AVL_MODEL_ROPE_H

#include "checkpoint/config.h"

/* cosines, sines: write f32 [rows, head_width / 2]; sequence_rows [rows] or NULL (then position +
 * 1); frequencies: scratch f32 [head_width / 2]. Host memory. */
void avl_rope_tables(const avl_text_config_t *text, const int32_t *positions,
                     const int32_t *sequence_rows, int rows, float *frequencies, float *cosines,
                     float *sines);

#endif
