#include "coordinator/forecast.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"

typedef struct avl_forecast_run run_t;

void avl_forecast_destroy(avl_forecast_t *forecast) {
    free(forecast->runs);
    *forecast = (avl_forecast_t){0};
}

static void push(avl_forecast_t *forecast, run_t run) {
    size_t place = forecast->count++;
    while (place > 0 && run.last_step < forecast->runs[(place - 1) / 2].last_step) {
        forecast->runs[place] = forecast->runs[(place - 1) / 2];
        place = (place - 1) / 2;
    }
    forecast->runs[place] = run;
}

static run_t pop(avl_forecast_t *forecast) {
    run_t first = forecast->runs[0], last = forecast->runs[--forecast->count];
    size_t place = 0;
    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= forecast->count)
            break;
        if (child + 1 < forecast->count &&
            forecast->runs[child + 1].last_step < forecast->runs[child].last_step)
            child++;
        if (forecast->runs[child].last_step >= last.last_step)
            break;
        forecast->runs[place] = forecast->runs[child];
        place = child;
    }
    if (forecast->count > 0)
        forecast->runs[place] = last;
    return first;
}

/* Steps until the next one ends. */
static void advance(avl_forecast_t *forecast, const avl_pace_t *pace, int groups,
                    avl_forecast_item_t *items, double *step_p, double *now_ns_p) {
    run_t run = pop(forecast);
    double each = (double)forecast->answers / groups;
    if (run.last_step > *step_p) {
        *now_ns_p += (run.last_step - *step_p) * avl_pace_step_ns(pace, each < 1 ? 1 : each);
        *step_p = run.last_step;
    }
    items[run.item].end_ns = *now_ns_p;
    forecast->answers -= items[run.item].answers;
}

avl_status_t avl_forecast_play(avl_forecast_t *forecast, const avl_pace_t *pace, int groups,
                               int32_t parallel, avl_forecast_item_t *items, size_t count) {
    double step = 0, now_ns = 0;
    groups = groups < 1 ? 1 : groups;
    parallel = parallel < 1 ? 1 : parallel;
    AVL_TRY(avl_grow(count, sizeof *forecast->runs, "a forecast", &forecast->runs,
                     &forecast->capacity));
    forecast->count = 0;
    forecast->answers = 0;
    for (size_t i = 0; i < count; i++) {
        avl_forecast_item_t *item = &items[i];
        double tokens = (double)item->tokens;
        if (item->answers > parallel) { /* one after the other, as many as run */
            tokens *= ceil((double)item->answers / parallel);
            item->answers = parallel;
        }
        while (forecast->count > 0 && forecast->answers + item->answers > parallel)
            advance(forecast, pace, groups, items, &step, &now_ns);
        item->begin_ns = now_ns;
        now_ns += avl_pace_prompt_ns(pace, item->tiles, item->rows) / groups;
        forecast->answers += item->answers;
        push(forecast, (run_t){step + tokens, i});
    }
    while (forecast->count > 0)
        advance(forecast, pace, groups, items, &step, &now_ns);
    return AVL_OK;
}
