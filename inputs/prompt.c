/* inputs/prompt.c: a rendered text as token ids, with every image placeholder expanded to its
 * picture's rows. */
#include "inputs/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "inputs/tokenizer_parts.h"

/* Ids of the text with the post-processor's tokens; a bos that the text itself starts with counts
 * as that of the post-processor, since templates spell it out or leave it to the tokenizer as they
 * like. */
static avl_status_t encode(const avl_tokenizer_t *tokenizer, const char *text, int32_t **ids_p,
                           size_t *count_p, size_t *first_p) {
    int32_t *ids = NULL;
    size_t count = 0, before = tokenizer->before_count;
    AVL_TRY(avl_tokenizer_encode(tokenizer, text, strlen(text), true, &ids, &count));
    bool twice = count >= 2 * before && memcmp(ids, ids + before, before * sizeof *ids) == 0;
    *first_p = twice ? before : 0;
    *ids_p = ids;
    *count_p = count;
    return AVL_OK;
}

/* Counts rows and checks pictures against placeholders. */
static avl_status_t count_rows(const int32_t *ids, size_t count, int32_t image_id,
                               const avl_image_layout_t *layouts, size_t layout_count,
                               int64_t *rows_p) {
    size_t placeholders = 0;
    for (size_t i = 0; i < count; i++)
        placeholders += ids[i] == image_id;
    if (placeholders != layout_count)
        return avl_fail(
            AVL_ERR_INVALID, "the prompt has %zu image placeholder%s, the request has %zu image%s",
            placeholders, placeholders == 1 ? "" : "s", layout_count, layout_count == 1 ? "" : "s");
    int64_t rows = (int64_t)(count - placeholders);
    for (size_t i = 0; i < layout_count; i++) {
        if (layouts[i].prompt_rows <= 0)
            return avl_fail(AVL_ERR_INVALID, "image %zu has %d prompt rows", i,
                            layouts[i].prompt_rows);
        rows += layouts[i].prompt_rows;
    }
    *rows_p = rows;
    return AVL_OK;
}

static void expand(const int32_t *ids, size_t count, int32_t image_id,
                   const avl_image_layout_t *layouts, avl_prompt_t *prompt) {
    int32_t row = 0, image = 0;
    for (size_t i = 0; i < count; i++) {
        if (ids[i] != image_id) {
            prompt->token_ids[row++] = ids[i];
            continue;
        }
        int32_t rows = layouts[image].prompt_rows;
        prompt->images[image++] = (avl_image_span_t){.start = row, .rows = rows};
        for (int32_t end = row + rows; row < end; row++)
            prompt->token_ids[row] = image_id;
    }
    prompt->row_count = row;
    prompt->image_count = image;
}

avl_status_t avl_prompt_build(const avl_tokenizer_t *tokenizer, const avl_config_t *config,
                              const char *text, const avl_image_layout_t *layouts,
                              size_t layout_count, int32_t rows_max, avl_prompt_t *prompt_p) {
    if (text[0] == 0)
        return avl_fail(AVL_ERR_INVALID, "the prompt is empty");
    int32_t *all = NULL, image_id = config->model.image_token_id;
    size_t count = 0, first = 0;
    AVL_TRY(encode(tokenizer, text, &all, &count, &first));
    const int32_t *ids = all + first;
    count -= first;
    avl_prompt_t prompt = {0};
    avl_status_t status;
    int64_t rows = 0;
    AVL_TRY_GOTO(status, count_rows(ids, count, image_id, layouts, layout_count, &rows), out);
    if (rows == 0) {
        status = avl_fail(AVL_ERR_INVALID, "the prompt has no tokens");
        goto out;
    }
    if (rows > rows_max) {
        status = avl_fail(AVL_ERR_TOO_LARGE, "the prompt has %lld rows, the limit is %d",
                          (long long)rows, rows_max);
        goto out;
    }
    AVL_TRY_GOTO(status,
                 avl_alloc((size_t)rows, sizeof *prompt.token_ids, "prompt", &prompt.token_ids),
                 out);
    AVL_TRY_GOTO(status, avl_alloc(layout_count, sizeof *prompt.images, "prompt", &prompt.images),
                 out);
    expand(ids, count, image_id, layouts, &prompt);
    *prompt_p = prompt;
    prompt = (avl_prompt_t){0};
out:
    avl_prompt_free(&prompt);
    free(all);
    return status;
}

void avl_prompt_free(avl_prompt_t *prompt) {
    free(prompt->token_ids);
    free(prompt->images);
    *prompt = (avl_prompt_t){0};
}
