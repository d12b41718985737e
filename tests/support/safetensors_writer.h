/* tests/support/safetensors_writer.h: makes safetensors files for tests, the honest and the lying
 * ones.
 *
 * Every function ends the test (cmocka fail) when the file system does not do what it asks. */
#ifndef AVL_TESTS_SUPPORT_SAFETENSORS_WRITER_H
#define AVL_TESTS_SUPPORT_SAFETENSORS_WRITER_H

#include <stddef.h>
#include <stdint.h>

#define AVL_TEST_AXES_MAX 4

typedef struct avl_test_tensor {
    const char *name;
    const char *dtype; /* as the header says it: "F32", "BF16", ... */
    int axis_count;
    int64_t shape[AVL_TEST_AXES_MAX];
    const void *data; /* row-major; NULL writes zeros */
    size_t bytes;     /* of the data; written as it is, even when it contradicts the shape */
} avl_test_tensor_t;

/* Writes `tensors` one after another, without holes. */
void avl_test_write_safetensors(const char *path, const avl_test_tensor_t *tensors, size_t count);

/* Writes the parts as they are given: the 8-byte length, the header's text, zeros as data. */
void avl_test_write_safetensors_raw(const char *path, uint64_t header_bytes, const char *header,
                                    size_t data_bytes);

/* Writes `text` to `directory`/`name`. */
void avl_test_write_text(const char *directory, const char *name, const char *text);

/* Makes an empty directory and returns its path (free() it); avl_test_remove_directory deletes it
 * with all that it contains and frees nothing. */
char *avl_test_make_directory(void);
void avl_test_remove_directory(const char *directory);

#endif
