#include "kernels/cpu/matmul.h"

#include <inttypes.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include <dnnl.h>

#include "base/memory.h"

/* A model has a handful of depths; eviction is for programs that try many. */
enum { PLANS_MAX = 32, SCRATCH_ALIGNMENT_BYTES = 64, OPERANDS = 4 };

/* What one thread hands to the library: made once, so that a product allocates nothing of size. */
typedef struct lane {
    dnnl_stream_t stream;
    dnnl_exec_arg_t operands[OPERANDS];
} lane_t;

struct avl_matmul_plan {
    int64_t depth, input_stride, weight_stride;
    avl_dtype_t dtype;
    int is_slow; /* nothing but a reference implementation: not to be used */
    uint64_t last_use;
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t input, weight, sums, scratchpad;
    int threads;
    lane_t *lanes; /* [threads] */
};

struct avl_matmul {
    dnnl_engine_t engine;
    int threads;
    int plan_count;
    uint64_t use;
    avl_matmul_plan_t plans[PLANS_MAX];
};

static avl_status_t check_library(dnnl_status_t status, const char *action) {
    if (status == dnnl_success)
        return AVL_OK;
    if (status == dnnl_out_of_memory)
        return avl_fail(AVL_ERR_MEMORY, "oneDNN: no memory to %s", action);
    return avl_fail(AVL_ERR_DEVICE, "oneDNN: cannot %s: status %d", action, (int)status);
}

avl_status_t avl_matmul_create(int threads, avl_matmul_t **matmul_p) {
    avl_matmul_t *matmul = NULL;
    AVL_TRY(avl_alloc(1, sizeof *matmul, "oneDNN's plans", &matmul));
    matmul->threads = threads;
    avl_status_t status = AVL_OK;
    AVL_TRY_GOTO(status,
                 check_library(dnnl_engine_create(&matmul->engine, dnnl_cpu, 0), "open its engine"),
                 err_destroy);
    *matmul_p = matmul;
    return AVL_OK;

err_destroy:
    avl_matmul_destroy(matmul);
    return status;
}

static void clear_lane(lane_t *lane) {
    for (int i = 0; i < OPERANDS; i++) {
        if (lane->operands[i].memory != NULL)
            dnnl_memory_destroy(lane->operands[i].memory);
    }
    if (lane->stream != NULL)
        dnnl_stream_destroy(lane->stream);
}

static void clear_plan(avl_matmul_plan_t *plan) {
    for (int i = 0; plan->lanes != NULL && i < plan->threads; i++)
        clear_lane(&plan->lanes[i]);
    free(plan->lanes);
    if (plan->primitive != NULL)
        dnnl_primitive_destroy(plan->primitive);
    *plan = (avl_matmul_plan_t){0};
}

void avl_matmul_destroy(avl_matmul_t *matmul) {
    if (matmul == NULL)
        return;
    for (int i = 0; i < matmul->plan_count; i++)
        clear_plan(&matmul->plans[i]);
    if (matmul->engine != NULL)
        dnnl_engine_destroy(matmul->engine);
    free(matmul);
}

int avl_matmul_begin(void) {
    int threads_before = omp_get_max_threads();
    omp_set_num_threads(1);
    return threads_before;
}

void avl_matmul_end(int threads_before) {
    omp_set_num_threads(threads_before);
}

/* The weights lie as [columns, depth]: as the transpose of what the product takes. */
static dnnl_status_t describe_operands(avl_matmul_plan_t *plan) {
    dnnl_data_type_t type = plan->dtype == AVL_DTYPE_F32 ? dnnl_f32 : dnnl_bf16;
    dnnl_dims_t input = {AVL_MATMUL_ROWS, plan->depth}, input_strides = {plan->input_stride, 1};
    dnnl_dims_t weight = {plan->depth, AVL_MATMUL_COLUMNS},
                weight_strides = {1, plan->weight_stride};
    dnnl_dims_t sums = {AVL_MATMUL_ROWS, AVL_MATMUL_COLUMNS};
    dnnl_dims_t sums_strides = {AVL_MATMUL_COLUMNS, 1};
    dnnl_status_t status =
        dnnl_memory_desc_init_by_strides(&plan->input, 2, input, type, input_strides);
    if (status == dnnl_success)
        status = dnnl_memory_desc_init_by_strides(&plan->weight, 2, weight, type, weight_strides);
    if (status == dnnl_success)
        status = dnnl_memory_desc_init_by_strides(&plan->sums, 2, sums, dnnl_f32, sums_strides);
    return status;
}

/* Strict arithmetic: f32 products stay f32. The scratch memory is ours, because the library's own
 * is not for several threads. */
static dnnl_status_t create_primitive(avl_matmul_plan_t *plan, dnnl_engine_t engine,
                                      const dnnl_primitive_attr_t attributes) {
    dnnl_matmul_desc_t description;
    dnnl_primitive_desc_t candidate = NULL;
    const char *name = NULL;
    dnnl_status_t status =
        dnnl_matmul_desc_init(&description, &plan->input, &plan->weight, NULL, &plan->sums);
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(&candidate, &description, attributes, engine, NULL);
    if (status == dnnl_unimplemented) {
        plan->is_slow = 1;
        return dnnl_success;
    }
    if (status != dnnl_success)
        return status;
    status = dnnl_primitive_desc_query(candidate, dnnl_query_impl_info_str, 0, &name);
    if (status == dnnl_success && strncmp(name, "ref", 3) == 0) {
        plan->is_slow = 1;
    } else if (status == dnnl_success) {
        plan->scratchpad = *dnnl_primitive_desc_query_md(candidate, dnnl_query_scratchpad_md, 0);
        status = dnnl_primitive_create(&plan->primitive, candidate);
    }
    dnnl_primitive_desc_destroy(candidate);
    return status;
}

/* A stream for each thread: the library does not promise that they may share one. */
static dnnl_status_t create_lane(const avl_matmul_plan_t *plan, dnnl_engine_t engine,
                                 lane_t *lane) {
    const dnnl_memory_desc_t *const descriptions[OPERANDS] = {&plan->input, &plan->weight,
                                                              &plan->sums, &plan->scratchpad};
    static const int roles[OPERANDS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST,
                                        DNNL_ARG_SCRATCHPAD};
    dnnl_status_t status = dnnl_stream_create(&lane->stream, engine, dnnl_stream_default_flags);
    for (int i = 0; i < OPERANDS && status == dnnl_success; i++) {
        lane->operands[i].arg = roles[i];
        status = dnnl_memory_create(&lane->operands[i].memory, descriptions[i], engine,
                                    DNNL_MEMORY_NONE);
    }
    return status;
}

static avl_status_t create_lanes(avl_matmul_plan_t *plan, dnnl_engine_t engine, int threads) {
    AVL_TRY(avl_alloc((size_t)threads, sizeof *plan->lanes, "oneDNN's operands", &plan->lanes));
    plan->threads = threads;
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < threads && status == dnnl_success; i++)
        status = create_lane(plan, engine, &plan->lanes[i]);
    return check_library(status, "prepare a matrix product");
}

static avl_status_t create_plan(avl_matmul_plan_t *plan, dnnl_engine_t engine) {
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_status_t status = describe_operands(plan);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_create(&attributes);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_fpmath_mode(attributes, dnnl_fpmath_mode_strict);
    if (status == dnnl_success) {
        int threads_before = avl_matmul_begin();
        status = create_primitive(plan, engine, attributes);
        avl_matmul_end(threads_before);
    }
    if (attributes != NULL)
        dnnl_primitive_attr_destroy(attributes);
    return check_library(status, "plan a matrix product");
}

static avl_matmul_plan_t *free_plan(avl_matmul_t *matmul) {
    if (matmul->plan_count < PLANS_MAX)
        return &matmul->plans[matmul->plan_count++];
    avl_matmul_plan_t *oldest = &matmul->plans[0];
    for (int i = 1; i < PLANS_MAX; i++) {
        if (matmul->plans[i].last_use < oldest->last_use)
            oldest = &matmul->plans[i];
    }
    clear_plan(oldest);
    return oldest;
}

avl_status_t avl_matmul_plan(avl_matmul_t *matmul, const avl_linear_args_t *args,
                             const avl_matmul_plan_t **plan_p) {
    matmul->use++;
    for (int i = 0; i < matmul->plan_count; i++) {
        avl_matmul_plan_t *plan = &matmul->plans[i];
        if (plan->depth == args->in_width && plan->input_stride == args->input_stride &&
            plan->weight_stride == args->weight_stride && plan->dtype == args->dtype) {
            plan->last_use = matmul->use;
            *plan_p = plan->is_slow ? NULL : plan;
            return AVL_OK;
        }
    }
    avl_matmul_plan_t *plan = free_plan(matmul);
    *plan = (avl_matmul_plan_t){.depth = args->in_width,
                                .input_stride = args->input_stride,
                                .weight_stride = args->weight_stride,
                                .dtype = args->dtype,
                                .last_use = matmul->use};
    avl_status_t status = create_plan(plan, matmul->engine);
    if (status == AVL_OK && !plan->is_slow)
        status = create_lanes(plan, matmul->engine, matmul->threads);
    if (status != AVL_OK) {
        clear_plan(plan); /* depth 0 is never looked for */
        return status;
    }
    *plan_p = plan->is_slow ? NULL : plan;
    return AVL_OK;
}

static size_t sums_bytes(void) {
    return sizeof(float) * AVL_MATMUL_ROWS * AVL_MATMUL_COLUMNS;
}

size_t avl_matmul_scratch_bytes(const avl_matmul_plan_t *plan) {
    return sums_bytes() + dnnl_memory_desc_get_size(&plan->scratchpad) + SCRATCH_ALIGNMENT_BYTES;
}

/* The library's handles are not const, but it reads the operands alone. */
static void *without_const(const void *memory) {
    void *result;
    memcpy(&result, &memory, sizeof result);
    return result;
}

avl_status_t avl_matmul_run(const avl_matmul_plan_t *plan, const avl_linear_args_t *args,
                            int64_t row, int64_t column, int thread, void *scratch) {
    int64_t element = (int64_t)avl_dtype_bytes(args->dtype);
    const lane_t *lane = &plan->lanes[thread];
    void *const memory[OPERANDS] = {
        without_const((const char *)args->input + row * args->input_stride * element),
        without_const((const char *)args->weight + column * args->weight_stride * element),
        scratch,
        (char *)scratch + sums_bytes(),
    };
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < OPERANDS && status == dnnl_success; i++)
        status = dnnl_memory_set_data_handle_v2(lane->operands[i].memory, memory[i], lane->stream);
    if (status == dnnl_success)
        status = dnnl_primitive_execute(plan->primitive, lane->stream, OPERANDS, lane->operands);
    if (status == dnnl_success)
        status = dnnl_stream_wait(lane->stream);
    return check_library(status, "compute a matrix product");
}
