/* tests/worker/encoder_cache.c: the book of the encoder cache alone, then through a worker group: a
 * picture that came before is not encoded again, and nothing else changes. */
#include "worker/encoder_cache.h"

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/worker/rig.h"

static avl_request_image_t picture(uint8_t name, int32_t rows) {
    avl_request_image_t image = {.layout = {.prompt_rows = rows}};
    image.digest.bytes[31] = name;
    return image;
}

static int32_t take(avl_encoder_cache_t *cache, uint8_t name, int32_t rows,
                    avl_plan_place_t *place) {
    avl_request_image_t image = picture(name, rows);
    int32_t hits = -1;
    return avl_encoder_cache_take(cache, &image, 1, place, &hits) ? hits : -1;
}

static void encode(avl_encoder_cache_t *cache, const avl_plan_place_t *place) {
    avl_encoder_cache_set_ready(cache, place->feature_row, true);
}

static void test_hits_and_order_of_eviction(void **state) {
    (void)state;
    avl_encoder_cache_t *cache;
    assert_int_equal(avl_encoder_cache_create(100, 8, &cache), AVL_OK);
    avl_plan_place_t places[4], again;
    for (uint8_t i = 0; i < 4; i++) {
        assert_int_equal(take(cache, i + 1, 25, &places[i]), 0);
        assert_int_equal(places[i].feature_row, 25 * i);
        encode(cache, &places[i]);
        avl_encoder_cache_give(cache, &places[i], 1);
    }
    assert_int_equal(take(cache, 1, 25, &again), 1); /* 2 is now the oldest */
    assert_int_equal(again.feature_row, 0);
    assert_true(avl_encoder_cache_is_ready(cache, 0));
    avl_encoder_cache_give(cache, &again, 1);
    assert_int_equal(take(cache, 9, 20, &again), 0);
    assert_int_equal(again.feature_row, 25);
    encode(cache, &again);
    avl_encoder_cache_give(cache, &again, 1);
    assert_int_equal(take(cache, 2, 25, &again), 0); /* it had gone */
    avl_encoder_cache_give(cache, &again, 1);
    assert_int_equal(take(cache, 1, 24, &again), 0); /* the same digest, other rows */
    avl_encoder_cache_give(cache, &again, 1);
    avl_cache_counts_t counts = avl_encoder_cache_counts(cache);
    assert_int_equal(counts.bytes_max, 800);
    assert_int_equal(counts.hits, 1);
    assert_int_equal(counts.misses, 7);
    avl_encoder_cache_destroy(cache);
}

static void test_use_protects(void **state) {
    (void)state;
    avl_encoder_cache_t *cache;
    assert_int_equal(avl_encoder_cache_create(100, 8, &cache), AVL_OK);
    avl_plan_place_t first, second, third;
    assert_int_equal(take(cache, 1, 60, &first), 0);
    assert_int_equal(take(cache, 2, 50, &second), -1); /* the first is in use */
    assert_int_equal(take(cache, 1, 60, &second), 1);  /* also before it is encoded */
    assert_false(avl_encoder_cache_is_ready(cache, second.feature_row));
    avl_encoder_cache_give(cache, &first, 1); /* its request was cancelled; another one waits */
    assert_int_equal(take(cache, 2, 50, &third), -1);
    encode(cache, &second);
    avl_encoder_cache_give(cache, &second, 1);
    assert_int_equal(avl_encoder_cache_counts(cache).entries, 1);
    assert_int_equal(take(cache, 2, 50, &third), 0);
    avl_encoder_cache_give(cache, &third, 1); /* never encoded: forgotten */
    assert_int_equal(avl_encoder_cache_counts(cache).entries, 0);
    assert_int_equal(take(cache, 0, 10, &first), 0); /* without a digest */
    encode(cache, &first);
    assert_int_equal(take(cache, 0, 10, &second), 0);
    avl_encoder_cache_give(cache, &first, 1);
    encode(cache, &second);
    avl_encoder_cache_give(cache, &second, 1);
    assert_int_equal(avl_encoder_cache_counts(cache).bytes, 0);
    avl_encoder_cache_destroy(cache);
}

/* What was there lies where the rest would have to be: all of it is placed anew. */
static void test_a_request_never_blocks_itself(void **state) {
    (void)state;
    avl_encoder_cache_t *cache;
    assert_int_equal(avl_encoder_cache_create(100, 8, &cache), AVL_OK);
    avl_plan_place_t places[3];
    assert_int_equal(take(cache, 1, 40, &places[0]), 0);
    assert_int_equal(take(cache, 2, 20, &places[1]), 0);
    encode(cache, &places[0]);
    encode(cache, &places[1]);
    avl_encoder_cache_give(cache, places, 2);
    avl_request_image_t images[] = {picture(2, 20), picture(3, 60), picture(3, 60)};
    int32_t hits = -1;
    assert_true(avl_encoder_cache_take(cache, images, 3, places, &hits));
    assert_int_equal(hits, 1); /* the repeated one */
    assert_int_equal(places[1].feature_row, places[2].feature_row);
    avl_encoder_cache_give(cache, places, 3);
    images[0].layout.prompt_rows = 50;
    assert_false(avl_encoder_cache_take(cache, images, 3, places, &hits));
    avl_encoder_cache_destroy(cache);
}

/* Thousands of random takes and gives: places in use never overlap, and all ends empty. */
static void test_random_uses(void **state) {
    (void)state;
    enum { ROWS = 200, LIVE = 6 };
    uint64_t random = 12345;
    avl_encoder_cache_t *cache;
    assert_int_equal(avl_encoder_cache_create(ROWS, 1, &cache), AVL_OK);
    struct {
        avl_plan_place_t places[3];
        avl_request_image_t images[3];
        int32_t count;
    } live[LIVE] = {0};
    for (int round = 0; round < 20000; round++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint32_t draw = (uint32_t)(random >> 33);
        int who = (int)(draw % LIVE);
        draw /= LIVE;
        if (live[who].count > 0) {
            avl_encoder_cache_give(cache, live[who].places, live[who].count);
            live[who].count = 0;
            continue;
        }
        int32_t count = 1 + (int32_t)(draw % 3), hits;
        draw /= 3;
        for (int32_t i = 0; i < count; i++, draw /= 12)
            live[who].images[i] = picture((uint8_t)(draw % 12), 1 + (int32_t)(draw % 12) * 5);
        if (!avl_encoder_cache_take(cache, live[who].images, count, live[who].places, &hits))
            continue;
        live[who].count = count;
        for (int32_t i = 0; i < count; i++)
            encode(cache, &live[who].places[i]);
        uint8_t owner[ROWS] = {0};
        for (int j = 0; j < LIVE; j++)
            for (int32_t i = 0; i < live[j].count; i++) {
                uint8_t name = live[j].images[i].digest.bytes[31];
                for (int32_t row = 0; row < live[j].places[i].rows; row++) {
                    uint8_t *own = &owner[live[j].places[i].feature_row + row];
                    assert_true(*own == 0 || (name != 0 && *own == name + 1));
                    *own = (uint8_t)(name + 1);
                }
            }
    }
    for (int j = 0; j < LIVE; j++)
        avl_encoder_cache_give(cache, live[j].places, live[j].count);
    assert_true(avl_encoder_cache_counts(cache).hits > 100);
    assert_true(avl_encoder_cache_counts(cache).evictions > 100);
    avl_encoder_cache_destroy(cache);
}

/* ---- through a worker group ---- */

#define MODEL "models/avl-tiny"

static avl_request_t *ask(const rig_case_t *data, uint64_t id, uint8_t first_name) {
    avl_request_t *request = rig_request(data, id, 12);
    rig_set_attention(request, .5, .3, 3);
    request->ignore_eos = true;
    for (int32_t i = 0; i < request->image_count; i++)
        request->images[i].digest.bytes[0] = (uint8_t)(first_name + i);
    return request;
}

static void expect_repeat(int ranks, int32_t batch_rows) {
    rig_t *rig = rig_open(
        &(rig_options_t){.model = MODEL, .ranks = ranks, .limits = {.batch_rows = batch_rows}});
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    const rig_result_t *first = rig_answer(rig, ask(&data, 1, 1));
    assert_int_equal(first->end.reuse.pictures, 0);
    assert_true(first->end.timings.encode_ns > 0);
    /* The same pixels, and others under the same name: what is read is the cache. */
    avl_request_t *request = ask(&data, 2, 1);
    memset(request->images[0].pixels, 0, request->images[0].pixel_bytes);
    const rig_result_t *again = rig_answer(rig, request);
    assert_int_equal(again->end.reuse.pictures, data.image_count);
    assert_int_equal(again->end.timings.encode_ns, 0);
    rig_expect_tokens(again, first->tokens, first->token_count, "a picture seen before");
    const rig_result_t *other = rig_answer(rig, ask(&data, 3, 100));
    assert_int_equal(other->end.reuse.pictures, 0);
    rig_expect_tokens(other, first->tokens, first->token_count, "under another name");
    /* Three at once: one encodes, all use it. */
    for (uint64_t id = 10; id < 13; id++)
        avl_scheduler_submit(rig_scheduler(rig), ask(&data, id, 50));
    rig_run(rig);
    int encoders = 0;
    for (uint64_t id = 10; id < 13; id++) {
        encoders += rig_result(rig, id)->end.timings.encode_ns > 0;
        rig_expect_tokens(rig_result(rig, id), first->tokens, first->token_count, "at once");
    }
    assert_int_equal(encoders, 1);
    avl_cache_counts_t counts = avl_scheduler_counts(rig_scheduler(rig)).encoder_cache;
    assert_int_equal(counts.misses, 3 * data.image_count);
    assert_int_equal(counts.hits, 3 * data.image_count);
    rig_case_release(&data);
    rig_close(rig);
}

static void test_repeated_pictures(void **state) {
    (void)state;
    expect_repeat(1, 512);
    expect_repeat(2, 512);
    expect_repeat(3, 100);
}

/* A cache for one prompt's pictures: everything still gets its answer. */
static void test_small_cache(void **state) {
    (void)state;
    rig_t *plenty = rig_open(&(rig_options_t){.model = MODEL, .ranks = 1});
    rig_t *small = rig_open(&(rig_options_t){.model = MODEL, .ranks = 2, .encoder_cache_bytes = 1});
    rig_case_t cases[3];
    static const char *const names[] = {"models/cases/00", "models/cases/01", "models/cases/02"};
    for (int i = 0; i < 3; i++)
        cases[i] = rig_case_load(rig_config(small), names[i]);
    for (uint64_t id = 1; id <= 18; id++)
        avl_scheduler_submit(rig_scheduler(small),
                             ask(&cases[id % 3], id, (uint8_t)(1 + 8 * (id % 6))));
    rig_run(small);
    for (uint64_t id = 1; id <= 18; id++) {
        const rig_result_t *alone = rig_answer(plenty, ask(&cases[id % 3], id, 0));
        const rig_result_t *got = rig_result(small, id);
        assert_int_equal(got->end.finish_reason, AVL_FINISH_LENGTH);
        rig_expect_tokens(got, alone->tokens, alone->token_count, "with a small cache");
    }
    for (int i = 0; i < 3; i++)
        rig_case_release(&cases[i]);
    rig_close(small);
    rig_close(plenty);
}

/* A request that goes before its picture is encoded leaves it to the one that waits for it. */
static void test_cancelled_before_encoding(void **state) {
    (void)state;
    rig_t *rig = rig_open(&(rig_options_t){.model = MODEL, .ranks = 2});
    rig_case_t data = rig_case_load(rig_config(rig), "models/cases/00");
    for (uint64_t id = 1; id <= 3; id++)
        avl_scheduler_submit(rig_scheduler(rig), ask(&data, id, 7));
    avl_scheduler_cancel(rig_scheduler(rig), 1, -1);
    rig_step(rig);
    avl_scheduler_cancel(rig_scheduler(rig), 2, -1);
    rig_run(rig);
    assert_int_equal(rig_result(rig, 1)->end.finish_reason, AVL_FINISH_CANCELLED);
    assert_int_equal(rig_result(rig, 2)->end.finish_reason, AVL_FINISH_CANCELLED);
    assert_int_equal(rig_result(rig, 3)->end.finish_reason, AVL_FINISH_LENGTH);
    assert_int_equal(rig_result(rig, 3)->token_count, 12);
    rig_case_release(&data);
    rig_close(rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hits_and_order_of_eviction),
        cmocka_unit_test(test_use_protects),
        cmocka_unit_test(test_a_request_never_blocks_itself),
        cmocka_unit_test(test_random_uses),
        cmocka_unit_test(test_repeated_pictures),
        cmocka_unit_test(test_small_cache),
        cmocka_unit_test(test_cancelled_before_encoding),
    };
    return cmocka_run_group_tests_name("encoder cache", tests, NULL, NULL);
}
