#include "worker/prompt_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "worker/text_store.h"

/* Fewer rows are not worth sharing: less than a page is copied anyway. */
#define PREFIX_ROWS_LEAST AVL_PAGE_ROWS

typedef struct picture {
    avl_picture_digest_t digest;
    int32_t first_row, rows;
} picture_t;

/* Place i is sequence i's. */
typedef struct entry {
    bool used, kept;
    char tenant[AVL_TENANT_BYTES_MAX + 1];
    int32_t *token_ids; /* [shape.prompt_rows]; the start of the entry's one block */
    picture_t *pictures;
    int32_t picture_count;
    avl_sequence_shape_t shape;
    float *logits; /* [vocab_rows] */
    int64_t pages; /* once kept */
    uint64_t last_use, used_step;
} entry_t;

struct avl_prompt_cache {
    int32_t indices_max, kept_max;
    int32_t vocab_rows;
    bool prefixes;    /* a prefix has the same keys in every prompt */
    entry_t *entries; /* [indices_max] */
    int32_t kept_count;
    int64_t kept_pages;
    uint64_t clock;
    avl_cache_counts_t counts;
};

avl_status_t avl_prompt_cache_create(const avl_config_t *config, int32_t indices_max,
                                     int32_t kept_max, avl_prompt_cache_t **cache_p) {
    avl_prompt_cache_t *cache;
    AVL_TRY(avl_alloc(1, sizeof *cache, "prompt cache", &cache));
    cache->indices_max = indices_max;
    cache->kept_max = kept_max;
    cache->vocab_rows = config->model.text.vocab_rows;
    cache->prefixes = config->model.text.rope.scaling != AVL_ROPE_DYNAMIC;
    avl_status_t status =
        avl_alloc((size_t)indices_max, sizeof *cache->entries, "prompt cache", &cache->entries);
    if (status != AVL_OK) {
        free(cache);
        return status;
    }
    *cache_p = cache;
    return AVL_OK;
}

void avl_prompt_cache_destroy(avl_prompt_cache_t *cache) {
    if (cache == NULL)
        return;
    for (int32_t i = 0; i < cache->indices_max; i++)
        free(cache->entries[i].token_ids);
    free(cache->entries);
    free(cache);
}

static size_t block_bytes(int32_t prompt_rows, int32_t picture_count, int32_t vocab_rows) {
    return (size_t)prompt_rows * sizeof(int32_t) + (size_t)picture_count * sizeof(picture_t) +
           (size_t)vocab_rows * sizeof(float);
}

int64_t avl_prompt_cache_bytes(const avl_config_t *config, int32_t indices_max,
                               int32_t context_rows) {
    /* Pictures have many rows in every model there is; one of ten is counted. */
    return indices_max * (int64_t)(sizeof(entry_t) + block_bytes(context_rows, context_rows / 10,
                                                                 config->model.text.vocab_rows));
}

static bool has_digest(const avl_picture_digest_t *digest) {
    static const avl_picture_digest_t none;
    return memcmp(digest, &none, sizeof none) != 0;
}

/* Rows in which the job's prompt and the entry's are the same; a picture is the same or not. */
static int32_t common_rows(const entry_t *entry, const avl_request_t *request) {
    int32_t row = 0, picture = 0;
    int32_t rows = entry->shape.prompt_rows < request->row_count ? entry->shape.prompt_rows
                                                                 : request->row_count;
    while (row < rows && entry->token_ids[row] == request->token_ids[row]) {
        if (request->token_ids[row] >= 0) {
            row++;
            continue;
        }
        if (picture == entry->picture_count || picture == request->image_count)
            break;
        const picture_t *known = &entry->pictures[picture];
        const avl_request_image_t *image = &request->images[picture];
        if (known->first_row != image->first_row || known->rows != image->layout.prompt_rows ||
            !has_digest(&image->digest) ||
            memcmp(&known->digest, &image->digest, sizeof image->digest) != 0)
            break;
        row += known->rows;
        picture++;
    }
    return row < rows ? row : rows;
}

static int32_t usable_rows(const avl_prompt_cache_t *cache, const entry_t *entry,
                           const avl_job_t *job, bool *whole_p) {
    const avl_sequence_shape_t *shape = &entry->shape;
    *whole_p = false;
    if (!entry->used || strcmp(entry->tenant, job->request->tenant) != 0)
        return 0;
    int32_t rows = common_rows(entry, job->request);
    if (rows == shape->prompt_rows && avl_sequence_shape_same_prompt(shape, &job->shape)) {
        *whole_p = true;
        return rows;
    }
    if (!cache->prefixes)
        return 0;
    rows = avl_sequence_shape_prefix(&job->shape, shape, rows);
    return rows >= PREFIX_ROWS_LEAST ? rows : 0;
}

avl_prompt_match_t avl_prompt_cache_find(const avl_prompt_cache_t *cache, const avl_job_t *job) {
    avl_prompt_match_t best = {.sequence = -1};
    for (int32_t i = 0; i < cache->indices_max && best.logits == NULL; i++) {
        bool whole;
        int32_t rows = usable_rows(cache, &cache->entries[i], job, &whole);
        if (rows > best.rows || whole)
            best = (avl_prompt_match_t){i, rows, whole ? cache->entries[i].logits : NULL};
    }
    return best;
}

void avl_prompt_cache_use(avl_prompt_cache_t *cache, int32_t sequence, uint64_t step) {
    cache->entries[sequence].last_use = ++cache->clock;
    cache->entries[sequence].used_step = step;
}

bool avl_prompt_cache_is_used(const avl_prompt_cache_t *cache, int32_t sequence, uint64_t step) {
    return cache->entries[sequence].used_step == step;
}

static void fill(avl_prompt_cache_t *cache, entry_t *entry, const avl_job_t *job,
                 const float *logits) {
    const avl_request_t *request = job->request;
    int32_t *block = entry->token_ids;
    *entry = (entry_t){
        .used = true,
        .token_ids = block,
        .picture_count = request->image_count,
        .shape = job->shape,
        .last_use = ++cache->clock,
    };
    memcpy(entry->tenant, request->tenant, sizeof entry->tenant);
    memcpy(entry->token_ids, request->token_ids,
           (size_t)request->row_count * sizeof *entry->token_ids);
    entry->logits = (float *)(void *)(entry->token_ids + request->row_count);
    memcpy(entry->logits, logits, (size_t)cache->vocab_rows * sizeof *logits);
    entry->pictures = (picture_t *)(void *)(entry->logits + cache->vocab_rows);
    for (int32_t i = 0; i < request->image_count; i++)
        entry->pictures[i] = (picture_t){request->images[i].digest, request->images[i].first_row,
                                         request->images[i].layout.prompt_rows};
}

void avl_prompt_cache_add(avl_prompt_cache_t *cache, const avl_job_t *job, const float *logits) {
    entry_t *entry = &cache->entries[job->sequence];
    AVL_ASSERT(!entry->used);
    if (cache->kept_max == 0 || avl_text_store_evicts_prompt(&job->shape) ||
        avl_prompt_cache_find(cache, job).logits != NULL)
        return;
    uint8_t *block = NULL;
    if (avl_alloc(
            block_bytes(job->request->row_count, job->request->image_count, cache->vocab_rows), 1,
            "a prompt's key", &block) != AVL_OK) {
        avl_log_debug("a prompt is not kept: %s", avl_status_detail());
        return;
    }
    entry->token_ids = (int32_t *)(void *)block;
    fill(cache, entry, job, logits);
}

bool avl_prompt_cache_has(const avl_prompt_cache_t *cache, int32_t sequence) {
    return cache->entries[sequence].used;
}

void avl_prompt_cache_keep(avl_prompt_cache_t *cache, int32_t sequence, int64_t pages) {
    entry_t *entry = &cache->entries[sequence];
    AVL_ASSERT(entry->used && !entry->kept && cache->kept_count < cache->kept_max);
    entry->kept = true;
    entry->pages = pages;
    entry->last_use = ++cache->clock;
    cache->kept_count++;
    cache->kept_pages += pages;
}

void avl_prompt_cache_drop(avl_prompt_cache_t *cache, int32_t sequence) {
    entry_t *entry = &cache->entries[sequence];
    if (entry->kept) {
        cache->kept_count--;
        cache->kept_pages -= entry->pages;
    }
    free(entry->token_ids);
    *entry = (entry_t){0};
}

int32_t avl_prompt_cache_evict(avl_prompt_cache_t *cache, uint64_t step) {
    int32_t oldest = -1;
    for (int32_t i = 0; i < cache->indices_max; i++) {
        const entry_t *entry = &cache->entries[i];
        if (entry->kept && (step == UINT64_MAX || entry->used_step != step) &&
            (oldest < 0 || entry->last_use < cache->entries[oldest].last_use))
            oldest = i;
    }
    if (oldest < 0)
        return -1;
    avl_prompt_cache_drop(cache, oldest);
    cache->counts.evictions++;
    return oldest;
}

bool avl_prompt_cache_is_kept(const avl_prompt_cache_t *cache, int32_t sequence) {
    return cache->entries[sequence].kept;
}

int32_t avl_prompt_cache_kept(const avl_prompt_cache_t *cache) {
    return cache->kept_count;
}

int64_t avl_prompt_cache_pages(const avl_prompt_cache_t *cache) {
    return cache->kept_pages;
}

void avl_prompt_cache_count(avl_prompt_cache_t *cache, bool hit) {
    cache->counts.hits += hit;
    cache->counts.misses += !hit;
}

avl_cache_counts_t avl_prompt_cache_counts(const avl_prompt_cache_t *cache) {
    avl_cache_counts_t counts = cache->counts;
    counts.entries = cache->kept_count;
    return counts;
}
