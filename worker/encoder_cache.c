#include "worker/encoder_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Pictures at once. A scan over so many is still nothing beside encoding one. */
#define ENTRIES_MAX 4096

typedef struct entry {
    avl_picture_digest_t digest;
    int32_t first_row, rows;
    int32_t users;
    bool known; /* it has a digest */
    bool ready;
    uint64_t last_use;
} entry_t;

struct avl_encoder_cache {
    int32_t rows;
    int64_t row_bytes;
    entry_t *entries; /* [entries_max] in the order of first_row */
    int32_t entry_count, entries_max;
    int32_t rows_used;
    int32_t users; /* over all entries */
    uint64_t clock;
    avl_cache_counts_t counts;
};

avl_status_t avl_encoder_cache_create(int32_t rows, int64_t row_bytes,
                                      avl_encoder_cache_t **cache_p) {
    avl_encoder_cache_t *cache;
    AVL_TRY(avl_alloc(1, sizeof *cache, "encoder cache", &cache));
    cache->rows = rows;
    cache->row_bytes = row_bytes;
    cache->entries_max = rows < ENTRIES_MAX ? rows : ENTRIES_MAX;
    cache->counts.bytes_max = rows * row_bytes;
    avl_status_t status = avl_alloc((size_t)cache->entries_max, sizeof *cache->entries,
                                    "encoder cache", &cache->entries);
    if (status != AVL_OK) {
        free(cache);
        return status;
    }
    *cache_p = cache;
    return AVL_OK;
}

void avl_encoder_cache_destroy(avl_encoder_cache_t *cache) {
    if (cache == NULL)
        return;
    free(cache->entries);
    free(cache);
}

static bool has_digest(const avl_picture_digest_t *digest) {
    static const avl_picture_digest_t none;
    return memcmp(digest, &none, sizeof none) != 0;
}

static entry_t *find_picture(avl_encoder_cache_t *cache, const avl_request_image_t *image) {
    if (!has_digest(&image->digest))
        return NULL;
    for (int32_t i = 0; i < cache->entry_count; i++) {
        entry_t *entry = &cache->entries[i];
        /* Rows are compared, too: a digest comes from outside, and a wrong one must not make a
         * request read another picture's rows. */
        if (entry->known && entry->rows == image->layout.prompt_rows &&
            memcmp(&entry->digest, &image->digest, sizeof entry->digest) == 0)
            return entry;
    }
    return NULL;
}

static entry_t *entry_at(const avl_encoder_cache_t *cache, int32_t feature_row) {
    int32_t low = 0, high = cache->entry_count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (cache->entries[middle].first_row < feature_row)
            low = middle + 1;
        else
            high = middle;
    }
    AVL_ASSERT(low < cache->entry_count && cache->entries[low].first_row == feature_row);
    return &cache->entries[low];
}

static void remove_entry(avl_encoder_cache_t *cache, entry_t *entry) {
    int32_t place = (int32_t)(entry - cache->entries);
    AVL_ASSERT(entry->users == 0);
    cache->rows_used -= entry->rows;
    cache->entry_count--;
    memmove(entry, entry + 1, (size_t)(cache->entry_count - place) * sizeof *entry);
}

/* Forgets the picture that was not used for the longest time. False: all are in use. */
static bool evict_one(avl_encoder_cache_t *cache) {
    entry_t *oldest = NULL;
    for (int32_t i = 0; i < cache->entry_count; i++) {
        entry_t *entry = &cache->entries[i];
        if (entry->users == 0 && (oldest == NULL || entry->last_use < oldest->last_use))
            oldest = entry;
    }
    if (oldest == NULL)
        return false;
    remove_entry(cache, oldest);
    cache->counts.evictions++;
    return true;
}

/* The place in the list where an entry of `rows` rows fits in before, or -1. */
static int32_t find_gap(const avl_encoder_cache_t *cache, int32_t rows, int32_t *first_row_p) {
    int32_t first = 0;
    if (cache->entry_count == cache->entries_max)
        return -1;
    for (int32_t i = 0; i < cache->entry_count; i++) {
        if (cache->entries[i].first_row - first >= rows) {
            *first_row_p = first;
            return i;
        }
        first = cache->entries[i].first_row + cache->entries[i].rows;
    }
    *first_row_p = first;
    return cache->rows - first >= rows ? cache->entry_count : -1;
}

static entry_t *add_entry(avl_encoder_cache_t *cache, const avl_request_image_t *image) {
    int32_t rows = image->layout.prompt_rows, first_row = 0;
    if (rows > cache->rows)
        return NULL;
    int32_t place = find_gap(cache, rows, &first_row);
    while (place < 0 && evict_one(cache))
        place = find_gap(cache, rows, &first_row);
    if (place < 0)
        return NULL;
    entry_t *entry = &cache->entries[place];
    memmove(entry + 1, entry, (size_t)(cache->entry_count - place) * sizeof *entry);
    cache->entry_count++;
    cache->rows_used += rows;
    *entry = (entry_t){
        .digest = image->digest,
        .first_row = first_row,
        .rows = rows,
        .known = has_digest(&image->digest),
    };
    return entry;
}

static void begin_use(avl_encoder_cache_t *cache, entry_t *entry, avl_plan_place_t *place) {
    entry->users++;
    entry->last_use = ++cache->clock;
    cache->users++;
    *place = (avl_plan_place_t){.feature_row = entry->first_row, .rows = entry->rows};
}

/* Pictures that are there are taken first, so that making room for the others cannot evict them. */
static bool take_all(avl_encoder_cache_t *cache, const avl_request_image_t *images,
                     int32_t image_count, avl_plan_place_t *places, int32_t *hits_p) {
    int32_t hits = 0;
    for (int32_t i = 0; i < image_count; i++) {
        entry_t *entry = find_picture(cache, &images[i]);
        places[i].rows = -1;
        if (entry != NULL) {
            begin_use(cache, entry, &places[i]);
            hits++;
        }
    }
    for (int32_t i = 0; i < image_count; i++) {
        if (places[i].rows >= 0)
            continue;
        entry_t *entry = find_picture(cache, &images[i]); /* the same picture twice in a prompt */
        hits += entry != NULL;
        if (entry == NULL)
            entry = add_entry(cache, &images[i]);
        if (entry == NULL) {
            for (int32_t j = 0; j < image_count; j++)
                if (places[j].rows >= 0)
                    avl_encoder_cache_give(cache, &places[j], 1);
            return false;
        }
        begin_use(cache, entry, &places[i]);
    }
    *hits_p = hits;
    return true;
}

bool avl_encoder_cache_take(avl_encoder_cache_t *cache, const avl_request_image_t *images,
                            int32_t image_count, avl_plan_place_t *places, int32_t *hits_p) {
    int32_t hits = 0;
    bool taken = take_all(cache, images, image_count, places, &hits);
    if (!taken && cache->users == 0) {
        /* The pictures that were there lie in the way of the others: without them all fit. */
        while (evict_one(cache)) {
        }
        taken = take_all(cache, images, image_count, places, &hits);
    }
    if (!taken)
        return false;
    cache->counts.hits += hits;
    cache->counts.misses += image_count - hits;
    *hits_p = hits;
    return true;
}

void avl_encoder_cache_give(avl_encoder_cache_t *cache, const avl_plan_place_t *places,
                            int32_t place_count) {
    for (int32_t i = 0; i < place_count; i++) {
        entry_t *entry = entry_at(cache, places[i].feature_row);
        AVL_ASSERT(entry->users > 0);
        entry->users--;
        cache->users--;
        if (entry->users == 0 && (!entry->ready || !entry->known))
            remove_entry(cache, entry);
    }
}

bool avl_encoder_cache_is_ready(const avl_encoder_cache_t *cache, int32_t feature_row) {
    return entry_at(cache, feature_row)->ready;
}

void avl_encoder_cache_set_ready(avl_encoder_cache_t *cache, int32_t feature_row, bool ready) {
    entry_at(cache, feature_row)->ready = ready;
}

avl_cache_counts_t avl_encoder_cache_counts(const avl_encoder_cache_t *cache) {
    avl_cache_counts_t counts = cache->counts;
    counts.bytes = cache->rows_used * cache->row_bytes;
    counts.entries = cache->entry_count;
    return counts;
}
