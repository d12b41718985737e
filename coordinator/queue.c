#include "coordinator/queue.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Idle tenants are remembered until the virtual time has caught up with what they had, so that
 * coming and going gains nothing; so many at most. */
#define IDLE_TENANTS_MAX 1024

struct avl_tenant {
    struct avl_tenant *next;
    char name[AVL_TENANT_BYTES_MAX + 1];
    double weight;
    double served; /* tokens per weight, as a virtual time */
    size_t places;
    avl_queue_entry_t **heap; /* who goes first is on top */
    size_t count, capacity;
};

struct avl_queue {
    size_t places_max, places;
    avl_tenant_weight_t *weights;
    size_t weight_count;
    avl_tenant_t *tenants;
    size_t tenant_count;
    size_t count;
    double now; /* virtual time: where the tenant served last stood */
    /* avl_queue_order's: */
    avl_queue_entry_t **order;
    size_t order_capacity;
    struct lane *lanes;
    size_t lane_capacity;
};

/* ---- one tenant's heap ---- */

static bool goes_before(const avl_queue_entry_t *a, const avl_queue_entry_t *b) {
    if (a->resumed != b->resumed)
        return a->resumed;
    if (a->priority != b->priority)
        return a->priority > b->priority;
    if (a->due_ns != b->due_ns)
        return a->due_ns < b->due_ns;
    return a->arrival < b->arrival;
}

static void put(avl_tenant_t *tenant, size_t place, avl_queue_entry_t *entry) {
    tenant->heap[place] = entry;
    entry->place = place;
}

static void sift_up(avl_tenant_t *tenant, size_t place) {
    avl_queue_entry_t *entry = tenant->heap[place];
    while (place > 0 && goes_before(entry, tenant->heap[(place - 1) / 2])) {
        put(tenant, place, tenant->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    put(tenant, place, entry);
}

static void sift_down(avl_tenant_t *tenant, size_t place) {
    avl_queue_entry_t *entry = tenant->heap[place];
    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= tenant->count)
            break;
        if (child + 1 < tenant->count && goes_before(tenant->heap[child + 1], tenant->heap[child]))
            child++;
        if (!goes_before(tenant->heap[child], entry))
            break;
        put(tenant, place, tenant->heap[child]);
        place = child;
    }
    put(tenant, place, entry);
}

/* ---- tenants ---- */

static double weight_of(const avl_queue_t *queue, const char *name) {
    for (size_t i = 0; i < queue->weight_count; i++)
        if (strcmp(queue->weights[i].name, name) == 0)
            return queue->weights[i].weight;
    return 1;
}

static void forget(avl_queue_t *queue, avl_tenant_t **link_p) {
    avl_tenant_t *tenant = *link_p;
    *link_p = tenant->next;
    free(tenant->heap);
    free(tenant);
    queue->tenant_count--;
}

static void forget_idle(avl_queue_t *queue) {
    bool crowded = queue->tenant_count > queue->places + IDLE_TENANTS_MAX;
    for (avl_tenant_t **link_p = &queue->tenants; *link_p != NULL;) {
        avl_tenant_t *tenant = *link_p;
        if (tenant->places == 0 && (crowded || tenant->served <= queue->now))
            forget(queue, link_p);
        else
            link_p = &tenant->next;
    }
}

static avl_status_t find_tenant(avl_queue_t *queue, const char *name, avl_tenant_t **tenant_p) {
    avl_tenant_t *tenant = queue->tenants;
    while (tenant != NULL && strcmp(tenant->name, name) != 0)
        tenant = tenant->next;
    if (tenant == NULL) {
        forget_idle(queue);
        AVL_TRY(avl_alloc(1, sizeof *tenant, "a tenant", &tenant));
        snprintf(tenant->name, sizeof tenant->name, "%s", name);
        tenant->weight = weight_of(queue, tenant->name);
        tenant->next = queue->tenants;
        queue->tenants = tenant;
        queue->tenant_count++;
    }
    *tenant_p = tenant;
    return AVL_OK;
}

avl_status_t avl_queue_enter(avl_queue_t *queue, const char *name, avl_tenant_t **tenant_p) {
    if (queue->places >= queue->places_max)
        return avl_fail(AVL_ERR_EXHAUSTED,
                        "%zu requests are in progress, the most this service takes: try later",
                        queue->places);
    avl_tenant_t *tenant = NULL;
    AVL_TRY(find_tenant(queue, name, &tenant));
    size_t free_places = queue->places_max - queue->places;
    double most = AVL_QUEUE_SHARE * tenant->weight * (double)free_places;
    if (queue->tenant_count > 1 && (double)tenant->places >= most)
        return avl_fail(AVL_ERR_EXHAUSTED,
                        "%zu requests of this tenant are in progress, and %zu places are left for "
                        "all: try later",
                        tenant->places, free_places);
    tenant->places++;
    queue->places++;
    *tenant_p = tenant;
    return AVL_OK;
}

void avl_queue_leave(avl_queue_t *queue, avl_tenant_t *tenant) {
    AVL_ASSERT(tenant->places > 0 && queue->places > 0);
    tenant->places--;
    queue->places--;
}

const char *avl_tenant_name(const avl_tenant_t *tenant) {
    return tenant->name;
}

size_t avl_tenant_places(const avl_tenant_t *tenant) {
    return tenant->places;
}

/* ---- the queue ---- */

avl_status_t avl_queue_create(size_t places_max, const avl_tenant_weight_t *weights,
                              size_t weight_count, avl_queue_t **queue_p) {
    avl_queue_t *queue = NULL;
    AVL_TRY(avl_alloc(1, sizeof *queue, "the queue", &queue));
    avl_status_t status =
        avl_alloc(weight_count, sizeof *weights, "weights of tenants", &queue->weights);
    if (status != AVL_OK) {
        free(queue);
        return status;
    }
    if (weight_count > 0)
        memcpy(queue->weights, weights, weight_count * sizeof *weights);
    queue->weight_count = weight_count;
    queue->places_max = places_max;
    *queue_p = queue;
    return AVL_OK;
}

void avl_queue_destroy(avl_queue_t *queue) {
    if (queue == NULL)
        return;
    AVL_ASSERT(queue->count == 0);
    while (queue->tenants != NULL)
        forget(queue, &queue->tenants);
    free(queue->weights);
    free(queue->order);
    free(queue->lanes);
    free(queue);
}

avl_status_t avl_queue_add(avl_queue_t *queue, avl_queue_entry_t *entry) {
    AVL_ASSERT(!entry->queued);
    avl_tenant_t *tenant = entry->tenant;
    AVL_TRY(avl_grow(tenant->count + 1, sizeof *tenant->heap, "a queue", &tenant->heap,
                     &tenant->capacity));
    if (tenant->count == 0 && tenant->served < queue->now)
        tenant->served = queue->now; /* who asks for nothing saves nothing up */
    entry->queued = true;
    put(tenant, tenant->count++, entry);
    sift_up(tenant, entry->place);
    queue->count++;
    return AVL_OK;
}

void avl_queue_remove(avl_queue_t *queue, avl_queue_entry_t *entry) {
    if (!entry->queued)
        return;
    avl_tenant_t *tenant = entry->tenant;
    size_t place = entry->place;
    avl_queue_entry_t *last = tenant->heap[--tenant->count];
    if (last != entry) {
        put(tenant, place, last);
        sift_up(tenant, place);
        sift_down(tenant, last->place);
    }
    entry->queued = false;
    queue->count--;
}

/* Whether the tops of two tenants go in this order. */
static bool turn_before(const avl_tenant_t *a, const avl_tenant_t *b) {
    const avl_queue_entry_t *first = a->heap[0], *second = b->heap[0];
    if (first->resumed == second->resumed && first->priority == second->priority &&
        a->served != b->served)
        return a->served < b->served;
    return goes_before(first, second);
}

avl_queue_entry_t *avl_queue_first(avl_queue_t *queue) {
    avl_tenant_t *best = NULL;
    for (avl_tenant_t *tenant = queue->tenants; tenant != NULL; tenant = tenant->next)
        if (tenant->count > 0 && (best == NULL || turn_before(tenant, best)))
            best = tenant;
    return best != NULL ? best->heap[0] : NULL;
}

void avl_queue_take(avl_queue_t *queue, avl_queue_entry_t *entry) {
    avl_tenant_t *tenant = entry->tenant;
    avl_queue_remove(queue, entry);
    if (entry->resumed)
        return;
    if (queue->now < tenant->served)
        queue->now = tenant->served;
    avl_queue_charge(queue, tenant, entry->cost);
}

void avl_queue_charge(avl_queue_t *queue, avl_tenant_t *tenant, int64_t tokens) {
    (void)queue;
    tenant->served += (double)tokens / tenant->weight;
}

size_t avl_queue_count(const avl_queue_t *queue) {
    return queue->count;
}

/* ---- the whole order ---- */

static int by_turn(const void *left, const void *right) {
    const avl_queue_entry_t *a = *(avl_queue_entry_t *const *)left,
                            *b = *(avl_queue_entry_t *const *)right;
    return goes_before(a, b) ? -1 : goes_before(b, a);
}

/* A tenant's share of the sorted entries, and where it stands. */
typedef struct lane {
    avl_queue_entry_t **next, **end;
    double served;
} lane_t;

static bool lane_before(const lane_t *a, const lane_t *b) {
    const avl_queue_entry_t *first = *a->next, *second = *b->next;
    if (first->resumed == second->resumed && first->priority == second->priority &&
        a->served != b->served)
        return a->served < b->served;
    return goes_before(first, second);
}

/* The lanes' entries one after the other, as avl_queue_first and _take would. */
static void merge(lane_t *lanes, size_t lane_count, avl_queue_entry_t **list) {
    while (lane_count > 0) {
        size_t best = 0;
        for (size_t i = 1; i < lane_count; i++)
            if (lane_before(&lanes[i], &lanes[best]))
                best = i;
        avl_queue_entry_t *entry = *lanes[best].next++;
        *list++ = entry;
        if (!entry->resumed)
            lanes[best].served += (double)entry->cost / entry->tenant->weight;
        if (lanes[best].next == lanes[best].end)
            lanes[best] = lanes[--lane_count];
    }
}

avl_status_t avl_queue_order(avl_queue_t *queue, avl_queue_entry_t *newcomer,
                             avl_queue_entry_t *const **list_p, size_t *count_p) {
    size_t count = queue->count + (newcomer != NULL), lane_count = 0;
    AVL_TRY(avl_grow(2 * count, sizeof *queue->order, "the order of the queue", &queue->order,
                     &queue->order_capacity));
    AVL_TRY(avl_grow(queue->tenant_count, sizeof *queue->lanes, "the order of the queue",
                     &queue->lanes, &queue->lane_capacity));
    avl_queue_entry_t **sorted = queue->order + count;
    for (avl_tenant_t *tenant = queue->tenants; tenant != NULL; tenant = tenant->next) {
        size_t own = tenant->count;
        for (size_t i = 0; i < own; i++)
            sorted[i] = tenant->heap[i];
        if (newcomer != NULL && newcomer->tenant == tenant)
            sorted[own++] = newcomer;
        if (own == 0)
            continue;
        qsort(sorted, own, sizeof *sorted, by_turn);
        bool idle = tenant->count == 0 && tenant->served < queue->now; /* as avl_queue_add */
        queue->lanes[lane_count++] =
            (lane_t){sorted, sorted + own, idle ? queue->now : tenant->served};
        sorted += own;
    }
    merge(queue->lanes, lane_count, queue->order);
    *list_p = queue->order;
    *count_p = count;
    return AVL_OK;
}
