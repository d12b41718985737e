/* tests/cuda/shim/races.cpp: finds accesses to memory that nothing puts in order. Kernels compiled
 * with -fsanitize=thread call the functions below for every access, in place of that sanitizer's
 * own runtime; the shim tells of barriers, fences, atomic operations and instructions.
 *
 * Two accesses to the same bytes, one of them a write, are in order when
 *   - one thread makes both, or
 *   - both belong to one block, and a barrier of the block stands between them, or
 *   - both belong to one warp, and a __syncwarp of all its lanes stands between them (shuffles
 * order no memory), or
 *   - the blocks differ, and the first one's threads pass a fence and a barrier behind what they
 * did, one of them then makes an atomic operation, and behind one of its own block the second
 * passes a fence, or
 *   - both are atomic.
 * What a launch writes is not read through the cache for constants (__ldg) in it. */
#include <stdlib.h>

#include "tests/cuda/shim/engine.h"

static constexpr int WARP = 32, THREADS_MAX = 1024;
static constexpr int CELL_SHIFT = 1, PAGE_SHIFT = 12, CELLS = 1 << (PAGE_SHIFT - CELL_SHIFT);
static constexpr int BUCKET_BITS = 14, BUCKETS = 1 << BUCKET_BITS;
enum { ALONE, WARP_MATES, OTHERS };

/* When an access was made, and by whom; block 0 is none. */
struct access_t {
    uint32_t block, barriers, warp_syncs;
    uint32_t era; /* of the block: how often it has published what it did */
    int16_t thread;
    uint8_t is_atomic;
    uint8_t
        company; /* others that did it between the same barriers: WARP_MATES at most, or OTHERS */
};

/* What was last done to two bytes. */
struct cell_t {
    uint32_t launch;
    access_t write, read;
};

struct page_t {
    page_t *next;
    uintptr_t number;
    cell_t cells[CELLS];
};

struct watched_thread_t {
    int is_dirty; /* has written device memory since its last fence */
    int has_acquired;
};

struct watch_t {
    page_t *buckets[BUCKETS];
    uint32_t launch, block, barriers;
    uint32_t first_block; /* of the launch */
    uint32_t *eras;       /* of the launch's blocks that have run */
    uint32_t era_room;
    uint32_t era; /* of the block */
    int dirty_count;
    uint32_t fence_barriers; /* at the block's last fence, and whose that was */
    int fence_thread;
    int has_atomic;
    uint32_t atomic_barriers; /* at its last atomic operation, likewise */
    int atomic_thread;
    uint32_t warp_syncs[THREADS_MAX / WARP];
    watched_thread_t threads[THREADS_MAX];
};

/* A process's memory: one thread of it runs kernels in these tests. */
static watch_t watch;

static cell_t *cell_of(uintptr_t address) {
    uintptr_t number = address >> PAGE_SHIFT;
    page_t **bucket = &watch.buckets[(number * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - BUCKET_BITS)];
    page_t *page = *bucket;
    while (page != nullptr && page->number != number)
        page = page->next;
    if (page == nullptr) {
        page = (page_t *)calloc(1, sizeof *page);
        if (page == nullptr)
            avl_shim_stop("no memory to watch accesses");
        page->number = number;
        page->next = *bucket;
        *bucket = page;
    }
    cell_t *cell = &page->cells[address >> CELL_SHIFT & (CELLS - 1)];
    if (cell->launch != watch.launch) {
        memset(cell, 0, sizeof *cell);
        cell->launch = watch.launch;
    }
    return cell;
}

/* Whether what was done before cannot be in anybody's way now. */
static int is_in_order(const access_t *before, int thread, int is_atomic, int is_shared) {
    if (before->block == 0 || (before->is_atomic && is_atomic))
        return 1;
    if (before->block != watch.block) /* shared memory is another's then */
        return is_shared ||
               (watch.threads[thread].has_acquired &&
                (before->is_atomic || before->era < watch.eras[before->block - watch.first_block]));
    if (before->barriers != watch.barriers ||
        (before->thread == thread && before->company == ALONE))
        return 1;
    return before->company != OTHERS && before->thread / WARP == thread / WARP &&
           before->warp_syncs != watch.warp_syncs[thread / WARP];
}

static void note(access_t *access, int thread, int is_atomic) {
    int company = ALONE;
    if (access->block == watch.block && access->barriers == watch.barriers) {
        company = access->company;
        if (access->thread / WARP != thread / WARP)
            company = OTHERS;
        else if (access->thread != thread && company == ALONE)
            company = WARP_MATES;
    }
    *access = {watch.block,     watch.barriers,  watch.warp_syncs[thread / WARP],
               watch.era,       (int16_t)thread, (uint8_t)is_atomic,
               (uint8_t)company};
}

[[noreturn]] static void tell(const char *what, const access_t *before, const char *then,
                              uintptr_t address, int is_shared) {
    if (before->block == watch.block)
        avl_shim_stop(
            "a race: %s memory at 0x%zx is %s by thread %d%s, then %s here, and no barrier "
            "stands between",
            is_shared ? "shared" : "device", (size_t)address, what, (int)before->thread,
            before->company != ALONE ? " among others" : "", then);
    avl_shim_stop(
        "a race: device memory at 0x%zx is %s by block number %u, then %s here by another "
        "that cannot know",
        (size_t)address, what, before->block - watch.first_block, then);
}

static void begin_grid(void) {
    watch.launch++;
    watch.first_block = watch.block + 1;
}

static void begin_block(void) {
    if (watch.block >= watch.first_block)
        watch.eras[watch.block - watch.first_block] = watch.era;
    watch.block++;
    if (watch.block - watch.first_block >= watch.era_room) {
        watch.era_room = watch.era_room * 2 + 1024;
        watch.eras = (uint32_t *)realloc(watch.eras, watch.era_room * sizeof *watch.eras);
        if (watch.eras == nullptr)
            abort();
    }
    watch.barriers++;
    watch.era = 0;
    watch.dirty_count = watch.has_atomic = 0;
    watch.fence_barriers = 0;
    memset(watch.threads, 0, sizeof watch.threads);
}

static void pass_barrier(void) {
    watch.barriers++;
}

static void sync_warp(int thread) {
    watch.warp_syncs[thread / WARP]++;
}

static void pass_fence(int thread) {
    watched_thread_t *own = &watch.threads[thread];
    watch.dirty_count -= own->is_dirty;
    own->is_dirty = 0;
    watch.fence_thread =
        watch.fence_barriers == watch.barriers && watch.fence_thread != thread ? -1 : thread;
    watch.fence_barriers = watch.barriers;
    own->has_acquired |= watch.has_atomic &&
                         (watch.atomic_barriers != watch.barriers || watch.atomic_thread == thread);
}

/* An atomic operation on device memory: what the whole block had done and fenced is published. */
static void publish(int thread) {
    if (watch.dirty_count == 0 &&
        (watch.fence_barriers != watch.barriers || watch.fence_thread == thread))
        watch.era++;
    watch.has_atomic = 1;
    watch.atomic_barriers = watch.barriers;
    watch.atomic_thread = thread;
}

static void see(int thread, uintptr_t address, size_t bytes, avl_shim_access_t kind,
                int is_shared) {
    int is_atomic = kind == AVL_SHIM_ATOMIC, is_write = is_atomic || kind == AVL_SHIM_WRITE;
    uintptr_t end = address + bytes;
    for (uintptr_t at = address >> CELL_SHIFT << CELL_SHIFT; at < end; at += 1 << CELL_SHIFT) {
        cell_t *cell = cell_of(at);
        const char *then = is_atomic ? "counted" : is_write ? "written" : "read";
        if (!is_in_order(&cell->write, thread, is_atomic, is_shared))
            tell("written", &cell->write, then, at, is_shared);
        if (is_write && !is_in_order(&cell->read, thread, 0, is_shared))
            tell("read", &cell->read, then, at, is_shared);
        if (kind == AVL_SHIM_READ_CONSTANT && cell->write.block != 0)
            avl_shim_stop("device memory at 0x%zx is written by this launch and read by __ldg",
                          (size_t)at);
        note(is_write ? &cell->write : &cell->read, thread, is_atomic);
    }
    if (is_atomic && !is_shared)
        publish(thread);
    if (kind == AVL_SHIM_WRITE && !is_shared) {
        watch.dirty_count += !watch.threads[thread].is_dirty;
        watch.threads[thread].is_dirty = 1;
    }
}

static const avl_shim_watcher_t watcher = {begin_grid, begin_block, pass_barrier,
                                           sync_warp,  pass_fence,  see};

/* ---- what the compiler calls ---- */

static void see_aligned(const void *memory, size_t bytes, avl_shim_access_t kind) {
    if (avl_shim_is_in_kernel())
        avl_shim_check_aligned(memory, bytes < 8 ? bytes : 8);
    avl_shim_note(memory, bytes, kind);
}

extern "C" {
void __tsan_init(void) {
    avl_shim_watch = &watcher;
}
void __tsan_func_entry(void *) {
}
void __tsan_func_exit(void) {
}
/* The compiler asks for these where the type is aligned to its size, or to 8. */
#define ACCESS(bytes)                                                                              \
    void __tsan_read##bytes(void *memory) {                                                        \
        see_aligned(memory, bytes, AVL_SHIM_READ);                                                 \
    }                                                                                              \
    void __tsan_write##bytes(void *memory) {                                                       \
        see_aligned(memory, bytes, AVL_SHIM_WRITE);                                                \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *memory) {                                              \
        avl_shim_note(memory, bytes, AVL_SHIM_READ);                                               \
    }                                                                                              \
    void __tsan_unaligned_write##bytes(void *memory) {                                             \
        avl_shim_note(memory, bytes, AVL_SHIM_WRITE);                                              \
    }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *memory, long bytes) {
    avl_shim_note(memory, (size_t)bytes, AVL_SHIM_READ);
}
void __tsan_write_range(void *memory, long bytes) {
    avl_shim_note(memory, (size_t)bytes, AVL_SHIM_WRITE);
}
}
