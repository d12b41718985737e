/* checkpoint/fingerprint.h: whether two directories hold the same model, without reading all of it.
 *
 * It covers the configuration files that decide what a model computes, and of every weight file the
 * name, the size, the header (names, types and places of the tensors) and samples over its whole
 * length: a further training of a model changes all tensors, so it shows in the samples. It tells
 * mistakes, not forgery: the hash is FNV-1a of 64 bits. */
#ifndef AVL_CHECKPOINT_FINGERPRINT_H
#define AVL_CHECKPOINT_FINGERPRINT_H

#include "base/status.h"

#define AVL_FINGERPRINT_BYTES 17 /* 16 digits and a NUL */

/* Errors: AVL_ERR_IO, AVL_ERR_NOT_FOUND (no weight file), AVL_ERR_MEMORY; the file is named. */
AVL_MUST_CHECK avl_status_t avl_fingerprint(const char *directory,
                                            char text[AVL_FINGERPRINT_BYTES]);

#endif
