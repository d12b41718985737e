#include "client/eval_plot.h"

#include <cairo.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"

/* All lengths are points of a drawing that is written at twice its size. */
#define SCALE 2
#define PANEL_WIDTH 360.0
#define PANEL_HEIGHT 280.0
#define LEFT 48.0
#define RIGHT 16.0
#define TOP 30.0
#define BOTTOM 44.0
#define COLUMNS_MAX 3
#define LEGEND_ROW 18.0
#define HEAD 30.0
#define TICKS_MAX 8
#define FAMILIES_MAX 24

typedef struct colour {
    double red, green, blue;
} colour_t;

/* By M. Okabe and K. Ito: apart for most eyes. */
static const colour_t colours[] = {{0.00, 0.45, 0.70}, {0.84, 0.37, 0.00}, {0.00, 0.62, 0.45},
                                   {0.80, 0.47, 0.65}, {0.90, 0.62, 0.00}, {0.34, 0.71, 0.91}};
#define COLOUR_COUNT (sizeof colours / sizeof colours[0])

static const double dashes[] = {5, 4}; /* of dense attention's line */

typedef struct axis {
    double low, high, step;
} axis_t;

typedef struct plot {
    const avl_eval_run_t *run;
    const avl_eval_cell_t *cells;
    double (*x_of)(const avl_eval_cell_t *cell);
    const char *x_name;
    const char *families[FAMILIES_MAX]; /* all but dense, in order of appearance */
    size_t family_count;
    cairo_t *cairo;
} plot_t;

static double bytes_of(const avl_eval_cell_t *cell) {
    return cell->kv_bytes / 1024;
}

static double rows_of(const avl_eval_cell_t *cell) {
    return cell->rows_computed;
}

static const avl_eval_cell_t *cell_of(const plot_t *plot, size_t method, size_t task) {
    return &plot->cells[method * plot->run->tasks->name_count + task];
}

/* What is drawn: the score, or where there are no expected answers, agreement with dense. */
static const avl_eval_mean_t *y_of(const plot_t *plot, size_t task, const avl_eval_cell_t *cell) {
    return cell_of(plot, 0, task)->score.count > 0 ? &cell->score : &cell->kept;
}

/* Dense attention is a line across the panel; a point that keeps and computes all rows would lie
 * on it, far to the right of the others. */
static bool is_point(const plot_t *plot, size_t method, size_t task) {
    const avl_eval_cell_t *cell = cell_of(plot, method, task), *dense = cell_of(plot, 0, task);
    bool whole = cell->rows_computed >= dense->rows_computed && cell->kv_bytes >= dense->kv_bytes;
    return !plot->run->methods[method].dense && !whole && y_of(plot, task, cell)->count > 0;
}

/* Round numbers from at most `low` to at least `high`. */
static axis_t make_axis(double low, double high) {
    double span = high > low ? high - low : fmax(fabs(high), 1);
    double step = pow(10, floor(log10(span / 5)));
    static const double factors[] = {1, 2, 2.5, 5, 10};
    size_t i = 0;
    while (i < 4 && span / (step * factors[i]) > TICKS_MAX - 2)
        i++;
    step *= factors[i];
    return (axis_t){.low = floor(low / step + 1e-9) * step,
                    .high = ceil((high > low ? high : low + span) / step - 1e-9) * step,
                    .step = step};
}

static double place(const axis_t *axis, double value, double from, double to) {
    return from + (value - axis->low) / (axis->high - axis->low) * (to - from);
}

static void set_colour(cairo_t *cairo, size_t family) {
    const colour_t *colour = &colours[family % COLOUR_COUNT];
    cairo_set_source_rgb(cairo, colour->red, colour->green, colour->blue);
}

/* `align`: 0 begins at x, 0.5 is centred, 1 ends there. */
static void write_text(cairo_t *cairo, double x, double y, double align, double size, bool bold,
                       const char *text) {
    cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cairo, size);
    cairo_text_extents_t extents;
    cairo_text_extents(cairo, text, &extents);
    cairo_move_to(cairo, x - align * extents.x_advance, y);
    cairo_show_text(cairo, text);
}

static void draw_marker(cairo_t *cairo, size_t family, double x, double y) {
    double size = 3.6;
    cairo_new_sub_path(cairo);
    switch (family / COLOUR_COUNT + family % 3) {
    case 0:
        cairo_arc(cairo, x, y, size, 0, 2 * M_PI);
        break;
    case 1:
        cairo_rectangle(cairo, x - size, y - size, 2 * size, 2 * size);
        break;
    default:
        cairo_move_to(cairo, x, y - 1.3 * size);
        cairo_line_to(cairo, x + 1.2 * size, y + size);
        cairo_line_to(cairo, x - 1.2 * size, y + size);
        cairo_close_path(cairo);
        break;
    }
    cairo_fill(cairo);
}

static void find_ranges(const plot_t *plot, size_t task, axis_t *x_axis, axis_t *y_axis) {
    double x_high = 0, y_low = 1, y_high = 0;
    for (size_t i = 0; i < plot->run->method_count; i++) {
        const avl_eval_cell_t *cell = cell_of(plot, i, task);
        const avl_eval_mean_t *y = y_of(plot, task, cell);
        if (i > 0 && !is_point(plot, i, task))
            continue;
        if (i > 0)
            x_high = fmax(x_high, plot->x_of(cell));
        y_low = fmin(y_low, y->low);
        y_high = fmax(y_high, y->high);
    }
    *x_axis = make_axis(0, x_high * 1.02);
    *y_axis = make_axis(fmin(y_low, y_high) * 100, y_high * 100);
}

static void draw_grid(cairo_t *cairo, const axis_t *x_axis, const axis_t *y_axis) {
    double right = PANEL_WIDTH - RIGHT, bottom = PANEL_HEIGHT - BOTTOM;
    char text[32];
    cairo_set_line_width(cairo, 0.6);
    for (int i = 0; y_axis->low + i * y_axis->step <= y_axis->high * (1 + 1e-9) + 1e-9; i++) {
        double value = y_axis->low + i * y_axis->step, y = place(y_axis, value, bottom, TOP);
        cairo_set_source_rgb(cairo, 0.88, 0.88, 0.88);
        cairo_move_to(cairo, LEFT, y);
        cairo_line_to(cairo, right, y);
        cairo_stroke(cairo);
        cairo_set_source_rgb(cairo, 0.25, 0.25, 0.25);
        snprintf(text, sizeof text, "%g", value);
        write_text(cairo, LEFT - 6, y + 3.5, 1, 10, false, text);
    }
    for (int i = 0; x_axis->low + i * x_axis->step <= x_axis->high * (1 + 1e-9); i++) {
        double value = x_axis->low + i * x_axis->step, x = place(x_axis, value, LEFT, right);
        cairo_set_source_rgb(cairo, 0.88, 0.88, 0.88);
        cairo_move_to(cairo, x, TOP);
        cairo_line_to(cairo, x, bottom);
        cairo_stroke(cairo);
        cairo_set_source_rgb(cairo, 0.25, 0.25, 0.25);
        snprintf(text, sizeof text, "%g", value);
        write_text(cairo, x, bottom + 14, 0.5, 10, false, text);
    }
}

/* Dense attention: a band as wide as its interval, and a broken line. */
static void draw_dense(const plot_t *plot, size_t task, const axis_t *y_axis) {
    cairo_t *cairo = plot->cairo;
    const avl_eval_mean_t *dense = y_of(plot, task, cell_of(plot, 0, task));
    double right = PANEL_WIDTH - RIGHT, bottom = PANEL_HEIGHT - BOTTOM;
    if (dense->count == 0)
        return;
    double low = place(y_axis, 100 * dense->low, bottom, TOP);
    double high = place(y_axis, 100 * dense->high, bottom, TOP);
    cairo_set_source_rgba(cairo, 0.3, 0.3, 0.3, 0.12);
    cairo_rectangle(cairo, LEFT, high, right - LEFT, low - high);
    cairo_fill(cairo);
    double y = place(y_axis, 100 * dense->mean, bottom, TOP);
    cairo_set_source_rgb(cairo, 0.2, 0.2, 0.2);
    cairo_set_line_width(cairo, 1.2);
    cairo_set_dash(cairo, dashes, 2, 0);
    cairo_move_to(cairo, LEFT, y);
    cairo_line_to(cairo, right, y);
    cairo_stroke(cairo);
    cairo_set_dash(cairo, NULL, 0, 0);
}

typedef struct point {
    double x, y, low, high;
} point_t;

static int compare_points(const void *left_p, const void *right_p) {
    double left = ((const point_t *)left_p)->x, right = ((const point_t *)right_p)->x;
    return (left > right) - (left < right);
}

static void draw_family(const plot_t *plot, size_t task, size_t family, const axis_t *x_axis,
                        const axis_t *y_axis) {
    cairo_t *cairo = plot->cairo;
    point_t points[AVL_EVAL_METHODS_MAX + 1];
    size_t count = 0;
    double right = PANEL_WIDTH - RIGHT, bottom = PANEL_HEIGHT - BOTTOM;
    for (size_t i = 1; i < plot->run->method_count; i++) {
        const avl_eval_cell_t *cell = cell_of(plot, i, task);
        const avl_eval_mean_t *y = y_of(plot, task, cell);
        if (!is_point(plot, i, task) ||
            strcmp(plot->run->methods[i].family, plot->families[family]) != 0)
            continue;
        /* Side by side, so that intervals of one budget can be told apart. */
        double aside = 2 * ((double)family - (double)(plot->family_count - 1) / 2);
        points[count++] = (point_t){.x = aside + place(x_axis, plot->x_of(cell), LEFT, right),
                                    .y = place(y_axis, 100 * y->mean, bottom, TOP),
                                    .low = place(y_axis, 100 * y->low, bottom, TOP),
                                    .high = place(y_axis, 100 * y->high, bottom, TOP)};
    }
    qsort(points, count, sizeof points[0], compare_points);
    set_colour(cairo, family);
    cairo_set_line_width(cairo, 0.8);
    for (size_t i = 0; i < count; i++) {
        cairo_move_to(cairo, points[i].x, points[i].low);
        cairo_line_to(cairo, points[i].x, points[i].high);
        cairo_stroke(cairo);
    }
    cairo_set_line_width(cairo, 1.8);
    for (size_t i = 0; i < count; i++)
        cairo_line_to(cairo, points[i].x, points[i].y);
    cairo_stroke(cairo);
    for (size_t i = 0; i < count; i++)
        draw_marker(cairo, family, points[i].x, points[i].y);
}

static void draw_panel(const plot_t *plot, size_t task) {
    cairo_t *cairo = plot->cairo;
    axis_t x_axis, y_axis;
    char title[160];
    find_ranges(plot, task, &x_axis, &y_axis);
    draw_grid(cairo, &x_axis, &y_axis);
    draw_dense(plot, task, &y_axis);
    for (size_t i = 0; i < plot->family_count; i++)
        draw_family(plot, task, i, &x_axis, &y_axis);
    cairo_set_source_rgb(cairo, 0.1, 0.1, 0.1);
    bool scored = cell_of(plot, 0, task)->score.count > 0;
    snprintf(title, sizeof title, "%s: %s", plot->run->tasks->names[task],
             scored ? "score, %" : "tokens as dense before the first other one, %");
    write_text(cairo, LEFT, TOP - 12, 0, 12, true, title);
    snprintf(title, sizeof title, "%s (dense: %.0f)", plot->x_name,
             plot->x_of(cell_of(plot, 0, task)));
    write_text(cairo, (LEFT + PANEL_WIDTH - RIGHT) / 2, PANEL_HEIGHT - 12, 0.5, 10.5, false, title);
}

/* Names of methods, from left to right; returns the height. Without a context nothing is drawn. */
static double draw_legend(const plot_t *plot, double width, double top) {
    cairo_t *cairo = plot->cairo;
    double x = LEFT, y = top + LEGEND_ROW / 2;
    for (size_t i = 0; i <= plot->family_count; i++) {
        const char *name = i == 0 ? "dense" : plot->families[i - 1];
        double needed = 46 + 6.6 * (double)strlen(name);
        if (x + needed > width && x > LEFT) {
            x = LEFT;
            y += LEGEND_ROW;
        }
        if (cairo != NULL) {
            cairo_set_line_width(cairo, 1.8);
            if (i == 0)
                cairo_set_source_rgb(cairo, 0.2, 0.2, 0.2);
            else
                set_colour(cairo, i - 1);
            cairo_set_dash(cairo, dashes, i == 0 ? 2 : 0, 0);
            cairo_move_to(cairo, x, y);
            cairo_line_to(cairo, x + 22, y);
            cairo_stroke(cairo);
            cairo_set_dash(cairo, NULL, 0, 0);
            if (i > 0)
                draw_marker(cairo, i - 1, x + 11, y);
            cairo_set_source_rgb(cairo, 0.1, 0.1, 0.1);
            write_text(cairo, x + 28, y + 3.8, 0, 11, false, name);
        }
        x += needed;
    }
    return y + LEGEND_ROW - top;
}

static void draw_all(plot_t *plot, const avl_eval_setting_t *setting, double width, double height) {
    cairo_t *cairo = plot->cairo;
    char head[256];
    cairo_scale(cairo, SCALE, SCALE);
    cairo_set_source_rgb(cairo, 1, 1, 1);
    cairo_rectangle(cairo, 0, 0, width, height);
    cairo_fill(cairo);
    cairo_set_line_join(cairo, CAIRO_LINE_JOIN_ROUND);
    cairo_set_source_rgb(cairo, 0.1, 0.1, 0.1);
    snprintf(head, sizeof head, "%s (95 %% intervals)", setting->info->model);
    write_text(cairo, LEFT, HEAD - 8, 0, 13, true, head);
    size_t tasks = plot->run->tasks->name_count;
    for (size_t i = 0; i < tasks; i++) {
        cairo_save(cairo);
        cairo_translate(cairo, (double)(i % COLUMNS_MAX) * PANEL_WIDTH,
                        HEAD + (double)(i / COLUMNS_MAX) * PANEL_HEIGHT);
        draw_panel(plot, i);
        cairo_restore(cairo);
    }
    double rows = (double)((tasks + COLUMNS_MAX - 1) / COLUMNS_MAX);
    (void)draw_legend(plot, width, HEAD + rows * PANEL_HEIGHT);
}

static avl_status_t write_plot(plot_t *plot, const avl_eval_setting_t *setting, const char *folder,
                               const char *file) {
    size_t tasks = plot->run->tasks->name_count;
    double columns = tasks < COLUMNS_MAX ? (double)tasks : COLUMNS_MAX;
    double rows = (double)((tasks + COLUMNS_MAX - 1) / COLUMNS_MAX);
    double width = columns * PANEL_WIDTH;
    double height =
        HEAD + rows * PANEL_HEIGHT + draw_legend(plot, width, HEAD + rows * PANEL_HEIGHT);
    size_t bytes = strlen(folder) + strlen(file) + 2;
    char *path = NULL;
    AVL_TRY(avl_alloc(bytes, 1, "a plot's name", &path));
    snprintf(path, bytes, "%s/%s", folder, file);
    cairo_surface_t *surface = cairo_image_surface_create(
        CAIRO_FORMAT_RGB24, (int)ceil(SCALE * width), (int)ceil(SCALE * height));
    plot->cairo = cairo_create(surface);
    draw_all(plot, setting, width, height);
    cairo_status_t drawn = cairo_status(plot->cairo);
    cairo_destroy(plot->cairo);
    plot->cairo = NULL;
    if (drawn == CAIRO_STATUS_SUCCESS)
        drawn = cairo_surface_write_to_png(surface, path);
    cairo_surface_destroy(surface);
    avl_status_t status = AVL_OK;
    if (drawn != CAIRO_STATUS_SUCCESS)
        status = avl_fail(drawn == CAIRO_STATUS_NO_MEMORY ? AVL_ERR_MEMORY : AVL_ERR_IO, "%s: %s",
                          path, cairo_status_to_string(drawn));
    free(path);
    return status;
}

static void find_families(plot_t *plot) {
    for (size_t i = 1; i < plot->run->method_count; i++) {
        const char *family = plot->run->methods[i].family;
        bool shown = false;
        for (size_t task = 0; task < plot->run->tasks->name_count; task++)
            shown = shown || is_point(plot, i, task);
        if (!shown)
            continue;
        size_t j = 0;
        while (j < plot->family_count && strcmp(plot->families[j], family) != 0)
            j++;
        if (j == plot->family_count && j < FAMILIES_MAX)
            plot->families[plot->family_count++] = family;
    }
}

avl_status_t avl_eval_plot(const char *folder, const avl_eval_setting_t *setting,
                           const avl_eval_run_t *run, const avl_eval_cell_t *cells) {
    plot_t plot = {.run = run, .cells = cells};
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return avl_fail(AVL_ERR_IO, "%s: %s", folder, strerror(errno));
    find_families(&plot);
    plot.x_of = bytes_of;
    plot.x_name = "cache held by a request at its end, KiB";
    AVL_TRY(write_plot(&plot, setting, folder, "quality-by-bytes.png"));
    plot.x_of = rows_of;
    plot.x_name = "visual rows computed a step";
    return write_plot(&plot, setting, folder, "quality-by-rows.png");
}
