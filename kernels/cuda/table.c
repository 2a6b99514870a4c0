/* table.c - the GPU's tables, one a dtype. */
#include <cuda_runtime.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cudnn.h"

enum { CAPABILITY_LEAST = 80 };

static struct kernels tables[2]; /* by dtype */
static char names[2][96], lacks[2][320];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool deterministic;

void kernels_cuda_options(const struct kernels_cuda_options *options)
{
    atomic_store(&deterministic, options->deterministic);
}

bool cuda_deterministic(void)
{
    return atomic_load_explicit(&deterministic, memory_order_relaxed);
}

enum cuda_attention cuda_attention_choice(void)
{
    static _Atomic int chosen; /* 1 + choice */
    int choice = atomic_load_explicit(&chosen, memory_order_relaxed) - 1;
    if (choice < 0) {
        const char *text = getenv("MUDDPIPE_ATTENTION");
        choice = !text                        ? CUDA_ATTENTION_AUTO
                 : strcmp(text, "own") == 0   ? CUDA_ATTENTION_OWN
                 : strcmp(text, "cudnn") == 0 ? CUDA_ATTENTION_CUDNN
                                              : CUDA_ATTENTION_AUTO;
        atomic_store(&chosen, choice + 1);
    }
    return (enum cuda_attention)choice;
}

static size_t workspace_bf16(const struct kernel_limits *limits)
{
    size_t cudnn = cuda_attention_choice() == CUDA_ATTENTION_OWN
                       ? 0
                       : cudnn_attention_workspace(limits->B, limits->T, limits->H, limits->G,
                                                   limits->E, cuda_deterministic());
    size_t own = cuda_workspace(limits);
    return cudnn > own ? cudnn : own;
}

static void table_fill(struct kernels *table, enum dtype dtype)
{
    table->dtype = dtype;
    table->workspace = dtype == DTYPE_BF16 ? workspace_bf16 : cuda_workspace;
#define FILE_FILL(file) cuda_##file##_fill(table);
    CUDA_FILES(FILE_FILL)
#undef FILE_FILL
}

/* cuDNN, or NULL and why it is not there. */
static status_t attention_open(char *why, size_t size, const char **out)
{
    enum cuda_attention choice = cuda_attention_choice();
    snprintf(why, size, "MUDDPIPE_ATTENTION=own");
    *out = choice == CUDA_ATTENTION_OWN ? NULL : cudnn_open(why, size);
    return *out || choice != CUDA_ATTENTION_CUDNN
               ? STATUS_OK
               : FAIL(STATUS_UNSUPPORTED, "MUDDPIPE_ATTENTION=cudnn: %s", why);
}

static void table_open(enum dtype dtype, const char *cudnn, const char *why)
{
    size_t version = cuda_matmul_version();
    char attention[64] = "";
    if (tables[dtype].name) {
        return;
    }
    if (dtype == DTYPE_BF16) {
        snprintf(attention, sizeof attention, ", %s attention", cudnn ? cudnn : "own");
    }
    if (dtype == DTYPE_BF16 && !cudnn) {
        snprintf(lacks[dtype], sizeof lacks[dtype], "no cuDNN, whose attention is quicker: %s",
                 why);
        tables[dtype].lacks = lacks[dtype];
    }
    table_fill(&tables[dtype], dtype);
    snprintf(names[dtype], sizeof names[dtype], "cuda (%s, cuBLASLt %zu.%zu.%zu%s)",
             dtype_name(dtype), version / 10000, version / 100 % 100, version % 100, attention);
    tables[dtype].name = names[dtype];
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
    if (!cuda_code_suits()) {
        return FAIL(STATUS_UNSUPPORTED,
                    "GPU %d is sm_%d%d, which this program's operations were not compiled for; "
                    "configure with -DCMAKE_CUDA_ARCHITECTURES=%d%d, or without it",
                    device, major, minor, major, minor);
    }
    return STATUS_OK;
}

status_t kernels_cuda(enum dtype dtype, const struct kernels **out)
{
    const char *cudnn = NULL;
    char why[256] = "";
    TRY(device_suits());
    TRY(cuda_matmul_init());
    if (dtype == DTYPE_BF16) {
        TRY(attention_open(why, sizeof why, &cudnn));
    }
    pthread_mutex_lock(&mutex);
    table_open(dtype, cudnn, why);
    pthread_mutex_unlock(&mutex);
    *out = &tables[dtype];
    return STATUS_OK;
}
