/* client/eval_plot.h: plots of an evaluation: quality against memory and against work, a panel per
 * task, a line per method, a point per budget. */
#ifndef AVL_CLIENT_EVAL_PLOT_H
#define AVL_CLIENT_EVAL_PLOT_H

#include "client/eval_report.h"

/* Writes quality-by-bytes.png and quality-by-rows.png into `folder`, which it makes when it is not
 * there. Errors: AVL_ERR_IO, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_eval_plot(const char *folder, const avl_eval_setting_t *setting,
                                          const avl_eval_run_t *run, const avl_eval_cell_t *cells);

#endif
