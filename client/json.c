#include "client/json.h"

#include <inttypes.h>
#include <stdio.h>

json_t *avl_json_u64(uint64_t value) {
    if (value <= INT64_MAX)
        return json_integer((json_int_t)value);
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    return json_string(digits);
}
