#include "worker/coverage.h"

#include <stdlib.h>

#include "base/memory.h"
#include "kernels/diversity.h"

/* What is known of a picture, at its first row. */
typedef struct picture {
    int32_t rows; /* 0: no picture has begun here */
    bool is_measured;
} picture_t;

struct avl_coverage {
    avl_device_t *device;
    int32_t feature_rows;
    int64_t width, picture_rows;
    picture_t *pictures; /* [feature_rows] */
    float *distances;    /* device: [feature_rows] */
    void *scratch;       /* device */
};

int64_t avl_coverage_picture_rows(const avl_config_t *config, int tiles, int32_t context_rows) {
    const avl_vision_config_t *vision = &config->model.vision;
    /* A line more both ways: the row ends of tiled pictures, and a class row. */
    int64_t side = vision->image_side / vision->patch_side + 1, rows = tiles * side * side;
    return rows < context_rows ? rows : context_rows;
}

int64_t avl_coverage_row_bytes(void) {
    return (int64_t)(sizeof(picture_t) + sizeof(float));
}

int64_t avl_coverage_scratch_bytes(int64_t picture_rows, int64_t width) {
    return (int64_t)avl_diversity_scratch_bytes(picture_rows, width);
}

avl_status_t avl_coverage_create(avl_device_t *device, int32_t feature_rows, int64_t width,
                                 int64_t picture_rows, avl_coverage_t **coverage_p) {
    avl_coverage_t *coverage;
    AVL_TRY(avl_alloc(1, sizeof *coverage, "distances of features", &coverage));
    *coverage = (avl_coverage_t){.device = device,
                                 .feature_rows = feature_rows,
                                 .width = width,
                                 .picture_rows = picture_rows};
    void *memory = NULL;
    avl_status_t status = avl_alloc_aligned((size_t)feature_rows, sizeof *coverage->pictures,
                                            "distances of features", &coverage->pictures);
    if (status == AVL_OK)
        status = device->ops->allocate(device, (size_t)feature_rows * sizeof(float),
                                       "distances of features", &memory);
    if (status == AVL_OK) {
        coverage->distances = memory;
        status = device->ops->allocate(device, avl_diversity_scratch_bytes(picture_rows, width),
                                       "likeness of features", &coverage->scratch);
    }
    if (status != AVL_OK) {
        avl_coverage_destroy(coverage);
        return status;
    }
    *coverage_p = coverage;
    return AVL_OK;
}

void avl_coverage_destroy(avl_coverage_t *coverage) {
    if (coverage == NULL)
        return;
    if (coverage->distances != NULL)
        coverage->device->ops->release(coverage->device, coverage->distances);
    if (coverage->scratch != NULL)
        coverage->device->ops->release(coverage->device, coverage->scratch);
    free(coverage->pictures);
    free(coverage);
}

const float *avl_coverage_distances(const avl_coverage_t *coverage) {
    return coverage->distances;
}

void avl_coverage_encoded(avl_coverage_t *coverage, int32_t feature_row, int32_t rows) {
    coverage->pictures[feature_row] = (picture_t){.rows = rows};
}

/* Whether distances of the sequence's pictures are still to be computed. */
static bool lacks_some(const avl_coverage_t *coverage, const avl_sequence_t *sequence) {
    const int32_t *features = sequence->feature_rows;
    for (int32_t i = 0; i < sequence->shape.visual_rows;) {
        const picture_t *picture = &coverage->pictures[features[i]];
        if (picture->rows == 0 || !picture->is_measured)
            return true;
        i += picture->rows;
    }
    return false;
}

static avl_status_t measure_pictures(avl_coverage_t *coverage, const float *features,
                                     const avl_sequence_t *sequence) {
    int32_t left = sequence->shape.visual_rows;
    const int32_t *rows = sequence->feature_rows;
    while (left > 0) {
        picture_t *picture = &coverage->pictures[*rows];
        if (picture->rows < 1 || picture->rows > left || picture->rows > coverage->picture_rows)
            return avl_fail(AVL_ERR_INTERNAL,
                            "request %llu: a picture of %d rows at features %d, where %d are left",
                            (unsigned long long)sequence->request_id, picture->rows, *rows, left);
        if (!picture->is_measured)
            AVL_TRY(avl_diversity(
                coverage->device,
                &(avl_diversity_args_t){.features = features + (int64_t)*rows * coverage->width,
                                        .rows = picture->rows,
                                        .width = coverage->width,
                                        .distances = coverage->distances + *rows,
                                        .scratch = coverage->scratch}));
        picture->is_measured = true;
        left -= picture->rows;
        rows += picture->rows;
    }
    return AVL_OK;
}

avl_status_t avl_coverage_measure(avl_coverage_t *coverage, avl_group_t *group,
                                  const float *features, const avl_run_t *runs, int run_count) {
    avl_status_t own = AVL_OK;
    bool any = false;
    for (int i = 0; i < run_count; i++) {
        const avl_run_t *run = &runs[i];
        const avl_sequence_shape_t *shape = &run->sequence->shape;
        bool ends = !run->decode && run->first_position + run->row_count == shape->prompt_rows;
        if (!ends || !avl_sequence_selects_once(shape) || !lacks_some(coverage, run->sequence))
            continue;
        avl_status_t status = measure_pictures(coverage, features, run->sequence);
        own = own == AVL_OK ? status : own;
        any = true;
    }
    return any ? avl_group_agree(group, own) : AVL_OK;
}
