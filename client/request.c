#include "client/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"

/* The service's own limit is lower; this one keeps a wrong file from filling the memory. */
#define PICTURE_BYTES_MAX ((size_t)1 << 30)
#define READ_BYTES 65536

/* The rest of `stream`, with a NUL after it that is not counted. */
static avl_status_t read_all(FILE *stream, const char *name, size_t bytes_max, uint8_t **bytes_p,
                             size_t *byte_count_p) {
    uint8_t *bytes = NULL;
    size_t used = 0, capacity = 0;
    avl_status_t status = AVL_OK;
    for (;;) {
        AVL_TRY_GOTO(status, avl_grow(used + READ_BYTES + 1, 1, name, &bytes, &capacity), err_free);
        errno = 0;
        size_t got = fread(bytes + used, 1, capacity - used - 1, stream);
        used += got;
        if (used > bytes_max) {
            status = avl_fail(AVL_ERR_TOO_LARGE, "%s: more than %zu bytes", name, bytes_max);
            goto err_free;
        }
        if (ferror(stream)) {
            status = avl_fail(AVL_ERR_IO, "%s: %s", name, strerror(errno));
            goto err_free;
        }
        if (got == 0)
            break;
    }
    bytes[used] = '\0';
    *bytes_p = bytes;
    *byte_count_p = used;
    return AVL_OK;
err_free:
    free(bytes);
    return status;
}

avl_status_t avl_picture_read(const char *path, avl_picture_t *picture_p) {
    FILE *stream = fopen(path, "rb");
    if (stream == NULL)
        return avl_fail(errno == ENOENT ? AVL_ERR_NOT_FOUND : AVL_ERR_IO, "%s: %s", path,
                        strerror(errno));
    avl_picture_t picture = {0};
    struct stat info;
    avl_status_t status = AVL_OK;
    if (fstat(fileno(stream), &info) == 0 && S_ISDIR(info.st_mode))
        status = avl_fail(AVL_ERR_IO, "%s: is a directory", path);
    if (status == AVL_OK)
        status = read_all(stream, path, PICTURE_BYTES_MAX, &picture.bytes, &picture.byte_count);
    fclose(stream);
    AVL_TRY(status);
    if (picture.byte_count == 0) {
        free(picture.bytes);
        return avl_fail(AVL_ERR_INVALID, "%s: is empty", path);
    }
    *picture_p = picture;
    return AVL_OK;
}

avl_status_t avl_text_read(FILE *stream, const char *name, char **text_p) {
    uint8_t *bytes = NULL;
    size_t byte_count = 0;
    AVL_TRY(read_all(stream, name, AVL_REQUEST_TEXT_BYTES_MAX, &bytes, &byte_count));
    AVL_ASSERT(bytes != NULL); /* even an empty text has its NUL */
    if (memchr(bytes, '\0', byte_count) != NULL) {
        free(bytes);
        return avl_fail(AVL_ERR_INVALID, "%s: the text contains a NUL byte", name);
    }
    *text_p = (char *)bytes;
    return AVL_OK;
}

/* What a message is built from; everything in it borrows. */
typedef struct parts {
    Avl__V1__ContentPart content[AVL_REQUEST_IMAGES_MAX + 1];
    Avl__V1__ContentPart *content_list[AVL_REQUEST_IMAGES_MAX + 1];
    Avl__V1__Image images[AVL_REQUEST_IMAGES_MAX];
    Avl__V1__Image *image_list[AVL_REQUEST_IMAGES_MAX];
    Avl__V1__ContentPart system_content;
    Avl__V1__ContentPart *system_list[1];
    Avl__V1__Message system, user;
    Avl__V1__Message *messages[2];
    Avl__V1__Conversation conversation;
    Avl__V1__RawPrompt raw_prompt;
    Avl__V1__SamplingParameters sampling;
    Avl__V1__AttentionParameters attention;
    Avl__V1__GenerateRequest request;
} parts_t;

/* The generated structs have no place for const; packing only reads. */
static char *borrowed(const char *text) {
    return (char *)(uintptr_t)text;
}

static void fill_conversation(parts_t *parts, const char *system, const char *question,
                              size_t picture_count) {
    for (size_t i = 0; i <= picture_count; i++) {
        Avl__V1__ContentPart *content = &parts->content[i];
        avl__v1__content_part__init(content);
        parts->content_list[i] = content;
        if (i == picture_count) {
            content->part_case = AVL__V1__CONTENT_PART__PART_TEXT;
            content->text = borrowed(question);
        } else {
            content->part_case = AVL__V1__CONTENT_PART__PART_IMAGE;
            content->image = &parts->images[i];
        }
    }
    avl__v1__conversation__init(&parts->conversation);
    parts->conversation.messages = parts->messages;
    if (system != NULL) {
        avl__v1__content_part__init(&parts->system_content);
        parts->system_content.part_case = AVL__V1__CONTENT_PART__PART_TEXT;
        parts->system_content.text = borrowed(system);
        parts->system_list[0] = &parts->system_content;
        avl__v1__message__init(&parts->system);
        parts->system.role = AVL__V1__ROLE__ROLE_SYSTEM;
        parts->system.n_content = 1;
        parts->system.content = parts->system_list;
        parts->messages[parts->conversation.n_messages++] = &parts->system;
    }
    avl__v1__message__init(&parts->user);
    parts->user.role = AVL__V1__ROLE__ROLE_USER;
    parts->user.n_content = picture_count + 1;
    parts->user.content = parts->content_list;
    parts->messages[parts->conversation.n_messages++] = &parts->user;
}

static void fill_request(parts_t *parts, const avl_request_options_t *options, const char *question,
                         size_t picture_count) {
    Avl__V1__GenerateRequest *request = &parts->request;
    avl__v1__generate_request__init(request);
    if (options->raw_prompt) {
        avl__v1__raw_prompt__init(&parts->raw_prompt);
        parts->raw_prompt.text = borrowed(question);
        parts->raw_prompt.n_images = picture_count;
        parts->raw_prompt.images = parts->image_list;
        request->input_case = AVL__V1__GENERATE_REQUEST__INPUT_RAW_PROMPT;
        request->raw_prompt = &parts->raw_prompt;
    } else {
        fill_conversation(parts, options->system, question, picture_count);
        request->input_case = AVL__V1__GENERATE_REQUEST__INPUT_CONVERSATION;
        request->conversation = &parts->conversation;
    }
    parts->sampling = options->sampling;
    parts->attention = options->attention;
    request->sampling = &parts->sampling;
    request->attention = &parts->attention;
    request->max_tokens = options->max_tokens;
    request->ignore_eos = options->ignore_eos;
    request->n = options->answers;
}

avl_status_t avl_request_pack(const avl_request_options_t *options, const char *question,
                              const avl_picture_t *pictures, size_t picture_count,
                              const char *request_id, bool progress,
                              avl_rpc_request_t **request_p) {
    AVL_ASSERT(picture_count <= AVL_REQUEST_IMAGES_MAX);
    size_t total_bytes = strlen(question);
    for (size_t i = 0; i < picture_count; i++)
        total_bytes += pictures[i].byte_count;
    /* Before packing: protobuf-c counts lengths in 32 bits. */
    if (total_bytes > INT32_MAX - (1 << 20))
        return avl_fail(AVL_ERR_TOO_LARGE,
                        "question and pictures have %zu bytes: one message holds less than 2 GiB",
                        total_bytes);
    parts_t *parts = NULL;
    AVL_TRY(avl_alloc(1, sizeof *parts, "request", &parts));
    for (size_t i = 0; i < picture_count; i++) {
        avl__v1__image__init(&parts->images[i]);
        parts->images[i].data.data = pictures[i].bytes;
        parts->images[i].data.len = pictures[i].byte_count;
        parts->image_list[i] = &parts->images[i];
    }
    fill_request(parts, options, question, picture_count);
    parts->request.request_id = borrowed(request_id);
    parts->request.progress = progress;
    size_t byte_count = avl__v1__generate_request__get_packed_size(&parts->request);
    uint8_t *bytes = NULL;
    avl_status_t status = avl_alloc(byte_count, 1, "request", &bytes);
    if (status == AVL_OK) {
        avl__v1__generate_request__pack(&parts->request, bytes);
        status = avl_rpc_request_create(bytes, byte_count, request_p);
    }
    free(parts);
    return status;
}
