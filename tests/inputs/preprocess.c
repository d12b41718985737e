/* The processors' steps: bytes equal to those of `transformers`; the shipped cases' pixels after
 * normalisation. */
#include "inputs/preprocess.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/inputs/image_reference.h"

static int faults;
static char wanted[64];
static avl_config_t config;
static bool found;

static void read_config(const char *rest) {
    char name[64], family[16];
    int side, resize, shortest, height, width, crop, crop_side, resample;
    assert_int_equal(sscanf(rest, "%63s %15s %d %d %d %d %d %d %d %d", name, family, &side, &resize,
                            &shortest, &height, &width, &crop, &crop_side, &resample),
                     10);
    if (strcmp(name, wanted) != 0)
        return;
    bool next = strcmp(family, "next") == 0;
    config = (avl_config_t){
        .model = {.family = next ? AVL_FAMILY_LLAVA_NEXT : AVL_FAMILY_LLAVA,
                  .vision = {.image_side = side, .patch_side = 14, .patches_per_side = side / 14},
                  .feature_drop_class = true},
        .preprocessor = {.resize = resize,
                         .center_crop = crop,
                         .resize_shortest_edge = shortest,
                         .resize_height = height,
                         .resize_width = width,
                         .crop_height = crop_side,
                         .crop_width = crop_side,
                         .resample = (avl_resample_t)resample,
                         .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                         .pad = next || strcmp(family, "llava-pad") == 0}};
    if (next) {
        static const int grids[][2] = {{1, 2}, {2, 1}, {2, 2}, {3, 1}, {1, 3}};
        for (int i = 0; i < 5; i++) {
            config.preprocessor.grid_pinpoints[i].height = grids[i][0] * side;
            config.preprocessor.grid_pinpoints[i].width = grids[i][1] * side;
        }
        config.preprocessor.grid_pinpoint_count = 5;
    }
    found = true;
}

static void use_config(const char *name) {
    snprintf(wanted, sizeof wanted, "%s", name);
    found = false;
    reference_lines("config", read_config);
    if (!found)
        fail_msg("no config %s", name);
    if (avl_preprocess_check(&config) != AVL_OK)
        fail_msg("%s: %s", name, avl_status_detail());
}

static void check_tiles(const char *rest) {
    char name[64], picture[64];
    int tiles;
    uint64_t digest;
    assert_int_equal(sscanf(rest, "%63s %63s %d %" SCNx64, name, picture, &tiles, &digest), 4);
    use_config(name);
    avl_image_t image = reference_image(picture);
    avl_pixels_t pixels = {0};
    if (avl_preprocess(&config, &image, &pixels) != AVL_OK)
        fail_msg("%s %s: %s", name, picture, avl_status_detail());
    size_t side = (size_t)config.model.vision.image_side;
    if (pixels.layout.tile_count != tiles || pixels.byte_count != (size_t)tiles * 3 * side * side) {
        print_error("%s %s: %d tiles, not %d\n", name, picture, pixels.layout.tile_count, tiles);
        faults++;
    } else if (reference_digest(pixels.bytes, pixels.byte_count) != digest) {
        print_error("%s %s: other pixels\n", name, picture);
        faults++;
    }
    avl_pixels_free(&pixels);
    avl_image_free(&image);
}

static void test_processors(void **state) {
    (void)state;
    faults = 0;
    assert_true(reference_lines("tiles", check_tiles) >= 100);
    assert_int_equal(faults, 0);
}

/* The whole way of the shipped model: file, directory, bytes, normalisation. */
static void test_shipped_cases(void **state) {
    (void)state;
    static const char *const cases[] = {"00", "01", "02", "03", "04", "05"};
    avl_config_t shipped;
    if (avl_config_load(AVL_SOURCE_DIR "/models/avl-tiny", &shipped) != AVL_OK)
        fail_msg("%s", avl_status_detail());
    assert_int_equal(avl_preprocess_check(&shipped), AVL_OK);
    float scale[3], shift[3];
    avl_preprocess_normalisation(&shipped.preprocessor, scale, shift);
    for (size_t n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        char path[512];
        size_t byte_count, header_bytes;
        snprintf(path, sizeof path, "%s/models/cases/%s/image.png", AVL_SOURCE_DIR, cases[n]);
        uint8_t *file = reference_read(path, &byte_count);
        avl_image_t image;
        assert_int_equal(avl_image_decode(file, byte_count, AVL_IMAGE_PIXELS_MAX_DEFAULT, &image),
                         AVL_OK);
        avl_pixels_t pixels;
        assert_int_equal(avl_preprocess(&shipped, &image, &pixels), AVL_OK);
        free(file);
        snprintf(path, sizeof path, "%s/models/cases/%s/pixels.npy", AVL_SOURCE_DIR, cases[n]);
        file = reference_read(path, &byte_count);
        assert_memory_equal(file, "\x93NUMPY\1\0", 8);
        assert_non_null(strstr((const char *)file + 10, "'<f4'"));
        header_bytes = 10 + (size_t)file[8] + ((size_t)file[9] << 8);
        size_t plane = (size_t)pixels.side * (size_t)pixels.side;
        assert_int_equal(byte_count - header_bytes, 3 * plane * sizeof(float));
        float worst = 0;
        for (size_t i = 0; i < 3 * plane; i++) {
            float expected;
            memcpy(&expected, file + header_bytes + i * sizeof(float), sizeof expected);
            float got = (float)pixels.bytes[i] * scale[i / plane] + shift[i / plane];
            worst = fmaxf(worst, fabsf(got - expected));
        }
        if (!(worst < 2e-6f))
            fail_msg("case %s: values differ by up to %g", cases[n], (double)worst);
        avl_pixels_free(&pixels);
        avl_image_free(&image);
        free(file);
    }
}

/* Shapes that would need gigabytes if everything outside the crop were computed. */
static void test_extreme_shapes(void **state) {
    (void)state;
    static const char *const configs[] = {"clip", "square", "next"};
    static const int shapes[][2] = {{1, 60000}, {60000, 1}, {2, 6000}, {1, 1}};
    for (size_t c = 0; c < 3; c++) {
        use_config(configs[c]);
        for (size_t s = 0; s < 4; s++) {
            avl_image_t image = {.width = shapes[s][0], .height = shapes[s][1]};
            size_t byte_count = (size_t)image.width * (size_t)image.height * 3;
            image.rgb = malloc(byte_count);
            memset(image.rgb, 200, byte_count);
            avl_pixels_t pixels = {.side = -7};
            avl_status_t status = avl_preprocess(&config, &image, &pixels);
            if (strcmp(configs[c], "square") == 0 && byte_count > 150000) {
                assert_int_equal(status,
                                 image.width + image.height > 40000 ? AVL_ERR_INVALID : AVL_OK);
            } else if (status != AVL_OK) {
                fail_msg("%s, %d x %d: %s", configs[c], image.width, image.height,
                         avl_status_detail());
            }
            if (status == AVL_OK)
                avl_pixels_free(&pixels);
            else
                assert_int_equal(pixels.side, -7);
            avl_image_free(&image);
        }
    }
}

static void expect_refused(const char *words) {
    assert_int_equal(avl_preprocess_check(&config), AVL_ERR_UNSUPPORTED);
    if (!strstr(avl_status_detail(), words))
        fail_msg("\"%s\" lacks \"%s\"", avl_status_detail(), words);
}

static void test_check(void **state) {
    (void)state;
    use_config("clip");
    config.preprocessor.crop_width = 100;
    expect_refused("100 x 112");
    use_config("clip");
    config.preprocessor.center_crop = false;
    expect_refused("own shape");
    avl_image_t image = reference_image("photo.jpg");
    avl_pixels_t pixels;
    assert_int_equal(avl_preprocess(&config, &image, &pixels), AVL_ERR_UNSUPPORTED);
    avl_image_free(&image);
    use_config("clip-no-crop");
    config.model.vision.image_side = 336;
    expect_refused("squares of 336");
    use_config("clip");
    config.preprocessor.resize_shortest_edge = 0;
    expect_refused("size is missing");
    use_config("next");
    config.preprocessor.grid_pinpoints[1].width = 113;
    expect_refused("113 x 224");
}

static void test_normalisation(void **state) {
    (void)state;
    avl_preprocessor_config_t steps = {.rescale = true,
                                       .normalize = true,
                                       .rescale_factor = 1.0 / 255,
                                       .mean = {0.5f, 0.25f, 0.0f},
                                       .std = {0.5f, 0.25f, 2.0f}};
    float scale[3], shift[3];
    avl_preprocess_normalisation(&steps, scale, shift);
    assert_true(fabsf(255 * scale[0] + shift[0] - 1.0f) < 1e-6f);
    assert_true(fabsf(255 * scale[1] + shift[1] - 3.0f) < 1e-6f);
    assert_true(fabsf(255 * scale[2] + shift[2] - 0.5f) < 1e-6f);
    steps.normalize = false;
    avl_preprocess_normalisation(&steps, scale, shift);
    assert_true(fabsf(255 * scale[1] - 1.0f) < 1e-6f && shift[1] == 0.0f);
    steps.rescale = false;
    avl_preprocess_normalisation(&steps, scale, shift);
    assert_true(scale[2] == 1.0f && shift[2] == 0.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_processors),     cmocka_unit_test(test_shipped_cases),
        cmocka_unit_test(test_extreme_shapes), cmocka_unit_test(test_check),
        cmocka_unit_test(test_normalisation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
