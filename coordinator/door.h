/* coordinator/door.h: what a call says of itself, read from its bytes as they came, before it is
 * unpacked: the few numbers that decide whether there is time for it.
 *
 * Looks at the top level of a GenerateRequest alone and skips the rest unread, so that what is
 * refused costs next to nothing. Checks nothing: whatever is wrong is refused, with its name, when
 * the request is unpacked. */
#ifndef AVL_COORDINATOR_DOOR_H
#define AVL_COORDINATOR_DOOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As the client says; zeros: nothing. */
typedef struct avl_asked {
    int32_t priority;
    int32_t tokens_max; /* 0: as many as the context holds */
    int32_t answers;    /* 0 is 1 */
    bool all_tokens;    /* the answer will be that long */
} avl_asked_t;

/* Starts as zeros. */
typedef struct avl_door {
    int state;
    uint64_t tag, value, skip; /* `skip`: bytes of the field that is passed over */
    int shift;
    uint64_t tokens, forced, answers, priority;
    bool ignore_eos, broken;
} avl_door_t;

/* The next bytes of the message, in any portions. */
void avl_door_read(avl_door_t *door, const uint8_t *bytes, size_t byte_count);
/* What they said; numbers that will be refused are left out. */
avl_asked_t avl_door_asked(const avl_door_t *door, int32_t choices_max, int32_t answer_tokens_max);

#endif
