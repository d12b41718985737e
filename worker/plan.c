#include "worker/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define PLAN_MAGIC UINT32_C(0x504c5641) /* "AVLP" */
#define PLAN_VERSION UINT32_C(7)
#define LAYOUT_FIELDS 11

typedef struct wire_header {
    uint32_t magic, version;
    uint64_t step;
    int32_t kind;
    int32_t retirement_count, release_count, admission_count, picture_count, run_count;
} wire_header_t;

typedef struct wire_attention {
    double store_ratio, compute_ratio, prefill_keep_ratio, text_keep_ratio;
    uint64_t selection_seed;
    int32_t update_interval, selection, prefill_layer, text_keep_min, text_policy;
    int32_t flags; /* FLAG_... */
} wire_attention_t;

enum { FLAG_PROTECT_PROMPT = 1, FLAG_MEASURE_MASS = 2, FLAG_CORE_STEP = 4, FLAGS_ALL = 7 };

typedef struct wire_admission {
    uint64_t request_id;
    int32_t sequence, prompt_rows, rows_max, place_count;
    int32_t source, source_rows;
    wire_attention_t attention;
} wire_admission_t;

typedef struct wire_picture {
    int32_t sequence, feature_row;
    int32_t layout[LAYOUT_FIELDS];
    int32_t zero;
    uint64_t pixel_bytes;
} wire_picture_t;

static size_t padded(size_t bytes) {
    return (bytes + 7) & ~(size_t)7;
}

avl_status_t avl_plan_create(const avl_plan_limits_t *limits, avl_plan_t *plan_p) {
    avl_plan_t plan = {0};
    size_t sequences = (size_t)limits->sequences_max, pictures = (size_t)limits->pictures_max;
    avl_status_t status;
    AVL_TRY_GOTO(status,
                 avl_alloc(sequences, sizeof *plan.retirements, "step plan", &plan.retirements),
                 err_destroy);
    AVL_TRY_GOTO(
        status,
        avl_alloc((size_t)limits->indices_max, sizeof *plan.releases, "step plan", &plan.releases),
        err_destroy);
    AVL_TRY_GOTO(status,
                 avl_alloc(sequences, sizeof *plan.admissions, "step plan", &plan.admissions),
                 err_destroy);
    AVL_TRY_GOTO(status, avl_alloc(pictures, sizeof *plan.pictures, "step plan", &plan.pictures),
                 err_destroy);
    AVL_TRY_GOTO(status, avl_alloc(sequences, sizeof *plan.runs, "step plan", &plan.runs),
                 err_destroy);
    avl_plan_begin(&plan, AVL_PLAN_STEP, 0);
    *plan_p = plan;
    return AVL_OK;
err_destroy:
    avl_plan_destroy(&plan);
    return status;
}

void avl_plan_destroy(avl_plan_t *plan) {
    free(plan->retirements);
    free(plan->releases);
    free(plan->admissions);
    free(plan->pictures);
    free(plan->runs);
    *plan = (avl_plan_t){0};
}

void avl_plan_begin(avl_plan_t *plan, avl_plan_kind_t kind, uint64_t step) {
    plan->kind = kind;
    plan->step = step;
    plan->retirement_count = 0;
    plan->release_count = plan->admission_count = plan->picture_count = plan->run_count = 0;
}

bool avl_plan_is_empty(const avl_plan_t *plan) {
    return plan->retirement_count + plan->release_count + plan->admission_count +
               plan->picture_count + plan->run_count ==
           0;
}

size_t avl_plan_admission_bytes(int32_t prompt_rows, int32_t place_count) {
    return sizeof(wire_admission_t) + padded((size_t)prompt_rows * sizeof(int32_t)) +
           padded((size_t)place_count * sizeof(avl_plan_place_t));
}

size_t avl_plan_picture_bytes(size_t pixel_bytes) {
    return sizeof(wire_picture_t) + padded(pixel_bytes);
}

size_t avl_plan_frame_bytes(int32_t sequences_max, int32_t indices_max, int32_t pictures_max) {
    size_t sequences = (size_t)sequences_max;
    return sizeof(wire_header_t) + padded(sequences * sizeof(int32_t)) +
           padded((size_t)indices_max * sizeof(int32_t)) +
           sequences * (avl_plan_admission_bytes(0, 0) + 16 + sizeof(avl_plan_run_t)) +
           (size_t)pictures_max * (avl_plan_picture_bytes(0) + 8);
}

size_t avl_plan_bytes(const avl_plan_t *plan) {
    size_t bytes = sizeof(wire_header_t) +
                   padded((size_t)plan->retirement_count * sizeof(int32_t)) +
                   padded((size_t)plan->release_count * sizeof(int32_t));
    for (int32_t i = 0; i < plan->admission_count; i++)
        bytes += avl_plan_admission_bytes(plan->admissions[i].prompt_rows,
                                          plan->admissions[i].place_count);
    for (int32_t i = 0; i < plan->picture_count; i++)
        bytes += avl_plan_picture_bytes(plan->pictures[i].pixel_bytes);
    return bytes + (size_t)plan->run_count * sizeof(avl_plan_run_t);
}

static uint8_t *put(uint8_t *target, const void *source, size_t bytes) {
    if (bytes > 0)
        memcpy(target, source, bytes);
    memset(target + bytes, 0, padded(bytes) - bytes);
    return target + padded(bytes);
}

static void layout_to_wire(const avl_image_layout_t *layout, int32_t *wire) {
    const int values[LAYOUT_FIELDS] = {
        layout->image_width,  layout->image_height, layout->tile_count,  layout->grid_rows,
        layout->grid_columns, layout->base_rows,    layout->crop_top,    layout->crop_left,
        layout->crop_rows,    layout->crop_columns, layout->prompt_rows,
    };
    for (int i = 0; i < LAYOUT_FIELDS; i++)
        wire[i] = values[i];
}

static avl_image_layout_t layout_from_wire(const int32_t *wire) {
    return (avl_image_layout_t){
        .image_width = wire[0],
        .image_height = wire[1],
        .tile_count = wire[2],
        .grid_rows = wire[3],
        .grid_columns = wire[4],
        .base_rows = wire[5],
        .crop_top = wire[6],
        .crop_left = wire[7],
        .crop_rows = wire[8],
        .crop_columns = wire[9],
        .prompt_rows = wire[10],
    };
}

static wire_attention_t attention_to_wire(const avl_attention_params_t *params) {
    return (wire_attention_t){
        .store_ratio = params->visual_store_ratio,
        .compute_ratio = params->visual_compute_ratio,
        .prefill_keep_ratio = params->prefill_keep_ratio,
        .text_keep_ratio = params->text_keep_ratio,
        .selection_seed = params->selection_seed,
        .update_interval = params->visual_update_interval,
        .selection = (int32_t)params->visual_selection,
        .prefill_layer = params->prefill_layer,
        .text_keep_min = params->text_keep_min,
        .text_policy = (int32_t)params->text_policy,
        .flags = (params->protect_prompt ? FLAG_PROTECT_PROMPT : 0) |
                 (params->measure_captured_mass ? FLAG_MEASURE_MASS : 0) |
                 (params->visual_core == AVL_CORE_STEP ? FLAG_CORE_STEP : 0),
    };
}

/* Numbers that mean nothing are for avl_attention_params_check to find. */
static avl_attention_params_t attention_from_wire(const wire_attention_t *wire) {
    return (avl_attention_params_t){
        .visual_store_ratio = wire->store_ratio,
        .visual_compute_ratio = wire->compute_ratio,
        .visual_update_interval = wire->update_interval,
        .visual_core = wire->flags & FLAG_CORE_STEP ? AVL_CORE_STEP : AVL_CORE_INTERVAL,
        .visual_selection = (avl_visual_selection_t)wire->selection,
        .selection_seed = wire->selection_seed,
        .prefill_keep_ratio = wire->prefill_keep_ratio,
        .prefill_layer = wire->prefill_layer,
        .text_keep_ratio = wire->text_keep_ratio,
        .text_keep_min = wire->text_keep_min,
        .text_policy = (avl_text_policy_t)wire->text_policy,
        .protect_prompt = (wire->flags & FLAG_PROTECT_PROMPT) != 0,
        .measure_captured_mass = (wire->flags & FLAG_MEASURE_MASS) != 0,
    };
}

void avl_plan_encode(const avl_plan_t *plan, void *buffer) {
    wire_header_t header = {
        .magic = PLAN_MAGIC,
        .version = PLAN_VERSION,
        .step = plan->step,
        .kind = plan->kind,
        .retirement_count = plan->retirement_count,
        .release_count = plan->release_count,
        .admission_count = plan->admission_count,
        .picture_count = plan->picture_count,
        .run_count = plan->run_count,
    };
    uint8_t *target = put(buffer, &header, sizeof header);
    target =
        put(target, plan->retirements, (size_t)plan->retirement_count * sizeof *plan->retirements);
    target = put(target, plan->releases, (size_t)plan->release_count * sizeof *plan->releases);
    for (int32_t i = 0; i < plan->admission_count; i++) {
        const avl_plan_admission_t *admission = &plan->admissions[i];
        wire_admission_t wire = {
            .request_id = admission->request_id,
            .sequence = admission->sequence,
            .prompt_rows = admission->prompt_rows,
            .rows_max = admission->rows_max,
            .place_count = admission->place_count,
            .source = admission->source,
            .source_rows = admission->source_rows,
            .attention = attention_to_wire(&admission->attention),
        };
        target = put(target, &wire, sizeof wire);
        target =
            put(target, admission->token_ids, (size_t)admission->prompt_rows * sizeof(int32_t));
        target = put(target, admission->places,
                     (size_t)admission->place_count * sizeof *admission->places);
    }
    for (int32_t i = 0; i < plan->picture_count; i++) {
        const avl_plan_picture_t *picture = &plan->pictures[i];
        wire_picture_t wire = {
            .sequence = picture->sequence,
            .feature_row = picture->feature_row,
            .pixel_bytes = picture->pixel_bytes,
        };
        layout_to_wire(&picture->layout, wire.layout);
        target = put(target, &wire, sizeof wire);
        target = put(target, picture->pixels, picture->pixel_bytes);
    }
    put(target, plan->runs, (size_t)plan->run_count * sizeof *plan->runs);
}

/* What is left of the buffer that is being read. */
typedef struct reader {
    const uint8_t *next;
    size_t left;
} reader_t;

/* The next `bytes` bytes and their padding, or NULL when the buffer ends before. */
static const void *take(reader_t *reader, uint64_t bytes) {
    if (bytes > reader->left || padded((size_t)bytes) > reader->left)
        return NULL;
    const void *part = reader->next;
    reader->next += padded((size_t)bytes);
    reader->left -= padded((size_t)bytes);
    return part;
}

static bool in_range(int64_t value, int64_t least, int64_t most) {
    return value >= least && value <= most;
}

static avl_status_t bad(const char *what, int64_t number) {
    return avl_fail(AVL_ERR_DATA, "step plan: %s (%lld)", what, (long long)number);
}

static avl_status_t read_header(reader_t *reader, const avl_plan_limits_t *limits,
                                avl_plan_t *plan) {
    wire_header_t header;
    const void *part = take(reader, sizeof header);
    if (part == NULL)
        return bad("cut off in the header", (int64_t)reader->left);
    memcpy(&header, part, sizeof header);
    if (header.magic != PLAN_MAGIC || header.version != PLAN_VERSION)
        return bad("unknown magic number or version", header.version);
    if (!in_range(header.kind, AVL_PLAN_STEP, AVL_PLAN_TELL))
        return bad("unknown kind", header.kind);
    if (!in_range(header.retirement_count, 0, limits->sequences_max))
        return bad("number of retirements", header.retirement_count);
    if (!in_range(header.release_count, 0, limits->indices_max))
        return bad("number of releases", header.release_count);
    if (!in_range(header.admission_count, 0, limits->sequences_max))
        return bad("number of admissions", header.admission_count);
    if (!in_range(header.picture_count, 0, limits->pictures_max))
        return bad("number of pictures", header.picture_count);
    if (!in_range(header.run_count, 0, limits->sequences_max))
        return bad("number of runs", header.run_count);
    avl_plan_begin(plan, (avl_plan_kind_t)header.kind, header.step);
    plan->retirement_count = header.retirement_count;
    plan->release_count = header.release_count;
    plan->admission_count = header.admission_count;
    plan->picture_count = header.picture_count;
    plan->run_count = header.run_count;
    return AVL_OK;
}

/* `count` numbers of sequences. */
static avl_status_t read_sequences(reader_t *reader, const avl_plan_limits_t *limits,
                                   const char *what, int32_t count, int32_t *sequences) {
    size_t bytes = (size_t)count * sizeof *sequences;
    const void *part = take(reader, bytes);
    if (part == NULL)
        return bad(what, count);
    if (bytes > 0)
        memcpy(sequences, part, bytes);
    for (int32_t i = 0; i < count; i++) {
        if (!in_range(sequences[i], 0, limits->indices_max - 1))
            return bad(what, sequences[i]);
    }
    return AVL_OK;
}

static avl_status_t read_admission(reader_t *reader, const avl_plan_limits_t *limits,
                                   avl_plan_admission_t *admission) {
    wire_admission_t wire;
    const void *part = take(reader, sizeof wire);
    if (part == NULL)
        return bad("cut off in an admission", (int64_t)reader->left);
    memcpy(&wire, part, sizeof wire);
    if (!in_range(wire.sequence, 0, limits->indices_max - 1))
        return bad("admission of a sequence beyond the limit", wire.sequence);
    if (!in_range(wire.rows_max, 1, limits->context_rows))
        return bad("rows of an admission", wire.rows_max);
    if (!in_range(wire.prompt_rows, 1, wire.rows_max))
        return bad("prompt rows of an admission", wire.prompt_rows);
    if (!in_range(wire.source, -1, limits->indices_max - 1) ||
        !in_range(wire.source_rows, wire.source < 0 ? 0 : 1,
                  wire.source < 0 ? 0 : wire.prompt_rows))
        return bad("source of an admission", wire.source);
    if (!in_range(wire.place_count, 0, wire.prompt_rows))
        return bad("pictures of an admission", wire.place_count);
    *admission = (avl_plan_admission_t){
        .request_id = wire.request_id,
        .sequence = wire.sequence,
        .prompt_rows = wire.prompt_rows,
        .rows_max = wire.rows_max,
        .place_count = wire.place_count,
        .source = wire.source,
        .source_rows = wire.source_rows,
        .attention = attention_from_wire(&wire.attention),
    };
    if (!in_range(wire.attention.flags, 0, FLAGS_ALL))
        return bad("attention flags of an admission", wire.attention.flags);
    AVL_TRY(avl_attention_params_check(&admission->attention));
    admission->token_ids = take(reader, (uint64_t)wire.prompt_rows * sizeof(int32_t));
    if (admission->token_ids == NULL)
        return bad("cut off in the prompt of an admission", wire.prompt_rows);
    admission->places = take(reader, (uint64_t)wire.place_count * sizeof *admission->places);
    if (admission->places == NULL)
        return bad("cut off in the pictures of an admission", wire.place_count);
    for (int32_t i = 0; i < admission->place_count; i++) {
        const avl_plan_place_t *place = &admission->places[i];
        if (!in_range(place->rows, 0, limits->feature_rows) ||
            !in_range(place->feature_row, 0, limits->feature_rows - place->rows))
            return bad("features beyond the limit", place->feature_row);
    }
    return AVL_OK;
}

static avl_status_t read_picture(reader_t *reader, const avl_plan_limits_t *limits,
                                 avl_plan_picture_t *picture) {
    wire_picture_t wire;
    const void *part = take(reader, sizeof wire);
    if (part == NULL)
        return bad("cut off in a picture", (int64_t)reader->left);
    memcpy(&wire, part, sizeof wire);
    if (!in_range(wire.sequence, 0, limits->indices_max - 1))
        return bad("picture of a sequence beyond the limit", wire.sequence);
    if (!in_range(wire.layout[LAYOUT_FIELDS - 1], 1, limits->feature_rows) ||
        !in_range(wire.feature_row, 0, limits->feature_rows - wire.layout[LAYOUT_FIELDS - 1]))
        return bad("features of a picture beyond the limit", wire.feature_row);
    picture->sequence = wire.sequence;
    picture->feature_row = wire.feature_row;
    picture->layout = layout_from_wire(wire.layout);
    picture->pixel_bytes = (size_t)wire.pixel_bytes;
    picture->pixels = take(reader, wire.pixel_bytes);
    if (picture->pixels == NULL)
        return bad("cut off in the pixels of a picture", (int64_t)wire.pixel_bytes);
    return AVL_OK;
}

static avl_status_t read_runs(reader_t *reader, const avl_plan_limits_t *limits, avl_plan_t *plan) {
    size_t bytes = (size_t)plan->run_count * sizeof *plan->runs;
    const void *part = take(reader, bytes);
    if (part == NULL)
        return bad("cut off in the runs", plan->run_count);
    if (bytes > 0)
        memcpy(plan->runs, part, bytes);
    for (int32_t i = 0; i < plan->run_count; i++) {
        const avl_plan_run_t *run = &plan->runs[i];
        if (!in_range(run->sequence, 0, limits->indices_max - 1))
            return bad("run of a sequence beyond the limit", run->sequence);
        if (!in_range(run->row_count, 0, limits->context_rows))
            return bad("rows of a run", run->row_count);
        if (!in_range(run->logits, AVL_PLAN_NOTHING, AVL_PLAN_BEST) ||
            (run->row_count == 0) != (run->token_id >= 0))
            return bad("a run that is neither prompt nor decode", run->token_id);
    }
    return AVL_OK;
}

avl_status_t avl_plan_decode(const void *buffer, size_t bytes, const avl_plan_limits_t *limits,
                             avl_plan_t *plan) {
    reader_t reader = {.next = buffer, .left = bytes};
    if (bytes > limits->bytes_max || (bytes & 7) != 0)
        return bad("impossible size", (int64_t)bytes);
    AVL_TRY(read_header(&reader, limits, plan));
    AVL_TRY(
        read_sequences(&reader, limits, "retirements", plan->retirement_count, plan->retirements));
    AVL_TRY(read_sequences(&reader, limits, "releases", plan->release_count, plan->releases));
    for (int32_t i = 0; i < plan->admission_count; i++)
        AVL_TRY(read_admission(&reader, limits, &plan->admissions[i]));
    for (int32_t i = 0; i < plan->picture_count; i++)
        AVL_TRY(read_picture(&reader, limits, &plan->pictures[i]));
    AVL_TRY(read_runs(&reader, limits, plan));
    if (reader.left != 0)
        return bad("bytes after the end", (int64_t)reader.left);
    return AVL_OK;
}
