/* tests/coordinator/image_identity.c: equal pictures have equal digests, and whatever changes
 * features or tenant changes the digest. */

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/image_identity.h"

#define MODEL AVL_SOURCE_DIR "/models/avl-tiny"

typedef struct digest {
    uint8_t bytes[AVL_IMAGE_DIGEST_BYTES];
} digest_t;

static avl_image_identity_t *open_identity(const char *directory, const char *name) {
    avl_image_identity_t *identity;
    if (avl_image_identity_create(directory, name, &identity) != AVL_OK)
        fail_msg("%s", avl_status_detail());
    return identity;
}

static digest_t digest_of(const avl_image_identity_t *identity, const char *tenant, uint8_t *rgb,
                          int width, int height) {
    avl_image_t image = {.width = width, .height = height, .rgb = rgb};
    digest_t digest;
    assert_int_equal(avl_image_identity_digest(identity, tenant, &image, digest.bytes), AVL_OK);
    return digest;
}

static void expect_different(digest_t a, digest_t b) {
    assert_memory_not_equal(&a, &b, sizeof a);
}

static void test_what_counts(void **state) {
    (void)state;
    avl_image_identity_t *identity = open_identity(MODEL, "avl-tiny");
    uint8_t rgb[3 * 4 * 6];
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(7 * i);
    digest_t first = digest_of(identity, "", rgb, 4, 6), again = digest_of(identity, "", rgb, 4, 6);
    assert_memory_equal(&first, &again, sizeof first);
    expect_different(first, digest_of(identity, "a", rgb, 4, 6));
    expect_different(digest_of(identity, "a", rgb, 4, 6), digest_of(identity, "b", rgb, 4, 6));
    expect_different(first, digest_of(identity, "", rgb, 6, 4));
    expect_different(first, digest_of(identity, "", rgb, 4, 5));
    avl_image_identity_t *other = open_identity(MODEL, "another");
    expect_different(first, digest_of(other, "", rgb, 4, 6));
    rgb[sizeof rgb - 1] ^= 1;
    expect_different(first, digest_of(identity, "", rgb, 4, 6));
    avl_image_identity_destroy(other);
    avl_image_identity_destroy(identity);
}

static void write_file(const char *directory, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fputs(text, file) >= 0, 1);
    assert_int_equal(fclose(file), 0);
}

/* The preprocessing parameters are in the configuration files. */
static void test_configuration_counts(void **state) {
    (void)state;
    char directory[] = "/tmp/avl-identity-XXXXXX";
    assert_non_null(mkdtemp(directory));
    uint8_t rgb[3] = {1, 2, 3};
    write_file(directory, "config.json", "{}");
    avl_image_identity_t *identity = open_identity(directory, "m");
    digest_t without = digest_of(identity, "", rgb, 1, 1);
    avl_image_identity_destroy(identity);
    write_file(directory, "preprocessor_config.json", "{\"do_pad\": true}");
    identity = open_identity(directory, "m");
    expect_different(without, digest_of(identity, "", rgb, 1, 1));
    avl_image_identity_destroy(identity);
    char path[64];
    snprintf(path, sizeof path, "%s/processor_config.json", directory);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_not_equal(avl_image_identity_create(directory, "m", &identity), AVL_OK);
    assert_int_equal(rmdir(path), 0);
    snprintf(path, sizeof path, "%s/config.json", directory);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/preprocessor_config.json", directory);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_counts),
        cmocka_unit_test(test_configuration_counts),
    };
    return cmocka_run_group_tests_name("image identity", tests, NULL, NULL);
}
