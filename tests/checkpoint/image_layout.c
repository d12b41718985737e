#include "checkpoint/image_layout.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/checkpoint/expect.h"

/* Fills `config` from "grid SIDE PATCH HxW ..."; the rest of a configuration is not looked at. */
static void read_grid(char *line, avl_config_t *config) {
    *config =
        (avl_config_t){.model = {.family = AVL_FAMILY_LLAVA_NEXT, .feature_drop_class = true}};
    char *rest = NULL;
    assert_string_equal(strtok_r(line, " ", &rest), "grid");
    config->model.vision.image_side = atoi(strtok_r(NULL, " ", &rest));
    config->model.vision.patch_side = atoi(strtok_r(NULL, " ", &rest));
    config->model.vision.patches_per_side =
        config->model.vision.image_side / config->model.vision.patch_side;
    for (char *word = strtok_r(NULL, " \n", &rest); word != NULL;
         word = strtok_r(NULL, " \n", &rest)) {
        int i = config->preprocessor.grid_pinpoint_count++;
        assert_int_equal(sscanf(word, "%dx%d", &config->preprocessor.grid_pinpoints[i].height,
                                &config->preprocessor.grid_pinpoints[i].width),
                         2);
    }
}

static void equals_transformers(void **state) {
    (void)state;
    FILE *table = fopen(AVL_SOURCE_DIR "/tests/checkpoint/data/image_layout.txt", "r");
    assert_non_null(table);
    char line[1024];
    avl_config_t config = {0};
    int pictures = 0;
    while (fgets(line, sizeof line, table) != NULL) {
        if (line[0] == 'g') {
            read_grid(line, &config);
            continue;
        }
        avl_image_layout_t want = {0};
        assert_int_equal(sscanf(line, "%d %d %d %d %d %d %d %d %d", &want.image_width,
                                &want.image_height, &want.grid_rows, &want.grid_columns,
                                &want.crop_top, &want.crop_left, &want.crop_rows,
                                &want.crop_columns, &want.prompt_rows),
                         9);
        avl_image_layout_t got;
        expect_ok(avl_image_layout(&config, want.image_width, want.image_height, &got));
        /* An empty crop has no place. */
        bool empty = want.crop_rows == 0 || want.crop_columns == 0;
        if (got.grid_rows != want.grid_rows || got.grid_columns != want.grid_columns ||
            (!empty && (got.crop_top != want.crop_top || got.crop_left != want.crop_left)) ||
            got.crop_rows != want.crop_rows || got.crop_columns != want.crop_columns ||
            got.prompt_rows != want.prompt_rows ||
            got.tile_count != 1 + want.grid_rows * want.grid_columns)
            fail_msg("got %d x %d tiles, crop %d,%d %d x %d, %d rows for %s", got.grid_rows,
                     got.grid_columns, got.crop_top, got.crop_left, got.crop_rows, got.crop_columns,
                     got.prompt_rows, line);
        pictures++;
    }
    fclose(table);
    assert_true(pictures > 3000);
}

static void one_tile_for_llava(void **state) {
    (void)state;
    avl_config_t config = {.model = {.family = AVL_FAMILY_LLAVA,
                                     .feature_drop_class = true,
                                     .vision = {.image_side = 336, .patches_per_side = 24}}};
    avl_image_layout_t layout;
    expect_ok(avl_image_layout(&config, 5, 7000, &layout));
    assert_int_equal(layout.tile_count, 1);
    assert_int_equal(layout.prompt_rows, 576);
    assert_int_equal(layout.base_rows, 576);
    assert_int_equal(layout.grid_rows, 0);
    assert_int_equal(layout.crop_rows, 0);
    config.model.feature_drop_class = false;
    expect_ok(avl_image_layout(&config, 1, 1, &layout));
    assert_int_equal(layout.prompt_rows, 577);
}

static void refuses_impossible_extents(void **state) {
    (void)state;
    avl_config_t config = {.model = {.family = AVL_FAMILY_LLAVA}};
    avl_image_layout_t layout;
    expect_failure(avl_image_layout(&config, 0, 10, &layout), AVL_ERR_INVALID, "0 x 10");
    expect_failure(avl_image_layout(&config, 10, 0, &layout), AVL_ERR_INVALID, "10 x 0");
    expect_failure(avl_image_layout(&config, -1, 10, &layout), AVL_ERR_INVALID, "-1 x 10");
    expect_failure(avl_image_layout(&config, 1, (1 << 24) + 1, &layout), AVL_ERR_INVALID,
                   "16777217");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_transformers),
        cmocka_unit_test(one_tile_for_llava),
        cmocka_unit_test(refuses_impossible_extents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
