/* base/utf8.h: which bytes are UTF-8 (RFC 3629: no overlong forms, no surrogates). */
#ifndef AVL_BASE_UTF8_H
#define AVL_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the well-formed character at `text`, or 0. `text` has at least one byte. */
size_t avl_utf8_character(const unsigned char *text, size_t bytes);
/* Bytes of the longest start of a well-formed character at `text` ("maximal subpart"), at least 1:
 * what becomes one U+FFFD. *ended_p is true when the text ended in the middle of a possible
 * character. */
size_t avl_utf8_broken(const unsigned char *text, size_t bytes, bool *ended_p);
bool avl_utf8_valid(const char *text, size_t bytes);

#endif
