#include "coordinator/image_identity.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "base/file.h"
#include "base/memory.h"

#define FILE_BYTES_MAX ((size_t)64 << 20)

struct avl_image_identity {
    EVP_MD *algorithm; /* fetched once: a fetch for every picture costs as much as a small one */
    uint8_t model[AVL_IMAGE_DIGEST_BYTES];
};

static avl_status_t refused(void) {
    return avl_fail(AVL_ERR_MEMORY, "the crypto library refuses to compute a SHA-256");
}

/* A part of variable length with its length before it. */
static bool put(EVP_MD_CTX *context, const void *bytes, size_t byte_count) {
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)byte_count >> (8 * i));
    return EVP_DigestUpdate(context, length, sizeof length) == 1 &&
           EVP_DigestUpdate(context, bytes, byte_count) == 1;
}

/* A file that does not exist counts as one without a byte. */
static avl_status_t put_file(EVP_MD_CTX *context, const char *directory, const char *name) {
    char *bytes = NULL;
    size_t byte_count = 0;
    avl_status_t status = avl_file_read(directory, name, FILE_BYTES_MAX, &bytes, &byte_count);
    if (status != AVL_OK && status != AVL_ERR_NOT_FOUND)
        return status;
    bool done = put(context, bytes != NULL ? bytes : "", byte_count);
    free(bytes);
    return done ? AVL_OK : refused();
}

static avl_status_t digest_model(avl_image_identity_t *identity, const char *directory,
                                 const char *name) {
    static const char *const files[] = {"config.json", "preprocessor_config.json",
                                        "processor_config.json"};
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    avl_status_t status = AVL_OK;
    if (context == NULL || EVP_DigestInit_ex2(context, identity->algorithm, NULL) != 1 ||
        !put(context, "avl picture 1", 13) || !put(context, name, strlen(name)))
        status = refused();
    for (size_t i = 0; i < sizeof files / sizeof *files && status == AVL_OK; i++)
        status = put_file(context, directory, files[i]);
    if (status == AVL_OK && EVP_DigestFinal_ex(context, identity->model, NULL) != 1)
        status = refused();
    EVP_MD_CTX_free(context);
    return status;
}

avl_status_t avl_image_identity_create(const char *model_directory, const char *model_name,
                                       avl_image_identity_t **identity_p) {
    avl_image_identity_t *identity;
    AVL_TRY(avl_alloc(1, sizeof *identity, "picture identity", &identity));
    identity->algorithm = EVP_MD_fetch(NULL, "SHA256", NULL);
    avl_status_t status = identity->algorithm != NULL
                              ? digest_model(identity, model_directory, model_name)
                              : avl_fail(AVL_ERR_UNSUPPORTED, "the crypto library has no SHA-256");
    if (status != AVL_OK) {
        avl_image_identity_destroy(identity);
        return status;
    }
    *identity_p = identity;
    return AVL_OK;
}

void avl_image_identity_destroy(avl_image_identity_t *identity) {
    if (identity == NULL)
        return;
    EVP_MD_free(identity->algorithm);
    free(identity);
}

avl_status_t avl_image_identity_digest(const avl_image_identity_t *identity, const char *tenant,
                                       const avl_image_t *image,
                                       uint8_t digest[AVL_IMAGE_DIGEST_BYTES]) {
    uint32_t extents[2] = {(uint32_t)image->width, (uint32_t)image->height};
    size_t byte_count = (size_t)image->width * (size_t)image->height * 3;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool done = context != NULL && EVP_DigestInit_ex2(context, identity->algorithm, NULL) == 1 &&
                put(context, identity->model, sizeof identity->model) &&
                put(context, tenant, strlen(tenant)) && put(context, extents, sizeof extents) &&
                put(context, image->rgb, byte_count) &&
                EVP_DigestFinal_ex(context, digest, NULL) == 1;
    EVP_MD_CTX_free(context);
    return done ? AVL_OK : refused();
}
