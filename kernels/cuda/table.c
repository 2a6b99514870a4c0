/* table.c - the GPU's tables, one a dtype. */
#include <cuda_runtime.h>
#include <pthread.h>

#include "kernels/cuda/cuda.h"

enum { CAPABILITY_LEAST = 80 };

static struct kernels tables[2]; /* by dtype */
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t workspace(const struct kernel_limits *limits)
{
    size_t N = limits->B * limits->T, widest = larger(larger(limits->D, limits->F), limits->K);
    size_t heads = larger(limits->H * limits->E, limits->G * limits->E);
    size_t matmul = CUDA_MATMUL_BYTES + CUDA_SPLIT_BYTES + N * limits->Cn * 2;
    size_t columns = cuda_columns_bytes(N, larger(larger(widest, limits->Cn), heads));
    size_t head_norm = cuda_columns_bytes(N * limits->H, limits->E);
    size_t attention = N * limits->H * sizeof(float);
    size_t sums = larger(N, CUDA_SQUARE_CHUNKS) * sizeof(double);
    return larger(larger(matmul, larger(columns, head_norm)), larger(attention, sums));
}

static void table_fill(struct kernels *table, enum dtype dtype)
{
    table->name = dtype == DTYPE_BF16 ? "cuda (bf16, cuBLASLt)" : "cuda (f32, cuBLASLt)";
    table->dtype = dtype;
    table->workspace = workspace;
    cuda_activation_fill(table);
    cuda_attention_forward_fill(table);
    cuda_attention_backward_fill(table);
    cuda_elementwise_fill(table);
    cuda_embed_fill(table);
    cuda_matmul_fill(table);
    cuda_mudd_forward_fill(table);
    cuda_mudd_backward_fill(table);
    cuda_norm_fill(table);
    cuda_optimizer_fill(table);
    cuda_rope_fill(table);
    cuda_xent_fill(table);
}

static void tables_fill(void)
{
    table_fill(&tables[DTYPE_F32], DTYPE_F32);
    table_fill(&tables[DTYPE_BF16], DTYPE_BF16);
}

/* Is there a device, and does it run what was compiled? */
static status_t device_suits(void)
{
    int device = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    if (error != cudaSuccess) {
        return FAIL(STATUS_UNSUPPORTED, "no GPU: %s", cudaGetErrorString(error));
    }
    if (major * 10 + minor < CAPABILITY_LEAST) {
        return FAIL(STATUS_UNSUPPORTED, "GPU %d is sm_%d%d: sm_%d or newer is needed", device,
                    major, minor, CAPABILITY_LEAST);
    }
    return STATUS_OK;
}

status_t kernels_cuda(enum dtype dtype, const struct kernels **out)
{
    TRY(device_suits());
    TRY(cuda_matmul_init());
    pthread_once(&tables_once, tables_fill);
    *out = &tables[dtype];
    return STATUS_OK;
}
