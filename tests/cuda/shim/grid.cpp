/* tests/cuda/shim/grid.cpp: runs a grid block by block, the threads of a block as fibers.
 *
 *   state      entered by                      left by
 *   READY      prepare_block, release          run_lane
 *   RUNNING    run_lane                        the fiber itself
 *   BARRIER    avl_shim_barrier                release_barrier, when all threads are there
 *   WARP       avl_shim_warp                   the last lane of the mask
 *   ENDED      fiber_main                      prepare_block of the next block
 *
 * A thread that cannot go on for ever is a finding: the launch fails with a text. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/cuda/shim/engine.h"
#include "tests/cuda/shim/fiber.h"

enum { WARP = 32, THREADS_MAX = 1024, COPIES_MAX = 256, SHARED_ALIGNMENT = 128 };

enum state_t { READY, RUNNING, BARRIER, WARP_WAIT, ENDED };

struct pending_copy {
    void *target;
    const void *source;
    int valid_bytes;
    int group;
};

struct thread_t {
    avl_fiber fiber;
    int has_fiber, is_fresh; /* prepared and not yet entered since it was last given up */
    state_t state;
    uint3 index;
    int lane;
    const char *kind; /* what it waits for */
    const char *file;
    int line;
    unsigned mask;
    void *payload;
    pending_copy copies[COPIES_MAX];
    int copy_count, group;
};

struct engine_t {
    avl_shim_options_t options = {AVL_SHIM_ASCENDING, 1, 0, 0, 1, 0};
    thread_t *threads = nullptr; /* [THREADS_MAX], made at the first launch */
    int thread_count = 0;
    thread_t *current = nullptr;
    avl_fiber_point host = {};
    avl_shim_place place = {};
    size_t shared_bytes = 0;
    int is_exchanging = 0;
    void (*body)(void *) = nullptr;
    void *context = nullptr;
    uint64_t random = 1;
    char finding[512] = "";

    ~engine_t() {
        for (int i = 0; threads != nullptr && i < THREADS_MAX; i++)
            if (threads[i].has_fiber)
                avl_fiber_destroy(&threads[i].fiber);
        free(threads);
    }
};

static thread_local engine_t engine;

const avl_shim_watcher_t *avl_shim_watch;

static unsigned next_random(void) {
    engine.random = engine.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(engine.random >> 33);
}

avl_shim_options_t *avl_shim_options(void) {
    return &engine.options;
}

void avl_shim_configure(const avl_shim_options_t *options) {
    engine.options = *options;
    engine.random = options->seed * 2 + 1;
}

void avl_shim_record(const char *text) {
    if (engine.finding[0] == '\0')
        snprintf(engine.finding, sizeof engine.finding, "%s", text);
}

const char *avl_shim_finding(void) {
    return engine.finding;
}

void avl_shim_clear_finding(void) {
    engine.finding[0] = '\0';
}

avl_shim_place *avl_shim_here(void) {
    return &engine.place;
}

int avl_shim_lane(void) {
    return engine.current->lane;
}

/* ---- inside a thread ---- */

static void leave(thread_t *self, state_t state) {
    self->state = state;
    avl_fiber_switch(&self->fiber.point, &engine.host, &engine.host);
}

void avl_shim_stop(const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    thread_t *self = engine.current;
    if (self == nullptr) {
        fprintf(stderr, "execution shim: %s\n", text);
        abort();
    }
    char whole[512];
    snprintf(whole, sizeof whole, "block (%u, %u, %u), thread %d: %s", engine.place.block_index.x,
             engine.place.block_index.y, engine.place.block_index.z, (int)(self - engine.threads),
             text);
    avl_shim_record(whole);
    for (;;)
        leave(self, RUNNING);
}

static void fiber_main(void) {
    avl_fiber_arrived(&engine.host);
    for (;;) {
        thread_t *self = engine.current;
        engine.body(engine.context);
        if (self->copy_count > 0)
            avl_shim_stop("%d asynchronous copies were never waited for", self->copy_count);
        leave(self, ENDED);
    }
}

/* ---- who watches ---- */

static int number_of(const thread_t *thread) {
    return (int)(thread - engine.threads);
}

int avl_shim_is_in_kernel(void) {
    return engine.current != nullptr;
}

void avl_shim_note(const void *memory, size_t bytes, avl_shim_access_t kind) {
    thread_t *self = engine.current;
    if (avl_shim_watch == nullptr || self == nullptr || engine.is_exchanging)
        return;
    uintptr_t address = (uintptr_t)memory, shared = (uintptr_t)engine.place.shared;
    /* Its own stack, and where it is. */
    if (address - (uintptr_t)self->fiber.stack < self->fiber.mapped_bytes ||
        address - (uintptr_t)&engine.place < sizeof engine.place)
        return;
    int is_shared = shared != 0 && address - shared < engine.shared_bytes;
    avl_shim_watch->see(number_of(self), address, bytes, kind, is_shared);
}

/* A GPU has no other accesses. */
void avl_shim_check_aligned(const void *memory, size_t alignment) {
    if ((uintptr_t)memory % alignment != 0)
        avl_shim_stop("an access of %zu bytes at %p, which is not aligned to them", alignment,
                      memory);
}

void avl_shim_note_fence(void) {
    if (avl_shim_watch != nullptr && engine.current != nullptr)
        avl_shim_watch->pass_fence(number_of(engine.current));
}

void avl_shim_barrier(const char *file, int line) {
    thread_t *self = engine.current;
    self->file = file;
    self->line = line;
    leave(self, BARRIER);
}

static thread_t *lane_of_warp(const thread_t *self, int lane) {
    int index = (int)(self - engine.threads) / WARP * WARP + lane;
    return index < engine.thread_count ? &engine.threads[index] : nullptr;
}

static int is_on_its_way(const thread_t *self, int lane, unsigned mask) {
    if ((mask >> lane & 1) == 0 || lane == self->lane)
        return 0;
    const thread_t *other = lane_of_warp(self, lane);
    return other != nullptr && (other->state == READY || other->state == RUNNING);
}

void avl_shim_warp(const char *kind, unsigned mask, void *payload, avl_shim_finish_t *finish) {
    thread_t *self = engine.current;
    if ((mask >> self->lane & 1) == 0)
        avl_shim_stop("%s: lane %d calls with mask 0x%08x, which does not name it", kind,
                      self->lane, mask);
    self->kind = kind;
    self->mask = mask;
    self->payload = payload;
    /* Most calls end here: the lane that runs next has not arrived. */
    if (is_on_its_way(self, (self->lane + 1) % WARP, mask) ||
        is_on_its_way(self, (self->lane + WARP - 1) % WARP, mask)) {
        leave(self, WARP_WAIT);
        return;
    }
    void *payloads[WARP] = {};
    for (int lane = 0; lane < WARP; lane++) {
        if ((mask >> lane & 1) == 0)
            continue;
        thread_t *other = lane_of_warp(self, lane);
        if (other == nullptr || other->state == ENDED)
            avl_shim_stop("%s: mask 0x%08x names lane %d, which %s", kind, mask, lane,
                          other == nullptr ? "does not exist" : "has ended");
        if (other == self ||
            (other->state == WARP_WAIT && other->mask == mask && strcmp(other->kind, kind) == 0)) {
            payloads[lane] = other->payload;
        } else if (other->state == WARP_WAIT) {
            avl_shim_stop("%s with mask 0x%08x: lane %d waits in %s with mask 0x%08x", kind, mask,
                          lane, other->kind, other->mask);
        } else { /* not all are here */
            leave(self, WARP_WAIT);
            return;
        }
    }
    engine.is_exchanging = 1; /* reads and writes other lanes' stacks */
    if (finish != nullptr)
        finish(payloads, mask);
    engine.is_exchanging = 0;
    if (avl_shim_watch != nullptr && mask == 0xffffffffu && strcmp(kind, "__syncwarp") == 0)
        avl_shim_watch->sync_warp(number_of(self));
    for (int lane = 0; lane < WARP; lane++)
        if (payloads[lane] != nullptr && lane_of_warp(self, lane) != self)
            lane_of_warp(self, lane)->state = READY;
}

static void no_finish(void *const *, unsigned) {
}

void __syncwarp(unsigned mask) {
    char nothing = 0;
    avl_shim_warp("__syncwarp", mask, &nothing, no_finish);
}

struct ballot_t {
    int predicate;
    unsigned result;
};

static void finish_ballot(void *const *payloads, unsigned) {
    unsigned result = 0;
    for (int lane = 0; lane < WARP; lane++)
        if (payloads[lane] != nullptr && ((ballot_t *)payloads[lane])->predicate)
            result |= 1u << lane;
    for (int lane = 0; lane < WARP; lane++)
        if (payloads[lane] != nullptr)
            ((ballot_t *)payloads[lane])->result = result;
}

unsigned __ballot_sync(unsigned mask, int predicate) {
    ballot_t own = {predicate, 0};
    avl_shim_warp("__ballot_sync", mask, &own, finish_ballot);
    return own.result;
}

/* ---- asynchronous copies: at the wait, and not before ---- */

void avl_copy_async(void *shared, const void *global, int valid_bytes) {
    thread_t *self = engine.current;
    if ((uintptr_t)shared % 16 != 0 || (uintptr_t)global % 16 != 0)
        avl_shim_stop("an asynchronous copy from %p to %p: both must be aligned to 16 bytes",
                      global, shared);
    if (self->copy_count == COPIES_MAX)
        avl_shim_stop("more than %d asynchronous copies under way", COPIES_MAX);
    /* It may be made at any time from here to the wait. */
    if (valid_bytes > 0)
        avl_shim_note(global, (size_t)valid_bytes, AVL_SHIM_READ);
    avl_shim_note(shared, 16, AVL_SHIM_WRITE);
    self->copies[self->copy_count++] = {shared, global, valid_bytes, self->group};
}

void avl_copy_async_commit(void) {
    engine.current->group++;
}

void avl_shim_copy_async_wait(int groups) {
    thread_t *self = engine.current;
    int kept = 0;
    for (int i = 0; i < self->copy_count; i++) {
        pending_copy copy = self->copies[i];
        if (copy.group >= self->group - groups) {
            self->copies[kept++] = copy;
            continue;
        }
        avl_shim_note(copy.target, 16, AVL_SHIM_WRITE);
        memset(copy.target, 0, 16);
        memcpy(copy.target, copy.source, (size_t)copy.valid_bytes);
    }
    self->copy_count = kept;
}

void avl_shim_poison_gap(unsigned char *gap) {
#ifdef AVL_SHIM_ASAN
    __asan_poison_memory_region(gap, 32);
#else
    (void)gap;
#endif
}

/* ---- the block ---- */

static int prepare_block(dim3 block, int count) {
    if (engine.threads == nullptr) {
        engine.threads = (thread_t *)calloc(THREADS_MAX, sizeof(thread_t));
        if (engine.threads == nullptr)
            return 0;
    }
    engine.thread_count = count;
    for (int i = 0; i < count; i++) {
        thread_t *thread = &engine.threads[i];
        if (!thread->has_fiber) {
            if (!avl_fiber_create(&thread->fiber))
                return 0;
            thread->has_fiber = 1;
        }
        if (!thread->is_fresh) {
            avl_fiber_prepare(&thread->fiber, fiber_main);
            thread->is_fresh = 1;
        }
        thread->state = READY;
        thread->lane = i % WARP;
        unsigned linear = (unsigned)i;
        thread->index = {linear % block.x, linear / block.x % block.y,
                         linear / (block.x * block.y)};
        thread->copy_count = thread->group = 0;
    }
    return 1;
}

static void run_lane(thread_t *thread) {
    engine.current = thread;
    engine.place.thread_index = thread->index;
    thread->state = RUNNING;
    avl_fiber_switch(&engine.host, &thread->fiber.point, &engine.host);
    engine.current = nullptr;
}

/* Runs one warp until none of its lanes can go on. */
static void run_warp(int first) {
    for (int ran = 1; ran && engine.finding[0] == '\0';) {
        ran = 0;
        unsigned turn = engine.options.order == AVL_SHIM_RANDOM ? next_random() : 0;
        for (int i = 0; i < WARP && engine.finding[0] == '\0'; i++) {
            int lane = engine.options.order == AVL_SHIM_ASCENDING ? i : WARP - 1 - i;
            if (engine.options.order == AVL_SHIM_RANDOM)
                lane = (int)(((unsigned)i * (turn | 1) + (turn >> 8)) % WARP);
            int index = first + lane;
            if (index < engine.thread_count && engine.threads[index].state == READY) {
                run_lane(&engine.threads[index]);
                ran = 1;
            }
        }
    }
}

static void describe_hang(void) {
    const thread_t *threads = engine.threads;
    int waiting = -1, ended = -1;
    char text[400];
    for (int i = 0; i < engine.thread_count; i++) {
        if (threads[i].state == WARP_WAIT) {
            int lane = 0;
            while (lane < WARP - 1 && ((threads[i].mask >> lane & 1) == 0 ||
                                       (lane_of_warp(&threads[i], lane) != nullptr &&
                                        lane_of_warp(&threads[i], lane)->state == WARP_WAIT)))
                lane++;
            snprintf(text, sizeof text,
                     "thread %d waits in %s with mask 0x%08x for lane %d, which will never come", i,
                     threads[i].kind, threads[i].mask, lane);
            avl_shim_record(text);
            return;
        }
        if (threads[i].state == BARRIER)
            waiting = i;
        if (threads[i].state == ENDED)
            ended = i;
    }
    snprintf(text, sizeof text,
             "barrier divergence: thread %d waits at %s:%d while thread %d has ended", waiting,
             threads[waiting].file, threads[waiting].line, ended);
    avl_shim_record(text);
}

/* Returns whether the block goes on. */
static int release_barrier(void) {
    thread_t *threads = engine.threads;
    int ended = 0, waiting = 0;
    for (int i = 0; i < engine.thread_count; i++) {
        ended += threads[i].state == ENDED;
        waiting += threads[i].state == BARRIER;
    }
    if (ended == engine.thread_count)
        return 0;
    if (waiting != engine.thread_count) {
        describe_hang();
        return 0;
    }
    for (int i = 1; i < engine.thread_count; i++) {
        if (threads[i].line == threads[0].line && strcmp(threads[i].file, threads[0].file) == 0)
            continue;
        char text[400];
        snprintf(text, sizeof text,
                 "barrier divergence: thread 0 waits at %s:%d and thread %d at %s:%d",
                 threads[0].file, threads[0].line, i, threads[i].file, threads[i].line);
        avl_shim_record(text);
        return 0;
    }
    for (int i = 0; i < engine.thread_count; i++)
        threads[i].state = READY;
    if (avl_shim_watch != nullptr)
        avl_shim_watch->pass_barrier();
    return 1;
}

static void run_block(int count) {
    engine.is_exchanging = 0; /* when a finding left it so */
    int warps = (count + WARP - 1) / WARP;
    do {
        unsigned turn = engine.options.order == AVL_SHIM_RANDOM ? next_random() : 0;
        for (int i = 0; i < warps && engine.finding[0] == '\0'; i++) {
            int warp = engine.options.order == AVL_SHIM_ASCENDING ? i : warps - 1 - i;
            if (engine.options.order == AVL_SHIM_RANDOM)
                warp = (int)((unsigned)i + turn) % warps;
            run_warp(warp * WARP);
        }
    } while (engine.finding[0] == '\0' && release_barrier());
    for (int i = 0; i < count; i++) /* what did not end is given up */
        engine.threads[i].is_fresh = engine.threads[i].state == ENDED;
}

static uint64_t common_divisor(uint64_t a, uint64_t b) {
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

void avl_shim_run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *),
                       void *context) {
    int count = (int)(block.x * block.y * block.z);
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    void *shared = nullptr;
    if (shared_bytes > 0 && posix_memalign(&shared, SHARED_ALIGNMENT, shared_bytes) != 0)
        shared = nullptr;
    engine.body = body;
    engine.context = context;
    engine.place.block_size = block;
    engine.place.grid_size = grid;
    engine.place.shared = (unsigned char *)shared;
    engine.shared_bytes = shared_bytes;
    if (avl_shim_watch != nullptr)
        avl_shim_watch->begin_grid();
    uint64_t step = 1;
    if (engine.options.order == AVL_SHIM_RANDOM)
        do
            step = next_random() % blocks + 1;
        while (common_divisor(blocks, step) != 1);
    for (uint64_t i = 0; i < blocks && engine.finding[0] == '\0'; i++) {
        uint64_t number = i * step % blocks;
        if (engine.options.order == AVL_SHIM_DESCENDING)
            number = blocks - 1 - i;
        engine.place.block_index = {(unsigned)(number % grid.x),
                                    (unsigned)(number / grid.x % grid.y),
                                    (unsigned)(number / grid.x / grid.y)};
        if (!prepare_block(block, count) || (shared_bytes > 0 && shared == nullptr)) {
            avl_shim_record("no memory to run a block");
            break;
        }
#ifdef AVL_SHIM_ASAN
        if (shared_bytes > 0)
            __asan_unpoison_memory_region(shared, shared_bytes);
#endif
        if (shared_bytes > 0)
            memset(shared, 0xff, shared_bytes);
        if (avl_shim_watch != nullptr)
            avl_shim_watch->begin_block();
        run_block(count);
    }
#ifdef AVL_SHIM_ASAN
    if (shared_bytes > 0 && shared != nullptr)
        __asan_unpoison_memory_region(shared, shared_bytes);
#endif
    free(shared);
}
