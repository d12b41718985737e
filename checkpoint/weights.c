/* Owns the mappings and one sorted table of tensors. A file that another process cuts short while
 * it is mapped is beyond what a mapping can detect (the access raises SIGBUS): model directories do
 * not change under a service. */
#include "checkpoint/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "checkpoint/json.h"
#include "checkpoint/weights_name.h"

/* The limit of the safetensors reference implementation. */
#define HEADER_BYTES_MAX ((uint64_t)100 * 1000 * 1000)
#define INDEX_BYTES_MAX ((size_t)100 * 1000 * 1000)
#define LENGTH_BYTES 8
#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"

typedef struct mapping {
    char *path;
    const unsigned char *bytes;
    size_t byte_count;
} mapping_t;

typedef struct tensor {
    char *name;        /* in the older layout */
    char *stored_name; /* as the file says it */
    size_t mapping;    /* index into mappings */
    int dtype;         /* index into dtypes */
    int axis_count;    /* of a tensor with more than AVL_TENSOR_AXES_MAX only the first extents are
                          kept */
    int64_t shape[AVL_TENSOR_AXES_MAX];
    const unsigned char *data;
    void *copy;   /* of the data, where the file does not align it; else NULL */
    size_t begin; /* in the file's data, for the check of the whole */
    size_t bytes;
} tensor_t;

struct avl_weights {
    mapping_t *mappings;
    size_t mapping_count, mapping_capacity;
    tensor_t *tensors; /* sorted by name once everything is read */
    size_t tensor_count, tensor_capacity;
    size_t bytes;
};

/* Every dtype of the format; only floats of avl_dtype_t can be viewed. */
static const struct {
    const char *name;
    int bits;
    int dtype; /* avl_dtype_t, or -1 */
} dtypes[] = {
    {"F32", 32, AVL_DTYPE_F32},
    {"F16", 16, AVL_DTYPE_F16},
    {"BF16", 16, AVL_DTYPE_BF16},
    {"BOOL", 8, -1},
    {"U8", 8, -1},
    {"I8", 8, -1},
    {"U16", 16, -1},
    {"I16", 16, -1},
    {"U32", 32, -1},
    {"I32", 32, -1},
    {"U64", 64, -1},
    {"I64", 64, -1},
    {"F64", 64, -1},
    {"C64", 64, -1},
    {"F8_E5M2", 8, -1},
    {"F8_E4M3", 8, -1},
    {"F8_E8M0", 8, -1},
    {"F6_E2M3", 6, -1},
    {"F6_E3M2", 6, -1},
    {"F4", 4, -1},
};

static avl_status_t find_dtype(const avl_json_node_t *node, int *dtype_p) {
    const char *name = NULL;
    AVL_TRY(avl_json_string(node, &name));
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            *dtype_p = (int)i;
            return AVL_OK;
        }
    }
    return avl_json_fail(node, AVL_ERR_DATA, "unknown dtype \"%.32s\"", name);
}

/* The extents, and the bytes that they and the dtype amount to. */
static avl_status_t read_shape(const avl_json_node_t *node, tensor_t *tensor, size_t *bytes_p) {
    AVL_TRY(avl_json_expect_array(node));
    if (!avl_json_present(node))
        return avl_json_fail(node, AVL_ERR_DATA, "missing");
    size_t count = avl_json_count(node);
    uint64_t bits = (uint64_t)dtypes[tensor->dtype].bits;
    bool overflow = false;
    bool empty = false;
    for (size_t i = 0; i < count; i++) {
        avl_json_node_t element = avl_json_element(node, i);
        int64_t extent = 0;
        AVL_TRY(avl_json_int(&element, 0, INT64_MAX, &extent));
        empty = empty || extent == 0;
        overflow = overflow || __builtin_mul_overflow(bits, (uint64_t)extent, &bits);
        if (i < AVL_TENSOR_AXES_MAX)
            tensor->shape[i] = extent;
    }
    /* An extent of 0 anywhere makes the product 0, whatever came before it. */
    if (empty)
        bits = 0;
    else if (overflow || bits / 8 > PTRDIFF_MAX)
        return avl_json_fail(node, AVL_ERR_DATA, "the product of the extents overflows");
    if (bits % 8 != 0)
        return avl_json_fail(node, AVL_ERR_DATA, "%llu bits are no whole bytes",
                             (unsigned long long)bits);
    tensor->axis_count = (int)(count <= AVL_TENSOR_AXES_MAX ? count : AVL_TENSOR_AXES_MAX + 1);
    *bytes_p = (size_t)(bits / 8);
    return AVL_OK;
}

static avl_status_t read_range(const avl_json_node_t *node, size_t data_bytes, tensor_t *tensor) {
    AVL_TRY(avl_json_expect_array(node));
    if (avl_json_count(node) != 2)
        return avl_json_fail(node, AVL_ERR_DATA, "not a pair of begin and end");
    avl_json_node_t first = avl_json_element(node, 0);
    avl_json_node_t second = avl_json_element(node, 1);
    int64_t begin = 0;
    int64_t end = 0;
    AVL_TRY(avl_json_int(&first, 0, INT64_MAX, &begin));
    AVL_TRY(avl_json_int(&second, 0, INT64_MAX, &end));
    if (begin > end || (uint64_t)end > data_bytes) {
        return avl_json_fail(node, AVL_ERR_DATA,
                             "bytes %lld..%lld do not lie in the %zu of the data", (long long)begin,
                             (long long)end, data_bytes);
    }
    tensor->begin = (size_t)begin;
    tensor->bytes = (size_t)(end - begin);
    return AVL_OK;
}

/* Adds one member of the header to the table. */
static avl_status_t read_tensor(avl_weights_t *weights, const avl_json_node_t *node,
                                size_t data_offset) {
    const mapping_t *mapping = &weights->mappings[weights->mapping_count - 1];
    tensor_t tensor = {.mapping = weights->mapping_count - 1};
    if (!json_is_object(node->value))
        return avl_json_fail(node, AVL_ERR_DATA, "not an object");
    avl_json_node_t dtype = avl_json_member(node, "dtype");
    avl_json_node_t shape = avl_json_member(node, "shape");
    avl_json_node_t range = avl_json_member(node, "data_offsets");
    size_t bytes = 0;
    AVL_TRY(find_dtype(&dtype, &tensor.dtype));
    AVL_TRY(read_shape(&shape, &tensor, &bytes));
    AVL_TRY(read_range(&range, mapping->byte_count - data_offset, &tensor));
    if (bytes != tensor.bytes) {
        return avl_json_fail(node, AVL_ERR_DATA,
                             "shape and dtype amount to %zu bytes, data_offsets to %zu", bytes,
                             tensor.bytes);
    }
    tensor.data = mapping->bytes + data_offset + tensor.begin;
    AVL_TRY(avl_grow(weights->tensor_count + 1, sizeof tensor, "table of tensors",
                     &weights->tensors, &weights->tensor_capacity));
    AVL_TRY(avl_copy_string(node->key, &tensor.stored_name));
    avl_status_t status = avl_weights_name(node->key, &tensor.name);
    if (status != AVL_OK) {
        free(tensor.stored_name);
        return status;
    }
    weights->tensors[weights->tensor_count++] = tensor;
    weights->bytes += tensor.bytes;
    return AVL_OK;
}

static int compare_begins(const void *left, const void *right) {
    const tensor_t *a = left;
    const tensor_t *b = right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

/* The ranges of one file, laid end to end, are its data: no overlap, no hole, nothing behind. */
static avl_status_t check_ranges(avl_weights_t *weights, size_t first, const char *path,
                                 size_t data_bytes) {
    size_t count = weights->tensor_count - first;
    tensor_t *tensors = NULL; /* the table itself is none before the first tensor */
    if (count > 0) {
        tensors = weights->tensors + first;
        qsort(tensors, count, sizeof *tensors, compare_begins);
    }
    size_t end = 0;
    for (size_t i = 0; i < count; i++) {
        const tensor_t *tensor = &tensors[i];
        if (tensor->begin < end) {
            return avl_fail(AVL_ERR_DATA, "%s: tensors %.128s and %.128s overlap", path,
                            tensors[i - 1].stored_name, tensor->stored_name);
        }
        if (tensor->begin > end) {
            return avl_fail(AVL_ERR_DATA, "%s: a hole of %zu bytes before tensor %.128s", path,
                            tensor->begin - end, tensor->stored_name);
        }
        end += tensor->bytes;
    }
    if (end != data_bytes) {
        return avl_fail(AVL_ERR_DATA, "%s: the tensors cover %zu of %zu bytes of data", path, end,
                        data_bytes);
    }
    return AVL_OK;
}

/* "__metadata__" maps strings to strings and says nothing that is needed here. */
static avl_status_t check_metadata(const avl_json_node_t *node) {
    if (!json_is_object(node->value))
        return avl_json_fail(node, AVL_ERR_DATA, "not an object");
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(node->value, key, value) {
        avl_json_node_t entry = avl_json_member(node, key);
        const char *text = NULL;
        AVL_TRY(avl_json_string(&entry, &text));
    }
    return AVL_OK;
}

static avl_status_t read_tensors(avl_weights_t *weights, const avl_json_node_t *header,
                                 size_t data_offset) {
    if (!json_is_object(header->value))
        return avl_json_fail(header, AVL_ERR_DATA, "the header is not an object");
    size_t first = weights->tensor_count;
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(header->value, key, value) {
        avl_json_node_t node = avl_json_member(header, key);
        if (strcmp(key, "__metadata__") == 0)
            AVL_TRY(check_metadata(&node));
        else
            AVL_TRY(read_tensor(weights, &node, data_offset));
    }
    const mapping_t *mapping = &weights->mappings[weights->mapping_count - 1];
    return check_ranges(weights, first, mapping->path, mapping->byte_count - data_offset);
}

/* Reads the header of the last mapping. */
static avl_status_t read_header(avl_weights_t *weights) {
    const mapping_t *mapping = &weights->mappings[weights->mapping_count - 1];
    uint64_t length = 0;
    for (size_t i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)mapping->bytes[i] << (8 * i);
    if (length > HEADER_BYTES_MAX) {
        return avl_fail(AVL_ERR_DATA, "%s: a header of %llu bytes is longer than the %llu allowed",
                        mapping->path, (unsigned long long)length,
                        (unsigned long long)HEADER_BYTES_MAX);
    }
    if (length > mapping->byte_count - LENGTH_BYTES) {
        return avl_fail(AVL_ERR_DATA, "%s: a header of %llu bytes in a file of %zu", mapping->path,
                        (unsigned long long)length, mapping->byte_count);
    }
    const unsigned char *text = mapping->bytes + LENGTH_BYTES;
    if (length == 0 || text[0] != '{')
        return avl_fail(AVL_ERR_DATA, "%s: the header does not start with {", mapping->path);
    avl_json_document_t document = {0};
    AVL_TRY(avl_json_parse(mapping->path, (const char *)text, (size_t)length, &document));
    avl_json_node_t header = avl_json_root(&document);
    avl_status_t status = read_tensors(weights, &header, LENGTH_BYTES + (size_t)length);
    avl_json_close(&document);
    return status;
}

/* Maps `path` whole and read-only. Nothing is advised to the kernel: which pages a rank touches
 * depends on its slices, and its read-ahead serves the sequential passes over them well. */
static avl_status_t map_file(const char *path, mapping_t *mapping_p) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        avl_status_t code = errno == ENOENT || errno == ENOTDIR ? AVL_ERR_NOT_FOUND : AVL_ERR_IO;
        return avl_fail(code, "%s: %s", path, strerror(errno));
    }
    avl_status_t status = AVL_OK;
    struct stat file;
    void *bytes = NULL;
    if (fstat(descriptor, &file) != 0)
        status = avl_fail(AVL_ERR_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(file.st_mode))
        status = avl_fail(AVL_ERR_IO, "%s: not a regular file", path);
    else if (file.st_size < LENGTH_BYTES)
        status = avl_fail(AVL_ERR_DATA, "%s: %lld bytes are too few for a safetensors file", path,
                          (long long)file.st_size);
    if (status == AVL_OK) {
        bytes = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (bytes == MAP_FAILED)
            status = avl_fail(AVL_ERR_IO, "%s: mapping %lld bytes: %s", path,
                              (long long)file.st_size, strerror(errno));
    }
    close(descriptor);
    if (status == AVL_OK) {
        mapping_p->bytes = bytes;
        mapping_p->byte_count = (size_t)file.st_size;
    }
    return status;
}

static avl_status_t add_file(avl_weights_t *weights, const char *directory, const char *name) {
    mapping_t mapping = {0};
    AVL_TRY(avl_grow(weights->mapping_count + 1, sizeof mapping, "table of files",
                     &weights->mappings, &weights->mapping_capacity));
    if (asprintf(&mapping.path, "%s/%s", directory, name) < 0)
        return avl_fail(AVL_ERR_MEMORY, "no memory for the path of %s", name);
    avl_status_t status = map_file(mapping.path, &mapping);
    if (status != AVL_OK) {
        free(mapping.path);
        return status;
    }
    weights->mappings[weights->mapping_count++] = mapping;
    return read_header(weights);
}

static int compare_names(const void *left, const void *right) {
    const tensor_t *a = left;
    const tensor_t *b = right;
    return strcmp(a->name, b->name);
}

/* Sorts the table for lookups and refuses a name that occurs twice, in two files or in the two
 * layouts. */
static avl_status_t sort_tensors(avl_weights_t *weights) {
    if (weights->tensor_count > 0)
        qsort(weights->tensors, weights->tensor_count, sizeof *weights->tensors, compare_names);
    for (size_t i = 1; i < weights->tensor_count; i++) {
        const tensor_t *a = &weights->tensors[i - 1];
        const tensor_t *b = &weights->tensors[i];
        if (strcmp(a->name, b->name) == 0) {
            return avl_fail(AVL_ERR_DATA,
                            "tensor %.128s is in %s (as %.128s) and in %s (as %.128s)", a->name,
                            weights->mappings[a->mapping].path, a->stored_name,
                            weights->mappings[b->mapping].path, b->stored_name);
        }
    }
    return AVL_OK;
}

/* The format promises no alignment, though its writers have padded the header for years. A float
 * tensor that a kernel could not load from is copied: slower to open and private to the rank, but
 * right. */
static avl_status_t align_tensors(avl_weights_t *weights) {
    for (size_t i = 0; i < weights->tensor_count; i++) {
        tensor_t *tensor = &weights->tensors[i];
        size_t element_bytes = (size_t)dtypes[tensor->dtype].bits / 8;
        if (dtypes[tensor->dtype].dtype < 0 || (uintptr_t)tensor->data % element_bytes == 0)
            continue;
        AVL_TRY(avl_alloc_aligned(tensor->bytes, 1, tensor->name, &tensor->copy));
        memcpy(tensor->copy, tensor->data, tensor->bytes);
        tensor->data = tensor->copy;
    }
    return AVL_OK;
}

static const tensor_t *find(const avl_weights_t *weights, const char *name) {
    size_t least = 0;
    size_t most = weights->tensor_count;
    while (least < most) {
        size_t middle = least + (most - least) / 2;
        int order = strcmp(name, weights->tensors[middle].name);
        if (order == 0)
            return &weights->tensors[middle];
        if (order < 0)
            most = middle;
        else
            least = middle + 1;
    }
    return NULL;
}

/* Whether the last component of a mapping's path is `name`. */
static bool is_file(const mapping_t *mapping, const char *name) {
    return strcmp(strrchr(mapping->path, '/') + 1, name) == 0;
}

/* A shard lies beside its index: a name with a slash could name any file of the machine. */
static avl_status_t check_shard_name(const avl_json_node_t *node, const char *name) {
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL)
        return avl_json_fail(node, AVL_ERR_DATA, "\"%.64s\" is not the name of a file here", name);
    return AVL_OK;
}

static avl_status_t add_shards(avl_weights_t *weights, const char *directory,
                               const avl_json_node_t *map) {
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(map->value, key, value) {
        avl_json_node_t node = avl_json_member(map, key);
        const char *name = NULL;
        AVL_TRY(avl_json_string(&node, &name));
        AVL_TRY(check_shard_name(&node, name));
        bool known = false;
        /* From the back: consecutive tensors mostly share their shard. */
        for (size_t i = weights->mapping_count; i > 0 && !known; i--)
            known = is_file(&weights->mappings[i - 1], name);
        if (!known)
            AVL_TRY(add_file(weights, directory, name));
    }
    return AVL_OK;
}

/* Each tensor of the index is in the shard that the index names. A shard may hold more than the
 * index mentions. */
static avl_status_t check_map(const avl_weights_t *weights, const avl_json_node_t *map) {
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(map->value, key, value) {
        avl_json_node_t node = avl_json_member(map, key);
        char *name = NULL;
        AVL_TRY(avl_weights_name(key, &name));
        const tensor_t *tensor = find(weights, name);
        free(name);
        const char *shard = json_string_value(value);
        if (tensor == NULL || strcmp(tensor->stored_name, key) != 0)
            return avl_json_fail(&node, AVL_ERR_DATA, "%.128s has no such tensor", shard);
        if (!is_file(&weights->mappings[tensor->mapping], shard)) {
            return avl_json_fail(&node, AVL_ERR_DATA, "not in %.128s, but in %s", shard,
                                 weights->mappings[tensor->mapping].path);
        }
    }
    return AVL_OK;
}

static avl_status_t open_sharded(avl_weights_t *weights, const char *directory) {
    avl_json_document_t document = {0};
    AVL_TRY(avl_json_open(directory, INDEX_NAME, INDEX_BYTES_MAX, &document));
    avl_json_node_t root = avl_json_root(&document);
    avl_json_node_t map = avl_json_member(&root, "weight_map");
    avl_status_t status = AVL_OK;
    if (!json_is_object(map.value) || avl_json_count(&map) == 0) {
        status = avl_json_fail(&map, AVL_ERR_DATA, "not an object with tensors and their files");
        goto out;
    }
    AVL_TRY_GOTO(status, add_shards(weights, directory, &map), out);
    AVL_TRY_GOTO(status, sort_tensors(weights), out);
    status = check_map(weights, &map);
out:
    avl_json_close(&document);
    return status;
}

static avl_status_t open_files(avl_weights_t *weights, const char *directory) {
    /* As `transformers`: a single file wins over an index. */
    avl_status_t status = add_file(weights, directory, SINGLE_NAME);
    if (status == AVL_OK)
        return sort_tensors(weights);
    if (status != AVL_ERR_NOT_FOUND)
        return status;
    status = open_sharded(weights, directory);
    if (status == AVL_ERR_NOT_FOUND && weights->mapping_count == 0) {
        struct stat place;
        char *path = NULL;
        if (asprintf(&path, "%s/" INDEX_NAME, directory) < 0)
            return avl_fail(AVL_ERR_MEMORY, "no memory for the path of " INDEX_NAME);
        if (stat(path, &place) != 0) {
            status = avl_fail(AVL_ERR_NOT_FOUND, "%s: has neither " SINGLE_NAME " nor " INDEX_NAME,
                              directory);
        }
        free(path);
    }
    return status;
}

avl_status_t avl_weights_open(const char *directory, avl_weights_t **weights_p) {
    avl_weights_t *weights = NULL;
    AVL_TRY(avl_alloc(1, sizeof *weights, "weights", &weights));
    avl_status_t status = open_files(weights, directory);
    if (status == AVL_OK)
        status = align_tensors(weights);
    if (status != AVL_OK) {
        avl_weights_close(weights);
        return status;
    }
    *weights_p = weights;
    return AVL_OK;
}

void avl_weights_close(avl_weights_t *weights) {
    if (weights == NULL)
        return;
    for (size_t i = 0; i < weights->tensor_count; i++) {
        free(weights->tensors[i].name);
        free(weights->tensors[i].stored_name);
        free(weights->tensors[i].copy);
    }
    for (size_t i = 0; i < weights->mapping_count; i++) {
        void *bytes = NULL;
        memcpy(&bytes, &weights->mappings[i].bytes, sizeof bytes); /* munmap takes no const */
        munmap(bytes, weights->mappings[i].byte_count);
        free(weights->mappings[i].path);
    }
    free(weights->tensors);
    free(weights->mappings);
    free(weights);
}

int avl_weights_has(const avl_weights_t *weights, const char *name) {
    return find(weights, name) != NULL;
}

/* "[2, 3]", for messages. */
static const char *write_shape(int axis_count, const int64_t *shape, char *text, size_t bytes) {
    size_t used = (size_t)snprintf(text, bytes, "[");
    for (int axis = 0; axis < axis_count && used < bytes; axis++) {
        used += (size_t)snprintf(text + used, bytes - used, "%s%lld", axis > 0 ? ", " : "",
                                 (long long)shape[axis]);
    }
    if (used < bytes)
        snprintf(text + used, bytes - used, "]");
    return text;
}

avl_status_t avl_weights_view(const avl_weights_t *weights, const char *name, int axis_count,
                              const int64_t *shape, avl_tensor_view_t *view_p) {
    AVL_ASSERT(axis_count >= 0 && axis_count <= AVL_TENSOR_AXES_MAX);
    const tensor_t *tensor = find(weights, name);
    if (tensor == NULL)
        return avl_fail(AVL_ERR_DATA, "the weights lack tensor %.192s", name);
    const char *path = weights->mappings[tensor->mapping].path;
    if (tensor->axis_count > AVL_TENSOR_AXES_MAX)
        return avl_fail(AVL_ERR_DATA, "%s: tensor %.128s has more than %d axes", path,
                        tensor->stored_name, AVL_TENSOR_AXES_MAX);
    if (tensor->axis_count != axis_count ||
        memcmp(tensor->shape, shape, (size_t)axis_count * sizeof *shape) != 0) {
        char found[96];
        char needed[96];
        return avl_fail(AVL_ERR_DATA, "%s: tensor %.128s has shape %s where %s is needed", path,
                        tensor->stored_name,
                        write_shape(tensor->axis_count, tensor->shape, found, sizeof found),
                        write_shape(axis_count, shape, needed, sizeof needed));
    }
    if (dtypes[tensor->dtype].dtype < 0)
        return avl_fail(AVL_ERR_DATA, "%s: tensor %.128s is %s where F32, F16 or BF16 is needed",
                        path, tensor->stored_name, dtypes[tensor->dtype].name);
    avl_tensor_view_t view = {.data = tensor->data,
                              .dtype = (avl_dtype_t)dtypes[tensor->dtype].dtype,
                              .axis_count = axis_count,
                              .bytes = tensor->bytes};
    memcpy(view.shape, tensor->shape, sizeof view.shape);
    *view_p = view;
    return AVL_OK;
}

size_t avl_weights_bytes(const avl_weights_t *weights) {
    return weights->bytes;
}
