/* client/request.h: a question with its pictures as the bytes of a GenerateRequest. */
#ifndef AVL_CLIENT_REQUEST_H
#define AVL_CLIENT_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "client/options.h"
#include "client/rpc.h"

#define AVL_REQUEST_IMAGES_MAX 256
#define AVL_REQUEST_TEXT_BYTES_MAX ((size_t)1 << 24)

/* A file's bytes; free(bytes) releases them. */
typedef struct avl_picture {
    uint8_t *bytes;
    size_t byte_count;
} avl_picture_t;

/* Reads a picture file; what is in it, the service finds out. Errors: AVL_ERR_NOT_FOUND,
 * AVL_ERR_IO, AVL_ERR_INVALID (it is empty), AVL_ERR_TOO_LARGE (no message could carry it),
 * AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_picture_read(const char *path, avl_picture_t *picture_p);

/* The whole of `stream`, which `name` names, as text from malloc. Errors: AVL_ERR_IO,
 * AVL_ERR_TOO_LARGE, AVL_ERR_INVALID (it contains a NUL byte), AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_text_read(FILE *stream, const char *name, char **text_p);

/* Packs a question about `pictures` (in front of it, in order). Copies everything. Errors:
 * AVL_ERR_TOO_LARGE, AVL_ERR_MEMORY. */
AVL_MUST_CHECK avl_status_t avl_request_pack(const avl_request_options_t *options,
                                             const char *question, const avl_picture_t *pictures,
                                             size_t picture_count, const char *request_id,
                                             bool progress, avl_rpc_request_t **request_p);

#endif
