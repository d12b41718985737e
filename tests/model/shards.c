/* What each rank holds: nothing missing, nothing twice but KV heads, as even as it goes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/model.h"

static avl_model_config_t make_config(int query_heads, int kv_heads, int mlp_width, int vocab,
                                      int vision_heads, int vision_mlp) {
    return (avl_model_config_t){
        .text = {.query_heads = query_heads,
                 .kv_heads = kv_heads,
                 .mlp_width = mlp_width,
                 .vocab_rows = vocab},
        .vision = {.heads = vision_heads, .mlp_width = vision_mlp},
    };
}

static void expect_next(avl_shard_t shard, int *next) {
    assert_int_equal(shard.first, *next);
    assert_true(shard.count >= 0);
    *next += shard.count;
}

static void check_plan(const avl_model_config_t *config, int ranks) {
    int query = 0, columns = 0, vocab = 0, vision = 0, vision_columns = 0;
    int group = config->text.query_heads / config->text.kv_heads;
    for (int rank = 0; rank < ranks; rank++) {
        avl_shards_t shards;
        assert_int_equal(avl_shards_plan(config, rank, ranks, &shards), AVL_OK);
        expect_next(shards.query_heads, &query);
        expect_next(shards.mlp_columns, &columns);
        expect_next(shards.vocab_rows, &vocab);
        expect_next(shards.vision_heads, &vision);
        expect_next(shards.vision_mlp_columns, &vision_columns);
        assert_true(shards.query_heads.count >= config->text.query_heads / ranks);
        assert_true(shards.query_heads.count <= config->text.query_heads / ranks + 1);
        assert_true(shards.mlp_columns.count * ranks <= config->text.mlp_width * 5 / 4 + ranks);
        assert_int_equal(shards.head_map.query_heads, shards.query_heads.count);
        assert_int_equal(shards.head_map.group, group);
        /* The map leads every query head to the KV head that it reads in the whole model. */
        for (int head = 0; head < shards.query_heads.count; head++) {
            int local = (head + shards.head_map.query_head_offset) / group;
            assert_true(local < shards.kv_heads.count);
            assert_int_equal(shards.kv_heads.first + local,
                             (shards.query_heads.first + head) / group);
        }
        int last = shards.query_heads.first + shards.query_heads.count - 1;
        assert_int_equal(shards.kv_heads.first + shards.kv_heads.count - 1, last / group);
    }
    assert_int_equal(query, config->text.query_heads);
    assert_int_equal(columns, config->text.mlp_width);
    assert_int_equal(vocab, config->text.vocab_rows);
    assert_int_equal(vision, config->vision.heads);
    assert_int_equal(vision_columns, config->vision.mlp_width);
}

static void test_plans(void **state) {
    (void)state;
    const avl_model_config_t configs[] = {
        make_config(6, 3, 512, 832, 4, 512),
        make_config(32, 32, 11008, 32064, 16, 4096),
        make_config(32, 8, 14336, 32064, 16, 4096),
        make_config(40, 40, 13824, 32064, 16, 4096),
        make_config(5, 1, 37, 11, 1, 3),
        make_config(12, 4, 100, 1, 2, 64),
    };
    for (size_t index = 0; index < sizeof configs / sizeof configs[0]; index++)
        for (int ranks = 1; ranks <= configs[index].text.query_heads; ranks++)
            check_plan(&configs[index], ranks);
}

static void test_refusals(void **state) {
    (void)state;
    avl_model_config_t config = make_config(6, 3, 512, 832, 4, 512);
    avl_shards_t shards;
    assert_int_equal(avl_shards_plan(&config, 0, 7, &shards), AVL_ERR_UNSUPPORTED);
    assert_non_null(strstr(avl_status_detail(), "7 ranks"));
    assert_non_null(strstr(avl_status_detail(), "6 query heads"));
    assert_int_equal(avl_shards_plan(&config, 2, 2, &shards), AVL_ERR_INVALID);
    assert_int_equal(avl_shards_plan(&config, 0, 0, &shards), AVL_ERR_INVALID);
    config.text.kv_heads = 4;
    assert_int_equal(avl_shards_plan(&config, 0, 1, &shards), AVL_ERR_UNSUPPORTED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
