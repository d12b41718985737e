#include "coordinator/groups.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"

typedef struct slot {
    avl_groups_t *groups;
    int number;
    avl_worker_group_t *group; /* NULL: free */
    bool joined;
    char dtype[8];       /* joined: that it must compute in */
    bool dead;           /* started here, and never to be */
    uint64_t generation; /* that `places` and `picture_bytes` count for */
    int32_t places;
    int64_t picture_bytes;
} slot_t;

struct avl_groups {
    avl_groups_config_t config;
    avl_worker_group_observer_t observer;
    avl_link_server_t *links;
    pthread_mutex_t lock; /* guards the slots; never held while an observer is called */
    bool stopping;
    slot_t slots[AVL_GROUPS_MAX];
};

/* ---- what groups tell ---- */

static void on_changed(void *context) {
    avl_groups_t *groups = ((slot_t *)context)->groups;
    groups->observer.changed(groups->observer.context);
}

static void on_events(void *context, uint64_t generation, const Avl__Worker__V1__Events *events) {
    avl_groups_t *groups = ((slot_t *)context)->groups;
    groups->observer.events(groups->observer.context, generation, events);
}

static void on_lost(void *context, uint64_t generation) {
    avl_groups_t *groups = ((slot_t *)context)->groups;
    groups->observer.lost(groups->observer.context, generation);
}

/* One of several that cannot be started leaves the others. */
static void on_fatal(void *context, avl_status_t status, const char *detail) {
    slot_t *slot = context;
    avl_groups_t *groups = slot->groups;
    int left = 0;
    pthread_mutex_lock(&groups->lock);
    slot->dead = true;
    for (int i = 0; i < AVL_GROUPS_MAX; i++)
        left += groups->slots[i].group != NULL && !groups->slots[i].dead;
    pthread_mutex_unlock(&groups->lock);
    if (left == 0 && groups->config.join_address == NULL) {
        groups->observer.fatal(groups->observer.context, status, detail);
        return;
    }
    avl_log_error("replica %d cannot be started, and is given up: %s: %s", slot->number,
                  avl_status_name(status), detail);
    groups->observer.changed(groups->observer.context);
}

/* ---- groups that come and go ---- */

/* What the other groups compute in, or have: NULL when none was ever ready. */
static const char *settled_dtype(const avl_groups_t *groups, slot_t *slot) {
    slot->dtype[0] = '\0';
    for (int i = 0; i < AVL_GROUPS_MAX && slot->dtype[0] == '\0'; i++) {
        avl_worker_group_view_t view;
        if (groups->slots[i].group == NULL)
            continue;
        avl_worker_group_view(groups->slots[i].group, &view);
        if (view.ever_ready)
            memcpy(slot->dtype, view.dtype, sizeof slot->dtype);
    }
    return slot->dtype[0] != '\0' ? slot->dtype : NULL;
}

static avl_status_t add_group(avl_groups_t *groups, bool joined, slot_t **slot_p) {
    slot_t *slot = NULL;
    for (int i = 0; i < AVL_GROUPS_MAX && slot == NULL; i++)
        if (groups->slots[i].group == NULL)
            slot = &groups->slots[i];
    if (slot == NULL)
        return avl_fail(AVL_ERR_EXHAUSTED, "there are %d worker groups already", AVL_GROUPS_MAX);
    avl_worker_group_config_t config = groups->config.group;
    config.links = groups->links;
    if (joined)
        config.program = NULL;
    if (joined && config.dtype == NULL)
        config.dtype = settled_dtype(groups, slot);
    avl_worker_group_observer_t observer = {slot, on_changed, on_events, on_lost, on_fatal};
    avl_worker_group_t *group = NULL;
    AVL_TRY(avl_worker_group_create(&config, &observer, &group));
    slot->joined = joined;
    slot->dead = false;
    slot->places = 0;
    slot->picture_bytes = 0;
    slot->group = group;
    *slot_p = slot;
    return AVL_OK;
}

static bool gone(const slot_t *slot) {
    avl_worker_group_view_t view;
    if (slot->group == NULL || !slot->joined)
        return false;
    avl_worker_group_view(slot->group, &view);
    return view.state == AVL_WORKER_GROUP_STOPPED;
}

/* Takes apart what has left. Only the joining door's thread does this, which is the one that calls
 * joined groups by their pointers without the lock. */
static void remove_gone(avl_groups_t *groups) {
    for (int i = 0; i < AVL_GROUPS_MAX; i++) {
        slot_t *slot = &groups->slots[i];
        pthread_mutex_lock(&groups->lock);
        avl_worker_group_t *group = !groups->stopping && gone(slot) ? slot->group : NULL;
        if (group != NULL)
            slot->group = NULL;
        pthread_mutex_unlock(&groups->lock);
        if (group != NULL) {
            avl_worker_group_stop(group, 0);
            avl_worker_group_destroy(group);
        }
    }
}

static slot_t *find_locked(avl_groups_t *groups, uint64_t generation,
                           avl_worker_group_view_t *view_p) {
    for (int i = 0; i < AVL_GROUPS_MAX; i++) {
        slot_t *slot = &groups->slots[i];
        if (slot->group == NULL)
            continue;
        avl_worker_group_view(slot->group, view_p);
        if (view_p->generation == generation)
            return slot;
    }
    return NULL;
}

/* The group that a link's generation belongs to: it lasts as long as the link's callback does. */
static avl_worker_group_t *group_of(avl_groups_t *groups, uint64_t generation) {
    avl_worker_group_view_t view;
    pthread_mutex_lock(&groups->lock);
    const slot_t *slot = find_locked(groups, generation, &view);
    avl_worker_group_t *group = slot != NULL ? slot->group : NULL;
    pthread_mutex_unlock(&groups->lock);
    return group;
}

static void join_group(avl_groups_t *groups, uint64_t generation,
                       const Avl__Worker__V1__Hello *hello) {
    remove_gone(groups);
    slot_t *slot = NULL;
    pthread_mutex_lock(&groups->lock);
    avl_status_t status = AVL_OK;
    if (groups->stopping)
        status = avl_fail(AVL_ERR_UNAVAILABLE, "the coordinator stops");
    else
        status = add_group(groups, true, &slot);
    if (status == AVL_OK)
        status = avl_worker_group_start(slot->group);
    pthread_mutex_unlock(&groups->lock);
    if (status != AVL_OK) {
        avl_log_warn("a worker group cannot join: %s", avl_status_detail());
        avl_link_server_drop(groups->links, generation, avl_status_detail());
        return;
    }
    avl_log_info("worker group %llu joins, as number %d", (unsigned long long)generation,
                 slot->number);
    avl_worker_group_attached(slot->group, generation, hello);
}

static void on_attached(void *context, uint64_t generation, const Avl__Worker__V1__Hello *hello) {
    avl_groups_t *groups = context;
    avl_worker_group_t *group = group_of(groups, generation);
    if (group != NULL)
        avl_worker_group_attached(group, generation, hello);
    else
        join_group(groups, generation, hello);
}

static void on_message(void *context, uint64_t generation,
                       const Avl__Worker__V1__WorkerMessage *message) {
    avl_worker_group_t *group = group_of(context, generation);
    if (group != NULL)
        avl_worker_group_message(group, generation, message);
}

static void on_detached(void *context, uint64_t generation) {
    avl_worker_group_t *group = group_of(context, generation);
    if (group != NULL)
        avl_worker_group_detached(group, generation);
}

/* ---- the choice ---- */

/* How many requests it can work on side by side. */
static int32_t parallel_of(const avl_worker_group_view_t *view) {
    int64_t pages_free = view->pages_total - view->pages_reserved;
    /* Requests wait there although it could decode more of them: for pages. */
    bool full =
        view->queued > 0 && view->active > 0 && pages_free < view->pages_reserved / view->active;
    return full ? view->active : view->sequences_max;
}

/* How many requests the group should have at hand. */
static int32_t room_of(const avl_worker_group_view_t *view) {
    return parallel_of(view) + 1 + view->sequences_max / 8;
}

static double load_of(const slot_t *slot, const avl_worker_group_view_t *view) {
    double places = (double)slot->places / room_of(view);
    double pages =
        view->pages_total > 0 ? (double)view->pages_reserved / (double)view->pages_total : 0;
    return places > pages ? places : pages;
}

static uint64_t mix(uint64_t x) { /* the finalizer of splitmix64 */
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t rank_of(const slot_t *slot, uint64_t picture) {
    return mix(picture ^ mix((uint64_t)slot->number + 1));
}

typedef struct candidate {
    slot_t *slot;
    double load;
    uint64_t generation;
} candidate_t;

static int32_t places_of(const avl_groups_need_t *need) {
    return need->answers > 1 ? need->answers : 1;
}

/* Whether the group can ever take it. */
static bool fits(const avl_worker_group_view_t *view, const avl_groups_need_t *need) {
    return view->context_rows_max >= need->rows && view->picture_bytes_max >= need->picture_bytes;
}

/* Whether it can take it now. */
static bool has_room(const slot_t *slot, const avl_worker_group_view_t *view,
                     const avl_groups_need_t *need) {
    if (slot->places > 0 && slot->places + places_of(need) > room_of(view))
        return false;
    return slot->picture_bytes + need->picture_bytes <= view->picture_bytes_max;
}

avl_status_t avl_groups_reserve(avl_groups_t *groups, const avl_groups_need_t *need,
                                uint64_t *generation_p) {
    candidate_t candidates[AVL_GROUPS_MAX];
    int count = 0, ready = 0, fitting = 0;
    pthread_mutex_lock(&groups->lock);
    const candidate_t *best = NULL;
    for (int i = 0; i < AVL_GROUPS_MAX; i++) {
        slot_t *slot = &groups->slots[i];
        avl_worker_group_view_t view;
        if (slot->group == NULL)
            continue;
        avl_worker_group_view(slot->group, &view);
        if (view.state != AVL_WORKER_GROUP_READY)
            continue;
        if (slot->generation != view.generation) {
            slot->generation = view.generation;
            slot->places = 0;
            slot->picture_bytes = 0;
        }
        ready++;
        fitting += fits(&view, need);
        if (!fits(&view, need) || !has_room(slot, &view, need))
            continue;
        candidates[count] = (candidate_t){slot, load_of(slot, &view), view.generation};
        if (best == NULL || candidates[count].load < best->load)
            best = &candidates[count];
        count++;
    }
    const candidate_t *chosen = best;
    for (int i = 0; i < count && need->picture != 0; i++)
        if (candidates[i].load <= best->load + AVL_GROUPS_SLACK &&
            (chosen->load > best->load + AVL_GROUPS_SLACK ||
             rank_of(candidates[i].slot, need->picture) > rank_of(chosen->slot, need->picture)))
            chosen = &candidates[i];
    if (chosen != NULL) {
        chosen->slot->places += places_of(need);
        chosen->slot->picture_bytes += need->picture_bytes;
        *generation_p = chosen->generation;
    }
    pthread_mutex_unlock(&groups->lock);
    if (chosen != NULL)
        return AVL_OK;
    if (ready == 0)
        return avl_fail(AVL_ERR_UNAVAILABLE, "no worker group is ready");
    if (fitting == 0)
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "no worker group has a context of %d rows and room for pictures of %lld "
                        "bytes",
                        need->rows, (long long)need->picture_bytes);
    return avl_fail(AVL_ERR_EXHAUSTED, "no worker group has room now");
}

void avl_groups_release(avl_groups_t *groups, uint64_t generation, const avl_groups_need_t *need) {
    pthread_mutex_lock(&groups->lock);
    for (int i = 0; i < AVL_GROUPS_MAX; i++) {
        slot_t *slot = &groups->slots[i];
        if (slot->group != NULL && slot->generation == generation && slot->places > 0) {
            slot->places -= places_of(need);
            slot->picture_bytes -= need->picture_bytes;
            break;
        }
    }
    pthread_mutex_unlock(&groups->lock);
}

int32_t avl_groups_context(avl_groups_t *groups, uint64_t generation) {
    avl_worker_group_view_t view;
    pthread_mutex_lock(&groups->lock);
    int32_t rows = find_locked(groups, generation, &view) != NULL ? view.context_rows_max : 0;
    pthread_mutex_unlock(&groups->lock);
    return rows;
}

avl_status_t avl_groups_submit(avl_groups_t *groups, uint64_t generation,
                               Avl__Worker__V1__Submit *submit) {
    avl_worker_group_view_t view;
    pthread_mutex_lock(&groups->lock);
    const slot_t *slot = find_locked(groups, generation, &view);
    avl_status_t status = slot != NULL ? avl_worker_group_submit(slot->group, generation, submit)
                                       : avl_fail(AVL_ERR_UNAVAILABLE, "the worker group is gone");
    pthread_mutex_unlock(&groups->lock);
    return status;
}

void avl_groups_cancel(avl_groups_t *groups, uint64_t generation, uint64_t request_id,
                       int32_t choice) {
    avl_worker_group_view_t view;
    pthread_mutex_lock(&groups->lock);
    const slot_t *slot = find_locked(groups, generation, &view);
    if (slot != NULL)
        avl_worker_group_cancel(slot->group, generation, request_id, choice);
    pthread_mutex_unlock(&groups->lock);
}

/* ---- all of them ---- */

/* Further on the way to ready. */
static bool better(const avl_worker_group_view_t *a, const avl_worker_group_view_t *b) {
    static const int order[] = {
        [AVL_WORKER_GROUP_STOPPED] = 0, [AVL_WORKER_GROUP_ENDING] = 1,
        [AVL_WORKER_GROUP_WAITING] = 2, [AVL_WORKER_GROUP_STARTING] = 3,
        [AVL_WORKER_GROUP_LOADING] = 4, [AVL_WORKER_GROUP_READY] = 5,
    };
    if (order[a->state] != order[b->state])
        return order[a->state] > order[b->state];
    if (a->ever_ready != b->ever_ready)
        return a->ever_ready;
    return a->loading_share > b->loading_share;
}

void avl_groups_view(avl_groups_t *groups, avl_groups_view_t *view_p) {
    avl_groups_view_t all;
    memset(&all, 0, sizeof all);
    all.best.state = AVL_WORKER_GROUP_STOPPED;
    bool hope = groups->config.join_address != NULL, any = false;
    pthread_mutex_lock(&groups->lock);
    for (int i = 0; i < AVL_GROUPS_MAX; i++) {
        const slot_t *slot = &groups->slots[i];
        if (slot->group == NULL || gone(slot))
            continue;
        avl_worker_group_view_t view;
        avl_worker_group_view(slot->group, &view);
        all.count++;
        hope = hope || (!view.hopeless && !slot->dead);
        if (view.state == AVL_WORKER_GROUP_READY) {
            all.ready++;
            all.sequences_max += view.sequences_max;
            all.parallel += parallel_of(&view);
        }
        if (view.hopeless || slot->dead)
            memcpy(all.reason, view.reason, sizeof all.reason);
        if (!any || better(&view, &all.best))
            all.best = view;
        any = true;
    }
    pthread_mutex_unlock(&groups->lock);
    all.hopeless = any && !hope;
    all.loading_share = all.best.loading_share;
    *view_p = all;
}

void avl_groups_each(avl_groups_t *groups,
                     void (*each)(void *context, int number, avl_worker_group_t *group),
                     void *context) {
    pthread_mutex_lock(&groups->lock);
    for (int i = 0; i < AVL_GROUPS_MAX; i++)
        if (groups->slots[i].group != NULL && !gone(&groups->slots[i]))
            each(context, i, groups->slots[i].group);
    pthread_mutex_unlock(&groups->lock);
}

avl_status_t avl_groups_create(const avl_groups_config_t *config,
                               const avl_worker_group_observer_t *observer,
                               avl_groups_t **groups_p) {
    avl_groups_t *groups = NULL;
    AVL_TRY(avl_alloc(1, sizeof *groups, "the worker groups", &groups));
    groups->config = *config;
    groups->observer = *observer;
    pthread_mutex_init(&groups->lock, NULL);
    for (int i = 0; i < AVL_GROUPS_MAX; i++) {
        groups->slots[i].groups = groups;
        groups->slots[i].number = i;
    }
    avl_link_observer_t link_observer = {groups, on_attached, on_message, on_detached};
    avl_status_t status =
        avl_link_server_create(config->group.link_address, &link_observer, &groups->links);
    slot_t *slot;
    for (int i = 0; i < config->replicas && status == AVL_OK; i++)
        status = add_group(groups, false, &slot);
    if (status == AVL_OK && config->join_address != NULL) {
        status = avl_link_server_open(groups->links, config->join_address, config->join_secret);
        if (status == AVL_OK)
            avl_log_info("worker groups may join at %s",
                         avl_link_server_join_address(groups->links));
    }
    if (status != AVL_OK) {
        avl_groups_destroy(groups);
        return status;
    }
    *groups_p = groups;
    return AVL_OK;
}

avl_status_t avl_groups_start(avl_groups_t *groups) {
    for (int i = 0; i < groups->config.replicas; i++)
        AVL_TRY(avl_worker_group_start(groups->slots[i].group));
    return AVL_OK;
}

void avl_groups_stop(avl_groups_t *groups, int64_t drain_ns) {
    pthread_mutex_lock(&groups->lock);
    groups->stopping = true;
    for (int i = 0; i < AVL_GROUPS_MAX; i++)
        if (groups->slots[i].group != NULL)
            avl_worker_group_part(groups->slots[i].group, drain_ns);
    pthread_mutex_unlock(&groups->lock);
    /* Nobody is added or removed any more but by a door whose leaders are refused. */
    for (int i = 0; i < AVL_GROUPS_MAX; i++)
        if (groups->slots[i].group != NULL)
            avl_worker_group_stop(groups->slots[i].group, drain_ns);
}

void avl_groups_destroy(avl_groups_t *groups) {
    if (groups == NULL)
        return;
    avl_link_server_destroy(groups->links); /* its callbacks use the groups */
    for (int i = 0; i < AVL_GROUPS_MAX; i++) {
        if (groups->slots[i].group != NULL)
            avl_worker_group_stop(groups->slots[i].group, 0);
        avl_worker_group_destroy(groups->slots[i].group);
    }
    pthread_mutex_destroy(&groups->lock);
    free(groups);
}
