/* workspace.c - sizes of the GPU's tables, for whoever plans without one: in every build. */
#include "kernels/cuda/cuda.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

size_t cuda_workspace(const struct kernel_limits *limits)
{
    size_t N = limits->B * limits->T, widest = larger(larger(limits->D, limits->F), limits->K);
    size_t heads = larger(limits->H * limits->E, limits->G * limits->E);
    size_t matmul = CUDA_MATMUL_BYTES + CUDA_SPLIT_BYTES + N * limits->Cn * 2;
    size_t columns = cuda_columns_bytes(N, larger(larger(widest, limits->Cn), heads));
    size_t head_norm = cuda_columns_bytes(N * limits->H, limits->E);
    size_t attention = N * limits->H * sizeof(float);
    size_t hyper = cuda_columns_bytes(N, limits->K) + N * limits->K * sizeof(float);
    size_t depth = cuda_depth_bytes(N, limits->D);
    size_t sums = larger(N, CUDA_SQUARE_CHUNKS) * sizeof(double);
    return larger(larger(matmul, larger(columns, head_norm)),
                  larger(larger(attention, larger(depth, hyper)), sums));
}

const struct kernels *kernels_cuda_sizes(enum dtype dtype)
{
    static const struct kernels sizes[] = {
        [DTYPE_F32] = {.name = "cuda", .dtype = DTYPE_F32, .workspace = cuda_workspace},
        [DTYPE_BF16] = {.name = "cuda", .dtype = DTYPE_BF16, .workspace = cuda_workspace},
    };
    return &sizes[dtype];
}
