/* coordinator/image_identity.h: which pictures are the same: a 256-bit digest (SHA-256) over what a
 * picture's features depend on.
 *
 * It covers the model's identity and preprocessing parameters (the bytes of the directory's
 * configuration files and its name), the tenant, and the decoded pixels with their extents; every
 * part has a length or a fixed size, so that no two inputs read alike. Two files that decode to the
 * same pixels are the same picture. The tenant is part of it so that nobody can find out, by how
 * long an answer takes, what others have asked about. */
#ifndef AVL_COORDINATOR_IMAGE_IDENTITY_H
#define AVL_COORDINATOR_IMAGE_IDENTITY_H

#include <stdint.h>

#include "base/status.h"
#include "inputs/image.h"

#define AVL_IMAGE_DIGEST_BYTES 32

typedef struct avl_image_identity avl_image_identity_t;

/* Errors: AVL_ERR_IO, AVL_ERR_DATA (a configuration file that cannot be read), AVL_ERR_MEMORY,
 * AVL_ERR_UNSUPPORTED without SHA-256 in the crypto library. */
AVL_MUST_CHECK avl_status_t avl_image_identity_create(const char *model_directory,
                                                      const char *model_name,
                                                      avl_image_identity_t **identity_p);
void avl_image_identity_destroy(avl_image_identity_t *identity);
/* Threads: any. Errors: AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_image_identity_digest(const avl_image_identity_t *identity,
                                                      const char *tenant, const avl_image_t *image,
                                                      uint8_t digest[AVL_IMAGE_DIGEST_BYTES]);

#endif
