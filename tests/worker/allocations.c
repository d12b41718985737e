/* tests/worker/allocations.c: what a rank allocates once it serves. Every allocation of the
 * process, libraries included, passes here: this program's malloc stands before the C library's.
 *
 * While steps run, nothing larger than a kilobyte may be asked for, nothing may stay behind,
 * and the process may not grow; and when everything larger is refused, no request notices. */
#include "tests/worker/rig.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/synthetic_model.h"

/* What libraries take for a moment: OpenMP's teams, oneDNN's lists of arguments. */
#define SMALL_BYTES 1024
#define ROUND_REQUESTS 7
#define STORES 4

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t item_bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static atomic_bool watched;
static atomic_size_t refused_bytes = SIZE_MAX; /* what is as large is refused while watched */
static atomic_size_t largest_bytes;
static atomic_llong count, refusals;

static bool is_allowed(size_t bytes) {
    if (!atomic_load(&watched))
        return true;
    atomic_fetch_add(&count, 1);
    size_t largest = atomic_load(&largest_bytes);
    while (bytes > largest && !atomic_compare_exchange_weak(&largest_bytes, &largest, bytes)) {
    }
    if (bytes < atomic_load(&refused_bytes))
        return true;
    atomic_fetch_add(&refusals, 1);
    errno = ENOMEM;
    return false;
}

void *malloc(size_t bytes) {
    return is_allowed(bytes) ? __libc_malloc(bytes) : NULL;
}

void *calloc(size_t items, size_t item_bytes) {
    size_t bytes;
    if (__builtin_mul_overflow(items, item_bytes, &bytes))
        return NULL;
    return is_allowed(bytes) ? __libc_calloc(items, item_bytes) : NULL;
}

void *realloc(void *memory, size_t bytes) {
    return is_allowed(bytes) ? __libc_realloc(memory, bytes) : NULL;
}

void *memalign(size_t alignment, size_t bytes) {
    return is_allowed(bytes) ? __libc_memalign(alignment, bytes) : NULL;
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    return memalign(alignment, bytes);
}

int posix_memalign(void **memory_p, size_t alignment, size_t bytes) {
    void *memory = memalign(alignment, bytes);
    if (memory == NULL)
        return ENOMEM;
    *memory_p = memory;
    return 0;
}

static int64_t resident_bytes(void) {
    long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*d %lld", &pages), 1);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

static char model_path[64];

/* Wide enough for oneDNN's products and several chunks of every kernel. */
static int write_model(void **state) {
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/avl-test-XXXXXX");
    if (mkdtemp(model_path) == NULL)
        return -1;
    avl_synthetic_model_write(model_path, &(avl_synthetic_model_t){.hidden_width = 512,
                                                                   .layer_count = 2,
                                                                   .kv_heads = 4,
                                                                   .vocab_rows = 1000,
                                                                   .vision_width = 256,
                                                                   .vision_layers = 2});
    return 0;
}

static int remove_model(void **state) {
    (void)state;
    static const char *const names[] = {"config.json", "preprocessor_config.json",
                                        "model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", model_path, names[i]);
        unlink(path);
    }
    return rmdir(model_path);
}

static void add_picture(const rig_t *rig, avl_request_t *request, int32_t first_row, int shade) {
    avl_image_layout_t layout;
    int side = rig_config(rig)->model.vision.image_side;
    assert_int_equal(avl_image_layout(rig_config(rig), side, side, &layout), AVL_OK);
    size_t bytes = (size_t)layout.tile_count * 3 * (size_t)side * (size_t)side;
    avl_request_image_t *image = &request->images[request->image_count++];
    *image = (avl_request_image_t){.layout = layout, .first_row = first_row, .pixel_bytes = bytes};
    image->digest.bytes[0] = (uint8_t)(shade + 1);
    image->pixels = malloc(bytes);
    assert_non_null(image->pixels);
    memset(image->pixels, shade, bytes);
    for (int32_t i = 0; i < layout.prompt_rows; i++)
        request->token_ids[first_row + i] = -1;
}

/* Number i of a mixture: text alone, one picture, two; dense and adaptive; greedy and drawn. */
static avl_request_t *make_request(const rig_t *rig, int i, uint64_t id) {
    static const double stores[STORES] = {1, .5, .3, .1};
    enum { TEXT = 70, PICTURE = 576 };
    int pictures = i % 3;
    int32_t rows = TEXT + 13 * (i % 5) + pictures * PICTURE;
    int32_t ids[TEXT + 13 * 5 + 2 * PICTURE];
    for (int32_t j = 0; j < rows; j++)
        ids[j] = 3 + (i * 31 + j * 7) % 900;
    avl_request_t *request = rig_text_request(ids, rows, id, 12 + i);
    request->ignore_eos = true;
    request->images = calloc(3, sizeof *request->images);
    assert_non_null(request->images);
    for (int picture = 0; picture < pictures; picture++)
        add_picture(rig, request, 5 + picture * (PICTURE + 4), (i * 40 + picture * 90) % 256);
    double store = stores[i % STORES];
    rig_set_attention(request, store, store == 1 ? 1 : store * 0.6, 3);
    if (i % 2 == 1)
        request->sampling = (avl_sampling_params_t){.temperature = 1.2,
                                                    .top_p = 0.9,
                                                    .top_k = i % 4 == 1 ? 50 : 0,
                                                    .seed = (uint64_t)i,
                                                    .repetition_penalty = 1.1,
                                                    .logprob_count = 5};
    return request;
}

/* A round of the mixture; steps run between the arrivals. */
static void run_round(rig_t *rig, uint64_t first_id) {
    for (int i = 0; i < ROUND_REQUESTS; i++) {
        avl_scheduler_submit(rig_scheduler(rig), make_request(rig, i, first_id + (uint64_t)i));
        for (int j = 0; j < 3; j++) {
            atomic_store(&watched, true);
            rig_step(rig);
            atomic_store(&watched, false);
        }
    }
    atomic_store(&watched, true);
    rig_run(rig);
    atomic_store(&watched, false);
}

static void expect_same(rig_t *rig, uint64_t first_id, const char *what) {
    for (uint64_t i = 0; i < ROUND_REQUESTS; i++) {
        const rig_result_t *first = rig_result(rig, 1 + i), *other = rig_result(rig, first_id + i);
        assert_int_equal(other->end.status, AVL_OK);
        rig_expect_tokens(other, first->tokens, first->token_count, what);
    }
}

static void check(int ranks, int threads, const avl_engine_limits_t *limits, int64_t pages,
                  size_t most_bytes) {
    rig_t *rig = rig_open(&(rig_options_t){.model = model_path,
                                           .ranks = ranks,
                                           .threads = threads,
                                           .dtype = AVL_DTYPE_F32,
                                           .limits = *limits,
                                           .page_count = pages});
    for (uint64_t id = 1; id <= 3 * ROUND_REQUESTS; id++)
        rig_result(rig, id); /* made before anything is counted */
    atomic_store(&largest_bytes, 0);
    run_round(rig, 1);
    print_message("%d ranks, %d threads: %lld allocations in steps, the largest of %zu bytes\n",
                  ranks, threads, atomic_load(&count), atomic_load(&largest_bytes));
    assert_in_range(atomic_load(&largest_bytes), 0, most_bytes);
    int64_t resident = resident_bytes();
    struct mallinfo2 before = mallinfo2();
    run_round(rig, 1 + ROUND_REQUESTS);
    struct mallinfo2 after = mallinfo2();
    print_message("in use %zu then %zu bytes, resident %lld more\n",
                  before.uordblks + before.hblkhd, after.uordblks + after.hblkhd,
                  (long long)(resident_bytes() - resident));
    assert_in_range(after.hblkhd, 0, before.hblkhd);
    assert_true(after.uordblks <= before.uordblks + 4 * most_bytes);
    /* The requests themselves, with their pictures, are this program's. */
    assert_true(resident_bytes() - resident <= 4 << 20);
    expect_same(rig, 1 + ROUND_REQUESTS, "again");
    atomic_store(&refused_bytes, SMALL_BYTES);
    run_round(rig, 1 + 2 * ROUND_REQUESTS);
    atomic_store(&refused_bytes, SIZE_MAX);
    expect_same(rig, 1 + 2 * ROUND_REQUESTS, "without memory");
    rig_close(rig);
}

static void steps_allocate_nothing_of_size(void **state) {
    (void)state;
    check(1, 2, &(avl_engine_limits_t){1400, 6, 1500, 0}, 1500, SMALL_BYTES);
}

/* Prompts in chunks, and requests that give way for want of pages. */
static void nor_when_pages_are_short(void **state) {
    (void)state;
    check(1, 1, &(avl_engine_limits_t){300, 8, 1400, 0}, 400, SMALL_BYTES);
}

static void nor_on_several_ranks(void **state) {
    (void)state;
    check(2, 1, &(avl_engine_limits_t){700, 6, 1400, 0}, 1500, SMALL_BYTES);
}

/* A kept prompt has a key of its own: its tokens and its logits. Without memory it is not kept. */
static void kept_prompts_may_be_forgotten(void **state) {
    (void)state;
    size_t key_bytes = 4 * (1000 + 1500) + 4096;
    check(1, 1, &(avl_engine_limits_t){1400, 6, 1500, 4}, 1500, key_bytes);
    assert_true(atomic_load(&refusals) > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_allocate_nothing_of_size),
        cmocka_unit_test(nor_when_pages_are_short),
        cmocka_unit_test(nor_on_several_ranks),
        cmocka_unit_test(kept_prompts_may_be_forgotten),
    };
    return cmocka_run_group_tests(tests, write_model, remove_model);
}
