/* coordinator/metrics.h: counting, and the text in which Prometheus reads counts.
 *
 * Counters, gauges and histograms are plain memory that any thread adds to without a lock; who owns
 * them says what they mean (service_metrics.h). An exposition writes them in the text format 0.0.4
 * or as OpenMetrics 1.0: a family's head first, then its samples.
 *
 * A scrape sees each value as it is at some moment, not all at the same one; within one histogram
 * _count is the sum of the buckets that are shown. */
#ifndef AVL_COORDINATOR_METRICS_H
#define AVL_COORDINATOR_METRICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

typedef struct avl_counter {
    atomic_uint_least64_t value;
} avl_counter_t;

typedef struct avl_gauge {
    atomic_int_least64_t value;
} avl_gauge_t;

static inline void avl_counter_add(avl_counter_t *counter, uint64_t amount) {
    atomic_fetch_add_explicit(&counter->value, amount, memory_order_relaxed);
}

static inline uint64_t avl_counter_value(const avl_counter_t *counter) {
    return atomic_load_explicit(&counter->value, memory_order_relaxed);
}

static inline void avl_gauge_add(avl_gauge_t *gauge, int64_t amount) {
    atomic_fetch_add_explicit(&gauge->value, amount, memory_order_relaxed);
}

static inline int64_t avl_gauge_value(const avl_gauge_t *gauge) {
    return atomic_load_explicit(&gauge->value, memory_order_relaxed);
}

#define AVL_HISTOGRAM_BOUNDS_MAX 24

/* Observations are whole steps (nanoseconds, tokens); `unit` turns them into what is shown, so that
 * a sum is one atomic addition. */
typedef struct avl_histogram {
    double unit;
    const double *bounds; /* ascending upper bounds, inclusive, in what is shown */
    size_t bound_count;
    avl_counter_t counts[AVL_HISTOGRAM_BOUNDS_MAX + 1]; /* the last one: above all bounds */
    atomic_int_least64_t sum;                           /* in steps */
} avl_histogram_t;

/* `bounds` is kept; at most AVL_HISTOGRAM_BOUNDS_MAX. */
void avl_histogram_init(avl_histogram_t *histogram, double unit, const double *bounds,
                        size_t bound_count);
/* What is below 0 counts as 0. */
void avl_histogram_observe(avl_histogram_t *histogram, int64_t steps);

typedef struct avl_label {
    const char *name;
    const char *value; /* any bytes: what is no UTF-8 is replaced */
} avl_label_t;

typedef enum avl_exposition_format {
    AVL_EXPOSITION_TEXT,
    AVL_EXPOSITION_OPENMETRICS,
} avl_exposition_format_t;

typedef enum avl_family_type {
    AVL_FAMILY_COUNTER, /* its name ends in _total */
    AVL_FAMILY_GAUGE,
    AVL_FAMILY_HISTOGRAM,
} avl_family_type_t;

typedef struct avl_exposition {
    FILE *stream;
    avl_exposition_format_t format;
    const char *family;
} avl_exposition_t;

/* The Content-Type of a format. */
const char *avl_exposition_content_type(avl_exposition_format_t format);
void avl_exposition_begin(avl_exposition_t *exposition, FILE *stream,
                          avl_exposition_format_t format);
void avl_exposition_end(avl_exposition_t *exposition);

/* The head of a family; samples of that family alone follow. Names are kept until the next. */
void avl_exposition_family(avl_exposition_t *exposition, avl_family_type_t type, const char *name,
                           const char *help);
void avl_exposition_integer(avl_exposition_t *exposition, const avl_label_t *labels,
                            size_t label_count, int64_t value);
void avl_exposition_number(avl_exposition_t *exposition, const avl_label_t *labels,
                           size_t label_count, double value);
void avl_exposition_histogram(avl_exposition_t *exposition, const avl_label_t *labels,
                              size_t label_count, const avl_histogram_t *histogram);

/* A family of one sample without labels. */
void avl_exposition_counter(avl_exposition_t *exposition, const char *name, const char *help,
                            uint64_t value);
void avl_exposition_gauge(avl_exposition_t *exposition, const char *name, const char *help,
                          double value);

#endif
