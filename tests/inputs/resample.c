/* Resampling: Pillow's bytes, for every filter, upwards, downwards and in windows; the portable
 * loops alike. */
#include "inputs/resample.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/inputs/image_reference.h"

static int faults;

static void check_resize(const char *rest) {
    char name[64];
    int filter, width, height;
    avl_resample_window_t window;
    uint64_t digest;
    assert_int_equal(sscanf(rest, "%63s %d %d %d %d %d %d %d %" SCNx64, name, &filter, &width,
                            &height, &window.left, &window.top, &window.width, &window.height,
                            &digest),
                     9);
    avl_image_t image = reference_image(name);
    avl_resample_source_t source = {
        .image = &image, .field_width = image.width, .field_height = image.height};
    size_t byte_count = (size_t)window.width * (size_t)window.height * 3;
    uint8_t *rgb = malloc(byte_count + 1);
    assert_non_null(rgb);
    rgb[byte_count] = 0xa5;
    assert_int_equal(avl_resample_rgb((avl_resample_t)filter, &source, width, height, &window, rgb),
                     AVL_OK);
    assert_int_equal(rgb[byte_count], 0xa5);
    if (reference_digest(rgb, byte_count) != digest) {
        print_error("%s: other pixels\n", rest);
        faults++;
    }
    free(rgb);
    avl_image_free(&image);
}

static void test_pillow(void **state) {
    (void)state;
    faults = 0;
    assert_true(reference_lines("resize", check_resize) >= 150);
    assert_int_equal(faults, 0);
}

static void test_pillow_portable(void **state) {
    avl_resample_set_portable(1);
    test_pillow(state);
    avl_resample_set_portable(0);
}

/* The field around a picture equals the picture written into one. */
static void test_field(void **state) {
    (void)state;
    avl_image_t image = reference_image("420.jpg");
    int side = image.width + 9, left = 4, top = 11;
    avl_resample_source_t source = {.image = &image,
                                    .left = left,
                                    .top = top,
                                    .field_width = side,
                                    .field_height = side,
                                    .colour = {10, 250, 77}};
    avl_image_t field = {.width = side, .height = side, .rgb = malloc((size_t)(side * side) * 3)};
    for (int i = 0; i < side * side; i++)
        memcpy(field.rgb + 3 * i, source.colour, 3);
    for (int y = 0; y < image.height; y++)
        memcpy(field.rgb + 3 * ((top + y) * side + left), image.rgb + 3 * y * image.width,
               3 * (size_t)image.width);
    avl_resample_source_t written = {.image = &field, .field_width = side, .field_height = side};
    enum { OUT = 50 };
    avl_resample_window_t window = {.width = OUT, .height = OUT};
    uint8_t a[OUT * OUT * 3], b[OUT * OUT * 3];
    for (int filter = AVL_RESAMPLE_NEAREST; filter <= AVL_RESAMPLE_HAMMING; filter++) {
        assert_int_equal(avl_resample_rgb((avl_resample_t)filter, &source, OUT, OUT, &window, a),
                         AVL_OK);
        assert_int_equal(avl_resample_rgb((avl_resample_t)filter, &written, OUT, OUT, &window, b),
                         AVL_OK);
        assert_memory_equal(a, b, sizeof a);
    }
    avl_image_free(&field);
    avl_image_free(&image);
}

static void test_refusals(void **state) {
    (void)state;
    uint8_t pixel[3] = {1, 2, 3}, rgb[12];
    avl_image_t image = {.width = 1, .height = 1, .rgb = pixel}, empty = {0};
    avl_resample_source_t source = {.image = &image, .field_width = 1, .field_height = 1};
    avl_resample_source_t outside = {
        .image = &image, .left = 1, .field_width = 1, .field_height = 1};
    avl_resample_source_t none = {.image = &empty};
    avl_resample_window_t window = {.width = 2, .height = 2},
                          past = {.left = 1, .width = 2, .height = 1};
    assert_int_equal(avl_resample_rgb(AVL_RESAMPLE_BICUBIC, &source, 0, 2, &window, rgb),
                     AVL_ERR_INVALID);
    assert_int_equal(avl_resample_rgb(AVL_RESAMPLE_BICUBIC, &none, 2, 2, &window, rgb),
                     AVL_ERR_INVALID);
    assert_int_equal(avl_resample_rgb(AVL_RESAMPLE_BICUBIC, &outside, 2, 2, &window, rgb),
                     AVL_ERR_INVALID);
    assert_int_equal(avl_resample_rgb(AVL_RESAMPLE_BICUBIC, &source, 2, 2, &past, rgb),
                     AVL_ERR_INVALID);
    assert_int_equal(avl_resample_rgb((avl_resample_t)6, &source, 2, 2, &window, rgb),
                     AVL_ERR_INVALID);
    assert_int_equal(avl_resample_rgb(AVL_RESAMPLE_BICUBIC, &source, 2, 2, &window, rgb), AVL_OK);
    for (int i = 0; i < 12; i++)
        assert_int_equal(rgb[i], pixel[i % 3]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pillow),
        cmocka_unit_test(test_pillow_portable),
        cmocka_unit_test(test_field),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
