// cublaslt.cuh - cuBLASLt, loaded when a GPU is first asked for; private to product.cu.
//
// The library is half a gigabyte: a process that computes on the CPU should not map it, and one built
// with it should start where it is missing. Calls read library.matmul(..) for cublasLtMatmul(..).
#ifndef KERNELS_CUDA_CUBLASLT_CUH
#define KERNELS_CUDA_CUBLASLT_CUH

#include <cublasLt.h>
#include <dlfcn.h>

#include "kernels/cuda/common.cuh"

#define LIBRARY_FUNCTIONS(X)                                                                       \
    X(create, cublasLtCreate)                                                                      \
    X(status_string, cublasLtGetStatusString)                                                      \
    X(version, cublasLtGetVersion)                                                                 \
    X(matmul, cublasLtMatmul)                                                                      \
    X(heuristic, cublasLtMatmulAlgoGetHeuristic)                                                   \
    X(check, cublasLtMatmulAlgoCheck)                                                              \
    X(algorithm_get, cublasLtMatmulAlgoConfigGetAttribute)                                         \
    X(operation_init, cublasLtMatmulDescInit_internal)                                             \
    X(operation_set, cublasLtMatmulDescSetAttribute)                                               \
    X(layout_init, cublasLtMatrixLayoutInit_internal)                                              \
    X(layout_set, cublasLtMatrixLayoutSetAttribute)                                                \
    X(preference_init, cublasLtMatmulPreferenceInit_internal)                                      \
    X(preference_set, cublasLtMatmulPreferenceSetAttribute)

struct library {
    void *loaded;
#define LIBRARY_MEMBER(name, symbol) decltype(&symbol) name;
    LIBRARY_FUNCTIONS(LIBRARY_MEMBER)
#undef LIBRARY_MEMBER
};

#define LIBRARY_TEXT_(x) #x
#define LIBRARY_TEXT(x) LIBRARY_TEXT_(x)
#define LIBRARY_NAME "libcublasLt.so." LIBRARY_TEXT(CUBLAS_VER_MAJOR)

// Where the loader looks, else where it was when this was built.
static void *library_open(void)
{
    void *loaded = dlopen(LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
#ifdef KERNELS_CUDA_FOLDER
    if (!loaded) {
        loaded = dlopen(KERNELS_CUDA_FOLDER "/" LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
    }
#endif
    return loaded;
}

static status_t library_load(struct library *library)
{
    if (library->loaded) {
        return STATUS_OK;
    }
    void *loaded = library_open();
    if (!loaded) {
        return FAIL(STATUS_UNSUPPORTED,
                    "the GPU's matrix products need " LIBRARY_NAME
                    ": %s; add its folder to LD_LIBRARY_PATH",
                    dlerror());
    }
#define LIBRARY_FIND(name, symbol)                                                                 \
    library->name = (decltype(&symbol))dlsym(loaded, #symbol);                                     \
    if (!library->name) {                                                                          \
        return FAIL(STATUS_UNSUPPORTED, LIBRARY_NAME " has no " #symbol);                          \
    }
    LIBRARY_FUNCTIONS(LIBRARY_FIND)
#undef LIBRARY_FIND
    library->loaded = loaded;
    return STATUS_OK;
}

#endif
