/* Decoding: pixels equal to Pillow's for every kind of file; precise errors for everything that is
 * none. */
#include "inputs/image.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/inputs/image_reference.h"

#define PIXELS_MAX AVL_IMAGE_PIXELS_MAX_DEFAULT

static int faults;

static void check_decode(const char *rest) {
    char name[64];
    int width, height;
    uint64_t digest;
    assert_int_equal(sscanf(rest, "%63s %d %d %" SCNx64, name, &width, &height, &digest), 4);
    size_t byte_count;
    uint8_t *file = reference_file(name, &byte_count);
    int probed_width = 0, probed_height = 0;
    assert_int_equal(avl_image_probe(file, byte_count, &probed_width, &probed_height), AVL_OK);
    free(file);
    avl_image_t image = reference_image(name);
    if (image.width != width || image.height != height || probed_width != width ||
        probed_height != height) {
        print_error("%s: %d x %d, probed %d x %d, expected %d x %d\n", name, image.width,
                    image.height, probed_width, probed_height, width, height);
        faults++;
    } else if (reference_digest(image.rgb, (size_t)width * (size_t)height * 3) != digest) {
        print_error("%s: other pixels\n", name);
        faults++;
    }
    avl_image_free(&image);
}

static void test_pixels_are_pillows(void **state) {
    (void)state;
    faults = 0;
    assert_true(reference_lines("decode", check_decode) >= 70);
    assert_int_equal(faults, 0);
}

/* With whole pixels, so that a difference can be seen and not only noticed. */
static void test_whole_pixels(void **state) {
    (void)state;
    static const char *const names[] = {"420.jpg", "variant-ycck.jpg", "grey-16.png", "lossy.webp"};
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        char name[64];
        snprintf(name, sizeof name, "%s.rgb", names[n]);
        size_t byte_count, wrong = 0;
        uint8_t *expected = reference_file(name, &byte_count);
        avl_image_t image = reference_image(names[n]);
        assert_int_equal(byte_count, (size_t)image.width * (size_t)image.height * 3);
        for (size_t i = 0; i < byte_count; i++) {
            if (image.rgb[i] != expected[i] && wrong++ < 5)
                print_error("%s byte %zu: %d, not %d\n", names[n], i, image.rgb[i], expected[i]);
        }
        assert_int_equal(wrong, 0);
        avl_image_free(&image);
        free(expected);
    }
}

/* Decodes a copy that ends where its memory ends, for the address sanitizer's sake. */
static avl_status_t decode(const uint8_t *file, size_t byte_count, int64_t pixels_max,
                           avl_image_t *image_p) {
    uint8_t *copy = malloc(byte_count ? byte_count : 1);
    assert_non_null(copy);
    memcpy(copy, file, byte_count);
    avl_status_t status = avl_image_decode(copy, byte_count, pixels_max, image_p);
    free(copy);
    return status;
}

static void expect(avl_status_t expected, const char *words, const uint8_t *file,
                   size_t byte_count) {
    avl_image_t image = {.width = -7};
    avl_status_t status = decode(file, byte_count, PIXELS_MAX, &image);
    if (status != expected || !strstr(avl_status_detail(), words))
        fail_msg("%s \"%s\" instead of %s \"%s\"", avl_status_name(status), avl_status_detail(),
                 avl_status_name(expected), words);
    assert_int_equal(image.width, -7);
    assert_null(image.rgb);
}

static void test_no_picture(void **state) {
    (void)state;
    int width, height;
    assert_int_equal(avl_image_probe(NULL, 0, &width, &height), AVL_ERR_INVALID);
    expect(AVL_ERR_INVALID, "empty", (const uint8_t *)"", 0);
    expect(AVL_ERR_INVALID, "47 49 46 38 39 61", (const uint8_t *)"GIF89a", 6);
    expect(AVL_ERR_INVALID, "JPEG, PNG, WebP", (const uint8_t *)"\xff", 1);
    expect(AVL_ERR_INVALID, "JPEG", (const uint8_t *)"\xff\xd8\xff", 3);
    expect(AVL_ERR_INVALID, "ends early", (const uint8_t *)"\x89PNG\r\n\x1a\n", 8);
    expect(AVL_ERR_INVALID, "WebP", (const uint8_t *)"RIFF\4\0\0\0WEBP", 12);
}

static void test_truncated(void **state) {
    (void)state;
    static const char *const names[] = {
        "420.jpg",      "420-progressive.jpg",    "adobe-cmyk.jpg",
        "rgb-8.png",    "rgba-16-interlaced.png", "palette-8.png",
        "lossy.webp",   "lossless.webp",          "lossy-alpha.webp",
        "animated.webp"};
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        size_t byte_count;
        uint8_t *file = reference_file(names[n], &byte_count);
        bool png = strstr(names[n], ".png");
        /* A PNG's end chunk and the last checksum come after the last pixel, as does a pad byte of
         * WebP's. */
        size_t pixels_end = png ? byte_count - 20 : byte_count - 2;
        size_t step = byte_count / 97 + 1;
        for (size_t kept = 0; kept < pixels_end; kept += step) {
            avl_image_t image = {0};
            avl_status_t status = decode(file, kept, PIXELS_MAX, &image);
            if (status != AVL_ERR_INVALID)
                fail_msg("%s, first %zu of %zu bytes: %s", names[n], kept, byte_count,
                         avl_status_name(status));
        }
        free(file);
    }
}

/* Any byte may be anything: never a crash, and the extents stay within the bound. */
static void test_mutated(void **state) {
    (void)state;
    static const char *const names[] = {"420.jpg",
                                        "420-progressive.jpg",
                                        "variant-ycck.jpg",
                                        "variant-arithmetic.jpg",
                                        "grey-16.png",
                                        "palette-4-interlaced.png",
                                        "rgba-8.png",
                                        "lossy.webp",
                                        "lossless-alpha.webp",
                                        "animated.webp"};
    uint64_t random = 88172645463325252u;
    int refused = 0;
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        size_t byte_count;
        uint8_t *file = reference_file(names[n], &byte_count);
        for (int round = 0; round < 200; round++) {
            uint8_t *copy = malloc(byte_count);
            memcpy(copy, file, byte_count);
            for (int change = 0; change <= round % 4; change++) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                size_t place = random % (round % 2 && byte_count > 200 ? 200 : byte_count);
                copy[place] = (uint8_t)(random >> 40);
            }
            avl_image_t image = {0};
            if (avl_image_decode(copy, byte_count, 100000, &image) == AVL_OK)
                assert_true((int64_t)image.width * image.height <= 100000);
            else
                refused++;
            avl_image_free(&image);
            free(copy);
        }
        free(file);
    }
    assert_true(refused > 100);
}

static void test_corrupt_jpeg(void **state) {
    (void)state;
    size_t byte_count;
    uint8_t *file = reference_file("420.jpg", &byte_count);
    file[byte_count - 200] = 0xff;
    file[byte_count - 199] = 0xd9;
    expect(AVL_ERR_INVALID, "JPEG: Corrupt JPEG data: premature end", file, byte_count);
    free(file);
}

static void test_corrupt_png(void **state) {
    (void)state;
    size_t byte_count;
    uint8_t *file = reference_file("rgb-8.png", &byte_count);
    file[byte_count / 2] ^= 0x55;
    expect(AVL_ERR_INVALID, "PNG: ", file, byte_count);
    free(file);
}

static void put_u32(uint8_t *place, uint32_t value) {
    for (int i = 0; i < 4; i++)
        place[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t crc32_of(const uint8_t *bytes, size_t byte_count) {
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < byte_count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static void expect_png_extents(avl_status_t status, const char *words, uint32_t width,
                               uint32_t height) {
    size_t byte_count;
    uint8_t *file = reference_file("rgb-8.png", &byte_count);
    put_u32(file + 16, width);
    put_u32(file + 20, height);
    put_u32(file + 29, crc32_of(file + 12, 17));
    expect(status, words, file, byte_count);
    free(file);
}

static void test_png_extents(void **state) {
    (void)state;
    expect_png_extents(AVL_ERR_INVALID, "PNG: ", 0, 19);
    expect_png_extents(AVL_ERR_INVALID, "PNG: ", 35, 0);
    expect_png_extents(AVL_ERR_INVALID, "PNG: ", UINT32_MAX, UINT32_MAX);
    expect_png_extents(AVL_ERR_TOO_LARGE, "10000 x 10000", 10000, 10000);
    expect_png_extents(AVL_ERR_TOO_LARGE, "no side may exceed 65535", 70000, 1);
    expect_png_extents(AVL_ERR_TOO_LARGE, "no side may exceed 65535", INT32_MAX, INT32_MAX);
    expect_png_extents(AVL_ERR_INVALID, "PNG: ", 8000, 8000); /* within the bound, but no data */
}

static void expect_jpeg_extents(avl_status_t status, const char *words, const char *name,
                                unsigned width, unsigned height) {
    size_t byte_count;
    uint8_t *file = reference_file(name, &byte_count);
    size_t frame = 2; /* the start-of-frame segment, baseline or progressive */
    while (file[frame + 1] != 0xc0 && file[frame + 1] != 0xc2)
        frame += 2 + ((size_t)file[frame + 2] << 8 | file[frame + 3]);
    file[frame + 5] = (uint8_t)(height >> 8);
    file[frame + 6] = (uint8_t)height;
    file[frame + 7] = (uint8_t)(width >> 8);
    file[frame + 8] = (uint8_t)width;
    expect(status, words, file, byte_count);
    free(file);
}

static void test_jpeg_extents(void **state) {
    (void)state;
    expect_jpeg_extents(AVL_ERR_INVALID, "JPEG: Empty", "420.jpg", 0, 43);
    expect_jpeg_extents(AVL_ERR_INVALID, "JPEG: Empty", "420.jpg", 61, 0);
    expect_jpeg_extents(AVL_ERR_TOO_LARGE, "10000 x 10000", "420.jpg", 10000, 10000);
    expect_jpeg_extents(AVL_ERR_INVALID, "JPEG: ", "420.jpg", 65535, 65535);
    expect_jpeg_extents(AVL_ERR_INVALID, "JPEG: ", "420.jpg", 8000, 8000);
    expect_jpeg_extents(AVL_ERR_INVALID, "JPEG: ", "420-progressive.jpg", 2000, 2000);
}

/* A scan that is allowed to come again and again: coarse values of all blocks, at their last bit.
 */
static void test_many_scans(void **state) {
    (void)state;
    size_t byte_count, scan = 2, end;
    uint8_t *file = reference_file("grey-progressive.jpg", &byte_count);
    while (!(file[scan] == 0xff && file[scan + 1] == 0xda))
        scan += 2 + ((size_t)file[scan + 2] << 8 | file[scan + 3]);
    for (end = scan + 2; file[end] != 0xff || file[end + 1] == 0; end++)
        ;
    file[scan + 9] = 0; /* no bits are left for refinement */
    size_t scan_bytes = end - scan;
    for (size_t scans = 90; scans <= 5000; scans += 4910) {
        uint8_t *bomb = malloc(scan + scans * scan_bytes + 2);
        assert_non_null(bomb);
        memcpy(bomb, file, scan);
        for (size_t i = 0; i < scans; i++)
            memcpy(bomb + scan + i * scan_bytes, file + scan, scan_bytes);
        size_t bomb_bytes = scan + scans * scan_bytes;
        memcpy(bomb + bomb_bytes, "\xff\xd9", 2);
        if (scans > 100) {
            expect(AVL_ERR_INVALID, "101 scans of 61 x 43 pixels are too many", bomb,
                   bomb_bytes + 2);
        } else {
            avl_image_t image = {0};
            assert_int_equal(decode(bomb, bomb_bytes + 2, PIXELS_MAX, &image), AVL_OK);
            avl_image_free(&image);
        }
        free(bomb);
    }
    free(file);
}

/* A chunk of 40 MB of text: skipped, not read, so that the picture comes out. */
static void test_png_chunk_bomb(void **state) {
    (void)state;
    size_t byte_count, text_bytes = 40000000;
    uint8_t *file = reference_file("rgb-8.png", &byte_count);
    uint8_t *bomb = calloc(1, byte_count + text_bytes + 12);
    assert_non_null(bomb);
    memcpy(bomb, file, 33);
    put_u32(bomb + 33, (uint32_t)text_bytes);
    memcpy(bomb + 37, "tEXtComment", 11);
    put_u32(bomb + 41 + text_bytes, crc32_of(bomb + 37, text_bytes + 4));
    memcpy(bomb + 45 + text_bytes, file + 33, byte_count - 33);
    avl_image_t image = {0}, plain = reference_image("rgb-8.png");
    assert_int_equal(avl_image_decode(bomb, byte_count + text_bytes + 12, PIXELS_MAX, &image),
                     AVL_OK);
    assert_memory_equal(image.rgb, plain.rgb, (size_t)image.width * (size_t)image.height * 3);
    avl_image_free(&image);
    avl_image_free(&plain);
    free(bomb);
    free(file);
}

static void test_pixels_max(void **state) {
    (void)state;
    static const char *const names[] = {"420.jpg", "lossy.webp", "lossless-alpha.webp"};
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        size_t byte_count;
        uint8_t *file = reference_file(names[n], &byte_count);
        avl_image_t image = {0};
        assert_int_equal(decode(file, byte_count, 61 * 43 - 1, &image), AVL_ERR_TOO_LARGE);
        assert_non_null(strstr(avl_status_detail(), "at most 2622 pixels"));
        assert_int_equal(decode(file, byte_count, 61 * 43, &image), AVL_OK);
        avl_image_free(&image);
        free(file);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pixels_are_pillows),
        cmocka_unit_test(test_whole_pixels),
        cmocka_unit_test(test_no_picture),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_mutated),
        cmocka_unit_test(test_corrupt_jpeg),
        cmocka_unit_test(test_corrupt_png),
        cmocka_unit_test(test_png_extents),
        cmocka_unit_test(test_jpeg_extents),
        cmocka_unit_test(test_many_scans),
        cmocka_unit_test(test_png_chunk_bomb),
        cmocka_unit_test(test_pixels_max),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
