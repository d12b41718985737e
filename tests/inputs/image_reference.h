/* tests/inputs/image_reference.h: the pictures of tests/inputs/data/images and what was recorded
 * about them. */
#ifndef AVL_TESTS_INPUTS_IMAGE_REFERENCE_H
#define AVL_TESTS_INPUTS_IMAGE_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

#include "inputs/image.h"

/* FNV-1a, 64 bits. */
uint64_t reference_digest(const void *data, size_t data_bytes);
/* The whole file, malloc'ed; fails the test when it cannot be read. */
uint8_t *reference_read(const char *path, size_t *byte_count_p);
/* A picture of the folder: its bytes, or decoded. */
uint8_t *reference_file(const char *name, size_t *byte_count_p);
avl_image_t reference_image(const char *name);
/* Calls `check` with what follows each line's `word` in reference.txt; returns how many lines there
 * were. */
int reference_lines(const char *word, void (*check)(const char *rest));

#endif
