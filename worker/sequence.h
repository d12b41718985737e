/* worker/sequence.h: one request's cached rows on one rank.
 *
 * A row is a token's key and value in one layer. Rows are of two segments, each with pages of its
 * own: text (what stands before the first picture, called system, and every other token, generated
 * ones included) and visual. Positions are row numbers of the whole conversation and never change.
 * Per layer a sequence keeps lists of slots, ascending in position:
 *
 *   text     text rows; the first `exempt_rows` of them are the system span and never evicted. With
 *            text eviction the slots behind them hold rows of each KV head's own choice
 *            (worker/text_store.h), in no order
 *   visual   all visual rows until the last prompt row has passed, the visual store afterwards
 *   order    both in the order of positions; only while the prompt is being read
 *   core     the part of the store that ordinary steps compute (worker/visual_store.h), where it
 *            is chosen between steps
 *
 * Lists have their final capacity at admission; nothing is allocated later. */
#ifndef AVL_WORKER_SEQUENCE_H
#define AVL_WORKER_SEQUENCE_H

#include "worker/pages.h"
#include "worker/request.h"

/* AVL_VISUAL_QUESTION and _COVERAGE: as many prompt rows rank the visual ones at most, the last of
 * those after the last picture. */
#define AVL_SCORING_ROWS_MAX 64

/* What follows from prompt and parameters alone: the same on every rank. */
typedef struct avl_sequence_shape {
    int32_t rows_max; /* rows ever cached: prompt and generated */
    int32_t prompt_rows;
    int32_t visual_rows; /* N, of all pictures together */
    int32_t text_rows;   /* of the prompt */
    int32_t system_rows; /* text before the first visual row; 0 without a picture */
    int32_t store_rows;  /* m */
    int32_t core_rows;   /* k */
    int32_t held_rows;   /* visual rows cached once the prompt is read: m, or N to measure by */
    int32_t scored_from; /* prompt rows from here on rank the visual ones; the last one always */
    int32_t update_interval; /* 1 where the core is chosen within a step, or is all of the store */
    bool core_in_step; /* no core is listed: each KV head chooses its own in every decode step */
    avl_attention_params_t attention; /* that the numbers above follow from, and the rest of it */
    /* Its prompt rows go the way of many rows through products, however they are cut into chunks
     * and whatever else is in the step: so a replay repeats their bits. */
    bool long_prompt;
    bool measures; /* what the computed rows capture */
    bool selects;  /* visual rows are evicted or skipped; false: dense attention to them */
    /* The prefill filter: the first so many layers see all visual rows of the prompt (0: all layers
     * do), later ones only `survivor_rows` of them. */
    int32_t filter_layers, survivor_rows;
    bool evicts_text;    /* text rows are; never without a picture */
    int32_t exempt_rows; /* text rows that are not: with the prompt's protection all of it */
} avl_sequence_shape_t;

/* Pages a sequence needs at most, over all layers. */
typedef struct avl_sequence_price {
    int64_t prefill_pages; /* until the last prompt row has passed the last layer */
    int64_t decode_pages;  /* from then on */
} avl_sequence_price_t;

typedef struct avl_row_list {
    int32_t *host;
    int32_t *device; /* the same memory when the device is the host */
    int32_t count;
} avl_row_list_t;

typedef struct avl_segment_rows {
    avl_page_segment_t segment;
    int32_t *pages;
    int32_t page_count;
    avl_row_list_t slots;
} avl_segment_rows_t;

typedef struct avl_sequence_layer {
    avl_segment_rows_t text;
    avl_segment_rows_t visual;
    avl_row_list_t order; /* or the store, where all visual rows are held (avl_sequence_store) */
    avl_row_list_t core;
    /* Ascending places: those of the stored rows among the layer's visual ones, [store_rows], once
     * `selected`; and in the store those of the core that the prompt left and of the latest that a
     * decode step chose, [avl_sequence_core_rows] (avl_sequence_core). */
    avl_row_list_t store, first_core, later_core;
    float *scores; /* [visual_rows] device: sums over the scoring rows but the last; or NULL */
    bool selected;
    bool core_is_later; /* later_core is in force */
    bool filled_hole;   /* this step's decode row went to each head's hole (worker/text_rank.h) */
    /* The device chose, and the host's copies of store and first_core, or of the core in force, are
     * of before until avl_visual_store_settle. Never where the device is the host. */
    bool store_is_ahead, core_is_ahead;
} avl_sequence_layer_t;

/* Where the attention of decode steps would lie if they read all visual rows: sums over steps,
 * layers and heads of softmax weights. */
typedef struct avl_visual_mass {
    double computed; /* on the visual rows that were computed */
    double stored;   /* on the store */
    double all;      /* on all visual rows */
} avl_visual_mass_t;

typedef struct avl_sequence {
    int32_t index; /* the leader's name for it */
    uint64_t request_id;
    uint64_t planned_step; /* the last step with a run of it; steps count from 1 */
    avl_sequence_shape_t shape;
    int32_t layer_count;
    int32_t *token_ids;        /* [prompt_rows]; -1: visual */
    int32_t *text_positions;   /* [text capacity] */
    int32_t *visual_positions; /* [visual_rows] */
    int32_t *survivors;        /* [survivor_rows] positions of those, once `filtered` */
    int32_t
        *device_survivors; /* their places among the visual rows; survivors' memory on the host */
    bool filtered;
    int32_t *feature_rows; /* [visual_rows] in the engine's features */
    /* [visual_rows] device: sums over layers of the scores so far, in the step that reads the
     * prompt's last row; NULL unless one store serves all layers. */
    float *merits;
    avl_sequence_layer_t *layers;
    int32_t rows_done;    /* cached in all layers */
    int32_t visual_done;  /* visual ones among them */
    int32_t decode_steps; /* done */
    /* Visual rows read by decode steps, over steps and layers, as halves: a row's key is one, its
     * value the other. */
    int64_t computed_halves;
    int64_t returned_pages;      /* by eviction */
    avl_visual_mass_t step_mass; /* of the step under way, of this rank's heads */
    avl_visual_mass_t mass;      /* of all steps before, of all ranks; same on every rank */
    avl_device_t *device;
    int32_t *block;        /* all the arrays above */
    int32_t *device_block; /* the lists' part of it on the device; NULL when that is the host */
    bool is_guest;         /* in memory that was handed over: nothing of it is released */
} avl_sequence_t;

/* Memory for one sequence at a time, set aside for the largest. */
typedef struct avl_sequence_memory {
    void *host; /* aligned to a cache line */
    size_t host_bytes;
    void *device; /* NULL when the device is the host */
    size_t device_bytes;
} avl_sequence_memory_t;

/* `attention` must have passed avl_attention_params_check. */
avl_sequence_shape_t avl_sequence_shape(const int32_t *token_ids, int32_t prompt_rows,
                                        int32_t rows_max, const avl_attention_params_t *attention);
/* Whether the same prompt leaves the same state behind, selections included, and that state lasts:
 * it does not where prompt rows are evicted. */
bool avl_sequence_shape_same_prompt(const avl_sequence_shape_t *a, const avl_sequence_shape_t *b);
/* Of the first `rows` rows, the same in both prompts, how many a sequence of shape `own` can begin
 * with, taken over from one of shape `other`. */
int32_t avl_sequence_shape_prefix(const avl_sequence_shape_t *own,
                                  const avl_sequence_shape_t *other, int32_t rows);
/* `whole`: the prompt is read in one step, so that a full-size visual cache exists for one layer at
 * a time, but where one store serves all. */
avl_sequence_price_t avl_sequence_price(const avl_sequence_shape_t *shape, int layer_count,
                                        bool whole);
/* Visual rows of the prompt that layer `layer` sees, and those it holds when the prompt is read. */
int32_t avl_sequence_visual_rows(const avl_sequence_shape_t *shape, int layer);
int32_t avl_sequence_held_rows(const avl_sequence_shape_t *shape, int layer);
/* Pages it holds once the prompt is read and `text_rows` rows of text have been cached. */
int64_t avl_sequence_pages(const avl_sequence_shape_t *shape, int layer_count, int32_t text_rows);
/* Bytes of host memory of a sequence of `rows_max` rows, at most; and of device memory, when that
 * is not the host's. */
int64_t avl_sequence_list_bytes(int32_t rows_max, int layer_count);
int64_t avl_sequence_device_bytes(int32_t rows_max, int layer_count);

/* In memory of such sizes, which must outlive the sequence. Errors: AVL_ERR_INTERNAL: too little of
 * it. */
AVL_MUST_CHECK avl_status_t avl_sequence_create_in(const avl_sequence_memory_t *memory,
                                                   avl_device_t *device, int32_t index,
                                                   const avl_sequence_shape_t *shape,
                                                   int layer_count, const int32_t *token_ids,
                                                   avl_sequence_t **sequence_p);
/* In memory of its own. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_sequence_create(avl_device_t *device, int32_t index,
                                                const avl_sequence_shape_t *shape, int layer_count,
                                                const int32_t *token_ids,
                                                avl_sequence_t **sequence_p);
/* Gives all pages back. */
void avl_sequence_destroy(avl_sequence_t *sequence, avl_pages_t *pages);

bool avl_sequence_is_visual(const avl_sequence_t *sequence, int32_t position);
/* Rows of a core that is listed; 0: none is. */
static inline int32_t avl_sequence_core_rows(const avl_sequence_shape_t *shape) {
    return shape->core_in_step ? 0 : shape->core_rows;
}
/* Positions of the layer's visual rows before it selects, ascending. */
const int32_t *avl_sequence_visual_positions(const avl_sequence_t *sequence, int layer);
/* Adds the row at `position` (which must be the layer's next) to the layer's lists and returns its
 * slot; -1 when the pool is dry. */
int32_t avl_sequence_append(avl_sequence_t *sequence, avl_pages_t *pages, int layer,
                            int32_t position);
/* The slots of the layer's store, once selected. */
const avl_row_list_t *avl_sequence_store(const avl_sequence_t *sequence, int layer);
/* Places in the store of the core in force. */
static inline const avl_row_list_t *avl_sequence_core(const avl_sequence_layer_t *layer) {
    return layer->core_is_later ? &layer->later_core : &layer->first_core;
}
/* Drops the visual, or the text rows of index >= count and gives back the pages that hold none of
 * the others. */
void avl_sequence_cut_visual(avl_sequence_t *sequence, avl_pages_t *pages, int layer,
                             int32_t count);
void avl_sequence_cut_text(avl_sequence_t *sequence, avl_pages_t *pages, int layer, int32_t count);
/* Forgets the answer: the sequence is then as it was when its prompt was read, but for the core
 * that is in force, and for text of the prompt where that may be evicted: what is exempt is left.
 * Its other text pages are free. For sequences to be shared from. */
void avl_sequence_retire(avl_sequence_t *sequence, avl_pages_t *pages);

/* Whether scores add up over several rows. */
bool avl_sequence_sums_scores(const avl_sequence_shape_t *shape);
/* Whether one store serves all layers, chosen when the last row has passed the last of them. */
bool avl_sequence_selects_once(const avl_sequence_shape_t *shape);

/* Whether `sequence`, new and with the same tokens there, can begin with the first `rows` rows of
 * `source`, whose prompt is read: all of the prompt with the same store and core, or rows that are
 * all still there. */
bool avl_sequence_can_share(const avl_sequence_t *sequence, const avl_sequence_t *source,
                            int32_t rows);
/* Begins it so: full pages are shared, rows of a page that would be written to are copied. What
 * avl_sequence_can_share refuses is an AVL_ERR_INTERNAL, so is a dry pool. */
AVL_MUST_CHECK avl_status_t avl_sequence_share(avl_sequence_t *sequence, avl_pages_t *pages,
                                               const avl_sequence_t *source, int32_t rows);
/* Makes sure that the pages of the first `count` visual rows are the sequence's alone; what they
 * held is lost. Errors: those of an upload; AVL_ERR_INTERNAL for a dry pool. */
AVL_MUST_CHECK avl_status_t avl_sequence_own_visual(avl_sequence_t *sequence, avl_pages_t *pages,
                                                    int layer, int32_t count);

/* Brings list entries [first, count) to the device. */
AVL_MUST_CHECK avl_status_t avl_sequence_publish(const avl_sequence_t *sequence,
                                                 const avl_row_list_t *list, int32_t first);

/* Makes `list` the entries of `from` at the first `count` places (host memory). */
AVL_MUST_CHECK avl_status_t avl_sequence_list(const avl_sequence_t *sequence, avl_row_list_t *list,
                                              const avl_row_list_t *from, const int32_t *places,
                                              int32_t count);

#endif
