/* client/json.h: numbers that JSON libraries have no type for. */
#ifndef AVL_CLIENT_JSON_H
#define AVL_CLIENT_JSON_H

#include <jansson.h>
#include <stdint.h>

/* An integer; beyond 2^63 - 1, where JSON integers end here, a string of digits. NULL: no memory.
 */
json_t *avl_json_u64(uint64_t value);

#endif
