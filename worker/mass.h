/* worker/mass.h: what a decode row would look at if it read all visual rows of its request, beside
 * what it does read (docs/A-VL.md, measuring). Head by head, because the rows that it reads may be
 * each head's own. For requests that ask for it alone: it waits for the device. */
#ifndef AVL_WORKER_MASS_H
#define AVL_WORKER_MASS_H

#include "worker/attend.h"

typedef struct avl_mass avl_mass_t;

/* Bytes that create will allocate. */
int64_t avl_mass_bytes(const avl_attend_options_t *options);
/* Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_mass_create(const avl_attend_options_t *options,
                                            avl_mass_t **mass_p);
void avl_mass_destroy(avl_mass_t *mass);

/* Adds this step's row to the sequence's step_mass. `all`: the row's system and text spans, and all
 * visual rows but the first `hidden`; of the store it sees the rows from `visible_first` on. */
AVL_MUST_CHECK avl_status_t avl_mass_add(avl_mass_t *mass, const avl_attention_call_t *call,
                                         avl_sequence_t *sequence, const avl_decode_sequence_t *all,
                                         int32_t hidden, int32_t visible_first);

#endif
