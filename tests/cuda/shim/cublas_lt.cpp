/* tests/cuda/shim/cublas_lt.cpp: stands in for cuBLASLt: a plain product, column-major as the
 * library's, for what kernels/cuda/blas.cu asks of it. It is as awkward as the library may be:
 *   - the order of a sum depends on the algorithm, and that on the columns it was chosen for;
 *   - an algorithm that splits K needs workspace by the columns, and rounds as its reduction says;
 *   - it takes rows aligned to 16 bytes alone, and holds its caller to the alignments stated.
 * A broken promise ends the process with a text. */
#include <stdlib.h>

#include "base/dtype.h"
#include "tests/cuda/shim/cublasLt.h"

struct avl_shim_blas {
    int nothing;
};

struct avl_shim_operation {
    cublasOperation_t transposed_a;
    cublasLtEpilogue_t epilogue;
    const float *bias;
    cudaDataType_t bias_type;
};

struct avl_shim_layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t stride;
};

struct avl_shim_preference {
    size_t workspace_bytes;
    uint32_t reductions, alignments[4];
};

/* What an algorithm is. */
struct choice_t {
    uint32_t reduction, parts, lanes;
};

enum { LANES_MAX = 32, ALIGNMENT = 16 };

static_assert(sizeof(choice_t) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm is opaque bytes");

template <typename T> static cublasStatus_t create(T **made, const T &value) {
    *made = (T *)malloc(sizeof value);
    if (*made == nullptr)
        return CUBLAS_STATUS_ALLOC_FAILED;
    **made = value;
    return CUBLAS_STATUS_SUCCESS;
}

template <typename T> static cublasStatus_t destroy(T *made) {
    free(made);
    return CUBLAS_STATUS_SUCCESS;
}

template <typename T> static cublasStatus_t take(T *target, const void *value, size_t bytes) {
    if (bytes != sizeof *target)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(target, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS        ? "CUBLAS_STATUS_SUCCESS"
           : status == CUBLAS_STATUS_ALLOC_FAILED ? "CUBLAS_STATUS_ALLOC_FAILED"
                                                  : "CUBLAS_STATUS of another number";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    return create(handle, avl_shim_blas{0});
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return destroy(handle);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *operation, cublasComputeType_t type,
                                        cudaDataType_t scale) {
    if (type != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return create(operation,
                  avl_shim_operation{CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr, CUDA_R_16BF});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
    return destroy(operation);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return take(&operation->transposed_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return take(&operation->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return take(&operation->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return take(&operation->bias_type, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
    return create(layout, avl_shim_layout{type, rows, columns, stride});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return destroy(layout);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes) {
    return attribute == CUBLASLT_MATRIX_LAYOUT_COLS ? take(&layout->columns, value, bytes)
                                                    : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    return create(preference,
                  avl_shim_preference{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return destroy(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes) {
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return take(&preference->workspace_bytes, value, bytes);
    if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        return take(&preference->reductions, value, bytes);
    return take(&preference->alignments[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                value, bytes);
}

/* ---- choosing ---- */

static size_t element_bytes(cudaDataType_t type) {
    return type == CUDA_R_32F ? 4 : 2;
}

/* Whether the matrices fit each other: d = transposed a times b. */
static int is_product(const avl_shim_operation *operation, const avl_shim_layout *a,
                      const avl_shim_layout *b, const avl_shim_layout *c,
                      const avl_shim_layout *d) {
    return operation->transposed_a == CUBLAS_OP_T && a->type == b->type && c->type == d->type &&
           (d->type == a->type || d->type == CUDA_R_32F) && a->rows == b->rows &&
           a->columns == d->rows && b->columns == d->columns && c->rows == d->rows &&
           c->columns == d->columns && c->stride == d->stride && a->rows > 0 && d->rows > 0 &&
           d->columns > 0 && a->stride >= (int64_t)a->rows && b->stride >= (int64_t)b->rows &&
           d->stride >= (int64_t)d->rows;
}

static int is_aligned(const avl_shim_layout *layout) {
    return (uint64_t)layout->stride * element_bytes(layout->type) % ALIGNMENT == 0;
}

static size_t workspace_of(const choice_t &choice, const avl_shim_layout *d) {
    return choice.parts > 1 ? choice.parts * d->rows * d->columns * sizeof(float) : 0;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *found) {
    *found = 0;
    if (!is_product(operation, a, b, c, d) || wanted < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    if ((operation->epilogue & CUBLASLT_EPILOGUE_BIAS) != 0 && operation->bias_type != d->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (uint32_t alignment : preference->alignments)
        if (alignment < ALIGNMENT)
            return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!is_aligned(a) || !is_aligned(b) || !is_aligned(d))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    choice_t choice = {CUBLASLT_REDUCTION_SCHEME_NONE, 1, LANES_MAX};
    while (choice.lanes > 4 && choice.lanes > d->columns)
        choice.lanes /= 2;
    choice_t split = choice;
    split.parts = 2;
    split.reduction = preference->reductions & CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    if (split.reduction == 0)
        split.reduction = preference->reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    if (split.reduction != 0 && workspace_of(split, d) <= preference->workspace_bytes)
        choice = split;
    cublasLtMatmulHeuristicResult_t *result = &results[0];
    memset(result, 0, sizeof *result);
    memcpy(&result->algo, &choice, sizeof choice);
    result->workspaceSize = workspace_of(choice, d);
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void *value, size_t bytes, size_t *written) {
    choice_t choice;
    memcpy(&choice, algorithm, sizeof choice);
    if (attribute != CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME || bytes != sizeof choice.reduction)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &choice.reduction, bytes);
    *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algorithm,
                                       cublasLtMatmulHeuristicResult_t *result) {
    choice_t choice;
    memcpy(&choice, algorithm, sizeof choice);
    if (!is_product(operation, a, b, c, d))
        return CUBLAS_STATUS_INVALID_VALUE;
    memset(result, 0, sizeof *result);
    result->algo = *algorithm;
    result->workspaceSize = workspace_of(choice, d);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- multiplying ---- */

struct product_task : avl_shim_task {
    avl_shim_operation operation;
    avl_shim_layout a, b, d;
    const void *left, *right;
    void *output;
    choice_t choice;
};

static float value_of(const float *memory, int64_t place) {
    return memory[place];
}
template <float VALUE(uint16_t)> struct sixteen_t { uint16_t bits; };
template <float VALUE(uint16_t)>
static float value_of(const sixteen_t<VALUE> *memory, int64_t place) {
    return VALUE(memory[place].bits);
}

/* LANES sums side by side: the order is fixed, and the compiler can use vectors. */
template <typename T, int LANES>
static float dot(const T *a, const T *b, int64_t first, int64_t end) {
    float sums[LANES] = {}, sum = 0;
    int64_t k = first;
    for (; k + LANES <= end; k += LANES)
        for (int i = 0; i < LANES; i++)
            sums[i] += value_of(a, k + i) * value_of(b, k + i);
    for (int i = 0; k < end; k++, i++)
        sums[i] += value_of(a, k) * value_of(b, k);
    for (int i = 0; i < LANES; i++)
        sum += sums[i];
    return sum;
}

static float rounded(cudaDataType_t type, float value) {
    return type == CUDA_R_32F   ? value
           : type == CUDA_R_16F ? avl_f16_to_f32(avl_f32_to_f16(value))
                                : avl_bf16_to_f32(avl_f32_to_bf16(value));
}

static void store(const product_task *task, int64_t place, float value) {
    if (task->d.type == CUDA_R_32F)
        ((float *)task->output)[place] = value;
    else
        ((uint16_t *)task->output)[place] =
            task->d.type == CUDA_R_16F ? avl_f32_to_f16(value) : avl_f32_to_bf16(value);
}

template <typename T, int LANES> static void multiply_by(const product_task *task) {
    int64_t width = (int64_t)task->a.rows, parts = task->choice.parts;
    for (int64_t t = 0; t < (int64_t)task->d.columns; t++) {
        for (int64_t n = 0; n < (int64_t)task->d.rows; n++) {
            float sum = 0;
            for (int64_t part = 0; part < parts; part++) {
                float own = dot<T, LANES>((const T *)task->left + n * task->a.stride,
                                          (const T *)task->right + t * task->b.stride,
                                          width * part / parts, width * (part + 1) / parts);
                sum += task->choice.reduction == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
                           ? rounded(task->d.type, own)
                           : own;
            }
            if ((task->operation.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0)
                sum += task->operation.bias[n];
            if ((task->operation.epilogue & CUBLASLT_EPILOGUE_RELU) != 0 && sum < 0)
                sum = 0;
            store(task, t * task->d.stride + n, sum);
        }
    }
}

template <typename T> static void multiply(const product_task *task) {
    if (task->choice.lanes >= 32)
        multiply_by<T, 32>(task);
    else if (task->choice.lanes >= 16)
        multiply_by<T, 16>(task);
    else if (task->choice.lanes >= 8)
        multiply_by<T, 8>(task);
    else
        multiply_by<T, 4>(task);
}

static void keep_promise(int is_kept, const char *text) {
    if (!is_kept)
        avl_shim_stop("cuBLASLt's stand-in: %s", text);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    choice_t choice;
    memcpy(&choice, algorithm, sizeof choice);
    const float *bias = operation->bias;
    if ((operation->epilogue & CUBLASLT_EPILOGUE_BIAS) == 0)
        bias = nullptr;
    keep_promise(*(const float *)alpha == 1.0f && *(const float *)beta == 0.0f && c == d,
                 "it makes d = a b alone");
    keep_promise(is_product(operation, a_layout, b_layout, c_layout, d_layout),
                 "the layouts are not those of a product");
    keep_promise(
        ((uintptr_t)a | (uintptr_t)b | (uintptr_t)d | (uintptr_t)bias | (uintptr_t)workspace) %
                ALIGNMENT ==
            0,
        "a matrix, a bias or the workspace is not aligned to 16 bytes");
    keep_promise(workspace_of(choice, d_layout) <= workspace_bytes, "too little workspace");
    product_task *task = (product_task *)calloc(1, sizeof *task);
    if (task == nullptr)
        return CUBLAS_STATUS_ALLOC_FAILED;
    task->operation = *operation;
    task->a = *a_layout;
    task->b = *b_layout;
    task->d = *d_layout;
    task->left = a;
    task->right = b;
    task->output = d;
    task->choice = choice;
    const void *const pointers[] = {a, b, d, bias};
    avl_shim_check_arguments(pointers, sizeof pointers);
    task->run = [](avl_shim_task *self) {
        product_task *own = (product_task *)self;
        if (own->a.type == CUDA_R_32F)
            multiply<float>(own);
        else if (own->a.type == CUDA_R_16F)
            multiply<sixteen_t<avl_f16_to_f32>>(own);
        else
            multiply<sixteen_t<avl_bf16_to_f32>>(own);
    };
    task->destroy = [](avl_shim_task *self) { free(self); };
    avl_shim_enqueue(stream, task);
    return CUBLAS_STATUS_SUCCESS;
}
