// product.cu - products of our tensors as they lie, by cuBLASLt; the algorithm of each.
//
// What accumulates does so inside the product (C is read and written). float32 stays float32 (no tf32)
// and takes the library's first choice; bfloat16 takes what the table of measured algorithms says, if
// it has the product. A choice is made once for each shape and device, so equal shapes give equal bits:
// on one kind of card with one version of the library and one table.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cublaslt.cuh"
#include "kernels/cuda/product.cuh"

enum { PLANS = 4096, ENTRIES = 1024, CANDIDATES_MOST = 64 };

// A product that has been run, with an algorithm from the table or the library's choice.
struct plan {
    struct product_key key;
    int device;
    bool used, chosen;
    cublasLtMatmulAlgo_t algorithm;
};

static struct library library;
static cublasLtHandle_t handles[DEVICES_MOST];
static struct plan plans[PLANS]; // open addressing; a full table only costs time
static struct product_algorithm entries[ENTRIES];
static size_t entries_count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void library_check(cublasStatus_t status, const char *doing)
{
    CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: %s: %s", doing,
          library.status_string(status));
}

static cublasLtHandle_t handle_of(int device)
{
    CHECK(handles[device], "GPU %d: its table was not asked for", device);
    return handles[device];
}

extern "C" status_t cuda_matmul_init(void)
{
    int device = device_bound();
    pthread_mutex_lock(&mutex);
    status_t status = library_load(&library);
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

extern "C" size_t cuda_matmul_version(void)
{
    return library.version();
}

void product_place(char *text, size_t size)
{
    cudaDeviceProp card;
    cudaError_t error = cudaGetDeviceProperties(&card, device_bound());
    CHECK(error == cudaSuccess, "GPU: its name: %s", cudaGetErrorString(error));
    for (char *c = card.name; *c; c++) {
        *c = *c == ' ' ? '_' : *c;
    }
    snprintf(text, size, "card=%s/%d library=%zu", card.name, card.multiProcessorCount,
             library.version());
}

// ---- how the library sees a product ----

static cudaDataType_t data_type(uint8_t dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

// Everything transposed, since the library counts columns first: C^T = B^T A^T.
struct library_call {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t A, B, C; // its A is our B
};

static void layout_set(cublasLtMatrixLayoutOpaque_t *layout, uint8_t dtype, size_t rows,
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

static void call_describe(struct library_call *call, const struct product_key *p)
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

static bool rows_start_aligned(const void *base, size_t row_bytes)
{
    return aligned(base) && row_bytes % 16 == 0;
}

static struct product_key key_of(const struct product *p)
{
    size_t in = dtype_size(p->in), out = dtype_size(p->out);
    struct product_key key;
    memset(&key, 0, sizeof key);
    key.M = p->M, key.N = p->N, key.K = p->K, key.parts = p->parts;
    key.a_transposed = p->a_transposed, key.b_transposed = p->b_transposed;
    key.in = (uint8_t)p->in, key.out = (uint8_t)p->out, key.accumulate = p->accumulate;
    key.a_aligned = rows_start_aligned(p->A, (p->a_transposed ? p->M : p->K) * in);
    key.b_aligned = rows_start_aligned(p->B, (p->b_transposed ? p->K : p->N) * in);
    key.c_aligned = rows_start_aligned(p->C, p->N * out);
    return key;
}

// ---- candidates ----

// None adds in an order that changes: splits of the inner dimension, if any, are added by rank.
static const uint32_t ORDERED =
    CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

static bool order_fixed(const cublasLtMatmulAlgo_t *algorithm)
{
    int32_t splits;
    uint32_t scheme;
    size_t size;
    bool known = library.algorithm_get(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                       sizeof splits, &size) == CUBLAS_STATUS_SUCCESS &&
                 library.algorithm_get(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                       sizeof scheme, &size) == CUBLAS_STATUS_SUCCESS;
    return known && (scheme & ~ORDERED) == 0 &&
           (scheme != CUBLASLT_REDUCTION_SCHEME_NONE || splits == 0 || splits == 1);
}

extern "C" status_t cuda_algorithm_order(const void *algorithm, bool *out_fixed)
{
    pthread_mutex_lock(&mutex);
    status_t status = library_load(&library);
    pthread_mutex_unlock(&mutex);
    if (status == STATUS_OK) {
        *out_fixed = order_fixed((const cublasLtMatmulAlgo_t *)algorithm);
    }
    return status;
}

template <typename V>
static void preference_set(cublasLtMatmulPreferenceOpaque_t *preference,
                           cublasLtMatmulPreferenceAttributes_t attribute, V value)
{
    library_check(library.preference_set(preference, attribute, &value, sizeof value),
                  "choosing an algorithm");
}

static void preference_describe(cublasLtMatmulPreferenceOpaque_t *preference,
                                const struct product_key *key, uint32_t reductions)
{
    uint32_t in = (uint32_t)dtype_size((enum dtype)key->in);
    uint32_t out = (uint32_t)dtype_size((enum dtype)key->out);
    library_check(library.preference_init(preference, sizeof *preference), "choosing an algorithm");
    preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                   (uint64_t)CUDA_MATMUL_BYTES);
    preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                   key->b_aligned ? 16 : in);
    preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                   key->a_aligned ? 16 : in);
    preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                   key->c_aligned ? 16 : out);
    preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                   key->c_aligned ? 16 : out);
}

static int candidates_find(struct library_call *call, const struct product_key *key, int device,
                           uint32_t reductions, int most, cublasLtMatmulAlgo_t *out)
{
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES_MOST];
    int count = 0, usable = 0;
    most = most < CANDIDATES_MOST ? most : CANDIDATES_MOST;
    preference_describe(&preference, key, reductions);
    cublasStatus_t status =
        library.heuristic(handle_of(device), &call->operation, &call->A, &call->B, &call->C,
                          &call->C, &preference, most, found, &count);
    CHECK(status == CUBLAS_STATUS_SUCCESS || status == CUBLAS_STATUS_NOT_SUPPORTED,
          "cuBLASLt: choosing an algorithm: %s", library.status_string(status));
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < count; i++) {
        if (found[i].state == CUBLAS_STATUS_SUCCESS) {
            out[usable++] = found[i].algo;
        }
    }
    return usable;
}

// The library's own first choice, of those that do not split the inner dimension.
static cublasLtMatmulAlgo_t algorithm_first(struct library_call *call,
                                            const struct product_key *key, int device)
{
    cublasLtMatmulAlgo_t first;
    int found = candidates_find(call, key, device, CUBLASLT_REDUCTION_SCHEME_NONE, 1, &first);
    CHECK(found == 1, "cuBLASLt has no algorithm for [%zu, %zu] x [%zu, %zu] %s to %s",
          (size_t)key->M, (size_t)key->K, (size_t)key->K, (size_t)key->N,
          dtype_name((enum dtype)key->in), dtype_name((enum dtype)key->out));
    return first;
}

int product_candidates(const struct product_key *key, int most, cublasLtMatmulAlgo_t *out)
{
    int device = device_bound(), count = 1;
    struct library_call call;
    call_describe(&call, key);
    out[0] = algorithm_first(&call, key, device);
    int end = 1 + candidates_find(&call, key, device, ORDERED, most - 1, out + 1);
    for (int i = 1; i < end; i++) {
        if (order_fixed(&out[i])) {
            out[count++] = out[i];
        }
    }
    return count;
}

static bool algorithm_fits(struct library_call *call, int device,
                           const cublasLtMatmulAlgo_t *algorithm)
{
    cublasLtMatmulHeuristicResult_t result;
    cublasStatus_t status = library.check(handle_of(device), &call->operation, &call->A, &call->B,
                                          &call->C, &call->C, algorithm, &result);
    return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= CUDA_MATMUL_BYTES;
}

// ---- the table, and what is in use; under the mutex ----

static struct product_algorithm *entry_find(const struct product_key *key)
{
    for (size_t i = 0; i < entries_count; i++) {
        if (memcmp(&entries[i].key, key, sizeof *key) == 0) {
            return &entries[i];
        }
    }
    return NULL;
}

// The key's place, or an empty one for it; NULL when the table is full.
static struct plan *plan_find(const struct product_key *key, int device)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t hash = 0xcbf29ce484222325u ^ (uint64_t)device;
    for (size_t i = 0; i < sizeof *key; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    for (size_t i = 0; i < PLANS; i++) {
        struct plan *plan = &plans[(hash + i) % PLANS];
        if (!plan->used || (plan->device == device && memcmp(&plan->key, key, sizeof *key) == 0)) {
            return plan;
        }
    }
    return NULL;
}

// The table's algorithm, if it has one that the library takes.
static const struct product_algorithm *entry_usable(const struct product_key *key, int device)
{
    struct library_call call;
    const struct product_algorithm *entry = key->in == DTYPE_BF16 ? entry_find(key) : NULL;
    call_describe(&call, key);
    return entry && algorithm_fits(&call, device, &entry->algorithm) ? entry : NULL;
}

static cublasLtMatmulAlgo_t algorithm_choose(struct library_call *call,
                                             const struct product_key *key, int device)
{
    const struct product_algorithm *entry = entry_usable(key, device);
    return entry ? entry->algorithm : algorithm_first(call, key, device);
}

static cublasLtMatmulAlgo_t algorithm_of(struct library_call *call, const struct product_key *key,
                                         int device)
{
    cublasLtMatmulAlgo_t algorithm;
    pthread_mutex_lock(&mutex);
    struct plan *plan = plan_find(key, device);
    if (plan && plan->chosen) {
        algorithm = plan->algorithm;
    } else {
        algorithm = algorithm_choose(call, key, device);
        if (plan) {
            *plan = (struct plan){*key, device, true, true, algorithm};
        }
    }
    pthread_mutex_unlock(&mutex);
    return algorithm;
}

void product_learn(const struct product_algorithm *entry)
{
    pthread_mutex_lock(&mutex);
    struct product_algorithm *place = entry_find(&entry->key);
    if (!place && entries_count < ENTRIES) {
        place = &entries[entries_count++];
    }
    if (place) {
        *place = *entry;
    }
    for (size_t i = 0; i < PLANS; i++) {
        plans[i].chosen = plans[i].chosen && memcmp(&plans[i].key, &entry->key, sizeof entry->key);
    }
    pthread_mutex_unlock(&mutex);
}

static int key_compare(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct product_key));
}

size_t product_known(struct product_algorithm **out)
{
    struct product_algorithm *list = (struct product_algorithm *)malloc(sizeof entries);
    CHECK(list, "no memory for a list of products");
    pthread_mutex_lock(&mutex);
    size_t count = entries_count;
    memcpy(list, entries, count * sizeof *list);
    pthread_mutex_unlock(&mutex);
    qsort(list, count, sizeof *list, key_compare); // an entry begins with its key
    *out = list;
    return count;
}

size_t product_missing(struct product_key **out)
{
    int device = device_bound();
    struct product_key *list = (struct product_key *)malloc(PLANS * sizeof *list);
    size_t count = 0;
    CHECK(list, "no memory for a list of products");
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < PLANS; i++) {
        const struct plan *plan = &plans[i];
        if (plan->used && plan->device == device && plan->key.in == DTYPE_BF16 &&
            !entry_usable(&plan->key, device)) {
            list[count++] = plan->key;
        }
    }
    pthread_mutex_unlock(&mutex);
    qsort(list, count, sizeof *list, key_compare);
    *out = list;
    return count;
}

// ---- running ----

static cublasStatus_t call_run(struct library_call *call, int device,
                               const cublasLtMatmulAlgo_t *algorithm, bool accumulate,
                               const void *A, const void *B, void *C, void *workspace,
                               cudaStream_t stream)
{
    float one = 1, beta = accumulate ? 1 : 0;
    return library.matmul(handle_of(device), &call->operation, &one, B, &call->A, A, &call->B,
                          &beta, C, &call->C, C, &call->C, algorithm, workspace, CUDA_MATMUL_BYTES,
                          stream);
}

void product_run(const struct kernel_ctx *ctx, const struct product *p)
{
    if (p->M == 0 || p->N == 0) {
        return;
    }
    int device = device_bound();
    struct product_key key = key_of(p);
    struct library_call call;
    call_describe(&call, &key);
    cublasLtMatmulAlgo_t algorithm = algorithm_of(&call, &key, device);
    library_check(call_run(&call, device, &algorithm, p->accumulate, p->A, p->B, p->C,
                           workspace_get(ctx, CUDA_MATMUL_BYTES), stream_of(ctx)),
                  "a product");
}

bool product_try(const struct product_key *key, const cublasLtMatmulAlgo_t *algorithm, void *A,
                 void *B, void *C, void *workspace, cudaStream_t stream)
{
    struct library_call call;
    call_describe(&call, key);
    return call_run(&call, device_bound(), algorithm, key->accumulate, A, B, C, workspace,
                    stream) == CUBLAS_STATUS_SUCCESS;
}
