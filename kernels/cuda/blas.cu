/* kernels/cuda/blas.cu: cuBLASLt. Its matrices are column-major, so our row-major output [T, N] is
 * its N x T, the product of the transposed weight and the input.
 *
 * The library chooses by the number of rows among algorithms that add up in different orders. A
 * row's result must not depend on the rows beside it, so it is asked about one number of rows for
 * each way that a product can take (kernels/linear.h), and all products that take this way get the
 * answer.
 *
 * Asking the library which algorithm to use costs as much as a small product, and describing one to
 * it costs as much as a launch, so both are kept per shape in a table of fixed size that forgets
 * what it must. */
#include "kernels/cuda/blas.h"

#include <stdlib.h>

#include <cublasLt.h>

namespace {

constexpr int PLANS = 1024; /* a power of two: several models' worth of shapes */
constexpr size_t WORKSPACE_BYTES = (size_t)32 << 20; /* what NVIDIA recommends for Hopper */
/* Where K is split, the parts are kept and added in f32: others would round more often than the
 * contract allows. */
constexpr uint32_t REDUCTIONS = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
/* The rows that the library is asked about: of decode steps, and of prompts. */
constexpr int64_t FEW_ROWS = 64, MANY_ROWS = 2048;

/* Everything that the choice depends on; compared as bytes, so every gap is zeroed. */
typedef struct key {
    int64_t rows; /* that the library is asked about */
    int64_t in_width, out_width;
    int64_t input_stride, weight_stride, output_stride;
    int32_t dtype, output_dtype, activation, has_bias;
    int32_t alignments[4]; /* weight, input, output, bias, in bytes */
} product_key_t;

/* The library's descriptions of one product. */
typedef struct description {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t weight, input, output;
    cublasLtMatmulPreference_t preference;
} description_t;

typedef struct plan {
    product_key_t key;
    int is_set, is_possible;
    int64_t rows; /* that the layouts describe, and whether the algorithm takes so many */
    int fits;
    cublasLtMatmulAlgo_t algorithm;
    description_t description; /* when it is possible; the bias is set anew for every product */
} plan_t;

avl_status_t blas_status(cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS)
        return AVL_OK;
    return avl_fail(AVL_ERR_DEVICE, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(status));
}

cudaDataType_t type_of(int32_t dtype) {
    return dtype == AVL_DTYPE_F32 ? CUDA_R_32F : dtype == AVL_DTYPE_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

/* The largest power of two up to 16 that divides an address: no algorithm asks for more, and which
 * row a product begins at makes no difference. */
int32_t alignment_of(const void *memory) {
    uintptr_t bits = (uintptr_t)memory | 16;
    return (int32_t)(bits & ~(bits - 1));
}

int64_t rows_asked_about(const avl_cuda_product_t *product) {
    int is_many = product->way == AVL_LINEAR_MANY ||
                  (product->way == AVL_LINEAR_BY_ROWS && product->rows >= AVL_LINEAR_MANY_ROWS);
    return is_many ? MANY_ROWS : FEW_ROWS;
}

product_key_t key_of(const avl_cuda_product_t *product, int64_t rows) {
    product_key_t key;
    memset(&key, 0, sizeof key);
    key.rows = rows;
    key.in_width = product->in_width;
    key.out_width = product->out_width;
    key.input_stride = product->input_stride;
    key.weight_stride = product->weight_stride;
    key.output_stride = product->output_stride;
    key.dtype = product->dtype;
    key.output_dtype = product->output_dtype;
    key.activation = product->activation;
    key.has_bias = product->bias != nullptr;
    key.alignments[0] = alignment_of(product->weight);
    key.alignments[1] = alignment_of(product->input);
    key.alignments[2] = alignment_of(product->output);
    key.alignments[3] = alignment_of(product->bias);
    return key;
}

/* FNV-1a. */
unsigned hash_of(const product_key_t *key) {
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < sizeof *key; i++)
        hash = (hash ^ ((const unsigned char *)key)[i]) * UINT64_C(1099511628211);
    return (unsigned)(hash >> 32) % PLANS;
}

void destroy_description(description_t *description) {
    if (description->preference != nullptr)
        (void)cublasLtMatmulPreferenceDestroy(description->preference);
    if (description->output != nullptr)
        (void)cublasLtMatrixLayoutDestroy(description->output);
    if (description->input != nullptr)
        (void)cublasLtMatrixLayoutDestroy(description->input);
    if (description->weight != nullptr)
        (void)cublasLtMatrixLayoutDestroy(description->weight);
    if (description->operation != nullptr)
        (void)cublasLtMatmulDescDestroy(description->operation);
}

avl_status_t set_operation(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                           const void *value, size_t bytes) {
    return blas_status(cublasLtMatmulDescSetAttribute(operation, attribute, value, bytes),
                       "describing a product");
}

avl_status_t describe_operation(const avl_cuda_product_t *product, description_t *description) {
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    int is_relu = product->activation == AVL_ACTIVATION_RELU;
    if (product->bias != nullptr)
        epilogue = is_relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
    else if (is_relu)
        epilogue = CUBLASLT_EPILOGUE_RELU;
    AVL_TRY(blas_status(
        cublasLtMatmulDescCreate(&description->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "describing a product"));
    AVL_TRY(set_operation(description->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                          sizeof transposed));
    AVL_TRY(set_operation(description->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                          sizeof epilogue));
    if (product->bias == nullptr)
        return AVL_OK;
    cudaDataType_t bias_type = CUDA_R_32F;
    AVL_TRY(set_operation(description->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                          sizeof bias_type));
    return set_operation(description->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product->bias,
                         sizeof product->bias);
}

avl_status_t describe_layouts(const avl_cuda_product_t *product, int64_t rows,
                              description_t *description) {
    cudaDataType_t type = type_of(product->dtype);
    AVL_TRY(blas_status(
        cublasLtMatrixLayoutCreate(&description->weight, type, (uint64_t)product->in_width,
                                   (uint64_t)product->out_width, product->weight_stride),
        "describing the weight"));
    AVL_TRY(blas_status(cublasLtMatrixLayoutCreate(&description->input, type,
                                                   (uint64_t)product->in_width, (uint64_t)rows,
                                                   product->input_stride),
                        "describing the input"));
    return blas_status(cublasLtMatrixLayoutCreate(
                           &description->output, type_of(product->output_dtype),
                           (uint64_t)product->out_width, (uint64_t)rows, product->output_stride),
                       "describing the output");
}

avl_status_t describe_preference(const product_key_t *key, description_t *description) {
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    static const int sources[] = {0, 1, 2, 2};
    size_t workspace_bytes = WORKSPACE_BYTES;
    uint32_t reductions = REDUCTIONS;
    AVL_TRY(blas_status(cublasLtMatmulPreferenceCreate(&description->preference),
                        "stating preferences"));
    AVL_TRY(blas_status(cublasLtMatmulPreferenceSetAttribute(
                            description->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                            &workspace_bytes, sizeof workspace_bytes),
                        "stating preferences"));
    AVL_TRY(blas_status(cublasLtMatmulPreferenceSetAttribute(
                            description->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                            &reductions, sizeof reductions),
                        "stating preferences"));
    for (int i = 0; i < 4; i++) {
        uint32_t bytes = (uint32_t)key->alignments[sources[i]];
        AVL_TRY(blas_status(cublasLtMatmulPreferenceSetAttribute(
                                description->preference, alignments[i], &bytes, sizeof bytes),
                            "stating preferences"));
    }
    return AVL_OK;
}

} // namespace

struct avl_cuda_blas {
    cublasLtHandle_t handle;
    cudaStream_t stream;
    void *workspace;
    plan_t plans[PLANS];
};

namespace {

/* Answers that say no more than that the library has no way for this product. */
int is_refusal(cublasStatus_t status) {
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
}

avl_status_t find_plan(avl_cuda_blas_t *blas, const description_t *description, plan_t *plan) {
    cublasLtMatmulHeuristicResult_t results[8];
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        blas->handle, description->operation, description->weight, description->input,
        description->output, description->output, description->preference,
        (int)(sizeof results / sizeof *results), results, &found);
    if (is_refusal(status))
        return AVL_OK;
    AVL_TRY(blas_status(status, "choosing an algorithm"));
    for (int i = 0; i < found && !plan->is_possible; i++) {
        uint32_t reduction = 0;
        size_t written = 0;
        if (results[i].state != CUBLAS_STATUS_SUCCESS ||
            cublasLtMatmulAlgoConfigGetAttribute(
                &results[i].algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                sizeof reduction, &written) != CUBLAS_STATUS_SUCCESS ||
            (reduction & ~REDUCTIONS) != 0)
            continue;
        plan->algorithm = results[i].algo;
        plan->is_possible = plan->fits = 1;
    }
    return AVL_OK;
}

/* Makes the plan's layouts those of the product. */
avl_status_t fit_rows(avl_cuda_blas_t *blas, const avl_cuda_product_t *product, plan_t *plan) {
    const description_t *description = &plan->description;
    uint64_t rows = (uint64_t)product->rows;
    cublasLtMatmulHeuristicResult_t result;
    if (!plan->is_possible || plan->rows == product->rows)
        return AVL_OK;
    plan->rows = 0;
    AVL_TRY(blas_status(cublasLtMatrixLayoutSetAttribute(
                            description->input, CUBLASLT_MATRIX_LAYOUT_COLS, &rows, sizeof rows),
                        "describing the input"));
    AVL_TRY(blas_status(cublasLtMatrixLayoutSetAttribute(
                            description->output, CUBLASLT_MATRIX_LAYOUT_COLS, &rows, sizeof rows),
                        "describing the output"));
    plan->fits =
        cublasLtMatmulAlgoCheck(blas->handle, description->operation, description->weight,
                                description->input, description->output, description->output,
                                &plan->algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
        result.workspaceSize <= WORKSPACE_BYTES;
    plan->rows = product->rows;
    return AVL_OK;
}

/* Forgets what the place held and finds out how the product is made. */
avl_status_t make_plan(avl_cuda_blas_t *blas, const avl_cuda_product_t *product,
                       const product_key_t *key, plan_t *plan) {
    destroy_description(&plan->description);
    memset(plan, 0, sizeof *plan);
    plan->key = *key;
    plan->rows = key->rows;
    description_t *description = &plan->description;
    AVL_TRY(describe_operation(product, description));
    AVL_TRY(describe_layouts(product, key->rows, description));
    AVL_TRY(describe_preference(key, description));
    AVL_TRY(find_plan(blas, description, plan));
    plan->is_set = 1;
    return AVL_OK;
}

/* The plan for the product when the library is asked about `rows`, ready for this one's. */
avl_status_t plan_of(avl_cuda_blas_t *blas, const avl_cuda_product_t *product, int64_t rows,
                     plan_t **plan_p) {
    product_key_t key = key_of(product, rows);
    plan_t *plan = &blas->plans[hash_of(&key)];
    if (!plan->is_set || memcmp(&plan->key, &key, sizeof key) != 0)
        AVL_TRY(make_plan(blas, product, &key, plan));
    else if (plan->is_possible && product->bias != nullptr)
        AVL_TRY(set_operation(plan->description.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                              &product->bias, sizeof product->bias));
    AVL_TRY(fit_rows(blas, product, plan));
    *plan_p = plan;
    return AVL_OK;
}

} // namespace

avl_status_t avl_cuda_blas_product(avl_cuda_blas_t *blas, const avl_cuda_product_t *product,
                                   int *done_p) {
    plan_t *plan = nullptr;
    float one = 1.0f, zero = 0.0f;
    *done_p = 0;
    AVL_TRY(plan_of(blas, product, rows_asked_about(product), &plan));
    /* Too many rows for the answer, by the workspace that it takes: an answer of their own. */
    if (plan->is_possible && !plan->fits)
        AVL_TRY(plan_of(blas, product, product->rows, &plan));
    if (!plan->is_possible || !plan->fits)
        return AVL_OK;
    const description_t *description = &plan->description;
    cublasStatus_t status =
        cublasLtMatmul(blas->handle, description->operation, &one, product->weight,
                       description->weight, product->input, description->input, &zero,
                       product->output, description->output, product->output, description->output,
                       &plan->algorithm, blas->workspace, WORKSPACE_BYTES, blas->stream);
    if (is_refusal(status)) {
        plan->is_possible = 0;
        return AVL_OK;
    }
    AVL_TRY(blas_status(status, "a product"));
    *done_p = 1;
    return AVL_OK;
}

avl_status_t avl_cuda_blas_create(cudaStream_t stream, avl_cuda_blas_t **blas_p) {
    avl_cuda_blas_t *blas = (avl_cuda_blas_t *)calloc(1, sizeof *blas);
    if (blas == nullptr)
        return avl_fail(AVL_ERR_MEMORY, "no memory for cuBLASLt's plans");
    blas->stream = stream;
    avl_status_t status = AVL_OK;
    AVL_TRY_GOTO(status, blas_status(cublasLtCreate(&blas->handle), "opening the library"), err);
    AVL_TRY_GOTO(status,
                 avl_cuda_status(cudaMalloc(&blas->workspace, WORKSPACE_BYTES), "its workspace"),
                 err);
    *blas_p = blas;
    return AVL_OK;

err:
    avl_cuda_blas_destroy(blas);
    return status;
}

void avl_cuda_blas_destroy(avl_cuda_blas_t *blas) {
    if (blas == nullptr)
        return;
    for (int i = 0; i < PLANS; i++)
        destroy_description(&blas->plans[i].description);
    (void)cudaFree(blas->workspace);
    if (blas->handle != nullptr)
        (void)cublasLtDestroy(blas->handle);
    free(blas);
}
