// matmul.cu - everything that is a matrix product: linears, logits, the generator's last step.
//
// Products are of our tensors as they lie; what accumulates does so inside
// the product (C is read and written). The library's own ranking picks the algorithm, once for each
// shape, from those that do not split the inner dimension; float32 stays float32 (no tf32). So equal
// shapes give equal bits, on one kind of card with one version of the library. Weight gradients too
// small to fill a card are split by us, into as many parts as their shape says.
#include <pthread.h>
#include <string.h>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cublaslt.cuh"

enum { DEVICES_MOST = 64, PLANS = 4096, BIAS_THREADS = 256, SPLIT_TILE = 128, SPLIT_LEAST = 64 };

// C [M, N] = A [M, K] B [K, N] (+ C), row-major; `parts` of them, one behind the other (0: one).
struct product {
    size_t M, N, K;
    const void *A, *B;
    void *C;
    bool a_transposed, b_transposed; // stored the other way round
    enum dtype in, out;
    bool accumulate;
    size_t parts;
};

// What an algorithm depends on.
struct plan_key {
    uint64_t M, N, K;
    uint32_t flags;
    int32_t device;
    uint64_t parts;
};

struct plan {
    struct plan_key key;
    bool used;
    cublasLtMatmulAlgo_t algorithm;
};

static cublasLtHandle_t handles[DEVICES_MOST];
static struct plan plans[PLANS]; // open addressing; a full table only costs time
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void library_check(cublasStatus_t status, const char *doing)
{
    CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: %s: %s", doing,
          library.status_string(status));
}

static int device_bound(void)
{
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    CHECK(error == cudaSuccess && device < DEVICES_MOST, "GPU %d: %s", device,
          cudaGetErrorString(error));
    return device;
}

extern "C" status_t cuda_matmul_init(void)
{
    int device = device_bound();
    pthread_mutex_lock(&mutex);
    status_t status = library_load();
    if (status == STATUS_OK && !handles[device]) {
        cublasStatus_t result = library.create(&handles[device]);
        if (result != CUBLAS_STATUS_SUCCESS) {
            status = FAIL(STATUS_UNSUPPORTED, "cuBLASLt does not start: %s",
                          library.status_string(result));
        }
    }
    pthread_mutex_unlock(&mutex);
    return status;
}

static cudaDataType_t data_type(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The library sees everything transposed, since it counts columns first: C^T = B^T A^T.
struct library_call {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t A, B, C; // its A is our B
};

static void layout_set(cublasLtMatrixLayoutOpaque_t *layout, enum dtype dtype, size_t rows,
                       size_t columns, size_t parts)
{
    int32_t count = (int32_t)parts;
    int64_t apart = (int64_t)(rows * columns);
    library_check(library.layout_init(layout, sizeof *layout, data_type(dtype), columns, rows,
                                      (int64_t)columns),
                  "describing a matrix");
    if (parts > 0) {
        library_check(
            library.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
            "describing a matrix");
        library_check(library.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                         &apart, sizeof apart),
                      "describing a matrix");
    }
}

static void call_describe(struct library_call *call, const struct product *p)
{
    cublasOperation_t plain = CUBLAS_OP_N, turned = CUBLAS_OP_T;
    library_check(library.operation_init(&call->operation, sizeof call->operation,
                                         CUBLAS_COMPUTE_32F, CUDA_R_32F),
                  "describing a product");
    library_check(library.operation_set(&call->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                        p->b_transposed ? &turned : &plain, sizeof plain),
                  "describing a product");
    library_check(library.operation_set(&call->operation, CUBLASLT_MATMUL_DESC_TRANSB,
                                        p->a_transposed ? &turned : &plain, sizeof plain),
                  "describing a product");
    layout_set(&call->A, p->in, p->b_transposed ? p->N : p->K, p->b_transposed ? p->K : p->N,
               p->parts);
    layout_set(&call->B, p->in, p->a_transposed ? p->K : p->M, p->a_transposed ? p->M : p->K,
               p->parts);
    layout_set(&call->C, p->out, p->M, p->N, p->parts);
}

// Bytes that rows' starts are multiples of: by the shape alone for aligned tensors.
static uint32_t alignment_of(const void *base, size_t row_bytes, enum dtype dtype)
{
    return aligned(base) && row_bytes % 16 == 0 ? 16 : (uint32_t)dtype_size(dtype);
}

struct alignments {
    uint32_t A, B, C; // the library's A and B
};

static struct alignments alignments_of(const struct product *p)
{
    size_t in = dtype_size(p->in), out = dtype_size(p->out);
    struct alignments a;
    a.A = alignment_of(p->B, (p->b_transposed ? p->K : p->N) * in, p->in);
    a.B = alignment_of(p->A, (p->a_transposed ? p->M : p->K) * in, p->in);
    a.C = alignment_of(p->C, p->N * out, p->out);
    return a;
}

template <typename V>
static void preference_set(cublasLtMatmulPreferenceOpaque_t *preference,
                           cublasLtMatmulPreferenceAttributes_t attribute, V value)
{
    library_check(library.preference_set(preference, attribute, &value, sizeof value),
                  "choosing an algorithm");
}

static void algorithm_choose(cublasLtHandle_t handle, struct library_call *call,
                             const struct product *p, cublasLtMatmulAlgo_t *out)
{
    struct alignments a = alignments_of(p);
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    library_check(library.preference_init(&preference, sizeof preference), "choosing an algorithm");
    preference_set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                   (uint64_t)CUDA_MATMUL_BYTES);
    preference_set(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                   (uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE);
    preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a.A);
    preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a.B);
    preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, a.C);
    preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, a.C);
    cublasStatus_t status = library.heuristic(handle, &call->operation, &call->A, &call->B,
                                              &call->C, &call->C, &preference, 1, &best, &found);
    CHECK(status == CUBLAS_STATUS_SUCCESS && found == 1,
          "cuBLASLt has no algorithm for [%zu, %zu] x [%zu, %zu] %s to %s: %s", p->M, p->K, p->K,
          p->N, dtype_name(p->in), dtype_name(p->out), library.status_string(status));
    *out = best.algo;
}

static struct plan_key key_of(const struct product *p, int device)
{
    struct alignments a = alignments_of(p);
    struct plan_key key;
    memset(&key, 0, sizeof key); // compared as bytes
    key.M = p->M, key.N = p->N, key.K = p->K;
    key.device = device;
    key.parts = p->parts;
    key.flags = (uint32_t)p->a_transposed | (uint32_t)p->b_transposed << 1 |
                (uint32_t)p->accumulate << 2 | (uint32_t)p->in << 3 | (uint32_t)p->out << 4 |
                (uint32_t)(a.A == 16) << 5 | (uint32_t)(a.B == 16) << 6 |
                (uint32_t)(a.C == 16) << 7;
    return key;
}

// The key's place, or an empty one for it; NULL when the table is full.
static struct plan *plan_find(const struct plan_key *key)
{
    uint64_t hash = key->M * 0x9e3779b97f4a7c15u ^ key->N * 0xc2b2ae3d27d4eb4fu ^
                    key->K * 0x165667b19e3779f9u ^ key->flags * 0x27d4eb2f165667c5u ^
                    key->parts * 0x9fb21c651e98df25u ^ (uint64_t)key->device;
    hash ^= hash >> 29;
    for (size_t i = 0; i < PLANS; i++) {
        struct plan *plan = &plans[(hash + i) % PLANS];
        if (!plan->used || memcmp(&plan->key, key, sizeof *key) == 0) {
            return plan;
        }
    }
    return NULL;
}

// The shape's algorithm, from the table once it has been chosen.
static cublasLtMatmulAlgo_t algorithm_of(cublasLtHandle_t handle, struct library_call *call,
                                         const struct product *p, int device)
{
    struct plan_key key = key_of(p, device);
    cublasLtMatmulAlgo_t algorithm;
    pthread_mutex_lock(&mutex);
    struct plan *plan = plan_find(&key);
    if (plan && plan->used) {
        algorithm = plan->algorithm;
    } else {
        algorithm_choose(handle, call, p, &algorithm);
        if (plan) {
            plan->key = key;
            plan->algorithm = algorithm;
            plan->used = true;
        }
    }
    pthread_mutex_unlock(&mutex);
    return algorithm;
}

static void product_run(const struct kernel_ctx *ctx, const struct product *p)
{
    if (p->M == 0 || p->N == 0) {
        return;
    }
    int device = device_bound();
    cublasLtHandle_t handle = handles[device];
    CHECK(handle, "GPU %d: its table was not asked for", device);
    struct library_call call;
    call_describe(&call, p);
    cublasLtMatmulAlgo_t algorithm = algorithm_of(handle, &call, p, device);
    void *workspace = workspace_get(ctx, CUDA_MATMUL_BYTES);
    float one = 1, beta = p->accumulate ? 1 : 0;
    library_check(library.matmul(handle, &call.operation, &one, p->B, &call.A, p->A, &call.B, &beta,
                                 p->C, &call.C, p->C, &call.C, &algorithm, workspace,
                                 CUDA_MATMUL_BYTES, stream_of(ctx)),
                  "a product");
}

// ---- biases ----

// Every row of y = bias.
template <typename Y, typename T>
static __global__ void __launch_bounds__(BIAS_THREADS)
    bias_kernel(Y *y, const T *bias, size_t count, size_t O)
{
    size_t step = (size_t)gridDim.x * BIAS_THREADS;
    for (size_t i = (size_t)blockIdx.x * BIAS_THREADS + threadIdx.x; i < count; i += step) {
        y[i] = from_float<Y>(to_float(bias[i % O]));
    }
}

template <typename Y, typename T>
static void bias_set(const struct kernel_ctx *ctx, Y *y, const T *bias, size_t N, size_t O)
{
    size_t blocks = blocks_of(N * O, BIAS_THREADS);
    blocks = blocks < EACH_BLOCKS_MOST ? blocks : EACH_BLOCKS_MOST;
    if (blocks > 0) {
        bias_kernel<Y, T><<<grid_of(blocks), BIAS_THREADS, 0, stream_of(ctx)>>>(y, bias, N * O, O);
        launch_check("bias");
    }
}

// Sums of a chunk of rows down a strip of columns.
template <typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    columns_kernel(float *part, const T *a, size_t rows, size_t width, size_t chunk_rows, bool wide)
{
    size_t at = column_first();
    size_t begin = blockIdx.y * chunk_rows, end = min(rows, begin + chunk_rows);
    float sum[COLUMN_LANES] = {};
#pragma unroll 4
    for (size_t row = begin + threadIdx.y; row < end; row += blockDim.y) {
        float x[4];
        four_load<T>(x, a + row * width, at, width, wide);
#pragma unroll
        for (int i = 0; i < COLUMN_LANES; i++) {
            sum[i] += x[i];
        }
    }
    tall_sum(sum);
    if (threadIdx.y == 0) {
        for (int i = 0; i < COLUMN_LANES && at + i < width; i++) {
            part[(size_t)blockIdx.y * width + at + i] = sum[i];
        }
    }
}

// dbias += column sums of a [rows, width].
template <typename T>
static void columns_add(const struct kernel_ctx *ctx, float *dbias, const T *a, size_t rows,
                        size_t width)
{
    if (rows == 0 || width == 0) {
        return;
    }
    size_t chunk = cuda_column_rows(rows), chunks = blocks_of(rows, chunk);
    float *part = (float *)workspace_get(ctx, cuda_columns_bytes(rows, width));
    column_grid g = column_grid_of(width, chunks);
    columns_kernel<T><<<g.grid, g.block, 0, stream_of(ctx)>>>(part, a, rows, width, chunk,
                                                              rows_aligned<T>(a, width));
    launch_check("bias gradient");
    chunks_add(ctx, dbias, part, chunks, width, width, true);
}

// ---- the table's operations ----

template <typename T> constexpr enum dtype DTYPE = sizeof(T) == 2 ? DTYPE_BF16 : DTYPE_F32;

// y [N, O] = x [N, I] weight^T + bias.
template <typename T, typename Y>
static void forward(const struct kernel_ctx *ctx, Y *y, const void *x, const void *weight,
                    const void *bias, size_t N, size_t I, size_t O)
{
    if (bias) {
        bias_set<Y, T>(ctx, y, (const T *)bias, N, O);
    }
    struct product p = {N, O, I, x, weight, y, false, true, DTYPE<T>, DTYPE<Y>, bias != NULL, 0};
    product_run(ctx, &p);
}

template <typename T>
static void linear_forward(const struct kernel_ctx *ctx, void *y, const void *x, const void *weight,
                           const void *bias, size_t N, size_t I, size_t O)
{
    forward<T, T>(ctx, (T *)y, x, weight, bias, N, I, O);
}

template <typename T>
static void logits_forward(const struct kernel_ctx *ctx, float *logits, const void *x,
                           const void *weight, size_t N, size_t I, size_t O)
{
    forward<T, float>(ctx, logits, x, weight, NULL, N, I, O);
}

template <typename T>
static void linear_backward_input(const struct kernel_ctx *ctx, void *dx, bool accumulate,
                                  const void *dy, const void *weight, size_t N, size_t I, size_t O)
{
    struct product p = {N, I, O, dy, weight, dx, false, false, DTYPE<T>, DTYPE<T>, accumulate, 0};
    product_run(ctx, &p);
}

// Parts that the rows of a small weight gradient are split into: enough for 128 tiles, powers of two
// that divide the rows.
static size_t split_parts(size_t N, size_t I, size_t O)
{
    size_t tiles = blocks_of(I, SPLIT_TILE) * blocks_of(O, SPLIT_TILE), parts = 1;
    while (tiles * parts * 2 <= CUDA_SPLIT_TILES && N % (parts * 2) == 0 &&
           N / (parts * 2) >= SPLIT_LEAST) {
        parts *= 2;
    }
    return parts;
}

// dweight [O, I] += dy^T x. The parts' products go to the workspace's end and are added from there.
template <typename T>
static void weight_gradient(const struct kernel_ctx *ctx, float *dweight, const void *dy,
                            const void *x, size_t N, size_t I, size_t O)
{
    size_t parts = split_parts(N, I, O), bytes = parts * I * O * sizeof(float);
    if (parts == 1) {
        struct product p = {O, I, N, dy, x, dweight, true, false, DTYPE<T>, DTYPE_F32, true, 0};
        product_run(ctx, &p);
        return;
    }
    char *workspace = (char *)workspace_get(ctx, CUDA_MATMUL_BYTES + CUDA_SPLIT_BYTES);
    float *part = (float *)(workspace + CUDA_MATMUL_BYTES);
    CHECK(bytes <= CUDA_SPLIT_BYTES, "%zu parts of %zu x %zu", parts, O, I);
    struct product p = {O,    I,     N / parts, dy,        x,     part,
                        true, false, DTYPE<T>,  DTYPE_F32, false, parts};
    product_run(ctx, &p);
    chunks_add(ctx, dweight, part, parts, I * O, I * O, true);
}

template <typename T>
static void linear_backward_weight(const struct kernel_ctx *ctx, float *dweight, float *dbias,
                                   const void *dy, const void *x, size_t N, size_t I, size_t O)
{
    if (dweight && x) {
        weight_gradient<T>(ctx, dweight, dy, x, N, I, O);
    }
    if (dbias) {
        columns_add(ctx, dbias, (const T *)dy, N, O);
    }
}

template <typename T>
static void mudd_weights_forward(const struct kernel_ctx *ctx, float *weights, const void *hidden,
                                 const void *w2, const void *bias, size_t N, size_t K, size_t Cn)
{
    forward<T, float>(ctx, weights, hidden, w2, bias, N, K, Cn);
}

// The gradient of the weights in the products' dtype: in the workspace behind the products' shares.
template <typename T>
static const void *dweights_rounded(const struct kernel_ctx *ctx, const float *dweights,
                                    size_t count)
{
    if (sizeof(T) == sizeof(float)) {
        return dweights;
    }
    size_t before = CUDA_MATMUL_BYTES + CUDA_SPLIT_BYTES;
    char *workspace = (char *)workspace_get(ctx, before + count * sizeof(T));
    cuda_round(ctx, workspace + before, dweights, count);
    return workspace + before;
}

template <typename T>
static void mudd_weights_backward_input(const struct kernel_ctx *ctx, void *dhidden,
                                        const float *dweights, const void *w2, size_t N, size_t K,
                                        size_t Cn)
{
    const void *dy = dweights_rounded<T>(ctx, dweights, N * Cn);
    linear_backward_input<T>(ctx, dhidden, false, dy, w2, N, K, Cn);
}

template <typename T>
static void mudd_weights_backward_weight(const struct kernel_ctx *ctx, float *dw2, float *dbias,
                                         const float *dweights, const void *hidden, size_t N,
                                         size_t K, size_t Cn)
{
    if (dw2 && hidden) {
        const void *dy = dweights_rounded<T>(ctx, dweights, N * Cn);
        weight_gradient<T>(ctx, dw2, dy, hidden, N, K, Cn);
    }
    if (dbias) {
        columns_add(ctx, dbias, dweights, N, Cn);
    }
}

template <typename T> static void fill(struct kernels *table)
{
    table->linear_forward = linear_forward<T>;
    table->linear_backward_input = linear_backward_input<T>;
    table->linear_backward_weight = linear_backward_weight<T>;
    table->logits_forward = logits_forward<T>;
    table->mudd_weights_forward = mudd_weights_forward<T>;
    table->mudd_weights_backward_input = mudd_weights_backward_input<T>;
    table->mudd_weights_backward_weight = mudd_weights_backward_weight<T>;
}

extern "C" void cuda_matmul_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
