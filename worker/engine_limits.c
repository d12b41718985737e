/* worker/engine_limits.c: what an engine's limits may be, from the model alone. */
#include "worker/engine.h"

/* Prepared pictures for which there is room, however few sequences. */
#define PICTURES_LEAST 16

int32_t avl_engine_context_most(const avl_model_config_t *config) {
    const avl_text_config_t *text = &config->text;
    double rows = text->positions_max;
    if (text->rope.scaling == AVL_ROPE_LINEAR || text->rope.scaling == AVL_ROPE_DYNAMIC)
        rows *= text->rope.factor;
    return rows < (1 << 24) ? (int32_t)rows : 1 << 24;
}

int avl_engine_picture_tiles(const avl_config_t *config) {
    int side = config->model.vision.image_side, most = 1;
    if (config->model.family != AVL_FAMILY_LLAVA_NEXT)
        return most;
    for (int i = 0; i < config->preprocessor.grid_pinpoint_count; i++) {
        int tiles = 1 + config->preprocessor.grid_pinpoints[i].height / side *
                            (config->preprocessor.grid_pinpoints[i].width / side);
        most = tiles > most ? tiles : most;
    }
    for (int i = 0; i < config->model.grid_pinpoint_count; i++) {
        int tiles = 1 + config->model.grid_pinpoints[i].height / side *
                            (config->model.grid_pinpoints[i].width / side);
        most = tiles > most ? tiles : most;
    }
    return most;
}

int64_t avl_engine_picture_bytes(const avl_config_t *config, const avl_engine_limits_t *limits) {
    int64_t side = config->model.vision.image_side;
    int64_t pictures =
        limits->sequences_max > PICTURES_LEAST ? limits->sequences_max : PICTURES_LEAST;
    return pictures * avl_engine_picture_tiles(config) * 3 * side * side;
}

avl_status_t avl_engine_limits_check(const avl_config_t *config,
                                     const avl_engine_limits_t *limits) {
    int32_t context_most = avl_engine_context_most(&config->model);
    if (limits->batch_rows < 1 || limits->batch_rows > 1 << 20)
        return avl_fail(AVL_ERR_INVALID, "%d prompt rows per step; allowed: 1 to %d",
                        limits->batch_rows, 1 << 20);
    if (limits->sequences_max < 1 || limits->sequences_max > 4096)
        return avl_fail(AVL_ERR_INVALID, "%d sequences at once; allowed: 1 to 4096",
                        limits->sequences_max);
    if (limits->kept_max < 0 || limits->kept_max > 4096)
        return avl_fail(AVL_ERR_INVALID, "%d kept prompts; allowed: 0 to 4096", limits->kept_max);
    if (limits->context_rows < 2 || limits->context_rows > context_most)
        return avl_fail(AVL_ERR_INVALID, "a context of %d rows; allowed: 2 to %d for this model",
                        limits->context_rows, context_most);
    return AVL_OK;
}
