/* client/top_view.h: two answers of GetStats, some time apart, as lines for a person. */
#ifndef AVL_CLIENT_TOP_VIEW_H
#define AVL_CLIENT_TOP_VIEW_H

#include <stddef.h>
#include <stdio.h>

#include "proto/inference.pb-c.h"

/* Writes the view: plain lines of printable ASCII, whatever the service calls its model. Counters
 * that went back (a restarted service) count from zero. `before` may be NULL: everything since the
 * start, which was `after->uptime_seconds` ago. */
void avl_top_view_write(FILE *stream, const char *server, const Avl__V1__GetStatsResponse *before,
                        const Avl__V1__GetStatsResponse *after, double seconds);

/* The value below which `share` of the observations between the two lie, taken as even within a
 * bucket. NAN: there are none; INFINITY: it lies above all bounds. `before` may be NULL. */
double avl_top_percentile(const Avl__V1__Histogram *before, const Avl__V1__Histogram *after,
                          double share);

#endif
