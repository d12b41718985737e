/* coordinator/forecast.h: when requests will end, if all goes on as it does now.
 *
 * It plays what groups do, in an order that is given: as many answers as they decode side by side
 * run; each step gives every one of them a token and takes as long as steps of so many do
 * (pace.h); a prompt that is read delays all the others by what that takes; who ends makes room for
 * the next. Time is counted in steps between such events, so it costs n log n for n requests. */
#ifndef AVL_COORDINATOR_FORECAST_H
#define AVL_COORDINATOR_FORECAST_H

#include <stddef.h>

#include "base/status.h"
#include "coordinator/pace.h"

typedef struct avl_forecast_item {
    int64_t tiles, rows; /* to encode and to read */
    int64_t tokens;      /* of each answer that are left: at least 1 */
    int32_t answers;
    /* told, in nanoseconds from now */
    double begin_ns, end_ns;
} avl_forecast_item_t;

/* Memory that is kept between forecasts: starts as zeros. */
typedef struct avl_forecast {
    struct avl_forecast_run {
        double last_step;
        size_t item;
    } * runs; /* a heap: who ends first is on top */
    size_t count, capacity;
    int32_t answers; /* of those that run */
} avl_forecast_t;

void avl_forecast_destroy(avl_forecast_t *forecast);

/* `groups` work alike and decode `parallel` answers together, each its share. Errors:
 * AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_forecast_play(avl_forecast_t *forecast, const avl_pace_t *pace,
                                              int groups, int32_t parallel,
                                              avl_forecast_item_t *items, size_t count);

#endif
