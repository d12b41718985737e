/* proto/texts.h: what the service says in the text of a status and clients of this project look
 * for, where the code alone does not tell. */
#ifndef AVL_PROTO_TEXTS_H
#define AVL_PROTO_TEXTS_H

/* DEADLINE_EXCEEDED before the deadline: not a refusal, but a request that was taken and then
 * waited for too long. The text begins with it. */
#define AVL_TEXT_GIVEN_UP "the wait was longer than estimated"

#endif
