#include <string.h>

#include "worker/request.h"
#include "worker/sampler.h"

static avl_status_t check_ids(const avl_request_t *request, int32_t vocab_rows) {
    int32_t image = 0, left = 0;
    for (int32_t i = 0; i < request->row_count; i++) {
        if (left == 0 && image < request->image_count && request->images[image].first_row == i)
            left = request->images[image++].layout.prompt_rows;
        int32_t id = request->token_ids[i];
        if (left > 0 && id != -1)
            return avl_fail(AVL_ERR_INVALID,
                            "row %d of the prompt belongs to picture %d and holds token %d", i,
                            image - 1, id);
        if (left == 0 && (id < 0 || id >= vocab_rows))
            return avl_fail(AVL_ERR_INVALID,
                            "row %d of the prompt holds token %d; allowed: 0 to %d", i, id,
                            vocab_rows - 1);
        left -= left > 0;
    }
    if (image < request->image_count || left > 0)
        return avl_fail(AVL_ERR_INVALID,
                        "the prompt has %d rows, and picture %d of %d does not lie within them "
                        "after the one before it",
                        request->row_count, left > 0 ? image - 1 : image, request->image_count);
    return AVL_OK;
}

static avl_status_t check_images(const avl_request_t *request, const avl_config_t *config) {
    size_t side = (size_t)config->model.vision.image_side;
    for (int32_t i = 0; i < request->image_count; i++) {
        const avl_request_image_t *image = &request->images[i];
        avl_image_layout_t layout;
        AVL_TRY(avl_image_layout(config, image->layout.image_width, image->layout.image_height,
                                 &layout));
        if (memcmp(&layout, &image->layout, sizeof layout) != 0)
            return avl_fail(AVL_ERR_INVALID,
                            "picture %d of %dx%d pixels comes as %d tiles and %d rows; this model "
                            "makes %d tiles and %d rows of it",
                            i, layout.image_width, layout.image_height, image->layout.tile_count,
                            image->layout.prompt_rows, layout.tile_count, layout.prompt_rows);
        size_t bytes = (size_t)layout.tile_count * 3 * side * side;
        if (image->pixel_bytes != bytes)
            return avl_fail(AVL_ERR_INVALID,
                            "picture %d has %zu bytes of pixels; %d tiles need %zu", i,
                            image->pixel_bytes, layout.tile_count, bytes);
    }
    return AVL_OK;
}

static avl_status_t check_counts(const avl_request_t *request, int32_t context_rows) {
    if (request->max_tokens < 1)
        return avl_fail(AVL_ERR_INVALID, "max_tokens is %d; allowed: at least 1",
                        request->max_tokens);
    if (request->priority < -AVL_PRIORITY_MOST || request->priority > AVL_PRIORITY_MOST)
        return avl_fail(AVL_ERR_INVALID, "priority is %d; allowed: %d to %d", request->priority,
                        -AVL_PRIORITY_MOST, AVL_PRIORITY_MOST);
    if (request->row_count < 1)
        return avl_fail(AVL_ERR_INVALID, "the prompt is empty");
    if (request->row_count >= context_rows)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "the prompt has %d rows; the context of %d leaves room for %d at most",
                        request->row_count, context_rows, context_rows - 1);
    if (request->replay_count < 0 || request->replay_count > request->max_tokens)
        return avl_fail(AVL_ERR_INVALID, "%d tokens to replay, and max_tokens is %d",
                        request->replay_count, request->max_tokens);
    if (request->forced_count < 0 || request->forced_count > request->max_tokens)
        return avl_fail(AVL_ERR_INVALID, "%d forced tokens, and max_tokens is %d",
                        request->forced_count, request->max_tokens);
    if (request->forced_count > context_rows - request->row_count)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "the prompt has %d rows and %d tokens are forced; the context holds %d",
                        request->row_count, request->forced_count, context_rows);
    if (request->stop_count < 0 || request->stop_count > AVL_STOP_IDS_MAX)
        return avl_fail(AVL_ERR_INVALID, "%d stop tokens; allowed: 0 to %d", request->stop_count,
                        AVL_STOP_IDS_MAX);
    return AVL_OK;
}

static avl_status_t check_tokens(const int32_t *ids, int32_t count, int32_t vocab_rows,
                                 const char *what) {
    for (int32_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= vocab_rows)
            return avl_fail(AVL_ERR_INVALID, "%s %d is %d; allowed: 0 to %d", what, i, ids[i],
                            vocab_rows - 1);
    }
    return AVL_OK;
}

static avl_status_t check_choices(const avl_request_t *request, int32_t vocab_rows) {
    if (request->choice_count < 0 || request->choice_count > AVL_CHOICES_MAX)
        return avl_fail(AVL_ERR_INVALID, "%d answers are asked for; allowed: 1 to %d",
                        request->choice_count, AVL_CHOICES_MAX);
    for (int32_t i = 0; i < request->choice_count; i++) {
        const avl_request_choice_t *choice = &request->choices[i];
        if (choice->index < 0 || (i > 0 && choice->index <= choice[-1].index))
            return avl_fail(AVL_ERR_INVALID, "answer %d has index %d, out of order", i,
                            choice->index);
        if (choice->replay_count < 0 || choice->replay_count > request->max_tokens)
            return avl_fail(AVL_ERR_INVALID,
                            "%d tokens to replay in answer %d, and max_tokens is %d",
                            choice->replay_count, choice->index, request->max_tokens);
        AVL_TRY(
            check_tokens(choice->replay_ids, choice->replay_count, vocab_rows, "token to replay"));
    }
    return AVL_OK;
}

/* What of the parameters depends on the model. */
static avl_status_t check_attention(const avl_attention_params_t *params,
                                    const avl_text_config_t *text) {
    AVL_TRY(avl_attention_params_check(params));
    if (params->prefill_keep_ratio == 0 || params->prefill_keep_ratio == 1)
        return AVL_OK;
    if (params->prefill_layer >= text->layer_count)
        return avl_fail(AVL_ERR_INVALID,
                        "attention.prefill_layer is %d; allowed: 1 to %d, for the model has %d "
                        "layers and the filter needs one behind it",
                        params->prefill_layer, text->layer_count - 1, text->layer_count);
    if (text->sliding_window > 0)
        return avl_fail(AVL_ERR_UNSUPPORTED,
                        "attention.prefill_keep_ratio is %g; the prefill filter does not go with "
                        "this model's sliding window of %d rows",
                        params->prefill_keep_ratio, text->sliding_window);
    return AVL_OK;
}

/* The filter drops visual rows by the last row's look at them; that row itself has to go on. */
static avl_status_t check_filter(const avl_request_t *request) {
    double keep = request->attention.prefill_keep_ratio;
    if (keep > 0 && keep < 1 && request->token_ids[request->row_count - 1] < 0)
        return avl_fail(AVL_ERR_INVALID,
                        "attention.prefill_keep_ratio is %g; the prefill filter needs text behind "
                        "the last picture, and the prompt ends with it",
                        keep);
    return AVL_OK;
}

avl_status_t avl_request_check(const avl_request_t *request, const avl_config_t *config,
                               int32_t context_rows) {
    int32_t vocab_rows = config->model.text.vocab_rows;
    AVL_TRY(check_attention(&request->attention, &config->model.text));
    AVL_TRY(avl_sampling_params_check(&request->sampling));
    AVL_TRY(check_counts(request, context_rows));
    AVL_TRY(check_filter(request));
    AVL_TRY(
        check_tokens(request->replay_ids, request->replay_count, vocab_rows, "token to replay"));
    AVL_TRY(check_tokens(request->forced_ids, request->forced_count, vocab_rows, "forced token"));
    AVL_TRY(check_choices(request, vocab_rows));
    AVL_TRY(check_tokens(request->stop_ids, request->stop_count, vocab_rows, "stop token"));
    AVL_TRY(check_images(request, config));
    return check_ids(request, vocab_rows);
}
