/* tests/model/case_data.c: the files of a reference case. */
#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "tests/model/dense_run.h"
#include "tests/support/npy.h"

static avl_status_t read_floats(const char *directory, const char *name, float **data_p,
                                int64_t *count_p, int64_t *rows_p) {
    char path[640];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    avl_npy_t array;
    AVL_TRY(avl_npy_read(path, &array));
    if (strcmp(array.type, "f4") != 0) {
        free(array.data);
        return avl_fail(AVL_ERR_DATA, "%s: not f32", path);
    }
    *data_p = array.data;
    *count_p = array.count;
    if (rows_p)
        *rows_p = array.shape[0];
    return AVL_OK;
}

static avl_status_t take_ids(const char *path, const json_t *list, int32_t **ids_p, int *count_p) {
    if (!json_is_array(list))
        return avl_fail(AVL_ERR_DATA, "%s: a list of token ids is missing", path);
    size_t count = json_array_size(list);
    int32_t *ids;
    AVL_TRY(avl_alloc(count, sizeof *ids, "token ids", &ids));
    for (size_t index = 0; index < count; index++)
        ids[index] = (int32_t)json_integer_value(json_array_get(list, index));
    *ids_p = ids;
    *count_p = (int)count;
    return AVL_OK;
}

/* Width and height from the header chunk of a PNG. */
static avl_status_t read_extent(const char *directory, const char *name, int *width_p,
                                int *height_p) {
    char path[640];
    unsigned char head[24];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    size_t got = file ? fread(head, 1, sizeof head, file) : 0;
    if (file)
        fclose(file);
    if (got != sizeof head || memcmp(head + 12, "IHDR", 4) != 0)
        return avl_fail(AVL_ERR_DATA, "%s: no PNG", path);
    *width_p = head[16] << 24 | head[17] << 16 | head[18] << 8 | head[19];
    *height_p = head[20] << 24 | head[21] << 16 | head[22] << 8 | head[23];
    return AVL_OK;
}

static avl_status_t take_images(const json_t *root, avl_case_t *data) {
    const json_t *images = json_object_get(root, "images");
    if (!images) { /* the shipped cases: one picture each */
        data->image_count = 1;
        data->image_rows[0] = (int)json_integer_value(json_object_get(root, "image_tokens"));
        return read_extent(data->path, "image.png", &data->image_widths[0],
                           &data->image_heights[0]);
    }
    data->image_count = (int)json_array_size(images);
    if (data->image_count > AVL_CASE_IMAGES_MAX)
        return avl_fail(AVL_ERR_DATA, "%s: %d pictures", data->path, data->image_count);
    for (int index = 0; index < data->image_count; index++) {
        size_t at = (size_t)index;
        data->image_rows[index] =
            (int)json_integer_value(json_array_get(json_object_get(root, "image_rows"), at));
        AVL_TRY(read_extent(data->path, json_string_value(json_array_get(images, at)),
                            &data->image_widths[index], &data->image_heights[index]));
    }
    return AVL_OK;
}

static avl_status_t take_bf16(const json_t *bf16, avl_case_t *data) {
    if (!bf16)
        return AVL_OK;
    const json_t *margins = json_object_get(bf16, "f32_margins");
    AVL_TRY(take_ids(data->path, json_object_get(bf16, "greedy_ids"), &data->bf16_ids,
                     &data->bf16_count));
    int best_count;
    AVL_TRY(take_ids(data->path, json_object_get(bf16, "f32_best"), &data->f32_best, &best_count));
    data->bf16_error_rms = json_number_value(json_object_get(bf16, "error_rms"));
    if (best_count < data->bf16_count || !(data->bf16_error_rms > 0.0) ||
        (int)json_array_size(margins) < data->bf16_count)
        return avl_fail(AVL_ERR_DATA, "%s: incomplete bf16 run", data->path);
    AVL_TRY(avl_alloc((size_t)data->bf16_count, sizeof(float), "margins", &data->f32_margins));
    for (int index = 0; index < data->bf16_count; index++)
        data->f32_margins[index] = (float)json_number_value(json_array_get(margins, (size_t)index));
    return AVL_OK;
}

static avl_status_t take_json(const json_t *root, avl_case_t *data) {
    const char *model = json_string_value(json_object_get(root, "model"));
    const json_t *greedy = json_object_get(root, "greedy_ids");
    if (!greedy)
        greedy = json_object_get(json_object_get(json_object_get(root, "settings"), "full"),
                                 "token_ids");
    if (model)
        snprintf(data->model_path, sizeof data->model_path, AVL_SOURCE_DIR "/tests/data/models/%s",
                 model);
    else
        snprintf(data->model_path, sizeof data->model_path, AVL_SOURCE_DIR "/models/avl-tiny");
    AVL_TRY(take_ids(data->path, json_object_get(root, "prompt_ids"), &data->prompt_ids,
                     &data->prompt_count));
    AVL_TRY(take_ids(data->path, greedy, &data->greedy_ids, &data->greedy_count));
    AVL_TRY(take_images(root, data));
    return take_bf16(json_object_get(root, "bf16"), data);
}

static avl_status_t take_arrays(avl_case_t *data) {
    AVL_TRY(
        read_floats(data->path, "first_logits.npy", &data->first_logits, &data->vocab_rows, NULL));
    if (data->image_count) {
        AVL_TRY(read_floats(data->path, "pixels.npy", &data->pixels, &data->pixel_count, NULL));
        AVL_TRY(read_floats(data->path, "image_features.npy", &data->image_features,
                            &data->feature_count, NULL));
    }
    int64_t count, steps = 0;
    avl_status_t status =
        read_floats(data->path, "all_logits.npy", &data->all_logits, &count, &steps);
    data->all_logits_steps = (int)steps;
    return status == AVL_ERR_NOT_FOUND ? AVL_OK : status;
}

avl_status_t avl_case_load(const char *directory, avl_case_t *case_p) {
    avl_case_t data = {0};
    char path[640];
    snprintf(data.path, sizeof data.path, "%s", directory);
    snprintf(path, sizeof path, "%s/case.json", directory);
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root)
        return avl_fail(AVL_ERR_DATA, "%s: %s", path, error.text);
    avl_status_t status = take_json(root, &data);
    json_decref(root);
    if (status == AVL_OK)
        status = take_arrays(&data);
    if (status == AVL_OK)
        *case_p = data;
    else
        avl_case_release(&data);
    return status;
}

void avl_case_release(avl_case_t *data) {
    free(data->prompt_ids);
    free(data->greedy_ids);
    free(data->bf16_ids);
    free(data->f32_best);
    free(data->f32_margins);
    free(data->pixels);
    free(data->image_features);
    free(data->first_logits);
    free(data->all_logits);
}

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

avl_status_t avl_case_list(const char *parent, char ***paths_p, int *count_p) {
    DIR *folder = opendir(parent);
    if (!folder)
        return avl_fail(AVL_ERR_NOT_FOUND, "%s: no such directory", parent);
    char **paths = NULL;
    size_t capacity = 0;
    int count = 0;
    avl_status_t status = AVL_OK;
    for (struct dirent *entry; status == AVL_OK && (entry = readdir(folder));) {
        char path[1024];
        struct stat found;
        snprintf(path, sizeof path, "%s/%s/case.json", parent, entry->d_name);
        if (entry->d_name[0] == '.' || stat(path, &found) != 0)
            continue;
        path[strlen(path) - strlen("/case.json")] = '\0';
        status = avl_grow((size_t)count + 1, sizeof *paths, "case list", &paths, &capacity);
        if (status == AVL_OK)
            status = avl_copy_string(path, &paths[count]);
        count += status == AVL_OK;
    }
    closedir(folder);
    if (count)
        qsort(paths, (size_t)count, sizeof *paths, compare_paths);
    *paths_p = paths;
    *count_p = count;
    return status;
}
