#include "coordinator/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/utf8.h"

void avl_histogram_init(avl_histogram_t *histogram, double unit, const double *bounds,
                        size_t bound_count) {
    AVL_ASSERT(bound_count <= AVL_HISTOGRAM_BOUNDS_MAX);
    histogram->unit = unit;
    histogram->bounds = bounds;
    histogram->bound_count = bound_count;
}

void avl_histogram_observe(avl_histogram_t *histogram, int64_t steps) {
    if (steps < 0)
        steps = 0;
    double value = (double)steps * histogram->unit;
    size_t bucket = 0;
    while (bucket < histogram->bound_count && value > histogram->bounds[bucket])
        bucket++;
    avl_counter_add(&histogram->counts[bucket], 1);
    atomic_fetch_add_explicit(&histogram->sum, steps, memory_order_relaxed);
}

const char *avl_exposition_content_type(avl_exposition_format_t format) {
    return format == AVL_EXPOSITION_OPENMETRICS
               ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
               : "text/plain; version=0.0.4; charset=utf-8";
}

void avl_exposition_begin(avl_exposition_t *exposition, FILE *stream,
                          avl_exposition_format_t format) {
    *exposition = (avl_exposition_t){.stream = stream, .format = format};
}

void avl_exposition_end(avl_exposition_t *exposition) {
    if (exposition->format == AVL_EXPOSITION_OPENMETRICS)
        fputs("# EOF\n", exposition->stream);
}

/* Both formats escape alike, but that quotes are escaped between quotes alone in 0.0.4. */
static void write_escaped(avl_exposition_t *exposition, const char *text, bool quoted) {
    size_t bytes = strlen(text);
    const unsigned char *at = (const unsigned char *)text;
    while (bytes > 0) {
        size_t taken = avl_utf8_character(at, bytes);
        if (taken == 0) {
            bool ended;
            taken = avl_utf8_broken(at, bytes, &ended);
            fputs("\xef\xbf\xbd", exposition->stream);
        } else if (*at == '\n') {
            fputs("\\n", exposition->stream);
        } else if (*at == '\\' || (*at == '"' && quoted)) {
            fprintf(exposition->stream, "\\%c", *at);
        } else {
            fwrite(at, 1, taken, exposition->stream);
        }
        at += taken;
        bytes -= taken;
    }
}

void avl_exposition_family(avl_exposition_t *exposition, avl_family_type_t type, const char *name,
                           const char *help) {
    static const char *const types[] = {"counter", "gauge", "histogram"};
    static const char suffix[] = "_total";
    size_t bytes = strlen(name), suffix_bytes = sizeof suffix - 1;
    if (type == AVL_FAMILY_COUNTER) {
        AVL_ASSERT(bytes > suffix_bytes && strcmp(name + bytes - suffix_bytes, suffix) == 0);
        /* OpenMetrics names the family without the ending that its samples have. */
        if (exposition->format == AVL_EXPOSITION_OPENMETRICS)
            bytes -= suffix_bytes;
    }
    exposition->family = name;
    fprintf(exposition->stream, "# HELP %.*s ", (int)bytes, name);
    write_escaped(exposition, help, exposition->format == AVL_EXPOSITION_OPENMETRICS);
    fprintf(exposition->stream, "\n# TYPE %.*s %s\n", (int)bytes, name, types[type]);
}

/* Integers exactly, other numbers so that they read back the same. */
static void write_number(FILE *stream, double value) {
    if (isnan(value))
        fputs("NaN", stream);
    else if (isinf(value))
        fputs(value > 0 ? "+Inf" : "-Inf", stream);
    else if (value == floor(value) && fabs(value) < 1e15)
        fprintf(stream, "%.0f", value);
    else {
        char text[32];
        snprintf(text, sizeof text, "%.15g", value); /* the shorter one, where it is as good */
        if (strtod(text, NULL) != value)
            snprintf(text, sizeof text, "%.17g", value);
        fputs(text, stream);
    }
}

/* Bounds are written as people write them: 0.1, not 0.10000000000000001. */
static void write_bound(FILE *stream, double bound) {
    char text[32];
    snprintf(text, sizeof text, "%.12g", bound);
    fputs(text, stream);
    if (strpbrk(text, ".e") == NULL)
        fputs(".0", stream); /* OpenMetrics wants floats here */
}

/* NAME + suffix and labels; `bound` of a bucket: NULL, or what le says. */
static void write_head(avl_exposition_t *exposition, const char *suffix, const avl_label_t *labels,
                       size_t label_count, const double *bound) {
    FILE *stream = exposition->stream;
    fprintf(stream, "%s%s", exposition->family, suffix);
    if (label_count > 0 || bound != NULL)
        fputc('{', stream);
    for (size_t i = 0; i < label_count; i++) {
        fprintf(stream, "%s%s=\"", i > 0 ? "," : "", labels[i].name);
        write_escaped(exposition, labels[i].value, true);
        fputc('"', stream);
    }
    if (bound != NULL) {
        fprintf(stream, "%sle=\"", label_count > 0 ? "," : "");
        if (isinf(*bound))
            fputs("+Inf", stream);
        else
            write_bound(stream, *bound);
        fputc('"', stream);
    }
    if (label_count > 0 || bound != NULL)
        fputc('}', stream);
    fputc(' ', stream);
}

void avl_exposition_integer(avl_exposition_t *exposition, const avl_label_t *labels,
                            size_t label_count, int64_t value) {
    write_head(exposition, "", labels, label_count, NULL);
    fprintf(exposition->stream, "%" PRId64 "\n", value);
}

void avl_exposition_number(avl_exposition_t *exposition, const avl_label_t *labels,
                           size_t label_count, double value) {
    write_head(exposition, "", labels, label_count, NULL);
    write_number(exposition->stream, value);
    fputc('\n', exposition->stream);
}

void avl_exposition_histogram(avl_exposition_t *exposition, const avl_label_t *labels,
                              size_t label_count, const avl_histogram_t *histogram) {
    uint64_t total = 0;
    int64_t sum = atomic_load_explicit(&histogram->sum, memory_order_relaxed);
    for (size_t i = 0; i <= histogram->bound_count; i++) {
        double bound = i < histogram->bound_count ? histogram->bounds[i] : INFINITY;
        total += avl_counter_value(&histogram->counts[i]);
        write_head(exposition, "_bucket", labels, label_count, &bound);
        fprintf(exposition->stream, "%" PRIu64 "\n", total);
    }
    write_head(exposition, "_sum", labels, label_count, NULL);
    write_number(exposition->stream, (double)sum * histogram->unit);
    fputc('\n', exposition->stream);
    write_head(exposition, "_count", labels, label_count, NULL);
    fprintf(exposition->stream, "%" PRIu64 "\n", total);
}

void avl_exposition_counter(avl_exposition_t *exposition, const char *name, const char *help,
                            uint64_t value) {
    avl_exposition_family(exposition, AVL_FAMILY_COUNTER, name, help);
    avl_exposition_integer(exposition, NULL, 0, (int64_t)value);
}

void avl_exposition_gauge(avl_exposition_t *exposition, const char *name, const char *help,
                          double value) {
    avl_exposition_family(exposition, AVL_FAMILY_GAUGE, name, help);
    avl_exposition_number(exposition, NULL, 0, value);
}
