// product.cuh - matrix products by cuBLASLt, and which of its algorithms; private to kernels/cuda/.
//
// product.cu runs products and knows the algorithm of each; algorithms.cu measures, prints and reads
// the table of measured ones.
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include <cublasLt.h>

#include "kernels/cuda/common.cuh"

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

// What an algorithm depends on, beside card and library; compared as bytes.
struct product_key {
    uint64_t M, N, K, parts;
    uint8_t a_transposed, b_transposed, in, out, accumulate;
    uint8_t a_aligned, b_aligned, c_aligned; // rows begin on multiples of 16 bytes
};

struct product_algorithm {
    struct product_key key;
    cublasLtMatmulAlgo_t algorithm;
    float us, first_us; // its median time, and that of the library's first choice
};

void product_run(const struct kernel_ctx *ctx, const struct product *p);

// ---- for algorithms.cu ----

// The table's name for card and library: "card=NVIDIA_H200/132 library=130001". [size] bytes.
void product_place(char *text, size_t size);
// The library's candidates for a product on the bound device, its first choice first; how many.
int product_candidates(const struct product_key *key, int most, cublasLtMatmulAlgo_t *out);
// Runs one algorithm on A, B, C of the key's sizes; false if it turns out not to be able to.
bool product_try(const struct product_key *key, const cublasLtMatmulAlgo_t *algorithm, void *A,
                 void *B, void *C, void *workspace, cudaStream_t stream);
// Takes (or replaces) an entry of the table.
void product_learn(const struct product_algorithm *entry);
// Entries of the table; keys that the bound device has run without a usable one. malloc'ed, sorted.
size_t product_known(struct product_algorithm **out);
size_t product_missing(struct product_key **out);

#endif
