#include "worker/pages.h"

#include <stdlib.h>

#include "base/memory.h"

#define NOBODY UINT64_MAX
#define SEVERAL (UINT64_MAX - 1) /* from the first sharing until it is free */

struct avl_pages {
    avl_device_t *device;
    void *keys, *values, *scores, *positions;
    int kv_heads, head_width;
    avl_dtype_t dtype;
    int32_t *free_pages; /* a stack; the next to take is the last */
    uint64_t *owners;    /* [total] */
    int32_t *holders;    /* [total] */
    int64_t free_count;
    avl_pages_counts_t counts;
};

static uint64_t owner_code(avl_page_owner_t owner) {
    return (uint64_t)(uint32_t)owner.sequence << 32 | (uint64_t)(uint32_t)owner.layer << 1 |
           (owner.segment == AVL_SEGMENT_VISUAL);
}

int64_t avl_pages_page_bytes(int kv_heads, int head_width, avl_dtype_t dtype) {
    int64_t head_bytes = 2 * (int64_t)head_width * (int64_t)avl_dtype_bytes(dtype);
    return (int64_t)AVL_PAGE_ROWS * kv_heads *
           (head_bytes + (int64_t)(sizeof(float) + sizeof(int32_t)));
}

avl_status_t avl_pages_create(avl_device_t *device, int kv_heads, int head_width, avl_dtype_t dtype,
                              int64_t page_count, avl_pages_t **pages_p) {
    if (page_count < 1 || page_count > INT32_MAX / AVL_PAGE_ROWS)
        return avl_fail(AVL_ERR_TOO_LARGE, "a pool of %lld pages; allowed: 1 to %d",
                        (long long)page_count, INT32_MAX / AVL_PAGE_ROWS);
    avl_pages_t *pages;
    AVL_TRY(avl_alloc(1, sizeof *pages, "page pool", &pages));
    pages->device = device;
    pages->kv_heads = kv_heads;
    pages->head_width = head_width;
    pages->dtype = dtype;
    pages->counts.total = page_count;
    size_t numbers = (size_t)page_count * AVL_PAGE_ROWS * (size_t)kv_heads;
    size_t bytes = numbers * (size_t)head_width * avl_dtype_bytes(dtype);
    avl_status_t status;
    AVL_TRY_GOTO(status,
                 avl_alloc((size_t)page_count, sizeof(int32_t), "free pages", &pages->free_pages),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 avl_alloc((size_t)page_count, sizeof(uint64_t), "page owners", &pages->owners),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 avl_alloc((size_t)page_count, sizeof(int32_t), "page holders", &pages->holders),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, bytes, "keys of the page pool", &pages->keys),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, bytes, "values of the page pool", &pages->values),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, numbers * sizeof(float), "scores of the page pool",
                                       &pages->scores),
                 err_destroy);
    AVL_TRY_GOTO(status,
                 device->ops->allocate(device, numbers * sizeof(int32_t),
                                       "positions of the page pool", &pages->positions),
                 err_destroy);
    for (int64_t i = 0; i < page_count; i++) {
        pages->free_pages[i] = (int32_t)(page_count - 1 - i);
        pages->owners[i] = NOBODY;
    }
    pages->free_count = page_count;
    *pages_p = pages;
    return AVL_OK;
err_destroy:
    avl_pages_destroy(pages);
    return status;
}

void avl_pages_destroy(avl_pages_t *pages) {
    if (pages == NULL)
        return;
    void *const memory[] = {pages->keys, pages->values, pages->scores, pages->positions};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) {
        if (memory[i] != NULL)
            pages->device->ops->release(pages->device, memory[i]);
    }
    free(pages->free_pages);
    free(pages->owners);
    free(pages->holders);
    free(pages);
}

int32_t avl_pages_take(avl_pages_t *pages, avl_page_owner_t owner) {
    if (pages->free_count == 0)
        return -1;
    int32_t page = pages->free_pages[--pages->free_count];
    AVL_ASSERT(pages->owners[page] == NOBODY);
    pages->owners[page] = owner_code(owner);
    pages->holders[page] = 1;
    pages->counts.taken++;
    if (pages->counts.taken > pages->counts.taken_most)
        pages->counts.taken_most = pages->counts.taken;
    return page;
}

void avl_pages_give(avl_pages_t *pages, int32_t page, avl_page_owner_t owner) {
    AVL_ASSERT(page >= 0 && page < pages->counts.total);
    AVL_ASSERT(pages->holders[page] > 0);
    AVL_ASSERT(pages->owners[page] == SEVERAL || pages->owners[page] == owner_code(owner));
    if (--pages->holders[page] > 0)
        return;
    pages->owners[page] = NOBODY;
    pages->free_pages[pages->free_count++] = page;
    pages->counts.taken--;
}

void avl_pages_share(avl_pages_t *pages, int32_t page) {
    AVL_ASSERT(page >= 0 && page < pages->counts.total && pages->holders[page] > 0);
    pages->holders[page]++;
    pages->owners[page] = SEVERAL;
}

bool avl_pages_is_shared(const avl_pages_t *pages, int32_t page) {
    return pages->holders[page] > 1;
}

avl_kv_view_t avl_pages_view(const avl_pages_t *pages) {
    return (avl_kv_view_t){
        .keys = pages->keys,
        .values = pages->values,
        .row_stride = (int64_t)pages->kv_heads * pages->head_width,
        .kv_heads = pages->kv_heads,
        .head_width = pages->head_width,
        .dtype = pages->dtype,
    };
}

void *avl_pages_keys(avl_pages_t *pages) {
    return pages->keys;
}

void *avl_pages_values(avl_pages_t *pages) {
    return pages->values;
}

float *avl_pages_scores(avl_pages_t *pages) {
    return pages->scores;
}

int32_t *avl_pages_positions(avl_pages_t *pages) {
    return pages->positions;
}

avl_pages_counts_t avl_pages_counts(const avl_pages_t *pages) {
    return pages->counts;
}

int64_t avl_pages_owned(const avl_pages_t *pages, int32_t sequence) {
    int64_t owned = 0;
    for (int64_t i = 0; i < pages->counts.total; i++)
        owned += pages->owners[i] < SEVERAL && pages->owners[i] >> 32 == (uint32_t)sequence;
    return owned;
}
